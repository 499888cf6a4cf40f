//! The index of records by timestamp, for expiry, and by id; and the records of one owner.
//!
//! Owns the two orders and keeps them consistent. Knows nothing of transitions and locks. Invariant: an id is in both
//! maps of its index or in neither.

use std::collections::btree_map::Range;
use std::collections::{BTreeMap, BTreeSet};
use std::iter::Rev;
use std::ops::Bound;

use super::job::{Done, Pending};
use super::logs::Logs;
use super::records::Order;
use crate::job::{Age, JobId, Stamp};

/// Records ordered by timestamp, for expiry, and indexed by id.
pub struct TimeIndex<T> {
    /// The records by id: a record is looked up many times between its insertion and its end, always by its id.
    records: BTreeMap<JobId, (Stamp, Box<T>)>,
    by_stamp: BTreeSet<(Stamp, JobId)>,
}

impl<T> Default for TimeIndex<T> {
    fn default() -> Self {
        Self { records: BTreeMap::new(), by_stamp: BTreeSet::new() }
    }
}

impl<T> TimeIndex<T> {
    /// Inserts a record.
    pub fn insert(&mut self, id: JobId, stamp: Stamp, record: Box<T>) {
        self.records.insert(id, (stamp, record));
        self.by_stamp.insert((stamp, id));
    }

    /// Removes and returns a record by its id.
    pub fn take(&mut self, id: JobId) -> Option<Box<T>> {
        let (stamp, record) = self.records.remove(&id)?;
        self.by_stamp.remove(&(stamp, id));
        Some(record)
    }

    /// Returns a record by its id.
    pub fn get(&self, id: JobId) -> Option<&T> {
        self.records.get(&id).map(|(_, record)| record.as_ref())
    }

    /// Returns a record by its id, to be changed.
    pub fn get_mut(&mut self, id: JobId) -> Option<&mut T> {
        self.records.get_mut(&id).map(|(_, record)| record.as_mut())
    }

    /// Returns the ids, ascending.
    pub fn ids(&self) -> impl Iterator<Item = JobId> {
        self.records.keys().copied()
    }

    /// Returns the ids after `after` in this order; all of them if it is `None`.
    pub fn ids_behind(&self, after: Option<JobId>, order: Order) -> Ids<'_, T> {
        let behind = after.map_or(Bound::Unbounded, Bound::Excluded);
        match order {
            Order::Ascending => Ids::Up(self.records.range((behind, Bound::Unbounded))),
            Order::Descending => Ids::Down(self.records.range((Bound::Unbounded, behind)).rev()),
        }
    }

    /// Removes and returns the oldest record, if it is stamped strictly before `before`.
    pub fn take_before(&mut self, before: Stamp) -> Option<(JobId, Box<T>)> {
        let (_, id) = self.by_stamp.first().filter(|(stamp, _)| *stamp < before).copied()?;
        Some((id, self.take(id)?))
    }

    /// Returns every record, with its id, ascending.
    pub fn into_records(self) -> impl Iterator<Item = (JobId, Box<T>)> {
        self.records.into_iter().map(|(id, (_, record))| (id, record))
    }

    /// Returns how many records there are.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Returns every record with its id, ascending.
    pub fn records(&self) -> impl Iterator<Item = (JobId, &T)> {
        self.records.iter().map(|(id, (_, record))| (*id, record.as_ref()))
    }

    /// Returns whether it has no records.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}

/// Ids of an index, in either order.
pub enum Ids<'a, T> {
    /// The lowest first.
    Up(Range<'a, JobId, (Stamp, Box<T>)>),
    /// The highest first.
    Down(Rev<Range<'a, JobId, (Stamp, Box<T>)>>),
}

impl<T> Iterator for Ids<'_, T> {
    type Item = JobId;

    fn next(&mut self) -> Option<JobId> {
        let next = match self {
            Self::Up(ids) => ids.next(),
            Self::Down(ids) => ids.next(),
        };
        next.map(|(id, _)| *id)
    }
}

