//! A child process from spawn to reaped, with all its pipes served at once by one thread.
//!
//! Owns the pipes, the time limit and the stop; `group` owns the process. Does not know CGI. Invariants: stdin is fed
//! while stdout and stderr are drained, so that no size deadlocks; when [`run`] returns, for whatever reason, the child
//! is reaped, and every descriptor is closed. By then a child that was ended has no descendants; for one that ended by
//! itself, the processes left in its group have some time to leave it. A program that wants to outlive its request must
//! leave the group (`setsid`), as daemons do.

use std::ffi::OsString;
use std::io::{self, BufRead, ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, ChildStdin, ExitStatus};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::process::{Rlimit, Signal};

use super::descendants::Descendants;
use super::group::{Group, Leader};
use super::loading;
use super::stderr::Stderr;
use crate::config::{shown, shown_duration};
use crate::content::{Content, ContentBuffer, NoMemory, Reader};
use crate::error::Error;
use crate::job::execution::{self, Execution, Stop};
use crate::sink::{Lost, Waits};

/// The time between SIGTERM and SIGKILL for a stopped script and all that it started.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// The same for a script that reached a limit.
const LIMIT_GRACE: Duration = Duration::from_secs(1);

/// The longest end of a script. Only a process that the kernel cannot end lives longer.
const END_TIME: Duration = Duration::from_secs(6);

/// The period of looking for the end of a script's processes after its own end.
const LOOK: Duration = Duration::from_millis(10);

/// How much is read at a time from stderr, and of dropped output, in bytes.
const READ: usize = 4096;

/// The most that a pipe can hold when the group is dead (`pipe-max-size`).
const MAX_PIPE: usize = 1 << 20;

/// What a script's output is called in an error.
pub const WRITTEN: &str = "what the script writes";

/// What to run.
pub struct Script<'a> {
    /// The path of the program, by the name under which it runs.
    pub program: &'a Path,
    /// The directory in which it runs.
    pub directory: &'a Path,
    /// Its whole environment.
    pub environment: Vec<(OsString, OsString)>,
    /// All of its standard input.
    pub stdin: &'a Content,
    /// Its time limit.
    pub time_limit: Duration,
    /// How much it may write to stdout, in bytes.
    pub max_output: usize,
    /// How many descriptors it may have; `None`: as many as deferd.
    pub descriptor_limit: Option<Rlimit>,
}

/// What takes the output of a script while it runs.
pub trait Stdout {
    /// Returns room for what comes next, at most `most` bytes; nothing while it [waits](Self::waits).
    ///
    /// # Errors
    /// [`NoMemory`].
    fn room(&mut self, most: usize) -> Result<&mut [u8], NoMemory>;

    /// Takes the first `n` bytes of the room.
    ///
    /// # Errors
    /// [`NoMemory`].
    fn advance(&mut self, n: usize) -> Result<(), NoMemory>;

    /// Returns whether the script has written more than it announced, and may be ended.
    fn is_beyond_end(&self) -> bool {
        false
    }

    /// As [`flush`](crate::sink::Sink::flush) of a sink; nothing to do if no client reads it.
    ///
    /// # Errors
    /// As there.
    fn flush(&mut self) -> Result<(), Lost> {
        Ok(())
    }

    /// As [`waits`](crate::sink::Sink::waits) of a sink; `None` if no client reads it.
    fn waits(&self) -> Option<Waits<'_>> {
        None
    }
}

/// Keeps all of it.
impl Stdout for ContentBuffer {
    fn room(&mut self, most: usize) -> Result<&mut [u8], NoMemory> {
        self.room(most)
    }

    fn advance(&mut self, n: usize) -> Result<(), NoMemory> {
        self.advance(n);
        Ok(())
    }
}

