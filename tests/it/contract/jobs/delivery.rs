//! How a result reaches its client: completely, once, and without being lost if a connection breaks.
//!
//! Where a delivery must hang or break, results have 16 MiB: more than the kernel buffers (some 4 MiB to send, and no
//! more than the client has read to receive).

use std::fmt::Write as _;
use std::io::Read;
use std::net::Shutdown;
use std::sync::LazyLock;
use std::thread;
use std::time::Duration;

use crate::support::hold::Hold;
use crate::support::{
    Ability, Client, Deferd, Meeting, Reply, eventually, is_shared, lacks, uninterrupted,
};

const LARGE: usize = 16 << 20;

/// Returns what the script `d-count` writes.
fn numbers(bytes: usize) -> &'static [u8] {
    static NUMBERS: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let mut text = String::with_capacity(LARGE + 10);
        for n in 1.. {
            if text.len() >= LARGE {
                break;
            }
            writeln!(text, "{n}").unwrap();
        }
        text.into_bytes()
    });
    &NUMBERS[..bytes]
}

/// Returns bytes of every value, in no order.
fn noise(bytes: usize) -> Vec<u8> {
    let next = |x: &u64| Some(x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    std::iter::successors(Some(1), next).take(bytes / 8).flat_map(u64::to_le_bytes).collect()
}

/// Runs a job with a result of this many bytes; returns its id.
fn done_with(client: &mut Client, bytes: usize) -> String {
    let id = client.store("GET", &format!("/run/d-count?{bytes}"), b"");
    client.wait_done(&id);
    id
}

fn job(id: &str) -> String {
    format!("/_api/job/{id}")
}

/// Compares without printing 16 MiB.
#[track_caller]
fn assert_whole(reply: &Reply, id: &str, expected: &[u8]) {
    assert_eq!((reply.status, reply.id()), (200, Some(id)));
    assert_eq!(reply.body.len(), expected.len());
    assert!(reply.body == expected, "the content differs");
}

/// Collects the result, now or once it is restored, and asserts that it is then removed.
#[track_caller]
fn assert_collectable_once(client: &mut Client, id: &str, expected: &[u8]) {
    eventually("the result is there", || client.get(&job(id)).status == 200);
    let peeked = client.get(&format!("/_api/job/{id}/result"));
    assert_whole(&peeked, id, expected);
    assert_eq!(client.list("done"), [id]);
    assert_whole(&client.put(&job(id)), id, expected);
    assert_gone(client, id);
}

#[track_caller]
fn assert_gone(client: &mut Client, id: &str) {
    client.get(&job(id)).expect_error(404, 404);
    client.put(&job(id)).expect_error(404, 404);
    client.delete(&job(id)).expect_error(404, 404);
    assert!(!client.list("done").iter().any(|other| other == id));
    assert!(!client.list("pending").iter().any(|other| other == id));
}

/// Returns a client that asked for the result and has not read any of the answer, which has begun.
fn hanging_collection(deferd: &Deferd, id: &str) -> Client {
    let mut client = deferd.client();
    client.send_request("PUT", &job(id), &[], b"");
    client.wait_for_answer();
    client
}

#[test]
fn a_broken_collection_keeps_the_result() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let id = done_with(&mut client, LARGE);
    let expected = numbers(LARGE);
    for bytes in [0, 1, 64 << 10, 1 << 20] {
        for end in ["reset", "close"] {
            let broken = hanging_collection(&deferd, &id);
            broken.socket().read_exact(&mut vec![0; bytes]).unwrap();
            if end == "close" {
                broken.socket().shutdown(Shutdown::Both).unwrap();
            }
            drop(broken);
            eventually("the result is back", || client.get(&job(&id)).status == 200);
            let peeked = client.get(&format!("/_api/job/{id}/result"));
            assert_whole(&peeked, &id, expected);
        }
    }
    assert_collectable_once(&mut client, &id, expected);
}

#[test]
fn a_client_that_leaves_before_the_answer_keeps_the_result() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let id = done_with(&mut client, LARGE);
    let open = deferd.descriptors();
    for round in 0..30 {
        let mut broken = deferd.client();
        // Every third time, after an answer that the client does not take: then it is never collected.
        if round % 3 == 0 {
            broken.send_request("GET", &format!("/run/d-count?{LARGE}"), &[], b"");
        }
        broken.send_request("PUT", &job(&id), &[], b"");
        if round % 2 == 0 {
            broken.socket().shutdown(Shutdown::Both).unwrap();
        }
    }
    wait_until_closed(&deferd, open);
    assert_collectable_once(&mut client, &id, numbers(LARGE));
}

