//! The content of a request: by length or by chunks, whole or not at all (RFC 9112 sections 6 and 7).
//!
//! Owns the chunked decoding and the minimum rate at which a client must send; its `intake` takes the content.
//! Invariants: a body that is cut short is an error, never a shorter body; a trailer that is not a list of fields is
//! an error, though it is dropped; memory grows with what has arrived, not with what was announced.

use std::io::Read;
use std::time::{Duration, Instant};

use http::{HeaderName, HeaderValue};

use super::head::{Framing, MAX_FIELDS};
use super::input::{Input, Timed};
use super::intake::{Fate, Intake, Taken};
use super::{Limits, RequestError};
use crate::config::shown_duration;
use crate::content::Content;
use crate::error::Error;

/// The longest line of a chunk size, extensions included, in bytes.
const MAX_CHUNK_LINE: usize = 4096;

/// The most digits of a chunk size: more would not fit into 64 bits.
const MAX_CHUNK_DIGITS: usize = 16;

/// Reads the content that `framing` delimits; returns empty content if it is dropped.
///
/// # Errors
/// [`RequestError::Refused`] with `400`, `408`, `413`, or `503` if there is no memory for it; [`RequestError::Gone`]
/// if the client closes before its end.
pub fn read<R: Read + Timed>(
    input: &mut Input<R>,
    framing: Framing,
    limits: &Limits,
    intake: &Intake<'_>,
) -> Result<Content, RequestError> {
    if framing == Framing::Length(0) {
        return Ok(Content::new());
    }
    intake.check(framing)?;
    let begin = Instant::now();
    let time = limits.body_time;
    let mut reader = Reader { input, begin, last: begin, time, intake, taken: intake.begin() };
    let read = match framing {
        // The length is at most `most`.
        Framing::Length(length) => {
            reader.read_content(usize::try_from(length).unwrap_or(usize::MAX))
        }
        Framing::Chunked => reader.read_chunks(limits),
    };
    read.map_err(|error| error.within(|| reader.limit()))?;
    Ok(reader.taken.content.freeze().map_err(|error| Error::no_memory(&error))?)
}

struct Reader<'a, R> {
    input: &'a mut Input<R>,
    begin: Instant,
    /// When the last byte arrived.
    last: Instant,
    time: Duration,
    intake: &'a Intake<'a>,
    taken: Taken,
}

