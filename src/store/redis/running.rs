//! How a job that runs here ends: with its result, delayed, redirected, or cancelled.
//!
//! Owns what is sent to the engine about a run. Invariants: a result is sent until the engine has answered; nothing is
//! sent about a run that the engine has taken away.

use std::time::{Duration, Instant};

use super::local::Held;
use super::operation::{Effect, Insist, Operation, Outcome, Trouble};
use super::{Inner, bytes_of, lock, message_of, owner, record, script};
use crate::error::Error;
use crate::job::attempt::{Attempt, Claimed};
use crate::job::execution::Stop;
use crate::job::log::LogEnd;
use crate::job::outcome::Outcome as JobOutcome;
use crate::job::stored::{StoredResponse, StoredResult};
use crate::job::{JobId, JobKey, Moment, message};
use crate::ledger::locked::Wake as _;
use crate::memory::allocated;
use crate::store::{Finished, Refused, StoreUnavailable};

impl Inner {
    /// Sends a job's result to the engine: first as it is, and if it does not fit, the error that replaces it.
    pub(super) fn tell_result(
        &self,
        (id, fence, incarnation): (JobId, u64, u64),
        response: &StoredResponse,
        (log, attempts): (&LogEnd, u32),
        now: Moment,
        (is_forced, insist): (bool, Insist),
    ) -> Outcome {
        let body = bytes_of(response.body())
            .map_err(|error| Trouble::Refused(format!("the result cannot be read: {error}")))?;
        let operation = Operation::new(&script::FINISH, Effect::Replicated)
            .at(now)
            .with(incarnation.to_string())
            .with(id.to_string())
            .with(fence.to_string())
            .message(message::response_head(response), &body)
            .number(response.footprint())
            .with(record::ending(response))
            .with(&log.text)
            .number(allocated(log.text.len()))
            .number(self.capacity)
            .with(if is_forced { "1" } else { "0" })
            .number(self.cancelled.footprint)
            .with(&self.cancelled.ending)
            .with(attempts.to_string())
            .with(log.offset.to_string());
        self.engine.run(&operation, insist)
    }

    /// Finishes a job that runs here.
    pub(super) fn finish(&self, job: &JobKey, response: StoredResponse, now: Moment) -> Finished {
        let (id, result, attempts, fence, incarnation) = {
            let mut local = self.lock();
            if local.ledger.abandon(job) {
                local.remove(job.id);
                return Finished::Left;
            }
            let Some(finishing) = local.ledger.begin_finish(job, response) else {
                return Finished::Dropped;
            };
            let Some(Held { fence, incarnation, is_lost, .. }) = local.held(job.id) else {
                return Finished::Dropped;
            };
            let (id, result) = (job.id, finishing.result);
            if *is_lost {
                let summary = result.summary();
                local.remove(id);
                return local.ledger.finish(job, (), summary, now);
            }
            (id, result, finishing.attempts, *fence, *incarnation)
        };
        let run = (id, fence, incarnation);
        let mut result = result;
        let tell = |result: &StoredResult, is_forced| {
            let beside = (&result.log, attempts.count);
            self.tell_result(run, &result.response, beside, now, (is_forced, Insist::Yes))
        };
        let mut told = tell(&result, false);
        let instead = match &told {
            Ok(reply) if reply.text(0) == "full" => Some(Refused::Full.of_result()),
            Err(Trouble::Refused(why)) => Some(Error::Internal(why.clone().into())),
            _ => None,
        };
        if let Some(error) = &instead {
            result = result.without_room(error);
            told = tell(&result, true);
        }
        let word = told.as_ref().ok().map(|reply| reply.text(0));
        if word == Some("fenced") {
            self.fenced(incarnation);
        }
        let is_cancelled = word == Some("cancelled");
        let mut summary = result.summary();
        if is_cancelled {
            summary.ending.outcome = JobOutcome::Canceled;
        }
        let mut local = self.lock();
        let held = local.remove(id);
        local.ledger.finish(job, (), summary, now);
        drop(local);
        if let Some(execution) = held.and_then(|held| held.execution)
            && is_cancelled
        {
            execution.stop(Stop::Cancel);
        }
        self.bell.ring(id);
        match word {
            // The store was closed in the meantime.
            None => Finished::Left,
            Some("kept") if instead.is_none() => Finished::Kept,
            Some("kept" | "cancelled" | "dropped" | "lost" | "fenced") => Finished::Dropped,
            Some(other) => {
                log::error!("job={id} has no result: the engine answers {other:?} to finish");
                // For the engine, the job is still running.
                self.engine.note_changed();
                Finished::Dropped
            }
        }
    }

