//! The store against a model: random operations, one after the other, must have the same answers.
//!
//! The model is a plain map that does everything by looking at every job. After each operation the
//! two are compared whole: each job's status, result and log, the lists, what each idempotency key
//! stands for, how many jobs wait and run in each lane, which callers are let in, and the accounts to the
//! byte. Every second store is small, so that it is full most of the time: then it refuses just what does
//! not fit, and nothing that it keeps has to go; every third has a short queue. Now and then a store on disk
//! is closed or crashes, and is opened again on what is left: then what waited or was delayed waits, what ran
//! is done with an error or waits again, what was in delivery can be collected, and nothing else has changed.
//! A failure prints the seed and the operations that led to it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};

use crate::store::kit::*;
use deferd::error::Error;
use deferd::exchange::Owner;
use deferd::job::attempt::{Attempt, Claimed};
use deferd::job::execution::{Execution, Stop};
use deferd::job::stored::{StoredResponse, StoredResult};
use deferd::job::{JobId, JobKey, Keep, MAX_STARTS, RECORD, Rerun, RouteIndex, SHORT_LOG, Stamp};
use deferd::ledger::schedule::{Limit, Turn};
use deferd::store::disk::{Durability, Recovered};
use deferd::store::memory::MemoryStore;
use deferd::store::{
    Accepted, DeliveryId, Finished, IdempotencyKey, Lane, List, Lookup, Plan, Refused, Stats,
    Status, Store, Submission,
};

const SEQUENCES: u64 = 2000;
/// The same for a store on disk.
const ON_DISK: u64 = 600;
const OPERATIONS: usize = 60;

/// A lane of each kind.
const LANES: [Lane; 4] = [
    Lane { limit: Limit::Open, rerun: Rerun::No },
    Lane { limit: Limit::Shared(1), rerun: Rerun::Yes },
    Lane { limit: Limit::Shared(2), rerun: Rerun::No },
    Lane { limit: Limit::Callers(1), rerun: Rerun::Harmless },
];
const WORKERS: usize = 3;

/// Longer than any test.
const FAR: Duration = Duration::from_secs(3600);

#[test]
fn a_store_in_memory_answers_as_a_plain_map_does() {
    let run = |seed| {
        let limits = Limits::of(seed);
        let store = MemoryStore::new(room(limits.capacity), limits.plan());
        run(Overlay::new(Box::new(store), None, limits, seed))
    };
    (1..=SEQUENCES).map(run).sum::<Tried>().assert_enough(SEQUENCES);
}

#[test]
fn a_store_on_disk_answers_as_a_plain_map_does_over_crashes() {
    let tried: Tried = (1..=ON_DISK).map(|seed| run_on_disk(seed, Durability::Commit)).sum();
    tried.assert_enough(ON_DISK);
    assert!(tried.interrupted > ON_DISK as usize / 10, "{tried:?}");
    assert!(tried.exhausted > 0, "{tried:?}");
}

#[test]
fn a_relaxed_store_answers_as_a_plain_map_does_over_crashes() {
    let tried: Tried = (1..=ON_DISK).map(|seed| run_on_disk(seed, Durability::Relaxed)).sum();
    tried.assert_enough(ON_DISK);
    assert!(tried.interrupted > ON_DISK as usize / 10, "{tried:?}");
    assert!(tried.exhausted > 0, "{tried:?}");
}

/// How much a store takes.
#[derive(Clone, Copy)]
struct Limits {
    capacity: usize,
    queue: usize,
}

impl Limits {
    /// In every second sequence room for a few jobs, in every third a short queue.
    fn of(seed: u64) -> Self {
        let mut random = Rng::with_seed(seed);
        let (few, short) = (2000 + random.usize(..8000), 1 + random.usize(..4));
        Self {
            capacity: if seed.is_multiple_of(2) { CAPACITY } else { few },
            queue: if seed.is_multiple_of(3) { short } else { usize::MAX },
        }
    }

    fn plan(self) -> Plan {
        Plan { workers: WORKERS, queue: self.queue, lanes: LANES.to_vec() }
    }

    fn open(self, volume: &Volume, durability: Durability) -> (Box<dyn Store>, Recovered) {
        let opened = open_with(self.plan(), self.capacity, volume, durability);
        let (store, found) = opened.expect("it opens");
        (Box::new(store), found)
    }
}

fn run_on_disk(seed: u64, durability: Durability) -> Tried {
    let (volume, limits) = (Volume::default(), Limits::of(seed));
    let (store, _) = limits.open(&volume, durability);
    run(Overlay::new(store, Some(Disk { volume, durability }), limits, seed))
}

/// Goes through a sequence.
fn run(mut trial: Overlay) -> Tried {
    for _ in 0..OPERATIONS {
        trial.step();
        trial.let_in();
        trial.compare();
    }
    trial.end()
}

/// How often what is seldom has happened.
#[derive(Clone, Copy, Debug, Default)]
struct Tried {
    /// Submissions for which there was no room.
    full: usize,
    /// Submissions for which there was no place in the queue.
    queue_full: usize,
    /// Callers that had to wait and were let in.
    let_in: usize,
    /// Jobs that came out at their moment, to be finished.
    due: usize,
    /// Jobs that ran when the process ended.
    interrupted: usize,
    /// Those of them that had run too often.
    exhausted: usize,
}

impl std::iter::Sum for Tried {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |a, b| Self {
            full: a.full + b.full,
            queue_full: a.queue_full + b.queue_full,
            let_in: a.let_in + b.let_in,
            due: a.due + b.due,
            interrupted: a.interrupted + b.interrupted,
            exhausted: a.exhausted + b.exhausted,
        })
    }
}

