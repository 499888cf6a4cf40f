//! What a store of jobs promises; each store beside this file keeps it in its own way.
//!
//! A store owns every job from its acceptance to its end, and hands each job on exactly once:
//!
//! - **Isolation.** Every operation by id names an owner; a job of another owner does not exist.
//! - **Ids** are unique and strictly increasing in the order of [`Store::submit`].
//! - **First in, first out.** [`Store::claim`] gives out the jobs of one route in the order of their ids, as many at
//!   once as its limit allows, whatever is cancelled meanwhile.
//! - **Once.** A job is claimed by one worker; [`Store::collect`] gives a result to one caller, and until that
//!   delivery is [confirmed](Store::confirm) or [failed](Store::restore) the job exists for no other, deletion in
//!   bulk excepted: that makes a failed delivery final.
//! - **Forgetting** removes the record only. A waiting job still runs and a running one goes on;
//!   the result is dropped.
//! - **Linearizable.** Each operation takes effect at one moment between its call and its return;
//!   forgetting by time does so for each job by itself.
//! - **Cost**, with n jobs: submit, claim, finish, collect O(log n); a list of k ids O(k); expiring
//!   k jobs O(k log n). No lock is held while the memory of many jobs is freed.
//! - **Bounded.** At `--max-stored` and at `--queue` new jobs are refused, and a result that does not fit becomes an
//!   error (`507`), for which there is room from the job's acceptance on. What is kept is never evicted.
//! - **Tells of results.** With the result of a job that owes notices, in the same step, these are accepted: jobs of
//!   lanes of their own, which no client sees. There is room for them since the job's acceptance.
//! - **Keeps its word.** What a store has returned from [`Store::submit`], [`Store::cancel`] and the
//!   ways to forget is as durable as the store is; a result is so before its job is done.
//!
//! A store may be elsewhere, and out of reach: what asks for the truth can fail, because a false `404` is a lie and
//! `503` is not. What ends a delivery cannot, and never blocks.

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

/// A job to be accepted.
pub struct Submission {
    /// What to run, and for whom.
    pub call: Call,
    /// Its route.
    pub route: RouteIndex,
    /// Its request, as its record has it.
    pub line: RequestLine,
    /// What happens to the result.
    pub keep: Keep,
    /// By what the client names this submission, if it does.
    pub key: Option<IdempotencyKey>,
    /// The URL that is to be told when it is done.
    pub callback: Option<Box<str>>,
}

/// A job that was accepted, now or before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// It is to be run.
    New(JobId),
    /// This submission was accepted before, under the same key; nothing new runs.
    Known(JobId),
}

impl Accepted {
    /// The job's id.
    pub const fn id(self) -> JobId {
        match self {
            Self::New(id) | Self::Known(id) => id,
        }
    }
}

/// The store cannot make it durable, or read it, now: what was asked for may yet happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreUnavailable;

/// What is known of the engine on which several deferd share a store.
#[derive(Clone, Debug, Default)]
pub struct EngineStats {
    /// Whether it answers, and takes changes.
    pub is_up: bool,
    /// How long it took to carry out an operation.
    pub latency: Histogram,
    /// How often this instance was taken for dead, and had to give up what it ran.
    pub fenced: u64,
    /// How many jobs of other instances, which were dead, this one has ended or let run again.
    pub reaped: u64,
}

/// The outcome of looking up a result.
#[derive(Debug)]
pub enum Lookup<T = StoredResponse> {
    /// This owner has no such job.
    Unknown,
    /// Its result is not there yet.
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
    /// Returns the same with what `then` makes of the result.
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

/// A store of jobs. See the [module](self) for what it promises.
pub trait Store: Send + Sync {
    /// Its name in `/_api/version?details=true`.
    fn name(&self) -> &'static str;

    /// Accepts a job.
    ///
    /// # Errors
    /// [`Refused`]; then nothing of it stays behind.
    fn submit(&self, submission: Submission, now: Moment) -> Result<Accepted, Refused>;

