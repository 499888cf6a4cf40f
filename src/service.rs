//! Between the fronts and the rest: checks a request, which a [`Session`] then defers or runs.
//!
//! Owns the order of the checks, and the reading of the database prefix. `deferral` reads how a client wants to be
//! answered. Does no I/O of its own. Invariants: [`Session::plan`] makes every check that needs no content, before the
//! content is read; a request that can never run never gets a `202`.

mod session;

pub use session::Session;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use http::header::{AUTHORIZATION, CONTENT_LENGTH};
use http::request::Parts;
use http::uri::PathAndQuery;

use crate::api::{self, Question};
use crate::auth::Auth;
use crate::callback_url::CallbackUrl;
use crate::clock;
use crate::config::Pages;
use crate::content;
use crate::cors::Sharing;
use crate::cross_origin::{Policy, Provenance};
use crate::deferral::{self, Mode, Terms};
use crate::error::Error;
use crate::exchange::{Connection, Owner, Peer};
use crate::job::RouteIndex;
use crate::jobs::Jobs;
use crate::memory::{Allowance, Part};
use crate::metrics::Connections;
use crate::protocol::DATABASE;
use crate::routes::{Route, Routes};
use crate::signature::{Signature, Unsigned};

/// A request that passed every check that needs no content.
#[derive(Debug)]
pub struct Plan {
    route: RouteIndex,
    mode: Mode,
    /// The client's question about a job, whose end it may wait for.
    asked: Option<Question>,
    /// How long the client prefers to wait for the end of that job.
    wait: Option<Duration>,
    /// What the client asks for in addition to the job that it submits.
    terms: Terms,
    sender: Sender,
    /// The budget that the content is charged to until its signature is verified.
    unproven: Option<Allowance>,
}

/// What the checks know about the sender of a request.
#[derive(Clone, Debug)]
struct Sender {
    /// The user; anonymous until the sender is verified. A signature is verified last, with the content.
    owner: Owner,
    /// The scheme of its credentials: `Basic` or `Bearer`.
    auth_type: Option<&'static str>,
    /// The pages that may read the answer.
    sharing: Sharing,
}

impl Sender {
    /// Returns an unknown sender.
    const fn unknown() -> Self {
        Self { owner: Owner::anonymous(), auth_type: None, sharing: Sharing::Own }
    }
}

/// The service behind the fronts; each thread uses it through a [`Session`].
pub struct Service {
    routes: Arc<Routes>,
    jobs: Arc<Jobs>,
    policy: Policy,
    /// `None`: no credentials are needed.
    auth: Option<Auth>,
    /// `--max-wait`.
    max_wait: Duration,
    /// The URLs that callbacks may go to.
    callbacks: Arc<[CallbackUrl]>,
    /// The share of the memory for content whose senders are not verified yet.
    unproven: Allowance,
}

impl Service {
    /// Returns the service over these routes and jobs. `auth` and `policy` check clients; clients may wait for a job
    /// for `max_wait`, and name URLs that `callbacks` cover.
    pub fn new(
        routes: Arc<Routes>,
        jobs: Arc<Jobs>,
        auth: Option<Auth>,
        policy: Policy,
        max_wait: Duration,
        callbacks: Arc<[CallbackUrl]>,
    ) -> Self {
        let unproven = jobs.memory.share(Part::Quarter);
        Self { routes, jobs, policy, auth, max_wait, callbacks, unproven }
    }

    /// Reads the variables of scripts, the users and the secrets of routes again, and logs the outcome.
    pub fn reload(&self) {
        self.routes.reload();
        self.reload_secrets();
        let Some(auth) = &self.auth else { return };
        match auth.reload() {
            Ok(users) if auth.is_copy() => log::info!(
                "the auth file is read again: {users} users; systemd renews this copy at a restart only"
            ),
            Ok(users) => log::info!("the auth file is read again: {users} users"),
            Err(what) => {
                log::error!("cannot reload the auth file, keeping the current users: {what}")
            }
        }
    }

