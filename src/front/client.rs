//! The client of a connection: whether it has left, and its place.
//!
//! Owns the rule for when a client has left: after a reset, or once its write side is closed, unless it may still wait
//! for its answer. Invariant: the check that finds it gone gives its place back at once, whatever its connection's
//! thread still has to end.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::Version;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::head::Persistence;
use super::slots::Slot;
use crate::exchange::Peer;
use crate::socket::Stream;

/// A connection with its place.
pub struct Client {
    /// The connection.
    pub stream: Arc<Stream>,
    /// Its place.
    pub slot: Slot,
    /// Whether a closed write side means that the client has left. The connection's thread sets it for each request.
    must_stay: AtomicBool,
    /// Set once, by the first check that finds the client gone.
    left: AtomicBool,
}

impl Client {
    /// Returns a client that has just connected.
    pub fn new(stream: Arc<Stream>, slot: Slot) -> Self {
        Self { stream, slot, must_stay: AtomicBool::new(true), left: AtomicBool::new(false) }
    }

    /// Begins a request. A client that sends only one request may close its write side after it and wait, as `nc -N`
    /// does; a client that keeps its connection has no reason to (RFC 9112 section 9.6).
    pub fn begin_request(&self, version: Version, persistence: Persistence) {
        let must_stay = version == Version::HTTP_11 && persistence == Persistence::KeepAlive;
        self.must_stay.store(must_stay, Ordering::Relaxed);
    }

    /// Counts the client as gone from now on: its connection is useless.
    pub fn give_up(&self) {
        self.left.store(true, Ordering::Release);
        self.slot.release();
    }

    /// Returns the events that show that a client leaves: `poll` reports a reset even if no event is requested.
    fn flags(&self) -> PollFlags {
        if self.must_stay.load(Ordering::Relaxed) { PollFlags::RDHUP } else { PollFlags::empty() }
    }
}

impl Peer for Client {
    fn is_gone(&self) -> bool {
        if self.was_seen_leaving() {
            return true;
        }
        let mut fds = [PollFd::new(&*self.stream, self.flags())];
        let is_gone = poll(&mut fds, Some(&Timespec::default())).is_ok_and(|n| n > 0);
        if is_gone {
            self.give_up();
        }
        is_gone
    }

    fn was_seen_leaving(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }

    fn watched(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        (!self.was_seen_leaving()).then(|| (self.stream.as_fd(), self.flags()))
    }
}
