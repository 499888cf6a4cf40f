//! The store against a model: random operations, one after the other, must get the same answers.
//!
//! The model is a plain map that does everything by examining every job. After each operation the two are compared
//! completely: each job's status, result and log, the lists, what each idempotency key stands for, the records in
//! pages through filters, how many jobs wait and run in each lane, which callers are admitted, and the accounts to the
//! byte. Every second store is small, so that it is full most of the time: then it refuses exactly what does not fit,
//! and evicts nothing; every third has a short queue. Now and then a store on disk is closed or crashes, and is opened
//! again on what is left: then jobs that waited or were delayed wait, running jobs are done with an error or wait
//! again, results in delivery can be collected, and nothing else has changed. A failure prints the seed and the
//! operations that led to it.

mod entry;
mod lanes;
mod reopen;
mod results;
mod runs;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::store::kit::*;
use deferd::exchange::Owner;
use deferd::job::{JobId, JobKey, Keep, Rerun, RouteIndex, Stamp};
use deferd::ledger::schedule::Limit;
use deferd::store::disk::{Durability, Recovered};
use deferd::store::memory::MemoryStore;
use deferd::store::{
    Accepted, DeliveryId, Filter, Finished, IdempotencyKey, JobState, Lane, List, Lookup, Order,
    Plan, Refused, Store, Submission, Tells,
};

use entry::{Entry, Runs, State};
use lanes::Caller;
use reopen::reopening;

const SEQUENCES: u64 = 2000;
/// The same for a store on disk.
const ON_DISK: u64 = 400;
const OPERATIONS: usize = 60;

/// A lane of each kind.
const LANES: [Lane; 4] = [
    Lane { limit: Limit::Open, rerun: Rerun::No, tells: Tells::NONE },
    Lane { limit: Limit::Shared(1), rerun: Rerun::Yes, tells: Tells::NONE },
    Lane { limit: Limit::Shared(2), rerun: Rerun::No, tells: Tells::NONE },
    Lane { limit: Limit::Callers(1), rerun: Rerun::Harmless, tells: Tells::NONE },
];
const WORKERS: usize = 3;

/// Longer than any test.
const FAR: Duration = Duration::from_secs(3600);

#[test]
fn a_store_in_memory_equals_the_model() {
    let run = |seed| {
        let limits = Limits::of(seed);
        let store = MemoryStore::new(room(limits.capacity), limits.plan());
        run(Trial::new(Box::new(store), None, limits, seed))
    };
    (1..=SEQUENCES).map(run).sum::<Tried>().assert_enough(SEQUENCES);
}

#[test]
fn a_store_on_disk_equals_the_model_over_crashes() {
    let tried: Tried = (1..=ON_DISK).map(|seed| run_on_disk(seed, Durability::Commit)).sum();
    tried.assert_enough(ON_DISK);
    assert!(tried.interrupted > ON_DISK as usize / 10, "{tried:?}");
    assert!(tried.exhausted > 0, "{tried:?}");
}

#[test]
fn a_relaxed_store_equals_the_model_over_crashes() {
    let tried: Tried = (1..=ON_DISK).map(|seed| run_on_disk(seed, Durability::Relaxed)).sum();
    tried.assert_enough(ON_DISK);
    assert!(tried.interrupted > ON_DISK as usize / 10, "{tried:?}");
    assert!(tried.exhausted > 0, "{tried:?}");
}

/// The limits of a store.
#[derive(Clone, Copy)]
struct Limits {
    capacity: usize,
    queue: usize,
}

impl Limits {
    /// Returns, in every second sequence, room for a few jobs, and in every third a short queue.
    fn of(seed: u64) -> Self {
        let mut random = Rng::with_seed(seed);
        let (few, short) = (2000 + random.usize(..8000), 1 + random.usize(..4));
        Self {
            capacity: if seed.is_multiple_of(2) { CAPACITY } else { few },
            queue: if seed.is_multiple_of(3) { short } else { usize::MAX },
        }
    }

