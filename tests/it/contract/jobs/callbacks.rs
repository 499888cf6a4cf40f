//! HTTP callbacks: which URLs are called, what is sent, how it is signed, and what happens if a receiver fails.

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hmac_sha256::HMAC;

use crate::support::hold::Hold;
use crate::support::upstream::{Received, Then, Upstream};
use crate::support::{
    Ability, Client, Deferd, Reply, TempDir, eventually, is_in_memory, lacks, run_deferd,
};

const KEYS: [[u8; 24]; 2] = [[7; 24], [8; 24]];

/// How long a receiver has to answer in these tests, and the length of the first delay.
const TIME: Duration = Duration::from_millis(1500);
const BACKOFF: Duration = Duration::from_millis(40);

/// Writes the secrets of callbacks; returns the path.
fn secrets(dir: &TempDir) -> String {
    let path = dir.join("secrets");
    let line = |key: &[u8; 24]| format!("whsec_{}\n", BASE64_STANDARD.encode(key));
    fs::write(&path, KEYS.iter().map(line).collect::<String>()).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path.display().to_string()
}

/// Starts a deferd that may call this receiver below `/cb`.
fn start(receiver: &Upstream, arguments: &[&str]) -> (Deferd, TempDir) {
    let dir = TempDir::new();
    let deferd = start_in(&dir, receiver, arguments);
    (deferd, dir)
}

fn start_in(dir: &TempDir, receiver: &Upstream, arguments: &[&str]) -> Deferd {
    start_by(command(), dir, receiver, "", arguments)
}

/// Returns a command whose callbacks are retried soon.
fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_deferd"));
    command.env("DEFERD_TEST_CALLBACK_BACKOFF", BACKOFF.as_millis().to_string());
    command.env("DEFERD_TEST_CALLBACK_TIME", TIME.as_millis().to_string());
    command
}

fn start_by(
    command: Command,
    dir: &TempDir,
    receiver: &Upstream,
    options: &str,
    arguments: &[&str],
) -> Deferd {
    let (allowed, secrets) = (url(receiver, ""), secrets(dir));
    let mut all = vec!["--allow-callback", allowed.as_str(), "--callback-secret", &secrets];
    all.extend_from_slice(arguments);
    Deferd::with_scripts_by(command, options, &all)
}

fn url(receiver: &Upstream, rest: &str) -> String {
    format!("http://{}/cb{rest}", receiver.address)
}

fn answer(stream: &mut TcpStream, status: &str, fields: &str) -> Then {
    let _ = write!(stream, "HTTP/1.1 {status}\r\n{fields}content-length: 0\r\n\r\n");
    Then::Keep
}

/// Returns a receiver that accepts everything.
fn taker() -> Upstream {
    Upstream::start(|_, stream| answer(stream, "204 No Content", ""))
}

/// Submits a job with a callback; returns its id.
#[track_caller]
fn store(client: &mut Client, target: &str, url: &str) -> String {
    let fields = [("x-arango-async", "store"), ("x-callback-url", url)];
    let reply = client.request("POST", target, &fields, b"").expect(202);
    reply.id().expect("an id").to_owned()
}

/// Asserts, by a calculation of its own, that a callback is signed with both keys; returns its content.
#[track_caller]
fn verified(received: &Received) -> serde_json::Value {
    verified_by(received, &KEYS)
}

/// Does the same for these keys, in this order.
#[track_caller]
fn verified_by(received: &Received, keys: &[[u8; 24]]) -> serde_json::Value {
    let only = |name| match received.all(name)[..] {
        [value] => value,
        ref values => panic!("{name}: {values:?}"),
    };
    let (id, time) = (only("webhook-id"), only("webhook-timestamp"));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert!(now.abs_diff(time.parse().unwrap()) < 300, "{time}");
    let text = [format!("{id}.{time}.").as_bytes(), &received.body].concat();
    let code = |key| format!("v1,{}", BASE64_STANDARD.encode(HMAC::mac(&text, key)));
    let codes: Vec<_> = keys.iter().map(code).collect();
    assert_eq!(only("webhook-signature"), codes.join(" "));
    assert_eq!(only("content-type"), "application/json; charset=utf-8");
    let record: serde_json::Value = serde_json::from_slice(&received.body).unwrap();
    assert_eq!(id, format!("job_{}", record["id"].as_str().unwrap()));
    record
}

