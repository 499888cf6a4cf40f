//! Content at rest: shared, never changed, in memory or in a file.
//!
//! Owns what requests and stored results carry, and how it is read in pieces. Does not make it: a
//! [`ContentBuffer`](super::ContentBuffer) does, or a store finds it. Invariants: content is never in memory as a whole
//! because it is read; content in a file is as long as it says, or reading it fails.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, ErrorKind, Read};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::file::ContentFile;

/// How much of a file is read at once, in bytes. It counts with the connection or the worker that reads.
const PIECE: usize = 16 * 1024;

/// Content, whose clones share it.
#[derive(Clone)]
pub struct Content(Place);

/// Where content is.
#[derive(Clone)]
enum Place {
    Memory(Bytes),
    File(Part),
}

/// A part of a file.
#[derive(Clone)]
struct Part {
    file: Arc<ContentFile>,
    range: Range<usize>,
}

impl Content {
    /// Returns content without a byte.
    pub const fn new() -> Self {
        Self(Place::Memory(Bytes::new()))
    }

    /// Returns these bytes of a file.
    pub fn of_file(file: Arc<ContentFile>, range: Range<usize>) -> Self {
        Self(Place::File(Part { file, range }))
    }

    /// Returns its length, in bytes.
    pub fn len(&self) -> usize {
        match &self.0 {
            Place::Memory(bytes) => bytes.len(),
            Place::File(part) => part.range.len(),
        }
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns its bytes if they are in memory.
    pub const fn in_memory(&self) -> Option<&Bytes> {
        match &self.0 {
            Place::Memory(bytes) => Some(bytes),
            Place::File(_) => None,
        }
    }

    /// Returns its file, and where it is in that, if it is in one.
    pub const fn in_file(&self) -> Option<(&Arc<ContentFile>, &Range<usize>)> {
        match &self.0 {
            Place::Memory(_) => None,
            Place::File(part) => Some((&part.file, &part.range)),
        }
    }

    /// Returns these bytes of it, which must be within it.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len(), "a part is within the whole");
        match &self.0 {
            Place::Memory(bytes) => Self(Place::Memory(bytes.slice(range))),
            Place::File(Part { file, range: whole }) => {
                let range = whole.start + range.start..whole.start + range.end;
                Self::of_file(Arc::clone(file), range)
            }
        }
    }

    /// Returns how much of it is charged to the budget of memory by the content itself, in bytes.
    pub fn charged(&self) -> usize {
        self.in_memory().map_or(0, |bytes| super::charged(bytes))
    }

    /// Makes it durable if it is in a file.
    ///
    /// # Errors
    /// Those of the file.
    pub fn sync(&self) -> io::Result<()> {
        self.in_file().map_or(Ok(()), |(file, _)| file.sync())
    }

    /// Opens its file if it is in one, so that it can be read even when it is removed meanwhile.
    ///
    /// # Errors
    /// Those of the file, which may be missing or too short.
    pub fn open(&self) -> io::Result<()> {
        self.in_file().map_or(Ok(()), |(file, range)| file.open(range.end as u64))
    }

    /// Closes its file if it is in one, until it is read again.
    pub fn close(&self) {
        if let Some((file, _)) = self.in_file() {
            file.close();
        }
    }

    /// Reads it from its beginning.
    pub fn reader(&self) -> Reader {
        Reader { rest: self.clone(), piece: Vec::new(), used: 0 }
    }

    /// Returns its first `most` bytes, or all of it if it is shorter: what is in a file is read.
    ///
    /// # Errors
    /// Those of the file.
    pub fn beginning(&self, most: usize) -> io::Result<Cow<'_, [u8]>> {
        let most = most.min(self.len());
        match &self.0 {
            Place::Memory(bytes) => Ok(Cow::Borrowed(&bytes[..most])),
            Place::File(part) => {
                let mut bytes = vec![0; most];
                part.read(&mut bytes)?;
                Ok(Cow::Owned(bytes))
            }
        }
    }

    /// Calls `each` with all of it, piece by piece.
    ///
    /// # Errors
    /// Those of the file.
    pub fn for_each_piece(&self, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let mut reader = self.reader();
        loop {
            let piece = reader.fill_buf()?;
            if piece.is_empty() {
                return Ok(());
            }
            each(piece);
            let length = piece.len();
            reader.consume(length);
        }
    }
}

