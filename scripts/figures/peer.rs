//! A peer, another program that is measured, with all its processes: they end when it is dropped, and when the
//! benchmark is told to end.
//!
//! A peer's processes are those in the groups that were started for it, and those with its mark in their environment,
//! wherever they have gone.

use std::fs;
use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// A server that does not listen by then will never do so.
const START_LIMIT: Duration = Duration::from_secs(30);

/// A peer that has not ended by then is killed.
const END_LIMIT: Duration = Duration::from_secs(3);

/// The variable that marks a peer's processes.
const MARK: &str = "DEFERD_BENCH_PEER";

/// What must be ended.
static STARTED: Mutex<Started> =
    Mutex::new(Started { marks: Vec::new(), groups: Vec::new(), directories: Vec::new() });

struct Started {
    marks: Vec<String>,
    /// Process groups, and the marks of their peers.
    groups: Vec<(u32, String)>,
    directories: Vec<PathBuf>,
}

/// The processes that make up one server.
pub struct Peer {
    mark: String,
    children: Vec<Child>,
}

impl Peer {
    pub fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let mark = format!("{MARK}={}-{count}", std::process::id());
        STARTED.lock().unwrap().marks.push(mark.clone());
        Self { mark, children: Vec::new() }
    }

    /// Starts one of its processes, in a group of its own.
    pub fn start(&mut self, command: &mut Command) {
        let child = self.marked(command).stdin(Stdio::null()).stdout(Stdio::null());
        let child = child.stderr(Stdio::null()).process_group(0).spawn();
        let child = child.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        STARTED.lock().unwrap().groups.push((child.id(), self.mark.clone()));
        self.children.push(child);
    }

    /// Marks a command as one of its own.
    pub fn marked<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        let (name, value) = self.mark.split_once('=').unwrap();
        command.env(name, value)
    }

    /// Returns the memory of all its processes, in bytes: resident, and with shared memory divided among them.
    pub fn memory(&self) -> Memory {
        memory(&processes(&self.mark))
    }
}

/// Marks a command that is not a peer, but must also end on signals.
pub fn mark_own(command: &mut Command) {
    let mark = own_mark();
    let (name, value) = mark.split_once('=').unwrap();
    command.env(name, value);
}

fn own_mark() -> String {
    format!("{MARK}={}-own", std::process::id())
}

/// Resident memory and proportional set size, in bytes.
#[derive(Clone, Copy)]
pub struct Memory {
    pub resident: f64,
    pub proportional: f64,
}

/// Returns the memory of these processes together.
pub fn memory(pids: &[u32]) -> Memory {
    let mut memory = Memory { resident: 0.0, proportional: 0.0 };
    for pid in pids {
        // A process that has just ended weighs nothing.
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let bytes = |name: &str| {
            let line = rollup.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("0 kB");
            line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() * 1024.0
        };
        memory.resident += bytes("Rss:");
        memory.proportional += bytes("Pss:");
    }
    memory
}

impl Drop for Peer {
    fn drop(&mut self) {
        end(&self.mark);
        for child in &mut self.children {
            let _ = child.wait();
        }
        let mut started = STARTED.lock().unwrap();
        started.marks.retain(|mark| *mark != self.mark);
        started.groups.retain(|(_, mark)| *mark != self.mark);
    }
}

/// Returns the processes in the groups of a peer, and those with its mark: some leave their group, and others
/// overwrite their environment.
fn processes(mark: &str) -> Vec<u32> {
    let groups: Vec<u32> = {
        let started = STARTED.lock().unwrap();
        started.groups.iter().filter(|(_, of)| of == mark).map(|(group, _)| *group).collect()
    };
    let directory = fs::read_dir("/proc").unwrap();
    let pids = directory.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_marked = |pid: u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|&b| b == 0).any(|variable| variable == mark.as_bytes())
    };
    pids.filter(|&pid| is_marked(pid) || groups.contains(&group(pid))).collect()
}

/// Returns the process group of a process.
fn group(pid: u32) -> u32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name, in parentheses, may contain anything; the group is the third field after it.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    fields.split_whitespace().nth(2).map_or(0, |group| group.parse().unwrap())
}

/// Ends the processes with this mark: in order, so that parents wait for their children, or else by force.
fn end(mark: &str) {
    let begin = Instant::now();
    loop {
        let pids = processes(mark);
        // Our own children that have ended, and that were not waited for, have no memory.
        let alive = |pid: &&u32| memory(&[**pid]).resident > 0.0;
        if pids.iter().filter(alive).count() == 0 || begin.elapsed() > 2 * END_LIMIT {
            return;
        }
        let signal = if begin.elapsed() < END_LIMIT { Signal::TERM } else { Signal::KILL };
        for pid in pids {
            let pid = Pid::from_raw(pid.cast_signed()).unwrap();
            let _ = kill_process(pid, signal);
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// A directory for what peers write, removed when dropped.
pub struct Directory(pub PathBuf);

impl Directory {
    pub fn new() -> Self {
        let path = std::env::temp_dir().join(format!("deferd-bench-peers-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        STARTED.lock().unwrap().directories.push(path.clone());
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Makes SIGINT, SIGTERM and SIGHUP end this program, with everything that it has started.
pub fn end_on_signals() {
    let (mut receiver, sender) = UnixStream::pair().unwrap();
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        let sender = sender.try_clone().unwrap();
        signal_hook::low_level::pipe::register(signal, sender).unwrap();
    }
    thread::spawn(move || {
        let _ = receiver.read_exact(&mut [0]);
        end_everything();
        std::process::exit(130);
    });
}

fn end_everything() {
    let (marks, directories) = {
        let started = STARTED.lock().unwrap();
        (started.marks.clone(), started.directories.clone())
    };
    marks.iter().chain([&own_mark()]).for_each(|mark| end(mark));
    for directory in directories {
        let _ = fs::remove_dir_all(directory);
    }
}

/// Returns an address whose port was free a moment ago.
pub fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Waits until a server listens.
pub fn wait_for(what: &str, address: SocketAddr) {
    wait(what, || TcpStream::connect(address).is_ok());
}

/// Waits until a server listens on a socket in the file system.
pub fn wait_for_path(what: &str, path: &Path) {
    wait(what, || UnixStream::connect(path).is_ok());
}

fn wait(what: &str, is_there: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is_there() {
        assert!(begin.elapsed() < START_LIMIT, "{what} does not listen within {START_LIMIT:?}");
        thread::sleep(Duration::from_millis(20));
    }
}