/// Waits until this many callbacks have had this outcome.
#[track_caller]
fn wait_ended(deferd: &Deferd, outcome: &str, count: usize) {
    let name = "deferd_jobs_finished_total{route=\"callback\",outcome=";
    let line = format!("{name}\"{outcome}\"}} {count}\n");
    eventually(&line, || {
        let metrics = deferd.client().get("/_admin/metrics").expect(200).text();
        metrics.contains(&line)
    });
}

#[test]
fn a_callback_is_the_signed_record_of_the_job() {
    let receiver = taker();
    let (deferd, _dir) = start(&receiver, &[]);
    let mut client = deferd.client();
    let id = store(&mut client, "/run/s-exit?3", &url(&receiver, "/x?token=y"));
    receiver.wait_for(1);
    let received = receiver.only();
    assert_eq!(received.line, "POST /cb/x?token=y HTTP/1.1");
    let record = client.get(&format!("/_admin/jobs/{id}")).expect(200).json();
    assert_eq!(verified(&received), record);
    assert_eq!((&record["status"], &record["exitCode"]), (&500.into(), &3.into()));
    wait_ended(&deferd, "ok", 1);
    assert_eq!(client.jobs(), [id.as_str()]);
    client.result(&id).expect(500);
    assert_eq!(receiver.received().len(), 1, "it is told once");
    let log = deferd.log_with("route=callback status=200");
    assert!(log.contains(&format!(" of={id} ")) && !log.contains("token"), "{log}");
}

#[test]
fn a_preference_names_the_url_as_well() {
    let receiver = taker();
    let (deferd, _dir) = start(&receiver, &[]);
    let mut client = deferd.client();
    let callback = format!("callback; url=\"{}\"", url(&receiver, "/a,b;c"));
    let both = format!("respond-async, return=representation, {callback}");
    let mut submit = |fields: &[(&str, &str)]| -> Reply {
        client.request("POST", "/run/s-environ", fields, b"").expect(202)
    };
    let reply = submit(&[("prefer", &both)]);
    let applied = "respond-async, return=representation, callback";
    assert_eq!(reply.header("preference-applied"), Some(applied));
    assert_eq!(reply.header("vary"), Some("prefer"));
    let reply = submit(&[("prefer", &callback), ("x-arango-async", "true")]);
    assert_eq!(reply.header("preference-applied"), Some("callback"));
    let by_field = url(&receiver, "");
    let reply = submit(&[("x-callback-url", &by_field), ("x-arango-async", "store")]);
    assert_eq!(reply.header("preference-applied"), None);
    receiver.wait_for(3);
    let records: Vec<_> = receiver.received().iter().map(verified).collect();
    let dropped = records.iter().filter(|record| record["expires"].is_null()).count();
    assert_eq!(dropped, 1, "of a result that was dropped none expires: {records:?}");
    // Scripts do not see the preferences that deferd has acted on.
    let reply = submit(&[("x-arango-async", "store"), ("x-callback-url", &by_field)]);
    let seen = client.result(reply.id().unwrap()).expect(200).text();
    assert!(!seen.contains("CALLBACK") && !seen.contains("/cb"), "{seen}");
}

