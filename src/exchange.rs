//! An exchange: a request with where it came from, and an answer with its receipt.
//!
//! Owns no behaviour of HTTP itself (the `http` crate's types carry that). Invariant: a [`Receipt`]
//! is resolved exactly once, whatever becomes of the connection: confirmed, or failed when dropped.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use rustix::event::PollFlags;

use crate::content::Content;
use crate::memory::allocated;

/// The authenticated user who owns a job; the anonymous owner if deferd runs without authentication.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner(Option<Arc<str>>);

impl Owner {
    /// The owner of every job while deferd runs without authentication.
    pub const fn anonymous() -> Self {
        Self(None)
    }

    /// The owner of this name; an empty name is the anonymous owner.
    pub fn named(name: &str) -> Self {
        Self((!name.is_empty()).then(|| Arc::from(name)))
    }

    /// Returns the user's name; `None` for the anonymous owner.
    pub fn name(&self) -> Option<&str> {
        self.0.as_deref()
    }

    /// Returns the name as the log shows it: `-` for the anonymous owner.
    pub fn as_log(&self) -> &str {
        self.name().unwrap_or("-")
    }
}

/// The connection that a request came in on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// Over TCP.
    Tcp {
        /// The client's address.
        peer: SocketAddr,
        /// The address that the client connected to.
        local: SocketAddr,
    },
    /// Over a Unix socket, whose clients have no address.
    Unix,
}

impl Connection {
    /// The client's address; that of this host for a Unix socket, whose clients are on it.
    pub fn peer_ip(&self) -> IpAddr {
        match self {
            Self::Tcp { peer, .. } => peer.ip().to_canonical(),
            Self::Unix => IpAddr::V4(Ipv4Addr::LOCALHOST),
        }
    }

    /// Returns the client as limits count it. An IPv6 host has a whole /64 to itself and may connect from
    /// any address of it (RFC 6177), so all of those count as the one that this returns. Loopback stays
    /// itself, and an IPv4 address in IPv6 counts as the IPv4 address.
    pub fn counted_peer(&self) -> IpAddr {
        match self.peer_ip() {
            IpAddr::V6(peer) if !peer.is_loopback() => {
                Ipv6Addr::from_bits(peer.to_bits() & !u128::from(u64::MAX)).into()
            }
            peer => peer,
        }
    }
}

/// The client, as the log shows it.
impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { peer, .. } => peer.fmt(f),
            Self::Unix => f.write_str("unix"),
        }
    }
}

/// A whole request: read to its last byte, checked, and with its target in origin-form.
#[derive(Debug)]
pub struct Call {
    /// Method, target, fields and content.
    pub request: Request<Content>,
    /// Where it came from.
    pub connection: Connection,
    /// Who sent it.
    pub owner: Owner,
    /// The scheme of its credentials: `Basic` or `Bearer`.
    pub auth_type: Option<&'static str>,
}

impl Call {
    /// Returns the memory that the request takes while it waits, in bytes: the content, the head's own
    /// structures, and a place in the map, a name and a value for each field.
    pub fn footprint(&self) -> usize {
        /// `Box<Call>`, with what beginning a head allocates.
        const HEAD: usize = 448;
        /// A place in `http::HeaderMap`: the map doubles, and on average a quarter of it is free.
        const FIELD: usize = 144;
        let field = |(name, value): (&HeaderName, &HeaderValue)| {
            // Standard names take no memory; the others are as long as they are.
            FIELD + allocated(value.len()) + name.as_str().len()
        };
        let fields: usize = self.request.headers().iter().map(field).sum();
        let target = self.request.uri().path_and_query().map_or(1, |t| t.as_str().len());
        HEAD + allocated(target) + fields + allocated(self.request.body().len())
    }
}

/// The client of a request that is not answered yet.
pub trait Peer: Send + Sync {
    /// Checks whether the client has left, as far as that can be seen. A client that has left stays gone.
    fn is_gone(&self) -> bool;

