//! A child process, from its start until it is reaped.
//!
//! Owns the time limit and the stop; `pipes` has its pipes, `group` the process. Does not know CGI. Invariants: when
//! [`run`] returns, for whatever reason, the child is reaped, and every descriptor is closed. If the child was ended,
//! it then has no descendants; if it ended by itself, the processes left in its group have some time to leave it. A
//! program that wants to outlive its request must leave the group (`setsid`), as daemons do.

use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::process::Rlimit;

use super::descendants::Descendants;
use super::group::{Group, Leader};
use super::loading;
use super::pipes::{Others, Pipes, Stdout};
use super::stderr::Stderr;
use crate::config::shown_duration;
use crate::content::Content;
use crate::error::Error;
use crate::job::execution::{Execution, Stop};

/// The time between SIGTERM and SIGKILL for a stopped script and all that it started.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// The same for a script that exceeded a limit.
const LIMIT_GRACE: Duration = Duration::from_secs(1);

/// The longest time for ending a script. Only a process that the kernel cannot end lives longer.
const END_TIME: Duration = Duration::from_secs(6);

/// How often deferd checks whether a script's processes have ended, after the script itself has.
const LOOK: Duration = Duration::from_millis(10);

/// The program to run.
pub struct Script<'a> {
    /// The path of the program, with the name under which it runs.
    pub program: &'a Path,
    /// The directory in which it runs.
    pub directory: &'a Path,
    /// Its complete environment.
    pub environment: Vec<(OsString, OsString)>,
    /// Its complete standard input.
    pub stdin: &'a Content,
    /// Its time limit.
    pub time_limit: Duration,
    /// How much it may write to stdout, in bytes.
    pub max_output: usize,
    /// How many descriptors it may have; `None`: as many as deferd.
    pub descriptor_limit: Option<Rlimit>,
}

/// Runs a script to its end, and passes on its stdout. Returns how it ended. A script that is ended because it wrote
/// more than it announced counts as a success: its response is complete.
///
/// # Errors
/// [`Error::BadGateway`] if it cannot be started or writes too much, [`Error::Shortage`] if it was not started because
/// the system lacks a resource, [`Error::GatewayTimeout`] past its time limit, [`Error::Cancelled`] if it was stopped.
pub fn run(
    script: &Script<'_>,
    stdout: &mut dyn Stdout,
    execution: &Execution,
) -> Result<ExitStatus, Error> {
    let name = script.program.file_name().unwrap_or_default().to_string_lossy();
    let cannot = |error: io::Error| cannot_start(script.program, &error);
    // Created before the child, so that every started child can be stopped.
    let wake = Arc::new(
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|e| cannot(e.into()))?,
    );
    let waker = Arc::clone(&wake);
    let _guard = execution.on_stop(move || {
        let _ = rustix::io::write(&waker, &1u64.to_ne_bytes());
    });
    // A job whose turn comes after the grace must not begin.
    if execution.stopped().is_some() {
        return Err(Error::Cancelled);
    }
    let mut group = Group::spawn(script).map_err(cannot)?;
    let lines = Stderr::new(execution, &name);
    let (child, content, most) = (&mut group.leader, script.stdin, script.max_output);
    let mut pipes = Pipes::new(child, content, stdout, most, lines).map_err(cannot)?;
    let ending = watch(&group, &mut pipes, &wake, script, execution);
    let log_name = || format!("job={} script={name}", execution.job_as_log());
    if ending == Ending::Exited {
        let (status, lingering) =
            group.reap(&log_name()).map_err(|e| Error::Internal(e.to_string().into()))?;
        execution.leave_behind(lingering);
        let drained = pipes.drain(&wake, execution);
        pipes.finish();
        return drained.map(|()| status);
    }
    let error = pipes.over().filter(|_| ending == Ending::OverOutput);
    pipes.drop_output();
    let mut descendants = group.descendants();
    let begin = Instant::now();
    let kill_at = begin + ending.grace();
    terminate(&group, &mut descendants, &mut pipes, &wake, execution, kill_at);
    group.kill(descendants, begin + END_TIME, &log_name());
    pipes.finish();
    match ending {
        Ending::BeyondEnd => Ok(ExitStatus::default()),
        _ => Err(error.unwrap_or_else(|| ending.error(script.time_limit))),
    }
}

