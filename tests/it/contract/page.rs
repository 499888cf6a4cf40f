//! The page `/_admin/ui`: how it is sent and guarded, and who may reach it. `tests/pages/ui.mjs` uses it in a browser.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::support::{Client, Deferd, Reply};

const UI: &str = "/_admin/ui";
const PAGE: &str = include_str!("../../../src/api/page.html");

fn guarded(reply: Reply) -> Reply {
    let reply = reply.expect(200).without_id();
    for (name, value) in [
        ("content-type", "text/html; charset=utf-8"),
        ("content-encoding", "gzip"),
        ("cache-control", "no-cache"),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "no-referrer"),
        ("x-content-type-options", "nosniff"),
        ("cross-origin-resource-policy", "same-origin"),
    ] {
        assert_eq!(reply.header(name), Some(value), "{reply:?}");
    }
    reply
}

/// Returns what is between the tags of the only element with this name.
fn element(name: &str) -> &'static str {
    let (_, rest) = PAGE.split_once(&format!("<{name}>")).unwrap();
    rest.split_once(&format!("</{name}>")).unwrap().0
}

#[test]
fn the_page_is_sent_compressed() {
    let deferd = Deferd::start(&[]);
    let mut client = deferd.client();
    let page = guarded(client.get(UI));
    assert_eq!(page.body, include_bytes!("../../../src/api/page.html.gz"));
    let head = guarded(client.request("HEAD", UI, &[], b""));
    assert_eq!(head.header("content-length"), page.header("content-length"));
    for target in ["/_admin/ui/", "/_db/_system/_admin/ui"] {
        assert_eq!(client.get(target).expect(200).body, page.body);
    }
    client.request("POST", UI, &[], b"").expect_error(405, 405);
    client.get("/_admin/uix").expect_error(404, 404);
}

#[test]
fn the_policy_allows_the_one_script_and_the_one_style() {
    let deferd = Deferd::start(&[]);
    let reply = guarded(deferd.client().get(UI));
    let hash = |name| STANDARD.encode(hmac_sha256::Hash::hash(element(name).as_bytes()));
    let expected = format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; \
         frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
        hash("script"),
        hash("style"),
    );
    assert_eq!(reply.header("content-security-policy"), Some(&*expected));
}

#[test]
fn readers_may_come_from_elsewhere_to_the_page_alone() {
    let deferd = Deferd::start(&[]);
    let mut client = deferd.client();
    let navigation = |site| {
        [("sec-fetch-site", site), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")]
    };
    for site in ["cross-site", "same-site", "same-origin", "none"] {
        for target in [UI, "/_admin/ui/", "/_db/_system/_admin/ui"] {
            guarded(client.request("GET", target, &navigation(site), b""));
            guarded(client.request("HEAD", target, &navigation(site), b""));
        }
    }
    let from = |fields: &[(&str, &str)], method, target: &str, client: &mut Client| {
        let fields = [&[("sec-fetch-site", "cross-site")], fields].concat();
        client.request(method, target, &fields, b"").expect_error(403, 403);
    };
    let (mode, document) = (("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document"));
    for (fields, method, target) in [
        (&[mode, document][..], "GET", "/_admin/jobs"),
        (&[mode, document], "GET", "/_admin/uix"),
        (&[mode, document], "GET", "/_db/other/_admin/ui"),
        (&[mode, document], "POST", UI),
        (&[mode, ("sec-fetch-dest", "iframe")], "GET", UI),
        (&[mode, ("sec-fetch-dest", "empty")], "GET", UI),
        (&[mode, document, ("sec-fetch-dest", "iframe")], "GET", UI),
        (&[("sec-fetch-mode", "no-cors"), document], "GET", UI),
        (&[mode], "GET", UI),
        (&[], "GET", UI),
    ] {
        from(fields, method, target, &mut client);
    }
}
