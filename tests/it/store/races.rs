//! Races over the `Store` trait: two or more threads want the same jobs, thousands of times.
//!
//! Each race is a function over a fresh store, so that the same list runs over every store. In each round the racers
//! go through one batch in the same order, so that they meet often; what must hold does not depend on who wins. After
//! each round the accounts must be exact.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::store::kit::*;
use deferd::job::attempt::Claimed;
use deferd::job::execution::Stop;
use deferd::job::stored::StoredResponse;
use deferd::job::{JobId, Keep, RouteIndex};
use deferd::store::{Finished, IdempotencyKey, JobState, List, Lookup, Status, Store, Submission};

suite! {
    in_memory by memory,
    on_disk by disk,
    on_disk_relaxed by relaxed,
    #[cfg(feature = "redis")]
    shared_store by shared:
    {
        a_job_is_claimed_by_one_worker
        a_job_that_is_put_back_is_claimed_once_more
        a_delayed_job_runs_again_or_is_cancelled
        a_result_is_handed_to_one_collector
        a_result_survives_failed_deliveries_and_is_delivered_once
        a_result_is_delivered_or_expires_never_both
        a_result_is_delivered_or_deleted_never_both
        a_failed_delivery_does_not_restore_deleted_results
        a_collector_cannot_hide_results_from_a_deletion_in_bulk
        a_job_deleted_while_it_finishes_is_deleted_or_delivered_never_both
        deleting_a_job_does_not_keep_it_from_running
        deleting_all_stops_no_job_and_leaves_none
        cancelling_wins_or_the_worker_is_told
        a_cancelled_job_says_so_or_was_finished_before
        a_job_never_vanishes_between_its_states
        a_job_that_nobody_waits_for_runs_and_is_listed_nowhere
        a_key_is_accepted_while_all_are_forgotten
    }
}

// Not for the shared store: jobs that have their answer end in the engine.
suite! {
    alone_in_memory by memory,
    alone_on_disk by disk,
    alone_on_disk_relaxed by relaxed:
    {
        a_delayed_job_is_cancelled_or_falls_due
    }
}

fn a_job_is_claimed_by_one_worker(open: Open) {
    rounds(open, |store| {
        let jobs = batch(store, BATCH, Until::Waiting);
        let work = || claim_all(store);
        let mut claimed = race(&[&work, &work, &work]).concat();
        claimed.sort_by_key(|job| job.id);
        assert!(claimed.iter().eq(jobs.iter().map(|job| &job.key)), "each once");
        for job in &jobs {
            assert_eq!(finish(store, job), Finished::Kept);
            assert!(deliver(store, job));
        }
        assert_empty(store, &jobs);
    });
}

/// Makes a claimed job wait for its next attempt, which is due.
fn put_back(store: &dyn Store, claimed: Claimed) {
    store.retry(&claimed.job, claimed.attempt, Instant::now(), at(THEN));
    assert!(store.overdue(Duration::ZERO).is_empty(), "it has to run again");
}

fn a_job_that_is_put_back_is_claimed_once_more(open: Open) {
    rounds(open, |store| {
        let jobs = batch(store, BATCH, Until::Waiting);
        let (times, finished) = (Mutex::new(HashMap::new()), AtomicUsize::new(0));
        let work = || {
            while finished.load(Ordering::Acquire) < BATCH {
                let Some(claimed) = claim(store) else { continue };
                let time = *times
                    .lock()
                    .unwrap()
                    .entry(claimed.job.id)
                    .and_modify(|time| *time += 1)
                    .or_insert(1);
                let job = Job { n: number_of(&claimed), key: claimed.job.clone() };
                if time == 1 && job.n.is_multiple_of(2) {
                    put_back(store, claimed);
                } else {
                    assert_eq!(finish(store, &job), Finished::Kept);
                    finished.fetch_add(1, Ordering::AcqRel);
                }
            }
        };
        race(&[&work, &work, &work]);
        let times = times.into_inner().unwrap();
        for job in &jobs {
            assert_eq!(times[&job.key.id], if job.n.is_multiple_of(2) { 2 } else { 1 });
            assert!(deliver(store, job));
        }
        assert_empty(store, &jobs);
    });
}

