//! The log of a job outlives the collection of its result for a while.

use crate::support::{Client, Deferd, TempDir, eventually};

fn deferd(arguments: &[&str]) -> Deferd {
    Deferd::with_scripts("", arguments)
}

/// Runs a script that writes these words to stderr, and collects its result; returns the path of its log.
fn collected(client: &mut Client, words: &str) -> String {
    let id = client.store("POST", "/run/c-words", words.as_bytes());
    client.result(&id).expect(200);
    format!("/_api/job/{id}/log")
}

/// Does the same, and waits until the delivery is confirmed and the log is kept: under tiny_http, that is a moment
/// after the last byte has arrived.
fn kept(client: &mut Client, words: &str) -> String {
    let log = collected(client, words);
    eventually("the delivery is confirmed", || client.get(&log).status == 200);
    log
}

#[test]
fn a_log_outlives_its_collected_result() {
    let deferd = deferd(&[]);
    let mut client = deferd.client();
    let log = kept(&mut client, "last words\n");
    let job = log.trim_end_matches("/log").to_owned();
    assert_eq!(client.get(&log).expect(200).text(), "last words\n");
    for method in ["GET", "PUT", "DELETE"] {
        // It is no longer a job; only its log exists, until it is deleted.
        client.request(method, &job, &[], b"").expect_error(404, 404);
    }
    client.get(&log).expect_error(404, 404);
    let log = kept(&mut client, "more words\n");
    client.delete("/_api/job/all").expect(200);
    client.get(&log).expect_error(404, 404);
}

#[test]
fn a_log_can_be_read_while_its_result_is_delivered() {
    for (ttl, status) in [("1h", 200), ("0", 404)] {
        let deferd = deferd(&["--log-ttl", ttl]);
        let mut client = deferd.client();
        let id = client.store("GET", &format!("/run/d-loud?{}", 16 << 20), b"");
        client.wait_done(&id);
        let (job, log) = (format!("/_api/job/{id}"), format!("/_api/job/{id}/log"));
        let mut slow = deferd.client();
        slow.send_request("PUT", &job, &[], b"");
        slow.wait_for_answer();
        client.get(&job).expect_error(404, 404);
        let reply = client.get(&log).expect(status);
        assert!(status == 404 || reply.text() == "counted\n");
        assert_eq!(slow.try_read("PUT").unwrap().body.len(), 16 << 20);
        eventually("the delivery is confirmed", || client.get(&log).status == status);
    }
}

#[test]
fn a_log_goes_after_its_time_or_with_the_result() {
    let brief = deferd(&["--log-ttl", "300ms"]);
    let mut client = brief.client();
    let log = collected(&mut client, "words\n");
    eventually("it has expired", || client.get(&log).status == 404);
    let none = deferd(&["--log-ttl", "0"]);
    let mut client = none.client();
    let log = collected(&mut client, "words\n");
    eventually("the delivery is confirmed", || client.get(&log).status == 404);
}

#[test]
fn an_owner_keeps_the_newest_64_logs() {
    let deferd = deferd(&[]);
    let mut client = deferd.client();
    let logs: Vec<_> = (0..70).map(|n| kept(&mut client, &format!("words {n}\n"))).collect();
    for (n, log) in logs.iter().enumerate() {
        let reply = client.get(log);
        assert_eq!(reply.status, if n < 6 { 404 } else { 200 }, "{n}");
        assert!(n < 6 || reply.text() == format!("words {n}\n"));
    }
}

#[test]
fn logs_are_the_first_to_go_when_room_is_short() {
    let deferd = deferd(&["--max-stored", "128K"]);
    let mut client = deferd.client();
    let logs: Vec<_> = (0..8).map(|_| kept(&mut client, &"x".repeat(8000))).collect();
    // A submission that is refused at the end has had the room of all logs.
    let mut accepted = 0;
    let fields = [("x-arango-async", "store")];
    // A refusal may end its connection.
    let submit = || deferd.client().request("POST", "/_admin/echo", &fields, &[b'y'; 4000]);
    while submit().status == 202 {
        accepted += 1;
        assert!(accepted < 100);
    }
    assert!(accepted > 8, "{accepted}");
    assert!(logs.iter().all(|log| client.get(log).status == 404));
}

#[test]
fn a_kept_log_outlives_a_restart_with_data() {
    let dir = TempDir::new();
    let data = dir.join("kept").display().to_string();
    for end in ["-TERM", "-KILL"] {
        let mut first = deferd(&["--data", &data]);
        let mut client = first.client();
        let log = kept(&mut client, "words\n");
        let deleted = kept(&mut client, "deleted\n");
        client.delete(deleted.trim_end_matches("/log")).expect(404);
        // A later submission is durable, so everything before it is as well.
        client.store("GET", "/_admin/time", b"");
        drop(client);
        first.signal(end);
        first.wait();
        let second = deferd(&["--data", &data]);
        let mut client = second.client();
        assert_eq!(client.get(&log).expect(200).text(), "words\n", "{end}");
        client.get(&deleted).expect(404);
        client.put(log.trim_end_matches("/log")).expect(404);
        client.delete("/_api/job/all").expect(200);
        client.get(&log).expect(404);
    }
}
