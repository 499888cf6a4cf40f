//! The bytes to a client: written as long as it takes enough of them.
//!
//! Owns the two bounds on slow clients: how long a client may take nothing, and the minimum rate at which it must take
//! an answer after that. Does not know what the bytes mean. Invariant: only time in which bytes wait and the socket
//! accepts none counts, so a slow script does not make its client slow.

use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, Write};
use std::time::{Duration, Instant};

use rustix::fs::sendfile;

use crate::socket::Stream;

/// A blocking write that times out after some of its bytes were taken reports how many, but not when. So each attempt
/// is short, and the error of one attempt is at most this part of the time.
const ATTEMPTS: u32 = 30;

/// A write that took at least this long had to wait for the client, even if everything was taken.
const WAITED: Duration = Duration::from_millis(10);

/// The size of a typical single write, in bytes.
const SMALL: usize = 16 * 1024;

/// How much of a file is written at once, in bytes: the rate is checked in between.
const FILE_PART: usize = 256 * 1024;

/// A destination of answers.
pub struct Output<'a> {
    stream: &'a Stream,
    patience: Patience,
    /// When the bytes began to wait that the client did not take at the last [offer](Output::offer).
    waits_since: Option<Instant>,
}

/// The patience with a client while it takes an answer.
struct Patience {
    /// How long it may take nothing; and how long the whole answer may take, plus the time that it earns.
    time: Duration,
    /// How long deferd has waited since the client last took a byte.
    since_byte: Duration,
    /// How long deferd has waited since the answer began.
    in_all: Duration,
    /// What the client took after a tenth of the time. The bytes before that only filled the buffers of both sides:
    /// they may be megabytes, and all that it ever takes.
    taken: usize,
}

impl Patience {
    const fn new(time: Duration) -> Self {
        Self { time, since_byte: Duration::ZERO, in_all: Duration::ZERO, taken: 0 }
    }

    /// Records an attempt to write `given` bytes, of which `taken` were taken.
    ///
    /// # Errors
    /// `TimedOut` if the client is too slow: it took nothing for the whole time, or was waited for that long plus a
    /// second for each KiB.
    fn note(&mut self, lasted: Duration, given: usize, taken: usize) -> io::Result<()> {
        // An attempt that lasted longer than it can means that deferd itself was stopped.
        let lasted = lasted.min(2 * self.time / ATTEMPTS);
        if self.in_all >= self.time / 10 {
            self.taken += taken;
        }
        if taken > 0 {
            self.since_byte = Duration::ZERO;
        }
        if taken < given || lasted >= WAITED {
            self.in_all += lasted;
            if taken == 0 {
                self.since_byte += lasted;
            }
        }
        let earned = Duration::from_secs(self.taken as u64 / 1024);
        let is_over = self.since_byte >= self.time || self.in_all >= self.time + earned;
        if is_over { Err(ErrorKind::TimedOut.into()) } else { Ok(()) }
    }
}

impl<'a> Output<'a> {
    /// Writes to `stream`, which may take nothing for `time`, and must then take at least a KiB a second.
    ///
    /// # Errors
    /// Errors of the system.
    pub fn new(stream: &'a Stream, time: Duration) -> io::Result<Self> {
        stream.set_write_time(time / ATTEMPTS)?;
        Ok(Self { stream, patience: Patience::new(time), waits_since: None })
    }

    /// Begins another answer, which has the full time.
    pub const fn begin_answer(&mut self) {
        self.patience = Patience::new(self.patience.time);
        self.waits_since = None;
    }
}

impl Output<'_> {
    /// Writes those of `bytes` that the client takes at once; returns how many. Until the next offer, the rest counts
    /// as waiting.
    ///
    /// # Errors
    /// Errors of the connection, and `TimedOut` if the client is too slow.
    pub fn offer(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let lasted = self.waits_since.take().map_or(Duration::ZERO, |since| since.elapsed());
        let taken = match self.stream.send_at_once(bytes) {
            Err(error) if is_no_byte(&error) => 0,
            taken => taken?,
        };
        self.patience.note(lasted, bytes.len(), taken)?;
        self.waits_since = (taken < bytes.len()).then(Instant::now);
        Ok(taken)
    }

    /// Returns how long deferd may wait for the client between two offers.
    pub fn tick(&self) -> Duration {
        self.patience.time / ATTEMPTS
    }
}

