//! A table of heads: which are read, and which are refused with which status code.

use std::time::Duration;

use super::*;

/// Returns limits small enough for a test to reach.
pub fn limits() -> Limits {
    let time = Duration::from_secs(10);
    Limits {
        max_head: 1024,
        max_body: 256,
        max_body_option: "--max-body 256".into(),
        head_time: time,
        body_time: time,
        write_time: time,
        idle_time: time,
    }
}

fn head(bytes: &[u8]) -> Result<Option<Head>, RequestError> {
    read(&mut Input::new(bytes), &limits())
}

fn status(bytes: &[u8]) -> u16 {
    match head(bytes) {
        Err(RequestError::Refused(error)) => error.status().as_u16(),
        other => panic!("{:?}: {other:?}", String::from_utf8_lossy(bytes)),
    }
}

fn with(fields: &str) -> Vec<u8> {
    format!("POST /x HTTP/1.1\r\nhost: a\r\n{fields}\r\n").into_bytes()
}

#[test]
fn request_lines_that_are_refused() {
    for (line, expected) in [
        ("GET / HTTP/2.0", 505),
        ("GET / HTTP/1.2", 505),
        ("GET / HTTP/0.9", 505),
        ("PRI * HTTP/2.0", 505),
        ("GET / http/1.1", 400),
        ("GET /", 400),
        ("GET", 400),
        ("GET  / HTTP/1.1", 400),
        ("GET / HTTP/1.1 ", 400),
        ("GET /a b HTTP/1.1", 400),
        (" GET / HTTP/1.1", 400),
        ("G(T / HTTP/1.1", 400),
        ("GET /a#b HTTP/1.1", 400),
        ("GET * HTTP/1.1", 400),
        ("GET a HTTP/1.1", 400),
        ("CONNECT a:80 HTTP/1.1", 501),
        ("CONNECT /a HTTP/1.1", 501),
        ("CONNECT http://a/b HTTP/1.1", 501),
        ("CONNECT * HTTP/1.1", 501),
        ("GET ftp://a/b HTTP/1.1", 400),
        ("GET /\x7f HTTP/1.1", 400),
        ("GET /\0 HTTP/1.1", 400),
        ("GET /\rx HTTP/1.1", 400),
    ] {
        assert_eq!(status(format!("{line}\r\nhost: a\r\n\r\n").as_bytes()), expected, "{line:?}");
    }
}

#[test]
fn targets_come_in_origin_form() {
    for (method, target, path, host) in [
        ("GET", "/a/b?c=d&e", "/a/b?c=d&e", "a"),
        ("GET", "//a/..//b", "//a/..//b", "a"),
        ("GET", "http://example.org:80/x?y", "/x?y", "example.org:80"),
        ("GET", "http://example.org", "/", "example.org"),
        ("GET", "http://example.org/\u{e4}?{}", "/%C3%A4?%7B%7D", "example.org"),
        ("GET", "/\u{e4}?\"<>\"", "/%C3%A4?%22%3C%3E%22", "a"),
        ("OPTIONS", "*", "*", "a"),
    ] {
        let bytes = format!("{method} {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        let head = head(bytes.as_bytes()).unwrap().unwrap();
        assert_eq!(head.parts.uri.to_string(), path);
        assert_eq!(head.parts.headers[HOST], host);
    }
}

#[test]
fn lines_and_fields_that_are_refused() {
    for fields in [
        "a: b\n",
        "a: b\rc\r\n",
        "a: b\r\n c\r\n",
        "a : b\r\n",
        " a: b\r\n",
        ": b\r\n",
        "a\r\n",
        "a\0: b\r\n",
        "a: b\0\r\n",
        "\u{e4}: b\r\n",
        "host: b\r\n",
        "content-length: \r\n",
        "content-length: abc\r\n",
        "content-length: -5\r\n",
        "content-length: +5\r\n",
        "content-length: 0x5\r\n",
        "content-length: 5, 5\r\n",
        "content-length: 5\r\ncontent-length: 5\r\n",
        "content-length: 5\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: identity\r\n",
        "transfer-encoding: xchunked\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked, chunked\r\n",
        "transfer-encoding: chunked, identity\r\n",
        "transfer-encoding: \r\n",
    ] {
        assert_eq!(status(&with(fields)), 400, "{fields:?}");
    }
    assert_eq!(status(&with("transfer-encoding: gzip, chunked\r\n")), 501);
    assert_eq!(status(&with("content-length: 257\r\n")), 413);
    assert_eq!(status(&with("content-length: 18446744073709551616\r\n")), 413);
    assert_eq!(status(&with("expect: the unexpected\r\n")), 417);
    assert_eq!(status(b"GET / HTTP/1.1\r\n\r\n"), 400);
    assert_eq!(status(b"GET / HTTP/1.1\r\nhost: a b\r\n\r\n"), 400);
    assert_eq!(status(b"GET / HTTP/1.1\r\nhost: a@b\r\n\r\n"), 400);
    assert_eq!(status(b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n"), 400);
}

#[test]
fn heads_that_are_too_large() {
    let long = "x".repeat(1024);
    assert_eq!(status(format!("GET /{long} HTTP/1.1\r\n").as_bytes()), 414);
    assert_eq!(status(&with(&format!("a: {long}\r\n"))), 431);
    assert_eq!(status(&with(&"a:\r\n".repeat(100))), 431, "a hundred and one");
    assert!(head(&with(&"a:\r\n".repeat(99))).unwrap().is_some());
}

#[test]
fn framings_that_are_read() {
    for (fields, framing) in [
        ("", Framing::Length(0)),
        ("content-length: 0\r\n", Framing::Length(0)),
        ("Content-Length:256 \r\n", Framing::Length(256)),
        ("Transfer-Encoding: Chunked\r\n", Framing::Chunked),
    ] {
        assert_eq!(head(&with(fields)).unwrap().unwrap().framing, framing, "{fields:?}");
    }
}

#[test]
fn connections_persist_as_the_version_says() {
    for (version, fields, persistence) in [
        ("1.1", "", Persistence::KeepAlive),
        ("1.1", "connection: upgrade, Close\r\n", Persistence::Close),
        ("1.0", "", Persistence::Close),
        ("1.0", "connection: Keep-Alive\r\n", Persistence::KeepAlive),
        ("1.0", "connection: keep-alive, close\r\n", Persistence::Close),
    ] {
        let bytes = format!("GET / HTTP/{version}\r\nhost: a\r\n{fields}\r\n");
        assert_eq!(head(bytes.as_bytes()).unwrap().unwrap().persistence, persistence);
    }
}

#[test]
fn expectations() {
    let asks = |bytes: &[u8]| head(bytes).unwrap().unwrap().expectation;
    assert_eq!(asks(&with("expect: 100-Continue\r\n")), Expectation::Continue);
    assert_eq!(asks(&with("")), Expectation::None);
    assert_eq!(asks(b"GET / HTTP/1.0\r\nexpect: 100-continue\r\n\r\n"), Expectation::None);
}

#[test]
fn one_empty_line_before_a_request_is_skipped_and_a_close_is_no_request() {
    assert!(head(b"\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap().is_some());
    assert_eq!(status(b"\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n"), 400);
    assert!(head(b"").unwrap().is_none());
    assert!(matches!(head(b"GET / HT"), Err(RequestError::Gone)));
}