impl Tried {
    #[track_caller]
    fn assert_enough(&self, sequences: u64) {
        let Self { full, queue_full, let_in, due, .. } = *self;
        let least = full.min(queue_full).min(let_in).min(due);
        assert!(least > sequences as usize / 10, "in {sequences} sequences {self:?}");
    }
}

/// What a store is on that can be opened again.
struct Disk {
    volume: Volume,
    durability: Durability,
}

/// How a store ends before it is opened again.
#[derive(Clone, Copy, Debug)]
enum End {
    /// In order, with what may still go on having gone on before.
    Drained,
    /// In order.
    Closed,
    /// Without warning, when everything was durable.
    CrashedAfterFlush,
    /// Without warning.
    Crashed,
}

/// Everybody for whom a job can be submitted.
fn owners() -> Vec<Owner> {
    vec![Owner::anonymous(), Owner::named("alice"), Owner::named("bob")]
}

/// What the model knows of a job.
struct Entry {
    owner: Owner,
    n: usize,
    created: Stamp,
    /// What its request is accounted with.
    request: usize,
    /// Fire and forget, or forgotten since: nobody can ask for it.
    wanted: bool,
    /// In how many processes it was begun.
    starts: u32,
    /// What the disk says of whether it runs.
    recorded: Runs,
    /// Whether a crash may undo that.
    is_recent: bool,
    state: State,
}

/// Whether a job runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Runs {
    Yes,
    No,
}

enum State {
    /// In this lane; with what it had come to, if it was begun before.
    Waiting {
        lane: usize,
        again: Option<Again>,
    },
    Delayed {
        until: Instant,
        again: Again,
    },
    /// With a place in this lane; without one if it only has to be finished.
    Running {
        lane: Option<usize>,
        attempt: Box<Attempt>,
    },
    Done {
        finished: Stamp,
        result: StoredResponse,
        log: Vec<u8>,
        delivery: Option<DeliveryId>,
    },
}

/// What the model knows of an attempt while the store has it.
struct Again {
    execution: Arc<Execution>,
    /// The lane and the deadline of what it was redirected to.
    redirected: Option<(usize, Instant)>,
    has_answer: bool,
}

impl Again {
    fn of(attempt: &Attempt) -> Self {
        let redirected = attempt.redirected.as_ref();
        Self {
            execution: Arc::clone(&attempt.execution),
            redirected: redirected.map(|redirected| (redirected.route.0, redirected.deadline)),
            has_answer: attempt.answer.is_some(),
        }
    }

    /// Whether it only has to be finished, and since when.
    fn expiry(&self) -> Option<Instant> {
        self.redirected.map(|(_, deadline)| deadline)
    }
}

impl Entry {
    fn is_pending(&self) -> bool {
        !matches!(self.state, State::Done { .. })
    }

    fn is_collectable(&self) -> bool {
        matches!(self.state, State::Done { delivery: None, .. })
    }

    /// The lane of its own route.
    fn own_lane(&self) -> usize {
        route(self.n, LANES.len()).0
    }

    fn is_in(&self, id: DeliveryId) -> bool {
        matches!(self.state, State::Done { delivery: Some(own), .. } if own == id)
    }

    fn waits_in(&self, lane: usize) -> bool {
        matches!(self.state, State::Waiting { lane: own, .. } if own == lane)
    }

    fn runs_in(&self, lane: usize) -> bool {
        matches!(self.state, State::Running { lane: Some(own), .. } if own == lane)
    }

    fn execution(&self) -> Option<&Execution> {
        match &self.state {
            State::Waiting { again, .. } => again.as_ref().map(|again| &*again.execution),
            State::Delayed { again, .. } => Some(&again.execution),
            State::Running { attempt, .. } => Some(&attempt.execution),
            State::Done { .. } => None,
        }
    }

    fn is_visible(&self) -> bool {
        self.wanted && (self.is_pending() || self.is_collectable())
    }

    fn stamp(&self) -> Stamp {
        match self.state {
            State::Done { finished, .. } => finished,
            _ => self.created,
        }
    }

    fn bytes(&self) -> usize {
        match &self.state {
            State::Done { result, log, .. } => {
                let (response, log) = (result.clone(), log.clone().into());
                RECORD + StoredResult { response, log }.footprint()
            }
            _ => self.request,
        }
    }

    /// Nobody is taking it any more.
    fn deliver_again(&mut self) {
        if let State::Done { delivery, .. } = &mut self.state {
            *delivery = None;
        }
    }

    fn log(&self) -> Vec<u8> {
        match &self.state {
            State::Done { log, .. } => log.clone(),
            _ => self.execution().map(Execution::log).unwrap_or_default(),
        }
    }

    /// What this job's work ends with: `410` if it was cancelled, and `507` if there is no more `room`
    /// than its request has taken.
    fn finish(&mut self, cancelled: bool, now: Stamp, room: usize) {
        let response = if cancelled { Error::Cancelled.response() } else { response(self.n) };
        let (result, mut log) = (StoredResponse::from(response), self.log());
        self.state = State::Done { finished: now, result, log: log.clone(), delivery: None };
        if self.bytes() > self.request.max(room) {
            let result = Refused::Full.of_result().response().into();
            log.drain(..log.len().saturating_sub(SHORT_LOG));
            self.state = State::Done { finished: now, result, log, delivery: None };
        }
    }
}

/// What the model knows of an idempotency key.
struct Named {
    id: JobId,
    key: IdempotencyKey,
    /// When its job was accepted.
    created: Stamp,
    /// That, or when it was last kept because its job was there.
    stamp: Stamp,
}

