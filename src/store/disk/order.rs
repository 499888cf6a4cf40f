//! An order to the writer: a change of what is on disk, and what follows when it is durable.
//!
//! Owns what each change means for room and for jobs. `transaction` decides how it falls upon the tables. Invariant:
//! made twice in the same order, changes come to the same: so a commit that failed can be tried again.

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

/// What the writer is to do.
pub struct Order {
    /// The change.
    pub change: Change,
    /// What the ledger learns when it is durable.
    pub on_durable: OnDurable,
    /// Which thread waits for it.
    pub ack: Ack,
    /// Whether it is worth a commit of its own.
    pub urgency: Urgency,
    /// The files that no record names any more once it is durable.
    pub unnamed: BTreeSet<FileName>,
}

impl Order {
    /// Returns an order.
    pub const fn new(change: Change, on_durable: OnDurable, ack: Ack, urgency: Urgency) -> Self {
        Self { change, on_durable, ack, urgency, unnamed: BTreeSet::new() }
    }

    /// Whether nothing depends on it.
    pub fn is_void(&self) -> bool {
        let nothing =
            matches!(self.on_durable, OnDurable::Nothing) && matches!(self.ack, Ack::None);
        nothing && self.change.is_void()
    }
}

/// What the ledger learns when a change is durable.
#[derive(Debug)]
pub enum OnDurable {
    /// Nothing: it knows already.
    Nothing,
    /// The job is accepted, and enters the schedule.
    Accept(JobKey, Box<DiskPending>, Keep),
    /// The request of the job, which is accepted already, need not be kept in memory.
    FlushRequest(JobKey),
    /// The job is done, with such a result, since then; and its notices are accepted.
    Finish(JobKey, Summary, Moment, Accepted),
    /// The result of the job, which is done already, need not be kept in memory; and its notices are accepted.
    FlushResult(JobKey, Accepted),
}

/// Notices that enter the schedule with the result of their job.
pub type Accepted = Vec<(JobKey, Box<DiskPending>)>;

/// Which thread waits for a change.
pub enum Ack {
    /// None.
    None,
    /// One that wants to know soon, one way or the other.
    Soon(Promise),
    /// One that can only go on when it is durable.
    Durable(Promise),
}

/// How much a change matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// It is committed at once.
    Urgent,
    /// It goes with the next urgent one, or a little later.
    Lazy,
}

/// A change of what is on disk.
#[derive(Debug)]
pub enum Change {
    /// None: to wait for those before.
    Nothing,
    /// None: to wait for those before that make room.
    Settled,
    /// A job is there.
    Accept(Box<NewJob>),
    /// A job was claimed, and so many processes have begun it.
    Claim(JobId, u32),
    /// A job that ran waits again.
    Retry(JobId),
    /// A pending job is done.
    Finish(JobId, Box<End>),
    /// A result was collected: all of the job goes but its log, for which there is this record.
    KeepLog(JobId, Box<Record>),
    /// No client can ask for these jobs any more: results go, pending jobs go on.
    Forget(Vec<JobId>),
    /// These jobs are gone.
    Remove(Vec<JobId>),
    /// This job, which may have been accepted, was not.
    Withdraw(Box<NewJob>),
    /// These keys stand for nothing any more.
    RemoveKeys(Vec<(Owner, Box<str>)>),
}

/// What is left of a job that is done.
#[derive(Debug)]
pub struct End {
    /// Its result; `None` if no client can ask for it.
    pub kept: Option<(Record, Arc<StoredResult>)>,
    /// The notices that it leads to.
    pub notices: Vec<NewJob>,
}

/// A job that comes to be.
#[derive(Debug)]
pub struct NewJob {
    /// Its id.
    pub id: JobId,
    /// All but its request.
    pub record: Record,
    /// The room that is kept for its notices, in bytes: it is accounted with it beside the record's footprint.
    pub room: usize,
    /// When it was accepted, by the clock by which its key expires, as it is kept.
    pub aged: i64,
    /// Its request's message up to the content, and that.
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
    /// About how much memory it holds, in bytes.
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

    /// Whether it changes nothing.
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

    /// Whether jobs come to be by it.
    pub fn accepts(&self) -> bool {
        match self {
            Self::Accept(_) => true,
            Self::Finish(_, end) => !end.notices.is_empty(),
            _ => false,
        }
    }

    /// Whether it takes room in the file that it may not get.
    pub const fn takes_room(&self) -> bool {
        matches!(self, Self::Accept(_) | Self::Finish(..))
    }

    /// Whether it frees pages of the file, be it by putting something smaller in their place.
    pub const fn may_free(&self) -> bool {
        self.makes_room() || matches!(self, Self::Finish(..))
    }

    /// Whether it makes room in the file.
    pub const fn makes_room(&self) -> bool {
        let removes = matches!(self, Self::Remove(_) | Self::RemoveKeys(_) | Self::Withdraw(_));
        removes || matches!(self, Self::Forget(_) | Self::KeepLog(..))
    }

    /// The file that it names, or, taken back, named.
    pub fn file(&self) -> Option<&Arc<ContentFile>> {
        let content = match self {
            Self::Accept(job) | Self::Withdraw(job) => &job.request.1,
            Self::Finish(_, end) => end.kept.as_ref()?.1.response.body(),
            _ => return None,
        };
        content.in_file().map(|(file, _)| file)
    }

    /// The jobs that it changes.
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

    /// What takes it back, where it is the acceptance of a job: without what of its request is in memory, which
    /// is not needed for that.
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
