//! The settler: a thread that tells the engine what became of deliveries, and undoes what was given up, in order.
//!
//! Owns what is not told yet. Invariants: each of it is tried until it succeeds or the store is closed; a thread that
//! asks for a job waits a moment for what is to be told of that job, so that it sees its own words.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use super::engine::{Engine, GivenUp};
use super::operation::{Effect, Insist, Operation, Trouble};
use super::script;
use crate::job::{JobId, Moment};
use crate::ledger::job::DeliveryId;

/// How many deliveries are told at once.
const BATCH: usize = 64;

/// How long a thread waits for what is to be told.
const WAIT: Duration = Duration::from_secs(2);

/// What is to be told.
pub enum Task {
    /// A delivery succeeded.
    Confirm(JobId, DeliveryId, Moment),
    /// It failed.
    Restore(JobId, DeliveryId),
    /// An operation was given up.
    Withdraw(GivenUp),
    /// The store is closed.
    End,
}

/// What is not told yet.
#[derive(Default)]
pub struct Untold {
    jobs: Mutex<HashMap<JobId, usize>>,
    told: Condvar,
}

impl Untold {
    fn lock(&self) -> MutexGuard<'_, HashMap<JobId, usize>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that something is to be told of a job.
    pub fn add(&self, id: JobId) {
        *self.lock().entry(id).or_default() += 1;
    }

    fn remove(&self, ids: impl Iterator<Item = JobId>) {
        let mut jobs = self.lock();
        for id in ids {
            if let Some(count) = jobs.get_mut(&id) {
                *count -= 1;
                if *count == 0 {
                    jobs.remove(&id);
                }
            }
        }
        drop(jobs);
        self.told.notify_all();
    }

    /// Waits until nothing is to be told of this job, or of any, for a moment; whether it is so.
    pub fn wait(&self, id: Option<JobId>) -> bool {
        let deadline = Instant::now() + WAIT;
        let mut jobs = self.lock();
        while id.map_or(!jobs.is_empty(), |id| jobs.contains_key(&id)) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            jobs = self.told.wait_timeout(jobs, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

/// Tells the engine what comes, until the store is closed. `keeps_logs`: whether logs outlive their results.
pub fn run(engine: &Engine, tasks: &Receiver<Task>, untold: &Untold, keeps_logs: bool) {
    let mut slot = engine.slot();
    let mut next = None;
    while let Some(task) = next.take().or_else(|| tasks.recv().ok()) {
        let logs = if keeps_logs { "1" } else { "0" };
        let mut operation = Operation::new(&script::SETTLE, Effect::Once).with(logs);
        let mut ids = Vec::new();
        let mut task = Some(task);
        while let Some(current) = task.take() {
            let (kind, id, delivery) = match current {
                Task::Confirm(id, delivery, now) => {
                    operation = operation.at(now);
                    ("confirm", id, delivery)
                }
                Task::Restore(id, delivery) => ("restore", id, delivery),
                other => {
                    next = Some(other);
                    break;
                }
            };
            ids.push(id);
            operation = operation.with(kind).with(id.to_string()).with(delivery.0.to_string());
            task = if ids.len() < BATCH { tasks.try_recv().ok() } else { None };
        }
        if !ids.is_empty() {
            let told = engine.run_over(&mut slot, &operation, Insist::Yes);
            untold.remove(ids.into_iter());
            if matches!(told, Err(Trouble::Closed)) {
                return;
            }
        }
        match next.take() {
            Some(Task::End) => return,
            Some(Task::Withdraw(GivenUp { slot: given, operation, key })) => {
                let undo = Operation::new(&script::WITHDRAW, Effect::Harmless)
                    .with(given.to_string())
                    .with(operation.to_string())
                    .with(key);
                // Beyond the end of the store it is as with a crash: the job runs.
                let _ = engine.run_over(&mut slot, &undo, Insist::Yes);
            }
            other => next = other,
        }
    }
}
