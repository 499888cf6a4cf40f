//! The records of jobs: `/_admin/jobs` and the paths below it.
//!
//! Owns the parameters of the list, and the form of a page as JSON. The ledger decides what a record contains.
//! Invariants: a caller sees its own jobs only; an unknown or invalid parameter is refused by name, because a filter
//! that was silently ignored would show too much.

use std::fmt::Write as _;

use http::header::CONTENT_SECURITY_POLICY;
use http::{HeaderValue, StatusCode};

use super::job::{SANDBOX, id_value, result_of};
use super::query::pairs;
use super::range;
use super::{Asked, json, text};
use crate::content::{Content, whole};
use crate::error::Error;
use crate::exchange::{Owner, empty};
use crate::handler::Outcome;
use crate::job::{JobId, JobKey};
use crate::protocol::REPEATABLE;
use crate::store::{Filter, JobState, Order, Page};

/// How many records a page holds at most, and if `count` is absent.
const DEFAULT_COUNT: usize = 100;
const MAX_COUNT: usize = 1000;

/// About how long a record is as text, in bytes.
const RECORD_TEXT: usize = 512;

/// How much of a result is shown, in bytes.
const MAX_CONTENT: usize = 64 * 1024;

/// What a request asks of a list.
struct Asking {
    filter: Filter,
    after: Option<JobId>,
    count: usize,
}

/// Lists the records of the caller's jobs that pass the filter.
pub fn list(asked: &Asked<'_>) -> Result<Outcome, Error> {
    let Asking { filter, after, count } = Asking::read(asked.query())?;
    let page = asked.api.jobs.store.records(asked.owner(), &filter, after, count)?;
    // Charged: the records themselves, and their text.
    let charge = asked.charge(2 * page.records.len() * RECORD_TEXT)?;
    let text = page_text(&page, asked.owner());
    drop(page);
    Ok(json(whole(text.into_bytes(), charge)?).into())
}

/// Returns the record of one job.
pub fn one(asked: &Asked<'_>) -> Result<Outcome, Error> {
    refuse_parameters(asked)?;
    let record = asked.api.jobs.store.record(&job(asked)?)?.ok_or(Error::UnknownJob)?;
    let mut response = json(record.to_json(asked.owner()));
    if record.line.is_repeatable() {
        response.headers_mut().insert(REPEATABLE, HeaderValue::from_static("yes"));
    }
    Ok(response.into())
}

/// Returns the beginning of a result's content, or a range of it, without the result's fields and always as plain
/// text, so that a page can show it.
pub fn content(asked: &Asked<'_>) -> Result<Outcome, Error> {
    refuse_parameters(asked)?;
    let job = job(asked)?;
    let Some(result) = result_of(asked.api.jobs.store.peek(&job))? else {
        return Ok(empty(StatusCode::NO_CONTENT).into());
    };
    let mut response = text(result.body().clone());
    response.headers_mut().append(CONTENT_SECURITY_POLICY, SANDBOX);
    let beginning = |whole: Content| whole.slice(0..whole.len().min(MAX_CONTENT));
    Ok(range::answer(asked.call, response, range::tag(&id_value(job.id)), beginning).into())
}

/// Returns the job that the path names.
fn job(asked: &Asked<'_>) -> Result<JobKey, Error> {
    asked.job().map_err(|error| match error {
        Error::NoJobRequest => {
            Error::bad_parameter(format!("{:?} is not the id of a job", asked.id))
        }
        error => error,
    })
}

fn refuse_parameters(asked: &Asked<'_>) -> Result<(), Error> {
    match pairs(asked.query()).next() {
        None => Ok(()),
        Some((name, _)) => Err(unknown(&name)),
    }
}

fn unknown(name: &str) -> Error {
    Error::bad_parameter(format!("unknown parameter {name:?}"))
}

impl Asking {
    fn read(query: &str) -> Result<Self, Error> {
        let mut asking = Self { filter: Filter::default(), after: None, count: DEFAULT_COUNT };
        let mut seen = Vec::new();
        for (name, value) in pairs(query) {
            let invalid = |must: &str| Error::bad_parameter(format!("{name} is not {must}"));
            match &*name {
                "state" => {
                    let state = JobState::named(&value);
                    let must = "waiting, delayed, running or done";
                    asking.filter.state = Some(state.ok_or_else(|| invalid(must))?);
                }
                "failed" => match &*value {
                    "1" => asking.filter.only_failed = true,
                    "0" => asking.filter.only_failed = false,
                    _ => return Err(invalid("0 or 1")),
                },
                "route" if value.is_empty() => return Err(invalid("the prefix of a route")),
                "route" => asking.filter.route = Some(value.into()),
                "order" => match &*value {
                    "oldest" => asking.filter.order = Order::Ascending,
                    "newest" => asking.filter.order = Order::Descending,
                    _ => return Err(invalid("oldest or newest")),
                },
                "after" => asking.after = after(&value)?,
                "count" => {
                    let count = value.parse().ok().filter(|_| is_number(&value));
                    let count = count.filter(|count| (1..=MAX_COUNT).contains(count));
                    asking.count = count.ok_or_else(|| invalid("a number from 1 to 1000"))?;
                }
                name => return Err(unknown(name)),
            }
            if seen.contains(&name) {
                return Err(Error::bad_parameter(format!("{name} is given twice")));
            }
            seen.push(name);
        }
        Ok(asking)
    }
}

/// Reads the id after which a list continues; 0 is the beginning of the list.
pub fn after(value: &str) -> Result<Option<JobId>, Error> {
    match JobId::parse(value) {
        Some(id) => Ok(Some(id)),
        None if value == "0" => Ok(None),
        None => Err(Error::bad_parameter("after is not the id of a job")),
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

fn page_text(page: &Page, owner: &Owner) -> String {
    let mut text = String::with_capacity(64 + page.records.len() * RECORD_TEXT);
    text.push_str(r#"{"jobs":["#);
    for (n, record) in page.records.iter().enumerate() {
        text.push_str(if n > 0 { "," } else { "" });
        text.push_str(&record.to_json(owner));
    }
    text.push_str(r#"],"more":"#);
    // Writing to a string cannot fail.
    let _ = match page.next {
        Some(next) => write!(text, r#"true,"next":"{next}"}}"#),
        None => write!(text, "false}}"),
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read_or_refused_by_name() {
        let asking =
            Asking::read("state=done&failed=1&route=%2Frun%2F&after=7&count=1000").unwrap();
        assert_eq!(asking.filter.state, Some(JobState::Done));
        assert!(asking.filter.only_failed);
        assert_eq!(asking.filter.route.as_deref(), Some("/run/"));
        assert_eq!((asking.after, asking.count), (JobId::new(7), 1000));
        assert_eq!(asking.filter.order, Order::Ascending);
        let asking = Asking::read("after=0&failed=0&&order=newest").unwrap();
        assert_eq!((asking.after, asking.count), (None, 100));
        assert_eq!(asking.filter.order, Order::Descending);
        for (query, named) in [
            ("state=Done", "state"),
            ("state", "state"),
            ("failed=yes", "failed"),
            ("route=", "route"),
            ("order=up", "order"),
            ("after=01", "after"),
            ("after=", "after"),
            ("count=0", "count"),
            ("count=1001", "count"),
            ("count=+1", "count"),
            ("count=99999999999999999999", "count"),
            ("states=done", "states"),
            ("count=1&count=1", "count"),
            ("x%22=", r#"x\""#),
        ] {
            let Err(Error::BadParameter(detail)) = Asking::read(query) else { panic!("{query}") };
            assert!(detail.contains(named), "{query}: {detail}");
        }
    }
}
