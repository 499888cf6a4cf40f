//! The fixed pool of workers, and the janitor that lets old results go.
//!
//! Owns the loop from the queue through the handler to the store. Invariants: a worker survives
//! whatever a handler does (`Routes::run` turns a panic into a `500`); a job that was started is
//! finished.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method};
use threadpool::ThreadPool;

use crate::attempts::{Attempt, Attempts, Event};
use crate::call::Answer;
use crate::error::Error;
use crate::handler::routes::Routes;
use crate::job::JobId;
use crate::jobs::{Jobs, now};
use crate::queue::{Ready, Task, Turn};
use crate::store::{Finished, JobKey, Started};

/// The longest and the shortest time between two looks for expired results.
const JANITOR_REST: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// The number of attempts that a job's result took, where its route tries again.
const ATTEMPTS: HeaderName = HeaderName::from_static("x-attempts");

/// What all workers share.
#[derive(Clone)]
struct Pool {
    jobs: Arc<Jobs>,
    routes: Arc<Routes>,
    attempts: Arc<Attempts>,
}

/// Starts `count` workers that run until the queue is closed.
///
/// # Errors
/// When no thread can be had.
pub fn start(count: usize, jobs: &Arc<Jobs>, routes: &Arc<Routes>) -> io::Result<ThreadPool> {
    let (jobs, routes, attempts) = (Arc::clone(jobs), Arc::clone(routes), Arc::default());
    let workers = Pool { jobs, routes, attempts };
    if workers.routes.has_retry() {
        let workers = workers.clone();
        thread::Builder::new().name("attempts".into()).spawn(move || workers.serve_attempts())?;
    }
    let pool = threadpool::Builder::new().num_threads(count).thread_name("worker".into()).build();
    for _ in 0..count {
        let workers = workers.clone();
        pool.execute(move || {
            while let Some(Ready { task, pass }) = workers.jobs.queue.next() {
                workers.run(task);
                drop(pass);
            }
        });
    }
    Ok(pool)
}

impl Pool {
    /// Hands what waited long enough to the queue, and ends what was stopped meanwhile.
    fn serve_attempts(&self) {
        loop {
            match self.attempts.next() {
                Event::Due(task) => self.jobs.queue.push(task),
                Event::Stopped(job, attempt) => {
                    self.finish(&job, *attempt, Error::Cancelled.response().into());
                }
            }
        }
    }

    /// Makes one attempt at a job; for most it is the only one.
    fn run(&self, task: Task) {
        let Some(mut attempt) = self.begin(&task) else { return };
        let Task { job, route, gate, permit, .. } = task;
        drop(permit);
        attempt.made += 1;
        let answer = self.routes.run(route, &attempt.call, &attempt.run.execution);
        let Some(delay) = self.delay(&attempt, &answer) else {
            return self.finish(&job, attempt, answer);
        };
        let (permit, turn) = (self.jobs.queue.admit(), Turn::Again);
        let task = Task { job, route, gate, permit, turn };
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
        let run = self.jobs.executions.begin(Some(task.job.id), self.jobs.memory.allowance());
        let started = now();
        let record = self.routes.get(route).start_record;
        let Started { call, created } =
            self.jobs.store.start(&task.job, &run.execution, record, started)?;
        Some(Attempt { call: *call, run, created, started, route, made: 0 })
    }

    /// Ends a job with its answer.
    fn finish(&self, job: &JobKey, attempt: Attempt, answer: Answer) {
        let route = self.routes.get(attempt.route);
        let Answer { mut response, receipt } = answer;
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
