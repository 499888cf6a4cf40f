//! Fetches a result to its destination, then removes it from deferd.
//!
//! Owns the order of the two steps, and the words for a job that failed. Invariant: fetching leaves the result in
//! deferd; it is removed only after its content was written.

use http::Method;
use http::header::CONTENT_LENGTH;

use super::job::{self, Ending};
use super::output::{Broken, Output};
use super::server::{Answer, Question, Server};
use super::{Trouble, tell};
use crate::job::JobId;
use crate::protocol::{ASYNC_ID, STDERR};

/// Content up to this size, in bytes, is removed by collecting the result, which sends the content again: after a
/// collection, deferd keeps the log for a while. Larger content is deleted, together with its log.
const SMALL: u64 = 1 << 20;

/// The outcome of fetching.
pub enum Fetched {
    /// The result was written, and then removed from deferd.
    Result(Ending),
    /// The job is not done.
    Pending,
    /// The job does not exist.
    Unknown,
}

/// Fetches the result of a job, and reports on stderr if the job has failed.
///
/// # Errors
/// [`Trouble::Refused`]; the result then remains in deferd.
pub fn fetch(server: &Server, id: JobId, output: &Output) -> Result<Fetched, Trouble> {
    let mut result = server.ask(Question::new(Method::GET, job::path(id, "/result")))?;
    // Only a job's own result has the id of the job as a field, which tells its own 404 from deferd's.
    if !result.has(&ASYNC_ID) {
        return match result.status() {
            204 => Ok(Fetched::Pending),
            404 => Ok(Fetched::Unknown),
            _ => Err(result.refusal()),
        };
    }
    let ending = Ending::of(&result);
    let failure = ending.has_failed().then(|| failure(server, id, ending, &result));
    let written = output.write(&mut result.response.body_mut().as_reader());
    written.map_err(|broken| {
        let what = match broken {
            Broken::Content(error) => format!("its result broke off: {error}"),
            Broken::Output(what) => what,
        };
        Trouble::Refused(format!("job {id}: {what}; the result is still there"))
    })?;
    remove(server, id, result.number(&CONTENT_LENGTH));
    if let Some(failure) = failure {
        tell(&failure);
    }
    Ok(Fetched::Result(ending))
}

/// Removes a result after its content, of this length, was written.
pub fn remove(server: &Server, id: JobId, length: Option<u64>) {
    let is_small = length.is_none_or(|length| length <= SMALL);
    let method = if is_small { Method::PUT } else { Method::DELETE };
    let removed = server.ask(Question::new(method, job::path(id, "")));
    let what = match removed.map(|mut answer| (answer.content(), answer)) {
        Ok((Ok(_), answer)) if !is_small && answer.status() == 200 => return,
        Ok((Ok(_), answer)) if is_small && answer.has(&ASYNC_ID) => return,
        Ok((Ok(_), answer)) if answer.status() == 404 => {
            "another client has taken its result as well".to_owned()
        }
        Ok((Ok(_), answer)) => answer.refusal().to_string(),
        Ok((Err(trouble), _)) | Err(trouble) => {
            format!("its result was written, and may still be there: {trouble}")
        }
    };
    tell(&format!("job {id}: {what}"));
}

/// Returns how a job failed, and the last line that its script wrote to stderr.
fn failure(server: &Server, id: JobId, ending: Ending, result: &Answer) -> String {
    let mut text = format!("job {id} ended with {ending}");
    if let Some(reason) = result.field(&STDERR).or_else(|| last_line(server, id)) {
        text.push_str(": ");
        text.push_str(&reason);
    }
    text
}

/// Returns the last line of a log that is not blank.
fn last_line(server: &Server, id: JobId) -> Option<String> {
    let mut log = server.ask(Question::new(Method::GET, job::path(id, "/log"))).ok()?;
    if log.status() != 200 {
        return None;
    }
    let log = log.content().ok()?;
    let text = String::from_utf8_lossy(&log);
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty());
    line.map(str::to_owned)
}
