//! Who is authorized, and to whom jobs belong.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use crate::support::{
    Ability, Client, Deferd, Ended, Reply, TempDir, eventually, fixtures, lacks, run, run_deferd,
};
use serde_json::json;

/// Returns a fresh token and its line for the file.
fn token(user: &str) -> (String, String) {
    let Ended { code, stdout: text, .. } = run_deferd(&["token", user]);
    assert_eq!(code, Some(0));
    let after = |label: &str| text.lines().find_map(|l| l.strip_prefix(label)).unwrap().to_owned();
    (after("token: "), after("line for --auth: "))
}

fn write_private(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// A deferd with two users, and their `authorization` values.
struct State {
    deferd: Deferd,
    dir: TempDir,
    ann: String,
    bob: String,
}

impl State {
    fn start(arguments: &[&str]) -> Self {
        let dir = TempDir::new();
        let ((ann, ann_line), (bob, bob_line)) = (token("ann"), token("bob"));
        write_private(&dir.join("users"), &format!("# users\n{ann_line}\n{bob_line}\n"));
        let file = dir.join("users").display().to_string();
        let mut all = vec!["--auth", file.as_str()];
        all.extend_from_slice(arguments);
        let deferd = Deferd::with_scripts("", &all);
        Self { deferd, dir, ann: format!("Bearer {ann}"), bob: format!("Bearer {bob}") }
    }
}

#[track_caller]
fn ask(client: &mut Client, user: &str, method: &str, target: &str) -> Reply {
    client.request(method, target, &[("authorization", user)], b"")
}

#[track_caller]
fn submit(client: &mut Client, user: &str, target: &str) -> String {
    let fields = [("authorization", user), ("x-arango-async", "store")];
    client.request("GET", target, &fields, b"").expect(202).id().unwrap().to_owned()
}

#[track_caller]
fn wait_done(client: &mut Client, user: &str, id: &str) {
    eventually("the job is done", || {
        ask(client, user, "GET", &format!("/_api/job/{id}")).status == 200
    });
}

#[test]
fn without_credentials_only_availability_is_answered() {
    let guarded = State::start(&[]);
    let mut client = guarded.deferd.client();
    for target in [
        "/_api/version",
        "/_api/job/done",
        "/nowhere",
        "/_db/other/_api/version",
        "/run/nothing",
        "/_admin/ui",
    ] {
        let reply = client.get(target).expect_error(401, 11);
        let challenge = reply.header("www-authenticate");
        assert_eq!(challenge, Some(r#"Basic realm="deferd", charset="UTF-8""#), "{target}");
        assert!(reply.text().contains("not authorized to execute this request"));
    }
    client
        .request("GET", "/_api/version", &[("x-arango-async", "store")], b"")
        .expect_error(401, 11);
    for target in ["/_admin/server/availability", "/_db/_system/_admin/server/availability"] {
        client.get(target).expect(200);
    }
    let deferred = [("x-arango-async", "store")];
    client.request("GET", "/_admin/server/availability", &deferred, b"").expect_error(401, 11);
    ask(&mut client, &guarded.ann, "GET", "/_api/version").expect(200);
    ask(&mut client, "Bearer wrong", "GET", "/_api/version").expect_error(401, 11);
    ask(&mut client, "Basic YW5uOndyb25n", "GET", "/_api/version").expect_error(401, 11);
}

#[test]
fn credentials_are_checked_before_the_content_is_read() {
    if lacks(Ability::EarlyRefusal) {
        return;
    }
    let guarded = State::start(&[]);
    let mut client = guarded.deferd.client();
    client.send(
        b"POST /_admin/echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\
          expect: 100-continue\r\n\r\n",
    );
    assert_eq!(client.try_read("POST").unwrap().status, 401);
    assert!(client.is_closed());
}

#[test]
fn a_job_does_not_exist_for_others() {
    let guarded = State::start(&[]);
    let (ann, bob) = (&guarded.ann, &guarded.bob);
    let mut client = guarded.deferd.client();
    let done = submit(&mut client, ann, "/_api/version");
    wait_done(&mut client, ann, &done);
    let running = submit(&mut client, ann, "/_admin/sleep?duration=3600");
    for id in [&done, &running] {
        for (method, rest) in [
            ("GET", ""),
            ("GET", "/result"),
            ("GET", "/log"),
            ("PUT", ""),
            ("PUT", "/cancel"),
            ("POST", "/cancel"),
            ("DELETE", ""),
        ] {
            ask(&mut client, bob, method, &format!("/_api/job/{id}{rest}")).expect_error(404, 404);
        }
    }
    for list in ["done", "pending"] {
        let reply = ask(&mut client, bob, "GET", &format!("/_api/job/{list}")).expect(200);
        assert_eq!(reply.json(), json!([]));
    }
    ask(&mut client, bob, "DELETE", "/_api/job/all").expect(200);
    ask(&mut client, bob, "DELETE", "/_api/job/expired?stamp=99999999999").expect(200);
    let listed = |client: &mut Client, list: &str| {
        ask(client, ann, "GET", &format!("/_api/job/{list}")).expect(200).json()
    };
    assert_eq!(listed(&mut client, "done"), json!([done]));
    assert_eq!(listed(&mut client, "pending"), json!([running]));
    assert_eq!(ask(&mut client, ann, "PUT", &format!("/_api/job/{done}")).id(), Some(&*done));
    ask(&mut client, ann, "PUT", &format!("/_api/job/{running}/cancel")).expect(200);
    wait_done(&mut client, ann, &running);
    ask(&mut client, ann, "DELETE", "/_api/job/all").expect(200);
    assert_eq!(listed(&mut client, "done"), json!([]));
}

#[test]
fn a_kept_log_does_not_exist_for_others() {
    let guarded = State::start(&[]);
    let (ann, bob) = (&guarded.ann, &guarded.bob);
    let mut client = guarded.deferd.client();
    let id = submit(&mut client, ann, "/run/s-lines?3");
    wait_done(&mut client, ann, &id);
    let (job, log) = (format!("/_api/job/{id}"), format!("/_api/job/{id}/log"));
    ask(&mut client, ann, "PUT", &job).expect(200);
    let told = |client: &mut Client| ask(client, ann, "GET", &log);
    // tiny_http may read the next request before it has settled the receipt of the last answer.
    eventually("its log is kept", || told(&mut client).status == 200);
    ask(&mut client, bob, "GET", &log).expect_error(404, 404);
    for target in [&*job, "/_api/job/all", "/_api/job/expired?stamp=99999999999"] {
        ask(&mut client, bob, "DELETE", target);
        assert_eq!(told(&mut client).expect(200).text(), "1\n2\n3\n", "{target}");
    }
    ask(&mut client, ann, "DELETE", &job).expect_error(404, 404);
    told(&mut client).expect_error(404, 404);
}

/// A key counts only for requests of its own user.
#[test]
fn users_with_the_same_key_have_jobs_of_their_own() {
    let guarded = State::start(&[]);
    let mut client = guarded.deferd.client();
    let mut send = |user: &str, target: &str| {
        let named = [("x-arango-async", "store"), ("idempotency-key", "one")];
        let fields = [&[("authorization", user)], &named[..]].concat();
        client.request("POST", target, &fields, b"x")
    };
    let of_ann = send(&guarded.ann, "/run/s-cat").expect(202);
    // A different request under a key that ann has already used: bob learns nothing about that.
    let of_bob = send(&guarded.bob, "/_api/version").expect(202);
    assert_ne!(of_ann.id(), of_bob.id());
    assert_eq!(send(&guarded.ann, "/run/s-cat").expect(202).id(), of_ann.id());
    assert_eq!(send(&guarded.bob, "/_api/version").expect(202).id(), of_bob.id());
    send(&guarded.ann, "/_api/version").expect_error(422, 422);
    ask(&mut guarded.deferd.client(), &guarded.bob, "DELETE", "/_api/job/all").expect(200);
    assert_eq!(send(&guarded.ann, "/run/s-cat").expect(202).id(), of_ann.id());
    assert_ne!(send(&guarded.bob, "/_api/version").expect(202).id(), of_bob.id());
}

#[test]
fn a_script_sees_the_user_and_never_the_token() {
    let guarded = State::start(&[]);
    let echo = guarded.dir.join("bin");
    fs::create_dir(&echo).unwrap();
    fs::write(echo.join("env"), "#!/bin/sh\nenv\n").unwrap();
    fs::set_permissions(echo.join("env"), fs::Permissions::from_mode(0o755)).unwrap();
    let route = format!("/env/=run:{}", echo.display());
    let file = guarded.dir.join("users").display().to_string();
    let deferd = Deferd::start(&["--auth", &file, "--route", &route]);
    let text = ask(&mut deferd.client(), &guarded.ann, "GET", "/env/env").expect(200).text();
    assert!(text.contains("REMOTE_USER=ann\n") && text.contains("AUTH_TYPE=Bearer\n"), "{text}");
    let secret = guarded.ann.strip_prefix("Bearer ").unwrap();
    assert!(!text.contains(secret), "{text}");
    eventually("the log has the user", || deferd.log().contains("owner=ann"));
    assert!(!deferd.log().contains(secret));
}

#[test]
fn sighup_reads_the_file_again_unless_it_is_broken() {
    let guarded = State::start(&[]);
    let mut client = guarded.deferd.client();
    let (carl, line) = token("carl");
    let carl = format!("Bearer {carl}");
    ask(&mut client, &carl, "GET", "/_api/version").expect(401);
    write_private(&guarded.dir.join("users"), &line);
    guarded.deferd.signal("-HUP");
    eventually("the new user is let in", || {
        ask(&mut client, &carl, "GET", "/_api/version").status == 200
    });
    ask(&mut client, &guarded.ann, "GET", "/_api/version").expect(401);
    fs::write(guarded.dir.join("users"), "nonsense").unwrap();
    guarded.deferd.signal("-HUP");
    eventually("the log tells", || guarded.deferd.log().contains("cannot reload the auth file"));
    ask(&mut client, &carl, "GET", "/_api/version").expect(200);
}

/// Returns whether this is root: only root may give a file to another group.
fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// Runs a deferd that reads its users from this file, and has this directory of credentials.
fn with_file(file: &Path, credentials: &Path) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_deferd"));
    command.args(["--listen", "127.0.0.1:0", "--auth"]).arg(file);
    // It exits by itself, after it has reported what is wrong with the users.
    command.args(["--data", "/dev/null"]).env("CREDENTIALS_DIRECTORY", credentials);
    run(&mut command)
}

#[test]
fn the_file_may_be_readable_by_deferds_group_only() {
    let dir = TempDir::new();
    let file = dir.join("users");
    write_private(&file, &token("ann").1);
    let set = |mode| fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
    let told = || with_file(&file, Path::new("")).stderr;
    for mode in [0o600, 0o400, 0o640, 0o440] {
        set(mode);
        assert!(told().contains("--data"), "{mode:o}: {}", told());
    }
    for mode in [0o660, 0o644, 0o604, 0o650] {
        set(mode);
        assert!(told().contains("chmod 600"), "{mode:o}: {}", told());
    }
    set(0o640);
    let other = fs::metadata(&file).unwrap().gid() + 1;
    if is_root() {
        std::os::unix::fs::chown(&file, None, Some(other)).unwrap();
        assert!(told().contains("chmod 600"), "{}", told());
    }
}

/// systemd's credentials have the mode 0440, and only deferd can enter their directory.
#[test]
fn a_credential_of_systemd_is_read() {
    let dir = TempDir::new();
    let [credentials, elsewhere] = ["credentials", "elsewhere"].map(|name| {
        fs::create_dir(dir.join(name)).unwrap();
        let file = dir.join(name).join("users");
        write_private(&file, &token("ann").1);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o440)).unwrap();
        if is_root() {
            // If the file belonged to deferd's own group, it would be read for that reason.
            let other = fs::metadata(&file).unwrap().gid() + 1;
            std::os::unix::fs::chown(&file, None, Some(other)).unwrap();
        }
        dir.join(name)
    });
    let told = |file: &Path, credentials: &Path| with_file(file, credentials).stderr;
    let users = credentials.join("users");
    assert!(told(&users, &credentials).contains("--data"));
    if is_root() {
        let outside = credentials.join("../elsewhere/users");
        std::os::unix::fs::symlink(&outside, credentials.join("link")).unwrap();
        for (file, credentials) in [
            (users.clone(), elsewhere.as_path()),
            (users.clone(), Path::new("")),
            (users.clone(), Path::new("/")),
            (outside, &credentials),
            (credentials.join("link"), &credentials),
        ] {
            let told = told(&file, credentials);
            assert!(told.contains("chmod 600"), "{file:?} {credentials:?}: {told}");
        }
    }
    fs::set_permissions(&users, fs::Permissions::from_mode(0o444)).unwrap();
    assert!(told(&users, &credentials).contains("chmod 600"));
}

