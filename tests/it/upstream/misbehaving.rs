//! Upstreams that break the rules: each costs its own call, as a `502` or `504`, and nothing else.

use std::io::Write;
use std::net::TcpStream;

use super::{Fails, failure};
use crate::support::upstream::{Then, Upstream};
use crate::support::{Ability, Deferd, eventually, lacks};
use rustix::net::sockopt::set_socket_linger;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// Starts an upstream that does this at `/bad`, and behaves well elsewhere.
fn misbehaving(script: impl Fn(&mut TcpStream) -> Then + Send + Sync + 'static) -> Upstream {
    Upstream::start(move |got, stream| {
        if got.line.contains("/bad") {
            return script(stream);
        }
        stream.write_all(OK.as_bytes()).unwrap();
        Then::Keep
    })
}

/// Asserts that the fault costs its own call, repeatedly, and nothing else: no descriptor, no thread, and not the
/// answers to other requests.
#[track_caller]
fn assert_harmless(upstream: &Upstream, options: &str, fails: Fails, status: u16, words: &str) {
    let good = format!("/good=http://{}/", upstream.address);
    let bad = format!("/bad=http://{}/bad{options}", upstream.address);
    let deferd = Deferd::start(&["--workers", "2", "--route", &good, "--route", &bad]);
    let mut client = deferd.client();
    client.get("/good").expect(200);
    let before = (deferd.descriptors(), deferd.threads());
    for _ in 0..2 {
        let told = failure(&deferd, "/bad", fails, status);
        assert!(told.contains(words), "{told}");
        let id = client.store("GET", "/bad", b"");
        client.result(&id).expect_job_error(status, status);
        let id = client.store("POST", "/good", b"x");
        assert_eq!(client.result(&id).expect(200).text(), "ok");
    }
    eventually("nothing is left behind", || {
        deferd.descriptors() <= before.0 && deferd.threads() <= before.1
    });
}

#[test]
fn a_silent_upstream_runs_out_of_time() {
    let upstream = misbehaving(|_| Then::Hang);
    assert_harmless(&upstream, ",timeout=500ms", Fails::AtHead, 504, "in time");
}

#[test]
fn a_reset_within_the_content_breaks_the_answer() {
    for head in ["content-length: 9\r\n", "transfer-encoding: chunked\r\n", "connection: close\r\n"]
    {
        let upstream = misbehaving(move |stream| {
            let content = if head.contains("chunked") { "9\r\nhalf" } else { "half" };
            write!(stream, "HTTP/1.1 200 OK\r\n{head}\r\n{content}").unwrap();
            // Closed with this option, it resets.
            set_socket_linger(&*stream, Some(std::time::Duration::ZERO)).unwrap();
            Then::Close
        });
        assert_harmless(&upstream, "", Fails::AtContent, 502, "");
    }
}

#[test]
fn less_content_than_announced_is_broken_off() {
    for (answer, fails) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok", Fails::AtContent),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nok", Fails::AtContent),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n", Fails::AtContent),
        ("HTTP/1.1 200 OK\r\ncontent-le", Fails::AtHead),
    ] {
        let upstream = misbehaving(move |stream| {
            stream.write_all(answer.as_bytes()).unwrap();
            Then::Close
        });
        assert_harmless(&upstream, "", fails, 502, "broke off");
    }
}

#[test]
fn more_content_than_announced_is_not_the_next_answer() {
    let upstream = misbehaving(|stream| {
        let more = "HTTP/1.1 666 Smuggled\r\ncontent-length: 0\r\n\r\n";
        stream.write_all(format!("{OK}{more}").as_bytes()).unwrap();
        Then::Keep
    });
    let deferd = Deferd::start(&["--route", &upstream.route("")]);
    let mut client = deferd.client();
    for _ in 0..3 {
        assert_eq!(client.get("/up/bad").expect(200).text(), "ok");
        assert_eq!(client.get("/up/good").expect(200).text(), "ok");
    }
}

#[test]
fn endless_fields_are_given_up_on() {
    let upstream = misbehaving(|stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
        while stream.write_all(b"x: y\r\n").is_ok() {}
        Then::Close
    });
    assert_harmless(&upstream, "", Fails::AtHead, 502, "");
    let upstream = misbehaving(|stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nx: ");
        while stream.write_all(&[b'y'; 1000]).is_ok() {}
        Then::Close
    });
    assert_harmless(&upstream, "", Fails::AtHead, 502, "head of its answer is too large");
}

#[test]
fn an_answer_that_is_not_http_is_a_502() {
    for answer in [
        "hello\r\n\r\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 000 Nought\r\n\r\n",
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok!",
        "HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\ncontent-length: two\r\n\r\nok",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\ntrash\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nokay\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\nok\r\n",
    ] {
        let upstream = misbehaving(move |stream| {
            stream.write_all(answer.as_bytes()).unwrap();
            Then::Hang
        });
        // This includes the last four: a head is sent with the first content, and they have none.
        assert_harmless(&upstream, "", Fails::AtHead, 502, "not valid HTTP");
    }
    // More than there is room for at first.
    let content = "x".repeat(1 << 16);
    let upstream = misbehaving(move |stream| {
        let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n";
        let _ = write!(stream, "{head}\r\n10000\r\n{content}\r\ntrash\r\n");
        Then::Hang
    });
    assert_harmless(&upstream, "", Fails::AtContent, 502, "not valid HTTP");
}

#[test]
fn interim_answers_are_passed_over() {
    if lacks(Ability::Interim) {
        return;
    }
    let upstream = Upstream::answering(
        format!("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n{OK}"),
        || Then::Keep,
    );
    let deferd = Deferd::start(&["--route", &upstream.route("")]);
    let mut client = deferd.client();
    for _ in 0..3 {
        let reply = client.request("POST", "/up/", &[("expect", "100-continue")], b"").expect(200);
        assert_eq!((reply.text().as_str(), reply.header("link")), ("ok", None));
    }
    assert!(upstream.received().iter().all(|got| got.all("expect") == [""; 0]));
}

