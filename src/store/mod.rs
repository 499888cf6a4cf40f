//! What a store of jobs promises; each store beside this file keeps the promise in its own way.
//!
//! A store owns every job from its acceptance to its end, and passes each job on exactly once:
//!
//! - **Isolation.** Every operation by id names an owner; a job of another owner does not exist.
//! - **Ids** are unique and strictly increasing in the order of [`Store::submit`].
//! - **First in, first out.** [`Store::claim`] gives out the jobs of one route in the order of their ids, as many at
//!   once as its limit allows, whatever is cancelled in the meantime.
//! - **Once.** A job is claimed by one worker; [`Store::collect`] gives a result to one caller, and until that
//!   delivery is [confirmed](Store::confirm) or [failed](Store::restore) the job does not exist for other callers.
//!   Only deletion in bulk reaches it: then a failed delivery does not restore the result.
//! - **Forgetting** removes the record only. A waiting job still runs and a running one goes on;
//!   the result is dropped.
//! - **Linearizable.** Each operation takes effect at one moment between its call and its return;
//!   forgetting by time does so for each job separately.
//! - **Cost**, with n jobs: submit, claim, finish, collect O(log n); a list of k ids O(k); expiring
//!   k jobs O(k log n). No lock is held while the memory of many jobs is freed.
//! - **Bounded.** At `--max-stored` and at `--queue` new jobs are refused, and a result that does not fit becomes an
//!   error (`507`), for which room is reserved when the job is accepted. What is kept is never evicted.
//! - **Notifies.** The notices that a job owes are accepted in the same step as its result: they are jobs in lanes of
//!   their own, which no client sees. Room for them is reserved when the job is accepted.
//! - **Durable.** What a store has returned from [`Store::submit`], [`Store::cancel`] and the operations that forget is
//!   as durable as the store is; a result is durable before its job is done.
//!
//! A store may be remote, and unreachable: operations that read or promise something can fail, because a false `404`
//! would be a lie, and a `503` is not. Operations that end a delivery cannot fail, and never block.

pub mod disk;
pub mod memory;
#[cfg(feature = "redis")]
pub mod redis;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use http::Response;

use crate::content::Content;
use crate::exchange::{Call, Owner};
use crate::histogram::Histogram;
use crate::job::attempt::{Attempt, Claimed};
use crate::job::execution::Stop;
use crate::job::log::{JobLog, LogEnd};
use crate::job::request_line::RequestLine;
use crate::job::stored::StoredResponse;
use crate::job::{Age, JobId, JobKey, Keep, Moment, RouteIndex, Stamp};
use crate::ledger::schedule::Turn;
use crate::memory::Allowance;

pub use crate::ledger::job::DeliveryId;
pub use crate::ledger::{
    End, Filter, Finished, IdempotencyKey, JobRecord, JobState, Lane, List, Order, Page, Patience,
    Plan, Refused, Room, Stats, Status, Tally, Tells,
};

/// A job that is being submitted.
pub struct Submission {
    /// What to run, and for whom.
    pub call: Call,
    /// Its route.
    pub route: RouteIndex,
    /// What its record keeps of its request.
    pub line: RequestLine,
    /// What happens to the result.
    pub keep: Keep,
    /// The client's name for this submission, if it sent one.
    pub key: Option<IdempotencyKey>,
    /// The URL to notify when it is done.
    pub callback: Option<Box<str>>,
}

/// A job that was accepted, now or earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// It will run.
    New(JobId),
    /// This submission was already accepted, under the same key; nothing new runs.
    Known(JobId),
}

impl Accepted {
    /// Returns the job's id.
    pub const fn id(self) -> JobId {
        match self {
            Self::New(id) | Self::Known(id) => id,
        }
    }
}

/// The store cannot make a change durable, or read, at this time: the change may still happen later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreUnavailable;

/// What is known about the engine through which several deferd share a store.
#[derive(Clone, Debug, Default)]
pub struct EngineStats {
    /// Whether it answers, and accepts changes.
    pub is_up: bool,
    /// How long operations took.
    pub latency: Histogram,
    /// How often this instance was taken for dead, and had to give up the jobs that it ran.
    pub fenced: u64,
    /// How many jobs of other, dead instances this one has ended or let run again.
    pub reaped: u64,
}

/// The outcome of looking up a result.
#[derive(Debug)]
pub enum Lookup<T = StoredResponse> {
    /// This owner has no such job.
    Unknown,
    /// It has no result yet.
    Pending,
    /// Its result.
    Done(T),
    /// Its result exists but cannot be read now.
    Unreadable,
    /// There is no memory for its result now (`--max-memory`).
    NoMemory,
    /// Its result is larger than `--max-memory`.
    TooLarge,
}

