//! Metrics: what happens in the process and is not counted in the store.
//!
//! Owns the durations of requests, the connections, the refused jobs and the lines that the log has lost. How they look
//! is in `api/metrics`. Invariant: what every request does touches nothing that all share: each session counts in one
//! of several places, each on cache lines of its own.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use crate::histogram::{BUCKETS, Histogram, bucket, micros};
use crate::job::Stamp;

/// In how many places durations are counted.
const PLACES: usize = 16;

/// How many lines the log has lost, of the whole process as the log is.
static LOST_LINES: AtomicU64 = AtomicU64::new(0);

/// Counts a line that the log had to drop.
pub fn count_lost_line() {
    LOST_LINES.fetch_add(1, Ordering::Relaxed);
}

/// Returns how many lines the log had to drop.
pub fn lost_lines() -> u64 {
    LOST_LINES.load(Ordering::Relaxed)
}

/// Why a job was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// `--queue`.
    QueueFull,
    /// `--max-stored`.
    StoreFull,
    /// It is larger than `--max-stored`.
    TooLarge,
    /// `--max-memory`.
    NoMemory,
    /// The part of `--max-stored` that keys may take.
    ManyKeys,
    /// Its key stands for another request.
    KeyReused,
    /// The store fails.
    StoreFails,
    /// deferd ends.
    ShuttingDown,
}

impl Reason {
    /// All of them, in the order of their numbers, with their names.
    pub const ALL: [(Self, &str); 8] = [
        (Self::QueueFull, "queue_full"),
        (Self::StoreFull, "store_full"),
        (Self::TooLarge, "too_large"),
        (Self::NoMemory, "no_memory"),
        (Self::ManyKeys, "many_keys"),
        (Self::KeyReused, "key_reused"),
        (Self::StoreFails, "store_fails"),
        (Self::ShuttingDown, "shutting_down"),
    ];
}

/// One place for the durations of requests. Invariant of the type: no two share a cache line.
#[derive(Default)]
#[repr(align(128))]
struct Place {
    buckets: [AtomicU64; BUCKETS],
    micros: AtomicU64,
}

/// The counts of one process.
pub struct Metrics {
    /// When it began.
    pub start: Stamp,
    places: [Place; PLACES],
    /// How many sessions there were, by which the next finds its place.
    sessions: AtomicUsize,
    connections: AtomicUsize,
    refused: [AtomicU64; Reason::ALL.len()],
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            start: SystemTime::now().into(),
            places: <_>::default(),
            sessions: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            refused: <_>::default(),
        }
    }
}

impl Metrics {
    /// Begins a session, which is one connection, or serves many.
    pub fn begin_session(&self, connections: Connections) -> SessionMetrics<'_> {
        let number = self.sessions.fetch_add(1, Ordering::Relaxed);
        if connections == Connections::One {
            self.connections.fetch_add(1, Ordering::Relaxed);
        }
        SessionMetrics { metrics: self, place: &self.places[number % PLACES], connections }
    }

    /// Counts a job that was refused.
    pub fn refuse(&self, reason: Reason) {
        self.refused[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns how many jobs were refused for each reason, in the order of [`Reason::ALL`].
    pub fn refused(&self) -> [u64; Reason::ALL.len()] {
        self.refused.each_ref().map(|count| count.load(Ordering::Relaxed))
    }

    /// Returns how many connections have a session.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Returns the durations of all requests.
    pub fn requests(&self) -> Histogram {
        let mut all = Histogram::default();
        for place in &self.places {
            for (sum, count) in all.buckets.iter_mut().zip(&place.buckets) {
                *sum += count.load(Ordering::Relaxed);
            }
            all.micros = all.micros.saturating_add(place.micros.load(Ordering::Relaxed));
        }
        all
    }
}

/// Whose requests a session has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connections {
    /// Those of one connection.
    One,
    /// Those of many, which the front counts by itself, or not at all.
    Many,
}

/// What one session counts.
pub struct SessionMetrics<'a> {
    metrics: &'a Metrics,
    place: &'a Place,
    connections: Connections,
}

impl SessionMetrics<'_> {
    /// Counts a request that took so long.
    pub fn observe(&self, duration: Duration) {
        self.place.buckets[bucket(duration)].fetch_add(1, Ordering::Relaxed);
        self.place.micros.fetch_add(micros(duration), Ordering::Relaxed);
    }
}

impl Drop for SessionMetrics<'_> {
    fn drop(&mut self) {
        if self.connections == Connections::One {
            self.metrics.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_count_apart_and_are_told_together() {
        let metrics = Metrics::default();
        let sessions = [(); PLACES + 1].map(|()| metrics.begin_session(Connections::One));
        let many = metrics.begin_session(Connections::Many);
        assert_eq!(metrics.connections(), PLACES + 1);
        for session in sessions.iter().chain([&many]) {
            session.observe(Duration::from_millis(1));
        }
        let requests = metrics.requests();
        let count = PLACES as u64 + 2;
        assert_eq!(
            (requests.count(), requests.buckets[2], requests.micros),
            (count, count, count * 1000)
        );
        drop((sessions, many));
        assert_eq!(metrics.connections(), 0);
        assert!(Reason::ALL.iter().enumerate().all(|(n, (reason, _))| *reason as usize == n));
        metrics.refuse(Reason::NoMemory);
        assert_eq!(metrics.refused()[Reason::NoMemory as usize], 1);
    }
}
