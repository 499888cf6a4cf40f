//! The other front: the same service behind tiny_http's blocking accept loop. For trusted callers only.
//!
//! Owns that crate: no other file names it. tiny_http has no deadlines and no bounds of its own, accepts invalid
//! framing, hands over at once what a client sends ahead (only the answers are in order), and a client can abort the
//! process (`content-length: 30000000000` with a refused body). This file does what is cheap and sound: `TCP_NODELAY`,
//! the strict front's checks of the head, no job from a body cut short, a panic caught, a dead accept loop logged.
//! Invariant: a receipt is confirmed only after its answer was written without error.

use std::io::{self, Write};
use std::net::TcpStream;
use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, Version};
use rustix::event::PollFlags;
use rustix::net::{SocketAddrUnix, getsockname};
use tiny_http::Server;

use super::head::{Framing, Head, Persistence};
use super::in_flight::Busy;
use super::intake::Intake;
use super::reply::{Manner, Writer};
use super::{InFlight, Limits, target};
use crate::access_log::RefusedHead;
use crate::content::Content;
use crate::error::Error;
use crate::exchange::{Answer, Connection, Peer};
use crate::service::{Service, Session};
use crate::sink::Collector;
use crate::socket::{Listener, connect_to};

/// Threads that take requests from the accept loop; this many synchronous requests run at once.
const RECEIVERS: usize = 64;

/// How much content is read at a time, in bytes.
const CHUNK: usize = 8 * 1024;

/// The period at which a request that arrived during the shutdown checks whether the shutdown was postponed.
const LOOK: Duration = Duration::from_millis(5);

/// How long the shutdown tries to wake the accept loop.
const WAKE_TIME: Duration = Duration::from_secs(1);

/// The name under which tiny_http itself logs. Its messages are dropped: it reports the orderly end of its loop as an
/// error, and this front logs what matters.
pub const LOG_TARGET: &str = "tiny_http";

/// This front.
pub struct TinyHttp {
    servers: Vec<OneSocket>,
    in_flight: Arc<InFlight>,
}

/// A listening socket, with a tiny_http server of its own: a server has only one socket.
struct OneSocket {
    server: Arc<Server>,
    accepting: Accepting,
    local: Connection,
}

/// The listening socket, besides tiny_http's handle of it; `None` once it accepts no more connections.
type Accepting = Arc<Mutex<Option<Listener>>>;