    fn reload_secrets(&self) {
        for Route { prefix, signature, .. } in self.routes.iter() {
            match signature.as_ref().map(Signature::reload) {
                Some(Ok(count)) => log::info!("route={prefix} its secrets are read again: {count}"),
                Some(Err(what)) => {
                    log::error!(
                        "route={prefix} cannot reload its secrets, keeping the current ones: {what}"
                    );
                }
                None => {}
            }
        }
    }

    /// Returns a session for the thread that serves this client, whose memory is charged to its address; `None` if the
    /// thread serves many clients in turn.
    pub fn session(&self, peer: Arc<dyn Peer>, address: Option<IpAddr>) -> Session<'_> {
        let (memory, connections) = match address {
            Some(address) => (self.jobs.memory.peer(address), Connections::One),
            None => (self.jobs.memory.allowance(), Connections::Many),
        };
        Session::begin(self, peer, memory, connections)
    }

    /// Checks the host name and the page of a request, before all other checks.
    fn admit(&self, request: &Parts, connection: &Connection) -> Result<Sharing, Error> {
        let seen = Provenance::of(request, connection);
        self.policy.check_host(&seen).or_else(|error| {
            // A load balancer may use any host name.
            let exempt = without_database(&request.uri)
                .is_ok_and(|inner| is_open(request, inner.as_ref().unwrap_or(&request.uri)));
            if exempt { Ok(()) } else { Err(error) }
        })?;
        self.policy.check_page(&seen).or_else(|error| {
            let lifted = self.takes_any_page(&request.uri)
                || (seen.is_navigation() && leads_to_page(&request.uri));
            if lifted { Ok(self.policy.unshared(&seen)) } else { Err(error) }
        })
    }

    /// Returns whether the route of this target accepts requests from every page.
    fn takes_any_page(&self, target: &Uri) -> bool {
        self.route_of(target).is_some_and(|route| route.pages == Pages::Any)
    }

    /// Returns the route of a target as the client sent it.
    fn route_of(&self, target: &Uri) -> Option<&Route> {
        let inner = without_database(target).ok()?;
        let route = self.routes.find(inner.as_ref().unwrap_or(target).path()).ok()?;
        Some(self.routes.get(route))
    }

    /// Makes the checks after [`admit`](Self::admit), and completes the sender.
    fn checked(&self, request: &mut Parts, sender: &mut Sender) -> Result<Plan, Error> {
        let located = self.locate(request);
        self.identify(request, located.as_ref().ok().copied(), sender)?;
        let index = located?;
        let route = self.routes.get(index);
        let (mode, preferences) = Mode::of(request, route.deferral.keep);
        let terms = Terms { content: preferences.content, ..Terms::default() };
        let terms = match &route.signature {
            None => self.settle(index, mode, request, terms)?,
            Some(signature) => {
                let checked = signature.check_fields(&request.headers, clock::now().stamp);
                checked.map_err(|what| unsigned(route, what))?;
                terms
            }
        };
        let asked = match mode {
            Mode::Synchronous => api::question(&request.method, request.uri.path()),
            _ => None,
        };
        let wait = preferences.wait.filter(|_| matches!(asked, Some(Question::End(_))));
        let sender = sender.clone();
        Ok(Plan { route: index, mode, asked, wait, terms, sender, unproven: None })
    }

    /// Removes the database prefix from the target and applies an override of the method; finds the route.
    fn locate(&self, request: &mut Parts) -> Result<RouteIndex, Error> {
        if let Some(uri) = without_database(&request.uri)? {
            request.uri = uri;
        }
        deferral::override_method(request)?;
        self.routes.find(request.uri.path())
    }

    /// Finds the user who sends a request. A route with a signature does not identify a user.
    fn identify(
        &self,
        request: &mut Parts,
        route: Option<RouteIndex>,
        sender: &mut Sender,
    ) -> Result<(), Error> {
        let Some(auth) = &self.auth else { return Ok(()) };
        let is_signed = route.is_some_and(|route| self.routes.get(route).signature.is_some());
        if !is_signed {
            if is_open(request, &request.uri) {
                // A load balancer asks this, and has no credentials.
                return Ok(());
            }
            let caller = auth.authenticate(&request.headers)?;
            (sender.owner, sender.auth_type) = (caller.owner, Some(caller.auth_type));
        }
        // The credentials are for deferd alone: no handler sees them, and no disk stores them.
        request.headers.remove(AUTHORIZATION);
        Ok(())
    }

    /// Makes the last checks, once the owner of the request is known, and completes what the client asks for in
    /// addition to the job.
    fn settle(
        &self,
        index: RouteIndex,
        mode: Mode,
        request: &mut Parts,
        terms: Terms,
    ) -> Result<Terms, Error> {
        self.routes.check(index, request)?;
        if mode == Mode::Synchronous {
            return Ok(terms);
        }
        let Route { handler, deferral: of_route, .. } = self.routes.get(index);
        handler.check_deferred(request)?;
        let callback = deferral::take_callback(&mut request.headers, &self.callbacks)?;
        let key = deferral::idempotency_key(request, of_route.key_field.as_ref())?;
        // A request with a key may be known already; then it needs no room.
        if key.is_none() {
            self.jobs.check(announced_length(request))?;
        }
        Ok(Terms { key, callback, ..terms })
    }

    /// Checks the signature of a request if its route requires one, and then makes the checks that had to wait for
    /// that.
    fn check_content(
        &self,
        plan: &mut Plan,
        head: &mut Parts,
        content: &content::Content,
    ) -> Result<(), Error> {
        let route = self.routes.get(plan.route);
        let Some(signature) = &route.signature else { return Ok(()) };
        let verified = signature.verify(&mut head.headers, content, clock::now().stamp);
        let verified = verified.map_err(|error| Error::unreadable(&error))?;
        verified.map_err(|what| unsigned(route, what))?;
        plan.sender.owner = signature.owner.clone();
        if let Some(memory) = plan.unproven.take() {
            memory.prove();
        }
        let terms = std::mem::take(&mut plan.terms);
        plan.terms = self.settle(plan.route, plan.mode, head, terms)?;
        Ok(())
    }
}

