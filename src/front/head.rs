//! The head of a request: reads it, checks it, and decides its framing (RFC 9112 sections 2 to 6).
//!
//! Owns every rule of strictness that applies before the content. Does not touch sockets: `input` reads them.
//! Invariant: a head that any two readers could frame differently is refused.

use std::io::Read;
use std::mem::MaybeUninit;
use std::time::Instant;

use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, TRANSFER_ENCODING};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderName, HeaderValue, Method, Request, Version};
use memchr::memchr;

use super::input::{Input, Timed};
use super::{Limits, RequestError, target};
use crate::config::{shown, shown_duration};
use crate::error::Error;
use crate::fields::{FieldLines, find};

/// How many fields a head, or a trailer, may have.
pub const MAX_FIELDS: usize = 100;

/// The memory of a field of a head besides its text, in bytes: its places in the map, two allocations.
const FIELD: usize = 192;

/// The fields by which a head controls the front.
static CONTROL: [HeaderName; 5] = [HOST, CONTENT_LENGTH, TRANSFER_ENCODING, CONNECTION, EXPECT];

/// How the content of a request is delimited (RFC 9112 section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// By its length; zero if there is no content.
    Length(u64),
    /// By the chunked transfer coding.
    Chunked,
}

/// What happens to the connection after the answer (RFC 9112 section 9.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// It stays open for the next request.
    KeepAlive,
    /// It is closed.
    Close,
}

/// Whether the client waits for a `100` before it sends the content (RFC 9110 section 10.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expectation {
    /// Yes.
    Continue,
    /// No.
    None,
}

/// A request without its content.
#[derive(Debug)]
pub struct Head {
    /// Method, target in origin-form, version and fields.
    pub parts: Parts,
    /// Where the content ends.
    pub framing: Framing,
    /// Whether the client wants to keep the connection.
    pub persistence: Persistence,
    /// Whether the client waits for a `100`.
    pub expectation: Expectation,
    /// Its approximate memory, in bytes; zero if unknown.
    pub memory: usize,
}

/// Reads the next head. Returns `None` if the client closes the connection or stays idle before a request begins.
///
/// # Errors
/// [`RequestError`], with the error that the client should get.
pub fn read<R: Read + Timed>(
    input: &mut Input<R>,
    limits: &Limits,
) -> Result<Option<Head>, RequestError> {
    if input.bytes().is_empty() {
        match input.fill_within(limits.idle_time) {
            Ok(0) | Err(_) => return Ok(None),
            Ok(_) => {}
        }
    }
    // Most heads arrive in one piece, which needs no clock.
    let mut deadline = None;
    let mut blank_line = Blank::Allowed;
    let mut scanned = 0;
    loop {
        if input.bytes().starts_with(b"\r\n") && blank_line == Blank::Allowed {
            // "SHOULD ignore at least one empty line received prior to the request-line" (2.2).
            input.consume(2);
            blank_line = Blank::Seen;
            continue;
        }
        let bytes = input.bytes();
        if let Some(len) = end_of_head(bytes, &mut scanned)? {
            return if len > limits.max_head {
                Err(too_large(bytes, limits).into())
            } else {
                let head = parse(&bytes[..len], limits)?;
                input.consume(len);
                Ok(Some(head))
            };
        }
        if bytes.len() > limits.max_head {
            return Err(too_large(bytes, limits).into());
        }
        let deadline = *deadline.get_or_insert_with(|| Instant::now() + limits.head_time);
        let in_words = || {
            let time = shown_duration(limits.head_time);
            format!("the head was not complete within {time} of its first byte")
        };
        if input.fill(deadline).map_err(|error| error.within(in_words))? == 0 {
            return Err(RequestError::Gone);
        }
    }
}

/// Whether an empty line before the request line was already skipped.
#[derive(PartialEq, Eq)]
enum Blank {
    Allowed,
    Seen,
}

/// Returns which part of a head is too large: the request line, if even that does not end within the limit.
fn too_large(bytes: &[u8], limits: &Limits) -> Error {
    let most = format!("--max-head {}", shown(limits.max_head));
    if bytes.iter().take(limits.max_head).any(|&b| b == b'\n') {
        Error::FieldsTooLarge(format!("more than {most}").into())
    } else {
        Error::UriTooLong(format!("more than {most}").into())
    }
}

