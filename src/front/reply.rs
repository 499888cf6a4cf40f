//! Writing an answer: status line, fields and content (RFC 9112 sections 4 and 6).
//!
//! Owns the fields that belong to the connection: `date`, `content-length`, `connection`; and the fields that keep an
//! answer from foreign pages: `x-content-type-options` and `cross-origin-resource-policy` (the Fetch standard,
//! sections 3.6 and 3.7). Invariants: the content-length is that of the content, whatever a handler set (for HEAD: the
//! length that GET would have); `204` and `304` have none; only a [`Verbatim`](Guard::Verbatim) answer lacks the
//! fields against foreign pages.

use std::io::{self, BufRead, IoSlice, Write};
use std::time::SystemTime;

use http::header::{
    ACCESS_CONTROL_ALLOW_ORIGIN, CONNECTION, CONTENT_LENGTH, DATE, HeaderMap, TRANSFER_ENCODING,
    X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderName, Method, Response, StatusCode, Version};

use super::head::{Head, Persistence};
use super::output::Destination;
use crate::access_log::RefusedHead;
use crate::content::{self, Reader};
use crate::exchange::{Answer, Guard, LengthOfGet, Receipt};
use crate::memory::{Allowance, NoRoom};

/// Content up to this size is copied after the head; larger content is written from where it is.
const SMALL: usize = 4096;

/// The fields that only the front writes; a handler's values are dropped.
static OWN: [HeaderName; 3] = [CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING];

/// The fields against foreign pages: browsers trust the content type instead of guessing, and no page of another
/// origin may embed the content.
static GUARDS: [HeaderName; 2] =
    [X_CONTENT_TYPE_OPTIONS, HeaderName::from_static("cross-origin-resource-policy")];
const NO_SNIFFING: &[u8] = b"x-content-type-options: nosniff\r\n";
const SAME_ORIGIN: &[u8] = b"cross-origin-resource-policy: same-origin\r\n";

/// Whether the content is sent, or only described (RFC 9110 section 9.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// It is sent.
    Sent,
    /// It is only described: the request was HEAD.
    Omitted,
}

/// The form of an answer.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// Whether its content is sent.
    pub content: Content,
    /// What happens to the connection after it.
    pub persistence: Persistence,
    /// The version of the request.
    pub version: Version,
}

impl Manner {
    /// The form of the last answer of a connection, for any request.
    pub const LAST: Self =
        Self { content: Content::Sent, persistence: Persistence::Close, version: Version::HTTP_11 };

    /// Returns the form of the answer to a request with an invalid head: the connection ends after it.
    pub fn of_refused(head: &RefusedHead) -> Self {
        let content = if head.is_head() { Content::Omitted } else { Content::Sent };
        Self { content, ..Self::LAST }
    }

    /// Returns the form of the answer to a request with this head, as it was received: a client reads the answer to
    /// the method that it sent, not to the method that overrides it.
    pub fn of(head: &Head) -> Self {
        let is_head = head.parts.method == Method::HEAD;
        Self {
            content: if is_head { Content::Omitted } else { Content::Sent },
            persistence: head.persistence,
            version: head.parts.version,
        }
    }

    /// Returns the same form, after which the connection ends.
    pub const fn last(self) -> Self {
        Self { persistence: Persistence::Close, ..self }
    }
}

/// How the head says where the content ends (RFC 9112 section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// After this many bytes.
    Length(usize),
    /// At the last chunk.
    Chunked,
    /// Nothing: the content ends with the connection, or the answer has no content.
    Untold,
}

/// Writes the answers of a connection, one after the other.
#[derive(Default)]
pub struct Writer {
    /// The head of an answer, and small content after it.
    head: Vec<u8>,
    /// The second for which the `date` field is valid.
    second: u64,
    date: String,
}

impl Writer {
    /// Writes an answer to its last byte, and returns its receipt. A large head is charged to `memory` during that
    /// time.
    ///
    /// # Errors
    /// [`io::ErrorKind::OutOfMemory`] if there is no memory for the head: then nothing was written. Otherwise errors
    /// of the connection: then a part of the answer may have been sent.
    pub fn write(
        &mut self,
        stream: &mut impl Destination,
        answer: Answer,
        manner: Manner,
        memory: &Allowance,
    ) -> io::Result<Receipt> {
        let Answer { mut response, guard, receipt } = answer;
        self.compose(&response, guard, manner, Framing::Length(response.body().len()));
        let sent = has_content(response.status()) && manner.content == Content::Sent;
        let mut body = content::Content::new();
        match response.body().in_memory().filter(|bytes| bytes.len() <= SMALL) {
            Some(bytes) if sent => self.head.extend_from_slice(bytes),
            None if sent => body = std::mem::take(response.body_mut()),
            _ => {}
        }
        let size = self.head.capacity();
        let charged = if size > 4 * SMALL { memory.charge(size).map(Some) } else { Ok(None) };
        let written = match charged {
            Err(NoRoom) => Err(io::ErrorKind::OutOfMemory.into()),
            Ok(charge) => {
                if charge.is_some() {
                    // A client that reads slowly has one copy of the fields in memory, not two.
                    *response.headers_mut() = HeaderMap::new();
                }
                write_all(stream, &self.head, body.reader())
            }
        };
        self.head.clear();
        // An idle connection should not hold the memory of one large answer.
        self.head.shrink_to(2 * SMALL);
        written.map(|()| receipt)
    }