/// Runs a script to its end, and hands on its stdout. Returns how it ended: as a success if it was ended because it
/// wrote more than it announced, for its response is complete then.
///
/// # Errors
/// [`Error::BadGateway`] if it cannot be started or writes too much, [`Error::Shortage`] if the system lacks a
/// resource for it, so that it was not started, [`Error::GatewayTimeout`] past its time limit, [`Error::Cancelled`] if
/// it was stopped.
pub fn run(
    script: &Script<'_>,
    stdout: &mut dyn Stdout,
    execution: &Execution,
) -> Result<ExitStatus, Error> {
    let name = script.program.file_name().unwrap_or_default().to_string_lossy();
    let cannot = |error: io::Error| cannot_start(script.program, &error);
    // Before the child, so that everything started can be stopped.
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
    let mut pipes = Pipes::new(&mut group.leader, script, stdout, lines).map_err(cannot)?;
    let ending = watch(&group, &mut pipes, &wake, script, execution);
    let log_name = || format!("job={} script={name}", execution.job_as_log());
    if ending == Ending::Exited {
        let (status, lingering) =
            group.reap(&log_name()).map_err(|e| Error::Internal(e.to_string().into()))?;
        execution.leave_behind(lingering);
        let drained = pipes.drain(&wake, execution);
        pipes.lines.finish();
        return drained.map(|()| status);
    }
    let error = pipes.over().filter(|_| ending == Ending::OverOutput);
    pipes.is_dropped = true;
    let mut descendants = group.descendants();
    let begin = Instant::now();
    let kill_at = begin + ending.grace();
    terminate(&group, &mut descendants, &mut pipes, &wake, execution, kill_at);
    group.kill(descendants, begin + END_TIME, &log_name());
    pipes.drain_stderr();
    pipes.lines.finish();
    match ending {
        Ending::BeyondEnd => Ok(ExitStatus::default()),
        _ => Err(error.unwrap_or_else(|| ending.error(script.time_limit))),
    }
}

/// Returns what to tell the client if a script does not start, and logs what to tell the operator.
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
    /// It wrote more than it announced.
    BeyondEnd,
    TimedOut,
    Stopped,
}

impl Ending {
    /// Returns how long the script has to end by itself.
    const fn grace(&self) -> Duration {
        match self {
            Self::Stopped => STOP_GRACE,
            Self::Exited | Self::OverOutput | Self::BeyondEnd | Self::TimedOut => LIMIT_GRACE,
        }
    }

    /// Returns the error for the client, unless the output gives a better one.
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
        if pipes.output.is_beyond_end() {
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

/// Sends SIGTERM to the child and all that it started, and serves the pipes until they have ended, or until `deadline`.
/// Processes started after that are for tidying up, and are left alone.
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
    descendants.look();
    descendants.signal(Signal::TERM);
    let mut leader = Leader::Runs;
    while !must_end_now() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || leader == Leader::Exited && !descendants.look() {
            return;
        }
        // Its descriptor stays ready after its exit, as does that of a client that has left.
        let pidfd = group.pidfd.as_ref().filter(|_| leader == Leader::Runs);
        let timeout = if leader == Leader::Runs { group.tick(left) } else { left.min(LOOK) };
        pipes.serve(&Others { wake, leader: pidfd, client: None }, timeout);
        leader = group.leader();
    }
}

/// The descriptors watched beside the pipes.
struct Others<'a> {
    wake: &'a OwnedFd,
    leader: Option<&'a OwnedFd>,
    client: Option<(BorrowedFd<'a>, PollFlags)>,
}

/// The three pipes of a child; each is closed as soon as it is no longer needed.
struct Pipes<'a> {
    stdin: Option<(ChildStdin, Reader)>,
    /// Why no more of the input can be read.
    no_input: Option<io::Error>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    output: &'a mut dyn Stdout,
    /// How much was read of it, in bytes.
    written: usize,
    /// The reason that no more output can be taken.
    no_room: Option<NoMemory>,
    max_output: usize,
    /// Whether the output is read and dropped, because the script is ended: it must not wait for a reader.
    is_dropped: bool,
    lines: Stderr<'a>,
}

impl<'a> Pipes<'a> {
    fn new(
        child: &mut Child,
        script: &Script<'a>,
        output: &'a mut dyn Stdout,
        lines: Stderr<'a>,
    ) -> io::Result<Self> {
        let stdin = child.stdin.take().map(|pipe| (pipe, script.stdin.reader()));
        let stdout = child.stdout.take().map(OwnedFd::from);
        let stderr = child.stderr.take().map(OwnedFd::from);
        let ends = stdin.iter().map(|(pipe, _)| pipe.as_fd());
        for end in ends.chain(stdout.iter().chain(&stderr).map(AsFd::as_fd)) {
            rustix::io::ioctl_fionbio(end, true)?;
        }
        let max_output = script.max_output;
        Ok(Self {
            stdin,
            no_input: None,
            stdout,
            stderr,
            output,
            written: 0,
            no_room: None,
            max_output,
            is_dropped: false,
            lines,
        })
    }

