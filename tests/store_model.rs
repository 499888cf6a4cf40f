//! The store against a model: random operations, one after the other, must have the same answers.
//!
//! The model is a plain map that does everything by looking at every job. After each operation the
//! two are compared whole: each job's status, result and log, the lists, what each idempotency key
//! stands for, and the accounts to the byte. Every second store is small, so that it is full most of the
//! time: then it refuses just what does not fit, and nothing that it keeps has to go. Now and then a store on disk is closed or crashes, and is opened again on what is left: then what
//! ran waits again, what was in delivery can be collected, and nothing else has changed. A failure
//! prints the seed and the operations that led to it.

#![allow(clippy::unwrap_used)]

mod store_kit;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use deferd::error::Error;
use deferd::exchange::Owner;
use deferd::job::execution::{Execution, Stop};
use deferd::job::stored::{StoredResponse, StoredResult};
use deferd::job::{JobId, RECORD, SHORT_LOG, Stamp};
use deferd::store::disk::Durability;
use deferd::store::memory::MemoryStore;
use deferd::store::{
    Accepted, Begun, Finished, IdempotencyKey, JobKey, Keep, List, Lookup, Refused, StartRecord,
    Status, Store, Submission,
};
use store_kit::*;

const SEQUENCES: u64 = 2000;
/// The same for a store on disk.
const ON_DISK: u64 = 600;
const OPERATIONS: usize = 50;

#[test]
fn a_store_in_memory_answers_as_a_plain_map_does() {
    let run = |seed| {
        let capacity = capacity(seed);
        run(Overlay::new(Box::new(MemoryStore::new(room(capacity))), None, capacity, seed))
    };
    assert_enough_refused((1..=SEQUENCES).map(run).sum(), SEQUENCES);
}

#[test]
fn a_store_on_disk_answers_as_a_plain_map_does_over_crashes() {
    let refused = (1..=ON_DISK).map(|seed| run_on_disk(seed, Durability::Commit)).sum();
    assert_enough_refused(refused, ON_DISK);
}

#[test]
fn a_relaxed_store_answers_as_a_plain_map_does_over_crashes() {
    let refused = (1..=ON_DISK).map(|seed| run_on_disk(seed, Durability::Relaxed)).sum();
    assert_enough_refused(refused, ON_DISK);
}

/// Of every second sequence, room for a few jobs.
fn capacity(seed: u64) -> usize {
    if seed.is_multiple_of(2) { CAPACITY } else { 2000 + Random::new(seed).below(8000) }
}

fn run_on_disk(seed: u64, durability: Durability) -> usize {
    let (volume, capacity) = (Volume::default(), capacity(seed));
    let store = Box::new(open_for(capacity, &volume, durability).unwrap().0);
    run(Overlay::new(store, Some(Disk { volume, durability }), capacity, seed))
}

/// Goes through a sequence; how many submissions found no room.
fn run(mut trial: Overlay) -> usize {
    for _ in 0..OPERATIONS {
        trial.step();
        trial.compare();
    }
    trial.end()
}

/// Else the limit was not tried.
#[track_caller]
fn assert_enough_refused(refused: usize, sequences: u64) {
    assert!(refused as u64 > sequences, "{refused} refused in {sequences} sequences");
}

/// What a store is on that can be opened again.
struct Disk {
    volume: Volume,
    durability: Durability,
}

/// How a store ends before it is opened again.
#[derive(Clone, Copy, Debug)]
enum End {
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
    /// It was started at some time.
    begun: bool,
    state: State,
}

enum State {
    Queued,
    Running { execution: Arc<Execution> },
    Done { finished: Stamp, result: StoredResponse, log: Vec<u8>, in_delivery: bool },
}

impl Entry {
    fn is_pending(&self) -> bool {
        !matches!(self.state, State::Done { .. })
    }

    fn is_collectable(&self) -> bool {
        matches!(self.state, State::Done { in_delivery: false, .. })
    }

    fn is_visible(&self) -> bool {
        self.wanted && (self.is_pending() || self.is_collectable())
    }

    fn stamp(&self) -> Stamp {
        match self.state {
            State::Done { finished, .. } => finished,
            State::Queued | State::Running { .. } => self.created,
        }
    }

    fn bytes(&self) -> usize {
        match &self.state {
            State::Done { result, log, .. } => {
                let (response, log) = (result.clone(), log.clone().into());
                RECORD + StoredResult { response, log }.footprint()
            }
            State::Queued | State::Running { .. } => self.request,
        }
    }

    /// Nobody is taking it any more.
    fn deliver_again(&mut self) {
        if let State::Done { in_delivery, .. } = &mut self.state {
            *in_delivery = false;
        }
    }

