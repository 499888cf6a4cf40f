//! The fixed pool of workers, and the janitor.
//!
//! Owns the way of a job from the store through its handler and back. The janitor is the thread that watches the
//! time: it lets old results go, and finishes the jobs whose delay is over. Invariants: a worker survives whatever a
//! handler does (`Routes::run` turns a panic into a `500`); a job that was claimed is finished, or goes back to the
//! store; a worker waits for nothing but the store and the handler that it runs: not for a delay, and not for a lane.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use http::uri::PathAndQuery;
use http::{HeaderValue, Method};
use threadpool::ThreadPool;

use crate::clock;
use crate::content::Content;
use crate::error::Error;
use crate::exchange::Answer;
use crate::handler::Outcome;
use crate::job::attempt::{Attempt, Claimed};
use crate::job::notice::{self, NoticeLane};
use crate::job::{JobId, JobKey};
use crate::jobs::Jobs;
use crate::protocol::ATTEMPTS;
use crate::retry::Ended;
use crate::routes::{Routes, delayed_until, too_late};
use crate::sink::{Collector, Sink};
use crate::store::{Finished, Patience};

/// The shortest and the longest time between two looks for expired results.
const JANITOR_REST: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// How often a job is put off that cannot begin for want of descriptors, processes or memory.
const MAX_SHORTAGES: u32 = 5;

/// Before it is tried again for the first time; doubled each time.
const SHORTAGE_DELAY: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 1000 });

/// What all workers share.
#[derive(Clone)]
struct Pool {
    jobs: Arc<Jobs>,
    routes: Arc<Routes>,
}

/// Starts `count` workers, which run until the store hands out no more jobs, and the janitor, which forgets results
/// that are older than `ttl`.
///
/// # Errors
/// When no thread can be had.
pub fn start(
    count: usize,
    jobs: &Arc<Jobs>,
    routes: &Arc<Routes>,
    (ttl, log_ttl): (Duration, Duration),
) -> io::Result<ThreadPool> {
    let pool = Pool { jobs: Arc::clone(jobs), routes: Arc::clone(routes) };
    let janitor = pool.clone();
    thread::Builder::new()
        .name("janitor".into())
        .spawn(move || janitor.watch_time(ttl, log_ttl))?;
    let threads =
        threadpool::Builder::new().num_threads(count).thread_name("worker".into()).build();
    for _ in 0..count {
        let pool = pool.clone();
        threads.execute(move || {
            // Each worker has an allowance of its own.
            let memory = pool.jobs.memory.allowance();
            while let Some(claimed) = pool.jobs.store.claim(&memory, Patience::Forever) {
                pool.run(claimed);
            }
        });
    }
    Ok(threads)
}

impl Pool {
    /// Finishes jobs whose delay or deadline is over, and forgets what has expired; for ever.
    fn watch_time(&self, ttl: Duration, log_ttl: Duration) {
        let shortest = if log_ttl.is_zero() { ttl } else { ttl.min(log_ttl) };
        let rest = (shortest / 8).clamp(JANITOR_REST.0, JANITOR_REST.1);
        let mut next_look = Instant::now() + rest;
        let mut expired = 0;
        loop {
            let span = next_look.saturating_duration_since(Instant::now());
            for Claimed { job, mut attempt } in self.jobs.store.overdue(span) {
                let answer = attempt.answer.take();
                let answer = answer.unwrap_or_else(|| too_late().response().into());
                self.finish(&job, *attempt, answer);
            }
            if next_look <= Instant::now() {
                // After each batch, what is due has its turn.
                if let Ok(count @ 1..) = self.jobs.expire(ttl, log_ttl) {
                    expired += count;
                    continue;
                }
                if expired > 0 {
                    log::info!("expired={expired} results that were older than {ttl:?}");
                }
                expired = 0;
                next_look = Instant::now() + rest;
            }
        }
    }

    /// Runs a job, or the next part of it.
    fn run(&self, Claimed { job, mut attempt }: Claimed) {
        let mut sink = Collector::new(attempt.execution.memory());
        let outcome = self.run_hop(&mut attempt, &mut sink);
        let lingering = attempt.execution.take_lingering();
        let kept = lingering.as_ref().and_then(|_| self.jobs.keep_place(&job));
        self.go_on(job, attempt, outcome, sink);
        // Not before: as long as the job runs, its place is its own.
        if let Some(lingering) = lingering {
            lingering.hold(kept);
        }
    }

    /// Finishes a job whose run has ended, or lets it go on.
    fn go_on(
        &self,
        job: JobKey,
        mut attempt: Box<Attempt>,
        outcome: Result<Outcome, Error>,
        sink: Collector,
    ) {
        match outcome {
            Ok(Outcome::Answer(answer)) => self.end_attempt(job, attempt, answer),
            Ok(Outcome::Written) => self.end_attempt(job, attempt, sink.into_answer()),
            Ok(Outcome::Delayed(answer, span)) => {
                let (answer, until) = delayed_until(answer, span, attempt.expiry());
                attempt.answer = Some(answer);
                self.jobs.store.retry(&job, attempt, until, clock::now());
            }
            Ok(Outcome::LocalRedirect(target)) => self.redirect(job, attempt, target),
            Err(error @ Error::Shortage(_)) => self.put_off(job, attempt, &error),
            Err(error) => self.end_attempt(job, attempt, error.response().into()),
        }
    }

