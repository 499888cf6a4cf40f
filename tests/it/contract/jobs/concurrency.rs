//! How many requests of a route run at once: a limit delays, and never refuses. Local redirects change lanes.

use std::thread;

use crate::support::hold::Hold;
use crate::support::{Ability, Client, Deferd, TempDir, eventually, fixtures, lacks};

/// Starts a deferd with the scripts at `/one/`, one at once, and at `/run/`, without a limit.
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
fn jobs_and_callers_of_a_route_share_its_limit() {
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
fn a_route_at_its_limit_delays_no_other() {
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
fn a_job_cancelled_in_its_lane_never_runs() {
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
fn jobs_waiting_for_their_route_take_queue_places() {
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

#[test]
fn callers_beyond_four_a_worker_wait_in_order() {
    if lacks(Ability::ManyConnections) {
        return;
    }
    let deferd = Deferd::with_scripts("", &["--workers", "1"]);
    let holds = [(); 6].map(|()| Hold::new());
    let ask = |hold: &Hold| {
        let mut client = deferd.client();
        client.send_request("GET", &hold.target(), &[], b"");
        client
    };
    let mut callers: Vec<Client> = holds[..4].iter().map(&ask).collect();
    holds[..4].iter().for_each(|hold| hold.wait_for("started"));
    for hold in &holds[4..] {
        callers.push(ask(hold));
        // One after the other: a job submitted after a request shows that its head was read.
        let mut client = deferd.client();
        let id = client.store("GET", "/run/c-talk", b"");
        client.result(&id).expect(500);
    }
    assert!(!holds[4].has("started") && !holds[5].has("started"));
    for n in 0..6 {
        holds[n].wait_for("started");
        holds[n].release();
        assert_eq!(callers[n].try_read("GET").unwrap().expect(200).text(), "let go\n");
    }
}

#[test]
fn callers_past_the_time_limit_get_504() {
    if lacks(Ability::ManyConnections) {
        return;
    }
    let deferd = start(&["--timeout", "700ms", "--workers", "1"]);
    for (route, most) in [("/one/", 1), ("/run/", 4)] {
        let holds = [(); 4].map(|()| Hold::new());
        let target = |hold: &Hold| hold.target().replacen("/run/", route, 1);
        let mut callers: Vec<Client> = Vec::new();
        for hold in &holds[..most] {
            let mut client = deferd.client();
            client.send_request("GET", &target(hold), &[], b"");
            callers.push(client);
        }
        let late = TempDir::new();
        let reply = deferd.client().get(&format!("{route}c-touch?{}", late.join("x").display()));
        // On a busy machine it may get its turn, after those before it have timed out.
        if reply.status != 200 {
            let text = reply.expect_error(504, 504).text();
            assert!(text.contains("timeout") && text.contains("at once"), "{text}");
            assert!(!late.join("x").exists());
        }
        for mut caller in callers {
            caller.try_read("GET").unwrap().expect_error(504, 504);
        }
    }
}

/// A deferd whose CGI scripts at `/cgi/` are redirected to `/one/`, which runs one at once.
struct Redirected {
    deferd: Deferd,
    hold: Hold,
}

impl Redirected {
    /// Starts it with a job that has the only place in the lane of the target.
    #[track_caller]
    fn to_a_full_lane(options: &str) -> Self {
        let fixtures = fixtures().display().to_string();
        let cgi = format!("/cgi/=cgi:{fixtures}{options}");
        let one = format!("/one/=run:{fixtures},concurrency=1");
        let run = format!("/run/=run:{fixtures}");
        let routes = ["--route", &cgi, "--route", &one, "--route", &run, "--workers", "2"];
        let (deferd, hold) =
            (Deferd::start(&[&routes[..], &["--queue", "4"]].concat()), Hold::new());
        deferd.client().store("GET", &self::one(&hold), b"");
        hold.wait_for("started");
        Self { deferd, hold }
    }

    fn submit(client: &mut Client, target: &str) -> String {
        client.store("POST", "/cgi/s-cat", format!("Location: {target}\n\n").as_bytes())
    }
}

#[test]
fn redirected_jobs_wait_without_a_worker() {
    let Redirected { deferd, hold } = Redirected::to_a_full_lane("");
    let mut client = deferd.client();
    let holds = [(); 3].map(|()| Hold::new());
    // More than there are workers.
    let ids = holds.each_ref().map(|hold| Redirected::submit(&mut client, &one(hold)));
    let other = client.store("GET", "/run/c-talk", b"");
    client.result(&other).expect(500);
    assert!(holds.iter().all(|hold| !hold.has("started")));
    hold.release();
    holds.iter().for_each(Hold::release);
    for id in ids {
        assert_eq!(client.result(&id).expect(200).text(), "let go\n");
    }
}

#[test]
fn a_redirected_caller_waits_in_the_targets_lane() {
    let Redirected { deferd, hold } = Redirected::to_a_full_lane("");
    let (mut caller, next) = (deferd.client(), Hold::new());
    let output = format!("Location: {}\n\n", one(&next));
    caller.send_request("POST", "/cgi/s-cat", &[], output.as_bytes());
    let mut client = deferd.client();
    let other = client.store("GET", "/run/c-talk", b"");
    client.result(&other).expect(500);
    assert!(!next.has("started"));
    hold.release();
    next.release();
    assert_eq!(caller.try_read("POST").unwrap().expect(200).text(), "let go\n");
}

#[test]
fn a_redirect_into_its_own_lane_is_answered() {
    let cgi = format!("/cgi/=cgi:{},concurrency=1", fixtures().display());
    let deferd = Deferd::start(&["--route", &cgi, "--workers", "1"]);
    let mut client = deferd.client();
    let reply = client.request("POST", "/cgi/s-cat", &[], b"Location: /cgi/s-echo\n\n");
    assert_eq!(reply.expect(200).header("x-content-length"), Some("unset"));
    let id = Redirected::submit(&mut client, "/cgi/s-echo");
    client.result(&id).expect(200);
}

#[test]
fn one_deadline_covers_a_redirect_and_its_wait() {
    let Redirected { deferd, hold: _held } = Redirected::to_a_full_lane(",timeout=1s");
    let mut client = deferd.client();
    let holds = [Hold::new(), Hold::new()];
    let targets = [one(&holds[0]), holds[1].target(), "/_admin/sleep?duration=60".into()];
    let ids = targets.each_ref().map(|target| Redirected::submit(&mut client, target));
    for target in &targets {
        let output = format!("Location: {target}\n\n");
        let reply = client.request("POST", "/cgi/s-cat", &[], output.as_bytes());
        reply.expect_error(504, 504);
    }
    for id in ids {
        client.result(&id).expect_job_error(504, 504);
    }
    assert!(!holds[0].has("started"));
}

#[test]
fn a_waiting_redirected_job_is_cancelled_at_once() {
    let Redirected { deferd, hold } = Redirected::to_a_full_lane("");
    let (mut client, next) = (deferd.client(), Hold::new());
    let id = Redirected::submit(&mut client, &one(&next));
    // It is behind the other in the queue: once it is done, on the only other worker, the first was redirected.
    let other = client.store("GET", "/run/c-talk", b"");
    client.result(&other).expect(500);
    client.put(&format!("/_api/job/{id}/cancel")).expect(200);
    client.result(&id).expect_job_error(410, 21);
    hold.release();
    let last = client.store("GET", "/one/c-talk", b"");
    client.result(&last).expect(500);
    assert!(!next.has("started"));
}

#[test]
fn redirected_jobs_that_ended_free_their_places() {
    let Redirected { deferd, hold: _held } = Redirected::to_a_full_lane(",timeout=2s");
    let (mut client, next) = (deferd.client(), Hold::new());
    let output = format!("Location: {}\n\n", one(&next));
    let store = [("x-arango-async", "store")];
    // Ended by a cancellation, and by the deadline.
    for is_cancelled in [true, false] {
        let mut ids = Vec::new();
        eventually("the queue is full of jobs that wait for their lane", || {
            // A refusal ends its connection.
            let mut other = deferd.client();
            let reply = other.request("POST", "/cgi/s-cat", &store, output.as_bytes());
            ids.extend(reply.id().map(str::to_owned));
            reply.status == 503
        });
        for id in &ids {
            if is_cancelled {
                client.put(&format!("/_api/job/{id}/cancel")).expect(200);
            }
            let reply = client.result(id);
            assert!([410, 504].contains(&reply.status), "{reply:?}");
        }
        eventually("a place in the queue is free", || {
            let reply = client.request("GET", "/run/c-talk", &store, b"");
            reply.id().is_some_and(|id| client.result(id).status == 500)
        });
    }
    assert!(!next.has("started"));
}

/// The caller need not wait for a turn to learn that.
#[test]
fn an_impossible_redirect_waits_for_no_turn() {
    let Redirected { deferd, hold: _held } = Redirected::to_a_full_lane("");
    let mut client = deferd.client();
    let output = b"Location: /one/missing\n\n";
    client.request("POST", "/cgi/s-cat", &[], output).expect_error(404, 404);
    let id = Redirected::submit(&mut client, "/one/missing");
    client.result(&id).expect_job_error(404, 404);
}
