//! What is refused instead of a 202: at once, without an id, and leaving nothing behind.

use std::net::Shutdown;

use crate::support::hold::Hold;
use crate::support::{Ability, Client, Deferd, Reply, TempDir, eventually, lacks};

const STORE: [(&str, &str); 1] = [("x-arango-async", "store")];
const TRUE: [(&str, &str); 1] = [("x-arango-async", "true")];

/// Submits on a connection of its own: if content is left unread, the connection is closed.
fn submit(deferd: &Deferd, target: &str, body: &[u8]) -> Reply {
    deferd.client().request("POST", target, &STORE, body)
}

#[track_caller]
fn assert_nothing_is_left(client: &mut Client) {
    assert_eq!(client.jobs(), [""; 0]);
}

/// Asserts the answer of a full queue or store.
#[track_caller]
fn assert_full(reply: Reply) {
    let reply = reply.expect_error(503, 21003).without_id();
    let seconds: u64 = reply.header("retry-after").expect("retry-after").parse().unwrap();
    assert!(seconds >= 1);
    assert!(reply.json()["errorMessage"].as_str().unwrap().starts_with("queue is full"));
}

#[test]
fn an_unknown_target_is_404_before_the_202() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    for target in [
        "/",
        "/nowhere",
        "/run",
        "/runner/c-talk",
        "/run/",
        "/run/no-such",
        "/cgi/no-such/x",
        "/run/../seed.rs",
        "/run/%2e%2e/seed.rs",
        "/_api",
        "/_api/",
        "/_api/nope",
        "/_admin/nope",
        "/_api/jobs",
        "/_db",
        "/_db/_system",
        "/_db/_system/nowhere",
    ] {
        for fields in [&STORE, &TRUE] {
            client.request("GET", target, fields, b"").expect_error(404, 404).without_id();
        }
        client.get(target).expect_error(404, 404);
    }
    assert_nothing_is_left(&mut client);
}

#[test]
fn an_unsupported_method_is_405_before_the_202() {
    let deferd = Deferd::start(&[]);
    let mut client = deferd.client();
    for (method, target, allow) in [
        ("POST", "/_admin/time", "GET, HEAD, OPTIONS"),
        ("DELETE", "/_db/_system/_api/collection", "GET, HEAD, OPTIONS, POST"),
        ("POST", "/_api/job/7", "DELETE, GET, HEAD, OPTIONS, PUT"),
        ("PUT", "/_admin/jobs/7", "GET, HEAD, OPTIONS"),
    ] {
        for fields in [&STORE[..], &TRUE, &[("prefer", "respond-async")], &[]] {
            let reply = client.request(method, target, fields, b"").expect_error(405, 405);
            assert_eq!(reply.header("allow"), Some(allow), "{method} {target}");
        }
    }
    let overridden = [STORE[0], ("x-http-method-override", "PATCH")];
    client.request("POST", "/_admin/time", &overridden, b"").expect_error(405, 405);
    assert_nothing_is_left(&mut client);
}

#[test]
fn any_other_database_is_404_1228() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    for target in [
        "/_db/other/_api/version",
        "/_db/other/_api/job/done",
        "/_db/other",
        "/_db/",
        "/_db//_api",
        "/_db/_systemx/_api/version",
        "/_db/_SYSTEM/_api/version",
        "/_db/other/nowhere",
    ] {
        client.get(target).expect_error(404, 1228);
        client.request("PUT", target, &STORE, b"").expect_error(404, 1228).without_id();
    }
    assert_nothing_is_left(&mut client);
}

#[test]
fn a_non_executable_script_is_403_before_the_202() {
    let dir = TempDir::new();
    std::fs::write(dir.join("plain"), "#!/bin/sh\n").unwrap();
    let deferd = Deferd::start(&["--route", &format!("/x/=run:{}", dir.0.display())]);
    let mut client = deferd.client();
    for fields in [&STORE, &TRUE] {
        client.request("GET", "/x/plain", fields, b"").expect_error(403, 403).without_id();
    }
    assert_nothing_is_left(&mut client);
}

#[test]
fn a_malformed_request_is_400_and_no_job() {
    let deferd = Deferd::start(&[]);
    for head in [
        "GET /_api/version HTTP/1.1\r\nx-arango-async: store\r\n\r\n",
        "GET /_api/ver sion HTTP/1.1\r\nhost: localhost\r\nx-arango-async: store\r\n\r\n",
        "PUT /_api/job/  HTTP/1.1\r\nhost: localhost\r\nx-arango-async: store\r\n\r\n",
        "POST /_api/version HTTP/1.1\r\nhost: localhost\r\nx-arango-async: store\r\ncontent-length: x\r\n\r\n",
    ] {
        let mut client = deferd.client();
        client.send(head.as_bytes());
        let reply = client.try_read("GET").unwrap().expect(400).without_id();
        if !lacks(Ability::OwnRefusals) {
            reply.expect_error(400, 400);
        }
    }
    assert_nothing_is_left(&mut deferd.client());
}