fn a_delayed_job_runs_again_or_is_cancelled(open: Open) {
    rounds(open, |store| {
        let jobs = batch(store, BATCH, Until::Waiting);
        let first: Vec<Claimed> = jobs.iter().map(|_| claim(store).expect("it waits")).collect();
        let first = Mutex::new(first);
        let work = || {
            std::mem::take(&mut *first.lock().unwrap())
                .into_iter()
                .for_each(|claimed| put_back(store, claimed));
            std::iter::from_fn(|| claim(store)).collect::<Vec<_>>()
        };
        let cancel = || {
            jobs.iter().for_each(|job| assert_eq!(store.cancel(&job.key, at(THEN)), Ok(true)));
            Vec::new()
        };
        let again = race(&[&work, &cancel]).into_iter().flatten().collect::<Vec<Claimed>>();
        for claimed in &again {
            // It was running when it was cancelled.
            assert_eq!(claimed.attempt.execution.stopped(), Some(Stop::Cancel));
            store.finish(&claimed.job, response(0), at(THEN));
        }
        store.flush().unwrap();
        for job in &jobs {
            let Delivery { result, id } = collected(store, job).expect("it is done");
            assert_eq!(status_of(&result), 410);
            store.confirm(&job.key, id, at(THEN));
        }
        assert_empty(store, &jobs);
    });
}

fn a_delayed_job_is_cancelled_or_falls_due(open: Open) {
    rounds(open, |store| {
        let jobs = batch(store, BATCH, Until::Waiting);
        for _ in &jobs {
            let Claimed { job, mut attempt } = claim(store).expect("it waits");
            attempt.answer = Some(response(number(attempt.call.request.uri().path())).into());
            store.retry(&job, attempt, Instant::now(), at(THEN));
        }
        let cancel = || {
            jobs.iter().for_each(|job| assert_eq!(store.cancel(&job.key, at(THEN)), Ok(true)));
            Vec::new()
        };
        let watch = || store.overdue(Duration::ZERO);
        let due = race(&[&watch, &cancel, &watch]).into_iter().flatten().collect::<Vec<Claimed>>();
        let ids: BTreeSet<JobId> = due.iter().map(|claimed| claimed.job.id).collect();
        assert_eq!(ids.len(), due.len(), "each once");
        for Claimed { job, attempt } in due {
            assert_eq!(attempt.execution.stopped(), Some(Stop::Cancel));
            store.finish(&job, attempt.answer.expect("it has its answer").response, at(THEN));
        }
        store.flush().unwrap();
        for job in &jobs {
            let Delivery { result, id } = collected(store, job).expect("it is done");
            assert_eq!(status_of(&result), 410);
            store.confirm(&job.key, id, at(THEN));
        }
        assert_empty(store, &jobs);
    });
}

fn a_result_is_handed_to_one_collector(open: Open) {
    rounds(open, |store| {
        let jobs = batch(store, BATCH, Until::Done);
        let collect = || count(jobs.iter().map(|job| deliver(store, job)));
        let delivered = race(&[&collect, &collect, &collect]);
        assert_eq!(delivered.iter().sum::<usize>(), BATCH);
        assert_empty(store, &jobs);
    });
}

fn a_result_survives_failed_deliveries_and_is_delivered_once(open: Open) {
    rounds(open, |store| {
        let jobs = batch(store, BATCH, Until::Done);
        let fail = || {
            for job in &jobs {
                if let Some(delivery) = collected(store, job) {
                    store.restore(&job.key, delivery.id);
                }
            }
            0
        };
        let collect = || count(jobs.iter().map(|job| deliver(store, job)));
        let delivered: usize = race(&[&fail, &collect, &fail, &collect]).into_iter().sum();
        // A collector finds nothing while another delivery is under way, and may try again.
        assert_eq!(delivered + collect(), BATCH);
        assert_empty(store, &jobs);
    });
}

