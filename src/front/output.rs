//! The bytes to a client: written for as long as it takes some of them now and then.
//!
//! Owns the bound on how long a client may take nothing. Does not know what the bytes mean. Invariant:
//! a write fails only if not one byte could be handed over for the whole of that time.

use std::io::{self, ErrorKind, IoSlice, Write};
use std::time::{Duration, Instant};

use super::stream::Stream;

/// A blocking write that times out with some of its bytes taken reports those, and not when they were
/// taken: so each attempt is short, and what one of them misses is this part of the time at the most.
const ATTEMPTS: u32 = 30;

/// Where answers are written.
pub struct Output<'a> {
    stream: &'a Stream,
    time: Duration,
}

impl<'a> Output<'a> {
    /// Writes to `stream`, which may take nothing for `time`.
    ///
    /// # Errors
    /// Those of the system.
    pub fn new(stream: &'a Stream, time: Duration) -> io::Result<Self> {
        stream.set_write_time(time / ATTEMPTS)?;
        Ok(Self { stream, time })
    }
}

impl Output<'_> {
    /// Writes once, however many attempts that takes within the time. One that is interrupted has taken
    /// no byte either: who stops and continues deferd, or signals it often, gives no client more time.
    fn attempt(&self, write: impl Fn(&Stream) -> io::Result<usize>) -> io::Result<usize> {
        let mut begin = None;
        loop {
            match write(self.stream) {
                Err(error) if is_no_byte(&error) => {
                    // The first attempt took its part of the time already.
                    let now = Instant::now();
                    let since = *begin.get_or_insert(now - self.time / ATTEMPTS);
                    if now - since >= self.time {
                        return Err(ErrorKind::TimedOut.into());
                    }
                }
                written => return written,
            }
        }
    }
}

/// Whether this says that nothing was taken, and not that nothing will be.
fn is_no_byte(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

impl Write for Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.attempt(|mut stream| stream.write(bytes))
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.attempt(|mut stream| stream.write_vectored(parts))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn one_who_takes_nothing_is_given_up_after_the_time_and_not_twice_that() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let time = Duration::from_secs(1);
        let wait = || {
            let _silent = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let stream = Stream::Tcp(listener.accept().unwrap().0);
            let mut output = Output::new(&stream, time).unwrap();
            let begin = Instant::now();
            let error = output.write_all(&vec![0; 32 << 20]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TimedOut);
            begin.elapsed()
        };
        let mut waits = Vec::new();
        // A busy machine is late once or twice; who waits twice as long always does.
        while waits.last().is_none_or(|&waited| waited >= 2 * time) {
            waits.push(wait());
            assert!(waits.len() < 10, "{waits:?}");
        }
        assert!(waits.iter().all(|&waited| waited >= time), "{waits:?}");
    }

    #[test]
    fn interruptions_give_no_more_time() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = Stream::Tcp(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        let output = Output::new(&stream, Duration::from_millis(50)).unwrap();
        let begin = Instant::now();
        let interrupted = |_: &Stream| {
            // Else it would be for ever.
            let late = begin.elapsed() > Duration::from_secs(60);
            if late { Ok(1) } else { Err(ErrorKind::Interrupted.into()) }
        };
        let error = output.attempt(interrupted).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }
}
