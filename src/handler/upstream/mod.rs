//! The `http://` target: any HTTP service behind a path prefix.
//!
//! Owns the call from a request to an answer: its repetition if a kept connection was stale, and the words for its
//! failures. `request` makes what is sent, `socket` has the connection, `deadline` the call's limits. ureq speaks
//! HTTP; it is set to follow no redirect, decode no content, add no field, and treat no status code as an error.
//! Invariants: the upstream's address is only in the log, never in an answer to a client; a call ends within its time
//! limit, and at once when it is stopped; of an answer, at most `max-output` of content is read, and a bounded amount
//! of everything else (`noise`).

pub mod callback;
mod deadline;
mod noise;
mod request;
mod resolve;
mod socket;

use std::io::{self, ErrorKind, Read};
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::request::Parts;
use http::uri::{Authority, Scheme};
use http::{Method, Response};
use rustix::io::Errno;
use ureq::{Agent, Body, SendBody};

use super::hop_by_hop::{self, Direction};
use super::{Handler, Outcome};
use crate::config::{shown, shown_duration};
use crate::content::{NoMemory, Reader};
use crate::error::Error;
use crate::exchange::{Call, Guard, LengthOfGet};
use crate::job::execution::Execution;
use crate::plain_http;
use crate::sink::{Head, Sink};
use deadline::{CallContext, Phase};
use resolve::MAX_LOOKUPS;

/// How long an unused connection to an upstream is kept: less than 5 s, after which the least patient of the common
/// servers close theirs.
const IDLE_TIME: Duration = Duration::from_secs(4);

/// How many unused connections to an upstream are kept.
const MAX_IDLE: usize = 16;

/// How large the head of an upstream's answer may be, in bytes.
const MAX_HEAD: usize = 64 * 1024;

/// An upstream, and the limits of its calls.
#[derive(Clone, Debug)]
pub struct UpstreamRoute {
    /// The path prefix of the route.
    pub prefix: String,
    /// `http` or, with the feature `tls`, `https`.
    pub scheme: Scheme,
    /// Host and port.
    pub authority: Authority,
    /// The path that replaces the prefix.
    pub path: String,
    /// How long a call may take.
    pub time_limit: Duration,
    /// How long connecting may take.
    pub connect_limit: Duration,
    /// How large the answer's content may be, in bytes.
    pub max_output: usize,
    /// How large the head of a request can be, in bytes.
    pub max_head: usize,
}

/// Calls one upstream.
pub struct UpstreamHandler {
    route: UpstreamRoute,
    agent: Agent,
}

impl UpstreamHandler {
    /// Returns a handler for the upstream of this route. Does not connect before the first call.
    pub fn new(route: UpstreamRoute) -> Self {
        let agent = agent(output_buffer(&route));
        Self { route, agent }
    }
}

/// Returns an HTTP client with a buffer of this size for requests, in bytes.
fn agent(output_buffer: usize) -> Agent {
    let config = plain_http::config()
        .input_buffer_size(MAX_HEAD)
        .max_response_header_size(MAX_HEAD)
        .output_buffer_size(output_buffer)
        .max_idle_age(IDLE_TIME)
        .max_idle_connections(MAX_IDLE)
        .max_idle_connections_per_host(MAX_IDLE);
    socket::agent(config)
}

impl Handler for UpstreamHandler {
    fn check(&self, request: &Parts) -> Result<(), Error> {
        request::target(&self.route, &request.uri).map(drop)
    }

    fn run(
        &self,
        call: &Call,
        execution: &Arc<Execution>,
        sink: &mut dyn Sink,
    ) -> Result<Outcome, Error> {
        // The connection's buffers for input and output: each holds the largest head.
        let buffers = MAX_HEAD + output_buffer(&self.route);
        let _buffers = execution.memory().charge(buffers)?;
        let deadline = execution.deadline(self.route.time_limit);
        let context = CallContext::enter(execution, deadline, self.route.connect_limit)?;
        let answered = self.call(call, &context).and_then(|response| {
            context.begin_content();
            self.answer(call.request.method(), response, &context, sink)
        });
        answered.map_err(|failure| self.error(failure, &context, execution))?;
        Ok(Outcome::Written)
    }

    fn relays_fields(&self) -> bool {
        true
    }
}

/// Returns the size of the buffer for a request, in bytes: its longest line must fit, and deferd's fields together
/// with the client's.
const fn output_buffer(route: &UpstreamRoute) -> usize {
    route.max_head + 4096
}

/// The content of a request while it is sent. After the upstream has stopped taking it, the rest is not read: ureq
/// asks for all of it before it reads the answer, which the upstream may have sent already.
struct Upload<'a> {
    reader: Reader,
    /// How much was left out, in bytes.
    skipped: usize,
    context: &'a CallContext,
}

impl Read for Upload<'_> {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        if !self.context.is_cut.get() {
            return self.reader.read(target);
        }
        let n = target.len().min(self.reader.left() - self.skipped);
        self.skipped += n;
        Ok(n)
    }
}

