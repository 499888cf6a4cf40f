//! Whether the engine answers, and how quickly.
//!
//! Owns what is reported about that: to clients (`503`), to the log, and to the metrics. Sends nothing. Invariant: the
//! log has one line for an outage and one for each reason of a refusal, however often they occurred.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::lock;
use super::operation::Trouble;
use crate::histogram::Histogram;

/// The state of the engine.
#[derive(Default)]
pub struct Health {
    is_failing: AtomicBool,
    /// The last refusal of this outage, in the engine's words.
    refusal: Mutex<Option<String>>,
    latency: Mutex<Histogram>,
    errors: AtomicU64,
}

impl Health {
    /// Returns whether the engine is known not to answer, or not to accept changes.
    pub fn is_failing(&self) -> bool {
        self.is_failing.load(Ordering::Acquire)
    }

    /// Returns how often it failed.
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    /// Returns how long it took to answer.
    pub fn latency(&self) -> Histogram {
        *lock(&self.latency)
    }

    /// Records how long an answer took.
    pub fn observe(&self, span: Duration) {
        lock(&self.latency).observe(span);
    }

    /// Records that the engine of this name answers.
    pub fn is_well(&self, name: &impl std::fmt::Display) {
        if self.is_failing.swap(false, Ordering::AcqRel) {
            *lock(&self.refusal) = None;
            log::info!("store={name} answers again");
        }
    }

    /// Records that the engine of this name fails.
    pub fn fails(&self, name: &impl std::fmt::Display, trouble: &Trouble) {
        let why = match trouble {
            Trouble::Unreachable(why) | Trouble::Refused(why) => why.as_str(),
            Trouble::Full | Trouble::Closed => return,
            Trouble::Unreplicated => "too few replicas have what it was told",
        };
        self.errors.fetch_add(1, Ordering::Relaxed);
        let is_first = !self.is_failing.swap(true, Ordering::AcqRel);
        // It was unreachable, and now it refuses: the remedy is different.
        let is_other = matches!(trouble, Trouble::Refused(_))
            && lock(&self.refusal).replace(why.into()).is_none_or(|before| before != why);
        if is_first || is_other {
            log::warn!("store={name} fails: {why}; clients get 503 for jobs until it is back");
        }
    }
}
