//! The end of the content, announced in ways that two readers could understand differently (RFC 9112 section 6).

use super::smuggling::{fields_are_refused, nothing_smuggled, requests_are_refused};
use super::unharmed;
use crate::support::Deferd;

#[test]
fn both_framings_at_once_are_refused() {
    fields_are_refused(&[
        (b"content-length: 5\r\ntransfer-encoding: chunked\r\n", 400),
        (b"transfer-encoding: chunked\r\ncontent-length: 5\r\n", 400),
        (b"content-length: 0\r\ntransfer-encoding: chunked\r\n", 400),
        (b"content-length: 5\r\ntransfer-encoding: identity\r\n", 400),
        (b"content-length: 5\r\nTransfer-Encoding:\tchunked\r\n", 400),
        (b"content-length: 5\r\ntransfer-encoding:\r\n", 400),
    ]);
}

#[test]
fn a_length_that_is_not_digits_is_refused() {
    fields_are_refused(&[
        (b"content-length:\r\n", 400),
        (b"content-length: \r\n", 400),
        (b"content-length: abc\r\n", 400),
        (b"content-length: -5\r\n", 400),
        (b"content-length: +5\r\n", 400),
        (b"content-length: 0x5\r\n", 400),
        (b"content-length: 5.0\r\n", 400),
        (b"content-length: 5e0\r\n", 400),
        (b"content-length: 5 5\r\n", 400),
        (b"content-length: 5;\r\n", 400),
        (b"content-length: \"5\"\r\n", 400),
        (b"content-length: \xd9\xa5\r\n", 400),
    ]);
}

#[test]
fn more_than_one_length_is_refused() {
    fields_are_refused(&[
        (b"content-length: 5, 5\r\n", 400),
        (b"content-length: 5,0\r\n", 400),
        (b"content-length: ,5\r\n", 400),
        (b"content-length: 5\r\ncontent-length: 5\r\n", 400),
        (b"content-length: 0\r\ncontent-length: 5\r\n", 400),
        (b"content-length: 5\r\nCONTENT-LENGTH: 0\r\n", 400),
    ]);
}

#[test]
fn a_length_beyond_every_number_is_too_large() {
    fields_are_refused(&[
        (b"content-length: 16777217\r\n", 413),
        (b"content-length: 4294967301\r\n", 413),
        (b"content-length: 9223372036854775808\r\n", 413),
        (b"content-length: 18446744073709551615\r\n", 413),
        // 2^64 + 5: it must not wrap around to five.
        (b"content-length: 18446744073709551621\r\n", 413),
        (b"content-length: 99999999999999999999999999999999999999999\r\n", 413),
    ]);
}

/// A row of section 10: the unread rest of such content must not be allocated.
#[test]
fn an_announced_length_of_thirty_gigabytes_costs_nothing() {
    fields_are_refused(&[(b"content-length: 30000000000\r\n", 413)]);
    requests_are_refused(&[
        (b"POST /nothing/here HTTP/1.1\r\nhost: a\r\ncontent-length: 30000000000\r\n\r\n", 413),
        (b"GET /_api/version HTTP/1.0\r\ncontent-length: 30000000000\r\n\r\n", 413),
    ]);
}

#[test]
fn a_transfer_coding_other_than_chunked_is_refused() {
    fields_are_refused(&[
        (b"transfer-encoding:\r\n", 400),
        (b"transfer-encoding: identity\r\n", 400),
        (b"transfer-encoding: xchunked\r\n", 400),
        (b"transfer-encoding: chunkedx\r\n", 400),
        (b"transfer-encoding: chunked;q=1\r\n", 400),
        (b"transfer-encoding: \"chunked\"\r\n", 400),
        (b"transfer-encoding: chun ked\r\n", 400),
        (b"transfer-encoding: chunked\x0b\r\n", 400),
        (b"transfer-encoding: \xa0chunked\r\n", 400),
        (b"transfer-encoding: gzip\r\n", 400),
        (b"transfer-encoding: gzip, chunked\r\n", 501),
    ]);
}

#[test]
fn chunked_more_than_once_or_not_last_is_refused() {
    fields_are_refused(&[
        (b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", 400),
        (b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n", 400),
        (b"transfer-encoding: identity\r\ntransfer-encoding: chunked\r\n", 400),
        (b"transfer-encoding: chunked, chunked\r\n", 400),
        (b"transfer-encoding: chunked, identity\r\n", 400),
        (b"transfer-encoding: chunked, gzip\r\n", 400),
    ]);
}

/// HTTP/1.0 does not know chunks: a proxy of that time passes them on as content.
#[test]
fn chunks_in_http_1_0_are_refused() {
    requests_are_refused(&[
        (b"POST /_admin/echo HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (
            b"POST /_admin/echo HTTP/1.0\r\nconnection: keep-alive\r\n\
              transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
    ]);
}

/// The converse: what is framed correctly is content, even if it looks like a request.
#[test]
fn a_request_inside_a_content_is_content() {
    let deferd = Deferd::start(&[]);
    let inner = super::smuggling::SMUGGLED;
    unharmed(&deferd, || {
        let mut client = deferd.client();
        let by_length = format!(
            "POST /_admin/echo HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{inner}",
            inner.len()
        );
        let by_chunks = format!(
            "POST /_admin/echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n\
             {:x}\r\n{inner}\r\n0\r\n\r\n",
            inner.len()
        );
        client.send([by_length, by_chunks].concat().as_bytes());
        for _ in 0..2 {
            let echo = client.try_read("POST").unwrap().expect(200).json();
            assert_eq!(echo["body"], inner);
        }
        drop(client);
        nothing_smuggled(&deferd);
    });
}
