//! When a job of a route is tried once more, and after how long.
//!
//! Owns the decision, from the answer of an attempt. Does not wait: the job does, delayed. Invariant: only with
//! `unsafe=yes` is a request that is not idempotent sent twice.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::RETRY_AFTER;
use http::{HeaderValue, Method, Response, StatusCode};

/// What passes by itself, if it does: the upstream cannot be reached, is overloaded, or told us to come
/// again.
const PASSING: [StatusCode; 4] = [
    StatusCode::TOO_MANY_REQUESTS,
    StatusCode::BAD_GATEWAY,
    StatusCode::SERVICE_UNAVAILABLE,
    StatusCode::GATEWAY_TIMEOUT,
];

/// Doubling stops here.
const MAX_BACKOFF: Duration = Duration::from_secs(300);

/// An upstream that wants to be left alone for longer gets what it wants: its answer is the result.
const MAX_DELAY: Duration = Duration::from_secs(3600);

/// How often, and with which delay, the jobs of a route are tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// How many attempts there may be after the first.
    pub most: u32,
    /// Before the second attempt; doubled before each further one.
    pub backoff: Duration,
    /// Which requests are tried again.
    pub methods: Methods,
}

/// Which requests are tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Methods {
    /// Those that mean the same twice as once (RFC 9110 section 9.2.2).
    Idempotent,
    /// All: `unsafe=yes`.
    All,
}

impl Retry {
    /// Whether a request of this method may be tried again after its attempt of this number, from 1.
    pub fn allows(&self, method: &Method, attempt: u32) -> bool {
        attempt <= self.most && (self.methods == Methods::All || method.is_idempotent())
    }

    /// How long to wait before the next attempt, if this answer of an attempt calls for one: as long as
    /// the upstream says, but not shorter than the backoff.
    pub fn delay(
        &self,
        attempt: u32,
        response: &Response<Bytes>,
        now: SystemTime,
    ) -> Option<Duration> {
        if !PASSING.contains(&response.status()) {
            return None;
        }
        let doubled = 2u32.saturating_pow(attempt - 1);
        let most = MAX_BACKOFF.max(self.backoff);
        let backoff = self.backoff.checked_mul(doubled).map_or(most, |delay| delay.min(most));
        let told = response.headers().get(RETRY_AFTER).and_then(|value| retry_after(value, now));
        let delay = told.unwrap_or_default().max(backoff);
        (delay <= MAX_DELAY.max(self.backoff)).then_some(delay)
    }
}

/// Seconds, or a date (RFC 9110 section 10.2.3).
fn retry_after(value: &HeaderValue, now: SystemTime) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return Some(Duration::from_secs(text.parse::<u32>().unwrap_or(u32::MAX).into()));
    }
    Some(httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RETRY: Retry =
        Retry { most: 3, backoff: Duration::from_secs(2), methods: Methods::Idempotent };

    fn delay(attempt: u32, status: u16, field: Option<&str>) -> Option<u64> {
        let mut response = Response::builder().status(status);
        if let Some(value) = field {
            response = response.header(RETRY_AFTER, value);
        }
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let delay = RETRY.delay(attempt, &response.body(Bytes::new()).unwrap(), now);
        delay.map(|delay| delay.as_secs())
    }

    #[test]
    fn the_delay_doubles_and_is_not_shorter_than_the_upstream_says() {
        for (attempt, status, field, expected) in [
            (1, 503, None, Some(2)),
            (2, 429, None, Some(4)),
            (3, 502, None, Some(8)),
            (99, 504, None, Some(300)),
            (1, 200, Some("9"), None),
            (1, 500, None, None),
            (1, 404, None, None),
            (1, 503, Some("9"), Some(9)),
            (1, 503, Some("1"), Some(2)),
            (1, 503, Some("soon"), Some(2)),
            (1, 503, Some("-9"), Some(2)),
            (1, 503, Some("3600"), Some(3600)),
            (1, 503, Some("3601"), None),
            (1, 503, Some("99999999999999"), None),
            // 20 s after `now`, and before it.
            (1, 503, Some("Sun, 09 Sep 2001 01:47:00 GMT"), Some(20)),
            (1, 503, Some("Sat, 08 Sep 2001 01:47:00 GMT"), Some(2)),
        ] {
            assert_eq!(delay(attempt, status, field), expected, "{attempt} {status} {field:?}");
        }
    }

    #[test]
    fn only_what_is_idempotent_is_tried_again_unless_the_operator_says_so() {
        let all = Retry { methods: Methods::All, ..RETRY };
        for (method, idempotent) in [
            (Method::GET, true),
            (Method::PUT, true),
            (Method::DELETE, true),
            (Method::POST, false),
            (Method::PATCH, false),
        ] {
            assert_eq!(RETRY.allows(&method, 3), idempotent, "{method}");
            assert!(all.allows(&method, 3) && !all.allows(&method, 4), "{method}");
        }
    }
}
