//! The harness: a real deferd on a free port (`deferd`), and a client that reads answers to the byte (`client`).
//!
//! Waits by polling with a deadline, never by a fixed sleep (`waits`). Whatever a test starts ends with it.

mod client;
mod deferd;
mod front;
pub mod hold;
mod processes;
pub mod upstream;
mod waits;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

pub use client::*;
pub use deferd::*;
pub use front::*;
pub use processes::*;
pub use waits::*;

/// Returns the directory of the tests' scripts.
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts")
}

/// Reports that a test cannot run here, and why: to the terminal itself, because the output of a test is shown only if
/// it fails.
pub fn not_tested(what: &str) {
    let _ = std::io::stderr().write_all(format!("NOT TESTED: {what}\n").as_bytes());
}

/// A directory that is removed with the test.
pub struct TempDir(pub PathBuf);

impl TempDir {
    pub fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("deferd-test-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path.canonicalize().unwrap())
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
