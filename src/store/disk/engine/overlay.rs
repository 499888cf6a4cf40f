//! An overlay: holds writes back until the contents of a file were verified.
//!
//! Owns what redb writes while it opens a file: redb repairs a file before deferd can ask whose it is, and writes
//! to a disk that may only allow reading. Knows nothing of tables. Invariants: until the overlay is committed, the
//! storage beneath is as it was; then everything is written, the header last, when all that it points to is
//! durable. At the finish the storage is not made shorter: if the disk is full then, nothing could be removed later.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use redb::StorageBackend;

use super::dirty::DirtyRanges;

/// In what portions writes are held back, in bytes.
const BLOCK: usize = 4096;

/// Storage under an overlay; its clones are the same.
#[derive(Clone, Debug)]
pub struct Overlay<B> {
    storage: DirtyRanges<B>,
    held: Arc<RwLock<Option<Held>>>,
    is_ending: Arc<AtomicBool>,
}

/// What was written since it began; `None` in its place after the commit.
#[derive(Debug, Default)]
struct Held {
    /// How long the storage is.
    beneath: u64,
    /// How long it is to be.
    len: u64,
    blocks: BTreeMap<u64, Box<[u8; BLOCK]>>,
}

impl<B: StorageBackend> Overlay<B> {
    /// Begins to hold writes back.
    ///
    /// # Errors
    /// Those of the storage.
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

    /// The block of this number, as it is in the storage.
    fn block(&self, number: u64) -> io::Result<Box<[u8; BLOCK]>> {
        let mut block = Box::new([0; BLOCK]);
        let from = number * BLOCK as u64;
        let there = self.storage.len()?.saturating_sub(from).min(BLOCK as u64);
        self.storage.read(from, &mut block[..there as usize])?;
        Ok(block)
    }
}

/// What can be asked of an overlay whatever its storage.
pub trait HeldWrites: Send + Sync {
    /// Writes everything that was held back; from now on nothing is held back.
    ///
    /// # Errors
    /// Those of the storage; then writes are still held back.
    fn commit(&self) -> io::Result<()>;

    /// Whether writes are held back.
    fn is_open(&self) -> bool;

    /// Returns how long the storage is, in bytes.
    ///
    /// # Errors
    /// Those of the storage.
    fn length(&self) -> io::Result<u64>;

    /// Says that what comes is the end.
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
        // Also what was there before: the process that wrote it may have ended before it was synced.
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

/// The parts of a range of bytes, by block: its number, where the part is in it, and in the range.
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
