//! Random operations over a store on a disk, what their answers promise, and what must be found of it.
//!
//! Knows nothing of how the disk comes to harm. A promise says of each thing that happened to a job
//! whether it happened, and whether a disk may lose it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use deferd::error::Error;
use deferd::job::JobId;
use deferd::job::execution::Execution;
use deferd::job::stored::StoredResponse;
use deferd::store::disk::{DiskStore, Durability};
use deferd::store::{
    Accepted, Begun, IdempotencyKey, JobKey, Keep, List, Lookup, Recovered, Refused, StartRecord,
    Status, Store, StoreUnavailable, Submission,
};

use super::*;

/// What is known of a job, and how much of it is promised to survive.
#[derive(Clone, Debug)]
pub struct Promise {
    n: usize,
    key: JobKey,
    idempotency: Option<IdempotencyKey>,
    /// It was accepted.
    accepted: Sure,
    /// Its start was to be recorded.
    started: Sure,
    /// Nobody may ask for it: it was fired so, or forgotten.
    unwanted: Sure,
    /// It ended.
    ended: Sure,
    /// With this, where that is wanted.
    result: Option<StoredResponse>,
    /// It is gone.
    removed: Sure,
    /// Its idempotency key stands for nothing any more.
    key_gone: Sure,
    execution: Option<Arc<Execution>>,
}

/// Whether something happened, as far as a disk must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sure {
    No,
    /// It was done, and may be lost.
    Perhaps,
    /// It must not be lost.
    Yes,
}

impl Promise {
    fn is_queued(&self) -> bool {
        self.execution.is_none() && self.ended == Sure::No
    }

    fn is_running(&self) -> bool {
        self.execution.is_some() && self.ended == Sure::No
    }

    fn is_done(&self) -> bool {
        self.ended != Sure::No && self.removed == Sure::No
    }

    /// All that happened is durable.
    fn settle(&mut self) {
        self.settle_removal();
        for sure in [&mut self.accepted, &mut self.started, &mut self.ended] {
            sure.settle();
        }
    }

    /// That it is gone, or wanted by nobody, is durable.
    fn settle_removal(&mut self) {
        for sure in [&mut self.unwanted, &mut self.removed, &mut self.key_gone] {
            sure.settle();
        }
    }
}

impl Sure {
    fn settle(&mut self) {
        if *self == Self::Perhaps {
            *self = Self::Yes;
        }
    }
}

pub type Promises = BTreeMap<JobId, Promise>;

/// A store that is driven, and what it has promised.
pub struct Scenario {
    pub store: DiskStore,
    pub volume: Volume,
    pub random: Random,
    pub promises: Promises,
    /// The keys of those that were refused.
    pub refused: Vec<IdempotencyKey>,
    pub trace: Vec<String>,
    durability: Durability,
    submitted: usize,
}

impl Scenario {
    pub fn new(seed: u64, durability: Durability) -> Self {
        let volume = Volume::default();
        let store = open(&volume, durability).unwrap().0;
        let (random, promises) = (Random::new(seed), Promises::new());
        let (refused, trace) = (Vec::new(), Vec::new());
        Self { store, volume, random, promises, refused, trace, durability, submitted: 0 }
    }

    /// What an answer that waits for a commit promises.
    fn answered(&self) -> Sure {
        if self.durability == Durability::Commit { Sure::Yes } else { Sure::Perhaps }
    }

    fn pick(&mut self, which: impl Fn(&Promise) -> bool) -> Option<JobKey> {
        let some: Vec<JobKey> =
            self.promises.values().filter(|p| which(p)).map(|p| p.key.clone()).collect();
        (!some.is_empty()).then(|| self.random.pick(&some).clone())
    }

    fn promise(&mut self, key: &JobKey) -> &mut Promise {
        self.promises.get_mut(&key.id).unwrap()
    }

    /// All that was done until now is durable.
    fn settle(&mut self) {
        self.promises.values_mut().for_each(Promise::settle);
    }

