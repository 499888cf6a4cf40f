//! What a web page in a reader's browser can do: nothing, unless its origin is allowed or the route accepts any page.
//!
//! The fields are those that Chromium sends. `tests/pages` tests with Chromium itself. `hosts` has the names under
//! which deferd answers, `guarding` what its answers tell browsers.

mod guarding;
mod hosts;

use std::path::{Path, PathBuf};

use crate::support::hold::Hold;
use crate::support::upstream::{Then, Upstream};
use crate::support::{
    Ability, Client, Deferd, Reply, TempDir, eventually, fixtures, lacks, run_deferd,
};

use guarding::guards;

const PAGE: &str = "https://ui.example";

type Fields = &'static [(&'static str, &'static str)];

/// How a page of another site makes Chromium send a request: the method, and the fields that Chromium adds.
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

/// What pages of deferd's own origin, people and other clients send.
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

    /// Returns whether the script has run since the last call.
    fn is_fresh(&self) -> bool {
        std::fs::remove_file(self.file()).is_ok()
    }
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
