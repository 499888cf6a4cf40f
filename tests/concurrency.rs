//! A route's `concurrency=N`: it delays, and never refuses.

#![allow(clippy::unwrap_used)]

mod support;

use std::thread;

use support::hold::Hold;
use support::{Deferd, TempDir, fixtures};

/// A deferd with the scripts at `/one/`, one at once, and at `/run/`, without a limit.
fn start(arguments: &[&str]) -> Deferd {
    let one = format!("/one/=run:{},concurrency=1", fixtures().display());
    let mut all = vec!["--route", one.as_str()];
    all.extend_from_slice(arguments);
    Deferd::with_scripts("", &all)
}

fn one(hold: &Hold) -> String {
    hold.target().replacen("/run/", "/one/", 1)
}

#[test]
fn jobs_and_synchronous_requests_of_a_route_run_one_by_one_and_all_of_them_run() {
    let deferd = start(&["--workers", "4"]);
    let dir = TempDir::new();
    let target = format!("/one/c-alone?{}", dir.join("a").display());
    thread::scope(|scope| {
        for n in 0..4 {
            let (deferd, target) = (&deferd, &target);
            scope.spawn(move || {
                let mut client = deferd.client();
                if n % 2 == 0 {
                    let ids = [(); 3].map(|()| client.store("GET", target, b""));
                    for id in ids {
                        client.result(&id).expect(200);
                    }
                } else {
                    for _ in 0..3 {
                        client.get(target).expect(200).without_id();
                    }
                }
            });
        }
    });
    assert!(!dir.join("a.clash").exists());
}

#[test]
fn a_route_at_its_limit_does_not_hold_up_the_others() {
    let deferd = start(&["--workers", "2"]);
    let mut client = deferd.client();
    let holds = [(); 4].map(|()| Hold::new());
    let ids = holds.each_ref().map(|hold| client.store("GET", &one(hold), b""));
    holds[0].wait_for("started");
    let other = client.store("GET", "/run/c-talk", b"");
    client.result(&other).expect(500);
    assert!(holds[1..].iter().all(|hold| !hold.has("started")));
    for (hold, id) in holds.iter().zip(ids) {
        hold.wait_for("started");
        hold.release();
        assert_eq!(client.result(&id).expect(200).text(), "let go\n");
    }
}

#[test]
fn a_synchronous_request_waits_behind_a_job_of_its_route() {
    let deferd = start(&["--workers", "2"]);
    let mut client = deferd.client();
    let holds = [Hold::new(), Hold::new()];
    let job = client.store("GET", &one(&holds[0]), b"");
    holds[0].wait_for("started");
    let mut waiting = deferd.client();
    waiting.send_request("GET", &one(&holds[1]), &[], b"");
    let other = client.store("GET", "/run/c-talk", b"");
    client.result(&other).expect(500);
    assert!(!holds[1].has("started"));
    holds[1].release();
    holds[0].release();
    assert_eq!(waiting.try_read("GET").unwrap().expect(200).text(), "let go\n");
    client.result(&job).expect(200);
}

#[test]
fn a_job_that_is_cancelled_while_it_waits_for_its_route_never_runs() {
    let deferd = start(&["--workers", "2"]);
    let mut client = deferd.client();
    let holds = [(); 3].map(|()| Hold::new());
    let ids = holds.each_ref().map(|hold| client.store("GET", &one(hold), b""));
    holds[0].wait_for("started");
    client.put(&format!("/_api/job/{}/cancel", ids[1])).expect(200);
    client.result(&ids[1]).expect_job_error(410, 21);
    holds[0].release();
    // The third comes after the second.
    holds[2].wait_for("started");
    holds[2].release();
    client.result(&ids[2]).expect(200);
    assert!(!holds[1].has("started"));
}

#[test]
fn jobs_that_wait_for_their_route_have_their_place_in_the_queue() {
    let deferd = start(&["--workers", "2", "--queue", "2"]);
    let mut client = deferd.client();
    let holds = [(); 3].map(|()| Hold::new());
    let running = client.store("GET", &one(&holds[0]), b"");
    holds[0].wait_for("started");
    let ids = [&holds[1], &holds[2]].map(|hold| client.store("GET", &one(hold), b""));
    let refused = client.request("GET", "/_api/version", &[("x-arango-async", "store")], b"");
    refused.expect_error(503, 21003);
    holds.iter().for_each(Hold::release);
    for id in [&running, &ids[0], &ids[1]] {
        client.result(id).expect(200);
    }
}