impl Part {
    /// Reads from its beginning until `target` is full: no more than there is.
    fn read(&self, target: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(self.range.start as u64, target)
    }
}

/// Reads content piece by piece; what is in memory is one piece.
pub struct Reader {
    /// What is not read yet, and the piece in memory that is not used yet.
    rest: Content,
    /// What was read from a file.
    piece: Vec<u8>,
    /// How much of that is used.
    used: usize,
}

impl Reader {
    /// Returns how much was not used yet, in bytes.
    pub fn left(&self) -> usize {
        self.rest.len() + self.piece.len() - self.used
    }

    /// Has `send` take some of what was not read yet straight from its file: it gets the file, an offset, and how many
    /// bytes there are, and returns how many it took. Returns `None` if that is not possible: what is left must be
    /// read.
    ///
    /// # Errors
    /// Those of `send`; `UnexpectedEof` if the file is shorter.
    pub fn send(
        &mut self,
        send: impl FnOnce(&File, u64, usize) -> Option<io::Result<usize>>,
    ) -> Option<io::Result<usize>> {
        let Place::File(part) = &mut self.rest.0 else { return None };
        if self.used < self.piece.len() || part.range.is_empty() {
            return None;
        }
        let file = match part.file.opened() {
            Ok(file) => file,
            Err(error) => return Some(Err(error)),
        };
        let sent = send(file.as_file()?, part.range.start as u64, part.range.len())?;
        Some(sent.and_then(|n| {
            part.range.start += n;
            if n == 0 { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(n) }
        }))
    }
}

impl BufRead for Reader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        match &mut self.rest.0 {
            Place::Memory(bytes) => Ok(bytes),
            Place::File(part) => {
                if self.used == self.piece.len() && !part.range.is_empty() {
                    self.used = 0;
                    self.piece.resize(PIECE.min(part.range.len()), 0);
                    if let Err(error) = part.read(&mut self.piece) {
                        self.piece.clear();
                        return Err(error);
                    }
                    part.range.start += self.piece.len();
                }
                Ok(&self.piece[self.used..])
            }
        }
    }

    fn consume(&mut self, n: usize) {
        match &mut self.rest.0 {
            Place::Memory(bytes) => *bytes = bytes.slice(n..),
            Place::File(_) => self.used += n,
        }
    }
}

impl Read for Reader {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        let piece = self.fill_buf()?;
        let n = piece.len().min(target.len());
        target[..n].copy_from_slice(&piece[..n]);
        self.consume(n);
        Ok(n)
    }
}

impl Default for Content {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Into<Bytes>> From<T> for Content {
    fn from(bytes: T) -> Self {
        Self(Place::Memory(bytes.into()))
    }
}

/// The same bytes, wherever they are; what cannot be read equals nothing.
impl PartialEq for Content {
    fn eq(&self, other: &Self) -> bool {
        if self.len() != other.len() {
            return false;
        }
        let mut theirs = other.reader();
        let mut is_equal = true;
        let read = self.for_each_piece(|mut piece| {
            while is_equal && !piece.is_empty() {
                let their = theirs.fill_buf().unwrap_or_default();
                let n = their.len().min(piece.len());
                is_equal = n > 0 && their[..n] == piece[..n];
                theirs.consume(n);
                piece = &piece[n..];
            }
        });
        read.is_ok() && is_equal
    }
}

impl Eq for Content {}

impl<T: AsRef<[u8]> + ?Sized> PartialEq<T> for Content {
    fn eq(&self, other: &T) -> bool {
        let other = other.as_ref();
        self.len() == other.len() && self.beginning(other.len()).is_ok_and(|bytes| *bytes == *other)
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Place::Memory(bytes) => bytes.fmt(f),
            Place::File(part) => write!(f, "{}[{:?}]", part.file.name(), part.range),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ContentBuffer, IN_MEMORY, NoMemory};
    use super::*;
    use crate::files::{Files, Folder};
    use crate::memory::{Budget, Disk};

    /// A folder of the test's own, which goes with it.
    struct Scratch(std::path::PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            Self(std::env::temp_dir().join(format!("deferd-{name}-{}", std::process::id())))
        }

        fn budget(&self, memory: usize, capacity: usize) -> Arc<Budget> {
            let folder = Arc::new(Folder::open(&self.0).unwrap());
            Budget::with_disk(memory, Disk { folder, capacity })
        }

