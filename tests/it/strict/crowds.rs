//! Many connections that do nothing.

use std::io::Read;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::unharmed;
use super::unharmed::{connect, connections, is_served, unharmed_by_crowd};
use crate::support::{Client, Deferd, eventually};

/// Reads a connection to its end; returns what arrived, or nothing if it is kept open.
fn rest_of(mut stream: &TcpStream) -> String {
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    text
}

#[test]
fn connections_beyond_the_limit_are_turned_away_until_others_go() {
    let deferd = Deferd::start(&[]);
    unharmed_by_crowd(&deferd, || {
        let held: Vec<_> = (0..512).map(|_| connect(deferd.address)).collect();
        eventually("all are served", || connections(&deferd) == 512);
        for _ in 0..88 {
            let text = rest_of(&connect(deferd.address));
            assert!(text.starts_with("HTTP/1.1 503 "), "{text:?}");
            assert!(text.contains("\r\nconnection: close\r\n"), "{text:?}");
            assert!(text.ends_with(r#""code":503,"errorNum":503}"#), "{text:?}");
            assert!(text.contains("too many connections: --max-connections 512, "), "{text:?}");
        }
        assert_eq!(connections(&deferd), 512);
        // One leaves, one arrives.
        drop(held.into_iter().next_back());
        eventually("there is room again", || is_served(&deferd));
    });
}

/// Connections that had a request and those that never did; a connection in use is not idle, however old it is.
#[test]
fn idle_connections_are_closed_and_one_in_use_is_kept() {
    let time = Duration::from_secs(2);
    let deferd = Deferd::start(&["--keep-alive", "2s"]);
    unharmed(&deferd, || {
        let mut used = deferd.client();
        let begin = Instant::now();
        let mut idle: Vec<_> = (0..20).map(|_| deferd.client()).collect();
        for client in idle.iter_mut().step_by(2) {
            client.get("/_api/version").expect(200);
        }
        eventually("only the one in use is left", || {
            used.get("/_api/version").expect(200);
            connections(&deferd) == 1
        });
        assert!(begin.elapsed() >= time, "{:?}", begin.elapsed());
        assert!(idle.iter_mut().all(Client::is_closed), "something came");
        used.get("/_api/version").expect(200);
    });
}

/// A request that has already arrived must not turn the answer into a reset.
#[test]
fn a_client_that_is_turned_away_can_read_why() {
    let deferd = Deferd::start(&["--max-connections", "1"]);
    unharmed(&deferd, || {
        let mut first = deferd.client();
        first.get("/_api/version").expect(200);
        for _ in 0..20 {
            let mut second = deferd.client();
            // It may be closed before this is sent: the answer has arrived nevertheless.
            let _ =
                super::unharmed::pour(&second, b"GET /_api/version HTTP/1.1\r\nhost: a\r\n\r\n");
            second.try_read("GET").expect("an answer").expect_error(503, 503);
        }
        first.get("/_api/version").expect(200);
    });
}

/// A row of section 10: only eight of sixteen were served.
#[test]
fn every_one_of_many_kept_connections_is_served() {
    let deferd = Deferd::start(&["--workers", "1"]);
    unharmed(&deferd, || {
        let mut clients: Vec<Client> = (0..100).map(|_| deferd.client()).collect();
        for _ in 0..2 {
            for client in &mut clients {
                client.get("/_api/version").expect(200);
            }
        }
        assert_eq!(connections(&deferd), 100);
    });
}

/// A row of section 10. Without `TCP_NODELAY`, the second of two answers waits for the client's delayed
/// acknowledgement of the first, at least 40 ms; with it, a busy machine delays some answers, but not all.
#[test]
fn answers_do_not_wait_for_acknowledgements() {
    let deferd = Deferd::start(&[]);
    unharmed(&deferd, || {
        let mut client = deferd.client();
        let filling = "x".repeat(2000);
        let mut pair = || {
            let begin = Instant::now();
            let fields = [("x", &*filling)];
            client.send_request("GET", "/_admin/echo", &fields, b"");
            client.send_request("GET", "/_admin/echo", &fields, b"");
            client.try_read("GET").unwrap().expect(200);
            client.try_read("GET").unwrap().expect(200);
            begin.elapsed()
        };
        // The kernel acknowledges the first segments of a connection at once.
        for _ in 0..50 {
            pair();
        }
        let mut times: Vec<_> = (0..51).map(|_| pair()).collect();
        times.sort();
        assert!(times[10] < Duration::from_millis(30), "{times:?}");
    });
}
