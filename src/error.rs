//! The one place where deferd's own errors get their status code, number and JSON body.
//!
//! Owns the table of errors that deferd itself can answer with (a script's or an upstream's own
//! error answers pass through and never come here). Invariants: every body has the same four
//! members in the same order, so that ArangoDB's drivers can read them; every `503` says when to
//! try again.

use std::borrow::Cow;
use std::fmt;
use std::io;

use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode};
use rustix::io::Errno;

use crate::content::{Content, NoMemory};
use crate::memory::NoRoom;
use crate::protocol::HINT;

/// The content type of every JSON answer.
pub const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");

/// The content type of deferd's own text.
pub const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// When a client that got a `503` may try again, in seconds.
const TRY_AGAIN: HeaderValue = HeaderValue::from_static("1");

/// What may have happened to a job.
const UNKNOWN_JOB: HeaderValue = HeaderValue::from_static(
    "no such job: its result was collected, deleted or older than --ttl, or deferd was restarted without --data, \
     or another user submitted it",
);

/// What there is below the job resource.
const JOB_REQUESTS: HeaderValue = HeaderValue::from_static(
    "below /_api/job: PUT ID, PUT ID/cancel, GET ID, GET ID/result, GET ID/log, GET done, GET pending, DELETE ID, \
     DELETE all, DELETE expired?stamp=SECONDS",
);

/// The part of an error message after the colon; may be empty.
pub type Detail = Cow<'static, str>;

/// An error that deferd itself answers with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// 400/400: the request, or one of its parameters, is invalid.
    BadParameter(Detail),
    /// 400/600: the body is not valid JSON.
    BadJson(Detail),
    /// 400/1208: an illegal name of a collection.
    IllegalName,
    /// 401/11: the credentials are missing or invalid.
    NotAuthorized,
    /// 403/403: the thing exists and may not be run.
    Forbidden(Detail),
    /// 404/404: no such route, script or endpoint.
    NotFound(Detail),
    /// 404/404: no such job of this user.
    UnknownJob,
    /// 400/400: a path below the job resource that does not exist.
    NoJobRequest,
    /// 404/1228: only the database `_system` exists.
    UnknownDatabase,
    /// 405/405, with the methods that the resource has.
    MethodNotSupported(Detail),
    /// 408/408: the request was not complete in time; which limit that is.
    RequestTimeout(Detail),
    /// 410/21: the job was cancelled (RFC 9110 has no better code; ArangoDB chose it).
    Cancelled,
    /// 413/413: the content is larger than may be sent here; which limit that is.
    BodyTooLarge(Detail),
    /// 414/414: the request target alone is larger than `--max-head`, or than can be represented.
    UriTooLong(Detail),
    /// 416/416: the range begins behind the end of the content.
    RangeNotSatisfiable(Detail),
    /// 417/417: an expectation other than `100-continue`.
    ExpectationFailed,
    /// 422/422: the idempotency key stands for another request.
    KeyReused,
    /// 431/431: the head is larger than `--max-head`, or has too many fields.
    FieldsTooLarge(Detail),
    /// 500/500: a handler failed in a way that is deferd's fault.
    Internal(Detail),
    /// 500/500: the job was running when deferd crashed, and its route has no `rerun=yes`.
    Interrupted,
    /// 501/501: understood, but not offered.
    NotImplemented(Detail),
    /// 502/502: the script or upstream gave no usable answer.
    BadGateway(Detail),
    /// 503/21003: the queue or the storage is full; trying again later may succeed.
    QueueFull(Detail),
    /// 503/503: deferd cannot serve this now: it is ending, or its store fails.
    Unavailable(Detail),
    /// 503/503: the work could not start for lack of descriptors, processes or memory. It had no effect, so a job is
    /// tried again.
    Shortage(Detail),
    /// 504/504: the script or upstream did not answer within its time limit.
    GatewayTimeout(Detail),
    /// 507/507: the result of a script or upstream does not fit where results are kept.
    InsufficientStorage(Detail),
    /// 505/505: neither HTTP/1.0 nor HTTP/1.1.
    VersionNotSupported,
}

impl Error {
    /// Returns a `400` that says what is wrong with the request.
    pub fn bad_parameter(detail: impl Into<Detail>) -> Self {
        Self::BadParameter(detail.into())
    }

    /// Returns the answer to content for which there is no memory now.
    pub fn no_memory(cause: &NoMemory) -> Self {
        Self::Unavailable(match cause {
            NoMemory::Budget => "the memory for content is in use; see --max-memory".into(),
            NoMemory::System(error) => format!("no memory for the content: {error}").into(),
            NoMemory::Disk(error) => format!("the disk cannot take the content: {error}").into(),
        })
    }

