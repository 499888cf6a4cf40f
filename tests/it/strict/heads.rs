//! Heads that are malformed: lines, names, values, versions (RFC 9112 sections 2 to 5).

use super::smuggling::{fields_are_refused, nothing_smuggled, requests_are_refused};
use super::unharmed;
use crate::support::Deferd;

#[test]
fn a_bare_line_feed_is_refused() {
    fields_are_refused(&[
        (b"a: b\n", 400),
        (b"a: b\nc: d\r\n", 400),
        (b"content-length: 5\ntransfer-encoding: chunked\r\n", 400),
        (b"\n", 400),
    ]);
    requests_are_refused(&[
        (b"GET / HTTP/1.1\nhost: a\r\n\r\n", 400),
        (b"GET /_api/version HTTP/1.1\nhost: a\n\n", 400),
        (b"\nGET / HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    ]);
}

#[test]
fn a_bare_carriage_return_is_refused() {
    fields_are_refused(&[
        (b"a: b\rc\r\n", 400),
        (b"a: b\rcontent-length: 70\r\n", 400),
        (b"a: b\r\r\n", 400),
        (b"a\r: b\r\n", 400),
        (b"\ra: b\r\n", 400),
        (b"\r\r\n", 400),
    ]);
    requests_are_refused(&[
        (b"GET / HTTP/1.1\rhost: a\r\n\r\n", 400),
        (b"GET /\rx HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\r\nhost: a\r\n\r\n", 400),
        (b"\rGET / HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    ]);
}

#[test]
fn a_folded_line_is_refused() {
    fields_are_refused(&[
        (b"a: b\r\n c\r\n", 400),
        (b"a: b\r\n\tc\r\n", 400),
        (b" a: b\r\n", 400),
        (b"\ta: b\r\n", 400),
        (b"a: b\r\n \r\n", 400),
        (b"content-length: 5\r\n 0\r\n", 400),
        (b"transfer-encoding:\r\n chunked\r\n", 400),
    ]);
}

#[test]
fn a_blank_before_the_colon_is_refused() {
    fields_are_refused(&[
        (b"a : b\r\n", 400),
        (b"a\t: b\r\n", 400),
        (b"content-length : 5\r\n", 400),
        (b"transfer-encoding : chunked\r\n", 400),
        (b"transfer-encoding\x0b: chunked\r\n", 400),
    ]);
}

#[test]
fn a_name_that_is_no_token_is_refused() {
    fields_are_refused(&[
        (b": b\r\n", 400),
        (b"a\r\n", 400),
        (b"a b: c\r\n", 400),
        (b"a(b): c\r\n", 400),
        (b"a\"b: c\r\n", 400),
        (b"a\x7f: c\r\n", 400),
        (b"\xc3\xa4: b\r\n", 400),
        (b"\xe4: b\r\n", 400),
        (b"transfer-encoding\xff: chunked\r\n", 400),
        (b"\xe2\x80\x8bcontent-length: 5\r\n", 400),
    ]);
}

#[test]
fn a_nul_or_another_control_is_refused() {
    fields_are_refused(&[
        (b"a\0: b\r\n", 400),
        (b"a: b\0\r\n", 400),
        (b"content-length: 5\0\r\n", 400),
        (b"a: \x01\r\n", 400),
        (b"a: \x1b[2J\r\n", 400),
        (b"a: \x7f\r\n", 400),
        (b"\0\r\n", 400),
    ]);
    requests_are_refused(&[
        (b"GET /\0 HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"GET /\x01 HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"GE\0T / HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"\0\0\0\0\r\n\r\n", 400),
    ]);
}

/// obs-text (RFC 9110 section 5.5) is opaque, and allowed.
#[test]
fn bytes_beyond_ascii_in_a_value_are_only_data() {
    let deferd = Deferd::start(&[]);
    unharmed(&deferd, || {
        let mut client = deferd.client();
        for value in [&b"\xc3\xa4"[..], b"\xe4", b"\xff\xfe\x80", b"a\tb"] {
            let head = [b"GET /_admin/echo HTTP/1.1\r\nhost: a\r\nx: ", value, b"\r\n\r\n"];
            client.send(&head.concat());
            let echo = client.try_read("GET").unwrap().expect(200).json();
            assert_eq!(echo["headers"]["x"], *String::from_utf8_lossy(value));
        }
    });
}

#[test]
fn not_exactly_one_host_is_refused() {
    fields_are_refused(&[(b"host: a\r\n", 400), (b"host: b\r\n", 400), (b"Host:\r\n", 400)]);
    requests_are_refused(&[
        (b"GET /_api/version HTTP/1.1\r\n\r\n", 400),
        (b"GET /_api/version HTTP/1.1\r\nhost: a b\r\n\r\n", 400),
        (b"GET /_api/version HTTP/1.1\r\nhost: a, b\r\n\r\n", 400),
        (b"GET /_api/version HTTP/1.1\r\nhost: a@b\r\n\r\n", 400),
        (b"GET /_api/version HTTP/1.1\r\nhost: a/b\r\n\r\n", 400),
        (b"GET /_api/version HTTP/1.1\r\nhost: http://a\r\n\r\n", 400),
        (b"GET /_api/version HTTP/1.0\r\nhost: a\r\nhost: a\r\n\r\n", 400),
    ]);
}

#[test]
fn a_malformed_request_line_is_refused() {
    requests_are_refused(&[
        (b"GET  /_api/version HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"GET\t/_api/version\tHTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"GET /_api/version  HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"GET /_api/version HTTP/1.1 \r\nhost: a\r\n\r\n", 400),
        (b" GET /_api/version HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"GET /_api/version HTTP/1.1 HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"/_api/version HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b" HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"G(T /_api/version HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"G\xc9T /_api/version HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"\r\n\r\nGET /_api/version HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    ]);
}

#[test]
fn a_version_that_is_not_offered_is_refused() {
    requests_are_refused(&[
        (b"GET /_api/version HTTP/2.0\r\nhost: a\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"GET /_api/version HTTP/3.0\r\nhost: a\r\n\r\n", 505),
        (b"GET /_api/version HTTP/1.2\r\nhost: a\r\n\r\n", 505),
        (b"GET /_api/version HTTP/0.9\r\nhost: a\r\n\r\n", 505),
        (b"GET /_api/version\r\n\r\n", 400),
        (b"GET /_api/version http/1.1\r\nhost: a\r\n\r\n", 400),
        (b"GET /_api/version Http/1.1\r\nhost: a\r\n\r\n", 400),
        (b"GET /_api/version HTTP/1.10\r\nhost: a\r\n\r\n", 400),
        (b"GET /_api/version HTTP/11\r\nhost: a\r\n\r\n", 400),
        (b"GET /_api/version HTTP/1,1\r\nhost: a\r\n\r\n", 400),
        (b"GET /_api/version HTTPS/1.1\r\nhost: a\r\n\r\n", 400),
    ]);
}

/// A row of section 10: each of these formerly cost a thread and two descriptors.
#[test]
fn many_requests_of_http_2_leave_nothing() {
    let deferd = Deferd::start(&[]);
    unharmed(&deferd, || {
        for _ in 0..100 {
            let line = b"GET /_api/version HTTP/2.0\r\nhost: a\r\n\r\n";
            super::smuggling::refused(&deferd, line, 505);
        }
        nothing_smuggled(&deferd);
    });
}

/// A row of section 10.
#[test]
fn a_weight_that_is_no_number_panics_nothing() {
    let deferd = Deferd::start(&[]);
    let te: Vec<String> = (0..21).map(|n| format!("a{n};q=nan")).collect();
    unharmed(&deferd, || {
        let mut client = deferd.client();
        for name in ["te", "accept", "accept-encoding", "prefer", "connection"] {
            let fields = [(name, &*te.join(", "))];
            client.request("GET", "/_admin/echo", &fields, b"").expect(200);
        }
    });
}

/// A client reads no content after HEAD (RFC 9110 section 9.3.2).
#[test]
fn a_refusal_of_head_has_no_content() {
    let deferd = Deferd::start(&[]);
    unharmed(&deferd, || {
        for (fields, status) in [
            ("host: a\r\nhost: b\r\n", 400),
            ("host: a\r\ncontent-length: 30000000000\r\n", 413),
            ("host: a\r\ncontent-length: 70000\r\n", 413),
            ("host: a\r\ntransfer-encoding: chunked\r\n\r\nx", 400),
        ] {
            let mut client = deferd.client();
            client.send(format!("HEAD /_admin/time HTTP/1.1\r\n{fields}\r\n").as_bytes());
            let reply = client.try_read("HEAD").expect("an answer").expect(status);
            assert!(reply.header("content-length").is_some_and(|length| length != "0"));
            assert!(client.is_closed(), "{fields}: nothing comes behind the head");
        }
    });
}
