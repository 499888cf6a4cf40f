//! Workers and callers that wait in a store: whatever lets one of them go on wakes it, and the shutdown wakes all.
//!
//! As in `races`, each test is a function over a fresh store. Each runs so many rounds that a wake-up that is
//! sometimes lost will be lost here: the test then hangs, which is reported.

use std::sync::Arc;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;

use crate::store::kit::*;
use deferd::job::attempt::Claimed;
use deferd::job::execution::Stop;
use deferd::job::{JobKey, Keep, Rerun, RouteIndex};
use deferd::ledger::schedule::Limit;
use deferd::memory::Allowance;
use deferd::store::{Accepted, Lane, Patience, Plan, Status, Store, Submission, Tells};

suite! {
    in_memory by memory_with,
    on_disk by disk_with,
    on_disk_relaxed by relaxed_with,
    #[cfg(feature = "redis")]
    shared_store by shared_with:
    {
        a_submission_wakes_a_worker
        as_many_jobs_run_at_once_as_workers_wait
        a_free_place_in_a_lane_wakes_a_worker
        callers_and_jobs_share_a_lane
        the_shutdown_wakes_all_waiters
    }
}

// Not for the shared store: delays end in the engine, whatever watches the time; and callers wait here, but jobs
// there.
suite! {
    alone_in_memory by memory_with,
    alone_on_disk by disk_with,
    alone_on_disk_relaxed by relaxed_with:
    {
        jobs_that_are_due_at_once_run_at_once
        the_end_of_a_delay_wakes_its_waiters
        callers_and_jobs_run_in_order_of_arrival
        every_job_ends_whatever_becomes_of_it
    }
}

/// Longer than a test has patience.
const FAR: Duration = Duration::from_secs(3600);

/// Returns lanes with these limits, for this many workers.
fn lanes(workers: usize, limits: &[Limit]) -> Plan {
    let lane = |&limit| Lane { limit, rerun: Rerun::Harmless, tells: Tells::NONE };
    Plan {
        workers,
        queue: usize::MAX,
        ttl: Duration::MAX,
        log_ttl: Duration::ZERO,
        lanes: limits.iter().map(lane).collect(),
    }
}

/// Returns how many rounds of a test there is time for.
fn rounds_for(store: &dyn Store, in_memory: usize) -> usize {
    if store.name() == "memory" { in_memory } else { in_memory / 5 }
}

/// Stops a store, even if a test has failed: otherwise its workers would wait for ever.
struct StopAtEnd<'a>(&'a dyn Store);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.stop(Stop::Kill);
    }
}

/// Starts workers, which run jobs until the store is stopped.
fn work<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    count: usize,
    store: &'env dyn Store,
    run: &'env (dyn Fn(Claimed) + Sync),
) {
    for _ in 0..count {
        scope.spawn(move || {
            let memory = Allowance::default();
            while let Some(claimed) = store.claim(&memory, Patience::Forever) {
                run(claimed);
            }
        });
    }
}

fn finish_claimed(store: &dyn Store, claimed: &Claimed) {
    store.finish(&claimed.job, response(number_of(claimed)), at(THEN));
}

/// Submits job `n` to a lane.
fn submit_to(store: &dyn Store, lane: usize, n: usize) -> Job {
    let (call, route) = (call(n, &anonymous()), RouteIndex(lane));
    let line = line(&call);
    let submission =
        Submission { call, route, line, keep: Keep::Result, key: None, callback: None };
    let id = store.submit(submission, at(THEN)).map(Accepted::id).expect("there is room");
    Job { n, key: key(id) }
}

fn wait_done(store: &dyn Store, job: &JobKey) {
    store.wait(job, FAR, &|| false);
    assert!(matches!(store.status(job), Ok(Some(Status::Done(_)))));
}

/// Waits for a job's own result, and takes it.
fn await_result(store: &dyn Store, job: &Job) {
    wait_done(store, &job.key);
    assert!(deliver(store, job));
}

/// Submits jobs to a lane one after the other, each when the previous one is done.
fn submit_one_by_one(store: &dyn Store, lane: usize, rounds: usize) {
    for n in 0..rounds {
        await_result(store, &submit_to(store, lane, n));
    }
}

/// Counts what is under way.
#[derive(Default)]
struct Count(AtomicUsize);

