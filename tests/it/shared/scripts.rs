//! The scripts that clients seldom reach, through the store: deletions that take more than one call, expiry, kept
//! logs, operations that were given up. After each test, everything in the engine is audited.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use deferd::job::attempt::Claimed;
use deferd::job::{Age, Keep, Moment, RouteIndex};
use deferd::store::redis::Clock;
use deferd::store::{
    Accepted, Finished, IdempotencyKey, JobState, Patience, Plan, Refused, Stats, Store, Submission,
};

use super::audit::audit;
use super::engine::Engine;
use super::suites::{open, open_by};
use crate::store::kit::*;
use crate::support::eventually;

/// An engine, and the store on it.
struct On {
    store: deferd::store::redis::SharedStore,
    engine: Engine,
}

impl On {
    fn with(plan: Plan, capacity: usize) -> Self {
        let engine = Engine::start(&[]);
        Self { store: open(&engine, plan, capacity), engine }
    }

    /// Opens a store that uses the engine's clock, as in production.
    fn by_its_clock() -> Self {
        let engine = Engine::start(&[]);
        Self { store: open_by(Clock::Engine, &engine, one_lane(), 64 << 20), engine }
    }

    fn audit(&self) -> usize {
        self.store.flush().unwrap();
        audit(&mut self.engine.connect(), "default")
    }

    /// Submits a job with a key of its own.
    fn keyed(&self, n: usize, now: Moment) -> (Result<Accepted, Refused>, IdempotencyKey) {
        let (call, route) = (call(n, &anonymous()), deferd::job::RouteIndex(0));
        let key = IdempotencyKey { key: format!("key {n}").into(), fingerprint: [7; 32] };
        let line = line(&call);
        let submission = Submission {
            call,
            route,
            line,
            keep: Keep::Result,
            key: Some(key.clone()),
            callback: None,
        };
        (self.store.submit(submission, now), key)
    }

    /// Records the reply of a submission as that of a connection whose client never received it.
    fn note_lost_reply(&self) {
        let slots: BTreeMap<String, Vec<u8>> = self.engine.command(&["HGETALL", &self.memo()]);
        let reply = slots.values().find(|reply| reply.windows(3).any(|part| part == b"new"));
        let mut command = redis::cmd("HSET");
        command.arg(self.memo()).arg("99").arg(reply.unwrap());
        command.query::<()>(&mut self.engine.connect()).unwrap();
    }

    /// Undoes that submission.
    fn withdraw(&self, key: &IdempotencyKey) {
        let code = concat!(
            include_str!("../../../src/store/redis/scripts/prologue.lua"),
            include_str!("../../../src/store/redis/scripts/withdraw.lua")
        );
        let memo = self.memo();
        let reply: Vec<u8> = self.engine.command(&["HGET", &memo, "99"]);
        let reply = String::from_utf8_lossy(&reply);
        let (number, _) = reply.split_once('|').unwrap();
        let process = memo.rsplit(':').next().unwrap();
        let prefix = "deferd:{default}:";
        let parts = ["EVAL", code, "1", prefix, process, "", "", "", "99", number, &*key.key];
        self.engine.command::<Vec<String>>(&parts);
    }

    /// Returns the key of this instance's replies.
    fn memo(&self) -> String {
        self.engine.command::<Vec<String>>(&["KEYS", "*:m:*"]).remove(0)
    }

    fn stored(&self) -> usize {
        let Stats { stored, .. } = self.store.stats().unwrap();
        stored
    }
}

fn keeping_logs() -> Plan {
    Plan { log_ttl: Duration::from_secs(3600), ..one_lane() }
}

/// For the engine, a redirected job stays running while it waits here: no message of the engine wakes its worker.
#[test]
fn a_worker_is_woken_when_a_delay_here_ends() {
    let on = On::by_its_clock();
    let took = (0..5).map(|n| {
        let job = submit(&on.store, n, Keep::Result);
        let Claimed { mut attempt, .. } = claim(&on.store).unwrap();
        let far = Instant::now() + Duration::from_secs(60);
        attempt.redirected = Some(redirected(RouteIndex(0), far));
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                let memory = room(1 << 20).memory;
                on.store.claim(&memory, Patience::Forever).unwrap();
                Instant::now()
            });
            let until = Instant::now() + Duration::from_millis(50);
            on.store.retry(&job.key, attempt, until, at(THEN));
            while !worker.is_finished() {
                on.store.overdue(Duration::from_millis(100));
            }
            let took = worker.join().unwrap().saturating_duration_since(until);
            finish(&on.store, &job);
            assert!(deliver(&on.store, &job));
            took
        })
    });
    let best = took.min().unwrap();
    assert!(best < Duration::from_millis(400), "{best:?} at best");
    assert_eq!((on.audit(), on.stored()), (0, 0));
}