    pub fn step(&mut self) {
        match self.random.below(24) {
            0..=6 => self.submit(),
            7..=10 => self.start(),
            11..=13 => self.finish(),
            14..=15 => self.collect(),
            16 => self.cancel(),
            17..=18 => self.forget(),
            19..=20 => drop(self.flush()),
            21 => self.linger(),
            _ => match self.random.below(5) {
                0 => self.forget_all(),
                1 => self.expire(),
                _ => drop(self.flush()),
            },
        }
    }

    fn submit(&mut self) {
        let n = self.submitted;
        self.submitted += 1;
        let keep = if self.random.below(6) == 0 { Keep::Nothing } else { Keep::Result };
        let named = self.random.below(3) == 0;
        let key = named.then(|| idempotency(n));
        let mut call = call(n, &nobody());
        *call.request.body_mut() = body(n).into();
        // The clock often steps back.
        let now = at(self.random.below(50) as f64);
        let id = match self.store.submit(Submission { call, keep, key: key.clone() }, now) {
            Ok(Accepted::New(id)) => id,
            Ok(Accepted::Known(id)) => panic!("{id} is new"),
            Err(refused) => {
                assert_eq!(refused, Refused::StoreUnavailable);
                self.refused.extend(key);
                self.trace.push(format!("refused {n}"));
                return;
            }
        };
        assert!(self.promises.keys().all(|&other| other < id), "ids increase");
        let (accepted, unwanted) =
            (self.answered(), if keep == Keep::Nothing { Sure::Yes } else { Sure::No });
        self.trace.push(format!("submit {id} {keep:?} {named}"));
        let promise = Promise {
            n,
            key: super::key(id),
            idempotency: key,
            accepted,
            started: Sure::No,
            unwanted,
            ended: Sure::No,
            result: None,
            removed: Sure::No,
            key_gone: Sure::No,
            execution: None,
        };
        self.promises.insert(id, promise);
    }

    fn start(&mut self) {
        let Some(key) = self.pick(Promise::is_queued) else { return };
        let record =
            *self.random.pick(&[StartRecord::Before, StartRecord::Soon, StartRecord::Never]);
        let execution = execution(key.id);
        let started = self.store.start(&key, &execution, record, at(THEN)).unwrap();
        self.trace.push(format!("start {} {record:?}", key.id));
        let answered = self.answered();
        let promise = self.promise(&key);
        assert_eq!(started.call.request.body(), &body(promise.n));
        promise.execution = Some(execution);
        promise.started = match record {
            StartRecord::Before => answered,
            StartRecord::Soon => Sure::Perhaps,
            StartRecord::Never => Sure::No,
        };
    }

    fn finish(&mut self) {
        let Some(key) = self.pick(Promise::is_running) else { return };
        let n = self.promise(&key).n;
        self.store.finish(&key, response(n), at(THEN));
        self.trace.push(format!("finish {}", key.id));
        self.end(&key, StoredResponse::from(response(n)));
    }

    fn end(&mut self, key: &JobKey, result: StoredResponse) {
        let promise = self.promise(key);
        promise.ended = Sure::Perhaps;
        if promise.unwanted == Sure::No {
            promise.result = Some(result);
        } else {
            promise.removed = Sure::Perhaps;
        }
    }

    fn collect(&mut self) {
        let Some(key) = self.pick(Promise::is_done) else { return };
        // It is done only when it is durable: then that is a promise.
        let Lookup::Done(found) = self.store.collect(&key) else { return };
        let promise = self.promise(&key);
        assert_eq!(Some(found), promise.result);
        promise.ended = Sure::Yes;
        self.trace.push(format!("collect {}", key.id));
        match self.random.below(3) {
            0 => self.store.restore(&key),
            _ => {
                self.store.confirm(&key);
                self.promise(&key).removed = Sure::Perhaps;
                self.trace.push("confirm".into());
            }
        }
    }

