//! What the suites over the `Store` trait share: jobs to submit, results to finish with, racers.
//!
//! Knows no store. Every job is made from a number, and its request and its result contain that number, so that each
//! result can be recognized.

pub mod promise;
mod volume;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use deferd::content::Content;
use deferd::exchange::{Call, Connection, Owner};
use deferd::job::attempt::{Claimed, Redirected};
use deferd::job::execution::Execution;
use deferd::job::request_line::RequestLine;
use deferd::job::stored::StoredResponse;
use deferd::job::{Age, ERROR_ROOM, JobId, JobKey, Keep, Moment, RECORD, Rerun, RouteIndex, Stamp};
use deferd::ledger::schedule::Limit;
use deferd::memory::Allowance;
use deferd::store::disk::{DiskStore, Durability, Recovered};
use deferd::store::memory::MemoryStore;
use deferd::store::{
    Accepted, DeliveryId, Finished, Lane, List, Lookup, Patience, Plan, Refused, Room, Stats,
    Store, Submission, Tells,
};
pub use fastrand::Rng;
use http::{Request, Response};
pub use volume::*;

#[cfg(feature = "redis")]
pub use crate::shared::suites::{audit_engines, shared, shared_with};

/// Without a shared store, there is no engine.
#[cfg(not(feature = "redis"))]
pub const fn audit_engines() {}

/// The capacity with which these suites open every store, in bytes.
pub const CAPACITY: usize = 2 << 20;

/// The accounted size of any job until it is done, besides its request.
pub const JOB: usize = RECORD + ERROR_ROOM;

/// Opens an empty store of [`CAPACITY`] bytes with these lanes.
pub type OpenWith = fn(Plan) -> Arc<dyn Store>;

/// Opens an empty store of [`CAPACITY`] bytes with [`one_lane`].
pub type Open = fn() -> Arc<dyn Store>;

