//! The other front: the same service behind tiny_http's blocking accept loop. For trusted callers only.
//!
//! Nothing else names that crate. It has no deadlines and no bounds of its own, takes framing loosely,
//! and can be ended by a client (`content-length: 30000000000` with a refused body aborts the process);
//! what is cheap and sound is done here: `TCP_NODELAY`, the strict front's checks of the head, no job
//! from a body cut short, a panic caught, a dead accept loop told. Invariant: a receipt is confirmed
//! only after its answer was written without error.

use std::io::{self, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Version};
use tiny_http::Server;

use super::head::{Framing, Head, Persistence};
use super::reply::{self, Clock, Content};
use super::{Limits, Listener};
use crate::call::{Answer, Connection, Peer};
use crate::error::Error;
use crate::service::Service;

/// Threads that take requests from the accept loop; so many synchronous ones run at once.
const RECEIVERS: usize = 64;

/// A server of this front.
pub struct TinyHttp {
    server: Arc<Server>,
    busy: Arc<AtomicUsize>,
    local: Connection,
}

/// Whether answers are on their way, for the end.
pub struct Busy(Arc<AtomicUsize>);

impl Busy {
    /// Whether an answer is still on its way.
    pub fn is_busy(&self) -> bool {
        self.0.load(Ordering::Acquire) > 0
    }
}

impl TinyHttp {
    /// Takes over a listening socket.
    ///
    /// # Errors
    /// Those of the system, and of tiny_http.
    pub fn new(listener: Listener) -> io::Result<Self> {
        let (listener, local): (tiny_http::Listener, _) = match listener {
            Listener::Tcp(listener) => {
                // Accepted sockets inherit it; without, answers over 1 KiB take 40 ms longer.
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
        Ok(Self { server: Arc::new(server), busy: Arc::default(), local })
    }

    /// Whether answers are on their way.
    pub fn busy(&self) -> Busy {
        Busy(Arc::clone(&self.busy))
    }

    /// Starts the threads that take requests. They end with the process: tiny_http's accept loop can
    /// be told to end, but its connections cannot.
    ///
    /// # Errors
    /// When no thread can be had.
    pub fn serve(self, service: &Arc<Service>, limits: &Arc<Limits>) -> io::Result<()> {
        for _ in 0..RECEIVERS {
            let receiver = Receiver {
                server: Arc::clone(&self.server),
                busy: Arc::clone(&self.busy),
                local: self.local,
                service: Arc::clone(service),
                limits: Arc::clone(limits),
            };
            let thread = thread::Builder::new().name("tiny_http".into());
            thread.spawn(move || receiver.run())?;
        }
        Ok(())
    }
}

struct Receiver {
    server: Arc<Server>,
    busy: Arc<AtomicUsize>,
    local: Connection,
    service: Arc<Service>,
    limits: Arc<Limits>,
}

impl Receiver {
    fn run(&self) {
        loop {
            match self.server.recv() {
                Ok(request) => {
                    self.busy.fetch_add(1, Ordering::AcqRel);
                    // Its own code can panic while it answers (a `te` field with `q=nan`).
                    let answered = catch_unwind(AssertUnwindSafe(|| self.answer(request)));
                    self.busy.fetch_sub(1, Ordering::AcqRel);
                    if answered.is_err() {
                        log::error!("tiny_http panicked; its client gets no answer");
                    }
                }
                Err(error) => {
                    log::error!("tiny_http accepts no more connections, restart deferd: {error}");
                    return;
                }
            }
        }
    }

    fn answer(&self, mut request: tiny_http::Request) {
        let connection = match (self.local, request.remote_addr()) {
            (Connection::Tcp { local, .. }, Some(&peer)) => Connection::Tcp { peer, local },
            (local, _) => local,
        };
        let (mut persistence, mut content) = (Persistence::Close, Content::Sent);
        let mut version = Version::HTTP_11;
        let answer = match head(&request, &self.limits) {
            Ok(head) => {
                (persistence, version) = (head.persistence, head.parts.version);
                if head.parts.method == Method::HEAD {
                    content = Content::Omitted;
                }
                self.call(head, &mut request, connection)
            }
            Err(error) => error.response().into(),
        };
        let Answer { response, receipt } = answer;
        let mut writer = request.into_writer();
        let mut clock = Clock::default();
        let written =
            reply::write(&mut writer, &response, content, persistence, version, &mut clock);
        // tiny_http buffers what it sends: only a flush says whether it went out.
        if written.and_then(|()| writer.flush()).is_ok() {
            receipt.confirm();
        }
    }

    fn call(&self, head: Head, request: &mut tiny_http::Request, connection: Connection) -> Answer {
        let Head { mut parts, framing, .. } = head;
        let plan = match self.service.plan(&mut parts, &connection) {
            Ok(plan) => plan,
            Err(answer) => return *answer,
        };
        match body(request, framing, self.limits.max_body) {
            Ok(body) => {
                let request = Request::from_parts(parts, body);
                self.service.call(plan, request, connection, &Unseen)
            }
            Err(error) => error.response().into(),
        }
    }
}

/// A client whose connection tiny_http keeps to itself: that it has left shows when it is answered.
struct Unseen;

impl Peer for Unseen {
    fn is_gone(&self) -> bool {
        false
    }
}

/// The head, by the rules of the strict front as far as tiny_http has left anything to check.
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
    Head::new(method, request.url(), version, fields, limits)
}

/// The whole content.
fn body(
    request: &mut tiny_http::Request,
    framing: Framing,
    max_body: usize,
) -> Result<Bytes, Error> {
    let mut body = Vec::new();
    let cut = |_| Error::bad_parameter("the content is cut short");
    request.as_reader().take(max_body as u64 + 1).read_to_end(&mut body).map_err(cut)?;
    if body.len() > max_body {
        return Err(Error::BodyTooLarge);
    }
    match framing {
        Framing::Length(length) if length != body.len() as u64 => Err(cut(io::Error::other(""))),
        _ => Ok(body.into()),
    }
}
