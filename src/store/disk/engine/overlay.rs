//! An overlay: holds writes back until the contents of a file were verified.
//!
//! Owns what redb writes while it opens a file: redb repairs a file before deferd can check whose it is, and may write
//! to a disk that permits only reading. Knows nothing of tables. Invariants: until the overlay is committed, the
//! storage beneath does not change; then everything is written, the header last, after all that it points to is
//! durable. At the finish, the storage is not shortened: if the disk is full by then, nothing could be removed later.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use redb::StorageBackend;

use super::dirty::DirtyRanges;

/// The size of the blocks in which writes are held back, in bytes.
const BLOCK: usize = 4096;

/// Storage under an overlay; clones share the same storage.
#[derive(Clone, Debug)]
pub struct Overlay<B> {
    storage: DirtyRanges<B>,
    held: Arc<RwLock<Option<Held>>>,
    is_ending: Arc<AtomicBool>,
}

/// The writes since the overlay began; replaced by `None` at the commit.
#[derive(Debug, Default)]
struct Held {
    /// The current length of the storage.
    beneath: u64,
    /// The length that it will have.
    len: u64,
    blocks: BTreeMap<u64, Box<[u8; BLOCK]>>,
}

impl<B: StorageBackend> Overlay<B> {
    /// Begins to hold writes back.
    ///
    /// # Errors
    /// Errors of the storage.
    pub fn new(storage: DirtyRanges<B>) -> io::Result<Self> {
        let len = storage.len()?;
        let held = Held { beneath: len, len, blocks: BTreeMap::new() };
        let (held, is_ending) = (Arc::new(RwLock::new(Some(held))), Arc::default());
        Ok(Self { storage, held, is_ending })
    }

    fn held(&self) -> RwLockReadGuard<'_, Option<Held>> {
        self.held.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn held_mut(&self) -> RwLockWriteGuard<'_, Option<Held>> {
        self.held.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the block of this number from the storage.
    fn block(&self, number: u64) -> io::Result<Box<[u8; BLOCK]>> {
        let mut block = Box::new([0; BLOCK]);
        let from = number * BLOCK as u64;
        let there = self.storage.len()?.saturating_sub(from).min(BLOCK as u64);
        self.storage.read(from, &mut block[..there as usize])?;
        Ok(block)
    }
}

/// The operations of an overlay that do not depend on its storage.
pub trait HeldWrites: Send + Sync {
    /// Writes everything that was held back; from now on, writes are not held back.
    ///
    /// # Errors
    /// Errors of the storage; then writes are still held back.
    fn commit(&self) -> io::Result<()>;

    /// Returns whether writes are held back.
    fn is_open(&self) -> bool;

    /// Returns the length of the storage, in bytes.
    ///
    /// # Errors
    /// Errors of the storage.
    fn length(&self) -> io::Result<u64>;

    /// Announces that only the final writes follow.
    fn finish(&self);
}

impl<B: StorageBackend> HeldWrites for Overlay<B> {
    fn commit(&self) -> io::Result<()> {
        let mut held = self.held_mut();
        let Some(Held { len, blocks, beneath }) = &*held else { return Ok(()) };
        self.storage.rewrite()?;
        if beneath != len {
            self.storage.set_len(*len)?;
        }
        let write = |number: u64, block: &[u8; BLOCK]| {
            let from = number * BLOCK as u64;
            let there = len.saturating_sub(from).min(BLOCK as u64);
            self.storage.write(from, &block[..there as usize])
        };
        for (&number, block) in blocks.range(1..) {
            write(number, block)?;
        }
        // Also syncs what was there before: the process that wrote it may have ended before it was synced.
        self.storage.sync_data()?;
        if let Some(header) = blocks.get(&0) {
            write(0, header)?;
            self.storage.sync_data()?;
        }
        *held = None;
        Ok(())
    }

    fn is_open(&self) -> bool {
        self.held().is_some()
    }

    fn length(&self) -> io::Result<u64> {
        self.storage.len()
    }

    fn finish(&self) {
        self.is_ending.store(true, Ordering::Release);
    }
}

/// Returns the parts of a range of bytes, by block: the block's number, the place in the block, the place in the
/// range.
fn parts(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let (at, from) = (offset + done as u64, done);
        let within = (at % BLOCK as u64) as usize;
        let part = (BLOCK - within).min(length - done);
        done += part;
        (part > 0).then_some((at / BLOCK as u64, within, from..from + part))
    })
}

impl<B: StorageBackend> StorageBackend for Overlay<B> {
    fn len(&self) -> io::Result<u64> {
        self.held().as_ref().map_or_else(|| self.storage.len(), |held| Ok(held.len))
    }

    fn read(&self, offset: u64, target: &mut [u8]) -> io::Result<()> {
        let held = self.held();
        let Some(held) = held.as_ref() else { return self.storage.read(offset, target) };
        if offset + target.len() as u64 > held.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let there = held.beneath.saturating_sub(offset).min(target.len() as u64) as usize;
        self.storage.read(offset, &mut target[..there])?;
        target[there..].fill(0);
        for (number, within, part) in parts(offset, target.len()) {
            if let Some(block) = held.blocks.get(&number) {
                let length = part.len();
                target[part].copy_from_slice(&block[within..within + length]);
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        match self.held_mut().as_mut() {
            None if self.is_ending.load(Ordering::Acquire) && len < self.storage.len()? => {}
            None => return self.storage.set_len(len),
            Some(held) => held.len = len,
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.held().is_some() { Ok(()) } else { self.storage.sync_data() }
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if self.held().is_none() {
            return self.storage.write(offset, bytes);
        }
        let mut held = self.held_mut();
        let Some(held) = held.as_mut() else { return self.storage.write(offset, bytes) };
        for (number, within, part) in parts(offset, bytes.len()) {
            let block = match held.blocks.entry(number) {
                Entry::Occupied(block) => block.into_mut(),
                Entry::Vacant(place) => place.insert(self.block(number)?),
            };
            block[within..within + part.len()].copy_from_slice(&bytes[part]);
        }
        Ok(())
    }
}
