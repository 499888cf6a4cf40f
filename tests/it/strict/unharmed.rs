//! What must hold after every case, and the tools of the cases: what deferd holds, and writing without reading.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::support::{Client, Deferd, PATIENCE, eventually};

/// By how much the resident memory may have grown, in KiB: an allocator does not give back every page.
const GROWTH: usize = 8 * 1024;

/// How long deferd may take to notice that a client has left. The contract says half a second; a busy machine gets
/// more. Without the behaviour it takes an hour, or for ever.
pub const NOTICED: Duration = Duration::from_secs(2);

/// The size of a crowd.
pub const CROWD: usize = 500;

/// What the first crowd may cost permanently, in KiB, however honest it is. glibc keeps 40 MiB of stacks for the next
/// one (157 of them, each with up to 24 KiB in use: 3.7 MiB), and, in each of eight arenas a core, the pages between
/// freed pieces of less than 128 bytes. Measured on two cores: 4.7 MiB after 500 connections that were idle, 8.6 after
/// requests, 5 to 7 after heads, 8.3 after chunks and 10.7 after contents that were cut short; after four such crowds
/// the same.
const CROWD_PRICE: usize = 16 * 1024;

/// The highest resident memory besides `--max-memory`, in KiB: the program, stacks, tables.
const BESIDE_CONTENT: usize = 24 * 1024;

/// Runs a case, and checks that nothing of it is left.
#[track_caller]
pub fn unharmed(deferd: &Deferd, case: impl FnOnce()) {
    raise_descriptor_limit();
    // Warmed up, so that what is created once already exists.
    deferd.client().get("/_admin/echo").expect(200);
    unharmed_since(deferd, GROWTH, case);
}

/// Does the same for a case of hundreds of connections at once, after as many honest ones.
#[track_caller]
pub fn unharmed_by_crowd(deferd: &Deferd, case: impl FnOnce()) {
    raise_descriptor_limit();
    deferd.client().get("/_admin/echo").expect(200);
    unharmed_since(deferd, CROWD_PRICE, || {
        let mut crowd: Vec<_> = (0..CROWD).map(|_| deferd.client()).collect();
        for client in &mut crowd {
            client.send_request("POST", "/_admin/echo", &[], b"hello");
        }
        for client in &mut crowd {
            client.try_read("POST").expect("an answer").expect(200);
        }
    });
    unharmed_since(deferd, GROWTH, case);
}

/// Does the same for a case after which an allocator keeps much: results of many MiB, which redb copies through the
/// heap, or a crowd of large heads. The bound on the highest memory holds nevertheless.
#[track_caller]
pub fn unharmed_within_memory(deferd: &Deferd, case: impl FnOnce()) {
    raise_descriptor_limit();
    deferd.client().get("/_admin/echo").expect(200);
    unharmed_since(deferd, memory_limit(deferd) / 1024 + BESIDE_CONTENT, case);
}

#[track_caller]
fn unharmed_since(deferd: &Deferd, growth: usize, case: impl FnOnce()) {
    no_connection(deferd);
    let (memory, threads, descriptors) = (memory(deferd), deferd.threads(), deferd.descriptors());
    case();
    eventually("an honest request is answered within a second", || is_served(deferd));
    no_connection(deferd);
    eventually("no thread is left", || deferd.threads() <= threads);
    eventually("no descriptor is left", || deferd.descriptors() <= descriptors);
    let mut now = 0;
    let deadline = Instant::now() + PATIENCE / 4;
    while Instant::now() < deadline {
        now = self::memory(deferd);
        if now <= memory + growth {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(now <= memory + growth, "resident memory grew from {memory} to {now} KiB");
    let (highest, limit) = (highest(deferd), memory_limit(deferd) / 1024);
    assert!(
        highest <= limit + BESIDE_CONTENT,
        "{highest} KiB were resident with --max-memory of {limit} KiB"
    );
    assert!(deferd.children().is_empty(), "a script is left");
    assert!(!deferd.log().contains("panicked"), "{}", deferd.log());
}

/// Returns whether an honest client on a connection of its own is answered within a second. It may be turned away:
/// then the answer is no.
pub fn is_served(deferd: &Deferd) -> bool {
    let begin = Instant::now();
    let mut stream = TcpStream::connect(deferd.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let sent = stream.write_all(b"GET /_api/version HTTP/1.1\r\nhost: a\r\n\r\n");
    let mut start = [0; 12];
    let answered = sent.and_then(|()| stream.read_exact(&mut start));
    answered.is_ok() && start == *b"HTTP/1.1 200" && begin.elapsed() < Duration::from_secs(1)
}

/// Returns the number of threads that serve a connection.
pub fn connections(deferd: &Deferd) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", deferd.pid())).unwrap();
    let names = tasks.filter_map(|t| std::fs::read_to_string(t.ok()?.path().join("comm")).ok());
    names.filter(|name| name == "connection\n").count()
}

/// Waits until no connection is served.
#[track_caller]
pub fn no_connection(deferd: &Deferd) {
    eventually("no thread of a connection is left", || connections(deferd) == 0);
}

/// Returns the resident memory, in KiB.
pub fn memory(deferd: &Deferd) -> usize {
    status(deferd, "VmRSS:")
}

/// Returns the highest resident memory so far, in KiB.
pub fn highest(deferd: &Deferd) -> usize {
    status(deferd, "VmHWM:")
}

fn status(deferd: &Deferd, name: &str) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", deferd.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a size");
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Returns `--max-memory`, in bytes, as deferd reports it.
fn memory_limit(deferd: &Deferd) -> usize {
    detail(&mut deferd.client(), "memory-limit")
}

/// Returns a number of the version's details.
#[track_caller]
pub fn detail(client: &mut Client, name: &str) -> usize {
    let version = client.get("/_api/version?details=true").expect(200).json();
    version["details"][name].as_str().expect("a string").parse().expect("a number")
}

/// Writes as much as the other side takes before it closes; returns how much.
pub fn pour(client: &Client, bytes: &[u8]) -> usize {
    let mut socket = client.socket();
    let mut sent = 0;
    while sent < bytes.len() {
        match socket.write(&bytes[sent..]) {
            Ok(n) => sent += n,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    sent
}

/// Opens a bare connection.
pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Raises the limit of descriptors, which crowds of connections need on this side too.
pub fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).unwrap();
}
