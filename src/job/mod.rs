//! A job: its id, its stamp, and the types that every layer shares. `ledger::job` has its states.
//!
//! Does no I/O and reads no clock: `now` is a parameter.

pub mod attempt;
pub mod execution;
pub mod lingering;
pub mod log;
pub mod message;
pub mod notice;
pub mod outcome;
pub mod request_line;
pub mod stored;

use std::fmt;
use std::time::{Duration, SystemTime};

use crate::error::Error;
use crate::exchange::Owner;
use execution::Stop;

/// The accounted size of a job's record, besides its request line, request and result, in bytes.
pub const RECORD: usize = 480;

/// The room that is reserved for an error result when a job is accepted, in bytes: so an accepted job always gets a
/// result.
pub const ERROR_ROOM: usize = 1024;

/// How much of its log a job keeps if its result is an error for lack of room, in bytes.
pub const SHORT_LOG: usize = 256;

/// A route's index in the table.
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

    /// Returns the id with this number; `None` for zero.
    pub fn new(number: u64) -> Option<Self> {
        (number != 0).then_some(Self(number))
    }

    /// Returns the number.
    pub const fn number(self) -> u64 {
        self.0
    }

    /// Returns the id that follows `last` at `now`: microseconds since the epoch, or the next number if the clock has
    /// not advanced. So ids increase strictly, sort by time, differ from those before a restart, and fit a JavaScript
    /// number until the year 2255.
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

/// A time by the wall clock, in microseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp(u64);

impl Stamp {
    /// Returns the time `seconds` (fractions allowed) after the epoch, rounded up, so that "strictly before" means the
    /// same for both; `None` if it is not finite.
    pub fn from_unix_seconds(seconds: f64) -> Option<Self> {
        // `as` saturates: the far future and the time before the epoch are clamped.
        seconds.is_finite().then(|| Self((seconds * 1e6).ceil() as u64))
    }

    /// Returns the time `micros` microseconds after the epoch.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Returns the microseconds since the epoch.
    pub const fn micros(self) -> u64 {
        self.0
    }

    /// Returns the seconds since the epoch.
    pub fn unix_seconds(self) -> f64 {
        self.0 as f64 / 1e6
    }

    /// Returns the time `span` earlier, or the epoch.
    #[must_use]
    pub fn before(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(span.as_micros()).unwrap_or(u64::MAX)))
    }

    /// Returns the time `span` later.
    #[must_use]
    pub fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_micros()).unwrap_or(u64::MAX)))
    }

    /// Returns the time that passed since `earlier`; zero if the clock stepped back.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

/// A time by the clock that cannot be set, in microseconds since an arbitrary point: it decides how old things are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Age(i64);

impl Age {
    /// Returns the time `micros` microseconds after the clock's beginning.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Returns the microseconds since the clock's beginning.
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// Returns the time `span` earlier.
    #[must_use]
    pub fn before(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(span.as_micros()).unwrap_or(i64::MAX)))
    }
}

/// A time by both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// By the wall clock, which clients see and which may jump.
    pub stamp: Stamp,
    /// By the clock that cannot be set.
    pub age: Age,
}

impl From<SystemTime> for Stamp {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
    }
}

/// The name of a job together with its owner.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct JobKey {
    /// The user to whom it belongs.
    pub owner: Owner,
    /// Its id.
    pub id: JobId,
}

/// What happens to a job's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// It is kept until it is collected, deleted, or expires.
    Result,
    /// It is dropped; no list has the job (fire and forget).
    Nothing,
}

/// Whether a job that a crash interrupted runs again, which decides when its start is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rerun {
    /// No: its start is durable before its handler has effects.
    No,
    /// Yes, at most [`MAX_STARTS`] times in all (`rerun=yes`): its start is durable before that as well, so that a job
    /// that crashes its host does not do so for ever.
    Yes,
    /// No, but a second run would do no harm: its start is recorded soon.
    Harmless,
}

/// How often a job is started at most if a crash interrupts it each time.
pub const MAX_STARTS: u32 = 3;

/// The answer of a stopped handler, unless the job's own `410` replaces it.
impl From<Stop> for Error {
    fn from(_: Stop) -> Self {
        Self::Cancelled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_stamp_in_seconds_is_rounded_up() {
        assert_eq!(Stamp::from_unix_seconds(1.5), Some(Stamp(1_500_000)));
        assert_eq!(Stamp::from_unix_seconds(0.000_000_1), Some(Stamp(1)));
        assert_eq!(Stamp::from_unix_seconds(-7.0), Some(Stamp(0)));
        assert_eq!(Stamp::from_unix_seconds(1e300), Some(Stamp(u64::MAX)));
        assert_eq!(Stamp::from_unix_seconds(f64::NAN), None);
        assert_eq!(Stamp::from_unix_seconds(f64::INFINITY), None);
    }
}
