//! Random operations over a store on a disk, what their answers promise, and what must be found of it.
//!
//! Knows nothing about how the disk is damaged. A promise records about each thing that may have happened to a job
//! whether it happened, and whether a disk may lose it.

use std::collections::BTreeMap;
use std::io::Read;
use std::thread;
use std::time::{Duration, Instant};

use deferd::content::{Content, IN_MEMORY};
use deferd::error::Error;
use deferd::job::attempt::Attempt;
use deferd::job::stored::StoredResponse;
use deferd::job::{JobId, JobKey, Keep, Rerun};
use deferd::ledger::schedule::Limit;
use deferd::store::disk::{DiskStore, Durability, Recovered};
use deferd::store::{
    Accepted, IdempotencyKey, Lane, Lookup, Refused, Status, Store, StoreUnavailable, Submission,
};

use super::*;

/// What happens to the jobs of each lane that were running when the process ended.
const RERUNS: [Rerun; 3] = [Rerun::No, Rerun::Yes, Rerun::Harmless];

/// Opens a store on a disk, with a lane of each of [`RERUNS`].
pub fn open(volume: &Volume, durability: Durability) -> Result<(DiskStore, Recovered), String> {
    let lane = |rerun| Lane { limit: Limit::Open, rerun, tells: Tells::NONE };
    open_with(plan(RERUNS.map(lane).to_vec()), CAPACITY, volume, durability)
}

/// What is known about a job, and how much of it is promised to survive.
#[derive(Clone, Debug)]
pub struct Promise {
    n: usize,
    key: JobKey,
    idempotency: Option<IdempotencyKey>,
    /// Whether it was accepted.
    accepted: Sure,
    /// Where it is, until it has ended.
    place: Place,
    /// What a disk may record about whether it runs; the last entry is the truth.
    runs: Vec<Runs>,
    /// Whether no client may ask for it: it was submitted so, or forgotten.
    unwanted: Sure,
    /// Whether it ended.
    ended: Sure,
    /// The result with which it ended, if that is wanted.
    result: Option<StoredResponse>,
    /// Whether it was removed.
    removed: Sure,
    /// Whether its idempotency key was removed.
    key_gone: Sure,
    /// Whether its disk may fail.
    may_fail: bool,
}

/// Where a job is that has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Waiting,
    Delayed,
    Running,
}

/// Whether a disk records that a job runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Runs {
    Yes,
    No,
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
    fn is_in(&self, place: Place) -> bool {
        self.place == place && self.ended == Sure::No
    }

    fn rerun(&self) -> Rerun {
        RERUNS[route(self.n, RERUNS.len()).0]
    }

    /// Returns whether this is the result, or what replaces it if the disk did not take it.
    fn has_result(&self, found: &StoredResponse) -> bool {
        let is_large = result(self.n).len() > IN_MEMORY;
        let may_be_refused = self.may_fail && is_large;
        self.result.as_ref() == Some(found) || may_be_refused && found.ending().status == 507
    }

    fn is_done(&self) -> bool {
        self.ended != Sure::No && self.removed == Sure::No
    }

    /// Records that everything that happened is durable.
    fn settle(&mut self) {
        self.settle_removal();
        for sure in [&mut self.accepted, &mut self.ended] {
            sure.settle();
        }
        self.runs.drain(..self.runs.len() - 1);
    }

    /// Records that it is durable that the job was removed, or is unwanted.
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

/// A store that is being driven, and what it has promised.
pub struct Scenario {
    pub store: DiskStore,
    pub volume: Volume,
    pub random: Rng,
    pub promises: Promises,
    /// The running attempts, for later steps.
    attempts: BTreeMap<JobId, Box<Attempt>>,
    /// The keys of refused submissions.
    pub refused: Vec<IdempotencyKey>,
    pub trace: Vec<String>,
    durability: Durability,
    submitted: usize,
    /// Whether the disk may fail: then what it does not write or read is left out.
    may_fail: bool,
}

impl Scenario {
    pub fn new(seed: u64, durability: Durability) -> Self {
        let volume = Volume::default();
        let store = open(&volume, durability).unwrap().0;
        Self {
            store,
            volume,
            random: Rng::with_seed(seed),
            promises: Promises::new(),
            attempts: BTreeMap::new(),
            refused: Vec::new(),
            trace: Vec::new(),
            durability,
            submitted: 0,
            may_fail: false,
        }
    }