#[test]
fn only_allowed_urls_are_called() {
    let receiver = taker();
    let (deferd, _dir) = start(&receiver, &[]);
    let mut client = deferd.client();
    let port = receiver.address.port();
    for bad in [
        &format!("http://{}/", receiver.address),
        &format!("http://{}/cbx", receiver.address),
        &format!("http://{}/cb/../x", receiver.address),
        &format!("http://{}/cb/%2e%2e/x", receiver.address),
        &format!("http://u@{}/cb", receiver.address),
        &format!("http://{}/cb#x", receiver.address),
        &format!("https://{}/cb", receiver.address),
        &format!("http://localhost:{port}/cb"),
        &format!("http://127.0.0.1:{}/cb", port.wrapping_add(1)),
        "nonsense",
        "",
    ] {
        for mode in
            [("x-arango-async", "store"), ("x-arango-async", "true"), ("prefer", "respond-async")]
        {
            let fields = [mode, ("x-callback-url", bad)];
            let refused = client.request("POST", "/run/s-cat", &fields, b"").expect_error(403, 403);
            assert!(refused.text().contains("the callback URL: "), "{bad}");
        }
    }
    if !lacks(Ability::Ascii) {
        let not_ascii = format!("respond-async, callback; url=\"{}\"", url(&receiver, "/\u{e4}"));
        let refused = client.request("POST", "/run/s-cat", &[("prefer", &not_ascii)], b"");
        assert!(refused.expect_error(403, 403).text().contains("not ASCII"));
    }
    let good = url(&receiver, "");
    let twice = [("x-arango-async", "store"), ("x-callback-url", &good), ("x-callback-url", &good)];
    client.request("POST", "/run/s-cat", &twice, b"").expect_error(400, 400);
    assert!(client.jobs().is_empty(), "nothing of them stays behind");
    // A request that is not deferred has no end to report.
    client.request("POST", "/run/s-cat", &[("x-callback-url", "nonsense")], b"").expect(200);
    // Without the option, no URL is allowed.
    let other = Deferd::with_scripts("", &[]);
    let fields = [("x-arango-async", "store"), ("x-callback-url", &good)];
    other.client().request("POST", "/run/s-cat", &fields, b"").expect_error(403, 403);
    assert!(receiver.received().is_empty());
}

#[test]
fn a_receiver_that_fails_gets_the_same_five_times() {
    let answers = ["500 Oops", "302 Found", "404 Not Found", "429 Slow Down", "401 No"];
    let elsewhere = taker();
    let fields = format!("location: {}\r\nretry-after: 0\r\n", url(&elsewhere, ""));
    let arrivals = Arc::new(Mutex::new(Vec::new()));
    let its = Arc::clone(&arrivals);
    let receiver = Upstream::start(move |_, stream| {
        let mut arrivals = its.lock().unwrap();
        arrivals.push(Instant::now());
        answer(stream, answers[(arrivals.len() - 1) % answers.len()], &fields)
    });
    // If the redirect were followed, it would arrive: deferd may call this receiver too.
    let (deferd, _dir) = start(&receiver, &["--allow-callback", &url(&elsewhere, "")]);
    let mut client = deferd.client();
    let id = store(&mut client, "/run/s-cat", &url(&receiver, ""));
    wait_ended(&deferd, "error", 1);
    let received = receiver.received();
    let all: Vec<_> = received.iter().map(verified).collect();
    assert_eq!(all.len(), 5);
    assert!(all.iter().all(|record| *record == all[0] && record["id"] == id.as_str()));
    assert!(elsewhere.received().is_empty(), "no redirect is followed");
    // A delay begins after the answer, and each is twice as long as the previous one.
    let arrivals = arrivals.lock().unwrap();
    let gaps: Vec<_> = arrivals.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let delays = [1, 2, 4, 8].map(|times| BACKOFF * times);
    assert!(gaps.iter().zip(delays).all(|(gap, delay)| *gap >= delay), "{gaps:?}");
    client.result(&id).expect(200);
}

