//! The files of content on disk: their names, and what a folder of them is asked for.
//!
//! Owns the names and the calls to the system. Knows nothing of jobs and of what the files contain. What a folder
//! is asked for is a trait, so that tests can record each call and let it fail; [`Folder`] is the real one.
//! Invariants: a name is never given twice; a file is made for its owner only, and grows without being cut.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::rand::{GetRandomFlags, getrandom};

/// How many digits a name has.
const DIGITS: usize = 32;

/// The name of a file: a random number that each process draws, and one that it counts up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileName(u128);

impl FileName {
    /// Reads a name; `None` for what is no name of deferd's.
    pub fn parse(text: &str) -> Option<Self> {
        let is_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() != DIGITS || !text.bytes().all(is_digit) {
            return None;
        }
        u128::from_str_radix(text, 16).ok().map(Self)
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The names that one process gives.
pub struct Names {
    process: u64,
    next: AtomicU64,
}

impl Names {
    /// Returns names that begin with `process`, which no other process has drawn.
    pub const fn new(process: u64) -> Self {
        Self { process, next: AtomicU64::new(0) }
    }

    /// Returns the next one.
    pub fn next(&self) -> FileName {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        FileName(u128::from(self.process) << 64 | u128::from(number))
    }
}

/// A folder of files. What fails may have happened in part.
pub trait Files: Send + Sync {
    /// Returns a name that was never given.
    fn new_name(&self) -> FileName;

    /// Makes a file, which must not exist.
    ///
    /// # Errors
    /// Those of the system.
    fn create(&self, name: FileName) -> io::Result<Arc<dyn OpenFile>>;

    /// Opens a file to read it.
    ///
    /// # Errors
    /// Those of the system.
    fn open(&self, name: FileName) -> io::Result<Arc<dyn OpenFile>>;

    /// Removes a file, which may be open.
    ///
    /// # Errors
    /// Those of the system; it is no error if the file does not exist.
    fn remove(&self, name: FileName) -> io::Result<()>;

    /// Lists all files with their lengths in bytes.
    ///
    /// # Errors
    /// Those of the system.
    fn list(&self) -> io::Result<Vec<(FileName, u64)>>;

    /// Makes durable which files there are.
    ///
    /// # Errors
    /// Those of the system.
    fn sync(&self) -> io::Result<()>;
}

/// An open file.
pub trait OpenFile: Send + Sync {
    /// Returns its length, in bytes.
    ///
    /// # Errors
    /// Those of the system.
    fn size(&self) -> io::Result<u64>;

    /// Reads from offset `at`; 0 bytes only at the end.
    ///
    /// # Errors
    /// Those of the system.
    fn read_at(&self, at: u64, target: &mut [u8]) -> io::Result<usize>;

    /// Writes all of `bytes` from offset `at` on.
    ///
    /// # Errors
    /// Those of the system.
    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes durable what it contains.
    ///
    /// # Errors
    /// Those of the system.
    fn sync(&self) -> io::Result<()>;

    /// Returns the file of the system that it is, if it is one: what that contains can be sent without being read.
    fn as_file(&self) -> Option<&File> {
        None
    }
}

/// A folder of the file system.
pub struct Folder {
    path: PathBuf,
    names: Names,
}

impl Folder {
    /// Opens the folder at `path`, which is made if need be, for its owner only.
    ///
    /// # Errors
    /// Those of the system.
    pub fn open(path: &Path) -> io::Result<Self> {
        match DirBuilder::new().mode(0o700).create(path) {
            // What is in it lasts only if it does.
            Ok(()) => File::open(path.parent().unwrap_or(path))?.sync_all()?,
            Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => {}
            Err(error) => return Err(error),
        }
        let mut process = [0; 8];
        getrandom(&mut process, GetRandomFlags::empty())?;
        Ok(Self { path: path.to_owned(), names: Names::new(u64::from_ne_bytes(process)) })
    }

    fn path(&self, name: FileName) -> PathBuf {
        self.path.join(name.to_string())
    }
}

impl Files for Folder {
    fn new_name(&self) -> FileName {
        self.names.next()
    }

    fn create(&self, name: FileName) -> io::Result<Arc<dyn OpenFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        Ok(Arc::new(options.open(self.path(name))?))
    }

    fn open(&self, name: FileName) -> io::Result<Arc<dyn OpenFile>> {
        Ok(Arc::new(File::open(self.path(name))?))
    }

    fn remove(&self, name: FileName) -> io::Result<()> {
        match fs::remove_file(self.path(name)) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    fn list(&self) -> io::Result<Vec<(FileName, u64)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if let Some(name) = entry.file_name().to_str().and_then(FileName::parse) {
                found.push((name, entry.metadata()?.len()));
            }
        }
        Ok(found)
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

impl OpenFile for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, at: u64, target: &mut [u8]) -> io::Result<usize> {
        FileExt::read_at(self, target, at)
    }

    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, at)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn as_file(&self) -> Option<&File> {
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_it_is_written() {
        let names = Names::new(0x0123_4567_89ab_cdef);
        let (first, second) = (names.next(), names.next());
        assert_eq!(first.to_string(), "0123456789abcdef0000000000000000");
        assert!(first < second);
        for name in [first, second] {
            assert_eq!(FileName::parse(&name.to_string()), Some(name));
        }
        let text = second.to_string();
        for other in ["", "lost+found", &text[1..], &text.to_uppercase(), &text.replace('0', "+")] {
            assert_eq!(FileName::parse(other), None, "{other}");
        }
    }
}