/// Collects every result, and delivers every other one; returns how many it delivered.
fn deliver_every_other<'a>(store: &dyn Store, jobs: impl Iterator<Item = &'a Job>) -> usize {
    let mut delivered = 0;
    for job in jobs {
        let Some(Delivery { id, .. }) = collected(store, job) else { continue };
        if job.n.is_multiple_of(2) {
            store.confirm(&job.key, id, at(THEN));
            delivered += 1;
        } else {
            store.restore(&job.key, id);
        }
    }
    delivered
}

fn a_result_is_delivered_or_expires_never_both(open: Open) {
    rounds(open, |store| {
        let jobs = batch(store, BATCH, Until::Done);
        let collect = || deliver_every_other(store, jobs.iter());
        let expire = || (0..4).map(|_| store.expire(at(LATER).age).unwrap()).sum();
        let gone: usize = race(&[&collect, &expire, &expire]).into_iter().sum();
        // A result that was in delivery at that moment was restored, and expires now.
        assert_eq!(gone + store.expire(at(LATER).age).unwrap(), BATCH);
        assert_empty(store, &jobs);
    });
}

fn a_result_is_delivered_or_deleted_never_both(open: Open) {
    rounds(open, |store| {
        let jobs = batch(store, BATCH, Until::Done);
        let collect = || deliver_every_other(store, jobs.iter());
        let delete = || count(jobs.iter().map(|job| store.forget(&job.key).unwrap()));
        let gone: usize = race(&[&collect, &delete, &delete]).into_iter().sum();
        assert_eq!(
            gone + delete(),
            BATCH,
            "a job in delivery cannot be deleted, a restored one can"
        );
        assert_empty(store, &jobs);
    });
}

/// The deletions in bulk that reach results in delivery.
const BULK: [fn(&dyn Store); 2] = [
    |store| store.forget_all(&anonymous()).unwrap(),
    |store| store.forget_before(&anonymous(), at(LATER).stamp).unwrap(),
];

fn a_failed_delivery_does_not_restore_deleted_results(open: Open) {
    rounds(open, |store| {
        for delete in BULK {
            let jobs = batch(store, BATCH, Until::Done);
            let collect = |job| collected(store, job).expect("it is done").id;
            let deliveries: Vec<_> = jobs.iter().map(|job| (job, collect(job))).collect();
            let restore = || deliveries.iter().for_each(|(job, id)| store.restore(&job.key, *id));
            race(&[&restore, &|| delete(store)]);
            restore();
            assert_empty(store, &jobs);
        }
    });
}

fn a_collector_cannot_hide_results_from_a_deletion_in_bulk(open: Open) {
    let store = &*open();
    // More than one hold of a lock can handle, and therefore fewer rounds.
    for round in 0..ROUNDS / 10 {
        let jobs = batch(store, 600, Until::Done);
        let collect = || {
            deliver_every_other(store, jobs.iter().rev());
        };
        race(&[&collect, &|| BULK[round % 2](store), &collect]);
        assert_empty(store, &jobs);
    }
}

fn a_job_deleted_while_it_finishes_is_deleted_or_delivered_never_both(open: Open) {
    rounds(open, |store| {
        let jobs = batch(store, BATCH, Until::Running);
        let work = || {
            let kept = jobs.iter().map(|job| (job, finish(store, job)));
            count(kept.map(|(job, kept)| deliver(store, job) && kept == Finished::Kept))
        };
        let delete = || count(jobs.iter().map(|job| store.forget(&job.key).unwrap()));
        let gone: usize = race(&[&work, &delete]).into_iter().sum();
        // The rest was in delivery when it was deleted: it was delivered, so `gone` counts it.
        assert_eq!(gone, BATCH);
        assert_empty(store, &jobs);
    });
}

