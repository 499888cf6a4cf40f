//! `retry=N`: a job whose upstream fails temporarily is retried, and holds no worker in between.

use std::io::Write;
use std::net::TcpListener;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::hold::Hold;
use crate::support::upstream::{Then, Upstream};
use crate::support::{Client, Deferd, Meeting, TempDir, accept, eventually, fixtures};

/// Starts an upstream that answers the first `failures` requests with this, and further ones with `200`.
fn failing(failures: usize, answer: &'static str) -> Upstream {
    let count = AtomicUsize::new(0);
    Upstream::start(move |_, stream| {
        let fails = count.fetch_add(1, Ordering::SeqCst) < failures;
        let ok = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-attempts: 77\r\n\r\nok";
        let _ = stream.write_all(if fails { answer } else { ok }.as_bytes());
        if answer.is_empty() { Then::Close } else { Then::Keep }
    })
}

const UNAVAILABLE: &str = "HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy";
const FOREVER: usize = usize::MAX;

fn deferd(upstream: &Upstream, options: &str, arguments: &[&str]) -> Deferd {
    let route = upstream.route(options);
    let mut all = vec!["--route", route.as_str()];
    all.extend_from_slice(arguments);
    Deferd::start(&all)
}

/// Submits a job that fails at first, and waits until it is delayed; returns its id.
#[track_caller]
fn waiting(client: &mut Client, deferd: &Deferd) -> String {
    let id = client.store("GET", "/up/", b"");
    eventually("it waits for its next attempt", || {
        deferd.log().contains(&format!("job={id} attempt 1 ended"))
            && client.get(&format!("/_api/job/{id}")).header("x-job-state") == Some("delayed")
    });
    id
}

#[test]
fn what_passes_is_tried_again_until_it_has_passed() {
    for answer in [
        "HTTP/1.1 429 Slowly\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 502 Bad\r\ncontent-length: 0\r\n\r\n",
        UNAVAILABLE,
        "HTTP/1.1 504 Late\r\ncontent-length: 0\r\n\r\n",
        // The upstream breaks off: the answer is deferd's own 502.
        "",
    ] {
        let upstream = failing(2, answer);
        let deferd = deferd(&upstream, ",retry=5,backoff=1ms", &[]);
        let mut client = deferd.client();
        let id = client.store("GET", "/up/", b"");
        let reply = client.result(&id).expect(200);
        assert_eq!((reply.text().as_str(), reply.header("x-attempts")), ("ok", Some("3")));
        assert_eq!(upstream.received().len(), 3);
    }
}

#[test]
fn the_last_failed_attempt_is_the_result() {
    let upstream = failing(FOREVER, UNAVAILABLE);
    let deferd = deferd(&upstream, ",retry=2,backoff=1ms", &[]);
    let mut client = deferd.client();
    let id = client.store("PUT", "/up/", b"content");
    let reply = client.result(&id).expect(503);
    assert_eq!((reply.text().as_str(), reply.header("x-attempts")), ("busy", Some("3")));
    let received = upstream.received();
    assert!(received.len() == 3 && received.iter().all(|got| got.body == b"content"));
}

#[test]
fn an_upstream_that_is_not_there_yet_is_waited_for() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = closed.local_addr().unwrap();
    drop(closed);
    let route = format!("/up/=http://{address}/,retry=1000,backoff=1ms");
    let deferd = Deferd::start(&["--route", &route]);
    let mut client = deferd.client();
    let id = client.store("GET", "/up/", b"");
    eventually("some attempts failed", || deferd.log().contains("attempt 3 ended with 502"));
    let listener = TcpListener::bind(address).unwrap();
    let mut stream = accept(&listener);
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").unwrap();
    let reply = client.result(&id).expect(200);
    assert!(reply.header("x-attempts").unwrap().parse::<u32>().unwrap() > 3);
}

