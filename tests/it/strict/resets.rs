//! Clients that reset the connection, in every phase.

use std::io::Read;
use std::net::TcpStream;

use super::unharmed;
use super::unharmed::{connections, no_connection};
use crate::support::{Client, Deferd, eventually};

/// Returns a connection whose end is a reset: it has an unread answer (RFC 1122 section 4.2.2.13).
fn about_to_reset(deferd: &Deferd) -> Client {
    let mut client = deferd.client();
    client.send_request("GET", "/_api/version", &[], b"");
    client.wait_for_answer();
    client
}

/// Resets connections after they have sent these bytes.
#[track_caller]
fn reset_behind(bytes: &str) {
    let deferd = Deferd::with_scripts("", &[]);
    unharmed(&deferd, || {
        for _ in 0..20 {
            let mut client = about_to_reset(&deferd);
            client.send(bytes.as_bytes());
        }
        no_connection(&deferd);
        let mut client = deferd.client();
        assert_eq!(client.jobs(), [""; 0]);
    });
}

#[test]
fn a_reset_before_the_first_byte_is_survived() {
    let deferd = Deferd::start(&[]);
    unharmed(&deferd, || {
        for _ in 0..300 {
            drop(TcpStream::connect(deferd.address).unwrap());
        }
    });
}

#[test]
fn a_reset_between_requests_is_survived() {
    reset_behind("");
}

#[test]
fn a_reset_inside_a_head_is_survived() {
    reset_behind("GET /_api/ver");
    reset_behind("GET /_api/version HTTP/1.1\r\nhost: a\r\nx-arango-async: store\r\n");
}

#[test]
fn a_reset_inside_content_submits_nothing() {
    let head = "POST /run/h-mark?/dev/null HTTP/1.1\r\nhost: a\r\nx-arango-async: store\r\n";
    reset_behind(&format!("{head}content-length: 10\r\n\r\n"));
    reset_behind(&format!("{head}content-length: 10\r\n\r\nhalf "));
    reset_behind(&format!("{head}content-length: 1000000\r\n\r\n{}", "x".repeat(100_000)));
    reset_behind(&format!("{head}transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n"));
    reset_behind(&format!("{head}content-length: 10\r\nexpect: 100-continue\r\n\r\n"));
}

#[test]
fn a_reset_after_a_refusal_is_survived() {
    reset_behind("GET /_api/version HTTP/2.0\r\n\r\n");
    reset_behind("POST /nothing HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\nxxx");
}

#[test]
fn a_reset_while_the_request_runs_is_survived() {
    let deferd = Deferd::start(&[]);
    unharmed(&deferd, || {
        for _ in 0..20 {
            let mut client = about_to_reset(&deferd);
            client.send_request("GET", "/_admin/sleep?duration=0.2", &[], b"");
        }
    });
}

#[test]
fn a_reset_while_the_answer_is_written_is_survived() {
    let deferd = Deferd::with_scripts("", &[]);
    unharmed(&deferd, || {
        for _ in 0..3 {
            let mut client = deferd.client();
            client.send_request("GET", "/run/h-big", &[], b"");
            client.wait_for_answer();
            drop(client);
        }
    });
}

/// The answer to a collection is the only copy: it must outlive the broken connection.
#[test]
fn a_reset_while_a_result_is_collected_leaves_the_result() {
    let deferd = Deferd::with_scripts("", &[]);
    unharmed(&deferd, || {
        let mut honest = deferd.client();
        let id = honest.store("GET", "/run/h-big", b"");
        honest.wait_done(&id);
        for _ in 0..3 {
            let mut client = deferd.client();
            client.send_request("PUT", &format!("/_api/job/{id}"), &[], b"");
            client.socket().read_exact(&mut [0; 100]).unwrap();
            drop(client);
            eventually("the broken connection is gone", || connections(&deferd) == 1);
        }
        let result = honest.put(&format!("/_api/job/{id}")).expect(200);
        assert_eq!(result.body.len(), 16 << 20);
        honest.put(&format!("/_api/job/{id}")).expect_error(404, 404);
    });
}

/// deferd does not wait for a client that cannot take its answer.
#[test]
fn a_client_that_leaves_at_once_costs_nothing() {
    let deferd = Deferd::start(&[]);
    unharmed(&deferd, || {
        for _ in 0..200 {
            let mut client = deferd.client();
            client.send_request("GET", "/_admin/echo", &[], b"");
        }
    });
}
