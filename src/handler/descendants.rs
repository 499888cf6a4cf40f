//! The processes that a script started: finds and signals them wherever they have gone.
//!
//! Owns the walk over the descendants of one run. Does not wait, and reaps no process: `reaper` does. They are found
//! through their parents; deferd inherits a process whose parent has ended, and recognizes it by the variable
//! `DEFERD_RUN` of its run. Invariant: a signal reaches a descendant of the run or no process at all: it is sent
//! through a descriptor of the process, and only if parent and start time are the same before and after the descriptor
//! was opened. A process escapes only if it changed its environment *and* lost its parent before it was seen.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Once;

use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, getpid, kill_process_group, pidfd_open, pidfd_send_signal,
    test_kill_process,
};
use rustix::rand::{GetRandomFlags, getrandom};

use super::process_table::{Kinship, Process, Variable, variable};
use crate::clock;

/// The variable that names a run.
pub const RUN: &str = "DEFERD_RUN";

/// The number of ticks in a second: `USER_HZ` of every Linux that Rust builds for.
const TICKS: u64 = 100;

/// How many descriptors of processes are open at a time.
const MAX_OPEN: usize = 64;

/// How often a process without an environment is checked before it counts as a process of another run.
const MAX_DOUBTS: u32 = 3;

/// The name of a run; no other run of any deferd has the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunName(u128);

impl RunName {
    /// Returns a new name.
    ///
    /// # Errors
    /// Errors of the system.
    pub fn random() -> Result<Self, Errno> {
        let mut bytes = [0; 16];
        // A single call returns this few bytes.
        getrandom(&mut bytes, GetRandomFlags::empty())?;
        Ok(Self(u128::from_ne_bytes(bytes)))
    }
}

impl fmt::Display for RunName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The processes of a run, its leader included.
pub struct Descendants {
    /// The script itself, which leads a group. It must not be reaped while this is used.
    leader: Pid,
    /// `DEFERD_RUN=NAME`.
    mark: String,
    /// The processes that were running at the last look.
    alive: Vec<Process>,
    /// Processes of another user, which deferd may not signal.
    refused: Vec<Process>,
    /// How often each orphan was seen without an environment.
    doubts: HashMap<Pid, u32>,
    /// The processes that got SIGTERM, and when the last of them did, in ticks since the boot.
    told: Vec<Process>,
    told_at: u64,
}

impl Descendants {
    /// Returns the processes of the run of this name, before the first [look](Self::look).
    pub fn of(leader: Pid, run: &RunName) -> Self {
        let mark = format!("{RUN}={run}");
        let (alive, refused, told) = <(Vec<_>, Vec<_>, Vec<_>)>::default();
        Self { leader, mark, alive, refused, doubts: HashMap::new(), told, told_at: 0 }
    }

    /// Finds the processes of the run; returns whether any may be left that can be ended.
    pub fn look(&mut self) -> bool {
        let Some(kinship) = Kinship::look() else {
            warn_blind();
            return false;
        };
        let (mut roots, is_unsure) = self.inherited(&kinship);
        // A process that was seen before stays known after its parent ends.
        let known = self.alive.iter().filter(|known| find_again(known).is_some());
        roots.extend(known.map(|known| known.pid));
        roots.push(self.leader);
        self.alive = walk(&kinship, roots);
        let is_refused = |process: &Process| self.refused.iter().any(|other| process.is(other));
        is_unsure || self.alive.iter().any(|process| !is_refused(process))
    }

    /// Returns the orphans of this run, and whether any orphan is not yet identified.
    fn inherited(&mut self, kinship: &Kinship) -> (Vec<Pid>, bool) {
        let (mut marked, mut is_unsure) = (Vec::new(), false);
        for pid in kinship.inherited() {
            match variable(pid, self.mark.as_bytes()) {
                Variable::Set => marked.push(pid),
                Variable::Unset => {}
                Variable::Unknown
                    if Process::find(pid).is_some_and(|process| !process.has_ended) =>
                {
                    let doubts = self.doubts.entry(pid).or_default();
                    *doubts += 1;
                    is_unsure |= *doubts <= MAX_DOUBTS;
                }
                Variable::Unknown => {}
            }
        }
        (marked, is_unsure)
    }

    /// Signals the group, and the processes outside it that the last [look](Self::look) found.
    pub fn signal(&mut self, signal: Signal) {
        let (leader, mut group) = (Some(self.leader), Some(self.leader));
        // The group accepts a signal if one of its processes does.
        let in_group = self.alive.iter().filter(|process| process.group == leader);
        let is_refused = |process: &&Process| test_kill_process(process.pid) == Err(Errno::PERM);
        let mut refused: Vec<Process> = in_group.filter(is_refused).cloned().collect();
        for some in self.alive.chunks(MAX_OPEN) {
            let left = some.iter().filter(|process| process.group != leader);
            // Opens all before it signals the first: the end of one would change the parents of others.
            let open: Vec<_> = left.filter_map(|p| Some((p, open(p)?))).collect();
            if let Some(group) = group.take() {
                let _ = kill_process_group(group, signal);
            }
            for (process, pidfd) in open {
                if pidfd_send_signal(pidfd, signal) == Err(Errno::PERM) {
                    refused.push(process.clone());
                }
            }
        }
        if let Some(group) = group {
            let _ = kill_process_group(group, signal);
        }
        self.refused.append(&mut refused);
    }