type Keys = BTreeMap<(Owner, Box<str>), Named>;

/// A synchronous caller.
struct Caller {
    lane: usize,
    /// The last job that was there before it.
    after: Option<JobId>,
    /// Its place in line, if it had to wait.
    turn: Option<Turn>,
    let_in: Receiver<()>,
}

/// A store, its model, and what was done to both.
struct Overlay {
    store: Box<dyn Store>,
    disk: Option<Disk>,
    limits: Limits,
    model: BTreeMap<JobId, Entry>,
    keys: Keys,
    /// What is gone, and after a crash may be there again.
    fading: BTreeMap<JobId, Entry>,
    fading_keys: Keys,
    /// Every delivery of this process.
    deliveries: Vec<(JobKey, DeliveryId)>,
    /// Callers that wait, in their order.
    line: Vec<Caller>,
    /// Callers that were let in.
    inside: Vec<Caller>,
    tried: Tried,
    last: Option<JobId>,
    submitted: usize,
    random: Rng,
    trace: Trace,
}

/// Says on failure how it came to it.
struct Trace {
    seed: u64,
    lines: RefCell<Vec<String>>,
}

impl Trace {
    fn note(&self, line: String) {
        self.lines.borrow_mut().push(line);
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {}:\n{}", self.seed, self.lines.borrow().join("\n"));
        }
    }
}

impl Overlay {
    fn new(store: Box<dyn Store>, disk: Option<Disk>, limits: Limits, seed: u64) -> Self {
        Self {
            store,
            disk,
            limits,
            model: BTreeMap::new(),
            keys: Keys::new(),
            fading: BTreeMap::new(),
            fading_keys: Keys::new(),
            deliveries: Vec::new(),
            line: Vec::new(),
            inside: Vec::new(),
            tried: Tried::default(),
            last: None,
            submitted: 0,
            random: Rng::with_seed(seed),
            trace: Trace { seed, lines: RefCell::default() },
        }
    }

    /// What is on the accounts, counted anew.
    fn stored(&self) -> usize {
        let jobs: usize = self.model.values().map(Entry::bytes).sum();
        jobs + self.keys.values().map(|named| named.key.footprint()).sum::<usize>()
    }

    /// What the result of a job may take.
    fn room_of(&self, id: JobId) -> usize {
        let own = self.model.get(&id).map_or(0, Entry::bytes);
        (self.limits.capacity + own).saturating_sub(self.stored())
    }

    fn count(&self, which: impl Fn(&Entry) -> bool) -> usize {
        self.model.values().filter(|entry| which(entry)).count()
    }

    fn stats(&self) -> Stats {
        let lanes = 0..LANES.len();
        let by_lane = lanes.map(|lane| {
            (self.count(|entry| entry.waits_in(lane)), self.count(|entry| entry.runs_in(lane)))
        });
        let by_lane: Vec<(usize, usize)> = by_lane.collect();
        Stats {
            stored: self.stored(),
            capacity: self.limits.capacity,
            waiting: by_lane.iter().map(|(waiting, _)| waiting).sum(),
            delayed: self.count(|entry| matches!(entry.state, State::Delayed { .. })),
            running: by_lane.iter().map(|(_, running)| running).sum(),
            done: self.count(Entry::is_collectable),
            by_lane,
        }
    }

    /// Jobs that only wait for a moment hold as many places as there are no workers for them; what is to run again
    /// holds its own.
    fn is_queue_full(&self) -> bool {
        let Stats { waiting, delayed, .. } = self.stats();
        let asleep = |entry: &Entry| match &entry.state {
            State::Delayed { again, .. } => again.has_answer,
            _ => false,
        };
        let asleep = self.count(asleep);
        waiting + delayed - asleep + asleep.saturating_sub(WORKERS) >= self.limits.queue
    }

    /// How many more may run in a lane, of what shares a limit.
    fn room_in(&self, lane: usize) -> usize {
        let inside = self.inside.iter().filter(|caller| caller.lane == lane).count();
        match LANES[lane].limit {
            Limit::Shared(limit) => limit - self.count(|entry| entry.runs_in(lane)) - inside,
            Limit::Callers(_) | Limit::Open => usize::MAX,
        }
    }

    /// Whether a caller that is first in line may go in: beside the jobs that were there before it, as
    /// far as there are workers for them.
    fn has_room_for(&self, lane: usize, after: Option<JobId>) -> bool {
        let inside = self.inside.iter().filter(|caller| caller.lane == lane).count();
        match LANES[lane].limit {
            Limit::Shared(_) => {
                let jobs = self.model.iter();
                let before = jobs.filter(|(id, job)| Some(**id) <= after && job.waits_in(lane));
                let free_workers = WORKERS - self.stats().running;
                self.room_in(lane) > before.count().min(free_workers)
            }
            Limit::Callers(limit) => inside < limit,
            Limit::Open => true,
        }
    }

    /// Lets in those who may go in, and nobody else.
    fn let_in(&mut self) {
        for lane in 0..LANES.len() {
            while let Some(first) = self.line.iter().position(|caller| caller.lane == lane)
                && self.has_room_for(lane, self.line[first].after)
            {
                let caller = self.line.remove(first);
                assert!(caller.let_in.try_recv().is_ok(), "a caller is let in to lane {lane}");
                self.inside.push(caller);
                self.tried.let_in += 1;
            }
        }
        for Caller { lane, let_in, .. } in &self.line {
            assert!(let_in.try_recv().is_err(), "no caller is let in to lane {lane}");
        }
    }

