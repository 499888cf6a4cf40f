//! Races over the `Store` trait: two threads or more want the same jobs, thousands of times.
//!
//! Each race is a function over a fresh store, so that every store can be run through the same
//! list. In each round the racers go through one batch in the same order, so that they meet often;
//! what must hold does not depend on who wins. After each round the accounts must be exact.

use std::collections::HashSet;
use std::sync::Mutex;

use crate::store::kit::*;
use deferd::job::execution::Stop;
use deferd::job::stored::StoredResponse;
use deferd::store::{Finished, IdempotencyKey, Keep, List, Lookup, Status, Store, Submission};

suite! { in_memory by memory:
    a_request_is_handed_to_one_worker
    a_result_is_handed_to_one_collector
    a_result_survives_failed_deliveries_and_is_delivered_once
    a_result_is_delivered_or_expires_never_both
    a_result_is_delivered_or_deleted_never_both
    a_failed_delivery_does_not_resurrect_what_was_deleted_in_bulk
    a_collector_cannot_hide_results_from_a_deletion_in_bulk
    a_job_deleted_while_it_finishes_is_deleted_or_delivered_never_both
    deleting_all_stops_no_job_and_leaves_none
    cancelling_wins_or_the_worker_is_told
    a_cancelled_job_says_so_or_was_finished_before
    a_job_never_vanishes_between_its_states
    a_job_that_nobody_waits_for_runs_and_is_listed_nowhere
    a_key_is_accepted_while_all_are_forgotten
}

suite! { on_disk by disk:
    a_request_is_handed_to_one_worker
    a_result_is_handed_to_one_collector
    a_result_survives_failed_deliveries_and_is_delivered_once
    a_result_is_delivered_or_expires_never_both
    a_result_is_delivered_or_deleted_never_both
    a_failed_delivery_does_not_resurrect_what_was_deleted_in_bulk
    a_collector_cannot_hide_results_from_a_deletion_in_bulk
    a_job_deleted_while_it_finishes_is_deleted_or_delivered_never_both
    deleting_all_stops_no_job_and_leaves_none
    cancelling_wins_or_the_worker_is_told
    a_cancelled_job_says_so_or_was_finished_before
    a_job_never_vanishes_between_its_states
    a_job_that_nobody_waits_for_runs_and_is_listed_nowhere
    a_key_is_accepted_while_all_are_forgotten
}

suite! { on_disk_relaxed by relaxed:
    a_request_is_handed_to_one_worker
    a_result_is_handed_to_one_collector
    a_result_survives_failed_deliveries_and_is_delivered_once
    a_result_is_delivered_or_expires_never_both
    a_result_is_delivered_or_deleted_never_both
    a_failed_delivery_does_not_resurrect_what_was_deleted_in_bulk
    a_collector_cannot_hide_results_from_a_deletion_in_bulk
    a_job_deleted_while_it_finishes_is_deleted_or_delivered_never_both
    deleting_all_stops_no_job_and_leaves_none
    cancelling_wins_or_the_worker_is_told
    a_cancelled_job_says_so_or_was_finished_before
    a_job_never_vanishes_between_its_states
    a_job_that_nobody_waits_for_runs_and_is_listed_nowhere
    a_key_is_accepted_while_all_are_forgotten
}

fn a_request_is_handed_to_one_worker(open: Open) {
    rounds(open, |store| {
        let jobs = batch(store, BATCH, Until::Queued);
        let work = || count(jobs.iter().map(|job| start(store, job).is_some()));
        let started = race(&[&work, &work, &work]);
        assert_eq!(started.iter().sum::<usize>(), BATCH);
        for job in &jobs {
            assert_eq!(finish(store, job), Finished::Kept);
            assert!(deliver(store, job));
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
            for job in jobs.iter().filter(|job| collected(store, job).is_some()) {
                store.restore(&job.key);
            }
            0
        };
        let collect = || count(jobs.iter().map(|job| deliver(store, job)));
        let delivered: usize = race(&[&fail, &collect, &fail, &collect]).into_iter().sum();
        // A collector finds nothing while another one's delivery is under way, and may come again.
        assert_eq!(delivered + collect(), BATCH);
        assert_empty(store, &jobs);
    });
}

