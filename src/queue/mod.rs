//! The one bounded queue between those who accept jobs and those who run them.
//!
//! Owns the permits that bound it, the channels to the workers, and the gates of the routes that
//! run only so many jobs at once. Knows nothing of requests and results: a task is the name of a
//! job. Invariant: whoever holds a [`Permit`] has a place in the queue, so that a job is stored only
//! after its place is sure; the places are those of the jobs that were accepted and did not start.

mod gate;
#[cfg(test)]
mod model_tests;

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_channel::{Receiver, Sender, bounded, select_biased, unbounded};

use crate::job::RouteIndex;

use crate::store::JobKey;
pub use gate::{Gate, Pass};

/// A place in the queue, or of a delay, given back when dropped.
#[must_use]
pub struct Permit(Arc<AtomicUsize>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A job on its way to a worker.
pub struct Task {
    /// Which job.
    pub job: JobKey,
    /// The route that runs it.
    pub route: RouteIndex,
    /// The gate of that route, where it has one.
    pub gate: Option<Arc<Gate>>,
    /// Its place in the queue, to be dropped when it starts.
    pub permit: Permit,
    /// Whether it has run before.
    pub turn: Turn,
}

/// Whether a task has been with a worker before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It waits to be started.
    First,
    /// It comes for its next attempt: to the store it runs.
    Again,
}

/// A task that may run now.
pub struct Ready {
    /// What to run.
    pub task: Task,
    /// Its place among the jobs of its route that run at once; `None` where the route has no limit.
    pub pass: Option<Pass>,
}

/// The queue.
pub struct Queue {
    capacity: usize,
    len: Arc<AtomicUsize>,
    /// How many delays hold no place in the queue.
    free_delays: Arc<AtomicUsize>,
    /// Whether a job that waited is over since the last purge: its task may still take up a place.
    stale: AtomicBool,
    /// Unbounded, because a bounded channel allocates all its slots at once: the permits bound it.
    sender: Sender<Task>,
    receiver: Receiver<Task>,
    /// Tasks that waited at a gate and got through; they go first.
    granted: Receiver<Ready>,
    grant: Sender<Ready>,
    /// Set once by the wiring, before the first task.
    gates: Mutex<Vec<Arc<Gate>>>,
    /// Dropped to close the queue.
    open: Mutex<Option<Sender<Infallible>>>,
    closed: Receiver<Infallible>,
}

impl Queue {
    /// A queue of at most `capacity` waiting jobs.
    pub fn new(capacity: usize) -> Self {
        let (sender, receiver) = unbounded();
        let (grant, granted) = unbounded();
        let (open, closed) = bounded(0);
        Self {
            capacity,
            len: Arc::default(),
            free_delays: Arc::default(),
            stale: AtomicBool::new(false),
            sender,
            receiver,
            granted,
            grant,
            gates: Mutex::default(),
            open: Mutex::new(Some(open)),
            closed,
        }
    }