fn deleting_a_job_does_not_keep_it_from_running(open: Open) {
    rounds(open, |store| {
        let jobs = batch(store, BATCH, Until::Waiting);
        let work = || claim_all(store);
        let delete = || {
            jobs.iter().for_each(|job| assert_eq!(store.forget(&job.key), Ok(true)));
            Vec::new()
        };
        let mut claimed = race(&[&work, &delete, &work]).concat();
        claimed.sort_by_key(|job| job.id);
        assert!(claimed.iter().eq(jobs.iter().map(|job| &job.key)), "each runs once");
        for job in &jobs {
            assert_eq!(finish(store, job), Finished::Dropped);
        }
        assert_empty(store, &jobs);
    });
}

fn deleting_all_stops_no_job_and_leaves_none(open: Open) {
    rounds(open, |store| {
        for delete in BULK {
            let jobs = batch(store, BATCH, Until::Waiting);
            let work = || {
                for job in &jobs {
                    // A forgotten one as well.
                    start(store, job);
                    finish(store, job);
                }
            };
            race(&[&work, &|| delete(store)]);
            assert_empty(store, &jobs);
        }
    });
}

fn cancelling_wins_or_the_worker_is_told(open: Open) {
    rounds(open, |store| {
        let jobs = batch(store, BATCH, Until::Waiting);
        let cancelled = Mutex::new(Vec::new());
        let cancel = || {
            let all = jobs
                .iter()
                .map(|job| store.cancel(&job.key, at(THEN)).unwrap())
                .collect::<Vec<_>>();
            cancelled.lock().unwrap().extend(all);
            Vec::new()
        };
        let work = || std::iter::from_fn(|| claim(store)).collect::<Vec<_>>();
        let started = race(&[&cancel, &work]).pop().unwrap();
        let mut started = started.into_iter().peekable();
        assert_eq!(cancelled.into_inner().unwrap(), [true; BATCH], "each of them existed");
        assert_eq!(store.stats().unwrap().waiting, 0);
        store.flush().unwrap();
        for job in &jobs {
            if let Some(claimed) = started.next_if(|claimed| claimed.job == job.key) {
                assert_eq!(
                    store.status(&job.key),
                    Ok(Some(Status::Pending(JobState::Running, None)))
                );
                assert_eq!(claimed.attempt.execution.stopped(), Some(Stop::Cancel));
                finish(store, job);
            }
            let Delivery { result, id } = collected(store, job).expect("it is done");
            assert_eq!(status_of(&result), 410);
            store.confirm(&job.key, id, at(THEN));
        }
        assert!(started.next().is_none(), "each once, in order");
        assert_empty(store, &jobs);
    });
}

fn status_of(result: &StoredResponse) -> u16 {
    result.to_response().status().as_u16()
}

fn a_cancelled_job_says_so_or_was_finished_before(open: Open) {
    rounds(open, |store| {
        let jobs: Vec<Job> = (0..BATCH).map(|n| submit(store, n, Keep::Result)).collect();
        let executions: Vec<_> = jobs.iter().map(|job| start(store, job)).collect();
        let cancel = || {
            assert!(
                jobs.iter().all(|job| store.cancel(&job.key, at(THEN)).unwrap()),
                "each existed"
            );
            Vec::new()
        };
        let work = || jobs.iter().map(|job| finish(store, job)).collect::<Vec<_>>();
        let finished = race(&[&cancel, &work]).pop().unwrap();
        store.flush().unwrap();
        for ((job, execution), finished) in jobs.iter().zip(executions).zip(finished) {
            let Delivery { result, id } =
                collected(store, job).expect("a cancelled job has a result too");
            if execution.stopped().is_some() {
                assert_eq!(status_of(&result), 410);
                assert_eq!(finished, Finished::Dropped, "the handler's own answer is lost");
            } else {
                job.assert_result(&result);
                assert_eq!(finished, Finished::Kept);
            }
            store.confirm(&job.key, id, at(THEN));
        }
        assert_empty(store, &jobs);
    });
}

