//! How an instance takes jobs from the engine, and gives them back.
//!
//! Owns the transfer of a job, with its request, from the engine's lane into the ledger here. Invariants: a job is taken by
//! one operation, and every taken job is run, finished or given back; nothing is taken in advance: a worker takes one
//! job when it is idle.

use std::time::Duration;

use redis::Value;

use super::local::{Asking, Held, Resumed};
use super::operation::{Effect, Insist, Operation};
use super::record::Told;
use super::reply::Reply;
use super::{Inner, SPOOLED, script};
use crate::content::copied;
use crate::error::Error;
use crate::exchange::{Call, Owner};
use crate::job::attempt::Claimed;
use crate::job::log::LogEnd;
use crate::job::request_line::RequestLine;
use crate::job::{JobId, JobKey, Rerun, RouteIndex, Stamp, message};
use crate::ledger::job::Pending;
use crate::ledger::locked::Wake as _;
use crate::ledger::{Next, Patience};
use crate::memory::Allowance;

/// When a job that cannot run here now may be taken again.
const LATER: Duration = Duration::from_secs(1);

/// The index of the field that stands for the lines of the request, which have a key of their own.
const LINES: usize = 1;

/// The fields of a job that a worker needs: those of [`Told`] first, then the others.
const FIELDS: [&[u8]; 15] =
    [b"s", b"h", b"c", b"f", b"e", b"t", b"m", b"p", b"i", b"b", b"lg", b"lo", b"o", b"l", b"sh"];

/// A job that was taken, before its request has been fetched.
#[derive(Clone, Copy)]
pub struct Took {
    id: JobId,
    fence: u64,
    incarnation: u64,
    bytes: usize,
}

/// A job that was taken, with everything that is needed to run it.
struct Arrived {
    held: Held,
    route: RouteIndex,
    call: Call,
    line: RequestLine,
    created: Stamp,
}

/// What a worker needs to know about a job.
struct Fetched {
    fields: Reply,
    request: Option<Vec<u8>>,
    log: Option<Vec<u8>>,
}

impl Inner {
    /// Takes a job, if one may run here now.
    pub fn next(&self, memory: &Allowance) -> Next<Claimed> {
        let asking = {
            let mut local = self.lock();
            match local.ledger.claim(memory, Patience::None) {
                Next::Job(taken) => return Next::Job(local.begin(taken)),
                Next::Nothing => {}
                Next::NoMemory(least) => return Next::NoMemory(least),
                Next::Closed => return Next::Closed,
            }
            if self.engine.is_failing() || self.incarnation() == 0 {
                return Next::Nothing;
            }
            if let Some(least) = local.ledger.lacks_memory() {
                return Next::NoMemory(least);
            }
            let Some(asking) = local.ask() else { return Next::Nothing };
            asking
        };
        let took = self.take(&asking);
        let begun = took.and_then(|took| self.take_in(took, memory));
        let is_missed = self.lock().asked(&asking);
        if is_missed {
            self.bell.wake_worker();
        }
        begun.map_or(Next::Nothing, Next::Job)
    }

    /// Takes a job from the engine.
    fn take(&self, asking: &Asking) -> Option<Took> {
        let incarnation = self.incarnation();
        let idle = if self.bell.idle() > 0 { "1" } else { "0" };
        let mut operation = Operation::new(&script::TAKE, Effect::Replicated)
            .with(incarnation.to_string())
            .with("1")
            .with(idle);
        for lane in &asking.0 {
            let again = if self.plan.lanes[*lane].rerun == Rerun::Yes { "1" } else { "0" };
            operation = operation.with(&*self.lanes[*lane]).with(again).with("1");
        }
        // The outcome must be known: this is never given up.
        let reply = self.engine.run(&operation, Insist::Yes).ok()?;
        if reply.text(0) == "fenced" {
            self.fenced(incarnation);
        }
        let id = JobId::parse(reply.text(2)).filter(|_| reply.text(0) == "jobs")?;
        if reply.text(1) == "1" {
            self.bell.wake_worker();
        }
        Some(Took { id, fence: reply.number(3), incarnation, bytes: reply.size(4) })
    }