/// Runs a list of tests, each of them a function over [`Open`] or [`OpenWith`], on one store after the other.
macro_rules! suite {
    ($($(#[$meta:meta])* $store:ident by $open:path),+: $properties:tt) => {
        $(suite! { @ $(#[$meta])* $store by $open: $properties })+
    };
    (@ $(#[$meta:meta])* $store:ident by $open:path: { $($property:ident)* }) => {
        $(#[$meta])*
        mod $store {
            use crate::store::kit::*;
            $(#[test] fn $property() { super::$property($open); audit_engines(); })*
        }
    };
}

/// Opens the store in memory.
pub fn memory() -> Arc<dyn Store> {
    memory_with(one_lane())
}

/// Opens the store on disk.
pub fn disk() -> Arc<dyn Store> {
    disk_with(one_lane())
}

/// Opens the store on disk that answers before it is durable.
pub fn relaxed() -> Arc<dyn Store> {
    relaxed_with(one_lane())
}

/// Opens the store in memory, with these lanes.
pub fn memory_with(plan: Plan) -> Arc<dyn Store> {
    Arc::new(MemoryStore::new(room(CAPACITY), plan))
}

/// Opens the store on disk, with these lanes.
pub fn disk_with(plan: Plan) -> Arc<dyn Store> {
    let opened = open_with(plan, CAPACITY, &Volume::default(), Durability::Commit);
    Arc::new(opened.unwrap().0)
}

/// Opens the store on disk that answers before it is durable, with these lanes.
pub fn relaxed_with(plan: Plan) -> Arc<dyn Store> {
    let opened = open_with(plan, CAPACITY, &Volume::default(), Durability::Relaxed);
    Arc::new(opened.unwrap().0)
}

/// Returns room for requests and results, and memory without a bound.
pub fn room(capacity: usize) -> Room {
    Room { capacity, reserve: 0, memory: Allowance::default() }
}

/// Returns a plan with these lanes, for any number of jobs.
pub fn plan(lanes: Vec<Lane>) -> Plan {
    Plan {
        workers: 1_000_000,
        queue: usize::MAX,
        ttl: Duration::MAX,
        log_ttl: Duration::ZERO,
        lanes,
    }
}

/// Returns a plan with one lane without a limit, whose jobs do not run again.
pub fn one_lane() -> Plan {
    plan(vec![Lane { limit: Limit::Open, rerun: Rerun::No, tells: Tells::NONE }])
}

/// Returns the route of job `n` if there are this many lanes.
pub fn route(n: usize, lanes: usize) -> RouteIndex {
    RouteIndex(n % lanes)
}

/// Opens the store on a disk, with one lane.
pub fn open(volume: &Volume, durability: Durability) -> Result<(DiskStore, Recovered), String> {
    open_for(CAPACITY, volume, durability)
}

/// Opens a store of this capacity.
pub fn open_for(
    capacity: usize,
    volume: &Volume,
    durability: Durability,
) -> Result<(DiskStore, Recovered), String> {
    open_with(one_lane(), capacity, volume, durability)
}

/// Opens a store with these lanes: job `n` is in the lane of its [`route`].
pub fn open_with(
    plan: Plan,
    capacity: usize,
    volume: &Volume,
    durability: Durability,
) -> Result<(DiskStore, Recovered), String> {
    let lanes = plan.lanes.len();
    let find = |path: &str| Ok(route(number(path), lanes));
    let folder = Arc::new(volume.clone());
    DiskStore::with_backend(volume.clone(), folder, room(capacity), plan, durability, &find, REST)
}

/// Returns the number of the job with this path.
pub fn number(path: &str) -> usize {
    path.strip_prefix("/job/").expect("the path of a job").parse().expect("its number")
}

/// How long a store leaves a disk alone that failed.
pub const REST: Duration = Duration::from_millis(2);

/// How often a race is run.
pub const ROUNDS: usize = 250;
/// Jobs in a round: enough for the racers to overlap.
pub const BATCH: usize = 32;

/// The time at which the results of these suites are produced.
pub const THEN: f64 = 1000.0;
/// A later time: everything is stamped before it.
pub const LATER: f64 = 2000.0;

/// Returns the time `seconds` after the epoch.
pub fn at(seconds: f64) -> Moment {
    moment(Stamp::from_unix_seconds(seconds).unwrap())
}

/// Returns the time of this stamp: in these suites, both clocks agree.
pub fn moment(stamp: Stamp) -> Moment {
    Moment { stamp, age: Age::from_micros(i64::try_from(stamp.micros()).unwrap()) }
}

/// Returns the request of job `n`.
pub fn call(n: usize, owner: &Owner) -> Call {
    let request = Request::post(format!("/job/{n}")).body(format!("request {n}").into());
    let here = "127.0.0.1:1".parse().unwrap();
    let connection = Connection::Tcp { peer: here, local: here };
    Call { request: request.unwrap(), connection, owner: owner.clone(), auth_type: None }
}

/// Returns what the record of a job keeps of its request.
pub fn line(call: &Call) -> RequestLine {
    let path = call.request.uri().path();
    let line = RequestLine::new(call.request.method(), path, "/job/");
    if path.len().is_multiple_of(2) { line.repeatable(path) } else { line }
}

/// Returns the result of job `n`.
pub fn response(n: usize) -> Response<Content> {
    Response::builder().header("x-job", n).body(Content::from(format!("result {n}"))).unwrap()
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

/// Returns the owner of every job of the races.
pub fn anonymous() -> Owner {
    Owner::anonymous()
}

/// Returns the key of a job of the anonymous owner.
pub fn key(id: JobId) -> JobKey {
    JobKey { owner: anonymous(), id }
}

pub fn submit(store: &dyn Store, n: usize, keep: Keep) -> Job {
    let id = offer(store, call(n, &anonymous()), keep, at(THEN)).expect("there is room");
    Job { n, key: key(id) }
}

/// Submits a call to the first lane.
pub fn offer(store: &dyn Store, call: Call, keep: Keep, now: Moment) -> Result<JobId, Refused> {
    let (route, line) = (RouteIndex(0), line(&call));
    let submission = Submission { call, route, line, keep, key: None, callback: None };
    store.submit(submission, now).map(Accepted::id)
}

/// Returns whether this many bytes would fit.
pub fn has_room(store: &dyn Store, bytes: usize) -> bool {
    store.check(bytes).is_ok()
}

/// Returns whether exactly this many bytes are free.
pub fn has_exactly(store: &dyn Store, free: usize) -> bool {
    match free.checked_sub(JOB) {
        Some(content) => has_room(store, content) && !has_room(store, content + 1),
        None => !has_room(store, 0),
    }
}

/// Claims the next job, if one may run now.
pub fn claim(store: &dyn Store) -> Option<Claimed> {
    store.claim(&Allowance::default(), Patience::None)
}

/// Returns the number of a claimed job.
pub fn number_of(claimed: &Claimed) -> usize {
    number(claimed.attempt.call.request.uri().path())
}

/// Claims a job, which must be the next, and returns the handle to its handler.
#[track_caller]
pub fn start(store: &dyn Store, job: &Job) -> Arc<Execution> {
    let Claimed { job: claimed, attempt } = claim(store).expect("it waits");
    assert_eq!(claimed, job.key, "the oldest comes first");
    assert_eq!(attempt.call.request.body(), format!("request {}", job.n).as_bytes());
    assert!(attempt.execution.stopped().is_none());
    attempt.execution
}

/// Returns the request to which a job was redirected.
pub fn redirected(route: RouteIndex, deadline: Instant) -> Redirected {
    Redirected { call: call(0, &anonymous()), route, count: 1, deadline }
}

/// Claims jobs for as long as there is one; returns them in their order.
pub fn claim_all(store: &dyn Store) -> Vec<JobKey> {
    let claimed = std::iter::from_fn(|| claim(store).map(|claimed| claimed.job));
    let claimed: Vec<JobKey> = claimed.collect();
    assert!(claimed.is_sorted_by(|a, b| a.id < b.id), "first in, first out");
    claimed
}

pub fn finish(store: &dyn Store, job: &Job) -> Finished {
    let finished = store.finish(&job.key, response(job.n), at(THEN));
    // Its result can be collected once it is durable.
    store.flush().unwrap();
    finished
}

/// The state of a batch when the race begins.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Until {
    Waiting,
    Running,
    Done,
}

/// Submits jobs and takes each of them to this state.
pub fn batch(store: &dyn Store, size: usize, until: Until) -> Vec<Job> {
    let jobs: Vec<Job> = (0..size).map(|n| submit(store, n, Keep::Result)).collect();
    for job in &jobs {
        if until != Until::Waiting {
            start(store, job);
        }
        if until == Until::Done {
            assert_eq!(finish(store, job), Finished::Kept);
        }
    }
    jobs
}

/// A result that was collected.
pub struct Delivery {
    pub result: StoredResponse,
    pub id: DeliveryId,
}

/// Collects a job that is done; `None` if it was removed or is in delivery.
#[track_caller]
pub fn collected(store: &dyn Store, job: &Job) -> Option<Delivery> {
    match store.collect(&job.key) {
        Lookup::Done((result, id)) => Some(Delivery { result, id }),
        Lookup::Unknown => None,
        Lookup::Unreadable | Lookup::NoMemory | Lookup::TooLarge => {
            panic!("job {} cannot be read", job.n)
        }
        Lookup::Pending => panic!("job {} was done already", job.n),
    }
}

/// Collects a job's own result and confirms it; returns whether there was one.
#[track_caller]
pub fn deliver(store: &dyn Store, job: &Job) -> bool {
    let Some(Delivery { result, id }) = collected(store, job) else { return false };
    job.assert_result(&result);
    store.confirm(&job.key, id, at(THEN));
    true
}

/// Returns every id of the anonymous owner in this list.
#[track_caller]
pub fn list_all(store: &dyn Store, list: List) -> Vec<JobId> {
    store.list(&anonymous(), list, None, usize::MAX).unwrap()
}

/// Returns every id of the anonymous owner.
#[track_caller]
pub fn listed(store: &dyn Store) -> Vec<JobId> {
    // A job that ends in the meantime is in both lists, and never in neither.
    let mut ids = list_all(store, List::Pending);
    ids.extend(list_all(store, List::Done));
    ids.sort();
    ids.dedup();
    ids
}

/// Asserts that nothing is left: no record, no list entry, not one byte on the accounts.
#[track_caller]
pub fn assert_empty(store: &dyn Store, jobs: &[Job]) {
    store.flush().unwrap();
    for job in jobs {
        assert_eq!(store.status(&job.key), Ok(None), "job {}", job.n);
        assert!(
            collected(store, job).is_none() && !store.forget(&job.key).unwrap(),
            "job {}",
            job.n
        );
    }
    for list in [List::Pending, List::Done] {
        assert_eq!(list_all(store, list), []);
    }
    let Stats { stored, waiting, delayed, running, done, by_lane, .. } = store.stats().unwrap();
    assert_eq!((stored, waiting, delayed, running, done), (0, 0, 0, 0, 0));
    assert!(by_lane.iter().all(|lane| *lane == (0, 0)), "{by_lane:?}");
    assert!(has_room(store, CAPACITY - JOB), "bytes of removed jobs are still on the accounts");
    assert!(!has_room(store, CAPACITY - JOB + 1), "more bytes were taken off than were put on");
}

/// Runs rounds on one store: whatever a round leaves behind shows in the next.
pub fn rounds(open: Open, round: impl Fn(&dyn Store)) {
    let store = open();
    // If each step is a commit, or is made elsewhere, a race is slower and no more likely to fail.
    let rounds = if store.name() == "memory" { ROUNDS } else { ROUNDS / 10 };
    for _ in 0..rounds {
        round(&*store);
    }
}

/// How long a test may take before it is taken for hanging.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Runs this on a thread of its own, so that a hang is reported.
pub fn within_patience<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, answer) = mpsc::channel();
    let running = thread::spawn(move || {
        let answer = run();
        audit_engines();
        done.send(answer)
    });
    match answer.recv_timeout(PATIENCE) {
        Ok(answer) => answer,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("it hangs"),
        Err(mpsc::RecvTimeoutError::Disconnected) => match running.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(_) => unreachable!("it has sent its answer"),
        },
    }
}

/// One side of a race.
pub type Racer<'a, R> = &'a (dyn Fn() -> R + Sync);

/// Starts the racers at the same moment; returns the result of each.
pub fn race<R: Send>(racers: &[Racer<R>]) -> Vec<R> {
    let ready = AtomicUsize::new(0);
    let run = |racer: Racer<R>| {
        // Not a barrier: its threads are woken one after the other, and the first would already have won.
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

/// Returns how many answers are true.
pub fn count(answers: impl IntoIterator<Item = bool>) -> usize {
    answers.into_iter().filter(|&yes| yes).count()
}
