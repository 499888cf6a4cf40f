//! The shared store: several deferd have one queue and one set of results, on Redis or Valkey.
//!
//! Owns what belongs to one instance: what it runs, its lanes, and its messages to the engine, which has all jobs.
//! Each operation is one script (`script`, `scripts/*.lua`); `engine` sends it, repeatedly until the outcome is known,
//! over the `pool` to the `primary`. `promise` is the store as the rest of deferd sees it: `submit` accepts jobs,
//! `claim` takes them, `running` ends them, `reading` reads them, `forgetting` removes them. `keeper` keeps the
//! instance alive, `settler` reports deliveries, `bell` receives the messages of other instances. Invariants: what the
//! engine has not acknowledged was not promised; only the engine's answer takes a job from an instance; a job that was
//! taken away leaves no result.
//!
//! # Keys
//!
//! | key below `deferd:{QUEUE}:` | what |
//! |---|---|
//! | `meta` | hash: format, last id, bytes, how many wait, fence, clocks of the beats |
//! | `j:ID`, `n:ID` | the record as a hash; the lines of its request, as on disk |
//! | `q:ID`, `r:ID`, `g:ID` | request and response as messages; the end of the log |
//! | `l:PREFIX`, `w`, `ws` | ids that wait in a lane; delayed by time: to run again, or with their answer |
//! | `p:OWNER`, `d:…`, `v:…`, `lg:…` | pending, done, in delivery, kept logs; `e`, `le`: the last two of all, by age |
//! | `k:OWNER`, `kb`, `ke` | idempotency keys, their bytes, their ages |
//! | `hz`, `z`, `hb` | the id up to which an owner has forgotten all; lists to purge; current deletions by time |
//! | `i`, `i:INC`, `gone` | living incarnations by the end of their lease; who they are; dead ones being reaped |
//! | `run:INC`, `dlv:INC`, `x:INC`, `h:PREFIX` | what an incarnation runs, delivers, stops; who found a lane empty |
//! | `m:PROCESS`, `b:PROCESS:SLOT:N` | the memo: the last reply of each connection; a large body on its way |
//!
//! # What it survives
//!
//! - **The memo**: an operation has a number in its connection's slot and leaves its reply there. If it is sent again
//!   after a lost answer, it finds that reply; if it arrives late, it finds a higher number. An operation that is
//!   given up is withdrawn (`settler`).
//! - **The fence**: a run and a delivery have a number from the engine; a result, a retry and a confirmation count
//!   only under it. A job that was taken away leaves nothing.
//! - **Mercy**: if no instance beat for half a lease, or the clock jumped, nothing is reaped for one lease: an outage
//!   of the engine interrupts no job. Only the engine's clock counts; results do not age while no instance beats.
//! - **Only the engine's answer `fenced` takes jobs from an instance**: it then stops them and joins anew. A new
//!   replication id makes ids and fences skip ahead (`epoch`), and what runs is compared (`reconcile`).
//! - **Hints are not jobs**: pub/sub wakes workers and clients, stops scripts and fetches logs; a lost message costs a
//!   second. After an I/O error a connection is never used again.

mod bell;
mod claim;
mod engine;
mod forgetting;
mod health;
mod keeper;
mod local;
mod open;
mod operation;
mod pool;
mod primary;
mod promise;
mod reading;
mod record;
mod reply;
mod running;
mod script;
mod settler;
mod submit;
mod wire;

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::Sender;

use self::bell::Bell;
use self::engine::Engine;
use self::local::Local;
use self::operation::Operation;
use self::pool::Slot;
use self::settler::{Task, Untold};
use super::Plan;
use crate::content::Content;
use crate::error::Error;
use crate::job::execution::Attempts;
use crate::job::outcome::Outcome as JobOutcome;
use crate::job::stored::StoredResponse;
use crate::job::{JobKey, Stamp, message};
use crate::ledger::locked::{Dispatch, Locked};
use crate::memory::Allowance;

