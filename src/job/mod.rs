//! A job: its id, its stamp, its states, and the pure transitions between them.
//!
//! ```text
//!   submit            start              finish              collect, confirmed
//!  --------> Queued --------> Running ------------> Done ------------------------> (gone)
//!              |                 |                  ^ ^ |
//!              | cancel          | cancel           | | | collect
//!              +-----------------|------------------+ | v
//!                                +--> (the handler    | (in delivery) -- broken --> Done
//!                                      is told) ------+ finish: 410
//! ```
//!
//! Does no I/O, reads no clock (`now` is a parameter) and takes no lock of a store. Invariant: a
//! state carries exactly what exists in it, so that nothing can be asked of a job too early.

pub mod execution;
pub mod stored;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::Response;

use crate::call::Call;
use crate::error::Error;
use execution::{Execution, Stop};
use stored::StoredResponse;

/// The number that names a job: decimal, 64-bit, never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(u64);

impl JobId {
    /// Reads the canonical form: digits only, no sign, no leading zero, at most [`u64::MAX`].
    pub fn parse(text: &str) -> Option<Self> {
        let canonical = text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
        text.parse().ok().filter(|_| canonical).map(Self)
    }

    /// The id that follows `last` at `now`: microseconds since the epoch, or the next number where
    /// the clock stands still or stepped back. So ids increase strictly, sort by time, differ from
    /// those before a restart, and fit a JavaScript number until the year 2255.
    #[must_use]
    pub fn next(last: Option<Self>, now: Stamp) -> Self {
        let after = last.map_or(1, |last| last.0.saturating_add(1));
        Self(now.0.max(after))
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A moment of wall-clock time, in microseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp(u64);

impl Stamp {
    /// The moment `seconds` (fractions allowed) after the epoch, rounded up, so that "strictly
    /// before" means the same for both; `None` where it is not a finite number.
    pub fn from_unix_seconds(seconds: f64) -> Option<Self> {
        // `as` saturates: the far future and the time before the epoch are clamped.
        seconds.is_finite().then(|| Self((seconds * 1e6).ceil() as u64))
    }

    /// Seconds since the epoch.
    pub fn unix_seconds(self) -> f64 {
        self.0 as f64 / 1e6
    }

    /// The moment `span` earlier, or the epoch.
    #[must_use]
    pub fn before(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(span.as_micros()).unwrap_or(u64::MAX)))
    }

    /// The time from `earlier` to this moment; zero where the clock stepped back.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl From<SystemTime> for Stamp {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
    }
}

/// A job whose result is not there yet.
#[derive(Debug)]
pub struct Pending {
    /// When it was accepted.
    pub created: Stamp,
    /// The memory that its request is accounted with, in bytes.
    pub footprint: usize,
    /// How far it is.
    pub phase: Phase,
}

/// How far a pending job is.
#[derive(Debug)]
pub enum Phase {
    /// It waits for a worker; the request is here.
    Queued {
        /// What will run.
        call: Box<Call>,
    },
    /// A worker runs it; the request is with the worker.
    Running {
        /// When it started.
        since: Stamp,
        /// The line to the handler: stop it, see its progress.
        execution: Arc<Execution>,
        /// Whether somebody cancelled it: then that is its result, whatever the handler says.
        cancelled: Cancelled,
    },
}

/// Whether a running job was cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancelled {
    /// It was: its result is `410`.
    Yes,
    /// It was not.
    No,
}

/// A job with a result.
#[derive(Debug)]
pub struct Done {
    /// When it was accepted.
    pub created: Stamp,
    /// When its result came to be; the stamp by which it expires.
    pub finished: Stamp,
    /// The result.
    pub response: StoredResponse,
    /// The last of what it wrote to stderr.
    pub log: Box<[u8]>,
}

impl Pending {
    /// A job that waits.
    pub fn queued(call: Call, now: Stamp) -> Self {
        let footprint = call.footprint();
        Self { created: now, footprint, phase: Phase::Queued { call: Box::new(call) } }
    }

    /// Hands the request to a worker; `None` if one has it already.
    pub fn start(&mut self, execution: &Arc<Execution>, now: Stamp) -> Option<Box<Call>> {
        if !matches!(self.phase, Phase::Queued { .. }) {
            return None;
        }
        let running = Phase::Running {
            since: now,
            execution: Arc::clone(execution),
            cancelled: Cancelled::No,
        };
        match std::mem::replace(&mut self.phase, running) {
            Phase::Queued { call } => Some(call),
            Phase::Running { .. } => None,
        }
    }

