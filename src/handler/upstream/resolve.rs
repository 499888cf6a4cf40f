//! The addresses of an upstream's host.
//!
//! Owns the lookup of names, for which only the system's blocking resolver will do: each lookup runs in a thread of
//! its own, so that a call can be stopped, and can time out, in the meantime. Invariant: there are never more than
//! [`MAX_LOOKUPS`] such threads; each ends when the resolver gives up.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use rustix::event::{EventfdFlags, eventfd};

/// The largest number of lookups at once.
pub const MAX_LOOKUPS: usize = 32;

/// The stack of a lookup's thread, for the plug-ins that a resolver may load.
const STACK: usize = 256 * 1024;

static LOOKUPS: AtomicUsize = AtomicUsize::new(0);

/// The addresses of a host, or a lookup of them.
pub enum Found {
    /// They are known.
    Addresses(Vec<SocketAddr>),
    /// A thread looks them up.
    Lookup(Lookup),
}

/// A lookup under way.
pub struct Lookup {
    /// Readable when the answer has arrived.
    pub ready: OwnedFd,
    answer: Receiver<io::Result<Vec<SocketAddr>>>,
}

impl Lookup {
    /// Returns the answer, once it has arrived.
    ///
    /// # Errors
    /// Errors of the resolver.
    pub fn answer(&self) -> io::Result<Vec<SocketAddr>> {
        self.answer.try_recv().unwrap_or_else(|_| Err(io::ErrorKind::NotFound.into()))
    }
}

/// Finds the addresses of `host`: at once if it is an address.
///
/// # Errors
/// If the system has no thread or descriptor left, or too many lookups hang.
pub fn addresses(host: &str, port: u16) -> io::Result<Found> {
    let literal = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = literal.parse::<IpAddr>() {
        return Ok(Found::Addresses(vec![SocketAddr::new(address, port)]));
    }
    lookup(host.to_owned(), port).map(Found::Lookup)
}

/// A place among the [`MAX_LOOKUPS`], given back when dropped.
struct Place;

impl Place {
    fn take() -> io::Result<Self> {
        let place = Self;
        if LOOKUPS.fetch_add(1, Ordering::AcqRel) >= MAX_LOOKUPS {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "too many name lookups hang"));
        }
        Ok(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        LOOKUPS.fetch_sub(1, Ordering::AcqRel);
    }
}

fn lookup(host: String, port: u16) -> io::Result<Lookup> {
    let place = Place::take()?;
    let ready = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let signal = ready.try_clone()?;
    let (sender, answer) = sync_channel(1);
    let look = move || {
        let found = (host.as_str(), port).to_socket_addrs().map(Iterator::collect);
        drop(place);
        let _ = sender.send(found);
        let _ = rustix::io::write(&signal, &1u64.to_ne_bytes());
    };
    thread::Builder::new().name("lookup".into()).stack_size(STACK).spawn(look)?;
    Ok(Lookup { ready, answer })
}
