//! Metrics: what happens in the process and is not counted in the store.
//!
//! Owns the durations of requests, the connections, the refused jobs and the lines that the log has lost. How they look
//! is in `api/metrics`. Invariant: what every request does touches nothing that all share: each session counts for
//! itself, and what it has counted is added up when it is asked for.

use std::cell::Cell;
use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use crate::histogram::{BUCKETS, Histogram, bucket, micros};
use crate::job::Stamp;

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

/// The durations of one session's requests, written by its thread alone.
#[derive(Default)]
struct Durations {
    buckets: [AtomicU64; BUCKETS],
    micros: AtomicU64,
}

impl Durations {
    fn add_to(&self, all: &mut Histogram) {
        for (sum, count) in all.buckets.iter_mut().zip(&self.buckets) {
            *sum += count.load(Ordering::Relaxed);
        }
        all.micros = all.micros.saturating_add(self.micros.load(Ordering::Relaxed));
    }
}

/// The sessions that there are, and what those have left that there were.
#[derive(Default)]
struct Sessions {
    /// How many there were.
    ever: u64,
    /// How many sessions serve one connection each.
    connections: usize,
    live: HashMap<u64, Arc<Durations>>,
    ended: Histogram,
}

/// The counts of one process.
pub struct Metrics {
    /// When it began.
    pub start: Stamp,
    sessions: Mutex<Sessions>,
    refused: [AtomicU64; Reason::ALL.len()],
}

impl Default for Metrics {
    fn default() -> Self {
        let start = SystemTime::now().into();
        Self { start, sessions: Mutex::default(), refused: <_>::default() }
    }
}

impl Metrics {
    /// Begins a session, which is one connection, or serves many.
    pub fn begin_session(&self, connections: Connections) -> SessionMetrics<'_> {
        let durations = Arc::new(Durations::default());
        let mut sessions = self.sessions();
        sessions.ever += 1;
        sessions.connections += usize::from(connections == Connections::One);
        let number = sessions.ever;
        sessions.live.insert(number, Arc::clone(&durations));
        SessionMetrics { metrics: self, number, durations, connections, alone: PhantomData }
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
        self.sessions().connections
    }

    /// Returns the durations of all requests.
    pub fn requests(&self) -> Histogram {
        let sessions = self.sessions();
        let mut all = sessions.ended;
        sessions.live.values().for_each(|durations| durations.add_to(&mut all));
        all
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
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

/// What one session counts. Only its thread writes there, so that it needs no more than a load and a store.
pub struct SessionMetrics<'a> {
    metrics: &'a Metrics,
    number: u64,
    durations: Arc<Durations>,
    connections: Connections,
    /// Keeps it with one thread at a time.
    alone: PhantomData<Cell<()>>,
}

impl SessionMetrics<'_> {
    /// Counts a request that took so long.
    pub fn observe(&self, duration: Duration) {
        let add = |count: &AtomicU64, value| {
            count.store(count.load(Ordering::Relaxed).saturating_add(value), Ordering::Relaxed);
        };
        add(&self.durations.buckets[bucket(duration)], 1);
        add(&self.durations.micros, micros(duration));
    }
}

impl Drop for SessionMetrics<'_> {
    fn drop(&mut self) {
        let mut sessions = self.metrics.sessions();
        sessions.live.remove(&self.number);
        sessions.connections -= usize::from(self.connections == Connections::One);
        self.durations.add_to(&mut sessions.ended);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_count_apart_and_are_told_together() {
        let metrics = Metrics::default();
        let sessions = [(); 3].map(|()| metrics.begin_session(Connections::One));
        let many = metrics.begin_session(Connections::Many);
        assert_eq!(metrics.connections(), 3);
        for session in sessions.iter().chain([&many]) {
            session.observe(Duration::from_millis(1));
        }
        let counted = |requests: Histogram| {
            let in_one = requests.buckets[2];
            (requests.count(), in_one, requests.micros)
        };
        assert_eq!(counted(metrics.requests()), (4, 4, 4000));
        drop((sessions, many));
        assert_eq!(counted(metrics.requests()), (4, 4, 4000), "of sessions that have ended");
        assert_eq!((metrics.connections(), metrics.sessions().live.len()), (0, 0));
        assert!(Reason::ALL.iter().enumerate().all(|(n, (reason, _))| *reason as usize == n));
        metrics.refuse(Reason::NoMemory);
        assert_eq!(metrics.refused()[Reason::NoMemory as usize], 1);
    }
}
