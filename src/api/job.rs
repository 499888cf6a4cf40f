//! The job resource: `/_api/job` and the paths below it.
//!
//! Owns the reading of its parameters and the form of its answers; its paths and methods are in `endpoints`. `jobs`
//! and the store decide how jobs live. Invariant: only results have the field `x-arango-async-id`, so that it tells a
//! job's own `404` from this resource's.

use http::header::{CONTENT_RANGE, CONTENT_SECURITY_POLICY, LINK, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};

use super::query::{number, parameter};
use super::range;
use super::records::after;
use super::{Asked, follow, json, text};
use crate::content::{Content, NoMemory, whole};
use crate::error::Error;
use crate::exchange::{Answer, Guard, Owner, Receipt, empty};
use crate::handler::Outcome;
use crate::job::stored::{Ending, Exit, StoredResponse};
use crate::job::{JobId, JobKey, Stamp};
use crate::protocol::{
    ASYNC_ID, ASYNC_JOB_ID, ASYNC_RESULT, EXIT_CODE, EXIT_SIGNAL, JOB_STATE, PROGRESS,
};
use crate::store::{List, Lookup, Status, StoreUnavailable};

/// A result that is opened as a page runs no script and has no origin (CSP level 3, section 6.3.2).
pub const SANDBOX: HeaderValue = HeaderValue::from_static("sandbox");

/// How soon a client may ask again about a pending job, in seconds.
pub const ASK_AGAIN: HeaderValue = HeaderValue::from_static("1");

/// How many ids a list holds when `count` is absent.
const DEFAULT_COUNT: usize = 100;

/// How many ids a list holds at most.
const MAX_COUNT: usize = 10_000;

/// The longest id as text, with quotes and a comma, in bytes.
const ID_TEXT: usize = 23;

const TRUE: &str = r#"{"result":true}"#;

impl Asked<'_> {
    pub fn owner(&self) -> &Owner {
        &self.call.owner
    }

    /// Returns the job that the path names.
    ///
    /// # Errors
    /// As in ArangoDB, what is not an id is an unknown job for PUT and DELETE. For GET it is an unknown job if it is a
    /// number, and an invalid parameter otherwise.
    pub fn job(&self) -> Result<JobKey, Error> {
        if let Some(id) = JobId::parse(self.id) {
            return Ok(JobKey { owner: self.owner().clone(), id });
        }
        let is_number = !self.id.is_empty() && self.id.bytes().all(|b| b.is_ascii_digit());
        let reads = self.call.request.method().is_safe();
        Err(if reads && !is_number { Error::NoJobRequest } else { Error::UnknownJob })
    }
}

/// Refuses a path that matches no operation of this resource.
pub fn malformed(_: &Asked<'_>) -> Result<Outcome, Error> {
    Err(Error::NoJobRequest)
}

/// What a request asks about a job that may be pending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// Whether it is done, or its result: a client may prefer to wait for that.
    End(JobId),
    /// What it has logged so far.
    Log(JobId),
}

impl Question {
    /// Returns whether the job may be pending if the answer has this status code.
    pub fn may_be_pending(self, answered: StatusCode) -> bool {
        match self {
            Self::End(_) => answered == StatusCode::NO_CONTENT,
            Self::Log(_) => answered == StatusCode::OK,
        }
    }

    /// Returns the job.
    pub const fn job(self) -> JobId {
        match self {
            Self::End(id) | Self::Log(id) => id,
        }
    }
}

/// Lists the ids of the jobs that are done.
pub fn done(asked: &Asked<'_>) -> Result<Outcome, Error> {
    list(asked, List::Done)
}

/// Lists the ids of the jobs that are not done.
pub fn pending(asked: &Asked<'_>) -> Result<Outcome, Error> {
    list(asked, List::Pending)
}

