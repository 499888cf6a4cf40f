//! The route table: the handler of each path prefix, and the one way to run it.
//!
//! Owns the handlers. Every request, deferred or not, built-in or not, goes through
//! [`Routes::run`]. Waits for nothing: a local redirect goes back to the caller, which leaves one
//! lane before it enters the next. Invariants: the longest matching prefix wins; a prefix ends at a segment
//! boundary; a handler's panic becomes a `500` and goes no further.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::ALLOW;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, Request, Uri};

use crate::config::Pages;
use crate::content::Content;
use crate::deferral;
use crate::error::{Error, allow};
use crate::exchange::{Answer, Call, Guard};
use crate::handler::{Handler, Outcome};
use crate::job::RouteIndex;
use crate::job::attempt::{Hop, Redirected};
use crate::job::execution::{Execution, OnLeave};
use crate::job::request_line::RequestLine;
use crate::methods::AllowedMethods;
use crate::retry::Retry;
use crate::signature::Signature;
use crate::sink::Sink;

/// How many local redirects are followed for one request: as many as Apache follows.
const MAX_LOCAL_REDIRECTS: usize = 10;

/// A path prefix and its handler.
pub struct Route {
    /// The path prefix, beginning with a slash.
    pub prefix: String,
    /// How many of its synchronous callers run at once, with its jobs if they share a limit; `None` without one.
    pub callers: Option<usize>,
    /// What happens to a synchronous run whose client leaves.
    pub on_leave: OnLeave,
    /// How long a request of this route may take.
    pub time_limit: Duration,
    /// Whether its jobs are tried again.
    pub retry: Option<Retry>,
    /// Which web pages may send requests to it.
    pub pages: Pages,
    /// The methods that it takes.
    pub methods: AllowedMethods,
    /// How its requests are deferred if their client does not say so.
    pub deferral: deferral::OfRoute,
    /// What its requests must be signed with; `None`: they need not be.
    pub signature: Option<Signature>,
    /// What runs its requests.
    pub handler: Box<dyn Handler>,
}

impl Route {
    /// Returns what the record of a job keeps of its request, which is one of this route.
    pub fn line(&self, request: &Request<Content>) -> RequestLine {
        let target = request.uri();
        let target = if self.hides_query() { target.path() } else { shown(target) };
        let line = RequestLine::new(request.method(), target, &self.prefix);
        // One that is signed cannot be signed anew.
        let is_alone = request.body().is_empty() && self.signature.is_none();
        if is_alone { line.repeatable(target) } else { line }
    }

    /// Returns whether the queries of its requests are kept out of logs and records: senders of signed requests have
    /// tokens in them.
    pub const fn hides_query(&self) -> bool {
        self.signature.is_some()
    }
}

/// Returns what of a target may be shown in records.
fn shown(target: &Uri) -> &str {
    target.path_and_query().map_or_else(|| target.path(), PathAndQuery::as_str)
}

/// The prefixes of all routes, by which a path finds its route.
pub struct Prefixes(Vec<(String, RouteIndex)>);

impl Prefixes {
    /// Returns the prefixes of routes in the order of their indexes.
    pub fn new<'a>(prefixes: impl IntoIterator<Item = &'a str>) -> Self {
        let indexed = prefixes.into_iter().enumerate();
        let mut prefixes: Vec<_> =
            indexed.map(|(n, prefix)| (prefix.to_owned(), RouteIndex(n))).collect();
        prefixes.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        Self(prefixes)
    }

    /// Returns the route with the longest prefix of `path`.
    ///
    /// # Errors
    /// [`Error::NotFound`] if no route has this path.
    pub fn find(&self, path: &str) -> Result<RouteIndex, Error> {
        let found = self.0.iter().find(|(prefix, _)| matches(prefix, path));
        found
            .map(|(_, route)| *route)
            .ok_or_else(|| Error::NotFound("no route has this path".into()))
    }
}

/// The route table.
pub struct Routes {
    routes: Vec<Route>,
    prefixes: Prefixes,
}

impl Routes {
    /// A table of these routes, at their indexes.
    pub fn new(routes: Vec<Route>) -> Self {
        let prefixes = Prefixes::new(routes.iter().map(|route| route.prefix.as_str()));
        Self { routes, prefixes }
    }

    /// Returns the route with the longest prefix of `path`.
    ///
    /// # Errors
    /// [`Error::NotFound`] if no route has this path.
    pub fn find(&self, path: &str) -> Result<RouteIndex, Error> {
        self.prefixes.find(path)
    }

    /// The route at this place.
    pub fn get(&self, index: RouteIndex) -> &Route {
        &self.routes[index.0]
    }

