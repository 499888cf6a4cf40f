//! The content of a request: by length or by chunks, whole or not at all (RFC 9112 sections 6 and 7).
//!
//! Owns the chunked decoding and the floor on the rate at which a client must send. Invariants: a body
//! that is cut short is an error, never a shorter body; memory follows what has come, not what was
//! announced.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::head::Framing;
use super::input::{Input, Timed};
use super::{Broken, Limits};
use crate::content::ContentBuffer;
use crate::error::Error;

/// The longest line with a chunk size, extensions included, in bytes.
const MAX_CHUNK_LINE: usize = 4096;

/// The digits of a chunk size: more would not fit 64 bits.
const MAX_CHUNK_DIGITS: usize = 16;

/// Reads the content that `framing` delimits.
///
/// # Errors
/// [`Broken::Refused`] with `400`, `408` or `413`; [`Broken::Gone`] if the client closes before its end.
pub fn read<R: Read + Timed>(
    input: &mut Input<R>,
    framing: Framing,
    limits: &Limits,
) -> Result<Bytes, Broken> {
    if framing == Framing::Length(0) {
        return Ok(Bytes::new());
    }
    let content = ContentBuffer::default();
    let mut reader = Reader { input, begin: Instant::now(), time: limits.body_time, content };
    match framing {
        Framing::Length(length) => {
            let length = usize::try_from(length).map_err(|_| Error::BodyTooLarge)?;
            reader.read_content(length)?;
        }
        Framing::Chunked => reader.read_chunks(limits)?,
    }
    Ok(reader.content.freeze())
}

struct Reader<'a, R> {
    input: &'a mut Input<R>,
    begin: Instant,
    time: Duration,
    content: ContentBuffer,
}

impl<R: Read + Timed> Reader<'_, R> {
    /// A second more for each KiB that came: a floor on the rate.
    fn deadline(&self) -> Instant {
        self.begin + self.time + Duration::from_secs(self.content.len() as u64 / 1024)
    }

    /// Appends the next `length` bytes to the content.
    fn read_content(&mut self, length: usize) -> Result<(), Broken> {
        let end = self.content.len() + length;
        let buffered = self.input.bytes();
        let buffered = &buffered[..buffered.len().min(length)];
        self.content.extend(buffered).map_err(|error| no_room(&error))?;
        let used = buffered.len();
        self.input.consume(used);
        while self.content.len() < end {
            let deadline = self.deadline();
            let left = end - self.content.len();
            let room = self.content.room(left).map_err(|error| no_room(&error))?;
            let n = self.input.read_into(room, deadline)?;
            if n == 0 {
                return Err(Broken::Gone);
            }
            self.content.advance(n);
        }
        Ok(())
    }

    /// Reads chunks to the last, and the trailer, which is dropped (section 7.1).
    fn read_chunks(&mut self, limits: &Limits) -> Result<(), Broken> {
        loop {
            let size = self.read_line(MAX_CHUNK_LINE, chunk_size)??;
            if size == 0 {
                return self.skip_trailer(limits.max_head);
            }
            let room = limits.max_body - self.content.len();
            let size = usize::try_from(size).ok().filter(|&size| size <= room);
            self.read_content(size.ok_or(Error::BodyTooLarge)?)?;
            self.read_line(0, |_| ())?;
        }
    }

    fn skip_trailer(&mut self, max: usize) -> Result<(), Broken> {
        let mut left = max;
        loop {
            let len = self.read_line(left, <[u8]>::len)?;
            if len == 0 {
                return Ok(());
            }
            left = left.saturating_sub(len + 2);
        }
    }

    /// Reads a line of at most `max` bytes that ends in CRLF, and gives it without that to `parse`.
    fn read_line<T>(&mut self, max: usize, parse: impl FnOnce(&[u8]) -> T) -> Result<T, Broken> {
        let bad = |what: &'static str| Broken::Refused(Error::bad_parameter(what));
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
                return Err(Broken::Gone);
            }
        }
    }
}

/// The error of a request whose content finds no memory.
pub fn no_room(error: &io::Error) -> Error {
    Error::Unavailable(format!("no memory for the content: {error}").into())
}

/// The size in a chunk's first line; what is behind a semicolon is an extension, and ignored.
fn chunk_size(line: &[u8]) -> Result<u64, Error> {
    let digits = line.split(|&b| b == b';').next().unwrap_or_default();
    // "BWS" before the extension (RFC 9112 section 7.1.1); none may stand before the size.
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

    fn chunked(bytes: &str) -> Result<(Bytes, usize), Broken> {
        let mut input = Input::new(bytes.as_bytes());
        let content = read(&mut input, Framing::Chunked, &limits())?;
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
            assert_eq!((&read[..], rest), (content.as_bytes(), 4), "{bytes:?}");
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
            let Err(Broken::Refused(error)) = chunked(bytes) else { panic!("{bytes:?}") };
            assert_eq!(error.status().as_u16(), status, "{bytes:?}");
        }
        let long = format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(MAX_CHUNK_LINE));
        assert!(matches!(chunked(&long), Err(Broken::Refused(Error::BadParameter(_)))));
        let trailer = format!("0\r\na: {}\r\n\r\n", "x".repeat(limits().max_head));
        assert!(matches!(chunked(&trailer), Err(Broken::Refused(Error::BadParameter(_)))));
    }

    #[test]
    fn a_body_cut_short_is_no_body() {
        for bytes in
            ["", "5", "5\r\n", "5\r\nhel", "5\r\nhello\r\n", "5\r\nhello\r\n0\r\n", "0\r\na: b\r\n"]
        {
            assert!(matches!(chunked(bytes), Err(Broken::Gone)), "{bytes:?}");
        }
        let mut input = Input::new(&b"half"[..]);
        let cut = read(&mut input, Framing::Length(5), &limits());
        assert!(matches!(cut, Err(Broken::Gone)));
    }

    #[test]
    fn what_follows_a_length_is_left() {
        let mut input = Input::new(&b"helloGET /"[..]);
        input.fill(Instant::now() + Duration::from_secs(1)).unwrap();
        assert_eq!(read(&mut input, Framing::Length(5), &limits()).unwrap(), "hello");
        assert_eq!(input.bytes(), b"GET /");
    }
}