impl<T> Lookup<T> {
    /// Returns the same outcome, with the result mapped by `then`.
    pub fn map<U>(self, then: impl FnOnce(T) -> U) -> Lookup<U> {
        match self {
            Self::Unknown => Lookup::Unknown,
            Self::Pending => Lookup::Pending,
            Self::Done(result) => Lookup::Done(then(result)),
            Self::Unreadable => Lookup::Unreadable,
            Self::NoMemory => Lookup::NoMemory,
            Self::TooLarge => Lookup::TooLarge,
        }
    }
}

/// A store of jobs. The [module](self) lists what it promises.
pub trait Store: Send + Sync {
    /// Its name in `/_api/version?details=true`.
    fn name(&self) -> &'static str;

    /// Accepts a job.
    ///
    /// # Errors
    /// [`Refused`]; then nothing of it is kept.
    fn submit(&self, submission: Submission, now: Moment) -> Result<Accepted, Refused>;

    /// Returns how much the store holds.
    ///
    /// # Errors
    /// [`StoreUnavailable`] if that cannot be determined now.
    fn stats(&self) -> Result<Stats, StoreUnavailable>;

    /// Returns the counts of what happened to jobs since the process began.
    fn tally(&self) -> Tally;

    /// Returns the job that was already accepted under this key.
    ///
    /// # Errors
    /// [`Refused::KeyReused`] if the key was used for another request.
    fn recall(&self, owner: &Owner, key: &IdempotencyKey) -> Result<Option<JobId>, Refused>;

    /// Checks whether a request of `bytes` would be accepted at this moment.
    ///
    /// # Errors
    /// Why it would not.
    fn check(&self, bytes: usize) -> Result<(), Refused>;

    /// Waits, if necessary, for a job that may run, and gives it to this worker; what the job produces is charged to
    /// `memory`. Returns `None` if no job will run any more, or, without patience, if none may run now.
    fn claim(&self, memory: &Allowance, patience: Patience) -> Option<Claimed>;

    /// Makes a running job wait until `until`: then it runs again, or is [overdue](Self::overdue) if it has its
    /// answer. A job that was cancelled is finished with `410`.
    fn retry(&self, job: &JobKey, attempt: Box<Attempt>, until: Instant, now: Moment);

    /// Makes a running job wait in the lane of its redirect's target; past the deadline of the redirect it is
    /// [overdue](Self::overdue). A job that was cancelled is finished with `410`.
    fn redirect(&self, job: &JobKey, attempt: Box<Attempt>, now: Moment);

    /// Waits for `span`, or until jobs are due that only have to be finished, and returns them.
    fn overdue(&self, span: Duration) -> Vec<Claimed>;

    /// Finishes a running job with its result, which can be collected once it is as durable as the store promises.
    fn finish(&self, job: &JobKey, response: Response<Content>, now: Moment) -> Finished;

    /// Keeps a running job's place in its lane beyond the end of the run, until it is [given up](Self::give_up);
    /// returns `None` if the job has no place.
    fn keep_place(&self, job: &JobKey) -> Option<RouteIndex>;

    /// Gives up a place that was kept after its run had ended.
    fn give_up(&self, route: RouteIndex);

    /// Admits a synchronous caller to the lane of a route, or gives it a place in line: `wake` gets a message when it
    /// is admitted.
    ///
    /// # Errors
    /// Its place in line.
    fn enter_lane(&self, route: RouteIndex, wake: &Sender<()>) -> Result<(), Turn>;

    /// Removes a caller from its lane, whether it was admitted or still waits.
    fn leave_lane(&self, route: RouteIndex, turn: Option<Turn>);

    /// Waits for `span`, until the job is done or gone, until `is_over` returns true, or until deferd is shutting
    /// down.
    fn wait(&self, job: &JobKey, span: Duration, is_over: &dyn Fn() -> bool);

    /// Returns the status of a job; `None` if it does not exist.
    ///
    /// # Errors
    /// [`StoreUnavailable`] if that cannot be determined now.
    fn status(&self, job: &JobKey) -> Result<Option<Status>, StoreUnavailable>;

    /// Returns the end of the job's stderr, which can still be read for a while after its result was collected; `None`
    /// if there is no such job.
    ///
    /// # Errors
    /// [`StoreUnavailable`] if it cannot be read now.
    fn log(&self, job: &JobKey) -> Result<Option<LogEnd>, StoreUnavailable>;