pub use self::operation::Clock;

/// The size from which a message is sent ahead of its script, and read alone, in bytes.
const SPOOLED: usize = 64 * 1024;

/// How many ids one script lists at most.
const LIST: usize = 50_000;

/// How long the shutdown waits for the engine.
const CLOSE_TIME: Duration = Duration::from_secs(5);

/// How long the engine's counters are used before they are read again.
const FRESH: Duration = Duration::from_secs(2);

/// How an instance shares jobs.
#[derive(Clone, Debug)]
pub struct Sharing {
    /// The address of the engine.
    pub address: crate::config::StoreAddress,
    /// How long a silent instance keeps the jobs that it runs.
    pub lease: Duration,
    /// What the engine must promise.
    pub durability: crate::config::Durability,
    /// Which clock stamps jobs.
    pub clock: Clock,
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
    /// The prefix of each route, at its index: it is the name of its lane.
    lanes: Vec<Box<str>>,
    lease: Duration,
    durability: crate::config::Durability,
    /// The living incarnation; zero if none lives.
    incarnation: AtomicU64,
    counters: Mutex<Option<(Instant, Counters)>>,
    /// The ends of the delays that began here.
    due: Mutex<BTreeSet<Instant>>,
    /// The slot over which the ends of delays are sent.
    timekeeper: Mutex<Slot>,
    /// Held while a large message is read.
    large: Mutex<()>,
    /// The results for cancelled (`410`) and for interrupted (`500`) jobs.
    cancelled: Standing,
    interrupted: Standing,
    fenced: AtomicU64,
    reaped: AtomicU64,
    closed: AtomicBool,
}

/// A result that the engine may give a job by itself.
struct Standing {
    message: Vec<u8>,
    footprint: usize,
    ending: String,
}

/// The engine's counters.
#[derive(Clone, Copy)]
struct Counters {
    bytes: usize,
    log_bytes: usize,
    waiting: usize,
}

impl Standing {
    fn of(error: &Error) -> io::Result<Self> {
        let response = StoredResponse::from(error.response());
        let message = message_of(&response)?;
        Ok(Self { message, footprint: response.footprint(), ending: record::ending(&response) })
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

    /// Returns the limits on which instances that share a queue should agree.
    fn limits(&self) -> String {
        let Self { plan, capacity, durability, .. } = self;
        format!(
            "queue={} max-stored={capacity} ttl={:?} durability={durability:?}",
            plan.queue, plan.ttl
        )
    }

    /// Adds to an operation the results that the engine gives jobs by itself.
    fn with_errors(&self, operation: Operation) -> Operation {
        let Self { cancelled, interrupted, .. } = self;
        operation
            .with(&interrupted.message)
            .number(interrupted.footprint)
            .with(&interrupted.ending)
            .number(cancelled.footprint)
            .with(&cancelled.ending)
    }

    /// Gives up the jobs of an incarnation that the engine took for dead.
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
}

/// Returns content in the form that is sent to the engine: with a shared store it is in memory.
///
/// # Errors
/// Errors of its file, if it is in one.
fn bytes_of(content: &Content) -> io::Result<Bytes> {
    match content.in_memory() {
        Some(bytes) => Ok(bytes.clone()),
        None => Ok(content.beginning(content.len())?.into_owned().into()),
    }
}

/// Returns a response as the message that the engine keeps.
///
/// # Errors
/// Errors of [`bytes_of`].
fn message_of(response: &StoredResponse) -> io::Result<Vec<u8>> {
    let mut message = message::response_head(response);
    message.extend_from_slice(&bytes_of(response.body())?);
    Ok(message)
}

fn owner(job: &JobKey) -> &str {
    job.owner.name().unwrap_or("")
}

/// Locks, even if the lock is poisoned: the guarded data is valid between any two statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for SharedStore {
    fn drop(&mut self) {
        // Does nothing if the store is already closed.
        self.0.close();
    }
}
