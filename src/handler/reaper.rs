//! The children of this process: those that it started and those that it inherited.
//!
//! Owns the table of runs, which tells the two kinds apart, and a thread that reaps inherited children and takes care
//! of groups that linger. Does not reap scripts: their runs do. It exists once, because a process has one set of
//! children. Invariants: a child that is not in the table is inherited, and a child is started and entered while the
//! thread reaps none; each child is reaped by its number; a lingering group is signalled only while a child of deferd
//! is in it, so that its number cannot belong to another group.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, RawPid, Signal, WaitId, WaitIdOptions, getpid, kill_process_group, set_child_subreaper,
    waitid,
};
use signal_hook::consts::SIGCHLD;

use super::descendants::count_group;
use super::process_table::Kinship;
use crate::job::lingering::Lingering;

/// How long the rest of a group has to leave it.
const LEAVE_TIME: Duration = Duration::from_millis(200);

/// The longest wait for a killed group. Only a process that the kernel cannot end takes longer.
const KILL_TIME: Duration = Duration::from_secs(6);

/// The period of checking lingering groups.
const TICK: Duration = Duration::from_millis(5);

/// How long an inherited child that has ended may wait for others: one pass reaps all of them.
const REST: Duration = Duration::from_millis(50);

static RUNS: Runs = Runs {
    starting: RwLock::new(()),
    leaders: Mutex::new(BTreeSet::new()),
    abandoned: Mutex::new(Vec::new()),
    lingering: Mutex::new(Vec::new()),
    count: AtomicUsize::new(0),
};

/// Wakes the thread; empty until the thread runs.
static WAKE: OnceLock<UnixStream> = OnceLock::new();

struct Runs {
    /// Shared by threads that start children, exclusive while inherited children are reaped.
    starting: RwLock<()>,
    /// The table of runs: the scripts that were started and are not yet reaped.
    leaders: Mutex<BTreeSet<RawPid>>,
    /// Scripts that the kernel did not end in time: they are reaped once they have ended.
    abandoned: Mutex<Vec<Pid>>,
    /// The groups that were added since the thread's last pass.
    lingering: Mutex<Vec<LingeringGroup>>,
    /// How many groups linger, including those that the thread has taken.
    count: AtomicUsize,
}

/// Takes over the orphans of all scripts from now on, and reaps them.
///
/// # Errors
/// Errors of the system.
pub fn start() -> io::Result<()> {
    if let Err(error) = set_child_subreaper(Some(getpid())) {
        log::warn!(
            "cannot become the subreaper of scripts, processes that leave their group are not ended: {}",
            io::Error::from(error)
        );
    }
    let (ended, signals) = UnixStream::pair()?;
    let (woken, wake) = UnixStream::pair()?;
    for end in [&ended, &signals, &woken, &wake] {
        end.set_nonblocking(true)?;
    }
    signal_hook::low_level::pipe::register(SIGCHLD, signals)?;
    // Children inherited earlier have sent their signals already.
    let reap_at = Some(Instant::now());
    thread::Builder::new().name("reaper".into()).spawn(move || watch(ended, woken, reap_at))?;
    // A second thread would only do the same work.
    let _ = WAKE.set(wake);
    Ok(())
}

/// Starts a child and enters it into the table; [`reap`] or [`abandon`] removes it.
///
/// # Errors
/// Errors of the system.
pub fn spawn(command: &mut Command) -> io::Result<Child> {
    let _shared = RUNS.starting.read().unwrap_or_else(PoisonError::into_inner);
    let child = command.spawn()?;
    lock(&RUNS.leaders).insert(Pid::from_child(&child).as_raw_nonzero().get());
    Ok(child)
}

/// Waits for the end of a child that `spawn` started.
///
/// # Errors
/// Errors of the system.
pub fn reap(child: &mut Child) -> io::Result<ExitStatus> {
    let pid = Pid::from_child(child);
    let status = child.wait();
    // Not earlier: the thread would take the child for an orphan.
    leave_table(pid);
    status
}

/// Leaves to the thread a child that `spawn` started and that does not end.
pub fn abandon(child: &Child) {
    let pid = Pid::from_child(child);
    lock(&RUNS.abandoned).push(pid);
    leave_table(pid);
}

fn leave_table(pid: Pid) {
    lock(&RUNS.leaders).remove(&pid.as_raw_nonzero().get());
}

/// Gives the rest of a group, whose leader is reaped, some time to leave it, then kills it; `log_name` names the run
/// in the log. Returns `None` if nothing is left.
pub fn end_group(group: Pid, log_name: &str) -> Option<Lingering> {
    if !is_left(group) {
        return None;
    }
    let lingering = Lingering::new();
    let mut left = LingeringGroup {
        group,
        until: Instant::now() + LEAVE_TIME,
        log_name: log_name.to_owned(),
        is_killed: false,
        lingering: lingering.clone(),
    };
    if WAKE.get().is_none() {
        left.kill();
        return None;
    }
    RUNS.count.fetch_add(1, Ordering::AcqRel);
    lock(&RUNS.lingering).push(left);
    wake();
    Some(lingering)
}

