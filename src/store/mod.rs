//! What a store of jobs promises; each store beside this file keeps it in its own way.
//!
//! A store owns every job from its acceptance to its end, and hands each job on exactly once:
//!
//! - **Isolation.** Every operation by id names an owner; a job of another owner does not exist.
//! - **Ids** are unique and strictly increasing in the order of [`Store::submit`].
//! - **Once.** [`Store::start`] gives a request to one caller; [`Store::collect`] gives a result to
//!   one caller, and until that delivery is [confirmed](Store::confirm) or
//!   [failed](Store::restore) the job exists for nobody else, bulk deletion excepted: that makes a
//!   failed delivery final.
//! - **Forgetting** removes the record only. A queued job still runs and a running one goes on;
//!   the result is dropped.
//! - **Linearizable.** Each operation takes effect at one moment between its call and its return;
//!   forgetting by time does so for each job by itself.
//! - **Cost**, with n jobs: submit, start, finish, collect O(log n); a list of k ids O(k); expiring
//!   k jobs O(k log n). No lock is held while the memory of many jobs is freed.
//! - **Bounded.** At `--max-stored` new jobs are refused, and a result that does not fit becomes an
//!   error (`507`), for which there is room from the job's acceptance on. What is kept is never evicted.
//! - **Keeps its word.** What a store has returned from [`Store::submit`], [`Store::cancel`] and the
//!   ways to forget is as durable as the store is; a result is so before its job is done.

pub mod disk;
pub mod memory;

use std::sync::Arc;

use bytes::Bytes;
use http::Response;

use crate::error::Error;
use crate::exchange::{Call, Owner};
use crate::job::execution::Execution;
use crate::job::stored::StoredResponse;
use crate::job::{JobId, Stamp};
use crate::ledger::waiters::Waiters;
use crate::memory::Allowance;

/// What becomes of a job's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// It is kept until it is collected, deleted, or expires.
    Result,
    /// It is dropped; the job is listed nowhere (fire and forget).
    Nothing,
}

/// A job on offer.
pub struct Submission {
    /// What to run, and for whom.
    pub call: Call,
    /// What becomes of the result.
    pub keep: Keep,
    /// By what the client names this submission, where it does.
    pub key: Option<IdempotencyKey>,
}

/// The client's name for a submission, and what was submitted under it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// The content of `idempotency-key`: printable ASCII.
    pub key: Box<str>,
    /// A digest of all that makes the request what it is: method, target, content.
    pub fingerprint: [u8; 32],
}

/// A job that was accepted, now or before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// It is to be run.
    New(JobId),
    /// This submission was accepted before, under the same key: there is nothing more to run.
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

/// The room of a store.
#[derive(Clone, Debug)]
pub struct Room {
    /// `--max-stored`, in bytes.
    pub capacity: usize,
    /// How much of it stays free for results when a job is accepted, in bytes.
    pub reserve: usize,
    /// Whose memory it uses.
    pub memory: Allowance,
}

/// How much a store holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Waiting requests, results and keys, with their records, in bytes.
    pub stored: usize,
    /// How much that may be, in bytes.
    pub capacity: usize,
}

/// Why a job was not accepted; nothing of it stays behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Waiting requests and kept results have reached `--max-stored`.
    Full,
    /// Its request is larger than `--max-stored` can ever hold.
    TooLarge,
    /// The memory for records is in use (`--max-memory`).
    NoMemory,
    /// Idempotency keys have reached their part of `--max-stored`.
    ManyKeys,
    /// The idempotency key stands for another request.
    KeyReused,
    /// The store cannot make it durable now.
    StoreUnavailable,
}

impl Refused {
    /// Returns the error that stands for a result that does not fit.
    pub fn of_result(self) -> Error {
        Error::InsufficientStorage(match self {
            Self::NoMemory => "the memory for results is in use; see --max-memory".into(),
            _ => "the result does not fit beside what is stored; see --max-stored".into(),
        })
    }
}

/// The store cannot make it durable, or read it, now: what was asked for may yet happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreUnavailable;

/// A job that a store has found where it keeps them, and that is not done.
#[derive(Debug)]
pub struct Recovered {
    /// Which.
    pub job: JobKey,
    /// The path of its target, by which its route is found.
    pub path: String,
    /// Whether it ran when the process ended.
    pub begun: Begun,
}

/// Whether a job was started before the process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begun {
    /// It was, and that was recorded.
    Yes,
    /// It was not, or it is to be run again.
    No,
}

/// When a store records that a job was started, so that it is not run again after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartRecord {
    /// Before [`Store::start`] returns: the job must not have its effects twice.
    Before,
    /// Soon: having its effects twice would do no harm.
    Soon,
    /// Never: the job is to be run again.
    Never,
}

/// The name of a job together with its owner.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct JobKey {
    /// To whom it belongs.
    pub owner: Owner,
    /// Its id.
    pub id: JobId,
}

/// A job handed to a worker.
pub struct Started {
    /// What to run.
    pub call: Box<Call>,
    /// When it was accepted.
    pub created: Stamp,
}

