//! The fixed pool of workers, and the janitor that lets old results go.
//!
//! Owns the loop from the queue through the handler to the store. Invariants: a worker survives
//! whatever a handler does (`Routes::run` turns a panic into a `500`); a job that was started is
//! finished; a worker waits for nothing but the queue and the handler that it runs: not for a delay, and
//! not for a lane.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Method};
use threadpool::ThreadPool;

use crate::attempts::{Attempt, Attempts, Event};
use crate::error::Error;
use crate::exchange::Answer;
use crate::handler::Outcome;
use crate::job::JobId;
use crate::job::RouteIndex;
use crate::jobs::{Jobs, now};
use crate::memory::Allowance;
use crate::queue::{Pass, Queue, Ready, Task, Turn};
use crate::routes::{Routes, delayed_until, too_late};
use crate::store::{Finished, JobKey, Started};

/// The longest and the shortest time between two looks for expired results.
const JANITOR_REST: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// How often a job is put off that cannot begin for want of descriptors, processes or memory.
const MAX_SHORTAGES: u32 = 5;

/// Before it is tried again for the first time; doubled each time.
const SHORTAGE_DELAY: Duration = Duration::from_secs(1);

/// The number of attempts that a job's result took, where its route tries again.
const ATTEMPTS: HeaderName = HeaderName::from_static("x-attempts");

/// What all workers share.
#[derive(Clone)]
struct Pool {
    jobs: Arc<Jobs>,
    routes: Arc<Routes>,
    attempts: Arc<Attempts>,
    /// How many workers there are.
    count: usize,
    /// What its jobs are charged to: each worker has one of its own.
    memory: Allowance,
}

/// Starts `count` workers that run until the queue is closed.
///
/// # Errors
/// When no thread can be had.
pub fn start(count: usize, jobs: &Arc<Jobs>, routes: &Arc<Routes>) -> io::Result<ThreadPool> {
    let (jobs, routes, attempts) = (Arc::clone(jobs), Arc::clone(routes), Arc::default());
    let memory = jobs.memory.allowance();
    let workers = Pool { jobs, routes, attempts, count, memory };
    let line = workers.clone();
    thread::Builder::new().name("attempts".into()).spawn(move || line.serve_attempts())?;
    let pool = threadpool::Builder::new().num_threads(count).thread_name("worker".into()).build();
    for _ in 0..count {
        let workers = Pool { memory: workers.jobs.memory.allowance(), ..workers.clone() };
        pool.execute(move || {
            while let Some(ready) = workers.jobs.queue.next() {
                let mut next = Some(ready);
                // A job whose local redirect finds room in its lane goes on here.
                while let Some(Ready { task, pass }) = next {
                    next = workers.run(task, pass);
                }
            }
        });
    }
    Ok(pool)
}

impl Pool {
    /// Hands what waited long enough to the queue, and ends what is over.
    fn serve_attempts(&self) {
        loop {
            match self.attempts.next() {
                Event::Due(task) => self.jobs.queue.push(task),
                Event::Over(job, attempt, answer) => {
                    self.finish(&job, *attempt, answer);
                    // Its task may wait in a lane.
                    self.jobs.queue.mark_stale();
                }
            }
        }
    }

    /// Runs a job, or the next part of it. Returns what is to be run next, if its lane has room.
    fn run(&self, task: Task, pass: Option<Pass>) -> Option<Ready> {
        let mut attempt = self.begin(&task)?;
        let Task { job, permit, .. } = task;
        drop(permit);
        let outcome = self.run_hop(&mut attempt);
        // Before another lane is entered: a job never holds two.
        drop(pass);
        match outcome {
            Ok(Outcome::Answer(answer)) => self.end_attempt(job, attempt, answer),
            Ok(Outcome::Delayed(answer, span)) => {
                let bound = attempt.redirected.as_ref().map(|redirected| redirected.deadline);
                let (answer, at) = delayed_until(answer, span, bound);
                let permit = self.jobs.queue.admit_delay(self.count);
                self.attempts.answer(job, attempt, answer, permit, at);
            }
            Ok(Outcome::LocalRedirect(target)) => return self.redirect(job, attempt, target),
            Err(error @ Error::Shortage(_)) => self.put_off(job, attempt, &error),
            Err(error) => self.end_attempt(job, attempt, error.response().into()),
        }
        None
    }

