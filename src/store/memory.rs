//! The volatile store: a ledger under a mutex, which holds requests and results.
//!
//! Owns every job in memory. Does no I/O and calls no handler. Invariant: the memory of many jobs is
//! freed after the lock is released.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use http::Response;

use super::{
    Accepted, DeliveryId, Filter, Finished, IdempotencyKey, JobRecord, List, Lookup, Page,
    Patience, Plan, Refused, Room, Stats, Status, Store, StoreUnavailable, Submission, Tally,
};
use crate::content::Content;
use crate::error::Error;
use crate::exchange::{Call, Owner};
use crate::job::attempt::{Attempt, Claimed};
use crate::job::execution::Stop;
use crate::job::log::{JobLog, LogEnd};
use crate::job::stored::{StoredResponse, StoredResult};
use crate::job::{Age, ERROR_ROOM, JobId, JobKey, Moment, RECORD, RouteIndex, Stamp};
use crate::ledger::job::{Cancelled, Pending};
use crate::ledger::locked::{Dispatch, Locked};
use crate::ledger::schedule::Turn;
use crate::ledger::{
    BATCH, Cancel, Forgotten, Found, InMemory, KeptLog, Ledger, Notice, Reach, Size,
};
use crate::memory::Allowance;

/// Jobs in memory, lost when the process ends.
pub struct MemoryStore {
    ledger: Mutex<MemoryLedger>,
    dispatch: Dispatch,
    memory: Allowance,
}

type MemoryLedger = Ledger<Box<Call>, StoredResult>;

impl MemoryStore {
    /// Returns an empty store.
    pub fn new(room: Room, plan: Plan) -> Self {
        let memory = room.memory.clone();
        let ledger = Mutex::new(Ledger::new(room, plan, None));
        Self { ledger, dispatch: Dispatch::default(), memory }
    }

    fn lock(&self) -> Locked<'_, MemoryLedger> {
        self.dispatch.lock(&self.ledger)
    }

    /// Forgets at most [`BATCH`] of the owner's results within reach; returns how many.
    fn forget_batch(&self, owner: &Owner, reach: Reach) -> usize {
        // A `let`, so that the lock is released before the batch is dropped.
        let batch = self.lock().forget_batch(owner, reach);
        batch.len()
    }
}

/// Finishes a job: its result is `response`, or `410` if it was cancelled in time.
fn finish(
    ledger: &mut MemoryLedger,
    job: &JobKey,
    response: StoredResponse,
    now: Moment,
) -> Finished {
    let Some(finishing) = ledger.begin_finish(job, response) else { return Finished::Dropped };
    let fitted = if ledger.is_unwanted(job) {
        Ok(finishing.result)
    } else {
        ledger.fit_result(job, finishing.result, |result| RECORD + result.uncharged())
    };
    let is_kept = fitted.is_ok() && finishing.cancelled == Cancelled::No;
    let result = fitted.unwrap_or_else(|error| error);
    let summary = result.summary();
    let notices = ledger.take_notices(job, &result, summary, now, InMemory::All);
    let finished = ledger.finish(job, result, summary, now);
    for Notice { job, route, call, line, size, charge, .. } in notices {
        let call = Box::new(call);
        let pending = Pending::waiting(route, call, line, size.footprint, charge, now.stamp);
        ledger.accept_notice(&job, Box::new(pending));
    }
    if is_kept { finished } else { Finished::Dropped }
}

impl Store for MemoryStore {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn submit(&self, submission: Submission, now: Moment) -> Result<Accepted, Refused> {
        let Submission { call, route, line, keep, key, callback } = submission;
        let owner = call.owner.clone();
        let footprint = RECORD + line.footprint() + ERROR_ROOM + call.footprint();
        let memory = footprint - call.request.body().charged();
        let call = Box::new(call);
        let mut ledger = self.lock();
        if let Some(key) = &key
            && let Some(id) = ledger.recall(&owner, key)?
        {
            return Ok(Accepted::Known(id));
        }
        let owed = ledger.owed(Some(route), callback, (&line, &owner), InMemory::All);
        let room = owed.as_ref().map_or(Size::default(), |owed| owed.room);
        let footprint = footprint + room.footprint;
        let size = Size { footprint, memory: memory + room.memory };
        let admitted = ledger.admit(size, key.as_ref())?;
        let job = JobKey { owner, id: ledger.next_id(now.stamp) };
        if let Some(key) = &key {
            ledger.insert_key(&job, key, now.age, admitted.key);
        }
        let id = job.id;
        let pending = Pending::waiting(route, call, line, footprint, admitted.record, now.stamp);
        ledger.accept(&job, Box::new(pending.owing(owed)), keep);
        Ok(Accepted::New(id))
    }

