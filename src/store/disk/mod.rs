//! The durable store: the ledger in memory, requests and results in one file, one writer.
//!
//! Owns what is waited for and what is not. Submissions, cancellations and deletions wait for the commit
//! that makes them durable; starts wait where a job must not run twice; results are handed over, and
//! done when they are durable; collecting and asking never wait for a commit. What is kept and in what
//! form is `tables` and `record`, when it is written is `writer`, where to is `file` and `open`.
//! Invariant: what this store has said is so after a crash; what it has not said may be so or not.

mod engine;
mod loads;
mod open;
mod order;
mod record;
mod state;
mod submit;
mod tables;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::{Receiver, bounded, unbounded};
use http::Response;
use redb::StorageBackend;

use self::engine::dirty::DirtyRanges;
use self::loads::{Loads, Unloaded};
use self::open::Directory;
use self::order::Change;
use self::record::Stage;
use self::state::{Request, Shared, State, Urgency};
use self::submit::{Prepared, Submitted};
use self::tables::{TableError, Tables};
use self::writer::Writer;
use super::{
    Accepted, Finished, IdempotencyKey, JobKey, List, Lookup, Recovered, Refused, Room,
    StartRecord, Started, Stats, Status, Store, StoreUnavailable, Submission,
};
pub use crate::config::Durability;
use crate::error::Error;
use crate::exchange::{Call, Owner};
use crate::job::execution::{Execution, Stop};
use crate::job::{ERROR_ROOM, JobId, Pending, RECORD, Stamp, message};
use crate::ledger::waiters::Waiters;
use crate::ledger::{Cancel, Forgotten, Found, Reach};

/// How long a disk that failed is left alone.
const REST: Duration = Duration::from_secs(1);
/// How long the end waits for a disk that fails.
const CLOSE_TIME: Duration = Duration::from_secs(5);

/// Jobs on disk.
pub struct DiskStore {
    shared: Arc<Shared>,
    loads: Loads,
    durability: Durability,
    /// How long a disk that failed is left alone.
    rest: Duration,
    /// The writer's last word.
    lost: Receiver<Vec<JobId>>,
    /// Held for as long as the store is open; `None` where it is over something else.
    _directory: Option<Arc<Directory>>,
}

/// Whether a change came to be durable.
type Outcome = Receiver<Result<(), StoreUnavailable>>;

type Open = Box<dyn Fn() -> Result<Tables, TableError> + Send + Sync>;

impl DiskStore {
    /// Opens the store in a directory, which is made if need be; and the jobs in it that are not done,
    /// by id.
    ///
    /// # Errors
    /// In words: what is wrong with it, and what to do.
    pub fn open(
        path: &Path,
        room: Room,
        durability: Durability,
    ) -> Result<(Self, Vec<Recovered>), String> {
        let directory = Arc::new(Directory::open(path)?);
        let opened = Self::over(directory.file()?, room, durability, REST);
        let (mut store, recovered) = opened.map_err(|fault| directory.refusal(&fault))?;
        store._directory = Some(directory);
        Ok((store, recovered))
    }

    /// Opens the store over any storage that can be opened again and again. When that fails it is
    /// left alone for `rest` before the next attempt.
    ///
    /// # Errors
    /// In words: what is wrong with it.
    pub fn with_backend<B: StorageBackend + Clone>(
        backend: B,
        room: Room,
        durability: Durability,
        rest: Duration,
    ) -> Result<(Self, Vec<Recovered>), String> {
        let is_empty = backend.len().map(|len| len == 0).map_err(|error| error.to_string())?;
        let made = if is_empty { Tables::make(backend.clone()) } else { Ok(()) };
        let opened = made.and_then(|()| Self::over(backend, room, durability, rest));
        opened.map_err(|fault| fault.to_string())
    }