    /// Fetches the request of a job that was taken, and lets it begin; if that is impossible, gives the job back, or
    /// finishes it.
    fn take_in(&self, took: Took, memory: &Allowance) -> Option<Claimed> {
        let arrived = self.fetch_job(&took)?;
        let Arrived { held, route, call, line, created } = arrived;
        let key = held.key.clone();
        let mut local = self.lock();
        if local.is_draining {
            drop(local);
            self.put_back(&took, Duration::ZERO, Insist::Once);
            return None;
        }
        let record = local.ledger.found_record(&line, 0);
        local.insert(held, route, call, |route, call| {
            Pending::waiting(route, call, line, 0, record, created)
        });
        if self.incarnation() != took.incarnation {
            local.lose(|held| held.incarnation == took.incarnation);
            return None;
        }
        // A synchronous caller may have taken its place in the meantime: then the job waits here for a place.
        let taken = local.ledger.claim_this(&key, memory)?;
        Some(local.begin(taken))
    }

    /// Fetches what is needed of a job that was taken.
    fn fetch_job(&self, took: &Took) -> Option<Arrived> {
        let Took { id, fence, incarnation, bytes } = *took;
        let budget = self.memory.budget().allowance();
        if self.lock().held(id).is_some() {
            // The job was taken away from this instance earlier, and that run has not ended yet.
            self.put_off(took);
            return None;
        }
        if bytes > budget.capacity() {
            let what = "the stored request is larger than --max-memory: raise that";
            self.end_taken(took, &Error::InsufficientStorage(what.into()), Insist::Yes);
            return None;
        }
        let Ok(charge) = budget.charge(bytes) else {
            self.put_off(took);
            return None;
        };
        let Fetched { mut fields, request, log } = self.fetch(took)?;
        let told = Told::read(&fields);
        let request = request
            .map(|text| copied(&text, charge))
            .and_then(|text| message::read_request(text, None));
        let (Some(told), Some(request)) = (told, request) else {
            let error = Error::Internal("the stored request is damaged".into());
            self.end_taken(took, &error, Insist::Yes);
            return None;
        };
        let owner = Owner::named(fields.text(12));
        let Some(route) = self.route(fields.text(13)) else {
            self.put_off(took);
            return None;
        };
        let resumed = Resumed {
            started: told.attempts.first,
            made: u32::try_from(fields.number(6)).unwrap_or(0),
            shortages: u32::try_from(fields.number(14)).unwrap_or(0),
            log: LogEnd { text: log.unwrap_or_default().into(), offset: fields.number(11) },
            progress: fields.take_bytes(7).and_then(|line| String::from_utf8(line).ok()),
        };
        // A job that begins for the first time begins when its worker says so.
        let resumed = (resumed.made > 0 || resumed.shortages > 0).then_some(resumed);
        let call = Call {
            request,
            connection: told.connection,
            owner: owner.clone(),
            auth_type: told.auth_type,
        };
        let key = JobKey { owner, id };
        let held =
            Held { key, fence, incarnation, is_lost: false, resumed, execution: None, told: None };
        Some(Arrived { held, route, call, line: told.line, created: told.created })
    }