/// Returns the length of the head with its empty line, once that has arrived. Examines each line once: `scanned` is
/// where the next line begins. A line that does not end in CRLF is refused (2.2).
fn end_of_head(bytes: &[u8], scanned: &mut usize) -> Result<Option<usize>, Error> {
    while let Some(len) = memchr(b'\n', &bytes[*scanned..]) {
        let line = &bytes[*scanned..*scanned + len];
        let Some(line) = line.strip_suffix(b"\r") else {
            return Err(Error::bad_parameter("a line of the head ends in a bare line feed"));
        };
        *scanned += len + 1;
        if line.is_empty() {
            return Ok(Some(*scanned));
        }
    }
    Ok(None)
}

/// Reads a complete head.
fn parse(bytes: &[u8], limits: &Limits) -> Result<Head, Error> {
    check_version(bytes)?;
    let bytes = &*target::encoded_in(bytes)?;
    let mut lines = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(bytes, &mut lines) {
        Ok(httparse::Status::Complete(n)) if n == bytes.len() => {}
        Ok(_) => return Err(Error::bad_parameter("the head is malformed")),
        Err(httparse::Error::TooManyHeaders) => {
            return Err(Error::FieldsTooLarge("more than 100 fields".into()));
        }
        Err(error) => return Err(Error::bad_parameter(format!("the head is malformed: {error}"))),
    }
    let method = request.method.unwrap_or_default();
    let method = Method::from_bytes(method.as_bytes())
        .map_err(|_| Error::bad_parameter("the method is not valid"))?;
    let version = if request.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 };
    let fields = fields(request.headers)?;
    let memory = 2 * bytes.len() + FIELD * fields.len();
    let head = Head::new(method, request.path.unwrap_or_default(), version, fields, limits)?;
    Ok(Head { memory, ..head })
}

impl Head {
    /// Returns a head from these parts, if they fit together. The target is [`encoded`](target::encoded).
    ///
    /// # Errors
    /// `400`, `413`, `417` or `501`.
    pub fn new(
        method: Method,
        request_target: &str,
        version: Version,
        mut fields: HeaderMap,
        limits: &Limits,
    ) -> Result<Self, Error> {
        if method == Method::CONNECT {
            return Err(Error::NotImplemented("CONNECT: deferd makes no tunnels".into()));
        }
        let uri = target::origin_form(request_target, &method, &mut fields)?;
        let [host, length, coding, connection, expect] = find(&fields, &CONTROL);
        check_host(host, version)?;
        let framing = framing(length, coding, version)?;
        if matches!(framing, Framing::Length(length) if length > limits.max_body as u64) {
            return Err(limits.body_too_large());
        }
        let persistence = persistence(&fields, connection, version);
        let expectation = expectation(expect, version)?;
        let mut parts = Request::new(()).into_parts().0;
        (parts.method, parts.uri, parts.version, parts.headers) = (method, uri, version, fields);
        Ok(Self { parts, framing, persistence, expectation, memory: 0 })
    }
}

/// Distinguishes an unsupported version from a malformed request line: HTTP/1.0 and 1.1 are supported.
fn check_version(bytes: &[u8]) -> Result<(), Error> {
    let line = &bytes[..memchr(b'\r', bytes).unwrap_or(bytes.len())];
    match line.rsplit(|&b| b == b' ').next() {
        Some(b"HTTP/1.1" | b"HTTP/1.0") => Ok(()),
        Some([b'H', b'T', b'T', b'P', b'/', major, b'.', minor])
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            Err(Error::VersionNotSupported)
        }
        _ => Err(Error::bad_parameter("the request line has no HTTP version")),
    }
}