/// Waits until every earlier connection is closed, and at most `open` descriptors are left.
fn wait_until_closed(deferd: &Deferd, open: usize) {
    // Connections are accepted in order, so the earlier ones were accepted.
    deferd.client().get("/_api/version").expect(200);
    if is_shared() {
        // Connections to the engine come and stay. One is the test's, and one sends the request.
        eventually("the connections are over", || {
            let metrics = deferd.client().get("/_admin/metrics").text();
            ["1", "2"].iter().any(|n| metrics.contains(&format!("\ndeferd_connections {n}\n")))
        });
        return;
    }
    eventually("the connections are over", || deferd.descriptors() <= open);
}

#[test]
fn a_small_result_is_kept_if_its_client_left() {
    if lacks(Ability::Connection) {
        return;
    }
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    // Writing a small answer always succeeds; only the reset that it causes shows the failure. Now and then deferd
    // answers before the client has left: then the result is rightly removed.
    eventually("a result is kept", || {
        let id = done_with(&mut client, 100);
        let open = deferd.descriptors();
        let mut broken = deferd.client();
        broken.send_request("PUT", &job(&id), &[], b"");
        broken.socket().shutdown(Shutdown::Both).unwrap();
        drop(broken);
        wait_until_closed(&deferd, open);
        let kept = client.get(&job(&id)).status == 200;
        if kept {
            assert_collectable_once(&mut client, &id, numbers(100));
        }
        kept
    });
}

#[test]
fn a_small_result_pipelined_behind_a_broken_answer_is_kept() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let id = done_with(&mut client, 100);
    let open = deferd.descriptors();
    let mut broken = deferd.client();
    broken.send_request("GET", &format!("/run/d-count?{LARGE}"), &[], b"");
    broken.send_request("PUT", &job(&id), &[], b"");
    broken.wait_for_answer();
    drop(broken);
    // All connections: in tiny_http, a request that was read has a descriptor of its own.
    wait_until_closed(&deferd, open);
    assert_collectable_once(&mut client, &id, numbers(100));
}

#[test]
fn a_client_that_half_closes_gets_its_result_once() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    for bytes in [0, 100, LARGE] {
        let id = done_with(&mut client, bytes);
        let mut half = deferd.client();
        half.send_request("PUT", &job(&id), &[], b"");
        half.socket().shutdown(Shutdown::Write).unwrap();
        let reply = half.try_read("PUT").expect("an answer");
        assert_whole(&reply, &id, numbers(bytes));
        assert!(half.is_closed());
        assert_gone(&mut client, &id);
    }
}

#[test]
fn a_slow_reader_gets_the_whole_result() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let id = done_with(&mut client, LARGE);
    let mut slow = deferd.client();
    slow.send_request("PUT", &job(&id), &[("connection", "close")], b"");
    let mut answer = Vec::with_capacity(LARGE + 1000);
    let mut piece = [0; 32 << 10];
    loop {
        // This is not a wait for an event: the client itself is slow.
        thread::sleep(Duration::from_micros(500));
        match uninterrupted(|| slow.socket().read(&mut piece)).unwrap() {
            0 => break,
            n => answer.extend_from_slice(&piece[..n]),
        }
    }
    let head = answer.len() - LARGE;
    assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n") && answer[..head].ends_with(b"\r\n\r\n"));
    assert!(answer[head..] == *numbers(LARGE), "the content differs");
    assert_gone(&mut client, &id);
}

#[test]
fn large_content_comes_back_byte_for_byte() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let content = noise(LARGE);
    let id = client.store("POST", "/run/s-cat", &content);
    client.wait_done(&id);
    assert_collectable_once(&mut client, &id, &content);
}

#[test]
fn of_two_collections_at_once_one_gets_the_result() {
    const ROUNDS: usize = 400;
    let deferd = Deferd::start(&[]);
    let mut client = deferd.client();
    let ids: Vec<_> = (0..ROUNDS).map(|_| client.store("GET", "/_api/version", b"")).collect();
    eventually("all are done", || client.list("pending").is_empty());
    let start = Meeting::of(2);
    let collect = || -> Vec<Reply> {
        let mut client = deferd.client();
        let put = |id: &String| {
            start.wait();
            client.put(&job(id))
        };
        ids.iter().map(put).collect()
    };
    let (one, other) = thread::scope(|scope| {
        let other = scope.spawn(collect);
        (collect(), other.join().unwrap())
    });
    for ((id, a), b) in ids.iter().zip(one).zip(other) {
        let (got, missed) = if a.status == 200 { (a, b) } else { (b, a) };
        assert_whole(&got, id, br#"{"server":"arango","version":"1.4.3"}"#);
        missed.expect_error(404, 404);
    }
    assert_eq!(client.list("done"), [""; 0]);
}

#[test]
fn a_result_in_delivery_is_hidden_from_others() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let id = done_with(&mut client, LARGE);
    let other = done_with(&mut client, 100);
    let hanging = hanging_collection(&deferd, &id);
    for target in [job(&id), format!("/_api/job/{id}/result"), format!("/_api/job/{id}/log")] {
        client.get(&target).expect_error(404, 404);
    }
    client.put(&format!("/_api/job/{id}/cancel")).expect_error(404, 404);
    assert_gone(&mut client, &id);
    assert_eq!(client.list("done"), [&*other]);
    drop(hanging);
    eventually("the result is back", || client.list("done") == [&*id, &*other]);
    client.delete(&job(&other)).expect(200);
    assert_collectable_once(&mut client, &id, numbers(LARGE));
}

