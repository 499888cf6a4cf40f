//! What every store knows about its jobs: the states of all of them, and their schedule, as plain data.
//!
//! Owns the records of each owner's jobs, the accounts, the ids, the idempotency keys and the schedule, whatever a
//! store keeps of requests (`Q`) and results (`R`). Does no I/O and takes no lock: a store holds it under its mutex,
//! and [`locked`] wakes the threads that its changes concern. `submit` has how jobs are accepted, `running` how they
//! run, `finishing` how they end, `notices` who is notified, `results` how they are collected, `forgetting` how they
//! are removed, `logs` which logs are kept for a while, `end` what a stopped ledger still does. Invariants: a job is
//! in exactly one place: waiting in a lane, delayed, running, finishing, done, or in delivery; `stored` equals the
//! footprints of all records, keys, and submissions that are admitted and not yet accepted; it exceeds the capacity
//! only by what was found at start; no method frees the memory of many jobs: they are returned to the caller.

mod end;
mod finishing;
mod forgetting;
pub mod idempotency;
pub mod index;
pub mod job;
pub mod locked;
pub mod logs;
mod notices;
pub mod records;
mod results;
mod running;
pub mod schedule;
#[cfg(test)]
mod schedule_tests;
mod submit;
pub mod tally;
pub mod waiters;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use crossbeam_channel::Sender;

use crate::error::Error;
use crate::exchange::Owner;
use crate::job::execution::Stop;
use crate::job::notice::NoticeLane;
use crate::job::stored::Ending;
use crate::job::{Age, JobId, JobKey, Rerun, Stamp};
use crate::memory::Allowance;
use idempotency::Idempotency;
use index::Jobs;
use job::Pending;
use locked::{Wake, Wakes};
use schedule::{Limit, Schedule};

pub use finishing::{Cancel, Finishing};
pub use forgetting::{BATCH, Forgotten};
pub use idempotency::Expired;
pub use index::Reach;
pub use logs::{KeptLog, LogIs};
pub use notices::{InMemory, Notice, Owed};
pub use records::{End, Filter, JobRecord, Order, Page};
pub use results::Found;
pub use running::{Next, Patience, Taken};
pub use submit::{Admitted, Size};
pub use tally::Tally;

/// The client's key of a submission, and a digest of what was submitted under it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// The content of `idempotency-key`: printable ASCII.
    pub key: Box<str>,
    /// A digest of the request: method, target, content.
    pub fingerprint: [u8; 32],
}

/// The limits of a store.
#[derive(Clone, Debug)]
pub struct Room {
    /// `--max-stored`, in bytes.
    pub capacity: usize,
    /// How much of it stays free for results when a job is accepted, in bytes.
    pub reserve: usize,
    /// The budget of its memory.
    pub memory: Allowance,
}

/// How a route's jobs run.
#[derive(Clone, Copy, Debug)]
pub struct Lane {
    /// How many requests of the route may run at once.
    pub limit: Limit,
    /// Whether its jobs run again after a crash.
    pub rerun: Rerun,
    /// Which programs are notified about its jobs.
    pub tells: Tells,
}

/// Which programs of a route are notified about its jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tells {
    /// `on-done`: for each job that is done.
    pub on_done: bool,
    /// `on-failure`: for each job that failed.
    pub on_failure: bool,
}

impl Tells {
    /// No programs.
    pub const NONE: Self = Self { on_done: false, on_failure: false };
}

/// How many workers there are, how many jobs may wait, and how long results are kept.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How many workers there are.
    pub workers: usize,
    /// How many jobs may wait: `--queue`.
    pub queue: usize,
    /// How long a result is kept: `--ttl`.
    pub ttl: Duration,
    /// How long a log is kept after the result was collected: `--log-ttl`; zero: it is removed with the result.
    pub log_ttl: Duration,
    /// One for each route, at its index; in a ledger, the lanes of notices follow.
    pub lanes: Vec<Lane>,
}

/// How much a store holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Waiting requests, results and keys, with their records, in bytes.
    pub stored: usize,
    /// The limit of `stored`, in bytes.
    pub capacity: usize,
    /// How many jobs wait in lanes; this count and those below leave out notices.
    pub waiting: usize,
    /// How many are delayed.
    pub delayed: usize,
    /// How many run.
    pub running: usize,
    /// How many have a result that can be collected.
    pub done: usize,
    /// When the waiting job with the lowest id was accepted.
    pub oldest: Option<Stamp>,
    /// How many jobs of each route wait and run.
    pub by_lane: Vec<(usize, usize)>,
}

/// Why a job was not accepted; nothing of it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Waiting requests and kept results have reached `--max-stored`.
    Full,
    /// Its request is larger than `--max-stored` allows.
    TooLarge,
    /// The memory for records is in use (`--max-memory`).
    NoMemory,
    /// The queue is full (`--queue`).
    QueueFull,
    /// Idempotency keys have reached their part of `--max-stored`.
    ManyKeys,
    /// The idempotency key was used for another request.
    KeyReused,
    /// The store cannot make the job durable now.
    Unavailable,
    /// The engine of the store has no memory left.
    EngineFull,
}

impl Refused {
    /// Returns the error that replaces a result that does not fit.
    pub fn of_result(self) -> Error {
        Error::InsufficientStorage(match self {
            Self::NoMemory => "the memory for results is in use; see --max-memory".into(),
            _ => "the result does not fit beside what is stored; see --max-stored".into(),
        })
    }
}

/// The status of a job.
#[derive(Debug, PartialEq, Eq)]
pub enum Status {
    /// It has no result yet: its state, and the last line of its stderr.
    Pending(JobState, Option<String>),
    /// It has a result: how it ended.
    Done(Ending),
}

