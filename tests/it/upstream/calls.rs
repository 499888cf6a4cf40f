//! Upstreams: what they receive, what part of their answers reaches the client, and how a call ends.

use std::fs::Permissions;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;

use super::{Fails, failure};
use crate::support::upstream::{Then, Upstream};
use crate::support::{
    Ability, Client, Deferd, Reply, TempDir, accept, eventually, in_both_stores, lacks, run_deferd,
};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn keep() -> Then {
    Then::Keep
}

fn close() -> Then {
    Then::Close
}

fn hang() -> Then {
    Then::Hang
}

/// Starts a deferd in front of this upstream, with options of the route.
fn deferd(upstream: &Upstream, options: &str) -> Deferd {
    Deferd::start(&["--route", &upstream.route(options)])
}

/// Sends a request twice, the second time deferred, and asserts that both answers are alike.
#[track_caller]
fn both(client: &mut Client, method: &str, target: &str) -> Reply {
    let now = client.request(method, target, &[], b"").without_id();
    let id = client.store(method, target, b"");
    let mut later = client.result(&id);
    assert_eq!(later.length(), Some(later.body.len()), "{later:?}");
    later.headers.retain(|(name, _)| !name.starts_with("x-arango-async"));
    let mut of_now = now.clone();
    // If the upstream sends no date, it is deferd's, and the clock may have ticked. deferd also decides the framing of
    // the content.
    const OWN: [&str; 3] = ["date", "content-length", "transfer-encoding"];
    for reply in [&mut later, &mut of_now] {
        reply.headers.retain(|(name, _)| !OWN.contains(&name.as_str()));
        reply.headers.sort();
    }
    assert_eq!(later, of_now, "{method} {target}");
    now
}

#[test]
fn an_upstream_gets_the_request_without_hop_by_hop_fields() {
    let upstream = Upstream::answering(OK, keep);
    let deferd = deferd(&upstream, "");
    let mut client = deferd.client();
    let own = if lacks(Ability::Ascii) { "own" } else { "\u{e4}" };
    let fields = [
        ("x-arango-async", "store"),
        ("prefer", "respond-async, return=minimal"),
        ("prefer", "wait=1"),
        ("connection", "keep-alive, x-hop"),
        ("x-hop", "1"),
        ("keep-alive", "timeout=5"),
        ("te", "trailers"),
        ("upgrade", "h2c"),
        ("proxy-authorization", "Basic eDp5"),
        ("authorization", "Bearer secret-of-the-upstream"),
        ("accept-encoding", "br"),
        ("cookie", "a=1"),
        ("cookie", "b=2"),
        ("x-own", own),
        ("x-forwarded-for", "198.51.100.7"),
        ("via", "1.0 outer"),
    ];
    let reply = client.request("PATCH", "/up/a%20b/c?x=1&y=%2f", &fields, b"content").expect(202);
    client.result(reply.id().unwrap()).expect(200);
    let mut got = upstream.only();
    assert_eq!(got.line, "PATCH /a%20b/c?x=1&y=%2f HTTP/1.1");
    assert_eq!(got.body, b"content");
    got.fields.sort();
    let peer = upstream.address.to_string();
    let expected = [
        ("accept-encoding", "br"),
        ("authorization", "Bearer secret-of-the-upstream"),
        ("content-length", "7"),
        ("cookie", "a=1"),
        ("cookie", "b=2"),
        ("host", peer.as_str()),
        ("prefer", "return=minimal"),
        ("via", "1.0 outer"),
        ("via", "1.1 deferd"),
        ("x-forwarded-for", "198.51.100.7, 127.0.0.1"),
        ("x-forwarded-host", "localhost"),
        ("x-forwarded-proto", "http"),
        ("x-own", own),
    ];
    let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(got.fields, expected);
}

#[test]
fn content_and_its_length_are_forwarded_with_every_method() {
    let upstream = Upstream::answering(OK, keep);
    let deferd = deferd(&upstream, "");
    let mut client = deferd.client();
    for (method, body, length) in [
        ("GET", &b""[..], None),
        ("GET", b"query", Some("5")),
        ("DELETE", b"", None),
        ("DELETE", b"which", Some("5")),
        ("POST", b"", Some("0")),
        ("PUT", b"", Some("0")),
        ("BREW", b"", None),
        ("BREW", b"coffee", Some("6")),
    ] {
        client.request(method, "/up/", &[], body).expect(200);
        let got = upstream.received().pop().unwrap();
        assert_eq!(got.line, format!("{method} / HTTP/1.1"));
        assert_eq!((&got.body[..], got.all("content-length").first().copied()), (body, length));
        assert_eq!(got.all("transfer-encoding"), [""; 0]);
    }
    let large = vec![b'x'; 3 << 20];
    client.request("POST", "/up/", &[], &large).expect(200);
    assert!(upstream.received().pop().unwrap().body == large);
}

