//! The files that the operator names, which are read at start and again on SIGHUP: users, secrets, variables.
//!
//! Owns how they are read, not what is in them. Invariant: reading neither waits for another process nor takes more
//! memory than `MAX_SIZE`, whatever lies at the path.

use std::fs::{Metadata, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

/// How large a file may be, in bytes: as large as the largest environment that the kernel takes.
const MAX_SIZE: u64 = 2 << 20;

/// Reads a file that `check` finds well protected.
///
/// # Errors
/// In words, what is wrong with the file and what to do.
pub fn read(
    path: &Path,
    check: impl FnOnce(&Metadata) -> Result<(), String>,
) -> Result<Vec<u8>, String> {
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    // To open a pipe would wait for its writer.
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = file.map_err(|error| error.to_string())?;
    let metadata = file.metadata().map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("not a regular file".into());
    }
    check(&metadata)?;
    let mut text = Vec::new();
    file.take(MAX_SIZE + 1).read_to_end(&mut text).map_err(|error| error.to_string())?;
    if text.len() as u64 > MAX_SIZE {
        return Err("larger than 2M".into());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    #[test]
    fn only_regular_files_of_bounded_size_are_read() {
        let path = |name: &str| {
            std::env::temp_dir().join(format!("deferd-file-{}-{name}", std::process::id()))
        };
        let (good, large, pipe) = (path("good"), path("large"), path("pipe"));
        std::fs::write(&good, "text").unwrap();
        std::fs::File::create(&large).unwrap().set_len(MAX_SIZE + 1).unwrap();
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let read = |path: &Path| super::read(path, |_| Ok(()));
        assert_eq!(read(&good), Ok(b"text".to_vec()));
        assert_eq!(super::read(&good, |_| Err("open to all".into())), Err("open to all".into()));
        assert_eq!(read(&large), Err("larger than 2M".into()));
        // It has no writer, and never gets one.
        assert_eq!(read(&pipe), Err("not a regular file".into()));
        assert_eq!(read(&std::env::temp_dir()), Err("not a regular file".into()));
        for path in [good, large, pipe] {
            std::fs::remove_file(path).unwrap();
        }
    }
}