    /// Returns how much it holds.
    ///
    /// # Errors
    /// [`StoreUnavailable`] if that cannot be known now.
    fn stats(&self) -> Result<Stats, StoreUnavailable>;

    /// Returns what has become of jobs since the process began.
    fn tally(&self) -> Tally;

    /// Returns the job that was accepted under this key already.
    ///
    /// # Errors
    /// [`Refused::KeyReused`] where the key stands for another request.
    fn recall(&self, owner: &Owner, key: &IdempotencyKey) -> Result<Option<JobId>, Refused>;

    /// Whether a request of `bytes` would be accepted at this moment.
    ///
    /// # Errors
    /// Why not.
    fn check(&self, bytes: usize) -> Result<(), Refused>;

    /// Waits, if need be, for a job that may run, and hands it to this worker, whose memory is charged for what
    /// it produces. `None` when no job will run any more, or without patience, if none may run now.
    fn claim(&self, memory: &Allowance, patience: Patience) -> Option<Claimed>;

    /// Lets a running job wait until `until`: then it runs again, or is [overdue](Self::overdue) if it has its
    /// answer. One that was cancelled is finished with `410`.
    fn retry(&self, job: &JobKey, attempt: Box<Attempt>, until: Instant, now: Moment);

    /// Lets a running job wait in the lane of its redirect's target; it is [overdue](Self::overdue) past the
    /// deadline of that. One that was cancelled is finished with `410`.
    fn redirect(&self, job: &JobKey, attempt: Box<Attempt>, now: Moment);

    /// Waits for `span`, or until jobs are due that only have to be finished, and returns those.
    fn overdue(&self, span: Duration) -> Vec<Claimed>;

    /// Finishes a running job with its result, which can be collected once it is as durable as the store
    /// promises.
    fn finish(&self, job: &JobKey, response: Response<Content>, now: Moment) -> Finished;

    /// Keeps a running job's place in its lane beyond the end of the run, until it is [given up](Self::give_up);
    /// `None` if it has none.
    fn keep_place(&self, job: &JobKey) -> Option<RouteIndex>;

    /// Gives up a place that was kept when its run had ended.
    fn give_up(&self, route: RouteIndex);

    /// Lets a synchronous caller into the lane of a route, or gives it a place in line: `wake` is sent to when it
    /// is let in.
    ///
    /// # Errors
    /// Its place in line.
    fn enter_lane(&self, route: RouteIndex, wake: &Sender<()>) -> Result<(), Turn>;

    /// Takes a caller out of its lane; or out of the line, if it waits there still.
    fn leave_lane(&self, route: RouteIndex, turn: Option<Turn>);

    /// Waits for `span`, or until the job is done or gone, or `is_over` says so, or the end has come.
    fn wait(&self, job: &JobKey, span: Duration, is_over: &dyn Fn() -> bool);

    /// The status of a job; `None` if it does not exist.
    ///
    /// # Errors
    /// [`StoreUnavailable`] if that cannot be known now.
    fn status(&self, job: &JobKey) -> Result<Option<Status>, StoreUnavailable>;

    /// The last of the job's stderr, for a while also after its result was collected; `None` if there is no such job.
    ///
    /// # Errors
    /// [`StoreUnavailable`] if it cannot be read now.
    fn log(&self, job: &JobKey) -> Result<Option<LogEnd>, StoreUnavailable>;

    /// The log of a job that was begun in this process and is pending, to be followed while it grows.
    fn growing_log(&self, job: &JobKey) -> Option<Arc<JobLog>>;

    /// The result, which stays.
    fn peek(&self, job: &JobKey) -> Lookup;

    /// The result, taken out for delivery, which must be [confirmed](Self::confirm) or
    /// [failed](Self::restore).
    fn collect(&self, job: &JobKey) -> Lookup<(StoredResponse, DeliveryId)>;

    /// The collected result was delivered: its job is gone, but for its log. Nothing if it is not in this delivery any
    /// more.
    fn confirm(&self, job: &JobKey, delivery: DeliveryId, now: Moment);