    /// Reads a job's fields, its request and its log; returns `None` if the store was closed.
    fn fetch(&self, took: &Took) -> Option<Fetched> {
        let key = |kind: &str| self.engine.key(&format!("{kind}:{}", took.id));
        let (job, request, log, lines) = (key("j"), key("q"), key("g"), key("n"));
        let head: [&[u8]; 2] = [b"HMGET", job.as_bytes()];
        let fields: Vec<&[u8]> = head.iter().chain(&FIELDS).copied().collect();
        let get = |key: &'_ str| -> [Vec<u8>; 2] { [b"GET".to_vec(), key.as_bytes().to_vec()] };
        let (request, log, lines) = (get(&request), get(&log), get(&lines));
        let request: [&[u8]; 2] = [&request[0], &request[1]];
        let log: [&[u8]; 2] = [&log[0], &log[1]];
        let lines: [&[u8]; 2] = [&lines[0], &lines[1]];
        // Large messages are read one at a time: each is in memory twice while it is read.
        let _turn = (took.bytes > SPOOLED).then(|| self.large.lock());
        let answers = self.engine.read(&[&fields, &request, &log, &lines], Insist::Yes).ok()?;
        let mut answers = answers.into_iter();
        let bytes = |value: Option<Value>| match value {
            Some(Value::BulkString(bytes)) => Some(bytes),
            _ => None,
        };
        let mut fields = Reply::of(answers.next()?);
        let (request, log) = (bytes(answers.next()), bytes(answers.next()));
        fields.set(LINES, answers.next()?);
        Some(Fetched { fields, request, log })
    }

    /// Gives back a job that was taken and not begun; this does not count as a start.
    fn put_back(&self, took: &Took, after: Duration, insist: Insist) {
        let operation = Operation::new(&script::RETRY, Effect::Once)
            .with(took.incarnation.to_string())
            .with(took.id.to_string())
            .with(took.fence.to_string())
            .number(after.as_micros());
        // In order: attempts, shortages, log, progress, answer, footprint, ending, logged.
        let nothing = ["", "", "", "", "", "0", "", "0"];
        let operation = nothing.into_iter().fold(operation, Operation::with);
        let reply = self.engine.run(&operation, insist);
        match reply.as_ref().map_or("", |reply| reply.text(0)) {
            "fenced" => self.fenced(took.incarnation),
            "cancelled" => self.end_taken(took, &Error::Cancelled, insist),
            _ => {}
        }
    }

    fn put_off(&self, took: &Took) {
        self.put_back(took, LATER, Insist::Yes);
    }

    /// Finishes a job that was taken and cannot be run.
    fn end_taken(&self, took: &Took, error: &Error, insist: Insist) {
        let outcome = self.tell_result(
            (took.id, took.fence, took.incarnation),
            &error.response().into(),
            (&LogEnd::default(), 0),
            crate::clock::now(),
            (true, insist),
        );
        if let Err(trouble) = outcome {
            log::debug!("job={} cannot be finished: {trouble:?}", took.id);
        }
    }

    /// Gives back the jobs that wait here and have not begun.
    pub fn put_back_waiting(&self) {
        let taken: Vec<Took> = {
            let mut local = self.lock();
            let keys = local.ledger.not_begun();
            let take_out = |key: JobKey| {
                local.ledger.let_go(&key);
                let Held { fence, incarnation, is_lost, .. } = local.remove(key.id)?;
                (!is_lost).then_some(Took { id: key.id, fence, incarnation, bytes: 0 })
            };
            keys.into_iter().filter_map(take_out).collect()
        };
        for took in &taken {
            // The shutdown does not wait for an unreachable engine: `leave`, or another instance, ends what it was not
            // told about.
            self.put_back(took, Duration::ZERO, Insist::Once);
        }
    }

    /// Returns the route of a lane, if this instance serves it.
    pub fn route(&self, lane: &str) -> Option<RouteIndex> {
        self.lanes.iter().position(|own| &**own == lane).map(RouteIndex)
    }

    /// Claims a job.
    pub(super) fn claim(&self, memory: &Allowance, patience: Patience) -> Option<Claimed> {
        loop {
            match (self.next(memory), patience) {
                (Next::Job(claimed), _) => return Some(claimed),
                (Next::Closed, _) | (_, Patience::None) => return None,
                (Next::Nothing, Patience::Forever) => self.bell.wait_for_work(),
                (Next::NoMemory(least), Patience::Forever) => {
                    self.memory.budget().wait_for(least, || self.lock().is_stopped());
                }
            }
        }
    }
}