    /// Runs what the attempt has come to: the job's request, or the one that it was redirected to.
    fn run_hop(&self, attempt: &mut Attempt, sink: &mut dyn Sink) -> Result<Outcome, Error> {
        attempt.started.get_or_insert_with(|| clock::now().stamp);
        let execution = &attempt.execution;
        execution.begin_script();
        if attempt.redirected.is_some() {
            execution.set_deadline(Some(attempt.deadline));
            if attempt.deadline <= Instant::now() {
                return Err(too_late());
            }
        } else {
            attempt.made += 1;
            execution.set_attempt(attempt.made);
            attempt.deadline = Instant::now() + self.routes.get(attempt.route).time_limit;
            execution.set_deadline(None);
        }
        attempt.tell();
        self.routes.run(attempt.hop_route(), attempt.hop().call, execution, sink)
    }

    /// Ends an attempt with its answer: for most jobs it is the only one.
    fn end_attempt(&self, job: JobKey, mut attempt: Box<Attempt>, answer: Answer) {
        let Some(delay) = self.delay(&attempt, &answer) else {
            return self.finish(&job, *attempt, answer);
        };
        attempt.redirected = None;
        self.jobs.store.retry(&job, attempt, Instant::now() + delay, clock::now());
    }

    /// Has a job go on in the lane of its redirect's target. There it holds no worker, for else all workers could
    /// wait for a lane whose jobs find none.
    fn redirect(&self, job: JobKey, mut attempt: Box<Attempt>, target: PathAndQuery) {
        match self.routes.redirect(&attempt.hop(), target) {
            Ok(redirected) => {
                attempt.redirected = Some(redirected);
                self.jobs.store.redirect(&job, attempt, clock::now());
            }
            Err(error) => self.end_attempt(job, attempt, error.response().into()),
        }
    }

    /// Puts off a job that could not begin for want of what a run needs; after some times it fails.
    fn put_off(&self, job: JobKey, mut attempt: Box<Attempt>, error: &Error) {
        let execution = &attempt.execution;
        if attempt.shortages >= MAX_SHORTAGES || execution.stopped().is_some() {
            return self.end_attempt(job, attempt, error.response().into());
        }
        let delay = SHORTAGE_DELAY * 2u32.pow(attempt.shortages);
        attempt.shortages += 1;
        let number = attempt.shortages;
        let next =
            format!("cannot start, next attempt in {delay:.1?} ({number} of {MAX_SHORTAGES})");
        log::warn!("job={} {next}", execution.job_as_log());
        execution.set_progress(&next);
        if attempt.redirected.is_none() {
            // Nothing was run: that was no attempt.
            attempt.made -= 1;
            attempt.tell();
        }
        let mut until = Instant::now() + delay;
        if let Some(expiry) = attempt.expiry()
            && expiry <= until
        {
            until = expiry;
            attempt.answer = Some(too_late().response().into());
        }
        self.jobs.store.retry(&job, attempt, until, clock::now());
    }

    /// How long to wait before the next attempt, where this answer calls for one; and says so.
    fn delay(&self, attempt: &Attempt, answer: &Answer) -> Option<Duration> {
        let Attempt { call, execution, .. } = attempt;
        let retry = self.routes.get(attempt.route).retry.as_ref()?;
        if execution.stopped().is_some() {
            return None;
        }
        let (made, response) = (attempt.made, &answer.response);
        let exit_code = execution.exit_code();
        let ended = Ended { attempt: made, response, exit_code };
        let delay = retry.delay(call.request.method(), &ended, SystemTime::now())?;
        let code = exit_code.filter(|&code| code != 0);
        let code = code.map(|code| format!(" (exit code {code})")).unwrap_or_default();
        let status = response.status().as_u16();
        let next = format!("attempt {made} ended with {status}{code}, next attempt in {delay:.1?}");
        log::info!("job={} {next}", execution.job_as_log());
        execution.set_progress(&next);
        Some(delay)
    }