fn list(asked: &Asked<'_>, list: List) -> Result<Outcome, Error> {
    let count = count(asked.query())?;
    let behind = match parameter(asked.query(), "after") {
        Some(text) => after(&text)?,
        None => None,
    };
    // One more than wanted, to see whether there are more.
    let mut ids = asked.api.jobs.store.list(asked.owner(), list, behind, count + 1)?;
    let has_more = ids.len() > count;
    ids.truncate(count);
    let next = ids.last().filter(|_| has_more).map(|last| next_page(asked, *last));
    // Charged: the ids themselves, and their text with quotes and commas.
    let charge = asked.charge(ids.len() * (size_of::<JobId>() + ID_TEXT))?;
    let text = array(&ids);
    drop(ids);
    let mut response = json(whole(text.into_bytes(), charge)?);
    if let Some(next) = next {
        response.headers_mut().insert(LINK, next);
    }
    Ok(response.into())
}

/// Returns the link to the rest of a list (RFC 8288).
fn next_page(asked: &Asked<'_>, last: JobId) -> HeaderValue {
    let path = asked.call.request.uri().path();
    let count = parameter(asked.query(), "count").map(|count| format!("count={count}&"));
    let count = count.unwrap_or_default();
    let link = format!(r#"<{path}?{count}after={last}>; rel="next""#);
    HeaderValue::try_from(link).expect("it is the path of a list, and digits")
}

fn count(query: &str) -> Result<usize, Error> {
    match parameter(query, "count") {
        None => Ok(DEFAULT_COUNT),
        Some(text) if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => {
            Ok(text.parse().map_or(MAX_COUNT, |count: usize| count.min(MAX_COUNT)))
        }
        Some(_) => Err(Error::bad_parameter("count is not a number")),
    }
}

/// Returns the ids as an array of JSON strings.
fn array(ids: &[JobId]) -> String {
    let mut digits = itoa::Buffer::new();
    let mut text = String::with_capacity(2 + ids.len() * ID_TEXT);
    text.push('[');
    for id in ids {
        let comma = if text.len() > 1 { "," } else { "" };
        for part in [comma, "\"", digits.format(id.number()), "\""] {
            text.push_str(part);
        }
    }
    text.push(']');
    text
}

/// Returns whether a job is done: how it ended, or its progress.
pub fn status(asked: &Asked<'_>) -> Result<Outcome, Error> {
    match asked.api.jobs.store.status(&asked.job()?)? {
        None => Err(Error::UnknownJob),
        Some(Status::Done(Ending { status, exit, .. })) => {
            let mut response = text("");
            let fields = response.headers_mut();
            fields.insert(ASYNC_RESULT, HeaderValue::from(status.as_u16()));
            match exit {
                Some(Exit::Code(code)) => fields.insert(EXIT_CODE, HeaderValue::from(code)),
                Some(Exit::Signal(signal)) => fields.insert(EXIT_SIGNAL, HeaderValue::from(signal)),
                None => None,
            };
            Ok(response.into())
        }
        Some(Status::Pending(state, progress)) => {
            let mut response = empty(StatusCode::NO_CONTENT);
            let fields = response.headers_mut();
            fields.insert(JOB_STATE, HeaderValue::from_static(state.name()));
            fields.insert(RETRY_AFTER, ASK_AGAIN);
            if let Some(line) = progress.and_then(|line| HeaderValue::try_from(line).ok()) {
                fields.insert(PROGRESS, line);
            }
            Ok(response.into())
        }
    }
}

/// Returns what the job's script has written to stderr; if the log is followed, also what it writes from now on.
pub fn log(asked: &Asked<'_>) -> Result<Outcome, Error> {
    if follow::is_wanted(asked) {
        return follow::answer(asked);
    }
    let log = asked.api.jobs.store.log(&asked.job()?)?.ok_or(Error::UnknownJob)?;
    Ok(text(asked.charged(log.text.into_vec())?).into())
}

/// Returns the result, or a range of its content; the job keeps the result.
pub fn peek(asked: &Asked<'_>) -> Result<Outcome, Error> {
    let job = asked.job()?;
    answer_with(asked.api.jobs.store.peek(&job), &job, |mut response| {
        response.headers_mut().append(CONTENT_SECURITY_POLICY, SANDBOX);
        // A range of a range could not name its bytes in the whole result.
        let is_whole =
            response.status() == StatusCode::OK && !response.headers().contains_key(CONTENT_RANGE);
        if !is_whole {
            return response.into();
        }
        range::answer(asked.call, response, range::tag(&id_value(job.id)), |whole| whole).into()
    })
}

/// Returns the result, which is removed once it is delivered.
pub fn collect(asked: &Asked<'_>) -> Result<Outcome, Error> {
    let (job, jobs) = (asked.job()?, &asked.api.jobs);
    let mut receipt = Receipt::none();
    let found = jobs.store.collect(&job).map(|(result, delivery)| {
        receipt = jobs.receipt(job.clone(), delivery);
        result
    });
    answer_with(found, &job, |response| Answer { response, guard: Guard::Verbatim, receipt })
}

/// Cancels a job.
pub fn cancel(asked: &Asked<'_>) -> Result<Outcome, Error> {
    found(asked.api.jobs.cancel(&asked.job()?)?)
}

/// Forgets a job.
pub fn forget(asked: &Asked<'_>) -> Result<Outcome, Error> {
    found(asked.api.jobs.store.forget(&asked.job()?)?)
}

/// Forgets all jobs of the client.
pub fn forget_all(asked: &Asked<'_>) -> Result<Outcome, Error> {
    asked.api.jobs.store.forget_all(asked.owner())?;
    found(true)
}

/// Forgets the client's jobs that are stamped before a time.
pub fn forget_expired(asked: &Asked<'_>) -> Result<Outcome, Error> {
    let stamp = number(asked.query(), "stamp").and_then(Stamp::from_unix_seconds);
    let stamp = stamp.ok_or(Error::bad_parameter("stamp is not a number"))?;
    asked.api.jobs.store.forget_before(asked.owner(), stamp)?;
    found(true)
}

fn found(exists: bool) -> Result<Outcome, Error> {
    if exists { Ok(json(TRUE).into()) } else { Err(Error::UnknownJob) }
}

/// Returns the result that was looked up; `None` while the job is pending.
///
/// # Errors
/// `404` for an unknown job, `503` if the result cannot be read now, `507` if it can never be read.
pub fn result_of(found: Lookup) -> Result<Option<StoredResponse>, Error> {
    match found {
        Lookup::Unknown => Err(Error::UnknownJob),
        Lookup::Pending => Ok(None),
        Lookup::Unreadable => Err(StoreUnavailable.into()),
        Lookup::NoMemory => Err(Error::no_memory(&NoMemory::Budget)),
        Lookup::TooLarge => {
            let what = "the stored result is larger than --max-memory: raise that; it stays";
            Err(Error::InsufficientStorage(what.into()))
        }
        Lookup::Done(result) => Ok(Some(result)),
    }
}

fn answer_with(
    lookup: Lookup,
    job: &JobKey,
    answer: impl FnOnce(Response<Content>) -> Answer,
) -> Result<Outcome, Error> {
    Ok(match result_of(lookup)? {
        Some(result) => answer(named(&result, job.id)).into(),
        None => empty(StatusCode::NO_CONTENT).into(),
    })
}

/// Adds the fields with which a result reaches its client.
fn named(result: &StoredResponse, id: JobId) -> Response<Content> {
    let mut response = result.to_response();
    for name in [ASYNC_ID, ASYNC_JOB_ID] {
        response.headers_mut().insert(name, id_value(id));
    }
    response
}

/// Returns the id as a field value.
pub fn id_value(id: JobId) -> HeaderValue {
    let mut digits = itoa::Buffer::new();
    HeaderValue::from_str(digits.format(id.number())).expect("digits are a field value")
}
