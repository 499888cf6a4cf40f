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
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, LOCATION, RETRY_AFTER, VARY};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Response, StatusCode, Uri};

use crate::access_log::AccessLine;
use crate::api::{self, ASK_AGAIN, Question, id_value};
use crate::auth::Auth;
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
use crate::protocol::{ASYNC_ID, DATABASE, JOB, PREFER, PREFERENCE_APPLIED};
use crate::routes::{Routes, delayed_until};
use crate::store::{Lookup, Submission};

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

    /// Reads the variables of scripts and the users again, where there are any, and tells the log.
    pub fn reload(&self) {
        self.routes.reload();
        let Some(auth) = &self.auth else { return };
        match auth.reload() {
            Ok(users) => log::info!("the auth file is read again: {users} users"),
            Err(what) => log::error!("the auth file stays as it was read before: {what}"),
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
            let exempt = is_open(request, &without_database(&request.uri));
            if exempt { Ok(()) } else { Err(error) }
        })?;
        self.policy.check_page(&seen).or_else(|error| {
            let lifted = self.takes_any_page(&request.uri);
            if lifted { Ok(self.policy.unshared(&seen)) } else { Err(error) }
        })
    }

    /// Whether the route of this target takes requests from every page.
    fn takes_any_page(&self, target: &Uri) -> bool {
        let Ok(inner) = without_database(target) else { return false };
        let route = self.routes.find(inner.as_ref().unwrap_or(target).path());
        route.is_ok_and(|route| self.routes.get(route).pages == Pages::Any)
    }

    fn checked(&self, request: &mut Parts, sharing: Sharing) -> Result<Plan, Error> {
        deferral::override_method(request)?;
        let inner = without_database(&request.uri);
        let caller = match &self.auth {
            // A load balancer asks this, and has no credentials.
            Some(_) if is_open(request, &inner) => None,
            Some(auth) => {
                let caller = auth.authenticate(&request.headers)?;
                // They were deferd's: no handler and no disk has any business with them.
                request.headers.remove(AUTHORIZATION);
                Some(caller)
            }
            None => None,
        };
        if let Some(uri) = inner? {
            request.uri = uri;
        }
        let route = self.routes.find(request.uri.path())?;
        self.routes.get(route).handler.check(request)?;
        let (owner, auth_type) = match caller {
            Some(caller) => (caller.owner, Some(caller.auth_type)),
            None => (Owner::anonymous(), None),
        };
        let (mode, preferences) = Mode::of(request);
        let (mut key, mut asked, mut wait) = (None, None, None);
        if mode != Mode::Synchronous {
            key = deferral::idempotency_key(request)?;
        } else if let Some(found) = api::question(&request.method, request.uri.path()) {
            asked = Some(found);
            wait = preferences.wait.filter(|_| matches!(found, Question::End(_)));
        }
        // What has a key may be known already, and then needs no room.
        if mode != Mode::Synchronous && key.is_none() {
            self.jobs.check(announced_length(request))?;
        }
        Ok(Plan { route, mode, key, asked, wait, owner, auth_type, sharing })
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
        let mut response = accepted(Some(job.id));
        let headers = response.headers_mut();
        headers.insert(PREFERENCE_APPLIED, HeaderValue::from_static("respond-async"));
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
                    Ok(plan) => return Ok(plan),
                    Err(error) => (error.response(), sharing),
                },
            },
            Err(error) => (error.response(), Sharing::Own),
        };
        self.last.set(None);
        cors::disclose(&mut response, sharing);
        let line = AccessLine::of(&request.method, &request.uri, connection, begin);
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

    /// Answers a whole request, which the client waits for.
    pub fn call(&self, plan: Plan, head: Parts, body: Bytes, connection: Connection) -> Answer {
        let (service, peer) = (self.service, &*self.peer);
        let Plan { route, mode, key, asked, wait, owner, auth_type, sharing } = plan;
        let line = AccessLine::of(&head.method, &head.uri, &connection, AccessLine::begin());
        let request = Request::from_parts(head, body);
        let call = Call { request, connection, owner: owner.clone(), auth_type };
        let preferred = wait.is_some() || matches!(mode, Mode::Preferred(_));
        let last = self.last.take();
        let asked = asked.map(|asked| (asked, JobKey { owner: owner.clone(), id: asked.job() }));
        if let Some((_, job)) = &asked {
            self.wait_for(job, wait, last.as_ref());
        }
        let answer = match mode {
            Mode::Synchronous if peer.was_seen_leaving() => Err(Error::Cancelled),
            Mode::Synchronous => self.run(route, &call),
            Mode::Deferred(keep) => service
                .submit(route, call, keep, key)
                .map(|job| accepted((keep == Keep::Result).then_some(job.id)).into()),
            Mode::Preferred(span) => {
                let job = service.submit(route, call, Keep::Result, key);
                job.map(|job| service.answer_in_time(route, job, span, peer))
            }
        };
        let mut answer = answer.unwrap_or_else(|error| error.response().into());
        if let Some((asked, job)) = asked
            && asked.may_be_pending(answer.response.status())
        {
            self.last.set(Some(job));
        }
        if preferred {
            answer.response.headers_mut().append(VARY, HeaderValue::from(PREFER));
        }
        cors::disclose(&mut answer.response, sharing);
        line.write(&owner, &service.routes.get(route).prefix, &answer.response, peer);
        self.metrics.observe(self.began.get().elapsed());
        answer
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
    fn run(&self, index: RouteIndex, call: &Call) -> Result<Answer, Error> {
        let routes = &self.service.routes;
        let time_limit = routes.get(index).time_limit;
        let place = self.enter(index, Instant::now() + time_limit)?;
        let deadline = Instant::now() + time_limit;
        let mut outcome = self.run_in_lane(index, call, None, place);
        let mut redirected: Option<Redirected> = None;
        loop {
            let target = match outcome? {
                Outcome::Answer(answer) => return Ok(answer),
                Outcome::Delayed(answer, span) => {
                    let bound = redirected.map(|redirected| redirected.deadline);
                    let (answer, at) = delayed_until(answer, span, bound);
                    let left = at.saturating_duration_since(Instant::now());
                    self.line.execution.sleep(left)?;
                    return Ok(answer);
                }
                Outcome::LocalRedirect(target) => target,
            };
            let first = Hop { call, count: 0, deadline };
            let next =
                routes.redirect(&redirected.as_ref().map_or(first, Redirected::hop), target)?;
            let place = self.enter(next.route, deadline)?;
            outcome = self.run_in_lane(next.route, &next.call, Some(deadline), place);
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
    ) -> Result<Outcome, Error> {
        let (routes, execution) = (&self.service.routes, &self.line.execution);
        execution.set_on_leave(routes.get(index).on_leave);
        if deadline.is_some() {
            execution.set_deadline(deadline);
        }
        let outcome = routes.run(index, call, execution);
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

/// The `202`, with the id where the result can be asked for.
fn accepted(id: Option<JobId>) -> Response<Bytes> {
    let mut response = empty(StatusCode::ACCEPTED);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if let Some(id) = id {
        let location = [JOB, "/", itoa::Buffer::new().format(id.number())].concat();
        let location = HeaderValue::try_from(location);
        headers.insert(LOCATION, location.expect("a path of digits is a field value"));
        headers.insert(ASYNC_ID, id_value(id));
    }
    response
}

/// The content's length as announced; zero where it is not.
fn announced_length(request: &Parts) -> usize {
    let value = request.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}

/// Whether nobody needs to say who they are for this request. Deferred, it would need an owner.
fn is_open(request: &Parts, inner: &Result<Option<Uri>, Error>) -> bool {
    let uri = inner.as_ref().ok().and_then(Option::as_ref).unwrap_or(&request.uri);
    api::is_open(uri.path()) && Mode::of(request).0 == Mode::Synchronous
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
