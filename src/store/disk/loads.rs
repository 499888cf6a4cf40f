//! Messages in memory while they are used: each is read from the tables once, and charged.
//!
//! Owns the charges for messages that are read, and the results that several readers share. Does not know what a
//! message means. Invariants: a result that many clients read is in memory once; large messages are read one at a
//! time, because redb has a copy of its own while one is read.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;

use super::tables::TableError;
use crate::content::SMALL;
use crate::job::JobId;
use crate::memory::{Allowance, Charge, NoRoom};

/// The size from which a message is shared, and read alone, in bytes.
const LARGE: usize = 64 * 1024;

/// Why a message was not read.
pub enum Unloaded {
    /// There is no memory for it at this moment.
    NoMemory,
    /// It needs more than the whole memory.
    TooLarge,
    /// The tables cannot be read.
    TableError(TableError),
    /// The message differs from what was written, and is lost.
    Damaged(String),
}

impl From<TableError> for Unloaded {
    fn from(fault: TableError) -> Self {
        Self::TableError(fault)
    }
}

impl From<NoRoom> for Unloaded {
    fn from(NoRoom: NoRoom) -> Self {
        Self::NoMemory
    }
}

/// The messages that are being read or used.
pub struct Loads {
    memory: Allowance,
    /// The large results that a client still reads.
    shared: Mutex<HashMap<JobId, Weak<Bytes>>>,
}

/// A shared reference to a result.
struct Shared(Arc<Bytes>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Loads {
    /// Begins without messages; those that are read are charged to `memory`.
    pub fn new(memory: Allowance) -> Self {
        Self { memory, shared: Mutex::default() }
    }

    /// Reads a result of about `size` bytes by `read`, which takes the charge for it; or shares the one that other
    /// clients are already reading.
    ///
    /// # Errors
    /// [`Unloaded`].
    pub fn result(
        &self,
        job: JobId,
        size: usize,
        read: impl FnOnce(Charge) -> Result<Option<Bytes>, TableError>,
    ) -> Result<Option<Bytes>, Unloaded> {
        if size < LARGE {
            return self.alone(size, read);
        }
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(result) = shared.get(&job).and_then(Weak::upgrade) {
            return Ok(Some(Bytes::from_owner(Shared(result))));
        }
        shared.retain(|_, result| result.strong_count() > 0);
        let Some(result) = self.alone(size, read)? else { return Ok(None) };
        let result = Arc::new(result);
        shared.insert(job, Arc::downgrade(&result));
        Ok(Some(Bytes::from_owner(Shared(result))))
    }

    /// Reads a large message while no other large one is read, or a small one at once.
    ///
    /// # Errors
    /// [`Unloaded`].
    pub fn request(
        &self,
        size: usize,
        read: impl FnOnce(Charge) -> Result<Option<Bytes>, TableError>,
    ) -> Result<Option<Bytes>, Unloaded> {
        let _turn =
            (size >= LARGE).then(|| self.shared.lock().unwrap_or_else(PoisonError::into_inner));
        self.alone(size, read)
    }

    /// Reads a message. While it is copied out of redb, a message is in memory twice, but only one large message is:
    /// the process has redb's copy, and the heap that it leaves, as well as the content. A message that can never fit
    /// is refused: its worker would wait for ever.
    fn alone(
        &self,
        size: usize,
        read: impl FnOnce(Charge) -> Result<Option<Bytes>, TableError>,
    ) -> Result<Option<Bytes>, Unloaded> {
        let mut charge = self.memory.nothing();
        if size > SMALL {
            if size > self.memory.capacity() {
                return Err(Unloaded::TooLarge);
            }
            charge.grow(size)?;
        }
        Ok(read(charge)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::copied;
    use crate::memory::Budget;

    #[test]
    fn a_result_that_many_clients_read_is_in_memory_once() {
        let budget = Budget::new(8 * LARGE);
        let loads = Loads::new(budget.allowance());
        let job = JobId::new(7).unwrap();
        let mut reads = 0;
        let mut load = |size: usize| {
            loads.result(job, size, |charge| {
                reads += 1;
                Ok(Some(copied(&vec![b'x'; size], charge)))
            })
        };
        let readers: Vec<_> =
            (0..100).map(|_| load(2 * LARGE).ok().flatten().expect("room")).collect();
        assert!(readers.iter().all(|result| result.len() == 2 * LARGE));
        assert_eq!(budget.used(), 2 * LARGE);
        drop(readers);
        assert_eq!(budget.used(), 0);
        let held = budget.allowance().charge(1).unwrap();
        assert!(matches!(load(8 * LARGE), Err(Unloaded::NoMemory)));
        drop(held);
        assert!(load(8 * LARGE).is_ok());
        assert!(matches!(load(8 * LARGE + 1), Err(Unloaded::TooLarge)), "not even alone");
        assert!(load(LARGE).is_ok());
        assert_eq!(reads, 3);
    }
}