#[test]
fn a_file_that_others_can_read_is_refused() {
    let dir = TempDir::new();
    fs::write(dir.join("users"), token("ann").1).unwrap();
    fs::set_permissions(dir.join("users"), fs::Permissions::from_mode(0o644)).unwrap();
    let file = dir.join("users").display().to_string();
    let Ended { code, stderr: error, .. } =
        run_deferd(&["--listen", "127.0.0.1:0", "--auth", &file]);
    assert_eq!(code, Some(2));
    assert!(error.contains("--auth") && error.contains(&file) && error.contains("chmod 600"));
}

#[test]
fn credentials_are_not_among_what_is_kept() {
    let data = TempDir::new();
    let store = data.join("store").display().to_string();
    let guarded = State::start(&["--data", &store]);
    let mut client = guarded.deferd.client();
    let id = submit(&mut client, &guarded.ann, "/_admin/echo");
    wait_done(&mut client, &guarded.ann, &id);
    submit(&mut client, &guarded.ann, "/_admin/sleep?duration=3600");
    let kept = fs::read(data.join("store/jobs.redb")).unwrap();
    let has = |what: &str| kept.windows(what.len()).any(|bytes| bytes == what.as_bytes());
    let token = guarded.ann.strip_prefix("Bearer ").unwrap();
    assert!(has("x-arango-async: store") && !has(token), "the token is on the disk");
    let result = ask(&mut client, &guarded.ann, "PUT", &format!("/_api/job/{id}")).text();
    assert!(result.contains("/_admin/echo") && !result.contains(token), "{result}");
}