/// What a job's status says.
#[derive(Debug, PartialEq, Eq)]
pub enum Status {
    /// Queued or running, with the last line of its stderr.
    Pending(Option<String>),
    /// The result is there.
    Done,
}

/// What an attempt to read a result finds.
#[derive(Debug)]
pub enum Lookup {
    /// There is no such job for this owner.
    Unknown,
    /// Its result is not there yet.
    Pending,
    /// Its result.
    Done(StoredResponse),
    /// Its result is there and cannot be read now.
    Unreadable,
    /// Its result is there, and at this moment there is no memory for it (`--max-memory`).
    NoMemory,
    /// Its result is there, and larger than all memory that there is (`--max-memory`).
    TooLarge,
}

/// Which of the two lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    /// Queued or running.
    Pending,
    /// With a result.
    Done,
}

/// What became of the response that a job finished with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finished {
    /// It can be collected.
    Kept,
    /// Nobody asked for it, its job was forgotten, or it was cancelled and has `410` instead.
    Dropped,
}

/// A store of jobs. See the [module](self) for what it promises.
pub trait Store: Send + Sync {
    /// Its name in `/_api/version?details=true`.
    fn name(&self) -> &'static str;

    /// Whether what is in it is there when the process has ended.
    fn outlives_the_process(&self) -> bool;

    /// Accepts a job.
    ///
    /// # Errors
    /// [`Refused`]; then nothing of it stays behind.
    fn submit(&self, submission: Submission, now: Stamp) -> Result<Accepted, Refused>;

    /// Returns how much it holds.
    fn stats(&self) -> Stats;

    /// The job that was accepted under this key already; `None` where there is none.
    ///
    /// # Errors
    /// [`Refused::KeyReused`] where the key stands for another request.
    fn recall(&self, owner: &Owner, key: &IdempotencyKey) -> Result<Option<JobId>, Refused>;

    /// Whether a request of `bytes` would be accepted at this moment.
    ///
    /// # Errors
    /// Why not.
    fn check(&self, bytes: usize) -> Result<(), Refused>;

    /// Whether the job still waits for a worker (forgotten ones do too, cancelled ones do not).
    fn is_queued(&self, job: &JobKey) -> bool;

    /// Whether the job was begun and has no result yet, nor one on its way (forgotten ones do too).
    fn may_go_on(&self, job: &JobKey) -> bool;

    /// Hands a waiting job to a worker; `None` if it does not wait any more.
    fn start(
        &self,
        job: &JobKey,
        execution: &Arc<Execution>,
        record: StartRecord,
        now: Stamp,
    ) -> Option<Started>;

    /// Ends a running job with its result, which can be collected once it is durable.
    fn finish(&self, job: &JobKey, response: Response<Bytes>, now: Stamp) -> Finished;

    /// What rings when a job is done or gone.
    fn bell(&self) -> Arc<Waiters>;

    /// The status of a job; `None` if it does not exist.
    fn status(&self, job: &JobKey) -> Option<Status>;

    /// The last 8 KiB of the job's stderr; `None` if it does not exist.
    ///
    /// # Errors
    /// [`StoreUnavailable`] if it cannot be read now.
    fn log(&self, job: &JobKey) -> Result<Option<Vec<u8>>, StoreUnavailable>;

    /// The result, which stays.
    fn peek(&self, job: &JobKey) -> Lookup;

    /// The result, taken out for delivery: the caller must [`confirm`](Self::confirm) or
    /// [`restore`](Self::restore) it.
    fn collect(&self, job: &JobKey) -> Lookup;

    /// The collected result was delivered: its job is gone.
    fn confirm(&self, job: &JobKey);

    /// The collected result was not delivered: it is back, unless it was deleted in bulk meanwhile.
    fn restore(&self, job: &JobKey);

    /// Cancels a job: one that waits is done with `410`, a running one is told to stop, a done one
    /// stays as it is. `false` if it does not exist.
    ///
    /// # Errors
    /// [`StoreUnavailable`]: it is cancelled, and that is not durable yet.
    fn cancel(&self, job: &JobKey, now: Stamp) -> Result<bool, StoreUnavailable>;

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

    /// Forgets every result, whoever owns it, that came to be strictly before `before`, and the
    /// idempotency keys of jobs accepted before that and gone; returns how many results.
    fn expire_results(&self, before: Stamp) -> usize;

    /// At most `count` ids of `owner`, ascending.
    fn list(&self, owner: &Owner, list: List, count: usize) -> Vec<JobId>;

    /// Every id, whoever owns it, of both lists.
    fn remaining(&self) -> Vec<JobId>;

    /// Waits until all that was handed over before is durable.
    ///
    /// # Errors
    /// [`StoreUnavailable`] where that cannot be had now.
    fn flush(&self) -> Result<(), StoreUnavailable>;

    /// Ends orderly; the ids of the jobs that end with the process.
    fn close(&self) -> Vec<JobId>;
}
