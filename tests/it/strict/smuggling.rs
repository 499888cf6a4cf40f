//! The proof that what follows a refused request is never read as a request.

use super::unharmed;
use super::unharmed::no_connection;
use crate::support::{Client, Deferd};

/// Leaves a job behind if it is ever read.
pub const SMUGGLED: &str = "GET /_api/version HTTP/1.1\r\nhost: a\r\nx-arango-async: store\r\n\r\n";

/// What may be between a head of doubtful framing and the smuggled request: what some reader takes for the content.
const DECOYS: [&str; 4] = ["", "hello", "0\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n"];

/// Sends the bytes, followed by the smuggled request; asserts that they are refused with this status, and that nothing
/// more is answered.
#[track_caller]
pub fn refused(deferd: &Deferd, bytes: &[u8], status: u16) {
    let mut client = deferd.client();
    client.send(&[bytes, SMUGGLED.as_bytes()].concat());
    expect_refused(&mut client, bytes, status);
}

/// Reads the refusal, and the end of the connection after it.
#[track_caller]
pub fn expect_refused(client: &mut Client, bytes: &[u8], status: u16) {
    let what = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]);
    let reply = client.try_read("POST").unwrap_or_else(|| panic!("no answer to {what:?}"));
    assert_eq!(reply.status, status, "{what:?}: {}", reply.text());
    assert_eq!(reply.header("connection"), Some("close"), "{what:?}");
    let reply = reply.expect_error(status, status);
    assert!(client.is_closed(), "{what:?}: an answer behind {reply:?}");
}

/// Asserts that no smuggled request was read, and that it would have left a trace.
#[track_caller]
pub fn nothing_smuggled(deferd: &Deferd) {
    // After their threads have ended, no connection can submit anything.
    no_connection(deferd);
    let mut client = deferd.client();
    let jobs = client.jobs();
    assert!(jobs.is_empty(), "{jobs:?}");
    client.send(SMUGGLED.as_bytes());
    let id = client.try_read("GET").unwrap().expect(202).id().unwrap().to_owned();
    client.result(&id).expect(200);
}

/// Asserts that heads with these lines after `host` are refused with these statuses, whatever content follows.
#[track_caller]
pub fn fields_are_refused(table: &[(&[u8], u16)]) {
    let deferd = Deferd::start(&[]);
    unharmed(&deferd, || {
        for (fields, status) in table {
            for decoy in DECOYS {
                let head =
                    [b"POST /_admin/echo HTTP/1.1\r\nhost: a\r\n", *fields, b"\r\n"].concat();
                refused(&deferd, &[&head, decoy.as_bytes()].concat(), *status);
            }
        }
        nothing_smuggled(&deferd);
    });
}

/// Asserts that requests, or beginnings of them, are refused with these statuses.
#[track_caller]
pub fn requests_are_refused(table: &[(&[u8], u16)]) {
    let deferd = Deferd::start(&[]);
    unharmed(&deferd, || {
        for (bytes, status) in table {
            refused(&deferd, bytes, *status);
        }
        nothing_smuggled(&deferd);
    });
}
