//! Callbacks: the record of a job that is done, posted to the URL that its client named.
//!
//! Owns the request and what its answer means: 2xx ends it, 410 gives up, anything else is tried again by its route's
//! `retry`. Invariants: only a URL that the operator allows now is called, and each request is signed; the content of
//! an answer is never read, and no redirect is followed.

use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_LENGTH, CONTENT_TYPE, USER_AGENT};
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode};
use ureq::{Agent, Body, SendBody};

use super::deadline::CallContext;
use super::{MAX_HEAD, agent};
use crate::callback_url::CallbackUrl;
use crate::clock;
use crate::error::{Error, JSON};
use crate::exchange::{Call, empty};
use crate::handler::{Handler, Outcome};
use crate::job::execution::Execution;
use crate::job::notice::{self, WEBHOOK_ID};
use crate::protocol::CALLBACK_URL;
use crate::signature::Signature;
use crate::sink::Sink;

/// How long a receiver has to answer.
pub const TIME_LIMIT: Duration = Duration::from_secs(15);

/// How long it may take until there is a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// The size of the buffer for a request, in bytes: its longest line, that of the URL, fits.
const OUTPUT_BUFFER: usize = 8192;

const AGENT: HeaderValue = HeaderValue::from_static(concat!("deferd/", env!("CARGO_PKG_VERSION")));

/// Delivers callbacks.
pub struct CallbackHandler {
    allowed: Arc<[CallbackUrl]>,
    /// `None`: without `--callback-secret` no callback is delivered.
    signature: Option<Signature>,
    time_limit: Duration,
    agent: Agent,
}

impl CallbackHandler {
    /// Returns a handler that calls what these URLs cover, whose receivers have so long to answer. Connects to nothing
    /// before the first callback.
    pub fn new(
        allowed: Arc<[CallbackUrl]>,
        signature: Option<Signature>,
        time_limit: Duration,
    ) -> Self {
        Self { allowed, signature, time_limit, agent: agent(OUTPUT_BUFFER) }
    }

    /// Returns the URL of a notice, if it may be called still, and what signs the request.
    fn receiver(&self, call: &Call) -> Option<(CallbackUrl, &Signature)> {
        let url = call.request.headers().get(CALLBACK_URL)?.to_str().ok()?;
        let url = CallbackUrl::parse(url).ok()?;
        let is_allowed = self.allowed.iter().any(|allowed| allowed.covers(&url));
        is_allowed.then_some((url, self.signature.as_ref()?))
    }

    /// Sends the request. One that found a kept connection closed is sent again: to its receiver, both are one by their
    /// `webhook-id`.
    fn send(
        &self,
        url: &CallbackUrl,
        signature: &Signature,
        call: &Call,
        context: &CallContext,
    ) -> Result<Response<Body>, ureq::Error> {
        let id = call.request.headers().get(WEBHOOK_ID).cloned();
        let id = id.unwrap_or(HeaderValue::from_static(""));
        loop {
            let (content, now) = (call.request.body(), clock::now().stamp);
            let signed = signature.sign(id.to_str().unwrap_or_default(), content, now)?;
            let mut reader = content.reader();
            let mut request = Request::post(url.uri().clone()).body(())?;
            let fields = request.headers_mut();
            fields.insert(CONTENT_TYPE, JSON);
            fields.insert(USER_AGENT, AGENT);
            fields.insert(WEBHOOK_ID, id.clone());
            fields.extend(signed);
            fields.insert(CONTENT_LENGTH, HeaderValue::from(content.len()));
            context.begin();
            match self.agent.run(request.map(|()| SendBody::from_reader(&mut reader))) {
                Err(_) if context.is_stale() => {}
                sent => return sent,
            }
        }
    }
}

impl Handler for CallbackHandler {
    fn check(&self, _: &Parts) -> Result<(), Error> {
        Err(Error::NotFound("no request leads to a callback".into()))
    }

    fn run(
        &self,
        call: &Call,
        execution: &Arc<Execution>,
        _: &mut dyn Sink,
    ) -> Result<Outcome, Error> {
        let (job, of) = (execution.job_as_log(), notice::job(&call.request));
        let Some((url, signature)) = self.receiver(call) else {
            let what = "no --allow-callback covers its URL any more";
            log::warn!("job={job} of={of} the callback is given up: {what}");
            return Err(Error::Forbidden(what.into()));
        };
        let _buffers = execution.memory().charge(MAX_HEAD + OUTPUT_BUFFER)?;
        let deadline = execution.deadline(self.time_limit);
        let context = CallContext::enter(execution, deadline, CONNECT_LIMIT)?;
        let receiver = url.authority();
        match self.send(&url, signature, call, &context) {
            Ok(answer) if answer.status().is_success() => Ok(empty(StatusCode::OK).into()),
            Ok(answer) if answer.status() == StatusCode::GONE => {
                log::warn!("job={job} of={of} callback={receiver} the callback is given up: 410");
                Ok(empty(StatusCode::GONE).into())
            }
            Ok(answer) => {
                let status = answer.status().as_u16();
                log::warn!("job={job} of={of} callback={receiver} the receiver answered {status}");
                Err(Error::BadGateway(format!("the receiver answered {status}").into()))
            }
            Err(_) if execution.stopped().is_some() => Err(Error::Cancelled),
            Err(cause) => {
                log::warn!(
                    "job={job} of={of} callback={receiver} phase={:?}: {cause}",
                    context.phase.get()
                );
                Err(context.phase.get().error(&cause, (self.time_limit, CONNECT_LIMIT)))
            }
        }
    }

    fn reload(&self) -> Result<(), String> {
        let Some(signature) = &self.signature else { return Ok(()) };
        let count = signature.reload()?;
        log::info!("the secrets of callbacks are read again: {count}");
        Ok(())
    }
}
