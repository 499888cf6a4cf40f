//! RFC 7240: a client prefers to be answered later, or to wait, or both.

use std::thread;
use std::time::{Duration, Instant};

use crate::support::hold::Hold;
use crate::support::{Client, Deferd, Reply, eventually};

/// Long enough for all waiting clients, provided that they are woken.
const LONG: &str = "wait=3600";

fn deferd() -> Deferd {
    Deferd::with_scripts("", &["--max-wait", "1h"])
}

#[track_caller]
fn prefer(client: &mut Client, method: &str, target: &str, values: &[&str]) -> Reply {
    let fields: Vec<_> = values.iter().map(|value| ("prefer", *value)).collect();
    client.request(method, target, &fields, b"")
}

#[test]
fn respond_async_submits_like_store_and_says_so() {
    let deferd = deferd();
    let mut client = deferd.client();
    for values in [
        &["respond-async"][..],
        &["RESPOND-ASYNC ; x"],
        &["return=minimal, respond-async, wait=0"],
        &["handling=\"a, b\"", " ,respond-async"],
    ] {
        let reply = prefer(&mut client, "GET", "/_admin/time", values).expect(202);
        let id = reply.id().unwrap().to_owned();
        assert_eq!(reply.header("preference-applied"), Some("respond-async"));
        assert_eq!(reply.header("location"), Some(format!("/_api/job/{id}").as_str()));
        assert!(reply.header("retry-after").unwrap().parse::<u64>().is_ok());
        assert_eq!(reply.header("vary"), Some("prefer"));
        assert!(reply.body.is_empty());
        client.result(&id).expect(200);
    }
}

/// For clients that cannot read fields, such as OpenWrt's uclient-fetch.
#[test]
fn return_representation_puts_the_id_into_the_content() {
    let deferd = deferd();
    let mut client = deferd.client();
    let store = ("x-arango-async", "store");
    for (fields, applied) in [
        (&[store, ("prefer", "return=representation")][..], "return=representation"),
        (&[store, ("prefer", "respond-async, Return=\"representation\"")], "return=representation"),
        (
            &[("prefer", "respond-async, return=representation")],
            "respond-async, return=representation",
        ),
        (
            &[("prefer", "return=representation"), ("prefer", "respond-async, wait=0")],
            "respond-async, return=representation",
        ),
    ] {
        let reply = client.request("GET", "/_admin/time", fields, b"").expect(202);
        let id = reply.id().unwrap().to_owned();
        assert_eq!(reply.text(), format!("{id}\n"));
        assert_eq!(reply.header("content-type"), Some("text/plain; charset=utf-8"));
        assert_eq!(reply.header("preference-applied"), Some(applied));
        assert_eq!(reply.header("vary"), Some("prefer"));
        assert_eq!(reply.header("location"), Some(format!("/_api/job/{id}").as_str()));
        client.result(&id).expect(200);
    }
    for fields in [
        &[("x-arango-async", "true"), ("prefer", "return=representation")][..],
        &[store, ("prefer", "return=minimal, return=representation")],
        &[store, ("prefer", "return=representations")],
    ] {
        let reply = client.request("GET", "/_admin/time", fields, b"").expect(202);
        assert!(reply.body.is_empty(), "{fields:?}");
        assert_eq!(reply.header("preference-applied"), None);
    }
    let reply = prefer(&mut client, "GET", "/_admin/time", &["return=representation"]).expect(200);
    assert_eq!((reply.header("preference-applied"), reply.header("vary")), (None, None));
    let fields = [store, ("prefer", "return=representation")];
    client.request("HEAD", "/_admin/time", &fields, b"").expect(202);
    let there = ["respond-async, return=representation, wait=60"];
    let reply = prefer(&mut client, "GET", "/_admin/time", &there).expect(200);
    assert_eq!(reply.header("preference-applied"), None, "the plain answer says nothing of it");
}

#[test]
fn what_is_not_a_known_preference_changes_nothing() {
    let deferd = deferd();
    let mut client = deferd.client();
    for value in ["", "respond-asynchronously", "x=\"respond-async\"", "return=minimal", "\"", LONG]
    {
        let reply = prefer(&mut client, "GET", "/_admin/time", &[value]).expect(200);
        assert_eq!((reply.header("preference-applied"), reply.header("vary")), (None, None));
    }
    prefer(&mut client, "OPTIONS", "/_admin/time", &["respond-async"]).expect(200);
}