#[test]
fn the_credentials_that_deferd_has_checked_go_no_further() {
    let upstream = Upstream::answering(OK, keep);
    let dir = TempDir::new();
    let text = run_deferd(&["token", "ann"]).stdout;
    let value = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned()
    };
    let users = dir.join("users");
    std::fs::write(&users, value("line for --auth:")).unwrap();
    std::fs::set_permissions(&users, Permissions::from_mode(0o600)).unwrap();
    let deferd =
        Deferd::start(&["--auth", users.to_str().unwrap(), "--route", &upstream.route("")]);
    let mut client = deferd.client();
    let bearer = format!("Bearer {}", value("token:"));
    client.request("GET", "/up/", &[("authorization", &bearer)], b"").expect(200);
    assert_eq!(upstream.only().all("authorization"), [""; 0]);
}

#[test]
fn an_answer_reaches_the_client_as_it_was() {
    for status in [200, 201, 206, 299, 302, 307, 401, 404, 418, 429, 500, 502, 503, 504, 599] {
        let answer = format!(
            "HTTP/1.1 {status} Whatever\r\nServer: own\r\nSet-Cookie: a=1\r\nset-cookie: b=2\r\n\
             Location: http://elsewhere.example/\r\nContent-Encoding: gzip\r\nX-Latin: \u{e4}\r\n\
             Date: then\r\nX-Empty:\r\nWWW-Authenticate: Basic realm=\"its own\"\r\n\
             Content-Length: 5\r\nConnection: x-hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
             Proxy-Authenticate: Basic\r\nX-Arango-Async-Id: 7\r\n\r\n\x1f\u{8b}\0x"
        );
        let upstream = Upstream::answering(answer, keep);
        let deferd = deferd(&upstream, "");
        let mut reply = both(&mut deferd.client(), "GET", "/up/").expect(status);
        assert_eq!(reply.body, "\x1f\u{8b}\0x".as_bytes());
        reply.headers.sort();
        let expected = [
            ("content-encoding", "gzip"),
            ("content-length", "5"),
            ("date", "then"),
            ("location", "http://elsewhere.example/"),
            ("server", "own"),
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
            ("www-authenticate", "Basic realm=\"its own\""),
            ("x-empty", ""),
            ("x-latin", "\u{e4}"),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(reply.headers, expected);
        assert_eq!(upstream.received().len(), 2, "no redirect is followed");
    }
}

#[test]
fn an_answer_without_content_is_not_followed_by_another() {
    let upstream = Upstream::start(|got, stream| {
        let answer = match got.line.split(' ').nth(1).unwrap() {
            "/204" => "HTTP/1.1 204 No Content\r\nx-n: 204\r\n\r\n",
            "/304" => "HTTP/1.1 304 Not Modified\r\netag: \"x\"\r\ncontent-length: 1234\r\n\r\n",
            "/head" => "HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n",
            "/open" => "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            "/none" => "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            _ => OK,
        };
        stream.write_all(answer.as_bytes()).unwrap();
        Then::Keep
    });
    let deferd = deferd(&upstream, "");
    let mut client = deferd.client();
    for (method, path, status, length) in [
        ("GET", "204", 204, None),
        ("HEAD", "204", 204, None),
        ("GET", "304", 304, None),
        ("HEAD", "head", 200, Some("1234")),
        ("HEAD", "open", 200, None),
        ("HEAD", "none", 200, Some("0")),
        ("GET", "none", 200, Some("0")),
    ] {
        let reply = client.request(method, &format!("/up/{path}"), &[], b"").expect(status);
        assert_eq!(reply.header("content-length"), length, "{method} {path}");
        let id = client.store(method, &format!("/up/{path}"), b"");
        // Collected by PUT it has no content either, and says so.
        let result = client.result(&id).expect(status);
        assert!(result.body.is_empty());
        assert_eq!(result.length(), (status == 200).then_some(0), "{method} {path}");
        assert_eq!(client.get("/up/").expect(200).text(), "ok");
    }
    assert!(upstream.received().iter().all(|got| got.connection == 0), "one connection for all");
}

#[test]
fn an_answer_is_whole_whatever_its_framing() {
    let chunked = "5;ext=\"1\"\r\nhello\r\n6\r\n world\r\n0\r\ntrailer: x\r\n\r\n";
    for (head, content, then) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 11\r\n", "hello world", keep as fn() -> Then),
        ("HTTP/1.1 200 OK\r\ncontent-length: 11\r\nconnection: close\r\n", "hello world", close),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n", chunked, keep),
        ("HTTP/1.1 200 OK\r\n", "hello world", close),
        ("HTTP/1.0 200 OK\r\n", "hello world", close),
        ("HTTP/1.0 200 OK\r\ncontent-length: 11\r\n", "hello world", close),
    ] {
        let upstream = Upstream::answering(format!("{head}\r\n{content}"), then);
        let deferd = deferd(&upstream, "");
        let reply = both(&mut deferd.client(), "GET", "/up/").expect(200);
        assert_eq!(reply.text(), "hello world", "{head}");
        let is_announced = head.to_ascii_lowercase().contains("content-length");
        assert_eq!(reply.length().is_some(), is_announced || lacks(Ability::Flow), "{reply:?}");
        assert_ne!(reply.length().is_some(), reply.is_chunked());
    }
}

