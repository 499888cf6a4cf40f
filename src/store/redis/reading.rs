//! How jobs are looked up and waited for, and how results are delivered.
//!
//! Owns the reading of results and logs, including those of other instances. Invariant: what is read is charged before
//! it arrives.

use std::cell::Cell;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use redis::Value;

use super::operation::{Effect, Insist, Operation};
use super::record::Told;
use super::reply::Reply;
use super::settler::Task;
use super::{Inner, LIST, SPOOLED, lock, owner, script};
use crate::content::copied;
use crate::exchange::Owner;
use crate::job::log::LogEnd;
use crate::job::stored::StoredResponse;
use crate::job::{JobId, JobKey, Moment, message};
use crate::ledger::locked::Wake as _;
use crate::ledger::records::{Order, Step};
use crate::ledger::{JobState, Stats as LocalStats};
use crate::store::{
    DeliveryId, Filter, JobRecord, List, Lookup, Page, Stats, Status, StoreUnavailable,
};

impl Inner {
    /// Reads what the engine knows about a job; `None` if it does not exist.
    pub(super) fn look(&self, job: &JobKey, logs: bool) -> Result<Option<Told>, StoreUnavailable> {
        self.untold.wait(Some(job.id));
        let operation = Operation::new(&script::LOOK, Effect::Harmless)
            .with(owner(job))
            .with(job.id.to_string())
            .with(if logs { "1" } else { "0" });
        let reply = self.engine.run(&operation, Insist::No).map_err(|_| StoreUnavailable)?;
        Ok(Told::read(&reply))
    }

    /// Reads a result of `bytes`, after charging it.
    pub(super) fn response(&self, job: &JobKey, bytes: usize) -> Lookup {
        let budget = self.memory.budget().allowance();
        if bytes > budget.capacity() {
            return Lookup::TooLarge;
        }
        let Ok(charge) = budget.charge(bytes) else { return Lookup::NoMemory };
        let key = self.engine.key(&format!("r:{}", job.id));
        let _turn = (bytes > SPOOLED).then(|| lock(&self.large));
        let get: [&[u8]; 2] = [b"GET", key.as_bytes()];
        let Ok(mut answers) = self.engine.read(&[&get], Insist::No) else {
            return Lookup::Unreadable;
        };
        match answers.pop() {
            Some(Value::BulkString(text)) => {
                let response = message::read_response(copied(&text, charge), None);
                response.map_or(Lookup::Unreadable, Lookup::Done)
            }
            // It was deleted in the meantime.
            Some(Value::Nil) => Lookup::Unknown,
            _ => Lookup::Unreadable,
        }
    }

    /// Updates the record of a job that runs here from its handler.
    pub(super) fn freshen(&self, record: &mut JobRecord) {
        if record.end.is_none()
            && let Some(execution) = self.lock().execution(record.id)
        {
            record.progress = execution.progress();
            record.attempts = execution.attempts();
        }
    }

    pub(super) fn run(&self, operation: &Operation) -> Result<Reply, StoreUnavailable> {
        self.engine.run(operation, Insist::No).map_err(|trouble| {
            log::debug!("store: {trouble:?}");
            StoreUnavailable
        })
    }

    /// Returns the log of a job that runs in another instance, if that answers; otherwise the log kept from its last
    /// attempt.
    pub(super) fn log_elsewhere(&self, job: &JobKey, told: &Told) -> Option<LogEnd> {
        let instance = self.engine.key(&format!("i:{}", told.incarnation));
        let proc: [&[u8]; 3] = [b"HGET", instance.as_bytes(), b"proc"];
        let Ok(Some(Value::BulkString(process))) =
            self.engine.read(&[&proc], Insist::No).map(|mut all| all.pop())
        else {
            return None;
        };
        let channel = self.engine.key(&format!("c:{}", String::from_utf8_lossy(&process)));
        self.bell.ask_for_log(|name| {
            let question = format!("log {} {} {name}", job.id, self.engine.process());
            let publish: [&[u8]; 3] = [b"PUBLISH", channel.as_bytes(), question.as_bytes()];
            // If this fails, there is no answer, and the log stays unknown.
            let _ = self.engine.read(&[&publish], Insist::No);
        })
    }