#[test]
fn more_jobs_are_forgotten_than_one_call_takes() {
    let on = On::with(one_lane(), 64 << 20);
    let jobs = batch(&on.store, 700, Until::Done);
    let pending = batch(&on.store, 600, Until::Running);
    let waiting = batch(&on.store, 30, Until::Waiting);
    on.store.forget_all(&anonymous()).unwrap();
    assert_eq!(listed(&on.store), []);
    assert_eq!(on.audit(), 630, "the work goes on");
    assert_eq!(claim_all(&on.store).len(), 30);
    for job in pending.iter().chain(&waiting) {
        assert_eq!(finish(&on.store, job), Finished::Dropped);
    }
    assert_eq!((on.audit(), on.stored()), (0, 0));
    drop(jobs);
    // By time: earlier jobs are removed, the others stay.
    let early = batch(&on.store, 600, Until::Done);
    let late = submit(&on.store, 1, Keep::Result);
    start(&on.store, &late);
    on.store.finish(&late.key, response(late.n), at(LATER));
    on.store.forget_before(&anonymous(), at(LATER).stamp).unwrap();
    assert_eq!(listed(&on.store), [late.key.id]);
    assert!(deliver(&on.store, &late));
    assert_eq!((on.audit(), on.stored()), (0, 0));
    drop(early);
}

#[test]
fn results_and_keys_grow_old() {
    let on = On::with(one_lane(), 64 << 20);
    let ids: Vec<_> = (0..520).map(|n| on.keyed(n, at(THEN)).0.unwrap().id()).collect();
    for (n, id) in ids.iter().enumerate().take(515) {
        start(&on.store, &Job { n, key: key(*id) });
        on.store.finish(&key(*id), response(n), at(THEN));
    }
    let age = |seconds: i64| Age::from_micros(seconds * 1_000_000);
    assert_eq!(on.store.expire(age(1000)), Ok(0), "not before its time");
    assert_eq!(on.store.expire(age(1001)), Ok(515));
    // Jobs that are pending keep their keys.
    let (again, reused) = on.keyed(519, at(LATER));
    assert_eq!(again.unwrap().id(), ids[519]);
    let other = IdempotencyKey { fingerprint: [8; 32], ..reused };
    assert_eq!(on.store.recall(&anonymous(), &other), Err(Refused::KeyReused));
    assert_ne!(on.keyed(3, at(LATER)).0.unwrap().id(), ids[3]);
    assert_eq!(on.audit(), 6);
    on.store.forget_all(&anonymous()).unwrap();
    let left = claim_all(&on.store);
    for job in &left {
        on.store.finish(job, response(0), at(LATER));
    }
    assert_eq!((on.audit(), on.stored()), (0, 0));
}

#[test]
fn a_full_engine_takes_results_but_no_requests() {
    let on = On::with(one_lane(), 64 << 20);
    let job = submit(&on.store, 1, Keep::Result);
    start(&on.store, &job);
    on.engine.command::<()>(&["CONFIG", "SET", "maxmemory", "1mb"]);
    let large = http::Response::new(vec![b'x'; 200_000].into());
    assert_eq!(on.store.finish(&job.key, large, at(THEN)), Finished::Kept);
    let mut request = call(2, &anonymous());
    *request.request.body_mut() = vec![b'.'; 200_000].into();
    let refused = offer(&on.store, request, Keep::Result, at(THEN));
    assert!(matches!(refused, Err(Refused::EngineFull)), "{refused:?}");
    assert_eq!(on.engine.command::<Vec<String>>(&["KEYS", "*:b:*"]), [""; 0]);
    let Delivery { result, id } = collected(&on.store, &job).expect("it is done");
    assert_eq!(result.to_response().body().len(), 200_000);
    on.store.confirm(&job.key, id, at(THEN));
    assert_eq!((on.audit(), on.stored()), (0, 0));
}