/// Why a call failed.
#[derive(Debug)]
enum Failure {
    /// The request itself cannot be forwarded.
    Refused(Error),
    /// The connection failed, or its bytes were invalid.
    RequestError(ureq::Error),
    /// The answer does not match the request: a transfer coding that was not requested, or a switch of protocols.
    Unasked,
    /// The content is larger than `max-output`.
    TooLarge,
    /// There is no memory for the content.
    NoMemory(NoMemory),
}

impl From<ureq::Error> for Failure {
    fn from(error: ureq::Error) -> Self {
        Self::RequestError(error)
    }
}

impl UpstreamHandler {
    /// Sends the request and receives the head of the answer. The upstream may have closed a kept connection while it
    /// was idle; if no part of an answer arrived, an idempotent request can safely be sent again (RFC 9112 section
    /// 9.3.1). Each attempt uses up one such connection.
    fn call(&self, call: &Call, context: &CallContext) -> Result<Response<Body>, Failure> {
        loop {
            let request = request::forwarded(&self.route, call).map_err(Failure::Refused)?;
            context.begin();
            let content = request::content(call);
            let sent = match content.map(|content| (content.in_memory(), content)) {
                None => self.agent.run(request),
                Some((Some(bytes), _)) => self.agent.run(request.map(|()| &**bytes)),
                Some((None, content)) => {
                    let mut upload = Upload { reader: content.reader(), skipped: 0, context };
                    self.agent.run(request.map(|()| SendBody::from_reader(&mut upload)))
                }
            };
            match sent {
                Err(error) if context.is_stale() && call.request.method().is_idempotent() => {
                    log::debug!("upstream={} a kept connection was closed: {error}", self.name());
                }
                sent => return Ok(sent?),
            }
        }
    }

