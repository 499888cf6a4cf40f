//! The one file: grown with its blocks allocated, written and synced for redb.
//!
//! Owns the file's descriptor. Knows nothing of jobs. Invariant: the file grows only by blocks that the disk has
//! already allocated, so that a full disk shows when the file grows and never in the middle of it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use redb::StorageBackend;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

/// The file, shared by the backends that use it one after the other.
#[derive(Clone, Debug)]
pub struct DiskFile(Arc<File>);

impl DiskFile {
    /// Opens the file at `path`, or creates it, for its owner only.
    ///
    /// # Errors
    /// Errors of the system.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        options.open(path).map(|file| Self(Arc::new(file)))
    }
}

impl StorageBackend for DiskFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read(&self, offset: u64, target: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(target, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let old = self.len()?;
        if len > old {
            match fallocate(&*self.0, FallocateFlags::empty(), old, len - old) {
                Ok(()) => return Ok(()),
                // Some file systems cannot allocate: there, a full disk shows later.
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()?;
        if self.0.metadata()?.nlink() == 0 {
            // What is written from now on would be lost when this process ends.
            return Err(io::Error::other("the file was removed: restart deferd"));
        }
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }
}
