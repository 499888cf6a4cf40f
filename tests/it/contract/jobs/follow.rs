//! Following a log while its job runs: as text and as events, resumed, and to the end.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::hold::Hold;
use crate::support::{Ability, Client, Deferd, Reply, TempDir, eventually, is_shared, lacks};

const EVENTS: (&str, &str) = ("accept", "text/event-stream");

/// A run of `f-tell`, which writes to stderr what its test tells it to write.
struct Teller {
    dir: TempDir,
    told: usize,
}

impl Teller {
    fn new() -> Self {
        Self { dir: TempDir::new(), told: 0 }
    }

    fn submit(&self, client: &mut Client) -> String {
        client.store("GET", &format!("/run/f-tell?{}", self.dir.0.display()), b"")
    }

    fn put(&self, name: &str, text: &[u8]) {
        std::fs::write(self.dir.join("new"), text).unwrap();
        std::fs::rename(self.dir.join("new"), self.dir.join(name)).unwrap();
    }

    fn tell(&mut self, text: impl AsRef<[u8]>) {
        self.told += 1;
        self.put(&self.told.to_string(), text.as_ref());
    }

    /// Ends it, with an exit code or by a signal.
    fn end(&self, how: &str) {
        self.put("go", how.as_bytes());
    }
}

/// A client that follows the log of a job.
struct Follower {
    client: Client,
    head: Reply,
    seen: Vec<u8>,
}

impl Follower {
    #[track_caller]
    fn new(deferd: &Deferd, id: &str, fields: &[(&str, &str)]) -> Self {
        let mut client = deferd.client();
        client.send_request("GET", &format!("/_api/job/{id}/log?follow=1"), fields, b"");
        let head = client.try_read_head().unwrap().expect(200).without_id();
        assert!(head.is_chunked(), "{head:?}");
        Self { client, head, seen: Vec::new() }
    }

    /// Waits until exactly this has arrived.
    #[track_caller]
    fn expect(&mut self, all: impl AsRef<[u8]>) {
        let all = all.as_ref();
        while self.seen.len() < all.len() {
            let Some(chunk) = self.client.read_chunk() else { break };
            self.seen.extend(chunk);
        }
        assert_eq!(String::from_utf8_lossy(&self.seen), String::from_utf8_lossy(all));
    }

    /// Waits for the end, and returns everything that has arrived.
    #[track_caller]
    fn end(mut self) -> String {
        while let Some(chunk) = self.client.read_chunk() {
            self.seen.extend(chunk);
        }
        // The connection can be used after it.
        self.client.get("/_api/version").expect(200);
        String::from_utf8(self.seen).unwrap()
    }
}

fn start(arguments: &[&str]) -> Option<Deferd> {
    (!lacks(Ability::Flow)).then(|| Deferd::with_scripts("", arguments))
}