    /// Finishes a job with its answer.
    fn finish(&self, job: &JobKey, attempt: Attempt, answer: Answer) {
        let route = self.routes.get(attempt.route);
        let Answer { mut response, receipt, .. } = answer;
        if attempt.call.request.method() == Method::HEAD {
            // A HEAD response has no content (RFC 9110 section 9.3.2), and a stored one no promise of
            // it.
            *response.body_mut() = Content::new();
        }
        if route.retry.is_some() {
            response.headers_mut().insert(ATTEMPTS, HeaderValue::from(attempt.made));
        }
        let status = response.status();
        let now = clock::now();
        let finished_at = now.stamp;
        let started = attempt.started.unwrap_or(finished_at);
        let finished = self.jobs.store.finish(job, response, now);
        // A full disk takes the removal of what was collected before this result: a crash between them would lose both.
        let is_safe =
            finished == Finished::Kept && (!receipt.matters() || self.jobs.store.flush().is_ok());
        if is_safe {
            receipt.confirm();
        }
        let is_notice = NoticeLane::named(&route.prefix).is_some();
        let of = if is_notice { notice::job(&attempt.call.request) } else { "" };
        log::info!(
            "job={}{}{of} owner={} route={} status={} wait={:.3}s run={:.3}s{}",
            job.id,
            if is_notice { " of=" } else { "" },
            job.owner.as_log(),
            route.prefix,
            status.as_u16(),
            started.since(attempt.created).as_secs_f64(),
            finished_at.since(started).as_secs_f64(),
            match finished {
                Finished::Kept => "",
                Finished::Dropped if is_notice => "",
                Finished::Dropped => " result dropped",
                Finished::Left => " left to the next start",
            }
        );
    }
}

/// Logs the ids of jobs that are lost with the end of their store, in lines of bounded length.
pub fn log_lost(store: &str, ids: &[JobId]) {
    for some in ids.chunks(100) {
        let list: Vec<String> = some.iter().map(ToString::to_string).collect();
        log::warn!("lost with the {store} store: {}", list.join(" "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http::header::RETRY_AFTER;
    use http::{Request, StatusCode};

    use crate::config::Pages;
    use crate::exchange::{Call, Connection, Owner};
    use crate::handler::Handler;
    use crate::job::execution::{Execution, OnLeave};
    use crate::job::request_line::RequestLine;
    use crate::job::{Keep, Rerun, RouteIndex};
    use crate::jobs::Limits;
    use crate::ledger::schedule::Limit;
    use crate::memory::Budget;
    use crate::methods::AllowedMethods;
    use crate::routes::Route;
    use crate::store::memory::MemoryStore;
    use crate::store::{Lane, Lookup, Plan, Room, Submission, Tells};

    /// A handler for which there is never enough.
    #[derive(Default)]
    struct Short(Arc<AtomicUsize>);

    impl Handler for Short {
        fn check(&self, _: &http::request::Parts) -> Result<(), Error> {
            Ok(())
        }

        fn run(&self, _: &Call, _: &Arc<Execution>, _: &mut dyn Sink) -> Result<Outcome, Error> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Err(Error::Shortage("too few".into()))
        }
    }

    #[test]
    fn a_lasting_shortage_fails_after_five_delays() {
        let short = Short::default();
        let runs = Arc::clone(&short.0);
        let routes = Arc::new(Routes::new(vec![Route {
            prefix: "/".into(),
            callers: None,
            on_leave: OnLeave::Cancel,
            time_limit: Duration::from_secs(60),
            retry: None,
            pages: Pages::Own,
            methods: AllowedMethods::NoTrace,
            deferral: Default::default(),
            signature: None,
            handler: Box::new(short),
        }]));
        let memory = Budget::new(1 << 20);
        let room = Room { capacity: 1 << 20, reserve: 0, memory: memory.allowance() };
        let lane = Lane { limit: Limit::Open, rerun: Rerun::Harmless, tells: Tells::NONE };
        let plan = Plan {
            workers: 1,
            queue: 9,
            ttl: Duration::MAX,
            log_ttl: Duration::ZERO,
            lanes: vec![lane],
        };
        let limits = Limits { queue: 9, stored: 1 << 20, connections: 1 };
        let jobs = Arc::new(Jobs::new(Arc::new(MemoryStore::new(room, plan)), memory, limits));
        let pool = Pool { jobs: Arc::clone(&jobs), routes };
        let (owner, connection) = (Owner::anonymous(), Connection::Unix);
        let call =
            Call { request: Request::new(Content::new()), connection, owner, auth_type: None };
        let submission = Submission {
            call,
            route: RouteIndex(0),
            line: RequestLine::default(),
            keep: Keep::Result,
            key: None,
            callback: None,
        };
        let id = jobs.submit(submission).unwrap();
        let job = JobKey { owner: Owner::anonymous(), id };
        let memory = jobs.memory.allowance();
        let claim = || jobs.store.claim(&memory, Patience::None);
        let mut claimed = claim().expect("it waits");
        for delays in 1..=MAX_SHORTAGES as usize {
            pool.run(claimed);
            assert_eq!(runs.load(Ordering::Relaxed), delays);
            assert!(claim().is_none(), "it is delayed");
            assert_eq!(jobs.store.stats().unwrap().delayed, 1);
            claimed = loop {
                assert!(jobs.store.overdue(Duration::from_millis(1)).is_empty());
                if let Some(claimed) = claim() {
                    break claimed;
                }
            };
            let attempt = &claimed.attempt;
            assert_eq!((attempt.shortages as usize, attempt.made), (delays, 0));
        }
        pool.run(claimed);
        let Lookup::Done(result) = jobs.store.peek(&job) else { panic!("it is not done") };
        let response = result.to_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(response.headers().contains_key(RETRY_AFTER));
    }
}
