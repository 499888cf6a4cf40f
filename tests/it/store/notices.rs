//! The outbox: a result comes with its notices, whatever led to the result, and they always fit.

use deferd::content::Content;
use deferd::job::notice;
use http::Response;

use super::kit::*;
use deferd::job::attempt::Claimed;
use deferd::job::{JobId, JobKey, Keep, Rerun, RouteIndex};
use deferd::ledger::schedule::Limit;
use deferd::store::{Accepted, Lane, List, Lookup, Plan, Refused, Store, Submission, Tells};

suite! {
    in_memory by memory_with,
    on_disk by disk_with,
    on_disk_relaxed by relaxed_with:
    {
        a_result_comes_with_its_notices
        jobs_without_a_result_lead_to_notices
        no_client_can_ask_for_a_notice
        notices_find_room_in_a_full_store
    }
}

/// Returns one lane whose programs are told of everything.
pub fn telling() -> Plan {
    let tells = Tells { on_done: true, on_failure: true };
    plan(vec![Lane { limit: Limit::Open, rerun: Rerun::No, tells }])
}

/// Submits a job that also has a callback.
pub fn offer_telling(store: &dyn Store, n: usize, keep: Keep) -> Result<Job, Refused> {
    let call = call(n, &anonymous());
    let (route, line, callback) = (RouteIndex(0), line(&call), Some("http://h/".into()));
    let submission = Submission { call, route, line, keep, key: None, callback };
    let id = store.submit(submission, at(THEN)).map(Accepted::id)?;
    Ok(Job { n, key: key(id) })
}

/// What a notice is about, and for whom: `on-done`, `on-failure` or `callback`.
pub type Told = (JobId, &'static str);

/// Returns what a claimed job reports, if it is a notice.
pub fn told(claimed: &Claimed) -> Option<Told> {
    let request = &claimed.attempt.call.request;
    let receiver = match request.uri().path() {
        "/" => "callback",
        _ => notice::event(request)?.0.option(),
    };
    Some((JobId::parse(notice::job(request))?, receiver))
}

/// Claims all waiting jobs; returns the notices among them, each with its own name.
fn claim_notices(store: &dyn Store) -> Vec<(JobKey, Told)> {
    let claimed = std::iter::from_fn(|| claim(store));
    claimed.filter_map(|claimed| Some((claimed.job.clone(), told(&claimed)?))).collect()
}

/// Finishes these notices.
fn end(store: &dyn Store, notices: &[(JobKey, Told)]) {
    for (notice, _) in notices {
        store.finish(notice, Response::new(Content::default()), at(THEN));
    }
    store.flush().unwrap();
}

fn failure() -> Response<Content> {
    Response::builder().status(500).body(Content::default()).unwrap()
}

fn receivers(notices: &[(JobKey, Told)], of: &Job) -> Vec<&'static str> {
    let of_job = notices.iter().filter(|(_, (id, _))| *id == of.key.id);
    of_job.map(|(_, (_, receiver))| *receiver).collect()
}

fn a_result_comes_with_its_notices(open: OpenWith) {
    let store = &*open(telling());
    let good = offer_telling(store, 1, Keep::Result).unwrap();
    let bad = offer_telling(store, 2, Keep::Result).unwrap();
    start(store, &good);
    start(store, &bad);
    assert!(claim(store).is_none(), "nothing is to be told yet");
    finish(store, &good);
    store.finish(&bad.key, failure(), at(THEN));
    store.flush().unwrap();
    let notices = claim_notices(store);
    assert_eq!(receivers(&notices, &good), ["on-done", "callback"]);
    assert_eq!(receivers(&notices, &bad), ["on-done", "on-failure", "callback"]);
    assert!(notices.is_sorted_by_key(|(notice, _)| notice.id));
    end(store, &notices);
    assert!(deliver(store, &good) && store.forget(&bad.key).unwrap());
    assert_empty(store, &[good, bad]);
}

fn jobs_without_a_result_lead_to_notices(open: OpenWith) {
    let store = &*open(telling());
    let dropped = offer_telling(store, 1, Keep::Nothing).unwrap();
    let forgotten = offer_telling(store, 2, Keep::Result).unwrap();
    let waiting = offer_telling(store, 3, Keep::Result).unwrap();
    let cancelled = offer_telling(store, 4, Keep::Result).unwrap();
    start(store, &dropped);
    start(store, &forgotten);
    store.forget(&forgotten.key).unwrap();
    store.cancel(&waiting.key, at(THEN)).unwrap();
    start(store, &cancelled);
    store.cancel(&cancelled.key, at(THEN)).unwrap();
    for job in [&dropped, &forgotten, &cancelled] {
        store.finish(&job.key, failure(), at(THEN));
    }
    store.flush().unwrap();
    let notices = claim_notices(store);
    for job in [&dropped, &forgotten] {
        assert_eq!(receivers(&notices, job), ["on-done", "on-failure", "callback"], "{}", job.n);
    }
    for job in [&waiting, &cancelled] {
        assert_eq!(receivers(&notices, job), ["on-done", "callback"], "{}", job.n);
    }
    end(store, &notices);
    store.forget_all(&anonymous()).unwrap();
    assert_empty(store, &[dropped, forgotten, waiting, cancelled]);
}

fn no_client_can_ask_for_a_notice(open: OpenWith) {
    let store = &*open(telling());
    let job = offer_telling(store, 1, Keep::Result).unwrap();
    start(store, &job);
    finish(store, &job);
    assert_eq!(listed(store), [job.key.id]);
    let notices = claim_notices(store);
    assert_eq!(notices.len(), 2);
    for (notice, _) in &notices {
        assert_eq!(store.status(notice), Ok(None));
        assert_eq!(store.record(notice), Ok(None));
        assert_eq!(store.log(notice), Ok(None));
        assert_eq!(store.cancel(notice, at(THEN)), Ok(false));
        assert_eq!(store.forget(notice), Ok(false));
        assert!(matches!(store.peek(notice), Lookup::Unknown));
    }
    store.forget_all(&anonymous()).unwrap();
    store.forget_before(&anonymous(), at(LATER).stamp).unwrap();
    end(store, &notices);
    assert_eq!(list_all(store, List::Done), []);
    assert_empty(store, &[job]);
}

fn notices_find_room_in_a_full_store(open: OpenWith) {
    let store = &*open(telling());
    let mut jobs = Vec::new();
    loop {
        match offer_telling(store, jobs.len(), Keep::Result) {
            Ok(job) => jobs.push(job),
            Err(refused) => break assert_eq!(refused, Refused::Full),
        }
    }
    assert!(jobs.len() > 10, "only {} jobs fit", jobs.len());
    for job in &jobs {
        let execution = start(store, job);
        execution.append_log(&[b'x'; 8192]);
        // With its result, a job takes all that is left.
        let most = Response::builder().status(500).body(vec![0; CAPACITY / 4].into()).unwrap();
        store.finish(&job.key, most, at(THEN));
        store.flush().unwrap();
        assert!(store.stats().unwrap().stored <= CAPACITY, "more is stored than may be");
    }
    let notices = claim_notices(store);
    for job in &jobs {
        assert_eq!(receivers(&notices, job), ["on-done", "on-failure", "callback"], "{}", job.n);
    }
    end(store, &notices);
    store.forget_all(&anonymous()).unwrap();
    assert_empty(store, &jobs);
}