impl<R: Read + Timed> Reader<'_, R> {
    /// Returns the deadline of the next read. Each KiB that arrived adds a second, which makes a minimum rate. Silence
    /// has a bound of its own: a client that sent much at first would otherwise earn hours of it.
    fn deadline(&self) -> Instant {
        let earned = Duration::from_secs(self.taken.received as u64 / 1024);
        (self.begin + earned).min(self.last) + self.time
    }

    /// Returns the time limit in words.
    fn limit(&self) -> String {
        let time = shown_duration(self.time);
        format!(
            "the content must not pause for longer than --body-timeout {time}, nor come slower than 1 KiB a second"
        )
    }

    /// Takes the next `length` bytes of the content.
    fn read_content(&mut self, length: usize) -> Result<(), RequestError> {
        let end = self.taken.received + length;
        self.take_buffered(length)?;
        while self.taken.received < end {
            let deadline = self.deadline();
            let left = end - self.taken.received;
            if self.intake.fate() == Fate::Dropped {
                if self.input.fill(deadline)? == 0 {
                    return Err(RequestError::Gone);
                }
                self.last = Instant::now();
                self.take_buffered(left)?;
                continue;
            }
            let room = self.taken.content.room(left).map_err(|error| Error::no_memory(&error))?;
            let n = self.input.read_into(room, deadline)?;
            if n == 0 {
                return Err(RequestError::Gone);
            }
            self.last = Instant::now();
            self.taken.content.advance(n);
            self.taken.received += n;
        }
        Ok(())
    }

    /// Takes the part of the next `length` bytes that has arrived.
    fn take_buffered(&mut self, length: usize) -> Result<(), RequestError> {
        let buffered = self.input.bytes();
        let buffered = &buffered[..buffered.len().min(length)];
        self.intake.take(&mut self.taken, buffered)?;
        let used = buffered.len();
        self.input.consume(used);
        Ok(())
    }

    /// Reads chunks up to the last, and the trailer, which is checked and dropped (section 7.1).
    fn read_chunks(&mut self, limits: &Limits) -> Result<(), RequestError> {
        loop {
            let size = self.read_line(MAX_CHUNK_LINE, chunk_size)??;
            if size == 0 {
                return self.read_trailer(limits.max_head);
            }
            let room = self.intake.most() - self.taken.received;
            let size = usize::try_from(size).ok().filter(|&size| size <= room);
            self.read_content(size.ok_or_else(|| self.intake.too_large())?)?;
            self.read_line(0, |_| ())?;
        }
    }

    fn read_trailer(&mut self, max: usize) -> Result<(), RequestError> {
        let mut left = max;
        for _ in 0..=MAX_FIELDS {
            let len = self.read_line(left, |line| check_trailer(line).map(|()| line.len()))??;
            if len == 0 {
                return Ok(());
            }
            left = left.saturating_sub(len + 2);
        }
        Err(Error::bad_parameter("the trailer has more than 100 fields").into())
    }

    /// Reads a line of at most `max` bytes that ends in CRLF, and passes it to `parse` without the CRLF.
    fn read_line<T>(
        &mut self,
        max: usize,
        parse: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, RequestError> {
        let bad = |what: &'static str| RequestError::Refused(Error::bad_parameter(what));
        loop {
            let bytes = self.input.bytes();
            if let Some(end) = bytes.iter().take(max + 2).position(|&b| b == b'\n') {
                let line = bytes[..end].strip_suffix(b"\r");
                let line =
                    line.ok_or_else(|| bad("a line of the chunked content has a bare line feed"))?;
                if line.contains(&b'\r') {
                    return Err(bad("a line of the chunked content has a bare carriage return"));
                }
                let parsed = parse(line);
                self.input.consume(end + 1);
                return Ok(parsed);
            }
            if bytes.len() >= max + 2 {
                return Err(bad("a line of the chunked content is too long"));
            }
            let deadline = self.deadline();
            if self.input.fill(deadline)? == 0 {
                return Err(RequestError::Gone);
            }
            self.last = Instant::now();
        }
    }
}

/// Checks that a line of the trailer is empty, or a field as in a head: a token, a colon directly after it, and a
/// value without control characters. A folded line begins with a blank, which is not part of a token.
fn check_trailer(line: &[u8]) -> Result<(), Error> {
    if line.is_empty() {
        return Ok(());
    }
    let colon = line.iter().position(|&b| b == b':');
    let field = colon.map(|colon| (&line[..colon], &line[colon + 1..]));
    let is_valid = field.is_some_and(|(name, value)| {
        HeaderName::from_bytes(name).is_ok() && HeaderValue::from_bytes(value).is_ok()
    });
    is_valid.then_some(()).ok_or(Error::bad_parameter("a line of the trailer is not a field"))
}

