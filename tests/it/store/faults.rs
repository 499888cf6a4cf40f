//! A disk that fails: at any call, of any kind, once or for a while, or because it is full.
//!
//! Whatever fails: what was acknowledged is kept, what was refused leaves nothing behind, the store works again by
//! itself when the disk does, and its thread neither ends nor hangs.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::store::kit::promise::{Check, Scenario, idempotency};
use crate::store::kit::*;
use crate::support::eventually;
use deferd::api::{Access, Api};
use deferd::config::Pages;
use deferd::error::Error;
use deferd::job::execution::{OnLeave, Stop};
use deferd::job::{JobKey, Keep, RouteIndex};
use deferd::jobs::{Jobs, Limits};
use deferd::memory::Budget;
use deferd::methods::AllowedMethods;
use deferd::metrics::Reason;
use deferd::routes::{Route, Routes};
use deferd::store::disk::{DiskStore, Durability};
use deferd::store::{Finished, List, Lookup, Refused, Store, Submission};
use deferd::workers;
use http::{Method, Response};

/// Operations in a scenario: enough that each kind occurs.
const OPERATIONS: usize = 30;
/// More failures than there are attempts before jobs are refused.
const A_WHILE: usize = 24;

/// How many scenarios run at once.
const LANES: usize = 8;

/// How large the file can become on a disk that is then full.
const LIMIT: u64 = 2 << 20;

macro_rules! faults {
    ($($property:ident: $durability:ident, $kind:ident, $($how:ident $times:expr),+;)*) => {
        $(#[test] fn $property() {
            $(everywhere(Durability::$durability, Kind::$kind, How::$how, $times);)+
        })*
    };
}

faults! {
    any_write_can_fail: Commit, Write, Cleanly 1, Badly 1, Badly A_WHILE;
    any_write_of_a_relaxed_store_can_fail: Relaxed, Write, Badly A_WHILE;
    any_growth_can_fail: Commit, SetLen, Cleanly 1, Cleanly A_WHILE;
    any_read_can_fail: Commit, Read, Cleanly 1, Cleanly A_WHILE;
    any_sync_can_fail: Commit, Sync, Cleanly 1, Cleanly A_WHILE;
    any_sync_can_fail_and_give_up_what_it_should_have_written: Commit, Sync, Badly 1, Badly A_WHILE;
    any_sync_can_fail_and_forget_what_was_written: Commit, Sync, Forgetfully 1, Forgetfully A_WHILE;
    any_file_can_fail_to_be_made: Commit, Create, Cleanly 1, Badly 1, Badly A_WHILE;
    any_file_can_fail_to_be_opened: Commit, Open, Cleanly 1, Cleanly A_WHILE;
    any_file_can_fail_to_be_removed: Commit, Remove, Cleanly 1, Badly 1, Cleanly A_WHILE;
    any_file_of_a_relaxed_store_can_fail_to_be_removed: Relaxed, Remove, Cleanly A_WHILE;
    any_sync_of_a_relaxed_store_can_fail: Relaxed, Sync, Badly 1, Forgetfully A_WHILE;
}

/// Makes the n-th call fail, and the `times - 1` after it, for every possible n.
fn everywhere(durability: Durability, kind: Kind, how: How, times: usize) {
    let run = |after| {
        let plan = FaultPlan { kind, after, times, how };
        within_patience(move || survives(durability, plan))
    };
    let mut reached = 0;
    loop {
        // Several at once: each of them waits for its disk most of the time.
        let survived: Vec<bool> = thread::scope(|scope| {
            let lanes = (reached..reached + LANES).map(|after| scope.spawn(move || run(after)));
            let lanes: Vec<_> = lanes.collect();
            lanes.into_iter().map(|lane| lane.join().unwrap()).collect()
        });
        let count = survived.iter().take_while(|&&survived| survived).count();
        reached += count;
        if count < LANES {
            break;
        }
    }
    // A scenario may need no reads or growth, because what it reads is cached; and few contents are files.
    assert!(reached > 4 || !matches!(kind, Kind::Write | Kind::Sync), "{reached} {kind:?}");
    assert!(reached > 0 || matches!(kind, Kind::Read | Kind::SetLen), "{reached} {kind:?}");
}

/// Reports the scenario and the fault if the test fails.
struct Say<'a>(&'a Scenario, FaultPlan);

impl Drop for Say<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{:?}:\n{}", self.1, self.0.trace.join("\n"));
        }
    }
}

