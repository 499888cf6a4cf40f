//! The volatile store: a mutex around plain data, results in a BTreeMap ordered by timestamp.
//!
//! Owns every job in memory. Does no I/O and calls no handler. Invariants: a job's record is on
//! exactly one shelf; `stored` equals the footprints of all records; records of many jobs are
//! dropped after the lock is released.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::Response;

use super::shelf::Shelf;
use super::{Finished, JobKey, Keep, List, Lookup, Refused, Started, Status, Store};
use crate::call::{Call, Owner};
use crate::error::Error;
use crate::job::execution::{Execution, Stop};
use crate::job::{Done, JobId, Pending, Phase, Stamp};

/// How many jobs are forgotten under one hold of the lock.
const BATCH: usize = 512;

/// Jobs in memory, gone with the process.
pub struct MemoryStore {
    /// `--max-stored`, in bytes.
    capacity: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last: Option<JobId>,
    /// The jobs that somebody can still ask for.
    owners: BTreeMap<Owner, Jobs>,
    /// The jobs whose result nobody wants, until they have run.
    unwanted: HashMap<JobKey, Box<Pending>>,
    /// Footprints of all records, in bytes.
    stored: usize,
}

/// The jobs of one owner. Set by `submit`, dropped when the last of them is gone.
#[derive(Default)]
struct Jobs {
    pending: Shelf<Pending>,
    done: Shelf<Done>,
    /// Collected, and neither confirmed nor restored yet.
    in_delivery: Shelf<Done>,
    /// Footprints of `done` and `in_delivery`, so that forgetting all of them needs no count.
    result_bytes: usize,
}

impl Jobs {
    fn is_empty(&self) -> bool {
        self.pending.is_empty() && self.done.is_empty() && self.in_delivery.is_empty()
    }

    /// Takes the oldest result that came to be before `before`, if there is one.
    fn take_result(&mut self, before: Stamp, reach: Reach) -> Option<Box<Done>> {
        let done = self.done.take_before(before);
        let taken = match reach {
            Reach::Results => done,
            Reach::Everything => done.or_else(|| self.in_delivery.take_before(before)),
        };
        taken.map(|(_, record)| record)
    }
}

impl State {
    fn jobs(&self, owner: &Owner) -> Option<&Jobs> {
        self.owners.get(owner)
    }

    /// Removes the owner's shelves if nothing is on them.
    fn tidy(&mut self, owner: &Owner) {
        if self.owners.get(owner).is_some_and(Jobs::is_empty) {
            self.owners.remove(owner);
        }
    }

    /// Forgets a pending job: its record stays, unlisted, until it has run.
    fn forget_pending(&mut self, job: JobKey, record: Box<Pending>) {
        self.unwanted.insert(job, record);
    }

    /// Takes the footprint of a removed result off the accounts.
    fn discharge(&mut self, owner: &Owner, bytes: usize) {
        self.stored -= bytes;
        if let Some(jobs) = self.owners.get_mut(owner) {
            jobs.result_bytes -= bytes;
        }
    }

    /// Replaces a pending job by its result.
    fn complete(&mut self, job: &JobKey, response: Response<Bytes>, now: Stamp) -> Finished {
        let Some(jobs) = self.owners.get_mut(&job.owner) else { return Finished::Dropped };
        let Some(pending) = jobs.pending.take(job.id) else { return Finished::Dropped };
        let request = pending.footprint;
        let finished = if pending.is_cancelled() { Finished::Dropped } else { Finished::Kept };
        let done = Box::new(pending.finish(response, now));
        let result = done.footprint();
        jobs.done.put(job.id, now, done);
        jobs.result_bytes += result;
        self.stored = self.stored - request + result;
        finished
    }

    /// Forgets at most [`BATCH`] of the owner's results that are stamped before `before`, and
    /// returns them, to be dropped without the lock.
    #[expect(clippy::vec_box, reason = "the boxes are moved from the shelf, the records are not")]
    fn forget_batch(&mut self, owner: &Owner, before: Stamp, reach: Reach) -> Vec<Box<Done>> {
        let mut results = Vec::new();
        let Some(jobs) = self.owners.get_mut(owner) else { return results };
        while results.len() < BATCH
            && let Some(record) = jobs.take_result(before, reach)
        {
            results.push(record);
        }
        let bytes = results.iter().map(|record| record.footprint()).sum();
        self.discharge(owner, bytes);
        self.tidy(owner);
        results
    }

