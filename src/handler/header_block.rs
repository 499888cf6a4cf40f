//! The header block at the beginning of a CGI response (RFC 3875 section 6.2), as scripts write it.
//!
//! Owns its reading: as strict as the RFC where a mistake could be content, otherwise as lenient as busybox httpd and
//! lighttpd. Decides nothing about the response. Invariant: an accepted block has a CGI field or a status line, or is
//! just an empty line; a refused block names the offending line, if there is one.

use std::fmt;

use http::StatusCode;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION};

/// How many fields a script's response may have.
const MAX_FIELDS: usize = 1000;

/// How large its header block may be, in bytes: while it is read, it is held a second time, and that copy is not
/// charged to the budget of memory.
const MAX_SIZE: usize = 64 * 1024;

/// How much of an offending line is shown, in characters.
const MAX_SHOWN: usize = 100;

const STATUS: HeaderName = HeaderName::from_static("status");

/// A header block.
#[derive(Debug)]
pub struct HeaderBlock {
    /// Its fields without `Status` and `Content-Length`.
    pub fields: HeaderMap,
    /// The status from `Status`, or else from a status line.
    pub status: Option<StatusCode>,
    /// How much content is announced, in bytes.
    pub announced: Option<usize>,
    /// Where the content begins.
    pub end: usize,
}

/// Why output does not begin with a header block.
#[derive(Debug)]
pub struct Invalid {
    /// What is wrong.
    pub why: &'static str,
    /// The number of the offending line, from 1, and the line.
    pub line: Option<(usize, String)>,
}

/// Without the line, because it may be a secret of the script: waiting clients do not see it.
impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.line {
            None => f.write_str(self.why),
            Some((number, _)) => write!(f, "line {number} {}", self.why),
        }
    }
}

impl Invalid {
    const fn whole(why: &'static str) -> Self {
        Self { why, line: None }
    }

    /// Returns the description with the line.
    pub fn with_line(&self) -> String {
        match &self.line {
            None => self.to_string(),
            Some((_, text)) => format!("{self}: \"{text}\""),
        }
    }
}

/// Whether the script has written everything.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Yes: the end of the output also ends the header block.
    Whole,
    /// No, it may write more.
    SoFar,
}

/// Reads the header block, whose lines end with LF or CRLF; `None` if its end may not have arrived yet.
///
/// # Errors
/// [`Invalid`].
pub fn read(stdout: &[u8], output: Output) -> Result<Option<HeaderBlock>, Invalid> {
    let mut block = Reading::default();
    let mut start = 0;
    for number in 1.. {
        let rest = &stdout[start..];
        let line_end = rest.iter().take(MAX_SIZE + 1 - start).position(|&b| b == b'\n');
        let next = line_end.map_or(stdout.len(), |end| start + end + 1);
        if next > MAX_SIZE {
            return Err(Invalid::whole("its header block is larger than 64K"));
        }
        if line_end.is_none() && output == Output::SoFar {
            return Ok(None);
        }
        let line = &rest[..line_end.unwrap_or(rest.len())];
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            let is_nothing = number == 1 && line_end.is_none();
            if is_nothing {
                return Err(Invalid::whole("it wrote nothing"));
            }
            return block.end(stdout, next, number).map(Some);
        }
        let taken = if number == 1 { block.first_line(line) } else { block.field(line) };
        taken.map_err(|why| Invalid { why, line: Some((number, shown(line))) })?;
        start = next;
    }
    unreachable!("the output ends before the line numbers do")
}

/// The state of reading a header block.
#[derive(Default)]
struct Reading {
    fields: HeaderMap,
    count: usize,
    /// The status from `Status`.
    status: Option<StatusCode>,
    /// The status from a status line.
    line_status: Option<StatusCode>,
    announced: Option<usize>,
}

