//! Content while it comes: collected piece by piece, then shared.
//!
//! Owns where content lives, and nothing of what it means. Large content has a memory map of its own,
//! not a block of the heap: glibc keeps freed blocks of many MiB for later, a map goes back to the
//! system with the last share of it. Invariant: memory follows what has come, not what was announced.

use std::io;
use std::mem;
use std::ops::Deref;

use bytes::Bytes;
use memmap2::MmapMut;

/// By how much the buffer grows, at least, in bytes: what one byte can cost.
const STEP: usize = 8 * 1024;

/// Beyond this size, content has a map of its own. It is from where glibc itself takes maps, until it
/// has seen the first of them freed.
const OWN_MAP: usize = 128 * 1024;

/// Content that grows.
#[derive(Default)]
pub struct ContentBuffer {
    room: Room,
    /// How much of the room is content.
    len: usize,
}

/// Memory that can be written, all of it initialised. In a map, pages that were never touched are none.
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
    /// Room for what comes next: at least a byte, and at most `most`, which is not zero.
    ///
    /// # Errors
    /// The system has no memory for more.
    pub fn room(&mut self, most: usize) -> io::Result<&mut [u8]> {
        if self.room.bytes().len() == self.len {
            self.grow(most)?;
        }
        let room = &mut self.room.bytes()[self.len..];
        let most = most.min(room.len());
        Ok(&mut room[..most])
    }

    /// Takes the first `n` bytes of the room for content.
    pub fn advance(&mut self, n: usize) {
        self.len += n;
        debug_assert!(self.len <= self.room.bytes().len());
    }

    /// Appends `bytes`.
    ///
    /// # Errors
    /// As [`room`](Self::room).
    pub fn extend(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = self.room(bytes.len())?;
            let n = room.len();
            room.copy_from_slice(&bytes[..n]);
            self.advance(n);
            bytes = &bytes[n..];
        }
        Ok(())
    }

    /// Half as much again, or twice as much where the new room costs nothing until it is used: few
    /// copies, and never much more than what has come.
    fn grow(&mut self, most: usize) -> io::Result<()> {
        let size = self.len.saturating_add(most.min(STEP.max(self.len / 2)));
        match &mut self.room {
            Room::Heap(heap) if size <= OWN_MAP => {
                heap.reserve_exact(size - self.len);
                heap.resize(size, 0);
            }
            _ => {
                let size = self.len.saturating_add(most.min(OWN_MAP.max(self.len)));
                let mut map = MmapMut::map_anon(size)?;
                map[..self.len].copy_from_slice(self);
                self.room = Room::Map(map);
            }
        }
        Ok(())
    }

    /// What has come, to be shared.
    pub fn freeze(self) -> Bytes {
        self.freeze_from(0)
    }

    /// The same without the first `start` bytes. Of small content, nothing more than that stays in
    /// memory: it may be kept for long.
    pub fn freeze_from(mut self, start: usize) -> Bytes {
        match mem::take(&mut self.room) {
            Room::Heap(mut heap) if start == 0 => {
                heap.truncate(self.len);
                heap.into_boxed_slice().into()
            }
            Room::Heap(heap) => Bytes::copy_from_slice(&heap[start..self.len]),
            Room::Map(map) => Bytes::from_owner(map).slice(start..self.len),
        }
    }
}

impl Deref for ContentBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.room {
            Room::Heap(heap) => &heap[..self.len],
            Room::Map(map) => &map[..self.len],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_of_every_size_is_what_came() {
        let all: Vec<u8> = (0..=250).cycle().take(5 * OWN_MAP).collect();
        for size in [0, 1, STEP, STEP + 1, OWN_MAP, OWN_MAP + 1, 5 * OWN_MAP] {
            for piece in [1000, STEP, 3 * STEP + 7] {
                let mut content = ContentBuffer::default();
                for piece in all[..size].chunks(piece) {
                    content.extend(piece).unwrap();
                }
                assert_eq!(*content, all[..size]);
                assert_eq!(matches!(content.room, Room::Map(_)), size > OWN_MAP, "{size}");
                assert_eq!(content.freeze(), &all[..size]);
            }
            let mut content = ContentBuffer::default();
            content.extend(&all[..size]).unwrap();
            assert_eq!(content.freeze_from(size / 2), &all[size / 2..size]);
        }
    }

    #[test]
    fn the_room_is_no_more_than_asked_for_and_follows_what_has_come() {
        let mut content = ContentBuffer::default();
        assert_eq!(content.room(5).unwrap().len(), 5);
        let mut content = ContentBuffer::default();
        while content.len() < 5 * OWN_MAP {
            let n = content.room(usize::MAX).unwrap().len();
            assert!((1..=content.len().max(OWN_MAP)).contains(&n), "{n} at {}", content.len());
            content.advance(n.min(3000));
        }
    }
}