    /// Lets the disk fail as planned.
    pub fn fail(&mut self, plan: FaultPlan) {
        self.may_fail = true;
        self.volume.fail(Some(plan));
    }

    /// Asserts that the disk can be the cause of a failure.
    #[track_caller]
    fn blame_disk(&self, failed: &str) {
        assert!(self.may_fail, "{failed}, and the disk works:\n{}", self.trace.join("\n"));
    }

    /// Returns what an answer that waits for a commit promises.
    fn answered(&self) -> Sure {
        if self.durability == Durability::Commit { Sure::Yes } else { Sure::Perhaps }
    }

    fn pick(&mut self, which: impl Fn(&Promise) -> bool) -> Option<JobKey> {
        let some: Vec<JobKey> =
            self.promises.values().filter(|p| which(p)).map(|p| p.key.clone()).collect();
        (!some.is_empty()).then(|| self.random.choice(&some).unwrap().clone())
    }

    fn promise(&mut self, key: &JobKey) -> &mut Promise {
        self.promises.get_mut(&key.id).unwrap()
    }

    /// Records that everything done until now is durable.
    fn settle(&mut self) {
        self.promises.values_mut().for_each(Promise::settle);
    }

    pub fn step(&mut self) {
        match self.random.usize(..27) {
            0..=6 => self.submit(),
            7..=10 => self.claim(),
            11..=13 => self.finish(),
            24..=25 => self.retry(),
            26 => self.redirect(),
            14..=15 => self.collect(),
            16 => self.cancel(),
            17..=18 => self.forget(),
            19..=20 => drop(self.flush()),
            21 => self.linger(),
            _ => match self.random.usize(..5) {
                0 => self.forget_all(),
                1 => self.expire(),
                _ => drop(self.flush()),
            },
        }
    }

