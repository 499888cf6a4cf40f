//! Content while it comes: collected piece by piece, charged to the budget of memory, then shared.
//!
//! Owns where content lives, and nothing of what it means; `at_rest` is what it becomes, `file` what of it is on disk;
//! `utf8` tells text. Content of more than a few pages has a memory map of its own, not a block of the heap: glibc
//! keeps freed blocks for later if anything small lies behind them, a map goes back to the system with the last share
//! of it. Invariants: memory follows what has come, not what was announced; content in memory of more than [`SMALL`]
//! bytes is charged from its first byte until its last share is dropped, smaller content counts with what holds it, a
//! connection or a record.

mod at_rest;
mod file;
mod utf8;

use std::borrow::Cow;
use std::io::{self, ErrorKind};
use std::mem;
use std::sync::Arc;

use bytes::Bytes;
use memmap2::MmapMut;

pub use self::at_rest::{Content, Reader};
pub use self::file::ContentFile;
pub use self::utf8::Utf8;
use crate::memory::{Allowance, Charge, NoRoom};

/// Content up to this size, in bytes, has no charge of its own: a connection or worker has one such piece, and a
/// record's charge includes it.
pub const SMALL: usize = 4 * 1024;

/// The least growth of a buffer, in bytes: what one byte can cost.
const STEP: usize = 8 * 1024;

/// Beyond this size, content has a map of its own, in bytes. All connections together can have that much
/// and more in the heap, which may keep it: a crowd of clients whose content is refused leaves no more.
const OWN_MAP: usize = 16 * 1024;

/// The least growth of a map, in bytes: untouched pages cost nothing, copies do.
const MAP_STEP: usize = 128 * 1024;

/// From this size on, in bytes, a map grows sixteenfold if the budget has room for that: few clients can have so much,
/// and a copy needs both maps.
const LARGE: usize = 1 << 20;

/// How much of a map is charged at a time, in bytes.
const TOUCH: usize = 64 * 1024;

/// The reason that content cannot grow.
#[derive(Debug)]
pub enum NoMemory {
    /// It does not fit into the budget at this moment.
    Budget,
    /// The system has no memory.
    System(io::Error),
    /// It is too large for memory, and the disk does not take it.
    Disk(io::Error),
}

impl From<NoRoom> for NoMemory {
    fn from(NoRoom: NoRoom) -> Self {
        Self::Budget
    }
}

/// The most content that stays in memory, in bytes. More goes to a file, if there is a folder for content.
pub const IN_MEMORY: usize = 64 * 1024;

/// If the disk refuses content, at most this part (1/4) of its sender's memory may hold it.
const REFUSED_PART: usize = 4;

/// Content that grows: in memory; beyond [`IN_MEMORY`] in a file, if its [`Allowance`] has a folder and the disk has
/// room.
pub struct ContentBuffer {
    room: Room,
    /// How much of the room is content.
    len: usize,
    charge: Charge,
    /// Where what came before is, once that was too much for memory.
    file: Option<Written>,
    /// Why the disk did not take it, if it stays in memory.
    refused: Option<io::Error>,
}

/// A file, and how much of the content is in it, in bytes.
struct Written {
    file: ContentFile,
    len: usize,
}

/// Writable memory, all of it initialised. In a map, untouched pages cost nothing.
enum Room {
    Heap(Vec<u8>),
    Map(MmapMut),
}

impl Default for Room {
    fn default() -> Self {
        Self::Heap(Vec::new())
    }
}

impl Room {
    fn bytes(&mut self) -> &mut [u8] {
        match self {
            Self::Heap(heap) => heap,
            Self::Map(map) => map,
        }
    }
}

impl ContentBuffer {
    /// Returns a buffer without content, which is charged to `memory` as it grows.
    pub fn new(memory: &Allowance) -> Self {
        Self { room: Room::default(), len: 0, charge: memory.nothing(), file: None, refused: None }
    }

    /// Returns how much has come, in bytes.
    pub fn len(&self) -> usize {
        self.file.as_ref().map_or(0, |file| file.len) + self.len
    }

    /// Whether nothing has come.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns what has come, while all of it is in memory.
    pub fn in_memory(&self) -> Option<&[u8]> {
        self.file.is_none().then(|| self.held())
    }