impl Count {
    /// Counts one more as under way, until it [ends](Self::end); asserts that there are at most `limit`.
    fn begin(&self, limit: usize) {
        let before = self.0.fetch_add(1, Ordering::SeqCst);
        assert!(before < limit, "{} at once", before + 1);
    }

    fn end(&self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn a_submission_wakes_a_worker(open: OpenWith) {
    within_patience(move || {
        let store = &*open(lanes(2, &[Limit::Open]));
        let rounds = rounds_for(store, 4000);
        let run = |claimed: Claimed| finish_claimed(store, &claimed);
        thread::scope(|scope| {
            let _stop = StopAtEnd(store);
            work(scope, 2, store, &run);
            let submit = || submit_one_by_one(store, 0, rounds);
            race(&[&submit, &submit]);
        });
        assert_empty(store, &[]);
    });
}

/// Each job ends only when all of a round run.
fn as_many_jobs_run_at_once_as_workers_wait(open: OpenWith) {
    const WORKERS: usize = 4;
    within_patience(move || {
        let store = &*open(lanes(WORKERS, &[Limit::Open, Limit::Shared(2)]));
        let rounds = rounds_for(store, 2000);
        let all_run = Barrier::new(WORKERS);
        let run = |claimed: Claimed| {
            all_run.wait();
            finish_claimed(store, &claimed);
        };
        thread::scope(|scope| {
            let _stop = StopAtEnd(store);
            work(scope, WORKERS, store, &run);
            let submit = || {
                for n in 0..rounds {
                    let jobs = [0, 1].map(|lane| submit_to(store, lane, n));
                    jobs.iter().for_each(|job| await_result(store, job));
                }
            };
            race(&[&submit, &submit]);
        });
        assert_empty(store, &[]);
    });
}

/// A single check of the time lets all of them enter their lanes.
fn jobs_that_are_due_at_once_run_at_once(open: OpenWith) {
    const WORKERS: usize = 4;
    within_patience(move || {
        let store = &*open(lanes(WORKERS, &[Limit::Open]));
        let rounds = rounds_for(store, 1000);
        let all_run = Barrier::new(WORKERS);
        let run = |mut claimed: Claimed| {
            claimed.attempt.made += 1;
            if claimed.attempt.made == 1 {
                store.retry(&claimed.job, claimed.attempt, Instant::now(), at(THEN));
            } else {
                all_run.wait();
                finish_claimed(store, &claimed);
            }
        };
        thread::scope(|scope| {
            let _stop = StopAtEnd(store);
            work(scope, WORKERS, store, &run);
            for _ in 0..rounds {
                let jobs = [0, 1, 2, 3].map(|n| submit_to(store, 0, n));
                while store.stats().unwrap().delayed < WORKERS {
                    thread::yield_now();
                }
                assert!(store.overdue(Duration::ZERO).is_empty(), "all have to run");
                jobs.iter().for_each(|job| await_result(store, job));
            }
        });
        assert_empty(store, &[]);
    });
}

fn a_free_place_in_a_lane_wakes_a_worker(open: OpenWith) {
    within_patience(move || {
        let store = &*open(lanes(4, &[Limit::Shared(1)]));
        let (rounds, running) = (rounds_for(store, 2000), Count::default());
        let run = |claimed: Claimed| {
            running.begin(1);
            thread::yield_now();
            running.end();
            finish_claimed(store, &claimed);
        };
        thread::scope(|scope| {
            let _stop = StopAtEnd(store);
            work(scope, 4, store, &run);
            let submit = || submit_one_by_one(store, 0, rounds);
            race(&[&submit, &submit, &submit]);
        });
        assert_empty(store, &[]);
    });
}

/// The number of the job with which a test ends: it is odd, so its answer is delayed.
const LAST: usize = 1_000_001;

/// Watches the time of a store until the last job is due.
fn watch_time(store: &dyn Store) {
    let mut is_over = false;
    while !is_over {
        for mut claimed in store.overdue(FAR) {
            let answer = claimed.attempt.answer.take().expect("it only has to be finished");
            is_over |= number_of(&claimed) == LAST;
            store.finish(&claimed.job, answer.response, at(THEN));
        }
    }
}

/// Jobs that run twice, and jobs whose answers are delayed: only the end of a delay moves them.
fn the_end_of_a_delay_wakes_its_waiters(open: OpenWith) {
    within_patience(move || {
        let store = &*open(lanes(2, &[Limit::Open]));
        let rounds = rounds_for(store, 2000);
        let run = |mut claimed: Claimed| {
            let n = number_of(&claimed);
            claimed.attempt.made += 1;
            if n.is_multiple_of(2) && claimed.attempt.made == 2 {
                return finish_claimed(store, &claimed);
            }
            if !n.is_multiple_of(2) {
                claimed.attempt.answer = Some(response(n).into());
            }
            let until = Instant::now() + Duration::from_micros(n as u64 % 7 * 50);
            store.retry(&claimed.job, claimed.attempt, until, at(THEN));
        };
        thread::scope(|scope| {
            let _stop = StopAtEnd(store);
            work(scope, 2, store, &run);
            scope.spawn(|| watch_time(store));
            let submit = || submit_one_by_one(store, 0, rounds);
            race(&[&submit, &submit]);
            await_result(store, &submit_to(store, 0, LAST));
        });
        assert_empty(store, &[]);
    });
}

/// Calls and leaves again, or leaves the line before its turn.
fn call_in(store: &dyn Store, lane: usize, limit: usize, inside: &Count, is_patient: bool) {
    let (wake, let_in) = bounded(1);
    let route = RouteIndex(lane);
    let turn = match store.enter_lane(route, &wake) {
        Ok(()) => None,
        Err(turn) if !is_patient => return store.leave_lane(route, Some(turn)),
        Err(turn) => {
            let_in.recv().expect("it is let in");
            Some(turn)
        }
    };
    inside.begin(limit);
    thread::yield_now();
    inside.end();
    store.leave_lane(route, turn);
}

fn callers_and_jobs_share_a_lane(open: OpenWith) {
    const LIMIT: usize = 2;
    within_patience(move || {
        let store = &*open(lanes(3, &[Limit::Shared(LIMIT)]));
        let (rounds, inside) = (rounds_for(store, 2000), Count::default());
        let run = |claimed: Claimed| {
            inside.begin(LIMIT);
            thread::yield_now();
            inside.end();
            finish_claimed(store, &claimed);
        };
        thread::scope(|scope| {
            let _stop = StopAtEnd(store);
            work(scope, 3, store, &run);
            let submit = || submit_one_by_one(store, 0, rounds);
            let call = || {
                (0..rounds).for_each(|n| call_in(store, 0, LIMIT, &inside, n % 5 != 0));
            };
            race(&[&submit, &submit, &call, &call, &call]);
            // Each has given its place back.
            let (wake, _let_in) = bounded(1);
            for _ in 0..LIMIT {
                assert_eq!(store.enter_lane(RouteIndex(0), &wake), Ok(()));
            }
            assert!(store.enter_lane(RouteIndex(0), &wake).is_err());
        });
        assert_empty(store, &[]);
    });
}

fn callers_and_jobs_run_in_order_of_arrival(open: OpenWith) {
    let store = &*open(lanes(3, &[Limit::Shared(1)]));
    let lane = RouteIndex(0);
    let enter = || {
        let (wake, let_in) = bounded(1);
        (store.enter_lane(lane, &wake).expect_err("the lane is full"), let_in)
    };
    let first = submit_to(store, 0, 0);
    start(store, &first);
    let (one, one_let_in) = enter();
    let second = submit_to(store, 0, 1);
    let (leaver, leaver_let_in) = enter();
    let (two, two_let_in) = enter();
    let third = submit_to(store, 0, 2);
    assert!(claim(store).is_none() && one_let_in.is_empty());
    finish(store, &first);
    assert!(one_let_in.try_recv().is_ok(), "the caller that came before the job");
    assert!(claim(store).is_none());
    store.leave_lane(lane, Some(leaver));
    store.leave_lane(lane, Some(one));
    assert!(two_let_in.is_empty(), "the job came before it");
    start(store, &second);
    finish(store, &second);
    assert!(two_let_in.try_recv().is_ok());
    assert!(claim(store).is_none());
    store.leave_lane(lane, Some(two));
    assert!(leaver_let_in.is_empty(), "it had left");
    start(store, &third);
    finish(store, &third);
    assert!([first, second, third].iter().all(|job| deliver(store, job)));
    assert_empty(store, &[]);
}

/// Jobs are delayed, redirected and cancelled, and callers come and go, all at once.
fn every_job_ends_whatever_becomes_of_it(open: OpenWith) {
    const LIMITS: [Limit; 3] = [Limit::Open, Limit::Shared(1), Limit::Shared(2)];
    within_patience(move || {
        let store = &*open(lanes(3, &LIMITS));
        let rounds = rounds_for(store, 600);
        let inside: [Count; 3] = Default::default();
        let most = |lane: usize| match LIMITS[lane] {
            Limit::Shared(limit) => limit,
            _ => 3,
        };
        let run = |mut claimed: Claimed| {
            let lane = claimed.attempt.hop_route().0;
            inside[lane].begin(most(lane));
            thread::yield_now();
            inside[lane].end();
            let n = number_of(&claimed);
            claimed.attempt.made += 1;
            let (now, made) = (Instant::now(), claimed.attempt.made as usize);
            let Claimed { job, mut attempt } = claimed;
            match (n + made) % 5 {
                0 | 1 if made < 4 => {
                    let to = RouteIndex((lane + made) % LIMITS.len());
                    attempt.redirected = Some(redirected(to, now + FAR));
                    store.redirect(&job, attempt, at(THEN));
                }
                2 if made < 4 => {
                    attempt.redirected = None;
                    store.retry(&job, attempt, now + Duration::from_micros(80), at(THEN));
                }
                _ => {
                    attempt.answer = Some(response(n).into());
                    store.retry(&job, attempt, now, at(THEN));
                }
            }
        };
        thread::scope(|scope| {
            let _stop = StopAtEnd(store);
            work(scope, 3, store, &run);
            scope.spawn(|| watch_time(store));
            let submit = || {
                for n in (0..rounds).map(|n| n * LIMITS.len()) {
                    let jobs = [0, 1, 2].map(|lane| submit_to(store, lane, n + lane));
                    if n.is_multiple_of(2) {
                        assert_eq!(store.cancel(&jobs[n / 2 % 3].key, at(THEN)), Ok(true));
                    }
                    for job in &jobs {
                        wait_done(store, &job.key);
                        let Delivery { result, id } = collected(store, job).expect("it is done");
                        if result.to_response().status() != 410 {
                            job.assert_result(&result);
                        }
                        store.confirm(&job.key, id, at(THEN));
                    }
                }
            };
            let call = || {
                for n in 0..rounds {
                    let lane = 1 + n % 2;
                    call_in(store, lane, most(lane), &inside[lane], n % 5 != 0);
                }
            };
            race(&[&submit, &submit, &call, &call]);
            await_result(store, &submit_to(store, 0, LAST));
        });
        assert_empty(store, &[]);
    });
}

fn the_shutdown_wakes_all_waiters(open: OpenWith) {
    for round in 0..ROUNDS / 10 {
        within_patience(move || {
            let store = open(lanes(4, &[Limit::Open, Limit::Shared(1)]));
            // One runs, and one waits for its place.
            let jobs = [0, 1].map(|n| submit_to(&*store, 1, n));
            let execution = start(&*store, &jobs[0]);
            let waiting = Arc::new(AtomicUsize::new(0));
            let threads: Vec<_> = (0..4)
                .map(|n| {
                    let (store, waiting) = (Arc::clone(&store), Arc::clone(&waiting));
                    let job = jobs[n % 2].key.clone();
                    thread::spawn(move || {
                        waiting.fetch_add(1, Ordering::AcqRel);
                        if n < 2 {
                            return store.claim(&Allowance::default(), Patience::Forever).is_none();
                        }
                        store.wait(&job, FAR, &|| false);
                        true
                    })
                })
                .collect();
            while waiting.load(Ordering::Acquire) < 4 {
                thread::yield_now();
            }
            // Sometimes they already wait, sometimes not quite.
            (0..round * 10).for_each(|_| thread::yield_now());
            store.stop(Stop::Cancel);
            assert!(threads.into_iter().all(|thread| thread.join().unwrap()), "no job is begun");
            assert_eq!(execution.stopped(), Some(Stop::Cancel));
            assert!(claim(&*store).is_none());
            store.stop(Stop::Kill);
            assert_eq!(execution.stopped(), Some(Stop::Kill));
            let left = if store.name() == "memory" { listed(&*store) } else { vec![] };
            assert_eq!(store.close(), left);
        });
    }
}
