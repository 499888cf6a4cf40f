//! The session of one thread with the service: its requests, one after the other.
//!
//! Owns the deferring and running of requests, the wait of clients for jobs, and the access log. `service` makes the
//! checks. Does no I/O of its own. A client that prefers to wait for a job waits here, in its connection's thread.
//! Invariant: each request that was read has one line in the access log, and counts once.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{CONTENT_TYPE, LOCATION, RETRY_AFTER};
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode};

use super::{Plan, Sender, Service};
use crate::access_log::{AccessLine, RefusedHead};
use crate::api::{ASK_AGAIN, id_value};
use crate::content::Content;
use crate::cors;
use crate::deferral::{self, Mode, Terms};
use crate::error::{Error, TEXT};
use crate::exchange::{Answer, Call, Connection, Guard, Peer, empty};
use crate::handler::{Outcome, Takes};
use crate::job::attempt::{Hop, Redirected};
use crate::job::execution::{OnLeave, Run};
use crate::job::{JobId, JobKey, Keep, RouteIndex};
use crate::jobs::Place;
use crate::memory::Allowance;
use crate::metrics::{Connections, SessionMetrics};
use crate::outgoing::{Additions, Outgoing, Preference, Produced, Reply};
use crate::prefer::Applied;
use crate::protocol::{ASYNC, ASYNC_ID, JOB, PREFERENCE_APPLIED};
use crate::routes::{Route, delayed_until};
use crate::sink::{self, Sink};
use crate::store::{Lookup, Submission};

/// How long a client that repeatedly asks for a pending job waits each time. Without this wait, such clients would
/// take the processors from the jobs that they ask about; with a longer one, they would see progress late.
const ASKING_AGAIN: Duration = Duration::from_millis(10);

/// The session of one thread, which serves one request after the other.
pub struct Session<'a> {
    service: &'a Service,
    /// The client that waits for its answers.
    peer: Arc<dyn Peer>,
    connections: Connections,
    /// The job that the last request asked about, if the answer was that it may be pending. Set by `call`, taken by
    /// each request.
    last: Cell<Option<JobKey>>,
    /// The handle for the handlers that run while their clients wait.
    line: Run,
    /// When the current request began.
    began: Cell<Instant>,
    /// The counters of this session.
    metrics: SessionMetrics<'a>,
}

/// The outcome of checking a head.
enum Checked {
    /// The request may go on.
    Planned(Plan),
    /// The request is a preflight, and this is its answer.
    Preflight(Response<Content>),
}

impl<'a> Session<'a> {
    /// Begins the session of a thread.
    pub(super) fn begin(
        service: &'a Service,
        peer: Arc<dyn Peer>,
        memory: Allowance,
        connections: Connections,
    ) -> Self {
        let line = service.jobs.executions.begin(Arc::clone(&peer), memory);
        let metrics = service.jobs.metrics.begin_session(connections);
        let began = Cell::new(Instant::now());
        Self { service, peer, connections, last: Cell::new(None), line, began, metrics }
    }

    /// Returns the allowance that the content of its requests and answers is charged to.
    pub fn memory(&self) -> &Allowance {
        self.line.execution.memory()
    }

    /// Returns the allowance that the content of a request is charged to. Until signatures are verified, all such
    /// content together has at most a quarter of the budget.
    pub fn memory_of<'p>(&'p self, plan: &'p Plan) -> &'p Allowance {
        plan.unproven.as_ref().unwrap_or_else(|| self.memory())
    }

    /// Returns whether deferd is shutting down, so that connections should not be kept.
    pub fn is_draining(&self) -> bool {
        self.service.jobs.is_draining()
    }

    /// Checks a request by its head. Applies an override of its method, and removes the database prefix from its
    /// target.
    ///
    /// # Errors
    /// The answer, if it needs no more of the request: it is refused, or a preflight.
    pub fn plan(&self, request: &mut Parts, connection: &Connection) -> Result<Plan, Box<Answer>> {
        self.began.set(Instant::now());
        let mut sender = Sender::unknown();
        let response = match self.check(request, connection, &mut sender) {
            Ok(Checked::Planned(mut plan)) => {
                warn_of_no_meaning(request, connection);
                if self.service.routes.get(plan.route).signature.is_some() {
                    plan.unproven = Some(self.memory().until_proven(&self.service.unproven));
                }
                return Ok(plan);
            }
            Ok(Checked::Preflight(response)) => response,
            Err(error) => error.response(),
        };
        Err(Box::new(self.answer_early(response, request, connection, &sender)))
    }

