//! An order to the writer: a change of what is on disk, and what follows once it is durable.
//!
//! Owns what each change means for room and for jobs. `transaction` translates it into rows of the tables. Invariant:
//! making the same changes twice in the same order has the same result as making them once, so a failed commit can be
//! repeated.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;

use super::outcome::Promise;
use super::record::Record;
use super::state::DiskPending;
use crate::content::{Content, ContentFile};
use crate::exchange::Owner;
use crate::files::FileName;
use crate::job::stored::{StoredResult, Summary};
use crate::job::{JobId, JobKey, Keep, Moment};
use crate::store::IdempotencyKey;

/// What the writer must do.
pub struct Order {
    /// The change.
    pub change: Change,
    /// What the ledger learns once the change is durable.
    pub on_durable: OnDurable,
    /// The thread that waits for it.
    pub ack: Ack,
    /// Whether it is worth a commit of its own.
    pub urgency: Urgency,
    /// The files that no record names once it is durable.
    pub unnamed: BTreeSet<FileName>,
}

impl Order {
    /// Returns an order.
    pub const fn new(change: Change, on_durable: OnDurable, ack: Ack, urgency: Urgency) -> Self {
        Self { change, on_durable, ack, urgency, unnamed: BTreeSet::new() }
    }

    /// Returns whether nothing depends on it.
    pub fn is_void(&self) -> bool {
        let nothing =
            matches!(self.on_durable, OnDurable::Nothing) && matches!(self.ack, Ack::None);
        nothing && self.change.is_void()
    }
}

/// What the ledger learns once a change is durable.
#[derive(Debug)]
pub enum OnDurable {
    /// Nothing: it knows already.
    Nothing,
    /// The job is accepted, and enters the schedule.
    Accept(JobKey, Box<DiskPending>, Keep),
    /// The request of the job, which is already accepted, need no longer be kept in memory.
    FlushRequest(JobKey),
    /// The job is done, with this result, at this time; and its notices are accepted.
    Finish(JobKey, Summary, Moment, Accepted),
    /// The result of the job, which is already done, need no longer be kept in memory; and its notices are accepted.
    FlushResult(JobKey, Accepted),
}

/// Notices that enter the schedule with the result of their job.
pub type Accepted = Vec<(JobKey, Box<DiskPending>)>;

/// The thread that waits for a change.
pub enum Ack {
    /// None.
    None,
    /// A thread that needs a quick answer, good or bad.
    Soon(Promise),
    /// A thread that can only continue once the change is durable.
    Durable(Promise),
}

/// How urgent a change is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// It is committed at once.
    Urgent,
    /// It is committed with the next urgent change, or a little later.
    Lazy,
}

/// A change of what is on disk.
#[derive(Debug)]
pub enum Change {
    /// No change: serves to wait for all earlier ones.
    Nothing,
    /// No change: serves to wait for the earlier ones that make room.
    Settled,
    /// A job was accepted.
    Accept(Box<NewJob>),
    /// A job was claimed; it has now been begun by this many processes.
    Claim(JobId, u32),
    /// A running job waits again.
    Retry(JobId),
    /// A pending job is done.
    Finish(JobId, Box<End>),
    /// A result was collected: all of the job is removed except its log, which has this record.
    KeepLog(JobId, Box<Record>),
    /// No client can ask for these jobs any more: results are removed, pending jobs go on.
    Forget(Vec<JobId>),
    /// These jobs are removed.
    Remove(Vec<JobId>),
    /// This job was refused; an earlier commit may have accepted it.
    Withdraw(Box<NewJob>),
    /// These keys are removed.
    RemoveKeys(Vec<(Owner, Box<str>)>),
}

/// What remains of a job that is done.
#[derive(Debug)]
pub struct End {
    /// Its result; `None` if no client can ask for it.
    pub kept: Option<(Record, Arc<StoredResult>)>,
    /// The notices that it causes.
    pub notices: Vec<NewJob>,
}