#[test]
fn connections_to_an_upstream_are_kept() {
    let upstream = Upstream::answering(OK, keep);
    let deferd = deferd(&upstream, "");
    let mut client = deferd.client();
    for _ in 0..5 {
        both(&mut client, "GET", "/up/").expect(200);
        client.request("POST", "/up/", &[], b"x").expect(200);
    }
    let connections: Vec<usize> = upstream.received().iter().map(|got| got.connection).collect();
    assert_eq!(connections, [0; 15]);
}

#[test]
fn a_closed_kept_connection_is_replaced() {
    // Closed directly after the answer.
    let upstream = Upstream::answering(OK, close);
    let deferd = deferd(&upstream, "");
    let mut client = deferd.client();
    for method in ["GET", "PUT", "DELETE"] {
        for _ in 0..5 {
            client.request(method, "/up/", &[], b"").expect(200);
        }
    }
    assert_eq!(upstream.received().len(), 15);
}

#[test]
fn a_stale_connection_is_retried_only_if_safe() {
    for (method, status, sent) in [("GET", 200, 3), ("PUT", 200, 3), ("POST", 502, 2)] {
        // Each connection serves one request, and is closed silently when the next one arrives.
        let upstream = Upstream::start(|got, stream| {
            if got.all("x-n") == ["2"] && got.connection == 0 {
                return Then::Close;
            }
            stream.write_all(OK.as_bytes()).unwrap();
            Then::Keep
        });
        let deferd = deferd(&upstream, "");
        let mut client = deferd.client();
        client.get("/up/").expect(200);
        client.request(method, "/up/", &[("x-n", "2")], b"").expect(status);
        let connections: Vec<_> = upstream.received().iter().map(|got| got.connection).collect();
        assert_eq!(connections, [0, 0, 1][..sent], "{method}");
    }
}

#[test]
fn a_connection_that_never_answered_is_not_tried_again() {
    let upstream = Upstream::start(|_, _| Then::Close);
    let deferd = deferd(&upstream, "");
    let reply = deferd.client().get("/up/").expect_error(502, 502);
    assert!(reply.text().contains("closed the connection without an answer"), "{}", reply.text());
    assert_eq!(upstream.received().len(), 1);
}

#[test]
fn an_upstream_may_answer_before_it_has_read_everything() {
    let upstream = Upstream::start(|got, stream| {
        let answer = b"HTTP/1.1 413 Too Much\r\ncontent-length: 4\r\nconnection: close\r\n\r\nmuch";
        stream.write_all(answer).unwrap();
        if got.line.contains("/early/closed") { Then::Close } else { Then::Hang }
    });
    let route = upstream.route("");
    let body = vec![b'x'; 8 << 20];
    in_both_stores(&["--route", &route], |deferd| {
        for target in ["/up/early", "/up/early/closed"] {
            let reply = deferd.client().request("POST", target, &[], &body).expect(413);
            assert_eq!(reply.text(), "much");
            let id = deferd.client().store("POST", target, &body);
            assert_eq!(deferd.client().result(&id).expect(413).text(), "much");
        }
    });
}