    /// Runs what the attempt has come to: the job's request, or the one that it was redirected to.
    fn run_hop(&self, attempt: &mut Attempt) -> Result<Outcome, Error> {
        let execution = &attempt.run.execution;
        if attempt.redirected.is_some() {
            execution.set_deadline(Some(attempt.deadline));
            if attempt.deadline <= Instant::now() {
                return Err(too_late());
            }
        } else {
            attempt.made += 1;
            attempt.deadline = Instant::now() + self.routes.get(attempt.route).time_limit;
            execution.set_deadline(None);
        }
        self.routes.run(attempt.hop_route(), attempt.hop().call, execution)
    }

    /// Ends an attempt with its answer: for most jobs it is the only one.
    fn end_attempt(&self, job: JobKey, mut attempt: Attempt, answer: Answer) {
        let Some(delay) = self.delay(&attempt, &answer) else {
            return self.finish(&job, attempt, answer);
        };
        attempt.redirected = None;
        let task = self.again(job, attempt.route);
        self.attempts.delay(task, attempt, Instant::now() + delay);
    }

    /// Returns the task by which a job that was begun goes on.
    fn again(&self, job: JobKey, route: RouteIndex) -> Task {
        let gate = self.routes.get(route).gate.clone();
        Task { job, route, gate, permit: self.jobs.queue.admit(), turn: Turn::Again }
    }

    /// Has a job go on in the lane of its redirect's target: at once if there is room. If not it waits
    /// there and holds no worker, for else all workers could wait for a lane whose jobs find none.
    fn redirect(&self, job: JobKey, mut attempt: Attempt, target: PathAndQuery) -> Option<Ready> {
        match self.routes.redirect(&attempt.hop(), target) {
            Ok(redirected) => {
                let task = self.again(job.clone(), redirected.route);
                attempt.redirected = Some(redirected);
                self.attempts.keep(job, attempt);
                Queue::admit_to_lane(task)
            }
            Err(error) => {
                self.end_attempt(job, attempt, error.response().into());
                None
            }
        }
    }

    /// Puts off a job that could not begin for want of what a run needs; after some times it fails.
    fn put_off(&self, job: JobKey, mut attempt: Attempt, error: &Error) {
        let execution = &attempt.run.execution;
        if attempt.shortages >= MAX_SHORTAGES || execution.stopped().is_some() {
            return self.end_attempt(job, attempt, error.response().into());
        }
        let delay = SHORTAGE_DELAY * 2u32.pow(attempt.shortages);
        attempt.shortages += 1;
        let number = attempt.shortages;
        let next =
            format!("could not begin, is tried again in {delay:.1?} ({number} of {MAX_SHORTAGES})");
        log::warn!("job={} {next}", execution.job_as_log());
        execution.set_progress(&next);
        if attempt.redirected.is_none() {
            // Nothing was run: that was no attempt.
            attempt.made -= 1;
        }
        let task = self.again(job, attempt.hop_route());
        self.attempts.delay(task, attempt, Instant::now() + delay);
    }

    /// How long to wait before the next attempt, where this answer calls for one; and says so.
    fn delay(&self, attempt: &Attempt, answer: &Answer) -> Option<Duration> {
        let (call, execution) = (&attempt.call, &attempt.run.execution);
        let retry = self.routes.get(attempt.route).retry?;
        if !retry.allows(call.request.method(), attempt.made) || execution.stopped().is_some() {
            return None;
        }
        let delay = retry.delay(attempt.made, &answer.response, SystemTime::now())?;
        let (made, status) = (attempt.made, answer.response.status().as_u16());
        let next = format!("attempt {made} ended with {status}, the next is in {delay:.1?}");
        log::info!("job={} {next}", execution.job_as_log());
        execution.set_progress(&next);
        Some(delay)
    }

    /// The attempt that a task stands for; `None` where there is nothing to do any more.
    fn begin(&self, task: &Task) -> Option<Attempt> {
        if task.turn == Turn::Again {
            return self.attempts.take(&task.job);
        }
        let route = task.route;
        self.jobs.wait_for_memory();
        if self.jobs.queue.is_closed() {
            // That may have ended the wait: the job stays where it is kept.
            return None;
        }
        let run = self.jobs.executions.begin(task.job.id, self.memory.clone());
        let started = now();
        let record = self.routes.get(route).start_record;
        let Started { call, created } =
            self.jobs.store.start(&task.job, &run.execution, record, started)?;
        Some(Attempt {
            call: *call,
            run,
            created,
            started,
            route,
            made: 0,
            shortages: 0,
            deadline: Instant::now(),
            redirected: None,
        })
    }