    fn check(
        &self,
        request: &mut Parts,
        connection: &Connection,
        sender: &mut Sender,
    ) -> Result<Checked, Error> {
        sender.sharing = self.service.admit(request, connection)?;
        match cors::preflight(request, &sender.sharing) {
            Some(response) => Ok(Checked::Preflight(response)),
            None => self.service.checked(request, sender).map(Checked::Planned),
        }
    }

    /// Returns the answer to a request that is refused because of its content, or for lack of memory, and writes its
    /// line to the access log.
    pub fn refuse(
        &self,
        plan: &Plan,
        request: &Parts,
        connection: &Connection,
        error: &Error,
    ) -> Answer {
        self.answer_early(error.response(), request, connection, &plan.sender)
    }

    /// Returns the answer to a request whose head is refused, and writes its line to the access log.
    pub fn refuse_head(
        &self,
        request: &RefusedHead,
        connection: &Connection,
        error: &Error,
    ) -> Answer {
        self.last.set(None);
        let response = error.response();
        request.write(connection, &response);
        response.into()
    }

    /// Completes an answer that no handler made.
    fn answer_early(
        &self,
        mut response: Response<Content>,
        request: &Parts,
        connection: &Connection,
        sender: &Sender,
    ) -> Answer {
        self.last.set(None);
        cors::disclose(&mut response, sender.sharing.clone());
        let begin = AccessLine::begin().map(|_| self.began.get());
        let mut line = AccessLine::of(&request.method, &request.uri, connection, begin);
        let route = self.service.route_of(&request.uri);
        if route.is_some_and(Route::hides_query) {
            line = line.without_query();
        }
        let prefix = route.map_or("-", |route| &route.prefix);
        if response.body().is_empty() {
            line.write(&sender.owner, prefix, &response, &*self.peer);
        } else {
            line.write_refused(&sender.owner, prefix, &response);
        }
        self.metrics.observe(self.began.get().elapsed());
        response.into()
    }

    /// Returns how much of a request's content is used.
    pub fn takes(&self, plan: &Plan, request: &Parts) -> Takes {
        match self.service.routes.get(plan.route).handler.takes(request) {
            // A deferred request keeps its content, which also tells apart requests under the same key.
            Takes::Nothing if plan.mode != Mode::Synchronous => Takes::Any,
            takes => takes,
        }
    }