#[test]
fn a_body_cut_short_is_never_a_job() {
    let deferd = Deferd::with_scripts("", &["--workers", "1"]);
    let dir = TempDir::new();
    let file = dir.join("ran");
    let mut client = deferd.client();
    client.send(
        format!(
            "POST /run/c-touch?{} HTTP/1.1\r\nhost: localhost\r\nx-arango-async: store\r\n\
             content-length: 10\r\n\r\nhalf",
            file.display()
        )
        .as_bytes(),
    );
    client.socket().shutdown(Shutdown::Write).unwrap();
    // Once the server has closed the connection, it has decided.
    while client.try_read("POST").is_some_and(|reply| reply.without_id().status >= 400) {}
    let mut client = deferd.client();
    let marker = client.store("GET", "/_api/version", b"");
    client.result(&marker).expect(200);
    assert!(!file.exists());
    assert_nothing_is_left(&mut client);
}

#[test]
fn a_body_over_max_body_is_413_and_no_job() {
    let deferd = Deferd::start(&["--max-body", "1K"]);
    let chunked = |size: usize| {
        let mut client = deferd.client();
        let head = "POST /_admin/echo HTTP/1.1\r\nhost: localhost\r\nx-arango-async: store\r\n\
                    transfer-encoding: chunked\r\n\r\n";
        let body = "x".repeat(size / 2);
        let chunk = format!("{:x}\r\n{body}\r\n", body.len());
        client.send(format!("{head}{chunk}{chunk}0\r\n\r\n").as_bytes());
        client.try_read("POST").unwrap()
    };
    let refused = submit(&deferd, "/_admin/echo", &[b'x'; 1025]).expect_error(413, 413);
    assert_eq!(refused.json()["errorMessage"], "body too large: more than --max-body 1K");
    chunked(1026).expect_error(413, 413);
    assert_nothing_is_left(&mut deferd.client());
    for accepted in [submit(&deferd, "/_admin/echo", &[b'x'; 1024]), chunked(1024)] {
        let id = accepted.expect(202).id().unwrap().to_owned();
        assert_eq!(deferd.client().result(&id).expect(200).json()["bodySize"], 1024);
    }
}

#[test]
fn an_announced_length_over_max_body_is_refused_early() {
    if lacks(Ability::EarlyRefusal) {
        return;
    }
    let deferd = Deferd::start(&["--max-body", "1K"]);
    for length in ["1025", "30000000000", "99999999999999999999999"] {
        let mut client = deferd.client();
        client.send(
            format!("POST /_api/version HTTP/1.1\r\nhost: localhost\r\nx-arango-async: store\r\ncontent-length: {length}\r\n\r\n")
                .as_bytes(),
        );
        client.try_read("POST").unwrap().expect_error(413, 413).without_id();
    }
    assert_nothing_is_left(&mut deferd.client());
}

#[test]
fn a_job_refused_by_a_full_queue_leaves_nothing() {
    let deferd = Deferd::with_scripts("", &["--workers", "1", "--queue", "2"]);
    let mut client = deferd.client();
    let (hold, dir) = (Hold::new(), TempDir::new());
    let running = hold.start(&mut client);
    let touch = |name: &str| format!("/run/c-touch?{}", dir.join(name).display());
    let waiting = client.store("GET", &touch("stored"), b"");
    client.request("GET", &touch("forgotten"), &TRUE, b"").expect(202);
    for fields in [&STORE, &TRUE] {
        assert_full(client.request("GET", &touch("refused"), fields, b""));
        assert_full(client.request("GET", "/_api/job/done", fields, b""));
    }
    for wait in ["respond-async", "respond-async, wait=60"] {
        assert_full(client.request("GET", &touch("refused"), &[("prefer", wait)], b""));
    }
    assert_full(submit(&deferd, "/_admin/echo", b"with content"));
    assert_eq!(client.list("pending"), [running.as_str(), waiting.as_str()]);
    client.get("/_api/version").expect(200);
    hold.release();
    client.wait_done(&waiting);
    let mut marker = None;
    eventually("there is room again", || {
        let reply = client.request("GET", "/_api/version", &STORE, b"");
        marker = reply.id().map(str::to_owned);
        reply.status == 202
    });
    let marker = marker.expect("an id");
    client.wait_done(&marker);
    assert!(dir.join("stored").exists() && dir.join("forgotten").exists());
    assert!(!dir.join("refused").exists());
    assert_eq!(client.list("done"), [running, waiting, marker]);
}

