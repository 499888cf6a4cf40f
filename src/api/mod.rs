//! The built-in endpoints below `/_api/` and `/_admin/`, as a handler like any other.
//!
//! Owns the list of endpoints and their methods; what each does is in the files beside this one.
//! Invariant: an endpoint that is not on the list is a `404` before anything is deferred.

mod admin;
mod collection;
mod echo;
mod job;
mod openapi;
mod query;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderValue, Method, Response};

use crate::error::{Error, JSON};
use crate::exchange::Call;
use crate::handler::{ANY_METHOD, Handler, Outcome, Takes, options};
use crate::job::execution::Execution;
use crate::jobs::Jobs;
pub use job::{ASYNC_ID, awaited, id_value};
pub use openapi::Access;

/// The path prefixes of the built-in endpoints; no route of the user's may stand below them. `*` is the
/// server itself, which can only be asked for its options (RFC 9112 section 3.2.4).
pub const PREFIXES: [&str; 3] = ["/_api/", "/_admin/", "*"];

/// The endpoint that never asks for credentials.
pub const OPEN: &str = "/_admin/server/availability";

/// The endpoint that describes them all.
const DESCRIPTION: &str = "/_api/openapi.json";

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// The built-in endpoints.
pub struct Api {
    jobs: Arc<Jobs>,
    access: Access,
    /// The description of all endpoints, made when a client first asks for it.
    description: OnceLock<Bytes>,
    /// How long one that takes its time may.
    time_limit: Duration,
}

impl Api {
    /// The endpoints over these jobs, which say of themselves who may ask, and end within `time_limit`.
    pub fn new(jobs: Arc<Jobs>, access: Access, time_limit: Duration) -> Self {
        Self { jobs, access, description: OnceLock::new(), time_limit }
    }
}

/// What a path below the prefixes names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Endpoint<'a> {
    /// The job resource, with the path behind it.
    Job(&'a str),
    /// The server itself.
    Server,
    Version,
    Time,
    Sleep,
    Echo,
    Availability,
    Description,
    Collection,
}

/// The endpoints with one path each, but for the job resource.
const TABLE: [(&str, Endpoint<'static>); 8] = [
    ("/_api/version", Endpoint::Version),
    ("/_admin/version", Endpoint::Version),
    ("/_admin/time", Endpoint::Time),
    ("/_admin/sleep", Endpoint::Sleep),
    ("/_admin/echo", Endpoint::Echo),
    (OPEN, Endpoint::Availability),
    (DESCRIPTION, Endpoint::Description),
    ("/_api/collection", Endpoint::Collection),
];

impl<'a> Endpoint<'a> {
    fn of(path: &'a str) -> Result<Self, Error> {
        for prefix in ["/_api/job", "/_admin/job"] {
            if let Some(rest) = path.strip_prefix(prefix)
                && (rest.is_empty() || rest.starts_with('/'))
            {
                return Ok(Self::Job(rest));
            }
        }
        if path == "*" {
            return Ok(Self::Server);
        }
        let path = path.strip_suffix('/').unwrap_or(path);
        let found = TABLE.iter().find(|(known, _)| *known == path);
        found.map(|(_, endpoint)| *endpoint).ok_or(Error::NotFound("no such endpoint".into()))
    }

    /// The methods it has; `None`: all.
    const fn allow(self) -> Option<&'static str> {
        match self {
            Self::Job(_) => Some("DELETE, GET, HEAD, OPTIONS, PUT"),
            Self::Time | Self::Sleep | Self::Availability | Self::Description => {
                Some("GET, HEAD, OPTIONS")
            }
            Self::Collection => Some("GET, HEAD, OPTIONS, POST"),
            Self::Server | Self::Version | Self::Echo => None,
        }
    }
}

impl Handler for Api {
    fn check(&self, request: &Parts) -> Result<(), Error> {
        Endpoint::of(request.uri.path()).map(drop)
    }

    fn takes(&self, request: &Parts) -> Takes {
        match Endpoint::of(request.uri.path()) {
            Ok(Endpoint::Echo) => Takes::Any,
            Ok(Endpoint::Collection) => Takes::UpTo(collection::MAX_JSON),
            _ => Takes::Nothing,
        }
    }

    fn run(&self, call: &Call, execution: &Arc<Execution>) -> Result<Outcome, Error> {
        let endpoint = Endpoint::of(call.request.uri().path())?;
        let method = call.request.method();
        let allow = endpoint.allow();
        if method == Method::OPTIONS {
            return Ok(options(allow.unwrap_or(ANY_METHOD)).into());
        }
        if let Some(allow) = allow
            && !allow.split(',').any(|allowed| allowed.trim_start() == method.as_str())
        {
            return Err(Error::MethodNotSupported(allow));
        }
        let query = call.request.uri().query().unwrap_or_default();
        match endpoint {
            Endpoint::Job(rest) => {
                job::answer(&self.jobs, call, rest, execution.memory()).map(Outcome::Answer)
            }
            Endpoint::Server => Ok(options(ANY_METHOD).into()),
            Endpoint::Version => Ok(admin::version(query, &self.jobs).into()),
            Endpoint::Time => Ok(admin::time().into()),
            Endpoint::Sleep => admin::sleep(query, self.time_limit),
            Endpoint::Echo => echo::echo(call, execution.memory()).map(Into::into),
            Endpoint::Availability => admin::availability(&self.jobs).map(Into::into),
            Endpoint::Description => {
                let description = self.description.get_or_init(|| openapi::describe(self.access));
                Ok(json(description.clone()).into())
            }
            Endpoint::Collection => collection::answer(method, call.request.body()).map(Into::into),
        }
    }
}

/// A `200` with JSON.
fn json(body: impl Into<Bytes>) -> Response<Bytes> {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

/// A `200` with text, or with nothing.
fn text(body: impl Into<Bytes>) -> Response<Bytes> {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(CONTENT_TYPE, TEXT);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_endpoints() {
        for (path, endpoint) in [
            ("/_api/job", Some(Endpoint::Job(""))),
            ("/_api/job/", Some(Endpoint::Job("/"))),
            ("/_admin/job/12/cancel", Some(Endpoint::Job("/12/cancel"))),
            ("/_api/jobs", None),
            ("/_api/version/", Some(Endpoint::Version)),
            ("/_admin/version", Some(Endpoint::Version)),
            ("/_admin/server/availability", Some(Endpoint::Availability)),
            ("/_api/", None),
            ("/_admin/unknown", None),
        ] {
            assert_eq!(Endpoint::of(path).ok(), endpoint, "{path}");
        }
    }
}