    /// Composes the head of a response whose content has this framing; for HEAD, the framing that GET would have.
    pub fn compose<T>(
        &mut self,
        response: &Response<T>,
        guard: Guard,
        manner: Manner,
        framing: Framing,
    ) -> &mut Vec<u8> {
        self.head.clear();
        self.put_status_and_fields(response, guard);
        let length = response.extensions().get::<LengthOfGet>();
        match length.filter(|_| manner.content == Content::Omitted) {
            Some(LengthOfGet(Some(length))) => self.put(b"content-length", length.as_bytes()),
            None if has_content(response.status()) => self.put_framing(framing),
            _ => {}
        }
        match (manner.persistence, manner.version) {
            (Persistence::Close, _) => self.put(b"connection", b"close"),
            (Persistence::KeepAlive, Version::HTTP_10) => self.put(b"connection", b"keep-alive"),
            (Persistence::KeepAlive, _) => {}
        }
        self.head.extend_from_slice(b"\r\n");
        &mut self.head
    }

    fn put_framing(&mut self, framing: Framing) {
        match framing {
            Framing::Length(length) => {
                let mut digits = itoa::Buffer::new();
                self.put(b"content-length", digits.format(length).as_bytes());
            }
            Framing::Chunked => self.put(b"transfer-encoding", b"chunked"),
            Framing::Untold => {}
        }
    }

    fn put_status_and_fields<T>(&mut self, response: &Response<T>, guard: Guard) {
        let status = response.status();
        if status == StatusCode::OK {
            // Nearly all answers have this status line.
            self.head.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
        } else {
            let reason = status.canonical_reason().unwrap_or("");
            for part in ["HTTP/1.1 ", status.as_str(), " ", reason, "\r\n"] {
                self.head.extend_from_slice(part.as_bytes());
            }
        }
        let guarded = guard == Guard::Added;
        let mut dated = false;
        let mut shared = false;
        for (name, value) in response.headers() {
            if OWN.contains(name) || (guarded && GUARDS.contains(name)) {
                continue;
            }
            dated |= name == DATE;
            shared |= name == ACCESS_CONTROL_ALLOW_ORIGIN;
            self.put(name.as_str().as_bytes(), value.as_bytes());
        }
        if guarded {
            self.head.extend_from_slice(NO_SNIFFING);
            // An allowed origin may embed what it may read.
            self.head.extend_from_slice(if shared { b"" } else { SAME_ORIGIN });
        }
        if !dated {
            self.put_date();
        }
    }

    fn put_date(&mut self) {
        let now = SystemTime::now();
        let second = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        if second != self.second {
            self.second = second;
            self.date = format!("date: {}\r\n", httpdate::fmt_http_date(now));
        }
        self.head.extend_from_slice(self.date.as_bytes());
    }

    fn put(&mut self, name: &[u8], value: &[u8]) {
        for part in [name, b": ", value, b"\r\n"] {
            self.head.extend_from_slice(part);
        }
    }
}

