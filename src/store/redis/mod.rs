//! The shared store: several deferd have one queue and one set of results, on Redis or Valkey.
//!
//! Owns what is of one instance: what it runs, its lanes, and its word to the engine, where all jobs are. Each operation
//! is one script (`script`, `scripts/*.lua`), sent by `engine`, which sends it again until it knows the outcome. `claim`
//! takes jobs, `keeper` keeps the instance alive, `settler` tells of deliveries, `bell` hears what others say.
//! Invariants: what the engine has not acknowledged was not promised; only the engine's word takes a job from an
//! instance; a job that was taken away leaves no result.

mod bell;
mod claim;
mod engine;
mod keeper;
mod local;
mod open;
mod record;
mod reply;
mod script;
mod settler;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ::redis::Value;
use bytes::Bytes;
use crossbeam_channel::Sender;
use http::Response;

use self::bell::Bell;
use self::engine::{Effect, Engine, Insist, Operation, Outcome, Trouble};
use self::local::{Held, Local};
use self::record::Told;
use self::reply::Reply;
use self::settler::{Task, Untold};
use super::disk::record::{Begun, Record, Stage};
use super::{
    Accepted, DeliveryId, EngineStats, Filter, Finished, IdempotencyKey, JobRecord, List, Lookup,
    Page, Patience, Plan, Refused, Stats, Status, Store, StoreUnavailable, Submission, Tally,
};
use crate::clock;
use crate::content::{Content, copied};
use crate::error::Error;
use crate::exchange::Owner;
use crate::job::attempt::{Attempt, Claimed};
use crate::job::execution::{Attempts, Stop};
use crate::job::log::{JobLog, LogEnd};
use crate::job::outcome::Outcome as JobOutcome;
use crate::job::stored::StoredResponse;
use crate::job::{
    Age, ERROR_ROOM, JobId, JobKey, Keep, Moment, RECORD, RouteIndex, Stamp, message,
};
use crate::ledger::locked::{Dispatch, Locked, Wake as _};
use crate::ledger::records::{Order, Step};
use crate::ledger::schedule::Turn;
use crate::ledger::{Next, Stats as LocalStats};
use crate::memory::{Allowance, allocated};

pub use self::engine::Clock;

/// From which size on a message is sent ahead of its script, and read alone, in bytes.
const SPOOLED: usize = 64 * 1024;

/// How many ids one script lists at most.
const LIST: usize = 50_000;

/// How long the end waits for the engine.
const CLOSE_TIME: Duration = Duration::from_secs(5);

/// How long the engine's counters are believed without asking again.
const FRESH: Duration = Duration::from_secs(2);

/// How an instance shares jobs.
#[derive(Clone, Debug)]
pub struct Sharing {
    /// Where the engine is.
    pub address: crate::config::StoreAddress,
    /// How long an instance that is not heard of keeps what it runs.
    pub lease: Duration,
    /// What the engine has to promise.
    pub durability: crate::config::Durability,
    /// Which clock stamps jobs.
    pub clock: Clock,
    /// What holds the promises.
    pub switches: Switches,
}

/// What holds the promises. A test can do without each, to show what it is for.
#[derive(Clone, Copy, Debug)]
pub struct Switches {
    /// Whether an operation that is sent again happens once.
    pub memo: bool,
    /// Whether a result is taken only from the run that the job has.
    pub fence: bool,
    /// Whether nothing is reaped after a time in which no instance reached the engine.
    pub mercy: bool,
}

impl Default for Switches {
    fn default() -> Self {
        Self { memo: true, fence: true, mercy: true }
    }
}

impl Switches {
    /// Returns all of them but that which a test names in `DEFERD_TEST_WITHOUT`. Only a build with debug assertions asks
    /// for that variable.
    pub fn of_process() -> Self {
        if !cfg!(debug_assertions) {
            return Self::default();
        }
        let without = std::env::var("DEFERD_TEST_WITHOUT").unwrap_or_default();
        Self { memo: without != "memo", fence: without != "fence", mercy: without != "mercy" }
    }
}

/// Jobs that several deferd share.
pub struct SharedStore(Arc<Inner>);

