//! The power cut and the outbox: a result that is on the disk has all its notices there, and there is no notice
//! without its result.

use std::collections::BTreeMap;

use crate::store::kit::*;
use crate::store::notices::{offer_telling, telling, told};
use deferd::job::{JobId, Keep};
use deferd::store::disk::{DiskStore, Durability};
use deferd::store::{JobState, Status, Store};
use http::Response;

/// How many jobs take each way.
const ROUNDS: usize = 4;

/// The least number of images.
const MANY: usize = 50;

/// What was done with a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Finished,
    Dropped,
    Forgotten,
    CancelledWaiting,
    LeftRunning,
}

const WAYS: [Way; 5] =
    [Way::Finished, Way::Dropped, Way::Forgotten, Way::CancelledWaiting, Way::LeftRunning];

#[test]
fn a_power_cut_parts_no_result_from_its_notices() {
    for durability in [Durability::Commit, Durability::Relaxed] {
        let volume = Volume::default();
        let (store, _) = open_with(telling(), CAPACITY, &volume, durability).unwrap();
        let mut medium = volume.medium();
        volume.record();
        let mut jobs = Vec::new();
        for round in 0..ROUNDS {
            for (n, way) in WAYS.into_iter().enumerate() {
                let job = drive(&store, round * WAYS.len() + n, way);
                // After this many calls of the disk, the job is as it is now.
                jobs.push((job.key.id, way, volume.recorded()));
            }
        }
        drop(store);
        let events = volume.events();
        assert!(events.len() > MANY, "only {} images", events.len());
        let mut random = Rng::with_seed(1);
        for calls in 0..=events.len() {
            if calls > 0 {
                medium.take(events[calls - 1].clone());
            }
            check(medium.image(&mut random), durability, &jobs, calls);
        }
    }
}

/// Takes a job along its way; afterwards, all of it is on the disk.
fn drive(store: &DiskStore, n: usize, way: Way) -> Job {
    let keep = if way == Way::Dropped { Keep::Nothing } else { Keep::Result };
    let job = offer_telling(store, n, keep).unwrap();
    if way == Way::CancelledWaiting {
        store.cancel(&job.key, at(THEN)).unwrap();
    } else {
        while claim(store).expect("it waits").job != job.key {
            // Earlier notices stay begun: a crash makes them wait again.
        }
    }
    if way == Way::Forgotten {
        store.forget(&job.key).unwrap();
    }
    if way != Way::LeftRunning {
        let failure = Response::builder().status(500).body(b"no"[..].into()).unwrap();
        store.finish(&job.key, failure, at(THEN));
    }
    store.flush().unwrap();
    job
}

/// Opens an image: each job that is done has all its notices, and no other job has one.
fn check(image: Image, durability: Durability, jobs: &[(JobId, Way, usize)], calls: usize) {
    let volume = Volume::of(image);
    let (store, _) = open_with(telling(), CAPACITY, &volume, durability).expect("it opens");
    // An interrupted job has its result, and thereby its notices, from here on.
    store.flush().unwrap();
    let mut notices: BTreeMap<JobId, Vec<&'static str>> = BTreeMap::new();
    let mut waiting = Vec::new();
    while let Some(claimed) = claim(&store) {
        match told(&claimed) {
            Some((id, receiver)) => notices.entry(id).or_default().push(receiver),
            None => waiting.push(claimed.job.id),
        }
    }
    for &(id, way, recorded) in jobs {
        let told = notices.remove(&id).unwrap_or_default();
        let status = store.status(&key(id)).unwrap();
        let is_done = matches!(status, Some(Status::Done(_)));
        let all: &[&str] = match status {
            Some(Status::Done(ending)) if !ending.outcome.is_failure() => &["on-done", "callback"],
            _ => &["on-done", "on-failure", "callback"],
        };
        let what = format!("{durability:?}, {calls} calls: {id} {way:?} {status:?} {told:?}");
        let is_there = !told.is_empty();
        assert!(!is_there || told == all, "{what}: all or none");
        match way {
            Way::Dropped | Way::Forgotten if !is_done => {
                assert!(!(is_there && waiting.contains(&id)), "{what}: it has not ended");
            }
            _ => assert_eq!(is_there, is_done, "{what}"),
        }
        assert!(is_there || calls < recorded, "{what}: it was on the disk");
        let runs = matches!(status, Some(Status::Pending(JobState::Running, _)));
        assert!(!runs || waiting.contains(&id), "{what}: nothing is left on its way");
    }
    assert!(notices.is_empty(), "of jobs that never were: {notices:?}");
}