#[test]
fn only_success_and_410_end_a_callback() {
    let answers = ["503 Busy", "200 OK", "410 Gone"];
    let count = AtomicUsize::new(0);
    let receiver = Upstream::start(move |_, stream| {
        answer(stream, answers[count.fetch_add(1, Ordering::Relaxed)], "")
    });
    let (deferd, _dir) = start(&receiver, &[]);
    let mut client = deferd.client();
    store(&mut client, "/run/s-cat", &url(&receiver, ""));
    wait_ended(&deferd, "ok", 1);
    store(&mut client, "/run/s-cat", &url(&receiver, ""));
    wait_ended(&deferd, "error", 1);
    deferd.log_with("the callback is given up: 410");
    assert_eq!(receiver.received().len(), 3);
}

#[test]
fn callbacks_leave_half_of_the_workers_to_jobs() {
    let receiver = Upstream::start(|_, _| Then::Hang);
    let mut command = command();
    command.env("DEFERD_TEST_CALLBACK_TIME", "600000");
    let dir = TempDir::new();
    let deferd = start_by(command, &dir, &receiver, "", &["--workers", "4"]);
    let mut client = deferd.client();
    let ids = [(); 8].map(|()| store(&mut client, "/run/s-cat", &url(&receiver, "")));
    ids.iter().for_each(|id| drop(client.result(id).expect(200)));
    receiver.wait_for(2);
    // Two jobs run at once, while more callbacks wait than there are workers.
    let holds = [(); 2].map(|()| Hold::new());
    let ids = holds.each_ref().map(|hold| hold.start(&mut client));
    holds.iter().for_each(Hold::release);
    ids.iter().for_each(|id| drop(client.result(id).expect(200)));
    assert_eq!(receiver.received().len(), 2);
}

#[test]
fn a_receiver_that_hangs_once_is_tried_again() {
    let count = AtomicUsize::new(0);
    let receiver = Upstream::start(move |_, stream| match count.fetch_add(1, Ordering::Relaxed) {
        0 => Then::Hang,
        _ => answer(stream, "204 No Content", ""),
    });
    let (deferd, _dir) = start(&receiver, &["--workers", "1"]);
    store(&mut deferd.client(), "/run/s-cat", &url(&receiver, ""));
    wait_ended(&deferd, "ok", 1);
    receiver.wait_closed(0);
    assert_eq!(receiver.received().len(), 2);
}

#[test]
fn both_kinds_of_notices_leave_a_worker_to_jobs() {
    // In the first case, a worker must end a notice first: how long the receiver and the program hang, in milliseconds
    // and seconds.
    for (workers, receiver_hangs, program_hangs) in [("1", "1000", "1"), ("2", "600000", "600")] {
        let receiver = Upstream::start(|_, _| Then::Hang);
        let dir = TempDir::new();
        let program = dir.join("hangs");
        // The program ends with the directory at the latest, because deferd does not end it.
        let wait = "while [ -e \"$0\" ]; do sleep 0.1; done";
        let text = format!("#!/bin/sh\ntimeout {program_hangs} sh -c '{wait}' \"$0\"\n");
        fs::write(&program, text).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = command();
        command.env("DEFERD_TEST_CALLBACK_TIME", receiver_hangs);
        let options = format!(",on-done={}", program.display());
        let deferd = start_by(command, &dir, &receiver, &options, &["--workers", workers]);
        let mut client = deferd.client();
        for _ in 0..5 {
            let id = store(&mut client, "/run/s-cat", &url(&receiver, ""));
            client.wait_done(&id);
        }
    }
}

#[test]
fn a_receiver_that_cannot_be_reached_is_left_alone() {
    let (dead, alive) = (taker(), taker());
    let (address, url_of_dead) = (dead.address, url(&dead, ""));
    drop(dead);
    let (deferd, _dir) = start(&alive, &["--allow-callback", &url_of_dead]);
    let mut client = deferd.client();
    store(&mut client, "/run/s-cat", &url_of_dead);
    wait_ended(&deferd, "error", 1);
    // It would be reachable now; the attempts fail without a connection.
    let dead = Upstream::start_at(address, |_, stream| answer(stream, "204 No Content", ""));
    store(&mut client, "/run/s-cat", &url_of_dead);
    wait_ended(&deferd, "error", 2);
    assert!(dead.received().is_empty());
    store(&mut client, "/run/s-cat", &url(&alive, ""));
    wait_ended(&deferd, "ok", 1);
    let log = deferd.log_with("route=callback status=200");
    assert_eq!(log.matches("phase=Connecting").count(), 1, "{log}");
}