/// Returns whether the scenario has come far enough for something to fail.
fn survives(durability: Durability, plan: FaultPlan) -> bool {
    let mut scenario = Scenario::new(7, durability);
    scenario.fail(plan);
    // Few of the calls concern files.
    let is_of_files = matches!(plan.kind, Kind::Create | Kind::Open | Kind::Remove);
    for _ in 0..if is_of_files { 4 * OPERATIONS } else { OPERATIONS } {
        scenario.step();
    }
    let say = Say(&scenario, plan);
    eventually("it works again", || scenario.store.flush().is_ok());
    scenario.volume.fail(None);
    eventually("it takes jobs again", || scenario.store.check(0).is_ok());
    drop(say);
    assert!(scenario.flush());
    let (failed, synced) = (scenario.volume.faults().failed, scenario.volume.medium().synced());
    let image = || {
        scenario.store.close();
        scenario.volume.image()
    };
    let say = Say(&scenario, plan);
    let (promised, refused) = (&scenario.promises, &scenario.refused[..]);
    let check = || Check { promised, begun: promised, refused, durability };
    // What the disk reported as synced is durable, whatever it had given up before.
    check().image(synced);
    check().image(image());
    drop(say);
    failed > 0
}

#[test]
fn a_failing_disk_refuses_jobs_but_reads_results() {
    let volume = Volume::default();
    let store = open(&volume, Durability::Commit).unwrap().0;
    let done = batch(&store, 4, Until::Done);
    for kind in [Kind::Write, Kind::Sync] {
        volume.fail(Some(FaultPlan { kind, after: 0, times: usize::MAX, how: How::Badly }));
        let key = Some(idempotency(kind as usize));
        let offer = || {
            let (call, route) = (call(99, &anonymous()), RouteIndex(0));
            let (line, keep, key) = (line(&call), Keep::Result, key.clone());
            let submission = Submission { call, route, line, keep, key, callback: None };
            store.submit(submission, at(THEN))
        };
        assert_eq!(offer(), Err(Refused::Unavailable));
        assert_eq!(store.check(0), Err(Refused::Unavailable));
        assert_eq!(offer(), Err(Refused::Unavailable));
        assert_eq!(store.recall(&anonymous(), key.as_ref().unwrap()), Ok(None));
        assert_eq!(list_all(&store, List::Pending), []);
        eventually("results are read between two attempts", || {
            done.iter().all(|job| matches!(store.peek(&job.key), Lookup::Done(_)))
        });
        volume.fail(None);
        eventually("it works again", || store.check(0).is_ok());
        assert_eq!(store.recall(&anonymous(), key.as_ref().unwrap()), Ok(None));
        for job in &done {
            let Delivery { result, id } = collected(&store, job).unwrap();
            job.assert_result(&result);
            store.restore(&job.key, id);
        }
    }
    // The accounts have exactly what exists.
    store.forget_all(&anonymous()).unwrap();
    assert_empty(&store, &[]);
}

#[test]
fn a_failing_store_is_a_503_and_counted() {
    let volume = Volume::default();
    let store = Arc::new(open(&volume, Durability::Commit).unwrap().0);
    let limits = Limits { queue: 9, stored: CAPACITY, connections: 2 };
    let jobs = Jobs::new(Arc::clone(&store) as Arc<dyn Store>, Budget::new(1 << 20), limits);
    volume.fail(Some(FaultPlan { kind: Kind::Sync, after: 0, times: usize::MAX, how: How::Badly }));
    let submit = || {
        let (call, route) = (call(1, &anonymous()), RouteIndex(0));
        let (line, keep) = (line(&call), Keep::Result);
        jobs.submit(Submission { call, route, line, keep, key: None, callback: None })
    };
    let counted = || jobs.metrics.refused()[Reason::StoreFails as usize];
    let failing = Error::Unavailable("the store is failing; try again later".into());
    assert_eq!((submit(), counted()), (Err(failing.clone()), 1));
    assert_eq!((jobs.check(0), counted()), (Err(failing), 2));
    volume.fail(None);
    eventually("it works again", || store.check(0).is_ok());
    assert!(submit().is_ok());
    assert_eq!(jobs.metrics.refused().iter().sum::<u64>(), 2);
}

#[test]
fn a_start_that_is_not_recorded_has_no_effects() {
    let volume = Volume::default();
    let store = open(&volume, Durability::Commit).unwrap().0;
    let job = submit(&store, 1, Keep::Result);
    volume.fail(Some(FaultPlan { kind: Kind::Sync, after: 0, times: usize::MAX, how: How::Badly }));
    thread::scope(|scope| {
        let claiming = scope.spawn(|| claim(&store).is_none());
        eventually("it is claimed", || store.stats().unwrap().running == 1);
        eventually("the disk fails", || store.check(0).is_err());
        assert!(!claiming.is_finished(), "its handler must not have effects");
        store.stop(Stop::Cancel);
        store.close();
        assert!(claiming.join().unwrap(), "no handler gets it");
    });
    let (store, found) =
        open(&Volume::of(volume.medium().synced()), Durability::Commit).expect("it opens");
    assert_eq!((found.waiting, found.interrupted), (1, 0));
    start(&store, &job);
}

