//! A child process and the process group that it leads: started, signalled, ended, reaped.
//!
//! Owns both, and the name of the run. Does not read what the child writes; `descendants` finds what has left the
//! group. Invariant: the leader is reaped after the last signal to its group, so the group's number cannot belong to
//! another group; a group that is dropped is killed and reaped.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{
    Pid, PidfdFlags, Resource, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open,
    prlimit, waitid,
};

use super::child::Script;
use super::descendants::{Descendants, RUN, RunName};
use super::reaper;
use crate::job::lingering::Lingering;

/// How often to check whether the leader has ended if the kernel gives no descriptor for it (before Linux 5.3, or if
/// deferd may open no more).
const TICK: Duration = Duration::from_millis(10);

/// The period of checking for killed processes.
const LOOK: Duration = Duration::from_millis(5);

/// Whether the child, which leads its group, still runs.
#[derive(PartialEq, Eq)]
pub enum Leader {
    /// It runs.
    Runs,
    /// It has ended, and is not yet reaped.
    Exited,
}

/// A child and the process group that it leads.
pub struct Group {
    /// The child, with the ends of its pipes.
    pub leader: Child,
    pid: Pid,
    /// Readable when the leader has exited; `None` if the kernel gives no such descriptor.
    pub pidfd: Option<OwnedFd>,
    run: RunName,
    /// Whether the leader was reaped, or left to the reaper.
    is_over: bool,
}

impl Group {
    /// Starts a script as the leader of a group of its own, in its directory.
    ///
    /// # Errors
    /// Errors of the system.
    pub fn spawn(script: &Script<'_>) -> io::Result<Self> {
        let run = RunName::random()?;
        let mut command = Command::new(script.program);
        command
            .env_clear()
            .envs(script.environment.iter().map(|(name, value)| (name, value)))
            .env(RUN, run.to_string())
            .current_dir(script.directory)
            .stdin(if script.stdin.is_empty() { Stdio::null() } else { Stdio::piped() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let leader = reaper::spawn(&mut command)?;
        let pid = Pid::from_child(&leader);
        if let Some(limit) = &script.descriptor_limit {
            // deferd has raised its own limit; some programs walk over all descriptors that they may have. This fails
            // if the child has already ended, or runs as another user: then the child keeps deferd's limit.
            let _ = prlimit(Some(pid), Resource::Nofile, *limit);
        }
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok();
        Ok(Self { leader, pid, pidfd, run, is_over: false })
    }

    /// Checks whether the leader has ended, without reaping it: its number must stay taken.
    pub fn leader(&self) -> Leader {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        match waitid(WaitId::Pid(self.pid), options) {
            Ok(Some(_)) => Leader::Exited,
            _ => Leader::Runs,
        }
    }

    /// Returns how much of `span` to wait until the next look at the leader.
    pub fn tick(&self, span: Duration) -> Duration {
        if self.pidfd.is_none() { span.min(TICK) } else { span }
    }

    /// Returns the processes of the run, before the first look at them.
    pub fn descendants(&self) -> Descendants {
        Descendants::of(self.pid, &self.run)
    }

    /// Reaps the leader, which exited by itself, and gives the rest of its group some time to leave it; `log_name`
    /// names the run in the log.
    ///
    /// # Errors
    /// Errors of the system.
    pub fn reap(mut self, log_name: &str) -> io::Result<(ExitStatus, Option<Lingering>)> {
        self.is_over = true;
        let status = reaper::reap(&mut self.leader)?;
        Ok((status, reaper::end_group(self.pid, log_name)))
    }

    /// Kills the leader and all descendants, and reaps it; gives up on processes that the kernel does not end by
    /// `deadline`. `log_name` names the run in the log.
    pub fn kill(mut self, mut descendants: Descendants, deadline: Instant, log_name: &str) {
        self.is_over = true;
        let mut in_vain = 0;
        // One look can miss a process whose parent ends at that moment, so two looks must find none.
        while in_vain < 2 {
            let is_alive = descendants.look();
            descendants.signal(Signal::KILL);
            let is_alive = is_alive || self.leader() == Leader::Runs;
            in_vain = if is_alive { 0 } else { in_vain + 1 };
            if Instant::now() >= deadline {
                break;
            }
            if in_vain < 2 {
                thread::sleep(LOOK);
            }
        }
        let left = descendants.alive();
        if left > 0 {
            log::error!("{log_name} processes that cannot be ended: {left}");
        }
        if self.leader() == Leader::Runs {
            return reaper::abandon(&self.leader);
        }
        let _ = reaper::reap(&mut self.leader);
        // Without /proc, only their group shows which children to reap.
        while left == 0 && reaper::is_left(self.pid) && Instant::now() < deadline {
            thread::sleep(LOOK);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.is_over {
            let _ = kill_process_group(self.pid, Signal::KILL);
            let _ = reaper::reap(&mut self.leader);
        }
    }
}
