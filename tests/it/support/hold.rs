//! A script that runs until its test lets it go, so that no test depends on how long anything takes.

use std::path::PathBuf;

use super::{Client, TempDir, eventually};

/// A run of `c-hold` or `c-deaf`, and the files by which it is seen and let go.
pub struct Hold {
    dir: TempDir,
    script: &'static str,
}

impl Hold {
    pub fn new() -> Self {
        Self { dir: TempDir::new(), script: "c-hold" }
    }

    /// One that SIGTERM does not end.
    pub fn deaf() -> Self {
        Self { dir: TempDir::new(), script: "c-deaf" }
    }

    /// The target that runs it, below the route `/run/`.
    pub fn target(&self) -> String {
        format!("/run/{}?{}", self.script, self.dir.join("h").display())
    }

    /// Submits it and waits until it runs; its id.
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

    /// Lets it go on.
    pub fn release(&self) {
        std::fs::write(self.file("go"), "").unwrap();
    }

    /// Removes what it has left, so that it can be run again.
    pub fn forget(&self) {
        for what in ["started", "ended", "go"] {
            let _ = std::fs::remove_file(self.file(what));
        }
    }
}
