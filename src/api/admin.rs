//! The small endpoints: version, time, sleep, echo, availability.
//!
//! Owns their parameters and bodies. `sleep` is the one that takes time: it waits on its execution, so
//! that it can be cancelled.

use std::time::Duration;

use bytes::Bytes;
use http::Response;
use serde_json::{Map, Value, json as value};

use super::json;
use super::query::{is_on, number};
use crate::call::Call;
use crate::error::Error;
use crate::job::execution::Execution;
use crate::jobs::{Jobs, now};

/// The longest sleep, in seconds.
const MAX_SLEEP: f64 = 3600.0;

/// The version of ArangoDB whose protocol this is; `details` says what really answers.
pub fn version(query: &str, store: &str) -> Response<Bytes> {
    const ANSWER: &str = r#"{"server":"arango","version":"1.4.3"}"#;
    if !is_on(query, "details") {
        return json(ANSWER);
    }
    let build = if cfg!(debug_assertions) { "debug" } else { "release" };
    let details = value!({
        "architecture": std::env::consts::ARCH,
        "build": build,
        "deferd-version": env!("CARGO_PKG_VERSION"),
        "server-version": "1.4.3",
        "store": store,
    });
    json(format!(r#"{{"server":"arango","version":"1.4.3","details":{details}}}"#))
}

/// The server's clock.
pub fn time() -> Response<Bytes> {
    json(format!(r#"{{"error":false,"code":200,"time":{}}}"#, now().unix_seconds()))
}

/// Sleeps.
///
/// # Errors
/// `400` where the duration is not a number from 0 to 3600; `504` past the time limit; the stop if it is
/// cancelled.
pub fn sleep(
    query: &str,
    execution: &Execution,
    time_limit: Duration,
) -> Result<Response<Bytes>, Error> {
    let seconds =
        number(query, "duration")
            .filter(|seconds| (0.0..=MAX_SLEEP).contains(seconds))
            .ok_or(Error::bad_parameter("duration is not a number of seconds from 0 to 3600"))?;
    let span = Duration::from_secs_f64(seconds);
    execution.sleep(span.min(time_limit))?;
    if span > time_limit {
        return Err(Error::GatewayTimeout("the sleep is longer than --timeout".into()));
    }
    Ok(json(format!(r#"{{"error":false,"code":200,"duration":{seconds}}}"#)))
}

/// The request as JSON. Content that is no UTF-8 has its broken bytes replaced; `bodySize` is its
/// true size in bytes.
pub fn echo(call: &Call) -> Response<Bytes> {
    let request = &call.request;
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
        "body": String::from_utf8_lossy(request.body()),
        "bodySize": request.body().len(),
    });
    json(echo.to_string())
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