    fn submit(&mut self) {
        let n = self.submitted;
        self.submitted += 1;
        let keep = if self.random.usize(..6) == 0 { Keep::Nothing } else { Keep::Result };
        let named = self.random.usize(..3) == 0;
        let key = named.then(|| idempotency(n));
        let Ok(content) = self.volume.content(&body(n)) else {
            // The front refuses it.
            self.blame_disk("content is refused");
            self.trace.push(format!("no room for {n}"));
            return;
        };
        let mut call = call(n, &anonymous());
        *call.request.body_mut() = content;
        // The clock often steps back.
        let now = at(self.random.usize(..50) as f64);
        let route = route(n, RERUNS.len());
        let line = line(&call);
        let submission = Submission { call, route, line, keep, key: key.clone(), callback: None };
        let id = match self.store.submit(submission, now) {
            Ok(Accepted::New(id)) => id,
            Ok(Accepted::Known(id)) => panic!("{id} is new"),
            Err(refused) => {
                assert_eq!(refused, Refused::Unavailable);
                self.blame_disk("a job is refused");
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
            place: Place::Waiting,
            runs: vec![Runs::No],
            unwanted,
            ended: Sure::No,
            result: None,
            removed: Sure::No,
            key_gone: Sure::No,
            may_fail: self.may_fail,
        };
        self.promises.insert(id, promise);
    }

    /// Claims the oldest waiting job, if any job waits.
    fn claim(&mut self) {
        let expected = self.promises.values().find(|p| p.is_in(Place::Waiting));
        let expected = expected.map(|p| p.key.clone());
        let claimed = claim(&self.store);
        let found = claimed.as_ref().map(|claimed| claimed.job.clone());
        self.trace.push(format!("claim {found:?}"));
        assert_eq!(found, expected);
        let Some(Claimed { job, attempt }) = claimed else { return };
        let content = read(attempt.call.request.body());
        if content.is_none() {
            self.blame_disk("a request cannot be read");
        }
        let durability = self.durability;
        let promise = self.promise(&job);
        assert!(content.is_none_or(|content| content == body(promise.n)), "{}", job.id);
        promise.place = Place::Running;
        if attempt.redirected.is_none() {
            let waits = match promise.rerun() {
                Rerun::Yes => true,
                Rerun::No => durability == Durability::Commit,
                Rerun::Harmless => false,
            };
            if waits {
                promise.runs.clear();
            }
            promise.runs.push(Runs::Yes);
        }
        self.attempts.insert(job.id, attempt);
    }

    fn finish(&mut self) {
        let Some(key) = self.pick(|p| p.is_in(Place::Running)) else { return };
        let n = self.promise(&key).n;
        // The answer of a handler that has no room for its answer.
        let no_room = || Error::InsufficientStorage("the disk fails".into()).response();
        let content = self.volume.content(&result(n));
        if content.is_err() {
            self.blame_disk("a result is refused");
        }
        let given = content.map_or_else(|_| no_room(), |content| response(n).map(|_| content));
        self.store.finish(&key, given, at(THEN));
        self.trace.push(format!("finish {}", key.id));
        self.end(&key, response(n).map(|_| result(n).into()).into());
    }

    /// Makes a running job wait again, for a short or a long time.
    fn retry(&mut self) {
        let Some(key) = self.pick(|p| p.is_in(Place::Running)) else { return };
        let attempt = self.attempts.remove(&key.id).unwrap();
        let (is_redirected, now) = (attempt.redirected.is_some(), Instant::now());
        let is_late = self.random.usize(..3) == 0;
        let until = if is_late { now + Duration::from_secs(3600) } else { now };
        self.store.retry(&key, attempt, until, at(THEN));
        assert!(self.store.overdue(Duration::ZERO).is_empty(), "it has to run");
        self.trace.push(format!("retry {} late {is_late}", key.id));
        let promise = self.promise(&key);
        promise.place = if is_late { Place::Delayed } else { Place::Waiting };
        if !is_redirected {
            promise.runs.push(Runs::No);
        }
    }

    /// Moves a job into another lane; on disk, it stays running.
    fn redirect(&mut self) {
        let Some(key) = self.pick(|p| p.is_in(Place::Running)) else { return };
        let mut attempt = self.attempts.remove(&key.id).unwrap();
        let to = RouteIndex(self.random.usize(..RERUNS.len()));
        attempt.redirected = Some(redirected(to, Instant::now() + Duration::from_secs(3600)));
        self.store.redirect(&key, attempt, at(THEN));
        self.trace.push(format!("redirect {}", key.id));
        self.promise(&key).place = Place::Waiting;
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
        let (found, delivery) = match self.store.collect(&key) {
            Lookup::Done(collected) => collected,
            // Its end is not yet durable.
            Lookup::Pending => return,
            _ => return self.blame_disk("a result cannot be collected"),
        };
        if read(found.body()).is_none() {
            // The connection breaks.
            self.blame_disk("a result cannot be read");
            return self.store.restore(&key, delivery);
        }
        let is_durable = self.durability == Durability::Commit;
        let promise = self.promise(&key);
        assert!(promise.has_result(&found), "{}: {found:?}", key.id);
        if is_durable {
            // Otherwise it would not be done: so this is a promise.
            promise.ended = Sure::Yes;
        }
        self.trace.push(format!("collect {}", key.id));
        match self.random.usize(..3) {
            0 => self.store.restore(&key, delivery),
            _ => {
                self.store.confirm(&key, delivery, at(THEN));
                self.promise(&key).removed = Sure::Perhaps;
                self.trace.push("confirm".into());
            }
        }
    }

    fn cancel(&mut self) {
        let waits = |p: &Promise| p.is_in(Place::Waiting) || p.is_in(Place::Delayed);
        let Some(key) = self.pick(|p| waits(p) && p.unwanted == Sure::No) else { return };
        let cancelled = self.store.cancel(&key, at(THEN));
        self.trace.push(format!("cancel {} {cancelled:?}", key.id));
        if cancelled != Ok(true) {
            self.blame_disk("a cancellation fails");
        }
        self.end(&key, Error::Cancelled.response().into());
        if cancelled == Ok(true) && self.durability == Durability::Commit {
            self.promise(&key).ended = Sure::Yes;
        }
    }

    /// Records an answer that waits until jobs are removed: earlier ones are removed as well.
    fn settled(&mut self, answer: Result<(), StoreUnavailable>) {
        if answer.is_err() {
            self.blame_disk("a deletion fails");
        }
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
        let forgotten = self.store.forget_all(&anonymous());
        self.trace.push(format!("forget all {forgotten:?}"));
        let keys: Vec<JobKey> = self.promises.values().map(|p| p.key.clone()).collect();
        keys.iter().for_each(|key| self.forgotten(key));
        for promise in self.promises.values_mut() {
            promise.key_gone = promise.key_gone.max(Sure::Perhaps);
        }
        self.settled(forgotten);
    }

    /// Makes every result expire that can be collected; results in delivery do not.
    fn expire(&mut self) {
        if !self.flush() {
            return;
        }
        let done: Vec<JobKey> =
            self.promises.values().filter(|p| p.is_done()).map(|p| p.key.clone()).collect();
        assert_eq!(self.store.expire(at(LATER).age), Ok(done.len()));
        self.trace.push("expire".into());
        for key in done {
            self.promise(&key).removed = Sure::Perhaps;
        }
        for promise in self.promises.values_mut().filter(|p| p.key_gone == Sure::No) {
            if let Some(key) = &promise.idempotency
                && self.store.recall(&anonymous(), key) == Ok(None)
            {
                promise.key_gone = Sure::Perhaps;
            }
        }
    }

    /// Flushes the store; returns whether everything is durable.
    pub fn flush(&mut self) -> bool {
        let flushed = self.store.flush();
        if flushed.is_err() {
            self.blame_disk("a flush fails");
        }
        self.trace.push(format!("flush {flushed:?}"));
        if flushed.is_ok() {
            self.settle();
        }
        flushed.is_ok()
    }

    /// Lets lazy changes be written without being waited for.
    fn linger(&mut self) {
        let (calls, patience) =
            (self.volume.recorded(), Instant::now() + Duration::from_millis(60));
        while self.volume.recorded() == calls && Instant::now() < patience {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Returns the content of a request: some are larger than a page of the file, and some so large that they are files.
pub fn body(n: usize) -> Vec<u8> {
    let size = [10, 70_000, 700, 5000, 70_000, 20_000][n % 6];
    format!("request {n} ").bytes().cycle().take(size).collect()
}

/// Returns the content of a result.
fn result(n: usize) -> Vec<u8> {
    let size = [70_000, 10, 700][n % 3];
    format!("result {n} ").bytes().cycle().take(size).collect()
}

/// Reads content; `None` if the disk fails.
fn read(content: &Content) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    content.reader().read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

pub fn idempotency(n: usize) -> IdempotencyKey {
    IdempotencyKey { key: format!("key {n}").into(), fingerprint: [n as u8; 32] }
}

/// What must be in an image, or in a store, because it was promised; and what may be, because it was begun.
pub struct Check<'a> {
    pub promised: &'a Promises,
    pub begun: &'a Promises,
    /// The keys of refused submissions: nothing of these may exist.
    pub refused: &'a [IdempotencyKey],
    pub durability: Durability,
}

impl Check<'_> {
    pub fn image(&self, image: Image) {
        let volume = Volume::of(image);
        let (store, found) = open(&volume, self.durability).expect("it opens");
        let files = self.store(&store, found);
        assert_eq!(volume.names().len(), files, "files and contents that are in one");
    }

    /// Checks a store that is already open; returns how many of its contents are so large that each is a file.
    pub fn store(&self, store: &DiskStore, found: Recovered) -> usize {
        store.flush().expect("the disk does not fail");
        let statuses: BTreeMap<JobId, Option<Status>> =
            self.begun.values().map(|p| (p.key.id, store.status(&p.key).unwrap())).collect();
        let (waiting, mut files) = self.waiting(store);
        assert_eq!(waiting.len(), found.waiting);
        for promise in self.begun.values() {
            let id = promise.key.id;
            let promised = self.promised.get(&id);
            if let Lookup::Done(result) = store.peek(&promise.key) {
                files += usize::from(result.body().in_file().is_some());
            }
            self.job(store, promised, promise, &statuses[&id], waiting.contains_key(&id));
            self.key(store, promised, promise);
        }
        let listed = listed(store);
        assert!(listed.iter().all(|id| self.begun.contains_key(id)), "a job of no submission");
        for (id, status) in statuses {
            assert_eq!(listed.contains(&id), status.is_some());
        }
        for key in self.refused {
            assert_eq!(store.recall(&anonymous(), key), Ok(None), "of a job that was refused");
        }
        // An id that was assigned is not assigned again.
        let next = offer(store, call(0, &anonymous()), Keep::Result, at(0.0)).unwrap();
        assert!(self.promised.keys().all(|&id| id < next), "{next} was given out before");
        assert!(waiting.keys().all(|&id| id < next), "{next} is taken");
        files
    }

    /// Claims all waiting jobs: in their order, each with its own request. Returns how many of those are files.
    fn waiting(&self, store: &DiskStore) -> (BTreeMap<JobId, JobKey>, usize) {
        let (mut waiting, mut files) = (BTreeMap::new(), 0);
        while let Some(Claimed { job, attempt }) = claim(store) {
            assert!(waiting.keys().all(|&id| id < job.id), "first in, first out");
            let promise = self.begun.get(&job.id).expect("a job of no submission");
            assert_eq!(attempt.route, route(promise.n, RERUNS.len()));
            let (request, id) = (&attempt.call.request, job.id);
            assert_eq!(request.body(), &body(promise.n), "the request of {id}");
            let expected = call(promise.n, &anonymous()).request;
            assert_eq!((request.method(), request.uri()), (expected.method(), expected.uri()));
            assert_eq!(request.headers(), expected.headers());
            files += usize::from(request.body().in_file().is_some());
            waiting.insert(id, job);
        }
        (waiting, files)
    }

    /// Checks a job: `promised` is what is known of it, `begun` the same after the current operation.
    fn job(
        &self,
        store: &DiskStore,
        promised: Option<&Promise>,
        begun: &Promise,
        status: &Option<Status>,
        waits: bool,
    ) {
        let id = begun.key.id;
        let sure = |what: fn(&Promise) -> Sure| promised.is_some_and(|p| what(p) == Sure::Yes);
        let may_say = |runs| {
            let known = promised.into_iter().chain([begun]);
            known.flat_map(|p| &p.runs).any(|said| *said == runs)
        };
        let may_be_interrupted =
            may_say(Runs::Yes) && begun.rerun() != Rerun::Yes && !sure(|p| p.ended);
        let may_wait = may_say(Runs::No) || begun.rerun() == Rerun::Yes;
        match (status, waits) {
            (None, false) => {
                let went_unseen = begun.unwanted != Sure::No && may_be_interrupted;
                let may = !sure(|p| p.accepted) || begun.removed != Sure::No || went_unseen;
                assert!(may, "{id} is lost: {promised:?}");
            }
            (Some(Status::Done(_)), false) => {
                assert!(!sure(|p| p.removed), "{id} is back");
                assert!(!sure(|p| p.unwanted), "{id} was forgotten");
                let Lookup::Done(result) = store.peek(&begun.key) else {
                    panic!("{id} is unreadable")
                };
                let interrupted = StoredResponse::from(Error::Interrupted.response());
                let is_own = begun.ended != Sure::No && begun.has_result(&result);
                let may = is_own || (may_be_interrupted && result == interrupted);
                assert!(may, "the result of {id} is {result:?}: {promised:?}, {begun:?}");
            }
            (Some(Status::Pending(..)) | None, true) => {
                let listed = status.is_some();
                assert!(!sure(|p| p.ended), "the end of {id} is lost: {promised:?}");
                assert!(!listed || !sure(|p| p.unwanted), "{id} was forgotten");
                assert!(listed || begun.unwanted != Sure::No, "{id} was not forgotten");
                assert!(may_wait, "{id} runs twice: {promised:?}");
            }
            (Some(Status::Pending(..)), false) => panic!("{id} waits for nothing"),
            (Some(Status::Done(_)), true) => panic!("{id} is done, and runs"),
        }
    }

    /// Checks what the idempotency key of a job stands for.
    fn key(&self, store: &DiskStore, promised: Option<&Promise>, begun: &Promise) {
        let Some(key) = &begun.idempotency else { return };
        let id = begun.key.id;
        let sure = |what: fn(&Promise) -> Sure| promised.is_some_and(|p| what(p) == Sure::Yes);
        match store.recall(&anonymous(), key) {
            Ok(Some(known)) => {
                assert_eq!(known, id);
                assert!(!sure(|p| p.key_gone), "the key of {id} is back");
            }
            Ok(None) => {
                let may = !sure(|p| p.accepted) || begun.key_gone != Sure::No;
                assert!(may, "the key of {id} is lost");
            }
            Err(refused) => panic!("the key of {id}: {refused:?}"),
        }
    }
}
