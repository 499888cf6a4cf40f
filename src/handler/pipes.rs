//! The pipes of a child process, all served by one thread.
//!
//! Owns stdin, stdout and stderr of a child, and passes on its output. Knows no time limit and no process: `child`
//! does. Invariants: stdin is fed while stdout and stderr are drained, so that no amount of data deadlocks; each pipe
//! is closed as soon as it is no longer needed.

use std::io::{self, BufRead, ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, ChildStdin};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::stderr::Stderr;
use crate::config::shown;
use crate::content::{Content, NoMemory, Reader};
use crate::error::Error;
use crate::job::execution::{self, Execution};
use crate::sink::{Lost, Waits};

/// How much is read at a time from stderr, and of dropped output, in bytes.
pub const READ: usize = 4096;

/// The most that a pipe can hold after the group is dead (`pipe-max-size`).
const MAX_PIPE: usize = 1 << 20;

/// The words for a script's output in an error.
pub const WRITTEN: &str = "what the script writes";

/// The destination of a script's output while it runs.
pub trait Stdout {
    /// Returns room for the next output, at most `most` bytes; none while it [waits](Self::waits).
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

    /// Does what [`flush`](crate::sink::Sink::flush) of a sink does; nothing if no client reads the output.
    ///
    /// # Errors
    /// As for a sink.
    fn flush(&mut self) -> Result<(), Lost> {
        Ok(())
    }

    /// Returns what [`waits`](crate::sink::Sink::waits) of a sink does; `None` if no client reads the output.
    fn waits(&self) -> Option<Waits<'_>> {
        None
    }
}

/// The descriptors that are watched together with the pipes.
pub struct Others<'a> {
    /// Readable when the run is stopped.
    pub wake: &'a OwnedFd,
    /// Readable when the child has ended.
    pub leader: Option<&'a OwnedFd>,
    /// The connection of the client that waits for the run.
    pub client: Option<(BorrowedFd<'a>, PollFlags)>,
}

/// The three pipes of a child; each is closed as soon as it is no longer needed.
pub struct Pipes<'a> {
    stdin: Option<(ChildStdin, Reader)>,
    /// Why no more of the input can be read.
    no_input: Option<io::Error>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    output: &'a mut dyn Stdout,
    /// How much of the output was read, in bytes.
    written: usize,
    /// Why no more output can be taken.
    no_room: Option<NoMemory>,
    max_output: usize,
    /// Whether the output is read and dropped, because the script is being ended and must not wait for a reader.
    is_dropped: bool,
    lines: Stderr<'a>,
}

impl<'a> Pipes<'a> {
    /// Takes the pipes of a child: its input is `content`; `output` takes at most `max_output` bytes of its output.
    ///
    /// # Errors
    /// If they cannot be made non-blocking.
    pub fn new(
        child: &mut Child,
        content: &Content,
        output: &'a mut dyn Stdout,
        max_output: usize,
        lines: Stderr<'a>,
    ) -> io::Result<Self> {
        let stdin = child.stdin.take().map(|pipe| (pipe, content.reader()));
        let stdout = child.stdout.take().map(OwnedFd::from);
        let stderr = child.stderr.take().map(OwnedFd::from);
        let ends = stdin.iter().map(|(pipe, _)| pipe.as_fd());
        for end in ends.chain(stdout.iter().chain(&stderr).map(AsFd::as_fd)) {
            rustix::io::ioctl_fionbio(end, true)?;
        }
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

    /// Returns whether the child must end because of what it writes, or because its input cannot be read.
    pub fn is_over(&self) -> bool {
        self.no_room.is_some() || self.no_input.is_some() || self.written > self.max_output
    }

    /// Returns whether the child has written more than it announced.
    pub fn is_beyond_end(&self) -> bool {
        self.output.is_beyond_end()
    }

    /// Reads and drops its output from now on.
    pub fn drop_output(&mut self) {
        self.is_dropped = true;
    }

    /// Returns what is wrong with the input or output, if it [is over](Self::is_over).
    pub fn over(&self) -> Option<Error> {
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

    /// Waits until a descriptor is ready; serves the pipes that are.
    pub fn serve(&mut self, others: &Others<'_>, timeout: Duration) -> Ready {
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
        // Input that cannot be read is not fed, and its pipe would always be ready.
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
        // An interrupted or failed wait finds nothing ready: the caller's loop checks its clock.
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
            // The script must not take the part that it has received for the whole content.
            Err(error) => return self.no_input = Some(error),
        };
        match pipe.write(piece) {
            Ok(n) => rest.consume(n),
            Err(error) if is_transient(&error) => return,
            // The script has stopped reading, which it is free to do.
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
        // One byte more than allowed shows whether there is more.
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

    /// Reads once from stderr; returns how many bytes.
    fn read_stderr(&mut self) -> usize {
        let mut buffer = [0; READ];
        let n = read_once(&mut self.stderr, |fd| rustix::io::read(fd, &mut buffer)).unwrap_or(0);
        self.lines.write(&buffer[..n]);
        n
    }

    /// Reads what stdout still holds. A process that left the group can keep the pipe open, so this waits only for the
    /// client, and reads at most what a pipe can hold.
    ///
    /// # Errors
    /// What is wrong with the output; [`Error::Cancelled`] if the run was stopped while this waited.
    pub fn drain(&mut self, wake: &OwnedFd, execution: &Execution) -> Result<(), Error> {
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
        self.over().map_or(Ok(()), Err)
    }

    /// Reads what stderr still holds, and ends its last line.
    pub fn finish(mut self) {
        let mut drained = 0;
        loop {
            let n = self.read_stderr();
            drained += n;
            if n == 0 || drained >= MAX_PIPE {
                break;
            }
        }
        self.lines.finish();
    }
}

/// Which of the descriptors are ready.
pub struct Ready {
    wake: bool,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    /// The child has ended.
    pub leader: bool,
    /// The client may have left.
    pub client: bool,
}

/// Reads once; at the end of the stream, or if it is broken, closes the pipe. Returns `None` if there is nothing to
/// read.
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
    use std::sync::Arc;

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;
    use crate::content::ContentFile;
    use crate::files::{Files, Folder};

    /// Drops the output.
    struct Dropped([u8; 1]);

    impl Stdout for Dropped {
        fn room(&mut self, _: usize) -> Result<&mut [u8], NoMemory> {
            Ok(&mut self.0)
        }

        fn advance(&mut self, _: usize) -> Result<(), NoMemory> {
            Ok(())
        }
    }

    /// The pipe would stay ready until the script has ended, which may take its whole grace.
    #[test]
    fn input_that_cannot_be_read_is_not_fed_again() {
        let path = std::env::temp_dir().join(format!("deferd-no-input-{}", std::process::id()));
        let folder: Arc<dyn Files> = Arc::new(Folder::open(&path).unwrap());
        let missing = ContentFile::kept(&folder, folder.new_name());
        let content = Content::of_file(Arc::new(missing), 0..100);
        let mut command = Command::new("cat");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut output = Dropped([0]);
        let execution = Execution::default();
        let lines = Stderr::new(&execution, "cat");
        let mut pipes = Pipes::new(&mut child, &content, &mut output, 100, lines).unwrap();
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