#[test]
fn a_withdrawn_submission_leaves_a_job_found_by_key() {
    let on = On::with(one_lane(), 64 << 20);
    let (alone, key) = on.keyed(1, at(THEN));
    assert!(alone.is_ok());
    on.note_lost_reply();
    on.withdraw(&key);
    assert_eq!(on.store.recall(&anonymous(), &key), Ok(None));
    assert_eq!((on.audit(), on.stored()), (0, 0));
    for told_by_submission in [true, false] {
        let (first, key) = on.keyed(1, at(THEN));
        let id = first.unwrap().id();
        on.note_lost_reply();
        if told_by_submission {
            assert_eq!(on.keyed(1, at(THEN)).0, Ok(Accepted::Known(id)));
        } else {
            assert_eq!(on.store.recall(&anonymous(), &key), Ok(Some(id)));
        }
        on.withdraw(&key);
        assert_eq!(on.audit(), 1);
        assert_eq!(on.store.recall(&anonymous(), &key), Ok(Some(id)));
        let job = Job { n: 1, key: self::key(id) };
        start(&on.store, &job);
        assert_eq!(finish(&on.store, &job), Finished::Kept);
        on.store.forget_all(&anonymous()).unwrap();
    }
    assert_eq!((on.audit(), on.stored()), (0, 0));
}

#[test]
fn keys_that_stay_do_not_keep_expiry_going() {
    let on = On::by_its_clock();
    let now = deferd::clock::now();
    let ids: Vec<_> = (0..600).map(|n| on.keyed(n, now).0.unwrap().id()).collect();
    let all = Age::from_micros(i64::MAX);
    assert_eq!(on.store.expire(all), Ok(0));
    for (n, id) in ids.iter().enumerate() {
        let job = Job { n, key: key(*id) };
        start(&on.store, &job);
        finish(&on.store, &job);
    }
    assert_eq!(on.store.expire(all), Ok(600));
    assert_eq!(on.store.expire(all), Ok(0));
    assert_eq!((on.audit(), on.stored()), (0, 0));
}

#[test]
fn connections_that_died_while_idle_are_made_anew() {
    let on = On::by_its_clock();
    let run_one = || {
        let job = submit(&on.store, 1, Keep::Result);
        start(&on.store, &job);
        assert_eq!(finish(&on.store, &job), Finished::Kept);
        assert!(deliver(&on.store, &job));
        on.store.flush().unwrap();
    };
    run_one();
    // The keeper has a connection, too.
    eventually("a beat", || on.engine.command(&["HEXISTS", "deferd:{default}:meta", "beat"]));
    on.engine.command::<i64>(&["CLIENT", "KILL", "TYPE", "normal"]);
    run_one();
    assert_eq!(on.store.tally().errors, 0, "the engine did not fail");
    assert_eq!((on.audit(), on.stored()), (0, 0));
}

#[test]
fn all_keys_go_with_all_jobs() {
    let on = On::with(one_lane(), 64 << 20);
    let forget_all = || on.store.forget_all(&anonymous()).unwrap();
    for n in 0..600 {
        on.keyed(n, at(THEN)).0.unwrap();
    }
    let jobs = claim_all(&on.store);
    forget_all();
    on.audit();
    let (again, key) = on.keyed(1, at(LATER));
    assert!(matches!(again, Ok(Accepted::New(_))), "{again:?}");
    assert!(on.store.recall(&anonymous(), &key).unwrap().is_some());
    on.audit();
    forget_all();
    for job in jobs.iter().chain(&claim_all(&on.store)) {
        on.store.finish(job, response(0), at(LATER));
    }
    assert_eq!((on.audit(), on.stored()), (0, 0));
    assert_eq!(on.engine.command::<i64>(&["EXISTS", "deferd:{default}:ke"]), 0);
}

