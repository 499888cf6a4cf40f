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
//! - **Never evicts.** At `--max-stored` new jobs are refused; results are kept.

pub mod memory;
mod shelf;

use std::sync::Arc;

use bytes::Bytes;
use http::Response;

use crate::call::{Call, Owner};
use crate::job::execution::Execution;
use crate::job::stored::StoredResponse;
use crate::job::{JobId, Stamp};

/// What becomes of a job's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// It is kept until it is collected, deleted, or expires.
    Result,
    /// It is dropped; the job is listed nowhere (fire and forget).
    Nothing,
}

/// Why a job was not accepted; nothing of it stays behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Waiting requests and kept results have reached `--max-stored`.
    Full,
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

    /// Accepts a job.
    ///
    /// # Errors
    /// [`Refused`] when the job would not fit; nothing of it stays behind.
    fn submit(&self, call: Call, keep: Keep, now: Stamp) -> Result<JobId, Refused>;

    /// Whether a request of `bytes` would be accepted at this moment.
    fn has_room(&self, bytes: usize) -> bool;

    /// Whether the job still waits for a worker (forgotten ones do too, cancelled ones do not).
    fn is_queued(&self, job: &JobKey) -> bool;

    /// Hands a waiting job to a worker; `None` if it does not wait any more.
    fn start(&self, job: &JobKey, execution: &Arc<Execution>, now: Stamp) -> Option<Started>;

    /// Ends a running job with its result.
    fn finish(&self, job: &JobKey, response: Response<Bytes>, now: Stamp) -> Finished;

    /// The status of a job; `None` if it does not exist.
    fn status(&self, job: &JobKey) -> Option<Status>;

    /// The last 8 KiB of the job's stderr; `None` if it does not exist.
    fn log(&self, job: &JobKey) -> Option<Vec<u8>>;

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
    fn cancel(&self, job: &JobKey, now: Stamp) -> bool;

    /// Forgets a job; `false` if it does not exist.
    fn forget(&self, job: &JobKey) -> bool;

    /// Forgets every job of `owner`.
    fn forget_all(&self, owner: &Owner);

    /// Forgets the jobs of `owner` that are stamped strictly before `before`.
    fn forget_before(&self, owner: &Owner, before: Stamp);

    /// Forgets every result, whoever owns it, that came to be strictly before `before`; returns how many.
    fn expire_results(&self, before: Stamp) -> usize;

    /// At most `count` ids of `owner`, ascending.
    fn list(&self, owner: &Owner, list: List, count: usize) -> Vec<JobId>;

    /// Every id, whoever owns it, of both lists: what the end of a volatile store loses.
    fn remaining(&self) -> Vec<JobId>;
}
