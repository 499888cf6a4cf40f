//! A client that waits for a job and leaves, and one that asks repeatedly: as the strict front sees them, which has
//! its own sockets and a thread for each.

use std::time::{Duration, Instant};

use crate::support::hold::Hold;
use crate::support::{Client, Deferd, eventually};

const LONG: &str = "wait=3600";

/// How long a repeated request for a pending job waits.
const MOMENT: Duration = Duration::from_millis(10);

/// How often something is timed. The fastest counts: a busy machine makes a run slower, never faster.
const TIMES: usize = 20;

/// Returns the shortest time that `something` takes.
#[track_caller]
fn quickest(mut something: impl FnMut()) -> Duration {
    let times = (0..TIMES).map(|_| {
        let begin = Instant::now();
        something();
        begin.elapsed()
    });
    times.min().unwrap()
}

/// Starts a deferd with a job that runs until its `Hold` releases it.
fn holding() -> (Deferd, Client, Hold, String) {
    let deferd = Deferd::with_scripts("", &["--workers", "3"]);
    let (mut client, hold) = (deferd.client(), Hold::new());
    let id = hold.start(&mut client);
    (deferd, client, hold, format!("/_api/job/{id}"))
}

#[test]
fn asking_again_for_a_pending_job_waits_a_moment() {
    let (_deferd, mut client, _hold, job) = holding();
    let first = quickest(|| {
        client.get("/_api/version").expect(200);
        client.get(&job).expect(204);
    });
    assert!(first < MOMENT, "the first is answered at once: {first:?}");
    let prefixed = format!("/_db/_system{job}");
    let (result, log) = (format!("{job}/result"), format!("{job}/log"));
    let put = [("x-http-method-override", "PUT")];
    type Ask<'a> = &'a dyn Fn(&mut Client) -> u16;
    let asks: [(&str, Ask); 6] = [
        ("status", &|client| client.get(&job).status),
        ("with a prefix", &|client| client.get(&prefixed).status),
        ("head", &|client| client.request("HEAD", &job, &[], b"").status),
        ("collect", &|client| client.put(&job).status),
        ("collect by POST", &|client| client.request("POST", &job, &put, b"").status),
        ("result", &|client| client.get(&result).status),
    ];
    for (what, ask) in asks {
        let again = quickest(|| assert_eq!(ask(&mut client), 204, "{what}"));
        assert!((MOMENT..10 * MOMENT).contains(&again), "{what}: {again:?}");
    }
    let again = quickest(|| {
        client.get(&log).expect(200);
        client.get(&job).expect(204);
    });
    assert!(again >= 2 * MOMENT, "log and status by turns: {again:?}");
}

#[test]
fn asking_again_is_answered_when_the_job_is_done() {
    let deferd = Deferd::start(&[]);
    let mut client = deferd.client();
    let last = (0..TIMES).filter_map(|_| {
        let id = client.store("GET", "/_admin/sleep?duration=0.005", b"");
        let job = format!("/_api/job/{id}");
        let is_pending = client.get(&job).status == 204;
        let begin = Instant::now();
        let is_done = client.get(&job).status == 200;
        (is_pending && is_done).then(|| begin.elapsed())
    });
    let last = last.min().expect("one that was seen pending and then done");
    assert!(last < MOMENT, "{last:?}");
}

#[test]
fn a_client_with_other_requests_between_does_not_wait() {
    let (deferd, mut client, hold, job) = holding();
    let other = Hold::new();
    let id = other.start(&mut client);
    let another = format!("/_api/job/{id}");
    let finished = deferd.client().store("GET", "/_api/version", b"");
    client.wait_done(&finished);
    let done = format!("/_api/job/{finished}");
    let turns: [(&str, &[&str]); 3] = [
        ("another job", &[&job, &another]),
        ("a list", &[&job, "/_api/job/pending"]),
        ("a route that is not there", &[&job, "/nowhere"]),
    ];
    for (what, targets) in turns {
        let all = quickest(|| targets.iter().for_each(|target| drop(client.get(target))));
        assert!(all < MOMENT, "{what}: {all:?}");
    }
    let deferred = [("x-arango-async", "true")];
    let all = quickest(|| {
        client.get(&job).expect(204);
        client.request("GET", &job, &deferred, b"").expect(202);
    });
    assert!(all < MOMENT, "a deferred request: {all:?}");
    for (what, target, status) in [("done", &*done, 200), ("unknown", "/_api/job/7", 404)] {
        let all = quickest(|| drop(client.get(target).expect(status)));
        assert!(all < MOMENT, "{what}: {all:?}");
    }
    hold.release();
    other.release();
}

