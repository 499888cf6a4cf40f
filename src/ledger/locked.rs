//! The lock of a ledger, and the threads to wake when it is released.
//!
//! Owns the order of the two: the lock is released first, then threads are woken, so that no thread wakes only to wait
//! for the lock. Knows nothing of jobs. The channels carry wake-ups, not jobs: a woken thread checks the schedule
//! itself. Invariant: each wake-up of a worker is for a worker that waits, so that wake-ups do not pile up.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Select, Sender, unbounded};

use super::waiters::Waiter;
use super::{Next, Patience};
use crate::job::attempt::Claimed;
use crate::memory::Budget;

/// The threads to wake.
#[derive(Default)]
pub struct Wakes {
    /// Clients that wait for a job that is now done or gone.
    pub waiters: Vec<Arc<Waiter>>,
    /// Clients that wait for a job that has now begun.
    pub roused: Vec<Arc<Waiter>>,
    /// Callers that were admitted.
    pub callers: Vec<Sender<()>>,
    /// The number of workers.
    pub workers: usize,
    /// Whether the thread that watches the time must check again.
    pub timekeeper: bool,
}

/// Data under the lock that knows which threads to wake.
pub trait Wake {
    /// Returns the threads to wake since the last call.
    fn wakes(&mut self) -> Wakes;

    /// Returns whether deferd is shutting down.
    fn is_stopped(&self) -> bool;
}

/// The channels on which workers and the thread that watches the time wait.
pub struct Dispatch {
    workers: (Sender<()>, Receiver<()>),
    timekeeper: (Sender<()>, Receiver<()>),
}

impl Default for Dispatch {
    fn default() -> Self {
        Self { workers: unbounded(), timekeeper: unbounded() }
    }
}

impl Dispatch {
    /// Locks a ledger, even if the lock is poisoned: the data is valid between any two statements.
    pub fn lock<'a, T: Wake>(&'a self, mutex: &'a Mutex<T>) -> Locked<'a, T> {
        let guard = mutex.lock().unwrap_or_else(PoisonError::into_inner);
        Locked { guard: Some(guard), dispatch: self }
    }

    /// Claims a job as soon as `claim` finds one that may run and there is memory for it. Returns `None` at the
    /// shutdown, or, without patience, if no job may run now.
    pub fn claim<T: Wake, J>(
        &self,
        mutex: &Mutex<T>,
        memory: &Budget,
        patience: Patience,
        claim: impl Fn(&mut T) -> Next<J>,
    ) -> Option<J> {
        loop {
            let next = claim(&mut self.lock(mutex));
            match (next, patience) {
                (Next::Job(job), _) => return Some(job),
                (Next::Closed, _) | (_, Patience::None) => return None,
                (Next::Nothing, Patience::Forever) => park(&self.workers.1)?,
                (Next::NoMemory(least), Patience::Forever) => {
                    memory.wait_for(least, || self.lock(mutex).is_stopped());
                }
            }
        }
    }

    /// Waits for `span`, or until `overdue` finds jobs that must be finished, and returns them.
    pub fn overdue<T: Wake>(
        &self,
        mutex: &Mutex<T>,
        span: Duration,
        overdue: impl Fn(&mut T, Instant) -> (Vec<Claimed>, Option<Instant>),
    ) -> Vec<Claimed> {
        let end = Instant::now() + span;
        loop {
            let now = Instant::now();
            let jobs = self.overdue_or_wait(mutex, end, &overdue);
            if !jobs.is_empty() || now >= end {
                return jobs;
            }
        }
    }

    /// Returns the jobs that `overdue` finds. If it finds none, waits until `end`, until it may find one, or until a
    /// wake-up announces an earlier delay or deadline.
    pub fn overdue_or_wait<T: Wake>(
        &self,
        mutex: &Mutex<T>,
        end: Instant,
        overdue: impl Fn(&mut T, Instant) -> (Vec<Claimed>, Option<Instant>),
    ) -> Vec<Claimed> {
        let (jobs, next) = overdue(&mut self.lock(mutex), Instant::now());
        if jobs.is_empty() {
            let _ = self.timekeeper.1.recv_deadline(next.map_or(end, |next| next.min(end)));
        }
        jobs
    }

    fn send(&self, wakes: Wakes) {
        wakes.waiters.iter().for_each(|waiter| waiter.notify());
        wakes.roused.iter().for_each(|waiter| waiter.rouse());
        for caller in wakes.callers {
            // The caller may have left its lane.
            let _ = caller.try_send(());
        }
        for _ in 0..wakes.workers {
            // This struct holds both ends of this channel and the next.
            let _ = self.workers.0.send(());
        }
        if wakes.timekeeper {
            let _ = self.timekeeper.0.send(());
        }
    }
}

/// Waits for a wake-up. `Receiver::recv` spins and yields before it sleeps, which takes processor time from the
/// threads that would send one; a `Select` sleeps at once.
fn park(wake_ups: &Receiver<()>) -> Option<()> {
    let mut select = Select::new();
    select.recv(wake_ups);
    select.select().recv(wake_ups).ok()
}

/// A ledger under its lock.
pub struct Locked<'a, T: Wake> {
    /// `None` only while it is being dropped.
    guard: Option<MutexGuard<'a, T>>,
    dispatch: &'a Dispatch,
}

impl<T: Wake> Deref for Locked<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.guard.as_ref().expect("it is there until it is dropped")
    }
}

impl<T: Wake> DerefMut for Locked<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.guard.as_mut().expect("it is there until it is dropped")
    }
}

impl<T: Wake> Drop for Locked<'_, T> {
    fn drop(&mut self) {
        let Some(mut guard) = self.guard.take() else { return };
        let wakes = guard.wakes();
        drop(guard);
        self.dispatch.send(wakes);
    }
}