    fn enter(&mut self) {
        let lane = 1 + self.random.usize(..LANES.len() - 1);
        let (wake, let_in) = bounded(1);
        let turn = self.store.enter_lane(RouteIndex(lane), &wake).err();
        self.trace.note(format!("enter {lane}: {turn:?}"));
        let is_first = self.line.iter().all(|caller| caller.lane != lane);
        let may_enter = is_first && self.has_room_for(lane, self.last);
        assert_eq!(turn.is_none(), may_enter);
        let caller = Caller { lane, after: self.last, turn, let_in };
        if may_enter { self.inside.push(caller) } else { self.line.push(caller) }
    }

    fn leave(&mut self) {
        let callers = self.line.len() + self.inside.len();
        if callers == 0 {
            return;
        }
        let n = self.random.usize(..callers);
        let caller = match n.checked_sub(self.line.len()) {
            Some(n) => self.inside.remove(n),
            None => self.line.remove(n),
        };
        self.trace.note(format!("leave {}: {:?}", caller.lane, caller.turn));
        // One that was let in may say so, or not know it yet.
        self.store.leave_lane(RouteIndex(caller.lane), caller.turn);
    }

    /// Whether its answers wait until what they tell is durable.
    fn commits(&self) -> bool {
        self.disk.as_ref().is_some_and(|disk| disk.durability == Durability::Commit)
    }

    /// All that was done is durable, and results can be collected.
    fn flush(&mut self) {
        self.store.flush().unwrap();
        self.model.values_mut().for_each(|entry| entry.is_recent = false);
    }

    /// Waits only where an answer says less than all.
    fn flush_if_need_be(&mut self) {
        if self.commits() {
            self.flush();
        }
    }

    /// A clock that often stands still and often steps back.
    fn now(&mut self) -> Stamp {
        at(self.random.usize(..12) as f64)
    }

    /// Any job that ever was, or one that never was.
    fn pick(&mut self) -> JobKey {
        let owners = owners();
        let owner = owners[self.random.usize(..owners.len())].clone();
        let known = self.model.len();
        let nth = self.random.usize(..known + 1);
        let id = self.model.keys().nth(nth).copied();
        let id = id.or(self.last).unwrap_or(JobId::parse("7").unwrap());
        // Mostly of its own owner, sometimes of another.
        let own = self.model.get(&id).map(|entry| entry.owner.clone());
        let owner = own.filter(|_| self.random.usize(..4) != 0).unwrap_or(owner);
        JobKey { owner, id }
    }

    /// The job as its owner sees it.
    fn visible(&mut self, key: &JobKey) -> Option<&mut Entry> {
        let entry = self.model.get_mut(&key.id)?;
        (entry.owner == key.owner && entry.is_visible()).then_some(entry)
    }

    fn step(&mut self) {
        match self.random.usize(..32) {
            0..=4 => self.submit(),
            5..=9 => self.claim(),
            10..=12 => self.finish(),
            13..=14 => self.write_log(),
            15..=16 => self.collect(),
            17 => self.confirm(),
            18 => self.restore(),
            19..=20 => self.cancel(),
            21 => self.forget(),
            22..=23 => self.retry(),
            24 => self.redirect(),
            25..=26 => self.overdue(),
            27..=28 => self.enter(),
            29 => self.leave(),
            30 => self.reopen(),
            _ => match self.random.usize(..6) {
                0 => self.forget_all(),
                1..=3 => self.forget_before(),
                _ => self.expire(),
            },
        }
    }

    fn submit(&mut self) {
        let (n, now) = (self.submitted, self.now());
        self.submitted += 1;
        let owners = owners();
        let owner = owners[self.random.usize(..owners.len())].clone();
        let wanted = self.random.usize(..6) != 0;
        let keep = if wanted { Keep::Result } else { Keep::Nothing };
        let call = call(n, &owner);
        let request = JOB + call.footprint();
        let key = (self.random.usize(..3) == 0).then(|| any_key(&mut self.random));
        let known = key.as_ref().and_then(|key| self.keys.get(&(owner.clone(), key.key.clone())));
        let key_bytes = key.as_ref().map_or(0, IdempotencyKey::footprint);
        let bytes = request + key_bytes;
        let keys = self.keys.values().map(|named| named.key.footprint()).sum::<usize>();
        let expected = match (&key, known) {
            (Some(key), Some(named)) if named.key == *key => Some(Ok(Accepted::Known(named.id))),
            (_, Some(_)) => Some(Err(Refused::KeyReused)),
            (Some(_), None) if keys + key_bytes > self.limits.capacity / 4 => {
                Some(Err(Refused::ManyKeys))
            }
            (_, None) if bytes > self.limits.capacity => Some(Err(Refused::TooLarge)),
            (_, None) if self.stored() + bytes > self.limits.capacity => Some(Err(Refused::Full)),
            (_, None) if self.is_queue_full() => Some(Err(Refused::QueueFull)),
            (_, None) => None,
        };
        let route = route(n, LANES.len());
        let submission = Submission { call, route, keep, key: key.clone() };
        let found = self.store.submit(submission, now);
        self.trace.note(format!("submit {keep:?} by {key:?} at {now:?}: {found:?}"));
        if let Some(expected) = expected {
            self.tried.full += usize::from(expected == Err(Refused::Full));
            self.tried.queue_full += usize::from(expected == Err(Refused::QueueFull));
            assert_eq!(found, expected);
            return;
        }
        let Ok(Accepted::New(id)) = found else { panic!("{found:?}, and it fits") };
        assert!(self.last < Some(id), "ids increase");
        self.last = Some(id);
        if let Some(key) = key {
            let name = (owner.clone(), key.key.clone());
            self.fading_keys.remove(&name);
            self.keys.insert(name, Named { id, key, created: now, stamp: now });
        }
        let state = State::Waiting { lane: route.0, again: None };
        let (starts, recorded, is_recent) = (0, Runs::No, false);
        let created = now;
        let entry =
            Entry { owner, n, created, request, wanted, starts, recorded, is_recent, state };
        self.model.insert(id, entry);
    }

