//! Submitting to the store on disk: from a submission to a job that is new or known, and may not be durable yet.
//!
//! Owns what is prepared of a submission before it has an id, and the moment in which it gets one. `mod` decides what
//! is waited for. Invariant: ids reach the writer in their order, because assigning an id and sending it happen under
//! one hold of the lock.

use super::order::{Ack, Change, NewJob, OnDurable, Order, Urgency};
use super::outcome::Outcome;
use super::record::{Begun, Record, Stage};
use super::state::{Place, State};
use super::{DiskStore, Durability};
use crate::exchange::{Call, Owner};
use crate::job::{Age, ERROR_ROOM, JobId, JobKey, Moment, RECORD, RouteIndex, message};
use crate::ledger::job::Pending;
use crate::ledger::{InMemory, Size};
use crate::store::{IdempotencyKey, Refused, Store, StoreUnavailable, Submission};

/// How many jobs may wait ahead of a job whose request is also kept in memory, so that the worker that soon claims it
/// need not read it from the disk; and the largest accounted size of such a request, in bytes.
const NEAR: usize = 64;
const NEAR_SIZE: usize = 6 << 10;

/// A submission with everything that can be prepared before it has an id.
pub struct Prepared {
    call: Box<Call>,
    route: RouteIndex,
    pub record: Record,
    age: Age,
    /// Its request's message up to the content.
    head: Vec<u8>,
    pub submission_key: Option<IdempotencyKey>,
    callback: Option<Box<str>>,
}

impl Prepared {
    /// Prepares a submission at `now`.
    pub fn new(submission: Submission, now: Moment) -> Self {
        let Submission { call, route, line, keep, key, callback } = submission;
        let footprint = RECORD + line.footprint() + ERROR_ROOM + call.footprint();
        let state = Stage::Pending {
            begun: Begun::No,
            starts: 0,
            keep,
            connection: call.connection,
            auth_type: call.auth_type,
            path: call.request.uri().path().to_owned(),
            callback: callback.clone(),
        };
        let (owner, created) = (call.owner.clone(), now.stamp);
        let record = Record { owner, created, footprint, line, state };
        let head = message::request_head(&call.request);
        let (call, age) = (Box::new(call), now.age);
        Self { call, route, record, age, head, submission_key: key, callback }
    }
}

/// The outcome of a submission.
pub enum Submitted {
    /// A new job; it is accepted once its outcome says so, or at once without an outcome.
    New(JobId, Option<Outcome>),
    /// The job of an earlier submission with the same key, which may not be durable yet; and this submission, to be
    /// repeated if the earlier one is refused.
    Known(JobId, InDoubt, Box<Prepared>),
}

/// Whether the job of an idempotency key may still be refused.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum InDoubt {
    /// Yes.
    Yes,
    /// No: it is accepted.
    No,
}

impl DiskStore {
    /// Puts a submission on the accounts and sends it to the writer, under one hold of the lock, so that ids reach the
    /// disk in their order.
    pub(super) fn submit_prepared(&self, prepared: Prepared) -> Result<Submitted, Refused> {
        let mut state = self.shared.lock();
        if let Some(key) = &prepared.submission_key
            && let Some((id, in_doubt)) = self.known(&state, &prepared.record.owner, key)?
        {
            return Ok(Submitted::Known(id, in_doubt, Box::new(prepared)));
        }
        if self.shared.is_failing() {
            return Err(Refused::Unavailable);
        }
        let Prepared { call, route, record, age, head, submission_key: key, callback } = prepared;
        let (owner, now, footprint) = (record.owner.clone(), record.created, record.footprint);
        let keep = record.keep();
        let line = record.line.clone();
        let memory = RECORD + line.footprint();
        let owed = state.ledger.owed(Some(route), callback, (&line, &owner), InMemory::Record);
        let room = owed.as_ref().map_or(Size::default(), |owed| owed.room);
        let size = Size { footprint: footprint + room.footprint, memory: memory + room.memory };
        let admitted = state.ledger.admit(size, key.as_ref())?;
        let id = state.ledger.next_id(now);
        let job = JobKey { owner, id };
        if let Some(key) = &key {
            state.ledger.insert_key(&job, key, age, admitted.key);
        }
        let request = (head, call.request.body().clone());
        let change = Change::Accept(Box::new(NewJob {
            id,
            record,
            room: room.footprint,
            aged: self.shared.scale.kept(age),
            request,
            key,
        }));
        let is_answered_first = self.durability == Durability::Relaxed && state.is_leased(id);
        let is_near = footprint <= NEAR_SIZE && state.ledger.queue_len() <= NEAR;
        let mut charge = admitted.record;
        let keeps_request = is_answered_first || is_near && charge.grow(footprint - memory).is_ok();
        let place = if keeps_request { Place::Here(call) } else { Place::OnDisk };
        let pending = Pending::waiting(route, place, line, size.footprint, charge, now);
        let pending = Box::new(pending.owing(owed));
        if is_answered_first {
            state.ledger.accept(&job, pending, keep);
            let on_durable = OnDurable::FlushRequest(job);
            state.order(Order::new(change, on_durable, Ack::None, Urgency::Lazy));
            return Ok(Submitted::New(id, None));
        }
        let on_durable = OnDurable::Accept(job, pending, keep);
        Ok(Submitted::New(id, Some(state.ask(change, on_durable))))
    }

    /// Returns the job that was submitted under this key.
    pub(super) fn known(
        &self,
        state: &State,
        owner: &Owner,
        key: &IdempotencyKey,
    ) -> Result<Option<(JobId, InDoubt)>, Refused> {
        let found = state.ledger.recall(owner, key)?;
        // A job that was acknowledged before its commit counts as accepted, and so does one whose id was leased:
        // refused jobs have lost their keys.
        let is_sure = |id| self.durability == Durability::Relaxed && state.is_leased(id);
        Ok(found.map(|id| (id, if is_sure(id) { InDoubt::No } else { InDoubt::Yes })))
    }

    /// Waits until the job of a key is accepted. Returns `None` if the key no longer stands for it: the job was
    /// refused, or forgotten with all jobs of its owner.
    pub(super) fn resolve(
        &self,
        owner: &Owner,
        key: &IdempotencyKey,
        id: JobId,
        in_doubt: InDoubt,
    ) -> Result<Option<JobId>, Refused> {
        if in_doubt == InDoubt::No {
            return Ok(Some(id));
        }
        self.flush().map_err(|StoreUnavailable| Refused::Unavailable)?;
        let found = self.shared.lock().ledger.recall(owner, key)?;
        Ok(found.filter(|found| *found == id))
    }
}