#[test]
fn an_old_callback_is_given_up() {
    let receiver = Upstream::start(|_, stream| answer(stream, "500 Oops", ""));
    let mut command = command();
    command.env("DEFERD_TEST_CALLBACK_AGE", "1500");
    command.env("DEFERD_TEST_CALLBACK_BACKOFF", "2000");
    let dir = TempDir::new();
    let deferd = start_by(command, &dir, &receiver, "", &[]);
    store(&mut deferd.client(), "/run/s-cat", &url(&receiver, ""));
    wait_ended(&deferd, "error", 1);
    deferd.log_with("the callback is given up: older than 1500ms");
    assert!(receiver.received().len() <= 1);
}

#[test]
fn the_end_does_not_wait_for_further_attempts() {
    let receiver = Upstream::start(|_, stream| answer(stream, "500 Oops", ""));
    let mut command = command();
    command.env("DEFERD_TEST_CALLBACK_BACKOFF", "3000000");
    let dir = TempDir::new();
    let mut deferd = start_by(command, &dir, &receiver, "", &["--grace", "1h"]);
    let (mut client, hold) = (deferd.client(), Hold::new());
    store(&mut client, "/run/s-cat", &url(&receiver, ""));
    deferd.log_with("attempt 1 ended with 502, next attempt in");
    // The callback of a job that ends during the shutdown is tried once.
    store(&mut client, &hold.target(), &url(&receiver, ""));
    hold.wait_for("started");
    deferd.signal("-TERM");
    deferd.log_with("ending: 0 jobs wait, 1 run");
    hold.release();
    assert_eq!(deferd.wait().code(), Some(0));
    // In another store they wait for the next start.
    if is_in_memory() {
        assert_eq!(receiver.received().len(), 2);
        deferd.log_with("lost with the memory store: 2 notices");
    }
}

#[test]
fn notices_are_no_jobs_in_the_metrics() {
    let receiver = Upstream::start(|_, stream| answer(stream, "500 Oops", ""));
    let slow = Upstream::start(|_, _| Then::Hang);
    let mut command = command();
    command.env("DEFERD_TEST_CALLBACK_BACKOFF", "3000000");
    command.env("DEFERD_TEST_CALLBACK_TIME", "600000");
    let (dir, url_of_slow) = (TempDir::new(), url(&slow, ""));
    let deferd = start_by(command, &dir, &receiver, "", &["--allow-callback", &url_of_slow]);
    let mut client = deferd.client();
    store(&mut client, "/run/s-cat", &url(&receiver, ""));
    // One is delayed, one runs, one waits.
    deferd.log_with("attempt 1 ended with 502, next attempt in");
    let ids = [(); 2].map(|()| store(&mut client, "/run/s-cat", &url_of_slow));
    ids.iter().for_each(|id| client.wait_done(id));
    slow.wait_for(1);
    let metrics = client.get("/_admin/metrics").expect(200).text();
    for (name, value) in [
        ("deferd_jobs{state=\"waiting\"}", 0),
        ("deferd_jobs{state=\"delayed\"}", 0),
        ("deferd_jobs{state=\"running\"}", 0),
        ("deferd_jobs{state=\"done\"}", 3),
        ("deferd_oldest_waiting_seconds", 0),
        ("deferd_jobs_submitted_total{route=\"callback\"}", 3),
    ] {
        assert!(metrics.contains(&format!("\n{name} {value}\n")), "{name}: {metrics}");
    }
}