/// A request may be refused for its head, by a check, or for its content or signature.
#[test]
fn a_refused_request_is_logged_with_owner_and_route() {
    let dir = TempDir::new();
    write_private(&dir.join("secret"), "secret");
    let scripts = fixtures().display().to_string();
    let secret = dir.join("secret").display().to_string();
    let hook =
        format!("/hook/=run:{scripts},secret={secret},signature=gitlab,owner=bob,methods=POST");
    let post = format!("/post/=run:{scripts},methods=POST");
    let guarded = State::start(&["--route", &hook, "--route", &post, "--max-body", "100K"]);
    let large = vec![b'x'; 70_000];
    let too_large = vec![b'x'; 200_000];
    let ann = ("authorization", guarded.ann.as_str());
    let signed = ("x-gitlab-token", "secret");
    let chunked = ("transfer-encoding", "chunked");
    let chunks = [b"30d40\r\n", &*too_large, b"\r\n0\r\n\r\n"].concat();
    let cases = [
        (&[ann, ("host", "b")][..], "PUT", "/run/s-cat", &b""[..], 400, "-", "-"),
        (&[], "GET", "/run/s-cat", b"", 401, "-", "/run/"),
        (&[ann], "GET", "/nowhere", b"", 404, "ann", "-"),
        (&[ann], "GET", "/post/s-cat", b"", 405, "ann", "/post/"),
        (&[ann], "GET", "/run/s-none", b"", 404, "ann", "/run/"),
        (&[ann], "POST", "/_admin/time", &large, 413, "ann", "/_admin/"),
        (&[ann, chunked], "POST", "/run/s-cat", &chunks, 413, "ann", "/run/"),
        (&[signed, chunked], "POST", "/hook/s-cat", &chunks, 413, "-", "/hook/"),
        (&[("x-gitlab-token", "other")], "POST", "/hook/s-cat", b"x", 401, "-", "/hook/"),
        (&[signed], "PUT", "/hook/s-cat", b"x", 405, "bob", "/hook/"),
        (&[signed], "POST", "/hook/s-none", b"x", 404, "bob", "/hook/"),
    ];
    for (fields, method, path, content, status, owner, route) in cases {
        let mut client = guarded.deferd.client();
        let target = format!("{path}?token");
        if fields.contains(&chunked) {
            let lines = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
            let lines: String = lines.collect();
            let head = format!("{method} {target} HTTP/1.1\r\nhost: a\r\n{lines}\r\n");
            // deferd may answer and close before it has read all of this.
            let _ = client.socket().write_all(&[head.as_bytes(), content].concat());
        } else {
            client.send_request(method, &target, fields, content);
        }
        assert_eq!(client.try_read(method).expect("an answer").status, status, "{target}");
        let peer = client.socket().local_addr().unwrap();
        let log = guarded.deferd.log_with(&format!("peer={peer} "));
        let line = log.lines().find(|line| line.contains(&format!("peer={peer} "))).unwrap();
        // Senders of signed requests have tokens in their queries, and a refused head has no route.
        let is_told = status != 400 && route != "/hook/";
        let shown = if is_told { &target } else { path };
        let begin =
            format!("request={method} target={shown} peer={peer} owner={owner} route={route} ");
        assert!(line.contains(&begin), "{begin}: {line}");
        assert!(line.contains(&format!(" status={status} ")), "{line}");
        assert!(line.contains(" refused={\"error\":true,"), "{line}");
    }
}