/// The state of a job, as its owner sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobState {
    /// It waits in a lane.
    Waiting,
    /// It waits for a point in time.
    Delayed,
    /// It runs, or its result is being stored.
    Running,
    /// It has a result.
    Done,
}

impl JobState {
    /// Returns its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Delayed => "delayed",
            Self::Running => "running",
            Self::Done => "done",
        }
    }

    /// Returns the state with this name.
    pub fn named(name: &str) -> Option<Self> {
        let states = [Self::Waiting, Self::Delayed, Self::Running, Self::Done];
        states.into_iter().find(|state| state.name() == name)
    }
}

/// One of the two lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    /// Jobs without a result.
    Pending,
    /// Jobs with a result.
    Done,
}

/// What happened to the response of a finished job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finished {
    /// It can be collected.
    Kept,
    /// No client can ask for it, or an error replaced it: `410` because the job was cancelled, `507` because the
    /// response did not fit.
    Dropped,
    /// The shutdown stopped the job; the next process handles it.
    Left,
}

/// The states of all jobs.
pub struct Ledger<Q, R> {
    room: Room,
    plan: Plan,
    /// The last id that was assigned.
    last: Option<JobId>,
    /// The jobs that a client can ask for.
    owners: BTreeMap<Owner, Jobs<Q, R>>,
    /// The jobs whose results no client wants, until they have run.
    unwanted: HashMap<JobKey, Box<Pending<Q>>>,
    keys: Idempotency,
    /// The jobs with a key that are admitted and not yet accepted.
    keyed: HashSet<JobId>,
    /// How many jobs are admitted and not yet accepted.
    admitted: usize,
    /// The accounted size of everything, in bytes.
    stored: usize,
    /// How much of that is kept logs, which are dropped when room is short.
    log_bytes: usize,
    /// The kept logs, the oldest first.
    log_ages: BTreeMap<(Age, JobId), Owner>,
    /// The jobs whose kept logs were dropped. Emptied when the lock is released: a store that keeps logs elsewhere has
    /// taken them by then.
    dropped_logs: Vec<JobId>,
    /// The number of deliveries so far.
    deliveries: u64,
    schedule: Schedule<Sender<()>>,
    tally: Tally,
    /// Whether the schedule changed since the last [`wakes`](Wake::wakes).
    is_changed: bool,
    /// The number of waiting workers.
    idle: usize,
    wakes: Wakes,
    /// Whether jobs that have not begun are left as they are.
    is_draining: bool,
    /// Whether failed notices are not retried.
    is_draining_notices: bool,
    /// Set at the shutdown: no job goes on.
    stopped: Option<Stop>,
}

impl<Q, R> Ledger<Q, R> {
    /// Returns a ledger without jobs; the next id will be greater than `last`.
    pub fn new(room: Room, mut plan: Plan, last: Option<JobId>) -> Self {
        notices::add_lanes(&mut plan);
        let limits: Vec<Limit> = plan.lanes.iter().map(|lane| lane.limit).collect();
        let mut schedule = Schedule::new(plan.workers, limits);
        schedule.unqueue(NoticeLane::ALL.len());
        Self {
            room,
            last,
            owners: BTreeMap::new(),
            unwanted: HashMap::new(),
            keys: Idempotency::default(),
            keyed: HashSet::new(),
            admitted: 0,
            stored: 0,
            log_bytes: 0,
            log_ages: BTreeMap::new(),
            dropped_logs: Vec::new(),
            deliveries: 0,
            schedule,
            tally: Tally::new(plan.lanes.len()),
            plan,
            is_changed: false,
            idle: 0,
            wakes: Wakes::default(),
            is_draining: false,
            is_draining_notices: false,
            stopped: None,
        }
    }

    /// Returns whether nothing runs, and nothing waits to run in this process, notices included.
    pub const fn is_idle(&self) -> bool {
        self.schedule.running() + self.schedule.waiting() + self.schedule.delayed() == 0
    }

    /// Returns how many jobs are in each state.
    pub fn stats(&self) -> Stats {
        let (waiting, delayed, running) = self.schedule.of_clients();
        Stats {
            stored: self.stored,
            capacity: self.room.capacity,
            waiting,
            delayed,
            running,
            done: self.owners.values().map(|jobs| jobs.done.len()).sum(),
            oldest: self.schedule.first().and_then(|job| Some(self.pending(&job)?.created)),
            by_lane: self.schedule.by_lane().take(self.routes()).collect(),
        }
    }

    /// Returns the counts of this process's jobs.
    pub const fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Returns the same counts, to be changed by a store that keeps jobs elsewhere.
    pub const fn tally_mut(&mut self) -> &mut Tally {
        &mut self.tally
    }

    /// Returns the schedule for a change. When the lock is released, the workers and callers that may then run are
    /// woken.
    const fn schedule(&mut self) -> &mut Schedule<Sender<()>> {
        self.is_changed = true;
        &mut self.schedule
    }
}

impl<Q, R> Wake for Ledger<Q, R> {
    fn wakes(&mut self) -> Wakes {
        self.dropped_logs.clear();
        if std::mem::take(&mut self.is_changed) {
            self.wakes.callers.append(&mut self.schedule.admit());
            // Only one is woken: the worker claims a job, and thereby wakes the next.
            if self.idle > 0 && self.schedule.next().is_some() {
                self.idle -= 1;
                self.wakes.workers += 1;
            }
        }
        std::mem::take(&mut self.wakes)
    }

    fn is_stopped(&self) -> bool {
        self.stopped.is_some()
    }
}
