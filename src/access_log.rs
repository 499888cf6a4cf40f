//! The access log: one line for each request.
//!
//! Owns its form. Writes no content and no credentials. Invariant: if the log does not take the line, it costs no clock
//! and no copy.

use std::time::Instant;

use http::{Method, Response, StatusCode, Uri};

use crate::content::Content;
use crate::exchange::{Connection, Owner, Peer};
use crate::protocol::ASYNC_ID;

/// How much of the content of a refusal is logged, in bytes: all of it.
const MAX_REFUSAL: usize = 4 * 1024;

/// How much of a refused head the log shows, in bytes.
const SHOWN: usize = 256;

/// What the access log says of a request, noted before the request is handed on.
pub struct AccessLine(Option<Begun>);

struct Begun {
    method: Method,
    uri: Uri,
    connection: Connection,
    begin: Instant,
}

/// What the line says of an answer.
pub struct Answered<'a> {
    /// The job that it is about, or `-`.
    pub id: &'a str,
    /// Its status code.
    pub status: StatusCode,
    /// Its content, in bytes; of a broken answer, as much as was taken of it.
    pub bytes: usize,
    /// Why it broke after its head was sent.
    pub broken: Option<&'a str>,
}

impl<'a> From<&'a Response<Content>> for Answered<'a> {
    fn from(response: &'a Response<Content>) -> Self {
        let id = response.headers().get(ASYNC_ID).and_then(|id| id.to_str().ok());
        Self {
            id: id.unwrap_or("-"),
            status: response.status(),
            bytes: response.body().len(),
            broken: None,
        }
    }
}

impl AccessLine {
    /// Returns the moment from which the request's time counts; `None` if the log does not take the line.
    pub fn begin() -> Option<Instant> {
        log::log_enabled!(log::Level::Info).then(Instant::now)
    }

    /// Returns the line of a request that began then.
    pub fn of(method: &Method, uri: &Uri, connection: &Connection, begin: Option<Instant>) -> Self {
        Self(begin.map(|begin| Begun {
            method: method.clone(),
            uri: uri.clone(),
            connection: *connection,
            begin,
        }))
    }

    /// Returns the line of a request without its query, which may hold a secret.
    #[must_use]
    pub fn without_query(mut self) -> Self {
        if let Some(Begun { uri, .. }) = &mut self.0
            && uri.query().is_some()
        {
            *uri = uri.path().parse().unwrap_or_default();
        }
        self
    }

    /// Writes the line, with the answer.
    pub fn write<'a>(
        self,
        owner: &Owner,
        route: &str,
        answered: impl Into<Answered<'a>>,
        peer: &dyn Peer,
    ) {
        if self.0.is_none() {
            return;
        }
        let answered = answered.into();
        let left = if peer.was_seen_leaving() { " left=yes" } else { "" };
        let broken = answered.broken.map(|why| format!(" broken={why:?}")).unwrap_or_default();
        self.write_with(&format!("{left}{broken}"), owner, route, &answered);
    }

    /// Writes the line of a request that was refused before a handler saw it, and why.
    pub fn write_refused(self, owner: &Owner, route: &str, response: &Response<Content>) {
        if self.0.is_none() {
            return;
        }
        let why = format!(
            " refused={}",
            String::from_utf8_lossy(&response.body().beginning(MAX_REFUSAL).unwrap_or_default())
        );
        self.write_with(&why, owner, route, &response.into());
    }

    fn write_with(self, note: &str, owner: &Owner, route: &str, answered: &Answered<'_>) {
        let Some(Begun { method, uri, connection, begin }) = self.0 else { return };
        let Answered { id, status, bytes, .. } = answered;
        log::info!(
            "request={method} target={uri} peer={connection} owner={} route={route} job={id} status={} bytes={bytes} \
             time={:.6}s{note}",
            owner.as_log(),
            status.as_u16(),
            begin.elapsed().as_secs_f64(),
        );
    }
}

/// A request whose head is invalid: as much of its first line as can be shown.
pub struct RefusedHead {
    method: String,
    path: String,
}

impl RefusedHead {
    /// Returns what can be shown of a head that begins with these bytes. Without its query, which may hold a secret:
    /// the route is unknown.
    pub fn of(head: &[u8]) -> Self {
        let line = head.split(|&b| matches!(b, b'\r' | b'\n')).find(|line| !line.is_empty());
        let line = line.unwrap_or_default();
        let mut words = line[..line.len().min(SHOWN)].split(|&b| b == b' ');
        let mut word = || words.next().filter(|word| !word.is_empty());
        let (method, target) = (word(), word());
        let path = target.and_then(|target| target.split(|&b| b == b'?').next());
        let shown = |word: Option<&[u8]>| word.unwrap_or(b"-").escape_ascii().to_string();
        Self { method: shown(method), path: shown(path) }
    }

    /// Returns whether its client expects no content (RFC 9110 section 9.3.2).
    pub fn is_head(&self) -> bool {
        self.method == "HEAD"
    }

    /// Writes its line.
    pub fn write(&self, connection: &Connection, response: &Response<Content>) {
        log::info!(
            "request={} target={} peer={connection} owner=- route=- job=- status={} refused={}",
            self.method,
            self.path,
            response.status().as_u16(),
            String::from_utf8_lossy(&response.body().beginning(MAX_REFUSAL).unwrap_or_default()),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_head_shows_method_and_path() {
        let long = format!("GET /{}", "x".repeat(1000));
        for (head, method, path) in [
            (&b"POST /upload?token=1 HTTP/1.1\r\nhost: a b\r\n\r\n"[..], "POST", "/upload"),
            (b"\r\nHEAD /x HTTP/2.0\r\n", "HEAD", "/x"),
            (b"GET", "GET", "-"),
            (b"", "-", "-"),
            (b" /x", "-", "/x"),
            (b"\x16\x03\x01 \x00\xff\n", r"\x16\x03\x01", r"\x00\xff"),
            (long.as_bytes(), "GET", &long[4..SHOWN]),
        ] {
            let seen = RefusedHead::of(head);
            assert_eq!((&*seen.method, &*seen.path), (method, path));
        }
    }
}