    /// Returns the first `most` bytes of what has come: what is in a file is read.
    ///
    /// # Errors
    /// Those of the file.
    pub fn beginning(&self, most: usize) -> io::Result<Cow<'_, [u8]>> {
        let Some(Written { file, len }) = &self.file else {
            return Ok(Cow::Borrowed(&self.held()[..most.min(self.len)]));
        };
        let mut bytes = vec![0; most.min(*len)];
        file.read_exact_at(0, &mut bytes)?;
        Ok(Cow::Owned(bytes))
    }

    /// Returns what has come and is in memory.
    fn held(&self) -> &[u8] {
        match &self.room {
            Room::Heap(heap) => &heap[..self.len],
            Room::Map(map) => &map[..self.len],
        }
    }

    /// Returns room for what comes next: at least a byte, and at most `most`, which is not zero.
    ///
    /// # Errors
    /// [`NoMemory`]; the content that has come stays.
    pub fn room(&mut self, most: usize) -> Result<&mut [u8], NoMemory> {
        if self.len > IN_MEMORY || self.file.is_some() && self.len == IN_MEMORY {
            self.spill()?;
        }
        self.room_in_memory(most)
    }

    /// The same without a look at how much is in memory.
    fn room_in_memory(&mut self, most: usize) -> Result<&mut [u8], NoMemory> {
        if self.room.bytes().len() == self.len {
            self.grow(most)?;
        }
        let space = self.room.bytes().len() - self.len;
        let mut end = self.len + most.min(space).min(TOUCH);
        if self.file.is_some() {
            end = end.min(IN_MEMORY);
        }
        if end > SMALL && end > self.charge.bytes() {
            self.charge.grow(end - self.charge.bytes())?;
        }
        Ok(&mut self.room.bytes()[self.len..end])
    }

    /// Moves what is in memory to the file, if there is a folder for it. What a disk does not take, because it is full
    /// or fails, stays in memory while it is no more than a part of that: else one client could take all of it.
    fn spill(&mut self) -> Result<(), NoMemory> {
        let refused = match self.refused.take() {
            Some(refused) => refused,
            None => match self.write_out() {
                Ok(()) => return Ok(()),
                Err(refused) => refused,
            },
        };
        if self.len() > self.charge.capacity() / REFUSED_PART || self.return_to_memory().is_err() {
            return Err(NoMemory::Disk(refused));
        }
        self.refused = Some(refused);
        Ok(())
    }

    fn write_out(&mut self) -> io::Result<()> {
        if self.file.is_none() {
            let Some((folder, charge)) = self.charge.allowance().disk() else { return Ok(()) };
            self.file = Some(Written { file: ContentFile::create(folder, charge)?, len: 0 });
        }
        let Some(Written { file, len }) = &mut self.file else { return Ok(()) };
        let held = &self.room.bytes()[..self.len];
        file.write_at(*len as u64, held)?;
        *len += self.len;
        self.len = 0;
        self.charge.shrink_to(IN_MEMORY);
        Ok(())
    }

    /// Gives the file up, if there is one, and goes on in memory.
    fn return_to_memory(&mut self) -> Result<(), NoMemory> {
        let Some(Written { file, len }) = &self.file else { return Ok(()) };
        let mut whole = Self::new(self.charge.allowance());
        while whole.len < *len {
            let begin = whole.len;
            let room = whole.room_in_memory(*len - begin)?;
            file.read_exact_at(begin as u64, room).map_err(NoMemory::Disk)?;
            let n = room.len();
            whole.advance(n);
        }
        let mut held = self.held();
        while !held.is_empty() {
            let room = whole.room_in_memory(held.len())?;
            let n = room.len();
            room.copy_from_slice(&held[..n]);
            whole.advance(n);
            held = &held[n..];
        }
        *self = whole;
        Ok(())
    }

    /// Turns the first `n` bytes of the room into content, and returns them.
    pub fn advance(&mut self, n: usize) -> &[u8] {
        let begin = self.len;
        self.len += n;
        &self.held()[begin..]
    }

    /// Drops everything after the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        let in_file = self.file.as_ref().map_or(0, |file| file.len);
        self.len = self.len.min(len.saturating_sub(in_file));
        if let Some(file) = &mut self.file {
            file.len = file.len.min(len);
        }
    }

    /// Appends `bytes`.
    ///
    /// # Errors
    /// As [`room`](Self::room).
    pub fn extend(&mut self, mut bytes: &[u8]) -> Result<(), NoMemory> {
        while !bytes.is_empty() {
            let room = self.room(bytes.len())?;
            let n = room.len();
            room.copy_from_slice(&bytes[..n]);
            self.advance(n);
            bytes = &bytes[n..];
        }
        Ok(())
    }

    fn grow(&mut self, most: usize) -> Result<(), NoMemory> {
        let size = self.len.saturating_add(most.min(STEP.max(self.len / 2)));
        if size <= OWN_MAP {
            // Grows by half at least: content that comes in small chunks would be copied for each of them.
            let size = size.max(self.len + self.len / 2).min(OWN_MAP);
            return self.grow_in_heap(size);
        }
        match self.grow_in_map() {
            // A process can have some ten thousand maps; beyond that the heap is used.
            Err(NoMemory::System(_)) if matches!(self.room, Room::Heap(_)) => {
                self.grow_in_heap(size)
            }
            grown => grown,
        }
    }

    /// Grows to `size` in the heap.
    fn grow_in_heap(&mut self, size: usize) -> Result<(), NoMemory> {
        let Room::Heap(heap) = &mut self.room else { return Ok(()) };
        if size > SMALL && size > self.charge.bytes() {
            self.charge.grow(size - self.charge.bytes())?;
        }
        let reserved = heap.try_reserve_exact(size - self.len);
        reserved.map_err(|_| NoMemory::System(ErrorKind::OutOfMemory.into()))?;
        heap.resize(size, 0);
        Ok(())
    }

    /// Grows in a new map to twice the size, or to many times that: few copies, none of them large.
    fn grow_in_map(&mut self) -> Result<(), NoMemory> {
        let size = if self.len < LARGE {
            self.len + MAP_STEP.max(self.len)
        } else {
            self.len.saturating_mul(16).min(self.charge.capacity()).max(self.len + MAP_STEP)
        };
        // While it is copied it is there twice.
        let charged = self.charge.bytes();
        self.charge.grow(self.len)?;
        let grown = MmapMut::map_anon(size).map_err(NoMemory::System).map(|mut map| {
            map[..self.len].copy_from_slice(self.held());
            self.room = Room::Map(map);
        });
        self.charge.shrink_to(charged);
        grown
    }

    /// Returns the content, to be shared.
    ///
    /// # Errors
    /// [`NoMemory::Disk`] if the last of it cannot be written to its file.
    pub fn freeze(self) -> Result<Content, NoMemory> {
        self.freeze_from(0)
    }

    /// Returns the content without its first `start` bytes. Small content is copied, so that the rest does not stay in
    /// memory for long.
    ///
    /// # Errors
    /// As [`freeze`](Self::freeze).
    pub fn freeze_from(mut self, start: usize) -> Result<Content, NoMemory> {
        if self.len > IN_MEMORY || self.file.is_some() && self.len > 0 {
            self.spill()?;
        }
        let mut charge = self.charge.take();
        if let Some(Written { file, len }) = self.file {
            if len - start > IN_MEMORY {
                return Ok(Content::of_file(Arc::new(file), start..len));
            }
            // It was cut.
            let mut bytes = vec![0; len - start].into_boxed_slice();
            file.read_exact_at(start as u64, &mut bytes).map_err(NoMemory::Disk)?;
            charge.shrink_to(bytes.len());
            return Ok(held(bytes, charge).into());
        }
        let len = self.len;
        Ok(Content::from(match mem::take(&mut self.room) {
            Room::Heap(heap) if start > 0 => {
                charge.shrink_to(len - start);
                held(heap[start..len].into(), charge)
            }
            Room::Heap(mut heap) => {
                heap.truncate(len);
                charge.shrink_to(len);
                held(heap.into_boxed_slice(), charge)
            }
            Room::Map(map) => {
                charge.shrink_to(len);
                Bytes::from_owner(Held { bytes: map, _charge: charge }).slice(start..len)
            }
        }))
    }
}

