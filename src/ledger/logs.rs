//! The logs of jobs whose results were collected: kept for a while, so that they can still be read.
//!
//! Owns their part of the accounts. They are the first to be dropped when room is short. Invariant: an owner has at
//! most [`MOST`] of them.

use std::collections::BTreeMap;

use super::Ledger;
use super::forgetting::BATCH;
use super::job::Done;
use crate::exchange::Owner;
use crate::job::log::LogEnd;
use crate::job::{Age, JobId, JobKey, RECORD};
use crate::memory::{Charge, allocated};

/// How many logs an owner has at most.
pub const MOST: usize = 64;

/// The kept log of a job that was removed.
pub struct KeptLog {
    /// When its job was removed, by the clock that decides when the log expires.
    age: Age,
    /// Its accounted size, in bytes.
    pub(super) footprint: usize,
    /// How much the job wrote to stderr in all, in bytes.
    pub logged: u64,
    /// The text; `None` if it is on disk.
    pub text: Option<Box<[u8]>>,
    _charge: Charge,
}

impl KeptLog {
    /// Returns the end of the log, unless its text is on disk.
    pub fn end(&self) -> Option<LogEnd> {
        self.text.clone().map(|text| LogEnd { text, offset: self.logged })
    }
}

/// What happens to the log of a job whose result was collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogIs {
    /// It is kept for a while.
    Kept,
    /// It is removed with the result, or the job has no log.
    Gone,
}

/// The kept logs of one owner.
pub type Logs = BTreeMap<JobId, KeptLog>;

/// Returns the accounted size of a log of this length, in bytes.
const fn footprint(length: usize) -> usize {
    RECORD + allocated(length)
}

impl<Q, R> Ledger<Q, R> {
    /// Returns whether the log of a job is kept after its result was removed.
    pub(super) fn outlives(&self, done: &Done<R>) -> bool {
        done.summary.log > 0 && !self.plan.log_ttl.is_zero()
    }

    /// Keeps the log of a job whose result was removed, if it has one; returns whether it has. The log takes less room
    /// than the result did.
    pub(super) fn keep_log(
        &mut self,
        job: &JobKey,
        done: &mut Done<R>,
        age: Age,
        text: Option<Box<[u8]>>,
    ) -> LogIs {
        if !self.outlives(done) {
            return LogIs::Gone;
        }
        let mut charge = done.charge.take();
        charge.shrink_to(RECORD + text.as_ref().map_or(0, |text| allocated(text.len())));
        let (length, logged) = (done.summary.log, done.summary.logged);
        self.insert_log(job, length, logged, age, text, charge);
        LogIs::Kept
    }

    fn insert_log(
        &mut self,
        job: &JobKey,
        length: usize,
        logged: u64,
        age: Age,
        text: Option<Box<[u8]>>,
        charge: Charge,
    ) {
        let footprint = footprint(length);
        let jobs = self.owners.entry(job.owner.clone()).or_default();
        jobs.logs.insert(job.id, KeptLog { age, footprint, logged, text, _charge: charge });
        self.log_ages.insert((age, job.id), job.owner.clone());
        jobs.result_bytes += footprint;
        self.stored += footprint;
        self.log_bytes += footprint;
        if jobs.logs.len() > MOST
            && let Some((&oldest, _)) = jobs.logs.iter().min_by_key(|(id, log)| (log.age, **id))
        {
            self.drop_log(&job.owner, oldest);
        }
    }

    /// Takes over a log that a store read at start.
    pub fn found_log(
        &mut self,
        job: &JobKey,
        length: usize,
        logged: u64,
        age: Age,
        charge: Charge,
    ) {
        self.insert_log(job, length, logged, age, None, charge);
    }

    /// Returns the log of a job whose result was collected.
    pub fn kept_log(&self, job: &JobKey) -> Option<&KeptLog> {
        self.owners.get(&job.owner)?.logs.get(&job.id)
    }

    /// Drops a kept log, if there is one.
    pub(super) fn drop_log(&mut self, owner: &Owner, id: JobId) {
        let Some(jobs) = self.owners.get_mut(owner) else { return };
        let Some(log) = jobs.logs.remove(&id) else { return };
        jobs.result_bytes -= log.footprint;
        self.stored -= log.footprint;
        self.log_bytes -= log.footprint;
        self.log_ages.remove(&(log.age, id));
        self.dropped_logs.push(id);
        self.tidy(owner);
    }

    /// Takes the kept logs of a forgotten owner off the accounts.
    pub(super) fn take_off_logs(&mut self, logs: &Logs) {
        for (id, log) in logs {
            self.log_bytes -= log.footprint;
            self.log_ages.remove(&(log.age, *id));
        }
    }