/// Returns the announced length of the content; zero if it is not announced.
fn announced_length(request: &Parts) -> usize {
    let value = request.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}

/// Returns whether this request for an endpoint of deferd needs no credentials. If it were deferred, it would need an
/// owner.
fn is_open(request: &Parts, target: &Uri) -> bool {
    api::is_open(target.path()) && Mode::of(request, None).0 == Mode::Synchronous
}

/// Returns whether this target is a page of deferd.
fn leads_to_page(target: &Uri) -> bool {
    without_database(target)
        .is_ok_and(|inner| api::is_page(inner.as_ref().unwrap_or(target).path()))
}

/// Returns the refusal of a request that is not signed as its route requires. Only the log has the reason.
fn unsigned(route: &Route, what: Unsigned) -> Error {
    log::info!("route={} a request is not signed: {what}", route.prefix);
    Error::NotAuthorized
}

/// Returns the target without `/_db/_system`; `None` if it has no database prefix.
fn without_database(uri: &Uri) -> Result<Option<Uri>, Error> {
    let Some(rest) = uri.path().strip_prefix(DATABASE) else { return Ok(None) };
    let (name, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if name != "_system" {
        return Err(Error::UnknownDatabase);
    }
    let path = if path.is_empty() { "/" } else { path };
    let target = match uri.query() {
        Some(query) => PathAndQuery::try_from(format!("{path}?{query}")),
        None => PathAndQuery::try_from(path),
    };
    target.map(|target| Some(Uri::from(target))).map_err(|_| Error::bad_parameter(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_database_prefix_is_taken_off() {
        for (target, rest) in [
            ("/_db/_system/_api/job/7?count=1", Ok(Some("/_api/job/7?count=1"))),
            ("/_db/_system", Ok(Some("/"))),
            ("/_db/other/_api/version", Err(Error::UnknownDatabase)),
            ("/_db/", Err(Error::UnknownDatabase)),
            ("/_dbx/y", Ok(None)),
        ] {
            let found = without_database(&target.parse().unwrap());
            assert_eq!(found, rest.map(|rest| rest.map(|r| r.parse().unwrap())), "{target}");
        }
    }
}