/// Returns the size in a chunk's first line; an extension after a semicolon is ignored.
fn chunk_size(line: &[u8]) -> Result<u64, Error> {
    let digits = line.split(|&b| b == b';').next().unwrap_or_default();
    // "BWS" may precede the extension (RFC 9112 section 7.1.1), but not the size.
    let digits = if digits.len() < line.len() { digits.trim_ascii_end() } else { digits };
    let bad = || Error::bad_parameter("a chunk size is not a hexadecimal number");
    if digits.len() > MAX_CHUNK_DIGITS || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(bad());
    }
    let digits = std::str::from_utf8(digits).map_err(|_| bad())?;
    u64::from_str_radix(digits, 16).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::super::head::tests::limits;
    use super::*;
    use crate::handler::Takes;
    use crate::memory::Allowance;
    use crate::memory::Budget;

    fn read_all(input: &mut Input<&[u8]>, framing: Framing) -> Result<Content, RequestError> {
        let limits = limits();
        let memory = Allowance::default();
        read(input, framing, &limits, &Intake::new(Takes::Any, &limits, &memory))
    }

    fn chunked(bytes: &str) -> Result<(Content, usize), RequestError> {
        let mut input = Input::new(bytes.as_bytes());
        let content = read_all(&mut input, Framing::Chunked)?;
        let mut rest = input.bytes().len();
        while let Ok(n @ 1..) = input.fill(Instant::now() + Duration::from_secs(1)) {
            rest += n;
        }
        Ok((content, rest))
    }

    #[test]
    fn chunks_are_joined_and_what_follows_is_left() {
        for (bytes, content) in [
            ("0\r\n\r\n", ""),
            ("5\r\nhello\r\n0\r\n\r\n", "hello"),
            (
                "5;ext=\"x\"\r\nhello\r\n00A\r\n, whatever\r\n0\r\nTrailer: x\r\n\r\n",
                "hello, whatever",
            ),
            ("1 ;x\r\n!\r\n0;last\r\n\r\n", "!"),
        ] {
            let (read, rest) = chunked(&format!("{bytes}NEXT")).unwrap();
            assert_eq!((read, rest), (content.into(), 4), "{bytes:?}");
        }
    }

    #[test]
    fn malformed_chunks_are_refused() {
        for (bytes, status) in [
            ("x\r\n", 400),
            ("\r\n", 400),
            (" 5\r\nhello\r\n0\r\n\r\n", 400),
            ("+5\r\nhello\r\n0\r\n\r\n", 400),
            ("0x5\r\nhello\r\n0\r\n\r\n", 400),
            ("5\nhello\r\n0\r\n\r\n", 400),
            ("5\r\nhello0\r\n\r\n", 400),
            ("5\r\nhelloworld\r\n0\r\n\r\n", 400),
            ("5\r\nhello\n0\r\n\r\n", 400),
            ("5;a\rb\r\nhello\r\n0\r\n\r\n", 400),
            ("10000000000000000\r\n", 400),
            ("ffffffffffffffff\r\n", 413),
            ("101\r\n", 413),
        ] {
            let Err(RequestError::Refused(error)) = chunked(bytes) else { panic!("{bytes:?}") };
            assert_eq!(error.status().as_u16(), status, "{bytes:?}");
        }
        let long = format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(MAX_CHUNK_LINE));
        assert!(matches!(chunked(&long), Err(RequestError::Refused(Error::BadParameter(_)))));
        let trailer = format!("0\r\na: {}\r\n\r\n", "x".repeat(limits().max_head));
        assert!(matches!(chunked(&trailer), Err(RequestError::Refused(Error::BadParameter(_)))));
    }

    #[test]
    fn trailers_are_fields_or_refused() {
        let fields = "x: y\r\n".repeat(100);
        for trailer in ["a: b\r\n", "a:\r\nB:b\r\n", "~!#: \t\u{e4}:\r\n", &fields] {
            let (read, rest) = chunked(&format!("0\r\n{trailer}\r\nNEXT")).unwrap();
            assert_eq!((read.len(), rest), (0, 4), "{trailer:?}");
        }
        for trailer in [
            "a\r\n",
            ": b\r\n",
            "a : b\r\n",
            "a\t: b\r\n",
            " a: b\r\n",
            "a: b\r\n c\r\n",
            "a: b\r\n\tc: d\r\n",
            "a b: c\r\n",
            "(a): b\r\n",
            "\u{e4}: b\r\n",
            "a: \0\r\n",
            "a\0: b\r\n",
            "a: \u{1}\r\n",
            "a: \u{7f}\r\n",
            "a: b\rc\r\n",
            "a: b\nc: d\r\n",
            "a: b\n",
            "GET / HTTP/1.1\r\n",
            &format!("{fields}x: y\r\n"),
        ] {
            let Err(RequestError::Refused(error)) = chunked(&format!("0\r\n{trailer}\r\nNEXT"))
            else {
                panic!("{trailer:?}")
            };
            assert_eq!(error.status().as_u16(), 400, "{trailer:?}");
        }
    }

    /// Checks the computed deadline: waiting for it would need a clock that can be set.
    #[test]
    fn silence_is_bounded_whatever_came_before() {
        let mut input = Input::new(&b""[..]);
        let limits = limits();
        let memory = Allowance::default();
        let intake = Intake::new(Takes::Any, &limits, &memory);
        let begin = Instant::now();
        let time = Duration::from_secs(20);
        let mut reader = Reader {
            input: &mut input,
            begin,
            last: begin,
            time,
            intake: &intake,
            taken: Taken { received: 100 * 1024, ..intake.begin() },
        };
        assert_eq!(reader.deadline(), begin + time);
        reader.last += Duration::from_secs(90);
        assert_eq!(reader.deadline(), reader.last + time);
        // Single bytes do not add more time than was earned either.
        reader.last += Duration::from_secs(20);
        assert_eq!(reader.deadline(), begin + Duration::from_secs(100) + time);
    }

    #[test]
    fn a_body_cut_short_is_an_error() {
        for bytes in
            ["", "5", "5\r\n", "5\r\nhel", "5\r\nhello\r\n", "5\r\nhello\r\n0\r\n", "0\r\na: b\r\n"]
        {
            assert!(matches!(chunked(bytes), Err(RequestError::Gone)), "{bytes:?}");
        }
        let mut input = Input::new(&b"half"[..]);
        let cut = read_all(&mut input, Framing::Length(5));
        assert!(matches!(cut, Err(RequestError::Gone)));
    }

    #[test]
    fn what_follows_a_length_is_left() {
        let mut input = Input::new(&b"helloGET /"[..]);
        input.fill(Instant::now() + Duration::from_secs(1)).unwrap();
        assert_eq!(read_all(&mut input, Framing::Length(5)).unwrap(), "hello");
        assert_eq!(input.bytes(), b"GET /");
    }

    #[test]
    fn dropped_content_is_read_to_its_end_and_not_kept() {
        let limits = limits();
        let memory = Allowance::default();
        let intake = Intake::new(Takes::Nothing, &limits, &memory);
        for (framing, bytes) in
            [(Framing::Length(5), "helloNEXT"), (Framing::Chunked, "5\r\nhello\r\n0\r\n\r\nNEXT")]
        {
            let mut input = Input::new(bytes.as_bytes());
            let content = read(&mut input, framing, &limits, &intake).unwrap();
            input.fill(Instant::now() + Duration::from_secs(1)).unwrap();
            assert_eq!((content, input.bytes()), (Content::new(), &b"NEXT"[..]));
        }
    }

    #[test]
    fn content_without_memory_is_refused_and_its_memory_given_back() {
        let limits = Limits { max_body: 1 << 20, ..limits() };
        let budget = Budget::new(2 << 20);
        let intake_memory = budget.allowance();
        let intake = Intake::new(Takes::Any, &limits, &intake_memory);
        let _others = budget.allowance().charge((2 << 20) - (64 << 10)).unwrap();
        let bytes = vec![b'x'; 1 << 20];
        let mut input = Input::new(&bytes[..]);
        let read = read(&mut input, Framing::Length(1 << 20), &limits, &intake);
        let Err(RequestError::Refused(error)) = read else { panic!("there is no memory") };
        assert_eq!(error.status().as_u16(), 503);
        assert_eq!(budget.used(), (2 << 20) - (64 << 10));
    }
}
