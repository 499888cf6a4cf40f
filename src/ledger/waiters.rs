//! The bell: who waits for which job, and is woken when that is done or gone.
//!
//! Owns the threads that wait. Knows nothing of states: the ledger rings whenever a job stops being
//! pending, and who was woken looks for themselves. A ring wakes one of those who wait for the job, and
//! each who leaves wakes the next two: all at once would only stand in line for the store's lock.
//! Invariant: whoever registers before they look misses no ring; a ring takes only the bell's own lock,
//! so it may come under a store's.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crate::store::JobKey;

/// How often somebody who waits looks around for reasons that ring no bell, as a client that left.
const LOOK: Duration = Duration::from_millis(250);

/// Wakes those who wait for a job.
#[derive(Default)]
pub struct Waiters(Mutex<HashMap<JobKey, Vec<Thread>>>);

impl Waiters {
    fn lock(&self) -> MutexGuard<'_, HashMap<JobKey, Vec<Thread>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes all who wait for this job.
    pub fn notify(&self, job: &JobKey) {
        if let Some(first) = self.lock().get(job).and_then(|threads| threads.first()) {
            first.unpark();
        }
    }

    /// Wakes everybody.
    pub fn notify_all(&self) {
        self.lock().values().flatten().for_each(Thread::unpark);
    }

    /// Waits for `span`, or until `is_over` says so: asked at first, at each ring, and four times a
    /// second.
    pub fn wait(&self, job: &JobKey, span: Duration, is_over: impl Fn() -> bool) {
        let deadline = Instant::now() + span;
        let _place = Place::take(self, job);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if is_over() || left.is_zero() {
                return;
            }
            thread::park_timeout(left.min(LOOK));
        }
    }
}

/// This thread among those who wait, until dropped.
struct Place<'a> {
    bell: &'a Waiters,
    job: &'a JobKey,
}

impl<'a> Place<'a> {
    fn take(bell: &'a Waiters, job: &'a JobKey) -> Self {
        bell.lock().entry(job.clone()).or_default().push(thread::current());
        Self { bell, job }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let own = thread::current().id();
        let mut waiting = self.bell.lock();
        let Some(threads) = waiting.get_mut(self.job) else { return };
        threads.retain(|thread| thread.id() != own);
        let next: Vec<Thread> = threads.iter().take(2).cloned().collect();
        if threads.is_empty() {
            waiting.remove(self.job);
        }
        drop(waiting);
        // Whatever this one left for: who has no reason to leave sleeps on.
        next.iter().for_each(Thread::unpark);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use crate::exchange::Owner;
    use crate::job::{JobId, Stamp};

    fn job(seconds: f64) -> JobKey {
        let stamp = Stamp::from_unix_seconds(seconds).unwrap();
        JobKey { owner: Owner::anonymous(), id: JobId::next(None, stamp) }
    }

    #[test]
    fn all_who_wait_for_a_job_are_woken_and_leave_nothing_behind() {
        let (bell, over, woken) = (Waiters::default(), AtomicBool::new(false), AtomicUsize::new(0));
        thread::scope(|scope| {
            for n in 0..8 {
                let (bell, over, woken) = (&bell, &over, &woken);
                scope.spawn(move || {
                    bell.wait(&job(f64::from(n % 2)), Duration::from_secs(3600), || {
                        over.load(Ordering::SeqCst)
                    });
                    woken.fetch_add(1, Ordering::SeqCst);
                });
            }
            while bell.lock().values().map(Vec::len).sum::<usize>() < 8 {
                thread::yield_now();
            }
            over.store(true, Ordering::SeqCst);
            bell.notify(&job(0.0));
            bell.notify(&job(1.0));
        });
        assert_eq!(woken.into_inner(), 8);
        assert!(bell.lock().is_empty());
    }

    #[test]
    fn nobody_waits_for_longer_than_they_wanted_or_for_what_is_over() {
        let bell = Waiters::default();
        bell.wait(&job(1.0), Duration::from_millis(1), || false);
        bell.wait(&job(1.0), Duration::from_secs(3600), || true);
        assert!(bell.lock().is_empty());
    }
}
