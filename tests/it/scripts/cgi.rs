//! What a CGI script may answer (RFC 3875 section 6), and what the client receives.
//!
//! In most tests, `s-cat` answers: the request's content is the script's output.

use crate::support::{Ability, Client, Deferd, Reply, eventually, fixtures, lacks};

/// Returns the answer to a script's output, and the result of the same request as a job.
#[track_caller]
fn both(client: &mut Client, output: &str) -> [Reply; 2] {
    let now = client.request("POST", "/cgi/s-cat", &[], output.as_bytes());
    let id = client.store("POST", "/cgi/s-cat", output.as_bytes());
    [now, client.result(&id)]
}

/// Returns what the script determines in an answer: everything except the fields that deferd adds.
fn of_the_script(reply: &Reply) -> (u16, Vec<(String, String)>, String) {
    const ADDED: [&str; 7] = [
        "date",
        "content-length",
        "transfer-encoding",
        "x-arango-async-id",
        "x-arango-async-job-id",
        "x-content-type-options",
        "cross-origin-resource-policy",
    ];
    let mut fields = reply.headers.clone();
    fields.retain(|(name, _)| !ADDED.contains(&name.as_str()));
    (reply.status, fields, reply.text())
}

/// Asserts that an answer or a job's result is one of deferd's own errors.
#[track_caller]
fn assert_error(reply: &Reply, status: u16, what: &str) {
    let mut bare = reply.clone();
    bare.headers.retain(|(name, _)| !name.starts_with("x-arango-async"));
    assert_eq!(reply.status, status, "{what}: {reply:?}");
    bare.expect_error(status, status);
}

#[test]
fn a_document_reaches_the_client_with_its_status_and_fields() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    for (output, status, fields, content) in [
        (
            "Content-Type: text/plain\n\nhello\n",
            200,
            &[("content-type", "text/plain")][..],
            "hello\n",
        ),
        ("CONTENT-TYPE:a/b\r\n\r\n\r\nhello", 200, &[("content-type", "a/b")], "\r\nhello"),
        // Line ends may be mixed, as the libraries of a script produce them.
        (
            "Content-Type: a/b\r\nX-One: 1\n\nhello",
            200,
            &[("content-type", "a/b"), ("x-one", "1")],
            "hello",
        ),
        ("Content-Type: a/b\n\n\nhello\n\n", 200, &[("content-type", "a/b")], "\nhello\n\n"),
        ("Content-Type: a/b\n\n", 200, &[("content-type", "a/b")], ""),
        ("Status: 404 Not here\nContent-Type: a/b\n\nno", 404, &[("content-type", "a/b")], "no"),
        ("Content-Type: a/b\nStatus: 299\n\nodd", 299, &[("content-type", "a/b")], "odd"),
        ("Status: 500 My fault\r\nContent-Type: a/b\r\n\r\n", 500, &[("content-type", "a/b")], ""),
        ("Status: 204 No Content\n\n", 204, &[], ""),
        // As busybox httpd and lighttpd accept it.
        ("HTTP/1.0 200 OK\nContent-Type: a/b\n\nhello", 200, &[("content-type", "a/b")], "hello"),
        ("HTTP/1.1 404 Not here\r\n\r\nno", 404, &[], "no"),
        ("HTTP/1.1 200 OK\nX-One: 1\n\nhello", 200, &[("x-one", "1")], "hello"),
        ("\nhello", 200, &[], "hello"),
        ("\r\n<html>hello</html>\n", 200, &[], "<html>hello</html>\n"),
        ("\n\nhello", 200, &[], "\nhello"),
        ("\n", 200, &[], ""),
        ("Content-Type: a/b", 200, &[("content-type", "a/b")], ""),
        ("Content-Type: a/b\n", 200, &[("content-type", "a/b")], ""),
        ("Status: 403\r\nX-One: 1\r\n", 403, &[("x-one", "1")], ""),
        ("Content-Type: a/b\nContent-Type: c/d\n\nx", 200, &[("content-type", "c/d")], "x"),
        ("Content-Type: a/b\nContent-Length: 5\n\nhello", 200, &[("content-type", "a/b")], "hello"),
        // Content beyond the announced length is dropped.
        ("Content-Type: a/b\nContent-Length: 2\n\nhello", 200, &[("content-type", "a/b")], "he"),
    ] {
        let fields = fields.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
        let expected = (status, fields.collect(), content.to_owned());
        for reply in both(&mut client, output) {
            assert_eq!(of_the_script(&reply), expected, "{output:?}");
        }
    }
}

