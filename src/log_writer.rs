//! The writer of the log: a bounded buffer, and one thread that writes it to stderr.
//!
//! Owns the buffer and what happens if stderr is not read in time. Does not choose what is logged, nor how a line looks
//! but for what journald wants: `main` sets up the logger. Invariants: a thread that logs never waits for stderr; the
//! buffer never grows beyond [`CAPACITY`]; a line that is dropped is counted, and the count is written once there is a
//! way again.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::metrics;

use log::Level;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::fstat;

/// The most that waits to be written, in bytes; as much again may be in writing.
pub const CAPACITY: usize = 256 * 1024;

/// How much of that stays allocated, in bytes.
const KEPT: usize = 16 * 1024;

/// How a line of the log begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// With the time and the level.
    Dated,
    /// With a priority in angle brackets (sd-daemon(3)): the journal has its own time.
    Journal,
}

impl Form {
    /// Returns the form that stderr wants: that of the journal if it is connected to it, as `JOURNAL_STREAM` says
    /// (systemd.exec(5)). A child may have inherited the variable, and another stderr.
    pub fn of_stderr() -> Self {
        let named = std::env::var("JOURNAL_STREAM").unwrap_or_default();
        let is_it = fstat(io::stderr())
            .is_ok_and(|status| named == format!("{}:{}", status.st_dev, status.st_ino));
        if is_it { Self::Journal } else { Self::Dated }
    }

    /// Returns a line of deferd's own, outside of the logger.
    pub fn line(self, level: Level, text: &str) -> String {
        match self {
            Self::Dated => format!("deferd: {text}\n"),
            Self::Journal => prioritized(level, text),
        }
    }
}

/// Returns a message as the journal reads it. Each of its lines would be a message of its own, so each gets the
/// priority (syslog(3)).
pub fn prioritized(level: Level, text: &str) -> String {
    let priority = match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    text.lines().map(|line| format!("<{priority}>{line}\n")).collect()
}

/// Hands lines to the thread that writes them. Each `write` is one or more whole lines.
#[derive(Clone)]
pub struct LogWriter(Arc<Shared>);

struct Shared {
    form: Form,
    state: Mutex<State>,
    /// Notified when there is something to write, and when everything is written.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// What waits to be written.
    waiting: Vec<u8>,
    /// How many lines found no room since the last that did.
    dropped: u64,
    /// Whether the thread is writing at this moment.
    writing: bool,
    /// Whether the thread waits for something to write, and no thread has woken it yet: a wake-up costs a call to the
    /// system, so there is one for all lines that come meanwhile.
    asleep: bool,
    /// Whether a thread waits until all is written.
    flushing: bool,
}

impl LogWriter {
    /// Starts the thread, which writes to `target`.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub fn start(form: Form, target: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared { form, state: Mutex::default(), changed: Condvar::new() });
        let its = Arc::clone(&shared);
        let thread = thread::Builder::new().name("log".into());
        thread.spawn(move || its.write_to(target))?;
        Ok(Self(shared))
    }

    /// Waits until everything is written, for at most `time`.
    pub fn flush_within(&self, time: Duration) {
        let deadline = Instant::now() + time;
        let mut state = self.0.lock();
        while !state.waiting.is_empty() || state.dropped > 0 || state.writing {
            state.flushing = true;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.0.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Write for LogWriter {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        let mut state = self.0.lock();
        if state.dropped > 0 || state.waiting.len() + lines.len() > CAPACITY {
            // Also if this line would fit: the lines stay in order, and the count is of those in between.
            state.dropped += 1;
            metrics::count_lost_line();
        } else {
            state.waiting.extend_from_slice(lines);
        }
        let wakes = std::mem::take(&mut state.asleep);
        drop(state);
        if wakes {
            self.0.changed.notify_all();
        }
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the buffered lines, and waits for more.
    fn write_to(&self, mut target: impl Write) {
        let mut lines = Vec::new();
        loop {
            self.take(&mut lines);
            // Without a reader, or on a full disk, the lines are lost: no other place could report that.
            let _ = write_all(&mut target, &lines);
            lines.clear();
            // Frees the memory of a burst.
            lines.shrink_to(KEPT);
        }
    }

    /// Waits for something to write, and takes all of it.
    fn take(&self, lines: &mut Vec<u8>) {
        let mut state = self.lock();
        state.writing = false;
        if std::mem::take(&mut state.flushing) {
            self.changed.notify_all();
        }
        while state.waiting.is_empty() && state.dropped == 0 {
            state.asleep = true;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        std::mem::swap(&mut state.waiting, lines);
        (state.writing, state.asleep) = (true, false);
        let dropped = std::mem::take(&mut state.dropped);
        drop(state);
        if dropped > 0 {
            let text =
                format!("{dropped} lines of the log were dropped: stderr was not read in time");
            lines.extend_from_slice(self.form.line(Level::Warn, &text).as_bytes());
        }
    }
}

/// Writes all of it, also to a stderr that another process has made non-blocking.
fn write_all(target: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match target.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => bytes = &bytes[n..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let stderr = io::stderr();
                let _ = poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], None);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read};
    use std::os::unix::net::UnixStream;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn a_target_that_takes_nothing_holds_up_no_line_and_the_dropped_are_counted() {
        let (reader, target) = UnixStream::pair().unwrap();
        reader.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut writer = LogWriter::start(Form::Dated, target).unwrap();
        let mut sent = 0;
        // More than the buffers of a socket and of the writer hold; were it to wait, this would never end.
        let line = format!("{}\n", "x".repeat(999));
        for _ in 0..10_000 {
            writer.write_all(line.as_bytes()).unwrap();
            sent += 1;
        }
        writer.flush_within(Duration::from_millis(1));
        let mut reader = BufReader::new(reader);
        let (mut whole, mut dropped) = (0, 0);
        while whole + dropped < sent {
            let mut text = String::new();
            reader.read_line(&mut text).unwrap();
            if text == line {
                whole += 1;
                continue;
            }
            let count = text.strip_prefix("deferd: ").and_then(|text| text.split(' ').next());
            dropped += count.unwrap().parse::<usize>().unwrap();
        }
        assert!(dropped > 0 && whole * line.len() >= CAPACITY / 2, "only {whole} lines came");
        // And then it goes on.
        writer.write_all(b"after\n").unwrap();
        writer.flush_within(PATIENCE);
        let mut rest = [0; 6];
        reader.read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"after\n");
    }

    #[test]
    fn a_flush_waits_until_all_is_written() {
        let (mut reader, target) = UnixStream::pair().unwrap();
        reader.set_nonblocking(true).unwrap();
        let mut writer = LogWriter::start(Form::Dated, target).unwrap();
        for n in 0..100 {
            let line = format!("{n}\n");
            writer.write_all(line.as_bytes()).unwrap();
            writer.flush_within(PATIENCE);
            let mut read = [0; 10];
            let length = reader.read(&mut read).unwrap();
            assert_eq!(&read[..length], line.as_bytes());
        }
    }

    #[test]
    fn every_line_for_the_journal_has_a_priority() {
        assert_eq!(prioritized(Level::Warn, "a\nb"), "<4>a\n<4>b\n");
        assert_eq!(prioritized(Level::Error, "a"), "<3>a\n");
        assert_eq!(prioritized(Level::Info, "a"), "<6>a\n");
        assert_eq!(prioritized(Level::Trace, "a"), "<7>a\n");
        assert_eq!(Form::Journal.line(Level::Warn, "a"), "<4>a\n");
        assert_eq!(Form::Dated.line(Level::Warn, "a"), "deferd: a\n");
    }
}
