//! Between the fronts and the rest: checks a request, then defers it or runs it.
//!
//! Owns the order of the checks, the reading of the database prefix, and the access log; how a client
//! says what it wants is `dialect`'s. Does no I/O of its own. A client that prefers to wait for a job does
//! so here, in its connection's thread. Invariants: every check that needs no content is made by
//! [`Session::plan`], before the content is read; what can never run never gets a `202`.

use std::cell::Cell;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Response, StatusCode, Uri};

use crate::access_log::AccessLine;
use crate::api::{self, ASK_AGAIN, Question, id_value};
use crate::auth::Auth;
use crate::clock;
use crate::config::Pages;
use crate::cors::{self, Sharing};
use crate::cross_origin::{Policy, Provenance};
use crate::deferral::{self, Mode};
use crate::error::Error;
use crate::exchange::{Answer, Call, Connection, Guard, Owner, Peer, empty};
use crate::handler::{Outcome, Takes};
use crate::job::RouteIndex;
use crate::job::attempt::{Hop, Redirected};
use crate::job::execution::{OnLeave, Run};
use crate::job::{JobId, JobKey, Keep};
use crate::jobs::{Jobs, Place};
use crate::memory::Allowance;
use crate::metrics::{Connections, SessionMetrics};
use crate::outgoing::{Additions, Outgoing, Preference, Produced, Reply};
use crate::prefer::Content;
use crate::protocol::{ASYNC, ASYNC_ID, DATABASE, JOB, PREFERENCE_APPLIED};
use crate::routes::{Route, Routes, delayed_until};
use crate::signature::{Signature, Unsigned};
use crate::sink::Sink;
use crate::store::{Lookup, Submission};

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// How long a client that asks again and again for a pending job waits each time. Without it such clients
/// take the processors from the work that they ask for; with more of it they would learn late of progress.
const ASKING_AGAIN: Duration = Duration::from_millis(10);

/// A request that passed every check that needs no content.
#[derive(Debug)]
pub struct Plan {
    route: RouteIndex,
    mode: Mode,
    /// By what the client names the job.
    key: Option<Box<str>>,
    /// What the client asks of a job while it waits for the answer.
    asked: Option<Question>,
    /// How long the client prefers to wait for the end of that job.
    wait: Option<Duration>,
    /// What the client prefers to see of the job that it makes.
    content: Option<Content>,
    owner: Owner,
    auth_type: Option<&'static str>,
    /// The pages that may read the answer.
    sharing: Sharing,
}

impl Plan {
    /// The answer if the content is refused.
    pub fn refusal(&self, error: &Error) -> Response<Bytes> {
        let mut response = error.response();
        cors::disclose(&mut response, self.sharing.clone());
        response
    }
}

/// What the fronts talk to, each thread of theirs by a [`Session`].
pub struct Service {
    routes: Arc<Routes>,
    jobs: Arc<Jobs>,
    policy: Policy,
    /// `None`: everybody is welcome.
    auth: Option<Auth>,
    /// `--max-wait`.
    max_wait: Duration,
}

impl Service {
    /// The service over these routes and jobs, for whom `auth` and `policy` let in. Clients may wait for
    /// a job for `max_wait`.
    pub fn new(
        routes: Arc<Routes>,
        jobs: Arc<Jobs>,
        auth: Option<Auth>,
        policy: Policy,
        max_wait: Duration,
    ) -> Self {
        Self { routes, jobs, policy, auth, max_wait }
    }

