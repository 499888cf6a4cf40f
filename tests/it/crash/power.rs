//! The power cut: whatever it leaves of a disk can be opened, and holds what was promised by then.
//!
//! A store with random operations is on a disk that records what is done to it. After each answer, its promise is
//! recorded. Then the power is cut after every call to the disk: the disk has what was synced, and any part of the
//! rest, torn between sectors.

use std::thread;

use crate::store::kit::promise::{self, Check, Promises, Scenario};
use crate::store::kit::*;
use deferd::error::Error;
use deferd::job::stored::StoredResponse;
use deferd::job::{Keep, MAX_STARTS, Rerun};
use deferd::ledger::schedule::Limit;
use deferd::store::disk::Durability;
use deferd::store::{Lane, Store, Tells};

/// Scenarios for each durability, and operations in each.
const SCENARIOS: u64 = 8;
/// The least number of images.
const MANY: usize = 1000;
const OPERATIONS: usize = 60;
/// One of this many images is cut again while it is opened.
const CUT_AGAIN: usize = 8;

#[test]
fn a_power_cut_leaves_what_was_promised() {
    let images: usize = (1..=SCENARIOS).map(|seed| cut_everywhere(seed, Durability::Commit)).sum();
    assert!(images > MANY, "only {images} images");
}

#[test]
fn a_power_cut_leaves_what_a_relaxed_store_has_flushed() {
    let images: usize = (1..=SCENARIOS).map(|seed| cut_everywhere(seed, Durability::Relaxed)).sum();
    assert!(images > MANY, "only {images} images");
}

/// However soon after the claim: what has not reached the disk is lost.
#[test]
fn a_job_that_cuts_the_power_is_begun_three_times() {
    for durability in [Durability::Commit, Durability::Relaxed] {
        let lane = Lane { limit: Limit::Open, rerun: Rerun::Yes, tells: Tells::NONE };
        let reopen = |volume: &Volume| {
            let volume = Volume::of(volume.medium().synced());
            let opened = open_with(plan(vec![lane]), CAPACITY, &volume, durability);
            let (store, found) = opened.expect("it opens");
            (volume, store, found)
        };
        let volume = Volume::default();
        let (store, _) = open_with(plan(vec![lane]), CAPACITY, &volume, durability).unwrap();
        let job = submit(&store, 0, Keep::Result);
        store.flush().unwrap();
        let mut running = volume;
        let mut store = store;
        for begun in 1..=MAX_STARTS {
            start(&store, &job);
            let (volume, reopened, found) = reopen(&running);
            let runs_again = begun < MAX_STARTS;
            let expected = (usize::from(runs_again), usize::from(!runs_again));
            assert_eq!((found.waiting, found.interrupted), expected, "begun {begun} times");
            (running, store) = (volume, reopened);
        }
        assert!(claim(&store).is_none());
        store.flush().unwrap();
        let result = collected(&store, &job).expect("it is done").result;
        assert_eq!(result, StoredResponse::from(Error::Interrupted.response()));
    }
}

/// What had been promised when the disk had received this many calls.
struct Note {
    calls: usize,
    promises: Promises,
}

fn cut_everywhere(seed: u64, durability: Durability) -> usize {
    let mut scenario = Scenario::new(seed, durability);
    let mut medium = scenario.volume.medium();
    assert_eq!(medium.at_stake(), 0);
    scenario.volume.record();
    let mut notes = vec![Note { calls: 0, promises: Promises::new() }];
    for _ in 0..OPERATIONS {
        scenario.step();
        let (calls, promises) = (scenario.volume.recorded(), scenario.promises.clone());
        notes.push(Note { calls, promises });
    }
    let Scenario { store, volume, mut random, trace, refused, .. } = scenario;
    assert!(refused.is_empty(), "the disk does not fail");
    drop(store);
    let events = volume.events();
    let mut now = 0;
    for calls in 0..=events.len() {
        if calls > 0 {
            medium.take(events[calls - 1].clone());
        }
        while notes.get(now + 1).is_some_and(|next| next.calls <= calls) {
            now += 1;
        }
        let promised = &notes[now].promises;
        let begun = &notes[(now + 1).min(notes.len() - 1)].promises;
        let image = medium.image(&mut random);
        let say = Say { seed, durability, calls, trace: &trace, upto: now };
        if random.usize(..CUT_AGAIN) == 0 {
            let image = cut_again(image.clone(), durability, &mut random);
            Check { promised, begun, refused: &[], durability }.image(image);
        }
        Check { promised, begun, refused: &[], durability }.image(image);
        drop(say);
    }
    events.len() + 1
}

/// Reports, on failure, which image it was.
struct Say<'a> {
    seed: u64,
    durability: Durability,
    calls: usize,
    trace: &'a [String],
    upto: usize,
}

impl Drop for Say<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let Self { seed, durability, calls, trace, upto } = self;
            eprintln!(
                "seed {seed}, {durability:?}, cut after {calls} calls, in or after operation {upto} \
                 of:\n{}",
                trace.join("\n")
            );
        }
    }
}

/// Opens the image, and cuts the power again during that.
fn cut_again(image: Image, durability: Durability, random: &mut Rng) -> Image {
    let volume = Volume::of(image);
    let mut medium = volume.medium();
    volume.record();
    let (store, _) = promise::open(&volume, durability).expect("it opens");
    drop(store);
    let events = volume.events();
    let calls = random.usize(..(events.len() + 1));
    events.into_iter().take(calls).for_each(|event| medium.take(event));
    medium.image(random)
}