    /// The oldest job whose lane has room.
    fn next(&self) -> Option<(JobId, usize)> {
        self.model.iter().find_map(|(id, entry)| match entry.state {
            State::Waiting { lane, .. } if self.room_in(lane) > 0 => Some((*id, lane)),
            _ => None,
        })
    }

    fn claim(&mut self) {
        if self.stats().running == WORKERS {
            return;
        }
        let (commits, expected) = (self.commits(), self.next());
        let claimed = claim(&*self.store);
        let found = claimed.as_ref().map(|claimed| (claimed.job.id, claimed.attempt.hop_route().0));
        self.trace.note(format!("claim: {found:?}"));
        assert_eq!(found, expected);
        let Some(Claimed { job, attempt }) = claimed else { return };
        let entry = self.model.get_mut(&job.id).expect("it waits");
        assert_eq!(job.owner, entry.owner);
        assert_eq!(attempt.created, entry.created);
        assert_eq!(attempt.call.request.uri().path(), format!("/job/{}", entry.n));
        assert_eq!(attempt.route.0, entry.own_lane());
        let State::Waiting { lane, again } = &entry.state else { panic!("it waits") };
        match again {
            Some(again) => assert!(Arc::ptr_eq(&attempt.execution, &again.execution)),
            None => {
                assert!(attempt.execution.stopped().is_none());
                entry.starts += 1;
            }
        }
        if attempt.redirected.is_none() {
            entry.recorded = Runs::Yes;
            entry.is_recent = match LANES[*lane].rerun {
                Rerun::Yes => false,
                Rerun::No => !commits,
                Rerun::Harmless => true,
            };
        }
        entry.state = State::Running { lane: Some(*lane), attempt };
    }

    /// Some job that runs, is in a lane if need be.
    fn running(&mut self, which: impl Fn(Option<usize>) -> bool) -> Option<JobKey> {
        let running = self.model.iter().filter(|(_, entry)| match entry.state {
            State::Running { lane, .. } => which(lane),
            _ => false,
        });
        let running: Vec<JobKey> =
            running.map(|(&id, entry)| JobKey { owner: entry.owner.clone(), id }).collect();
        (!running.is_empty()).then(|| self.random.choice(&running).unwrap().clone())
    }

    /// Only workers finish jobs, and only those that they were handed.
    fn finish(&mut self) {
        let Some(key) = self.running(|_| true) else { return };
        let now = self.now();
        self.trace.note(format!("finish {} at {now:?}", key.id));
        let entry = &self.model[&key.id];
        let cancelled = entry.execution().is_some_and(|execution| execution.stopped().is_some());
        let kept = entry.wanted && !cancelled;
        let finished = self.store.finish(&key, response(entry.n), now);
        assert_eq!(finished, if kept { Finished::Kept } else { Finished::Dropped });
        self.finished(key.id, cancelled, now);
    }

    /// The work of a job has ended.
    fn finished(&mut self, id: JobId, cancelled: bool, now: Stamp) {
        self.flush_if_need_be();
        let room = self.room_of(id);
        let Some(entry) = self.model.get_mut(&id) else { return };
        if entry.wanted {
            entry.finish(cancelled, now, room);
        } else {
            self.model.remove(&id);
        }
    }

    /// Takes what a worker has in hand of a job that it gives back; `None` if that was cancelled, with
    /// the attempt all the same.
    fn lay_down(&mut self) -> Option<(JobKey, Box<Attempt>, bool)> {
        let key = self.running(|lane| lane.is_some())?;
        let entry = self.model.get_mut(&key.id)?;
        let again = entry.execution().is_some_and(|execution| execution.stopped().is_none());
        let delayed = State::Waiting { lane: 0, again: None };
        let State::Running { attempt, .. } = std::mem::replace(&mut entry.state, delayed) else {
            panic!("it runs")
        };
        let execution = Arc::clone(&attempt.execution);
        let (redirected, has_answer) = (None, false);
        let held = Again { execution, redirected, has_answer };
        entry.state = State::Delayed { until: Instant::now(), again: held };
        Some((key, attempt, again))
    }

    /// Now, or in a long time.
    fn moment(&mut self) -> Instant {
        let now = Instant::now();
        if self.random.usize(..3) == 0 { now + FAR } else { now }
    }

    fn retry(&mut self) {
        let Some((key, mut attempt, goes_on)) = self.lay_down() else { return };
        let (until, now) = (self.moment(), self.now());
        if self.random.usize(..2) == 0 {
            attempt.redirected = None;
        }
        if self.random.usize(..4) == 0 {
            attempt.answer = Some(response(0).into());
        }
        let again = Again::of(&attempt);
        self.trace.note(format!("retry {} with {:?}", key.id, again.redirected));
        self.store.retry(&key, attempt, until, now);
        if !goes_on {
            return self.finished(key.id, true, now);
        }
        let entry = self.model.get_mut(&key.id).expect("it ran");
        if again.redirected.is_none() {
            entry.recorded = Runs::No;
            entry.is_recent = true;
        }
        entry.state = State::Delayed { until, again };
    }