#[test]
fn nothing_else_is_tried_again() {
    let not_found = failing(FOREVER, "HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n");
    let broken = failing(FOREVER, "HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n");
    for (upstream, status) in [(not_found, 404), (broken, 500)] {
        let deferd = deferd(&upstream, ",retry=5,backoff=1ms", &[]);
        let mut client = deferd.client();
        let id = client.store("GET", "/up/", b"");
        assert_eq!(client.result(&id).expect(status).header("x-attempts"), Some("1"));
        assert_eq!(upstream.received().len(), 1);
    }
}

#[test]
fn unsafe_methods_are_retried_only_with_unsafe_yes() {
    for (options, status, attempts) in
        [(",retry=5,backoff=1ms", 503, "1"), (",retry=5,backoff=1ms,unsafe=yes", 200, "2")]
    {
        let upstream = failing(1, UNAVAILABLE);
        let deferd = deferd(&upstream, options, &[]);
        let mut client = deferd.client();
        let id = client.store("POST", "/up/", b"x");
        let reply = client.result(&id).expect(status);
        assert_eq!(reply.header("x-attempts"), Some(attempts));
    }
}

/// Starts a deferd that retries these scripts, and returns its directory: there, a script finds how often it ran.
fn with_scripts(scripts: &[(&str, &str)], options: &str) -> (TempDir, Deferd) {
    let dir = TempDir::new();
    for (name, text) in scripts {
        let draft = dir.join("draft");
        let count = "cd \"${0%/*}\" && echo x >>count.${0##*/}; n=$(wc -l <count.${0##*/})";
        std::fs::write(&draft, format!("#!/bin/sh\n{count}\n{text}\n")).unwrap();
        let mut install = Command::new("install");
        assert!(install.arg(&draft).arg(dir.join(name)).status().unwrap().success());
    }
    let routes = ["run", "cgi"].map(|kind| format!("/{kind}/={kind}:{}{options}", dir.0.display()));
    let deferd = Deferd::start(&["--route", &routes[0], "--route", &routes[1]]);
    (dir, deferd)
}

#[test]
fn a_script_is_retried_by_its_exit_code() {
    let third = "[ $n -ge 3 ] && echo $DEFERD_ATTEMPT && exit 0; echo failed $n >&2; exit";
    let (temporary, other) = (format!("{third} 75"), format!("{third} 1"));
    let scripts = [("temporary", &*temporary), ("other", &*other)];
    for (options, name, status, attempts) in [
        (",retry=5,backoff=1ms", "temporary", 200, "3"),
        (",retry=1,backoff=1ms", "temporary", 500, "2"),
        (",retry=5,backoff=1ms", "other", 500, "1"),
        (",retry=5,backoff=1ms,retry-on=1+2", "other", 200, "3"),
        (",retry=5,backoff=1ms,retry-on=1+2", "temporary", 500, "1"),
        (",retry=5,backoff=1ms,retry-on=any", "other", 200, "3"),
        (",retry=5,backoff=1ms,retry-on=any", "temporary", 200, "3"),
    ] {
        let (_dir, deferd) = with_scripts(&scripts, options);
        let mut client = deferd.client();
        let id = client.store("POST", &format!("/run/{name}"), b"x");
        let reply = client.result(&id);
        let found = (reply.status, reply.header("x-attempts"));
        assert_eq!(found, (status, Some(attempts)), "{options} {name}");
        if status == 200 {
            assert_eq!((reply.text(), reply.header("x-stderr")), ("3\n".into(), None));
        } else {
            let line = format!("failed {attempts}");
            assert_eq!(reply.header("x-stderr"), Some(&*line));
        }
    }
}

