//! How jobs are finished: their result is decided, fits the accounts, and replaces their request; or they are
//! cancelled.
//!
//! Owns the transitions from pending to done. Invariant: a result is decided once, and always fits: if it does not, an
//! error that fits replaces it.

use std::sync::Arc;

use super::job::{Cancelled, DeliveryId, Done, LanePlace, Pending, Phase};
use super::{Finished, Ledger, Refused, Size};
use crate::job::execution::{Attempts, Execution};
use crate::job::outcome::Outcome;
use crate::job::stored::{StoredResponse, StoredResult, Summary};
use crate::job::{JobKey, Moment, RECORD, Stamp};

/// The outcome of cancelling a job.
pub enum Cancel {
    /// The job does not exist.
    Unknown,
    /// The job has its result, or the result is decided.
    NoEffect,
    /// The job runs: this is the handle to its handler.
    Running(Arc<Execution>),
    /// The job waits or is delayed: the caller must finish it.
    Waiting,
}

/// A job whose result is decided.
pub struct Finishing {
    /// The result.
    pub result: StoredResult,
    /// Whether the result is the error of a job that was cancelled while it ran.
    pub cancelled: Cancelled,
    /// When the job was accepted.
    pub created: Stamp,
    /// The attempts that were made.
    pub attempts: Attempts,
}

impl<Q, R> Ledger<Q, R> {
    /// Decides the result of a pending job: `response`, or `410` if it was cancelled in time. The job leaves the place
    /// where it waits or runs. Returns `None` if the job does not exist, or its result is already decided.
    pub fn begin_finish(&mut self, job: &JobKey, response: StoredResponse) -> Option<Finishing> {
        let mut place = LanePlace::None;
        match self.pending(job)?.phase {
            Phase::Running { place: taken, .. } => place = taken,
            _ => self.unschedule(job),
        }
        let pending = self.pending_mut(job).filter(|pending| !pending.is_finishing())?;
        let created = pending.created;
        let (result, cancelled) = pending.finish(response);
        let attempts = pending.attempts();
        self.release(place);
        Some(Finishing { result, cancelled, created, attempts })
    }

    /// Puts the result of a pending job on the accounts in place of its request; `memory` returns how much of it must
    /// be charged. Returns the result.
    ///
    /// # Errors
    /// The error that replaces a result that does not fit: room for it was reserved when the job was admitted.
    pub fn fit_result(
        &mut self,
        job: &JobKey,
        result: StoredResult,
        memory: impl Fn(&StoredResult) -> usize,
    ) -> Result<StoredResult, StoredResult> {
        let (line, room) = self.pending(job).map_or_else(<_>::default, |pending| {
            (pending.line.footprint(), pending.room_for_notices())
        });
        let size = |result: &StoredResult| Size {
            footprint: RECORD + line + result.footprint() + room.footprint,
            memory: line + memory(result) + room.memory,
        };
        let Err(refused) = self.fit(job, size(&result)) else { return Ok(result) };
        let error = result.without_room(&refused.of_result());
        let fits = self.fit(job, size(&error));
        debug_assert!(fits.is_ok(), "it was reserved");
        Err(error)
    }

    /// Replaces the accounted size of a pending job.
    ///
    /// # Errors
    /// [`Refused::Full`] or [`Refused::NoMemory`] if it does not fit; then nothing changes.
    fn fit(&mut self, job: &JobKey, size: Size) -> Result<(), Refused> {
        if self.stored.saturating_add(size.footprint) > self.room.capacity {
            let footprint = self.pending(job).map_or(0, |pending| pending.footprint);
            self.make_room(size.footprint.saturating_sub(footprint));
        }
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

    /// Finishes a pending job: replaces it by its result, which [fits](Self::fit_result), or removes it if it is
    /// unwanted.
    pub fn finish(&mut self, job: &JobKey, result: R, summary: Summary, now: Moment) -> Finished {
        if let Some(pending) = self.unwanted.remove(job) {
            self.count(&pending, summary.ending.outcome, now.stamp);
            self.stored -= pending.footprint;
            return Finished::Dropped;
        }
        let Some(jobs) = self.owners.get_mut(&job.owner) else { return Finished::Dropped };
        let Some(pending) = jobs.pending.take(job.id) else { return Finished::Dropped };
        self.count(&pending, summary.ending.outcome, now.stamp);
        let Some(jobs) = self.owners.get_mut(&job.owner) else { return Finished::Dropped };
        let attempts = pending.attempts();
        let Pending { created, footprint, charge, line, mut waiters, .. } = *pending;
        let delivery = DeliveryId::default();
        let Moment { stamp: finished, age } = now;
        let done = Done {
            created,
            finished,
            age,
            footprint,
            charge,
            line,
            attempts,
            summary,
            delivery,
            result,
        };
        jobs.insert_done(job.id, Box::new(done));
        jobs.result_bytes += footprint;
        self.wakes.waiters.append(&mut waiters);
        Finished::Kept
    }

    fn count(&mut self, pending: &Pending<Q>, outcome: Outcome, now: Stamp) {
        let Pending { route, created, .. } = *pending;
        self.tally.finish(route, outcome, created, pending.attempts(), now);
    }

    /// Cancels a job: marks a running one; the caller must finish a waiting one.
    pub fn cancel(&mut self, job: &JobKey) -> Cancel {
        let Some(jobs) = self.owners.get_mut(&job.owner) else { return Cancel::Unknown };
        let is_done = jobs.done.get(job.id).is_some();
        match jobs.pending.get_mut(job.id) {
            None if is_done => Cancel::NoEffect,
            None => Cancel::Unknown,
            Some(pending) => match pending.phase {
                Phase::Waiting { .. } | Phase::Delayed { .. } => Cancel::Waiting,
                _ => pending.cancel_running().map_or(Cancel::NoEffect, Cancel::Running),
            },
        }
    }
}
