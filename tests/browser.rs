//! What a web page in the reader's browser can do: nothing, unless its origin is allowed.

#![allow(clippy::unwrap_used)]

mod support;

use support::{Client, Deferd, Reply};

const PAGE: &str = "https://ui.example";

fn allowing() -> Deferd {
    Deferd::start(&["--allow-origin", PAGE, "--allow-host", "nas.lan"])
}

fn from(client: &mut Client, origin: &str, method: &str, target: &str) -> Reply {
    client.request(method, target, &[("origin", origin)], b"")
}

#[test]
fn a_foreign_page_is_refused_before_anything_runs() {
    let deferd = Deferd::start(&[]);
    let mut client = deferd.client();
    for origin in ["https://evil.example", "null", "http://localhost:1", ""] {
        from(&mut client, origin, "GET", "/_api/version").expect_error(403, 403);
        let fields = [("origin", origin), ("x-arango-async", "store")];
        client.request("POST", "/_admin/echo", &fields, b"").expect_error(403, 403);
    }
    assert!(client.list("done").is_empty() && client.list("pending").is_empty());
    from(&mut client, "http://localhost", "GET", "/_api/version").expect(200);
}

#[test]
fn an_allowed_page_may_read_the_answer_and_the_id() {
    let deferd = allowing();
    let mut client = deferd.client();
    let fields = [("origin", PAGE), ("x-arango-async", "store")];
    let reply = client.request("GET", "/_api/version", &fields, b"").expect(202);
    assert_eq!(reply.header("access-control-allow-origin"), Some(PAGE));
    assert_eq!(reply.header("vary"), Some("origin"));
    let exposed = reply.header("access-control-expose-headers").unwrap();
    assert!(exposed.contains("x-arango-async-id"), "{exposed}");
    let missing = from(&mut client, PAGE, "GET", "/nowhere").expect(404);
    assert_eq!(missing.header("access-control-allow-origin"), Some(PAGE));
    let plain = client.get("/_api/version").expect(200);
    assert_eq!(plain.header("access-control-allow-origin"), None);
}

#[test]
fn a_preflight_is_answered_for_allowed_pages_only() {
    let deferd = allowing();
    let mut client = deferd.client();
    let preflight = |client: &mut Client, origin: &str| {
        let fields = [
            ("origin", origin),
            ("access-control-request-method", "PUT"),
            ("access-control-request-headers", "x-arango-async, authorization"),
        ];
        client.request("OPTIONS", "/_api/job/1", &fields, b"")
    };
    let reply = preflight(&mut client, PAGE).expect(200);
    assert!(reply.header("access-control-allow-methods").unwrap().contains("PUT"));
    let allowed = reply.header("access-control-allow-headers");
    assert_eq!(allowed, Some("x-arango-async, authorization"));
    preflight(&mut client, "https://evil.example").expect_error(403, 403);
}

#[test]
fn a_name_that_is_not_this_host_s_is_refused() {
    let deferd = allowing();
    for (host, status) in [
        ("localhost", 200),
        ("127.0.0.1:1", 200),
        ("[::1]", 200),
        ("nas.lan:8529", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
    ] {
        let mut client = deferd.client();
        let request = format!("GET /_api/version HTTP/1.1\r\nhost: {host}\r\n\r\n");
        client.send(request.as_bytes());
        assert_eq!(client.try_read("GET").unwrap().status, status, "{host}");
    }
}
