//! The fields that keep answers from foreign pages: which answers have them, and which do not.

use super::*;

/// Returns whether the answer keeps foreign pages from guessing its type and from embedding it.
#[track_caller]
pub fn guards(reply: &Reply) -> (bool, bool) {
    let (sniffing, embedding) =
        (reply.header("x-content-type-options"), reply.header("cross-origin-resource-policy"));
    assert!(sniffing.is_none_or(|value| value == "nosniff"), "{reply:?}");
    assert!(embedding.is_none_or(|value| value == "same-origin"), "{reply:?}");
    (sniffing.is_some(), embedding.is_some())
}

#[test]
fn answers_of_deferd_s_own_and_of_programs_are_guarded() {
    let (deferd, hold) = (Deferd::with_scripts("", &["--max-body", "9"]), Hold::new());
    let mut client = deferd.client();
    let running = hold.start(&mut client);
    let done = client.store("GET", "/run/c-talk", b"");
    client.wait_done(&done);
    let job = |id: &str, rest: &str| format!("/_api/job/{id}{rest}");
    for (method, target, status) in [
        ("GET", "/_api/version", 200),
        ("HEAD", "/_api/version", 200),
        ("OPTIONS", "/_api/job/1", 200),
        ("GET", "/_admin/echo", 200),
        ("GET", "/_admin/server/availability", 200),
        ("GET", "/_api/job/done", 200),
        ("GET", &job(&done, ""), 200),
        ("GET", &job(&done, "/log"), 200),
        ("GET", &job(&running, ""), 204),
        ("PUT", &job(&running, ""), 204),
        ("PUT", &job(&running, "/cancel"), 200),
        ("GET", "/_api/job/1", 404),
        ("GET", "/_api/job/x", 400),
        ("PATCH", "/_api/job/1", 405),
        ("GET", "/nowhere", 404),
        ("GET", "/_db/x/", 404),
        ("GET", "/run/s-cat", 200),
        ("OPTIONS", "/run/s-cat", 200),
        ("GET", "/run/c-talk", 500),
        ("GET", "/run/no-such", 404),
        ("GET", "/cgi/no-such", 404),
        ("GET", "/cgi/c-talk", 502),
    ] {
        let reply = client.request(method, target, &[], b"").expect(status);
        assert_eq!(guards(&reply), (true, true), "{method} {target}");
    }
    for fields in [&[("x-arango-async", "store")], &[("prefer", "respond-async")]] {
        let reply = client.request("GET", "/cgi/c-status?200", fields, b"").expect(202);
        assert_eq!(guards(&reply), (true, true), "{fields:?}");
    }
    for (fields, target) in [
        (&[("prefer", "respond-async, wait=60")], "/run/s-cat"),
        (&[("sec-fetch-site", "cross-site")], "/run/s-cat"),
        (&[("sec-fetch-site", "cross-site")], "/cgi/c-status?200"),
    ] {
        let reply = client.request("GET", target, fields, b"");
        assert_eq!(guards(&reply), (true, true), "{fields:?} {target}");
    }
}

#[test]
fn refusals_of_the_front_are_guarded() {
    if lacks(Ability::OwnRefusals) {
        return;
    }
    let limits = ["--max-body", "9", "--max-head", "1K", "--body-timeout", "100ms"];
    let deferd = Deferd::start(&limits);
    let large = "x".repeat(2000);
    for (request, status) in [
        ("nonsense\r\n\r\n".into(), 400),
        ("GET / HTTP/1.1\r\n\r\n".into(), 400),
        ("GET / HTTP/3.0\r\nhost: a\r\n\r\n".into(), 505),
        (format!("GET /{large} HTTP/1.1\r\n"), 414),
        (format!("GET / HTTP/1.1\r\nhost: a\r\nx: {large}\r\n\r\n"), 431),
        ("POST /_admin/echo HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\n".into(), 413),
        ("POST /_admin/echo HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n".into(), 408),
        ("GET / HTTP/1.1\r\nhost: a\r\nexpect: wonders\r\n\r\n".into(), 417),
        ("GET / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n".into(), 501),
    ] {
        let mut client = deferd.client();
        client.send(request.as_bytes());
        let reply = client.try_read("GET").unwrap().expect_error(status, status);
        assert_eq!(guards(&reply), (true, true), "{request}");
    }
    let crowded = Deferd::start(&["--max-connections", "1"]);
    let mut first = crowded.client();
    first.get("/_api/version").expect(200);
    let reply = crowded.client().try_read("GET").unwrap().expect_error(503, 503);
    assert_eq!(guards(&reply), (true, true));
}

#[test]
fn fields_of_scripts_and_upstreams_reach_the_client_alone() {
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nx-content-type-options: nosniff\r\n\r\n";
    let upstream = Upstream::answering(answer, || Then::Keep);
    let route = upstream.route("");
    let deferd = Deferd::with_scripts("", &["--route", &route]);
    let mut client = deferd.client();
    let none: &[(&str, &str)] = &[];
    for fields in [none, &[("prefer", "respond-async, wait=60")]] {
        let reply = client.request("GET", "/cgi/c-status?200", fields, b"").expect(200);
        assert_eq!(guards(&reply), (false, false), "{fields:?}");
        let reply = client.request("GET", "/up/", fields, b"").expect(200);
        assert_eq!(guards(&reply), (true, false), "{fields:?}");
    }
}

#[test]
fn a_result_is_collected_unchanged_and_peeked_sandboxed() {
    let deferd = Deferd::with_scripts("", &["--allow-origin", PAGE]);
    let mut client = deferd.client();
    for (target, own) in [
        ("/cgi/c-status?200", &["content-type", "set-cookie", "set-cookie", "x-own"][..]),
        ("/run/s-cat", &["content-type"]),
        ("/_api/version", &["content-type"]),
        ("/cgi/c-talk", &["content-type"]),
    ] {
        let id = client.store("GET", target, b"");
        client.wait_done(&id);
        let peeked = client.get(&format!("/_api/job/{id}/result"));
        assert_eq!(guards(&peeked), (true, true), "{target}");
        assert_eq!(peeked.header("content-security-policy"), Some("sandbox"), "{target}");
        let path = format!("/_api/job/{id}/result");
        let seen = from(&mut client, PAGE, "GET", &path);
        assert_eq!(guards(&seen), (true, false), "{target}");
        let mut names: Vec<_> =
            client.result(&id).headers.into_iter().map(|field| field.0).collect();
        names.sort();
        let front = ["content-length", "date", "x-arango-async-id", "x-arango-async-job-id"];
        let mut expected = [own, &front].concat();
        expected.sort_unstable();
        assert_eq!(names, expected, "{target}");
    }
    let id = from_page(&mut client);
    eventually("the job is done", || client.get(&format!("/_api/job/{id}")).status == 200);
    let plain = client.put(&format!("/_api/job/{id}")).expect(200);
    assert_eq!(plain.header("access-control-allow-origin"), None, "CORS fields are not stored");
    assert_eq!(plain.header("vary"), None, "CORS fields are not stored");
}

/// Defers a request as an allowed page; the job's id.
fn from_page(client: &mut Client) -> String {
    let fields = [("origin", PAGE), ("x-arango-async", "store")];
    let reply = client.request("GET", "/_api/version", &fields, b"").expect(202);
    reply.id().unwrap().to_owned()
}