#[test]
fn a_key_stands_for_the_url_too() {
    let receiver = taker();
    let (deferd, _dir) = start(&receiver, &[]);
    let mut client = deferd.client();
    let [one, other] = ["/1", "/2"].map(|rest| url(&receiver, rest));
    let mut submit = |url: Option<&str>| -> Reply {
        let mut fields = vec![("x-arango-async", "store"), ("idempotency-key", "k")];
        fields.extend(url.map(|url| ("x-callback-url", url)));
        client.request("POST", "/run/s-cat", &fields, b"")
    };
    let first = submit(Some(&one)).expect(202);
    let again = submit(Some(&one)).expect(202);
    assert_eq!(first.id(), again.id());
    submit(Some(&other)).expect_error(422, 422);
    submit(None).expect_error(422, 422);
    wait_ended(&deferd, "ok", 1);
    assert_eq!(receiver.received().len(), 1);
}

#[test]
fn a_full_queue_and_store_lose_no_callback() {
    let receiver = taker();
    let arguments = ["--workers", "1", "--queue", "3", "--max-stored", "64K"];
    let (deferd, _dir) = start(&receiver, &arguments);
    let (mut client, hold) = (deferd.client(), Hold::new());
    let held = store(&mut client, &hold.target(), &url(&receiver, ""));
    hold.wait_for("started");
    let mut accepted = vec![held];
    loop {
        // The result is larger than the room that is left.
        let fields = [("x-arango-async", "store"), ("x-callback-url", &*url(&receiver, ""))];
        let reply = client.request("POST", "/run/c-zeros?100000", &fields, b"");
        match reply.status {
            202 => accepted.push(reply.id().unwrap().to_owned()),
            _ => break drop(reply.expect_error(503, 21003)),
        }
    }
    assert!(accepted.len() >= 3, "the queue takes some: {}", accepted.len());
    hold.release();
    receiver.wait_for(accepted.len());
    wait_ended(&deferd, "ok", accepted.len());
    let told = receiver.received();
    let mut told: Vec<_> =
        told.iter().map(verified).map(|record| record["id"].to_string()).collect();
    told.sort();
    let mut expected: Vec<_> = accepted.iter().map(|id| format!("\"{id}\"")).collect();
    expected.sort();
    assert_eq!(told, expected);
}

#[test]
fn callbacks_outlive_a_kill() {
    let (dir, hold) = (TempDir::new(), Hold::new());
    let data = dir.join("data").display().to_string();
    let arguments = ["--data", &data, "--workers", "2"];
    let receiver = Upstream::start(|_, _| Then::Hang);
    let mut deferd = start_in(&dir, &receiver, &arguments);
    let mut client = deferd.client();
    let done = store(&mut client, "/run/s-cat", &url(&receiver, ""));
    client.wait_done(&done);
    receiver.wait_for(1);
    let interrupted = store(&mut client, &hold.target(), &url(&receiver, ""));
    hold.wait_for("started");
    deferd.signal("-KILL");
    deferd.wait();
    let (port, before) = (receiver.address, receiver.received().len());
    drop((receiver, deferd));
    // On the same port: the URL is on the disk.
    let receiver = Upstream::start_at(port, |_, stream| answer(stream, "200 OK", ""));
    let deferd = start_in(&dir, &receiver, &arguments);
    wait_ended(&deferd, "ok", 2);
    let mut told: Vec<_> = receiver.received().iter().map(verified).collect();
    told.sort_by_key(|record| record["id"].to_string());
    assert_eq!(told.len(), 2, "{before} before: {told:?}");
    assert_eq!((&told[0]["id"], &told[0]["status"]), (&done.into(), &200.into()));
    assert_eq!((&told[1]["id"], &told[1]["status"]), (&interrupted.into(), &500.into()));
}