#[test]
fn clients_of_one_job_do_not_slow_each_other() {
    let (deferd, mut client, hold, job) = holding();
    client.get(&job).expect(204);
    let first = quickest(|| drop(deferd.client().get(&job).expect(204)));
    assert!(first < MOMENT, "{first:?}");
    hold.release();
}

#[test]
fn a_client_that_leaves_while_it_asks_again_is_noticed() {
    let (deferd, mut client, hold, job) = holding();
    eventually("the log says that a client left", || {
        let mut leaving = deferd.client();
        leaving.get(&job).expect(204);
        leaving.send_request("GET", &job, &[], b"");
        drop(leaving);
        deferd.log().contains(" left=yes")
    });
    client.get(&job).expect(204);
    hold.release();
}

#[test]
fn a_waiting_client_that_leaves_takes_no_result() {
    let deferd = Deferd::with_scripts("", &["--max-wait", "1h"]);
    let mut client = deferd.client();
    let (hold, other) = (Hold::new(), Hold::new());
    let id = hold.start(&mut client);
    let before = deferd.threads();
    let mut leaving = deferd.client();
    leaving.send_request("PUT", &format!("/_api/job/{id}"), &[("prefer", LONG)], b"");
    let mut deferring = deferd.client();
    let fields = [("prefer", "respond-async, wait=3600")];
    deferring.send_request("GET", &other.target(), &fields, b"");
    other.wait_for("started");
    eventually("both wait", || deferd.threads() >= before + 2);
    drop((leaving, deferring));
    eventually("their threads are free", || deferd.threads() <= before);
    client.get(&format!("/_api/job/{id}")).expect(204);
    hold.release();
    other.release();
    assert_eq!(client.result(&id).expect(200).text(), "let go\n");
    // The other job's result exists as well, for any client that finds it in the list.
    eventually("the other is done", || client.list("done").len() == 1);
}

/// Returns whether the answer to the last request has arrived.
fn is_answered(client: &Client) -> bool {
    client.socket().set_nonblocking(true).unwrap();
    let is_there = client.socket().peek(&mut [0]).is_ok();
    client.socket().set_nonblocking(false).unwrap();
    is_there
}

#[test]
fn half_of_the_connections_may_wait() {
    let deferd = Deferd::with_scripts("", &["--max-connections", "8", "--max-wait", "1h"]);
    let mut client = deferd.client();
    let mut waiting: Vec<Client> = (0..6).map(|_| deferd.client()).collect();
    // Twice: the places are given back.
    for _ in 0..2 {
        let hold = Hold::new();
        let job = format!("/_api/job/{}", hold.start(&mut client));
        for client in &mut waiting {
            client.send_request("GET", &job, &[("prefer", LONG)], b"");
        }
        eventually("two of six are answered", || {
            waiting.iter().filter(|client| is_answered(client)).count() == 2
        });
        client.request("PUT", &job, &[("prefer", LONG)], b"").expect(204);
        let fields = [("prefer", "respond-async, wait=3600")];
        client.request("GET", "/_admin/sleep?duration=3600", &fields, b"").expect(202);
        hold.release();
        let replies = waiting.iter_mut().map(|client| client.try_read("GET").unwrap().status);
        let mut replies: Vec<u16> = replies.collect();
        replies.sort_unstable();
        assert_eq!(replies, [200, 200, 200, 200, 204, 204]);
    }
}