/// A job that is being accepted.
#[derive(Debug)]
pub struct NewJob {
    /// Its id.
    pub id: JobId,
    /// All of it except its request.
    pub record: Record,
    /// The room that is reserved for its notices, in bytes: the account of the job has it in addition to the record's
    /// footprint.
    pub room: usize,
    /// When it was accepted, as the age that is stored: it decides when its key expires.
    pub aged: i64,
    /// Its request's message up to the content, and the content.
    pub request: (Vec<u8>, Content),
    /// Its idempotency key.
    pub key: Option<IdempotencyKey>,
}

impl NewJob {
    /// Returns how much memory its request takes, in bytes.
    fn size(&self) -> usize {
        let (head, content) = &self.request;
        head.len() + content.in_memory().map_or(0, Bytes::len)
    }
}

impl Change {
    /// Estimates how much memory it holds, in bytes.
    pub fn size(&self) -> usize {
        match self {
            Self::Accept(job) => job.size(),
            Self::Finish(_, end) => {
                let kept = end.kept.as_ref().map_or(0, |(_, result)| {
                    let in_file = result.response.body().in_file();
                    result.footprint() - in_file.map_or(0, |(_, range)| range.len())
                });
                kept + end.notices.iter().map(NewJob::size).sum::<usize>()
            }
            Self::Forget(ids) | Self::Remove(ids) => 8 * ids.len(),
            Self::Nothing
            | Self::Settled
            | Self::Claim(..)
            | Self::Retry(_)
            | Self::KeepLog(..)
            | Self::Withdraw(_)
            | Self::RemoveKeys(_) => 0,
        }
    }

    /// Returns whether it changes nothing.
    pub const fn is_void(&self) -> bool {
        match self {
            Self::Nothing | Self::Settled => true,
            Self::Forget(ids) | Self::Remove(ids) => ids.is_empty(),
            Self::RemoveKeys(keys) => keys.is_empty(),
            Self::Accept(_)
            | Self::Claim(..)
            | Self::Retry(_)
            | Self::KeepLog(..)
            | Self::Finish(..)
            | Self::Withdraw(_) => false,
        }
    }

    /// Returns whether it accepts jobs.
    pub fn accepts(&self) -> bool {
        match self {
            Self::Accept(_) => true,
            Self::Finish(_, end) => !end.notices.is_empty(),
            _ => false,
        }
    }

    /// Returns whether it takes room in the file, which may not be available.
    pub const fn takes_room(&self) -> bool {
        matches!(self, Self::Accept(_) | Self::Finish(..))
    }

    /// Returns whether it frees pages of the file, if only by replacing content with something smaller.
    pub const fn may_free(&self) -> bool {
        self.makes_room() || matches!(self, Self::Finish(..))
    }

    /// Returns whether it makes room in the file.
    pub const fn makes_room(&self) -> bool {
        let removes = matches!(self, Self::Remove(_) | Self::RemoveKeys(_) | Self::Withdraw(_));
        removes || matches!(self, Self::Forget(_) | Self::KeepLog(..))
    }

    /// Returns the file that it names, or, if it withdraws a submission, the file that the submission named.
    pub fn file(&self) -> Option<&Arc<ContentFile>> {
        let content = match self {
            Self::Accept(job) | Self::Withdraw(job) => &job.request.1,
            Self::Finish(_, end) => end.kept.as_ref()?.1.response.body(),
            _ => return None,
        };
        content.in_file().map(|(file, _)| file)
    }

    /// Returns the jobs that it changes.
    pub fn jobs(&self) -> &[JobId] {
        match self {
            Self::Nothing | Self::Settled | Self::RemoveKeys(_) => &[],
            Self::Accept(job) | Self::Withdraw(job) => std::slice::from_ref(&job.id),
            Self::Claim(id, _) | Self::Retry(id) | Self::KeepLog(id, _) | Self::Finish(id, _) => {
                std::slice::from_ref(id)
            }
            Self::Forget(ids) | Self::Remove(ids) => ids,
        }
    }

    /// Returns the change that withdraws it, if it accepts a job; without the part of the request that is in memory,
    /// which that change does not need.
    #[must_use]
    pub fn withdrawn(self) -> Self {
        match self {
            Self::Accept(mut job) => {
                let content = std::mem::take(&mut job.request).1;
                if content.in_file().is_some() {
                    job.request.1 = content;
                }
                Self::Withdraw(job)
            }
            other => other,
        }
    }
}
