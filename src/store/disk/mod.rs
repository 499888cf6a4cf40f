//! The durable store: the ledger in memory, requests and results in one file, one writer.
//!
//! Owns which operations wait for a commit. Submissions, cancellations and deletions wait for the commit that makes
//! them durable, and so do starts; results are passed to the writer, and the job is done once its result is durable;
//! collecting and reading never wait for a commit. A relaxed store waits only for the start of a job that runs again
//! after a crash. `tables` and `record` decide what is kept and in what form, `writer` when it is written, `engine`
//! and `open` where. Invariant: what this store has acknowledged still holds after a crash, or, if it is relaxed, what
//! it acknowledged more than 50 ms before; what it has not acknowledged may hold or not.

mod engine;
mod loads;
mod open;
mod order;
mod outcome;
mod reading;
pub(in crate::store) mod record;
mod state;
mod submit;
mod tables;
mod transaction;
mod writer;

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use http::Response;
use redb::StorageBackend;

use self::engine::dirty::DirtyRanges;
use self::loads::Loads;
use self::order::{Change, Urgency};
use self::reading::opened;
use self::record::{Record, Stage};
use self::state::{Place, Shared, State};
use self::submit::{Prepared, Submitted};
use self::tables::{TableError, Tables};
use self::writer::Writer;
use super::{
    Accepted, DeliveryId, Filter, Finished, IdempotencyKey, JobRecord, List, Lookup, Page,
    Patience, Plan, Refused, Room, Stats, Status, Store, StoreUnavailable, Submission, Tally,
};
use crate::clock::{self, Scale};
pub use crate::config::Durability;
use crate::content::Content;
use crate::error::Error;
use crate::exchange::Owner;
use crate::files::Files;
use crate::job::attempt::{Attempt, Claimed};
use crate::job::execution::Stop;
use crate::job::log::{JobLog, LogEnd};
use crate::job::request_line::RequestLine;
use crate::job::stored::{StoredResponse, StoredResult};
use crate::job::{Age, ERROR_ROOM, JobId, JobKey, Moment, RECORD, RouteIndex, Stamp};
use crate::ledger::schedule::Turn;
use crate::ledger::{BATCH, Cancel, Expired, Forgotten, Found, LogIs, Reach};
use crate::memory::Allowance;

pub use self::open::{Directory, Recovered};

/// How long a disk that failed is left alone.
const REST: Duration = Duration::from_secs(1);
/// How long the shutdown waits for a disk that fails.
const CLOSE_TIME: Duration = Duration::from_secs(5);

/// Jobs on disk.
pub struct DiskStore {
    shared: Arc<Shared>,
    loads: Loads,
    memory: Allowance,
    durability: Durability,
    /// How long a disk that failed is left alone.
    rest: Duration,
    /// The accepted jobs that are not durable, which the writer sends at its end.
    lost: Receiver<Vec<JobId>>,
    /// Held while the store is open; `None` if the store is not in a directory.
    _directory: Option<Directory>,
}

type Open = Box<dyn Fn() -> Result<Tables, TableError> + Send + Sync>;

/// Finds the route of a path.
pub type Find<'a> = &'a dyn Fn(&str) -> Result<RouteIndex, Error>;

impl DiskStore {
    /// Opens the store in a directory. Jobs that are not done wait, in the order of their ids, in the lanes of the
    /// routes that `find` returns for their paths; jobs that were running when the process ended are done with `500`,
    /// unless their routes run them again.
    ///
    /// # Errors
    /// What is wrong with the directory, and what to do, in words.
    pub fn open(
        directory: Directory,
        room: Room,
        plan: Plan,
        durability: Durability,
        find: Find,
    ) -> Result<(Self, Recovered), String> {
        let folder = directory.folder();
        let opened = Self::over(directory.file()?, folder, room, plan, durability, find, REST);
        let (mut store, recovered) = opened.map_err(|error| directory.refusal(&error))?;
        store._directory = Some(directory);
        Ok((store, recovered))
    }

