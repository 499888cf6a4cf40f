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
pub mod message;
pub mod stored;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::error::Error;
use crate::memory::Charge;
use execution::{Execution, Stop};
use stored::{StoredResponse, StoredResult};

/// What the record of a job is accounted with, beside its request or result, in bytes.
pub const RECORD: usize = 256;

/// What a job is accounted with from its acceptance for the error that it may end with, in bytes: so an
/// accepted job always has a result.
pub const ERROR_ROOM: usize = 1024;

/// How much of its log a job keeps if its result is an error for want of room, in bytes.
pub const SHORT_LOG: usize = 256;

/// A route's place in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteIndex(pub usize);

/// The number that names a job: decimal, 64-bit, never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(u64);

impl JobId {
    /// Reads the canonical form: digits only, no sign, no leading zero, at most [`u64::MAX`].
    pub fn parse(text: &str) -> Option<Self> {
        let canonical = text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
        text.parse().ok().filter(|_| canonical).map(Self)
    }

    /// The id of this number; `None` for zero.
    pub fn new(number: u64) -> Option<Self> {
        (number != 0).then_some(Self(number))
    }

    /// The number.
    pub const fn number(self) -> u64 {
        self.0
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

    /// The moment so many microseconds after the epoch.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Microseconds since the epoch.
    pub const fn micros(self) -> u64 {
        self.0
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

/// A job whose result is not there yet; `Q` is a request as its store keeps it.
#[derive(Debug)]
pub struct Pending<Q> {
    /// When it was accepted.
    pub created: Stamp,
    /// What it is accounted with, in bytes.
    pub footprint: usize,
    /// What of that is memory and not charged by the content itself.
    pub charge: Charge,
    /// How far it is.
    pub phase: Phase<Q>,
}

/// How far a pending job is.
#[derive(Debug)]
pub enum Phase<Q> {
    /// It waits for a worker.
    Queued {
        /// What will run.
        request: Q,
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
    /// Its result is decided and on its way into the store.
    Ending {
        /// The last of what it wrote to stderr.
        log: Box<[u8]>,
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

/// A job with a result; `R` is a result as its store keeps it.
#[derive(Debug)]
pub struct Done<R> {
    /// When it was accepted.
    pub created: Stamp,
    /// When its result came to be; the stamp by which it expires.
    pub finished: Stamp,
    /// What it is accounted with, in bytes.
    pub footprint: usize,
    /// What of that is memory and not charged by the content itself.
    pub charge: Charge,
    /// The result.
    pub result: R,
}

impl<Q> Pending<Q> {
    /// A job that waits.
    pub const fn queued(request: Q, footprint: usize, charge: Charge, now: Stamp) -> Self {
        Self { created: now, footprint, charge, phase: Phase::Queued { request } }
    }

    /// Whether it waits for a worker.
    pub const fn is_queued(&self) -> bool {
        matches!(self.phase, Phase::Queued { .. })
    }

    /// Whether it was begun, and its result is not decided yet.
    pub const fn may_go_on(&self) -> bool {
        matches!(self.phase, Phase::Running { .. })
    }

    /// Hands the request to a worker; `None` if one has it already.
    pub fn start(&mut self, execution: &Arc<Execution>, now: Stamp) -> Option<Q> {
        if !self.is_queued() {
            return None;
        }
        let running = Phase::Running {
            since: now,
            execution: Arc::clone(execution),
            cancelled: Cancelled::No,
        };
        match std::mem::replace(&mut self.phase, running) {
            Phase::Queued { request } => Some(request),
            Phase::Running { .. } | Phase::Ending { .. } => None,
        }
    }

    /// Decides the result: `response`, or `410` if the job was cancelled in time, and says which.
    /// From now on it can be neither started nor cancelled.
    pub fn end(&mut self, response: StoredResponse) -> (StoredResult, Cancelled) {
        let cancelled = match self.phase {
            Phase::Running { cancelled, .. } => cancelled,
            Phase::Queued { .. } | Phase::Ending { .. } => Cancelled::No,
        };
        let response = match cancelled {
            Cancelled::Yes => Error::Cancelled.response().into(),
            Cancelled::No => response,
        };
        let log: Box<[u8]> = self.log().into();
        self.phase = Phase::Ending { log: log.clone() };
        (StoredResult { response, log }, cancelled)
    }

    /// Cancels a running job: marks it and returns the line to its handler. `None` for a job that
    /// does not run: one that waits is [ended](Self::end) instead.
    pub fn cancel_running(&mut self) -> Option<Arc<Execution>> {
        match &mut self.phase {
            Phase::Queued { .. } | Phase::Ending { .. } => None,
            Phase::Running { execution, cancelled, .. } => {
                *cancelled = Cancelled::Yes;
                Some(Arc::clone(execution))
            }
        }
    }

    /// The last line that the running job wrote to stderr.
    pub fn progress(&self) -> Option<String> {
        match &self.phase {
            Phase::Queued { .. } | Phase::Ending { .. } => None,
            Phase::Running { execution, .. } => execution.progress(),
        }
    }

    /// The last of what the job wrote to stderr.
    pub fn log(&self) -> Vec<u8> {
        match &self.phase {
            Phase::Queued { .. } => Vec::new(),
            Phase::Running { execution, .. } => execution.log(),
            Phase::Ending { log } => log.to_vec(),
        }
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
    use bytes::Bytes;
    use http::Response;

    use crate::exchange::{Call, Connection, Owner};
    use crate::memory::Allowance;

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
            let charge = Allowance::default().nothing();
            let mut pending = Pending::queued(call, 0, charge, Stamp(1));
            assert!(pending.cancel_running().is_none(), "it waits");
            let execution = Arc::new(Execution::default());
            assert!(pending.start(&execution, Stamp(2)).is_some());
            assert!(pending.start(&execution, Stamp(2)).is_none(), "a request is given out once");
            assert_eq!(cancel && pending.cancel_running().is_some(), cancel);
            let (result, _) = pending.end(Response::new(Bytes::from_static(b"too late")).into());
            let status = result.response.to_response().status().as_u16();
            assert_eq!(status, if cancel { 410 } else { 200 });
            assert!(pending.cancel_running().is_none(), "its result is decided");
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