    fn redirect(&mut self) {
        let Some((key, mut attempt, goes_on)) = self.lay_down() else { return };
        let (lane, deadline, now) = (self.random.usize(..LANES.len()), self.moment(), self.now());
        attempt.redirected = Some(redirected(RouteIndex(lane), deadline));
        let again = Some(Again::of(&attempt));
        self.trace.note(format!("redirect {} to {lane}", key.id));
        self.store.redirect(&key, attempt, now);
        if !goes_on {
            return self.finished(key.id, true, now);
        }
        let entry = self.model.get_mut(&key.id).expect("it ran");
        entry.state = State::Waiting { lane, again };
    }

    /// Delays and deadlines that are over: some jobs have to be finished, others wait again.
    fn overdue(&mut self) {
        let mut due = self.store.overdue(Duration::ZERO);
        let now = Instant::now();
        let is_over = |moment: Instant| moment <= now;
        due.sort_by_key(|claimed| claimed.job.id);
        let ids: Vec<JobId> = due.iter().map(|claimed| claimed.job.id).collect();
        self.trace.note(format!("overdue: {ids:?}"));
        let mut expected = Vec::new();
        for (id, entry) in &mut self.model {
            let too_late = |again: &Again| again.expiry().is_some_and(is_over);
            match &mut entry.state {
                State::Waiting { again: Some(again), .. } if too_late(again) => {
                    expected.push(*id);
                }
                State::Delayed { until, again } if is_over(*until) => {
                    if again.has_answer || too_late(again) {
                        expected.push(*id);
                    } else {
                        let lane =
                            again.redirected.map_or(route(entry.n, LANES.len()).0, |to| to.0);
                        let (execution, redirected) =
                            (Arc::clone(&again.execution), again.redirected);
                        let again = Some(Again { execution, redirected, has_answer: false });
                        entry.state = State::Waiting { lane, again };
                    }
                }
                _ => {}
            }
        }
        assert_eq!(ids, expected);
        self.tried.due += due.len();
        for Claimed { job, attempt } in due {
            let entry = self.model.get_mut(&job.id).expect("it was expected");
            assert_eq!(job.owner, entry.owner);
            entry.state = State::Running { lane: None, attempt };
        }
    }

    /// The handler writes to its stderr, which no store knows of.
    fn write_log(&mut self) {
        let size = self.random.usize(..300);
        let Some(key) = self.running(|_| true) else { return };
        let Some(execution) = self.model[&key.id].execution() else { return };
        self.trace.note(format!("write {size} bytes from {}", key.id));
        execution.append_log(&vec![b'a' + (size % 26) as u8; size]);
        execution.set_progress(&format!("{size} bytes"));
    }

    fn collect(&mut self) {
        let key = self.pick();
        self.trace.note(format!("collect {}", key.id));
        let mut named = None;
        let found = self.store.collect(&key).map(|(response, id)| {
            named = Some(id);
            response
        });
        let expected = self.visible(&key);
        assert_lookup(&found, expected.as_deref());
        if let Some(Entry { state: State::Done { delivery, .. }, .. }) = expected {
            *delivery = named;
        }
        if let Some(id) = named {
            assert!(self.deliveries.iter().all(|(_, other)| *other != id), "it has its own name");
            self.deliveries.push((key, id));
        }
    }

    fn confirm(&mut self) {
        let (key, id) = self.delivery();
        self.trace.note(format!("confirm {} of {}", id.0, key.id));
        self.store.confirm(&key, id);
        let delivered = self
            .model
            .extract_if(key.id..=key.id, |_, entry| entry.owner == key.owner && entry.is_in(id));
        self.fading.extend(delivered);
    }

    fn restore(&mut self) {
        let (key, id) = self.delivery();
        self.trace.note(format!("restore {} of {}", id.0, key.id));
        self.store.restore(&key, id);
        if let Some(entry) = self.model.get_mut(&key.id)
            && entry.owner == key.owner
            && entry.is_in(id)
        {
            entry.deliver_again();
        }
    }

    /// A delivery that is under way, if there is one, or any that ever was; sometimes of another job.
    fn delivery(&mut self) -> (JobKey, DeliveryId) {
        let mut jobs = self.model.iter();
        let under_way = jobs.find_map(|(&id, entry)| match entry.state {
            State::Done { delivery: Some(delivery), .. } => {
                Some((JobKey { owner: entry.owner.clone(), id }, delivery))
            }
            _ => None,
        });
        let past = self.random.usize(..self.deliveries.len() + 1);
        let past = self.deliveries.get(past).cloned();
        let of_none = (self.pick(), DeliveryId::default());
        match (self.random.usize(..6), under_way, past) {
            (0, Some((key, _)), Some((_, id))) => (key, id),
            (0..2, _, Some(past)) => past,
            (_, Some(under_way), _) => under_way,
            _ => of_none,
        }
    }

    fn cancel(&mut self) {
        let (key, now) = (self.pick(), self.now());
        self.trace.note(format!("cancel {} at {now:?}", key.id));
        let cancelled = self.store.cancel(&key, now).unwrap();
        self.flush_if_need_be();
        let room = self.room_of(key.id);
        let expected = self.visible(&key);
        assert_eq!(cancelled, expected.is_some());
        let Some(entry) = expected else { return };
        match &entry.state {
            State::Waiting { .. } | State::Delayed { .. } => entry.finish(true, now, room),
            State::Running { attempt, .. } => {
                assert_eq!(attempt.execution.stopped(), Some(Stop::Cancel));
            }
            State::Done { .. } => {}
        }
    }

