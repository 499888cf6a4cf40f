//! The ranges that were written and not yet synced, so that they can be written again after a failed sync.
//!
//! Owns those ranges. Knows nothing of files and jobs. Invariant: until a sync succeeds, every range written since the
//! last successful one can be written again, because after a failed sync the kernel may treat pages that it could not
//! write as clean.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

/// Storage whose unsynced ranges can be written again; clones share the same storage.
#[derive(Clone, Debug)]
pub struct DirtyRanges<B> {
    storage: B,
    written: Arc<Mutex<Ranges>>,
}

/// Ranges of bytes, from offset to end, none of which overlap or touch.
#[derive(Debug, Default)]
struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    fn add(&mut self, mut from: u64, mut to: u64) {
        while let Some((&other, &end)) = self.0.range(..=to).next_back()
            && end >= from
        {
            self.0.remove(&other);
            (from, to) = (from.min(other), to.max(end));
        }
        self.0.insert(from, to);
    }
}

impl<B: StorageBackend> DirtyRanges<B> {
    /// Wraps storage that is completely synced.
    pub fn new(storage: B) -> Self {
        Self { storage, written: Arc::default() }
    }

    fn written(&self) -> MutexGuard<'_, Ranges> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes all unsynced ranges again, as they read now, so that the next sync covers all of them.
    ///
    /// # Errors
    /// Errors of the storage.
    pub fn rewrite(&self) -> io::Result<()> {
        let len = self.storage.len()?;
        let mut bytes = Vec::new();
        for (&from, &to) in &self.written().0 {
            let length = to.min(len).saturating_sub(from);
            bytes.resize(usize::try_from(length).map_err(io::Error::other)?, 0);
            self.storage.read(from, &mut bytes)?;
            self.storage.write(from, &bytes)?;
        }
        Ok(())
    }
}

impl<B: StorageBackend> StorageBackend for DirtyRanges<B> {
    fn len(&self) -> io::Result<u64> {
        self.storage.len()
    }

    fn read(&self, offset: u64, target: &mut [u8]) -> io::Result<()> {
        self.storage.read(offset, target)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.storage.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        // Taken before the sync, so that ranges written in the meantime are kept.
        let synced = std::mem::take(&mut *self.written());
        self.storage.sync_data().inspect_err(|_| {
            let mut written = self.written();
            synced.0.into_iter().for_each(|(from, to)| written.add(from, to));
        })
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.written().add(offset, offset + bytes.len() as u64);
        self.storage.write(offset, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adjacent_ranges_are_merged() {
        let mut ranges = Ranges::default();
        for (from, to) in [(10, 20), (40, 50), (0, 5), (20, 30), (12, 14), (4, 10), (29, 41)] {
            ranges.add(from, to);
        }
        assert_eq!(ranges.0.into_iter().collect::<Vec<_>>(), [(0, 50)]);
    }
}