fn end_accepting(accepting: &Accepting) -> Option<Listener> {
    accepting.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Ends the accept loops from another thread, and knows the requests in flight.
pub struct Stopper {
    in_flight: Arc<InFlight>,
    accepting: Vec<Accepting>,
}

impl Stopper {
    /// Ends the accept loops: no new connections. Open connections are still served.
    ///
    /// tiny_http's loop ends at the first error of `accept`. So the socket is made non-blocking, and one more
    /// connection wakes the loop. Shutting the socket down would also end the loop, but would break the socket for the
    /// service manager that may have passed it.
    pub fn stop(&self) {
        for listener in self.accepting.iter().filter_map(end_accepting) {
            if let Err(error) = wake(&listener) {
                log::warn!("tiny_http may accept connections until deferd has ended: {error}");
            }
        }
    }

    /// Returns the requests in flight.
    pub fn in_flight(&self) -> &InFlight {
        &self.in_flight
    }
}

fn wake(listener: &Listener) -> io::Result<()> {
    match listener {
        Listener::Tcp(listener) => {
            listener.set_nonblocking(true)?;
            TcpStream::connect_timeout(&listener.local_addr()?, WAKE_TIME).map(drop)
        }
        Listener::Unix(listener) => {
            listener.set_nonblocking(true)?;
            let address = SocketAddrUnix::try_from(getsockname(listener)?)?;
            connect_to(&address, WAKE_TIME).map(drop)
        }
    }
}

impl OneSocket {
    fn new(listener: Listener) -> io::Result<Self> {
        let accepting = Arc::new(Mutex::new(Some(listener.try_clone()?)));
        let (listener, local): (tiny_http::Listener, _) = match listener {
            Listener::Tcp(listener) => {
                // Accepted sockets inherit it; without it, answers over 1 KiB take 40 ms longer.
                rustix::net::sockopt::set_tcp_nodelay(&listener, true)?;
                listener.set_nonblocking(false)?;
                let local = listener.local_addr()?;
                (listener.into(), Connection::Tcp { peer: local, local })
            }
            Listener::Unix(listener) => {
                listener.set_nonblocking(false)?;
                (listener.into(), Connection::Unix)
            }
        };
        let server = Server::from_listener(listener, None).map_err(io::Error::other)?;
        Ok(Self { server: Arc::new(server), accepting, local })
    }
}

impl TinyHttp {
    /// Takes over listening sockets.
    ///
    /// # Errors
    /// Errors of the system, and of tiny_http.
    pub fn new(listeners: Vec<Listener>) -> io::Result<Self> {
        let servers: io::Result<Vec<OneSocket>> =
            listeners.into_iter().map(OneSocket::new).collect();
        Ok(Self { servers: servers?, in_flight: Arc::default() })
    }

    /// Returns the handle that ends its accept loops.
    pub fn stopper(&self) -> Stopper {
        let accepting = self.servers.iter().map(|one| Arc::clone(&one.accepting)).collect();
        Stopper { in_flight: Arc::clone(&self.in_flight), accepting }
    }

    /// Starts the threads that take requests, the same number for each socket. They end with the process: the accept
    /// loop can be stopped, but tiny_http's connections cannot.
    ///
    /// # Errors
    /// If the system cannot start another thread.
    pub fn serve(self, service: &Arc<Service>, limits: &Arc<Limits>) -> io::Result<()> {
        for OneSocket { server, accepting, local } in &self.servers {
            for number in 0..RECEIVERS {
                let receiver = Receiver {
                    number,
                    server: Arc::clone(server),
                    in_flight: Arc::clone(&self.in_flight),
                    accepting: Arc::clone(accepting),
                    local: *local,
                    service: Arc::clone(service),
                    limits: Arc::clone(limits),
                };
                let thread = thread::Builder::new().name("tiny_http".into());
                thread.spawn(move || receiver.run())?;
            }
        }
        Ok(())
    }
}

struct Receiver {
    number: usize,
    server: Arc<Server>,
    in_flight: Arc<InFlight>,
    accepting: Accepting,
    local: Connection,
    service: Arc<Service>,
    limits: Arc<Limits>,
}

impl Receiver {
    fn run(&self) {
        let session = self.service.session(Arc::new(Unseen), None);
        loop {
            match self.server.recv() {
                Ok(request) => {
                    let _busy = self.begin();
                    // tiny_http's own code can panic while it answers (a `te` field with `q=nan`).
                    let answered =
                        catch_unwind(AssertUnwindSafe(|| self.answer(&session, request)));
                    if answered.is_err() {
                        log::error!("tiny_http panicked; its client gets no answer");
                    }
                }
                // Its accept loop has ended, which it reports once; the connections go on.
                Err(error) => {
                    if end_accepting(&self.accepting).is_some() {
                        log::error!(
                            "tiny_http accepts no more connections, restart deferd: {error}"
                        );
                    }
                }
            }
        }
    }

    /// Counts a request as in flight. During the shutdown it waits, and ends with the process: if it were dropped,
    /// tiny_http itself would answer `500`.
    fn begin(&self) -> Busy<'_> {
        loop {
            match self.in_flight.begin(self.number) {
                Some(busy) => return busy,
                None => thread::sleep(LOOK),
            }
        }
    }

    fn answer(&self, session: &Session<'_>, mut request: tiny_http::Request) {
        let connection = match (self.local, request.remote_addr()) {
            (Connection::Tcp { local, .. }, Some(&peer)) => Connection::Tcp { peer, local },
            (local, _) => local,
        };
        let (mut manner, answer) = match head(&request, &self.limits) {
            Ok(head) => (Manner::of(&head), self.call(session, head, &mut request, connection)),
            Err(error) => {
                let line = format!("{} {}", request.method(), request.url());
                let head = RefusedHead::of(line.as_bytes());
                let answer = session.refuse_head(&head, &connection, &error);
                (Manner::of_refused(&head), answer)
            }
        };
        if session.is_draining() {
            // This does not close the connection, but tells the client to.
            manner.persistence = Persistence::Close;
        }
        let mut stream = request.into_writer();
        let written = Writer::default().write(&mut stream, answer, manner, session.memory());
        // tiny_http buffers what it sends: only a flush shows whether it was sent.
        if let Ok(receipt) = written
            && stream.flush().is_ok()
        {
            receipt.confirm();
        }
    }

    fn call(
        &self,
        session: &Session<'_>,
        head: Head,
        request: &mut tiny_http::Request,
        connection: Connection,
    ) -> Answer {
        let Head { mut parts, framing, .. } = head;
        let plan = match session.plan(&mut parts, &connection) {
            Ok(plan) => plan,
            Err(answer) => return *answer,
        };
        let takes = session.takes(&plan, &parts);
        let memory = session.memory_of(&plan).clone();
        let intake = Intake::new(takes, &self.limits, &memory);
        match content(request, framing, &intake) {
            Ok(body) => {
                // tiny_http accepts complete answers only.
                let mut sink = Collector::new(session.memory());
                session.call(plan, parts, body, connection, &mut sink).whole(sink)
            }
            Err(error) => session.refuse(&plan, &parts, &connection, &error),
        }
    }
}