    fn plan(self) -> Plan {
        Plan {
            workers: WORKERS,
            queue: self.queue,
            ttl: Duration::MAX,
            log_ttl: Duration::ZERO,
            lanes: LANES.to_vec(),
        }
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
    run(Trial::new(store, Some(Disk { volume, durability }), limits, seed))
}

/// Runs a sequence.
fn run(mut trial: Trial) -> Tried {
    for _ in 0..OPERATIONS {
        trial.step();
        trial.let_in();
        trial.compare();
    }
    trial.end()
}

/// How often rare events have happened.
#[derive(Clone, Copy, Debug, Default)]
struct Tried {
    /// Submissions for which there was no room.
    full: usize,
    /// Submissions for which there was no place in the queue.
    queue_full: usize,
    /// Callers that had to wait and were admitted.
    let_in: usize,
    /// Jobs that became due and had to be finished.
    due: usize,
    /// Jobs that were running when the process ended.
    interrupted: usize,
    /// Those of them that had been started too often.
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

/// What a store is on, to open it again.
struct Disk {
    volume: Volume,
    durability: Durability,
}

/// Returns everyone for whom a job can be submitted.
fn owners() -> Vec<Owner> {
    vec![Owner::anonymous(), Owner::named("alice"), Owner::named("bob")]
}

/// What the model knows about an idempotency key.
struct Named {
    id: JobId,
    key: IdempotencyKey,
    /// When its job was accepted.
    created: Stamp,
    /// The same, or when it was last kept because its job existed.
    stamp: Stamp,
}

type Keys = BTreeMap<(Owner, Box<str>), Named>;

/// A store, its model, and what was done to both.
struct Trial {
    store: Box<dyn Store>,
    disk: Option<Disk>,
    limits: Limits,
    model: BTreeMap<JobId, Entry>,
    keys: Keys,
    /// What was removed, and may exist again after a crash.
    fading: BTreeMap<JobId, Entry>,
    fading_keys: Keys,
    /// Every delivery of this process.
    deliveries: Vec<(JobKey, DeliveryId)>,
    /// Waiting callers, in their order.
    line: Vec<Caller>,
    /// Admitted callers.
    inside: Vec<Caller>,
    tried: Tried,
    last: Option<JobId>,
    submitted: usize,
    random: Rng,
    /// Random numbers for the filters of records alone, so that they do not affect the operations.
    filters: Rng,
    trace: Trace,
}

/// Prints, on failure, the operations that led to it.
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

impl Trial {
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
            filters: Rng::with_seed(seed),
            trace: Trace { seed, lines: RefCell::default() },
        }
    }

    /// Recounts what is on the accounts.
    fn stored(&self) -> usize {
        let jobs: usize = self.model.values().map(Entry::bytes).sum();
        jobs + self.keys.values().map(|named| named.key.footprint()).sum::<usize>()
    }

    /// Returns how much the result of a job may take.
    fn room_of(&self, id: JobId) -> usize {
        let own = self.model.get(&id).map_or(0, Entry::bytes);
        (self.limits.capacity + own).saturating_sub(self.stored())
    }

    /// Returns whether its answers wait until what they report is durable.
    fn commits(&self) -> bool {
        self.disk.as_ref().is_some_and(|disk| disk.durability == Durability::Commit)
    }

    /// Makes everything durable, so that results can be collected.
    fn flush(&mut self) {
        self.store.flush().unwrap();
        self.model.values_mut().for_each(|entry| entry.is_recent = false);
    }

    /// Flushes, but only if answers do not imply it.
    fn flush_if_need_be(&mut self) {
        if self.commits() {
            self.flush();
        }
    }

    /// Returns the time of a clock that often stands still and often steps back.
    fn now(&mut self) -> Stamp {
        at(self.random.usize(..12) as f64).stamp
    }

    /// Picks any job that ever existed, or one that never did.
    fn pick(&mut self) -> JobKey {
        let owners = owners();
        let owner = owners[self.random.usize(..owners.len())].clone();
        let known = self.model.len();
        let nth = self.random.usize(..known + 1);
        let id = self.model.keys().nth(nth).copied();
        let id = id.or(self.last).unwrap_or(JobId::parse("7").unwrap());
        // Mostly with its own owner, sometimes with another.
        let own = self.model.get(&id).map(|entry| entry.owner.clone());
        let owner = own.filter(|_| self.random.usize(..4) != 0).unwrap_or(owner);
        JobKey { owner, id }
    }