fn a_job_never_vanishes_between_its_states(open: Open) {
    rounds(open, |store| {
        let jobs = batch(store, BATCH, Until::Waiting);
        let work = || {
            for job in &jobs {
                if job.n.is_multiple_of(4) {
                    store.cancel(&job.key, at(THEN)).unwrap();
                } else {
                    start(store, job);
                    finish(store, job);
                }
            }
        };
        let look = || {
            for job in &jobs {
                let status = || store.status(&job.key).unwrap().expect("the job exists");
                let before = status();
                let result = store.peek(&job.key);
                let after = status();
                match result {
                    Lookup::Unknown | Lookup::Unreadable | Lookup::NoMemory | Lookup::TooLarge => {
                        panic!("the job exists")
                    }
                    Lookup::Pending => assert!(!matches!(before, Status::Done(_))),
                    Lookup::Done(_) => assert!(matches!(after, Status::Done(_))),
                }
            }
            assert!(listed(store).iter().eq(jobs.iter().map(|job| &job.key.id)));
        };
        race(&[&work, &look, &look]);
        store.forget_all(&anonymous()).unwrap();
        assert_empty(store, &jobs);
    });
}

fn a_job_that_nobody_waits_for_runs_and_is_listed_nowhere(open: Open) {
    rounds(open, |store| {
        let work = || {
            for n in 0..BATCH {
                let job = submit(store, n, Keep::Nothing);
                assert!(
                    !store.forget(&job.key).unwrap() && !store.cancel(&job.key, at(THEN)).unwrap()
                );
                // Only workers reach it: this one, or the other.
                let claimed = claim(store).expect("one waits for each worker");
                let job = Job { n: number_of(&claimed), key: claimed.job };
                assert_eq!(store.status(&job.key), Ok(None));
                assert_eq!(finish(store, &job), Finished::Dropped);
                assert!(collected(store, &job).is_none());
            }
        };
        let sweep = || {
            for _ in 0..BATCH / 4 {
                BULK.iter().for_each(|delete| delete(store));
                assert_eq!(store.expire(at(LATER).age), Ok(0));
                assert_eq!(list_all(store, List::Pending), []);
                assert_eq!(list_all(store, List::Done), []);
            }
        };
        race(&[&work, &work, &sweep]);
        assert_empty(store, &[]);
    });
}

/// Whichever comes first, there is no reason to refuse it.
fn a_key_is_accepted_while_all_are_forgotten(open: Open) {
    rounds(open, |store| {
        let submitted = Mutex::new(HashSet::new());
        let submit = || {
            for n in 0..BATCH / 4 {
                let key = IdempotencyKey { key: "one".into(), fingerprint: [1; 32] };
                let known = store.recall(&anonymous(), &key).expect("it is the same request");
                let id = known.unwrap_or_else(|| {
                    let (call, route) = (call(0, &anonymous()), RouteIndex(0));
                    let (line, keep, key) = (line(&call), Keep::Result, Some(key));
                    let submission = Submission { call, route, line, keep, key, callback: None };
                    let accepted = store.submit(submission, at(THEN));
                    accepted.unwrap_or_else(|refused| panic!("{n}: {refused:?}")).id()
                });
                submitted.lock().unwrap().insert(id);
            }
        };
        let forget = || (0..BATCH / 4).for_each(|_| store.forget_all(&anonymous()).unwrap());
        race(&[&submit, &submit, &forget]);
        store.forget_all(&anonymous()).unwrap();
        let claimed = claim_all(store);
        let ids: HashSet<JobId> = claimed.iter().map(|job| job.id).collect();
        assert_eq!(ids, submitted.into_inner().unwrap(), "each was accepted, and none has run");
        for key in claimed {
            assert_eq!(finish(store, &Job { n: 0, key }), Finished::Dropped);
        }
        assert_empty(store, &[]);
    });
}
