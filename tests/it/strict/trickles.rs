//! Hundreds of connections that send one byte a second: they are cut off by the deadline of their phase, and are no
//! burden to others until then.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use super::unharmed;
use super::unharmed::{CROWD, connect, connections, is_served, unharmed_by_crowd};
use crate::support::{Deferd, FixedLimit, PATIENCE, eventually, with_limit};

/// One of the crowd.
struct Slow {
    stream: TcpStream,
    answer: Vec<u8>,
    ended: bool,
}

impl Slow {
    fn connect(deferd: &Deferd) -> Self {
        Self { stream: connect(deferd.address), answer: Vec::new(), ended: false }
    }

    fn begin(&mut self, start: &str) {
        self.stream.write_all(start.as_bytes()).unwrap();
        self.stream.set_nonblocking(true).unwrap();
    }

    /// Takes what has arrived, without waiting.
    fn look(&mut self) {
        let mut buffer = [0; 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(n) if n > 0 => self.answer.extend_from_slice(&buffer[..n]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Ok(_) | Err(_) => {
                    self.ended = true;
                    return;
                }
            }
        }
    }
}

/// Lets the crowd trickle until all are cut off with `408`; returns when the first of them was.
fn trickle(deferd: &Deferd, start: &str, piece: &[u8]) -> Duration {
    let mut crowd: Vec<_> = (0..CROWD).map(|_| Slow::connect(deferd)).collect();
    eventually("all are connected", || connections(deferd) == CROWD);
    let begin = Instant::now();
    crowd.iter_mut().for_each(|slow| slow.begin(start));
    let mut first_cut = None;
    let mut served = 0;
    while !crowd.iter().all(|slow| slow.ended) {
        assert!(
            begin.elapsed() < PATIENCE,
            "{} are left",
            crowd.iter().filter(|s| !s.ended).count()
        );
        let round = Instant::now();
        for slow in crowd.iter_mut().filter(|slow| !slow.ended) {
            // The next look detects a full or broken socket.
            let _ = slow.stream.write(piece);
        }
        served += usize::from(is_served(deferd));
        while round.elapsed() < Duration::from_secs(1) && !crowd.iter().all(|slow| slow.ended) {
            crowd.iter_mut().filter(|slow| !slow.ended).for_each(Slow::look);
            if first_cut.is_none() && crowd.iter().any(|slow| slow.ended) {
                first_cut = Some(begin.elapsed());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
    assert!(served > 0, "nobody else is served");
    for slow in &crowd {
        let text = String::from_utf8_lossy(&slow.answer);
        assert!(text.starts_with("HTTP/1.1 408 "), "{text:?}");
    }
    first_cut.unwrap_or_else(|| begin.elapsed())
}

/// A row of section 10.
#[test]
fn a_crowd_that_trickles_heads_is_cut() {
    let time = Duration::from_secs(3);
    let deferd = Deferd::start_by(with_limit(FixedLimit::Head, time), &[]);
    unharmed_by_crowd(&deferd, || {
        let first = trickle(&deferd, "GET /_api/version HTTP/1.1\r\nhost: a\r\nx: ", b"x");
        assert!(first >= time, "cut after {first:?} already");
    });
}

/// A row of section 10. Each byte earns a thousandth of a second, and not the whole time again.
#[test]
fn a_crowd_that_trickles_content_is_cut() {
    let deferd = Deferd::start(&["--body-timeout", "3s"]);
    unharmed_by_crowd(&deferd, || {
        let start = "POST /_admin/echo HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n";
        trickle(&deferd, start, b"x");
    });
}

#[test]
fn a_crowd_that_trickles_chunk_extensions_is_cut() {
    let deferd = Deferd::start(&["--body-timeout", "3s"]);
    unharmed_by_crowd(&deferd, || {
        let head = "POST /_admin/echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
        trickle(&deferd, &format!("{head}5;"), b"x");
    });
}

/// Content that arrives slowly, but faster than the minimum rate, is read to its end.
#[test]
fn content_above_the_floor_is_taken_however_long_it_lasts() {
    let deferd = Deferd::start(&["--body-timeout", "3s"]);
    unharmed(&deferd, || {
        let mut client = deferd.client();
        let begin = Instant::now();
        // Each piece earns eight seconds, of which three may be silent: a busy machine may be late.
        let piece = "x".repeat(8192);
        let head = "POST /_admin/echo HTTP/1.1\r\nhost: a\r\ncontent-length: 81920\r\n\r\n";
        client.send(format!("{head}{piece}").as_bytes());
        for _ in 1..10 {
            thread::sleep(Duration::from_millis(400));
            client.send(piece.as_bytes());
        }
        let echo = client.try_read("POST").expect("an answer").expect(200).json();
        assert_eq!(echo["bodySize"], 81920);
        assert!(begin.elapsed() > Duration::from_secs(3));
    });
}