    /// Passes on an answer, and its content as it arrives.
    fn answer(
        &self,
        method: &Method,
        response: Response<Body>,
        context: &CallContext,
        sink: &mut dyn Sink,
    ) -> Result<(), Failure> {
        let (mut parts, body) = response.into_parts();
        let mut codings = parts.headers.get_all(TRANSFER_ENCODING).iter();
        let is_chunked = parts.headers.contains_key(TRANSFER_ENCODING);
        let is_coded = !codings.all(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
        if is_coded || parts.status.is_informational() {
            return Err(Failure::Unasked);
        }
        let length = parts.headers.get(CONTENT_LENGTH).cloned();
        hop_by_hop::strip(&mut parts.headers, Direction::Response);
        let mut response = Response::new(());
        *response.status_mut() = parts.status;
        *response.headers_mut() = parts.headers;
        let length = if *method == Method::HEAD {
            response.extensions_mut().insert(LengthOfGet(length));
            None
        } else {
            // ureq reports no length if no content follows.
            let none = length.filter(|length| length == "0" && !is_chunked).map(|_| 0);
            let length = body.content_length().or(none);
            length.map(|length| usize::try_from(length).unwrap_or(usize::MAX))
        };
        if length.is_some_and(|length| length > self.route.max_output) {
            return Err(Failure::TooLarge);
        }
        let head = Head { response, length, guard: Guard::Verbatim };
        sink.begin(head).map_err(Failure::NoMemory)?;
        self.content(body, context, sink)
    }

    /// Passes on the content to its end.
    fn content(
        &self,
        body: Body,
        context: &CallContext,
        sink: &mut dyn Sink,
    ) -> Result<(), Failure> {
        let mut reader = body.into_reader();
        let mut received: usize = 0;
        // The head goes out with the first content, or before a wait for the upstream.
        context.may_wait.set(false);
        loop {
            // One byte more than allowed shows whether there is more.
            let most = self.route.max_output.saturating_add(1) - received;
            let room = sink.room(most).map_err(Failure::NoMemory)?;
            let n = match reader.read(room) {
                Err(error)
                    if error.kind() == ErrorKind::WouldBlock && !context.may_wait.replace(true) =>
                {
                    context.send(sink).map_err(ureq::Error::from)?;
                    continue;
                }
                read => read.map_err(ureq::Error::from)?,
            };
            received += n;
            context.noise.set_content(received);
            if n == 0 {
                return Ok(());
            }
            if received > self.route.max_output {
                return Err(Failure::TooLarge);
            }
            sink.advance(n);
            context.may_wait.set(true);
            context.send(sink).map_err(ureq::Error::from)?;
        }
    }

    /// Returns the error for the client, and logs the details, including the address, for the operator.
    fn error(&self, failure: Failure, context: &CallContext, execution: &Execution) -> Error {
        if execution.stopped().is_some() {
            return Error::Cancelled;
        }
        let phase = context.phase.get();
        let (error, cause) = match failure {
            Failure::Refused(error) => return error,
            Failure::Unasked => (bad(INVALID), "101, or a transfer coding".to_owned()),
            Failure::TooLarge => {
                let most = shown(self.route.max_output);
                let what = format!("its answer is larger than max-output {most}");
                (bad(&what), what)
            }
            Failure::NoMemory(cause) => {
                let error = Error::no_room_for("the upstream's answer", &cause);
                let cause = error.to_string();
                (error, cause)
            }
            Failure::RequestError(cause) => match context.noise.excess() {
                Some(what) => (bad(&format!("its answer has {what}")), what.to_owned()),
                None => (
                    phase.error(&cause, (self.route.time_limit, self.route.connect_limit)),
                    cause.to_string(),
                ),
            },
        };
        let job = execution.job_as_log();
        let upstream = self.name();
        let status = error.status().as_u16();
        log::warn!("job={job} upstream={upstream} status={status} phase={phase:?}: {cause}");
        error
    }

    /// Returns the upstream's name for the log.
    fn name(&self) -> &str {
        self.route.authority.as_str()
    }
}

const INVALID: &str = "its answer is not valid HTTP";
const INSECURE: &str =
    "no secure connection: its certificate is not trusted, or it does not speak TLS";
/// The upstream is not at fault; the message says so.
const CANNOT_CONNECT: &str = "no connection to the upstream can be opened";

fn bad(what: &str) -> Error {
    Error::BadGateway(format!("the upstream: {what}").into())
}

impl Phase {
    /// Returns the error for a failure in this phase of a call with these two time limits: of the whole call, and of
    /// connecting.
    fn error(
        self,
        cause: &ureq::Error,
        (time_limit, connect_limit): (Duration, Duration),
    ) -> Error {
        let kind = match cause {
            ureq::Error::Io(error) => {
                // Nothing was sent yet, so a job may be tried again.
                if matches!(self, Self::Resolving | Self::Connecting)
                    && let Some(short) = Error::shortage(CANNOT_CONNECT, error)
                {
                    return short;
                }
                if error.raw_os_error() == Some(Errno::ADDRNOTAVAIL.raw_os_error()) {
                    return Error::Unavailable(format!("{CANNOT_CONNECT}: {error}").into());
                }
                error.kind()
            }
            ureq::Error::LargeResponseHeader(..) => {
                return bad("the head of its answer is too large");
            }
            ureq::Error::Protocol(_) | ureq::Error::Http(_) => {
                return bad(INVALID);
            }
            #[cfg(feature = "tls")]
            ureq::Error::Rustls(_) | ureq::Error::Tls(_) => {
                return bad(INSECURE);
            }
            _ => ErrorKind::Other,
        };
        let late = |what: &str| {
            let most = shown_duration(time_limit);
            Error::GatewayTimeout(format!("the upstream: {what}: timeout {most}").into())
        };
        let connect_limit = || shown_duration(connect_limit.min(time_limit));
        match (self, kind) {
            (Self::Resolving, ErrorKind::ResourceBusy) => {
                let what = "its name is not looked up: too many lookups hang";
                Error::Shortage(format!("the upstream: {what} ({MAX_LOOKUPS})").into())
            }
            (Self::Resolving, ErrorKind::TimedOut) => bad(&format!(
                "its name cannot be resolved in time: connect-timeout {}",
                connect_limit()
            )),
            (Self::Resolving, _) => bad("its name cannot be resolved"),
            (Self::Connecting, ErrorKind::TimedOut) => {
                bad(&format!("no connection in time: connect-timeout {}", connect_limit()))
            }
            // ureq reports a failed TLS handshake in this form.
            (Self::Connecting, ErrorKind::InvalidData) => bad(INSECURE),
            (Self::Connecting, _) => bad("cannot connect"),
            (Self::Sending, ErrorKind::TimedOut) => late("it did not take the request in time"),
            (Self::Sending, _) => bad("the connection broke while the request was sent"),
            (Self::Waiting, ErrorKind::TimedOut) => late("no answer in time"),
            (Self::Waiting, _) => bad("it closed the connection without an answer"),
            (Self::Receiving, ErrorKind::TimedOut) => late("its answer was not complete in time"),
            (Self::Receiving, _) => bad("its answer broke off"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::Content;
    use std::time::Instant;

    #[test]
    fn content_that_the_upstream_refuses_is_not_read() {
        let execution = Arc::new(Execution::default());
        let far = Instant::now() + Duration::from_secs(3600);
        let context = CallContext::enter(&execution, far, Duration::from_secs(1)).unwrap();
        let content = Content::from(vec![b'x'; 100]);
        let mut upload = Upload { reader: content.reader(), skipped: 0, context: &context };
        let mut piece = [0; 30];
        assert_eq!((upload.read(&mut piece).unwrap(), piece), (30, [b'x'; 30]));
        context.is_cut.set(true);
        let mut piece = [0; 30];
        for expected in [30, 30, 10, 0, 0] {
            assert_eq!((upload.read(&mut piece).unwrap(), piece), (expected, [0; 30]));
        }
        assert_eq!(upload.reader.left(), 70);
    }
}
