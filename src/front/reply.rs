//! Writing an answer: status line, fields and content (RFC 9112 sections 4 and 6).
//!
//! Owns the fields that belong to the connection: `date`, `content-length`, `connection`. Invariant:
//! the content-length is that of the content, whatever a handler said (to HEAD, what it says of GET's);
//! `204` and `304` have none.

use std::io::{self, IoSlice, Write};
use std::time::SystemTime;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, DATE, TRANSFER_ENCODING};
use http::{Response, StatusCode, Version};

use super::head::Persistence;
use crate::call::LengthOfGet;

/// Content up to this size is copied behind the head; larger content is written from where it is.
const SMALL: usize = 4096;

/// Whether the content is sent, or only described (RFC 9110 section 9.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// It is sent.
    Sent,
    /// The request was HEAD.
    Omitted,
}

/// The `date` field, formatted once a second.
#[derive(Default)]
pub struct Clock {
    second: u64,
    text: String,
}

impl Clock {
    fn date(&mut self) -> &str {
        let now = SystemTime::now();
        let second = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        if second != self.second {
            self.second = second;
            self.text = httpdate::fmt_http_date(now);
        }
        &self.text
    }
}

/// Writes an answer to its last byte.
///
/// # Errors
/// Those of the connection; then some of the answer may have gone out.
pub fn write(
    stream: &mut impl Write,
    response: &Response<Bytes>,
    content: Content,
    persistence: Persistence,
    version: Version,
    clock: &mut Clock,
) -> io::Result<()> {
    let mut head = Vec::with_capacity(512);
    let status = response.status();
    let body = response.body();
    let reason = status.canonical_reason().unwrap_or("");
    write!(head, "HTTP/1.1 {} {reason}\r\n", status.as_str())?;
    for (name, value) in response.headers() {
        if ![CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING].contains(name) {
            put(&mut head, name.as_str(), value.as_bytes());
        }
    }
    if !response.headers().contains_key(DATE) {
        put(&mut head, "date", clock.date().as_bytes());
    }
    let has_content = !matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    match response.extensions().get::<LengthOfGet>().filter(|_| content == Content::Omitted) {
        Some(LengthOfGet(Some(length))) => put(&mut head, "content-length", length.as_bytes()),
        None if has_content => write!(head, "content-length: {}\r\n", body.len())?,
        _ => {}
    }
    match (persistence, version) {
        (Persistence::Close, _) => put(&mut head, "connection", b"close"),
        (Persistence::KeepAlive, Version::HTTP_10) => put(&mut head, "connection", b"keep-alive"),
        (Persistence::KeepAlive, _) => {}
    }
    head.extend_from_slice(b"\r\n");
    if !has_content || content == Content::Omitted {
        return write_all(stream, &head, b"");
    }
    if body.len() <= SMALL {
        head.extend_from_slice(body);
        return write_all(stream, &head, b"");
    }
    write_all(stream, &head, body)
}

fn put(head: &mut Vec<u8>, name: &str, value: &[u8]) {
    head.extend_from_slice(name.as_bytes());
    head.extend_from_slice(b": ");
    head.extend_from_slice(value);
    head.extend_from_slice(b"\r\n");
}

/// Writes both parts, together as long as that is possible.
fn write_all(stream: &mut impl Write, mut first: &[u8], mut second: &[u8]) -> io::Result<()> {
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

    fn written(status: u16, body: &'static str, content: Content, version: Version) -> String {
        let response = Response::builder()
            .status(status)
            .header("connection", "upgrade")
            .header("content-length", "999")
            .header("transfer-encoding", "chunked")
            .header("date", "then")
            .body(Bytes::from_static(body.as_bytes()))
            .unwrap();
        let mut out = Vec::new();
        let (keep, mut clock) = (Persistence::KeepAlive, Clock::default());
        write(&mut out, &response, content, keep, version, &mut clock).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_connection_s_fields_are_the_front_s() {
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
    fn a_large_answer_arrives_whole_through_short_writes() {
        struct Dribble(Vec<u8>);
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
        let response = Response::new(Bytes::from(body.clone()));
        let mut out = Dribble(Vec::new());
        let (close, mut clock) = (Persistence::Close, Clock::default());
        write(&mut out, &response, Content::Sent, close, Version::HTTP_11, &mut clock).unwrap();
        assert!(out.0.ends_with(&body));
        assert!(out.0.len() < body.len() + 200);
    }
}