    fn forget(&mut self) {
        let key = self.pick();
        self.trace.note(format!("forget {}", key.id));
        let forgotten = self.store.forget(&key).unwrap();
        assert_eq!(forgotten, self.visible(&key).is_some());
        if forgotten {
            self.forget_those(|id, _| *id == key.id);
        }
    }

    fn forget_all(&mut self) {
        let owner = self.pick().owner;
        self.trace.note("forget all".into());
        self.store.forget_all(&owner).unwrap();
        self.forget_those(|_, entry| entry.owner == owner);
        // Their removal is durable before a crash, as that of results is.
        self.keys.retain(|(of, _), _| *of != owner);
    }

    fn forget_before(&mut self) {
        let (owner, before) = (self.pick().owner, self.now());
        self.trace.note(format!("forget before {before:?}"));
        self.store.forget_before(&owner, before).unwrap();
        self.forget_those(|_, entry| entry.owner == owner && entry.stamp() < before);
    }

    fn expire(&mut self) {
        let before = self.now();
        self.trace.note(format!("expire before {before:?}"));
        let expired = self.store.expire(before).unwrap();
        let count = self.model.len();
        let gone =
            self.model.extract_if(.., |_, entry| entry.is_collectable() && entry.stamp() < before);
        self.fading.extend(gone);
        assert_eq!(expired, count - self.model.len());
        let old = self.keys.extract_if(.., |_, named| named.stamp < before);
        for (name, mut named) in old.collect::<Vec<_>>() {
            // A key lives as long as its job, whatever its age.
            if self.model.contains_key(&named.id) {
                named.stamp = before;
                self.keys.insert(name, named);
            } else {
                self.fading_keys.insert(name, named);
            }
        }
    }

    /// How the store may end now.
    fn choose_end(&mut self, durability: Durability) -> End {
        let ends = [End::Drained, End::Closed, End::CrashedAfterFlush, End::Crashed];
        // What a relaxed store has not flushed may be lost: that has suites of its own. What became of a
        // job that cannot be asked for could not be seen.
        let is_unseen = self.count(|entry| !entry.wanted && entry.is_recent) > 0;
        let knows_all = durability == Durability::Commit && !is_unseen;
        *self.random.choice(if knows_all { &ends[..] } else { &ends[..3] }).unwrap()
    }

    /// Ends the store and opens it again on what is left.
    fn reopen(&mut self) {
        let Some(Disk { volume, durability }) = self.disk.take() else { return };
        let end = self.choose_end(durability);
        self.trace.note(format!("{end:?}"));
        let left = match end {
            End::Drained => {
                self.drain();
                volume.bytes()
            }
            End::Closed => {
                assert_eq!(self.store.close(), [], "all is durable");
                volume.bytes()
            }
            End::CrashedAfterFlush => {
                self.flush();
                volume.medium().image(&mut self.random)
            }
            End::Crashed => volume.medium().image(&mut self.random),
        };
        let volume = Volume::of(left);
        let (store, found) = self.limits.open(&volume, durability);
        (self.store, self.disk) = (store, Some(Disk { volume, durability }));
        // Jobs that ran are done then.
        self.store.flush().unwrap();
        self.recover_what_faded(end);
        self.recover_jobs(end, found);
        self.keys.values_mut().for_each(|named| named.stamp = named.created);
        self.deliveries.clear();
        self.line.clear();
        self.inside.clear();
    }

    /// Ends the store as deferd does: only what a script was redirected to is begun yet.
    fn drain(&mut self) {
        self.store.drain();
        let is_redirected = |entry: &Entry| match &entry.state {
            State::Waiting { again: Some(again), lane } => {
                again.redirected.is_some() && self.room_in(*lane) > 0
            }
            _ => false,
        };
        let expected = self.model.iter().find(|(_, entry)| is_redirected(entry));
        let claimed = claim(&*self.store).map(|claimed| claimed.job.id);
        assert_eq!(claimed, expected.map(|(id, _)| *id));
        self.store.stop(Stop::Kill);
        assert!(claim(&*self.store).is_none(), "it was stopped");
        for entry in self.model.values() {
            if let State::Running { attempt, .. } = &entry.state {
                assert_eq!(attempt.execution.stopped(), Some(Stop::Kill));
            }
        }
        assert_eq!(self.store.close(), [], "all is durable");
    }

    /// What was gone may be back if that was not durable.
    fn recover_what_faded(&mut self, end: End) {
        for (id, mut entry) in std::mem::take(&mut self.fading) {
            let key = JobKey { owner: entry.owner.clone(), id };
            let is_back = self.store.status(&key).unwrap().is_some();
            assert!(!is_back || matches!(end, End::Crashed), "{id} is back");
            if is_back {
                entry.deliver_again();
                self.model.insert(id, entry);
            }
        }
        for (name, named) in std::mem::take(&mut self.fading_keys) {
            let is_back = self.store.recall(&name.0, &named.key) == Ok(Some(named.id));
            assert!(!is_back || matches!(end, End::Crashed), "{name:?} is back");
            if is_back {
                self.keys.insert(name, named);
            }
        }
    }