    /// Lets no more jobs start: those that wait stay where they are kept.
    pub fn close(&self) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether no more jobs start.
    pub fn is_closed(&self) -> bool {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// A gate before this queue's workers that lets `limit` jobs of one route run at once.
    pub fn new_gate(&self, limit: usize) -> Arc<Gate> {
        let gate = Gate::new(limit, self.grant.clone());
        self.gates().push(Arc::clone(&gate));
        gate
    }

    fn gates(&self) -> MutexGuard<'_, Vec<Arc<Gate>>> {
        self.gates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many jobs wait.
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Acquire)
    }

    /// Whether no job waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes a place, if there is one. When the queue is full and jobs were cancelled, the tasks of
    /// jobs that are over (`is_alive` says which are not) are first dropped from it.
    pub fn reserve(&self, is_alive: impl Fn(&Task) -> bool) -> Option<Permit> {
        self.try_reserve().or_else(|| {
            if self.stale.swap(false, Ordering::AcqRel) {
                self.purge(is_alive);
            }
            self.try_reserve()
        })
    }

    /// Takes a place, whether there is one or not: for jobs that were accepted before. So what waits for
    /// another attempt leaves less room for new jobs.
    pub fn admit(&self) -> Permit {
        self.len.fetch_add(1, Ordering::AcqRel);
        Permit(Arc::clone(&self.len))
    }

    /// Takes a place for a job that is delayed instead of running. As many as there are `workers` take
    /// none of the queue's, as if each had a worker; so a queue that is full of delays has still taken as
    /// many jobs as it promises.
    pub fn admit_delay(&self, workers: usize) -> Permit {
        let more = |delays| (delays < workers).then_some(delays + 1);
        let taken = self.free_delays.fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
        if taken.is_ok() { Permit(Arc::clone(&self.free_delays)) } else { self.admit() }
    }

    /// Says that a job which may wait was cancelled or is over, so that its place in the queue may be free.
    pub fn mark_stale(&self) {
        self.stale.store(true, Ordering::Release);
    }

    fn try_reserve(&self) -> Option<Permit> {
        let more = |len| (len < self.capacity).then_some(len + 1);
        self.len.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok()?;
        Some(Permit(Arc::clone(&self.len)))
    }

    /// Turns the whole queue round once and drops the dead from it. The order is kept: nothing is
    /// pushed meanwhile, but by those who had a permit already.
    fn purge(&self, is_alive: impl Fn(&Task) -> bool) {
        for task in self.receiver.try_iter().take(self.receiver.len()) {
            if is_alive(&task) {
                self.push(task);
            }
        }
        for gate in self.gates().iter() {
            gate.purge(&is_alive);
        }
    }

    /// Hands a task to the workers.
    pub fn push(&self, task: Task) {
        // Cannot fail: this queue holds a receiver itself.
        let _ = self.sender.send(task);
    }

    /// Waits for a task that may run; tasks whose route is at its limit are left at its gate.
    /// `None` when the queue is closed.
    pub fn next(&self) -> Option<Ready> {
        loop {
            let task = select_biased! {
                recv(self.closed) -> _ => return None,
                recv(self.granted) -> ready => return ready.ok(),
                recv(self.receiver) -> task => task.ok()?,
            };
            if let Some(ready) = Self::admit_to_lane(task) {
                return Some(ready);
            }
        }
    }

    /// Lets a task run now if its lane has room; else it waits there, and comes by [`next`](Self::next).
    pub fn admit_to_lane(task: Task) -> Option<Ready> {
        match task.gate.clone() {
            None => Some(Ready { task, pass: None }),
            Some(gate) => gate.admit(task),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    use crate::error::Error;
    use crate::exchange::Owner;
    use crate::job::execution::{Execution, Stop};
    use crate::job::{JobId, Stamp};

    fn key(n: u64) -> JobKey {
        let stamp = Stamp::from_unix_seconds(n as f64 / 1e6).unwrap();
        JobKey { owner: Owner::anonymous(), id: JobId::next(None, stamp) }
    }

    fn push(queue: &Queue, n: u64, gate: Option<&Arc<Gate>>) -> bool {
        let Some(permit) = queue.reserve(|task| task.job != key(666)) else { return false };
        let (job, route, turn) = (key(n), RouteIndex(0), Turn::First);
        queue.push(Task { job, route, gate: gate.cloned(), permit, turn });
        true
    }

    #[test]
    fn a_full_queue_refuses_and_a_started_job_makes_room() {
        let queue = Queue::new(2);
        assert!(push(&queue, 1, None) && push(&queue, 2, None));
        assert!(!push(&queue, 3, None));
        assert_eq!(queue.next().unwrap().task.job, key(1));
        assert!(push(&queue, 3, None));
    }

    #[test]
    fn delays_beyond_the_workers_fill_the_queue() {
        let queue = Queue::new(2);
        let free: Vec<_> = (0..2).map(|_| queue.admit_delay(2)).collect();
        assert!(queue.is_empty());
        let counted = queue.admit_delay(2);
        assert_eq!(queue.len(), 1);
        drop(free);
        assert_eq!((queue.admit_delay(2), queue.len()).1, 1, "a worker's share is free again");
        drop(counted);
        assert!(queue.is_empty());
    }

    #[test]
    fn a_closed_queue_gives_out_nothing_and_wakes_who_waits() {
        let queue = Queue::new(2);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| queue.next().is_none());
            queue.close();
            assert!(waiting.join().unwrap());
        });
        assert!(push(&queue, 1, None), "a job that was accepted meanwhile stays");
        assert!(queue.next().is_none() && queue.is_closed() && queue.len() == 1);
    }

    #[test]
    fn cancelled_jobs_do_not_fill_the_queue_and_the_order_is_kept() {
        let queue = Queue::new(4);
        for n in [1, 666, 2, 3] {
            assert!(push(&queue, n, None));
        }
        assert!(!push(&queue, 4, None), "nobody said that one was cancelled");
        queue.mark_stale();
        assert!(push(&queue, 4, None), "the dead one made room");
        assert!(!push(&queue, 5, None));
        let order: Vec<_> = (0..4).map(|_| queue.next().unwrap().task.job).collect();
        assert_eq!(order, [key(1), key(2), key(3), key(4)]);
        assert!(queue.is_empty());
    }

    #[test]
    fn a_cancelled_job_at_a_gate_does_not_fill_the_queue() {
        let queue = Queue::new(3);
        let gate = queue.new_gate(1);
        for (n, gate) in [(1, Some(&gate)), (666, Some(&gate)), (2, None)] {
            assert!(push(&queue, n, gate));
        }
        let running = queue.next().unwrap();
        assert_eq!(queue.next().unwrap().task.job, key(2), "the one between waits at the gate");
        assert!(push(&queue, 3, None));
        assert!(!push(&queue, 4, None));
        queue.mark_stale();
        assert!(push(&queue, 4, None));
        drop(running);
    }

    #[test]
    fn a_gate_delays_and_passes_on_in_order() {
        let queue = Queue::new(8);
        let gate = queue.new_gate(1);
        for n in 1..=3 {
            assert!(push(&queue, n, Some(&gate)));
        }
        assert!(push(&queue, 9, None));
        let first = queue.next().unwrap();
        assert_eq!(first.task.job, key(1));
        let other = queue.next().unwrap();
        assert_eq!(other.task.job, key(9), "the others do not stand in the way");
        assert!(push(&queue, 10, None));
        drop(first);
        let second = queue.next().unwrap();
        assert_eq!(second.task.job, key(2), "who waited at the gate goes first");
        assert_eq!(queue.next().unwrap().task.job, key(10));
        drop(second);
        assert_eq!(queue.next().unwrap().task.job, key(3));
    }

    #[test]
    fn a_caller_waits_in_line_and_gives_up_in_time() {
        let gate = Queue::new(8).new_gate(1);
        let enter = |span| gate.enter(Instant::now() + span, &Execution::default());
        let pass = enter(Duration::ZERO).unwrap();
        assert!(matches!(enter(Duration::from_millis(5)), Err(Error::GatewayTimeout(_))));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| enter(Duration::from_secs(60)).is_ok());
            drop(pass);
            assert!(waiting.join().unwrap());
        });
        assert!(enter(Duration::ZERO).is_ok(), "every pass came back");
    }

    #[test]
    fn a_stopped_caller_leaves_its_line() {
        let gate = Queue::new(8).new_gate(1);
        let hour = Instant::now() + Duration::from_secs(3600);
        let pass = gate.enter(hour, &Execution::default()).unwrap();
        let stopped = Execution::default();
        stopped.stop(Stop::Cancel);
        assert!(matches!(gate.enter(hour, &stopped), Err(Error::Cancelled)));
        drop(pass);
        assert!(gate.enter(Instant::now(), &Execution::default()).is_ok(), "the pass is free");
    }
}
