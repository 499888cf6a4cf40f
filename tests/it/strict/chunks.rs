//! Chunked content that is malformed, endless or cut short (RFC 9112 section 7.1).

use super::smuggling::{expect_refused, nothing_smuggled, requests_are_refused};
use super::unharmed;
use super::unharmed::pour;
use crate::support::Deferd;

const HEAD: &str = "POST /_admin/echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";

#[track_caller]
fn chunks_are_refused(table: &[(&str, u16)]) {
    let requests: Vec<_> =
        table.iter().map(|(chunks, status)| (format!("{HEAD}{chunks}"), *status)).collect();
    let requests: Vec<_> = requests.iter().map(|(text, s)| (text.as_bytes(), *s)).collect();
    requests_are_refused(&requests);
}

#[test]
fn a_chunk_size_that_is_not_hexadecimal_is_refused() {
    chunks_are_refused(&[
        ("\r\n", 400),
        ("x\r\n", 400),
        ("-5\r\nhello\r\n0\r\n\r\n", 400),
        ("+5\r\nhello\r\n0\r\n\r\n", 400),
        ("0x5\r\nhello\r\n0\r\n\r\n", 400),
        (" 5\r\nhello\r\n0\r\n\r\n", 400),
        ("5 \r\nhello\r\n0\r\n\r\n", 400),
        ("5 5\r\nhello\r\n0\r\n\r\n", 400),
        ("5,5\r\nhello\r\n0\r\n\r\n", 400),
        (";ext\r\nhello\r\n0\r\n\r\n", 400),
        ("\x005\r\nhello\r\n0\r\n\r\n", 400),
    ]);
}

#[test]
fn a_chunk_size_beyond_every_number_is_refused() {
    chunks_are_refused(&[
        ("00000000000000005\r\nhello\r\n0\r\n\r\n", 400),
        // 2^64 + 5: it must not wrap around to five.
        ("10000000000000005\r\nhello\r\n0\r\n\r\n", 400),
        ("ffffffffffffffff\r\n", 413),
        ("8000000000000000\r\n", 413),
        ("1000001\r\n", 413),
        ("5\r\nhello\r\nffffffffffffffff\r\n", 413),
        ("5\r\nhello\r\nfffffffffffffffb\r\n", 413),
    ]);
}

#[test]
fn a_chunk_longer_than_its_size_is_refused() {
    chunks_are_refused(&[
        ("5\r\nhelloworld\r\n0\r\n\r\n", 400),
        ("5\r\nhello0\r\n\r\n", 400),
        ("a\r\nhello\r\n0\r\n\r\nxxxx", 400),
    ]);
}

#[test]
fn a_bare_line_end_between_chunks_is_refused() {
    chunks_are_refused(&[
        ("5\nhello\r\n0\r\n\r\n", 400),
        ("5\r\nhello\n0\r\n\r\n", 400),
        ("5\r\nhello\r\n0\n\r\n", 400),
        ("5\r\nhello\r\n0\r\n\n", 400),
        ("5;a\rb\r\nhello\r\n0\r\n\r\n", 400),
        ("5\r\r\nhello\r\n0\r\n\r\n", 400),
        ("5;a\nb\r\nhello\r\n0\r\n\r\n", 400),
    ]);
}

#[test]
fn a_megabyte_of_chunk_extension_is_refused() {
    poured_is_refused(&format!("{HEAD}5;{}", "x".repeat(1 << 20)), 400);
}

#[test]
fn a_megabyte_of_chunk_size_is_refused() {
    poured_is_refused(&format!("{HEAD}{}", "0".repeat(1 << 20)), 400);
}

#[test]
fn a_megabyte_of_trailer_is_refused() {
    poured_is_refused(&format!("{HEAD}5\r\nhello\r\n0\r\na: {}", "x".repeat(1 << 20)), 400);
    poured_is_refused(&format!("{HEAD}5\r\nhello\r\n0\r\n{}", "a:b\r\n".repeat(1 << 18)), 400);
}

/// Chunks of one byte must add up like all others.
#[test]
fn chunks_beyond_max_body_are_refused_one_by_one() {
    let chunks = format!("{HEAD}{}", "1\r\nx\r\n".repeat(100_000));
    let deferd = Deferd::start(&["--max-body", "64K"]);
    unharmed(&deferd, || {
        let mut client = deferd.client();
        pour(&client, chunks.as_bytes());
        pour(&client, format!("0\r\n\r\n{}", super::smuggling::SMUGGLED).as_bytes());
        expect_refused(&mut client, chunks.as_bytes(), 413);
        drop(client);
        nothing_smuggled(&deferd);
    });
}

#[track_caller]
fn poured_is_refused(bytes: &str, status: u16) {
    let deferd = Deferd::start(&[]);
    unharmed(&deferd, || {
        let mut client = deferd.client();
        pour(&client, bytes.as_bytes());
        pour(&client, format!("\r\n\r\n{}", super::smuggling::SMUGGLED).as_bytes());
        expect_refused(&mut client, bytes.as_bytes(), status);
        drop(client);
        nothing_smuggled(&deferd);
    });
}

#[test]
fn a_malformed_trailer_is_refused() {
    let many = format!("5\r\nhello\r\n0\r\n{}\r\n", "a: b\r\n".repeat(101));
    chunks_are_refused(&[
        ("5\r\nhello\r\n0\r\na : b\r\n\r\n", 400),
        ("5\r\nhello\r\n0\r\na: b\r\n c: d\r\n\r\n", 400),
        ("5\r\nhello\r\n0\r\n a: b\r\n\r\n", 400),
        ("5\r\nhello\r\n0\r\na\r\n\r\n", 400),
        ("5\r\nhello\r\n0\r\n: b\r\n\r\n", 400),
        ("5\r\nhello\r\n0\r\na: \0\r\n\r\n", 400),
        ("5\r\nhello\r\n0\r\na: b\rc\r\n\r\n", 400),
        ("5\r\nhello\r\n0\r\na: b\n\r\n", 400),
        ("5\r\nhello\r\n0\r\nGET /_api/version HTTP/1.1\r\n\r\n", 400),
        (&many, 400),
    ]);
}

#[test]
fn a_trailer_is_dropped_and_the_next_request_is_read() {
    let deferd = Deferd::start(&[]);
    unharmed(&deferd, || {
        let mut client = deferd.client();
        let trailer = "x-arango-async: store\r\ncontent-length: 70\r\nhost: b\r\n";
        client.send(format!("{HEAD}5;a=\"b\"\r\nhello\r\n0\r\n{trailer}\r\n").as_bytes());
        let echo = client.try_read("POST").unwrap().expect(200).json();
        assert_eq!(echo["body"], "hello");
        assert_eq!(echo["headers"]["host"], "a");
        assert!(echo["headers"].get("x-arango-async").is_none(), "{echo}");
        client.get("/_api/version").expect(200);
    });
}
