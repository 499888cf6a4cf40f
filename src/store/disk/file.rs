//! The one file: locked, grown with its blocks allocated, written and synced for redb.
//!
//! Owns the file's descriptor and what was written to it since it was last synced. Knows nothing of jobs.
//! Invariants: the file grows only by blocks that the disk has given already, so that a full disk shows
//! when the file grows and never in the middle of it; after a sync that failed, what it should have made
//! durable is written again, because the kernel may have given it up.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

/// The file, shared by the backends that serve it one after the other.
#[derive(Clone, Debug)]
pub struct DiskFile(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    file: File,
    /// What was written since the last sync, by offset and length; few ranges, as redb writes a
    /// commit at its end.
    unsynced: Mutex<Vec<(u64, usize)>>,
}

impl DiskFile {
    /// Opens the file at `path`, or makes it, for its owner only.
    ///
    /// # Errors
    /// Those of the system.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(path)?;
        Ok(Self(Arc::new(Inner { file, unsynced: Mutex::default() })))
    }

    fn unsynced(&self) -> MutexGuard<'_, Vec<(u64, usize)>> {
        self.0.unsynced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what was not synced once more, as the kernel shows it: what it holds as clean after
    /// a sync that failed might not be on the disk. A no-op otherwise.
    ///
    /// # Errors
    /// Those of the system.
    pub fn rewrite_unsynced(&self) -> io::Result<()> {
        let mut bytes = Vec::new();
        let len = self.0.file.metadata()?.len();
        for &(offset, length) in self.unsynced().iter() {
            let length =
                usize::try_from(len.saturating_sub(offset)).map_or(length, |l| l.min(length));
            bytes.resize(length, 0);
            self.0.file.read_exact_at(&mut bytes, offset)?;
            self.0.file.write_all_at(&bytes, offset)?;
        }
        Ok(())
    }
}

impl StorageBackend for DiskFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.file.metadata()?.len())
    }

    fn read(&self, offset: u64, target: &mut [u8]) -> io::Result<()> {
        self.0.file.read_exact_at(target, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let old = self.len()?;
        if len > old {
            match fallocate(&self.0.file, FallocateFlags::empty(), old, len - old) {
                Ok(()) => return Ok(()),
                // A file system that cannot: there a full disk shows later.
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.0.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.file.sync_data()?;
        self.unsynced().clear();
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.unsynced().push((offset, bytes.len()));
        self.0.file.write_all_at(bytes, offset)
    }
}