#[test]
fn a_client_redirect_reaches_the_client() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    for (output, status, content) in [
        ("Location: http://example.org/x?y#z\n\n", 302, ""),
        (
            "Status: 302 Found\nLocation: http://example.org/x?y#z\nContent-Type: a/b\n\nsee there",
            302,
            "see there",
        ),
        (
            "Location: http://example.org/x?y#z\r\nStatus: 303\r\nContent-Type: a/b\r\n\r\nsee",
            303,
            "see",
        ),
    ] {
        for reply in both(&mut client, output) {
            assert_eq!((reply.status, &*reply.text()), (status, content), "{output:?}");
            assert_eq!(reply.header("location"), Some("http://example.org/x?y#z"), "{output:?}");
        }
    }
}

#[test]
fn a_local_redirect_runs_get_of_its_target() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    for reply in both(&mut client, "Location: /cgi/s-environ/a%20b?q=%20\r\n\r\n") {
        let (status, fields, content) = of_the_script(&reply);
        assert_eq!(status, 200);
        assert_eq!(fields, [("content-type".to_owned(), "application/octet-stream".to_owned())]);
        let variables: Vec<&str> = content.split_terminator('\0').collect();
        for variable in [
            "REQUEST_METHOD=GET",
            "SCRIPT_NAME=/cgi/s-environ",
            "PATH_INFO=/a b",
            "QUERY_STRING=q=%20",
        ] {
            assert!(variables.contains(&variable), "{variable}: {content:?}");
        }
        // The content belonged to the first script.
        assert!(!content.contains("CONTENT_"), "{content:?}");
    }
    for reply in both(&mut client, "Location: /cgi/s-echo\n\n") {
        assert_eq!(reply.header("x-content-length"), Some("unset"));
        assert_eq!(reply.expect(200).text(), "");
    }
}

#[test]
fn a_local_redirect_may_lead_to_any_route() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    for reply in both(&mut client, "Location: /run/s-exit?7\n\n") {
        assert_eq!(reply.header("x-exit-code"), Some("7"));
        assert_eq!(reply.expect(500).text(), "so far");
    }
    for reply in both(&mut client, "Location: /_api/version\n\n") {
        assert_eq!(reply.expect(200).text(), r#"{"server":"arango","version":"1.4.3"}"#);
    }
}

#[test]
fn a_local_redirect_to_an_unknown_target_is_404() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    for target in ["/cgi/s-missing", "/nowhere", "/cgi/../s-cat", "/cgi/%2e%2e/s-cat"] {
        for reply in both(&mut client, &format!("Location: {target}\n\n")) {
            assert_error(&reply, 404, target);
        }
    }
}

#[test]
fn a_loop_of_local_redirects_ends_in_an_error() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    assert_error(&client.get("/cgi/s-again"), 502, "now");
    let id = client.store("GET", "/cgi/s-again", b"");
    assert_error(&client.result(&id), 502, "a job");
}

#[test]
fn output_without_a_valid_header_block_is_a_bad_gateway() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    for output in [
        "",
        "hello",
        "hello\n\n",
        "<html>hello</html>\n",
        "Content-Type: a/b\nhello",
        "Content-Type: a/b\nContent-Length: 1\nContent-Length: 1\n\nx",
        "Content-Type: a/b\nContent-Length: x\n\nx",
        "Content-Type: a/b\nContent-Length: -1\n\nx",
        "HTTP/1.1 101 Switching Protocols\n\n",
        "Content Type: a/b\n\n",
        ": a/b\n\n",
        "Content-Type: a/b\n folded\n\n",
        "Content-Type: a/b\nX-Nul: \0\n\n",
        "X-Only: other fields\n\nhello",
        "Status: abc\nContent-Type: a/b\n\n",
        "Status: 99\nContent-Type: a/b\n\n",
        "Status: 1000\nContent-Type: a/b\n\n",
        // Not a final answer: a client would wait for another one after it.
        "Status: 100 Continue\nContent-Type: a/b\n\n",
        "Status: 101 Switching Protocols\nContent-Type: a/b\n\n",
    ] {
        let reply = client.request("POST", "/cgi/s-cat", &[], output.as_bytes());
        assert_error(&reply, 502, output);
    }
    let id = client.store("POST", "/cgi/s-cat", b"hello\n\n");
    assert_error(&client.result(&id), 502, "a job");
}

