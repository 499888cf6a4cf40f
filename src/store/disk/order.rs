//! A change of what is on disk, as the ledger hands it to the writer.
//!
//! Owns what each change means for room and for jobs. How it falls upon the tables is `tables`'. Invariant:
//! made twice in the same order, changes come to the same: so a commit that failed can be tried again.

use bytes::Bytes;

use super::record::Record;
use crate::exchange::Owner;
use crate::job::JobId;
use crate::job::stored::StoredResult;
use crate::store::IdempotencyKey;

/// A change of what is on disk.
#[derive(Debug)]
pub enum Change {
    /// None: to wait for those before.
    Nothing,
    /// None: to wait for those before that make room.
    Settled,
    /// A job is there.
    Accept(Box<NewJob>),
    /// A job runs.
    Start(JobId),
    /// A pending job is done.
    Finish(JobId, Box<(Record, StoredResult)>),
    /// Nobody can ask for these jobs any more: results go, pending jobs go on.
    Forget(Vec<JobId>),
    /// These jobs are gone.
    Remove(Vec<JobId>),
    /// This job, which may have been accepted, was not.
    Withdraw(Box<NewJob>),
    /// These keys stand for nothing any more.
    RemoveKeys(Vec<(Owner, Box<str>)>),
}

/// A job that comes to be.
#[derive(Debug)]
pub struct NewJob {
    /// Its id.
    pub id: JobId,
    /// All but its request.
    pub record: Record,
    /// Its request's message up to the content, and that.
    pub request: (Vec<u8>, Bytes),
    /// Its idempotency key.
    pub key: Option<IdempotencyKey>,
}

impl Change {
    /// About how much memory it holds, in bytes.
    pub fn size(&self) -> usize {
        match self {
            Self::Accept(job) => job.request.0.len() + job.request.1.len(),
            Self::Finish(_, end) => end.1.footprint(),
            Self::Forget(ids) | Self::Remove(ids) => 8 * ids.len(),
            Self::Nothing
            | Self::Settled
            | Self::Start(_)
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
            Self::Accept(_) | Self::Start(_) | Self::Finish(..) | Self::Withdraw(_) => false,
        }
    }

    /// Whether it takes room in the file that it may not get.
    pub const fn takes_room(&self) -> bool {
        matches!(self, Self::Accept(_) | Self::Finish(..))
    }

    /// Whether it makes room in the file.
    pub const fn makes_room(&self) -> bool {
        let removes = matches!(self, Self::Remove(_) | Self::RemoveKeys(_) | Self::Withdraw(_));
        removes || matches!(self, Self::Forget(_))
    }

    /// The jobs that it changes.
    pub fn jobs(&self) -> &[JobId] {
        match self {
            Self::Nothing | Self::Settled | Self::RemoveKeys(_) => &[],
            Self::Accept(job) | Self::Withdraw(job) => std::slice::from_ref(&job.id),
            Self::Start(id) | Self::Finish(id, _) => std::slice::from_ref(id),
            Self::Forget(ids) | Self::Remove(ids) => ids,
        }
    }

    /// What takes it back, where it is the acceptance of a job: without its request, which is not
    /// needed for that.
    #[must_use]
    pub fn withdrawn(self) -> Self {
        match self {
            Self::Accept(mut job) => {
                job.request = <_>::default();
                Self::Withdraw(job)
            }
            other => other,
        }
    }
}