    /// What waited or was delayed waits; what ran is done with an error, or waits again.
    fn recover_jobs(&mut self, end: End, found: Recovered) {
        let (mut waiting, mut gone) = (0, Vec::new());
        let before = self.tried.interrupted;
        for (&id, entry) in &mut self.model {
            entry.deliver_again();
            if !entry.is_pending() {
                continue;
            }
            let key = JobKey { owner: entry.owner.clone(), id };
            let is_done = || self.store.status(&key) == Ok(Some(Status::Done));
            let lane = entry.own_lane();
            let runs_again = LANES[lane].rerun == Rerun::Yes && entry.starts < MAX_STARTS;
            let is_interrupted = match end {
                End::Crashed if entry.is_recent && !runs_again => is_done(),
                _ => entry.recorded == Runs::Yes && !runs_again,
            };
            entry.is_recent = false;
            if !is_interrupted {
                waiting += 1;
                entry.state = State::Waiting { lane, again: None };
                if !runs_again {
                    entry.recorded = Runs::No;
                }
                continue;
            }
            self.tried.interrupted += 1;
            self.tried.exhausted += usize::from(LANES[lane].rerun == Rerun::Yes);
            let result = Error::Interrupted.response().into();
            // By the clock on the wall.
            let finished = at(4e9);
            entry.state = State::Done { finished, result, log: Vec::new(), delivery: None };
            if !entry.wanted {
                gone.push(id);
            }
        }
        gone.iter().for_each(|id| drop(self.model.remove(id)));
        assert_eq!((found.waiting, found.interrupted), (waiting, self.tried.interrupted - before));
    }

    /// Results go at once; what is under way goes on, and nobody can ask for it.
    fn forget_those(&mut self, which: impl Fn(&JobId, &Entry) -> bool) {
        self.model.retain(|id, entry| !which(id, entry) || entry.is_pending());
        for (id, entry) in &mut self.model {
            entry.wanted &= !which(id, entry);
        }
    }

    /// Compares everything that can be asked for.
    fn compare(&mut self) {
        let store = &*self.store;
        for (&id, entry) in &self.model {
            let key = JobKey { owner: entry.owner.clone(), id };
            let seen = entry.is_visible().then_some(entry);
            assert_eq!(store.status(&key), Ok(seen.map(status)), "status of {id}");
            assert_eq!(store.log(&key).unwrap(), seen.map(Entry::log), "log of {id}");
            assert_lookup(&store.peek(&key), seen);
        }
        for owner in owners() {
            self.compare_keys(&owner);
            let count = self.random.usize(..8);
            self.compare_lists(&owner, count);
            self.compare_lists(&owner, usize::MAX);
        }
        assert_eq!(self.store.stats(), Ok(self.stats()));
        // What was found counts, whatever the capacity: then nothing fits.
        let room = self.limits.capacity.checked_sub(self.stored() + JOB);
        let fits = if self.is_queue_full() { Err(Refused::QueueFull) } else { Ok(()) };
        if let Some(room) = room {
            assert_eq!(self.store.check(room), fits);
        }
        let too_much = self.store.check(room.map_or(0, |room| room + 1));
        assert!(matches!(too_much, Err(Refused::Full | Refused::TooLarge)), "{too_much:?}");
    }

    fn compare_keys(&self, owner: &Owner) {
        for n in 0..KEYS * 2 {
            let key = key_of(n);
            let expected = match self.keys.get(&(owner.clone(), key.key.clone())) {
                Some(named) if named.key == key => Ok(Some(named.id)),
                Some(_) => Err(Refused::KeyReused),
                None => Ok(None),
            };
            assert_eq!(self.store.recall(owner, &key), expected, "{key:?}");
        }
    }

    fn compare_lists(&self, owner: &Owner, count: usize) {
        for list in [List::Pending, List::Done] {
            let expected = self.model.iter().filter(|(_, entry)| {
                let listed = entry.is_pending() == (list == List::Pending);
                listed && entry.is_visible() && entry.owner == *owner
            });
            let expected: Vec<JobId> = expected.map(|(id, _)| *id).take(count).collect();
            assert_eq!(self.store.list(owner, list, count), Ok(expected), "{list:?}, {count}");
        }
    }

    /// Lets everything run to its end, and go.
    fn end(mut self) -> Tried {
        if self.disk.is_none() {
            let visible = self.model.iter().filter(|(_, entry)| entry.is_visible());
            let ids: BTreeSet<JobId> = self.store.close().into_iter().collect();
            assert!(visible.map(|(id, _)| id).eq(&ids), "what ends with the process");
        }
        owners().iter().for_each(|owner| self.store.forget_all(owner).unwrap());
        self.forget_those(|_, _| true);
        self.keys.clear();
        self.compare();
        for caller in self.line.drain(..).chain(self.inside.drain(..)) {
            self.store.leave_lane(RouteIndex(caller.lane), caller.turn);
        }
        for (id, entry) in std::mem::take(&mut self.model) {
            let key = JobKey { owner: entry.owner, id };
            assert_eq!(self.store.finish(&key, response(entry.n), at(THEN)), Finished::Dropped);
        }
        self.compare();
        self.tried
    }
}

/// How many names keys have.
const KEYS: usize = 3;

/// Each name with two requests.
fn key_of(n: usize) -> IdempotencyKey {
    IdempotencyKey { key: format!("key {}", n / 2).into(), fingerprint: [(n % 2) as u8; 32] }
}

fn any_key(random: &mut Rng) -> IdempotencyKey {
    key_of(random.usize(..KEYS * 2))
}

fn status(entry: &Entry) -> Status {
    match &entry.state {
        State::Done { .. } => Status::Done,
        _ => Status::Pending(entry.execution().and_then(Execution::progress)),
    }
}

#[track_caller]
fn assert_lookup(found: &Lookup, expected: Option<&Entry>) {
    match (found, expected.map(|entry| &entry.state)) {
        (Lookup::Unknown, None) => {}
        (Lookup::Done(found), Some(State::Done { result, .. })) => assert_eq!(found, result),
        (Lookup::Pending, Some(state)) if !matches!(state, State::Done { .. }) => {}
        (found, _) => panic!("found {found:?}, expected {:?}", expected.map(status)),
    }
}