    fn stats(&self) -> Result<Stats, StoreUnavailable> {
        Ok(self.lock().stats())
    }

    fn is_idle(&self) -> bool {
        self.lock().is_idle()
    }

    fn tally(&self) -> Tally {
        self.lock().tally().clone()
    }

    fn recall(&self, owner: &Owner, key: &IdempotencyKey) -> Result<Option<JobId>, Refused> {
        self.lock().recall(owner, key)
    }

    fn check(&self, bytes: usize) -> Result<(), Refused> {
        self.lock().check(bytes.saturating_add(RECORD + ERROR_ROOM))
    }

    fn claim(&self, memory: &Allowance, patience: Patience) -> Option<Claimed> {
        let budget = self.memory.budget();
        let taken = self
            .dispatch
            .claim(&self.ledger, budget, patience, |ledger| ledger.claim(memory, patience))?;
        Some(taken.claimed())
    }

    fn retry(&self, job: &JobKey, attempt: Box<Attempt>, until: Instant, now: Moment) {
        let refused = self.lock().retry(job, attempt, until);
        if refused.is_err() {
            self.finish(job, Error::Cancelled.response(), now);
        }
    }

    fn redirect(&self, job: &JobKey, attempt: Box<Attempt>, now: Moment) {
        let refused = self.lock().redirect(job, attempt);
        if refused.is_err() {
            self.finish(job, Error::Cancelled.response(), now);
        }
    }

    fn overdue(&self, span: Duration) -> Vec<Claimed> {
        self.dispatch.overdue(&self.ledger, span, |ledger, now| ledger.overdue(now))
    }

    fn finish(&self, job: &JobKey, response: Response<Content>, now: Moment) -> Finished {
        // Converted before the lock is taken.
        let response = response.into();
        finish(&mut self.lock(), job, response, now)
    }

    fn keep_place(&self, job: &JobKey) -> Option<RouteIndex> {
        self.lock().keep_place(job)
    }

    fn give_up(&self, route: RouteIndex) {
        self.lock().give_up(route);
    }

    fn enter_lane(&self, route: RouteIndex, wake: &Sender<()>) -> Result<(), Turn> {
        self.lock().enter_lane(route, wake)
    }

    fn leave_lane(&self, route: RouteIndex, turn: Option<Turn>) {
        self.lock().leave_lane(route, turn);
    }

    fn wait(&self, job: &JobKey, span: Duration, is_over: &dyn Fn() -> bool) {
        let Some(waiter) = self.lock().watch(job) else { return };
        waiter.wait(span, is_over);
        if !waiter.is_notified() {
            self.lock().unwatch(job, &waiter);
        }
    }

    fn status(&self, job: &JobKey) -> Result<Option<Status>, StoreUnavailable> {
        Ok(self.lock().status(job))
    }

    fn log(&self, job: &JobKey) -> Result<Option<LogEnd>, StoreUnavailable> {
        let ledger = self.lock();
        Ok(match ledger.find_log(job) {
            Found::Unknown => ledger.kept_log(job).and_then(KeptLog::end),
            Found::Pending(pending) => Some(pending.log()),
            Found::Done(done) => Some(done.result.log.clone()),
        })
    }

    fn growing_log(&self, job: &JobKey) -> Option<Arc<JobLog>> {
        self.lock().growing_log(job)
    }

    fn peek(&self, job: &JobKey) -> Lookup {
        match self.lock().find(job) {
            Found::Unknown => Lookup::Unknown,
            Found::Pending(_) => Lookup::Pending,
            Found::Done(done) => Lookup::Done(done.result.response.clone()),
        }
    }