    /// Has every route read again what can change while deferd runs, and tells the log what cannot be read: that
    /// stays as it was.
    pub fn reload(&self) {
        for Route { prefix, handler, .. } in &self.routes {
            if let Err(what) = handler.reload() {
                log::error!(
                    "route={prefix} cannot reload its files, keeping the current ones: {what}"
                );
            }
        }
    }

    /// Returns all routes, in the order of their indexes.
    pub fn iter(&self) -> impl Iterator<Item = &Route> {
        self.routes.iter()
    }

    /// Refuses a request that can never run.
    ///
    /// # Errors
    /// [`Error::MethodNotSupported`], and those of the handler.
    pub fn check(&self, index: RouteIndex, request: &Parts) -> Result<(), Error> {
        let route = self.get(index);
        route.methods.check(&request.method)?;
        route.handler.check(request)
    }

    /// Runs a request by the handler of its route, which may write the response into `sink`.
    ///
    /// # Errors
    /// Those of the handler.
    pub fn run(
        &self,
        index: RouteIndex,
        call: &Call,
        execution: &Arc<Execution>,
        sink: &mut dyn Sink,
    ) -> Result<Outcome, Error> {
        let Route { prefix, handler, methods, .. } = self.get(index);
        let run = || handler.run(call, execution, sink);
        let mut outcome = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
            log::error!("route={prefix} its handler panicked");
            Err(Error::Internal("the handler panicked".into()))
        });
        if let Ok(Outcome::Answer(answer)) = &mut outcome {
            if handler.relays_fields() {
                answer.guard = Guard::Verbatim;
            } else if let AllowedMethods::Listed(_) = methods
                && call.request.method() == Method::OPTIONS
            {
                answer.response.headers_mut().insert(ALLOW, allow(&methods.allow()));
            }
        }
        outcome
    }

    /// Returns the request of a local redirect, checked like any other of the same owner.
    ///
    /// # Errors
    /// [`Error::BadGateway`] if this redirect is one too many; [`Error::Forbidden`] if the target wants to be signed
    /// with another secret; that of [`check`](Self::check), if it can never run.
    pub fn redirect(&self, from: &Hop<'_>, target: PathAndQuery) -> Result<Redirected, Error> {
        let count = from.count + 1;
        if count > MAX_LOCAL_REDIRECTS {
            let what = format!("more than {MAX_LOCAL_REDIRECTS} local redirects");
            return Err(Error::BadGateway(what.into()));
        }
        let head = redirected(from.call, target);
        let route = self.find(head.uri.path())?;
        self.check_secret(from.call, route)?;
        self.check(route, &head)?;
        let Call { connection, owner, auth_type, .. } = from.call;
        let request = Request::from_parts(head, Content::new());
        let call =
            Call { request, connection: *connection, owner: owner.clone(), auth_type: *auth_type };
        Ok(Redirected { call, route, count, deadline: from.deadline })
    }
}

impl Routes {
    /// Checks that a redirected request was signed with the secret of its target, if that has one.
    fn check_secret(&self, from: &Call, target: RouteIndex) -> Result<(), Error> {
        let Some(wanted) = &self.get(target).signature else { return Ok(()) };
        let source = self.get(self.find(from.request.uri().path())?);
        match &source.signature {
            Some(signature) if signature.has_secret_of(wanted) => Ok(()),
            _ => Err(Error::Forbidden("a local redirect to a route with another secret".into())),
        }
    }
}

/// Returns which answer a delay ends with, and when: past the deadline of a redirect it is `504`.
pub fn delayed_until(
    answer: Answer,
    span: Duration,
    deadline: Option<Instant>,
) -> (Answer, Instant) {
    let at = Instant::now() + span;
    match deadline {
        Some(deadline) if deadline < at => (too_late().response().into(), deadline),
        _ => (answer, at),
    }
}

/// Returns the error of a redirected request that is not answered by its deadline.
pub fn too_late() -> Error {
    let what =
        "a local redirect was not answered within the timeout= of the route of the first request";
    Error::GatewayTimeout(what.into())
}

/// The head of the request of a local redirect: a GET of the new target with the same fields, without those that
/// describe the content.
fn redirected(call: &Call, target: PathAndQuery) -> Parts {
    let old = &call.request;
    let mut head = Request::new(()).into_parts().0;
    head.method = if old.method() == Method::HEAD { Method::HEAD } else { Method::GET };
    head.uri = Uri::from(target);
    head.version = old.version();
    head.headers = old.headers().clone();
    for name in [http::header::CONTENT_TYPE, http::header::CONTENT_LENGTH] {
        head.headers.remove(name);
    }
    head
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
