//! The volatile store: a mutex around the ledger, with requests and results in it.
//!
//! Owns every job in memory. Does no I/O and calls no handler. Invariant: the memory of many jobs is
//! freed after the lock is released.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::Response;

use super::{
    Accepted, Finished, IdempotencyKey, JobKey, List, Lookup, Refused, Room, StartRecord, Started,
    Stats, Status, Store, StoreUnavailable, Submission,
};
use crate::content;
use crate::error::Error;
use crate::exchange::{Call, Owner};
use crate::job::execution::{Execution, Stop};
use crate::job::stored::{StoredResponse, StoredResult};
use crate::job::{Cancelled, ERROR_ROOM, JobId, Pending, RECORD, Stamp};
use crate::ledger::waiters::Waiters;
use crate::ledger::{Cancel, Forgotten, Found, Ledger, Reach, Size};

/// Jobs in memory, gone with the process.
pub struct MemoryStore(Mutex<State>);

type State = Ledger<Box<Call>, StoredResult>;

impl MemoryStore {
    /// An empty store.
    pub fn new(room: Room) -> Self {
        Self(Mutex::new(Ledger::new(room, None)))
    }

    /// A poisoned lock is taken all the same: the data is valid between any two statements.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets the owner's results that are stamped before `before`; returns how many.
    fn forget_results(&self, owner: &Owner, before: Stamp, reach: Reach) -> usize {
        let mut count = 0;
        loop {
            // A `let`, so that the lock is released before the batch is dropped.
            let batch = self.lock().forget_batch(owner, before, reach);
            if batch.is_empty() {
                return count;
            }
            count += batch.len();
        }
    }
}

/// Ends a job: its result is `response`, or `410` if it was cancelled in time.
fn end(ledger: &mut State, job: &JobKey, response: StoredResponse, now: Stamp) -> Finished {
    let is_unwanted = ledger.is_unwanted(job);
    let Some(pending) = ledger.pending_mut(job) else { return Finished::Dropped };
    let (mut result, cancelled) = pending.end(response);
    if !is_unwanted {
        result = ledger.fit_result(job, result, |result| RECORD + result.uncharged());
    }
    let finished = ledger.complete(job, result, now);
    if cancelled == Cancelled::Yes { Finished::Dropped } else { finished }
}

impl Store for MemoryStore {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn outlives_the_process(&self) -> bool {
        false
    }

    fn submit(&self, submission: Submission, now: Stamp) -> Result<Accepted, Refused> {
        let Submission { call, keep, key } = submission;
        let (owner, footprint) = (call.owner.clone(), RECORD + ERROR_ROOM + call.footprint());
        let size = Size { footprint, memory: footprint - content::charged(call.request.body()) };
        let call = Box::new(call);
        let mut ledger = self.lock();
        if let Some(key) = &key
            && let Some(id) = ledger.recall(&owner, key)?
        {
            return Ok(Accepted::Known(id));
        }
        let admitted = ledger.admit(size, key.as_ref())?;
        let job = JobKey { owner, id: ledger.next_id(now) };
        if let Some(key) = &key {
            ledger.put_key(&job, key, now, admitted.key);
        }
        let id = job.id;
        let pending = Box::new(Pending::queued(call, footprint, admitted.record, now));
        ledger.accept(job, pending, keep);
        Ok(Accepted::New(id))
    }

    fn stats(&self) -> Stats {
        self.lock().stats()
    }

    fn recall(&self, owner: &Owner, key: &IdempotencyKey) -> Result<Option<JobId>, Refused> {
        self.lock().recall(owner, key)
    }

    fn check(&self, bytes: usize) -> Result<(), Refused> {
        self.lock().check(bytes.saturating_add(RECORD + ERROR_ROOM))
    }

    fn is_queued(&self, job: &JobKey) -> bool {
        self.lock().pending(job).is_some_and(Pending::is_queued)
    }

    fn may_go_on(&self, job: &JobKey) -> bool {
        self.lock().pending(job).is_some_and(Pending::may_go_on)
    }

    fn start(
        &self,
        job: &JobKey,
        execution: &Arc<Execution>,
        _: StartRecord,
        now: Stamp,
    ) -> Option<Started> {
        let mut ledger = self.lock();
        let pending = ledger.pending_mut(job)?;
        let call = pending.start(execution, now)?;
        Some(Started { call, created: pending.created })
    }

    fn finish(&self, job: &JobKey, response: Response<Bytes>, now: Stamp) -> Finished {
        // Before the lock is taken.
        let response = response.into();
        end(&mut self.lock(), job, response, now)
    }

    fn bell(&self) -> Arc<Waiters> {
        Arc::clone(self.lock().bell())
    }

    fn status(&self, job: &JobKey) -> Option<Status> {
        self.lock().status(job)
    }

    fn log(&self, job: &JobKey) -> Result<Option<Vec<u8>>, StoreUnavailable> {
        Ok(match self.lock().find(job) {
            Found::Unknown => None,
            Found::Pending(pending) => Some(pending.log()),
            Found::Done(done) => Some(done.result.log.to_vec()),
        })
    }

    fn peek(&self, job: &JobKey) -> Lookup {
        match self.lock().find(job) {
            Found::Unknown => Lookup::Unknown,
            Found::Pending(_) => Lookup::Pending,
            Found::Done(done) => Lookup::Done(done.result.response.clone()),
        }
    }

    fn collect(&self, job: &JobKey) -> Lookup {
        let mut ledger = self.lock();
        if let Some(done) = ledger.deliver(job) {
            return Lookup::Done(done.result.response.clone());
        }
        match ledger.find(job) {
            Found::Pending(_) => Lookup::Pending,
            Found::Unknown | Found::Done(_) => Lookup::Unknown,
        }
    }

    fn confirm(&self, job: &JobKey) {
        // A `let`, so that the lock is released before the result is dropped.
        let delivered = self.lock().confirm(job);
        drop(delivered);
    }

    fn restore(&self, job: &JobKey) {
        self.lock().restore(job);
    }

    fn cancel(&self, job: &JobKey, now: Stamp) -> Result<bool, StoreUnavailable> {
        let mut ledger = self.lock();
        match ledger.cancel(job) {
            Cancel::Unknown => return Ok(false),
            Cancel::NoEffect => {}
            Cancel::Running(execution) => {
                drop(ledger);
                execution.stop(Stop::Cancel);
            }
            Cancel::Queued => {
                end(&mut ledger, job, Error::Cancelled.response().into(), now);
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
        self.forget_results(owner, before, Reach::Everything);
        Ok(())
    }

    fn expire_results(&self, before: Stamp) -> usize {
        let owners = self.lock().owners();
        let expired =
            owners.iter().map(|owner| self.forget_results(owner, before, Reach::Results)).sum();
        let keys = self.lock().expire_keys(before);
        drop(keys);
        expired
    }

    fn list(&self, owner: &Owner, list: List, count: usize) -> Vec<JobId> {
        self.lock().list(owner, list, count)
    }

    fn remaining(&self) -> Vec<JobId> {
        self.lock().ids()
    }

    fn flush(&self) -> Result<(), StoreUnavailable> {
        Ok(())
    }

    fn close(&self) -> Vec<JobId> {
        self.remaining()
    }
}