impl Reading {
    /// Takes the first line, which may be a status line (RFC 9112 section 4): some scripts write one, as if to the
    /// client.
    fn first_line(&mut self, line: &[u8]) -> Result<(), &'static str> {
        let Some(rest) = line.strip_prefix(b"HTTP/1.") else { return self.field(line) };
        let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
        match rest.get(digits) {
            Some(b' ') if digits > 0 => {
                self.line_status = Some(status(&rest[digits + 1..])?);
                Ok(())
            }
            _ => Err("is not a status line"),
        }
    }

    /// Takes a field. If CGI allows a field only once, its last value counts (section 6.3).
    fn field(&mut self, line: &[u8]) -> Result<(), &'static str> {
        self.count += 1;
        if self.count > MAX_FIELDS {
            return Err("is one field more than 1000");
        }
        let colon = line.iter().position(|&b| b == b':').ok_or("is not a field")?;
        let name = HeaderName::from_bytes(&line[..colon]).map_err(|_| "is not a field")?;
        let value = line[colon + 1..].trim_ascii();
        if name == STATUS {
            self.status = Some(status(value)?);
        } else if name == CONTENT_LENGTH {
            if self.announced.is_some() {
                return Err("is a second Content-Length");
            }
            self.announced = Some(length(value).ok_or("is not a length in digits")?);
        } else {
            let value = HeaderValue::from_bytes(value).map_err(|_| "has a control character")?;
            if [CONTENT_TYPE, LOCATION].contains(&name) {
                self.fields.insert(name, value);
            } else {
                self.fields.append(name, value);
            }
        }
        Ok(())
    }

    /// Ends the block before the line of this number; the content begins at `end`.
    fn end(self, stdout: &[u8], end: usize, number: usize) -> Result<HeaderBlock, Invalid> {
        let status = self.status.or(self.line_status);
        // "The response header … MUST contain at least one CGI field" (section 6.2). Without one it may be content.
        let is_cgi = [CONTENT_TYPE, LOCATION].iter().any(|name| self.fields.contains_key(name));
        if number > 1 && status.is_none() && !is_cgi {
            let why = "begins a header with neither Content-Type, Location nor Status";
            let first = stdout.split(|&b| b == b'\n').next().unwrap_or_default();
            return Err(Invalid { why, line: Some((1, shown(first.trim_ascii_end()))) });
        }
        Ok(HeaderBlock { fields: self.fields, status, announced: self.announced, end })
    }
}

/// Reads three digits of a final status code, and a reason, which is ignored (section 6.3.3).
fn status(value: &[u8]) -> Result<StatusCode, &'static str> {
    let code = value.split(|b| b" \t".contains(b)).next().unwrap_or_default();
    let code = StatusCode::from_bytes(code).ok();
    code.filter(|code| (200..=599).contains(&code.as_u16())).ok_or("is not a final status code")
}

/// Reads digits; a number too large counts as the largest.
fn length(value: &[u8]) -> Option<usize> {
    let digits = std::str::from_utf8(value).ok()?;
    let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| digits.parse().unwrap_or(usize::MAX))
}

