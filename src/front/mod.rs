//! The fronts. The strict front, in the files beside this one: HTTP/1.1 over blocking sockets, one bounded thread per
//! connection. The other, in `tiny_http`, is that crate's accept loop in front of the same service.
//!
//! The strict front owns sockets, framing and deadlines. Does not know jobs: a request goes to the service complete,
//! an answer returns complete or goes out while it is produced (`flow`), and its receipt is confirmed when the last
//! byte was sent. Invariants: every phase has a deadline; after a refused request the connection is closed, so that no
//! byte after it is ever read as a request; nothing that a client does ends the accept loop.

mod accept;
mod body;
mod client;
mod connection;
mod flow;
mod head;
mod in_flight;
mod input;
mod intake;
mod output;
#[cfg(test)]
mod random_tests;
mod reply;
mod slots;
mod target;
#[cfg(feature = "tiny_http")]
pub mod tiny_http;

pub use accept::{Listening, Stopper};
pub use in_flight::InFlight;

use std::borrow::Cow;
use std::time::Duration;

use crate::error::Error;

/// The limits of clients.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The request line and the fields together, in bytes.
    pub max_head: usize,
    /// The content of a request, in bytes.
    pub max_body: usize,
    /// That limit in words, for a client that exceeds it: `--max-body 16M`.
    pub max_body_option: String,
    /// From the first byte of a head to its last.
    pub head_time: Duration,
    /// For the content, plus a second for each KiB received; and the longest pause within it.
    pub body_time: Duration,
    /// The longest time in which a client takes no byte of the answer; and for all of it, plus a second for each KiB
    /// taken.
    pub write_time: Duration,
    /// From an answer to the first byte of the next request.
    pub idle_time: Duration,
}

impl Limits {
    /// Returns the refusal of content that is larger than [`max_body`](Self::max_body).
    pub fn body_too_large(&self) -> Error {
        Error::BodyTooLarge(format!("more than {}", self.max_body_option).into())
    }
}

/// Why a request is not answered as usual.
#[derive(Debug)]
pub enum RequestError {
    /// The client gets this error, then the connection is closed.
    Refused(Error),
    /// The client has left, or was idle for too long: no answer is sent.
    Gone,
}

impl RequestError {
    /// The client was too slow.
    const LATE: Self = Self::Refused(Error::RequestTimeout(Cow::Borrowed("")));

    /// Returns the same error; if it is a timeout, adds the words for the time limit.
    fn within(self, limit: impl FnOnce() -> String) -> Self {
        match self {
            Self::Refused(Error::RequestTimeout(_)) => {
                Self::Refused(Error::RequestTimeout(limit().into()))
            }
            other => other,
        }
    }
}

impl From<Error> for RequestError {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}