    /// Returns the log of a pending job that was begun in this process, to be followed while it grows.
    fn growing_log(&self, job: &JobKey) -> Option<Arc<JobLog>>;

    /// Returns the result; the store keeps it.
    fn peek(&self, job: &JobKey) -> Lookup;

    /// Takes the result out for delivery, which must be [confirmed](Self::confirm) or [failed](Self::restore).
    fn collect(&self, job: &JobKey) -> Lookup<(StoredResponse, DeliveryId)>;

    /// Removes a collected result that was delivered, and its job except for the log. Does nothing if the result is no
    /// longer in this delivery.
    fn confirm(&self, job: &JobKey, delivery: DeliveryId, now: Moment);

    /// Restores a collected result that was not delivered, unless it was deleted in bulk in the meantime.
    fn restore(&self, job: &JobKey, delivery: DeliveryId);

    /// Cancels a job: a waiting one is done with `410`, a running one is asked to stop, a done one does not change.
    /// Returns `false` if it does not exist.
    ///
    /// # Errors
    /// [`StoreUnavailable`]: it is cancelled, but that is not yet durable.
    fn cancel(&self, job: &JobKey, now: Moment) -> Result<bool, StoreUnavailable>;

    /// Forgets a job; returns `false` if it does not exist.
    ///
    /// # Errors
    /// [`StoreUnavailable`]: it is forgotten, but that is not yet durable; the same holds for the next two.
    fn forget(&self, job: &JobKey) -> Result<bool, StoreUnavailable>;

    /// Forgets every job of `owner`, and the idempotency keys.
    ///
    /// # Errors
    /// [`StoreUnavailable`].
    fn forget_all(&self, owner: &Owner) -> Result<(), StoreUnavailable>;

    /// Forgets the jobs of `owner` that are stamped strictly before `before`.
    ///
    /// # Errors
    /// [`StoreUnavailable`].
    fn forget_before(&self, owner: &Owner, before: Stamp) -> Result<(), StoreUnavailable>;

    /// Forgets some hundred results, of all owners, that were produced before `before` by the clock that cannot be
    /// set; returns how many. If there are no more, also forgets the idempotency keys of removed jobs that were
    /// accepted before `before`. Repeated until it returns zero, it forgets all of them.
    ///
    /// # Errors
    /// [`StoreUnavailable`].
    fn expire(&self, before: Age) -> Result<usize, StoreUnavailable>;

    /// Drops the logs of jobs that were removed before `before`.
    fn expire_logs(&self, before: Age);

    /// Returns at most `count` ids of `owner` above `after`, ascending.
    ///
    /// # Errors
    /// [`StoreUnavailable`] if that cannot be determined now.
    fn list(
        &self,
        owner: &Owner,
        list: List,
        after: Option<JobId>,
        count: usize,
    ) -> Result<Vec<JobId>, StoreUnavailable>;

    /// Returns the record of a job; `None` if it does not exist.
    ///
    /// # Errors
    /// [`StoreUnavailable`] if that cannot be determined now.
    fn record(&self, job: &JobKey) -> Result<Option<JobRecord>, StoreUnavailable>;

    /// Returns at most `count` records of `owner` after `after` that pass the filter, in its order: those that are
    /// among the next [`MAX_LOOKS`](crate::ledger::records::MAX_LOOKS).
    ///
    /// # Errors
    /// [`StoreUnavailable`] if that cannot be determined now.
    fn records(
        &self,
        owner: &Owner,
        filter: &Filter,
        after: Option<JobId>,
        count: usize,
    ) -> Result<Page, StoreUnavailable>;

    /// Returns whether no job runs, and none waits to run in this process; a store with notices counts them too.
    fn is_idle(&self) -> bool {
        // If this cannot be determined, the shutdown waits for its full time.
        self.stats().is_ok_and(|stats| stats.running + stats.waiting + stats.delayed == 0)
    }

    /// Returns what is known about the engine of the store; `None` if the store is in this process.
    fn engine(&self) -> Option<EngineStats> {
        None
    }

    /// Waits until all earlier changes are durable.
    ///
    /// # Errors
    /// [`StoreUnavailable`] if they cannot be made durable now.
    fn flush(&self) -> Result<(), StoreUnavailable>;

    /// Begins the shutdown. Jobs that wait or are delayed stay in the store if it outlives the process; otherwise they
    /// still run, and only failed notices are not retried.
    fn drain(&self);

    /// Gives out no more jobs, lets no thread wait, and stops what runs.
    fn stop(&self, stop: Stop);

    /// Closes the store in order; returns the ids of the jobs that are lost with the process.
    fn close(&self) -> Vec<JobId>;
}