/// A client whose connection tiny_http does not show: only sending its answer shows whether it has left.
struct Unseen;

impl Peer for Unseen {
    fn is_gone(&self) -> bool {
        false
    }

    fn was_seen_leaving(&self) -> bool {
        false
    }

    fn watched(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        None
    }
}

/// Returns the head, checked by those rules of the strict front that tiny_http leaves open.
fn head(request: &tiny_http::Request, limits: &Limits) -> Result<Head, Error> {
    let bad = || Error::bad_parameter("the head is malformed");
    let method = Method::from_bytes(request.method().as_str().as_bytes()).map_err(|_| bad())?;
    let version = match request.http_version() {
        tiny_http::HTTPVersion(1, 0) => Version::HTTP_10,
        tiny_http::HTTPVersion(1, 1) => Version::HTTP_11,
        _ => return Err(Error::VersionNotSupported),
    };
    let mut fields = HeaderMap::new();
    for field in request.headers() {
        let name = HeaderName::from_bytes(field.field.as_str().as_str().as_bytes());
        let value = HeaderValue::from_str(field.value.as_str());
        fields.append(name.map_err(|_| bad())?, value.map_err(|_| bad())?);
    }
    let target = target::encoded(request.url().as_bytes())?;
    Head::new(method, &String::from_utf8_lossy(&target), version, fields, limits)
}

/// Returns the whole content.
fn content(
    request: &mut tiny_http::Request,
    framing: Framing,
    intake: &Intake<'_>,
) -> Result<Content, Error> {
    intake.check(framing)?;
    let mut taken = intake.begin();
    let cut = |_| Error::bad_parameter("the content is cut short");
    let mut buffer = [0; CHUNK];
    loop {
        let n = match request.as_reader().read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) => return Err(cut(error)),
        };
        intake.take(&mut taken, &buffer[..n])?;
    }
    match framing {
        Framing::Length(length) if length != taken.received as u64 => {
            Err(cut(io::Error::other("")))
        }
        _ => taken.content.freeze().map_err(|error| Error::no_memory(&error)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;

    use super::super::head::tests::limits;
    use super::*;
    use crate::allowed_hosts::{AllowedHosts, HostCheck};
    use crate::cors::AllowedOrigins;
    use crate::cross_origin::Policy;
    use crate::jobs::{self, Jobs};
    use crate::memory::Budget;
    use crate::routes::Routes;
    use crate::store::memory::MemoryStore;
    use crate::store::{Plan, Room};

    /// Returns a service without a route.
    fn nothing() -> Arc<Service> {
        let memory = Budget::new(1 << 20);
        let room = Room { capacity: 1, reserve: 0, memory: memory.allowance() };
        let plan = Plan {
            workers: 1,
            queue: 1,
            ttl: Duration::MAX,
            log_ttl: Duration::ZERO,
            lanes: Vec::new(),
        };
        let limits = jobs::Limits { queue: 1, stored: 1, connections: 1 };
        let jobs = Jobs::new(Arc::new(MemoryStore::new(room, plan)), memory, limits);
        let jobs = Arc::new(jobs);
        let hosts =
            AllowedHosts { names: Vec::new(), check: HostCheck::Any, own_name: String::new() };
        let policy = Policy { origins: AllowedOrigins(Vec::new()), hosts };
        let routes = Arc::new(Routes::new(Vec::new()));
        Arc::new(Service::new(routes, jobs, None, policy, Duration::ZERO, Arc::default()))
    }

    #[test]
    fn requests_during_shutdown_wait_until_it_is_postponed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = TinyHttp::new(vec![Listener::Tcp(listener)]).unwrap();
        let stopper = server.stopper();
        server.serve(&nothing(), &Arc::new(limits())).unwrap();
        assert!(stopper.in_flight().close_if_idle());
        let mut client = TcpStream::connect(address).unwrap();
        let request = b"GET /nowhere HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        client.write_all(request).unwrap();
        client.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let answer = client.read(&mut [0]);
        assert_eq!(answer.map_err(|error| error.kind()), Err(io::ErrorKind::WouldBlock));
        stopper.in_flight().reopen();
        client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    }
}
