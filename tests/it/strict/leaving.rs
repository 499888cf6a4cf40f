//! Clients that leave while their request runs: sections 5 and 11 of the contract. Their work ends, and their places
//! are free at once.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::net::sockopt;

use super::unharmed;
use super::unharmed::{NOTICED, connect, connections, is_served, unharmed_by_crowd};
use crate::support::hold::Hold;
use crate::support::{Deferd, TempDir, accept, eventually, fixtures, running_with_query};

/// Starts a deferd with `count` connections. Scripts at `/one/` wait for their turn, those at `/on/` go on without
/// their clients.
fn with_places(count: usize) -> Deferd {
    let fixtures = fixtures().display().to_string();
    let one = format!("/one/=run:{fixtures},concurrency=1");
    let on = format!("/on/=run:{fixtures},ignore-abort=yes");
    let count = count.to_string();
    let routes = ["--route", &one, "--route", &on];
    let limits = ["--workers", "2", "--max-connections", &count];
    Deferd::with_scripts("", &[routes, limits].concat())
}

/// Opens a connection that has sent a request.
fn asking(deferd: &Deferd, target: &str, version: &str, fields: &str) -> TcpStream {
    let mut stream = connect(deferd.address);
    let request = format!("GET {target} HTTP/{version}\r\nhost: a\r\n{fields}\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

/// Opens as many connections as there are places, each with this request.
#[track_caller]
fn crowd(deferd: &Deferd, places: usize, target: &str) -> Vec<TcpStream> {
    let crowd = (0..places).map(|_| asking(deferd, target, "1.1", "")).collect();
    eventually("every place is taken", || !is_served(deferd));
    crowd
}

/// Waits until as many clients as there are places are served at once, and asserts that it is soon.
#[track_caller]
fn assert_all_free(deferd: &Deferd, places: usize) {
    let begin = Instant::now();
    eventually("every place is free", || are_served(deferd, places));
    assert!(begin.elapsed() < NOTICED, "only after {:?}", begin.elapsed());
}

/// Waits until only `count` connections have a thread: the connections of clients that were just served are closed.
#[track_caller]
fn assert_threads(deferd: &Deferd, count: usize) {
    eventually("the other connections are over", || connections(deferd) == count);
}

fn are_served(deferd: &Deferd, places: usize) -> bool {
    let mut all: Vec<_> = (0..places).map(|_| asking(deferd, "/_api/version", "1.1", "")).collect();
    // All are open until the last is answered.
    let mut status = [0; 12];
    all.iter_mut().all(|s| s.read_exact(&mut status).is_ok() && &status == b"HTTP/1.1 200")
}

#[test]
fn five_hundred_sleepers_that_leave_free_their_places() {
    let deferd = with_places(512);
    unharmed_by_crowd(&deferd, || {
        drop(crowd(&deferd, 512, "/_admin/sleep?duration=3600"));
        // Connecting 512 times takes longer than that.
        let begin = Instant::now();
        assert_threads(&deferd, 0);
        assert!(begin.elapsed() < NOTICED, "only after {:?}", begin.elapsed());
        assert!(are_served(&deferd, 512));
        eventually("the log says why", || deferd.log().matches("left=yes").count() == 512);
    });
}

#[test]
fn scripts_and_their_waiters_end_with_their_clients() {
    let deferd = with_places(16);
    unharmed(&deferd, || {
        for route in ["/run/", "/one/"] {
            let hold = Hold::new();
            let crowd = crowd(&deferd, 16, &hold.target().replace("/run/", route));
            hold.wait_for("started");
            drop(crowd);
            assert_all_free(&deferd, 16);
            eventually("every script has ended", || deferd.children().is_empty());
            assert!(!hold.has("ended"));
            // Its turns were given back.
            assert_threads(&deferd, 0);
            deferd.client().get(&format!("{route}s-done")).expect(200);
        }
    });
}

#[test]
fn waiters_that_leave_never_run() {
    let deferd = with_places(16);
    unharmed(&deferd, || {
        let (hold, dir) = (Hold::new(), TempDir::new());
        let id = deferd.client().store("GET", &hold.target().replace("/run/", "/one/"), b"");
        hold.wait_for("started");
        let late = dir.join("late");
        drop(crowd(&deferd, 16, &format!("/one/c-touch?{}", late.display())));
        assert_all_free(&deferd, 16);
        assert_threads(&deferd, 0);
        hold.release();
        let mut client = deferd.client();
        client.result(&id).expect(200);
        client.get("/one/s-done").expect(200);
        assert!(!late.exists());
    });
}

#[test]
fn upstream_calls_end_with_their_clients() {
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let route = format!("/up/=http://{}/", upstream.local_addr().unwrap());
    let deferd = Deferd::start(&["--max-connections", "8", "--route", &route]);
    unharmed(&deferd, || {
        let crowd = crowd(&deferd, 8, "/up/");
        let mut calls: Vec<_> = (0..8).map(|_| accept(&upstream)).collect();
        drop(crowd);
        assert_all_free(&deferd, 8);
        for call in &mut calls {
            assert!(call.read_to_end(&mut Vec::new()).is_ok(), "the call is closed");
        }
    });
}

/// The script has five seconds between SIGTERM and SIGKILL; the client's place does not wait for it.
#[test]
fn a_stubborn_script_holds_no_place() {
    let deferd = with_places(1);
    unharmed(&deferd, || {
        let hold = Hold::deaf();
        let client = asking(&deferd, &hold.target(), "1.1", "");
        hold.wait_for("started");
        drop(client);
        assert_all_free(&deferd, 1);
        hold.wait_for("term");
        assert_eq!(deferd.children().len(), 1, "it still runs");
        eventually("it is killed", || deferd.children().is_empty());
    });
}

#[test]
fn a_reset_ends_the_run_of_any_client() {
    let deferd = with_places(4);
    unharmed(&deferd, || {
        for (version, fields) in [("1.0", ""), ("1.1", "connection: close\r\n")] {
            let hold = Hold::new();
            let client = asking(&deferd, &hold.target(), version, fields);
            hold.wait_for("started");
            sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
            drop(client);
            eventually("the script ends", || deferd.children().is_empty());
            assert!(!hold.has("ended"));
        }
    });
}

/// As `printf … | nc -N` does. A kept connection has no reason to, so there it means that the client has left.
#[test]
fn clients_of_one_request_may_half_close() {
    let deferd = with_places(16);
    unharmed(&deferd, || {
        let (patient, gone) = (Hold::new(), Hold::new());
        let ask = |target: &str, version: &str, fields: &str| {
            let stream = asking(&deferd, target, version, fields);
            stream.shutdown(Shutdown::Write).unwrap();
            stream
        };
        let mut waiting = [
            ("1.0", ""),
            ("1.0", "connection: keep-alive\r\n"),
            ("1.1", "connection: close\r\n"),
            ("1.1", "connection: Keep-Alive, CLOSE\r\n"),
        ]
        .map(|(version, fields)| {
            let sleeps = ask("/_admin/sleep?duration=0.6", version, fields);
            (ask(&patient.target(), version, fields), sleeps)
        });
        patient.wait_for("started");
        let mut leaves = ask(&gone.target(), "1.1", "");
        let mut rest = Vec::new();
        leaves.read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty(), "it gets no answer");
        // Longer than it takes to detect that a client has left.
        for (_, sleeps) in &mut waiting {
            let mut answer = String::new();
            sleeps.read_to_string(&mut answer).unwrap();
            assert!(answer.ends_with(r#""duration":0.6}"#), "{answer}");
        }
        eventually("the four scripts go on", || deferd.children().len() == 4);
        patient.release();
        for (waits, _) in &mut waiting {
            let mut answer = String::new();
            waits.read_to_string(&mut answer).unwrap();
            assert!(
                answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("let go\n"),
                "{answer}"
            );
        }
    });
}

#[test]
fn requests_behind_an_abandoned_one_never_run() {
    let deferd = with_places(4);
    unharmed(&deferd, || {
        for route in ["/run/", "/on/"] {
            let (hold, dir) = (Hold::new(), TempDir::new());
            let behind = dir.join("behind");
            let target = hold.target().replace("/run/", route);
            let mut client = asking(&deferd, &target, "1.1", "");
            let next =
                format!("GET {route}c-touch?{} HTTP/1.1\r\nhost: a\r\n\r\n", behind.display());
            client.write_all(next.as_bytes()).unwrap();
            hold.wait_for("started");
            drop(client);
            assert_all_free(&deferd, 4);
            hold.release();
            assert_threads(&deferd, 0);
            assert!(!behind.exists(), "{route}");
        }
    });
}

#[test]
fn ignore_abort_runs_go_on_without_a_place() {
    let deferd = with_places(2);
    unharmed(&deferd, || {
        let hold = Hold::new();
        let target = hold.target().replace("/run/", "/on/");
        let client = asking(&deferd, &target, "1.1", "");
        hold.wait_for("started");
        drop(client);
        assert_all_free(&deferd, 2);
        assert_eq!(deferd.children().len(), 1);
        hold.release();
        hold.wait_for("ended");
        eventually("the log says so", || {
            let log = deferd.log();
            log.lines().any(|line| line.contains("status=200") && line.ends_with("left=yes"))
        });
    });
}

/// Runs without a place are bounded by the lane: eight with two workers.
#[test]
fn ignore_abort_runs_are_bounded() {
    let deferd = with_places(32);
    unharmed(&deferd, || {
        let dir = TempDir::new();
        let query = dir.join("h").display().to_string();
        let target = format!("/on/c-hold?{query}");
        let running = || running_with_query(&query).len();
        for _ in 0..3 {
            let crowd: Vec<_> = (0..8).map(|_| asking(&deferd, &target, "1.1", "")).collect();
            eventually("as many as may run do", || running() >= 8);
            drop(crowd);
            assert_all_free(&deferd, 32);
            // The eight whose scripts run.
            assert_threads(&deferd, 8);
        }
        // A shell, and the `sleep` for which it waits.
        assert!(running() <= 16, "{}", running());
        assert_eq!(deferd.children().len(), 8);
        std::fs::write(dir.join("h.go"), "").unwrap();
        eventually("all end", || deferd.children().is_empty());
    });
}

/// The result that such a client would have collected stays; a client that may close its write side collects it.
#[test]
fn clients_waiting_for_a_job_free_their_places() {
    let deferd = with_places(6);
    unharmed(&deferd, || {
        let hold = Hold::new();
        let id = hold.start(&mut deferd.client());
        let ask = |method: &str, version: &str| {
            let mut stream = connect(deferd.address);
            let head = format!("{method} /_api/job/{id} HTTP/{version}\r\nhost: a\r\n");
            stream.write_all(format!("{head}prefer: wait=60\r\n\r\n").as_bytes()).unwrap();
            stream
        };
        let crowd: Vec<_> = (0..6).map(|n| ask(["GET", "PUT"][n % 2], "1.1")).collect();
        eventually("every place is taken", || !is_served(&deferd));
        drop(crowd);
        assert_all_free(&deferd, 6);
        assert_threads(&deferd, 0);
        let mut patient = ask("PUT", "1.0");
        patient.shutdown(Shutdown::Write).unwrap();
        let mut leaves = ask("PUT", "1.1");
        leaves.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        // Only the end of the connection shows that deferd saw it leave: it may not yet be counted as open.
        leaves.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "");
        assert_threads(&deferd, 1);
        hold.release();
        patient.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("let go\n"), "{answer}");
    });
}

/// The system probes a client that vanishes silently, or that closes its write side while it may still be waiting.
#[test]
fn a_silent_connection_is_probed() {
    let deferd = Deferd::start(&[]);
    unharmed(&deferd, || {
        let client = asking(&deferd, "/_admin/sleep?duration=3600", "1.0", "");
        let (own, its) = (client.local_addr().unwrap().port(), deferd.address.port());
        let ends = format!(":{its:04X} 0100007F:{own:04X} 01 ");
        let line = || {
            let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
            table.lines().find(|line| line.contains(&ends)).map(str::to_owned)
        };
        // `tr` is 02 while the timer of keep-alive probes runs (Documentation/networking/proc_net_tcp).
        let is_probed = |line: String| line.split_whitespace().nth(5).unwrap().starts_with("02:");
        eventually("its timer runs", || line().is_some_and(is_probed));
        sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
    });
}