#[test]
fn results_deleted_during_delivery_are_not_restored() {
    // Room for this one result and little more, to see what is still on the accounts.
    let max_stored = (LARGE + (64 << 10)).to_string();
    for bulk in ["all", "expired?stamp=99999999999"] {
        let deferd = Deferd::with_scripts("", &["--max-stored", &max_stored]);
        let mut client = deferd.client();
        let id = done_with(&mut client, LARGE);
        let open = deferd.descriptors();
        let hanging = hanging_collection(&deferd, &id);
        let submit = || {
            let fields = [("x-arango-async", "store")];
            deferd.client().request("POST", "/_api/version", &fields, &[b'.'; 100 << 10])
        };
        submit().expect_error(503, 21003);
        client.delete(&job(bulk)).expect(200);
        submit().expect(202);
        client.delete(&job("all")).expect(200);
        drop(hanging);
        wait_until_closed(&deferd, open);
        assert_gone(&mut client, &id);
        assert_eq!(client.list("done"), [""; 0]);
    }
}

#[test]
fn a_delivery_outlives_a_deletion_in_bulk() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let id = done_with(&mut client, LARGE);
    let mut hanging = hanging_collection(&deferd, &id);
    client.delete(&job("all")).expect(200);
    assert_whole(&hanging.try_read("PUT").unwrap(), &id, numbers(LARGE));
    assert_gone(&mut client, &id);
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    const ROUNDS: usize = 12;
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let ids: Vec<_> = (0..ROUNDS).map(|n| done_with(&mut client, n)).collect();
    // The first is slow, so that all the others have arrived before its answer.
    client.send_request("GET", "/_admin/sleep?duration=0.1", &[], b"");
    for (n, id) in ids.iter().enumerate() {
        client.send_request("PUT", &job(id), &[], b"");
        client.send_request("POST", "/run/s-cat", &[], format!("content {n}").as_bytes());
        client.send_request("PUT", &job(id), &[], b"");
        client.send_request("HEAD", "/_api/version", &[], b"");
        client.send_request("GET", &format!("/_admin/echo?{n}"), &[], b"");
    }
    client.send_request("GET", "/_api/version", &[("connection", "close")], b"");
    let in_turns = !lacks(Ability::Turns);
    let mut next = |method| client.try_read(method).expect("an answer");
    assert_eq!(next("GET").expect(200).json()["duration"], 0.1);
    for (n, id) in ids.iter().enumerate() {
        let first = next("PUT");
        assert_eq!(next("POST").expect(200).text(), format!("content {n}"));
        let second = next("PUT");
        // If they are handled at once, either may be the one that collects.
        let in_turn = in_turns || first.status == 200;
        let (collects, late) = if in_turn { (first, second) } else { (second, first) };
        assert_whole(&collects, id, numbers(n));
        late.expect_error(404, 404);
        assert_eq!(next("HEAD").expect(200).header("content-length"), Some("37"));
        assert_eq!(next("GET").expect(200).json()["target"], format!("/_admin/echo?{n}"));
    }
    assert_eq!(next("GET").expect(200).header("connection"), Some("close"));
    assert!(client.is_closed());
}

#[test]
fn a_cancelled_collection_leaves_the_inner_result() {
    let deferd = Deferd::with_scripts("", &["--workers", "1"]);
    let mut client = deferd.client();
    for end in ["none", "delete", "cancel"] {
        let inner = done_with(&mut client, 100);
        // The only worker is occupied until the outer job is deleted or cancelled.
        let hold = Hold::new();
        let blocker = hold.start(&mut client);
        let outer = client.store("PUT", &job(&inner), b"");
        let behind = client.store("GET", "/_api/version", b"");
        match end {
            "delete" => client.delete(&job(&outer)).expect(200),
            "cancel" => client.put(&format!("/_api/job/{outer}/cancel")).expect(200),
            _ => client.get(&job(&outer)).expect(204),
        };
        client.get(&job(&inner)).expect(200);
        client.put(&format!("/_api/job/{blocker}/cancel")).expect(200);
        client.result(&blocker).expect(410);
        // It is behind the outer job, so that one has run, as forgotten jobs do.
        client.result(&behind).expect(200);
        match end {
            "delete" => assert_gone(&mut client, &outer),
            "cancel" => drop(client.result(&outer).expect(410)),
            _ => assert_whole(&client.result(&outer), &outer, numbers(100)),
        }
        if end == "none" {
            assert_gone(&mut client, &inner);
        } else {
            assert_collectable_once(&mut client, &inner, numbers(100));
        }
    }
}