/// The owner of a job sees what the script wrote; a waiting client may be another user, and sees only where it is.
#[test]
fn the_offending_line_is_in_message_and_logs() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    for (n, (output, kind, line)) in [
        ("Content-Type: a/b\nTraceback: in x\noh no\n\n", "line 3 is not a field", "oh no"),
        ("bang\x07 \x1b[2Kbang", "line 1 is not a field", "bang? ?[2Kbang"),
        ("Content-Type: a/b\nContent-Length: 9\nContent-Length: 9\n\n", "line 3 is a second", "9"),
        (&"y".repeat(5000), "line 1 is not a field", &format!("\"{}\"", "y".repeat(100))),
    ]
    .into_iter()
    .enumerate()
    {
        let now = client.request("POST", "/cgi/s-cat", &[], output.as_bytes());
        let message = now.expect_error(502, 502).json()["errorMessage"].to_string();
        assert!(message.contains(kind) && !message.contains(line), "{message}");
        let id = client.store("POST", "/cgi/s-cat", output.as_bytes());
        client.wait_done(&id);
        let log = client.get(&format!("/_api/job/{id}/log")).expect(200).text();
        let result = client.result(&id).expect(502).json();
        let message = result["errorMessage"].as_str().unwrap();
        for text in [&log, message] {
            assert!(text.contains(kind) && text.contains(line), "{text}");
        }
        let told =
            |text: &&str| text.contains("WARN") && text.contains(kind) && text.contains(line);
        eventually(&format!("both of {n} are logged"), || {
            deferd.log().lines().filter(told).count() >= 2
        });
    }
}

/// deferd need not wait for a script that writes more than it announced.
#[test]
fn a_script_that_writes_beyond_the_announced_length_is_ended() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    for reply in [client.get("/cgi/s-beyond"), {
        let id = client.store("GET", "/cgi/s-beyond", b"");
        client.result(&id)
    }] {
        assert_eq!(reply.expect(200).text(), "hello");
    }
    assert!(deferd.children().is_empty());
    deferd.log_with("more than the 5 bytes that it announced");
}

#[test]
fn up_to_1000_fields_are_passed() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let output = |count: usize| format!("Status: 200\n{}\nx", "X-N: 1\n".repeat(count - 1));
    for reply in both(&mut client, &output(1000)) {
        let reply = reply.expect(200);
        assert_eq!(reply.headers.iter().filter(|(name, _)| name == "x-n").count(), 999);
    }
    for reply in both(&mut client, &output(1001)) {
        assert_error(&reply, 502, "1001 fields");
    }
}

/// A script that knows HEAD announces the length of its answer to GET.
#[test]
fn head_gets_the_length_that_the_script_announces() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let output = b"Content-Type: a/b\nContent-Length: 1234\n\n";
    let reply = client.request("HEAD", "/cgi/s-cat", &[], output).expect(200);
    assert_eq!(reply.header("content-length"), Some("1234"));
    client.get("/_api/version").expect(200);
}

/// Its output may have been cut anywhere. A job's result says so; of an answer, a part has already been sent.
#[test]
fn a_script_that_fails_midway_breaks_its_answer() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let short = "Content-Type: text/plain\nContent-Length: 100\n\nso far";
    for (target, content) in [("/cgi/s-signal?KILL", ""), ("/cgi/s-cat", short)] {
        let id = client.store("POST", target, content.as_bytes());
        assert_error(&client.result(&id), 502, target);
        if lacks(Ability::Flow) {
            assert_error(&client.request("POST", target, &[], content.as_bytes()), 502, target);
            continue;
        }
        let mut client = deferd.client();
        client.send_request("POST", target, &[], content.as_bytes());
        let reply = client.read_broken().expect(200);
        assert!(reply.text().contains("so far"), "{reply:?}");
    }
}

