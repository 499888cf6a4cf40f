//! Histograms of durations, as Prometheus defines them: counts up to each bound, and their sum.
//!
//! Owns the bounds, the same for everything that is measured, from a tenth of a millisecond to an hour. Knows nothing
//! of what is measured. Invariant: each duration is counted in one bucket, so that the sum of the buckets is the count.

use std::time::Duration;

/// The upper bounds of the buckets, in seconds; one more bucket counts longer durations.
pub const BOUNDS: [f64; 13] =
    [0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 10.0, 60.0, 600.0, 3600.0];

/// How many buckets there are.
pub const BUCKETS: usize = BOUNDS.len() + 1;

/// How many durations there were, by their length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// How many are in each bucket alone.
    pub buckets: [u64; BUCKETS],
    /// All durations together, in microseconds.
    pub micros: u64,
}

impl Histogram {
    /// Counts a duration.
    pub fn observe(&mut self, duration: Duration) {
        self.buckets[bucket(duration)] += 1;
        self.micros = self.micros.saturating_add(micros(duration));
    }

    /// Returns how many durations there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// Returns the place of a duration's bucket.
pub fn bucket(duration: Duration) -> usize {
    BOUNDS.partition_point(|bound| *bound < duration.as_secs_f64())
}

/// Returns a duration in microseconds.
pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_in_the_first_bucket_that_it_does_not_exceed() {
        for (micros, place) in [(0, 0), (100, 0), (101, 1), (1_000_000, 8), (1_000_001, 9)] {
            assert_eq!(bucket(Duration::from_micros(micros)), place, "{micros}");
        }
        assert_eq!(bucket(Duration::from_secs(3601)), BUCKETS - 1);
        let mut histogram = Histogram::default();
        histogram.observe(Duration::from_millis(2));
        histogram.observe(Duration::MAX);
        assert_eq!((histogram.count(), histogram.buckets[3]), (2, 1));
        assert_eq!(histogram.micros, u64::MAX);
    }
}
