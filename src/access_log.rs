//! The access log: one line for each request.
//!
//! Owns its form. Writes nothing of a content, and no credentials. Invariant: without a log that wants the
//! line it costs no clock and no copy.

use std::time::Instant;

use bytes::Bytes;
use http::{Method, Response, Uri};

use crate::exchange::{Connection, Owner, Peer};
use crate::protocol::ASYNC_ID;

/// What the access log says of a request, taken before the request is handed on.
pub struct AccessLine(Option<(Method, Uri, Connection, Instant)>);

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
    pub fn write(self, owner: &Owner, route: &str, response: &Response<Bytes>, peer: &dyn Peer) {
        let Some((method, uri, connection, begin)) = self.0 else { return };
        let id = response.headers().get(ASYNC_ID).and_then(|id| id.to_str().ok()).unwrap_or("-");
        log::info!(
            "request={method} target={uri} peer={} owner={} route={route} job={id} status={} bytes={} time={:.6}s{}",
            connection,
            owner.as_log(),
            response.status().as_u16(),
            response.body().len(),
            begin.elapsed().as_secs_f64(),
            if peer.was_seen_leaving() { " left=yes" } else { "" },
        );
    }
}