/// What the threads of an instance share.
struct Inner {
    engine: Engine,
    local: Mutex<Local>,
    dispatch: Dispatch,
    bell: Bell,
    tasks: Sender<Task>,
    untold: Untold,
    plan: Plan,
    capacity: usize,
    reserve: usize,
    memory: Allowance,
    /// The prefix of each route, at its index: the name of its lane.
    lanes: Vec<Box<str>>,
    lease: Duration,
    switches: Switches,
    durability: crate::config::Durability,
    /// The incarnation that lives; zero while there is none.
    incarnation: AtomicU64,
    counters: Mutex<Option<(Instant, Counters)>>,
    /// When delays end that began here.
    due: Mutex<BTreeSet<Instant>>,
    /// Held while a large message is read.
    large: Mutex<()>,
    /// `410`, and `500`.
    cancelled: Standing,
    interrupted: Standing,
    fenced: AtomicU64,
    reaped: AtomicU64,
    closed: AtomicBool,
}

/// A result that the engine may have to give a job by itself.
struct Standing {
    message: Vec<u8>,
    footprint: usize,
    ending: String,
}

/// What the engine counts.
#[derive(Clone, Copy)]
struct Counters {
    bytes: usize,
    log_bytes: usize,
    waiting: usize,
}

impl Standing {
    fn of(error: &Error) -> Self {
        let response = StoredResponse::from(error.response());
        let mut message = message::response_head(&response);
        message.extend_from_slice(&bytes_of(response.body()));
        Self { message, footprint: response.footprint(), ending: record::ending(&response) }
    }
}

