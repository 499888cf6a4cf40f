//! A store under load: many threads submit at once, to the last byte of its capacity.
//!
//! As in `races`, each test is a function over a fresh store.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use crate::store::kit::*;
use deferd::job::Keep;
use deferd::store::{Finished, List, Refused};

suite! {
    in_memory by memory,
    on_disk by disk,
    on_disk_relaxed by relaxed,
    #[cfg(feature = "redis")]
    shared_store by shared:
    {
        a_full_store_takes_exactly_what_fits
        ids_are_unique_and_increase
        every_result_arrives_once_from_many_producers
    }
}

// Not for the shared store, which forgets in the engine.
suite! {
    alone_in_memory by memory,
    alone_on_disk by disk,
    alone_on_disk_relaxed by relaxed:
    {
        results_expire_some_hundreds_at_a_time
    }
}

/// So that what is due in the meantime does not wait for all of them.
fn results_expire_some_hundreds_at_a_time(open: Open) {
    const JOBS: usize = 1500;
    let store = open();
    for _ in 0..JOBS / BATCH + 1 {
        batch(&*store, BATCH, Until::Done);
    }
    let all = listed(&*store).len();
    let mut expired = Vec::new();
    while let count @ 1.. = store.expire(at(LATER).age).unwrap() {
        expired.push(count);
        assert_eq!(listed(&*store).len(), all - expired.iter().sum::<usize>());
    }
    assert!(expired.len() > 2 && expired.iter().sum::<usize>() == all, "{expired:?}");
    assert_empty(&*store, &[]);
}

fn a_full_store_takes_exactly_what_fits(open: Open) {
    const BODY: usize = 64 * 1024;
    rounds(open, |store| {
        let large = || {
            let mut call = call(0, &anonymous());
            *call.request.body_mut() = vec![b'.'; BODY].into();
            call
        };
        let footprint = JOB + line(&large()).footprint() + large().footprint();
        let fill = || {
            let mut accepted = Vec::new();
            loop {
                match offer(store, large(), Keep::Result, at(THEN)) {
                    Ok(id) => accepted.push(id),
                    Err(refused) => {
                        assert_eq!(refused, Refused::Full);
                        return accepted;
                    }
                }
            }
        };
        let accepted = race(&[&fill, &fill, &fill]).concat();
        assert_eq!(accepted.len(), CAPACITY / footprint);
        assert!(has_exactly(store, CAPACITY % footprint));
        // Their work takes room until it is done, wanted or not.
        store.forget_all(&anonymous()).unwrap();
        assert!(!has_room(store, footprint));
        assert_eq!(claim_all(store).len(), accepted.len());
        let jobs: Vec<Job> = accepted.into_iter().map(|id| Job { n: 0, key: key(id) }).collect();
        jobs.iter().for_each(|job| {
            assert_eq!(finish(store, job), Finished::Dropped);
        });
        assert_empty(store, &jobs);
    });
}

fn ids_are_unique_and_increase(open: Open) {
    rounds(open, |store| {
        // The clock of each thread stands still or steps back.
        let submit_all = || {
            let times = (0..BATCH).map(|n| at(THEN - (n % 7) as f64));
            let calls = times.map(|now| offer(store, call(0, &anonymous()), Keep::Result, now));
            calls.collect::<Result<Vec<_>, _>>().unwrap()
        };
        let ids = race(&[&submit_all, &submit_all, &submit_all]);
        assert!(ids.iter().all(|ids| ids.is_sorted_by(|a, b| a < b)));
        let all: HashSet<_> = ids.concat().into_iter().collect();
        assert_eq!(all.len(), 3 * BATCH);
        assert!(list_all(store, List::Pending).is_sorted_by(|a, b| a < b));
        store.forget_all(&anonymous()).unwrap();
        assert_eq!(claim_all(store).len(), all.len());
        for n in all {
            store.finish(&key(n), response(0), at(THEN));
        }
        assert_empty(store, &[]);
    });
}

/// Producers, workers and collectors run at once, on a store that is full most of the time; each collector breaks off
/// every third delivery.
fn every_result_arrives_once_from_many_producers(open: Open) {
    const JOBS: usize = 4000;
    let store = open();
    let (next, delivered) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let numbers = Mutex::new(HashMap::new());
    let seen = Mutex::new(vec![0_u8; JOBS]);
    let last = Mutex::new(Instant::now());
    let is_under_way = || {
        let since = last.lock().unwrap().elapsed();
        assert!(since < PATIENCE, "a result was lost, or a thread was");
        delivered.load(Ordering::Acquire) < JOBS
    };
    let produce = || {
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= JOBS {
                return;
            }
            let id = loop {
                let mut call = call(n, &anonymous());
                call.request.headers_mut().insert("x-ballast", "x".repeat(8000).parse().unwrap());
                match offer(&*store, call, Keep::Result, at(THEN)) {
                    Ok(id) => break id,
                    Err(refused) => assert!(refused == Refused::Full && is_under_way()),
                }
                thread::yield_now();
            };
            numbers.lock().unwrap().insert(id, n);
        }
    };
    let work = || {
        while is_under_way() {
            let Some(claimed) = claim(&*store) else {
                thread::yield_now();
                continue;
            };
            let job = Job { n: number_of(&claimed), key: claimed.job };
            assert_eq!(finish(&*store, &job), Finished::Kept);
        }
    };
    let collect = || {
        let mut turn = 0;
        while is_under_way() {
            for id in store.list(&anonymous(), List::Done, None, 16).unwrap() {
                // Its producer may not have recorded it yet.
                let Some(n) = numbers.lock().unwrap().get(&id).copied() else { continue };
                let job = Job { n, key: key(id) };
                let Some(Delivery { result, id }) = collected(&*store, &job) else { continue };
                job.assert_result(&result);
                turn += 1;
                if turn % 3 == 0 {
                    store.restore(&job.key, id);
                    continue;
                }
                store.confirm(&job.key, id, at(THEN));
                seen.lock().unwrap()[n] += 1;
                delivered.fetch_add(1, Ordering::AcqRel);
                *last.lock().unwrap() = Instant::now();
            }
            thread::yield_now();
        }
    };
    race(&[&produce, &produce, &work, &work, &collect, &collect]);
    assert!(seen.lock().unwrap().iter().all(|&times| times == 1));
    assert_empty(&*store, &[]);
}