    fn over<B: StorageBackend + Clone>(
        backend: B,
        room: Room,
        durability: Durability,
        rest: Duration,
    ) -> Result<(Self, Vec<Recovered>), TableError> {
        let storage = DirtyRanges::new(backend);
        let open: Open = Box::new(move || Tables::open(storage.clone()));
        let tables = open()?;
        let memory = room.memory.clone();
        let (ledger, recovered) = open::ledger(tables.contents()?, room);
        tables.accept()?;
        let (orders, received) = unbounded();
        let pace = match durability {
            Durability::Commit => Urgency::Urgent,
            Durability::Relaxed => Urgency::Lazy,
        };
        let shared = Shared::new(State::new(ledger, orders, pace), tables, open);
        let (last_word, lost) = bounded(1);
        let writer = Writer::new(Arc::clone(&shared), received, durability, rest, last_word);
        thread::Builder::new().name("writer".into()).spawn(move || writer.run())?;
        let loads = Loads::new(memory.budget().allowance());
        Ok((Self { shared, loads, durability, rest, lost, _directory: None }, recovered))
    }

    /// Reads a request, if need be again and again; `None` when the job was stopped meanwhile, or its
    /// request is damaged or larger than the memory: then it has its result.
    fn fetch(&self, job: &JobKey, execution: &Execution, now: Stamp) -> Option<Box<Call>> {
        let error = loop {
            match self.request(job) {
                Ok(Some(call)) => return Some(call),
                Ok(None) => break Error::Internal("the stored request is damaged".into()),
                Err(_) if self.shared.is_closed() => return None,
                Err(Unloaded::NoMemory) => {}
                Err(Unloaded::TooLarge) => {
                    let what = "the stored request is larger than --max-memory: raise that";
                    break Error::InsufficientStorage(what.into());
                }
                Err(Unloaded::TableError(fault)) => {
                    log::debug!("job={} its request cannot be read: {fault}", job.id);
                }
            }
            if execution.sleep(self.rest).is_err() {
                break Error::Cancelled;
            }
        };
        self.finish(job, error.response(), now);
        None
    }

    /// Reads a request; `None` if it is damaged.
    fn request(&self, job: &JobKey) -> Result<Option<Box<Call>>, Unloaded> {
        let Some(record) = self.shared.read(|tables| tables.record(job.id))? else {
            return Ok(None);
        };
        let Stage::Pending { connection, auth_type, .. } = record.state else { return Ok(None) };
        let message = self.loads.request(record.footprint, |charge| {
            self.shared.read(|tables| tables.message(job.id, charge))
        })?;
        let request = message.and_then(message::read_request);
        let call = |request| Box::new(Call { request, connection, owner: record.owner, auth_type });
        Ok(request.map(call))
    }

    /// Reads a result of this footprint that the ledger says is there.
    fn response(&self, job: &JobKey, footprint: usize) -> Lookup {
        let message = self.loads.result(job.id, footprint, |charge| {
            self.shared.read(|tables| tables.message(job.id, charge))
        });
        let damaged = || TableError::new("its message is damaged").into();
        let response = message.and_then(|message| {
            let response = |message| message::read_response(message).ok_or_else(damaged);
            message.map(response).transpose()
        });
        match response {
            Ok(Some(response)) => Lookup::Done(response),
            // Deleted in bulk since.
            Ok(None) => Lookup::Unknown,
            Err(Unloaded::NoMemory) => Lookup::NoMemory,
            Err(Unloaded::TooLarge) => Lookup::TooLarge,
            Err(Unloaded::TableError(fault)) => {
                log::debug!("job={} its result cannot be read: {fault}", job.id);
                Lookup::Unreadable
            }
        }
    }

    /// Forgets the owner's results that are stamped before `before`; returns how many.
    fn forget_results(&self, owner: &Owner, before: Stamp, reach: Reach) -> usize {
        let mut count = 0;
        loop {
            let mut state = self.shared.lock();
            let batch = state.ledger.forget_batch(owner, before, reach);
            if batch.is_empty() {
                return count;
            }
            count += batch.len();
            state.put_off(Change::Remove(batch.iter().map(|(id, _)| *id).collect()));
            // Before the batch is.
            drop(state);
        }
    }

