//! A script that runs until its test releases it, so that no test depends on timing.

use std::path::PathBuf;

use super::{Client, TempDir, eventually};

/// A run of `c-hold` or `c-deaf`, and the files by which it is observed and released.
pub struct Hold {
    dir: TempDir,
    script: &'static str,
}

impl Hold {
    pub fn new() -> Self {
        Self { dir: TempDir::new(), script: "c-hold" }
    }

    /// Returns one that SIGTERM does not end.
    pub fn deaf() -> Self {
        Self { dir: TempDir::new(), script: "c-deaf" }
    }

    /// Returns the target that runs it, below the route `/run/`.
    pub fn target(&self) -> String {
        format!("/run/{}?{}", self.script, self.dir.join("h").display())
    }

    /// Submits it and waits until it runs; returns its id.
    #[track_caller]
    pub fn start(&self, client: &mut Client) -> String {
        let id = client.store("GET", &self.target(), b"");
        self.wait_for("started");
        id
    }

    fn file(&self, what: &str) -> PathBuf {
        self.dir.join(&format!("h.{what}"))
    }

    pub fn has(&self, what: &str) -> bool {
        self.file(what).exists()
    }

    /// Waits for its `started`, `ended` or `term`.
    #[track_caller]
    pub fn wait_for(&self, what: &str) {
        eventually(what, || self.has(what));
    }

    /// Releases it.
    pub fn release(&self) {
        std::fs::write(self.file("go"), "").unwrap();
    }

    /// Removes the files that it has left, so that it can run again.
    pub fn forget(&self) {
        for what in ["started", "ended", "go"] {
            let _ = std::fs::remove_file(self.file(what));
        }
    }
}
