//! Endless requests on one connection whose answers are not read.

use std::io::{ErrorKind, Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use super::unharmed;
use super::unharmed::{connect, connections, is_served, memory};
use crate::support::{Deferd, eventually};

/// How many requests a flood has.
const FLOOD: usize = 300_000;

/// How long nothing more must be taken for a flood to count as blocked.
const BLOCKED: Duration = Duration::from_secs(1);

/// A row of section 10: the answers took 400 MB of memory.
#[test]
fn unread_answers_hold_back_a_flood_of_requests() {
    let deferd = Deferd::start(&[]);
    let request = b"GET /_admin/echo HTTP/1.1\r\nhost: a\r\n\r\n";
    unharmed(&deferd, || {
        let before = memory(&deferd);
        let mut stream = connect(deferd.address);
        stream.set_nonblocking(true).unwrap();
        let block = request.repeat(1000);
        let (mut sent, mut last) = (0, Instant::now());
        while sent < FLOOD * request.len() && last.elapsed() < BLOCKED {
            match stream.write(&block[sent % request.len()..]) {
                Ok(n) => (sent, last) = (sent + n, Instant::now()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    thread::sleep(Duration::from_millis(10));
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert!(sent < FLOOD * request.len(), "the whole flood was taken");
        let now = memory(&deferd);
        assert!(now < before + 4 * 1024, "{now} KiB resident, {before} before");
        assert_eq!(connections(&deferd), 1);
        eventually("others are served", || is_served(&deferd));
    });
}

/// The same flood from a client that reads: every request is answered, in order.
#[test]
fn pipelined_requests_are_answered_in_order() {
    let deferd = Deferd::start(&[]);
    unharmed(&deferd, || {
        let mut client = deferd.client();
        let mut sender = client.socket().try_clone().unwrap();
        let sending = thread::spawn(move || {
            for n in 0..2000 {
                write!(sender, "GET /_admin/echo?{n} HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
            }
        });
        for n in 0..2000 {
            let echo = client.try_read("GET").expect("an answer").expect(200).json();
            assert_eq!(echo["query"], n.to_string());
        }
        sending.join().unwrap();
    });
}

/// Bytes without line ends, as fast as possible, from many clients at once.
#[test]
fn garbage_is_refused_as_fast_as_it_comes() {
    let deferd = Deferd::start(&[]);
    let garbage: Vec<u8> = (0..=255).cycle().take(64 * 1024).collect();
    unharmed(&deferd, || {
        for _ in 0..10 {
            let streams: Vec<_> = (0..20).map(|_| connect(deferd.address)).collect();
            for mut stream in &streams {
                // The refusal comes in the middle of this.
                let _ = stream.write_all(&garbage);
            }
            for mut stream in streams {
                let mut answer = Vec::new();
                let _ = stream.read_to_end(&mut answer);
                assert!(answer.starts_with(b"HTTP/1.1 400 "), "{answer:?}");
            }
        }
    });
}