    /// Returns the job as its owner sees it.
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
        let line = line(&call);
        let request = JOB + line.footprint() + call.footprint();
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
        let submission = Submission { call, route, line, keep, key: key.clone(), callback: None };
        let found = self.store.submit(submission, moment(now));
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

    /// Compares everything that can be queried.
    fn compare(&mut self) {
        let store = &*self.store;
        for (&id, entry) in &self.model {
            let key = JobKey { owner: entry.owner.clone(), id };
            let seen = entry.is_visible().then_some(entry);
            assert_eq!(store.status(&key), Ok(seen.map(Entry::status)), "status of {id}");
            assert_eq!(store.log(&key).unwrap(), seen.map(Entry::log), "log of {id}");
            assert_lookup(&store.peek(&key), seen);
        }
        for owner in owners() {
            self.compare_keys(&owner);
            let count = self.random.usize(..8);
            self.compare_lists(&owner, count);
            self.compare_records(&owner);
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
            assert_eq!(
                self.store.list(owner, list, None, count),
                Ok(expected),
                "{list:?}, {count}"
            );
        }
    }

    /// Pages through the records of an owner that pass some filter.
    fn compare_records(&mut self, owner: &Owner) {
        let states = [JobState::Waiting, JobState::Delayed, JobState::Running, JobState::Done];
        let state = states.get(self.filters.usize(..8)).copied();
        let only_failed = self.filters.usize(..4) == 0;
        let route = match self.filters.usize(..8) {
            0 => Some("/job".into()),
            1 => Some("/job/".into()),
            _ => None,
        };
        let order = [Order::Ascending, Order::Descending][self.filters.usize(..2)];
        let filter = Filter { state, only_failed, route, order };
        let count = 1 + self.filters.usize(..4);
        let passes = |entry: &Entry| {
            let fits = state.is_none_or(|state| state == entry.job_state());
            let is_none = filter.route.as_deref() == Some("/job");
            let failed = entry.ending().is_some_and(|ending| ending.outcome.is_failure());
            fits && !is_none && (!only_failed || failed)
        };
        let of_owner = |entry: &Entry| entry.is_visible() && entry.owner == *owner;
        let expected = self.model.iter().filter(|(_, entry)| of_owner(entry) && passes(entry));
        let mut expected: Vec<_> = expected.collect();
        if order == Order::Descending {
            expected.reverse();
        }
        let mut expected = expected.into_iter();
        let mut after = None;
        loop {
            let page = self.store.records(owner, &filter, after, count).unwrap();
            for record in &page.records {
                let (id, entry) = expected.next().expect("it is listed");
                let mut expected = entry.record(*id);
                expected.attempts = record.attempts;
                if let (Some(end), Some(found)) = (&mut expected.end, &record.end)
                    && end.finished == reopening().stamp
                {
                    (end.finished, end.expires) = (found.finished, found.expires);
                }
                assert_eq!(*record, expected);
                let key = JobKey { owner: owner.clone(), id: *id };
                assert_eq!(self.store.record(&key), Ok(Some(record.clone())));
            }
            assert!(page.records.len() == count || page.next.is_none());
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(expected.next().map(|(id, _)| id), None, "{filter:?}");
    }

    /// Runs everything to its end, and removes it.
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

/// How many names keys can have.
const KEYS: usize = 3;

/// Returns a key: each name occurs with two requests.
fn key_of(n: usize) -> IdempotencyKey {
    IdempotencyKey { key: format!("key {}", n / 2).into(), fingerprint: [(n % 2) as u8; 32] }
}

fn any_key(random: &mut Rng) -> IdempotencyKey {
    key_of(random.usize(..KEYS * 2))
}

#[track_caller]
fn assert_lookup(found: &Lookup, expected: Option<&Entry>) {
    match (found, expected.map(|entry| &entry.state)) {
        (Lookup::Unknown, None) => {}
        (Lookup::Done(found), Some(State::Done { result, .. })) => assert_eq!(found, result),
        (Lookup::Pending, Some(state)) if !matches!(state, State::Done { .. }) => {}
        (found, _) => panic!("found {found:?}, expected {:?}", expected.map(Entry::status)),
    }
}