/// So that a result which it has collected is not lost with it.
#[test]
fn a_result_that_cannot_be_made_durable_counts_as_dropped() {
    let volume = Volume::default();
    let store = open(&volume, Durability::Commit).unwrap().0;
    let job = submit(&store, 1, Keep::Result);
    start(&store, &job);
    let content = volume.content(&[b'x'; 200_000]).unwrap();
    volume.fail(Some(FaultPlan { kind: Kind::Sync, after: 0, times: 1, how: How::Cleanly }));
    let finished = store.finish(&job.key, http::Response::new(content), at(THEN));
    assert_eq!(finished, Finished::Dropped);
    eventually("it is done", || matches!(store.peek(&job.key), Lookup::Done(_)));
    assert_eq!(collected(&store, &job).unwrap().result.ending().status, 507);
}

#[test]
fn one_failed_read_does_not_end_all_reading() {
    let volume = Volume::default();
    let store = open(&volume, Durability::Commit).unwrap().0;
    let done = batch(&store, 4, Until::Done);
    store.close();
    // With an empty cache, so that reading reaches the disk.
    let store = open(&volume, Durability::Commit).unwrap().0;
    volume.fail(Some(FaultPlan { kind: Kind::Read, after: 0, times: 1, how: How::Cleanly }));
    assert!(matches!(store.peek(&done[0].key), Lookup::Unreadable));
    assert_eq!(volume.faults().failed, 1);
    // No commit comes to find the fault: the store must check for it by itself.
    for job in done {
        eventually("it is read again", || matches!(store.peek(&job.key), Lookup::Done(_)));
        job.assert_result(&collected(&store, &job).unwrap().result);
    }
}

/// More than a full disk holds, so that the disk is the limit.
const ROOM: usize = 64 << 20;

#[test]
fn a_full_disk_takes_removals_and_has_room_after_them() {
    for size in [100, 3000, 9000, 70_000] {
        let volume = Volume::default();
        let store = open_for(ROOM, &volume, Durability::Commit).unwrap().0;
        volume.limit(Some(LIMIT));
        let submit = |n: usize| {
            let mut call = call(n, &anonymous());
            *call.request.body_mut() = vec![b'.'; size].into();
            offer(&store, call, Keep::Result, at(THEN))
        };
        let mut accepted = Vec::new();
        // Not when the accounts are full, but when the disk is.
        let refused = loop {
            match submit(accepted.len()) {
                Ok(id) => accepted.push(key(id)),
                Err(refused) => break refused,
            }
        };
        assert_eq!(refused, Refused::Unavailable, "{size}: after {}", accepted.len());
        assert!(accepted.len() > 4, "{size}: only {}", accepted.len());
        // Results that do not fit wait, and do not block what makes room.
        let (large, others) = accepted.split_first().unwrap();
        store.finish(large, http::Response::new(vec![b'x'; 150_000].into()), at(THEN));
        for key in others {
            assert_eq!(store.forget(key), Ok(true), "{size}");
            store.finish(key, response(0), at(THEN));
        }
        eventually("there is room for the result", || matches!(store.peek(large), Lookup::Done(_)));
        eventually("there is room for jobs", || submit(0).is_ok());
        // Reopened on the disk, which is as full as before and has no more room.
        while let Ok(id) = submit(0) {
            accepted.push(key(id));
        }
        let known = listed(&store);
        store.close();
        volume.limit(Some(0));
        let store = open_for(ROOM, &volume, Durability::Commit).expect("it opens").0;
        assert_eq!(listed(&store), known);
        for id in known {
            assert_eq!(store.forget(&key(id)), Ok(true), "{size}, reopened");
            store.finish(&key(id), response(0), at(THEN));
        }
        assert!(has_exactly(&store, ROOM));
    }
}