        fn files(&self) -> usize {
            Folder::open(&self.0).unwrap().list().unwrap().len()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn content(budget: &Arc<Budget>, bytes: &[u8], piece: usize) -> Result<Content, NoMemory> {
        let mut content = ContentBuffer::new(&budget.allowance());
        for piece in bytes.chunks(piece) {
            content.extend(piece)?;
            assert!(budget.used() <= 3 * IN_MEMORY, "{}", budget.used());
        }
        assert_eq!(content.len(), bytes.len());
        content.freeze()
    }

    #[test]
    fn content_in_a_file_is_what_came_and_goes_with_its_last_share() {
        let scratch = Scratch::new("rest");
        let budget = scratch.budget(1 << 20, 1 << 30);
        let all: Vec<u8> = (0..=250).cycle().take(40 * IN_MEMORY + 1).collect();
        for size in [IN_MEMORY, IN_MEMORY + 1, 2 * IN_MEMORY, 40 * IN_MEMORY] {
            for piece in [1000, 70_000] {
                let content = content(&budget, &all[..size], piece).unwrap();
                assert_eq!(content.in_file().is_some(), size > IN_MEMORY, "{size}");
                assert_eq!(scratch.files(), usize::from(size > IN_MEMORY));
                assert_eq!(budget.used(), if size > IN_MEMORY { 0 } else { size });
                assert!(content == all[..size] && content != all[1..=size], "{size}");
                let part = content.slice(500..size - 500);
                assert!(part == all[500..size - 500]);
                assert!(part.slice(7..9) == all[507..509]);
                assert_eq!(*part.beginning(3).unwrap(), all[500..503]);
                drop(content);
                assert_eq!(scratch.files(), usize::from(size > IN_MEMORY), "the part is left");
                drop(part);
                assert_eq!((scratch.files(), budget.used()), (0, 0));
            }
        }
    }

    #[test]
    fn what_was_cut_short_is_in_memory_again() {
        let scratch = Scratch::new("cut");
        let budget = scratch.budget(1 << 20, 1 << 30);
        let mut buffer = ContentBuffer::new(&budget.allowance());
        buffer.extend(&[b'x'; 5 * IN_MEMORY]).unwrap();
        buffer.truncate(100);
        let content = buffer.freeze_from(10).unwrap();
        assert!(content.in_memory().is_some() && content == [b'x'; 90]);
        assert_eq!(scratch.files(), 0);
    }

    #[test]
    fn what_the_disk_does_not_take_stays_in_memory_while_there_is_room() {
        let scratch = Scratch::new("full");
        let bytes = vec![b'x'; 4 * IN_MEMORY];
        let budget = scratch.budget(1 << 20, 3 * IN_MEMORY);
        let mut buffer = ContentBuffer::new(&budget.allowance());
        buffer.extend(&bytes).unwrap();
        let whole = buffer.freeze().unwrap();
        assert!(whole.in_memory().is_some() && whole == bytes);
        assert_eq!(scratch.files(), 0);
        drop(whole);
        let budget = scratch.budget(3 * IN_MEMORY, 3 * IN_MEMORY);
        let refused = content(&budget, &bytes, 1000);
        assert!(matches!(refused, Err(NoMemory::Disk(_))), "{refused:?}");
        assert_eq!((scratch.files(), budget.used()), (0, 0));
    }

    #[test]
    fn content_that_the_disk_refuses_takes_no_more_than_its_part_of_memory() {
        let scratch = Scratch::new("refused");
        // Refused at once, and when much of it is in its file already.
        for capacity in [0, 2 * IN_MEMORY, 20 * IN_MEMORY] {
            let budget = scratch.budget(32 * IN_MEMORY, capacity);
            let mut buffer = ContentBuffer::new(&budget.allowance());
            let mut come = 0;
            let error = loop {
                match buffer.extend(&[b'x'; 1000]) {
                    Ok(()) => come += 1000,
                    Err(error) => break error,
                }
                assert!(budget.used() <= 10 * IN_MEMORY, "{} of {come}", budget.used());
            };
            assert!(matches!(error, NoMemory::Disk(_)), "{error:?}");
            assert!(come >= capacity.max(8 * IN_MEMORY) - 1000, "{come}");
            drop(buffer);
            assert_eq!((scratch.files(), budget.used()), (0, 0));
        }
    }
}
