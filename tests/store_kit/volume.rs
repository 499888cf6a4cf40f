//! A disk of the tests: storage for redb in memory, that a store can be opened on again and again.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use redb::StorageBackend;

/// The disk; its clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Volume(Arc<Mutex<Vec<u8>>>);

impl Volume {
    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap()
    }
}

impl StorageBackend for Volume {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes().len() as u64)
    }

    fn read(&self, offset: u64, target: &mut [u8]) -> io::Result<()> {
        let bytes = self.bytes();
        let from = offset as usize;
        let found = bytes.get(from..from + target.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        target.copy_from_slice(found);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.bytes().resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let from = offset as usize;
        self.bytes()[from..from + data.len()].copy_from_slice(data);
        Ok(())
    }
}
