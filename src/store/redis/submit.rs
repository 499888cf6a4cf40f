//! How a job is accepted.
//!
//! Owns what is sent to the engine about a request, and which of its counters are used without asking. Invariant: what
//! the engine has not acknowledged was not accepted.

use super::operation::{Clock, Effect, Insist, Operation, Trouble};
use super::{Counters, FRESH, Inner, bytes_of, lock, script};
use crate::exchange::Owner;
use crate::hex;
use crate::job::{ERROR_ROOM, JobId, Keep, Moment, RECORD, message};
use crate::store::disk::record::{Begun, Record, Stage};
use crate::store::{Accepted, IdempotencyKey, Refused, StoreUnavailable, Submission};

impl Inner {
    /// Accepts a job, if there is room for it.
    pub(super) fn submit(&self, submission: Submission, now: Moment) -> Result<Accepted, Refused> {
        // The configuration refuses callbacks with this store: it has no notices.
        let Submission { call, route, line, keep, key, callback: _ } = submission;
        let base = RECORD + line.footprint();
        let footprint = base + ERROR_ROOM + call.footprint();
        let state = Stage::Pending {
            begun: Begun::No,
            starts: 0,
            keep,
            connection: call.connection,
            auth_type: call.auth_type,
            // The lane is a separate argument, and the path is in the request.
            path: String::new(),
            callback: None,
        };
        let owner = call.owner.clone();
        let record = Record { owner: owner.clone(), created: now.stamp, footprint, line, state };
        let fingerprint = key.as_ref().map(|key| hex::encode(&key.fingerprint)).unwrap_or_default();
        let body = bytes_of(call.request.body()).map_err(|error| {
            log::error!("a request cannot be read: {error}");
            Refused::Unavailable
        })?;
        let operation = Operation::new(&script::SUBMIT, Effect::Replicated)
            .at(now)
            .with(owner.name().unwrap_or(""))
            .with(if keep == Keep::Result { "1" } else { "0" })
            .with(&*self.lanes[route.0])
            .with(record.to_text())
            .message(message::request_head(&call.request), &body)
            .number(base)
            .number(footprint)
            .number(self.capacity)
            .number(self.reserve)
            .number(self.plan.queue)
            .number(self.plan.workers)
            .with(key.as_ref().map_or("", |key| &*key.key))
            .with(fingerprint)
            .number(key.as_ref().map_or(0, IdempotencyKey::footprint));
        let reply = self.engine.run(&operation, Insist::No).map_err(|trouble| match trouble {
            Trouble::Full => Refused::EngineFull,
            other => {
                log::debug!("store: {other:?}");
                Refused::Unavailable
            }
        })?;
        let id = JobId::parse(reply.text(1)).ok_or(Refused::Unavailable);
        match reply.text(0) {
            "new" => {
                self.lock().ledger.tally_mut().submit(Some(route));
                id.map(Accepted::New)
            }
            "known" => id.map(Accepted::Known),
            "reused" => Err(Refused::KeyReused),
            "full" => Err(Refused::Full),
            "large" => Err(Refused::TooLarge),
            "queue" => Err(Refused::QueueFull),
            "keys" => Err(Refused::ManyKeys),
            _ => Err(Refused::Unavailable),
        }
    }

    /// Returns the job that was accepted under a key.
    pub(super) fn recall(
        &self,
        owner: &Owner,
        key: &IdempotencyKey,
    ) -> Result<Option<JobId>, Refused> {
        let operation = Operation::new(&script::RECALL, Effect::Harmless)
            .with(owner.name().unwrap_or(""))
            .with(&*key.key)
            .with(hex::encode(&key.fingerprint));
        let reply = self.run(&operation).map_err(|StoreUnavailable| Refused::Unavailable)?;
        match reply.text(0) {
            "known" => Ok(JobId::parse(reply.text(1))),
            "reused" => Err(Refused::KeyReused),
            _ => Ok(None),
        }
    }

    /// Checks whether there may be room for a job of this many bytes, before its content is read.
    pub(super) fn check(&self, bytes: usize) -> Result<(), Refused> {
        if self.engine.is_failing() {
            return Err(Refused::Unavailable);
        }
        let bytes = bytes.saturating_add(RECORD + ERROR_ROOM + self.reserve);
        if bytes > self.capacity {
            return Err(Refused::TooLarge);
        }
        // While there is much room, the last beat's counters suffice: the submission itself is exact.
        if self.engine.clock() == Clock::Engine
            && let Some((at, Counters { bytes: stored, log_bytes, waiting })) =
                *lock(&self.counters)
            && at.elapsed() < FRESH
            && (stored - log_bytes.min(stored)).saturating_add(bytes) < self.capacity / 2
            && waiting < self.plan.queue / 2
        {
            return Ok(());
        }
        self.untold.wait(None);
        let operation = Operation::new(&script::STATS, Effect::Harmless);
        let reply = self.run(&operation).map_err(|StoreUnavailable| Refused::Unavailable)?;
        let [stored, log_bytes, waiting, delayed, asleep] = [0, 1, 2, 3, 4].map(|n| reply.size(n));
        if (stored - log_bytes.min(stored)).saturating_add(bytes) > self.capacity {
            return Err(Refused::Full);
        }
        let awake = (waiting + delayed).saturating_sub(asleep);
        if awake + asleep.saturating_sub(self.plan.workers) >= self.plan.queue {
            return Err(Refused::QueueFull);
        }
        Ok(())
    }
}