#[test]
fn a_follower_gets_the_kept_log_and_new_lines() {
    let Some(deferd) = start(&[]) else { return };
    let mut teller = Teller::new();
    let id = teller.submit(&mut deferd.client());
    teller.tell("one\n");
    let mut first = Follower::new(&deferd, &id, &[]);
    assert_eq!(first.head.header("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(first.head.header("cache-control"), Some("no-store"));
    first.expect("one\n");
    teller.tell("two\n");
    first.expect("one\ntwo\n");
    // A second follower, which starts later; then a line that arrives in two parts.
    let mut second = Follower::new(&deferd, &id, &[]);
    second.expect("one\ntwo\n");
    teller.tell("th");
    first.expect("one\ntwo\nth");
    teller.tell(b"ree\n\xff\n");
    first.expect(b"one\ntwo\nthree\n\xff\n");
    teller.tell("last\n");
    teller.end("0");
    first.expect(b"one\ntwo\nthree\n\xff\nlast\n");
    assert_eq!(first.client.read_chunk(), None);
    second.expect(b"one\ntwo\nthree\n\xff\nlast\n");
    assert_eq!(second.client.read_chunk(), None);
    deferd.client().result(&id).expect(200);
}

#[test]
fn events_have_offsets_at_which_a_client_goes_on() {
    let Some(deferd) = start(&[]) else { return };
    for (end, done) in [
        ("0", r#"{"status":200,"exitCode":0}"#),
        ("3", r#"{"status":500,"exitCode":3}"#),
        ("TERM", r#"{"status":500,"exitCode":null,"signal":15}"#),
    ] {
        let mut teller = Teller::new();
        let id = teller.submit(&mut deferd.client());
        teller.tell("one\ntwo\n");
        let mut follower = Follower::new(&deferd, &id, &[EVENTS]);
        assert_eq!(follower.head.header("content-type"), Some("text/event-stream"));
        let first = "id: 4\ndata: one\n\nid: 8\ndata: two\n\n";
        follower.expect(first);
        let mut late = Follower::new(&deferd, &id, &[EVENTS, ("last-event-id", "4")]);
        late.expect("id: 8\ndata: two\n\n");
        teller.tell("a <b>\rc\r\nno end");
        teller.end(end);
        let rest = format!(
            "id: 17\ndata: a <b>\ndata: c\n\nid: 23\ndata: no end\n\nid: 23\nevent: done\ndata: {done}\n\n"
        );
        assert_eq!(follower.end(), format!("{first}{rest}"));
        assert_eq!(late.end(), format!("id: 8\ndata: two\n\n{rest}"));
        // For a job that is done, the rest of the log is sent; after its end there is nothing.
        let late = Follower::new(&deferd, &id, &[EVENTS, ("last-event-id", "8")]);
        assert_eq!(late.end(), rest);
        let mut client = deferd.client();
        for (offset, status) in [("22", 200), ("23", 204), ("9999", 204), ("-1", 200), ("x", 200)] {
            let fields = [EVENTS, ("last-event-id", offset)];
            let target = format!("/_api/job/{id}/log?follow=1");
            client.request("GET", &target, &fields, b"").expect(status).without_id();
        }
    }
}

#[test]
fn a_job_that_waits_is_followed_from_its_first_line() {
    let Some(deferd) = start(&["--workers", "1"]) else { return };
    let (mut client, hold) = (deferd.client(), Hold::new());
    hold.start(&mut client);
    let mut teller = Teller::new();
    let id = teller.submit(&mut client);
    let mut follower = Follower::new(&deferd, &id, &[EVENTS]);
    let cancelled = teller.submit(&mut client);
    let other = Follower::new(&deferd, &cancelled, &[EVENTS]);
    client.put(&format!("/_api/job/{cancelled}/cancel")).expect(200);
    let done = r#"{"status":410,"exitCode":null}"#;
    assert_eq!(other.end(), format!("id: 0\nevent: done\ndata: {done}\n\n"));
    hold.release();
    teller.tell("now\n");
    follower.expect("id: 4\ndata: now\n\n");
    // A forgotten job can no longer be followed.
    client.delete(&format!("/_api/job/{id}")).expect(200);
    let done = r#"{"status":null,"exitCode":null}"#;
    assert_eq!(follower.end(), format!("id: 4\ndata: now\n\nid: 4\nevent: done\ndata: {done}\n\n"));
}

#[test]
fn a_burst_before_the_end_arrives_whole() {
    let Some(deferd) = start(&[]) else { return };
    let mut client = deferd.client();
    let mut teller = Teller::new();
    let id = teller.submit(&mut client);
    teller.tell("begin\n");
    let mut follower = Follower::new(&deferd, &id, &[]);
    follower.expect("begin\n");
    // More than is kept, and less than a client may lag.
    let burst: String = (0..4000).map(|n| format!("line {n:04}\n")).collect();
    teller.tell(&burst);
    teller.end("0");
    assert_eq!(follower.end(), format!("begin\n{burst}"));
    let kept = client.get(&format!("/_api/job/{id}/log")).expect(200).text();
    assert_eq!(kept.len(), 8192);
    let all = burst.len() + 6;
    for _ in 0..2 {
        let fields = [EVENTS, ("last-event-id", &*(all - 10).to_string())];
        let text = Follower::new(&deferd, &id, &fields).end();
        assert!(text.starts_with(&format!("id: {all}\ndata: line 3999\n\n")), "{text}");
        let text = Follower::new(&deferd, &id, &[EVENTS]).end();
        let first: usize = text.split(['\n', ' ']).nth(1).unwrap().parse().unwrap();
        assert!((all - 8192..all - 8180).contains(&first), "{first} of {all}");
        // The same holds for the log that is kept after the result was collected.
        client.put(&format!("/_api/job/{id}"));
        let log = format!("/_api/job/{id}/log");
        eventually("the delivery is confirmed", || client.get(&log).status == 200);
    }
}

#[test]
fn a_log_that_cannot_be_streamed_is_sent_whole() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let mut teller = Teller::new();
    let id = teller.submit(&mut client);
    teller.tell("so far\n");
    let log = format!("/_api/job/{id}/log");
    eventually("it is there", || client.get(&log).text() == "so far\n");
    let follow = format!("{log}?follow=1");
    let deferred = client.store("GET", &follow, b"");
    let result = client.result(&deferred).expect(200);
    assert_eq!((result.text().as_str(), result.header("content-length")), ("so far\n", Some("7")));
    let head = client.request("HEAD", &follow, &[EVENTS], b"").expect(200);
    assert_eq!(head.header("content-length"), Some("7"));
    assert_eq!(client.get(&format!("{log}?follow=0")).expect(200).text(), "so far\n");
    if lacks(Ability::Flow) {
        assert_eq!(client.get(&follow).expect(200).text(), "so far\n");
    }
    client.get("/_api/job/1/log?follow=1").expect_error(404, 404);
    teller.end("0");
}

#[test]
fn half_of_the_connections_may_follow() {
    let Some(deferd) = start(&["--max-connections", "5"]) else { return };
    let mut client = deferd.client();
    let teller = Teller::new();
    let id = teller.submit(&mut client);
    let followers: Vec<_> = (0..2).map(|_| Follower::new(&deferd, &id, &[EVENTS])).collect();
    let refused = client.get(&format!("/_api/job/{id}/log?follow=1")).expect_error(503, 503);
    assert!(refused.text().contains("--max-connections"), "{}", refused.text());
    // Neither may they wait, but that is not an error.
    let wait = [("prefer", "wait=3600")];
    client.request("GET", &format!("/_api/job/{id}"), &wait, b"").expect(204);
    drop(followers);
    let target = format!("/_api/job/{id}/log?follow=1");
    eventually("their places are free", || {
        let mut client = Client::new(client.socket().peer_addr().unwrap());
        client.send_request("GET", &target, &[], b"");
        client.try_read_head().is_some_and(|head| head.status == 200)
    });
}

#[test]
fn the_shutdown_waits_for_followers_of_running_jobs_only() {
    let dir = TempDir::new();
    let data = dir.join("data");
    let Some(mut deferd) = start(&["--workers", "1", "--data", data.to_str().unwrap()]) else {
        return;
    };
    let mut client = deferd.client();
    let mut teller = Teller::new();
    let running = teller.submit(&mut client);
    teller.tell("one\n");
    let mut follower = Follower::new(&deferd, &running, &[EVENTS]);
    follower.expect("id: 4\ndata: one\n\n");
    let waiting = Teller::new().submit(&mut client);
    let mut cut = Follower::new(&deferd, &waiting, &[EVENTS]);
    deferd.signal("-TERM");
    assert!(
        cut.client.read_break(cut.head).body.is_empty(),
        "no final event is sent for a job that has not ended"
    );
    teller.tell("two\n");
    teller.end("0");
    let done = r#"{"status":200,"exitCode":0}"#;
    let all =
        format!("id: 4\ndata: one\n\nid: 8\ndata: two\n\nid: 8\nevent: done\ndata: {done}\n\n");
    follower.expect(all);
    assert!(deferd.wait().success());
    assert!(Path::new(&data).join("jobs.redb").exists());
}

#[test]
fn a_follower_64_kib_behind_is_cut_and_resumes() {
    let Some(deferd) = start(&[]) else { return };
    let mut client = deferd.client();
    let mut teller = Teller::new();
    let id = teller.submit(&mut client);
    teller.tell("one\n");
    let mut follower = Follower::new(&deferd, &id, &[]);
    follower.expect("one\n");
    // More than the buffers of both sides hold.
    const MUCH: usize = 32;
    for _ in 0..MUCH {
        teller.tell([&vec![b'x'; (1 << 20) - 1][..], b"\n"].concat());
    }
    teller.end("0");
    client.wait_done(&id);
    let broken = follower.client.read_break(follower.head);
    assert!(broken.body.len() < MUCH << 20, "{} bytes", broken.body.len());
    assert!(!broken.body.ends_with(b"0\r\n\r\n"), "it has no end");
    deferd.log_with("more than 64 KiB behind");
    let fields = [EVENTS, ("last-event-id", "4")];
    let rest = Follower::new(&deferd, &id, &fields).end();
    assert!(rest.contains("event: done") && rest.len() < 9000, "{} bytes", rest.len());
}

#[test]
fn a_client_that_leaves_follows_no_more() {
    let Some(deferd) = start(&[]) else { return };
    let mut client = deferd.client();
    let mut teller = Teller::new();
    let id = teller.submit(&mut client);
    teller.tell("one\n");
    eventually("it runs", || client.get(&format!("/_api/job/{id}")).header("x-progress").is_some());
    // Connections to an engine come and stay.
    let sockets = || if is_shared() { 0 } else { deferd.sockets() };
    let before = (deferd.threads(), sockets());
    let followers: Vec<_> = (0..8)
        .map(|n| Follower::new(&deferd, &id, if n % 2 == 0 { &[EVENTS] } else { &[] }))
        .collect();
    assert!(is_shared() || sockets() == before.1 + 8);
    drop(followers);
    eventually("their threads end", || (deferd.threads(), sockets()) == before);
    teller.end("0");
    client.wait_done(&id);
}

#[test]
fn a_silent_log_sends_a_comment_every_15_seconds() {
    let Some(deferd) = start(&[]) else { return };
    let teller = Teller::new();
    let id = teller.submit(&mut deferd.client());
    let mut follower = Follower::new(&deferd, &id, &[EVENTS]);
    for _ in 0..2 {
        let begin = Instant::now();
        let comment = follower.client.read_chunk().unwrap();
        let (silence, seconds) = (begin.elapsed(), Duration::from_secs);
        assert!((seconds(13)..seconds(25)).contains(&silence), "{silence:?}");
        assert!(comment.starts_with(b":") && comment.ends_with(b"\n\n"), "{comment:?}");
    }
    teller.end("0");
}