    /// Returns the error that stands for an answer for which there is no room; `what` names what does not fit.
    pub fn no_room_for(what: &str, cause: &NoMemory) -> Self {
        match cause {
            NoMemory::Budget => {
                let what = format!("{what} does not fit into --max-memory at this moment");
                Self::InsufficientStorage(what.into())
            }
            NoMemory::System(error) => {
                Self::Unavailable(format!("no memory for {what}: {error}").into())
            }
            NoMemory::Disk(error) => {
                Self::InsufficientStorage(format!("the disk cannot take {what}: {error}").into())
            }
        }
    }

    /// Returns the error of work whose content is in a file that cannot be read.
    pub fn unreadable(error: &io::Error) -> Self {
        Self::Unavailable(format!("the content cannot be read from the disk: {error}").into())
    }

    /// Returns status code, ArangoDB's error number, message and detail: one row for each error.
    fn row(&self) -> (StatusCode, u16, &'static str, &str) {
        match self {
            Self::BadParameter(d) => (StatusCode::BAD_REQUEST, 400, "bad parameter", d),
            Self::BadJson(d) => (StatusCode::BAD_REQUEST, 600, "invalid JSON", d),
            Self::IllegalName => {
                (StatusCode::BAD_REQUEST, 1208, "cannot create collection", "illegal name")
            }
            Self::NotAuthorized => {
                (StatusCode::UNAUTHORIZED, 11, "not authorized to execute this request", "")
            }
            Self::Forbidden(d) => (StatusCode::FORBIDDEN, 403, "forbidden", d),
            Self::NotFound(d) => (StatusCode::NOT_FOUND, 404, "not found", d),
            // ArangoDB's bodies, to the byte: the field `x-hint` says more.
            Self::UnknownJob => (StatusCode::NOT_FOUND, 404, "not found", ""),
            Self::NoJobRequest => (StatusCode::BAD_REQUEST, 400, "bad parameter", ""),
            Self::UnknownDatabase => (StatusCode::NOT_FOUND, 1228, "database not found", ""),
            Self::MethodNotSupported(_) => {
                (StatusCode::METHOD_NOT_ALLOWED, 405, "method not supported", "")
            }
            Self::RequestTimeout(d) => (StatusCode::REQUEST_TIMEOUT, 408, "request timeout", d),
            Self::Cancelled => (StatusCode::GONE, 21, "canceled request", ""),
            Self::BodyTooLarge(d) => (StatusCode::PAYLOAD_TOO_LARGE, 413, "body too large", d),
            Self::UriTooLong(d) => (StatusCode::URI_TOO_LONG, 414, "request target too long", d),
            Self::RangeNotSatisfiable(d) => {
                (StatusCode::RANGE_NOT_SATISFIABLE, 416, "range not satisfiable", d)
            }
            Self::ExpectationFailed => {
                (StatusCode::EXPECTATION_FAILED, 417, "expectation failed", "")
            }
            Self::KeyReused => {
                let detail = "it was sent with another request before";
                (StatusCode::UNPROCESSABLE_ENTITY, 422, "idempotency-key reused", detail)
            }
            Self::FieldsTooLarge(d) => {
                (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, 431, "header fields too large", d)
            }
            Self::Internal(d) => (StatusCode::INTERNAL_SERVER_ERROR, 500, "internal error", d),
            Self::Interrupted => (StatusCode::INTERNAL_SERVER_ERROR, 500, "interrupted", ""),
            Self::NotImplemented(d) => (StatusCode::NOT_IMPLEMENTED, 501, "not implemented", d),
            Self::BadGateway(d) => (StatusCode::BAD_GATEWAY, 502, "bad gateway", d),
            Self::QueueFull(d) => (StatusCode::SERVICE_UNAVAILABLE, 21003, "queue is full", d),
            Self::Unavailable(d) | Self::Shortage(d) => {
                (StatusCode::SERVICE_UNAVAILABLE, 503, "service unavailable", d)
            }
            Self::GatewayTimeout(d) => (StatusCode::GATEWAY_TIMEOUT, 504, "gateway timeout", d),
            Self::InsufficientStorage(d) => {
                (StatusCode::INSUFFICIENT_STORAGE, 507, "insufficient storage", d)
            }
            Self::VersionNotSupported => {
                (StatusCode::HTTP_VERSION_NOT_SUPPORTED, 505, "HTTP version not supported", "")
            }
        }
    }

    /// Returns the error of work that could not start for lack of a system resource; `None` if something else failed.
    pub fn shortage(what: &str, error: &io::Error) -> Option<Self> {
        const SHORT: [Errno; 5] =
            [Errno::MFILE, Errno::NFILE, Errno::AGAIN, Errno::NOMEM, Errno::NOBUFS];
        let errno = error.raw_os_error()?;
        let is_short = SHORT.iter().any(|short| short.raw_os_error() == errno);
        is_short.then(|| Self::Shortage(format!("{what}: {error}; try again later").into()))
    }

    /// Returns the status code of the answer.
    pub fn status(&self) -> StatusCode {
        self.row().0
    }