    /// Opens the store over any storage that can be opened repeatedly, and a folder for large content. After a
    /// failure, the storage is left alone for `rest` before the next attempt.
    ///
    /// # Errors
    /// What is wrong with the storage, in words.
    pub fn with_backend<B: StorageBackend + Clone>(
        backend: B,
        folder: Arc<dyn Files>,
        room: Room,
        plan: Plan,
        durability: Durability,
        find: Find,
        rest: Duration,
    ) -> Result<(Self, Recovered), String> {
        let is_empty = backend.len().map(|len| len == 0).map_err(|error| error.to_string())?;
        let made = if is_empty { Tables::make(backend.clone()) } else { Ok(()) };
        let opened =
            made.and_then(|()| Self::over(backend, folder, room, plan, durability, find, rest));
        opened.map_err(|error| error.to_string())
    }

    fn over<B: StorageBackend + Clone>(
        backend: B,
        folder: Arc<dyn Files>,
        room: Room,
        plan: Plan,
        durability: Durability,
        find: Find,
        rest: Duration,
    ) -> Result<(Self, Recovered), TableError> {
        let storage = DirtyRanges::new(backend);
        let open: Open = Box::new(move || Tables::open(storage.clone()));
        let tables = open()?;
        let memory = room.memory.clone();
        let mut contents = tables.contents()?;
        let files = std::mem::take(&mut contents.files);
        let scale = Arc::new(Scale::after(contents.reading.as_ref(), plan.ttl));
        let (ledger, recovered, failed) = open::ledger(contents, &scale, room, plan, find);
        tables.commit_overlay()?;
        open::sweep(&*folder, &files);
        let (orders, received) = unbounded();
        let urgency = match durability {
            Durability::Commit => Urgency::Urgent,
            Durability::Relaxed => Urgency::Lazy,
        };
        let shared = Shared::new(State::new(ledger, scale, orders, urgency), tables, open, folder);
        let (last_word, lost) = bounded(1);
        let writer = Writer::new(Arc::clone(&shared), received, durability, rest, last_word);
        thread::Builder::new().name("writer".into()).spawn(move || writer.run())?;
        let loads = Loads::new(memory.budget().allowance());
        let store = Self { shared, loads, memory, durability, rest, lost, _directory: None };
        for (job, error) in failed {
            store.finish(&job, error.response(), clock::now());
        }
        Ok((store, recovered))
    }

    /// Forgets at most [`BATCH`] of the owner's results within reach; returns how many.
    fn forget_batch(&self, owner: &Owner, reach: Reach) -> usize {
        let mut state = self.shared.lock();
        let batch = state.ledger.forget_batch(owner, reach);
        if !batch.is_empty() {
            state.put_off(Change::Remove(batch.iter().map(|(id, _)| *id).collect()));
        }
        // The lock is released before the batch is dropped.
        drop(state);
        batch.len()
    }

    /// Waits until all earlier changes are durable, or only those that `change` waits for, unless the store is
    /// relaxed.
    fn flushed(&self, change: Change) -> Result<(), StoreUnavailable> {
        match self.durability {
            Durability::Commit => self.shared.ask(change).wait(),
            Durability::Relaxed => Ok(()),
        }
    }
}