impl Output<'_> {
    /// Writes some of `given` bytes, in as many attempts as fit into the time. An interrupted attempt counts as one
    /// that took no byte: signals, however many, give a client no more time.
    fn attempt(
        &mut self,
        given: usize,
        write: impl Fn(&Stream) -> io::Result<usize>,
    ) -> io::Result<usize> {
        // Most answers are small, go out at once, and need no clock: this costs at most one more attempt.
        let mut begin = (given > SMALL).then(Instant::now);
        loop {
            let written = write(self.stream);
            let taken = match &written {
                Err(error) if is_no_byte(error) => 0,
                Err(_) => return written,
                Ok(taken) if begin.is_none() && *taken == given => return written,
                Ok(taken) => *taken,
            };
            let lasted = begin.map_or(Duration::ZERO, |begin| begin.elapsed());
            self.patience.note(lasted, given, taken)?;
            if written.is_ok() {
                return written;
            }
            begin = Some(Instant::now());
        }
    }
}

/// Returns whether this error is a timeout.
fn is_no_byte(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// The destination of an answer.
pub trait Destination: Write {
    /// Writes some of the `length` bytes of `file` from offset `at` on without reading them; returns how many: 0 only
    /// at the end of the file. `None` if it cannot do so: then they must be read.
    fn write_file(&mut self, _file: &File, _at: u64, _length: usize) -> Option<io::Result<usize>> {
        None
    }
}

impl Destination for Output<'_> {
    fn write_file(&mut self, file: &File, at: u64, length: usize) -> Option<io::Result<usize>> {
        let length = length.min(FILE_PART);
        let sent =
            self.attempt(length, |stream| Ok(sendfile(stream, file, Some(&mut { at }), length)?));
        // Some file systems cannot do this, and some sandboxes do not permit it.
        let cannot = |error: &io::Error| {
            let kind = error.kind();
            matches!(
                kind,
                ErrorKind::InvalidInput | ErrorKind::Unsupported | ErrorKind::PermissionDenied
            )
        };
        (!sent.as_ref().is_err_and(cannot)).then_some(sent)
    }
}

/// Cannot send a file, so the file is read.
impl Destination for &Stream {}
#[cfg(feature = "tiny_http")]
impl Destination for Box<dyn Write + Send> {}
#[cfg(test)]
impl Destination for Vec<u8> {}