    /// Returns the whole answer.
    pub fn response(&self) -> Response<Content> {
        let mut response = Response::new(Content::from(self.body()));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, JSON);
        match self {
            Self::MethodNotSupported(methods) => {
                headers.insert(ALLOW, allow(methods));
            }
            Self::NotAuthorized => {
                let realm = r#"Basic realm="deferd", charset="UTF-8""#;
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(realm));
            }
            Self::UnknownJob => {
                headers.insert(HINT, UNKNOWN_JOB);
            }
            Self::NoJobRequest => {
                headers.insert(HINT, JOB_REQUESTS);
            }
            _ => {}
        }
        if self.status() == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, TRY_AGAIN);
        }
        response
    }

    /// Returns the four members, in the order that ArangoDB 1.4 gives them: its C++ handlers put the
    /// message second, its JavaScript actions (the collections) put it last.
    fn body(&self) -> String {
        let (status, number, ..) = self.row();
        let text = serde_json::Value::from(self.to_string());
        let code = status.as_u16();
        match self {
            Self::IllegalName | Self::BadJson(_) => {
                format!(
                    r#"{{"error":true,"code":{code},"errorNum":{number},"errorMessage":{text}}}"#
                )
            }
            _ => {
                format!(
                    r#"{{"error":true,"errorMessage":{text},"code":{code},"errorNum":{number}}}"#
                )
            }
        }
    }
}

/// The message, and behind a colon the detail.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (_, _, message, detail) = self.row();
        f.write_str(message)?;
        if detail.is_empty() { Ok(()) } else { write!(f, ": {detail}") }
    }
}

/// Returns these methods as a field value.
pub fn allow(methods: &str) -> HeaderValue {
    HeaderValue::from_str(methods).expect("the names of methods are a field value")
}

impl From<NoRoom> for Error {
    fn from(NoRoom: NoRoom) -> Self {
        Self::no_memory(&NoMemory::Budget)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_have_four_members_in_the_documented_order() {
        let table = [
            (
                Error::NoJobRequest,
                r#"{"error":true,"errorMessage":"bad parameter","code":400,"errorNum":400}"#,
            ),
            (
                Error::UnknownJob,
                r#"{"error":true,"errorMessage":"not found","code":404,"errorNum":404}"#,
            ),
            (
                Error::Cancelled,
                r#"{"error":true,"errorMessage":"canceled request","code":410,"errorNum":21}"#,
            ),
            (
                Error::IllegalName,
                r#"{"error":true,"code":400,"errorNum":1208,"errorMessage":"cannot create collection: illegal name"}"#,
            ),
            (
                Error::bad_parameter("stamp is not a \"number\""),
                r#"{"error":true,"errorMessage":"bad parameter: stamp is not a \"number\"","code":400,"errorNum":400}"#,
            ),
        ];
        for (error, body) in table {
            assert_eq!(error.body(), body);
        }
    }

    #[test]
    fn every_503_and_no_other_error_says_when_to_try_again() {
        let detail = || Detail::Borrowed("x");
        let errno = io::Error::from(Errno::MFILE);
        for (error, is_temporary) in [
            (Error::bad_parameter("x"), false),
            (Error::BadJson(detail()), false),
            (Error::IllegalName, false),
            (Error::NotAuthorized, false),
            (Error::Forbidden(detail()), false),
            (Error::NotFound(detail()), false),
            (Error::UnknownJob, false),
            (Error::NoJobRequest, false),
            (Error::UnknownDatabase, false),
            (Error::MethodNotSupported("GET".into()), false),
            (Error::RequestTimeout(detail()), false),
            (Error::Cancelled, false),
            (Error::BodyTooLarge(detail()), false),
            (Error::UriTooLong(detail()), false),
            (Error::RangeNotSatisfiable(detail()), false),
            (Error::ExpectationFailed, false),
            (Error::KeyReused, false),
            (Error::FieldsTooLarge(detail()), false),
            (Error::Internal(detail()), false),
            (Error::Interrupted, false),
            (Error::NotImplemented(detail()), false),
            (Error::BadGateway(detail()), false),
            (Error::QueueFull(detail()), true),
            (Error::Unavailable(detail()), true),
            (Error::shortage("x", &errno).unwrap(), true),
            (Error::no_memory(&NoMemory::Budget), true),
            (Error::no_memory(&NoMemory::System(Errno::NOMEM.into())), true),
            (Error::from(NoRoom), true),
            (Error::no_room_for("x", &NoMemory::Budget), false),
            (Error::no_room_for("x", &NoMemory::System(Errno::NOMEM.into())), true),
            (Error::no_room_for("x", &NoMemory::Disk(Errno::NOSPC.into())), false),
            (Error::GatewayTimeout(detail()), false),
            (Error::InsufficientStorage(detail()), false),
            (Error::VersionNotSupported, false),
        ] {
            let response = error.response();
            let is_503 = response.status() == StatusCode::SERVICE_UNAVAILABLE;
            let retry_after = response.headers().get(RETRY_AFTER);
            assert_eq!((is_503, retry_after.is_some()), (is_temporary, is_temporary), "{error:?}");
        }
    }
}