#[test]
fn a_cgi_script_is_retried_by_status_or_exit_code() {
    let scripts = [
        ("busy", "[ $n = 1 ] && printf 'Status: 503\\n\\n' || printf 'Status: 200\\n\\n'"),
        ("many", "[ $n = 1 ] && printf 'Status: 429\\n\\n' || printf 'Status: 200\\n\\n'"),
        ("exit", "[ $n = 1 ] && exit 75; printf 'Status: 200\\n\\n'"),
        ("broken", "[ $n = 1 ] && printf 'Status: 500\\n\\n' || printf 'Status: 200\\n\\n'"),
        ("invalid", "echo no header"),
    ];
    let (_dir, deferd) = with_scripts(&scripts, ",retry=1,backoff=1ms");
    let mut client = deferd.client();
    for (name, status, attempts) in [
        ("busy", 200, "2"),
        ("many", 200, "2"),
        ("exit", 200, "2"),
        ("broken", 500, "1"),
        ("invalid", 502, "1"),
    ] {
        let id = client.store("POST", &format!("/cgi/{name}"), b"x");
        let reply = client.result(&id);
        assert_eq!((reply.status, reply.header("x-attempts")), (status, Some(attempts)), "{name}");
    }
}

/// A script that did not end by itself may have done its work, or may be too slow every time.
#[test]
fn a_script_that_is_ended_is_not_tried_again() {
    let scripts = [
        ("slow", "sleep 600"),
        ("signal", "kill -9 $$"),
        ("large", "yes"),
        ("trap", "trap 'exit 75' TERM; : >running; while :; do sleep 0.02; done"),
    ];
    let options = ",retry=5,backoff=1ms,retry-on=any,timeout=1s,max-output=1K";
    let (dir, deferd) = with_scripts(&scripts, options);
    let mut client = deferd.client();
    for (name, status) in [("slow", 504), ("signal", 500), ("large", 502)] {
        let id = client.store("GET", &format!("/run/{name}"), b"");
        let reply = client.result(&id);
        assert_eq!((reply.status, reply.header("x-attempts")), (status, Some("1")), "{name}");
    }
    let id = client.store("GET", "/run/trap", b"");
    eventually("it runs", || dir.join("running").exists());
    client.put(&format!("/_api/job/{id}/cancel")).expect(200);
    client.result(&id).expect(410);
    assert_eq!(std::fs::read_to_string(dir.join("count.trap")).unwrap(), "x\n");
    // A script for a waiting client is not retried either.
    client.get("/run/signal").expect(500);
    assert_eq!(std::fs::read_to_string(dir.join("count.signal")).unwrap(), "x\nx\n");
}

#[test]
fn a_waiting_client_gets_the_first_answer() {
    let upstream = failing(1, UNAVAILABLE);
    let deferd = deferd(&upstream, ",retry=5,backoff=1ms", &[]);
    let reply = deferd.client().get("/up/").expect(503);
    assert_eq!(reply.header("x-attempts"), None);
    assert_eq!(upstream.received().len(), 1);
}

#[test]
fn a_job_between_two_attempts_holds_no_worker() {
    let upstream = failing(1, UNAVAILABLE);
    let deferd = deferd(&upstream, ",retry=1,backoff=1h,concurrency=1", &["--workers", "1"]);
    let mut client = deferd.client();
    let id = waiting(&mut client, &deferd);
    let other = client.store("GET", "/_api/version", b"");
    client.result(&other).expect(200);
    // It also holds no place among the requests of its route that run at once.
    let next = client.store("GET", "/up/", b"");
    assert_eq!(client.result(&next).expect(200).header("x-attempts"), Some("1"));
    let reply = client.get(&format!("/_api/job/{id}")).expect(204);
    assert!(
        reply.header("x-progress").unwrap().starts_with("attempt 1 ended with 503"),
        "{reply:?}"
    );
    assert_eq!(client.list("pending"), [id]);
}

