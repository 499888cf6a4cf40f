//! The promise of a store, kept by an engine.
//!
//! Owns which script keeps which part of it. What an instance does beside one script is in the files beside this.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use http::Response;
use redis::Value;

use super::operation::{Clock, Effect, Insist, Operation, Trouble};
use super::record::Told;
use super::reply::Reply;
use super::settler::Task;
use super::{Counters, FRESH, Inner, LIST, SharedStore, bytes_of, lock, owner, script};
use crate::content::Content;
use crate::error::Error;
use crate::exchange::Owner;
use crate::hex;
use crate::job::attempt::{Attempt, Claimed};
use crate::job::execution::Stop;
use crate::job::log::{JobLog, LogEnd};
use crate::job::outcome::Outcome as JobOutcome;
use crate::job::stored::StoredResponse;
use crate::job::{
    Age, ERROR_ROOM, JobId, JobKey, Keep, Moment, RECORD, RouteIndex, Stamp, message,
};
use crate::ledger::locked::Wake as _;
use crate::ledger::records::{Order, Step};
use crate::ledger::schedule::Turn;
use crate::ledger::{Next, Stats as LocalStats};
use crate::memory::Allowance;
use crate::store::disk::record::{Begun, Record, Stage};
use crate::store::{
    Accepted, DeliveryId, EngineStats, Filter, Finished, IdempotencyKey, JobRecord, List, Lookup,
    Page, Patience, Refused, Stats, Status, Store, StoreUnavailable, Submission, Tally,
};