impl Store for DiskStore {
    fn name(&self) -> &'static str {
        "disk"
    }

    fn submit(&self, submission: Submission, now: Moment) -> Result<Accepted, Refused> {
        // If the submission is refused, its file is removed, which must not happen under the lock.
        let content = submission.call.request.body();
        let _file = content.in_file().map(|(file, _)| Arc::clone(file));
        content.sync().map_err(|error| {
            log::warn!("a request is refused, its content cannot be made durable: {error}");
            Refused::Unavailable
        })?;
        let mut prepared = Prepared::new(submission, now);
        loop {
            match self.submit_prepared(prepared)? {
                Submitted::New(id, None) => return Ok(Accepted::New(id)),
                Submitted::New(id, Some(outcome)) => {
                    outcome.wait().map_err(|StoreUnavailable| Refused::Unavailable)?;
                    return Ok(Accepted::New(id));
                }
                Submitted::Known(id, in_doubt, again) => {
                    let (owner, key) = (&again.record.owner, again.submission_key.as_ref());
                    let resolved =
                        key.map(|key| self.resolve(owner, key, id, in_doubt)).transpose()?;
                    if let Some(id) = resolved.flatten() {
                        return Ok(Accepted::Known(id));
                    }
                    prepared = *again;
                }
            }
        }
    }

    fn recall(&self, owner: &Owner, key: &IdempotencyKey) -> Result<Option<JobId>, Refused> {
        loop {
            let known = self.known(&self.shared.lock(), owner, key)?;
            let Some((id, in_doubt)) = known else { return Ok(None) };
            if let Some(id) = self.resolve(owner, key, id, in_doubt)? {
                return Ok(Some(id));
            }
        }
    }

    fn check(&self, bytes: usize) -> Result<(), Refused> {
        if self.shared.is_failing() {
            return Err(Refused::Unavailable);
        }
        self.shared.lock().ledger.check(bytes.saturating_add(RECORD + ERROR_ROOM))
    }

    fn stats(&self) -> Result<Stats, StoreUnavailable> {
        Ok(self.shared.lock().ledger.stats())
    }

    fn is_idle(&self) -> bool {
        self.shared.lock().ledger.is_idle()
    }

    fn tally(&self) -> Tally {
        let errors = self.shared.errors();
        Tally { errors, ..self.shared.lock().ledger.tally().clone() }
    }

    fn claim(&self, memory: &Allowance, patience: Patience) -> Option<Claimed> {
        let Shared { state, dispatch, .. } = &*self.shared;
        loop {
            let budget = self.memory.budget();
            let (taken, recorded) = dispatch.claim(state, budget, patience, |state| {
                let next = state.ledger.claim(memory, patience);
                next.map(|taken| {
                    let recorded = state.claim(&taken);
                    (taken, recorded)
                })
            })?;
            if recorded.is_some_and(|recorded| recorded.wait().is_err()) {
                // The store was closed first: on disk, the job still waits.
                return None;
            }
            if let Some(taken) = self.load(taken) {
                return Some(taken.claimed());
            }
        }
    }

    fn retry(&self, job: &JobKey, attempt: Box<Attempt>, until: Instant, now: Moment) {
        attempt.call.request.body().close();
        // On disk, a redirected job stays running: what led to the redirect has had its effects.
        let is_redirected = attempt.redirected.is_some();
        let mut state = self.shared.lock();
        let kept = state.ledger.retry(job, attempt, until);
        match kept {
            Ok(()) if is_redirected => {}
            Ok(()) => state.put_off(Change::Retry(job.id)),
            Err(_) => drop(state.finish(job, Error::Cancelled.response().into(), now)),
        }
        // The lock is released before the attempt is dropped.
        drop(state);
    }

    fn redirect(&self, job: &JobKey, attempt: Box<Attempt>, now: Moment) {
        attempt.call.request.body().close();
        let mut state = self.shared.lock();
        let kept = state.ledger.redirect(job, attempt);
        if kept.is_err() {
            state.finish(job, Error::Cancelled.response().into(), now);
        }
        // The lock is released before the attempt is dropped.
        drop(state);
    }

    fn overdue(&self, span: Duration) -> Vec<Claimed> {
        let Shared { state, dispatch, .. } = &*self.shared;
        dispatch.overdue(state, span, |state, now| state.ledger.overdue(now))
    }

    fn finish(&self, job: &JobKey, response: Response<Content>, now: Moment) -> Finished {
        let (response, is_durable) = match response.body().sync() {
            Ok(()) => (response, true),
            Err(error) => {
                let what = format!("the result cannot be made durable: {error}");
                log::warn!("job={} {what}", job.id);
                (Error::InsufficientStorage(what.into()).response(), false)
            }
        };
        // If the result does not fit, its file is removed, which must not happen under the lock.
        let _file = response.body().in_file().map(|(file, _)| Arc::clone(file));
        let response = response.into();
        let mut state = self.shared.lock();
        let finished = state.finish(job, response, now);
        let is_behind = state.is_behind();
        drop(state);
        if is_behind {
            self.shared.wait_for_ease();
        }
        match finished {
            Finished::Kept if !is_durable => Finished::Dropped,
            finished => finished,
        }
    }

    fn keep_place(&self, job: &JobKey) -> Option<RouteIndex> {
        self.shared.lock().ledger.keep_place(job)
    }

    fn give_up(&self, route: RouteIndex) {
        self.shared.lock().ledger.give_up(route);
    }

    fn enter_lane(&self, route: RouteIndex, wake: &Sender<()>) -> Result<(), Turn> {
        self.shared.lock().ledger.enter_lane(route, wake)
    }

    fn leave_lane(&self, route: RouteIndex, turn: Option<Turn>) {
        self.shared.lock().ledger.leave_lane(route, turn);
    }

    fn wait(&self, job: &JobKey, span: Duration, is_over: &dyn Fn() -> bool) {
        let Some(waiter) = self.shared.lock().ledger.watch(job) else { return };
        waiter.wait(span, is_over);
        if !waiter.is_notified() {
            self.shared.lock().ledger.unwatch(job, &waiter);
        }
    }

    fn status(&self, job: &JobKey) -> Result<Option<Status>, StoreUnavailable> {
        Ok(self.shared.lock().ledger.status(job))
    }

    fn log(&self, job: &JobKey) -> Result<Option<LogEnd>, StoreUnavailable> {
        let state = self.shared.lock();
        let offset = match state.ledger.find_log(job) {
            Found::Unknown => match state.ledger.kept_log(job) {
                None => return Ok(None),
                Some(log) if log.text.is_some() => return Ok(log.end()),
                Some(log) => log.logged,
            },
            Found::Pending(pending) => return Ok(Some(pending.log())),
            Found::Done(done) => match &done.result {
                Place::Here(result) => return Ok(Some(result.log.clone())),
                Place::OnDisk => done.summary.logged,
            },
        };
        drop(state);
        let text = self.shared.read(|tables| tables.log(job.id)).map_err(|_| StoreUnavailable)?;
        Ok(Some(LogEnd { text: text.into(), offset }))
    }

    fn growing_log(&self, job: &JobKey) -> Option<Arc<JobLog>> {
        self.shared.lock().ledger.growing_log(job)
    }

    fn peek(&self, job: &JobKey) -> Lookup {
        let place = match self.shared.lock().ledger.find(job) {
            Found::Unknown => return Lookup::Unknown,
            Found::Pending(_) => return Lookup::Pending,
            Found::Done(done) => match &done.result {
                Place::Here(result) => Err(result.response.clone()),
                Place::OnDisk => Ok(done.footprint),
            },
        };
        place.map_or_else(opened, |footprint| self.response(job, footprint))
    }

    fn collect(&self, job: &JobKey) -> Lookup<(StoredResponse, DeliveryId)> {
        let mut state = self.shared.lock();
        let Some(done) = state.ledger.collect(job) else {
            return match state.ledger.find(job) {
                Found::Pending(_) => Lookup::Pending,
                Found::Unknown | Found::Done(_) => Lookup::Unknown,
            };
        };
        let (footprint, delivery) = (done.footprint, done.delivery);
        let here = match &done.result {
            Place::Here(result) => Some(result.response.clone()),
            Place::OnDisk => None,
        };
        drop(state);
        let found = here.map_or_else(|| self.response(job, footprint), opened);
        if !matches!(found, Lookup::Done(_)) {
            self.restore(job, delivery);
        }
        found.map(|response| (response, delivery))
    }

    fn confirm(&self, job: &JobKey, delivery: DeliveryId, now: Moment) {
        let mut state = self.shared.lock();
        let text = |result: &mut Place<Arc<StoredResult>>| match result {
            Place::Here(result) => Some(result.log.text.clone()),
            Place::OnDisk => None,
        };
        let confirmed = state.ledger.confirm(job, delivery, now.age, text);
        match &confirmed {
            None => {}
            Some((_, LogIs::Gone)) => state.put_off(Change::Remove(vec![job.id])),
            Some((done, LogIs::Kept)) => {
                let aged = self.shared.scale.kept(now.age);
                let stage =
                    Stage::Collected { aged, log: done.summary.log, logged: done.summary.logged };
                let (owner, created, footprint) =
                    (job.owner.clone(), done.created, done.summary.log);
                let line = RequestLine::default();
                let record = Record { owner, created, footprint, line, state: stage };
                state.put_off(Change::KeepLog(job.id, Box::new(record)));
            }
        }
        // The lock is released before the result is dropped.
        drop(state);
    }

    fn restore(&self, job: &JobKey, delivery: DeliveryId) {
        self.shared.lock().ledger.restore(job, delivery);
    }

    fn cancel(&self, job: &JobKey, now: Moment) -> Result<bool, StoreUnavailable> {
        let mut state = self.shared.lock();
        match state.ledger.cancel(job) {
            Cancel::Unknown => return Ok(false),
            // A client that gets the answer "no effect" must not find the job pending afterwards.
            Cancel::NoEffect if matches!(state.ledger.find(job), Found::Pending(_)) => {
                drop(state);
                return self.flush().map(|()| true);
            }
            Cancel::NoEffect => return Ok(true),
            Cancel::Running(execution) => {
                drop(state);
                execution.stop(Stop::Cancel);
                return Ok(true);
            }
            Cancel::Waiting => {}
        }
        state.finish(job, Error::Cancelled.response().into(), now);
        drop(state);
        self.flushed(Change::Nothing).map(|()| true)
    }

    fn forget(&self, job: &JobKey) -> Result<bool, StoreUnavailable> {
        let mut state = self.shared.lock();
        let change = match state.ledger.forget(job) {
            None => return Ok(false),
            Some(Forgotten::Pending) => Change::Forget(vec![job.id]),
            Some(Forgotten::Result(_)) => Change::Remove(vec![job.id]),
        };
        state.put_off(change);
        drop(state);
        self.flushed(Change::Settled).map(|()| true)
    }

    fn forget_all(&self, owner: &Owner) -> Result<(), StoreUnavailable> {
        let mut state = self.shared.lock();
        let cleared = state.ledger.forget_all(owner);
        let keys = state.ledger.forget_keys(owner);
        if !keys.is_empty() {
            state.put_off(Change::RemoveKeys(keys));
        }
        if let Some(cleared) = &cleared {
            state.put_off(Change::Forget(cleared.pending.clone()));
            state.put_off(Change::Remove(cleared.results().collect()));
        }
        // The lock is released before the removed records are dropped.
        drop(state);
        self.flushed(Change::Settled)
    }

    fn forget_before(&self, owner: &Owner, before: Stamp) -> Result<(), StoreUnavailable> {
        let mut state = self.shared.lock();
        let pending = state.ledger.forget_pending_before(owner, before);
        state.put_off(Change::Forget(pending));
        drop(state);
        while self.forget_batch(owner, Reach::Stamped(before)) > 0 {}
        self.flushed(Change::Settled)
    }

    fn expire_logs(&self, before: Age) {
        while self.shared.lock().ledger.expire_logs(before) {}
    }

    fn expire(&self, before: Age) -> Result<usize, StoreUnavailable> {
        let owners = self.shared.lock().ledger.owners();
        let mut count = 0;
        for owner in owners {
            count += self.forget_batch(&owner, Reach::Expired(before));
            if count >= BATCH {
                return Ok(count);
            }
        }
        loop {
            let mut state = self.shared.lock();
            let Expired { keys, is_last, .. } = state.ledger.expire_keys(before);
            if !keys.is_empty() {
                state.put_off(Change::RemoveKeys(keys));
            }
            if is_last {
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
        Ok(self.shared.lock().ledger.list(owner, list, after, count))
    }

    fn record(&self, job: &JobKey) -> Result<Option<JobRecord>, StoreUnavailable> {
        Ok(self.shared.lock().ledger.record(job))
    }

    fn records(
        &self,
        owner: &Owner,
        filter: &Filter,
        after: Option<JobId>,
        count: usize,
    ) -> Result<Page, StoreUnavailable> {
        Ok(Page::collect(filter, after, count, |step| self.shared.lock().ledger.step(owner, step)))
    }

    fn flush(&self) -> Result<(), StoreUnavailable> {
        self.shared.ask(Change::Nothing).wait()
    }

    fn drain(&self) {
        self.shared.lock().ledger.drain();
    }

    fn stop(&self, stop: Stop) {
        self.shared.lock().ledger.stop(stop);
    }

    fn close(&self) -> Vec<JobId> {
        // Without senders, the writer ends after it has written all orders.
        self.shared.lock().orders = None;
        self.lost.recv_timeout(CLOSE_TIME).unwrap_or_default()
    }
}

impl Drop for DiskStore {
    fn drop(&mut self) {
        // Does nothing if the store is already closed.
        self.close();
    }
}
