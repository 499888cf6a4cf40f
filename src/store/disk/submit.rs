//! Submitting to the store on disk: from an offer to a job that is accepted, known, or on its way.
//!
//! Owns what is made of a submission before it has an id, and the moment in which it gets one. What is
//! waited for is `mod`'s. Invariant: ids reach the writer in their order, because an id is given and handed
//! over under one hold of the lock.

use super::order::{Change, NewJob};
use super::record::{Record, Stage};
use super::state::{Ack, OnDurable, Request, State, Urgency};
use super::{DiskStore, Durability, Outcome};
use crate::exchange::{Call, Owner};
use crate::job::{ERROR_ROOM, JobId, Pending, RECORD, Stamp, message};
use crate::ledger::Size;
use crate::store::{Begun, IdempotencyKey, JobKey, Refused, Store, StoreUnavailable, Submission};

/// A submission with all that can be made of it before it has an id.
pub struct Prepared {
    call: Box<Call>,
    pub record: Record,
    /// Its message up to the content.
    head: Vec<u8>,
    pub submission_key: Option<IdempotencyKey>,
}

impl Prepared {
    /// What can be made of it at `now`.
    pub fn of(submission: Submission, now: Stamp) -> Self {
        let Submission { call, keep, key } = submission;
        let footprint = RECORD + ERROR_ROOM + call.footprint();
        let state = Stage::Pending {
            begun: Begun::No,
            keep,
            connection: call.connection,
            auth_type: call.auth_type,
            path: call.request.uri().path().to_owned(),
        };
        let record = Record { owner: call.owner.clone(), created: now, footprint, state };
        let head = message::request_head(&call.request);
        Self { call: Box::new(call), record, head, submission_key: key }
    }
}

/// What an offer comes to.
pub enum Submitted {
    /// A job that is there when the outcome says so, at once where there is none.
    New(JobId, Option<Outcome>),
    /// The job of an earlier one, which may be on its way yet; with the offer, to be made again if that
    /// comes to nothing.
    Known(JobId, Certain, Box<Prepared>),
}

/// Whether the job of an idempotency key is sure to be accepted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Certain {
    /// It is.
    Yes,
    /// It may yet be refused.
    NotYet,
}

impl DiskStore {
    /// Puts a submission on the accounts and hands it over, under one hold of the lock, so that ids
    /// reach the disk in their order.
    pub(super) fn offer(&self, offer: Prepared) -> Result<Submitted, Refused> {
        let mut state = self.shared.lock();
        if let Some(key) = &offer.submission_key
            && let Some((id, certain)) = self.known(&state, &offer.record.owner, key)?
        {
            return Ok(Submitted::Known(id, certain, Box::new(offer)));
        }
        let Prepared { call, record, head, submission_key: key } = offer;
        let (owner, now, footprint) = (record.owner.clone(), record.created, record.footprint);
        let keep = record.keep();
        let admitted = state.ledger.admit(Size { footprint, memory: RECORD }, key.as_ref())?;
        let id = state.ledger.next_id(now);
        let job = JobKey { owner, id };
        if let Some(key) = &key {
            state.ledger.put_key(&job, key, now, admitted.key);
        }
        let pending = |request| Box::new(Pending::queued(request, footprint, admitted.record, now));
        let request = (head, call.request.body().clone());
        let change = Change::Accept(Box::new(NewJob { id, record, request, key }));
        if self.durability == Durability::Relaxed && state.is_leased(id) {
            state.ledger.accept(job.clone(), pending(Request::Here(call)), keep);
            state.order(change, OnDurable::Settle(job), Ack::None, Urgency::Lazy);
            return Ok(Submitted::New(id, None));
        }
        let then = OnDurable::Accept(job, pending(Request::OnDisk), keep);
        Ok(Submitted::New(id, Some(state.ask(change, then))))
    }

    /// The job that was offered under this key.
    pub(super) fn known(
        &self,
        state: &State,
        owner: &Owner,
        key: &IdempotencyKey,
    ) -> Result<Option<(JobId, Certain)>, Refused> {
        let found = state.ledger.recall(owner, key)?;
        // Those who were answered before a commit are accepted, and so are those that were leased
        // since: the refused have lost their keys.
        let sure = |id| self.durability == Durability::Relaxed && state.is_leased(id);
        Ok(found.map(|id| (id, if sure(id) { Certain::Yes } else { Certain::NotYet })))
    }

    /// Waits until the job of a key is accepted. `None` if the key does not stand for it any more: it was
    /// refused, or forgotten with all jobs of its owner.
    pub(super) fn settle(
        &self,
        owner: &Owner,
        key: &IdempotencyKey,
        id: JobId,
        certain: Certain,
    ) -> Result<Option<JobId>, Refused> {
        if certain == Certain::Yes {
            return Ok(Some(id));
        }
        self.flush().map_err(|StoreUnavailable| Refused::StoreUnavailable)?;
        let found = self.shared.lock().ledger.recall(owner, key)?;
        Ok(found.filter(|found| *found == id))
    }
}
