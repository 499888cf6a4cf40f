//! `deferd list`: lists the jobs.
//!
//! Owns the paging and the form of the lines. If a deferd lacks `/_admin/jobs`, the list has only the ids of the done
//! and the pending jobs. Invariant: the first words of a line are the id and the state.

use http::Method;
use serde_json::Value;

use super::arguments::{Form, List};
use super::output::print;
use super::server::{Question, Server};
use super::{Trouble, printable};
use crate::protocol::{JOB, JOB_RECORDS};

/// How many records one request asks for: the most that deferd sends.
const RECORDS: usize = 1_000;

/// How many ids one request asks for: the most that deferd sends.
const IDS: usize = 10_000;

/// Prints the jobs.
///
/// # Errors
/// [`Trouble::Refused`].
pub fn list(server: &Server, list: &List) -> Result<(), Trouble> {
    // Only the job resource knows the word *pending*, for the three states before *done*.
    let is_pending = list.state.as_deref() == Some("pending");
    if !is_pending && print_records(server, list)? {
        return Ok(());
    }
    match list.state.as_deref() {
        None => {
            // In this order: a job that ends between the two requests is in both lists, not in neither.
            let mut pending = ids(server, "pending")?;
            let done = ids(server, "done")?;
            pending.retain(|id| !done.contains(id));
            print_ids(&pending, "pending", list)?;
            print_ids(&done, "done", list)
        }
        Some(state @ ("pending" | "done")) => print_ids(&ids(server, state)?, state, list),
        Some(state) => Err(Trouble::Refused(format!(
            "this deferd lists only done and pending jobs, not {state} ones"
        ))),
    }
}

/// Prints the records of the jobs; returns `false` if this deferd has no records.
fn print_records(server: &Server, list: &List) -> Result<bool, Trouble> {
    let state = list.state.as_ref().map_or_else(String::new, |state| format!("&state={state}"));
    let mut after = String::new();
    loop {
        let path = format!("{JOB_RECORDS}?count={RECORDS}{state}{after}");
        let mut answer = server.ask(Question::new(Method::GET, path))?;
        match answer.status() {
            200 => {}
            404 => return Ok(false),
            _ => return Err(answer.refusal()),
        }
        let content = answer.content()?;
        let page: Value = serde_json::from_slice(&content)
            .map_err(|error| Trouble::Refused(format!("{JOB_RECORDS}: {error}")))?;
        let jobs = page["jobs"].as_array().map(Vec::as_slice).unwrap_or_default();
        if list.form == Form::Json {
            print(&format!("{}\n", String::from_utf8_lossy(&content).trim_end()))?;
        } else {
            let is_short = list.state.is_some();
            let line = |job| if is_short { text(job, "id") } else { line(job) };
            print(&jobs.iter().map(|job| line(job) + "\n").collect::<String>())?;
        }
        let last = jobs.last().map(|job| text(job, "id")).unwrap_or_default();
        let next = Some(text(&page, "next")).filter(|next| !next.is_empty()).unwrap_or(last);
        if page["more"] != true || next.is_empty() {
            return Ok(true);
        }
        after = format!("&after={next}");
    }
}

/// Returns a member as text: a string without its quotes.
fn text(json: &Value, member: &str) -> String {
    match &json[member] {
        Value::Null => String::new(),
        Value::String(text) => printable(text),
        other => other.to_string(),
    }
}

/// Returns the line of a job: id, state, status if it has one, method, target, progress.
fn line(job: &Value) -> String {
    let words = ["id", "state", "status", "method", "target"].map(|member| text(job, member));
    let words: Vec<_> = words.iter().map(String::as_str).filter(|word| !word.is_empty()).collect();
    let progress = text(job, "progress");
    words.join(" ") + if progress.is_empty() { "" } else { ": " } + &progress
}

/// Returns the ids in a list of the job resource.
fn ids(server: &Server, which: &str) -> Result<Vec<String>, Trouble> {
    let mut ids: Vec<String> = Vec::new();
    loop {
        let after = ids.last().map_or_else(String::new, |id| format!("&after={id}"));
        let path = format!("{JOB}/{which}?count={IDS}{after}");
        let mut answer = server.ask(Question::new(Method::GET, path))?;
        if answer.status() != 200 {
            return Err(answer.refusal());
        }
        let goes_on = answer.has(&http::header::LINK);
        let page: Value = serde_json::from_slice(&answer.content()?)
            .map_err(|error| Trouble::Refused(format!("{JOB}/{which}: {error}")))?;
        let page = page.as_array().map(Vec::as_slice).unwrap_or_default();
        ids.extend(page.iter().filter_map(Value::as_str).map(printable));
        if page.is_empty() || !goes_on {
            return Ok(ids);
        }
    }
}

fn print_ids(ids: &[String], state: &str, list: &List) -> Result<(), Trouble> {
    if list.form == Form::Json {
        let jobs: Vec<_> =
            ids.iter().map(|id| format!(r#"{{"id":"{id}","state":"{state}"}}"#)).collect();
        return print(&format!("{{\"jobs\":[{}],\"more\":false}}\n", jobs.join(",")));
    }
    let rest = if list.state.is_none() { format!(" {state}\n") } else { "\n".to_owned() };
    print(&ids.iter().map(|id| format!("{id}{rest}")).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_what_is_known_of_a_job() {
        let line_of = |json: &str| line(&serde_json::from_str(json).unwrap());
        let running = r#"{"id":"7","state":"running","method":"POST","target":"/run/backup",
            "status":null,"progress":"step 2/3\u001b[2J"}"#;
        assert_eq!(line_of(running), "7 running POST /run/backup: step 2/3[2J");
        let done = r#"{"id":"8","state":"done","method":"GET","target":"/x","status":404}"#;
        assert_eq!(line_of(done), "8 done 404 GET /x");
    }
}