#[test]
fn hop_by_hop_fields_and_lengths_are_not_passed() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let output = "Content-Type: a/b\nConnection: close, X-Hop\nX-Hop: 1\nKeep-Alive: timeout=5\n\
                  Transfer-Encoding: chunked\nContent-Length: 5\nTE: trailers\nTrailer: x\n\
                  Upgrade: websocket\nProxy-Connection: close\nX-Kept: 1\n\nhello";
    for reply in both(&mut client, output) {
        assert_eq!(reply.header("content-length"), Some("5"));
        let kept = [("content-type", "a/b"), ("x-kept", "1")];
        let kept = kept.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(of_the_script(&reply), (200, kept.to_vec(), "hello".to_owned()));
    }
    // The connection is still usable: the next answer is in order.
    client.get("/_api/version").expect(200);
}

/// Only a job's own result has the field: a script must not pass off its answer as one.
#[test]
fn a_script_cannot_set_the_id_of_a_job() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let output = b"Content-Type: a/b\nX-Arango-Async-Id: 7\nX-Arango-Async-Job-Id: 7\n\nhello";
    let reply = client.request("POST", "/cgi/s-cat", &[], output).expect(200);
    assert_eq!((reply.id(), reply.header("x-arango-async-job-id")), (None, None));
    let id = client.store("POST", "/cgi/s-cat", output);
    // `result` asserts that there is exactly one, that of the job.
    let reply = client.result(&id);
    assert_eq!(reply.header("x-arango-async-job-id"), Some(&*id));
}

#[test]
fn repeated_fields_are_kept_apart_and_in_order() {
    let deferd = Deferd::with_scripts("", &[]);
    let output =
        "Set-Cookie: a=1; Path=/\nContent-Type: a/b\nSet-Cookie: b=2, c\nLink: <x>\nLink: <y>\n\n";
    for reply in both(&mut deferd.client(), output) {
        let of = |wanted: &str| {
            let fields = reply.headers.iter().filter(|(name, _)| name == wanted);
            fields.map(|(_, value)| value.clone()).collect::<Vec<_>>()
        };
        assert_eq!(of("set-cookie"), ["a=1; Path=/", "b=2, c"]);
        assert_eq!(of("link"), ["<x>", "<y>"]);
    }
}

#[test]
fn a_head_request_runs_the_script_and_gets_no_content() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let reply = client.request("HEAD", "/cgi/s-echo", &[], b"").expect(200);
    assert_eq!(reply.header("x-method"), Some("HEAD"));
    let id = client.store("HEAD", "/cgi/s-where", b"");
    let reply = client.result(&id).expect(200);
    assert_eq!(reply.header("content-type"), Some("text/plain"));
    assert_eq!(reply.text(), "");
    // If content were sent, it would be read as the next answer.
    client.get("/_api/version").expect(200);
}

/// If the answers are the same, the operator is free to choose.
#[test]
fn a_script_answers_the_same_now_and_as_a_job() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    for (target, content) in [
        ("/cgi/s-where/some/path?q", &b""[..]),
        ("/cgi/s-echo", b"\xff\x00\r\n"),
        ("/run/s-done", b""),
        ("/run/s-cat", b"\xff\x00\r\n"),
        ("/run/s-cat", b"text"),
        ("/run/s-exit?9", b""),
        ("/run/s-signal?TERM", b""),
    ] {
        let now = client.request("POST", target, &[], content);
        let id = client.store("POST", target, content);
        let later = client.result(&id);
        assert_eq!(of_the_script(&now), of_the_script(&later), "{target}");
        assert_eq!(now.body, later.body, "{target}");
    }
}

#[test]
fn a_script_s_path_and_directory_are_its_own() {
    let deferd = Deferd::with_scripts("", &[]);
    let reply = deferd.client().get("/cgi/s-where/some/path").expect(200);
    let directory = fixtures().canonicalize().unwrap();
    assert_eq!(reply.text(), format!("/cgi/s-where\n/some/path\n{}\n", directory.display()));
}

/// The answer is framed for the method that the client has sent.
#[test]
fn an_override_to_head_frames_a_posts_answer() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let head = [("x-http-method-override", "HEAD")];
    for output in ["Content-Type: a/b\nContent-Length: 5\n\nhello", "Content-Type: a/b\n\nhello"] {
        for _ in 0..2 {
            let reply = client.request("POST", "/cgi/s-cat", &head, output.as_bytes()).expect(200);
            assert_eq!(reply.text(), "");
            client.get("/_api/version").expect(200);
        }
    }
}
