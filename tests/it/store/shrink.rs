//! The file of the tables after many additions and removals: as short as its contents, and never cut where data is.

use redb::StorageBackend;

use crate::store::kit::*;
use crate::support::eventually;
use deferd::content::Content;
use deferd::job::Keep;
use deferd::store::disk::Durability;
use deferd::store::{Lookup, Store};
use http::Response;

const ROOM: usize = 64 << 20;

/// How much of the file may be free; what is left here is much less.
const SLACK: u64 = 4 << 20;

/// At how many points the power is cut while the file is shortened.
const CUTS: usize = 60;

/// Returns a result that is in the tables, and is larger than a page.
fn large(n: usize) -> Response<Content> {
    response(n).map(|_| vec![n as u8; 30_000].into())
}

#[track_caller]
fn assert_there(store: &dyn Store, jobs: &[Job]) {
    for job in jobs {
        let Lookup::Done(result) = store.peek(&job.key) else { panic!("{} is gone", job.n) };
        assert!(result == large(job.n).into(), "{}", job.n);
    }
}

#[test]
fn the_file_becomes_short_when_much_of_it_is_free() {
    let volume = Volume::default();
    let store = open_for(ROOM, &volume, Durability::Commit).unwrap().0;
    let mut jobs: Vec<Job> = (0..800).map(|n| submit(&store, n, Keep::Result)).collect();
    for job in &jobs {
        start(&store, job);
        store.finish(&job.key, large(job.n), at(THEN));
    }
    store.flush().unwrap();
    assert!(volume.len().unwrap() > 4 * SLACK);
    let others = jobs.split_off(20);
    let mut medium = volume.medium();
    volume.record();
    for job in &others {
        assert_eq!(store.forget(&job.key), Ok(true));
    }
    eventually("the file is short", || volume.len().unwrap() <= SLACK);
    assert_there(&store, &jobs);
    // The store still works.
    let new = submit(&store, 1000, Keep::Result);
    start(&store, &new);
    finish(&store, &new);
    new.assert_result(&collected(&store, &new).unwrap().result);
    let events = volume.events();
    let every = events.len() / CUTS + 1;
    let mut random = Rng::with_seed(3);
    for (n, event) in events.into_iter().enumerate() {
        if n % every == 0 {
            let volume = Volume::of(medium.image(&mut random));
            let (store, _) = open_for(ROOM, &volume, Durability::Commit).expect("it opens");
            assert_there(&store, &jobs);
        }
        medium.take(event);
    }
}
