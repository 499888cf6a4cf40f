//! A real deferd on a free port, and the resources that it holds.
//!
//! Knows no HTTP. Invariant: it ends with its test.

use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};

use super::{Client, TempDir, children_of, eventually, first_line, fixtures, front_arguments};

/// Returns options that are added to those of every test, so that a suite can run over another store:
/// `DEFERD_TEST_OPTIONS="--data DIR"`. `DIR` stands for a directory of the test's own, `NAME` for a name of its own.
fn added_options(dir: &TempDir) -> Vec<String> {
    let options = std::env::var("DEFERD_TEST_OPTIONS").unwrap_or_default();
    let own = dir.join("data").display().to_string();
    let name = dir.0.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    options.split_whitespace().map(|word| word.replace("DIR", &own).replace("NAME", name)).collect()
}

/// Returns whether the added options make deferd share its store.
pub fn is_shared() -> bool {
    std::env::var("DEFERD_TEST_OPTIONS").is_ok_and(|options| options.contains("--store"))
}

/// Returns whether the jobs of the deferd under test are lost with it.
pub fn is_in_memory() -> bool {
    std::env::var("DEFERD_TEST_OPTIONS").is_err()
}

/// Runs a test over the store in memory and the one on disk, each with these arguments.
pub fn in_both_stores(arguments: &[&str], test: impl Fn(&Deferd)) {
    let dir = TempDir::new();
    let data = dir.join("data");
    for store in [&[][..], &["--data", data.to_str().unwrap()]] {
        test(&Deferd::with_scripts("", &[store, arguments].concat()));
    }
}

/// A deferd of a test, killed with it.
pub struct Deferd {
    child: Child,
    pub address: SocketAddr,
    pub dir: TempDir,
}

impl Deferd {
    /// Starts a deferd with these arguments, on a free port.
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_by(Command::new(env!("CARGO_BIN_EXE_deferd")), arguments)
    }

    /// Starts a deferd with the scripts of the tests at `/run/` and `/cgi/`, and adds options to each route
    /// (`",timeout=1s"`).
    pub fn with_scripts(route_options: &str, arguments: &[&str]) -> Self {
        Self::with_scripts_by(Command::new(env!("CARGO_BIN_EXE_deferd")), route_options, arguments)
    }

    /// Does the same with a prepared command.
    pub fn with_scripts_by(command: Command, route_options: &str, arguments: &[&str]) -> Self {
        let fixtures = fixtures().display().to_string();
        let run = format!("/run/=run:{fixtures}{route_options}");
        let cgi = format!("/cgi/=cgi:{fixtures}{route_options}");
        let mut all = vec!["--route", run.as_str(), "--route", cgi.as_str()];
        all.extend_from_slice(arguments);
        Self::start_by(command, &all)
    }

    /// Starts a deferd with a prepared command.
    pub fn start_by(mut command: Command, arguments: &[&str]) -> Self {
        let dir = TempDir::new();
        let log = std::fs::File::create(dir.join("log")).unwrap();
        // A test that needs a directory of its own is about that store.
        let needs_other = is_shared() && arguments.contains(&"--data");
        let added = if needs_other { Vec::new() } else { added_options(&dir) };
        if !arguments.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        let mut child = command
            .args(front_arguments())
            .args(added)
            .args(arguments)
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let line = first_line(&mut child);
        let address = line.strip_prefix("listening on http://");
        let log = || std::fs::read_to_string(dir.join("log")).unwrap();
        let address = address.unwrap_or_else(|| panic!("{line:?}\n{}", log())).parse().unwrap();
        Self { child, address, dir }
    }

    pub fn client(&self) -> Client {
        Client::new(self.address)
    }

    /// Returns what it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap()
    }

    /// Returns what it has logged, once it contains these words: another thread writes the log.
    #[track_caller]
    pub fn log_with(&self, words: &str) -> String {
        eventually(&format!("{words:?} is logged"), || self.log().contains(words));
        self.log()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns its children, zombies included.
    pub fn children(&self) -> Vec<u32> {
        children_of(self.pid())
    }

    /// Returns its open descriptors.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// Returns the number of its sockets: listening ones, and its connections.
    pub fn sockets(&self) -> usize {
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap();
        let target =
            |entry: std::io::Result<std::fs::DirEntry>| entry.ok()?.path().read_link().ok();
        descriptors
            .filter_map(target)
            .filter(|target| target.to_string_lossy().starts_with("socket:"))
            .count()
    }

    /// Returns its threads.
    pub fn threads(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap().count()
    }

    pub fn signal(&self, signal: &str) {
        let pid = self.pid().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("deferd ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Deferd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
