//! Callbacks: the record of a finished job, sent by POST to the URL that its client named.
//!
//! Owns the request and the meaning of its answer: 2xx ends it, 410 gives up, anything else is tried again according
//! to the route's `retry`. A receiver that cannot be reached is left alone for a while; callbacks to it then fail at
//! once, instead of holding workers until connections time out. Invariants: only a URL that the operator currently
//! allows is called, and each request is signed; the content of an answer is never read, and no redirect is followed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::header::{CONTENT_LENGTH, CONTENT_TYPE, USER_AGENT};
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode};
use ureq::{Agent, Body, SendBody};

use super::deadline::{CallContext, Phase};
use super::{MAX_HEAD, agent};
use crate::callback_url::CallbackUrl;
use crate::clock;
use crate::config::shown_duration;
use crate::error::{Error, JSON};
use crate::exchange::{Call, empty};
use crate::handler::{Handler, Outcome};
use crate::job::execution::Execution;
use crate::job::notice::{self, WEBHOOK_ID};
use crate::job::{Age, Moment, Stamp};
use crate::protocol::{CALLBACK_URL, PRODUCT};
use crate::signature::Signature;
use crate::sink::Sink;

/// How long a receiver has to answer.
pub const TIME_LIMIT: Duration = Duration::from_secs(15);

/// The age at which a callback is given up.
pub const MAX_AGE: Duration = Duration::from_secs(3600);

/// How long a receiver that cannot be reached is left alone.
const REST: Duration = Duration::from_secs(30);

/// How long connecting may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// The size of the buffer for a request, in bytes: its longest line, which has the URL, fits.
const OUTPUT_BUFFER: usize = 8192;

/// How long the receivers below an allowed URL are left alone.
#[derive(Debug, Default)]
struct Rest(Mutex<Option<Instant>>);

impl Rest {
    /// Returns whether they are left alone at this moment.
    fn holds(&self, now: Instant) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| now < until)
    }

    /// Leaves them alone until this time; `None`: calls them again.
    fn set(&self, until: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }
}

/// Delivers callbacks.
pub struct CallbackHandler {
    allowed: Arc<[CallbackUrl]>,
    /// The rest of each allowed URL, at its index.
    rests: Vec<Rest>,
    /// `None`: without `--callback-secret` no callback is delivered.
    signature: Option<Signature>,
    time_limit: Duration,
    max_age: Duration,
    agent: Agent,
}

impl CallbackHandler {
    /// Returns a handler that calls URLs below `allowed`, gives each receiver `time_limit` to answer, and gives up
    /// callbacks older than `max_age`. Does not connect before the first callback.
    pub fn new(
        allowed: Arc<[CallbackUrl]>,
        signature: Option<Signature>,
        (time_limit, max_age): (Duration, Duration),
    ) -> Self {
        let rests = allowed.iter().map(|_| Rest::default()).collect();
        Self { allowed, rests, signature, time_limit, max_age, agent: agent(OUTPUT_BUFFER) }
    }

    /// Returns the URL of a notice if it may still be called, the key for its signature, and the rest of its receiver.
    fn receiver(&self, call: &Call) -> Option<(CallbackUrl, &Signature, &Rest)> {
        let url = call.request.headers().get(CALLBACK_URL)?.to_str().ok()?;
        let url = CallbackUrl::parse(url).ok()?;
        let place = self.allowed.iter().position(|allowed| allowed.covers(&url))?;
        Some((url, self.signature.as_ref()?, self.rests.get(place)?))
    }

    /// Returns whether the callback of this execution is too old: its id contains the time of its creation.
    fn is_too_old(&self, call: &Call, execution: &Execution) -> bool {
        let made = execution.job().map(|id| Stamp::from_micros(id.number()));
        let age = notice::made(&call.request);
        made.is_some_and(|made| is_older(made, age, self.max_age, clock::now()))
    }

    /// Sends the request. If a kept connection turns out to be closed, sends it again: the receiver recognizes
    /// repeated requests by their `webhook-id`.
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
            fields.insert(USER_AGENT, HeaderValue::from_static(PRODUCT));
            fields.insert(WEBHOOK_ID, id.clone());
            fields.extend(signed);
            fields.insert(CONTENT_LENGTH, HeaderValue::from(content.len()));
            context.begin();
            match self.agent.run(request.map(|()| SendBody::from_reader(&mut reader))) {
                Err(error) if context.is_stale() => {
                    let receiver = url.authority();
                    log::debug!("callback={receiver} a kept connection was closed: {error}");
                }
                sent => return sent,
            }
        }
    }
}

/// Returns whether more than `span` has passed since `made`: by the clock that cannot be set, or by the wall clock if
/// the host has been restarted since.
fn is_older(made: Stamp, age: Option<Age>, span: Duration, now: Moment) -> bool {
    match age {
        Some(age) if age <= now.age => age < now.age.before(span),
        _ => now.stamp.since(made) > span,
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
        let Some((url, signature, rest)) = self.receiver(call) else {
            let what = "no --allow-callback covers its URL any more";
            log::warn!("job={job} of={of} the callback is given up: {what}");
            return Err(Error::Forbidden(what.into()));
        };
        let receiver = url.authority();
        if self.is_too_old(call, execution) {
            let most = shown_duration(self.max_age);
            log::warn!(
                "job={job} of={of} callback={receiver} the callback is given up: older than {most}"
            );
            return Ok(empty(StatusCode::GONE).into());
        }
        if rest.holds(Instant::now()) {
            let what = "the receiver could not be reached a moment ago";
            log::debug!("job={job} of={of} callback={receiver} {what}");
            return Err(Error::BadGateway(what.into()));
        }
        let _buffers = execution.memory().charge(MAX_HEAD + OUTPUT_BUFFER)?;
        let deadline = execution.deadline(self.time_limit);
        let context = CallContext::enter(execution, deadline, CONNECT_LIMIT)?;
        let sent = self.send(&url, signature, call, &context);
        if sent.is_ok() {
            rest.set(None);
        }
        match sent {
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
                let phase = context.phase.get();
                log::warn!("job={job} of={of} callback={receiver} phase={phase:?}: {cause}");
                let error = phase.error(&cause, (self.time_limit, CONNECT_LIMIT));
                // A shortage in deferd itself does not mean that the receiver is unreachable.
                let is_its_own = matches!(error, Error::BadGateway(_));
                if is_its_own && matches!(phase, Phase::Resolving | Phase::Connecting) {
                    rest.set(Some(Instant::now() + REST));
                }
                Err(error)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wall_clock_that_jumps_makes_no_callback_old() {
        let (second, hour) = (1_000_000, 3_600_000_000);
        let start = 500 * hour;
        let at = |stamp: i64, age| Moment {
            stamp: Stamp::from_micros((start + stamp) as u64),
            age: Age::from_micros(age),
        };
        let (made, age) = (at(0, 0).stamp, Some(Age::from_micros(hour)));
        for (age, now, is_old) in [
            (age, at(hour, 2 * hour), false),
            (age, at(hour + second, 2 * hour + second), true),
            // The wall clock jumps forward, and back.
            (age, at(400 * hour, hour + second), false),
            (age, at(-400 * hour, 2 * hour + second), true),
            // The host was restarted, or an older deferd made the notice.
            (age, at(hour, second), false),
            (age, at(hour + second, second), true),
            (None, at(hour + second, 9 * hour), true),
            (None, at(second, 9 * hour), false),
        ] {
            assert_eq!(is_older(made, age, MAX_AGE, now), is_old, "{now:?}");
        }
    }
}