    fn cancel(&mut self) {
        let Some(key) = self.pick(|p| p.is_queued() && p.unwanted == Sure::No) else { return };
        let cancelled = self.store.cancel(&key, at(THEN));
        self.trace.push(format!("cancel {} {cancelled:?}", key.id));
        self.end(&key, Error::Cancelled.response().into());
        if cancelled == Ok(true) && self.durability == Durability::Commit {
            self.promise(&key).ended = Sure::Yes;
        }
    }

    /// After what waits until jobs are gone: those before them are gone as well.
    fn settled(&mut self, answer: Result<(), StoreUnavailable>) {
        if answer.is_ok() && self.durability == Durability::Commit {
            self.promises.values_mut().for_each(Promise::settle_removal);
        }
    }

    fn forget(&mut self) {
        let wanted = |p: &Promise| p.unwanted == Sure::No && p.removed == Sure::No;
        let Some(key) = self.pick(wanted) else { return };
        let forgotten = self.store.forget(&key);
        assert_ne!(forgotten, Ok(false));
        self.trace.push(format!("forget {} {forgotten:?}", key.id));
        self.forgotten(&key);
        self.settled(forgotten.map(drop));
    }

    fn forgotten(&mut self, key: &JobKey) {
        let promise = self.promise(key);
        promise.unwanted = promise.unwanted.max(Sure::Perhaps);
        if promise.ended != Sure::No {
            promise.removed = promise.removed.max(Sure::Perhaps);
        }
    }

    fn forget_all(&mut self) {
        let forgotten = self.store.forget_all(&nobody());
        self.trace.push(format!("forget all {forgotten:?}"));
        let keys: Vec<JobKey> = self.promises.values().map(|p| p.key.clone()).collect();
        keys.iter().for_each(|key| self.forgotten(key));
        for promise in self.promises.values_mut() {
            promise.key_gone = promise.key_gone.max(Sure::Perhaps);
        }
        self.settled(forgotten);
    }

    /// Every result that can be collected expires; those that are on their way do not.
    fn expire(&mut self) {
        if !self.flush() {
            return;
        }
        let done: Vec<JobKey> =
            self.promises.values().filter(|p| p.is_done()).map(|p| p.key.clone()).collect();
        assert_eq!(self.store.expire_results(at(LATER)), done.len());
        self.trace.push("expire".into());
        for key in done {
            self.promise(&key).removed = Sure::Perhaps;
        }
        for promise in self.promises.values_mut().filter(|p| p.key_gone == Sure::No) {
            if let Some(key) = &promise.idempotency
                && self.store.recall(&nobody(), key) == Ok(None)
            {
                promise.key_gone = Sure::Perhaps;
            }
        }
    }

    /// Whether everything is durable.
    pub fn flush(&mut self) -> bool {
        let flushed = self.store.flush();
        self.trace.push(format!("flush {flushed:?}"));
        if flushed.is_ok() {
            self.settle();
        }
        flushed.is_ok()
    }

