//! The route table: which handler stands behind which path prefix, and the one way to run it.
//!
//! Owns the handlers. Every request, deferred or not, built-in or not, goes through
//! [`Routes::run`]. Invariants: the longest matching prefix wins; a prefix ends at a segment
//! boundary; a handler's panic becomes a `500` and goes no further.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{Method, Request, Uri};

use super::retry::Retry;
use super::{Handler, Outcome};
use crate::call::{Answer, Call, Verbatim};
use crate::error::Error;
use crate::job::execution::Execution;
use crate::queue::Gate;
use crate::store::StartRecord;

/// How many local redirects are followed for one request: as many as Apache follows.
const MAX_LOCAL_REDIRECTS: usize = 10;

/// A route's place in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteIndex(pub usize);

/// Which web pages may send requests to a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// Those of this server, and of the origins that are allowed.
    Own,
    /// All: `pages=any`.
    Any,
}

/// A path prefix and what stands behind it.
pub struct Route {
    /// The path prefix, beginning with a slash.
    pub prefix: String,
    /// Where its jobs wait while as many as may run at once do; `None` without such a limit.
    pub gate: Option<Arc<Gate>>,
    /// How long a request of this route may take.
    pub time_limit: Duration,
    /// What has to be known of its jobs after a crash.
    pub start_record: StartRecord,
    /// Whether its jobs are tried again.
    pub retry: Option<Retry>,
    /// Which web pages may send requests to it.
    pub pages: Pages,
    /// What runs its requests.
    pub handler: Box<dyn Handler>,
}

impl Route {
    /// Whether a job that ran when the process ended is to be run again.
    pub fn runs_again(&self) -> bool {
        self.start_record == StartRecord::Never
    }
}

/// The route table.
pub struct Routes(Vec<Route>);

impl Routes {
    /// A table of these routes.
    pub fn new(mut routes: Vec<Route>) -> Self {
        routes.sort_by_key(|route| std::cmp::Reverse(route.prefix.len()));
        Self(routes)
    }

    /// The route with the longest prefix of `path`.
    ///
    /// # Errors
    /// [`Error::NotFound`] where there is none.
    pub fn find(&self, path: &str) -> Result<RouteIndex, Error> {
        let found = self.0.iter().position(|route| matches(&route.prefix, path));
        found.map(RouteIndex).ok_or_else(|| Error::NotFound("no route has this path".into()))
    }

    /// The route at this place.
    pub fn get(&self, index: RouteIndex) -> &Route {
        &self.0[index.0]
    }

    /// Whether any route tries its jobs again.
    pub fn has_retry(&self) -> bool {
        self.0.iter().any(|route| route.retry.is_some())
    }

    /// Runs a request by the handler of its route, following local redirects.
    pub fn run(&self, index: RouteIndex, call: &Call, execution: &Execution) -> Answer {
        let run = || self.follow(index, call, execution);
        let result = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
            log::error!("route={} its handler panicked", self.get(index).prefix);
            Err(Error::Internal("the handler panicked".into()))
        });
        result.unwrap_or_else(|error| error.response().into())
    }

    fn follow(
        &self,
        mut index: RouteIndex,
        call: &Call,
        execution: &Execution,
    ) -> Result<Answer, Error> {
        let mut redirect = None;
        for _ in 0..=MAX_LOCAL_REDIRECTS {
            let call = redirect.as_ref().unwrap_or(call);
            let handler = &self.get(index).handler;
            match handler.run(call, execution)? {
                Outcome::Answer(mut answer) => {
                    if handler.relays_fields() {
                        answer.response.extensions_mut().insert(Verbatim);
                    }
                    return Ok(answer);
                }
                Outcome::LocalRedirect(target) => {
                    let next = redirected(call, target);
                    index = self.find(next.request.uri().path())?;
                    redirect = Some(next);
                }
            }
        }
        Err(Error::BadGateway("too many local redirects".into()))
    }
}

/// The request that a local redirect stands for: a GET of the new target with the same fields, but
/// for those that describe the content.
fn redirected(call: &Call, target: PathAndQuery) -> Call {
    let old = &call.request;
    let mut request = Request::new(Bytes::new());
    *request.method_mut() = if old.method() == Method::HEAD { Method::HEAD } else { Method::GET };
    *request.uri_mut() = Uri::from(target);
    *request.version_mut() = old.version();
    *request.headers_mut() = old.headers().clone();
    for name in [http::header::CONTENT_TYPE, http::header::CONTENT_LENGTH] {
        request.headers_mut().remove(name);
    }
    let (connection, owner, auth_type) = (call.connection, call.owner.clone(), call.auth_type);
    Call { request, connection, owner, auth_type }
}

/// Whether `prefix` covers `path`: up to a slash, or the whole of it.
fn matches(prefix: &str, path: &str) -> bool {
    path.strip_prefix(prefix)
        .is_some_and(|rest| prefix.ends_with('/') || rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_at_a_segment_boundary() {
        for (prefix, path, covers) in [
            ("/run/", "/run/x", true),
            ("/run/", "/run", false),
            ("/run", "/run", true),
            ("/run", "/run/x", true),
            ("/run", "/runner", false),
            ("/", "/anything", true),
        ] {
            assert_eq!(matches(prefix, path), covers, "{prefix} {path}");
        }
    }
}