    fn collect(&self, job: &JobKey) -> Lookup<(StoredResponse, DeliveryId)> {
        let mut ledger = self.lock();
        if let Some(done) = ledger.collect(job) {
            return Lookup::Done((done.result.response.clone(), done.delivery));
        }
        match ledger.find(job) {
            Found::Pending(_) => Lookup::Pending,
            Found::Unknown | Found::Done(_) => Lookup::Unknown,
        }
    }

    fn confirm(&self, job: &JobKey, delivery: DeliveryId, now: Moment) {
        let text = |result: &mut StoredResult| Some(std::mem::take(&mut result.log.text));
        // A `let`, so that the lock is released before the result is dropped.
        let delivered = self.lock().confirm(job, delivery, now.age, text);
        drop(delivered);
    }

    fn restore(&self, job: &JobKey, delivery: DeliveryId) {
        self.lock().restore(job, delivery);
    }

    fn cancel(&self, job: &JobKey, now: Moment) -> Result<bool, StoreUnavailable> {
        let mut ledger = self.lock();
        match ledger.cancel(job) {
            Cancel::Unknown => return Ok(false),
            Cancel::NoEffect => {}
            Cancel::Running(execution) => {
                drop(ledger);
                execution.stop(Stop::Cancel);
            }
            Cancel::Waiting => {
                finish(&mut ledger, job, Error::Cancelled.response().into(), now);
            }
        }
        Ok(true)
    }

    fn forget(&self, job: &JobKey) -> Result<bool, StoreUnavailable> {
        let forgotten = self.lock().forget(job);
        Ok(match forgotten {
            None => false,
            Some(Forgotten::Pending | Forgotten::Result(_)) => true,
        })
    }

    fn forget_all(&self, owner: &Owner) -> Result<(), StoreUnavailable> {
        let mut ledger = self.lock();
        let (cleared, keys) = (ledger.forget_all(owner), ledger.forget_keys(owner));
        drop(ledger);
        drop((cleared, keys));
        Ok(())
    }

    fn forget_before(&self, owner: &Owner, before: Stamp) -> Result<(), StoreUnavailable> {
        self.lock().forget_pending_before(owner, before);
        while self.forget_batch(owner, Reach::Stamped(before)) > 0 {}
        Ok(())
    }

    fn expire_logs(&self, before: Age) {
        while self.lock().expire_logs(before) {}
    }

    fn expire(&self, before: Age) -> Result<usize, StoreUnavailable> {
        let owners = self.lock().owners();
        let mut count = 0;
        for owner in owners {
            count += self.forget_batch(&owner, Reach::Expired(before));
            if count >= BATCH {
                return Ok(count);
            }
        }
        loop {
            let keys = self.lock().expire_keys(before);
            if keys.is_last {
                return Ok(count);
            }
        }
    }

    fn list(
        &self,
        owner: &Owner,
        list: List,
        after: Option<JobId>,
        count: usize,
    ) -> Result<Vec<JobId>, StoreUnavailable> {
        Ok(self.lock().list(owner, list, after, count))
    }

    fn record(&self, job: &JobKey) -> Result<Option<JobRecord>, StoreUnavailable> {
        Ok(self.lock().record(job))
    }

    fn records(
        &self,
        owner: &Owner,
        filter: &Filter,
        after: Option<JobId>,
        count: usize,
    ) -> Result<Page, StoreUnavailable> {
        Ok(Page::collect(filter, after, count, |step| self.lock().step(owner, step)))
    }

    fn flush(&self) -> Result<(), StoreUnavailable> {
        Ok(())
    }

    fn drain(&self) {
        self.lock().drain_notices();
    }

    fn stop(&self, stop: Stop) {
        self.lock().stop(stop);
    }

    fn close(&self) -> Vec<JobId> {
        let ledger = self.lock();
        let lost = ledger.undelivered();
        if lost > 0 {
            log::warn!(
                "lost with the memory store: {lost} notices (on-done, on-failure, callbacks) were not delivered"
            );
        }
        ledger.ids()
    }
}