    /// Answers another instance that asks for a log.
    pub(super) fn tell_log(&self, id: JobId, to: &str, name: u64) {
        let execution = self.lock().execution(id);
        let Some(execution) = execution else { return };
        let log = execution.log();
        let answer = [format!("said {name} {} ", log.offset).as_bytes(), &log.text].concat();
        let channel = self.engine.key(&format!("c:{to}"));
        let publish: [&[u8]; 3] = [b"PUBLISH", channel.as_bytes(), &answer];
        // If this fails, the other instance stops waiting soon.
        let _ = self.engine.read(&[&publish], Insist::No);
    }

    /// Returns whether a job is done or gone, as far as that can be determined.
    pub(super) fn is_over(&self, job: &JobKey) -> bool {
        match self.look(job, false) {
            Ok(Some(told)) => told.state == JobState::Done,
            Ok(None) => true,
            Err(StoreUnavailable) => false,
        }
    }

    /// Returns how much the store holds.
    pub(super) fn stats(&self) -> Result<Stats, StoreUnavailable> {
        self.untold.wait(None);
        let mut operation = Operation::new(&script::STATS, Effect::Harmless);
        for lane in &self.lanes {
            operation = operation.with(&**lane);
        }
        let reply = self.run(&operation)?;
        let LocalStats { running, by_lane, .. } = self.lock().ledger.stats();
        let by_lane = by_lane
            .iter()
            .enumerate()
            .map(|(n, (here, running))| (reply.size(7 + n) + here, *running));
        Ok(Stats {
            stored: reply.size(0),
            capacity: self.capacity,
            waiting: reply.size(2),
            delayed: reply.size(3),
            running,
            done: reply.size(5),
            oldest: reply.stamp(6),
            by_lane: by_lane.collect(),
        })
    }

    /// Returns the status of a job.
    pub(super) fn status(&self, job: &JobKey) -> Result<Option<Status>, StoreUnavailable> {
        let Some(told) = self.look(job, false)? else { return Ok(None) };
        if let Some(ending) = told.ending.filter(|_| told.state == JobState::Done) {
            return Ok(Some(Status::Done(ending)));
        }
        let here = self.lock().execution(job.id);
        let progress = here.map_or(told.progress, |execution| execution.progress());
        Ok(Some(Status::Pending(told.state, progress)))
    }

    /// Returns the end of what a job wrote to stderr, wherever it runs.
    pub(super) fn log(&self, job: &JobKey) -> Result<Option<LogEnd>, StoreUnavailable> {
        let Some(told) = self.look(job, !self.plan.log_ttl.is_zero())? else { return Ok(None) };
        if told.state == JobState::Running {
            let here = self.lock().execution(job.id);
            if let Some(execution) = here {
                return Ok(Some(execution.log()));
            }
            if let Some(log) = self.log_elsewhere(job, &told) {
                return Ok(Some(log));
            }
        }
        let key = self.engine.key(&format!("g:{}", job.id));
        let get: [&[u8]; 2] = [b"GET", key.as_bytes()];
        let mut answers = self.engine.read(&[&get], Insist::No).map_err(|_| StoreUnavailable)?;
        let text = match answers.pop() {
            Some(Value::BulkString(log)) => log.into(),
            _ => Box::default(),
        };
        Ok(Some(LogEnd { text, offset: told.logged }))
    }

    /// Reads a result; the store keeps it.
    pub(super) fn peek(&self, job: &JobKey) -> Lookup {
        match self.look(job, false) {
            Err(StoreUnavailable) => Lookup::Unreadable,
            Ok(None) => Lookup::Unknown,
            Ok(Some(told)) if told.state != JobState::Done => Lookup::Pending,
            Ok(Some(told)) => self.response(job, told.bytes),
        }
    }