    /// Ends the job: its result is `response`, or `410` if it was cancelled in time.
    pub fn finish(self, response: Response<Bytes>, now: Stamp) -> Done {
        let (log, cancelled) = match self.phase {
            Phase::Queued { .. } => (Box::default(), Cancelled::No),
            Phase::Running { execution, cancelled, .. } => (execution.log().into(), cancelled),
        };
        let response = match cancelled {
            Cancelled::Yes => StoredResponse::from(Error::Cancelled.response()),
            Cancelled::No => StoredResponse::from(response),
        };
        Done { created: self.created, finished: now, response, log }
    }

    /// Cancels a running job: marks it and returns the line to its handler. `None` for a job that
    /// waits: that one is [finished](Self::finish) instead.
    pub fn cancel_running(&mut self) -> Option<Arc<Execution>> {
        match &mut self.phase {
            Phase::Queued { .. } => None,
            Phase::Running { execution, cancelled, .. } => {
                *cancelled = Cancelled::Yes;
                Some(Arc::clone(execution))
            }
        }
    }

    /// Whether it was cancelled while it ran, so that its handler's answer will not be its result.
    pub fn is_cancelled(&self) -> bool {
        matches!(self.phase, Phase::Running { cancelled: Cancelled::Yes, .. })
    }

    /// The last line that the running job wrote to stderr.
    pub fn progress(&self) -> Option<String> {
        match &self.phase {
            Phase::Queued { .. } => None,
            Phase::Running { execution, .. } => execution.progress(),
        }
    }

    /// The last of what the job wrote to stderr.
    pub fn log(&self) -> Vec<u8> {
        match &self.phase {
            Phase::Queued { .. } => Vec::new(),
            Phase::Running { execution, .. } => execution.log(),
        }
    }
}

impl Done {
    /// The memory that the result is accounted with, in bytes.
    pub fn footprint(&self) -> usize {
        self.response.footprint() + self.log.len()
    }
}

/// How a stopped handler's answer reads where it is not replaced by the job's own `410`.
impl From<Stop> for Error {
    fn from(_: Stop) -> Self {
        Self::Cancelled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::{Connection, Owner};

    #[test]
    fn only_the_canonical_form_is_an_id() {
        for text in ["1", "42", "18446744073709551615"] {
            assert_eq!(JobId::parse(text).unwrap().to_string(), text);
        }
        for text in [
            "",
            "0",
            "0123",
            "-5",
            "+5",
            " 12",
            "12 ",
            "12abc",
            "%31",
            "1.0",
            "18446744073709551616",
            "٣",
        ] {
            assert_eq!(JobId::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn ids_increase_when_the_clock_does_not() {
        let noon = Stamp(1_000_000);
        let first = JobId::next(None, noon);
        let second = JobId::next(Some(first), noon);
        let third = JobId::next(Some(second), Stamp(5));
        assert!(first < second && second < third);
        assert_eq!(JobId::next(Some(third), Stamp(2_000_000)), JobId(2_000_000));
    }

    #[test]
    fn a_job_cancelled_while_it_runs_ends_with_410_whatever_its_handler_says() {
        for cancel in [true, false] {
            let request = http::Request::new(Bytes::new());
            let (connection, owner) = (Connection::Unix, Owner::anonymous());
            let call = Call { request, connection, owner, auth_type: None };
            let mut pending = Pending::queued(call, Stamp(1));
            assert!(pending.cancel_running().is_none(), "it waits");
            let execution = Arc::new(Execution::default());
            assert!(pending.start(&execution, Stamp(2)).is_some());
            assert!(pending.start(&execution, Stamp(2)).is_none(), "a request is given out once");
            assert_eq!(cancel && pending.cancel_running().is_some(), cancel);
            let done = pending.finish(Response::new(Bytes::from_static(b"too late")), Stamp(3));
            let status = done.response.to_response().status().as_u16();
            assert_eq!(status, if cancel { 410 } else { 200 });
        }
    }

    #[test]
    fn a_stamp_in_seconds_is_rounded_up() {
        assert_eq!(Stamp::from_unix_seconds(1.5), Some(Stamp(1_500_000)));
        assert_eq!(Stamp::from_unix_seconds(0.000_000_1), Some(Stamp(1)));
        assert_eq!(Stamp::from_unix_seconds(-7.0), Some(Stamp(0)));
        assert_eq!(Stamp::from_unix_seconds(1e300), Some(Stamp(u64::MAX)));
        assert_eq!(Stamp::from_unix_seconds(f64::NAN), None);
        assert_eq!(Stamp::from_unix_seconds(f64::INFINITY), None);
    }
}