fn fields(lines: &[httparse::Header<'_>]) -> Result<HeaderMap, Error> {
    let mut fields = HeaderMap::with_capacity(lines.len());
    for line in lines {
        let name = HeaderName::from_bytes(line.name.as_bytes());
        let value = HeaderValue::from_bytes(line.value);
        let (Ok(name), Ok(value)) = (name, value) else {
            return Err(Error::bad_parameter("a field is not valid"));
        };
        fields.append(name, value);
    }
    Ok(fields)
}

/// Checks that there is exactly one `host` in HTTP/1.1, at most one in HTTP/1.0, and that it is valid (section 3.2).
fn check_host(host: FieldLines<'_>, version: Version) -> Result<(), Error> {
    match host.first {
        Some(_) if host.more => Err(Error::bad_parameter("more than one host")),
        Some(host) if is_host(host.as_bytes()) => Ok(()),
        Some(_) => Err(Error::bad_parameter("host is not valid")),
        None if version == Version::HTTP_10 => Ok(()),
        None => Err(Error::bad_parameter("host is missing")),
    }
}

/// Returns whether this is a valid `host` (RFC 9110 section 7.2): an authority without user information, or empty.
fn is_host(value: &[u8]) -> bool {
    // A name or an IPv4 address without a port, which nearly every client sends, needs no parser.
    value.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-'))
        || Authority::try_from(value).is_ok_and(|authority| !authority.as_str().contains('@'))
}

/// Decides where the content ends (section 6.3): one length in digits, or chunked, never both.
fn framing(
    length: FieldLines<'_>,
    coding: FieldLines<'_>,
    version: Version,
) -> Result<Framing, Error> {
    match (length.first, coding.first) {
        (None, None) => Ok(Framing::Length(0)),
        (Some(_), Some(_)) => {
            Err(Error::bad_parameter("both content-length and transfer-encoding"))
        }
        (Some(_), None) if length.more => Err(Error::bad_parameter("more than one content-length")),
        (Some(length), None) => content_length(length),
        (None, Some(_)) if version == Version::HTTP_10 => {
            Err(Error::bad_parameter("transfer-encoding in HTTP/1.0"))
        }
        (None, Some(_)) if coding.more => {
            Err(Error::bad_parameter("more than one transfer-encoding"))
        }
        (None, Some(coding)) => transfer_coding(coding),
    }
}

fn content_length(value: &HeaderValue) -> Result<Framing, Error> {
    let digits = value.to_str().ok().filter(|v| v.bytes().all(|b| b.is_ascii_digit()));
    let digits = digits.filter(|digits| !digits.is_empty());
    let digits = digits.ok_or(Error::bad_parameter("content-length is not a number"))?;
    // It has digits only, so it can only be too large.
    Ok(Framing::Length(digits.parse().unwrap_or(u64::MAX)))
}

/// Accepts only `chunked`, without other codings. Another coding before a final `chunked` gets `501`; without a final
/// `chunked`, the end of the content cannot be known (section 6.3).
fn transfer_coding(value: &HeaderValue) -> Result<Framing, Error> {
    let codings: Vec<&[u8]> =
        value.as_bytes().split(|&b| b == b',').map(<[u8]>::trim_ascii).collect();
    let is_chunked = |coding: &&[u8]| coding.eq_ignore_ascii_case(b"chunked");
    match codings.as_slice() {
        [coding] if is_chunked(coding) => Ok(Framing::Chunked),
        [others @ .., last] if is_chunked(last) && !others.iter().any(is_chunked) => {
            Err(Error::NotImplemented("a transfer coding other than chunked".into()))
        }
        _ => Err(Error::bad_parameter("transfer-encoding does not end in chunked once")),
    }
}

fn persistence(fields: &HeaderMap, connection: FieldLines<'_>, version: Version) -> Persistence {
    let mut close = false;
    let mut keep_alive = false;
    if connection.first.is_some() {
        let lines = fields.get_all(CONNECTION).iter().map(HeaderValue::as_bytes);
        for option in lines.flat_map(|line| line.split(|&b| b == b',')).map(<[u8]>::trim_ascii) {
            close |= option.eq_ignore_ascii_case(b"close");
            keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }
    let keeps = !close && (version == Version::HTTP_11 || keep_alive);
    if keeps { Persistence::KeepAlive } else { Persistence::Close }
}

fn expectation(expect: FieldLines<'_>, version: Version) -> Result<Expectation, Error> {
    match expect.first {
        // "MUST ignore that expectation" in HTTP/1.0 (RFC 9110 section 10.1.1).
        Some(_) if version == Version::HTTP_10 => Ok(Expectation::None),
        None => Ok(Expectation::None),
        Some(value) if value.as_bytes().eq_ignore_ascii_case(b"100-continue") => {
            Ok(Expectation::Continue)
        }
        Some(_) => Err(Error::ExpectationFailed),
    }
}

#[cfg(test)]
#[path = "head_tests.rs"]
pub mod tests;
