//! What the suites over the `Store` trait share: jobs to submit, results to finish with, racers.
//!
//! Knows no store. Every job is built from a number, and its request and its result say that number,
//! so that a result can be told from any other.

#![allow(
    dead_code,
    unused_macros,
    clippy::unwrap_used,
    reason = "each suite uses its part of the kit; a test may panic"
)]

pub mod promise;
mod volume;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use deferd::exchange::{Call, Connection, Owner};
use deferd::job::execution::Execution;
use deferd::job::stored::StoredResponse;
use deferd::job::{ERROR_ROOM, JobId, RECORD, Stamp};
use deferd::memory::Allowance;
use deferd::store::disk::{DiskStore, Durability};
use deferd::store::memory::MemoryStore;
use deferd::store::{
    Accepted, Finished, JobKey, Keep, List, Lookup, Recovered, Refused, Room, StartRecord, Store,
    Submission,
};
use http::{Request, Response};
pub use volume::*;

/// The capacity that every store of these suites is opened with, in bytes.
pub const CAPACITY: usize = 2 << 20;

/// What any job is accounted with until it is done, beside its request.
pub const JOB: usize = RECORD + ERROR_ROOM;

/// Opens an empty store of [`CAPACITY`] bytes.
pub type Open = fn() -> Arc<dyn Store>;

/// Runs a list of tests, each of them a function over [`Open`], on one store.
macro_rules! suite {
    ($store:ident by $open:path: $($property:ident)*) => {
        mod $store {
            use super::store_kit::*;
            $(#[test] fn $property() { super::$property($open); })*
        }
    };
}

/// The store in memory.
pub fn memory() -> Arc<dyn Store> {
    Arc::new(MemoryStore::new(room(CAPACITY)))
}

/// Room for requests and results, and memory without a bound.
pub fn room(capacity: usize) -> Room {
    Room { capacity, reserve: 0, memory: Allowance::default() }
}

/// The store on disk.
pub fn disk() -> Arc<dyn Store> {
    on(Volume::default(), Durability::Commit)
}

/// The store on disk that answers before it is durable.
pub fn relaxed() -> Arc<dyn Store> {
    on(Volume::default(), Durability::Relaxed)
}

/// The store on this disk.
fn on(volume: Volume, durability: Durability) -> Arc<dyn Store> {
    Arc::new(open(&volume, durability).unwrap().0)
}

/// Opens the store on a disk.
pub fn open(
    volume: &Volume,
    durability: Durability,
) -> Result<(DiskStore, Vec<Recovered>), String> {
    open_for(CAPACITY, volume, durability)
}

/// The same for a store of this capacity.
pub fn open_for(
    capacity: usize,
    volume: &Volume,
    durability: Durability,
) -> Result<(DiskStore, Vec<Recovered>), String> {
    DiskStore::with_backend(volume.clone(), room(capacity), durability, REST)
}

/// How long a store leaves a disk alone that failed.
pub const REST: Duration = Duration::from_millis(2);

/// A pseudo-random sequence (xorshift64*), the same for the same seed.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of a seed that is not zero.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
    }

    /// One of these.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

/// How often a race is run.
pub const ROUNDS: usize = 250;
/// Jobs in a round: enough for the racers to be under way together.
pub const BATCH: usize = 32;

/// When the results of these suites come to be.
pub const THEN: f64 = 1000.0;
/// A moment after that: everything is stamped before it.
pub const LATER: f64 = 2000.0;

/// The moment `seconds` after the epoch.
pub fn at(seconds: f64) -> Stamp {
    Stamp::from_unix_seconds(seconds).unwrap()
}

/// The request of job `n`.
pub fn call(n: usize, owner: &Owner) -> Call {
    let request = Request::post(format!("/job/{n}")).body(format!("request {n}").into());
    let here = "127.0.0.1:1".parse().unwrap();
    let connection = Connection::Tcp { peer: here, local: here };
    Call { request: request.unwrap(), connection, owner: owner.clone(), auth_type: None }
}

/// The result of job `n`.
pub fn response(n: usize) -> Response<Bytes> {
    Response::builder().header("x-job", n).body(Bytes::from(format!("result {n}"))).unwrap()
}

/// A number that stands for a job, and the job.
pub struct Job {
    pub n: usize,
    pub key: JobKey,
}

impl Job {
    /// Asserts that this is the job's own result.
    #[track_caller]
    pub fn assert_result(&self, result: &StoredResponse) {
        assert_eq!(*result, StoredResponse::from(response(self.n)), "the result of another job");
    }
}

/// The owner of every job of the races.
pub fn nobody() -> Owner {
    Owner::anonymous()
}

/// The id and the owner of a job of nobody in particular.
pub fn key(id: JobId) -> JobKey {
    JobKey { owner: nobody(), id }
}

pub fn submit(store: &dyn Store, n: usize, keep: Keep) -> Job {
    let id = offer(store, call(n, &nobody()), keep, at(THEN)).expect("there is room");
    Job { n, key: key(id) }
}