impl Store for SharedStore {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn submit(&self, submission: Submission, now: Moment) -> Result<Accepted, Refused> {
        // The configuration refuses callbacks with this store: it has no notices.
        let Submission { call, route, line, keep, key, callback: _ } = submission;
        let inner = &self.0;
        let base = RECORD + line.footprint();
        let footprint = base + ERROR_ROOM + call.footprint();
        let state = Stage::Pending {
            begun: Begun::No,
            starts: 0,
            keep,
            connection: call.connection,
            auth_type: call.auth_type,
            // The lane is beside it, and the path is in the request.
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
            .with(&*inner.lanes[route.0])
            .with(record.to_text())
            .message(message::request_head(&call.request), &body)
            .number(base)
            .number(footprint)
            .number(inner.capacity)
            .number(inner.reserve)
            .number(inner.plan.queue)
            .number(inner.plan.workers)
            .with(key.as_ref().map_or("", |key| &*key.key))
            .with(fingerprint)
            .number(key.as_ref().map_or(0, IdempotencyKey::footprint));
        let reply = inner.engine.run(&operation, Insist::No).map_err(|trouble| match trouble {
            Trouble::Full => Refused::EngineFull,
            other => {
                log::debug!("store: {other:?}");
                Refused::Unavailable
            }
        })?;
        let id = JobId::parse(reply.text(1)).ok_or(Refused::Unavailable);
        match reply.text(0) {
            "new" => {
                inner.lock().ledger.tally_mut().submit(Some(route));
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

    fn stats(&self) -> Result<Stats, StoreUnavailable> {
        let inner = &self.0;
        inner.untold.wait(None);
        let mut operation = Operation::new(&script::STATS, Effect::Harmless);
        for lane in &inner.lanes {
            operation = operation.with(&**lane);
        }
        let reply = inner.run(&operation)?;
        let LocalStats { running, by_lane, .. } = inner.lock().ledger.stats();
        let by_lane = by_lane
            .iter()
            .enumerate()
            .map(|(n, (here, running))| (reply.size(7 + n) + here, *running));
        Ok(Stats {
            stored: reply.size(0),
            capacity: inner.capacity,
            waiting: reply.size(2),
            delayed: reply.size(3),
            running,
            done: reply.size(5),
            oldest: reply.stamp(6),
            by_lane: by_lane.collect(),
        })
    }

    fn tally(&self) -> Tally {
        let errors = self.0.engine.errors();
        Tally { errors, ..self.0.lock().ledger.tally().clone() }
    }

    fn recall(&self, owner: &Owner, key: &IdempotencyKey) -> Result<Option<JobId>, Refused> {
        let operation = Operation::new(&script::RECALL, Effect::Harmless)
            .with(owner.name().unwrap_or(""))
            .with(&*key.key)
            .with(hex::encode(&key.fingerprint));
        let reply = self.0.run(&operation).map_err(|StoreUnavailable| Refused::Unavailable)?;
        match reply.text(0) {
            "known" => Ok(JobId::parse(reply.text(1))),
            "reused" => Err(Refused::KeyReused),
            _ => Ok(None),
        }
    }

    fn check(&self, bytes: usize) -> Result<(), Refused> {
        let inner = &self.0;
        if inner.engine.is_failing() {
            return Err(Refused::Unavailable);
        }
        let bytes = bytes.saturating_add(RECORD + ERROR_ROOM + inner.reserve);
        if bytes > inner.capacity {
            return Err(Refused::TooLarge);
        }
        // While there is much room, what the last beat said is enough: the submission itself is exact.
        if inner.engine.clock() == Clock::Engine
            && let Some((at, Counters { bytes: stored, log_bytes, waiting })) =
                *lock(&inner.counters)
            && at.elapsed() < FRESH
            && (stored - log_bytes.min(stored)).saturating_add(bytes) < inner.capacity / 2
            && waiting < inner.plan.queue / 2
        {
            return Ok(());
        }
        inner.untold.wait(None);
        let operation = Operation::new(&script::STATS, Effect::Harmless);
        let reply = inner.run(&operation).map_err(|StoreUnavailable| Refused::Unavailable)?;
        let [stored, log_bytes, waiting, delayed, asleep] = [0, 1, 2, 3, 4].map(|n| reply.size(n));
        if (stored - log_bytes.min(stored)).saturating_add(bytes) > inner.capacity {
            return Err(Refused::Full);
        }
        let awake = (waiting + delayed).saturating_sub(asleep);
        if awake + asleep.saturating_sub(inner.plan.workers) >= inner.plan.queue {
            return Err(Refused::QueueFull);
        }
        Ok(())
    }

    fn claim(&self, memory: &Allowance, patience: Patience) -> Option<Claimed> {
        loop {
            match (self.0.next(memory), patience) {
                (Next::Job(claimed), _) => return Some(claimed),
                (Next::Closed, _) | (_, Patience::None) => return None,
                (Next::Nothing, Patience::Forever) => self.0.bell.wait_for_work(),
                (Next::NoMemory(least), Patience::Forever) => {
                    self.0.memory.budget().wait_for(least, || self.0.lock().is_stopped());
                }
            }
        }
    }

    fn retry(&self, job: &JobKey, attempt: Box<Attempt>, until: Instant, now: Moment) {
        let is_laid_down = if attempt.redirected.is_some() {
            // For the engine it runs all the while: what led to the redirect has had its effects.
            let mut local = self.0.lock();
            let is_lost = local.held(job.id).is_none_or(|held| held.is_lost);
            !is_lost && local.ledger.retry(job, attempt, until).is_ok()
        } else {
            self.0.delay(job, &attempt, until)
        };
        if !is_laid_down {
            self.0.finish(job, Error::Cancelled.response().into(), now);
        }
    }

    fn redirect(&self, job: &JobKey, attempt: Box<Attempt>, now: Moment) {
        let is_laid_down = {
            let mut local = self.0.lock();
            let is_lost = local.held(job.id).is_none_or(|held| held.is_lost);
            !is_lost && local.ledger.redirect(job, attempt).is_ok()
        };
        if is_laid_down {
            self.0.bell.wake_worker();
        } else {
            self.0.finish(job, Error::Cancelled.response().into(), now);
        }
    }

    fn overdue(&self, span: Duration) -> Vec<Claimed> {
        let inner = &self.0;
        let end = Instant::now() + span;
        loop {
            let now = Instant::now();
            let (is_due, next) = inner.next_due(now);
            if is_due {
                let mut slot = lock(&inner.timekeeper);
                // If it cannot be told now, the next beat does.
                if inner.engine.is_failing() || inner.end_due(&mut slot).is_err() {
                    log::debug!("store: delays end with the next beat");
                }
                inner.bell.wake_worker();
            }
            let until = next.map_or(end, |next| next.min(end));
            let jobs = inner.dispatch.overdue_or_wait(&inner.local, until, |local, now| {
                let overdue = local.ledger.overdue(now);
                // Workers of this store wait for the bell alone.
                if local.ledger.has_work() {
                    inner.bell.wake_worker();
                }
                overdue
            });
            if !jobs.is_empty() || now >= end {
                return jobs;
            }
        }
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
        let inner = &self.0;
        let deadline = Instant::now() + span;
        loop {
            if inner.lock().is_stopped() || inner.closed.load(Ordering::Acquire) {
                return;
            }
            let waiter = inner.bell.watch(job.id);
            let operation = Operation::new(&script::WATCH, Effect::Harmless)
                .with(owner(job))
                .with(job.id.to_string());
            let watched = inner.engine.run(&operation, Insist::No);
            if watched.is_ok_and(|reply| reply.text(0) != "pending") {
                return inner.bell.unwatch(job.id, &waiter);
            }
            let looks = std::cell::Cell::new(0_u32);
            let gone = std::cell::Cell::new(false);
            let over = || {
                gone.set(is_over());
                // Four times a second; the bell may have been missed, so the engine is asked with every second look.
                gone.get() || (looks.replace(looks.get() + 1) % 2 == 1 && inner.is_over(job))
            };
            let left = deadline.saturating_duration_since(Instant::now());
            waiter.wait(left, &over);
            inner.bell.unwatch(job.id, &waiter);
            if gone.get()
                || Instant::now() >= deadline
                || !waiter.is_notified()
                || inner.is_over(job)
            {
                return;
            }
        }
    }

    fn status(&self, job: &JobKey) -> Result<Option<Status>, StoreUnavailable> {
        let Some(told) = self.0.look(job, "0")? else { return Ok(None) };
        if let Some(ending) = told.ending.filter(|_| told.state == crate::store::JobState::Done) {
            return Ok(Some(Status::Done(ending)));
        }
        let here = self.0.lock().execution(job.id);
        let progress = here.map_or(told.progress, |execution| execution.progress());
        Ok(Some(Status::Pending(told.state, progress)))
    }

    fn log(&self, job: &JobKey) -> Result<Option<LogEnd>, StoreUnavailable> {
        let Some(told) = self.0.look(job, "1")? else { return Ok(None) };
        if told.state == crate::store::JobState::Running {
            let here = self.0.lock().execution(job.id);
            if let Some(execution) = here {
                return Ok(Some(execution.log()));
            }
            if let Some(log) = self.0.log_elsewhere(job, &told) {
                return Ok(Some(log));
            }
        }
        let key = self.0.engine.key(&format!("g:{}", job.id));
        let get: [&[u8]; 2] = [b"GET", key.as_bytes()];
        let mut answers = self.0.engine.read(&[&get], Insist::No).map_err(|_| StoreUnavailable)?;
        let text = match answers.pop() {
            Some(Value::BulkString(log)) => log.into(),
            _ => Box::default(),
        };
        Ok(Some(LogEnd { text, offset: told.logged }))
    }

    fn growing_log(&self, job: &JobKey) -> Option<Arc<JobLog>> {
        Some(self.0.lock().execution(job.id)?.growing_log())
    }

    fn peek(&self, job: &JobKey) -> Lookup {
        match self.0.look(job, "0") {
            Err(StoreUnavailable) => Lookup::Unreadable,
            Ok(None) => Lookup::Unknown,
            Ok(Some(told)) if told.state != crate::store::JobState::Done => Lookup::Pending,
            Ok(Some(told)) => self.0.response(job, told.bytes),
        }
    }

    fn collect(&self, job: &JobKey) -> Lookup<(StoredResponse, DeliveryId)> {
        let inner = &self.0;
        inner.untold.wait(Some(job.id));
        let incarnation = inner.incarnation();
        let operation = Operation::new(&script::COLLECT, Effect::Once)
            .with(incarnation.to_string())
            .with(owner(job))
            .with(job.id.to_string());
        let Ok(reply) = inner.run(&operation) else { return Lookup::Unreadable };
        match reply.text(0) {
            "done" => {}
            "pending" => return Lookup::Pending,
            "unknown" => return Lookup::Unknown,
            "fenced" => {
                inner.fenced(incarnation);
                return Lookup::Unreadable;
            }
            _ => return Lookup::Unreadable,
        }
        let delivery = DeliveryId(reply.number(2));
        let found = inner.response(job, reply.size(3));
        if !matches!(found, Lookup::Done(_)) {
            self.restore(job, delivery);
        }
        found.map(|response| (response, delivery))
    }

    fn confirm(&self, job: &JobKey, delivery: DeliveryId, now: Moment) {
        let ended = self.0.untold.add(job.id, delivery);
        // Its end is that of the store.
        let _ = self.0.tasks.send(Task::Confirm(ended, now));
    }

    fn restore(&self, job: &JobKey, delivery: DeliveryId) {
        let ended = self.0.untold.add(job.id, delivery);
        let _ = self.0.tasks.send(Task::Restore(ended));
    }

    fn cancel(&self, job: &JobKey, now: Moment) -> Result<bool, StoreUnavailable> {
        let inner = &self.0;
        inner.untold.wait(Some(job.id));
        let operation = Operation::new(&script::CANCEL, Effect::Replicated)
            .at(now)
            .with(owner(job))
            .with(job.id.to_string())
            .with(&inner.cancelled.message)
            .number(inner.cancelled.footprint)
            .with(&inner.cancelled.ending);
        let reply = inner.run(&operation)?;
        match reply.text(0) {
            "running" => inner.stop_job(job.id),
            "ended" => {
                let created = reply.stamp(2).unwrap_or(now.stamp);
                inner.count_finished(
                    reply.text(1),
                    JobOutcome::Canceled,
                    created,
                    reply.attempts(3),
                    now.stamp,
                );
                inner.bell.ring(job.id);
            }
            "done" => {}
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn forget(&self, job: &JobKey) -> Result<bool, StoreUnavailable> {
        self.0.untold.wait(Some(job.id));
        let operation = Operation::new(&script::FORGET, Effect::Replicated)
            .with(owner(job))
            .with(job.id.to_string());
        let reply = self.0.run(&operation)?;
        self.0.bell.ring(job.id);
        Ok(reply.text(0) == "forgotten")
    }

    fn forget_all(&self, owner: &Owner) -> Result<(), StoreUnavailable> {
        let operation = Operation::new(&script::FORGET_ALL, Effect::Replicated)
            .with(owner.name().unwrap_or(""));
        self.0.run(&operation)?;
        while self.0.run(&Operation::new(&script::PURGE, Effect::Once))?.text(0) == "more" {}
        Ok(())
    }

    fn forget_before(&self, owner: &Owner, before: Stamp) -> Result<(), StoreUnavailable> {
        self.0.untold.wait(None);
        self.0.forget_list(owner, before, "p")?;
        self.0.forget_list(owner, before, "d")
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
        self.0.untold.wait(None);
        let list = match list {
            List::Pending => "p",
            List::Done => "d",
        };
        let mut ids = Vec::new();
        let mut after = after.map_or(0, JobId::number);
        while ids.len() < count {
            let most = (count - ids.len()).min(LIST);
            let operation = Operation::new(&script::LIST, Effect::Harmless)
                .with(owner.name().unwrap_or(""))
                .with(list)
                .number(after)
                .number(most);
            let reply = self.0.run(&operation)?;
            let page: Vec<JobId> =
                (0..reply.len()).filter_map(|n| JobId::parse(reply.text(n))).collect();
            let is_last = page.len() < most;
            ids.extend(page);
            match ids.last() {
                Some(last) if !is_last => after = last.number(),
                _ => break,
            }
        }
        Ok(ids)
    }

    fn record(&self, job: &JobKey) -> Result<Option<JobRecord>, StoreUnavailable> {
        let told = self.0.look(job, "0")?;
        let mut record = told.and_then(|told| told.record(job.id, self.0.plan.ttl));
        record.iter_mut().for_each(|record| self.0.freshen(record));
        Ok(record)
    }

    fn records(
        &self,
        owner: &Owner,
        filter: &Filter,
        after: Option<JobId>,
        count: usize,
    ) -> Result<Page, StoreUnavailable> {
        let inner = &self.0;
        inner.untold.wait(None);
        let failed = std::cell::Cell::new(false);
        let read = |step: &Step<'_>| {
            let is_descending = step.order() == Order::Descending;
            let first = if is_descending { "+inf" } else { "-inf" };
            let behind = step.after().map_or_else(|| first.to_owned(), |id| format!("({id}"));
            let [pending, done] = step.lists().map(|looks| if looks { "1" } else { "0" });
            let operation = Operation::new(&script::RECORDS, Effect::Harmless)
                .with(owner.name().unwrap_or(""))
                .with(pending)
                .with(done)
                .with(behind)
                .number(step.looks() + 1)
                .with(if is_descending { "1" } else { "0" });
            inner.run(&operation).unwrap_or_else(|StoreUnavailable| {
                failed.set(true);
                Reply::default()
            })
        };
        let page = Page::collect(filter, after, count, |step| {
            let mut reply = read(step);
            let records = (0..reply.len()).filter_map(|n| {
                let mut entry = reply.take_list(n);
                let id = JobId::parse(entry.text(0))?;
                let mut record = Told::read(&entry.take_list(1))?.record(id, inner.plan.ttl)?;
                inner.freshen(&mut record);
                Some(record)
            });
            step.over(records)
        });
        if failed.get() { Err(StoreUnavailable) } else { Ok(page) }
    }

    fn is_idle(&self) -> bool {
        let local = self.0.lock();
        // What is on its way here comes back from the engine, unless that fails.
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