    /// Drops the oldest kept logs until `bytes` more fit, or none is left.
    pub(super) fn make_room(&mut self, bytes: usize) {
        while self.stored.saturating_add(bytes) > self.room.capacity
            && let Some(((_, id), owner)) = self.log_ages.first_key_value()
        {
            let (id, owner) = (*id, owner.clone());
            self.drop_log(&owner, id);
        }
    }

    /// Drops at most [`BATCH`] kept logs of jobs that were removed before `before`; returns whether there are more.
    pub fn expire_logs(&mut self, before: Age) -> bool {
        for _ in 0..BATCH {
            match self.log_ages.first_key_value() {
                Some(((age, id), owner)) if *age < before => {
                    let (id, owner) = (*id, owner.clone());
                    self.drop_log(&owner, id);
                }
                _ => return false,
            }
        }
        true
    }

    /// Drops the text of a kept log, which is now on disk.
    pub fn flush_log(&mut self, job: &JobKey) {
        let jobs = self.owners.get_mut(&job.owner);
        if let Some(log) = jobs.and_then(|jobs| jobs.logs.get_mut(&job.id)) {
            log.text = None;
        }
    }

    /// Returns the jobs whose logs were dropped since the last call, to be removed from the disk.
    pub fn take_dropped_logs(&mut self) -> Vec<JobId> {
        std::mem::take(&mut self.dropped_logs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::locked::Wake;
    use crate::ledger::{Plan, Room};
    use std::time::Duration;

    fn ledger(capacity: usize) -> Ledger<(), ()> {
        let memory = crate::memory::Allowance::default();
        let hour = Duration::from_secs(3600);
        let plan = Plan { workers: 1, queue: 1, ttl: hour, log_ttl: hour, lanes: Vec::new() };
        Ledger::new(Room { capacity, reserve: 0, memory }, plan, None)
    }

    fn keep(ledger: &mut Ledger<(), ()>, owner: &str, id: u64, age: i64) {
        let job = JobKey { owner: Owner::named(owner), id: JobId::new(id).unwrap() };
        let charge = crate::memory::Allowance::default().nothing();
        ledger.insert_log(&job, 100, 100, Age::from_micros(age), Some(Box::default()), charge);
    }

    fn left(ledger: &Ledger<(), ()>) -> Vec<u64> {
        assert_eq!(ledger.log_ages.len() * footprint(100), ledger.log_bytes);
        let logs = ledger.owners.values().flat_map(|jobs| jobs.logs.keys());
        let mut ids: Vec<_> = logs.map(|id| id.number()).collect();
        ids.sort_unstable();
        ids
    }

    #[test]
    fn the_oldest_logs_of_all_owners_go_first() {
        let mut ledger = ledger(10 * footprint(100));
        for (owner, id, age) in
            [("a", 1, 50), ("b", 2, 10), ("a", 3, 30), ("b", 4, 20), ("c", 5, 40)]
        {
            keep(&mut ledger, owner, id, age);
        }
        ledger.make_room(5 * footprint(100));
        assert_eq!(left(&ledger), [1, 2, 3, 4, 5], "there is room");
        ledger.make_room(6 * footprint(100));
        assert_eq!(left(&ledger), [1, 3, 4, 5]);
        ledger.expire_logs(Age::from_micros(40));
        assert_eq!(left(&ledger), [1, 5]);
        drop(ledger.forget_all(&Owner::named("a")));
        assert_eq!(left(&ledger), [5]);
        ledger.make_room(10 * footprint(100));
        assert_eq!((left(&ledger), ledger.stored), (vec![], 0));
    }

    #[test]
    fn the_log_kept_longest_goes_first_whatever_its_id() {
        let mut ledger = ledger(usize::MAX);
        for id in 2..=MOST as u64 + 1 {
            keep(&mut ledger, "a", id, 1);
        }
        keep(&mut ledger, "a", 1, 2);
        assert_eq!(left(&ledger), [1].into_iter().chain(3..=MOST as u64 + 1).collect::<Vec<_>>());
    }

    #[test]
    fn dropped_logs_are_listed_until_the_lock_is_released() {
        let mut ledger = ledger(usize::MAX);
        for id in 1..10 {
            keep(&mut ledger, "a", id, 0);
        }
        ledger.expire_logs(Age::from_micros(1));
        let _ = ledger.wakes();
        assert_eq!(ledger.take_dropped_logs(), [], "a store without a disk does not ask");
    }
}