#[test]
fn cancelled_jobs_free_their_queue_places_forgotten_do_not() {
    let deferd = Deferd::with_scripts("", &["--workers", "1", "--queue", "2"]);
    let mut client = deferd.client();
    let hold = Hold::new();
    hold.start(&mut client);
    let first = client.store("GET", "/_admin/time", b"");
    let second = client.store("GET", "/_admin/time", b"");
    assert_full(submit(&deferd, "/_admin/echo", b""));
    // Its work is still pending.
    client.delete(&format!("/_api/job/{first}")).expect(200);
    assert_full(submit(&deferd, "/_admin/echo", b""));
    client.put(&format!("/_api/job/{second}/cancel")).expect(200);
    let third = client.store("GET", "/_admin/time", b"");
    assert_full(submit(&deferd, "/_admin/echo", b""));
    hold.release();
    client.result(&third).expect(200);
    client.result(&second).expect_job_error(410, 21);
}

#[test]
fn at_max_stored_jobs_are_refused_and_nothing_is_evicted() {
    let deferd = Deferd::with_scripts("", &["--max-stored", "16K"]);
    let mut client = deferd.client();
    let id = client.store("GET", "/run/c-zeros?12000", b"");
    client.wait_done(&id);
    assert_full(submit(&deferd, "/_admin/echo", &[b'x'; 6000]));
    assert_eq!(client.list("pending"), [""; 0]);
    let reply = client.request("POST", "/_admin/echo", &[], &[b'x'; 6000]).expect(200);
    assert_eq!(reply.json()["bodySize"], 6000, "a synchronous request needs no room");
    assert_eq!(client.result(&id).expect(200).body, [0; 12000]);
    let mut accepted = None;
    // tiny_http may read the next request before it has settled the receipt of the last answer.
    eventually("there is room again", || {
        let reply = submit(&deferd, "/_admin/echo", &[b'x'; 6000]);
        accepted = reply.id().map(str::to_owned);
        reply.status == 202
    });
    assert_eq!(client.result(&accepted.unwrap()).expect(200).json()["bodySize"], 6000);
}

#[test]
fn a_result_that_finds_no_room_becomes_507() {
    let deferd = Deferd::with_scripts("", &["--max-stored", "20K", "--workers", "1"]);
    let mut client = deferd.client();
    let hold = Hold::new();
    let first = hold.start(&mut client);
    let ids = [(); 3].map(|()| client.store("GET", "/run/c-zeros?12000", b""));
    hold.release();
    client.wait_done(&ids[2]);
    client.result(&first).expect(200);
    // The first of them has taken the room; what was reserved for the others holds an error each.
    for id in &ids[1..] {
        let reply = client.result(id).expect_job_error(507, 507);
        assert!(reply.text().contains("--max-stored"), "{}", reply.text());
    }
    assert_eq!(client.result(&ids[0]).expect(200).body, [0; 12000]);
    // tiny_http may read the next request before it has settled the receipt of the last answer.
    eventually("there is room again", || {
        let id = client.store("GET", "/run/c-zeros?12000", b"");
        client.result(&id).status == 200
    });
}

#[test]
fn contents_that_wait_count_for_max_stored() {
    let deferd = Deferd::with_scripts("", &["--max-stored", "20K", "--workers", "1"]);
    let mut client = deferd.client();
    let hold = Hold::new();
    hold.start(&mut client);
    let waiting = client.store("POST", "/_api/version", &[b'x'; 12000]);
    assert_full(submit(&deferd, "/_api/version", &[b'x'; 6000]));
    // Content whose length is not announced is measured once it has arrived.
    let mut chunked = deferd.client();
    chunked.send(
        format!(
            "POST /_api/version HTTP/1.1\r\nhost: localhost\r\nx-arango-async: store\r\n\
             transfer-encoding: chunked\r\n\r\n1770\r\n{}\r\n0\r\n\r\n",
            "x".repeat(6000)
        )
        .as_bytes(),
    );
    assert_full(chunked.try_read("POST").unwrap());
    client.put(&format!("/_api/job/{waiting}/cancel")).expect(200);
    submit(&deferd, "/_api/version", &[b'x'; 6000]).expect(202);
    hold.release();
}

#[test]
fn deleted_and_forgotten_results_make_room() {
    let deferd = Deferd::with_scripts("", &["--max-stored", "20K"]);
    let mut client = deferd.client();
    for delete in ["ID", "all", "expired?stamp=99999999999"] {
        let id = client.store("GET", "/run/c-zeros?14000", b"");
        client.wait_done(&id);
        assert_full(submit(&deferd, "/_api/version", &[b'x'; 4000]));
        let target = format!("/_api/job/{}", delete.replace("ID", &id));
        client.delete(&target).expect(200);
        let reply = client.request("POST", "/_api/version", &TRUE, &[b'x'; 4000]);
        reply.expect(202);
        // The job that was deferred last gives its own room back after it has run.
        let room =
            || deferd.client().request("POST", "/_api/version", &TRUE, &[b'x'; 12000]).status;
        eventually("room", || room() == 202);
    }
}