    fn is_over(&self) -> bool {
        self.no_room.is_some() || self.no_input.is_some() || self.written > self.max_output
    }

    /// Returns the fault of the output, if it [is over](Self::is_over).
    fn over(&self) -> Option<Error> {
        if let Some(cause) = &self.no_room {
            return Some(Error::no_room_for(WRITTEN, cause));
        }
        if let Some(error) = &self.no_input {
            return Some(Error::unreadable(error));
        }
        self.is_over().then(|| {
            let most = shown(self.max_output);
            Error::BadGateway(format!("the script wrote more than max-output {most}").into())
        })
    }

    /// Waits until something is ready; if that is a pipe, serves it.
    fn serve(&mut self, others: &Others<'_>, timeout: Duration) -> Ready {
        let mut ready = self.wait(others, timeout);
        if ready.wake {
            let _ = rustix::io::read(others.wake, &mut [0; 8]);
        }
        if ready.stdin {
            self.feed();
        }
        if ready.stdout {
            self.read_stdout();
        }
        if ready.stderr {
            self.read_stderr();
        }
        if !self.is_dropped && self.output.flush().is_err() {
            ready.client = true;
        }
        ready
    }

    fn wait(&self, others: &Others<'_>, timeout: Duration) -> Ready {
        let Others { wake, leader, client } = others;
        // What cannot be read is not fed, and its pipe would always be ready.
        let stdin = self.stdin.as_ref().filter(|_| self.no_input.is_none());
        let stdin = stdin.map(|(pipe, _)| pipe.as_fd());
        let taker = self.output.waits().filter(|_| !self.is_dropped);
        let stdout = self.stdout.as_ref().filter(|_| taker.is_none()).map(AsFd::as_fd);
        let stderr = self.stderr.as_ref().map(AsFd::as_fd);
        let timeout = taker.as_ref().map_or(timeout, |taker| timeout.min(taker.tick));
        let sources = [
            (Some(wake.as_fd()), PollFlags::IN),
            (stdin, PollFlags::OUT),
            (stdout, PollFlags::IN),
            (stderr, PollFlags::IN),
            (leader.map(AsFd::as_fd), PollFlags::IN),
            (client.map(|(fd, _)| fd), client.map_or(PollFlags::empty(), |(_, flags)| flags)),
            (taker.as_ref().map(|taker| taker.client), PollFlags::OUT),
        ];
        let mut fds = Vec::with_capacity(sources.len());
        for (fd, flags) in &sources {
            if let Some(fd) = fd {
                fds.push(PollFd::new(fd, *flags));
            }
        }
        // An interrupted or failed wait is an empty one: the caller's loop looks at its clock.
        let timeout = Timespec::try_from(timeout).ok();
        let _ = poll(&mut fds, timeout.as_ref());
        let mut fired = fds.iter().map(|fd| !fd.revents().is_empty());
        let mut next = |present: bool| present && fired.next() == Some(true);
        Ready {
            wake: next(true),
            stdin: next(stdin.is_some()),
            stdout: next(stdout.is_some()),
            stderr: next(stderr.is_some()),
            leader: next(leader.is_some()),
            client: next(client.is_some()),
        }
    }

    fn feed(&mut self) {
        let Some((pipe, rest)) = &mut self.stdin else { return };
        let piece = match rest.fill_buf() {
            Ok(piece) => piece,
            // It must not take what it has got for the whole.
            Err(error) => return self.no_input = Some(error),
        };
        match pipe.write(piece) {
            Ok(n) => rest.consume(n),
            Err(error) if is_transient(&error) => return,
            // The script stopped reading, as it may.
            Err(_) => return self.stdin = None,
        }
        if rest.left() == 0 {
            self.stdin = None;
        }
    }

