//! The bytes of a connection: read under a deadline, kept until a phase has used them.
//!
//! Owns the read buffer. Does not know what the bytes mean. Invariant: bytes behind a request stay in
//! the buffer for the next one, and each is used once.

use std::io::{self, ErrorKind, Read};
use std::time::{Duration, Instant};

use super::Broken;
use super::stream::Stream;
use crate::error::Error;

/// What is read at once into the buffer, in bytes.
const CHUNK: usize = 4096;

/// A source whose reads can be bounded in time.
pub trait Timed {
    /// Lets each read from now on wait for `time` at the most.
    ///
    /// # Errors
    /// Those of the system.
    fn set_read_time(&mut self, time: Duration) -> io::Result<()>;
}

impl Timed for &Stream {
    fn set_read_time(&mut self, time: Duration) -> io::Result<()> {
        Stream::set_read_time(self, time)
    }
}

/// In tests, requests come from memory: there is nothing to wait for.
impl Timed for &[u8] {
    fn set_read_time(&mut self, _: Duration) -> io::Result<()> {
        Ok(())
    }
}

/// A source and what was read from it and not used yet.
pub struct Input<R> {
    source: R,
    /// `buffer[start..end]` is what was read and not used.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// What the source was last told, to spare the system call.
    read_time: Option<Duration>,
}

impl<R: Read + Timed> Input<R> {
    /// Nothing read yet.
    pub const fn new(source: R) -> Self {
        Self { source, buffer: Vec::new(), start: 0, end: 0, read_time: None }
    }

    /// What was read and not used.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Uses the first `n` bytes.
    pub fn consume(&mut self, n: usize) {
        self.start += n;
        debug_assert!(self.start <= self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if self.buffer.len() > 4 * CHUNK {
                // A large head was an exception: an idle connection should not hold its memory.
                self.buffer = Vec::new();
            }
        }
    }

    /// Reads more into the buffer; how much, and zero at the end of the stream.
    ///
    /// # Errors
    /// [`Broken::Refused`] with `408` past the deadline, [`Broken::Gone`] when the connection breaks.
    pub fn fill(&mut self, deadline: Instant) -> Result<usize, Broken> {
        self.fill_within(left_until(deadline)?)
    }

    /// The same, for at most `time`, which is not zero.
    ///
    /// # Errors
    /// As [`fill`](Self::fill).
    pub fn fill_within(&mut self, time: Duration) -> Result<usize, Broken> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.buffer.len() - self.end < CHUNK {
            self.buffer.resize(self.end + CHUNK, 0);
        }
        self.wait_for(time)?;
        let n = read(&mut self.source, &mut self.buffer[self.end..])?;
        self.end += n;
        Ok(n)
    }

    /// Reads straight into `target`, which is worth it for content; zero at the end of the stream.
    ///
    /// # Errors
    /// As [`fill`](Self::fill).
    pub fn read_into(&mut self, target: &mut [u8], deadline: Instant) -> Result<usize, Broken> {
        debug_assert!(self.bytes().is_empty());
        self.wait_for(left_until(deadline)?)?;
        read(&mut self.source, target)
    }

    fn wait_for(&mut self, time: Duration) -> Result<(), Broken> {
        // The kernel counts in ticks of some milliseconds, so less than that is no news.
        let news = self.read_time.is_none_or(|told| told.abs_diff(time) > Duration::from_millis(5));
        if news {
            self.source.set_read_time(time).map_err(|_| Broken::Gone)?;
            self.read_time = Some(time);
        }
        Ok(())
    }
}

/// The time that is left.
fn left_until(deadline: Instant) -> Result<Duration, Broken> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(Broken::Refused(Error::RequestTimeout)) } else { Ok(left) }
}

fn read(source: &mut impl Read, target: &mut [u8]) -> Result<usize, Broken> {
    loop {
        match source.read(target) {
            Ok(n) => return Ok(n),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Err(Broken::Refused(Error::RequestTimeout));
            }
            Err(_) => return Err(Broken::Gone),
        }
    }
}