    /// Ends a job with its answer.
    fn finish(&self, job: &JobKey, attempt: Attempt, answer: Answer) {
        let route = self.routes.get(attempt.route);
        let Answer { mut response, receipt, .. } = answer;
        if attempt.call.request.method() == Method::HEAD {
            // A HEAD response has no content (RFC 9110 section 9.3.2), and a stored one no promise of
            // it.
            *response.body_mut() = Bytes::new();
        }
        if route.retry.is_some() {
            response.headers_mut().insert(ATTEMPTS, HeaderValue::from(attempt.made));
        }
        let status = response.status();
        let finished_at = now();
        let finished = self.jobs.store.finish(job, response, finished_at);
        if finished == Finished::Kept {
            receipt.confirm();
        }
        log::info!(
            "job={} owner={} route={} status={} wait={:.3}s run={:.3}s{}",
            job.id,
            job.owner.as_log(),
            route.prefix,
            status.as_u16(),
            attempt.started.since(attempt.created).as_secs_f64(),
            finished_at.since(attempt.started).as_secs_f64(),
            if finished == Finished::Kept { "" } else { " result dropped" }
        );
    }
}

/// Starts the janitor, which forgets results that are older than `ttl`.
///
/// # Errors
/// When no thread can be had.
pub fn start_janitor(jobs: &Arc<Jobs>, ttl: Duration) -> std::io::Result<()> {
    let jobs = Arc::clone(jobs);
    let rest = (ttl / 8).clamp(JANITOR_REST.0, JANITOR_REST.1);
    thread::Builder::new().name("janitor".into()).spawn(move || {
        loop {
            thread::sleep(rest);
            let expired = jobs.expire(ttl);
            if expired > 0 {
                log::info!("expired={expired} results older than {ttl:?}");
            }
        }
    })?;
    Ok(())
}

/// The ids of jobs that the end of a volatile store loses, in lines of bounded length.
pub fn log_lost(ids: &[JobId]) {
    for some in ids.chunks(100) {
        let list: Vec<String> = some.iter().map(ToString::to_string).collect();
        log::warn!("lost with the memory store: {}", list.join(" "));
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
    use crate::memory::Budget;
    use crate::routes::Route;
    use crate::store::memory::MemoryStore;
    use crate::store::{Keep, Lookup, Room, StartRecord, Submission};

    /// A handler for which there is never enough.
    #[derive(Default)]
    struct Short(Arc<AtomicUsize>);

    impl Handler for Short {
        fn check(&self, _: &http::request::Parts) -> Result<(), Error> {
            Ok(())
        }

        fn run(&self, _: &Call, _: &Arc<Execution>) -> Result<Outcome, Error> {
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
            gate: None,
            callers: None,
            on_leave: OnLeave::Cancel,
            time_limit: Duration::from_secs(60),
            start_record: StartRecord::Soon,
            retry: None,
            pages: Pages::Own,
            handler: Box::new(short),
        }]));
        let memory = Budget::new(1 << 20);
        let room = Room { capacity: 1 << 20, reserve: 0, memory: memory.allowance() };
        let jobs = Jobs::new(Arc::new(MemoryStore::new(room)), Queue::new(9), memory);
        let jobs = Arc::new(jobs);
        let pool = Pool {
            jobs: Arc::clone(&jobs),
            routes: Arc::clone(&routes),
            attempts: Arc::default(),
            count: 1,
            memory: jobs.memory.allowance(),
        };
        let (owner, connection) = (Owner::anonymous(), Connection::Unix);
        let call = Call { request: Request::new(Bytes::new()), connection, owner, auth_type: None };
        let submission = Submission { call, keep: Keep::Result, key: None };
        let id = jobs.submit(submission, &routes, RouteIndex(0)).unwrap();
        let job = JobKey { owner: Owner::anonymous(), id };
        for delays in 1..=MAX_SHORTAGES as usize {
            let Ready { task, pass } = jobs.queue.next().unwrap();
            assert!(pool.run(task, pass).is_none());
            assert_eq!(runs.load(Ordering::Relaxed), delays);
            // What its thread would do when the delay is over.
            let attempt = pool.attempts.take(&job).expect("it is delayed");
            assert_eq!((attempt.shortages as usize, attempt.made), (delays, 0));
            pool.attempts.keep(job.clone(), attempt);
            jobs.queue.push(pool.again(job.clone(), RouteIndex(0)));
        }
        let Ready { task, pass } = jobs.queue.next().unwrap();
        assert!(pool.run(task, pass).is_none() && pool.attempts.take(&job).is_none());
        let Lookup::Done(result) = jobs.store.peek(&job) else { panic!("it is not done") };
        let response = result.to_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(response.headers().contains_key(RETRY_AFTER));
    }
}
