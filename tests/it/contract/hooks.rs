//! Signed requests: which ones a route with a secret accepts, who owns their jobs, and what is logged.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hmac_sha256::{HMAC, Hash};

use crate::support::{Client, Deferd, Reply, TempDir, eventually, fixtures, run_deferd};

const SECRET: &str = "It's a Secret to Everybody";

/// The example of GitHub's documentation: this content, signed with this secret.
const CONTENT: &[u8] = b"Hello, World!";
const SIGNED: (&str, &str) = (
    "x-hub-signature-256",
    "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17",
);

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn signed(secret: &str, content: &[u8]) -> String {
    format!("sha256={}", hex(&HMAC::mac(content, secret)))
}

/// Writes a file that only its owner can read.
fn private(dir: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

/// Starts a deferd whose `/hook/` is signed in this way; returns it and the directory of its files.
fn start(scheme: &str, secrets: &str, options: &str, arguments: &[&str]) -> (Deferd, TempDir) {
    let dir = TempDir::new();
    let file = private(&dir, "secret", secrets);
    let (scripts, file) = (fixtures().display().to_string(), file.display().to_string());
    let hook = format!("/hook/=run:{scripts},secret={file},signature={scheme}{options}");
    let mut all = vec!["--route", hook.as_str()];
    all.extend_from_slice(arguments);
    (Deferd::start(&all), dir)
}

#[track_caller]
fn post(client: &mut Client, fields: &[(&str, &str)], content: &[u8]) -> Reply {
    client.request("POST", "/hook/s-cat", fields, content)
}

#[test]
fn only_signed_requests_are_run_or_deferred() {
    let (deferd, dir) = start("github", SECRET, "", &[]);
    let mut client = deferd.client();
    assert_eq!(post(&mut client, &[SIGNED], CONTENT).expect(200).text(), "Hello, World!");
    let defer = ("x-arango-async", "store");
    let reply = post(&mut client, &[SIGNED, defer], CONTENT).expect(202);
    assert_eq!(client.result(reply.id().unwrap()).expect(200).text(), "Hello, World!");
    let file = dir.join("ran");
    let target = format!("/hook/h-mark?{}", file.display());
    let wrong = signed("another secret", CONTENT);
    for (fields, content) in [
        (&[][..], CONTENT),
        (&[SIGNED], b"Hello, World"),
        (&[SIGNED], b""),
        (&[SIGNED, SIGNED], CONTENT),
        (&[("x-hub-signature-256", wrong.as_str())], CONTENT),
        (&[("x-hub-signature-256", "sha256=0")], CONTENT),
    ] {
        for mode in [None, Some(defer), Some(("x-arango-async", "true"))] {
            let fields: Vec<_> = fields.iter().copied().chain(mode).collect();
            // A refusal before the content ends the connection.
            let mut client = deferd.client();
            let reply = client.request("POST", &target, &fields, content).expect_error(401, 11);
            assert!(reply.header("www-authenticate").is_some());
        }
    }
    assert!(client.jobs().is_empty() && !file.exists());
    // Other routes require no signature.
    client.get("/_api/version").expect(200);
}

#[test]
fn binary_and_chunked_content_is_verified_as_it_was_sent() {
    let (deferd, _dir) = start("github", SECRET, "", &[]);
    let mut client = deferd.client();
    let content: Vec<u8> = (0..200_000_u32).map(|n| (n * 7 / 3) as u8).collect();
    let code = signed(SECRET, &content);
    let reply = post(&mut client, &[("x-hub-signature-256", &code)], &content).expect(200);
    assert_eq!(reply.body, content);
    let chunks: Vec<u8> = content
        .chunks(60_000)
        .flat_map(|chunk| [format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat())
        .collect();
    let head = format!(
        "POST /hook/s-cat HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\
         x-hub-signature-256: {code}\r\n\r\n"
    );
    client.send(&[head.as_bytes(), &chunks, b"0\r\n\r\n"].concat());
    assert_eq!(client.try_read("POST").unwrap().expect(200).body, content);
}

#[test]
fn requests_with_any_method_must_be_signed() {
    let (deferd, _dir) = start("github", SECRET, ",methods=POST,idempotency=x-id", &[]);
    let mut client = deferd.client();
    // Without a signature, nothing else that is wrong is reported.
    for (method, target) in [("GET", "/hook/s-cat"), ("POST", "/hook/nothing"), ("TRACE", "/hook/")]
    {
        client.request(method, target, &[], b"").expect_error(401, 11);
    }
    client.request("OPTIONS", "/hook/s-cat", &[], b"").expect_error(401, 11);
    let code = signed(SECRET, b"");
    let empty = ("x-hub-signature-256", code.as_str());
    let reply = client.request("OPTIONS", "/hook/s-cat", &[empty], b"").expect(200);
    assert_eq!(reply.header("allow"), Some("OPTIONS, POST"));
    let reply = client.request("GET", "/hook/s-cat", &[empty], b"").expect_error(405, 405);
    assert_eq!(reply.header("allow"), Some("OPTIONS, POST"));
    client.request("POST", "/hook/nothing", &[SIGNED], CONTENT).expect_error(404, 404);
    let fields = [SIGNED, ("x-arango-async", "store"), ("x-id", "a"), ("x-id", "b")];
    post(&mut client, &fields, CONTENT).expect_error(400, 400);
}

#[test]
fn gitea_gitlab_and_standard_webhooks_are_verified() {
    let (deferd, _dir) = start("gitea", SECRET, "", &[]);
    let code = hex(&HMAC::mac(CONTENT, SECRET));
    post(&mut deferd.client(), &[("x-gitea-signature", &code)], CONTENT).expect(200);
    post(&mut deferd.client(), &[SIGNED], CONTENT).expect_error(401, 11);

    let dir = TempDir::new();
    let data = dir.join("data").display().to_string();
    let arguments = ["--data", data.as_str()];
    let (deferd, _dir) = start("gitlab", "a-secret-token", ",defer=store", &arguments);
    let token = ("x-gitlab-token", "a-secret-token");
    let mut client = deferd.client();
    let reply = client.request("POST", "/hook/s-environ", &[token], CONTENT).expect(202);
    let seen = client.result(reply.id().unwrap()).expect(200).body;
    let has = |bytes: &[u8], what: &str| bytes.windows(what.len()).any(|w| w == what.as_bytes());
    assert!(has(&seen, "REQUEST_METHOD=POST") && !has(&seen, "a-secret-token"));
    let kept = fs::read(dir.join("data/jobs.redb")).unwrap();
    assert!(!has(&kept, "a-secret-token"), "the token is on the disk");
    post(&mut client, &[("x-gitlab-token", "a-secret-toke")], CONTENT).expect_error(401, 11);

    let key = [7; 24];
    let secret = format!("whsec_{}", BASE64_STANDARD.encode(key));
    let (deferd, _dir) = start("standard", &secret, "", &[]);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    for (seconds, status) in [(now, 200), (now - 200, 200), (now - 400, 401), (now + 400, 401)] {
        let text = [format!("msg_1.{seconds}.").as_bytes(), CONTENT].concat();
        let code = BASE64_STANDARD.encode(HMAC::mac(text, key));
        let (seconds, code) = (seconds.to_string(), format!("v1,AAAA v1,{code}"));
        let id = ("webhook-id", "msg_1");
        let time = ("webhook-timestamp", seconds.as_str());
        let fields = [id, time, ("webhook-signature", code.as_str())];
        post(&mut deferd.client(), &fields, CONTENT).expect(status);
    }
}

#[test]
fn sighup_rotates_secrets_unless_the_file_is_broken() {
    let (deferd, dir) = start("github", SECRET, "", &[]);
    let mut client = deferd.client();
    let new = signed("new", CONTENT);
    let new = ("x-hub-signature-256", new.as_str());
    post(&mut client, &[new], CONTENT).expect(401);
    private(&dir, "secret", &format!("# both\nnew\n{SECRET}\n"));
    deferd.signal("-HUP");
    eventually("the new secret is good", || post(&mut client, &[new], CONTENT).status == 200);
    post(&mut client, &[SIGNED], CONTENT).expect(200);
    private(&dir, "secret", "new\n");
    deferd.signal("-HUP");
    eventually("the old one is not", || post(&mut client, &[SIGNED], CONTENT).status == 401);
    private(&dir, "secret", "# none\n");
    deferd.signal("-HUP");
    eventually("the log tells", || deferd.log().contains("it has no secret"));
    post(&mut client, &[new], CONTENT).expect(200);
}

/// Starts a deferd with users and a signed route; returns it, ann's `authorization`, and the directory of its files.
fn with_users() -> (Deferd, String, TempDir) {
    let users = TempDir::new();
    let token = "a".repeat(64);
    let line = format!("ann:{}", hex(&Hash::hash(token.as_bytes())));
    let auth = private(&users, "users", &line).display().to_string();
    let scripts = format!("/run/=run:{}", fixtures().display());
    let arguments = ["--auth", auth.as_str(), "--route", scripts.as_str()];
    let (deferd, dir) = start("github", SECRET, ",owner=ann,defer=store", &arguments);
    drop(users);
    (deferd, format!("Bearer {token}"), dir)
}

#[test]
fn jobs_of_a_signed_route_belong_to_its_owner() {
    let (deferd, ann, _dir) = with_users();
    let mut client = deferd.client();
    let authorization = ("authorization", ann.as_str());
    let reply = client.request("POST", "/hook/s-environ", &[SIGNED], CONTENT).expect(202);
    let path = format!("/_api/job/{}", reply.id().unwrap());
    client.get(&path).expect_error(401, 11);
    eventually("it is done", || client.request("GET", &path, &[authorization], b"").status == 200);
    client.request("PUT", &path, &[authorization], b"").expect(200);
    // A user does not replace a signature, nor a signature a user.
    post(&mut deferd.client(), &[authorization], CONTENT).expect_error(401, 11);
    deferd.client().request("POST", "/run/s-cat", &[SIGNED], CONTENT).expect_error(401, 11);
    // The other fields that were sent with the signature go nowhere.
    let fields = [SIGNED, authorization, ("x-arango-async", "no")];
    let seen = client.request("POST", "/hook/s-environ", &fields, CONTENT).expect(200).text();
    assert!(!seen.contains(&ann[7..]), "{seen}");
}

#[test]
fn a_route_s_options_for_signatures_belong_together() {
    let dir = TempDir::new();
    let (good, empty) = (private(&dir, "good", SECRET), private(&dir, "empty", "\n# none\n"));
    let users = private(&dir, "users", &format!("ann:{}", hex(&Hash::hash(b"token"))));
    let open = private(&dir, "open", SECRET);
    fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).unwrap();
    let [good, empty, open, users] = [good, empty, open, users].map(|p| p.display().to_string());
    let missing = dir.join("missing").display().to_string();
    let auth = ["--auth", users.as_str()];
    for (secret, options, arguments, part) in [
        (&good, ",signature=github", &auth[..], "needs owner=USER"),
        (&good, ",signature=github,owner=ann", &[], "owner=USER without --auth"),
        (&good, "", &[], "secret=FILE needs signature="),
        (&good, ",signature=sha1", &[], "neither github, gitea, gitlab nor standard"),
        (&empty, ",signature=github", &[], "it has no secret"),
        (&open, ",signature=github", &[], "chmod 600"),
        (&missing, ",signature=github", &[], "No such file"),
        (&good, ",signature=standard", &[], "line 1: not of the form whsec_BASE64"),
        // The signature does not replace users for the other routes.
        (&good, ",signature=github", &["--listen", "0.0.0.0:0"], "not a loopback address"),
    ] {
        let route = format!("/hook/=run:/tmp,secret={secret}{options}");
        let mut all = vec!["--listen", "127.0.0.1:0", "--route", &route];
        all.extend_from_slice(arguments);
        let ended = run_deferd(&all);
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        assert!(ended.stderr.contains(part), "{part}: {}", ended.stderr);
        assert!(!ended.stderr.contains(SECRET), "{}", ended.stderr);
    }
}

#[test]
fn a_local_redirect_reaches_no_route_with_another_secret() {
    let dir = TempDir::new();
    let [one, two] = ["one", "two"].map(|name| private(&dir, name, name).display().to_string());
    let scripts = fixtures().display().to_string();
    let routes = [
        format!("/one/=cgi:{scripts},secret={one},signature=github"),
        format!("/same/=run:{scripts},secret={one},signature=gitea"),
        format!("/two/=run:{scripts},secret={two},signature=github"),
        format!("/open/=cgi:{scripts}"),
    ];
    let arguments: Vec<&str> = routes.iter().flat_map(|route| ["--route", route]).collect();
    let deferd = Deferd::start(&arguments);
    let mut client = deferd.client();
    for (from, to, status) in [
        ("/one", "/two", 403),
        ("/open", "/two", 403),
        ("/one", "/same", 200),
        ("/one", "/open", 502),
    ] {
        let body = format!("Location: {to}/s-cat\n\n");
        let code = signed("one", body.as_bytes());
        let fields = [("x-hub-signature-256", code.as_str())];
        let target = format!("{from}/s-cat");
        let reply = client.request("POST", &target, &fields, body.as_bytes()).expect(status);
        assert_eq!(reply.text().contains("another secret"), status == 403, "{from} {to}");
        let fields = [fields[0], ("x-arango-async", "store")];
        let reply = client.request("POST", &target, &fields, body.as_bytes()).expect(202);
        client.result(reply.id().unwrap()).expect(status);
    }
}

#[test]
fn queries_of_signed_routes_are_not_logged() {
    let (deferd, _dir) = start("github", SECRET, "", &[]);
    let mut client = deferd.client();
    for (fields, status) in [(&[SIGNED][..], 200), (&[], 401)] {
        for prefix in ["", "/_db/_system"] {
            let target = format!("{prefix}/hook/s-cat?token=hidden");
            deferd.client().request("POST", &target, fields, CONTENT).expect(status);
        }
    }
    let without_effect = [SIGNED, ("x-arango-async", "no")];
    client.request("POST", "/hook/s-cat?token=hidden", &without_effect, CONTENT).expect(200);
    // Refused because of its page, before anything else is examined.
    let foreign = [("origin", "https://evil.example")];
    client.request("POST", "/hook/s-cat?token=hidden", &foreign, b"").expect(403);
    client.get("/_admin/time?shown").expect(200);
    eventually("the log has all", || deferd.log().contains("/_admin/time?shown"));
    let log = deferd.log();
    assert!(log.matches("target=/hook/s-cat ").count() >= 4, "{log}");
    assert_eq!(log.matches("it has no effect").count(), 1, "{log}");
    assert!(!log.contains("hidden") && log.contains("is not signed"), "{log}");
}