    /// Reads the variables of scripts, the users and the secrets of routes again, and tells the log.
    pub fn reload(&self) {
        self.routes.reload();
        self.reload_secrets();
        let Some(auth) = &self.auth else { return };
        match auth.reload() {
            Ok(users) if auth.is_copy() => log::info!(
                "the auth file is read again: {users} users; systemd renews this copy at a restart only"
            ),
            Ok(users) => log::info!("the auth file is read again: {users} users"),
            Err(what) => log::error!("the auth file stays as it was read before: {what}"),
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

    /// Returns a session for the thread that serves this client, whose memory is charged to its address;
    /// `None` if the thread serves many clients by turns.
    pub fn session(&self, peer: Arc<dyn Peer>, address: Option<IpAddr>) -> Session<'_> {
        let (memory, clients) = match address {
            Some(address) => (self.jobs.memory.peer(address), Clients::One),
            None => (self.jobs.memory.allowance(), Clients::Many),
        };
        let line = self.jobs.executions.begin(Arc::clone(&peer), memory);
        let metrics = self.jobs.metrics.begin_session(match clients {
            Clients::One => Connections::One,
            Clients::Many => Connections::Many,
        });
        Session {
            service: self,
            peer,
            clients,
            last: Cell::new(None),
            line,
            metrics,
            began: Cell::new(Instant::now()),
        }
    }

    /// Checks under which name and from which page a request comes, before anything else of it counts.
    fn admit(&self, request: &Parts, connection: &Connection) -> Result<Sharing, Error> {
        let seen = Provenance::of(request, connection);
        self.policy.check_host(&seen).or_else(|error| {
            // A load balancer asks under whatever name it knows.
            let exempt = without_database(&request.uri)
                .is_ok_and(|inner| is_open(request, inner.as_ref().unwrap_or(&request.uri)));
            if exempt { Ok(()) } else { Err(error) }
        })?;
        self.policy.check_page(&seen).or_else(|error| {
            let lifted = self.takes_any_page(&request.uri);
            if lifted { Ok(self.policy.unshared(&seen)) } else { Err(error) }
        })
    }

    /// Whether the route of this target takes requests from every page.
    fn takes_any_page(&self, target: &Uri) -> bool {
        self.route_of(target).is_some_and(|route| route.pages == Pages::Any)
    }

    /// Returns the route of a target as it was sent.
    fn route_of(&self, target: &Uri) -> Option<&Route> {
        let inner = without_database(target).ok()?;
        let route = self.routes.find(inner.as_ref().unwrap_or(target).path()).ok()?;
        Some(self.routes.get(route))
    }

    fn checked(&self, request: &mut Parts, sharing: Sharing) -> Result<Plan, Error> {
        let located = self.locate(request);
        let (owner, auth_type) = self.identify(request, located.as_ref().ok().copied())?;
        let index = located?;
        let route = self.routes.get(index);
        let (mode, preferences) = Mode::of(request, route.deferral.keep);
        let key = match &route.signature {
            None => self.settle(index, mode, request)?,
            Some(signature) => {
                let checked = signature.check_fields(&request.headers, clock::now().stamp);
                checked.map_err(|what| unsigned(route, what))?;
                None
            }
        };
        let asked = match mode {
            Mode::Synchronous => api::question(&request.method, request.uri.path()),
            _ => None,
        };
        let wait = preferences.wait.filter(|_| matches!(asked, Some(Question::End(_))));
        let content = preferences.content;
        Ok(Plan { route: index, mode, key, asked, wait, content, owner, auth_type, sharing })
    }

    /// Rewrites the target to the one without database prefix, and the method to the one that it stands for; finds
    /// the route.
    fn locate(&self, request: &mut Parts) -> Result<RouteIndex, Error> {
        if let Some(uri) = without_database(&request.uri)? {
            request.uri = uri;
        }
        deferral::override_method(request)?;
        self.routes.find(request.uri.path())
    }

    /// Returns whose request it is, and how its client has proved that. A route with a signature asks for no user.
    fn identify(
        &self,
        request: &mut Parts,
        route: Option<RouteIndex>,
    ) -> Result<(Owner, Option<&'static str>), Error> {
        let signature = route.and_then(|route| self.routes.get(route).signature.as_ref());
        let identity = match (&self.auth, signature) {
            (None, None) => return Ok((Owner::anonymous(), None)),
            // A load balancer asks this, and has no credentials.
            (Some(_), None) if is_open(request, &request.uri) => {
                return Ok((Owner::anonymous(), None));
            }
            (Some(auth), None) => {
                let caller = auth.authenticate(&request.headers)?;
                (caller.owner, Some(caller.auth_type))
            }
            (_, Some(signature)) => (signature.owner.clone(), None),
        };
        if self.auth.is_some() {
            // They are deferd's: no handler and no disk has any business with them.
            request.headers.remove(AUTHORIZATION);
        }
        Ok(identity)
    }

    /// Makes the last checks, once it is known whose request it is. Returns by what the client names the job.
    fn settle(
        &self,
        index: RouteIndex,
        mode: Mode,
        request: &Parts,
    ) -> Result<Option<Box<str>>, Error> {
        self.routes.check(index, request)?;
        if mode == Mode::Synchronous {
            return Ok(None);
        }
        let field = self.routes.get(index).deferral.key_field.as_ref();
        let key = deferral::idempotency_key(request, field)?;
        // What has a key may be known already, and then needs no room.
        if key.is_none() {
            self.jobs.check(announced_length(request))?;
        }
        Ok(key)
    }

    /// Checks the signature of a request whose route wants one, and then what had to wait for that.
    fn check_content(
        &self,
        plan: &mut Plan,
        head: &mut Parts,
        content: &[u8],
    ) -> Result<(), Error> {
        let route = self.routes.get(plan.route);
        let Some(signature) = &route.signature else { return Ok(()) };
        let verified = signature.verify(&mut head.headers, content, clock::now().stamp);
        verified.map_err(|what| unsigned(route, what))?;
        plan.key = self.settle(plan.route, plan.mode, head)?;
        Ok(())
    }

    fn submit(
        &self,
        route: RouteIndex,
        call: Call,
        keep: Keep,
        key: Option<Box<str>>,
    ) -> Result<JobKey, Error> {
        let owner = call.owner.clone();
        let key = key.map(|key| deferral::keyed(key, &call.request, keep));
        let line = self.routes.get(route).line(&call.request);
        let submission = Submission { call, route, line, keep, key };
        let id = self.jobs.submit(submission)?;
        Ok(JobKey { owner, id })
    }

    /// The job's result, as the plain response that it is, if it is there within `span`; else the `202`
    /// (RFC 7240 section 4.3).
    fn answer_in_time(
        &self,
        route: RouteIndex,
        job: JobKey,
        span: Duration,
        content: Option<Content>,
        peer: &dyn Peer,
    ) -> Answer {
        if !span.is_zero() {
            self.jobs.wait(&job, span.min(self.max_wait), peer);
            // Without memory for it at this moment, the client gets the `202`.
            if let Lookup::Done((result, delivery)) = self.jobs.store.collect(&job) {
                let relays = self.routes.get(route).handler.relays_fields();
                let guard = if relays { Guard::Verbatim } else { Guard::Added };
                let (response, receipt) = (result.to_response(), self.jobs.receipt(job, delivery));
                return Answer { response, guard, receipt };
            }
        }
        let mut response = accepted(Some(job.id), content);
        let headers = response.headers_mut();
        let applied = match headers.get(PREFERENCE_APPLIED) {
            Some(_) => "respond-async, return=representation",
            None => "respond-async",
        };
        headers.insert(PREFERENCE_APPLIED, HeaderValue::from_static(applied));
        headers.insert(RETRY_AFTER, ASK_AGAIN);
        response.into()
    }
}

/// Whose requests a session has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clients {
    /// Those of one connection, in their order.
    One,
    /// Those of many connections, so that one request says nothing of the next.
    Many,
}

