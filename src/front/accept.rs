//! The accept loop: from the listening sockets to one thread per connection.
//!
//! Owns the listening sockets. Invariant: only [`Stopper::stop`] ends the loop; a lack of descriptors, memory or
//! threads costs one connection, and is logged.

use std::io::{self, ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::net::sockopt;

use super::in_flight::InFlight;
use super::reply::{Manner, Writer};
use super::slots::{Slot, Slots};
use super::{Limits, connection};
use crate::error::Error;
use crate::exchange::Connection;
use crate::memory::Allowance;
use crate::service::Service;
use crate::socket::{Listener, Stream};

/// The stack of a connection's thread: its deepest path is JSON and the table of fields.
const STACK: usize = 256 * 1024;

/// How long the loop pauses when the system has no more descriptors.
const REST: Duration = Duration::from_millis(50);

/// The period at which the same failure is logged.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// TCP keep-alive: the idle time before the first probe, the pause between probes, and how many unanswered probes end
/// the connection. It detects a client that vanished without a reset, or after it had closed its write side.
const PROBE_AFTER: Duration = Duration::from_secs(60);
const PROBE_EVERY: Duration = Duration::from_secs(15);
const PROBES: u32 = 4;

/// The listening sockets.
pub struct Listening {
    listeners: Vec<Listener>,
    stop: Arc<OwnedFd>,
    slots: Arc<Slots>,
}

/// Ends the accept loop from another thread.
pub struct Stopper {
    stop: Arc<OwnedFd>,
    slots: Arc<Slots>,
}

impl Stopper {
    /// Ends the accept loop: no new connections.
    pub fn stop(&self) {
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
    }

    /// Returns the requests in flight.
    pub fn in_flight(&self) -> &InFlight {
        self.slots.in_flight()
    }
}

impl Listening {
    /// Takes over listening sockets, which are non-blocking.
    ///
    /// # Errors
    /// Errors of the system.
    pub fn new(listeners: Vec<Listener>, max_connections: usize) -> io::Result<Self> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        for listener in &listeners {
            if let Err(error) = probe(listener) {
                log::warn!("cannot detect clients that vanish: {error}");
            }
        }
        Ok(Self { listeners, stop, slots: Slots::new(max_connections) })
    }

    /// Returns the handle that ends this loop.
    pub fn stopper(&self) -> Stopper {
        Stopper { stop: Arc::clone(&self.stop), slots: Arc::clone(&self.slots) }
    }

    /// Accepts connections until stopped, and then closes the listening sockets.
    pub fn serve(self, service: &Arc<Service>, limits: &Arc<Limits>) {
        let mut trouble = Trouble::default();
        while let Some(ready) = self.wait() {
            for listener in ready {
                self.accept(listener, service, limits, &mut trouble);
            }
        }
    }

    fn accept(
        &self,
        listener: &Listener,
        service: &Arc<Service>,
        limits: &Arc<Limits>,
        trouble: &mut Trouble,
    ) {
        match listener.accept() {
            Ok((stream, connection)) => match self.slots.take(&connection) {
                Some(slot) => spawn(stream, connection, slot, service, limits, trouble),
                None => {
                    let most = self.slots.capacity();
                    let why = format!(
                        "too many connections: --max-connections {most}, half of them from one address"
                    );
                    turn_away(&stream, &why, trouble);
                }
            },
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                trouble.tell(&format!("cannot accept connections: {error}"));
                thread::sleep(REST);
            }
        }
    }

    /// Waits for connections; returns the sockets that have some, or `None` once the loop is stopped.
    fn wait(&self) -> Option<Vec<&Listener>> {
        let mut fds = vec![PollFd::new(&*self.stop, PollFlags::IN)];
        fds.extend(self.listeners.iter().map(|listener| PollFd::new(listener, PollFlags::IN)));
        // An interrupted wait returns no sockets.
        let _ = poll(&mut fds, None);
        let ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
        if ready(&fds[0]) {
            return None;
        }
        let both = self.listeners.iter().zip(&fds[1..]);
        Some(both.filter(|(_, fd)| ready(fd)).map(|(listener, _)| listener).collect())
    }
}

/// Turns on probes of silent clients; accepted sockets inherit the setting.
fn probe(listener: &Listener) -> rustix::io::Result<()> {
    if matches!(listener, Listener::Unix(_)) {
        // For Unix sockets, the system reports the end of every client.
        return Ok(());
    }
    sockopt::set_socket_keepalive(listener, true)?;
    sockopt::set_tcp_keepidle(listener, PROBE_AFTER)?;
    sockopt::set_tcp_keepintvl(listener, PROBE_EVERY)?;
    sockopt::set_tcp_keepcnt(listener, PROBES)
}

/// Returns whether this error of `accept` concerns the connection and not the loop (accept(2)).
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionAborted
    )
}

/// Starts the thread of a connection.
fn spawn(
    stream: Stream,
    connection: Connection,
    slot: Slot,
    service: &Arc<Service>,
    limits: &Arc<Limits>,
    trouble: &mut Trouble,
) {
    let service = Arc::clone(service);
    let limits = Arc::clone(limits);
    let thread = thread::Builder::new().name("connection".into()).stack_size(STACK);
    // Shared, so that the client can be answered if no thread can be started for it.
    let stream = Arc::new(stream);
    let its = Arc::clone(&stream);
    let serve = move || connection::serve(its, connection, slot, &service, &limits);
    if let Err(error) = thread.spawn(serve) {
        turn_away(&stream, &format!("no thread for a connection: {error}"), trouble);
    }
}

/// Answers `503` without waiting for anything, and closes.
fn turn_away(mut stream: &Stream, why: &str, trouble: &mut Trouble) {
    trouble.tell(why);
    if stream.set_nonblocking(true).is_err() {
        return;
    }
    // Reads what has arrived, because unread bytes cause a reset, which could overtake the answer.
    let _ = stream.read(&mut [0; 16 * 1024]);
    let response = Error::Unavailable(why.to_owned().into()).response();
    // The answer is small, so nothing of it is charged.
    let memory = Allowance::default();
    let _ = Writer::default().write(&mut stream, response.into(), Manner::LAST, &memory);
}

/// Logs a failure that can occur a thousand times a second, at most once per period.
#[derive(Default)]
struct Trouble {
    told: Option<Instant>,
    untold: usize,
}

impl Trouble {
    fn tell(&mut self, what: &str) {
        if self.told.is_some_and(|told| told.elapsed() < TELL_EVERY) {
            self.untold += 1;
            return;
        }
        log::warn!("{what} ({} times before)", self.untold);
        self.told = Some(Instant::now());
        self.untold = 0;
    }
}
