//! The small endpoints: version, time, sleep, echo, availability.
//!
//! Owns their parameters and bodies. `sleep` is the one that takes time: it only says how long. The
//! caller waits, so that a deferred sleep is a delay and holds no worker.

use std::time::Duration;

use bytes::Bytes;
use http::Response;
use serde_json::{Map, Value, json as value};

use super::json;
use super::query::{is_on, number};
use crate::call::Call;
use crate::content::{SMALL, held};
use crate::error::Error;
use crate::handler::Outcome;
use crate::jobs::{Jobs, now};
use crate::memory::Allowance;
use crate::store::Stats;

/// The longest sleep, in seconds.
const MAX_SLEEP: f64 = 3600.0;

/// How much of a request's content an echo shows, in bytes.
const MAX_ECHO: usize = 64 * 1024;

/// What a byte of a request takes at most while it is echoed: three as replaced text, six escaped, and
/// its own.
const ESCAPED: usize = 10;

/// The version of ArangoDB whose protocol this is; `details` says what really answers.
pub fn version(query: &str, jobs: &Jobs) -> Response<Bytes> {
    const ANSWER: &str = r#"{"server":"arango","version":"1.4.3"}"#;
    if !is_on(query, "details") {
        return json(ANSWER);
    }
    let Stats { stored, capacity } = jobs.store.stats();
    let build = if cfg!(debug_assertions) { "debug" } else { "release" };
    let details = value!({
        "architecture": std::env::consts::ARCH,
        "build": build,
        "deferd-version": env!("CARGO_PKG_VERSION"),
        "memory-kept": coarse(jobs.memory.kept()),
        "memory-limit": jobs.memory.capacity().to_string(),
        "memory-used": coarse(jobs.memory.used()),
        "server-version": "1.4.3",
        "store": jobs.store.name(),
        "stored-limit": capacity.to_string(),
        "stored-used": coarse(stored),
    });
    json(format!(r#"{{"server":"arango","version":"1.4.3","details":{details}}}"#))
}

/// Returns a number of bytes in steps of 64 KiB: finer, the question would change the answer.
fn coarse(bytes: usize) -> String {
    (bytes & !0xffff).to_string()
}

/// The server's clock.
pub fn time() -> Response<Bytes> {
    json(format!(r#"{{"error":false,"code":200,"time":{}}}"#, now().unix_seconds()))
}

/// Says how long to sleep, and what to answer then: `504` past the time limit.
///
/// # Errors
/// `400` where the duration is not a number from 0 to 3600.
pub fn sleep(query: &str, time_limit: Duration) -> Result<Outcome, Error> {
    let seconds =
        number(query, "duration")
            .filter(|seconds| (0.0..=MAX_SLEEP).contains(seconds))
            .ok_or(Error::bad_parameter("duration is not a number of seconds from 0 to 3600"))?;
    let span = Duration::from_secs_f64(seconds);
    let answer = if span > time_limit {
        Error::GatewayTimeout("the sleep is longer than --timeout".into()).response()
    } else {
        json(format!(r#"{{"error":false,"code":200,"duration":{seconds}}}"#))
    };
    Ok(Outcome::Delayed(answer.into(), span.min(time_limit)))
}

/// The request as JSON, with the first 64 KiB of its content. Bytes that are not UTF-8 are replaced;
/// `bodySize` is the true size in bytes.
///
/// # Errors
/// `503` without memory for it.
pub fn echo(call: &Call, memory: &Allowance) -> Result<Response<Bytes>, Error> {
    let request = &call.request;
    let body = beginning(request.body());
    let fields =
        request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 8);
    let size = body.len() + fields.sum::<usize>() + 1024;
    let mut charge = memory.nothing();
    if size > SMALL / ESCAPED {
        charge.grow(ESCAPED * size)?;
    }
    let mut headers = Map::new();
    for name in request.headers().keys() {
        let values = request.headers().get_all(name).iter();
        let joined: Vec<_> = values.map(|v| String::from_utf8_lossy(v.as_bytes())).collect();
        headers.insert(name.to_string(), Value::from(joined.join(", ")));
    }
    let uri = request.uri();
    let echo = value!({
        "method": request.method().as_str(),
        "target": uri.path_and_query().map_or("/", |target| target.as_str()),
        "path": uri.path(),
        "query": uri.query(),
        "protocol": format!("{:?}", request.version()),
        "client": call.connection.to_string(),
        "user": call.owner.as_log(),
        "headers": headers,
        "body": String::from_utf8_lossy(body),
        "bodySize": request.body().len(),
    });
    let text = echo.to_string();
    charge.shrink_to(text.len());
    Ok(json(held(text.into_bytes().into(), charge)))
}

/// Returns as much of the content as an echo shows, not cut within a character.
fn beginning(content: &[u8]) -> &[u8] {
    let mut end = content.len().min(MAX_ECHO);
    let is_continuation = |at: usize| content.get(at).is_some_and(|byte| byte & 0xc0 == 0x80);
    if (end.saturating_sub(3)..end).any(|at| !is_continuation(at)) {
        while is_continuation(end) {
            end -= 1;
        }
    }
    &content[..end]
}

/// Whether new requests are welcome.
///
/// # Errors
/// `503` while deferd ends.
pub fn availability(jobs: &Jobs) -> Result<Response<Bytes>, Error> {
    if jobs.is_draining() {
        return Err(Error::Unavailable("shutting down".into()));
    }
    Ok(json(r#"{"error":false,"code":200,"mode":"default"}"#))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_is_cut_between_characters() {
        for (before, rest, kept) in [
            (MAX_ECHO - 1, "a".as_bytes(), MAX_ECHO),
            (MAX_ECHO, b"a", MAX_ECHO),
            (MAX_ECHO - 1, "\u{e4}".as_bytes(), MAX_ECHO - 1),
            (MAX_ECHO - 2, "\u{1f600}".as_bytes(), MAX_ECHO - 2),
            (MAX_ECHO - 3, "\u{20ac}x".as_bytes(), MAX_ECHO),
            (MAX_ECHO - 8, &[0x80; 99], MAX_ECHO),
        ] {
            let content = [&vec![b'x'; before][..], rest].concat();
            assert_eq!(beginning(&content).len(), kept.min(content.len()), "{before} {rest:?}");
        }
    }
}
