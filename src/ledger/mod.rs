//! What every store knows of its jobs: the states of all of them, as plain data.
//!
//! Owns the shelves of each owner, the accounts, the ids and the idempotency keys, whatever a store keeps of
//! requests (`Q`) and results (`R`). Does no I/O and takes no lock: a store holds it under its mutex.
//! Invariants: a job's record is on exactly one shelf; `stored` equals the footprints of all records,
//! keys, and submissions that are admitted and not accepted yet; it exceeds the capacity only by what
//! was found at start; no method frees the memory of many jobs, they are handed out.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

pub mod idempotency;
pub mod index;
pub mod waiters;

use crate::exchange::Owner;
use crate::job::execution::Execution;
use crate::job::stored::StoredResult;
use crate::job::{Done, JobId, Pending, RECORD, Stamp};
use crate::memory::Charge;
use crate::store::{Finished, IdempotencyKey, JobKey, Keep, List, Refused, Room, Stats, Status};
use idempotency::Idempotency;
pub use index::Reach;
use index::{Cleared, Jobs, Results};
use waiters::Waiters;

/// Idempotency take at most this part of the capacity.
const PART_OF_KEYS: usize = 4;

/// How many jobs are forgotten by one call.
const BATCH: usize = 512;

/// The states of all jobs.
pub struct Ledger<Q, R> {
    room: Room,
    /// The last id that was given out.
    last: Option<JobId>,
    /// The jobs that somebody can still ask for.
    owners: BTreeMap<Owner, Jobs<Q, R>>,
    /// The jobs whose result nobody wants, until they have run.
    unwanted: HashMap<JobKey, Box<Pending<Q>>>,
    keys: Idempotency,
    /// The jobs with a key that are admitted and not accepted yet.
    keyed: HashSet<JobId>,
    /// Rung whenever a job stops being pending for its owner.
    bell: Arc<Waiters>,
    /// In bytes.
    stored: usize,
}

/// What a submission takes, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// All that it is accounted with.
    pub footprint: usize,
    /// What of that is memory and not charged by the content itself.
    pub memory: usize,
}

/// The memory of a submission that is admitted.
pub struct Admitted {
    /// Of its record.
    pub record: Charge,
    /// Of its idempotency key.
    pub key: Option<Charge>,
}

/// What an attempt to cancel a job comes to.
pub enum Cancel {
    /// There is no such job.
    Unknown,
    /// It has its result already, or that is decided.
    NoEffect,
    /// It runs: this is the line to its handler.
    Running(Arc<Execution>),
    /// It waits: it is to be ended.
    Queued,
}