/// One thread's dealings with the service, one request after the other.
pub struct Session<'a> {
    service: &'a Service,
    /// The client that waits for its answers.
    peer: Arc<dyn Peer>,
    clients: Clients,
    /// The job that the last request asked for, if it was answered as one that may still be pending. Set by
    /// `call`, taken by each request.
    last: Cell<Option<JobKey>>,
    /// The line to the handlers that it runs while their clients wait.
    line: Run,
    /// When the request began that it has in hand.
    began: Cell<Instant>,
    /// Where it counts.
    metrics: SessionMetrics<'a>,
}

impl Session<'_> {
    /// Returns whose memory the content of its requests and answers is charged to.
    pub fn memory(&self) -> &Allowance {
        self.line.execution.memory()
    }

    /// Whether deferd is ending, so that connections should not be kept.
    pub fn is_draining(&self) -> bool {
        self.service.jobs.is_draining()
    }

    /// Checks a request by its head. Rewrites its method to the one that it stands for, and its target to
    /// the one without database prefix.
    ///
    /// # Errors
    /// The answer, if it needs no more of the request: it is refused, or a preflight.
    pub fn plan(&self, request: &mut Parts, connection: &Connection) -> Result<Plan, Box<Answer>> {
        let begin = AccessLine::begin();
        self.began.set(Instant::now());
        let (mut response, sharing) = match self.service.admit(request, connection) {
            Ok(sharing) => match cors::preflight(request, &sharing) {
                Some(response) => (response, sharing),
                None => match self.service.checked(request, sharing.clone()) {
                    Ok(plan) => {
                        warn_of_no_meaning(request, connection);
                        return Ok(plan);
                    }
                    Err(error) => (error.response(), sharing),
                },
            },
            Err(error) => (error.response(), Sharing::Own),
        };
        self.last.set(None);
        cors::disclose(&mut response, sharing);
        let mut line = AccessLine::of(&request.method, &request.uri, connection, begin);
        if self.service.route_of(&request.uri).is_some_and(Route::hides_query) {
            line = line.without_query();
        }
        line.write(&Owner::anonymous(), "-", &response, &*self.peer);
        self.metrics.observe(self.began.get().elapsed());
        Err(Box::new(response.into()))
    }

    /// Returns how much of the content of a request that has some is used.
    pub fn takes(&self, plan: &Plan, request: &Parts) -> Takes {
        match self.service.routes.get(plan.route).handler.takes(request) {
            // It waits with its request, and tells apart what is submitted under one key.
            Takes::Nothing if plan.mode != Mode::Synchronous => Takes::Any,
            takes => takes,
        }
    }

    /// Answers a whole request, which the client waits for. Its handler may write the response into `sink`.
    pub fn call(
        &self,
        mut plan: Plan,
        mut head: Parts,
        body: Bytes,
        connection: Connection,
        sink: &mut dyn Sink,
    ) -> Reply {
        let (service, peer) = (self.service, &*self.peer);
        let mut line = AccessLine::of(&head.method, &head.uri, &connection, AccessLine::begin());
        if service.routes.get(plan.route).hides_query() {
            line = line.without_query();
        }
        if let Err(error) = service.check_content(&mut plan, &mut head, &body) {
            let response = plan.refusal(&error);
            let prefix = &service.routes.get(plan.route).prefix;
            line.write(&Owner::anonymous(), prefix, &response, peer);
            self.metrics.observe(self.began.get().elapsed());
            return Reply::Answer(response.into());
        }
        let Plan { route, mode, key, asked, wait, content, owner, auth_type, sharing } = plan;
        let request = Request::from_parts(head, body);
        let call = Call { request, connection, owner: owner.clone(), auth_type };
        let preferred = wait.is_some() || matches!(mode, Mode::Preferred(_));
        let preference = if preferred { Preference::Stated } else { Preference::None };
        let additions = Additions { sharing, preference };
        let last = self.last.take();
        let asked = asked.map(|asked| (asked, JobKey { owner: owner.clone(), id: asked.job() }));
        if let Some((_, job)) = &asked {
            self.wait_for(job, wait, last.as_ref());
        }
        let mut outgoing = Outgoing::new(sink, &additions);
        let produced = self.run_or_defer(route, mode, call, key, content, &mut outgoing);
        let mut reply = outgoing.reply(produced, peer);
        if let Some((asked, job)) = asked
            && let Reply::Answer(answer) = &reply
            && asked.may_be_pending(answer.response.status())
        {
            self.last.set(Some(job));
        }
        if let Reply::Answer(answer) = &mut reply {
            additions.add(&mut answer.response);
        }
        line.write(&owner, &service.routes.get(route).prefix, outgoing.answered(&reply), peer);
        self.metrics.observe(self.began.get().elapsed());
        reply
    }

    /// Runs a request, or makes a job of it, as its mode says.
    fn run_or_defer(
        &self,
        route: RouteIndex,
        mode: Mode,
        call: Call,
        key: Option<Box<str>>,
        content: Option<Content>,
        sink: &mut dyn Sink,
    ) -> Result<Produced, Error> {
        let (service, peer) = (self.service, &*self.peer);
        let id_of = |job: JobKey, keep| (keep == Keep::Result).then_some(job.id);
        match mode {
            Mode::Synchronous if peer.was_seen_leaving() => Err(Error::Cancelled),
            Mode::Synchronous => self.run(route, &call, sink),
            Mode::Deferred(keep) => {
                let job = service.submit(route, call, keep, key)?;
                Ok(Produced::Answer(accepted(id_of(job, keep), content).into()))
            }
            Mode::DeferredByRoute(keep) => {
                let job = service.submit(route, call, keep, key)?;
                let mut response = accepted(id_of(job, keep), content);
                *response.status_mut() = service.routes.get(route).deferral.accepted;
                Ok(Produced::Answer(response.into()))
            }
            Mode::Preferred(span) => {
                let job = service.submit(route, call, Keep::Result, key)?;
                Ok(Produced::Answer(service.answer_in_time(route, job, span, content, peer)))
            }
        }
    }

    /// Waits for the job that the client asks for: as long as it prefers; at least for a moment if its last
    /// request asked for the same job, which was pending.
    fn wait_for(&self, job: &JobKey, wait: Option<Duration>, last: Option<&JobKey>) {
        let preferred = wait.unwrap_or_default().min(self.service.max_wait);
        let again = self.clients == Clients::One && last == Some(job);
        let span = if again { preferred.max(ASKING_AGAIN) } else { preferred };
        if !span.is_zero() {
            self.service.jobs.wait(job, span, &*self.peer);
        }
    }

    /// Runs a request while its client waits, in line with the others of its route, and follows its local
    /// redirects: each in the lane of its target, all within one deadline.
    fn run(&self, index: RouteIndex, call: &Call, sink: &mut dyn Sink) -> Result<Produced, Error> {
        let routes = &self.service.routes;
        let time_limit = routes.get(index).time_limit;
        let place = self.enter(index, Instant::now() + time_limit)?;
        let deadline = Instant::now() + time_limit;
        let mut outcome = self.run_in_lane(index, call, None, place, sink);
        let mut redirected: Option<Redirected> = None;
        loop {
            let target = match outcome? {
                Outcome::Answer(answer) => return Ok(Produced::Answer(answer)),
                Outcome::Written => return Ok(Produced::InSink),
                Outcome::Delayed(answer, span) => {
                    let bound = redirected.map(|redirected| redirected.deadline);
                    let (answer, at) = delayed_until(answer, span, bound);
                    let left = at.saturating_duration_since(Instant::now());
                    self.line.execution.sleep(left)?;
                    return Ok(Produced::Answer(answer));
                }
                Outcome::LocalRedirect(target) => target,
            };
            let first = Hop { call, count: 0, deadline };
            let next =
                routes.redirect(&redirected.as_ref().map_or(first, Redirected::hop), target)?;
            let place = self.enter(next.route, deadline)?;
            outcome = self.run_in_lane(next.route, &next.call, Some(deadline), place, sink);
            redirected = Some(next);
        }
    }

    /// Waits for this client's turn in the lane of a route.
    fn enter(&self, index: RouteIndex, deadline: Instant) -> Result<Option<Place>, Error> {
        let Service { routes, jobs, .. } = self.service;
        let limit = routes.get(index).callers;
        limit.map(|limit| jobs.enter(index, limit, deadline, &self.line.execution)).transpose()
    }

    /// Runs a request whose turn has come; its lane is left when it has ended, with all that it leaves behind.
    fn run_in_lane(
        &self,
        index: RouteIndex,
        call: &Call,
        deadline: Option<Instant>,
        place: Option<Place>,
        sink: &mut dyn Sink,
    ) -> Result<Outcome, Error> {
        let (routes, execution) = (&self.service.routes, &self.line.execution);
        execution.set_on_leave(routes.get(index).on_leave);
        if deadline.is_some() {
            execution.set_deadline(deadline);
        }
        let outcome = routes.run(index, call, execution, sink);
        if deadline.is_some() {
            execution.set_deadline(None);
        }
        execution.set_on_leave(OnLeave::Cancel);
        if let Some(lingering) = execution.take_lingering() {
            lingering.hold(place);
        }
        outcome
    }
}