impl Inner {
    fn lock(&self) -> Locked<'_, Local> {
        self.dispatch.lock(&self.local)
    }

    fn incarnation(&self) -> u64 {
        self.incarnation.load(Ordering::Acquire)
    }

    fn set_incarnation(&self, incarnation: u64) {
        self.incarnation.store(incarnation, Ordering::Release);
    }

    fn set_counters(&self, counters: Counters) {
        *lock(&self.counters) = Some((Instant::now(), counters));
    }

    fn count_reaped(&self, jobs: u64) {
        self.reaped.fetch_add(jobs, Ordering::Relaxed);
    }

    /// Returns what instances that share a queue should agree on.
    fn limits(&self) -> String {
        let Self { plan, capacity, durability, .. } = self;
        format!(
            "queue={} max-stored={capacity} ttl={:?} durability={durability:?}",
            plan.queue, plan.ttl
        )
    }

    /// Adds what the engine gives jobs by itself to an operation.
    fn with_errors(&self, operation: Operation) -> Operation {
        let Self { cancelled, interrupted, .. } = self;
        operation
            .with(&interrupted.message)
            .number(interrupted.footprint)
            .with(&interrupted.ending)
            .number(cancelled.footprint)
            .with(&cancelled.ending)
    }

    /// Gives up what an incarnation has: the engine took it for dead.
    fn fenced(&self, incarnation: u64) {
        let mut local = self.lock();
        let lives =
            self.incarnation.compare_exchange(incarnation, 0, Ordering::AcqRel, Ordering::Acquire);
        if incarnation == 0 || lives.is_err() {
            return;
        }
        let count = local.lose(|held| held.incarnation == incarnation);
        drop(local);
        self.fenced.fetch_add(1, Ordering::Relaxed);
        log::warn!(
            "store: this instance was not heard of for longer than --lease, and is taken for dead: {count} jobs here \
             are stopped, and it joins anew"
        );
    }

    fn count_finished(
        &self,
        lane: &str,
        outcome: JobOutcome,
        created: Stamp,
        attempts: Attempts,
        now: Stamp,
    ) {
        let route = self.route(lane);
        self.lock().ledger.tally_mut().finish(route, outcome, created, attempts, now);
    }

    /// Reads what the engine knows of a job; `None` if it does not exist.
    fn look(&self, job: &JobKey, logs: &str) -> Result<Option<Told>, StoreUnavailable> {
        self.untold.wait(Some(job.id));
        let operation = Operation::new(&script::LOOK, Effect::Harmless)
            .with(owner(job))
            .with(job.id.to_string())
            .with(logs);
        let reply = self.engine.run(&operation, Insist::No).map_err(|_| StoreUnavailable)?;
        Ok(Told::read(&reply))
    }

    /// Tells the engine a job's result: at first as it is, then the error that stands for one that finds no room.
    fn tell_result(
        &self,
        (id, fence, incarnation): (JobId, u64, u64),
        response: &StoredResponse,
        (log, attempts): (&LogEnd, u32),
        now: Moment,
        is_forced: bool,
    ) -> Outcome {
        let operation = Operation::new(&script::FINISH, Effect::Replicated)
            .at(now)
            .with(incarnation.to_string())
            .with(id.to_string())
            .with(fence.to_string())
            .message(message::response_head(response), &bytes_of(response.body()))
            .number(response.footprint())
            .with(record::ending(response))
            .with(&log.text)
            .number(allocated(log.text.len()))
            .number(self.capacity)
            .with(if is_forced { "1" } else { "0" })
            .number(self.cancelled.footprint)
            .with(&self.cancelled.ending)
            .with(attempts.to_string())
            .with(if self.switches.fence { "1" } else { "0" })
            .with(log.offset.to_string());
        self.engine.run(&operation, Insist::Yes)
    }

    /// Finishes a job that runs here.
    fn finish(&self, job: &JobKey, response: StoredResponse, now: Moment) -> Finished {
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
        let mut told =
            self.tell_result(run, &result.response, (&result.log, attempts.count), now, false);
        if told.as_ref().is_ok_and(|reply| reply.text(0) == "full") {
            result = result.without_room(&Refused::Full.of_result());
            told =
                self.tell_result(run, &result.response, (&result.log, attempts.count), now, true);
        }
        let word = told.as_ref().map_or("", |reply| reply.text(0));
        if word == "fenced" {
            self.fenced(incarnation);
        }
        let mut summary = result.summary();
        if word == "cancelled" {
            summary.ending.outcome = JobOutcome::Canceled;
        }
        let mut local = self.lock();
        let held = local.remove(id);
        local.ledger.finish(job, (), summary, now);
        drop(local);
        if let Some(execution) = held.and_then(|held| held.execution)
            && word == "cancelled"
        {
            execution.stop(Stop::Cancel);
        }
        self.bell.ring(id);
        match word {
            "kept" => Finished::Kept,
            // The store was closed meanwhile.
            "" => Finished::Left,
            _ => Finished::Dropped,
        }
    }

    /// Delays a job that runs here; `false` if it is to be finished.
    fn delay(&self, job: &JobKey, attempt: &mut Attempt, until: Instant) -> bool {
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
        let response = attempt.answer.take().map(|answer| {
            let response = StoredResponse::from(answer.response.clone());
            (response, answer)
        });
        let (message, footprint, ending) = match &response {
            None => (Vec::new(), 0, String::new()),
            Some((response, _)) => {
                let mut message = message::response_head(response);
                message.extend_from_slice(&bytes_of(response.body()));
                (message, response.footprint(), record::ending(response))
            }
        };
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
            .with("1")
            .with(log.offset.to_string());
        let told = self.engine.run(&operation, Insist::Yes);
        if let Some((_, answer)) = response {
            attempt.answer = Some(answer);
        }
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

    /// Returns when the next delay that began here is over; takes out those that are.
    fn next_due(&self, now: Instant) -> (bool, Option<Instant>) {
        let mut due = lock(&self.due);
        let later = due.split_off(&(now + Duration::from_nanos(1)));
        let is_due = !std::mem::replace(&mut *due, later).is_empty();
        (is_due, due.first().copied())
    }

    /// Reads a result that is charged.
    fn response(&self, job: &JobKey, bytes: usize) -> Lookup {
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
            // Deleted since.
            Some(Value::Nil) => Lookup::Unknown,
            _ => Lookup::Unreadable,
        }
    }

    /// Makes the record of a job that runs here as new as it is here.
    fn freshen(&self, record: &mut JobRecord) {
        if record.end.is_none()
            && let Some(execution) = self.lock().execution(record.id)
        {
            record.progress = execution.progress();
            record.attempts = execution.attempts();
        }
    }

    /// Forgets jobs by an operation that is repeated as long as it says so.
    fn forget_list(
        &self,
        owner: &Owner,
        before: Stamp,
        list: &str,
    ) -> Result<(), StoreUnavailable> {
        let mut after = "0".to_owned();
        loop {
            let operation = Operation::new(&script::FORGET_BEFORE, Effect::Replicated)
                .with(owner.name().unwrap_or(""))
                .number(before.micros())
                .with(list)
                .with(&after);
            let reply = self.run(&operation)?;
            if reply.text(1).is_empty() {
                return Ok(());
            }
            reply.text(1).clone_into(&mut after);
        }
    }

    fn run(&self, operation: &Operation) -> Result<Reply, StoreUnavailable> {
        self.engine.run(operation, Insist::No).map_err(|trouble| {
            log::debug!("store: {trouble:?}");
            StoreUnavailable
        })
    }

    /// Removes what is older than `before`; returns how many results.
    fn remove_old(&self, which: &str, before: Age) -> Result<usize, StoreUnavailable> {
        let (at, older) = match self.engine.clock() {
            Clock::Caller => (before.micros().max(0).to_string(), String::new()),
            Clock::Engine => {
                let older = clock::now().age.micros().saturating_sub(before.micros()).max(0);
                (String::new(), older.to_string())
            }
        };
        let mut count = 0;
        loop {
            let operation =
                Operation::new(&script::EXPIRE, Effect::Once).with(which).with(&at).with(&older);
            let reply = self.run(&operation)?;
            count += usize::try_from(reply.number(1)).unwrap_or(0);
            if reply.text(2) != "more" {
                return Ok(count);
            }
        }
    }

    /// The log of a job that runs in another instance, as far as that answers; else what was kept of its last attempt.
    fn log_elsewhere(&self, job: &JobKey, told: &Told) -> Option<LogEnd> {
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
            // Without an answer there is none.
            let _ = self.engine.read(&[&publish], Insist::No);
        })
    }

    /// Answers another instance that asks for a log.
    fn tell_log(&self, id: JobId, to: &str, name: u64) {
        let execution = self.lock().execution(id);
        let Some(execution) = execution else { return };
        let log = execution.log();
        let answer = [format!("said {name} {} ", log.offset).as_bytes(), &log.text].concat();
        let channel = self.engine.key(&format!("c:{to}"));
        let publish: [&[u8]; 3] = [b"PUBLISH", channel.as_bytes(), &answer];
        // It does not wait long.
        let _ = self.engine.read(&[&publish], Insist::No);
    }

    /// Whether a job is done or gone, as far as that can be known.
    fn is_over(&self, job: &JobKey) -> bool {
        match self.look(job, "0") {
            Ok(Some(told)) => told.state == super::JobState::Done,
            Ok(None) => true,
            Err(StoreUnavailable) => false,
        }
    }
}