#[test]
fn a_job_between_two_attempts_is_cancelled_at_once() {
    let upstream = failing(FOREVER, UNAVAILABLE);
    let scripts = format!("/run/=run:{}", fixtures().display());
    let arguments = ["--workers", "1", "--route", scripts.as_str()];
    let deferd = deferd(&upstream, ",retry=1,backoff=1h", &arguments);
    let mut client = deferd.client();
    let id = waiting(&mut client, &deferd);
    // Even if no worker is free.
    let hold = Hold::new();
    let busy = hold.start(&mut client);
    client.put(&format!("/_api/job/{id}/cancel")).expect(200);
    let reply = client.result(&id).expect_job_error(410, 21);
    assert_eq!(reply.id(), Some(id.as_str()));
    client.get(&format!("/_api/job/{busy}")).expect(204);
    assert_eq!(upstream.received().len(), 1);
}

#[test]
fn a_job_waiting_for_its_retry_is_cancelled_at_once() {
    let go = Arc::new(Meeting::of(2));
    let its = Arc::clone(&go);
    let upstream = Upstream::start(move |_, stream| {
        its.wait();
        let _ = stream.write_all(UNAVAILABLE.as_bytes());
        Then::Keep
    });
    let scripts = format!("/run/=run:{}", fixtures().display());
    let arguments = ["--workers", "1", "--route", scripts.as_str()];
    let deferd = deferd(&upstream, ",retry=1,backoff=1ms", &arguments);
    let mut client = deferd.client();
    let id = client.store("GET", "/up/", b"");
    upstream.wait_for(1);
    // It is first in line for the only worker when it has failed.
    let hold = Hold::new();
    client.store("GET", &hold.target(), b"");
    go.wait();
    eventually("it waits", || deferd.log().contains(&format!("job={id} attempt 1 ended")));
    client.put(&format!("/_api/job/{id}/cancel")).expect(200);
    client.result(&id).expect_job_error(410, 21);
    assert_eq!(upstream.received().len(), 1);
}

#[test]
fn forgotten_jobs_between_two_attempts_go_on() {
    let upstream = failing(1, UNAVAILABLE);
    let deferd = deferd(&upstream, ",retry=1,backoff=200ms", &[]);
    let mut client = deferd.client();
    let id = waiting(&mut client, &deferd);
    client.delete(&format!("/_api/job/{id}")).expect(200);
    upstream.wait_for(2);
    client.get(&format!("/_api/job/{id}")).expect_error(404, 404);
}

#[test]
fn jobs_between_two_attempts_count_as_waiting() {
    let upstream = failing(FOREVER, UNAVAILABLE);
    let deferd = deferd(&upstream, ",retry=1,backoff=1h", &["--queue", "1", "--workers", "1"]);
    let mut client = deferd.client();
    let id = waiting(&mut client, &deferd);
    let deferred = [("x-arango-async", "store")];
    client.request("GET", "/_api/version", &deferred, b"").expect_error(503, 21003);
    client.put(&format!("/_api/job/{id}/cancel")).expect(200);
    client.result(&id).expect_job_error(410, 21);
    client.request("GET", "/_api/version", &deferred, b"").expect(202);
}

#[test]
fn the_end_does_not_wait_for_the_next_attempt() {
    let upstream = failing(FOREVER, UNAVAILABLE);
    let mut deferd = deferd(&upstream, ",retry=1,backoff=1h", &["--grace", "1ms"]);
    let mut client = deferd.client();
    waiting(&mut client, &deferd);
    deferd.signal("-TERM");
    assert_eq!(deferd.wait().code(), Some(0));
    let log = deferd.log();
    assert!(log.contains("ending: 1 jobs wait") && !log.contains("attempt 2"), "{log}");
}

#[test]
fn retry_after_delays_the_next_attempt() {
    let upstream = failing(1, "HTTP/1.1 503 Busy\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n");
    let deferd = deferd(&upstream, ",retry=1,backoff=1ms", &[]);
    let mut client = deferd.client();
    let begin = std::time::Instant::now();
    let id = client.store("GET", "/up/", b"");
    client.result(&id).expect(200);
    assert!(begin.elapsed() >= std::time::Duration::from_secs(1));
}
