//! What a web page in the reader's browser can do: nothing, unless its origin is allowed or the route takes
//! any page; under which names deferd answers; and what its answers tell browsers.
//!
//! The fields are those that Chromium sends. `tests/pages` lets Chromium itself try.

use std::path::{Path, PathBuf};

use crate::support::hold::Hold;
use crate::support::upstream::{Then, Upstream};
use crate::support::{
    Ability, Client, Deferd, Reply, TempDir, eventually, fixtures, lacks, run_deferd,
};

const PAGE: &str = "https://ui.example";

type Fields = &'static [(&'static str, &'static str)];

/// How a page of another site makes Chromium send a request: the method, and what it adds of its own.
const ATTEMPTS: [(&str, &str, Fields); 13] = [
    (
        "an image",
        "GET",
        &[
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-mode", "no-cors"),
            ("sec-fetch-dest", "image"),
            ("referer", "http://evil.example/"),
        ],
    ),
    (
        "a script without referrer",
        "GET",
        &[
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-mode", "no-cors"),
            ("sec-fetch-dest", "script"),
        ],
    ),
    (
        "a frame",
        "GET",
        &[
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-mode", "navigate"),
            ("sec-fetch-dest", "iframe"),
            ("upgrade-insecure-requests", "1"),
        ],
    ),
    (
        "a link that the reader follows",
        "GET",
        &[
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-mode", "navigate"),
            ("sec-fetch-user", "?1"),
            ("sec-fetch-dest", "document"),
        ],
    ),
    (
        "a prefetch",
        "GET",
        &[
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-mode", "no-cors"),
            ("sec-fetch-dest", "empty"),
            ("sec-purpose", "prefetch"),
        ],
    ),
    (
        "a page on another port",
        "GET",
        &[
            ("sec-fetch-site", "same-site"),
            ("sec-fetch-mode", "no-cors"),
            ("sec-fetch-dest", "image"),
        ],
    ),
    (
        "fetch with CORS",
        "GET",
        &[
            ("origin", "https://evil.example"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-mode", "cors"),
            ("sec-fetch-dest", "empty"),
        ],
    ),
    (
        "fetch without CORS",
        "POST",
        &[
            ("origin", "https://evil.example"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-mode", "no-cors"),
            ("content-type", "text/plain;charset=UTF-8"),
        ],
    ),
    (
        "a form",
        "POST",
        &[
            ("origin", "https://evil.example"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-mode", "navigate"),
            ("content-type", "application/x-www-form-urlencoded"),
        ],
    ),
    (
        "a form of a sandboxed page",
        "POST",
        &[("origin", "null"), ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")],
    ),
    ("a form, from a browser without Fetch Metadata", "POST", &[("origin", "http://localhost:1")]),
    ("an image, from such a browser", "GET", &[("referer", "http://evil.example/")]),
    (
        "an image, as a user that it remembers",
        "GET",
        &[("referer", "http://localhost.evil.example/"), ("authorization", "Basic YTpi")],
    ),
];

/// What pages of deferd's own origin, readers and other clients send.
const WELCOME: [Fields; 7] = [
    &[],
    &[
        ("sec-fetch-site", "none"),
        ("sec-fetch-mode", "navigate"),
        ("sec-fetch-user", "?1"),
        ("sec-fetch-dest", "document"),
    ],
    &[
        ("sec-fetch-site", "same-origin"),
        ("sec-fetch-mode", "cors"),
        ("sec-fetch-dest", "empty"),
        ("referer", "http://localhost/page"),
    ],
    &[
        ("origin", "http://localhost"),
        ("sec-fetch-site", "same-origin"),
        ("sec-fetch-mode", "cors"),
        ("sec-fetch-dest", "empty"),
    ],
    &[("origin", "http://localhost")],
    &[("referer", "http://localhost/page")],
    &[("sec-fetch-mode", "cors"), ("user-agent", "node")],
];

fn allowing() -> Deferd {
    Deferd::start(&["--allow-origin", PAGE, "--allow-host", "nas.example.org"])
}

fn from(client: &mut Client, origin: &str, method: &str, target: &str) -> Reply {
    client.request(method, target, &[("origin", origin)], b"")
}

/// A file that shows whether a script has run, and the path that names it to the script `c-touch`.
struct Trace(TempDir);

impl Trace {
    fn new() -> Self {
        Self(TempDir::new())
    }

    fn file(&self) -> PathBuf {
        self.0.join("ran")
    }

    fn target(&self, route: &str) -> String {
        format!("{route}c-touch?{}", self.file().display())
    }

    /// Whether the script has run since this was asked last.
    fn is_fresh(&self) -> bool {
        std::fs::remove_file(self.file()).is_ok()
    }
}

/// Whether the answer keeps foreign pages from guessing its type and from embedding it.
#[track_caller]
fn guards(reply: &Reply) -> (bool, bool) {
    let (sniffing, embedding) =
        (reply.header("x-content-type-options"), reply.header("cross-origin-resource-policy"));
    assert!(sniffing.is_none_or(|value| value == "nosniff"), "{reply:?}");
    assert!(embedding.is_none_or(|value| value == "same-origin"), "{reply:?}");
    (sniffing.is_some(), embedding.is_some())
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
fn no_attempt_of_a_foreign_page_runs_anything() {
    let (deferd, trace) = (Deferd::with_scripts("", &[]), Trace::new());
    let mut client = deferd.client();
    for (what, method, fields) in ATTEMPTS {
        for target in [
            trace.target("/run/"),
            trace.target("/cgi/"),
            trace.target("/_db/_system/run/"),
            "/_admin/echo".into(),
            "/_admin/server/availability".into(),
            "/nowhere".into(),
        ] {
            client.request(method, &target, fields, b"").expect_error(403, 403);
            let deferred = [fields, &[("x-arango-async", "store")]].concat();
            client.request(method, &target, &deferred, b"").expect_error(403, 403);
            let changed = [fields, &[("x-http-method-override", "GET")]].concat();
            client.request("POST", &target, &changed, b"").expect_error(403, 403);
            assert!(!trace.is_fresh(), "{what}: {target}");
        }
    }
    assert_eq!(client.jobs(), [""; 0]);
}

#[test]
fn own_pages_readers_and_other_clients_are_served() {
    let (deferd, trace) = (Deferd::with_scripts("", &[]), Trace::new());
    let mut client = deferd.client();
    for fields in WELCOME {
        for method in ["GET", "POST"] {
            let reply = client.request(method, &trace.target("/run/"), fields, b"").expect(200);
            assert!(trace.is_fresh(), "{fields:?}");
            assert_eq!(reply.header("vary"), None);
        }
    }
}

#[test]
fn a_refused_page_learns_which_field_showed_it() {
    let deferd = Deferd::start(&[]);
    let mut client = deferd.client();
    for (name, value) in [
        ("origin", "https://evil.example"),
        ("sec-fetch-site", "cross-site"),
        ("referer", "http://evil.example/"),
    ] {
        let reply = client.request("GET", "/_api/version", &[(name, value)], b"");
        let message = reply.expect_error(403, 403).text();
        assert!(message.contains(&format!("{name}: {value}")), "{message}");
        assert!(message.contains("--allow-origin") && message.contains("pages=any"), "{message}");
    }
}

#[test]
fn a_route_for_any_page_opens_no_other() {
    let trace = Trace::new();
    let open = format!("/open/=run:{},pages=any", fixtures().display());
    let deferd = Deferd::with_scripts("", &["--route", &open, "--allow-origin", "*"]);
    let mut client = deferd.client();
    for (what, method, fields) in ATTEMPTS {
        for prefix in ["/open/", "/_db/_system/open/"] {
            client.request(method, &trace.target(prefix), fields, b"").expect(200);
            assert!(trace.is_fresh(), "{what}: {prefix}");
        }
        let is_from_allowed =
            fields.iter().any(|(name, value)| *name == "origin" && *value != "null");
        for target in [trace.target("/run/"), trace.target("/_db/other/open/")] {
            let reply = client.request(method, &target, fields, b"");
            assert_eq!(reply.status == 403, !is_from_allowed, "{what}: {target}");
            assert_eq!(trace.is_fresh(), reply.status == 200, "{what}: {target}");
        }
    }
    let request = format!("GET {} HTTP/1.1\r\nhost: evil.example\r\n\r\n", trace.target("/open/"));
    client.send(request.as_bytes());
    client.try_read("GET").unwrap().expect_error(403, 403);
    assert!(!trace.is_fresh(), "the host is checked all the same");
}

#[test]
fn any_origin_is_answered_without_credentials() {
    let deferd = Deferd::start(&["--allow-origin", "*", "--allow-origin", PAGE]);
    let mut client = deferd.client();
    for (origin, named, credentials) in [
        (PAGE, PAGE, Some("true")),
        ("https://other.example", "*", None),
        ("http://localhost:1", "*", None),
    ] {
        let reply = from(&mut client, origin, "GET", "/_api/version").expect(200);
        assert_eq!(reply.header("access-control-allow-origin"), Some(named), "{origin}");
        assert_eq!(reply.header("access-control-allow-credentials"), credentials, "{origin}");
        assert_eq!(reply.header("vary"), Some("origin"), "{origin}");
        assert_eq!(guards(&reply), (true, false), "{origin}");
        let fields = [("origin", origin), ("access-control-request-method", "PUT")];
        let reply = client.request("OPTIONS", "/_api/job/1", &fields, b"").expect(200);
        assert_eq!(reply.header("access-control-allow-origin"), Some(named), "{origin}");
        assert_eq!(reply.header("access-control-allow-credentials"), credentials, "{origin}");
    }
    for origin in ["null", "", "*"] {
        from(&mut client, origin, "GET", "/_api/version").expect_error(403, 403);
    }
    let no_page = client.get("/_api/version").expect(200);
    assert_eq!(no_page.header("access-control-allow-origin"), None);
    assert_eq!(no_page.header("vary"), Some("origin"), "a page must not find it in a cache");
    let null = Deferd::start(&["--allow-origin", "null"]);
    let reply = from(&mut null.client(), "null", "GET", "/_api/version").expect(200);
    assert_eq!(reply.header("access-control-allow-origin"), Some("null"));
    from(&mut null.client(), PAGE, "GET", "/_api/version").expect_error(403, 403);
}

#[test]
fn an_upstream_gives_no_credentials_to_any_origin() {
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\naccess-control-allow-origin: null\r\n\
                  access-control-allow-credentials: true\r\n\r\n";
    let upstream = Upstream::answering(answer, || Then::Keep);
    let deferd = Deferd::start(&["--allow-origin", "*", "--route", &upstream.route("")]);
    let reply = from(&mut deferd.client(), PAGE, "GET", "/up/").expect(200);
    assert_eq!(reply.header("access-control-allow-origin"), Some("*"));
    assert_eq!(reply.header("access-control-allow-credentials"), None);
}

#[test]
fn an_allowed_page_reads_why_its_content_is_refused() {
    let arguments = ["--allow-origin", PAGE, "--max-body", "4"];
    let deferd = Deferd::start(&arguments);
    let mut client = deferd.client();
    let fields = format!("host: a\r\norigin: {PAGE}\r\ntransfer-encoding: chunked\r\n\r\n");
    client
        .send(format!("POST /_admin/echo HTTP/1.1\r\n{fields}5\r\n12345\r\n0\r\n\r\n").as_bytes());
    let reply = client.try_read("POST").unwrap().expect_error(413, 413);
    assert_eq!(reply.header("access-control-allow-origin"), Some(PAGE));
    assert_eq!(guards(&reply), (true, false));
}

/// The status of a request for the version under this name.
fn status_of(deferd: &Deferd, host: &str, target: &str) -> u16 {
    let mut client = deferd.client();
    client.send(format!("GET {target} HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes());
    client.try_read("GET").unwrap().status
}

#[test]
fn a_name_that_is_not_this_host_s_is_refused() {
    let own = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let own = own.trim().split('.').next().unwrap().to_owned();
    let deferd = allowing();
    for (host, status) in [
        ("localhost", 200),
        ("localhost.", 200),
        ("a.localhost:80", 200),
        ("127.0.0.1:1", 200),
        ("192.0.2.1", 200),
        ("[::1]", 200),
        ("[2001:db8::1]:80", 200),
        ("anything", 200),
        (&own, 200),
        (&format!("{own}.local"), 200),
        (&format!("{}.LAN:80", own.to_ascii_uppercase()), 200),
        (&format!("{own}.home.arpa"), 200),
        (&format!("{own}.internal"), 200),
        ("nas.example.org:8529", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        (&format!("{own}.evil.example"), 403),
        (&format!("evil.{own}.local"), 403),
        ("evil.local", 403),
        ("evil.nas.example.org", 403),
        ("", 403),
    ] {
        assert_eq!(status_of(&deferd, host, "/_api/version"), status, "{host}");
    }
}

#[test]
fn a_refusal_names_the_host_and_the_option() {
    let deferd = Deferd::start(&[]);
    let mut client = deferd.client();
    let host = format!("evil.{}", "x".repeat(200));
    client.send(format!("GET /_api/version HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes());
    let message = client.try_read("GET").unwrap().expect_error(403, 403).text();
    assert!(message.contains("--allow-host") && message.contains(&host[..100]), "{message}");
    assert!(!message.contains(&host[..101]), "{message}");
}

#[test]
fn a_balancer_asks_for_availability_under_any_name() {
    let deferd = Deferd::start(&[]);
    for target in ["/_admin/server/availability", "/_db/_system/_admin/server/availability/"] {
        assert_eq!(status_of(&deferd, "evil.example", target), 200, "{target}");
    }
    for target in ["/_db/_system/_api/version", "/_db/x/_admin/server/availability", "/x"] {
        assert_eq!(status_of(&deferd, "evil.example", target), 403, "{target}");
    }
    let mut client = deferd.client();
    let deferred = "GET /_admin/server/availability HTTP/1.1\r\nhost: evil.example\r\n\
                    x-arango-async: store\r\n\r\n";
    client.send(deferred.as_bytes());
    client.try_read("GET").unwrap().expect_error(403, 403);
}

#[test]
fn credentials_replace_the_host_check_until_a_name_is_allowed() {
    let dir = TempDir::new();
    let (line, token) = user();
    let file = write_private(&dir.join("users"), &line);
    let arguments = ["--auth", file.as_str(), "--allow-host", "nas.example.org"];
    let status = |deferd: &Deferd, host: &str| {
        let mut client = deferd.client();
        let fields = format!("host: {host}\r\nauthorization: Bearer {token}\r\n");
        client.send(format!("GET /_api/version HTTP/1.1\r\n{fields}\r\n").as_bytes());
        client.try_read("GET").unwrap().status
    };
    let (open, named) = (Deferd::start(&arguments[..2]), Deferd::start(&arguments));
    for (host, with_name) in [("nas.example.org", 200), ("localhost", 200), ("evil.example", 403)] {
        assert_eq!(status(&open, host), 200, "{host}");
        assert_eq!(status(&named, host), with_name, "{host}");
    }
    let fields = [("sec-fetch-site", "cross-site"), ("authorization", &format!("Bearer {token}"))];
    open.client().request("GET", "/_api/version", &fields, b"").expect_error(403, 403);
    let any = Deferd::start(&["--allow-host", "*"]);
    assert_eq!(status(&any, "evil.example"), 200);
}

#[test]
fn strangers_are_served_under_known_names_only() {
    if lacks(Ability::Strangers) {
        return;
    }
    let arguments = ["--listen", "0.0.0.0:0", "--insecure", "--allow-host", "nas.example.org"];
    let (plain, named) = (Deferd::start(&arguments[..3]), Deferd::start(&arguments));
    for (host, without_name) in
        [("192.0.2.1", 200), ("router", 200), ("nas.example.org", 403), ("evil.example", 403)]
    {
        assert_eq!(status_of(&plain, host, "/_api/version"), without_name, "{host}");
        let with_name = if host == "evil.example" { 403 } else { 200 };
        assert_eq!(status_of(&named, host, "/_api/version"), with_name, "{host}");
    }
}

fn user() -> (String, String) {
    let text = run_deferd(&["token", "ann"]).stdout;
    let after = |label: &str| text.lines().find_map(|l| l.strip_prefix(label)).unwrap().to_owned();
    (after("line for --auth: "), after("token: "))
}

fn write_private(path: &Path, text: &str) -> String {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path.display().to_string()
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
fn a_result_is_collected_as_it_was_stored_and_read_in_a_sandbox() {
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
