//! The clocks: the wall clock, which clients see, and the clock that cannot be set, by which things age.
//!
//! Owns the reading of both, and how much older things are after a restart. Invariant: a wall clock that jumps makes
//! nothing older or younger while deferd runs; a restart makes nothing older by more than a part of its lifetime.

use std::fmt;
use std::fs;
use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};

use crate::job::{Age, Moment, Stamp};

/// No deferd ran before 2026-01-01: an earlier wall clock was never set, in microseconds.
const PLAUSIBLE: u64 = 1_767_225_600_000_000;

/// Over a restart of the host things grow older by at most this part of `--ttl`.
const PART_OF_TTL: u32 = 4;

/// Returns the current moment.
pub fn now() -> Moment {
    Moment { stamp: Stamp::from(SystemTime::now()), age: boot_time() }
}

/// Returns the time since the host started, including the time that it slept (`CLOCK_BOOTTIME`).
fn boot_time() -> Age {
    let time = clock_gettime(ClockId::Boottime);
    Age::from_micros(time.tv_sec.saturating_mul(1_000_000).saturating_add(time.tv_nsec / 1000))
}

/// Returns the boot id of the host (random(4)); empty without /proc.
fn boot_id() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id");
    id.map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// The scale of the ages that a store keeps over the processes that open it: it goes on where the last one ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scale {
    /// The boot id of the host.
    boot: String,
    /// What is added to an age of this process before it is kept, in microseconds.
    offset: i64,
}

/// A moment of an earlier process, by its scale and both clocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    scale: Scale,
    at: Moment,
}

impl Scale {
    /// Returns the scale of this process, which continues that of the last `reading`. Within one start of the
    /// host the ages go on; over a restart of it the wall clock tells how much time went by, if it can be believed,
    /// and at most a quarter of `ttl`.
    pub fn after(reading: Option<&Reading>, ttl: Duration) -> Self {
        Self::begin(reading, boot_id(), now(), ttl)
    }

    fn begin(reading: Option<&Reading>, boot: String, now: Moment, ttl: Duration) -> Self {
        let Some(Reading { scale, at }) = reading else { return Self { boot, offset: 0 } };
        if boot == scale.boot && !boot.is_empty() {
            return scale.clone();
        }
        let kept = at.age.micros().saturating_add(scale.offset);
        let passed = passed(at.stamp, now.stamp).min(ttl / PART_OF_TTL).as_micros() as i64;
        let offset = kept.saturating_add(passed).saturating_sub(now.age.micros());
        Self { boot, offset }
    }

    /// Returns an age as it is kept.
    pub const fn kept(&self, age: Age) -> i64 {
        age.micros().saturating_add(self.offset)
    }

    /// Returns an age that was kept.
    pub const fn age(&self, kept: i64) -> Age {
        Age::from_micros(kept.saturating_sub(self.offset))
    }

    /// Returns the age of an item with this stamp that an older deferd kept without an age.
    pub fn age_of(&self, stamp: Stamp, ttl: Duration) -> Age {
        let now = now();
        now.age.before(passed(stamp, now.stamp).min(ttl / PART_OF_TTL))
    }

    /// Reads the clocks, for the next process.
    pub fn read(&self) -> Reading {
        Reading { scale: self.clone(), at: now() }
    }
}

/// Returns how much time has passed on the wall clock, if both readings are plausible.
fn passed(earlier: Stamp, now: Stamp) -> Duration {
    if earlier.micros().min(now.micros()) < PLAUSIBLE { Duration::ZERO } else { now.since(earlier) }
}

impl Reading {
    /// Reads what [`Display`](fmt::Display) has written.
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let boot = words.next()?.to_owned();
        let age = Age::from_micros(words.next()?.parse().ok()?);
        let stamp = Stamp::from_micros(words.next()?.parse().ok()?);
        let offset = words.next()?.parse().ok()?;
        Some(Self { scale: Scale { boot, offset }, at: Moment { stamp, age } })
    }
}

impl fmt::Display for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scale: Scale { boot, offset }, at: Moment { stamp, age } } = self;
        write!(f, "{boot} {} {} {offset}", age.micros(), stamp.micros())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn moment(age: i64, stamp: u64) -> Moment {
        Moment { stamp: Stamp::from_micros(stamp), age: Age::from_micros(age) }
    }

    fn reading(boot: &str, at: Moment) -> Reading {
        Reading { scale: Scale { boot: boot.to_owned(), offset: 1000 }, at }
    }

    #[test]
    fn a_restart_makes_nothing_older_than_the_clocks_can_tell() {
        let then = reading("a", moment(500, PLAUSIBLE));
        let quarter = 900_000_000;
        for (boot, now, passed) in [
            // One start of the host: whatever the wall clock says.
            ("a", moment(700, 5), 200),
            ("a", moment(700, u64::MAX), 200),
            ("b", moment(100, PLAUSIBLE + 50), 50),
            // It stepped back, or was never set.
            ("b", moment(100, PLAUSIBLE - 1), 0),
            ("b", moment(100, 0), 0),
            // Too much to believe.
            ("b", moment(100, u64::MAX), quarter),
        ] {
            let scale = Scale::begin(Some(&then), boot.to_owned(), now, HOUR);
            let made_then = scale.age(then.scale.kept(then.at.age));
            assert_eq!(now.age.micros() - made_then.micros(), passed, "{boot} {now:?}");
            assert_eq!(scale.age(scale.kept(now.age)), now.age);
        }
        let unset = reading("a", moment(500, 5));
        let scale = Scale::begin(Some(&unset), "b".into(), moment(9, PLAUSIBLE), HOUR);
        assert_eq!(scale.age(unset.scale.kept(unset.at.age)).micros(), 9);
        let nameless = reading("", moment(5, PLAUSIBLE));
        let scale = Scale::begin(Some(&nameless), String::new(), moment(7, PLAUSIBLE), HOUR);
        assert_eq!(scale.age(nameless.scale.kept(nameless.at.age)).micros(), 7);
    }

    #[test]
    fn many_restarts_add_up() {
        let ttl = Duration::from_micros(400);
        let mut last = reading("0", moment(0, PLAUSIBLE));
        let kept = last.scale.kept(last.at.age);
        for n in 1..=10 {
            let now = moment(3, PLAUSIBLE + n * 1_000_000);
            let scale = Scale::begin(Some(&last), n.to_string(), now, ttl);
            assert_eq!(now.age.micros() - scale.age(kept).micros(), 100 * n as i64);
            last = Reading { scale, at: now };
        }
    }

    #[test]
    fn a_reading_comes_back() {
        let reading = Scale::after(None, HOUR).read();
        assert_eq!(Reading::parse(&reading.to_string()), Some(reading));
        for text in ["", "a", "a 1", "a 1 x", "a x 1", "a 1 1", "a 1 1 x"] {
            assert_eq!(Reading::parse(text), None, "{text:?}");
        }
    }
}