impl Write for Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.attempt(bytes.len(), |mut stream| stream.write(bytes))
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let given = parts.iter().map(|part| part.len()).sum();
        self.attempt(given, |mut stream| stream.write_vectored(parts))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_stalled_reader_is_dropped_after_the_write_timeout() {
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
        // A busy machine is late once or twice; a wrong bound is always late.
        while waits.last().is_none_or(|&waited| waited >= 2 * time) {
            waits.push(wait());
            assert!(waits.len() < 10, "{waits:?}");
        }
        assert!(waits.iter().all(|&waited| waited >= time), "{waits:?}");
    }

    /// Returns a file of this many bytes whose name was removed.
    fn file(length: usize) -> File {
        let path = std::env::temp_dir().join(format!("deferd-{length}-{}", std::process::id()));
        std::fs::write(&path, content(length)).unwrap();
        let file = File::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file
    }

    fn content(length: usize) -> Vec<u8> {
        (0..length).map(|n| (n % 251) as u8).collect()
    }

    #[test]
    fn a_file_is_sent_from_any_offset_and_never_more_than_it_has() {
        let length = 3 * FILE_PART + 1;
        let (file, expected) = (file(length), content(length));
        let (near, mut far) = UnixStream::pair().unwrap();
        let stream = Stream::Unix(near);
        for at in [0, 1, FILE_PART, length - 1, length] {
            std::thread::scope(|scope| {
                let reader = scope.spawn(|| {
                    let mut read = vec![0; length - at];
                    far.read_exact(&mut read).unwrap();
                    read
                });
                let mut output = Output::new(&stream, Duration::from_secs(60)).unwrap();
                let mut sent = at;
                // Asks for more than the file has.
                while let n @ 1.. = output.write_file(&file, sent as u64, length).unwrap().unwrap()
                {
                    assert!(n <= FILE_PART);
                    sent += n;
                }
                assert_eq!(sent, length);
                assert!(reader.join().unwrap() == expected[at..], "from {at}");
            });
        }
    }

    #[test]
    fn a_client_that_takes_nothing_of_a_file_times_out() {
        let file = file(32 << 20);
        let (near, _silent) = UnixStream::pair().unwrap();
        let stream = Stream::Unix(near);
        let mut output = Output::new(&stream, Duration::from_secs(1)).unwrap();
        let mut sent = 0;
        let error = loop {
            match output.write_file(&file, sent, 32 << 20).unwrap() {
                Ok(n) => sent += n as u64,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(0 < sent && sent < 32 << 20);
    }

    #[test]
    fn what_cannot_be_sent_is_read() {
        let (near, _far) = UnixStream::pair().unwrap();
        let stream = Stream::Unix(near);
        let mut output = Output::new(&stream, Duration::from_secs(60)).unwrap();
        // A directory can be opened, but no byte of it can be sent.
        let directory = File::open(std::env::temp_dir()).unwrap();
        assert!(output.write_file(&directory, 0, 1).is_none());
    }

    /// Records attempts of 1 s each until the time is over; returns how many there were.
    fn attempts(patience: &mut Patience, taken: impl Fn(u32) -> usize) -> Option<u32> {
        let second = Duration::from_secs(1);
        (1..10_000).find(|&n| patience.note(second, 1 << 20, taken(n)).is_err())
    }

    #[test]
    fn a_client_below_the_floor_times_out() {
        let new = || Patience::new(Duration::from_secs(30));
        let first_of_much = |n| if n == 1 { 4 << 20 } else { 0 };
        for (what, taken, cut) in [
            ("nothing", (|_| 0) as fn(u32) -> usize, Some(30)),
            ("only what fills the buffers", first_of_much, Some(30)),
            ("one byte a second", |_| 1, Some(30)),
            // It earns 1 s in 2 s, except for the first three.
            ("half of the floor", |_| 512, Some(56)),
            ("a KiB in 25 s", |n| if n % 25 == 0 { 1024 } else { 0 }, Some(31)),
            (
                "what fills the buffers, little by little",
                |n| if n < 4 { 1 << 20 } else { 0 },
                Some(30),
            ),
            ("just the floor", |_| 1024, None),
            ("a burst each 29 s", |n| if n % 29 == 0 { 32 << 10 } else { 0 }, None),
            ("a burst each 31 s", |n| if n % 31 == 0 { 1 << 20 } else { 0 }, Some(30)),
        ] {
            assert_eq!(attempts(&mut new(), taken), cut, "{what}");
        }
    }

    #[test]
    fn time_counts_only_while_bytes_wait() {
        let mut patience = Patience::new(Duration::from_secs(30));
        // A fast client, whatever its answer's size, and a client whose writes all wait a little.
        for _ in 0..100_000 {
            patience.note(Duration::from_millis(1), 10, 10).unwrap();
        }
        for _ in 0..1000 {
            patience.note(Duration::from_millis(900), 1000, 1000).unwrap();
        }
        // Everything is taken, but far too slowly.
        let slow = (0..100).find(|_| patience.note(Duration::from_secs(1), 10, 10).is_err());
        assert!(slow.is_none(), "what it took before has earned that");
        let mut patience = Patience::new(Duration::from_secs(30));
        let slow = (0..100).find(|_| patience.note(Duration::from_secs(1), 10, 10).is_err());
        assert_eq!(slow, Some(29));
        // A stop of the whole process does not count against the client.
        let mut patience = Patience::new(Duration::from_secs(30));
        patience.note(Duration::from_secs(3600), 10, 5).unwrap();
    }

    #[test]
    fn each_answer_has_the_whole_time() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = Stream::Tcp(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        let mut output = Output::new(&stream, Duration::from_secs(30)).unwrap();
        assert_eq!(attempts(&mut output.patience, |_| 1), Some(30));
        output.begin_answer();
        assert_eq!(attempts(&mut output.patience, |_| 1), Some(30));
    }

    #[test]
    fn interruptions_give_no_more_time() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = Stream::Tcp(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        let mut output = Output::new(&stream, Duration::from_millis(50)).unwrap();
        let begin = Instant::now();
        let interrupted = |_: &Stream| {
            // Otherwise the write would never end.
            let late = begin.elapsed() > Duration::from_secs(60);
            if late { Ok(1) } else { Err(ErrorKind::Interrupted.into()) }
        };
        let error = output.attempt(1, interrupted).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }
}