/// Returns content that was produced whole, together with its charge.
pub fn held(bytes: Box<[u8]>, charge: Charge) -> Bytes {
    if bytes.len() <= SMALL {
        return bytes.into();
    }
    Bytes::from_owner(Held { bytes, _charge: charge })
}

/// Returns an answer that was produced whole, together with its charge, which may be too large or too small.
///
/// # Errors
/// [`NoRoom`] if the missing part of the charge finds no room.
pub fn whole(bytes: Vec<u8>, mut charge: Charge) -> Result<Bytes, NoRoom> {
    charge.resize(charged(&bytes))?;
    Ok(held(bytes.into(), charge))
}

/// Returns a copy of content, together with its charge, which may be too large.
///
/// In the heap if the system has no map left.
pub fn copied(content: &[u8], mut charge: Charge) -> Bytes {
    charge.shrink_to(content.len());
    if content.len() > OWN_MAP
        && let Ok(mut map) = MmapMut::map_anon(content.len())
    {
        map.copy_from_slice(content);
        return Bytes::from_owner(Held { bytes: map, _charge: charge });
    }
    held(content.into(), charge)
}

/// Returns how much of content is charged by the content itself, in bytes.
pub fn charged(content: &[u8]) -> usize {
    if content.len() > SMALL { content.len() } else { 0 }
}

/// Bytes and what is charged for them.
struct Held<T> {
    bytes: T,
    _charge: Charge,
}