/// The `202`, with the id where the result can be asked for; in its content too if the client prefers that
/// (RFC 7240 section 4.2), because it may not be able to read fields.
fn accepted(id: Option<JobId>, content: Option<Content>) -> Response<Bytes> {
    let mut response = empty(StatusCode::ACCEPTED);
    let Some(id) = id else {
        response.headers_mut().insert(CONTENT_TYPE, TEXT);
        return response;
    };
    if content == Some(Content::Representation) {
        *response.body_mut() = format!("{}\n", id.number()).into();
        let applied = HeaderValue::from_static("return=representation");
        response.headers_mut().insert(PREFERENCE_APPLIED, applied);
    }
    let location = [JOB, "/", itoa::Buffer::new().format(id.number())].concat();
    let location = HeaderValue::try_from(location);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, TEXT);
    headers.insert(LOCATION, location.expect("a path of digits is a field value"));
    headers.insert(ASYNC_ID, id_value(id));
    response
}

/// Tells the operator of a field that was meant to defer a request, and does not. The query may hold what no log
/// may show, and has no part in it.
fn warn_of_no_meaning(request: &Parts, connection: &Connection) {
    let Some(value) = deferral::without_meaning(request) else { return };
    log::warn!(
        "request={} target={} peer={connection} {ASYNC} is {value}, neither store nor true: it has no effect",
        request.method,
        request.uri.path(),
    );
}

/// The content's length as announced; zero where it is not.
fn announced_length(request: &Parts) -> usize {
    let value = request.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}

/// Whether nobody needs to say who they are for this request of an own target. Deferred, it would need an owner.
fn is_open(request: &Parts, target: &Uri) -> bool {
    api::is_open(target.path()) && Mode::of(request, None).0 == Mode::Synchronous
}

/// Returns the refusal of a request that is not signed as its route wants it. The log alone says why.
fn unsigned(route: &Route, what: Unsigned) -> Error {
    log::info!("route={} a request is not signed: {what}", route.prefix);
    Error::NotAuthorized
}

/// The target without `/_db/_system`; `None` where it has no database prefix.
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
