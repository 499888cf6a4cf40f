//! How jobs are accepted: admitted to the accounts, given an id, and put into the schedule.
//!
//! Owns the checks of capacity, and the order of ids. Invariant: a refused submission leaves nothing on the accounts;
//! a place in the queue, bytes, record and schedule are taken under one hold of the lock, or, if the store makes a job
//! durable in between, given back by [`Ledger::withdraw`].

use super::job::{Done, Pending, Phase};
use super::{IdempotencyKey, Ledger, Refused};
use crate::exchange::Owner;
use crate::job::request_line::RequestLine;
use crate::job::{Age, JobId, JobKey, Keep, RECORD, Rerun, RouteIndex, Stamp};
use crate::memory::Charge;

/// The divisor of the capacity that bounds the keys: they take at most a quarter.
const PART_OF_KEYS: usize = 4;

/// The size of a submission, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Size {
    /// Its whole accounted size.
    pub footprint: usize,
    /// The part of it that is memory and not charged by the content itself.
    pub memory: usize,
}

/// The charges of an admitted submission.
pub struct Admitted {
    /// For its record.
    pub record: Charge,
    /// For its idempotency key.
    pub key: Option<Charge>,
}

impl<Q, R> Ledger<Q, R> {
    /// Checks whether a submission of this many bytes would fit and leave the reserve free.
    ///
    /// # Errors
    /// [`Refused::Full`] or [`Refused::QueueFull`]; [`Refused::TooLarge`] if it can never fit.
    pub const fn check(&self, bytes: usize) -> Result<(), Refused> {
        let bytes = bytes.saturating_add(self.room.reserve);
        if bytes > self.room.capacity {
            return Err(Refused::TooLarge);
        }
        if (self.stored - self.log_bytes).saturating_add(bytes) > self.room.capacity {
            return Err(Refused::Full);
        }
        if self.queue_len() >= self.plan.queue {
            return Err(Refused::QueueFull);
        }
        Ok(())
    }

    /// Returns how many places of the queue are taken.
    pub const fn queue_len(&self) -> usize {
        self.admitted + self.schedule.queue_len()
    }

    /// Puts a submission, and its key, on the accounts before it is accepted.
    ///
    /// # Errors
    /// [`Refused`]; then the accounts do not change.
    pub fn admit(&mut self, size: Size, key: Option<&IdempotencyKey>) -> Result<Admitted, Refused> {
        let key_size = key.map_or(0, IdempotencyKey::footprint);
        let most = self.room.capacity / PART_OF_KEYS;
        if key.is_some() && self.keys.bytes() + key_size > most {
            return Err(Refused::ManyKeys);
        }
        self.check(size.footprint.saturating_add(key_size))?;
        self.make_room(size.footprint + key_size + self.room.reserve);
        let charge = |bytes| self.room.memory.charge(bytes).map_err(|_| Refused::NoMemory);
        let admitted = Admitted {
            record: charge(size.memory)?,
            key: key.map(|_| charge(key_size)).transpose()?,
        };
        self.stored += size.footprint + key_size;
        self.admitted += 1;
        Ok(admitted)
    }

    /// Takes an admitted, not yet accepted submission off the accounts, and its key, unless that was already removed.
    pub fn withdraw(&mut self, job: &JobKey, footprint: usize, key: Option<&IdempotencyKey>) {
        self.stored -= footprint;
        self.admitted -= 1;
        self.keyed.remove(&job.id);
        if let Some(key) = key {
            self.stored -= self.keys.take(&job.owner, &key.key);
        }
    }

    /// Returns the job that was accepted under this key.
    ///
    /// # Errors
    /// [`Refused::KeyReused`].
    pub fn recall(&self, owner: &Owner, key: &IdempotencyKey) -> Result<Option<JobId>, Refused> {
        self.keys.get(owner, key)
    }

    /// Assigns the next id.
    pub fn next_id(&mut self, now: Stamp) -> JobId {
        let id = JobId::next(self.last, now);
        self.last = Some(id);
        id
    }

    /// Returns the last id that was assigned.
    pub const fn last_id(&self) -> Option<JobId> {
        self.last
    }

    /// Accepts an admitted job: it waits in the lane of its route from now on.
    pub fn accept(&mut self, job: &JobKey, pending: Box<Pending<Q>>, keep: Keep) {
        self.admitted -= 1;
        self.keyed.remove(&job.id);
        self.tally.submit(pending.route);
        self.enter(job, pending, keep);
    }

    /// Accepts a job that a store read at start, even if it exceeds the capacity.
    pub fn found_pending(&mut self, job: &JobKey, pending: Box<Pending<Q>>, keep: Keep) {
        self.stored += pending.footprint;
        self.enter(job, pending, keep);
    }

    pub(super) fn enter(&mut self, job: &JobKey, pending: Box<Pending<Q>>, keep: Keep) {
        if let Phase::Waiting { route, work } = &pending.phase
            && !self.is_draining
            && self.stopped.is_none()
        {
            let (route, expiry) = (*route, work.expiry());
            self.schedule().push(route, job, expiry);
        }
        match keep {
            Keep::Result => {
                let jobs = self.owners.entry(job.owner.clone()).or_default();
                jobs.pending.insert(job.id, pending.created, pending);
            }
            Keep::Nothing => self.forget_pending(job.clone(), pending),
        }
    }

    /// Takes over a result that a store read at start, even if it exceeds the capacity.
    pub fn found_result(&mut self, job: JobKey, done: Box<Done<R>>) {
        self.stored += done.footprint;
        let jobs = self.owners.entry(job.owner).or_default();
        jobs.result_bytes += done.footprint;
        jobs.insert_done(job.id, done);
    }

    /// Returns the charge for a record that a store read at start, and for the notices that its job owes.
    pub fn found_record(&self, line: &RequestLine, notices: usize) -> Charge {
        self.room.memory.charge_found(RECORD + line.footprint() + notices)
    }

    /// Returns whether the jobs of a route, or of a lane of notices, run again after a crash.
    pub fn rerun(&self, route: RouteIndex) -> Rerun {
        self.plan.lanes[route.0].rerun
    }

    /// Takes over a key that a store read at start.
    pub fn found_key(&mut self, job: &JobKey, key: &IdempotencyKey, accepted: Age) {
        let size = key.footprint();
        self.stored += size;
        self.keys.insert(job, key, accepted, self.room.memory.charge_found(size));
    }

    /// Records an admitted key, before its job is accepted.
    pub fn insert_key(
        &mut self,
        job: &JobKey,
        key: &IdempotencyKey,
        accepted: Age,
        charge: Option<Charge>,
    ) {
        if let Some(charge) = charge {
            self.keyed.insert(job.id);
            self.keys.insert(job, key, accepted, charge);
        }
    }
}