/// Returns content as it is sent to the engine: with a shared store it is in memory.
fn bytes_of(content: &Content) -> Bytes {
    match content.in_memory() {
        Some(bytes) => bytes.clone(),
        None => {
            content.beginning(content.len()).map(|all| all.into_owned().into()).unwrap_or_default()
        }
    }
}

fn owner(job: &JobKey) -> &str {
    job.owner.name().unwrap_or("")
}

/// A poisoned lock is taken all the same: what it guards is valid between any two statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

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
            path: call.request.uri().path().to_owned(),
            callback: None,
        };
        let owner = call.owner.clone();
        let record = Record { owner: owner.clone(), created: now.stamp, footprint, line, state };
        let fingerprint = key.as_ref().map(|key| hex(&key.fingerprint)).unwrap_or_default();
        let operation = Operation::new(&script::SUBMIT, Effect::Replicated)
            .at(now)
            .with(owner.name().unwrap_or(""))
            .with(if keep == Keep::Result { "1" } else { "0" })
            .with(&*inner.lanes[route.0])
            .with(record.to_text())
            .message(message::request_head(&call.request), &bytes_of(call.request.body()))
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
        let number = |n| usize::try_from(reply.number(n)).unwrap_or(usize::MAX);
        let LocalStats { running, by_lane, .. } = inner.lock().ledger.stats();
        let by_lane =
            by_lane.iter().enumerate().map(|(n, (here, running))| (number(7 + n) + here, *running));
        let oldest = (!reply.text(6).is_empty()).then(|| Stamp::from_micros(reply.number(6)));
        Ok(Stats {
            stored: number(0),
            capacity: inner.capacity,
            waiting: number(2),
            delayed: number(3),
            running,
            done: number(5),
            oldest,
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
            .with(hex(&key.fingerprint));
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
        let number = |n| usize::try_from(reply.number(n)).unwrap_or(usize::MAX);
        let (stored, log_bytes, waiting, delayed, asleep) =
            (number(0), number(1), number(2), number(3), number(4));
        if (stored - log_bytes.min(stored)).saturating_add(bytes) > inner.capacity {
            return Err(Refused::Full);
        }
        if waiting + delayed - asleep + asleep.saturating_sub(inner.plan.workers)
            >= inner.plan.queue
        {
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
        let mut attempt = attempt;
        let is_laid_down = if attempt.redirected.is_some() {
            // For the engine it runs all the while: what led to the redirect has had its effects.
            let mut local = self.0.lock();
            let is_lost = local.held(job.id).is_none_or(|held| held.is_lost);
            !is_lost && local.ledger.retry(job, attempt, until).is_ok()
        } else {
            self.0.delay(job, &mut attempt, until)
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
                let mut slot = inner.engine.slot();
                // If it cannot be told now, the next beat does.
                if inner.engine.is_failing() || inner.end_due(&mut slot).is_err() {
                    log::debug!("store: delays end with the next beat");
                }
                inner.bell.wake_worker();
            }
            let until = next.map_or(end, |next| next.min(end));
            let span = until.saturating_duration_since(now);
            let jobs =
                inner.dispatch.overdue(&inner.local, span, |local, now| local.ledger.overdue(now));
            if !jobs.is_empty() || Instant::now() >= end {
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
        if let Some(ending) = told.ending.filter(|_| told.state == super::JobState::Done) {
            return Ok(Some(Status::Done(ending)));
        }
        let here = self.0.lock().execution(job.id);
        let progress = here.map_or(told.progress, |execution| execution.progress());
        Ok(Some(Status::Pending(told.state, progress)))
    }

    fn log(&self, job: &JobKey) -> Result<Option<LogEnd>, StoreUnavailable> {
        let Some(told) = self.0.look(job, "1")? else { return Ok(None) };
        if told.state == super::JobState::Running {
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
            Ok(Some(told)) if told.state != super::JobState::Done => Lookup::Pending,
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
        let found = inner.response(job, usize::try_from(reply.number(3)).unwrap_or(usize::MAX));
        if !matches!(found, Lookup::Done(_)) {
            self.restore(job, delivery);
        }
        found.map(|response| (response, delivery))
    }

    fn confirm(&self, job: &JobKey, delivery: DeliveryId, now: Moment) {
        self.0.untold.add(job.id);
        // Its end is that of the store.
        let _ = self.0.tasks.send(Task::Confirm(job.id, delivery, now));
    }

    fn restore(&self, job: &JobKey, delivery: DeliveryId) {
        self.0.untold.add(job.id);
        let _ = self.0.tasks.send(Task::Restore(job.id, delivery));
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
                let stamp = |n: usize| {
                    (!reply.text(n).is_empty()).then(|| Stamp::from_micros(reply.number(n)))
                };
                let count = u32::try_from(reply.number(4)).unwrap_or(0);
                let attempts = Attempts { first: stamp(3), count };
                let created = stamp(2).unwrap_or(now.stamp);
                inner.count_finished(
                    reply.text(1),
                    JobOutcome::Canceled,
                    created,
                    attempts,
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
        self.0.lock().is_empty()
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
        drop(local);
        self.0.put_back_waiting();
        self.0.lock().ledger.drain();
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

impl Drop for SharedStore {
    fn drop(&mut self) {
        // A second time it does nothing.
        self.0.close();
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