impl<T: AsRef<[u8]>> AsRef<[u8]> for Held<T> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Budget;

    #[test]
    fn content_of_every_size_is_what_came() {
        let all: Vec<u8> = (0..=250).cycle().take(5 * MAP_STEP).collect();
        let budget = Budget::new(10 * MAP_STEP);
        for size in [0, 1, SMALL, STEP, STEP + 1, OWN_MAP, OWN_MAP + 1, 5 * MAP_STEP] {
            for piece in [1000, STEP, 3 * STEP + 7] {
                let mut content = ContentBuffer::new(&budget.allowance());
                for piece in all[..size].chunks(piece) {
                    content.extend(piece).unwrap();
                    let charged = content.charge.bytes();
                    assert!(charged >= content.len() || content.len() <= SMALL, "{charged}");
                    assert!(charged <= content.len() + TOUCH.max(content.len() / 2), "{charged}");
                }
                assert_eq!(content.in_memory(), Some(&all[..size]));
                assert_eq!(matches!(content.room, Room::Map(_)), size > OWN_MAP, "{size}");
                let content = content.freeze().unwrap();
                assert_eq!(content, all[..size]);
                assert_eq!(budget.used(), if size > SMALL { size } else { 0 });
            }
            let mut content = ContentBuffer::new(&budget.allowance());
            content.extend(&all[..size]).unwrap();
            let content = content.freeze_from(size / 2).unwrap();
            let shared = content.clone();
            assert_eq!(content, all[size / 2..size]);
            drop(content);
            assert_eq!(budget.used() > 0, size - size / 2 > SMALL || size > OWN_MAP, "{size}");
            drop(shared);
            assert_eq!(budget.used(), 0);
        }
    }

    #[test]
    fn an_answer_is_charged_for_its_length_alone() {
        let budget = Budget::new(2 * SMALL);
        let memory = budget.allowance();
        for charged in [0, SMALL / 2, 2 * SMALL] {
            let small = whole(vec![1; SMALL], memory.charge(charged).unwrap()).unwrap();
            assert_eq!((small.len(), budget.used()), (SMALL, 0));
            let large = whole(vec![1; 2 * SMALL], memory.charge(charged).unwrap()).unwrap();
            assert_eq!((large.len(), budget.used()), (2 * SMALL, 2 * SMALL));
            drop(large);
            let charge = memory.charge(charged).unwrap();
            assert_eq!(whole(vec![1; 2 * SMALL + 1], charge).unwrap_err(), NoRoom);
            assert_eq!(budget.used(), 0);
        }
    }

    #[test]
    fn the_room_is_no_more_than_asked_for_and_follows_what_has_come() {
        let mut content = ContentBuffer::new(&Allowance::default());
        assert_eq!(content.room(5).unwrap().len(), 5);
        let mut content = ContentBuffer::new(&Allowance::default());
        while content.len() < 5 * MAP_STEP {
            let n = content.room(usize::MAX).unwrap().len();
            assert!((1..=content.len().max(TOUCH)).contains(&n), "{n} at {}", content.len());
            content.advance(n.min(3000));
        }
    }

    #[test]
    fn content_is_copied_seldom_however_it_comes() {
        let budget = Budget::new(20 * LARGE);
        for most in [100, STEP, usize::MAX] {
            let most = most.min(16 * LARGE);
            let mut content = ContentBuffer::new(&budget.allowance());
            let mut sizes = vec![0];
            while content.len() < 16 * LARGE {
                // More than half of the budget, and it can grow.
                let left = most.min(16 * LARGE - content.len());
                let n = content.room(left).unwrap().len();
                assert!(n <= most);
                content.advance(n);
                let size = content.room.bytes().len();
                if sizes.last() != Some(&size) {
                    sizes.push(size);
                }
            }
            assert!(sizes.len() <= 20, "{most} at a time: {sizes:?}");
        }
    }

    #[test]
    fn content_without_maps_stays_in_the_heap() {
        let budget = Budget::new(5 * MAP_STEP);
        let mut content = ContentBuffer::new(&budget.allowance());
        content.extend(&[b'x'; STEP]).unwrap();
        content.grow_in_heap(2 * MAP_STEP).unwrap();
        assert_eq!((content.room.bytes().len(), budget.used()), (2 * MAP_STEP, 2 * MAP_STEP));
        assert!(content.grow_in_heap(6 * MAP_STEP).is_err(), "it does not fit the budget");
        content.advance(1);
        let content = content.freeze().unwrap();
        assert_eq!((content.len(), budget.used()), (STEP + 1, STEP + 1));
    }

    #[test]
    fn content_ends_where_the_budget_does() {
        for (capacity, most) in
            [(STEP, STEP), (5 * OWN_MAP, 5 * OWN_MAP), (5 * MAP_STEP, 5 * MAP_STEP)]
        {
            let budget = Budget::new(capacity);
            let mut content = ContentBuffer::new(&budget.allowance());
            let mut come = 0;
            while content.extend(&[b'x'; 1000]).is_ok() {
                come += 1000;
                assert!(come <= most && budget.used() <= capacity);
            }
            assert!(come >= most / 2, "{come} of {most}");
            drop(content);
            assert_eq!(budget.used(), 0);
        }
    }
}
