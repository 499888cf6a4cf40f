//! One connection: its requests one after the other, each through the same phases.
//!
//! Owns the order of the phases: read head → check → read content → call → write → again. The files beside this one
//! implement the phases. Invariants: a receipt is confirmed only if the last byte of its answer was written and the
//! connection shows no error; a connection whose client was seen leaving has given its place back, and does nothing
//! more.

use std::io::{ErrorKind, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Version;

use super::client::Client;
use super::flow::Flow;
use super::head::{Expectation, Framing, Head, Persistence};
use super::input::Input;
use super::intake::Intake;
use super::output::Output;
use super::reply::{Manner, Writer};
use super::slots::Slot;
use super::{Limits, RequestError, body, head};
use crate::access_log::RefusedHead;
use crate::content::{Content, NoMemory};
use crate::error::Error;
use crate::exchange::{Answer, Connection, Peer};
use crate::memory::Charge;
use crate::outgoing::Reply;
use crate::service::{Plan, Service, Session};
use crate::sink::Collector;
use crate::socket::Stream;

/// How long a closing connection is still read, so that its last answer is not lost to a reset (RFC 9112 section 9.6):
/// many clients send all of their content before they read.
const LINGER: Duration = Duration::from_secs(30);

/// The same during the shutdown, which waits for it.
const LINGER_AT_END: Duration = Duration::from_secs(1);

/// The period at which a lingering connection checks whether deferd is ending.
const LOOK: Duration = Duration::from_millis(250);

/// How much is read in that time, as a multiple of the largest accepted content.
const LINGER_BODIES: usize = 4;

/// A request's head that takes no more memory than this, in bytes, is not charged: it counts with its connection.
const SMALL_HEAD: usize = 8 * 1024;

/// A connection and what serves it.
pub struct Exchange<'a> {
    session: Session<'a>,
    limits: &'a Limits,
    client: &'a Client,
    stream: &'a Stream,
    input: Input<&'a Stream>,
    output: Output<'a>,
    connection: Connection,
    writer: Writer,
}

/// Serves a connection to its end.
pub fn serve(
    stream: Arc<Stream>,
    connection: Connection,
    slot: Slot,
    service: &Service,
    limits: &Limits,
) {
    let client = Arc::new(Client::new(stream, slot));
    let stream = &*client.stream;
    let Ok(output) = stream.prepare().and_then(|()| Output::new(stream, limits.write_time)) else {
        return;
    };
    let peer = Arc::clone(&client) as Arc<dyn Peer>;
    let session = service.session(peer, Some(connection.counted_peer()));
    let mut exchange = Exchange {
        session,
        limits,
        client: &client,
        stream,
        input: Input::new(stream),
        output,
        connection,
        writer: Writer::default(),
    };
    while exchange.next() == Persistence::KeepAlive {}
}

/// What happens to a connection after an answer.
enum After {
    /// It stays open for the next request.
    KeepAlive,
    /// It is closed.
    Close,
    /// It is closed once the client has stopped sending. That may take long, so the request is released first.
    Linger,
    /// It is reset: if it were just closed, a client would take its broken answer for a complete one.
    Reset,
}

impl From<Persistence> for After {
    fn from(persistence: Persistence) -> Self {
        match persistence {
            Persistence::KeepAlive => Self::KeepAlive,
            Persistence::Close => Self::Close,
        }
    }
}