#[test]
fn interim_responses_alone_run_out_of_time() {
    let upstream = misbehaving(|stream| {
        while stream.write_all(b"HTTP/1.1 102 Processing\r\n\r\n").is_ok() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        Then::Close
    });
    assert_harmless(&upstream, ",timeout=500ms", Fails::AtHead, 504, "in time");
}

/// The time limit of the call is an hour.
#[test]
fn endless_interim_responses_are_given_up_on() {
    for interim in ["HTTP/1.1 102 Processing\r\n\r\n", "HTTP/1.1 100 Continue\r\n\r\n", LONG_HINTS]
    {
        let upstream = misbehaving(move |stream| {
            while stream.write_all(interim.as_bytes()).is_ok() {}
            Then::Close
        });
        assert_harmless(&upstream, "", Fails::AtHead, 502, "more than 64 KiB of interim responses");
    }
    // The same if an answer follows in the end.
    let much = LONG_HINTS.repeat((75 << 10) / LONG_HINTS.len());
    let upstream = misbehaving(move |stream| {
        let _ = stream.write_all(format!("{much}{OK}").as_bytes());
        Then::Keep
    });
    assert_harmless(&upstream, "", Fails::AtHead, 502, "more than 64 KiB of interim responses");
}

const LONG_HINTS: &str =
    "HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload; as=style\r\n\r\n";

#[test]
fn trailers_beyond_64_kib_are_given_up_on() {
    const HEAD: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n";
    for endless in ["x: y\r\n", "x"] {
        let upstream = misbehaving(move |stream| {
            let _ = stream.write_all(HEAD.as_bytes());
            while stream.write_all(endless.repeat(100).as_bytes()).is_ok() {}
            Then::Close
        });
        assert_harmless(&upstream, "", Fails::AtContent, 502, "64 KiB of trailers");
    }
    let much = "x: y\r\n".repeat((75 << 10) / 6);
    let upstream = misbehaving(move |stream| {
        let _ = stream.write_all(format!("{HEAD}{much}\r\n").as_bytes());
        Then::Keep
    });
    assert_harmless(&upstream, "", Fails::AtContent, 502, "64 KiB of trailers");
}

#[test]
fn endless_chunk_extensions_are_given_up_on() {
    let upstream = misbehaving(|stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
        while stream.write_all("1;ext=xxxxxxxxxxxx\r\nx\r\n".repeat(100).as_bytes()).is_ok() {}
        Then::Close
    });
    assert_harmless(&upstream, "", Fails::AtContent, 502, "chunk framing");
}

/// What is allowed, in one piece and in many: an answer of the smallest chunks is valid.
#[test]
fn interim_responses_and_trailers_within_64_kib_pass() {
    if lacks(Ability::Interim) {
        return;
    }
    let (hints, trailer) =
        (LONG_HINTS.repeat((55 << 10) / LONG_HINTS.len()), "x: y\r\n".repeat(9000));
    let chunks = "1\r\nx\r\n".repeat(100_000);
    for piece in [usize::MAX, 1000] {
        let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        let answer = format!("{hints}{head}{chunks}0\r\n{trailer}\r\n");
        let upstream = Upstream::start(move |_, stream| {
            let pieces = answer.as_bytes().chunks(piece.min(answer.len()));
            pieces.for_each(|piece| stream.write_all(piece).unwrap());
            Then::Keep
        });
        let deferd = Deferd::start(&["--route", &upstream.route("")]);
        let mut client = deferd.client();
        for _ in 0..2 {
            assert_eq!(client.get("/up/").expect(200).body, vec![b'x'; 100_000]);
        }
        assert!(
            upstream.received().iter().all(|got| got.connection == 0),
            "the connection is kept"
        );
    }
}

#[test]
fn an_answer_that_drips_is_whole_if_there_is_time() {
    let upstream = Upstream::start(|_, stream| {
        let answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
        for byte in answer.bytes() {
            if stream.write_all(&[byte]).is_err() {
                return Then::Close;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        Then::Keep
    });
    let deferd = Deferd::start(&["--route", &upstream.route("")]);
    assert_eq!(deferd.client().get("/up/").expect(200).text(), "ok");
}

#[test]
fn an_answer_that_drips_for_ever_runs_out_of_time() {
    let upstream = misbehaving(|stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
        while stream.write_all(b".").is_ok() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        Then::Close
    });
    assert_harmless(&upstream, ",timeout=500ms", Fails::AtContent, 504, "in time");
}

#[test]
fn content_without_end_is_cut_off_at_max_output() {
    for head in ["", "transfer-encoding: chunked\r\n"] {
        let upstream = misbehaving(move |stream| {
            let _ = write!(stream, "HTTP/1.1 200 OK\r\n{head}\r\n");
            let piece = if head.is_empty() { "x".repeat(1000) } else { "3\r\nxxx\r\n".repeat(100) };
            while stream.write_all(piece.as_bytes()).is_ok() {}
            Then::Close
        });
        let words = "larger than max-output 100K";
        assert_harmless(&upstream, ",max-output=100K", Fails::AtContent, 502, words);
    }
    // If that is announced, none of it is passed on.
    for length in ["102401", "18446744073709551615"] {
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\nok");
        let upstream = misbehaving(move |stream| {
            stream.write_all(answer.as_bytes()).unwrap();
            Then::Close
        });
        let words = "larger than max-output 100K";
        assert_harmless(&upstream, ",max-output=100K", Fails::AtHead, 502, words);
    }
}