/// Returns the beginning of a line in printable form.
fn shown(line: &[u8]) -> String {
    // A character has at most four bytes.
    let line = String::from_utf8_lossy(&line[..line.len().min(4 * MAX_SHOWN)]).into_owned();
    // What Rust would escape is not printable, such as controls that change the direction of the text.
    let is_printable = |c: char| "\"'\\".contains(c) || c.escape_debug().len() == 1;
    let shown = |c: char| if is_printable(c) && c != char::REPLACEMENT_CHARACTER { c } else { '?' };
    line.chars().map(shown).take(MAX_SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(stdout: &str) -> HeaderBlock {
        read(stdout.as_bytes(), Output::Whole)
            .unwrap_or_else(|invalid| panic!("{stdout:?}: {}", invalid.with_line()))
            .expect("the whole output has a whole header block")
    }

    #[test]
    fn blocks_are_read_as_scripts_write_them() {
        for (stdout, status, content) in [
            ("Content-Type: a/b\n\nhello", None, "hello"),
            ("Content-Type: a/b\r\n\r\n\r\nhello", None, "\r\nhello"),
            ("CONTENT-TYPE:a/b\nX: 1\r\n\nhello", None, "hello"),
            // A status line, of any version of HTTP/1.
            ("HTTP/1.0 200 OK\nContent-Type: a/b\n\nhello", Some(200), "hello"),
            ("HTTP/1.1 404 Not here\r\n\r\nhello", Some(404), "hello"),
            ("HTTP/1.1 204\n\n", Some(204), ""),
            ("HTTP/1.1 200 OK\nX: 1\n\nhello", Some(200), "hello"),
            ("HTTP/1.0 200 OK\nStatus: 403\n\n", Some(403), ""),
            // An empty line at the beginning: no fields.
            ("\nhello", None, "hello"),
            ("\r\n\r\nhello", None, "\r\nhello"),
            ("\n", None, ""),
            // The end of the output also ends the block.
            ("Content-Type: a/b", None, ""),
            ("Content-Type: a/b\r\n", None, ""),
            ("Status: 204\r", Some(204), ""),
            ("HTTP/1.0 403 Forbidden", Some(403), ""),
            ("Status: 200\nStatus: 404\tNo\n\n", Some(404), ""),
        ] {
            let block = block(stdout);
            let found = block.status.map(|status| status.as_u16());
            assert_eq!((found, &stdout[block.end..]), (status, content), "{stdout:?}");
        }
    }

    #[test]
    fn of_several_cgi_fields_the_last_counts() {
        let block = block(
            "Content-Type: a/b\nLocation: /x\nSet-Cookie: a\ncontent-type: c/d\nLocation: /y\nSet-Cookie: b\n\n",
        );
        assert_eq!(block.fields.get_all(CONTENT_TYPE).iter().collect::<Vec<_>>(), ["c/d"]);
        assert_eq!(block.fields.get_all(LOCATION).iter().collect::<Vec<_>>(), ["/y"]);
        assert_eq!(block.fields.get_all("set-cookie").iter().collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn a_length_is_announced_once_in_digits() {
        let announced = |value: &str| {
            let stdout = format!("Status: 200\nContent-Length: {value}\n\n");
            read(stdout.as_bytes(), Output::Whole).map(|block| block.unwrap().announced)
        };
        assert_eq!(announced(" 7 ").unwrap(), Some(7));
        assert_eq!(announced("0").unwrap(), Some(0));
        assert_eq!(announced("99999999999999999999999").unwrap(), Some(usize::MAX));
        for invalid in ["", "-1", "+7", "0x7", "7 8", "7, 7", "seven"] {
            assert!(announced(invalid).is_err(), "{invalid}");
        }
        assert!(announced("7\nContent-Length: 7").is_err());
    }

    #[test]
    fn an_invalid_block_names_the_line() {
        for (stdout, shown) in [
            ("", "it wrote nothing"),
            ("hello", "line 1 is not a field: \"hello\""),
            ("hello\n\n", "line 1 is not a field: \"hello\""),
            ("Content-Type: a/b\nhello\n\n", "line 2 is not a field: \"hello\""),
            ("Content-Type: a/b\n\tfolded: 1\n\n", "line 2 is not a field: \"?folded: 1\""),
            ("Content Type: a/b\n\n", "line 1 is not a field: \"Content Type: a/b\""),
            (": a/b\n\n", "line 1 is not a field: \": a/b\""),
            ("Status: 200\nX: \x07\x1b[2K\r\n\n", "line 2 has a control character: \"X: ??[2K\""),
            (
                "gr\u{fc}n \"q\" \\ \u{202e}\u{200b}\u{85}",
                "line 1 is not a field: \"gr\u{fc}n \"q\" \\ ???\"",
            ),
            ("Status: 99\n\n", "line 1 is not a final status code: \"Status: 99\""),
            (
                "Status: 100 Continue\n\n",
                "line 1 is not a final status code: \"Status: 100 Continue\"",
            ),
            ("Status: 1000\n\n", "line 1 is not a final status code: \"Status: 1000\""),
            (
                "HTTP/1.1 101 Switching\n\n",
                "line 1 is not a final status code: \"HTTP/1.1 101 Switching\"",
            ),
            ("HTTP/1.x\n\n", "line 1 is not a status line: \"HTTP/1.x\""),
            ("HTTP/2 200\n\n", "line 1 is not a field: \"HTTP/2 200\""),
            (
                "Usage: x [y]\n\n",
                "line 1 begins a header with neither Content-Type, Location nor Status: \"Usage: x [y]\"",
            ),
            (
                "Content-Length: 5\r\n\r\nhello",
                "line 1 begins a header with neither Content-Type, Location nor Status: \"Content-Length: 5\"",
            ),
            (
                "Status: 200\nContent-Length: x\n\n",
                "line 2 is not a length in digits: \"Content-Length: x\"",
            ),
        ] {
            let Err(invalid) = read(stdout.as_bytes(), Output::Whole) else { panic!("{stdout:?}") };
            assert_eq!(invalid.with_line(), shown);
        }
        let long = "x".repeat(150);
        let Err(invalid) = read(long.as_bytes(), Output::Whole) else { panic!() };
        assert_eq!(invalid.line.unwrap().1, "x".repeat(100));
    }

    #[test]
    fn a_block_has_at_most_1000_fields_and_64_kib() {
        let fields = |count: usize| format!("Status: 200\n{}\n", "X: 1\n".repeat(count - 1));
        assert_eq!(block(&fields(1000)).fields.get_all("x").iter().count(), 999);
        assert!(read(fields(1001).as_bytes(), Output::Whole).is_err());
        let sized = |size: usize| {
            let rest = "Status: 200\nX: \n\n".len();
            format!("Status: 200\nX: {}\n\ncontent", "x".repeat(size - rest))
        };
        assert_eq!(&sized(MAX_SIZE)[block(&sized(MAX_SIZE)).end..], "content");
        for output in [Output::Whole, Output::SoFar] {
            let read = read(sized(MAX_SIZE + 1).as_bytes(), output);
            assert!(read.is_err_and(|invalid| invalid.why.contains("larger than 64K")));
        }
    }

    #[test]
    fn a_block_without_its_end_is_not_judged() {
        for stdout in ["", "Sta", "Status: 200", "Status: 200\n", "Status: 200\n\r", "X: 1\n"] {
            assert!(read(stdout.as_bytes(), Output::SoFar).is_ok_and(|block| block.is_none()));
        }
        let block = read(b"Status: 200\nContent-Length: 5\n\nhel", Output::SoFar);
        let block = block.unwrap().unwrap();
        assert_eq!((block.announced, block.end), (Some(5), 31));
    }
}
