//! A file of content, from the first byte that does not fit into memory to the last share of it.
//!
//! Owns the life of a file that no record names, what that is charged with, and the descriptor, which is open while
//! the file is written and read. Invariants: a file that no record names goes with the last share of it; until then
//! its bytes are charged to the disk's budget, from then on the record accounts for them; what only waits holds no
//! descriptor.

use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use crate::files::{FileName, Files, OpenFile};
use crate::memory::Charge;

/// A file of content, removed when it is dropped unless a record may name it.
pub struct ContentFile {
    name: FileName,
    folder: Arc<dyn Files>,
    /// `None` while it is not used.
    file: RwLock<Option<Arc<dyn OpenFile>>>,
    /// Whether a record may name it.
    is_kept: AtomicBool,
    /// What it takes of the disk while none does.
    charge: Mutex<Option<Charge>>,
}

impl ContentFile {
    /// Makes a file, which is charged to `charge` until it is kept.
    ///
    /// # Errors
    /// Those of the system.
    pub fn create(folder: &Arc<dyn Files>, charge: Charge) -> io::Result<Self> {
        let name = folder.new_name();
        // What failed may be there.
        let file = folder.create(name).inspect_err(|_| drop(folder.remove(name)))?;
        Ok(Self {
            name,
            folder: Arc::clone(folder),
            file: RwLock::new(Some(file)),
            is_kept: AtomicBool::new(false),
            charge: Mutex::new(Some(charge)),
        })
    }

    /// Returns a file that a record names.
    pub fn kept(folder: &Arc<dyn Files>, name: FileName) -> Self {
        Self {
            name,
            folder: Arc::clone(folder),
            file: RwLock::new(None),
            is_kept: AtomicBool::new(true),
            charge: Mutex::new(None),
        }
    }

    /// Returns its name.
    pub const fn name(&self) -> FileName {
        self.name
    }

    /// Says that a record may name it from now on: then it stays.
    pub fn keep(&self) {
        self.is_kept.store(true, Ordering::Release);
        // From now on the record accounts for it.
        drop(self.charge().take());
    }

    /// Says that no record names it: then it goes with the last share of it.
    pub fn give_up(&self) {
        self.is_kept.store(false, Ordering::Release);
    }

    /// Opens it, so that it can be read whatever becomes of its name, and checks that it has `len` bytes.
    ///
    /// # Errors
    /// Those of the system; `UnexpectedEof` if it is shorter.
    pub fn open(&self, len: u64) -> io::Result<()> {
        if self.opened()?.size()? < len { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    /// Closes its descriptor until it is read again.
    pub fn close(&self) {
        self.file.write().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Returns it open.
    ///
    /// # Errors
    /// Those of the system.
    pub fn opened(&self) -> io::Result<Arc<dyn OpenFile>> {
        if let Some(file) = &*self.file.read().unwrap_or_else(PoisonError::into_inner) {
            return Ok(Arc::clone(file));
        }
        let mut place = self.file.write().unwrap_or_else(PoisonError::into_inner);
        let file = place.take().map_or_else(|| self.folder.open(self.name), Ok)?;
        Ok(Arc::clone(place.insert(file)))
    }

    /// Reads from offset `at` until `target` is full.
    ///
    /// # Errors
    /// Those of the system; `UnexpectedEof` if the file is shorter.
    pub fn read_exact_at(&self, at: u64, target: &mut [u8]) -> io::Result<()> {
        let file = self.opened()?;
        let mut done = 0;
        while done < target.len() {
            match file.read_at(at + done as u64, &mut target[done..]) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(n) => done += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes all of `bytes` from offset `at` on; the disk's budget is charged for them.
    ///
    /// # Errors
    /// Those of the system; `QuotaExceeded` if they do not fit beside what else is under way.
    pub fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        if let Some(charge) = &mut *self.charge() {
            charge.grow(bytes.len()).map_err(|_| ErrorKind::QuotaExceeded)?;
        }
        self.opened()?.write_at(at, bytes)
    }

    /// Makes durable what it contains, and closes it.
    ///
    /// # Errors
    /// Those of the system.
    pub fn sync(&self) -> io::Result<()> {
        self.opened()?.sync()?;
        self.close();
        Ok(())
    }

    fn charge(&self) -> MutexGuard<'_, Option<Charge>> {
        self.charge.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ContentFile {
    fn drop(&mut self) {
        if !self.is_kept.load(Ordering::Acquire)
            && let Err(error) = self.folder.remove(self.name)
        {
            log::warn!("content/{} stays until the next start: {error}", self.name);
        }
    }
}
