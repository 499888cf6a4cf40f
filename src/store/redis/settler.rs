//! The settler: a thread that reports the outcomes of deliveries to the engine, and undoes operations that were given
//! up, in order.
//!
//! Owns what is not yet reported. Invariants: each report is repeated until it succeeds or the store is closed; a
//! thread that asks for a job first waits a moment for the reports about that job, so that it sees the effects of its
//! own calls.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use super::engine::{Engine, GivenUp};
use super::operation::{Effect, Insist, Operation, Trouble};
use super::{lock, script};
use crate::job::{JobId, Moment};
use crate::ledger::job::DeliveryId;

/// How many deliveries are reported at once.
const BATCH: usize = 64;

/// How long a thread waits for outstanding reports.
const WAIT: Duration = Duration::from_secs(2);

/// How late an operation that was given up may arrive, once the engine answers again.
const LATE: Duration = Duration::from_secs(5 * 60);

/// What the settler has to do.
pub enum Task {
    /// A delivery succeeded, at this time.
    Confirm(Ended, Moment),
    /// A delivery failed.
    Restore(Ended),
    /// An operation was given up.
    Withdraw(GivenUp),
    /// The store is closed.
    End,
}

/// A delivery that ended, numbered in the order of the ends.
pub struct Ended {
    number: u64,
    id: JobId,
    delivery: DeliveryId,
}

/// What is not yet reported.
#[derive(Default)]
pub struct Untold {
    waiting: Mutex<Waiting>,
    told: Condvar,
}

#[derive(Default)]
struct Waiting {
    /// The number of the last delivery that ended.
    last: u64,
    /// The numbers of the deliveries that are not yet reported.
    numbers: BTreeSet<u64>,
    /// How many of them there are of each job.
    jobs: HashMap<JobId, usize>,
}

impl Untold {
    /// Records that a delivery ended and must be reported.
    pub fn add(&self, id: JobId, delivery: DeliveryId) -> Ended {
        let mut waiting = lock(&self.waiting);
        waiting.last += 1;
        let number = waiting.last;
        waiting.numbers.insert(number);
        *waiting.jobs.entry(id).or_default() += 1;
        Ended { number, id, delivery }
    }

    fn remove(&self, told: impl Iterator<Item = (u64, JobId)>) {
        let mut waiting = lock(&self.waiting);
        for (number, id) in told {
            waiting.numbers.remove(&number);
            if let Some(count) = waiting.jobs.get_mut(&id) {
                *count -= 1;
                if *count == 0 {
                    waiting.jobs.remove(&id);
                }
            }
        }
        drop(waiting);
        self.told.notify_all();
    }

    /// Waits a moment until everything is reported about this job, or, without a job, about all deliveries that ended
    /// before; returns whether it is.
    pub fn wait(&self, id: Option<JobId>) -> bool {
        self.wait_for(id, WAIT)
    }

    /// Waits likewise, for at most `span`.
    pub fn wait_for(&self, id: Option<JobId>, span: Duration) -> bool {
        let deadline = Instant::now() + span;
        let mut waiting = lock(&self.waiting);
        let last = waiting.last;
        let is_untold = |waiting: &Waiting| match id {
            Some(id) => waiting.jobs.contains_key(&id),
            None => waiting.numbers.first().is_some_and(|first| *first <= last),
        };
        while is_untold(&waiting) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            waiting =
                self.told.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

/// Carries out tasks until the store is closed. `keeps_logs`: whether logs outlive their results.
pub fn run(engine: &Engine, tasks: &Receiver<Task>, untold: &Untold, keeps_logs: bool) {
    let mut slot = engine.slot();
    let mut next = None;
    let mut withdrawn = VecDeque::new();
    while let Some(task) = next.take().or_else(|| tasks.recv().ok()) {
        let logs = if keeps_logs { "1" } else { "0" };
        let mut operation = Operation::new(&script::SETTLE, Effect::Once).with(logs);
        let mut told = Vec::new();
        let mut task = Some(task);
        while let Some(current) = task.take() {
            let (kind, Ended { number, id, delivery }) = match current {
                Task::Confirm(ended, now) => {
                    operation = operation.at(now);
                    ("confirm", ended)
                }
                Task::Restore(ended) => ("restore", ended),
                other => {
                    next = Some(other);
                    break;
                }
            };
            told.push((number, id));
            operation = operation.with(kind).with(id.to_string()).with(delivery.0.to_string());
            task = if told.len() < BATCH { tasks.try_recv().ok() } else { None };
        }
        if !told.is_empty() {
            let settled = engine.run_over(&mut slot, &operation, Insist::Yes);
            untold.remove(told.into_iter());
            if matches!(settled, Err(Trouble::Closed)) {
                return;
            }
        }
        match next.take() {
            Some(Task::End) => return,
            Some(Task::Withdraw(GivenUp { slot: given, operation, key })) => {
                let mut undo = Operation::new(&script::WITHDRAW, Effect::Harmless)
                    .with(given.to_string())
                    .with(operation.to_string())
                    .with(key);
                while let Some((slot, _)) =
                    withdrawn.pop_front_if(|(_, at): &mut (u64, Instant)| at.elapsed() > LATE)
                {
                    undo = undo.with(slot.to_string());
                }
                // If the store is closed first, this is like a crash: the job runs.
                let _ = engine.run_over(&mut slot, &undo, Insist::Yes);
                withdrawn.push_back((given, Instant::now()));
            }
            other => next = other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_waits_only_for_deliveries_that_ended_before() {
        let untold = Untold::default();
        let end = |n: u64| untold.add(JobId::parse(&n.to_string()).unwrap(), DeliveryId(n));
        std::thread::scope(|scope| {
            let mut before = end(1);
            let waits = scope.spawn(|| untold.wait_for(None, Duration::from_secs(20)));
            // There is always an unreported delivery.
            for n in 2.. {
                let next = end(n);
                untold.remove([(before.number, before.id)].into_iter());
                before = next;
                if waits.is_finished() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            assert!(waits.join().unwrap());
        });
        assert!(!untold.wait_for(None, Duration::ZERO), "the last is not told");
    }
}