/// The jobs of one owner. Created for its first job, dropped when the last one is gone.
pub struct Jobs<Q, R> {
    /// Waiting, delayed, running or finishing jobs.
    pub pending: TimeIndex<Pending<Q>>,
    /// Jobs with a result.
    pub done: TimeIndex<Done<R>>,
    /// Collected results that are neither confirmed nor restored yet.
    pub in_delivery: TimeIndex<Done<R>>,
    /// The order in which the jobs in `done` expire.
    pub(super) ages: BTreeSet<(Age, JobId)>,
    /// The logs of jobs whose results were collected.
    pub(super) logs: Logs,
    /// The accounted size of `done`, `in_delivery` and `logs`, so that forgetting all of them needs no count.
    pub result_bytes: usize,
}

/// Removed results, which must be dropped without the lock.
pub type Results<R> = Vec<(JobId, Box<Done<R>>)>;

/// The range of a deletion by time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Results that can be collected and were produced before this by the clock that cannot be set.
    Expired(Age),
    /// Results that are stamped before this, including those in delivery: if their delivery fails, they are not
    /// restored.
    Stamped(Stamp),
}

/// The records of an owner whose jobs were all forgotten, which must be dropped without the lock.
pub struct Cleared<R> {
    /// The jobs whose work goes on.
    pub pending: Vec<JobId>,
    pub(super) done: TimeIndex<Done<R>>,
    pub(super) in_delivery: TimeIndex<Done<R>>,
    #[expect(dead_code, reason = "it is there to be dropped")]
    pub(super) ages: BTreeSet<(Age, JobId)>,
    pub(super) logs: Logs,
}

impl<R> Cleared<R> {
    /// Returns the jobs whose results, or kept logs, were removed.
    pub fn results(&self) -> impl Iterator<Item = JobId> {
        self.done.ids().chain(self.in_delivery.ids()).chain(self.logs.keys().copied())
    }
}

impl<Q, R> Default for Jobs<Q, R> {
    fn default() -> Self {
        Self {
            pending: TimeIndex::default(),
            done: TimeIndex::default(),
            in_delivery: TimeIndex::default(),
            ages: BTreeSet::new(),
            logs: Logs::new(),
            result_bytes: 0,
        }
    }
}

impl<Q, R> Jobs<Q, R> {
    /// Returns whether this owner has no jobs and no logs.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
            && self.done.is_empty()
            && self.in_delivery.is_empty()
            && self.logs.is_empty()
    }

    /// Inserts a result.
    pub fn insert_done(&mut self, id: JobId, done: Box<Done<R>>) {
        self.ages.insert((done.age, id));
        self.done.insert(id, done.finished, done);
    }

    /// Removes and returns a result that can be collected.
    pub fn take_done(&mut self, id: JobId) -> Option<Box<Done<R>>> {
        let done = self.done.take(id)?;
        self.ages.remove(&(done.age, id));
        Some(done)
    }

    /// Removes and returns the oldest result within reach, if there is one.
    pub fn take_result(&mut self, reach: Reach) -> Option<(JobId, Box<Done<R>>)> {
        match reach {
            Reach::Expired(before) => {
                let (_, id) = self.ages.first().filter(|(age, _)| *age < before).copied()?;
                Some((id, self.take_done(id)?))
            }
            Reach::Stamped(before) => {
                if let Some((id, done)) = self.done.take_before(before) {
                    self.ages.remove(&(done.age, id));
                    return Some((id, done));
                }
                self.in_delivery.take_before(before)
            }
        }
    }

    /// Returns whether the range includes the job.
    pub fn has(&self, id: JobId) -> bool {
        let pending = self.pending.get(id).is_some();
        pending || self.done.get(id).is_some() || self.in_delivery.get(id).is_some()
    }
}