    /// The collected result was not delivered: it is back, unless it was deleted in bulk meanwhile.
    fn restore(&self, job: &JobKey, delivery: DeliveryId);

    /// Cancels a job: one that waits is done with `410`, a running one is told to stop, a done one
    /// stays as it is. `false` if it does not exist.
    ///
    /// # Errors
    /// [`StoreUnavailable`]: it is cancelled, and that is not durable yet.
    fn cancel(&self, job: &JobKey, now: Moment) -> Result<bool, StoreUnavailable>;

    /// Forgets a job; `false` if it does not exist.
    ///
    /// # Errors
    /// [`StoreUnavailable`]: it is forgotten, and that is not durable yet; so for all that forget.
    fn forget(&self, job: &JobKey) -> Result<bool, StoreUnavailable>;

    /// Forgets every job of `owner`, and their idempotency keys.
    ///
    /// # Errors
    /// [`StoreUnavailable`].
    fn forget_all(&self, owner: &Owner) -> Result<(), StoreUnavailable>;

    /// Forgets the jobs of `owner` that are stamped strictly before `before`.
    ///
    /// # Errors
    /// [`StoreUnavailable`].
    fn forget_before(&self, owner: &Owner, before: Stamp) -> Result<(), StoreUnavailable>;

    /// Forgets results of all owners that came to be before `before` by the clock that cannot be set: some hundreds;
    /// returns how many. If those were all, it forgets the idempotency keys of jobs accepted before that and gone.
    /// Called until it returns zero, it forgets all.
    ///
    /// # Errors
    /// [`StoreUnavailable`].
    fn expire(&self, before: Age) -> Result<usize, StoreUnavailable>;

    /// Drops the logs of jobs that are gone since before `before`.
    fn expire_logs(&self, before: Age);

    /// At most `count` ids of `owner` above `after`, ascending.
    ///
    /// # Errors
    /// [`StoreUnavailable`] if that cannot be known now.
    fn list(
        &self,
        owner: &Owner,
        list: List,
        after: Option<JobId>,
        count: usize,
    ) -> Result<Vec<JobId>, StoreUnavailable>;

    /// The record of a job; `None` if it does not exist.
    ///
    /// # Errors
    /// [`StoreUnavailable`] if that cannot be known now.
    fn record(&self, job: &JobKey) -> Result<Option<JobRecord>, StoreUnavailable>;

    /// At most `count` records of `owner` behind `after` that pass the filter, in its order; so many as are found
    /// among the next [`MAX_LOOKS`](crate::ledger::records::MAX_LOOKS).
    ///
    /// # Errors
    /// [`StoreUnavailable`] if that cannot be known now.
    fn records(
        &self,
        owner: &Owner,
        filter: &Filter,
        after: Option<JobId>,
        count: usize,
    ) -> Result<Page, StoreUnavailable>;

    /// Whether no job runs, and none waits to run in this process; a store with notices counts them too.
    fn is_idle(&self) -> bool {
        // Without the truth the end waits for its time.
        self.stats().is_ok_and(|stats| stats.running + stats.waiting + stats.delayed == 0)
    }

    /// Returns what is known of the engine that the store is on; `None` if it is in this process.
    fn engine(&self) -> Option<EngineStats> {
        None
    }

    /// Waits until all that was handed over before is durable.
    ///
    /// # Errors
    /// [`StoreUnavailable`] where that cannot be had now.
    fn flush(&self) -> Result<(), StoreUnavailable>;

    /// Accepts that the end is near: what waits or is delayed stays where it is kept, if that outlives the
    /// process; else it runs yet, and only notices that failed do not run again.
    fn drain(&self);

    /// Hands out no more jobs, lets no thread wait, and stops what runs.
    fn stop(&self, stop: Stop);

    /// Ends orderly; the ids of the jobs that end with the process.
    fn close(&self) -> Vec<JobId>;
}