/// Submits a call.
pub fn offer(store: &dyn Store, call: Call, keep: Keep, now: Stamp) -> Result<JobId, Refused> {
    store.submit(Submission { call, keep, key: None }, now).map(Accepted::id)
}

/// Whether so many bytes would fit.
pub fn has_room(store: &dyn Store, bytes: usize) -> bool {
    store.check(bytes).is_ok()
}

/// Whether so many bytes are free, and not one more.
pub fn has_exactly(store: &dyn Store, free: usize) -> bool {
    match free.checked_sub(JOB) {
        Some(content) => has_room(store, content) && !has_room(store, content + 1),
        None => !has_room(store, 0),
    }
}

/// The line to the handler of a job.
pub fn execution(id: JobId) -> Arc<Execution> {
    Arc::new(Execution::new(Some(id), Allowance::default()))
}

/// Starts a job and returns the line to its handler; `None` if it does not wait any more.
pub fn start(store: &dyn Store, job: &Job) -> Option<Arc<Execution>> {
    let execution = execution(job.key.id);
    let started = store.start(&job.key, &execution, StartRecord::Before, at(THEN))?;
    assert_eq!(started.call.request.body(), format!("request {}", job.n).as_bytes());
    Some(execution)
}

pub fn finish(store: &dyn Store, job: &Job) -> Finished {
    let finished = store.finish(&job.key, response(job.n), at(THEN));
    // Its result can be collected once it is durable.
    store.flush().unwrap();
    finished
}

/// How far a batch is when the race begins.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Until {
    Queued,
    Running,
    Done,
    InDelivery,
}

/// Submits jobs and takes each of them so far.
pub fn batch(store: &dyn Store, size: usize, until: Until) -> Vec<Job> {
    let jobs: Vec<Job> = (0..size).map(|n| submit(store, n, Keep::Result)).collect();
    for job in &jobs {
        if until != Until::Queued {
            start(store, job).expect("it waits");
        }
        if matches!(until, Until::Done | Until::InDelivery) {
            assert_eq!(finish(store, job), Finished::Kept);
        }
        if until == Until::InDelivery {
            job.assert_result(&collected(store, job).expect("it is done"));
        }
    }
    jobs
}

/// Collects a job that is done; `None` if it is gone or in delivery.
#[track_caller]
pub fn collected(store: &dyn Store, job: &Job) -> Option<StoredResponse> {
    match store.collect(&job.key) {
        Lookup::Done(result) => Some(result),
        Lookup::Unknown => None,
        Lookup::Unreadable | Lookup::NoMemory | Lookup::TooLarge => {
            panic!("job {} cannot be read", job.n)
        }
        Lookup::Pending => panic!("job {} was done already", job.n),
    }
}

/// Collects a job's own result and confirms it; whether there was one.
#[track_caller]
pub fn deliver(store: &dyn Store, job: &Job) -> bool {
    let Some(result) = collected(store, job) else { return false };
    job.assert_result(&result);
    store.confirm(&job.key);
    true
}

/// Asserts that nothing is left: no record, no list entry, not one byte on the accounts.
#[track_caller]
pub fn assert_empty(store: &dyn Store, jobs: &[Job]) {
    store.flush().unwrap();
    for job in jobs {
        assert_eq!(store.status(&job.key), None, "job {}", job.n);
        assert!(
            collected(store, job).is_none() && !store.forget(&job.key).unwrap(),
            "job {}",
            job.n
        );
    }
    for list in [List::Pending, List::Done] {
        assert_eq!(store.list(&nobody(), list, usize::MAX), []);
    }
    assert_eq!(store.remaining(), []);
    assert!(has_room(store, CAPACITY - JOB), "bytes of removed jobs are still on the accounts");
    assert!(!has_room(store, CAPACITY - JOB + 1), "more bytes were taken off than were put on");
}

/// Runs rounds on one store: what a round leaves behind shows in the next.
pub fn rounds(open: Open, round: impl Fn(&dyn Store)) {
    let store = open();
    // Where each step is a commit, a race is slower and no wider.
    let rounds = if store.name() == "disk" { ROUNDS / 10 } else { ROUNDS };
    for _ in 0..rounds {
        round(&*store);
    }
}

/// One side of a race.
pub type Racer<'a, R> = &'a (dyn Fn() -> R + Sync);

/// Lets the racers go at the same moment; what each of them returns.
pub fn race<R: Send>(racers: &[Racer<R>]) -> Vec<R> {
    let ready = AtomicUsize::new(0);
    let run = |racer: Racer<R>| {
        // Not a barrier: woken one after the other, the first would have won already.
        ready.fetch_add(1, Ordering::AcqRel);
        while ready.load(Ordering::Acquire) < racers.len() {
            thread::yield_now();
        }
        racer()
    };
    thread::scope(|scope| {
        let threads: Vec<_> = racers.iter().map(|racer| scope.spawn(|| run(*racer))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// How many answers are yes.
pub fn count(answers: impl IntoIterator<Item = bool>) -> usize {
    answers.into_iter().filter(|&yes| yes).count()
}