/// Returns the error for the client if a script does not start, and logs the details for the operator.
fn cannot_start(program: &Path, error: &io::Error) -> Error {
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let why = loading::why_not(program, error);
    let told = why.clone().unwrap_or_else(|| error.to_string());
    log::warn!("script={name} cannot be started: {told}");
    if let Some(short) = Error::shortage("cannot start the script", error) {
        return short;
    }
    match why {
        Some(why) => Error::BadGateway(format!("cannot start the script: {why}").into()),
        None if error.kind() == ErrorKind::NotFound && !program.exists() => {
            Error::NotFound("the script is gone".into())
        }
        None if error.kind() == ErrorKind::PermissionDenied => {
            Error::Forbidden("the script is not executable".into())
        }
        None => Error::Unavailable(format!("cannot start the script: {error}").into()),
    }
}

/// The reason that watching a child ended.
#[derive(PartialEq, Eq)]
enum Ending {
    Exited,
    OverOutput,
    /// The script wrote more than it announced.
    BeyondEnd,
    TimedOut,
    Stopped,
}

impl Ending {
    /// Returns how much time the script has to end by itself.
    const fn grace(&self) -> Duration {
        match self {
            Self::Stopped => STOP_GRACE,
            Self::Exited | Self::OverOutput | Self::BeyondEnd | Self::TimedOut => LIMIT_GRACE,
        }
    }

    /// Returns the error for the client, unless the output has a more precise one.
    fn error(&self, time_limit: Duration) -> Error {
        match self {
            Self::TimedOut => {
                let most = shown_duration(time_limit);
                Error::GatewayTimeout(format!("the script ran out of time: timeout {most}").into())
            }
            Self::Exited | Self::OverOutput | Self::BeyondEnd | Self::Stopped => Error::Cancelled,
        }
    }
}

/// Serves the pipes until the child ends or must be ended.
fn watch(
    group: &Group,
    pipes: &mut Pipes<'_>,
    wake: &OwnedFd,
    script: &Script<'_>,
    execution: &Execution,
) -> Ending {
    let deadline = execution.deadline(script.time_limit);
    loop {
        if execution.stopped().is_some() {
            return Ending::Stopped;
        }
        let now = Instant::now();
        if now >= deadline {
            return Ending::TimedOut;
        }
        if pipes.is_over() {
            return Ending::OverOutput;
        }
        if pipes.is_beyond_end() {
            return Ending::BeyondEnd;
        }
        let others = Others { wake, leader: group.pidfd.as_ref(), client: execution.watched() };
        let ready = pipes.serve(&others, group.tick(deadline - now));
        if ready.client {
            execution.look();
        }
        if ready.leader || group.pidfd.is_none() && group.leader() == Leader::Exited {
            return Ending::Exited;
        }
    }
}

/// Sends SIGTERM to the child and all that it started, and serves the pipes until they have ended, or until
/// `deadline`. Processes started after that are for cleaning up, and get no signal.
fn terminate(
    group: &Group,
    descendants: &mut Descendants,
    pipes: &mut Pipes<'_>,
    wake: &OwnedFd,
    execution: &Execution,
    deadline: Instant,
) {
    let must_end_now = || execution.stopped() == Some(Stop::Kill);
    if must_end_now() {
        return;
    }
    descendants.terminate();
    let mut leader = Leader::Runs;
    while !must_end_now() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || leader == Leader::Exited && !descendants.look() {
            return;
        }
        if leader == Leader::Exited {
            descendants.terminate_missed();
        }
        // The descriptors of an exited child, and of a client that has left, stay ready, so they are not watched.
        let pidfd = group.pidfd.as_ref().filter(|_| leader == Leader::Runs);
        let timeout = if leader == Leader::Runs { group.tick(left) } else { left.min(LOOK) };
        pipes.serve(&Others { wake, leader: pidfd, client: None }, timeout);
        leader = group.leader();
    }
}