/// Returns whether an answer of this status code can have content (RFC 9110 section 6.4.1).
pub fn has_content(status: StatusCode) -> bool {
    !matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// Writes a head and its content, together if possible.
fn write_all(stream: &mut impl Destination, head: &[u8], mut content: Reader) -> io::Result<()> {
    let mut head = Some(head);
    loop {
        let piece = content.fill_buf()?;
        let written = piece.len();
        if written == 0 && head.is_none() {
            return Ok(());
        }
        write_both(stream, head.take().unwrap_or_default(), piece)?;
        content.consume(written);
        while let Some(sent) = content.send(|file, at, length| stream.write_file(file, at, length))
        {
            sent?;
        }
    }
}

/// Writes both parts, together if possible.
fn write_both(stream: &mut impl Write, mut first: &[u8], mut second: &[u8]) -> io::Result<()> {
    while !first.is_empty() || !second.is_empty() {
        let written = if second.is_empty() {
            stream.write(first)
        } else {
            stream.write_vectored(&[IoSlice::new(first), IoSlice::new(second)])
        };
        match written {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                let of_first = n.min(first.len());
                first = &first[of_first..];
                second = &second[n - of_first..];
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Budget;

    fn written(status: u16, body: &'static str, content: Content, version: Version) -> String {
        let response = Response::builder()
            .status(status)
            .header("connection", "upgrade")
            .header("content-length", "999")
            .header("transfer-encoding", "chunked")
            .header("date", "then")
            .body(content::Content::from(body))
            .unwrap();
        let mut out = Vec::new();
        let manner = Manner { content, persistence: Persistence::KeepAlive, version };
        let memory = Allowance::default();
        let answer = verbatim(response);
        Writer::default().write(&mut out, answer, manner, &memory).unwrap().confirm();
        String::from_utf8(out).unwrap()
    }

    const KEPT: Manner = Manner {
        content: Content::Sent,
        persistence: Persistence::KeepAlive,
        version: Version::HTTP_11,
    };

    fn verbatim(response: Response<content::Content>) -> Answer {
        Answer { guard: Guard::Verbatim, ..response.into() }
    }

    #[test]
    fn the_front_replaces_the_fields_of_the_connection() {
        assert_eq!(
            written(200, "hello", Content::Sent, Version::HTTP_11),
            "HTTP/1.1 200 OK\r\ndate: then\r\ncontent-length: 5\r\n\r\nhello"
        );
        assert_eq!(
            written(200, "hello", Content::Omitted, Version::HTTP_10),
            "HTTP/1.1 200 OK\r\ndate: then\r\ncontent-length: 5\r\nconnection: keep-alive\r\n\r\n"
        );
        for status in [204, 304] {
            let text = written(status, "hello", Content::Sent, Version::HTTP_11);
            assert!(text.ends_with("date: then\r\n\r\n"), "{text}");
        }
    }

    #[test]
    fn answers_are_guarded_against_foreign_pages() {
        let both =
            "x-content-type-options: nosniff\r\ncross-origin-resource-policy: same-origin\r\n";
        let own = "x-content-type-options: own\r\ncross-origin-resource-policy: own\r\n";
        let shared = "access-control-allow-origin: *\r\n";
        for (fields, added) in [
            ("", both),
            (own, both),
            (shared, "access-control-allow-origin: *\r\nx-content-type-options: nosniff\r\n"),
        ] {
            let mut response = Response::builder().header("date", "then");
            for (name, value) in fields.lines().filter_map(|line| line.split_once(": ")) {
                response = response.header(name, value);
            }
            let response = response.body(content::Content::new()).unwrap();
            for (fields, guard) in [(added, Guard::Added), (fields, Guard::Verbatim)] {
                let mut writer = Writer::default();
                let mut out = Vec::new();
                let answer = Answer { guard, ..response.clone().into() };
                writer.write(&mut out, answer, KEPT, &Allowance::default()).unwrap().confirm();
                let head = "HTTP/1.1 200 OK\r\ndate: then\r\n";
                let expected = format!("{head}{fields}content-length: 0\r\n\r\n");
                assert_eq!(String::from_utf8(out).unwrap(), expected);
            }
        }
    }

    #[test]
    fn one_answer_after_the_other_and_none_of_a_broken_one() {
        struct RequestError;
        impl Destination for RequestError {}
        impl Write for RequestError {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut writer = Writer::default();
        let mut out = Vec::new();
        let memory = Allowance::default();
        for body in ["first", "second"] {
            let answer = || {
                let response = Response::builder().header("date", "then");
                verbatim(response.body(body.into()).unwrap())
            };
            assert!(writer.write(&mut RequestError, answer(), KEPT, &memory).is_err());
            writer.write(&mut out, answer(), KEPT, &memory).unwrap().confirm();
        }
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "HTTP/1.1 200 OK\r\ndate: then\r\ncontent-length: 5\r\n\r\nfirst\
             HTTP/1.1 200 OK\r\ndate: then\r\ncontent-length: 6\r\n\r\nsecond"
        );
    }

    #[test]
    fn a_large_head_needs_memory_and_a_small_one_does_not() {
        let budget = Budget::new(256 << 10);
        let memory = budget.allowance();
        let mut writer = Writer::default();
        let mut out = Vec::new();
        let mut write = |size: usize| {
            let response = Response::builder().header("x", "x".repeat(size));
            let response = response.body(content::Content::new()).unwrap();
            writer.write(&mut out, response.into(), KEPT, &memory).map(Receipt::confirm)
        };
        write(32 << 10).unwrap();
        let _others = memory.charge(256 << 10).unwrap();
        write(1 << 10).unwrap();
        assert_eq!(write(32 << 10).unwrap_err().kind(), io::ErrorKind::OutOfMemory);
        write(1 << 10).unwrap();
        assert_eq!(String::from_utf8(out).unwrap().matches("HTTP/1.1 200 OK").count(), 3);
    }

    #[test]
    fn a_large_answer_arrives_whole_through_short_writes() {
        struct Dribble(Vec<u8>);
        impl Destination for Dribble {}
        impl Write for Dribble {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let n = bytes.len().min(1000);
                self.0.extend_from_slice(&bytes[..n]);
                Ok(n)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let body: Vec<u8> = (0..=255).cycle().take(3 * SMALL + 1).collect();
        let response = Response::new(body.clone().into());
        let mut out = Dribble(Vec::new());
        let memory = Allowance::default();
        let written = Writer::default().write(&mut out, response.into(), Manner::LAST, &memory);
        written.unwrap().confirm();
        assert!(out.0.ends_with(&body));
        assert!(out.0.len() < body.len() + 200);
    }
}
