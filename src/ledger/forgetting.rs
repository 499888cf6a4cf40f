//! How jobs are forgotten: by their owner, all at once, and by time.
//!
//! Owns what is removed with a job: its record, its part of the accounts, the waits for it. A forgotten job that waits
//! or runs goes on, and its result is dropped. Invariant: nothing is freed here; removed records are returned to the
//! caller.

use super::Ledger;
use super::idempotency::Expired;
use super::index::{Cleared, Jobs, Reach, Results};
use super::job::{Done, Pending};
use crate::exchange::Owner;
use crate::job::{Age, JobId, JobKey, Stamp};

/// How many jobs, logs or keys are forgotten while the lock is held.
pub const BATCH: usize = 512;

/// What was forgotten with a job.
#[must_use]
pub enum Forgotten<R> {
    /// It waits or runs: its work goes on.
    Pending,
    /// Its result, which must be dropped without the lock.
    Result(Box<Done<R>>),
}

impl<Q, R> Ledger<Q, R> {
    /// Forgets a job; `None` if it does not exist.
    pub fn forget(&mut self, job: &JobKey) -> Option<Forgotten<R>> {
        self.drop_log(&job.owner, job.id);
        let jobs = self.owners.get_mut(&job.owner)?;
        let forgotten = match jobs.take_done(job.id) {
            Some(done) => {
                self.take_off(&job.owner, done.footprint);
                Forgotten::Result(done)
            }
            None => {
                let pending = jobs.pending.take(job.id)?;
                self.forget_pending(job.clone(), pending);
                Forgotten::Pending
            }
        };
        self.tidy(&job.owner);
        Some(forgotten)
    }

    /// Forgets the idempotency keys of an owner's jobs, removed ones included; returns them. Jobs that are not yet
    /// accepted keep theirs.
    pub fn forget_keys(&mut self, owner: &Owner) -> Vec<(Owner, Box<str>)> {
        let (forgotten, bytes) = self.keys.forget(owner, |id| self.keyed.contains(&id));
        self.stored -= bytes;
        forgotten
    }

    /// Forgets every job of an owner.
    pub fn forget_all(&mut self, owner: &Owner) -> Option<Cleared<R>> {
        let mut jobs = self.owners.remove(owner)?;
        self.stored -= jobs.result_bytes;
        let pending: Vec<JobId> = jobs.pending.ids().collect();
        let pending_records = std::mem::take(&mut jobs.pending);
        for (id, record) in pending_records.into_records() {
            self.forget_pending(JobKey { owner: owner.clone(), id }, record);
        }
        self.take_off_logs(&jobs.logs);
        let Jobs { done, in_delivery, ages, logs, .. } = jobs;
        Some(Cleared { pending, done, in_delivery, ages, logs })
    }

    /// Forgets the owner's pending jobs that are stamped before `before`: at most as many as the queue holds. Frees
    /// nothing.
    pub fn forget_pending_before(&mut self, owner: &Owner, before: Stamp) -> Vec<JobId> {
        let mut forgotten = Vec::new();
        while let Some(jobs) = self.owners.get_mut(owner)
            && let Some((id, record)) = jobs.pending.take_before(before)
        {
            self.forget_pending(JobKey { owner: owner.clone(), id }, record);
            forgotten.push(id);
        }
        self.tidy(owner);
        forgotten
    }

    /// Forgets at most `BATCH` of the owner's results within reach.
    pub fn forget_batch(&mut self, owner: &Owner, reach: Reach) -> Results<R> {
        let mut results = Vec::new();
        let Some(jobs) = self.owners.get_mut(owner) else { return results };
        while results.len() < BATCH
            && let Some(result) = jobs.take_result(reach)
        {
            results.push(result);
        }
        self.take_off(owner, results.iter().map(|(_, done)| done.footprint).sum());
        self.tidy(owner);
        results
    }

    /// Returns the owners that have jobs.
    pub fn owners(&self) -> Vec<Owner> {
        self.owners.keys().cloned().collect()
    }

    /// Forgets the keys of removed jobs that were accepted before `before`; checks at most `BATCH` keys.
    pub fn expire_keys(&mut self, before: Age) -> Expired {
        let Self { owners, unwanted, keys, .. } = self;
        let expired = keys.expire(before, BATCH, |job| {
            let listed = owners.get(&job.owner).is_some_and(|jobs| jobs.has(job.id));
            listed || unwanted.contains_key(job)
        });
        self.stored -= expired.bytes;
        expired
    }

    /// Removes the owner if it has no records left.
    pub(super) fn tidy(&mut self, owner: &Owner) {
        if self.owners.get(owner).is_some_and(Jobs::is_empty) {
            self.owners.remove(owner);
        }
    }

    /// Forgets a pending job: its record stays, unlisted, until it has run.
    pub(super) fn forget_pending(&mut self, job: JobKey, mut record: Box<Pending<Q>>) {
        self.wakes.waiters.append(&mut record.waiters);
        self.unwanted.insert(job, record);
    }

    /// Takes removed results off the accounts.
    pub(super) fn take_off(&mut self, owner: &Owner, bytes: usize) {
        self.stored -= bytes;
        if let Some(jobs) = self.owners.get_mut(owner) {
            jobs.result_bytes -= bytes;
        }
    }
}
