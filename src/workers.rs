//! The fixed pool of workers, and the janitor that lets old results go.
//!
//! Owns the loop from the queue through the handler to the store. Invariants: a worker survives
//! whatever a handler does (`Routes::run` turns a panic into a `500`); a job that was started is
//! finished.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use threadpool::ThreadPool;

use crate::handler::routes::Routes;
use crate::job::JobId;
use crate::jobs::{Jobs, now};
use crate::queue::{Ready, Task};
use crate::store::Finished;

/// The longest and the shortest time between two looks for expired results.
const JANITOR_REST: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// Starts `count` workers that run until the queue is closed.
pub fn start(count: usize, jobs: &Arc<Jobs>, routes: &Arc<Routes>) -> ThreadPool {
    let pool = threadpool::Builder::new().num_threads(count).thread_name("worker".into()).build();
    for _ in 0..count {
        let (jobs, routes) = (Arc::clone(jobs), Arc::clone(routes));
        pool.execute(move || {
            while let Some(Ready { task, pass }) = jobs.queue.next() {
                run(task, &jobs, &routes);
                drop(pass);
            }
        });
    }
    pool
}

/// Runs one job to its end.
fn run(task: Task, jobs: &Jobs, routes: &Routes) {
    let Task { job, route, permit, .. } = task;
    let run = jobs.executions.begin(Some(job.id));
    let started_at = now();
    let record = routes.get(route).start_record;
    let Some(started) = jobs.store.start(&job, &run.execution, record, started_at) else { return };
    drop(permit);
    let method = started.call.request.method().clone();
    let answer = routes.run(route, *started.call, &run.execution);
    let mut response = answer.response;
    if method == Method::HEAD {
        // A HEAD response has no content (RFC 9110 section 9.3.2), and a stored one no promise of it.
        *response.body_mut() = Bytes::new();
    }
    let status = response.status();
    let finished_at = now();
    let finished = jobs.store.finish(&job, response, finished_at);
    if finished == Finished::Kept {
        answer.receipt.confirm();
    }
    log::info!(
        "job={} owner={} route={} status={} wait={:.3}s run={:.3}s{}",
        job.id,
        job.owner.as_log(),
        routes.get(route).prefix,
        status.as_u16(),
        started_at.since(started.created).as_secs_f64(),
        finished_at.since(started_at).as_secs_f64(),
        if finished == Finished::Kept { "" } else { " result dropped" }
    );
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
