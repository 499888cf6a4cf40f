//! Where content goes: standard output, or a file.
//!
//! Owns that a file is either complete or absent. Invariant: when [`Output::write`] has returned, the content is on
//! disk in a regular file of that name.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::Trouble;

/// Where content goes.
pub enum Output {
    /// Standard output.
    Stdout,
    /// A file; an existing one is replaced.
    File(PathBuf),
}

/// Which side failed while content was written.
pub enum Broken {
    /// The source ended early.
    Content(io::Error),
    /// The destination could not be written.
    Output(String),
}

impl Output {
    /// Writes content to its end; a regular file survives a crash.
    ///
    /// # Errors
    /// [`Broken`]; a regular file then has its previous content, unless the path is a link.
    pub fn write(&self, content: &mut dyn Read) -> Result<(), Broken> {
        match self {
            Self::Stdout => {
                let unwritable = |error| Broken::Output(format!("standard output: {error}"));
                copy(content, &mut stdout().map_err(unwritable)?, &unwritable)
            }
            Self::File(path) => {
                let unwritable = |error| Broken::Output(format!("{}: {error}", path.display()));
                // A device, a pipe or a link (/dev/stdout is a link, even to a regular file) is written in place:
                // replacing it would take it away from its other users.
                if fs::symlink_metadata(path).is_ok_and(|found| !found.is_file()) {
                    return write_through(content, path, &unwritable);
                }
                let mut part = Part::create(path).map_err(unwritable)?;
                copy(content, &mut part.file, &unwritable)?;
                part.finish(path).map_err(unwritable)
            }
        }
    }
}

/// Writes in place to what a path leads to.
fn write_through(
    content: &mut dyn Read,
    path: &Path,
    unwritable: &dyn Fn(io::Error) -> Broken,
) -> Result<(), Broken> {
    let opened = OpenOptions::new().write(true).truncate(true).open(path);
    let mut file = opened.map_err(unwritable)?;
    copy(content, &mut file, unwritable)?;
    let is_regular = file.metadata().is_ok_and(|found| found.is_file());
    if is_regular { file.sync_all().map_err(unwritable) } else { Ok(()) }
}

fn copy(
    content: &mut dyn Read,
    output: &mut File,
    unwritable: &dyn Fn(io::Error) -> Broken,
) -> Result<(), Broken> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match content.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => output.write_all(&buffer[..n]).map_err(unwritable)?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(Broken::Content(error)),
        }
    }
}

/// Returns standard output without a buffer: what is written to it has been taken.
fn stdout() -> io::Result<File> {
    io::stdout().as_fd().try_clone_to_owned().map(File::from)
}

/// Writes text to standard output.
///
/// # Errors
/// [`Trouble::Refused`].
pub fn print(text: &str) -> Result<(), Trouble> {
    print_bytes(text.as_bytes())
}

/// Writes bytes to standard output.
///
/// # Errors
/// [`Trouble::Refused`].
pub fn print_bytes(bytes: &[u8]) -> Result<(), Trouble> {
    let written = stdout().and_then(|mut stdout| stdout.write_all(bytes));
    written.map_err(|error| Trouble::Refused(format!("standard output: {error}")))
}

/// The beginning of a file, in the same directory; removed when dropped unless it is finished.
struct Part {
    path: PathBuf,
    file: File,
}

impl Part {
    fn create(target: &Path) -> io::Result<Self> {
        let name = target.file_name().ok_or(ErrorKind::IsADirectory)?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}.part", std::process::id()));
        let path = directory(target).join(hidden);
        let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        Ok(Self { path, file })
    }

    /// Puts the content on disk, under the name of the file.
    fn finish(self, target: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.path, target)?;
        File::open(directory(target))?.sync_all()
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // After `finish`, there is no such file.
        let _ = fs::remove_file(&self.path);
    }
}

fn directory(target: &Path) -> &Path {
    match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
