//! The bytes of a connection: read under a deadline, and kept until a phase has used them.
//!
//! Owns the read buffer. Does not know what the bytes mean. Invariant: bytes after a request stay in the buffer for
//! the next one, and each byte is used once.

use std::io::{self, ErrorKind, Read};
use std::time::{Duration, Instant};

use super::RequestError;
use crate::socket::Stream;

/// How much is read into the buffer at a time, in bytes.
const CHUNK: usize = 4096;

/// A source whose reads can be bounded in time.
pub trait Timed {
    /// Limits each read from now on to a wait of `time`.
    ///
    /// # Errors
    /// Errors of the system.
    fn set_read_time(&mut self, time: Duration) -> io::Result<()>;
}

impl Timed for &Stream {
    fn set_read_time(&mut self, time: Duration) -> io::Result<()> {
        Stream::set_read_time(self, time)
    }
}

/// In tests, requests come from memory, so no read waits.
impl Timed for &[u8] {
    fn set_read_time(&mut self, _: Duration) -> io::Result<()> {
        Ok(())
    }
}

/// A source, and the bytes that were read from it and not yet used.
pub struct Input<R> {
    source: R,
    /// `buffer[start..end]` was read and not yet used.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// The last timeout that was set on the source, to spare the system call.
    read_time: Option<Duration>,
}

impl<R: Read + Timed> Input<R> {
    /// Returns an input from which nothing was read yet.
    pub const fn new(source: R) -> Self {
        Self { source, buffer: Vec::new(), start: 0, end: 0, read_time: None }
    }

    /// Returns the bytes that were read and not yet used.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Uses the first `n` bytes.
    pub fn consume(&mut self, n: usize) {
        self.start += n;
        debug_assert!(self.start <= self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        if self.buffer.len() > 2 * CHUNK && self.end - self.start <= CHUNK {
            // Only a large head gets here: a connection that is idle, or whose client sends requests ahead, should not
            // hold the memory of that head.
            self.buffer = self.buffer[self.start..self.end].to_vec();
            (self.start, self.end) = (0, self.buffer.len());
        }
    }

    /// Reads more into the buffer; returns how many bytes, or zero at the end of the stream.
    ///
    /// # Errors
    /// [`RequestError::Refused`] with `408` past the deadline, [`RequestError::Gone`] if the connection breaks.
    pub fn fill(&mut self, deadline: Instant) -> Result<usize, RequestError> {
        self.fill_within(left_until(deadline)?)
    }

    /// Reads more into the buffer, waiting for at most `time`, which is not zero.
    ///
    /// # Errors
    /// As [`fill`](Self::fill).
    pub fn fill_within(&mut self, time: Duration) -> Result<usize, RequestError> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.buffer.len() - self.end < CHUNK {
            let len = (self.end + CHUNK).next_multiple_of(CHUNK);
            // Doubling would give a large head twice the memory that it needs.
            self.buffer.reserve_exact(len - self.buffer.len());
            self.buffer.resize(len, 0);
        }
        let Self { source, read_time, buffer, end, .. } = self;
        let n = read(source, read_time, &mut buffer[*end..], time)?;
        self.end += n;
        Ok(n)
    }

    /// Reads straight into `target`, which spares a copy of the content; returns zero at the end of the stream.
    ///
    /// # Errors
    /// As [`fill`](Self::fill).
    pub fn read_into(
        &mut self,
        target: &mut [u8],
        deadline: Instant,
    ) -> Result<usize, RequestError> {
        debug_assert!(self.bytes().is_empty());
        read(&mut self.source, &mut self.read_time, target, left_until(deadline)?)
    }
}

/// Returns the time that is left.
fn left_until(deadline: Instant) -> Result<Duration, RequestError> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(RequestError::LATE) } else { Ok(left) }
}

/// Limits reads to a wait of `time`, unless that is already set.
fn bound(
    source: &mut impl Timed,
    told: &mut Option<Duration>,
    time: Duration,
) -> Result<(), RequestError> {
    // The kernel counts in ticks of some milliseconds, so a smaller change has no effect.
    let news = told.is_none_or(|told| told.abs_diff(time) > Duration::from_millis(5));
    if news {
        source.set_read_time(time).map_err(|_| RequestError::Gone)?;
        *told = Some(time);
    }
    Ok(())
}

/// Reads within `time`, without reading the clock; after an interruption, within `time` from then on. Stopping and
/// continuing deferd, or many signals, thus give a client at most twice its time.
fn read<R: Read + Timed>(
    source: &mut R,
    told: &mut Option<Duration>,
    target: &mut [u8],
    time: Duration,
) -> Result<usize, RequestError> {
    bound(source, told, time)?;
    let mut deadline = None;
    loop {
        match source.read(target) {
            Ok(n) => return Ok(n),
            Err(error) if error.kind() == ErrorKind::Interrupted => {
                let deadline = *deadline.get_or_insert_with(|| Instant::now() + time);
                bound(source, told, left_until(deadline)?)?;
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Err(RequestError::LATE);
            }
            Err(_) => return Err(RequestError::Gone),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    /// A source whose reads are always interrupted.
    struct Interrupted {
        begin: Instant,
    }

    impl Read for Interrupted {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            // Otherwise the read would never end.
            let late = self.begin.elapsed() > Duration::from_secs(60);
            if late { Ok(0) } else { Err(ErrorKind::Interrupted.into()) }
        }
    }

    impl Timed for Interrupted {
        fn set_read_time(&mut self, _: Duration) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_large_head_leaves_a_small_buffer() {
        let sent = [vec![b'h'; 5 * CHUNK], b"ahead".to_vec()].concat();
        let mut input = Input::new(sent.as_slice());
        while input.bytes().len() < sent.len() {
            assert!(input.fill(Instant::now() + Duration::from_secs(60)).unwrap() > 0);
            assert!(input.buffer.capacity() < input.bytes().len() + 2 * CHUNK);
        }
        input.consume(5 * CHUNK);
        assert_eq!(input.bytes(), b"ahead");
        assert!(input.buffer.capacity() <= CHUNK, "{}", input.buffer.capacity());
        input.consume(5);
        assert_eq!(input.bytes(), b"");
    }

    #[test]
    fn interruptions_give_no_more_time() {
        let mut input = Input::new(Interrupted { begin: Instant::now() });
        let time = Duration::from_millis(50);
        for read in [
            input.fill_within(time),
            input.fill(Instant::now() + time),
            input.read_into(&mut [0], Instant::now() + time),
        ] {
            assert!(
                matches!(read, Err(RequestError::Refused(Error::RequestTimeout(_)))),
                "{read:?}"
            );
        }
    }
}