#[test]
fn a_cancelled_call_closes_its_connection() {
    let upstream = Upstream::start(|got, stream| {
        if got.line.contains("/half") {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf").unwrap();
        }
        Then::Hang
    });
    let deferd = deferd(&upstream, "");
    let mut client = deferd.client();
    for (n, target) in ["/up/silent", "/up/half"].into_iter().enumerate() {
        let id = client.store("GET", target, b"");
        upstream.wait_for(n + 1);
        client.put(&format!("/_api/job/{id}/cancel")).expect(200);
        upstream.wait_closed(n);
        client.result(&id).expect_job_error(410, 21);
    }
}

#[test]
fn a_call_to_a_deaf_upstream_is_cancelled_too() {
    // Nothing accepts, so nothing is read: the request waits in the kernel's buffers.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let route = format!("/up/=http://{}/", listener.local_addr().unwrap());
    let deferd = Deferd::start(&["--route", &route]);
    let mut client = deferd.client();
    let id = client.store("POST", "/up/", &vec![b'x'; 12 << 20]);
    let mut stream = accept(&listener);
    client.put(&format!("/_api/job/{id}/cancel")).expect(200);
    client.result(&id).expect_job_error(410, 21);
    assert!(stream.read_to_end(&mut Vec::new()).is_ok(), "it is closed");
}

#[test]
fn the_end_of_deferd_abandons_calls() {
    let upstream = Upstream::answering("", hang);
    let mut deferd = Deferd::start(&["--grace", "1ms", "--route", &upstream.route("")]);
    deferd.client().store("GET", "/up/", b"");
    upstream.wait_for(1);
    deferd.signal("-TERM");
    upstream.wait_closed(0);
    assert_eq!(deferd.wait().code(), Some(0));
}

/// Asserts that a call fails with this status and these words, that the client does not learn the address of the
/// upstream, and that the log has it.
#[track_caller]
fn assert_fails(route: &str, address: &str, fails: Fails, status: u16, words: &str) {
    let deferd = Deferd::start(&["--route", route]);
    let mut client = deferd.client();
    let mut told = String::new();
    // On a busy machine, a limit may be reached in an earlier phase.
    eventually(words, || {
        told = failure(&deferd, "/up/secret", fails, status);
        told.contains(words)
    });
    let id = client.store("GET", "/up/secret", b"");
    let later = client.result(&id).expect_job_error(status, status);
    assert!(!told.contains(address) && !later.text().contains(address));
    assert!(!format!("{:?}", later.headers).contains(address));
    deferd.log_with(&format!("upstream={address}"));
}

#[test]
fn a_failed_call_says_in_which_phase_and_not_where() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    assert_fails(&format!("/up/=http://{closed}/"), &closed, Fails::AtHead, 502, "cannot connect");

    let name = "no-such-host.invalid:81";
    let route = format!("/up/=http://{name}/,connect-timeout=2s");
    assert_fails(&route, name, Fails::AtHead, 502, "its name cannot be resolved");

    let silent = Upstream::answering("", hang);
    let address = silent.address.to_string();
    assert_fails(
        &silent.route(",timeout=500ms"),
        &address,
        Fails::AtHead,
        504,
        "no answer in time: timeout 500ms",
    );

    let half = Upstream::answering("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", hang);
    let address = half.address.to_string();
    assert_fails(
        &half.route(",timeout=500ms"),
        &address,
        Fails::AtContent,
        504,
        "not complete in time: timeout 500ms",
    );

    let half = Upstream::answering("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", close);
    let address = half.address.to_string();
    assert_fails(&half.route(""), &address, Fails::AtContent, 502, "broke off");

    let much = Upstream::answering("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n123456789", keep);
    let address = much.address.to_string();
    assert_fails(
        &much.route(",max-output=8"),
        &address,
        Fails::AtHead,
        502,
        "larger than max-output 8",
    );
}

#[test]
fn an_answer_of_just_max_output_is_whole() {
    let upstream =
        Upstream::answering("HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n12345678", keep);
    let deferd = deferd(&upstream, ",max-output=8");
    assert_eq!(both(&mut deferd.client(), "GET", "/up/").expect(200).text(), "12345678");
}