    /// Answers a complete request, which the client waits for. Its handler may write the response into `sink`.
    pub fn call(
        &self,
        mut plan: Plan,
        mut head: Parts,
        body: Content,
        connection: Connection,
        sink: &mut dyn Sink,
    ) -> Reply {
        let (service, peer) = (self.service, &*self.peer);
        if let Err(error) = service.check_content(&mut plan, &mut head, &body) {
            return Reply::Answer(self.refuse(&plan, &head, &connection, &error));
        }
        let mut line = AccessLine::of(&head.method, &head.uri, &connection, AccessLine::begin());
        if service.routes.get(plan.route).hides_query() {
            line = line.without_query();
        }
        let Plan { route, mode, asked, wait, terms, sender, .. } = plan;
        let Sender { owner, auth_type, sharing } = sender;
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
        let produced = self.run_or_defer(route, mode, call, terms, &mut outgoing);
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

    /// Runs a request, or makes a job of it, according to its mode.
    fn run_or_defer(
        &self,
        route: RouteIndex,
        mode: Mode,
        call: Call,
        terms: Terms,
        sink: &mut dyn Sink,
    ) -> Result<Produced, Error> {
        let id_of = |job: JobKey, keep| (keep == Keep::Result).then_some(job.id);
        match mode {
            Mode::Synchronous if self.peer.was_seen_leaving() => Err(Error::Cancelled),
            Mode::Synchronous => self.run(route, &call, sink),
            Mode::Deferred(keep) => {
                let applied = terms.applied(keep);
                let job = self.submit(route, call, keep, terms)?;
                Ok(Produced::Answer(accepted(id_of(job, keep), applied).into()))
            }
            Mode::DeferredByRoute(keep) => {
                let applied = terms.applied(keep);
                let job = self.submit(route, call, keep, terms)?;
                let mut response = accepted(id_of(job, keep), applied);
                *response.status_mut() = self.service.routes.get(route).deferral.accepted;
                Ok(Produced::Answer(response.into()))
            }
            Mode::Preferred(span) => {
                let applied = terms.applied(Keep::Result);
                let job = self.submit(route, call, Keep::Result, terms)?;
                Ok(Produced::Answer(self.answer_in_time(route, job, span, applied)))
            }
        }
    }

    /// Waits for the job that the client asks about: as long as it prefers; for at least a moment if its last request
    /// asked about the same job, which was pending. If no place for waiting is free, it does not wait.
    fn wait_for(&self, job: &JobKey, wait: Option<Duration>, last: Option<&JobKey>) {
        let jobs = &self.service.jobs;
        let preferred = wait.unwrap_or_default().min(self.service.max_wait);
        let place = if preferred.is_zero() { None } else { jobs.watch() };
        let preferred = if place.is_some() { preferred } else { Duration::ZERO };
        let again = self.connections == Connections::One && last == Some(job);
        let span = if again { preferred.max(ASKING_AGAIN) } else { preferred };
        if !span.is_zero() {
            jobs.wait(job, span, &*self.peer);
        }
    }

    /// Runs a request while its client waits, in turn with the others of its route, and follows its local redirects:
    /// each in the lane of its target, all within one deadline.
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
                Outcome::Written => {
                    // The access log then knows whether the client took the answer.
                    sink::flush(sink, &self.line.execution)?;
                    return Ok(Produced::InSink);
                }
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

    /// Runs a request whose turn has come; its place in the lane is kept until it has ended, with all that it leaves
    /// behind.
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

    fn submit(
        &self,
        route: RouteIndex,
        call: Call,
        keep: Keep,
        Terms { key, callback, .. }: Terms,
    ) -> Result<JobKey, Error> {
        let owner = call.owner.clone();
        let callback = callback.map(|callback| callback.url);
        let keyed = |key| deferral::keyed(key, &call.request, keep, callback.as_deref());
        let key = key.map(keyed).transpose().map_err(|error| Error::unreadable(&error))?;
        let line = self.service.routes.get(route).line(&call.request);
        let submission = Submission { call, route, line, keep, key, callback };
        let id = self.service.jobs.submit(submission)?;
        Ok(JobKey { owner, id })
    }

    /// Returns the job's result as a plain response, if it is done within `span`; else the `202` (RFC 7240 section
    /// 4.3).
    fn answer_in_time(
        &self,
        route: RouteIndex,
        job: JobKey,
        span: Duration,
        applied: Applied,
    ) -> Answer {
        let Service { routes, jobs, max_wait, .. } = self.service;
        if !span.is_zero()
            && let Some(_place) = jobs.watch()
        {
            jobs.wait(&job, span.min(*max_wait), &*self.peer);
            // If there is no memory for the result at this moment, the client gets the `202`.
            if let Lookup::Done((result, delivery)) = jobs.store.collect(&job) {
                let relays = routes.get(route).handler.relays_fields();
                let guard = if relays { Guard::Verbatim } else { Guard::Added };
                let (response, receipt) = (result.to_response(), jobs.receipt(job, delivery));
                return Answer { response, guard, receipt };
            }
        }
        let mut response = accepted(Some(job.id), Applied { respond_async: true, ..applied });
        response.headers_mut().insert(RETRY_AFTER, ASK_AGAIN);
        response.into()
    }
}

/// Returns the `202`, with the id under which the result can be requested. The content has it too if the client
/// prefers that (RFC 7240 section 4.2), because it may not be able to read fields.
fn accepted(id: Option<JobId>, applied: Applied) -> Response<Content> {
    let mut response = empty(StatusCode::ACCEPTED);
    if let Some(applied) = applied.value() {
        response.headers_mut().insert(PREFERENCE_APPLIED, applied);
    }
    let Some(id) = id else {
        response.headers_mut().insert(CONTENT_TYPE, TEXT);
        return response;
    };
    if applied.representation {
        *response.body_mut() = format!("{}\n", id.number()).into();
    }
    let location = [JOB, "/", itoa::Buffer::new().format(id.number())].concat();
    let location = HeaderValue::try_from(location);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, TEXT);
    headers.insert(LOCATION, location.expect("a path of digits is a field value"));
    headers.insert(ASYNC_ID, id_value(id));
    response
}

/// Warns the operator of a field that was meant to defer a request, but does not. The query may contain what must not
/// be logged, so it is left out.
fn warn_of_no_meaning(request: &Parts, connection: &Connection) {
    let Some(value) = deferral::without_meaning(request) else { return };
    log::warn!(
        "request={} target={} peer={connection} {ASYNC} is {value}, neither store nor true: it has no effect",
        request.method,
        request.uri.path(),
    );
}