    /// Lets what is not urgent be written by itself.
    fn linger(&mut self) {
        let (calls, patience) =
            (self.volume.recorded(), Instant::now() + Duration::from_millis(60));
        while self.volume.recorded() == calls && Instant::now() < patience {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Some are larger than a page of the file.
pub fn body(n: usize) -> Vec<u8> {
    let size = [10, 700, 5000, 20_000][n % 4];
    format!("request {n} ").bytes().cycle().take(size).collect()
}

pub fn idempotency(n: usize) -> IdempotencyKey {
    IdempotencyKey { key: format!("key {n}").into(), fingerprint: [n as u8; 32] }
}

/// What must be in an image, or in a store: what was promised; and what may be: what was begun.
pub struct Check<'a> {
    pub promised: &'a Promises,
    pub begun: &'a Promises,
    /// The keys of what was refused: nothing may be there of that.
    pub refused: &'a [IdempotencyKey],
    pub durability: Durability,
}

impl Check<'_> {
    pub fn image(&self, image: Vec<u8>) {
        let (store, found) = open(&Volume::of(image), self.durability).expect("it opens");
        self.store(&store, found);
    }

    /// The same of a store that is open already.
    pub fn store(&self, store: &DiskStore, found: Vec<Recovered>) {
        assert!(found.is_sorted_by_key(|found| found.job.id), "in their order");
        let found: BTreeMap<JobId, Recovered> =
            found.into_iter().map(|found| (found.job.id, found)).collect();
        for promise in self.begun.values() {
            let promised = self.promised.get(&promise.key.id);
            self.job(store, promised, promise, found.get(&promise.key.id));
        }
        let known = |id| self.begun.contains_key(id);
        assert!(found.keys().all(known), "a job that nobody submitted");
        assert!(store.remaining().iter().all(known), "a job that nobody submitted");
        for key in self.refused {
            assert_eq!(store.recall(&nobody(), key), Ok(None), "of a job that was refused");
        }
        // An id that was given out is not given out again.
        let next = offer(store, call(0, &nobody()), Keep::Result, at(0.0)).unwrap();
        assert!(self.promised.keys().all(|&id| id < next), "{next} was given out before");
        assert!(found.keys().all(|&id| id < next), "{next} is taken");
    }

    /// `promised` is what is known of the job, `begun` the same after the operation under way.
    fn job(
        &self,
        store: &DiskStore,
        promised: Option<&Promise>,
        begun: &Promise,
        found: Option<&Recovered>,
    ) {
        let (id, key) = (begun.key.id, &begun.key);
        let sure = |what: fn(&Promise) -> Sure| promised.is_some_and(|p| what(p) == Sure::Yes);
        let accepted = sure(|p| p.accepted);
        let status = store.status(key);
        match (&status, found) {
            (None, None) => {
                let may = !accepted || begun.removed != Sure::No;
                assert!(may, "{id} is lost: {promised:?}");
            }
            (Some(Status::Done), None) => {
                assert!(!sure(|p| p.removed), "{id} is back");
                assert!(!sure(|p| p.unwanted), "{id} was forgotten");
                assert!(begun.ended != Sure::No, "{id} has not ended");
                let Lookup::Done(result) = store.peek(key) else { panic!("{id} is unreadable") };
                assert_eq!(Some(result), begun.result, "the result of {id}");
            }
            (pending, Some(found)) => {
                let listed = pending.is_some();
                assert!(!sure(|p| p.ended), "the end of {id} is lost: {promised:?}");
                assert!(!listed || !sure(|p| p.unwanted), "{id} was forgotten");
                assert!(listed || begun.unwanted != Sure::No, "{id} was not forgotten");
                let started = found.begun == Begun::Yes;
                assert!(started || !sure(|p| p.started), "the start of {id} is lost");
                assert!(!started || begun.started != Sure::No, "{id} was not started");
                self.request(store, begun, found);
            }
            (Some(Status::Pending(_)), None) => panic!("{id} waits for nothing"),
        }
        if let Some(key) = &begun.idempotency {
            let known = store.recall(&nobody(), key);
            match known {
                Ok(Some(known)) => {
                    assert_eq!(known, id);
                    assert!(!sure(|p| p.key_gone), "the key of {id} is back");
                }
                Ok(None) => {
                    assert!(!accepted || begun.key_gone != Sure::No, "the key of {id} is lost");
                }
                Err(refused) => panic!("the key of {id}: {refused:?}"),
            }
        }
        let lists = [List::Pending, List::Done].map(|list| store.list(&nobody(), list, 1000));
        assert_eq!(lists.iter().any(|list| list.contains(&id)), status.is_some());
    }

    fn request(&self, store: &DiskStore, begun: &Promise, found: &Recovered) {
        assert_eq!(found.path, format!("/job/{}", begun.n));
        let execution = execution(begun.key.id);
        let started = store.start(&begun.key, &execution, StartRecord::Never, at(THEN));
        let request = started.expect("it waits").call.request;
        assert_eq!(request.body(), &body(begun.n), "the request of {}", begun.key.id);
        let expected = call(begun.n, &nobody()).request;
        assert_eq!((request.method(), request.uri()), (expected.method(), expected.uri()));
        assert_eq!(request.headers(), expected.headers());
    }
}