    /// Sends SIGTERM to all running processes.
    pub fn terminate(&mut self) {
        self.look();
        self.signal(Signal::TERM);
        self.told.clone_from(&self.alive);
        self.told_at = ticks();
    }

    /// Sends SIGTERM to processes of the last [look](Self::look) that were missed before, because the parent ended just
    /// after it had started them. Processes started later are for cleaning up, and get no signal.
    pub fn terminate_missed(&mut self) {
        let is_told = |process: &Process| self.told.iter().any(|told| process.is(told));
        let orphan = |process: &&Process| process.parent == Some(getpid());
        let is_missed = |process: &&Process| process.start <= self.told_at && !is_told(process);
        let missed = self.alive.iter().filter(orphan).filter(is_missed);
        let missed: Vec<Process> = missed.cloned().collect();
        for pidfd in missed.iter().filter_map(open) {
            let _ = pidfd_send_signal(pidfd, Signal::TERM);
            // Whatever it leaves at its own end was missed as well.
            self.told_at = ticks();
        }
        self.told.extend(missed);
    }

    /// Returns how many were running at the last look, including those that cannot be ended.
    pub fn alive(&self) -> usize {
        self.alive.len()
    }
}

/// Returns the time since the boot in the unit of the start times of processes (proc_pid_stat(5)).
fn ticks() -> u64 {
    clock::now().age.micros() as u64 / (1_000_000 / TICKS)
}

/// Returns how many processes of a group are running, as far as deferd has inherited them or their ancestors; `None`
/// if that cannot be determined.
pub fn count_group(group: Pid) -> Option<usize> {
    let kinship = Kinship::look()?;
    let processes = walk(&kinship, kinship.inherited());
    Some(processes.iter().filter(|process| process.group == Some(group)).count())
}

/// Returns the running processes among `open` and their descendants.
fn walk(kinship: &Kinship, mut open: Vec<Pid>) -> Vec<Process> {
    let (mut seen, mut alive) = (HashSet::new(), Vec::new());
    while let Some(pid) = open.pop() {
        if !seen.insert(pid) {
            continue;
        }
        open.extend(kinship.children(pid));
        alive.extend(Process::find(pid).filter(|process| !process.has_ended));
    }
    alive
}

/// Returns the process as it is now; `None` if it no longer exists.
fn find_again(process: &Process) -> Option<Process> {
    Process::find(process.pid).filter(|now| now.is(process))
}

/// Opens a process; `None` if it no longer exists, or has another parent: then the next look finds it.
fn open(process: &Process) -> Option<OwnedFd> {
    let pidfd = pidfd_open(process.pid, PidfdFlags::empty()).ok()?;
    let now = find_again(process)?;
    (now.parent == process.parent).then_some(pidfd)
}

fn warn_blind() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::warn!(
            "without the /proc of its own processes deferd ends only the process group of a script, and not \
             what has left it"
        );
    });
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::process::{Command, Stdio};
    use std::thread;
    use std::time::{Duration, Instant};

    use rustix::process::set_child_subreaper;

    use super::*;

    #[test]
    fn a_missed_process_gets_sigterm_a_later_one_does_not() {
        set_child_subreaper(Some(getpid())).unwrap();
        let run = RunName::random().unwrap();
        let mut leader = Command::new("sh")
            .args(["-c", "setsid sleep 97 & echo; exec sleep 96"])
            .env(RUN, run.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        leader.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        let mut descendants = Descendants::of(Pid::from_child(&leader), &run);
        leader.kill().unwrap();
        leader.wait().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let wait_until = |is_there: bool, descendants: &mut Descendants| {
            while descendants.look() != is_there || descendants.alive() != usize::from(is_there) {
                assert!(Instant::now() < deadline, "{is_there} {:?}", descendants.alive);
                thread::sleep(Duration::from_millis(5));
            }
        };
        wait_until(true, &mut descendants);
        // As if all had got their signals before it was started.
        descendants.terminate_missed();
        assert!(descendants.told.is_empty());
        // As if it had been started just before.
        descendants.told_at = ticks();
        descendants.terminate_missed();
        assert_eq!(descendants.told.len(), 1);
        wait_until(false, &mut descendants);
    }

    #[test]
    fn names_of_runs_differ_and_are_one_word() {
        let [one, other] = [RunName::random().unwrap(), RunName::random().unwrap()];
        assert_ne!(one, other);
        let shown = one.to_string();
        assert!(shown.len() == 32 && shown.bytes().all(|b| b.is_ascii_hexdigit()), "{shown}");
    }
}