    /// Reads once from stdout; returns whether there may be more.
    fn read_stdout(&mut self) -> bool {
        if self.is_dropped {
            let mut buffer = [0; READ];
            return read_once(&mut self.stdout, |fd| rustix::io::read(fd, &mut buffer)).is_some();
        }
        // One byte more than allowed shows that there is more.
        let most = self.max_output.saturating_add(1).saturating_sub(self.written).max(1);
        let taken = match self.output.room(most) {
            Ok([]) => return false,
            Ok(room) => {
                let Some(n) = read_once(&mut self.stdout, |fd| rustix::io::read(fd, room)) else {
                    return false;
                };
                self.written += n;
                if self.is_over() {
                    return false;
                }
                self.output.advance(n)
            }
            Err(error) => Err(error),
        };
        self.no_room = taken.err();
        self.no_room.is_none()
    }

    /// Reads once from stderr; returns how much that was.
    fn read_stderr(&mut self) -> usize {
        let mut buffer = [0; READ];
        let n = read_once(&mut self.stderr, |fd| rustix::io::read(fd, &mut buffer)).unwrap_or(0);
        self.lines.write(&buffer[..n]);
        n
    }

    /// Reads what the pipes still hold. A process that left the group can keep them open, so this
    /// waits for nothing but the client, and reads no more than a pipe can hold.
    ///
    /// # Errors
    /// The fault of the output; [`Error::Cancelled`] if it was stopped while it waited.
    fn drain(&mut self, wake: &OwnedFd, execution: &Execution) -> Result<(), Error> {
        self.stdin = None;
        let end = self.written.saturating_add(MAX_PIPE);
        while self.written < end && (self.read_stdout() || self.output.waits().is_some()) {
            if self.output.waits().is_none() {
                continue;
            }
            if execution.stopped().is_some() {
                return Err(Error::Cancelled);
            }
            let others = Others { wake, leader: None, client: execution.watched() };
            if self.serve(&others, execution::LOOK).client {
                execution.look();
            }
        }
        self.drain_stderr();
        self.over().map_or(Ok(()), Err)
    }

    /// The same for stderr alone.
    fn drain_stderr(&mut self) {
        let mut drained = 0;
        loop {
            let n = self.read_stderr();
            drained += n;
            if n == 0 || drained >= MAX_PIPE {
                break;
            }
        }
    }
}

/// Which of the descriptors are ready.
struct Ready {
    wake: bool,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    leader: bool,
    client: bool,
}

/// Reads once; at the end of the stream, or if it is broken, closes the pipe. Returns `None` if there
/// is nothing to read.
fn read_once(
    pipe: &mut Option<OwnedFd>,
    read: impl FnOnce(&OwnedFd) -> rustix::io::Result<usize>,
) -> Option<usize> {
    match read(pipe.as_ref()?) {
        Err(error) if is_transient(&error.into()) => None,
        Ok(0) | Err(_) => {
            *pipe = None;
            None
        }
        Ok(n) => Some(n),
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;
    use crate::content::ContentFile;
    use crate::files::{Files, Folder};
    use crate::memory::Allowance;

    /// The pipe stays ready for more until the script has ended, which may take its grace.
    #[test]
    fn input_that_cannot_be_read_is_not_fed_again() {
        let path = std::env::temp_dir().join(format!("deferd-no-input-{}", std::process::id()));
        let folder: Arc<dyn Files> = Arc::new(Folder::open(&path).unwrap());
        let missing = ContentFile::kept(&folder, folder.new_name());
        let script = Script {
            program: Path::new("cat"),
            directory: Path::new("/"),
            environment: Vec::new(),
            stdin: &Content::of_file(Arc::new(missing), 0..100),
            time_limit: Duration::from_secs(60),
            max_output: 100,
            descriptor_limit: None,
        };
        let mut command = Command::new("cat");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut output = ContentBuffer::new(&Allowance::default());
        let execution = Execution::default();
        let lines = Stderr::new(&execution, "cat");
        let mut pipes = Pipes::new(&mut child, &script, &mut output, lines).unwrap();
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let others = Others { wake: &wake, leader: None, client: None };
        assert!(pipes.serve(&others, Duration::from_secs(60)).stdin);
        assert!(matches!(pipes.over(), Some(Error::Unavailable(_))));
        assert!(!pipes.serve(&others, Duration::from_millis(10)).stdin);
        child.kill().unwrap();
        child.wait().unwrap();
        std::fs::remove_dir_all(&path).unwrap();
    }
}