/// Results that arrived while the disk failed, and do not fit all at once: those that fit are done.
#[test]
fn results_that_fit_singly_are_done_one_by_one() {
    let volume = Volume::default();
    let store = open_for(ROOM, &volume, Durability::Commit).unwrap().0;
    let jobs = batch(&store, 8, Until::Running);
    let content = vec![b'x'; 60_000];
    let fill = || {
        let mut call = call(8, &anonymous());
        *call.request.body_mut() = content.clone().into();
        offer(&store, call, Keep::Result, at(THEN)).map(key)
    };
    let mut fillers: Vec<_> = (0..9).map(|_| fill().unwrap()).collect();
    volume.limit(Some(0));
    fillers.extend(std::iter::from_fn(|| fill().ok()));
    claim_all(&store);
    let remove = |filler: JobKey| {
        eventually("it is removed", || store.forget(&filler).is_ok());
        store.finish(&filler, response(8), at(THEN));
    };
    let rest = fillers.split_off(4);
    fillers.into_iter().for_each(remove);
    store.flush().unwrap();
    let times = usize::MAX;
    volume.fail(Some(FaultPlan { kind: Kind::Sync, after: 0, times, how: How::Cleanly }));
    for job in &jobs {
        store.finish(&job.key, Response::new(content.clone().into()), at(THEN));
    }
    eventually("the store fails", || store.check(0).is_err());
    volume.fail(None);
    let is_done = |job: &Job| matches!(store.peek(&job.key), Lookup::Done(_));
    eventually("the first is done", || is_done(&jobs[0]));
    assert!(!is_done(&jobs[7]), "they fit at once");
    rest.into_iter().for_each(remove);
    eventually("all are done", || jobs.iter().all(is_done));
    eventually("jobs are accepted again", || store.check(0).is_ok());
}

/// Returns routes to the built-in endpoints only.
fn endpoints(jobs: &Arc<Jobs>) -> Arc<Routes> {
    let api = Api::new(Arc::clone(jobs), Access::Open, Arc::from(["/".to_owned()]), PATIENCE);
    Arc::new(Routes::new(vec![Route {
        prefix: "/".into(),
        callers: None,
        on_leave: OnLeave::Cancel,
        time_limit: PATIENCE,
        retry: None,
        pages: Pages::Own,
        methods: AllowedMethods::NoTrace,
        deferral: Default::default(),
        signature: None,
        handler: Box::new(api),
    }]))
}

/// A full disk accepts the removal of a collected result before the result of the job that has collected it.
#[test]
fn a_result_stays_until_the_collecting_job_has_it() {
    let (volume, content) = (Volume::default(), vec![b'x'; 700_000]);
    let open = |volume: &Volume| {
        let (folder, room) = (Arc::new(volume.clone()), room(ROOM));
        let (plan, find) = (one_lane(), |_: &str| Ok(RouteIndex(0)));
        let (backend, durability) = (volume.clone(), Durability::Commit);
        DiskStore::with_backend(backend, folder, room, plan, durability, &find, REST).unwrap().0
    };
    let store = Arc::new(open(&volume));
    let collected = submit(&*store, 0, Keep::Result);
    start(&*store, &collected);
    store.finish(&collected.key, Response::new(content.clone().into()), at(THEN));
    let other = submit(&*store, 3, Keep::Result);
    start(&*store, &other);
    assert_eq!(finish(&*store, &other), Finished::Kept);
    volume.limit(Some(0));
    // Until nothing as large as the result fits any more.
    let fills = || {
        let mut call = call(1, &anonymous());
        *call.request.body_mut() = content.clone().into();
        offer(&*store, call, Keep::Nothing, at(THEN)).is_ok()
    };
    while fills() {}
    claim_all(&*store);
    let mut collect = call(2, &anonymous());
    *collect.request.method_mut() = Method::PUT;
    *collect.request.uri_mut() = format!("/_api/job/{}", collected.key.id).parse().unwrap();
    eventually("a small job fits", || store.check(0).is_ok());
    let collecting = key(offer(&*store, collect, Keep::Result, at(THEN)).unwrap());
    let mut medium = volume.medium();
    volume.record();
    let limits = Limits { queue: 9, stored: ROOM, connections: 2 };
    let shared = Arc::clone(&store) as Arc<dyn Store>;
    let jobs = Arc::new(Jobs::new(shared, Budget::new(ROOM), limits));
    let workers = workers::start(1, &jobs, &endpoints(&jobs), (PATIENCE, Duration::ZERO)).unwrap();
    eventually("its result does not fit", || store.check(0).is_err());
    store.stop(Stop::Kill);
    workers.join();
    // After the earlier removals.
    assert_eq!(store.forget(&other.key), Ok(true));
    store.close();
    for event in volume.events() {
        let is_sync = matches!(event, Event::Sync);
        medium.take(event);
        if is_sync {
            let left = open(&Volume::of(medium.synced()));
            let has =
                |job| matches!(left.peek(job), Lookup::Done(result) if *result.body() == content);
            assert!(has(&collected.key) || has(&collecting), "neither job has it");
        }
    }
}