    /// Forgets the owner's pending jobs that are stamped before `before`: as many as the queue
    /// holds at the most, and nothing is freed.
    fn forget_pending_before(&mut self, owner: &Owner, before: Stamp) {
        while let Some(jobs) = self.owners.get_mut(owner)
            && let Some((id, record)) = jobs.pending.take_before(before)
        {
            self.forget_pending(JobKey { owner: owner.clone(), id }, record);
        }
        self.tidy(owner);
    }
}

/// How far a deletion by time reaches.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// Results that can be collected.
    Results,
    /// Results in delivery too: if their delivery fails, they do not come back.
    Everything,
}

impl MemoryStore {
    /// An empty store for requests and results of `capacity` bytes.
    pub fn new(capacity: usize) -> Self {
        Self { capacity, state: Mutex::default() }
    }

    /// A poisoned lock is taken all the same: the data is valid between any two statements.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for MemoryStore {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn submit(&self, call: Call, keep: Keep, now: Stamp) -> Result<JobId, Refused> {
        let owner = call.owner.clone();
        let pending = Box::new(Pending::queued(call, now));
        let mut state = self.lock();
        if state.stored.saturating_add(pending.footprint) > self.capacity {
            drop(state);
            return Err(Refused::Full);
        }
        let id = JobId::next(state.last, now);
        state.last = Some(id);
        state.stored += pending.footprint;
        match keep {
            Keep::Result => state.owners.entry(owner).or_default().pending.put(id, now, pending),
            Keep::Nothing => state.forget_pending(JobKey { owner, id }, pending),
        }
        Ok(id)
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.lock().stored.saturating_add(bytes) <= self.capacity
    }

    fn is_queued(&self, job: &JobKey) -> bool {
        let state = self.lock();
        let listed = state.jobs(&job.owner).and_then(|jobs| jobs.pending.get(job.id));
        listed
            .or_else(|| state.unwanted.get(job).map(Box::as_ref))
            .is_some_and(|pending| matches!(pending.phase, Phase::Queued { .. }))
    }

    fn start(&self, job: &JobKey, execution: &Arc<Execution>, now: Stamp) -> Option<Started> {
        let mut state = self.lock();
        let State { owners, unwanted, .. } = &mut *state;
        let pending = owners
            .get_mut(&job.owner)
            .and_then(|jobs| jobs.pending.get_mut(job.id))
            .or_else(|| unwanted.get_mut(job).map(Box::as_mut))?;
        let call = pending.start(execution, now)?;
        Some(Started { call, created: pending.created })
    }

    fn finish(&self, job: &JobKey, response: Response<Bytes>, now: Stamp) -> Finished {
        let mut state = self.lock();
        if let Some(pending) = state.unwanted.remove(job) {
            state.stored -= pending.footprint;
            return Finished::Dropped;
        }
        state.complete(job, response, now)
    }

    fn status(&self, job: &JobKey) -> Option<Status> {
        let state = self.lock();
        let jobs = state.jobs(&job.owner)?;
        if jobs.done.get(job.id).is_some() {
            return Some(Status::Done);
        }
        jobs.pending.get(job.id).map(|pending| Status::Pending(pending.progress()))
    }

    fn log(&self, job: &JobKey) -> Option<Vec<u8>> {
        let state = self.lock();
        let jobs = state.jobs(&job.owner)?;
        let done = jobs.done.get(job.id).map(|done| done.log.to_vec());
        done.or_else(|| jobs.pending.get(job.id).map(Pending::log))
    }

    fn peek(&self, job: &JobKey) -> Lookup {
        let state = self.lock();
        let Some(jobs) = state.jobs(&job.owner) else { return Lookup::Unknown };
        match jobs.done.get(job.id) {
            Some(done) => Lookup::Done(done.response.clone()),
            None if jobs.pending.get(job.id).is_some() => Lookup::Pending,
            None => Lookup::Unknown,
        }
    }

    fn collect(&self, job: &JobKey) -> Lookup {
        let mut state = self.lock();
        let Some(jobs) = state.owners.get_mut(&job.owner) else { return Lookup::Unknown };
        match jobs.done.take(job.id) {
            Some(done) => {
                let response = done.response.clone();
                jobs.in_delivery.put(job.id, done.finished, done);
                Lookup::Done(response)
            }
            None if jobs.pending.get(job.id).is_some() => Lookup::Pending,
            None => Lookup::Unknown,
        }
    }

    fn confirm(&self, job: &JobKey) {
        let mut state = self.lock();
        let Some(jobs) = state.owners.get_mut(&job.owner) else { return };
        let Some(done) = jobs.in_delivery.take(job.id) else { return };
        state.discharge(&job.owner, done.footprint());
        state.tidy(&job.owner);
        drop(state);
        drop(done);
    }

    fn restore(&self, job: &JobKey) {
        let mut state = self.lock();
        let Some(jobs) = state.owners.get_mut(&job.owner) else { return };
        if let Some(done) = jobs.in_delivery.take(job.id) {
            jobs.done.put(job.id, done.finished, done);
        }
    }

    fn cancel(&self, job: &JobKey, now: Stamp) -> bool {
        let mut state = self.lock();
        let Some(jobs) = state.owners.get_mut(&job.owner) else { return false };
        let Some(pending) = jobs.pending.get_mut(job.id) else {
            return jobs.done.get(job.id).is_some();
        };
        if let Some(execution) = pending.cancel_running() {
            drop(state);
            execution.stop(Stop::Cancel);
            return true;
        }
        state.complete(job, Error::Cancelled.response(), now);
        true
    }

    fn forget(&self, job: &JobKey) -> bool {
        let mut state = self.lock();
        let Some(jobs) = state.owners.get_mut(&job.owner) else { return false };
        let result = jobs.done.take(job.id);
        if let Some(record) = &result {
            state.discharge(&job.owner, record.footprint());
        } else if let Some(record) = jobs.pending.take(job.id) {
            state.forget_pending(job.clone(), record);
        } else {
            return false;
        }
        state.tidy(&job.owner);
        drop(state);
        drop(result);
        true
    }

    fn forget_all(&self, owner: &Owner) {
        let mut state = self.lock();
        let Some(jobs) = state.owners.remove(owner) else { return };
        state.stored -= jobs.result_bytes;
        for (id, record) in jobs.pending.into_records() {
            state.forget_pending(JobKey { owner: owner.clone(), id }, record);
        }
        drop(state);
        drop((jobs.done, jobs.in_delivery));
    }

    fn forget_before(&self, owner: &Owner, before: Stamp) {
        self.lock().forget_pending_before(owner, before);
        loop {
            // A `let`, so that the lock is released before the batch is dropped.
            let batch = self.lock().forget_batch(owner, before, Reach::Everything);
            if batch.is_empty() {
                break;
            }
        }
    }

    fn expire_results(&self, before: Stamp) -> usize {
        let owners: Vec<Owner> = self.lock().owners.keys().cloned().collect();
        let mut expired = 0;
        for owner in owners {
            loop {
                let batch = self.lock().forget_batch(&owner, before, Reach::Results);
                if batch.is_empty() {
                    break;
                }
                expired += batch.len();
            }
        }
        expired
    }

    fn list(&self, owner: &Owner, list: List, count: usize) -> Vec<JobId> {
        let state = self.lock();
        let Some(jobs) = state.jobs(owner) else { return Vec::new() };
        match list {
            List::Pending => jobs.pending.ids().take(count).collect(),
            List::Done => jobs.done.ids().take(count).collect(),
        }
    }

    fn remaining(&self) -> Vec<JobId> {
        let state = self.lock();
        let shelves = state.owners.values();
        shelves.flat_map(|jobs| jobs.pending.ids().chain(jobs.done.ids())).collect()
    }
}