/// What a job is found to be.
pub enum Found<'a, Q, R> {
    /// There is no such job.
    Unknown,
    /// It has no result yet.
    Pending(&'a Pending<Q>),
    /// It has a result.
    Done(&'a Done<R>),
}

/// What was forgotten of a job.
#[must_use]
pub enum Forgotten<R> {
    /// It waits or runs: its work goes on.
    Pending,
    /// Its result, to be dropped without the lock.
    Result(Box<Done<R>>),
}

/// Accepting jobs.
impl<Q, R> Ledger<Q, R> {
    /// No jobs yet; the next id will be greater than `last`.
    pub fn new(room: Room, last: Option<JobId>) -> Self {
        Self {
            room,
            last,
            owners: BTreeMap::new(),
            unwanted: HashMap::new(),
            keys: Idempotency::default(),
            keyed: HashSet::new(),
            bell: Arc::default(),
            stored: 0,
        }
    }

    /// Returns how much is stored, and how much can be.
    pub const fn stats(&self) -> Stats {
        Stats { stored: self.stored, capacity: self.room.capacity }
    }

    /// What wakes those who wait for a job.
    pub const fn bell(&self) -> &Arc<Waiters> {
        &self.bell
    }

    /// Checks whether a submission of so many bytes would fit, and leave the reserve free.
    ///
    /// # Errors
    /// [`Refused::Full`], or [`Refused::TooLarge`] if it never will.
    pub const fn check(&self, bytes: usize) -> Result<(), Refused> {
        let bytes = bytes.saturating_add(self.room.reserve);
        if bytes > self.room.capacity {
            return Err(Refused::TooLarge);
        }
        if self.stored.saturating_add(bytes) > self.room.capacity {
            return Err(Refused::Full);
        }
        Ok(())
    }

    /// Puts a submission on the accounts before it is accepted, and its key.
    ///
    /// # Errors
    /// [`Refused`]; then nothing of it is on the accounts.
    pub fn admit(&mut self, size: Size, key: Option<&IdempotencyKey>) -> Result<Admitted, Refused> {
        let key_size = key.map_or(0, IdempotencyKey::footprint);
        let most = self.room.capacity / PART_OF_KEYS;
        if key.is_some() && self.keys.bytes() + key_size > most {
            return Err(Refused::ManyKeys);
        }
        self.check(size.footprint.saturating_add(key_size))?;
        let charge = |bytes| self.room.memory.charge(bytes).map_err(|_| Refused::NoMemory);
        let admitted = Admitted {
            record: charge(size.memory)?,
            key: key.map(|_| charge(key_size)).transpose()?,
        };
        self.stored += size.footprint + key_size;
        Ok(admitted)
    }

    /// Takes a submission that was admitted and is not accepted off the accounts, and its key, unless
    /// that is gone.
    pub fn withdraw(&mut self, job: &JobKey, footprint: usize, key: Option<&IdempotencyKey>) {
        self.stored -= footprint;
        self.keyed.remove(&job.id);
        if let Some(key) = key {
            self.stored -= self.keys.take(&job.owner, &key.key);
        }
    }

    /// The job that was accepted under this key.
    ///
    /// # Errors
    /// [`Refused::KeyReused`].
    pub fn recall(&self, owner: &Owner, key: &IdempotencyKey) -> Result<Option<JobId>, Refused> {
        self.keys.get(owner, key)
    }

    /// The next id.
    pub fn next_id(&mut self, now: Stamp) -> JobId {
        let id = JobId::next(self.last, now);
        self.last = Some(id);
        id
    }

    /// The last id that was given out.
    pub const fn last_id(&self) -> Option<JobId> {
        self.last
    }

    /// Accepts a job that was admitted.
    pub fn accept(&mut self, job: JobKey, pending: Box<Pending<Q>>, keep: Keep) {
        self.keyed.remove(&job.id);
        match keep {
            Keep::Result => {
                let jobs = self.owners.entry(job.owner).or_default();
                jobs.pending.put(job.id, pending.created, pending);
            }
            Keep::Nothing => self.forget_pending(job, pending),
        }
    }

    /// Puts a result on the shelf that a store has found where it keeps them; it counts, whatever
    /// the capacity.
    pub fn found_result(&mut self, job: JobKey, done: Box<Done<R>>) {
        self.stored += done.footprint;
        let jobs = self.owners.entry(job.owner).or_default();
        jobs.result_bytes += done.footprint;
        jobs.done.put(job.id, done.finished, done);
    }

    /// Accepts a job that a store has found where it keeps them; it counts, whatever the capacity.
    pub fn found_pending(&mut self, job: JobKey, pending: Box<Pending<Q>>, keep: Keep) {
        self.stored += pending.footprint;
        self.accept(job, pending, keep);
    }

    /// Returns the charge for a record that a store has found where it keeps them.
    pub fn found_record(&self) -> Charge {
        self.room.memory.charge_found(RECORD)
    }

    /// Takes over a key that a store has found where it keeps them.
    pub fn found_key(&mut self, job: &JobKey, key: &IdempotencyKey, accepted: Stamp) {
        let size = key.footprint();
        self.stored += size;
        self.keys.put(job, key, accepted, self.room.memory.charge_found(size));
    }

    /// Records a key that was admitted, before its job is accepted.
    pub fn put_key(
        &mut self,
        job: &JobKey,
        key: &IdempotencyKey,
        accepted: Stamp,
        charge: Option<Charge>,
    ) {
        if let Some(charge) = charge {
            self.keyed.insert(job.id);
            self.keys.put(job, key, accepted, charge);
        }
    }
}

/// Running them.
impl<Q, R> Ledger<Q, R> {
    /// A job that waits or runs, forgotten or not.
    pub fn pending(&self, job: &JobKey) -> Option<&Pending<Q>> {
        let listed = self.owners.get(&job.owner).and_then(|jobs| jobs.pending.get(job.id));
        listed.or_else(|| self.unwanted.get(job).map(Box::as_ref))
    }

    /// The same, to be changed.
    pub fn pending_mut(&mut self, job: &JobKey) -> Option<&mut Pending<Q>> {
        let listed = self.owners.get_mut(&job.owner).and_then(|jobs| jobs.pending.get_mut(job.id));
        listed.or_else(|| self.unwanted.get_mut(job).map(Box::as_mut))
    }

    /// Whether nobody can ask for the job: it is forgotten, or was fired so.
    pub fn is_unwanted(&self, job: &JobKey) -> bool {
        self.unwanted.contains_key(job)
    }

    /// Puts the result of a pending job on the accounts in place of its request; `memory` says how much of
    /// it is to be charged. Returns the result, or the error that stands for one that does not fit: for
    /// that there is room since the job was admitted.
    pub fn fit_result(
        &mut self,
        job: &JobKey,
        result: StoredResult,
        memory: impl Fn(&StoredResult) -> usize,
    ) -> StoredResult {
        let size = |result: &StoredResult| Size {
            footprint: RECORD + result.footprint(),
            memory: memory(result),
        };
        let Err(refused) = self.fit(job, size(&result)) else { return result };
        let error = result.without_room(&refused.of_result());
        let fits = self.fit(job, size(&error));
        debug_assert!(fits.is_ok(), "it was reserved");
        error
    }

    /// Replaces what a pending job is accounted with.
    ///
    /// # Errors
    /// [`Refused::Full`] or [`Refused::NoMemory`] if it does not fit; then all is as before.
    fn fit(&mut self, job: &JobKey, size: Size) -> Result<(), Refused> {
        let (stored, capacity) = (self.stored, self.room.capacity);
        let Some(pending) = self.pending_mut(job) else { return Ok(()) };
        let stored = stored - pending.footprint + size.footprint;
        if size.footprint > pending.footprint && stored > capacity {
            return Err(Refused::Full);
        }
        pending.charge.resize(size.memory).map_err(|_| Refused::NoMemory)?;
        pending.footprint = size.footprint;
        self.stored = stored;
        Ok(())
    }

    /// Replaces a pending job by its result, which [fits](Self::fit); by nothing if it is unwanted.
    pub fn complete(&mut self, job: &JobKey, result: R, now: Stamp) -> Finished {
        if let Some(pending) = self.unwanted.remove(job) {
            self.stored -= pending.footprint;
            return Finished::Dropped;
        }
        let Some(jobs) = self.owners.get_mut(&job.owner) else { return Finished::Dropped };
        let Some(pending) = jobs.pending.take(job.id) else { return Finished::Dropped };
        let Pending { created, footprint, charge, .. } = *pending;
        let done = Done { created, finished: now, footprint, charge, result };
        jobs.done.put(job.id, now, Box::new(done));
        jobs.result_bytes += footprint;
        self.bell.notify(job);
        Finished::Kept
    }

    /// Cancels a job: a running one is marked, one that waits is left to be ended.
    pub fn cancel(&mut self, job: &JobKey) -> Cancel {
        let Some(jobs) = self.owners.get_mut(&job.owner) else { return Cancel::Unknown };
        let is_done = jobs.done.get(job.id).is_some();
        match jobs.pending.get_mut(job.id) {
            None if is_done => Cancel::NoEffect,
            None => Cancel::Unknown,
            Some(pending) if pending.is_queued() => Cancel::Queued,
            Some(pending) => pending.cancel_running().map_or(Cancel::NoEffect, Cancel::Running),
        }
    }
}

/// Asking for them.
impl<Q, R> Ledger<Q, R> {
    /// The job as its owner sees it.
    pub fn find(&self, job: &JobKey) -> Found<'_, Q, R> {
        let Some(jobs) = self.owners.get(&job.owner) else { return Found::Unknown };
        match jobs.done.get(job.id) {
            Some(done) => Found::Done(done),
            None => jobs.pending.get(job.id).map_or(Found::Unknown, Found::Pending),
        }
    }

    /// The status of a job; `None` if it does not exist.
    pub fn status(&self, job: &JobKey) -> Option<Status> {
        match self.find(job) {
            Found::Unknown => None,
            Found::Pending(pending) => Some(Status::Pending(pending.progress())),
            Found::Done(_) => Some(Status::Done),
        }
    }

    /// Moves a result into delivery, where there is one to be collected.
    pub fn deliver(&mut self, job: &JobKey) -> Option<&Done<R>> {
        let jobs = self.owners.get_mut(&job.owner)?;
        let done = jobs.done.take(job.id)?;
        jobs.in_delivery.put(job.id, done.finished, done);
        jobs.in_delivery.get(job.id)
    }

    /// Takes a result that was delivered off the shelf.
    pub fn confirm(&mut self, job: &JobKey) -> Option<Box<Done<R>>> {
        let jobs = self.owners.get_mut(&job.owner)?;
        let done = jobs.in_delivery.take(job.id)?;
        self.take_off(&job.owner, done.footprint);
        self.tidy(&job.owner);
        Some(done)
    }

    /// Puts a result whose delivery failed back.
    pub fn restore(&mut self, job: &JobKey) {
        let Some(jobs) = self.owners.get_mut(&job.owner) else { return };
        if let Some(done) = jobs.in_delivery.take(job.id) {
            jobs.done.put(job.id, done.finished, done);
        }
    }

    /// At most `count` ids of `owner`, ascending.
    pub fn list(&self, owner: &Owner, list: List, count: usize) -> Vec<JobId> {
        let Some(jobs) = self.owners.get(owner) else { return Vec::new() };
        match list {
            List::Pending => jobs.pending.ids().take(count).collect(),
            List::Done => jobs.done.ids().take(count).collect(),
        }
    }

    /// Every id of both lists, whoever owns it.
    pub fn ids(&self) -> Vec<JobId> {
        let shelves = self.owners.values();
        shelves.flat_map(|jobs| jobs.pending.ids().chain(jobs.done.ids())).collect()
    }
}

