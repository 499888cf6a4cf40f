//! How jobs are looked up, and their results collected.
//!
//! Owns the transitions of a result into delivery, and from there back or out. Invariant: a result in delivery is
//! confirmed or restored only by its current delivery.

use std::sync::Arc;

use super::job::{DeliveryId, Done, Pending};
use super::logs::LogIs;
use super::records::Order;
use super::waiters::Waiter;
use super::{Ledger, List, Status};
use crate::exchange::Owner;
use crate::job::log::JobLog;
use crate::job::{Age, JobId, JobKey};

/// The outcome of looking up a job.
pub enum Found<'a, Q, R> {
    /// The job does not exist.
    Unknown,
    /// It has no result yet.
    Pending(&'a Pending<Q>),
    /// It has a result.
    Done(&'a Done<R>),
}

impl<Q, R> Ledger<Q, R> {
    /// Returns the job as its owner sees it.
    pub fn find(&self, job: &JobKey) -> Found<'_, Q, R> {
        let Some(jobs) = self.owners.get(&job.owner) else { return Found::Unknown };
        match jobs.done.get(job.id) {
            Some(done) => Found::Done(done),
            None => jobs.pending.get(job.id).map_or(Found::Unknown, Found::Pending),
        }
    }

    /// Returns the job whose log is requested. If the log outlives the result, the job is also found while its result
    /// is in delivery.
    pub fn find_log(&self, job: &JobKey) -> Found<'_, Q, R> {
        match self.find(job) {
            Found::Unknown => {
                let jobs = self.owners.get(&job.owner);
                let done = jobs.and_then(|jobs| jobs.in_delivery.get(job.id));
                done.filter(|done| self.outlives(done)).map_or(Found::Unknown, Found::Done)
            }
            found => found,
        }
    }

    /// Returns the status of a job; `None` if it does not exist.
    pub fn status(&self, job: &JobKey) -> Option<Status> {
        match self.find(job) {
            Found::Unknown => None,
            Found::Pending(pending) => Some(Status::Pending(pending.state(), pending.progress())),
            Found::Done(done) => Some(Status::Done(done.summary.ending)),
        }
    }

    /// Moves a result into delivery, if there is one to collect; its delivery then has a new id.
    pub fn collect(&mut self, job: &JobKey) -> Option<&Done<R>> {
        let jobs = self.owners.get_mut(&job.owner)?;
        let mut done = jobs.take_done(job.id)?;
        self.deliveries += 1;
        done.delivery = DeliveryId(self.deliveries);
        jobs.in_delivery.insert(job.id, done.finished, done);
        jobs.in_delivery.get(job.id)
    }

    /// Removes a result that was delivered; does nothing if it is not in this delivery. Its log is kept for a while:
    /// `text` has it, unless it is on disk. Returns whether there is a log to keep.
    pub fn confirm(
        &mut self,
        job: &JobKey,
        delivery: DeliveryId,
        now: Age,
        text: impl FnOnce(&mut R) -> Option<Box<[u8]>>,
    ) -> Option<(Box<Done<R>>, LogIs)> {
        let mut done = self.end_delivery(job, delivery)?;
        self.take_off(&job.owner, done.footprint);
        let text = text(&mut done.result);
        let log = self.keep_log(job, &mut done, now, text);
        self.tidy(&job.owner);
        Some((done, log))
    }

    /// Restores a result whose delivery failed; does nothing if it is not in this delivery.
    pub fn restore(&mut self, job: &JobKey, delivery: DeliveryId) {
        let Some(done) = self.end_delivery(job, delivery) else { return };
        if let Some(jobs) = self.owners.get_mut(&job.owner) {
            jobs.insert_done(job.id, done);
        }
    }

    fn end_delivery(&mut self, job: &JobKey, delivery: DeliveryId) -> Option<Box<Done<R>>> {
        let jobs = self.owners.get_mut(&job.owner)?;
        let is_this = jobs.in_delivery.get(job.id)?.delivery == delivery;
        if is_this { jobs.in_delivery.take(job.id) } else { None }
    }

    /// Returns a result for changing, whether it is in delivery or not.
    pub fn result_mut(&mut self, job: &JobKey) -> Option<&mut R> {
        let jobs = self.owners.get_mut(&job.owner)?;
        let done = jobs.done.get_mut(job.id).or_else(|| jobs.in_delivery.get_mut(job.id))?;
        Some(&mut done.result)
    }

    /// Returns the log of a pending job that has begun, to be followed while it grows.
    pub fn growing_log(&self, job: &JobKey) -> Option<Arc<JobLog>> {
        self.owners.get(&job.owner)?.pending.get(job.id)?.growing_log()
    }

    /// Registers this thread to be notified when the job is done or gone; `None` if the job is not pending, or deferd
    /// is shutting down.
    pub fn watch(&mut self, job: &JobKey) -> Option<Arc<Waiter>> {
        if self.stopped.is_some() {
            return None;
        }
        let pending = self.owners.get_mut(&job.owner)?.pending.get_mut(job.id)?;
        let waiter = Arc::new(Waiter::current());
        pending.waiters.push(Arc::clone(&waiter));
        Some(waiter)
    }

    /// Cancels the notification of a thread.
    pub fn unwatch(&mut self, job: &JobKey, waiter: &Arc<Waiter>) {
        let jobs = self.owners.get_mut(&job.owner);
        if let Some(pending) = jobs.and_then(|jobs| jobs.pending.get_mut(job.id)) {
            pending.waiters.retain(|other| !Arc::ptr_eq(other, waiter));
        }
    }

    /// Returns at most `count` ids of `owner` above `after`, ascending.
    pub fn list(
        &self,
        owner: &Owner,
        list: List,
        after: Option<JobId>,
        count: usize,
    ) -> Vec<JobId> {
        let Some(jobs) = self.owners.get(owner) else { return Vec::new() };
        match list {
            List::Pending => jobs.pending.ids_behind(after, Order::Ascending).take(count).collect(),
            List::Done => jobs.done.ids_behind(after, Order::Ascending).take(count).collect(),
        }
    }

    /// Returns the ids of all jobs, of all owners.
    pub fn ids(&self) -> Vec<JobId> {
        let shelves = self.owners.values();
        shelves.flat_map(|jobs| jobs.pending.ids().chain(jobs.done.ids())).collect()
    }
}