impl Exchange<'_> {
    /// Serves one request.
    fn next(&mut self) -> Persistence {
        match head::read(&mut self.input, self.limits) {
            Ok(Some(head)) => {
                let client = self.client;
                let Some(_busy) = client.slot.begin_request() else { return Persistence::Close };
                match self.answer(head) {
                    // Unread bytes would reset the connection, and the reset could overtake the answer.
                    After::Reset => {
                        self.stream.reset_at_end();
                        Persistence::Close
                    }
                    After::Close if !self.input.bytes().is_empty() => self.linger(),
                    After::Linger => self.linger(),
                    After::Close => Persistence::Close,
                    After::KeepAlive => Persistence::KeepAlive,
                }
            }
            Ok(None) | Err(RequestError::Gone) => Persistence::Close,
            Err(RequestError::Refused(error)) => {
                let head = RefusedHead::of(self.input.bytes());
                let answer = self.session.refuse_head(&head, &self.connection, &error);
                self.deliver(answer, Manner::of_refused(&head));
                self.linger()
            }
        }
    }

    fn answer(&mut self, mut head: Head) -> After {
        let framing = head.framing;
        let manner = Manner::of(&head);
        self.client.begin_request(manner.version, manner.persistence);
        let planned = self.session.plan(&mut head.parts, &self.connection);
        let plan = match planned {
            Ok(plan) if !self.client.was_seen_leaving() => plan,
            Ok(_) => return After::Close,
            Err(answer) => {
                // The head is not charged, and the client may be slow to take the answer.
                drop(head);
                if framing == Framing::Length(0) {
                    return self.deliver(*answer, manner).into();
                }
                // The content has not arrived, and will not be read.
                self.deliver(*answer, manner.last());
                return After::Linger;
            }
        };
        let (body, _charge) = match self.take(&plan, &head) {
            Ok(taken) => taken,
            Err(RequestError::Refused(error)) => {
                let answer = self.session.refuse(&plan, &head.parts, &self.connection, &error);
                drop(head);
                self.deliver(answer, manner.last());
                return After::Linger;
            }
            Err(RequestError::Gone) => return After::Close,
        };
        self.call(plan, head, body, manner)
    }

    /// Answers a complete request.
    fn call(&mut self, plan: Plan, head: Head, body: Content, manner: Manner) -> After {
        let Self { session, output, writer, client, .. } = self;
        if manner.version == Version::HTTP_10 && !client.stream.has_reset() {
            // Such a client could not see that an answer without a length broke off.
            let mut whole = Collector::new(session.memory());
            let reply = session.call(plan, head.parts, body, self.connection, &mut whole);
            return self.deliver(reply.whole(whole), manner).into();
        }
        let mut flow = Flow::new(output, writer, client, session, manner);
        // The client sees by the missing last chunk, or the announced length, that the answer is broken.
        let broken =
            || if manner.version == Version::HTTP_10 { After::Reset } else { After::Close };
        match session.call(plan, head.parts, body, self.connection, &mut flow) {
            Reply::Answer(answer) => self.deliver(answer, manner).into(),
            Reply::Sent => match flow.finish() {
                Ok(persistence) => persistence.into(),
                Err(error) => {
                    log::debug!("peer={} its answer was not sent: {error}", self.connection);
                    broken()
                }
            },
            Reply::Broken(_) => broken(),
        }
    }

    /// Receives a request that passed its checks: charges its head if that is large, for as long as the request is in
    /// flight (a job made from it has its own charge), and receives its content.
    fn take(
        &mut self,
        plan: &Plan,
        head: &Head,
    ) -> Result<(Content, Option<Charge>), RequestError> {
        let charge = if head.memory > SMALL_HEAD {
            Some(self.session.memory_of(plan).charge(head.memory).map_err(Error::from)?)
        } else {
            None
        };
        Ok((self.receive(plan, head)?, charge))
    }

    /// Receives the content of a request.
    fn receive(&mut self, plan: &Plan, head: &Head) -> Result<Content, RequestError> {
        let Head { parts, framing, expectation, .. } = head;
        if *framing == Framing::Length(0) {
            return Ok(Content::new());
        }
        let memory = self.session.memory_of(plan).clone();
        let intake = Intake::new(self.session.takes(plan, parts), self.limits, &memory);
        intake.check(*framing)?;
        let expected = *expectation == Expectation::Continue && self.input.bytes().is_empty();
        if expected && self.send_continue().is_err() {
            return Err(RequestError::Gone);
        }
        body::read(&mut self.input, *framing, self.limits, &intake)
    }

    fn send_continue(&mut self) -> std::io::Result<()> {
        self.output.begin_answer();
        self.output.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")
    }

    /// Writes an answer, and confirms its receipt if all of it was sent.
    fn deliver(&mut self, answer: Answer, wanted: Manner) -> Persistence {
        if self.client.was_seen_leaving() {
            return Persistence::Close;
        }
        let manner = if self.session.is_draining() { wanted.last() } else { wanted };
        let Self { output, writer, session, .. } = self;
        let memory = session.memory();
        output.begin_answer();
        let receipt = match writer.write(output, answer, manner, memory) {
            Ok(receipt) => receipt,
            Err(error) => {
                if error.kind() == ErrorKind::OutOfMemory {
                    // Nothing of the answer was sent, so its result stays.
                    let refusal = Error::no_memory(&NoMemory::Budget).response();
                    let _ = writer.write(output, refusal.into(), manner.last(), memory);
                    // The access log has already recorded the answer.
                    log::warn!(
                        "peer={} status=503 in place of its answer: --max-memory has no room for the fields",
                        self.connection
                    );
                }
                log::debug!("peer={} its answer was not written: {error}", self.connection);
                return Persistence::Close;
            }
        };
        // A client that has left resets the connection, which may become visible only now.
        if receipt.matters() && self.stream.is_broken() {
            log::debug!("peer={} left before its answer was delivered", self.connection);
            return Persistence::Close;
        }
        receipt.confirm();
        manner.persistence
    }

    /// Closes the write side, then reads and drops what the client still sends.
    fn linger(&mut self) -> Persistence {
        let begin = Instant::now();
        let mut stream = self.stream;
        let mut waste = [0; 16 * 1024];
        let mut left = self.limits.max_body.saturating_mul(LINGER_BODIES);
        stream.end_writing();
        while left > 0 {
            let span = if self.session.is_draining() { LINGER_AT_END } else { LINGER };
            let time = (begin + span).saturating_duration_since(Instant::now());
            if time.is_zero() || stream.set_read_time(time.min(LOOK)).is_err() {
                break;
            }
            match stream.read(&mut waste) {
                Ok(0) => break,
                Ok(n) => left = left.saturating_sub(n),
                Err(error) if is_nothing_yet(&error) => {}
                Err(_) => break,
            }
        }
        Persistence::Close
    }
}

/// Returns whether this error of a read is a timeout.
fn is_nothing_yet(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}