/// Forgetting them.
impl<Q, R> Ledger<Q, R> {
    /// Forgets a job; `None` if it does not exist.
    pub fn forget(&mut self, job: &JobKey) -> Option<Forgotten<R>> {
        let jobs = self.owners.get_mut(&job.owner)?;
        let forgotten = match jobs.done.take(job.id) {
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

    /// Forgets the idempotency keys of an owner's jobs, of those as well that are gone; returns them.
    /// Jobs that are not accepted yet keep theirs.
    pub fn forget_keys(&mut self, owner: &Owner) -> Vec<(Owner, Box<str>)> {
        let (forgotten, bytes) = self.keys.forget(owner, |id| self.keyed.contains(&id));
        self.stored -= bytes;
        forgotten
    }

    /// Forgets every job of an owner.
    pub fn forget_all(&mut self, owner: &Owner) -> Option<Cleared<R>> {
        let jobs = self.owners.remove(owner)?;
        self.stored -= jobs.result_bytes;
        let pending: Vec<JobId> = jobs.pending.ids().collect();
        for (id, record) in jobs.pending.into_records() {
            self.forget_pending(JobKey { owner: owner.clone(), id }, record);
        }
        Some(Cleared::new(pending, jobs.done, jobs.in_delivery))
    }

    /// Forgets the owner's pending jobs that are stamped before `before`: as many as the queue
    /// holds at the most, and nothing is freed.
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

    /// Forgets at most `BATCH` of the owner's results that are stamped before `before`.
    pub fn forget_batch(&mut self, owner: &Owner, before: Stamp, reach: Reach) -> Results<R> {
        let mut results = Vec::new();
        let Some(jobs) = self.owners.get_mut(owner) else { return results };
        while results.len() < BATCH
            && let Some(result) = jobs.take_result(before, reach)
        {
            results.push(result);
        }
        self.take_off(owner, results.iter().map(|(_, done)| done.footprint).sum());
        self.tidy(owner);
        results
    }

    /// Everybody who has jobs.
    pub fn owners(&self) -> Vec<Owner> {
        self.owners.keys().cloned().collect()
    }

    /// Forgets the keys of jobs that were accepted before `before` and are gone.
    pub fn expire_keys(&mut self, before: Stamp) -> Vec<(Owner, Box<str>)> {
        let Self { owners, unwanted, keys, .. } = self;
        let (expired, bytes) = keys.expire(before, |job| {
            let listed = owners.get(&job.owner).is_some_and(|jobs| jobs.has(job.id));
            listed || unwanted.contains_key(job)
        });
        self.stored -= bytes;
        expired
    }

    /// Removes the owner's shelves if nothing is on them.
    fn tidy(&mut self, owner: &Owner) {
        if self.owners.get(owner).is_some_and(Jobs::is_empty) {
            self.owners.remove(owner);
        }
    }

    /// Forgets a pending job: its record stays, unlisted, until it has run.
    fn forget_pending(&mut self, job: JobKey, record: Box<Pending<Q>>) {
        self.bell.notify(&job);
        self.unwanted.insert(job, record);
    }

    /// Takes removed results off the accounts.
    fn take_off(&mut self, owner: &Owner, bytes: usize) {
        self.stored -= bytes;
        if let Some(jobs) = self.owners.get_mut(owner) {
            jobs.result_bytes -= bytes;
        }
    }
}