    /// Whether an earlier check found that it left.
    fn was_seen_leaving(&self) -> bool;

    /// The descriptor that `poll` watches to see it leave; `None` if that cannot be seen, or was seen already.
    fn watched(&self) -> Option<(BorrowedFd<'_>, PollFlags)>;
}

/// Whether the bytes of an answer were sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Every byte was handed to the connection.
    Confirmed,
    /// The connection broke first.
    Failed,
}

/// Tells the store whether a result was delivered.
///
/// A collected result is removed only when its receipt is confirmed; dropped unconfirmed, the
/// result is back in the store.
#[must_use]
pub struct Receipt(Option<Box<dyn FnOnce(Delivery) + Send>>);

impl Receipt {
    /// Returns a receipt for an answer that may be lost.
    pub const fn none() -> Self {
        Self(None)
    }

    /// A receipt that calls `settle` once.
    pub fn new(settle: impl FnOnce(Delivery) + Send + 'static) -> Self {
        Self(Some(Box::new(settle)))
    }

    /// Whether a delivery depends on it.
    pub const fn matters(&self) -> bool {
        self.0.is_some()
    }

    /// Confirms that every byte was sent.
    pub fn confirm(mut self) {
        if let Some(settle) = self.0.take() {
            settle(Delivery::Confirmed);
        }
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if let Some(settle) = self.0.take() {
            settle(Delivery::Failed);
        }
    }
}

/// A response on its way to the client.
pub struct Answer {
    /// Status code, fields and content; the front adds `date`, `content-length` and `connection`.
    pub response: Response<Content>,
    /// Whether the front guards it.
    pub guard: Guard,
    /// Confirmed when the last byte was sent.
    pub receipt: Receipt,
}

/// Whether the front adds the fields that keep an answer from foreign pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// Yes: the answer is deferd's own, or that of a plain program.
    Added,
    /// No: the fields are those of a script, an upstream or a stored result.
    Verbatim,
}

impl From<Response<Content>> for Answer {
    fn from(response: Response<Content>) -> Self {
        Self { response, guard: Guard::Added, receipt: Receipt::none() }
    }
}

/// An extension of a response to HEAD whose handler did not make the content of GET: the length that
/// this would have, if that is known.
#[derive(Clone, Debug)]
pub struct LengthOfGet(pub Option<HeaderValue>);

/// An empty response of the given status code.
pub fn empty(status: StatusCode) -> Response<Content> {
    let mut response = Response::new(Content::new());
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn limits_count_an_ipv6_network_as_one_peer() {
        for (peer, counted) in [
            ("192.0.2.7:1", "192.0.2.7"),
            ("[::ffff:192.0.2.7]:1", "192.0.2.7"),
            ("127.0.0.1:1", "127.0.0.1"),
            ("[::ffff:127.0.0.1]:1", "127.0.0.1"),
            ("[::1]:1", "::1"),
            ("[::2]:1", "::"),
            ("[2001:db8:1:2:3:4:5:6]:1", "2001:db8:1:2::"),
            ("[2001:db8:1:2:ffff:ffff:ffff:ffff]:1", "2001:db8:1:2::"),
            ("[2001:db8:1:3::]:1", "2001:db8:1:3::"),
        ] {
            let local = "[::1]:1".parse().unwrap();
            let connection = Connection::Tcp { peer: peer.parse().unwrap(), local };
            assert_eq!(connection.counted_peer(), counted.parse::<IpAddr>().unwrap(), "{peer}");
        }
        assert!(Connection::Unix.counted_peer().is_loopback());
    }

    #[test]
    fn a_receipt_is_settled_once() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let note = |seen: &Arc<Mutex<Vec<Delivery>>>| {
            let seen = Arc::clone(seen);
            Receipt::new(move |delivery| seen.lock().unwrap().push(delivery))
        };
        note(&seen).confirm();
        drop(note(&seen));
        Receipt::none().confirm();
        assert_eq!(*seen.lock().unwrap(), [Delivery::Confirmed, Delivery::Failed]);
    }
}