#[test]
fn nothing_expires_before_the_first_beat_behind_an_outage() {
    let on = On::by_its_clock();
    let job = submit(&on.store, 1, Keep::Result);
    start(&on.store, &job);
    finish(&on.store, &job);
    let clock: Vec<u64> = on.engine.command(&["TIME"]);
    let day_before = ((clock[0] - 86_400) * 1_000_000).to_string();
    on.engine.command::<()>(&["HSET", "deferd:{default}:meta", "beat", &day_before]);
    assert_eq!(on.store.expire(Age::from_micros(i64::MAX)), Ok(0));
    assert!(deliver(&on.store, &job));
    assert_eq!((on.audit(), on.stored()), (0, 0));
}

#[test]
fn an_engine_that_lost_all_gives_out_no_incarnation_again() {
    let engine = Engine::start(&[]);
    let incarnations = |engine: &Engine| {
        engine.command::<BTreeSet<u64>>(&["ZRANGE", "deferd:{default}:i", "0", "-1"])
    };
    let _first = open(&engine, one_lane(), CAPACITY);
    let _second = open(&engine, one_lane(), CAPACITY);
    let before = incarnations(&engine);
    engine.command::<()>(&["FLUSHALL"]);
    eventually("both are back", || incarnations(&engine).len() == 2);
    assert_eq!(before.intersection(&incarnations(&engine)).count(), 0);
}

#[test]
fn the_newest_logs_are_kept_while_there_is_room() {
    let on = On::with(keeping_logs(), 400_000);
    let mut jobs = Vec::new();
    for n in 0..70 {
        let job = submit(&on.store, n, Keep::Result);
        let execution = start(&on.store, &job);
        execution.append_log(format!("log {n}").as_bytes());
        on.store.finish(&job.key, response(n), at(THEN + n as f64));
        let Delivery { id, .. } = collected(&on.store, &job).expect("it is done");
        on.store.confirm(&job.key, id, at(THEN + n as f64));
        // Deliveries that are reported together are reported for one time.
        on.store.flush().unwrap();
        jobs.push(job);
    }
    assert_eq!(on.audit(), 64);
    let log = |n: usize| on.store.log(&jobs[n].key).unwrap().map(|log| log.text);
    assert_eq!((log(5), log(6).as_deref()), (None, Some(&b"log 6"[..])));
    assert_eq!(on.store.status(&jobs[69].key), Ok(None), "only its log is left");
    assert_eq!(on.store.forget(&jobs[69].key), Ok(false));
    assert_eq!(log(69), None);
    on.store.expire_logs(Age::from_micros((THEN as i64 + 10) * 1_000_000));
    assert_eq!((log(9), log(10).as_deref()), (None, Some(&b"log 10"[..])));
    // They are the first to be dropped.
    let mut large = call(0, &anonymous());
    *large.request.body_mut() = vec![b'.'; 390_000].into();
    offer(&on.store, large, Keep::Result, at(LATER)).unwrap();
    assert_eq!((log(12), log(68).as_deref()), (None, Some(&b"log 68"[..])));
    on.audit();
    on.store.forget_all(&anonymous()).unwrap();
    on.store.finish(&claim(&on.store).unwrap().job, response(0), at(LATER));
    assert_eq!((on.audit(), on.stored()), (0, 0));
}

#[test]
fn status_reports_delayed_and_cancelled_jobs() {
    let on = On::with(one_lane(), CAPACITY);
    let job = submit(&on.store, 1, Keep::Result);
    let mut claimed = claim(&on.store).unwrap();
    claimed.attempt.made = 2;
    let far = std::time::Instant::now() + Duration::from_secs(3600);
    claimed.attempt.execution.append_log(b"so far\n");
    on.store.retry(&job.key, claimed.attempt, far, at(THEN));
    let record = on.store.record(&job.key).unwrap().unwrap();
    assert_eq!((record.state, record.attempts.count), (JobState::Delayed, 2));
    assert_eq!(&*on.store.log(&job.key).unwrap().unwrap().text, b"so far\n");
    assert_eq!(on.audit(), 1);
    assert_eq!(on.store.cancel(&job.key, at(THEN)), Ok(true));
    let Delivery { result, id } = collected(&on.store, &job).expect("it is done");
    assert_eq!(result.to_response().status(), 410);
    on.store.confirm(&job.key, id, at(THEN));
    // A late report of an earlier delivery has no effect.
    on.store.restore(&job.key, id);
    assert_eq!((on.audit(), on.stored()), (0, 0));
}
