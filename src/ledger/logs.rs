//! The logs of jobs whose results were collected: kept for a while, so that a script's last words can be read still.
//!
//! Owns their part of the accounts. They are the first to go when room is short. Invariant: an owner has at most
//! [`MOST`] of them.

use std::collections::BTreeMap;

use super::Ledger;
use super::index::Jobs;
use super::job::Done;
use crate::exchange::Owner;
use crate::job::{Age, JobId, JobKey, RECORD};
use crate::memory::{Charge, allocated};

/// How many logs an owner has at most.
const MOST: usize = 64;

/// The log of a job that is gone.
pub struct KeptLog {
    /// Since when its job is gone, by the clock by which it expires.
    age: Age,
    /// What it is accounted with, in bytes.
    pub(super) footprint: usize,
    /// The text; `None` if it is on disk.
    pub text: Option<Box<[u8]>>,
    _charge: Charge,
}

/// What becomes of the log of a job whose result was collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogIs {
    /// It is kept for a while.
    Kept,
    /// It goes with the result, or there is none.
    Gone,
}

/// The kept logs of one owner.
pub type Logs = BTreeMap<JobId, KeptLog>;

/// Returns what a log of this length is accounted with, in bytes.
const fn footprint(length: usize) -> usize {
    RECORD + allocated(length)
}

impl<Q, R> Ledger<Q, R> {
    /// Keeps the log of a job whose result is gone, if it has one: it takes less than the result did. Says so.
    pub(super) fn keep_log(
        &mut self,
        job: &JobKey,
        done: &mut Done<R>,
        age: Age,
        text: Option<Box<[u8]>>,
    ) -> LogIs {
        if done.summary.log == 0 || self.plan.log_ttl.is_zero() {
            return LogIs::Gone;
        }
        let mut charge = done.charge.take();
        charge.shrink_to(RECORD + text.as_ref().map_or(0, |text| allocated(text.len())));
        self.insert_log(job, done.summary.log, age, text, charge);
        if let Some(jobs) = self.owners.get(&job.owner)
            && jobs.logs.len() > MOST
            && let Some(oldest) = jobs.logs.keys().next().copied()
        {
            self.drop_log(&job.owner, oldest);
        }
        LogIs::Kept
    }

    fn insert_log(
        &mut self,
        job: &JobKey,
        length: usize,
        age: Age,
        text: Option<Box<[u8]>>,
        charge: Charge,
    ) {
        let footprint = footprint(length);
        let jobs = self.owners.entry(job.owner.clone()).or_default();
        jobs.logs.insert(job.id, KeptLog { age, footprint, text, _charge: charge });
        jobs.result_bytes += footprint;
        self.stored += footprint;
        self.log_bytes += footprint;
    }

    /// Takes over a log that a store has found where it keeps them.
    pub fn found_log(&mut self, job: &JobKey, length: usize, age: Age, charge: Charge) {
        self.insert_log(job, length, age, None, charge);
    }

    /// Returns the log of a job whose result was collected.
    pub fn kept_log(&self, job: &JobKey) -> Option<&KeptLog> {
        self.owners.get(&job.owner)?.logs.get(&job.id)
    }

    /// Drops a kept log, if it is there.
    pub(super) fn drop_log(&mut self, owner: &Owner, id: JobId) {
        let Some(jobs) = self.owners.get_mut(owner) else { return };
        let Some(log) = jobs.logs.remove(&id) else { return };
        jobs.result_bytes -= log.footprint;
        self.stored -= log.footprint;
        self.log_bytes -= log.footprint;
        self.dropped_logs.push(id);
        self.tidy(owner);
    }

    /// Drops the oldest kept logs until so many bytes more fit, or there are none.
    pub(super) fn make_room(&mut self, bytes: usize) {
        while self.stored.saturating_add(bytes) > self.room.capacity && self.log_bytes > 0 {
            let logs = self.owners.iter().flat_map(|(owner, jobs)| {
                jobs.logs.iter().map(move |(id, log)| (log.age, *id, owner))
            });
            let Some((_, id, owner)) = logs.min() else { return };
            let owner = owner.clone();
            self.drop_log(&owner, id);
        }
    }

    /// Drops the kept logs of jobs that are gone since before `before`.
    pub fn expire_logs(&mut self, before: Age) {
        let expired = |(owner, jobs): (&Owner, &Jobs<Q, R>)| -> Vec<JobKey> {
            let old = jobs.logs.iter().filter(|(_, log)| log.age < before);
            old.map(|(id, _)| JobKey { owner: owner.clone(), id: *id }).collect()
        };
        let expired: Vec<JobKey> = self.owners.iter().flat_map(expired).collect();
        for JobKey { owner, id } in expired {
            self.drop_log(&owner, id);
        }
    }

    /// Returns the jobs whose logs were dropped since it was last asked, to be removed from the disk.
    pub fn take_dropped_logs(&mut self) -> Vec<JobId> {
        std::mem::take(&mut self.dropped_logs)
    }
}