#[test]
fn no_upstream_gets_what_was_heeded() {
    let receiver = taker();
    let (deferd, _dir) = start(&receiver, &["--route", &receiver.route("")]);
    let mut client = deferd.client();
    let callback = url(&receiver, "");
    let preference = format!("handling=strict, callback; url=\"{callback}\"");
    for fields in [("x-callback-url", &callback), ("prefer", &preference)] {
        let fields = [("x-arango-async", "store"), (fields.0, fields.1)];
        client.request("POST", "/up/x", &fields, b"").expect(202);
    }
    wait_ended(&deferd, "ok", 2);
    let received = receiver.received();
    let forwarded: Vec<_> =
        received.iter().filter(|one| one.line.starts_with("POST /x ")).collect();
    assert_eq!((forwarded.len(), received.len()), (2, 4), "{received:?}");
    assert!(forwarded.iter().all(|one| one.all("x-callback-url").is_empty()));
    let preferred: Vec<_> = forwarded.iter().flat_map(|one| one.all("prefer")).collect();
    assert_eq!(preferred, ["handling=strict"]);
}

#[test]
fn secrets_of_callbacks_are_read_again_on_sighup() {
    let receiver = taker();
    let (deferd, dir) = start(&receiver, &[]);
    let path = dir.join("secrets");
    let line = |key: &[u8; 24]| format!("whsec_{}\n", BASE64_STANDARD.encode(key));
    fs::write(&path, "# none\n").unwrap();
    deferd.signal("-HUP");
    deferd.log_with("route=callback cannot reload its files, keeping the current ones");
    let mut client = deferd.client();
    store(&mut client, "/run/s-cat", &url(&receiver, ""));
    receiver.wait_for(1);
    verified(&receiver.only());
    let keys = [[9; 24], KEYS[0]];
    fs::write(&path, keys.iter().map(line).collect::<String>()).unwrap();
    deferd.signal("-HUP");
    deferd.log_with("the secrets of callbacks are read again: 2");
    store(&mut client, "/run/s-cat", &url(&receiver, ""));
    receiver.wait_for(2);
    verified_by(&receiver.received()[1], &keys);
}

#[test]
fn a_url_that_is_allowed_no_longer_is_given_up() {
    let dir = TempDir::new();
    let data = dir.join("data").display().to_string();
    let receiver = Upstream::start(|_, _| Then::Hang);
    let mut deferd = start_in(&dir, &receiver, &["--data", &data]);
    let id = store(&mut deferd.client(), "/run/s-cat", &url(&receiver, ""));
    receiver.wait_for(1);
    deferd.signal("-KILL");
    deferd.wait();
    drop(deferd);
    let deferd = Deferd::with_scripts("", &["--data", &data]);
    deferd.log_with("no --allow-callback covers its URL any more");
    wait_ended(&deferd, "error", 1);
    deferd.client().result(&id).expect(200);
    assert_eq!(receiver.received().len(), 1);
}

#[test]
fn callbacks_and_their_secrets_belong_together() {
    let dir = TempDir::new();
    let good = secrets(&dir);
    let other = dir.join("other");
    fs::write(&other, "plain\n").unwrap();
    fs::set_permissions(&other, fs::Permissions::from_mode(0o600)).unwrap();
    let other = other.display().to_string();
    let url = ["--allow-callback", "http://h/"];
    for (arguments, what) in [
        (&url[..], "--allow-callback \"http://h/\": callbacks are signed: say --callback-secret"),
        (&["--callback-secret", &good], "no callback is allowed: say --allow-callback URL"),
        (&[url[0], url[1], "--callback-secret", "/missing"], "--callback-secret \"/missing\": "),
        (&[url[0], url[1], "--callback-secret", &other], "line 1: not of the form whsec_BASE64"),
        (&["--allow-callback", "http://h/../x"], "dot segment"),
    ] {
        let ended = run_deferd(arguments);
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        assert!(ended.stderr.contains(what), "{what}: {}", ended.stderr);
    }
}