#[test]
fn arango_s_field_wins() {
    let deferd = deferd();
    let mut client = deferd.client();
    for (value, has_id) in [("store", true), ("true", false)] {
        let fields = [("x-arango-async", value), ("prefer", "respond-async, wait=3600")];
        let reply = client.request("GET", "/_admin/time", &fields, b"").expect(202);
        assert_eq!(reply.id().is_some(), has_id);
        for name in ["preference-applied", "retry-after", "vary"] {
            assert_eq!(reply.header(name), None);
        }
    }
}

#[test]
fn a_result_in_time_is_the_plain_answer() {
    let deferd = deferd();
    let mut client = deferd.client();
    let reply =
        prefer(&mut client, "GET", "/run/c-talk", &["respond-async, wait=3600"]).expect(500);
    let plain = client.get("/run/c-talk").expect(500);
    assert_eq!(reply.body, plain.body);
    assert_eq!(reply.header("x-exit-code"), plain.header("x-exit-code"));
    assert_eq!(reply.header("vary"), Some("prefer"));
    let reply = reply.without_id();
    assert_eq!((reply.header("location"), reply.header("preference-applied")), (None, None));
    eventually("the job is gone", || {
        client.list("done").is_empty() && client.list("pending").is_empty()
    });
}

#[test]
fn without_a_result_in_time_the_answer_is_202() {
    let deferd = deferd();
    let mut client = deferd.client();
    let hold = Hold::new();
    let reply =
        prefer(&mut client, "GET", &hold.target(), &["respond-async", "wait=1"]).expect(202);
    let id = reply.id().unwrap().to_owned();
    assert_eq!(reply.header("preference-applied"), Some("respond-async"));
    hold.wait_for("started");
    hold.release();
    assert_eq!(client.result(&id).expect(200).text(), "let go\n");
}

#[test]
fn waiting_clients_are_answered_when_the_job_is_done() {
    let deferd = deferd();
    let mut client = deferd.client();
    let hold = Hold::new();
    let id = hold.start(&mut client);
    let path = format!("/_api/job/{id}");
    let before = deferd.sockets();
    thread::scope(|scope| {
        let ask = |method: &'static str, target: String| {
            let deferd = &deferd;
            scope.spawn(move || prefer(&mut deferd.client(), method, &target, &[LONG]))
        };
        let waiting = [
            ask("GET", path.clone()),
            ask("HEAD", path.clone()),
            ask("GET", format!("{path}/result")),
            ask("GET", format!("/_db/_system/_api/job/{id}/")),
        ];
        // They wait; if one were answered at once, it would be with 204.
        eventually("all are connected", || deferd.sockets() >= before + 4);
        hold.release();
        for waiting in waiting {
            let reply = waiting.join().unwrap().expect(200);
            assert_eq!(reply.header("vary"), Some("prefer"));
        }
        let reply = ask("PUT", path).join().unwrap().expect(200);
        assert_eq!((reply.id(), reply.text().as_str()), (Some(id.as_str()), "let go\n"));
    });
}

#[test]
fn a_waiting_collector_gets_the_result_once() {
    let deferd = deferd();
    let mut client = deferd.client();
    let hold = Hold::new();
    let id = hold.start(&mut client);
    let path = format!("/_api/job/{id}");
    let mut statuses: Vec<u16> = thread::scope(|scope| {
        let collectors = [(); 8]
            .map(|()| scope.spawn(|| prefer(&mut deferd.client(), "PUT", &path, &[LONG]).status));
        hold.release();
        collectors.into_iter().map(|collector| collector.join().unwrap()).collect()
    });
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 404, 404, 404, 404, 404, 404, 404]);
}

#[test]
fn clients_waiting_for_a_cancelled_job_are_answered() {
    for (method, path, status) in [
        ("PUT", "ID/cancel", 410),
        ("DELETE", "ID", 404),
        ("DELETE", "all", 404),
        ("DELETE", "expired?stamp=99999999999", 404),
    ] {
        let deferd = deferd();
        let mut client = deferd.client();
        let hold = Hold::new();
        let id = hold.start(&mut client);
        thread::scope(|scope| {
            let before = deferd.sockets();
            let waiting = scope.spawn(|| {
                prefer(&mut deferd.client(), "PUT", &format!("/_api/job/{id}"), &[LONG]).status
            });
            eventually("somebody waits", || deferd.sockets() > before);
            let target = format!("/_api/job/{}", path.replace("ID", &id));
            client.request(method, &target, &[], b"").expect(200);
            assert_eq!(waiting.join().unwrap(), status, "{method} {path}");
        });
        hold.release();
    }
}