    /// Waits until a job is done or gone, for at most `span`, or until `is_over`.
    pub(super) fn wait(&self, job: &JobKey, span: Duration, is_over: &dyn Fn() -> bool) {
        let deadline = Instant::now() + span;
        loop {
            if self.lock().is_stopped() || self.closed.load(Ordering::Acquire) {
                return;
            }
            let waiter = self.bell.watch(job.id);
            let operation = Operation::new(&script::WATCH, Effect::Harmless)
                .with(owner(job))
                .with(job.id.to_string());
            let watched = self.engine.run(&operation, Insist::No);
            if watched.is_ok_and(|reply| reply.text(0) != "pending") {
                return self.bell.unwatch(job.id, &waiter);
            }
            let looks = Cell::new(0_u32);
            let gone = Cell::new(false);
            let over = || {
                gone.set(is_over());
                // Called four times a second; a message may have been lost, so every second call asks the engine.
                gone.get() || (looks.replace(looks.get() + 1) % 2 == 1 && self.is_over(job))
            };
            let left = deadline.saturating_duration_since(Instant::now());
            waiter.wait(left, &over);
            self.bell.unwatch(job.id, &waiter);
            if gone.get()
                || Instant::now() >= deadline
                || !waiter.is_notified()
                || self.is_over(job)
            {
                return;
            }
        }
    }

    /// Lists ids.
    pub(super) fn list(
        &self,
        owner: &Owner,
        list: List,
        after: Option<JobId>,
        count: usize,
    ) -> Result<Vec<JobId>, StoreUnavailable> {
        self.untold.wait(None);
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
            let reply = self.run(&operation)?;
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

    /// Returns the record of a job.
    pub(super) fn record(&self, job: &JobKey) -> Result<Option<JobRecord>, StoreUnavailable> {
        let told = self.look(job, false)?;
        let mut record = told.and_then(|told| told.record(job.id, self.plan.ttl));
        record.iter_mut().for_each(|record| self.freshen(record));
        Ok(record)
    }

    /// Returns a page of records.
    pub(super) fn records(
        &self,
        owner: &Owner,
        filter: &Filter,
        after: Option<JobId>,
        count: usize,
    ) -> Result<Page, StoreUnavailable> {
        self.untold.wait(None);
        let failed = Cell::new(false);
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
            self.run(&operation).unwrap_or_else(|StoreUnavailable| {
                failed.set(true);
                Reply::default()
            })
        };
        let page = Page::collect(filter, after, count, |step| {
            let mut reply = read(step);
            let records = (0..reply.len()).filter_map(|n| {
                let mut entry = reply.take_list(n);
                let id = JobId::parse(entry.text(0))?;
                let mut record = Told::read(&entry.take_list(1))?.record(id, self.plan.ttl)?;
                self.freshen(&mut record);
                Some(record)
            });
            step.over(records)
        });
        if failed.get() { Err(StoreUnavailable) } else { Ok(page) }
    }

    /// Takes a result into delivery.
    pub(super) fn collect(&self, job: &JobKey) -> Lookup<(StoredResponse, DeliveryId)> {
        self.untold.wait(Some(job.id));
        let incarnation = self.incarnation();
        let operation = Operation::new(&script::COLLECT, Effect::Once)
            .with(incarnation.to_string())
            .with(owner(job))
            .with(job.id.to_string());
        let Ok(reply) = self.run(&operation) else { return Lookup::Unreadable };
        match reply.text(0) {
            "done" => {}
            "pending" => return Lookup::Pending,
            "unknown" => return Lookup::Unknown,
            "fenced" => {
                self.fenced(incarnation);
                return Lookup::Unreadable;
            }
            _ => return Lookup::Unreadable,
        }
        let delivery = DeliveryId(reply.number(2));
        let found = self.response(job, reply.size(3));
        if !matches!(found, Lookup::Done(_)) {
            self.restore(job, delivery);
        }
        found.map(|response| (response, delivery))
    }

    /// Records that a delivery succeeded.
    pub(super) fn confirm(&self, job: &JobKey, delivery: DeliveryId, now: Moment) {
        let ended = self.untold.add(job.id, delivery);
        // This fails only after the store was closed.
        let _ = self.tasks.send(Task::Confirm(ended, now));
    }

    /// Records that a delivery failed: the result can be collected again.
    pub(super) fn restore(&self, job: &JobKey, delivery: DeliveryId) {
        let ended = self.untold.add(job.id, delivery);
        let _ = self.tasks.send(Task::Restore(ended));
    }
}
