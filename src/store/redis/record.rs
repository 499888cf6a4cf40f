//! What the engine keeps of a job besides its messages, as the store reads it.
//!
//! Owns the form of an ending and the order of the fields in the scripts' replies. The lines of the request have the
//! form of the store on disk. Invariant: a record that cannot be read is `None`, never another job.

use http::StatusCode;

use super::reply::Reply;
use crate::exchange::Connection;
use crate::job::execution::Attempts;
use crate::job::outcome::Outcome;
use crate::job::request_line::RequestLine;
use crate::job::stored::{Ending, Exit, StoredResponse};
use crate::job::{JobId, Stamp};
use crate::ledger::{End, JobRecord, JobState};
use crate::store::disk::record::{Record, Stage};

/// A job as the engine describes it.
#[derive(Debug)]
pub struct Told {
    /// Its state.
    pub state: JobState,
    /// What its record keeps of its request.
    pub line: RequestLine,
    /// The connection over which its request came.
    pub connection: Connection,
    /// The scheme of its sender's credentials.
    pub auth_type: Option<&'static str>,
    /// When it was accepted.
    pub created: Stamp,
    /// When it was done.
    pub finished: Option<Stamp>,
    /// How it ended.
    pub ending: Option<Ending>,
    /// The attempts that were made.
    pub attempts: Attempts,
    /// The last line that it wrote to stderr, as far as its instance has reported.
    pub progress: Option<String>,
    /// The incarnation that runs it.
    pub incarnation: u64,
    /// Its accounted size, in bytes.
    pub bytes: usize,
    /// How much it wrote to stderr in all, in bytes.
    pub logged: u64,
}

impl Told {
    /// Reads the fields of a script's reply; `None` if there is no such job, or they are damaged.
    pub fn read(fields: &Reply) -> Option<Self> {
        let (state, is_collected) = match fields.text(0) {
            "q" => (JobState::Waiting, false),
            "w" => (JobState::Delayed, false),
            "r" => (JobState::Running, false),
            "d" => (JobState::Done, false),
            // In delivery, or collected: only the log of such a job is asked for.
            "v" | "c" => (JobState::Done, true),
            _ => return None,
        };
        let created = Stamp::from_micros(fields.number(2));
        let (line, connection, auth_type) = if is_collected {
            (RequestLine::default(), Connection::Unix, None)
        } else {
            let Record { line, state, .. } = Record::read(fields.bytes(1))?;
            let Stage::Pending { connection, auth_type, .. } = state else { return None };
            (line, connection, auth_type)
        };
        let mut attempts = fields.attempts(5);
        attempts.count += u32::from(state == JobState::Running);
        Some(Self {
            state,
            line,
            connection,
            auth_type,
            created,
            finished: fields.stamp(3),
            ending: read_ending(fields.text(4)),
            attempts,
            progress: Some(fields.text(7).to_owned()).filter(|line| !line.is_empty()),
            incarnation: fields.number(8),
            bytes: fields.size(9),
            logged: fields.number(11),
        })
    }

    /// Returns the record of the job for its owner, whose results are kept for `ttl`.
    pub fn record(self, id: JobId, ttl: std::time::Duration) -> Option<JobRecord> {
        let Self { state, line, created, finished, ending, attempts, progress, .. } = self;
        let end = match state {
            JobState::Done => {
                let finished = finished?;
                Some(End { finished, expires: Some(finished.after(ttl)), ending: ending? })
            }
            _ => None,
        };
        let progress = progress.filter(|_| end.is_none());
        Some(JobRecord { id, state, line, attempts, created, progress, end })
    }
}

/// Returns how a job ended, in the form that the engine keeps.
pub fn ending(result: &StoredResponse) -> String {
    let Ending { status, exit, outcome, bytes } = result.ending();
    let exit = match exit {
        None => "-".to_owned(),
        Some(Exit::Code(code)) => format!("code={code}"),
        Some(Exit::Signal(signal)) => format!("signal={signal}"),
    };
    format!("{} {} {bytes} {exit}", status.as_u16(), outcome.name())
}

/// Reads how a job ended.
pub fn read_ending(text: &str) -> Option<Ending> {
    let mut words = text.split(' ');
    let status = StatusCode::from_bytes(words.next()?.as_bytes()).ok()?;
    let outcome = Outcome::named(words.next()?)?;
    let bytes = words.next()?.parse().ok()?;
    let exit = match words.next()?.split_once('=') {
        None => None,
        Some(("code", code)) => Some(Exit::Code(code.parse().ok()?)),
        Some((_, signal)) => Some(Exit::Signal(signal.parse().ok()?)),
    };
    Some(Ending { status, exit, outcome, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Response;

    #[test]
    fn an_ending_is_read_as_it_was_written() {
        for (status, name, value) in [
            (200, "x-a", "1"),
            (500, "x-exit-code", "3"),
            (500, "x-exit-signal", "9"),
            (504, "x-a", ""),
        ] {
            let response =
                Response::builder().status(status).header(name, value).body("abc".into()).unwrap();
            let stored = StoredResponse::from(response);
            assert_eq!(read_ending(&ending(&stored)), Some(stored.ending()));
        }
        for text in [
            "",
            "200",
            "200 ok",
            "200 ok 5",
            "99 ok 5 -",
            "200 fine 5 -",
            "200 ok x -",
            "200 ok 5 code=x",
        ] {
            assert_eq!(read_ending(text), None, "{text:?}");
        }
    }
}
