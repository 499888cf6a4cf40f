//! The small endpoints: version, time, sleep, availability.
//!
//! Owns their parameters and bodies. `sleep` does not sleep: it only returns how long to wait. The waiting is its
//! caller's, so that a deferred sleep is a delay and holds no worker.

use std::time::Duration;

use serde_json::json as value;

use super::query::{is_on, number};
use super::{Asked, json};
use crate::clock;
use crate::config::shown_duration;
use crate::error::Error;
use crate::handler::{Outcome, options};
use crate::methods::ANY_METHOD;
use crate::store::Stats;

/// The longest sleep, in seconds.
const MAX_SLEEP: f64 = 3600.0;

/// The version of ArangoDB whose protocol deferd speaks; `details` names the server that really answers.
pub fn version(asked: &Asked<'_>) -> Result<Outcome, Error> {
    const ANSWER: &str = r#"{"server":"arango","version":"1.4.3"}"#;
    if !is_on(asked.query(), "details") {
        return Ok(json(ANSWER).into());
    }
    let jobs = &asked.api.jobs;
    let Stats { stored, capacity, .. } = jobs.store.stats()?;
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
    let answer = format!(r#"{{"server":"arango","version":"1.4.3","details":{details}}}"#);
    Ok(json(answer).into())
}

/// Rounds a number of bytes down to 64 KiB: with a finer unit, the request itself would change the answer.
fn coarse(bytes: usize) -> String {
    (bytes & !0xffff).to_string()
}

/// Returns the server's clock.
pub fn time(_: &Asked<'_>) -> Result<Outcome, Error> {
    let time = clock::now().stamp.unix_seconds();
    Ok(json(format!(r#"{{"error":false,"code":200,"time":{time}}}"#)).into())
}

/// Returns how long to sleep, and what to answer then: `504` if the time limit is shorter.
///
/// # Errors
/// `400` if the duration is not a number from 0 to 3600.
pub fn sleep(asked: &Asked<'_>) -> Result<Outcome, Error> {
    let time_limit = asked.api.time_limit;
    let seconds = number(asked.query(), "duration")
        .filter(|seconds| (0.0..=MAX_SLEEP).contains(seconds))
        .ok_or(Error::bad_parameter("duration is not a number of seconds from 0 to 3600"))?;
    let span = Duration::from_secs_f64(seconds);
    let answer = if span > time_limit {
        let most = shown_duration(time_limit);
        Error::GatewayTimeout(format!("the sleep is longer than --timeout {most}").into())
            .response()
    } else {
        json(format!(r#"{{"error":false,"code":200,"duration":{seconds}}}"#))
    };
    Ok(Outcome::Delayed(answer.into(), span.min(time_limit)))
}

/// Returns whether new requests are welcome.
///
/// # Errors
/// `503` while deferd shuts down.
pub fn availability(asked: &Asked<'_>) -> Result<Outcome, Error> {
    if asked.api.jobs.is_draining() {
        return Err(Error::Unavailable("shutting down".into()));
    }
    Ok(json(r#"{"error":false,"code":200,"mode":"default"}"#).into())
}

/// Describes the server itself; its options are all that there is to tell.
pub fn server(_: &Asked<'_>) -> Result<Outcome, Error> {
    Ok(options(ANY_METHOD).into())
}
