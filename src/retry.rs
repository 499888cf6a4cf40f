//! When a job of a route is tried once more, and after how long.
//!
//! Owns the decision, from the end of an attempt. Does not wait: the job does, delayed. Invariants: only with
//! `unsafe=yes` is a request that is not idempotent sent twice to an upstream; a script is tried again only if it ended
//! by itself, and what it said of that.

use std::time::{Duration, SystemTime};

use crate::content::Content;
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

/// The same of a CGI script, whose `502` and `504` deferd makes up itself.
const PASSING_OF_SCRIPTS: [StatusCode; 2] =
    [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE];

/// The exit code of a program that failed in passing (EX_TEMPFAIL of sysexits(3)).
pub const TEMPORARY_FAILURE: u8 = 75;

/// Doubling stops here.
const MAX_BACKOFF: Duration = Duration::from_secs(300);

/// An upstream that wants to be left alone for longer gets what it wants: its answer is the result.
const MAX_DELAY: Duration = Duration::from_secs(3600);

/// How often, and with which delay, the jobs of a route are tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// How many attempts there may be after the first.
    pub most: u32,
    /// Before the second attempt; doubled before each further one.
    pub backoff: Duration,
    /// Which attempts call for another one.
    pub after: After,
}

/// Which attempts call for another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum After {
    /// Those of an upstream that fails in passing, with requests of these methods.
    Upstream(Methods),
    /// Those of a script that ends with one of these exit codes, or a CGI script that says so by its status.
    Script(ExitCodes),
}

/// Which requests are tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Methods {
    /// Those that mean the same twice as once (RFC 9110 section 9.2.2).
    Idempotent,
    /// All: `unsafe=yes`.
    All,
}

/// Which exit codes of a script call for another attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExitCodes {
    /// These.
    Of(Vec<u8>),
    /// All but 0: `retry-on=any`.
    Any,
}

impl ExitCodes {
    fn contains(&self, code: i32) -> bool {
        match self {
            Self::Of(codes) => codes.iter().any(|&listed| i32::from(listed) == code),
            Self::Any => code != 0,
        }
    }
}

/// How an attempt ended.
pub struct Ended<'a> {
    /// Its number, from 1.
    pub attempt: u32,
    /// Its answer.
    pub response: &'a Response<Content>,
    /// The exit code of the script that answered; `None` if no script did, or it did not end by itself.
    pub exit_code: Option<i32>,
}

impl Retry {
    /// Returns how long to wait before the next attempt at a request of this method, if this end of an attempt calls
    /// for one: as long as the answer says, but not shorter than the backoff.
    pub fn delay(&self, method: &Method, ended: &Ended<'_>, now: SystemTime) -> Option<Duration> {
        if ended.attempt > self.most || !self.after.calls(method, ended) {
            return None;
        }
        let doubled = 2u32.saturating_pow(ended.attempt - 1);
        let most = MAX_BACKOFF.max(self.backoff);
        let backoff = self.backoff.checked_mul(doubled).map_or(most, |delay| delay.min(most));
        let told = ended.response.headers().get(RETRY_AFTER);
        let told = told.and_then(|value| retry_after(value, now));
        let delay = told.unwrap_or_default().max(backoff);
        (delay <= MAX_DELAY.max(self.backoff)).then_some(delay)
    }
}

impl After {
    /// Returns whether an attempt that ended like this calls for another one.
    fn calls(&self, method: &Method, ended: &Ended<'_>) -> bool {
        let status = ended.response.status();
        match self {
            Self::Upstream(methods) => {
                PASSING.contains(&status) && (*methods == Methods::All || method.is_idempotent())
            }
            Self::Script(codes) => ended
                .exit_code
                .is_some_and(|code| codes.contains(code) || PASSING_OF_SCRIPTS.contains(&status)),
        }
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

    const RETRY: Retry = Retry {
        most: 3,
        backoff: Duration::from_secs(2),
        after: After::Upstream(Methods::Idempotent),
    };

    fn delay_of(
        retry: &Retry,
        method: &Method,
        attempt: u32,
        (status, exit_code): (u16, Option<i32>),
        field: Option<&str>,
    ) -> Option<u64> {
        let mut response = Response::builder().status(status);
        if let Some(value) = field {
            response = response.header(RETRY_AFTER, value);
        }
        let response = response.body(Content::new()).unwrap();
        let ended = Ended { attempt, response: &response, exit_code };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        retry.delay(method, &ended, now).map(|delay| delay.as_secs())
    }

    fn delay(attempt: u32, status: u16, field: Option<&str>) -> Option<u64> {
        let retry = Retry { most: 99, ..RETRY };
        delay_of(&retry, &Method::GET, attempt, (status, None), field)
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
        let all = Retry { after: After::Upstream(Methods::All), ..RETRY };
        for (method, idempotent) in [
            (Method::GET, true),
            (Method::PUT, true),
            (Method::DELETE, true),
            (Method::POST, false),
            (Method::PATCH, false),
        ] {
            let again = |retry: &Retry, attempt: u32| {
                delay_of(retry, &method, attempt, (503, None), None).is_some()
            };
            assert_eq!(again(&RETRY, 3), idempotent, "{method}");
            assert!(again(&all, 3) && !again(&all, 4), "{method}");
        }
    }

    #[test]
    fn a_script_is_tried_again_by_its_exit_code_or_its_status() {
        let of = |codes: &[u8]| ExitCodes::Of(codes.to_vec());
        for (codes, status, exit_code, again) in [
            (of(&[75]), 500, Some(75), true),
            (of(&[75]), 500, Some(1), false),
            (of(&[75, 1]), 500, Some(1), true),
            (of(&[75]), 200, Some(0), false),
            (ExitCodes::Any, 500, Some(1), true),
            (ExitCodes::Any, 500, Some(255), true),
            (ExitCodes::Any, 200, Some(0), false),
            (ExitCodes::Any, 404, Some(0), false),
            // By a signal, past a limit, not started: it did not end by itself.
            (ExitCodes::Any, 500, None, false),
            (ExitCodes::Any, 504, None, false),
            (ExitCodes::Any, 503, None, false),
            // What a CGI script says itself.
            (of(&[75]), 503, Some(0), true),
            (of(&[75]), 429, Some(0), true),
            (of(&[75]), 502, Some(0), false),
            (of(&[75]), 504, Some(0), false),
        ] {
            let retry = Retry { after: After::Script(codes), ..RETRY };
            let delay = delay_of(&retry, &Method::POST, 1, (status, exit_code), None);
            assert_eq!(delay.is_some(), again, "{retry:?} {status} {exit_code:?}");
        }
    }
}
