//! Clients that send all of their content before they read: a refusal arrives, and is not lost to a reset.

use std::io::{ErrorKind, Write};
use std::time::{Duration, Instant};

use super::unharmed;
use super::unharmed::{connections, is_served};
use crate::support::{Client, Deferd, PATIENCE, eventually, uninterrupted};

/// The largest content that is accepted.
const BODY: usize = 1 << 20;

fn deferd() -> Deferd {
    Deferd::with_scripts("", &["--max-body", "1M"])
}

#[test]
fn a_refusal_reaches_a_client_that_sends_first() {
    let deferd = deferd();
    unharmed(&deferd, || {
        let length = 4 * BODY - 64 * 1024;
        let by_length = format!("content-length: {length}\r\n");
        let chunked = "transfer-encoding: chunked\r\n".to_owned();
        let small = format!("content-length: {BODY}\r\n");
        for (target, fields, sent, status) in [
            ("/_admin/echo", &by_length, length, 413),
            ("/run/s-cat", &by_length, length, 413),
            ("/run/s-cat", &chunked, length, 413),
            ("/nowhere", &small, BODY, 404),
            ("/nowhere", &by_length, length, 413),
            ("/_admin/time", &small, BODY, 413),
            ("/run/s-cat", &format!("{small}origin: http://evil.example\r\n"), BODY, 403),
            ("/run/s-cat", &format!("{small}transfer-encoding: chunked\r\n"), BODY, 400),
            ("/run/s-cat", &format!("{small}expect: wonders\r\n"), BODY, 417),
        ] {
            for _ in 0..5 {
                let mut client = deferd.client();
                client
                    .send(format!("POST {target} HTTP/1.1\r\nhost: a\r\n{fields}\r\n").as_bytes());
                if *fields == chunked {
                    client.send(format!("{sent:x}\r\n").as_bytes());
                }
                // It reads only after it has sent everything.
                client.send(&vec![b'x'; sent]);
                let reply = client.try_read("POST").expect("an answer");
                reply.expect_error(status, status);
                assert!(client.is_closed());
            }
        }
    });
}

/// Contract: four times `--max-body`. In addition, the buffers of both sockets take some.
#[test]
fn a_refused_upload_without_end_is_cut_after_four_bodies() {
    let deferd = deferd();
    unharmed(&deferd, || {
        let client = deferd.client();
        let mut socket = client.socket();
        socket.write_all(b"POST /_admin/echo HTTP/1.1\r\nhost: a\r\n").unwrap();
        socket.write_all(b"content-length: 30000000000\r\n\r\n").unwrap();
        let block = [b'x'; 64 * 1024];
        let mut sent = 0;
        let error = loop {
            match uninterrupted(|| socket.write(&block)) {
                Ok(n) => sent += n,
                Err(error) => break error,
            }
            assert!(sent < 100 * BODY, "never cut");
        };
        assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe));
        assert!(sent >= 4 * BODY, "cut after {sent}");
    });
}

/// Returns a client whose upload was refused, and which neither reads nor sends nor leaves.
fn silent(deferd: &Deferd) -> Client {
    let mut client = deferd.client();
    client.send(b"POST /_admin/echo HTTP/1.1\r\nhost: a\r\ncontent-length: 30000000\r\n\r\nx");
    client.wait_for_answer();
    client
}

#[test]
fn a_silent_refused_client_is_cut_after_30_s() {
    let deferd = deferd();
    unharmed(&deferd, || {
        let begin = Instant::now();
        let _silent = silent(&deferd);
        eventually("others are served", || is_served(&deferd));
        eventually("the thread is gone", || connections(&deferd) == 0);
        let (cut, limit) = (begin.elapsed(), Duration::from_secs(30));
        assert!(cut >= limit && cut < PATIENCE, "cut after {cut:?}");
    });
}

/// Its answer was sent, so there is nothing to wait for.
#[test]
fn the_end_does_not_wait_for_a_refused_client() {
    let mut deferd = deferd();
    let _silent = silent(&deferd);
    let begin = Instant::now();
    deferd.signal("-TERM");
    assert_eq!(deferd.wait().code(), Some(0));
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
}
