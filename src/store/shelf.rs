//! A shelf of the memory store: records ordered by timestamp, for expiry, and found by id.
//!
//! Owns the two orders and keeps them in step. Knows nothing of states, owners and locks. Invariant: an id
//! is in both maps or in neither.

use std::collections::BTreeMap;

use crate::job::{JobId, Stamp};

/// Records ordered by timestamp, for expiry, with the way from an id to them.
pub struct Shelf<T> {
    by_stamp: BTreeMap<(Stamp, JobId), Box<T>>,
    stamps: BTreeMap<JobId, Stamp>,
}

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Self { by_stamp: BTreeMap::new(), stamps: BTreeMap::new() }
    }
}

impl<T> Shelf<T> {
    /// Puts a record on the shelf.
    pub fn put(&mut self, id: JobId, stamp: Stamp, record: Box<T>) {
        self.stamps.insert(id, stamp);
        self.by_stamp.insert((stamp, id), record);
    }

    /// Takes a record by its id.
    pub fn take(&mut self, id: JobId) -> Option<Box<T>> {
        let stamp = self.stamps.remove(&id)?;
        self.by_stamp.remove(&(stamp, id))
    }

    /// A record by its id.
    pub fn get(&self, id: JobId) -> Option<&T> {
        let stamp = *self.stamps.get(&id)?;
        self.by_stamp.get(&(stamp, id)).map(Box::as_ref)
    }

    /// A record by its id, to be changed.
    pub fn get_mut(&mut self, id: JobId) -> Option<&mut T> {
        let stamp = *self.stamps.get(&id)?;
        self.by_stamp.get_mut(&(stamp, id)).map(Box::as_mut)
    }

    /// The ids, ascending.
    pub fn ids(&self) -> impl Iterator<Item = JobId> {
        self.stamps.keys().copied()
    }

    /// Takes the oldest record, if it is stamped strictly before `before`.
    pub fn take_before(&mut self, before: Stamp) -> Option<(JobId, Box<T>)> {
        let oldest = self.by_stamp.first_entry().filter(|entry| entry.key().0 < before)?;
        let ((_, id), record) = oldest.remove_entry();
        self.stamps.remove(&id);
        Some((id, record))
    }

    /// Every record, with its id; the oldest first.
    pub fn into_records(self) -> impl Iterator<Item = (JobId, Box<T>)> {
        self.by_stamp.into_iter().map(|((_, id), record)| (id, record))
    }

    /// Whether nothing is on it.
    pub fn is_empty(&self) -> bool {
        self.stamps.is_empty()
    }
}
