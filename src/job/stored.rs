//! A response at rest: the field lines as bytes and the content, in a fifth of the memory of a header map.
//!
//! Owns the conversion both ways and nothing else. Invariant: the result of converting back has the same status code,
//! the same fields in the same order for each name, and the same content; the content is shared, never copied.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};

use super::log::LogEnd;
use super::outcome::Outcome;
use crate::content::Content;
use crate::error::Error;
use crate::memory::allocated;
use crate::protocol::{EXIT_CODE, EXIT_SIGNAL};

/// A response as a store keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredResponse {
    pub(super) status: StatusCode,
    /// `name: value\r\n`, as in an HTTP/1.1 message (RFC 9112 section 5).
    pub(super) fields: Box<[u8]>,
    pub(super) body: Content,
}

/// How a job ended, as far as its record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// The status code of its result.
    pub status: StatusCode,
    /// How the program that failed ended.
    pub exit: Option<Exit>,
    /// The outcome of the job.
    pub outcome: Outcome,
    /// How much content its result has, in bytes.
    pub bytes: u64,
}

/// How a failed program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// With this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// What a job produced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredResult {
    /// The response that will be collected.
    pub response: StoredResponse,
    /// The last bytes that the job wrote to stderr.
    pub log: LogEnd,
}

/// What is known about a result without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// How the job ended.
    pub ending: Ending,
    /// How many bytes of its log are kept.
    pub log: usize,
    /// How much it wrote to stderr in all, in bytes.
    pub logged: u64,
}

impl StoredResult {
    /// Returns what is known about it without reading it.
    pub fn summary(&self) -> Summary {
        let LogEnd { text, offset } = &self.log;
        Summary { ending: self.response.ending(), log: text.len(), logged: *offset }
    }

    /// Returns its accounted size, in bytes.
    pub fn footprint(&self) -> usize {
        self.response.footprint() + allocated(self.log.text.len())
    }

    /// Returns how much of its size is not charged by the content itself.
    pub fn uncharged(&self) -> usize {
        self.footprint() - self.response.body.charged()
    }
}

impl StoredResult {
    /// Returns the error that replaces a result for which there is no room, with the end of the log: it fits into
    /// [`ERROR_ROOM`](super::ERROR_ROOM).
    #[must_use]
    pub fn without_room(self, error: &Error) -> Self {
        let LogEnd { text, offset } = &self.log;
        let text = text[text.len().saturating_sub(super::SHORT_LOG)..].into();
        Self { response: error.response().into(), log: LogEnd { text, offset: *offset } }
    }
}

impl StoredResponse {
    /// Returns its accounted size, in bytes.
    pub fn footprint(&self) -> usize {
        allocated(self.fields.len()) + allocated(self.body.len())
    }

    /// Returns how the job ended.
    pub fn ending(&self) -> Ending {
        // Only deferd's own errors are recognized by their content, and they are small.
        let body = self.body.in_memory().map_or(&[][..], |body| body);
        Ending { bytes: self.body.len() as u64, ..ending(self.status, &self.fields, body) }
    }

    /// Returns the content.
    pub const fn body(&self) -> &Content {
        &self.body
    }

    /// Returns the response as it was produced.
    pub fn to_response(&self) -> Response<Content> {
        let mut response = Response::new(self.body.clone());
        *response.status_mut() = self.status;
        read_fields(&self.fields, response.headers_mut());
        response
    }
}

impl From<Response<Content>> for StoredResponse {
    fn from(response: Response<Content>) -> Self {
        let length =
            |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + 4;
        let mut fields = Vec::with_capacity(response.headers().iter().map(length).sum());
        write_fields(response.headers(), &mut fields);
        Self {
            status: response.status(),
            fields: fields.into_boxed_slice(),
            // Moved, not cloned: `Bytes` that were never shared need no allocation of their own.
            body: response.into_body(),
        }
    }
}

/// Reads how a job ended from its result's status code, field lines and content.
pub(super) fn ending(status: StatusCode, lines: &[u8], body: &[u8]) -> Ending {
    let number = |name: &HeaderName| {
        let mut lines = lines.split_inclusive(|&b| b == b'\n');
        let value = lines.find_map(|line| line.strip_prefix(name.as_str().as_bytes()))?;
        let value = value.strip_prefix(b": ")?.strip_suffix(b"\r\n")?;
        std::str::from_utf8(value).ok()?.parse().ok()
    };
    let exit = number(&EXIT_CODE).map(Exit::Code);
    Ending {
        status,
        exit: exit.or_else(|| number(&EXIT_SIGNAL).map(Exit::Signal)),
        outcome: Outcome::of(status, body),
        bytes: body.len() as u64,
    }
}

/// Appends `name: value\r\n` for each field.
pub(super) fn write_fields(fields: &HeaderMap, lines: &mut Vec<u8>) {
    for (name, value) in fields {
        lines.extend_from_slice(name.as_str().as_bytes());
        lines.extend_from_slice(b": ");
        lines.extend_from_slice(value.as_bytes());
        lines.extend_from_slice(b"\r\n");
    }
}

/// Reads field lines that `write_fields` wrote.
pub(super) fn read_fields(lines: &[u8], fields: &mut HeaderMap) {
    for line in lines.split_inclusive(|&b| b == b'\n') {
        if let Some((name, value)) = field(line) {
            fields.append(name, value);
        }
    }
}

/// Reads a field line that `write_fields` wrote: names have no colon and values no line feed.
fn field(line: &[u8]) -> Option<(HeaderName, HeaderValue)> {
    let line = line.strip_suffix(b"\r\n")?;
    let colon = line.iter().position(|&b| b == b':')?;
    let name = HeaderName::from_bytes(&line[..colon]).ok()?;
    let value = HeaderValue::from_bytes(line.get(colon + 2..)?).ok()?;
    Some((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_comes_back_as_it_went_in() {
        let response = Response::builder()
            .status(418)
            .header("content-type", "text/plain")
            .header("set-cookie", "a=1")
            .header("set-cookie", "b=2; path=/")
            .header("x-empty", "")
            .header("x-bytes", HeaderValue::from_bytes(b"\xe4\xf6: \t;").unwrap())
            .body(Content::from(&b"short and stout"[..]))
            .unwrap();
        let back = StoredResponse::from(response.clone()).to_response();
        assert_eq!(back.status(), response.status());
        assert_eq!(back.headers(), response.headers());
        assert_eq!(back.body(), response.body());
    }

    #[test]
    fn an_ending_is_read_from_the_fields() {
        for (name, value, exit) in [
            ("x-exit-code", "3", Some(Exit::Code(3))),
            ("x-exit-signal", "9", Some(Exit::Signal(9))),
            ("x-exit-codes", "3", None),
            ("x-exit-code", "three", None),
        ] {
            let response = Response::builder().status(500).header("x-a", "1").header(name, value);
            let stored = StoredResponse::from(response.body(Content::from(&b"no"[..])).unwrap());
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            let ending = Ending { status, exit, outcome: Outcome::Error, bytes: 2 };
            assert_eq!(stored.ending(), ending, "{name}: {value}");
        }
    }
}
