//! Reads processes from /proc: parents, groups, start times, children, environments.
//!
//! Owns the reading of /proc. Signals and reaps no process. Invariant: a failed read is never taken for an answer: a
//! process that no longer exists is `None`, a missing environment is `Unknown`.

use std::collections::HashMap;
use std::fs;
use std::sync::OnceLock;

use rustix::process::{Pid, getpid};

/// The positions of the fields in `/proc/PID/stat`, counted from the field after the name (proc_pid_stat(5)).
const STATE: usize = 0;
const PARENT: usize = 1;
const GROUP: usize = 2;
const THREADS: usize = 17;
const START: usize = 19;

/// A process, as it was a moment ago.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: Pid,
    /// Its parent; `None` if the parent is in another namespace.
    pub parent: Option<Pid>,
    /// Its process group.
    pub group: Option<Pid>,
    /// Its start, in ticks since the boot: together with its number, this is unique.
    pub start: u64,
    /// Whether it has ended, and is not yet reaped.
    pub has_ended: bool,
}

impl Process {
    /// Returns the process of this number; `None` if no process has it.
    pub fn find(pid: Pid) -> Option<Self> {
        let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
        Self::parse(pid, &stat)
    }

    fn parse(pid: Pid, stat: &[u8]) -> Option<Self> {
        // The name, in parentheses, may contain anything.
        let end = memchr::memrchr(b')', stat)?;
        let rest = std::str::from_utf8(&stat[end + 1..]).ok()?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().take(START + 1).collect();
        let number = |n: usize| fields.get(n)?.parse::<i32>().ok();
        Some(Self {
            pid,
            parent: Pid::from_raw(number(PARENT)?),
            group: Pid::from_raw(number(GROUP)?),
            start: fields.get(START)?.parse().ok()?,
            // The state is that of the first thread, which may end before the others.
            has_ended: matches!(*fields.get(STATE)?, "Z" | "X" | "x") && number(THREADS)? <= 1,
        })
    }

    /// Returns whether this is the same process as `other`.
    pub fn is(&self, other: &Self) -> bool {
        (self.pid, self.start) == (other.pid, other.start)
    }
}

/// Whether a process was started with a variable in its environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variable {
    /// It was.
    Set,
    /// It was not, has overwritten its environment, or hides it from deferd.
    Unset,
    /// It has no environment: it was started without one, or executes a program at this moment.
    Unknown,
}

/// Looks for a variable, `NAME=VALUE`, in the environment with which a process was started.
pub fn variable(pid: Pid, wanted: &[u8]) -> Variable {
    match fs::read(format!("/proc/{pid}/environ")) {
        Ok(environment) if environment.is_empty() => Variable::Unknown,
        Ok(environment) if environment.split(|&b| b == 0).any(|v| v == wanted) => Variable::Set,
        Ok(_) | Err(_) => Variable::Unset,
    }
}

/// What /proc offers on this system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The children of each thread, in a file.
    Children,
    /// Only the parent of each process: all processes must be read.
    Parents,
    /// No processes, or those of another namespace.
    Nothing,
}

impl Source {
    /// Returns what this system offers; the result of the first call is kept.
    pub fn find() -> Self {
        static SOURCE: OnceLock<Source> = OnceLock::new();
        *SOURCE.get_or_init(|| {
            let own = getpid();
            let seen = fs::read_to_string("/proc/self/stat").unwrap_or_default();
            if seen.split(' ').next() != Some(&own.to_string()) {
                return Self::Nothing;
            }
            let has_children = fs::metadata(format!("/proc/self/task/{own}/children")).is_ok();
            if has_children { Self::Children } else { Self::Parents }
        })
    }
}

/// The children of each process.
pub enum Kinship {
    /// Each process is read when its children are requested.
    Asked,
    /// All processes were read.
    Read(HashMap<Pid, Vec<Pid>>),
}

impl Kinship {
    /// Reads all processes, if that is necessary; `None` without /proc.
    pub fn look() -> Option<Self> {
        match Source::find() {
            Source::Children => Some(Self::Asked),
            Source::Parents => Some(Self::Read(by_parent())),
            Source::Nothing => None,
        }
    }

    /// Returns the children of a process.
    pub fn children(&self, parent: Pid) -> Vec<Pid> {
        match self {
            Self::Asked => {
                let threads = numbers(&format!("/proc/{parent}/task"));
                threads.flat_map(|thread| children_of_thread(parent, thread)).collect()
            }
            Self::Read(by_parent) => by_parent.get(&parent).cloned().unwrap_or_default(),
        }
    }

    /// Returns the children of this process that it may have inherited. An orphan becomes a child of the first thread,
    /// which runs as long as the process does; children of other threads were started by them.
    pub fn inherited(&self) -> Vec<Pid> {
        let own = getpid();
        match self {
            Self::Asked => children_of_thread(own, own),
            Self::Read(_) => self.children(own),
        }
    }
}

fn children_of_thread(process: Pid, thread: Pid) -> Vec<Pid> {
    // The process or the thread may have ended.
    let list = fs::read_to_string(format!("/proc/{process}/task/{thread}/children"));
    let pid = |word: &str| Pid::from_raw(word.parse().ok()?);
    list.unwrap_or_default().split_ascii_whitespace().filter_map(pid).collect()
}

fn by_parent() -> HashMap<Pid, Vec<Pid>> {
    let mut by_parent: HashMap<Pid, Vec<Pid>> = HashMap::new();
    for process in numbers("/proc").filter_map(Process::find) {
        if let Some(parent) = process.parent {
            by_parent.entry(parent).or_default().push(process.pid);
        }
    }
    by_parent
}

/// Returns the entries of a directory that are numbers.
fn numbers(directory: &str) -> impl Iterator<Item = Pid> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    entries.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_name_cannot_forge_the_fields() {
        let pid = Pid::INIT;
        let stat = |state, threads| {
            format!(
                "1 (a) Z 7 7 7 (b) {state} 5 6 7 0 -1 0 1 2 3 4 5 6 7 8 20 0 {threads} 0 4711 9"
            )
        };
        let (parent, group) = (Pid::from_raw(5), Pid::from_raw(6));
        // A process whose first thread has ended still exists.
        for (state, threads, has_ended) in
            [("S", 1, false), ("Z", 1, true), ("Z", 0, true), ("Z", 2, false), ("X", 0, true)]
        {
            let process = Process::parse(pid, stat(state, threads).as_bytes());
            let expected = Process { pid, parent, group, start: 4711, has_ended };
            assert_eq!(process, Some(expected), "{state} {threads}");
        }
        assert_eq!(Process::parse(pid, b"1 (a) S 5 6"), None);
        assert_eq!(Process::parse(pid, b""), None);
    }

    #[test]
    fn both_sources_know_a_child_and_its_environment() {
        let mut command = Command::new("cat");
        command.env("A_VARIABLE", "set").stdin(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let pid = Pid::from_child(&child);
        assert!(Kinship::Asked.children(getpid()).contains(&pid));
        assert!(Kinship::Read(by_parent()).children(getpid()).contains(&pid));
        assert_eq!(Process::find(pid).unwrap().parent, Some(getpid()));
        // Until it executes its program, it has the environment of this process.
        let seen = || variable(pid, b"A_VARIABLE=set");
        while seen() != Variable::Set {}
        assert_eq!(variable(pid, b"A_VARIABLE=se"), Variable::Unset);
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(Process::find(pid), None);
        assert_eq!(seen(), Variable::Unset);
    }
}