/// Waits until no group lingers, for at most `span`.
pub fn wait_for_groups(span: Duration) {
    let end = Instant::now() + span;
    while RUNS.count.load(Ordering::Acquire) > 0 && Instant::now() < end {
        thread::sleep(TICK);
    }
}

/// Returns whether a child of deferd is in a group whose leader is reaped; reaps the children in it that have ended.
pub fn is_left(group: Pid) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    loop {
        match waitid(WaitId::Pgid(Some(group)), options) {
            Ok(Some(_)) => {}
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
}

/// A group whose leader has ended.
struct LingeringGroup {
    group: Pid,
    /// The deadline of the current step: first for leaving, then for ending.
    until: Instant,
    log_name: String,
    is_killed: bool,
    lingering: Lingering,
}

impl LingeringGroup {
    /// Returns whether the group still exists; kills it when its time is over. Only the thread calls this, and it
    /// reaps nothing in between, so the group's number stays taken between the two steps.
    fn look(&mut self, now: Instant) -> bool {
        if is_left(self.group) {
            if now < self.until {
                return true;
            }
            if !self.is_killed {
                self.kill();
                self.until = now + KILL_TIME;
                return true;
            }
            log::error!("{} what is left of its group cannot be ended", self.log_name);
        }
        self.lingering.end();
        RUNS.count.fetch_sub(1, Ordering::AcqRel);
        false
    }

    fn kill(&mut self) {
        let count = count_group(self.group);
        let _ = kill_process_group(self.group, Signal::KILL);
        self.is_killed = true;
        let left = match count {
            // The last process has ended at this moment.
            Some(0) => return,
            Some(1) => "1 process that was".to_owned(),
            Some(count) => format!("{count} processes that were"),
            None => "all that was".to_owned(),
        };
        log::warn!(
            "{} killed {left} left in its process group {LEAVE_TIME:?} after its end; a daemon has to leave the group (setsid)",
            self.log_name
        );
    }
}

/// Wakes the thread.
fn wake() {
    if let Some(mut sender) = WAKE.get() {
        // If the socket is full, the thread will wake in any case.
        let _ = sender.write(&[0]);
    }
}

/// Runs the thread: each byte from `ended` stands for a child that has ended, each from `woken` for a group that
/// lingers; at `reap_at` it looks for children to reap.
fn watch(mut ended: UnixStream, mut woken: UnixStream, mut reap_at: Option<Instant>) {
    let mut groups: Vec<LingeringGroup> = Vec::new();
    loop {
        let tick = (!groups.is_empty()).then_some(TICK);
        let rest = reap_at.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = tick.into_iter().chain(rest).min();
        // During the rest, the ends of more children do not wake the thread.
        let mut sources = [PollFd::new(&woken, PollFlags::IN), PollFd::new(&ended, PollFlags::IN)];
        let watched = if reap_at.is_some() { 1 } else { 2 };
        let timeout = timeout.and_then(|span| Timespec::try_from(span).ok());
        // An interrupted wait finds nothing to read.
        let _ = poll(&mut sources[..watched], timeout.as_ref());
        let now = Instant::now();
        let _ = woken.read(&mut [0; 64]);
        if reap_at.is_none() && ended.read(&mut [0; 4096]).is_ok_and(|n| n > 0) {
            reap_at = Some(now + REST);
        }
        if reap_at.is_some_and(|at| at <= now) {
            reap_at = None;
            let _ = ended.read(&mut [0; 4096]);
            reap_inherited();
        }
        groups.append(&mut lock(&RUNS.lingering));
        groups.retain_mut(|group| group.look(now));
    }
}

/// Reaps the inherited children that have ended.
fn reap_inherited() {
    let inherited = Kinship::look().map(|kinship| kinship.inherited()).unwrap_or_default();
    for pid in inherited {
        reap_unless_run(pid);
    }
    let abandoned = std::mem::take(&mut *lock(&RUNS.abandoned));
    for pid in abandoned {
        if !reap_unless_run(pid) {
            lock(&RUNS.abandoned).push(pid);
        }
    }
}

/// Reaps a child that has ended, unless it is the leader of a run; returns whether it was reaped.
fn reap_unless_run(pid: Pid) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    // Most children have not ended: this check spares a lock that would delay the start of others.
    match waitid(WaitId::Pid(pid), options | WaitIdOptions::NOWAIT) {
        Ok(Some(_)) => {}
        Ok(None) => return false,
        Err(_) => return true,
    }
    let _alone = RUNS.starting.write().unwrap_or_else(PoisonError::into_inner);
    // The number may belong to another child by now.
    if lock(&RUNS.leaders).contains(&pid.as_raw_nonzero().get()) {
        return false;
    }
    let _ = waitid(WaitId::Pid(pid), options);
    true
}

/// Locks, even if the lock is poisoned: the guarded data is valid between any two statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