#[test]
fn a_wait_in_vain_is_answered_with_204() {
    let deferd = deferd();
    let mut client = deferd.client();
    let hold = Hold::new();
    let id = hold.start(&mut client);
    let path = format!("/_api/job/{id}");
    let begin = Instant::now();
    prefer(&mut client, "PUT", &path, &["wait=1"]).expect(204).without_id();
    assert!(begin.elapsed() >= Duration::from_secs(1));
    prefer(&mut client, "GET", &path, &["wait=0"]).expect(204);
    // A job that does not exist is not waited for.
    prefer(&mut client, "GET", "/_api/job/1", &[LONG]).expect_error(404, 404);
    prefer(&mut client, "PUT", "/_api/job/none", &[LONG]).expect_error(404, 404);
    hold.release();
}

#[test]
fn no_client_waits_longer_than_max_wait() {
    let deferd = Deferd::with_scripts("", &["--max-wait", "50ms"]);
    let mut client = deferd.client();
    let hold = Hold::new();
    let id = hold.start(&mut client);
    prefer(&mut client, "PUT", &format!("/_api/job/{id}"), &[LONG]).expect(204);
    let other = Hold::new();
    prefer(&mut client, "GET", &other.target(), &["respond-async, wait=3600"]).expect(202);
    hold.release();
    other.release();
}

#[test]
fn a_waiting_client_holds_no_worker() {
    let deferd = Deferd::with_scripts("", &["--max-wait", "1h", "--workers", "1"]);
    let mut client = deferd.client();
    let hold = Hold::new();
    let id = hold.start(&mut client);
    thread::scope(|scope| {
        let before = deferd.sockets();
        for _ in 0..4 {
            let (deferd, path) = (&deferd, format!("/_api/job/{id}"));
            scope.spawn(move || prefer(&mut deferd.client(), "GET", &path, &[LONG]).expect(200));
        }
        eventually("four wait", || deferd.sockets() >= before + 4);
        let next = client.store("GET", "/_api/version", b"");
        hold.release();
        // The only worker is free for it.
        client.result(&next).expect(200);
    });
}

#[test]
fn a_deferred_collection_does_not_wait() {
    let deferd = Deferd::with_scripts("", &["--max-wait", "1h", "--workers", "2"]);
    let mut client = deferd.client();
    let hold = Hold::new();
    let id = hold.start(&mut client);
    let fields = [("x-arango-async", "store"), ("prefer", LONG)];
    let reply = client.request("PUT", &format!("/_api/job/{id}"), &fields, b"").expect(202);
    client.result(reply.id().unwrap()).expect(204);
    hold.release();
}

#[test]
fn the_shutdown_answers_waiting_clients() {
    // The shutdown may come before the request is read: then there is no client to answer, and no answer.
    eventually("one who waited is answered", || ended_while_one_waits().is_some());
}

/// Returns the answer to a client that waits for a job during the shutdown.
fn ended_while_one_waits() -> Option<Reply> {
    let mut deferd =
        Deferd::with_scripts("", &["--max-wait", "1h", "--workers", "1", "--grace", "1ms"]);
    let mut client = deferd.client();
    let hold = Hold::new();
    hold.start(&mut client);
    let queued = client.store("GET", "/_api/version", b"");
    let before = deferd.sockets();
    let mut waiting = deferd.client();
    waiting.send_request("GET", &format!("/_api/job/{queued}"), &[("prefer", LONG)], b"");
    eventually("it waits", || deferd.sockets() > before);
    deferd.signal("-TERM");
    let reply = waiting.try_read("GET");
    assert_eq!(deferd.wait().code(), Some(0));
    reply
}

#[test]
fn a_result_that_a_waiter_does_not_take_stays() {
    let deferd = Deferd::with_scripts("", &["--max-wait", "1h", "--max-output", "64M"]);
    let mut client = deferd.client();
    let mut deaf = deferd.client();
    // More than the buffers in between hold, so that it cannot all be sent.
    let target = "/run/c-zeros?60000000";
    deaf.send_request("GET", target, &[("prefer", "respond-async, wait=3600")], b"");
    eventually("the job has run", || deferd.log().contains(" run="));
    drop(deaf);
    eventually("it is back", || client.list("done").len() == 1);
}
