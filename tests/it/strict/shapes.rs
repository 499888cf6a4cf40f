//! Heads and targets that are too large, in length and in number.

use super::smuggling::{SMUGGLED, expect_refused, nothing_smuggled};
use super::unharmed;
use super::unharmed::{memory, pour};
use crate::support::{Client, Deferd};

/// Room for the pages that any work takes, in KiB: far below what the client sends.
const NOTHING: usize = 4 * 1024;

/// Sends a start and then a piece repeatedly; asserts a refusal long before the end.
#[track_caller]
fn flood_is_refused(start: &str, piece: &str, total: usize, status: u16) {
    let deferd = Deferd::start(&[]);
    unharmed(&deferd, || {
        let before = memory(&deferd);
        let mut client = deferd.client();
        pour(&client, start.as_bytes());
        let block = piece.repeat((1 << 20) / piece.len());
        let mut sent = 0;
        while sent < total {
            let n = pour(&client, block.as_bytes());
            sent += n;
            let now = memory(&deferd);
            assert!(now < before + NOTHING, "{now} KiB resident after {sent} bytes");
            if n < block.len() {
                break;
            }
        }
        pour(&client, format!("\r\n\r\n{SMUGGLED}").as_bytes());
        expect_refused(&mut client, start.as_bytes(), status);
        drop(client);
        nothing_smuggled(&deferd);
    });
}

#[test]
fn a_target_of_a_megabyte_is_refused() {
    flood_is_refused("GET /", "x", 1 << 20, 414);
}

#[test]
fn a_method_of_a_megabyte_is_refused() {
    flood_is_refused("G", "E", 1 << 20, 414);
}

/// A row of section 10.
#[test]
fn a_line_of_200_megabytes_is_refused_and_not_kept() {
    flood_is_refused("GET / HTTP/1.1\r\nhost: a\r\nx: ", "x", 200 << 20, 431);
}

/// A row of section 10: ten million fields in 60 MB.
#[test]
fn a_head_of_ten_million_fields_is_refused() {
    flood_is_refused("GET / HTTP/1.1\r\nhost: a\r\n", "ab:c\r\n", 60 << 20, 431);
}

/// Sends a head of exactly this many bytes, followed by `behind`.
fn send_head(client: &mut Client, size: usize, behind: &str) {
    let start = "GET /_api/version HTTP/1.1\r\nhost: a\r\nx: ";
    let filling = "x".repeat(size - start.len() - 4);
    client.send(format!("{start}{filling}\r\n\r\n{behind}").as_bytes());
}

#[test]
fn a_head_of_exactly_max_head_is_read() {
    for (option, limit) in [("16K", 16 * 1024), ("1K", 1024)] {
        let deferd = Deferd::start(&["--max-head", option]);
        unharmed(&deferd, || {
            let mut client = deferd.client();
            for _ in 0..3 {
                send_head(&mut client, limit, "");
                client.try_read("GET").expect("an answer").expect(200);
            }
            send_head(&mut client, limit + 1, SMUGGLED);
            expect_refused(&mut client, b"one more", 431);
            drop(client);
            nothing_smuggled(&deferd);
        });
    }
}

#[test]
fn a_hundred_fields_are_read_and_one_more_is_refused() {
    let deferd = Deferd::start(&[]);
    let head = |more: usize| {
        format!("GET /_api/version HTTP/1.1\r\nhost: a\r\n{}\r\n", "x:\r\n".repeat(more))
    };
    unharmed(&deferd, || {
        let mut client = deferd.client();
        client.send(head(99).as_bytes());
        client.try_read("GET").expect("an answer").expect(200);
        client.send(format!("{}{SMUGGLED}", head(100)).as_bytes());
        expect_refused(&mut client, b"101 fields", 431);
        drop(client);
        nothing_smuggled(&deferd);
    });
}
