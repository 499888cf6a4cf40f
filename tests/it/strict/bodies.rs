//! Content that is cut short: its request never runs, neither at once nor as a job.

use std::io::Write;
use std::net::Shutdown;

use super::unharmed;
use super::unharmed::no_connection;
use crate::support::Deferd;

/// Closes the connection on this side after these bytes; asserts that there is no answer, and that the script has not
/// run.
#[track_caller]
fn is_not_run(cases: &[(&str, &str)]) {
    let deferd = Deferd::with_scripts("", &[]);
    let mark = deferd.dir.join("mark");
    let target = format!("/run/h-mark?{}", mark.display());
    unharmed(&deferd, || {
        for mode in ["", "x-arango-async: store\r\n", "x-arango-async: true\r\n"] {
            for (fields, content) in cases {
                let head = format!("POST {target} HTTP/1.1\r\nhost: a\r\n{mode}{fields}\r\n");
                let mut client = deferd.client();
                client.send(format!("{head}{content}").as_bytes());
                client.socket().shutdown(Shutdown::Write).unwrap();
                assert_eq!(client.try_read("POST"), None, "{mode:?} {fields:?} {content:?}");
            }
        }
        // Without their threads, nothing is left that could still run or submit anything.
        no_connection(&deferd);
        let mut client = deferd.client();
        assert_eq!(client.jobs(), [""; 0]);
        let version = client.store("GET", "/_api/version", b"");
        // Workers run jobs in order: any earlier submission has begun by now.
        client.result(&version).expect(200);
        assert!(!mark.exists(), "the script has run");
        client.request("POST", &target, &[], b"whole").expect(200);
        assert!(mark.exists(), "the script leaves a mark when it runs");
    });
}

/// A row of section 10.
#[test]
fn half_a_content_by_length_is_not_run() {
    is_not_run(&[
        ("content-length: 10\r\n", "half "),
        ("content-length: 10\r\n", "almost al"),
        ("content-length: 10\r\n", ""),
        ("content-length: 100000\r\n", "half "),
    ]);
}

#[test]
fn chunks_without_the_last_are_not_run() {
    is_not_run(&[
        ("transfer-encoding: chunked\r\n", ""),
        ("transfer-encoding: chunked\r\n", "5"),
        ("transfer-encoding: chunked\r\n", "5\r\n"),
        ("transfer-encoding: chunked\r\n", "5\r\nhel"),
        ("transfer-encoding: chunked\r\n", "5\r\nhello"),
        ("transfer-encoding: chunked\r\n", "5\r\nhello\r\n"),
        ("transfer-encoding: chunked\r\n", "5\r\nhello\r\n0"),
        ("transfer-encoding: chunked\r\n", "5\r\nhello\r\n0\r\n"),
        ("transfer-encoding: chunked\r\n", "5\r\nhello\r\n0\r\nx: y\r\n"),
    ]);
}

/// The same if time runs out: the client gets a `408`, and later bytes are not read.
#[test]
fn content_that_comes_too_late_is_not_run() {
    let deferd = Deferd::with_scripts("", &["--body-timeout", "200ms"]);
    let mark = deferd.dir.join("mark");
    let target = format!("/run/h-mark?{}", mark.display());
    unharmed(&deferd, || {
        let fields = "x-arango-async: store\r\ncontent-length: 10";
        for request in [
            format!("POST {target} HTTP/1.1\r\nhost: a\r\n{fields}\r\n\r\nhalf "),
            format!("POST {target} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\n"),
        ] {
            let mut client = deferd.client();
            client.send(request.as_bytes());
            let reply = client.try_read("POST").expect("an answer").expect_error(408, 408);
            assert_eq!(reply.header("connection"), Some("close"));
            assert!(reply.text().contains("--body-timeout 200ms"), "{}", reply.text());
            // It may already be closed; that is intended.
            let _ = client.socket().write_all(b"rest!\r\n0\r\n\r\n");
            assert!(client.is_closed());
        }
        no_connection(&deferd);
        let mut client = deferd.client();
        assert_eq!(client.jobs(), [""; 0]);
        assert!(!mark.exists(), "the script has run");
    });
}

/// A MiB of content earns 1024 s, but not of silence.
#[test]
fn silence_after_much_content_is_cut() {
    let deferd = Deferd::start(&["--body-timeout", "500ms"]);
    let much = "x".repeat(1 << 20);
    unharmed(&deferd, || {
        for request in [
            format!("content-length: 10000000\r\n\r\n{much}"),
            format!("transfer-encoding: chunked\r\n\r\n100001\r\n{much}"),
            format!("transfer-encoding: chunked\r\n\r\n100000\r\n{much}\r\n"),
            format!("transfer-encoding: chunked\r\n\r\n100000\r\n{much}\r\n0\r\na: "),
        ] {
            let mut client = deferd.client();
            client.send(format!("POST /_admin/echo HTTP/1.1\r\nhost: a\r\n{request}").as_bytes());
            client.try_read("POST").expect("an answer").expect_error(408, 408);
            assert!(client.is_closed());
        }
    });
}