    /// Waits until what was changed before is durable, or what was removed, where that is promised.
    fn settled(&self, change: Change) -> Result<(), StoreUnavailable> {
        match self.durability {
            Durability::Commit => wait(&self.shared.ask(change)),
            Durability::Relaxed => Ok(()),
        }
    }
}

/// The outcome of a change; a store that was closed meanwhile does not say.
fn wait(outcome: &Outcome) -> Result<(), StoreUnavailable> {
    outcome.recv().unwrap_or(Err(StoreUnavailable))
}

impl Store for DiskStore {
    fn name(&self) -> &'static str {
        "disk"
    }

    fn outlives_the_process(&self) -> bool {
        true
    }

    fn submit(&self, submission: Submission, now: Stamp) -> Result<Accepted, Refused> {
        if self.shared.is_failing() {
            return Err(Refused::StoreUnavailable);
        }
        let mut offer = Prepared::of(submission, now);
        loop {
            match self.offer(offer)? {
                Submitted::New(id, None) => return Ok(Accepted::New(id)),
                Submitted::New(id, Some(outcome)) => {
                    wait(&outcome).map_err(|StoreUnavailable| Refused::StoreUnavailable)?;
                    return Ok(Accepted::New(id));
                }
                Submitted::Known(id, certain, again) => {
                    let (owner, key) = (&again.record.owner, again.submission_key.as_ref());
                    let settled =
                        key.map(|key| self.settle(owner, key, id, certain)).transpose()?;
                    if let Some(id) = settled.flatten() {
                        return Ok(Accepted::Known(id));
                    }
                    offer = *again;
                }
            }
        }
    }

    fn recall(&self, owner: &Owner, key: &IdempotencyKey) -> Result<Option<JobId>, Refused> {
        loop {
            let known = self.known(&self.shared.lock(), owner, key)?;
            let Some((id, certain)) = known else { return Ok(None) };
            if let Some(id) = self.settle(owner, key, id, certain)? {
                return Ok(Some(id));
            }
        }
    }

    fn check(&self, bytes: usize) -> Result<(), Refused> {
        if self.shared.is_failing() {
            return Err(Refused::StoreUnavailable);
        }
        self.shared.lock().ledger.check(bytes.saturating_add(RECORD + ERROR_ROOM))
    }

    fn stats(&self) -> Stats {
        self.shared.lock().ledger.stats()
    }

    fn is_queued(&self, job: &JobKey) -> bool {
        self.shared.lock().ledger.pending(job).is_some_and(Pending::is_queued)
    }

    fn may_go_on(&self, job: &JobKey) -> bool {
        self.shared.lock().ledger.pending(job).is_some_and(Pending::may_go_on)
    }

    fn start(
        &self,
        job: &JobKey,
        execution: &Arc<Execution>,
        record: StartRecord,
        now: Stamp,
    ) -> Option<Started> {
        let mut state = self.shared.lock();
        let pending = state.ledger.pending_mut(job)?;
        let request = pending.start(execution, now)?;
        let created = pending.created;
        let recorded = match (record, self.durability) {
            (StartRecord::Never, _) => None,
            (StartRecord::Before, Durability::Commit) => Some(state.insist(Change::Start(job.id))),
            (StartRecord::Before | StartRecord::Soon, _) => {
                state.put_off(Change::Start(job.id));
                None
            }
        };
        drop(state);
        if recorded.is_some_and(|recorded| wait(&recorded).is_err()) {
            // The end came first: the job is still queued where it counts.
            return None;
        }
        let call = match request {
            Request::Here(call) => call,
            Request::OnDisk => self.fetch(job, execution, now)?,
        };
        Some(Started { call, created })
    }

    fn finish(&self, job: &JobKey, response: Response<Bytes>, now: Stamp) -> Finished {
        let response = response.into();
        let mut state = self.shared.lock();
        let finished = state.end(job, response, now);
        self.shared.wait_for_ease(state);
        finished
    }

    fn bell(&self) -> Arc<Waiters> {
        Arc::clone(self.shared.lock().ledger.bell())
    }

    fn status(&self, job: &JobKey) -> Option<Status> {
        self.shared.lock().ledger.status(job)
    }

    fn log(&self, job: &JobKey) -> Result<Option<Vec<u8>>, StoreUnavailable> {
        match self.shared.lock().ledger.find(job) {
            Found::Unknown => return Ok(None),
            Found::Pending(pending) => return Ok(Some(pending.log())),
            Found::Done(_) => {}
        }
        self.shared.read(|tables| tables.log(job.id)).map(Some).map_err(|_| StoreUnavailable)
    }

    fn peek(&self, job: &JobKey) -> Lookup {
        let footprint = match self.shared.lock().ledger.find(job) {
            Found::Unknown => return Lookup::Unknown,
            Found::Pending(_) => return Lookup::Pending,
            Found::Done(done) => done.footprint,
        };
        self.response(job, footprint)
    }

    fn collect(&self, job: &JobKey) -> Lookup {
        let mut state = self.shared.lock();
        let Some(footprint) = state.ledger.deliver(job).map(|done| done.footprint) else {
            return match state.ledger.find(job) {
                Found::Pending(_) => Lookup::Pending,
                Found::Unknown | Found::Done(_) => Lookup::Unknown,
            };
        };
        drop(state);
        let found = self.response(job, footprint);
        if !matches!(found, Lookup::Done(_)) {
            self.restore(job);
        }
        found
    }

    fn confirm(&self, job: &JobKey) {
        let mut state = self.shared.lock();
        if state.ledger.confirm(job).is_some() {
            state.put_off(Change::Remove(vec![job.id]));
        }
    }

    fn restore(&self, job: &JobKey) {
        self.shared.lock().ledger.restore(job);
    }

    fn cancel(&self, job: &JobKey, now: Stamp) -> Result<bool, StoreUnavailable> {
        let mut state = self.shared.lock();
        match state.ledger.cancel(job) {
            Cancel::Unknown => return Ok(false),
            // Whoever is told that it had no effect must not find the job pending afterwards.
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
            Cancel::Queued => {}
        }
        state.end(job, Error::Cancelled.response().into(), now);
        drop(state);
        self.settled(Change::Nothing).map(|()| true)
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
        self.settled(Change::Settled).map(|()| true)
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
        // Before what was cleared is.
        drop(state);
        self.settled(Change::Settled)
    }

    fn forget_before(&self, owner: &Owner, before: Stamp) -> Result<(), StoreUnavailable> {
        let mut state = self.shared.lock();
        let pending = state.ledger.forget_pending_before(owner, before);
        state.put_off(Change::Forget(pending));
        drop(state);
        self.forget_results(owner, before, Reach::Everything);
        self.settled(Change::Settled)
    }

    fn expire_results(&self, before: Stamp) -> usize {
        let owners = self.shared.lock().ledger.owners();
        let expired =
            owners.iter().map(|owner| self.forget_results(owner, before, Reach::Results)).sum();
        let mut state = self.shared.lock();
        let keys = state.ledger.expire_keys(before);
        if !keys.is_empty() {
            state.put_off(Change::RemoveKeys(keys));
        }
        expired
    }

    fn list(&self, owner: &Owner, list: List, count: usize) -> Vec<JobId> {
        self.shared.lock().ledger.list(owner, list, count)
    }

    fn remaining(&self) -> Vec<JobId> {
        self.shared.lock().ledger.ids()
    }

    fn flush(&self) -> Result<(), StoreUnavailable> {
        wait(&self.shared.ask(Change::Nothing))
    }

    fn close(&self) -> Vec<JobId> {
        // The writer ends when it has written all that was handed over.
        self.shared.lock().orders = None;
        self.lost.recv_timeout(CLOSE_TIME).unwrap_or_default()
    }
}

impl Drop for DiskStore {
    fn drop(&mut self) {
        // A second time it does nothing.
        self.close();
    }
}
