//! The access log: one line for each request.
//!
//! Owns its form. Writes nothing of a content, and no credentials. Invariant: without a log that wants the
//! line it costs no clock and no copy.

use std::time::Instant;

use bytes::Bytes;
use http::{Method, Response, StatusCode, Uri};

use crate::exchange::{Connection, Owner, Peer};
use crate::protocol::ASYNC_ID;

/// What the access log says of a request, taken before the request is handed on.
pub struct AccessLine(Option<(Method, Uri, Connection, Instant)>);

/// What the line says of an answer.
pub struct Answered<'a> {
    /// The job that it is about, or `-`.
    pub id: &'a str,
    /// Its status code.
    pub status: StatusCode,
    /// Its content, in bytes; of a broken answer, as much as was taken of it.
    pub bytes: usize,
    /// Why it was broken after its head was sent.
    pub broken: Option<&'a str>,
}

impl<'a> From<&'a Response<Bytes>> for Answered<'a> {
    fn from(response: &'a Response<Bytes>) -> Self {
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
    /// The moment that the request's time counts from; `None` if no log wants the line.
    pub fn begin() -> Option<Instant> {
        log::log_enabled!(log::Level::Info).then(Instant::now)
    }

    /// Returns the line of a request that began then.
    pub fn of(method: &Method, uri: &Uri, connection: &Connection, begin: Option<Instant>) -> Self {
        Self(begin.map(|begin| (method.clone(), uri.clone(), *connection, begin)))
    }

    /// Returns the line of a request whose query is for nobody else to see.
    #[must_use]
    pub fn without_query(mut self) -> Self {
        if let Some((_, uri, ..)) = &mut self.0
            && uri.query().is_some()
        {
            *uri = uri.path().parse().unwrap_or_default();
        }
        self
    }

    /// Writes the line, with what was answered.
    pub fn write<'a>(
        self,
        owner: &Owner,
        route: &str,
        answered: impl Into<Answered<'a>>,
        peer: &dyn Peer,
    ) {
        let Some((method, uri, connection, begin)) = self.0 else { return };
        let Answered { id, status, bytes, broken } = answered.into();
        log::info!(
            "request={method} target={uri} peer={} owner={} route={route} job={id} status={} bytes={bytes} \
             time={:.6}s{}{}",
            connection,
            owner.as_log(),
            status.as_u16(),
            begin.elapsed().as_secs_f64(),
            if peer.was_seen_leaving() { " left=yes" } else { "" },
            broken.map(|why| format!(" broken={why:?}")).unwrap_or_default(),
        );
    }
}