/// Collects every result that is there, and delivers every other one; how many that were.
fn deliver_every_other(store: &dyn Store, jobs: &[Job]) -> usize {
    let mut delivered = 0;
    for job in jobs.iter().filter(|job| collected(store, job).is_some()) {
        if job.n.is_multiple_of(2) {
            store.confirm(&job.key);
            delivered += 1;
        } else {
            store.restore(&job.key);
        }
    }
    delivered
}

fn a_result_is_delivered_or_expires_never_both(open: Open) {
    rounds(open, |store| {
        let jobs = batch(store, BATCH, Until::Done);
        let collect = || deliver_every_other(store, &jobs);
        let expire = || (0..4).map(|_| store.expire_results(at(LATER))).sum();
        let gone: usize = race(&[&collect, &expire, &expire]).into_iter().sum();
        // What was in delivery at that moment came back, and expires now.
        assert_eq!(gone + store.expire_results(at(LATER)), BATCH);
        assert_empty(store, &jobs);
    });
}

fn a_result_is_delivered_or_deleted_never_both(open: Open) {
    rounds(open, |store| {
        let jobs = batch(store, BATCH, Until::Done);
        let collect = || deliver_every_other(store, &jobs);
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
    |store| store.forget_all(&nobody()).unwrap(),
    |store| store.forget_before(&nobody(), at(LATER)).unwrap(),
];

fn a_failed_delivery_does_not_resurrect_what_was_deleted_in_bulk(open: Open) {
    rounds(open, |store| {
        for delete in BULK {
            let jobs = batch(store, BATCH, Until::InDelivery);
            let restore = || jobs.iter().for_each(|job| store.restore(&job.key));
            race(&[&restore, &|| delete(store)]);
            restore();
            assert_empty(store, &jobs);
        }
    });
}

fn a_collector_cannot_hide_results_from_a_deletion_in_bulk(open: Open) {
    let store = &*open();
    // More than one hold of a lock can take, and so fewer rounds.
    for round in 0..ROUNDS / 10 {
        let jobs = batch(store, 600, Until::Done);
        let collect = || {
            for job in jobs.iter().rev().filter(|job| collected(store, job).is_some()) {
                if job.n.is_multiple_of(2) {
                    store.confirm(&job.key);
                } else {
                    store.restore(&job.key);
                }
            }
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
        // The rest was in delivery when it was to be deleted: delivered, so `gone` counts it.
        assert_eq!(gone, BATCH);
        assert_empty(store, &jobs);
    });
}

fn deleting_all_stops_no_job_and_leaves_none(open: Open) {
    rounds(open, |store| {
        for delete in BULK {
            let jobs = batch(store, BATCH, Until::Queued);
            let work = || {
                for job in &jobs {
                    start(store, job).expect("a forgotten job runs");
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
        let jobs = batch(store, BATCH, Until::Queued);
        let cancelled = Mutex::new(Vec::new());
        let cancel = || {
            let all = jobs
                .iter()
                .map(|job| store.cancel(&job.key, at(THEN)).unwrap())
                .collect::<Vec<_>>();
            cancelled.lock().unwrap().extend(all);
            Vec::new()
        };
        let work = || jobs.iter().map(|job| start(store, job)).collect::<Vec<_>>();
        let started = race(&[&cancel, &work]).pop().unwrap();
        assert_eq!(cancelled.into_inner().unwrap(), [true; BATCH], "each of them existed");
        for (job, execution) in jobs.iter().zip(started) {
            assert!(!store.is_queued(&job.key));
            if let Some(execution) = execution {
                assert_eq!(store.status(&job.key), Some(Status::Pending(None)));
                assert_eq!(execution.stopped(), Some(Stop::Cancel));
                finish(store, job);
            }
            store.flush().unwrap();
            assert_eq!(status_of(collected(store, job)), 410);
            store.confirm(&job.key);
        }
        assert_empty(store, &jobs);
    });
}

fn status_of(result: Option<StoredResponse>) -> u16 {
    result.expect("a result").to_response().status().as_u16()
}

fn a_cancelled_job_says_so_or_was_finished_before(open: Open) {
    rounds(open, |store| {
        let jobs: Vec<Job> = (0..BATCH).map(|n| submit(store, n, Keep::Result)).collect();
        let executions: Vec<_> = jobs.iter().map(|job| start(store, job).unwrap()).collect();
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
            let result = collected(store, job).expect("a cancelled job has a result too");
            if execution.stopped().is_some() {
                assert_eq!(status_of(Some(result)), 410);
                assert_eq!(finished, Finished::Dropped, "the handler's own answer is lost");
            } else {
                job.assert_result(&result);
                assert_eq!(finished, Finished::Kept);
            }
            store.confirm(&job.key);
        }
        assert_empty(store, &jobs);
    });
}

fn a_job_never_vanishes_between_its_states(open: Open) {
    rounds(open, |store| {
        let jobs = batch(store, BATCH, Until::Queued);
        let work = || {
            for job in &jobs {
                if job.n.is_multiple_of(4) {
                    store.cancel(&job.key, at(THEN)).unwrap();
                } else {
                    start(store, job).expect("it waits");
                    finish(store, job);
                }
            }
        };
        let look = || {
            for job in &jobs {
                let before = store.status(&job.key).expect("the job exists");
                let result = store.peek(&job.key);
                let after = store.status(&job.key).expect("the job exists");
                match result {
                    Lookup::Unknown | Lookup::Unreadable | Lookup::NoMemory | Lookup::TooLarge => {
                        panic!("the job exists")
                    }
                    Lookup::Pending => assert_ne!(before, Status::Done),
                    Lookup::Done(_) => assert_eq!(after, Status::Done),
                }
            }
            let ids = store.remaining();
            assert_eq!(ids.len(), BATCH);
            assert!(ids.iter().collect::<HashSet<_>>().len() == BATCH, "{ids:?}");
        };
        race(&[&work, &look, &look]);
        store.forget_all(&nobody()).unwrap();
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
                assert!(store.is_queued(&job.key));
                start(store, &job).expect("nothing but a worker reaches it");
                assert_eq!(store.status(&job.key), None);
                assert_eq!(finish(store, &job), Finished::Dropped);
                assert!(collected(store, &job).is_none());
            }
        };
        let sweep = || {
            for _ in 0..BATCH / 4 {
                BULK.iter().for_each(|delete| delete(store));
                assert_eq!(store.expire_results(at(LATER)), 0);
                assert_eq!(store.list(&nobody(), List::Pending, 9), []);
                assert_eq!(store.list(&nobody(), List::Done, 9), []);
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
                let known = store.recall(&nobody(), &key).expect("it is the same request");
                let id = known.unwrap_or_else(|| {
                    let (call, keep, key) = (call(0, &nobody()), Keep::Result, Some(key));
                    let accepted = store.submit(Submission { call, keep, key }, at(THEN));
                    accepted.unwrap_or_else(|refused| panic!("{n}: {refused:?}")).id()
                });
                submitted.lock().unwrap().insert(id);
            }
        };
        let forget = || (0..BATCH / 4).for_each(|_| store.forget_all(&nobody()).unwrap());
        race(&[&submit, &submit, &forget]);
        store.forget_all(&nobody()).unwrap();
        for id in submitted.into_inner().unwrap() {
            let job = Job { n: 0, key: key(id) };
            start(store, &job).expect("each was accepted, and none has run");
            assert_eq!(finish(store, &job), Finished::Dropped);
        }
        assert_empty(store, &[]);
    });
}