#[test]
fn an_unreachable_upstream_fails_after_connect_timeout() {
    use rustix::net::{AddressFamily, SocketFlags, SocketType};
    use rustix::net::{bind, getsockname, listen, socket_with};
    // A backlog that is full: further connections wait in vain.
    let listener =
        socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    bind(&listener, &std::net::SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    listen(&listener, 0).unwrap();
    let address = std::net::SocketAddr::try_from(getsockname(&listener).unwrap()).unwrap();
    // Longer than a machine is likely to stand still: a client that gets no answer in that time gets none.
    let brief = std::time::Duration::from_secs(3);
    let mut fill = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, brief) {
        fill.push(stream);
    }
    let shown = address.to_string();
    let route = format!("/up/=http://{shown}/,connect-timeout=100ms");
    assert_fails(
        &route,
        &shown,
        Fails::AtHead,
        502,
        "no connection in time: connect-timeout 100ms",
    );
    // It can also be cancelled before that.
    let deferd = Deferd::start(&["--route", &format!("/up/=http://{shown}/,connect-timeout=1h")]);
    let mut client = deferd.client();
    let id = client.store("GET", "/up/", b"");
    client.put(&format!("/_api/job/{id}/cancel")).expect(200);
    client.result(&id).expect_job_error(410, 21);
}

#[test]
fn what_cannot_be_forwarded_is_refused_before_a_202() {
    let upstream = Upstream::answering(OK, keep);
    let deferd = deferd(&upstream, "");
    let mut client = deferd.client();
    let deferred = [("x-arango-async", "store")];
    for target in [
        "/up/../x",
        "/up/%2e%2e/x",
        "/up/a%2f..%2f..%2fx",
        "/up/%zz/%2e%2e/%2e%2e/admin",
        "/up/a%00/%2e%2e/x",
        "/up/..;/admin",
        "/up/..;x=y/admin",
        "/up/%2e%2e%3b/admin",
        "/up/..%5cadmin",
        "/up/..\\admin",
        "/up/%252e%252e%252fadmin",
        "/up/%c0%ae%c0%ae/admin",
        "/up/%",
    ] {
        for fields in [&[][..], &deferred, &[("x-arango-async", "true")]] {
            client.request("GET", target, fields, b"").expect_error(400, 400);
        }
    }
    for method in ["TRACE", "POST"] {
        let fields = [("x-arango-async", "store"), ("x-http-method-override", "TRACE")];
        let reply = client.request(method, "/up/", &fields, b"").expect_error(405, 405);
        assert!(reply.header("allow").expect("allow").contains("GET"));
    }
    let fields = [("x-arango-async", "store"), ("x-http-method-override", "CONNECT")];
    client.request("POST", "/up/", &fields, b"").expect_error(501, 501);
    client.request("CONNECT", "/up/", &deferred, b"").expect_error(501, 501);
    assert_eq!(upstream.received().len(), 0);
}

#[test]
fn a_legal_target_is_forwarded_to_the_byte() {
    let upstream = Upstream::answering(OK, keep);
    let deferd = deferd(&upstream, "");
    let mut client = deferd.client();
    for (asked, sent) in [
        ("/up/a%2Fb%2fc", "/a%2Fb%2fc"),
        ("/up/%25zz", "/%25zz"),
        ("/up/100%25", "/100%25"),
        ("/up/a;v=1/b;..", "/a;v=1/b;.."),
        ("/up/...//.a/b..", "/...//.a/b.."),
        ("/up/a?..%zz/%2e%2e/%00;", "/a?..%zz/%2e%2e/%00;"),
        ("/up//evil.example/", "/evil.example/"),
        ("/up////evil.example/x", "/evil.example/x"),
    ] {
        client.get(asked).expect(200);
        let got = upstream.received().pop().unwrap();
        assert_eq!(got.line, format!("GET {sent} HTTP/1.1"));
        assert_eq!(got.all("host"), [upstream.address.to_string()]);
    }
}

#[test]
fn names_with_underscores_are_not_forwarded() {
    let upstream = Upstream::answering(OK, keep);
    let deferd = deferd(&upstream, "");
    let fields = [
        ("x_forwarded_for", "198.51.100.7"),
        ("x-real_ip", "198.51.100.7"),
        ("remote_user", "root"),
        ("_", "1"),
        ("x-own", "kept"),
        // From this host, they may be those of a proxy.
        ("forwarded", "for=198.51.100.7"),
        ("x-real-ip", "198.51.100.7"),
    ];
    deferd.client().request("GET", "/up/", &fields, b"").expect(200);
    let got = upstream.only();
    assert!(!got.fields.iter().any(|(name, _)| name.contains('_')), "{:?}", got.fields);
    for (name, value) in &fields[4..] {
        assert_eq!(got.all(name), [*value]);
    }
}
