//! The promise of a store, kept by an engine.
//!
//! Owns the mapping from the promise to the files that keep it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use http::Response;

use super::{Inner, SharedStore};
use crate::content::Content;
use crate::exchange::Owner;
use crate::job::attempt::{Attempt, Claimed};
use crate::job::execution::Stop;
use crate::job::log::{JobLog, LogEnd};
use crate::job::stored::StoredResponse;
use crate::job::{Age, JobId, JobKey, Moment, RouteIndex, Stamp};
use crate::ledger::schedule::Turn;
use crate::memory::Allowance;
use crate::store::{
    Accepted, DeliveryId, EngineStats, Filter, Finished, IdempotencyKey, JobRecord, List, Lookup,
    Page, Patience, Refused, Stats, Status, Store, StoreUnavailable, Submission, Tally,
};

impl Store for SharedStore {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn submit(&self, submission: Submission, now: Moment) -> Result<Accepted, Refused> {
        self.0.submit(submission, now)
    }

    fn stats(&self) -> Result<Stats, StoreUnavailable> {
        self.0.stats()
    }

    fn tally(&self) -> Tally {
        let errors = self.0.engine.errors();
        Tally { errors, ..self.0.lock().ledger.tally().clone() }
    }

    fn recall(&self, owner: &Owner, key: &IdempotencyKey) -> Result<Option<JobId>, Refused> {
        self.0.recall(owner, key)
    }

    fn check(&self, bytes: usize) -> Result<(), Refused> {
        self.0.check(bytes)
    }

    fn claim(&self, memory: &Allowance, patience: Patience) -> Option<Claimed> {
        self.0.claim(memory, patience)
    }

    fn retry(&self, job: &JobKey, attempt: Box<Attempt>, until: Instant, now: Moment) {
        self.0.retry(job, attempt, until, now);
    }

    fn redirect(&self, job: &JobKey, attempt: Box<Attempt>, now: Moment) {
        self.0.redirect(job, attempt, now);
    }

    fn overdue(&self, span: Duration) -> Vec<Claimed> {
        self.0.overdue(span)
    }

    fn finish(&self, job: &JobKey, response: Response<Content>, now: Moment) -> Finished {
        self.0.finish(job, response.into(), now)
    }

    fn keep_place(&self, job: &JobKey) -> Option<RouteIndex> {
        self.0.lock().ledger.keep_place(job)
    }

    fn give_up(&self, route: RouteIndex) {
        self.0.lock().ledger.give_up(route);
        self.0.bell.wake_worker();
    }

    fn enter_lane(&self, route: RouteIndex, wake: &Sender<()>) -> Result<(), Turn> {
        self.0.lock().ledger.enter_lane(route, wake)
    }

    fn leave_lane(&self, route: RouteIndex, turn: Option<Turn>) {
        self.0.lock().ledger.leave_lane(route, turn);
        self.0.bell.wake_worker();
    }

    fn wait(&self, job: &JobKey, span: Duration, is_over: &dyn Fn() -> bool) {
        self.0.wait(job, span, is_over);
    }

    fn status(&self, job: &JobKey) -> Result<Option<Status>, StoreUnavailable> {
        self.0.status(job)
    }

    fn log(&self, job: &JobKey) -> Result<Option<LogEnd>, StoreUnavailable> {
        self.0.log(job)
    }

    fn growing_log(&self, job: &JobKey) -> Option<Arc<JobLog>> {
        Some(self.0.lock().execution(job.id)?.growing_log())
    }

    fn peek(&self, job: &JobKey) -> Lookup {
        self.0.peek(job)
    }

    fn collect(&self, job: &JobKey) -> Lookup<(StoredResponse, DeliveryId)> {
        self.0.collect(job)
    }

    fn confirm(&self, job: &JobKey, delivery: DeliveryId, now: Moment) {
        self.0.confirm(job, delivery, now);
    }

    fn restore(&self, job: &JobKey, delivery: DeliveryId) {
        self.0.restore(job, delivery);
    }

    fn cancel(&self, job: &JobKey, now: Moment) -> Result<bool, StoreUnavailable> {
        self.0.cancel(job, now)
    }

    fn forget(&self, job: &JobKey) -> Result<bool, StoreUnavailable> {
        self.0.forget(job)
    }

    fn forget_all(&self, owner: &Owner) -> Result<(), StoreUnavailable> {
        self.0.forget_all(owner)
    }

    fn forget_before(&self, owner: &Owner, before: Stamp) -> Result<(), StoreUnavailable> {
        self.0.forget_before(owner, before)
    }

    fn expire(&self, before: Age) -> Result<usize, StoreUnavailable> {
        self.0.remove_old("results", before)
    }

    fn expire_logs(&self, before: Age) {
        if self.0.remove_old("logs", before).is_err() {
            log::debug!("store: logs expire later");
        }
    }

    fn list(
        &self,
        owner: &Owner,
        list: List,
        after: Option<JobId>,
        count: usize,
    ) -> Result<Vec<JobId>, StoreUnavailable> {
        self.0.list(owner, list, after, count)
    }

    fn record(&self, job: &JobKey) -> Result<Option<JobRecord>, StoreUnavailable> {
        self.0.record(job)
    }

    fn records(
        &self,
        owner: &Owner,
        filter: &Filter,
        after: Option<JobId>,
        count: usize,
    ) -> Result<Page, StoreUnavailable> {
        self.0.records(owner, filter, after, count)
    }

    fn is_idle(&self) -> bool {
        let local = self.0.lock();
        // A job that is on its way here is expected from the engine, unless the engine fails.
        local.is_empty() && (!local.is_asking() || self.0.engine.is_failing())
    }

    fn engine(&self) -> Option<EngineStats> {
        let Inner { engine, fenced, reaped, .. } = &*self.0;
        Some(EngineStats {
            is_up: !engine.is_failing(),
            latency: engine.latency(),
            fenced: fenced.load(Ordering::Relaxed),
            reaped: reaped.load(Ordering::Relaxed),
        })
    }

    fn flush(&self) -> Result<(), StoreUnavailable> {
        if self.0.untold.wait(None) { Ok(()) } else { Err(StoreUnavailable) }
    }

    fn drain(&self) {
        let mut local = self.0.lock();
        local.is_draining = true;
        local.ledger.drain();
        drop(local);
        self.0.put_back_waiting();
    }

    fn stop(&self, stop: Stop) {
        self.0.lock().ledger.stop(stop);
        self.0.bell.ring_all();
    }

    fn close(&self) -> Vec<JobId> {
        self.0.close();
        Vec::new()
    }
}
