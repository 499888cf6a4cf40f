//! All waits of the tests: they are bounded, and report what they waited for in vain.
//!
//! Calls that block without a deadline in the standard library (the first line of a child, its end, `accept`, a
//! barrier) are here with one. Invariant: no test hangs; a test that fails reports what did not arrive.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::TempDir;

/// How long anything may take before a test gives up: long, because the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Makes a call on a socket, and repeats it when it is interrupted: the end of a child can interrupt every such call
/// that has a time limit, while another thread starts a process. The standard library's own loops (`read_exact`,
/// `write_all`) continue by themselves.
pub fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Calls `holds` repeatedly until it returns true.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Returns the first line that a child writes to its stdout, which is then closed. It is empty if the child ended
/// without one.
#[track_caller]
pub fn first_line(child: &mut Child) -> String {
    let stdout = child.stdout.take().unwrap();
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let _ = sender.send(line);
    });
    let line = receiver.recv_timeout(PATIENCE);
    if line.is_err() {
        let _ = child.kill();
    }
    line.expect("a first line of stdout in time").trim_end().to_owned()
}

/// How a command ended.
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a command until it ends by itself.
#[track_caller]
pub fn run(command: &mut Command) -> Ended {
    let dir = TempDir::new();
    let (stdout, stderr) = (dir.join("stdout"), dir.join("stderr"));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(File::create(&stdout).unwrap())
        .stderr(File::create(&stderr).unwrap())
        .env_remove("RUST_LOG")
        .spawn()
        .unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut status = child.try_wait().unwrap();
    while status.is_none() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(2));
        status = child.try_wait().unwrap();
    }
    let _ = child.kill();
    let _ = child.wait();
    let status = status.unwrap_or_else(|| panic!("{command:?} does not end by itself"));
    let read = |path| std::fs::read_to_string(path).unwrap();
    Ended { code: status.code(), stdout: read(&stdout), stderr: read(&stderr) }
}

/// Runs deferd to its end.
#[track_caller]
pub fn run_deferd(arguments: &[&str]) -> Ended {
    run(Command::new(env!("CARGO_BIN_EXE_deferd")).args(arguments))
}

/// Returns the next connection to a listener.
#[track_caller]
pub fn accept(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).unwrap();
    let mut accepted = None;
    eventually("somebody connects", || {
        accepted = listener.accept().ok();
        accepted.is_some()
    });
    let (stream, _) = accepted.unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Where threads wait for each other, to begin something at the same moment, repeatedly.
pub struct Meeting {
    size: usize,
    arrived: AtomicUsize,
}

impl Meeting {
    pub const fn of(size: usize) -> Self {
        Self { size, arrived: AtomicUsize::new(0) }
    }

    /// Waits for the others; gives up if one of them has failed and does not come.
    #[track_caller]
    pub fn wait(&self) {
        let mine = self.arrived.fetch_add(1, Ordering::AcqRel);
        let full = (mine / self.size + 1) * self.size;
        let begin = Instant::now();
        while self.arrived.load(Ordering::Acquire) < full {
            assert!(begin.elapsed() < PATIENCE, "the others do not come");
            thread::yield_now();
        }
    }
}
