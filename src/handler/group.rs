//! A child process and the process group that it leads: started, signalled, reaped.
//!
//! Owns both. Does not read what the child writes. Invariant: the leader is reaped after the last signal to
//! its group, so the group's number is never that of another; a group that is dropped is killed and reaped.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{
    Pid, PidfdFlags, Resource, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open,
    prlimit, waitid,
};

use super::child::Script;

/// Whether the child, which leads its group, still runs.
#[derive(PartialEq, Eq)]
pub enum Leader {
    /// It does.
    Runs,
    /// It has ended, and is not reaped yet.
    Exited,
}

/// A child and the process group that it leads.
pub struct Group {
    /// The child, with the ends of its pipes.
    pub leader: Child,
    pid: Pid,
    /// Readable when the leader has exited; `None` if the kernel gives no such descriptor.
    pub pidfd: Option<OwnedFd>,
    status: Option<ExitStatus>,
}

impl Group {
    /// Starts a script as the leader of a group of its own, in the directory where it lies.
    ///
    /// # Errors
    /// Those of the system.
    pub fn spawn(script: &Script<'_>) -> io::Result<Self> {
        let mut command = Command::new(script.program);
        command
            .env_clear()
            .envs(script.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(script.program.parent().unwrap_or(Path::new("/")))
            .stdin(if script.stdin.is_empty() { Stdio::null() } else { Stdio::piped() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let leader = command.spawn()?;
        let pid = Pid::from_child(&leader);
        if let Some(limit) = &script.descriptor_limit {
            // deferd has raised its own; some programs walk over all descriptors that they may have.
            // It fails if the child has ended already, or runs as another user: that child keeps deferd's limit.
            let _ = prlimit(Some(pid), Resource::Nofile, *limit);
        }
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok();
        Ok(Self { leader, pid, pidfd, status: None })
    }

    /// Signals the whole group. The leader is not reaped yet, so the number is still its own.
    pub fn signal(&self, signal: Signal) {
        if self.status.is_none() {
            let _ = kill_process_group(self.pid, signal);
        }
    }

    /// Looks for the leader's end without reaping it: its number must stay taken.
    pub fn leader(&self) -> Leader {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        match waitid(WaitId::Pid(self.pid), options) {
            Ok(Some(_)) => Leader::Exited,
            _ => Leader::Runs,
        }
    }

    /// Kills what is left of the group and reaps the leader.
    ///
    /// # Errors
    /// Those of the system.
    pub fn end(&mut self) -> io::Result<ExitStatus> {
        self.signal(Signal::KILL);
        let status = self.leader.wait()?;
        self.status = Some(status);
        Ok(status)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.status.is_none() {
            let _ = self.end();
        }
    }
}