    fn log(&self) -> Vec<u8> {
        match &self.state {
            State::Queued => Vec::new(),
            State::Running { execution } => execution.log(),
            State::Done { log, .. } => log.clone(),
        }
    }

    /// What this job's work ends with: `410` if it was cancelled, and `507` if there is no more `room`
    /// than its request has taken.
    fn finish(&mut self, cancelled: bool, now: Stamp, room: usize) {
        let response = if cancelled { Error::Cancelled.response() } else { response(self.n) };
        let (result, mut log) = (StoredResponse::from(response), self.log());
        self.state = State::Done { finished: now, result, log: log.clone(), in_delivery: false };
        if self.bytes() > self.request.max(room) {
            let result = Refused::Full.of_result().response().into();
            log.drain(..log.len().saturating_sub(SHORT_LOG));
            self.state = State::Done { finished: now, result, log, in_delivery: false };
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

/// A store, its model, and what was done to both.
struct Overlay {
    store: Box<dyn Store>,
    disk: Option<Disk>,
    capacity: usize,
    model: BTreeMap<JobId, Entry>,
    keys: Keys,
    /// What is gone, and after a crash may be there again.
    fading: BTreeMap<JobId, Entry>,
    fading_keys: Keys,
    refused: usize,
    last: Option<JobId>,
    submitted: usize,
    random: Random,
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
    fn new(store: Box<dyn Store>, disk: Option<Disk>, capacity: usize, seed: u64) -> Self {
        Self {
            store,
            disk,
            capacity,
            model: BTreeMap::new(),
            keys: Keys::new(),
            fading: BTreeMap::new(),
            fading_keys: Keys::new(),
            refused: 0,
            last: None,
            submitted: 0,
            random: Random::new(seed),
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
        (self.capacity + own).saturating_sub(self.stored())
    }

    /// A clock that often stands still and often steps back.
    fn now(&mut self) -> Stamp {
        at(self.random.below(12) as f64)
    }

    /// Any job that ever was, or one that never was.
    fn pick(&mut self) -> JobKey {
        let owners = owners();
        let owner = owners[self.random.below(owners.len())].clone();
        let known = self.model.len();
        let nth = self.random.below(known + 1);
        let id = self.model.keys().nth(nth).copied();
        let id = id.or(self.last).unwrap_or(JobId::parse("7").unwrap());
        // Mostly of its own owner, sometimes of another.
        let own = self.model.get(&id).map(|entry| entry.owner.clone());
        let owner = own.filter(|_| self.random.below(4) != 0).unwrap_or(owner);
        JobKey { owner, id }
    }

    /// The job as its owner sees it.
    fn visible(&mut self, key: &JobKey) -> Option<&mut Entry> {
        let entry = self.model.get_mut(&key.id)?;
        (entry.owner == key.owner && entry.is_visible()).then_some(entry)
    }

    fn step(&mut self) {
        match self.random.below(21) {
            20 => self.reopen(),
            0..=3 => self.submit(),
            4..=6 => self.start(),
            7..=9 => self.finish(),
            10..=11 => self.write_log(),
            12..=13 => self.collect(),
            14 => self.confirm(),
            15 => self.restore(),
            16 => self.cancel(),
            17 => self.forget(),
            _ => match self.random.below(6) {
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
        let owner = owners[self.random.below(owners.len())].clone();
        let wanted = self.random.below(6) != 0;
        let keep = if wanted { Keep::Result } else { Keep::Nothing };
        let call = call(n, &owner);
        let request = JOB + call.footprint();
        let key = (self.random.below(3) == 0).then(|| any_key(&mut self.random));
        let known = key.as_ref().and_then(|key| self.keys.get(&(owner.clone(), key.key.clone())));
        let key_bytes = key.as_ref().map_or(0, IdempotencyKey::footprint);
        let bytes = request + key_bytes;
        let keys = self.keys.values().map(|named| named.key.footprint()).sum::<usize>();
        let expected = match (&key, known) {
            (Some(key), Some(named)) if named.key == *key => Some(Ok(Accepted::Known(named.id))),
            (_, Some(_)) => Some(Err(Refused::KeyReused)),
            (Some(_), None) if keys + key_bytes > self.capacity / 4 => Some(Err(Refused::ManyKeys)),
            (_, None) if bytes > self.capacity => Some(Err(Refused::TooLarge)),
            (_, None) if self.stored() + bytes > self.capacity => Some(Err(Refused::Full)),
            (_, None) => None,
        };
        let submission = Submission { call, keep, key: key.clone() };
        let found = self.store.submit(submission, now);
        self.trace.note(format!("submit {keep:?} by {key:?} at {now:?}: {found:?}"));
        if let Some(expected) = expected {
            self.refused += usize::from(expected == Err(Refused::Full));
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
        let entry =
            Entry { owner, n, created: now, request, wanted, begun: false, state: State::Queued };
        self.model.insert(id, entry);
    }

    fn start(&mut self) {
        let (key, now) = (self.pick(), self.now());
        self.trace.note(format!("start {}", key.id));
        let execution = execution(key.id);
        let started = self.store.start(&key, &execution, StartRecord::Before, now);
        match self.model.get_mut(&key.id) {
            Some(entry) if entry.owner == key.owner && matches!(entry.state, State::Queued) => {
                let started = started.expect("it waits");
                assert_eq!(started.created, entry.created);
                assert_eq!(started.call.request.uri().path(), format!("/job/{}", entry.n));
                entry.state = State::Running { execution };
                entry.begun = true;
            }
            _ => assert!(started.is_none(), "it does not wait"),
        }
    }

    /// Only workers finish jobs, and only those that they were handed.
    fn finish(&mut self) {
        let (key, now) = (self.pick(), self.now());
        let Some(entry) = self.model.get_mut(&key.id) else { return };
        let State::Running { execution } = &entry.state else { return };
        let cancelled = execution.stopped().is_some();
        let room = self.room_of(key.id);
        let Some(entry) = self.model.get_mut(&key.id) else { return };
        let key = JobKey { owner: entry.owner.clone(), id: key.id };
        self.trace.note(format!("finish {} at {now:?}", key.id));
        let finished = self.store.finish(&key, response(entry.n), now);
        self.store.flush().unwrap();
        let kept = entry.wanted && !cancelled;
        assert_eq!(finished, if kept { Finished::Kept } else { Finished::Dropped });
        if entry.wanted {
            entry.finish(cancelled, now, room);
        } else {
            self.model.remove(&key.id);
        }
    }

    /// The handler writes to its stderr, which no store knows of.
    fn write_log(&mut self) {
        let (key, size) = (self.pick(), self.random.below(300));
        let Some(Entry { state: State::Running { execution }, .. }) = self.model.get(&key.id)
        else {
            return;
        };
        self.trace.note(format!("write {size} bytes from {}", key.id));
        execution.append_log(&vec![b'a' + (size % 26) as u8; size]);
        execution.set_progress(&format!("{size} bytes"));
    }

    fn collect(&mut self) {
        let key = self.pick();
        self.trace.note(format!("collect {}", key.id));
        let found = self.store.collect(&key);
        let expected = self.visible(&key);
        assert_lookup(&found, expected.as_deref());
        if let Some(Entry { state: State::Done { in_delivery, .. }, .. }) = expected {
            *in_delivery = true;
        }
    }

    fn confirm(&mut self) {
        let key = self.in_delivery();
        self.trace.note(format!("confirm {}", key.id));
        self.store.confirm(&key);
        let delivered = self.model.extract_if(key.id..=key.id, |_, entry| {
            entry.owner == key.owner && !entry.is_pending() && !entry.is_collectable()
        });
        self.fading.extend(delivered);
    }

    fn restore(&mut self) {
        let key = self.in_delivery();
        self.trace.note(format!("restore {}", key.id));
        self.store.restore(&key);
        if let Some(entry) = self.model.get_mut(&key.id)
            && entry.owner == key.owner
            && let State::Done { in_delivery, .. } = &mut entry.state
        {
            *in_delivery = false;
        }
    }

    /// A job in delivery, if there is one: any other is hardly ever confirmed.
    fn in_delivery(&mut self) -> JobKey {
        let mut jobs = self.model.iter();
        let found = jobs.find(|(_, entry)| !entry.is_pending() && !entry.is_collectable());
        let found = found.map(|(&id, entry)| JobKey { owner: entry.owner.clone(), id });
        found.filter(|_| self.random.below(4) != 0).unwrap_or_else(|| self.pick())
    }

    fn cancel(&mut self) {
        let (key, now) = (self.pick(), self.now());
        self.trace.note(format!("cancel {} at {now:?}", key.id));
        let cancelled = self.store.cancel(&key, now).unwrap();
        self.store.flush().unwrap();
        let room = self.room_of(key.id);
        let expected = self.visible(&key);
        assert_eq!(cancelled, expected.is_some());
        let Some(entry) = expected else { return };
        match &entry.state {
            State::Queued => entry.finish(true, now, room),
            State::Running { execution } => assert_eq!(execution.stopped(), Some(Stop::Cancel)),
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
        let expired = self.store.expire_results(before);
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

    /// Ends the store and opens it again on what is left.
    fn reopen(&mut self) {
        let Some(Disk { volume, durability }) = &self.disk else { return };
        let durability = *durability;
        // What a relaxed store has not flushed may be lost: that has suites of its own.
        let ends = [End::Closed, End::CrashedAfterFlush, End::Crashed];
        let ends = if durability == Durability::Commit { &ends[..] } else { &ends[..2] };
        let end = *self.random.pick(ends);
        self.trace.note(format!("{end:?}"));
        let left = match end {
            End::Closed => {
                self.store.close();
                volume.bytes()
            }
            End::CrashedAfterFlush => {
                self.store.flush().unwrap();
                volume.medium().image(&mut self.random)
            }
            End::Crashed => volume.medium().image(&mut self.random),
        };
        let volume = Volume::of(left);
        let opened = open_for(self.capacity, &volume, durability);
        let (store, found) = opened.expect("it opens");
        (self.store, self.disk) = (Box::new(store), Some(Disk { volume, durability }));
        for (id, mut entry) in std::mem::take(&mut self.fading) {
            let key = JobKey { owner: entry.owner.clone(), id };
            let is_back = self.store.status(&key).is_some();
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
        self.keys.values_mut().for_each(|named| named.stamp = named.created);
        for entry in self.model.values_mut() {
            match &mut entry.state {
                State::Running { .. } => entry.state = State::Queued,
                State::Queued | State::Done { .. } => entry.deliver_again(),
            }
        }
        let pending = self.model.iter().filter(|(_, entry)| entry.is_pending());
        let expected = pending.map(|(&id, entry)| {
            let begun = if entry.begun { Begun::Yes } else { Begun::No };
            (JobKey { owner: entry.owner.clone(), id }, format!("/job/{}", entry.n), begun)
        });
        let found = found.into_iter().map(|found| (found.job, found.path, found.begun));
        assert!(found.eq(expected), "what waits or ran");
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
            assert_eq!(store.status(&key), seen.map(status), "status of {id}");
            assert_eq!(store.log(&key).unwrap(), seen.map(Entry::log), "log of {id}");
            assert_lookup(&store.peek(&key), seen);
            assert_eq!(store.is_queued(&key), matches!(entry.state, State::Queued), "{id}");
            let is_pending = store.is_queued(&key) || store.may_go_on(&key);
            assert_eq!(is_pending, !matches!(entry.state, State::Done { .. }), "{id}");
        }
        for owner in owners() {
            self.compare_keys(&owner);
            let count = self.random.below(8);
            self.compare_lists(&owner, count);
            self.compare_lists(&owner, usize::MAX);
        }
        let mut remaining = store.remaining();
        remaining.sort();
        let visible = self.model.iter().filter(|(_, entry)| entry.is_visible());
        assert_eq!(remaining, visible.map(|(id, _)| *id).collect::<Vec<_>>());
        let stored = self.stored();
        // Results count, whatever the capacity: then nothing fits.
        let room = self.capacity.checked_sub(stored + JOB);
        let fits = room.is_none_or(|room| has_room(store, room));
        assert!(fits, "more on the accounts than {stored} bytes");
        assert!(
            !has_room(store, room.map_or(0, |room| room + 1)),
            "less on the accounts than {stored} bytes"
        );
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
            assert_eq!(self.store.list(owner, list, count), expected, "{list:?}, {count}");
        }
    }

    /// Lets everything run to its end, and go; how many submissions found no room.
    fn end(mut self) -> usize {
        owners().iter().for_each(|owner| self.store.forget_all(owner).unwrap());
        self.forget_those(|_, _| true);
        self.keys.clear();
        self.compare();
        for (id, entry) in std::mem::take(&mut self.model) {
            let key = JobKey { owner: entry.owner, id };
            assert_eq!(self.store.finish(&key, response(entry.n), at(THEN)), Finished::Dropped);
        }
        self.compare();
        self.refused
    }
}

/// How many names keys have.
const KEYS: usize = 3;

/// Each name with two requests.
fn key_of(n: usize) -> IdempotencyKey {
    IdempotencyKey { key: format!("key {}", n / 2).into(), fingerprint: [(n % 2) as u8; 32] }
}

fn any_key(random: &mut Random) -> IdempotencyKey {
    key_of(random.below(KEYS * 2))
}

fn status(entry: &Entry) -> Status {
    match &entry.state {
        State::Queued => Status::Pending(None),
        State::Running { execution } => Status::Pending(execution.progress()),
        State::Done { .. } => Status::Done,
    }
}

#[track_caller]
fn assert_lookup(found: &Lookup, expected: Option<&Entry>) {
    match (found, expected.map(|entry| &entry.state)) {
        (Lookup::Unknown, None) => {}
        (Lookup::Pending, Some(State::Queued | State::Running { .. })) => {}
        (Lookup::Done(found), Some(State::Done { result, .. })) => assert_eq!(found, result),
        (found, _) => panic!("found {found:?}, expected {:?}", expected.map(status)),
    }
}
