//! `expect: 100-continue`: every check that needs no content comes before it.

use super::smuggling::{SMUGGLED, fields_are_refused, nothing_smuggled};
use super::unharmed;
use super::unharmed::pour;
use crate::support::{Client, Deferd, eventually};

/// Sends a head that announces content and waits for a `100`; returns the status of the first answer.
fn ask(client: &mut Client, target: &str, fields: &str) -> u16 {
    let head = format!("POST {target} HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\n{fields}\r\n");
    client.send(head.as_bytes());
    client.try_read("POST").expect("an answer").status
}

#[test]
fn unwanted_content_is_refused_before_it_is_sent() {
    let deferd = Deferd::with_scripts("", &["--max-body", "1K"]);
    unharmed(&deferd, || {
        for (target, fields, status) in [
            ("/nothing/here", "content-length: 10\r\n", 404),
            ("/nothing/here", "transfer-encoding: chunked\r\n", 404),
            ("/run/no-such-script", "content-length: 10\r\n", 404),
            ("/_db/other/_api/version", "content-length: 10\r\n", 404),
            ("/_admin/echo", "content-length: 1025\r\n", 413),
            ("/_admin/echo", "content-length: abc\r\n", 400),
            ("/_admin/echo", "content-length: 5\r\ncontent-length: 5\r\n", 400),
            ("/_admin/echo", "content-length: 5\r\ntransfer-encoding: chunked\r\n", 400),
            ("/_admin/echo", "content-length: 5\r\norigin: http://elsewhere.example\r\n", 403),
        ] {
            for mode in ["", "x-arango-async: store\r\n"] {
                let mut client = deferd.client();
                let first = ask(&mut client, target, &format!("{mode}{fields}"));
                assert_eq!(first, status, "{target} {fields:?}");
                // What the client sends nevertheless is not a request.
                pour(&client, SMUGGLED.as_bytes());
                assert!(client.is_closed(), "{target} {fields:?}");
            }
        }
        nothing_smuggled(&deferd);
        let mut client = deferd.client();
        assert_eq!(ask(&mut client, "/_db/other/_api/version", "content-length: 5\r\n"), 404);
    });
}

#[test]
fn a_full_queue_refuses_before_the_content_is_sent() {
    let deferd = Deferd::start(&["--workers", "1", "--queue", "1"]);
    unharmed(&deferd, || {
        let mut holder = deferd.client();
        // The second finds room only when the first runs.
        eventually("one runs and one waits", || {
            let fields = [("x-arango-async", "store")];
            holder.request("GET", "/_admin/sleep?duration=60", &fields, b"");
            holder.list("pending").len() == 2
        });
        let mut client = deferd.client();
        let fields = "x-arango-async: store\r\ncontent-length: 5\r\n";
        assert_eq!(ask(&mut client, "/_admin/echo", fields), 503);
        pour(&client, SMUGGLED.as_bytes());
        assert!(client.is_closed());
        let jobs = holder.list("pending");
        assert_eq!((jobs.len(), holder.jobs()), (2, jobs.clone()));
        for id in jobs {
            holder.put(&format!("/_api/job/{id}/cancel")).expect(200);
            holder.wait_done(&id);
        }
    });
}

#[test]
fn content_that_is_wanted_is_asked_for_once() {
    let deferd = Deferd::start(&[]);
    unharmed(&deferd, || {
        let mut client = deferd.client();
        for (fields, content) in [
            ("content-length: 5\r\n", "hello"),
            ("transfer-encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        ] {
            assert_eq!(ask(&mut client, "/_admin/echo", fields), 100);
            client.send(content.as_bytes());
            let echo = client.try_read("POST").unwrap().expect(200).json();
            assert_eq!(echo["body"], "hello");
        }
        assert_eq!(ask(&mut client, "/_admin/echo", "content-length: 0\r\n"), 200);
    });
}

/// A client need not send what it was asked for: the deadline of the content holds.
#[test]
fn a_client_that_asks_and_sends_nothing_is_cut() {
    let deferd = Deferd::start(&["--body-timeout", "200ms"]);
    unharmed(&deferd, || {
        let mut client = deferd.client();
        assert_eq!(ask(&mut client, "/_admin/echo", "content-length: 5\r\n"), 100);
        client.try_read("POST").expect("an answer").expect_error(408, 408);
        assert!(client.is_closed());
    });
}

#[test]
fn an_expectation_that_is_not_known_is_refused() {
    fields_are_refused(&[
        (b"expect: the unexpected\r\ncontent-length: 5\r\n", 417),
        (b"expect: 100-continue, 101\r\ncontent-length: 5\r\n", 417),
    ]);
}