    /// Delays a job that runs here; returns `false` if the caller must finish it.
    pub(super) fn delay(&self, job: &JobKey, attempt: &Attempt, until: Instant) -> bool {
        let found = {
            let local = self.lock();
            if local.is_stopped() {
                return false;
            }
            local
                .held(job.id)
                .filter(|held| !held.is_lost)
                .map(|held| (held.fence, held.incarnation))
        };
        let Some((fence, incarnation)) = found else { return false };
        let execution = &attempt.execution;
        let log = execution.log();
        let response =
            attempt.answer.as_ref().map(|answer| StoredResponse::from(answer.response.clone()));
        let message = match response.as_ref().map_or_else(|| Ok(Vec::new()), message_of) {
            Ok(message) => message,
            Err(error) => {
                log::error!("job={}: its answer cannot be read: {error}", job.id);
                return false;
            }
        };
        let footprint = response.as_ref().map_or(0, StoredResponse::footprint);
        let ending = response.as_ref().map(record::ending).unwrap_or_default();
        let delay = until.saturating_duration_since(Instant::now());
        let operation = Operation::new(&script::RETRY, Effect::Replicated)
            .with(incarnation.to_string())
            .with(job.id.to_string())
            .with(fence.to_string())
            .number(delay.as_micros())
            .with(attempt.made.to_string())
            .with(attempt.shortages.to_string())
            .with(&log.text)
            .with(execution.progress().unwrap_or_default())
            .with(message)
            .number(footprint)
            .with(ending)
            .with(log.offset.to_string());
        let told = self.engine.run(&operation, Insist::Yes);
        match told.as_ref().map_or("", |reply| reply.text(0)) {
            "delayed" => {
                lock(&self.due).insert(until);
                let mut local = self.lock();
                local.ledger.let_go(job);
                local.remove(job.id);
                local.wake_timekeeper();
                true
            }
            "fenced" => {
                self.fenced(incarnation);
                false
            }
            _ => false,
        }
    }

    /// Returns when the next delay that began here is over; removes those that are over.
    pub(super) fn next_due(&self, now: Instant) -> (bool, Option<Instant>) {
        let mut due = lock(&self.due);
        let later = due.split_off(&(now + Duration::from_nanos(1)));
        let is_due = !std::mem::replace(&mut *due, later).is_empty();
        (is_due, due.first().copied())
    }

    /// Delays a job that will be retried.
    pub(super) fn retry(&self, job: &JobKey, attempt: Box<Attempt>, until: Instant, now: Moment) {
        let is_laid_down = if attempt.redirected.is_some() {
            // For the engine, the job stays running: what led to the redirect has had its effects.
            let mut local = self.lock();
            let is_lost = local.held(job.id).is_none_or(|held| held.is_lost);
            !is_lost && local.ledger.retry(job, attempt, until).is_ok()
        } else {
            self.delay(job, &attempt, until)
        };
        if !is_laid_down {
            self.finish(job, Error::Cancelled.response().into(), now);
        }
    }

    /// Makes a job wait in the lane of its redirect's target.
    pub(super) fn redirect(&self, job: &JobKey, attempt: Box<Attempt>, now: Moment) {
        let is_laid_down = {
            let mut local = self.lock();
            let is_lost = local.held(job.id).is_none_or(|held| held.is_lost);
            !is_lost && local.ledger.redirect(job, attempt).is_ok()
        };
        if is_laid_down {
            self.bell.wake_worker();
        } else {
            self.finish(job, Error::Cancelled.response().into(), now);
        }
    }

    /// Waits for jobs that must be finished, and ends delays in the meantime.
    pub(super) fn overdue(&self, span: Duration) -> Vec<Claimed> {
        let end = Instant::now() + span;
        loop {
            let now = Instant::now();
            let (is_due, next) = self.next_due(now);
            if is_due {
                let mut slot = lock(&self.timekeeper);
                // If this fails now, the next beat does it.
                if self.engine.is_failing() || self.end_due(&mut slot).is_err() {
                    log::debug!("store: delays end with the next beat");
                }
                self.bell.wake_worker();
            }
            let until = next.map_or(end, |next| next.min(end));
            let jobs = self.dispatch.overdue_or_wait(&self.local, until, |local, now| {
                let overdue = local.ledger.overdue(now);
                // Workers of this store are woken only by the bell.
                if local.ledger.has_work() {
                    self.bell.wake_worker();
                }
                overdue
            });
            if !jobs.is_empty() || now >= end {
                return jobs;
            }
        }
    }

    /// Cancels a job, wherever it is.
    pub(super) fn cancel(&self, job: &JobKey, now: Moment) -> Result<bool, StoreUnavailable> {
        self.untold.wait(Some(job.id));
        let operation = Operation::new(&script::CANCEL, Effect::Replicated)
            .at(now)
            .with(owner(job))
            .with(job.id.to_string())
            .with(&self.cancelled.message)
            .number(self.cancelled.footprint)
            .with(&self.cancelled.ending);
        let reply = self.run(&operation)?;
        match reply.text(0) {
            "running" => self.stop_job(job.id),
            "ended" => {
                let created = reply.stamp(2).unwrap_or(now.stamp);
                self.count_finished(
                    reply.text(1),
                    JobOutcome::Canceled,
                    created,
                    reply.attempts(3),
                    now.stamp,
                );
                self.bell.ring(job.id);
            }
            "done" => {}
            _ => return Ok(false),
        }
        Ok(true)
    }
}
