//! `idempotency-key`: repeating a submission returns the same job; and which other differences matter.

use std::thread;

use crate::support::{Client, Deferd, Reply, TempDir};

#[track_caller]
fn submit(client: &mut Client, key: &str, target: &str, body: &[u8]) -> Reply {
    let fields = [("x-arango-async", "store"), ("idempotency-key", key)];
    client.request("POST", target, &fields, body)
}

/// Returns a target that appends a line to a file each time it runs, and that file.
fn append(dir: &TempDir) -> (String, std::path::PathBuf) {
    let file = dir.join("runs");
    (format!("/run/c-append?{}", file.display()), file)
}

fn runs(file: &std::path::Path) -> usize {
    std::fs::read_to_string(file).unwrap_or_default().lines().count()
}

#[test]
fn a_repeated_submission_is_the_same_job() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let dir = TempDir::new();
    let (target, file) = append(&dir);
    let first = submit(&mut client, "\"k\"", &target, b"x\n").expect(202);
    let id = first.id().unwrap().to_owned();
    let again = |client: &mut Client, key: &str| {
        let reply = submit(client, key, &target, b"x\n").expect(202);
        assert_eq!(reply.id(), Some(id.as_str()));
        assert_eq!(reply.header("location"), first.header("location"));
    };
    again(&mut client, "\"k\"");
    // Quotes are not part of the key.
    again(&mut client, "k");
    client.wait_done(&id);
    again(&mut client, "\"k\"; p=1");
    client.result(&id).expect(200);
    again(&mut client, "k");
    client.put(&format!("/_api/job/{id}")).expect_error(404, 404);
    assert_eq!(runs(&file), 1);
    // With the preference, it is also the same submission.
    let fields = [("prefer", "respond-async"), ("idempotency-key", "k")];
    let reply = client.request("POST", &target, &fields, b"x\n").expect(202);
    assert_eq!(reply.id(), Some(id.as_str()));
    let other = submit(&mut client, "other", &target, b"x\n").expect(202);
    assert_ne!(other.id(), Some(id.as_str()));
    client.result(other.id().unwrap()).expect(200);
    assert_eq!(runs(&file), 2);
}

#[test]
fn a_key_does_not_stand_for_another_request() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let first = submit(&mut client, "k", "/_admin/echo", b"x").expect(202);
    client.wait_done(first.id().unwrap());
    submit(&mut client, "k", "/_admin/echo?", b"x").expect_error(422, 422);
    submit(&mut client, "k", "/_admin/echo", b"y").expect_error(422, 422);
    for (method, mode) in [("PUT", "store"), ("POST", "true")] {
        let fields = [("x-arango-async", mode), ("idempotency-key", "k")];
        client.request(method, "/_admin/echo", &fields, b"x").expect_error(422, 422);
    }
    // Refused before any of it is kept.
    assert_eq!(client.jobs(), [first.id().unwrap()]);
}

#[test]
fn an_invalid_key_is_refused_if_deferred() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let long = "k".repeat(256);
    for key in ["", "\"\"", "two words", "\"open", long.as_str()] {
        submit(&mut client, key, "/_admin/echo", b"").expect_error(400, 400);
        client.request("POST", "/_admin/echo", &[("idempotency-key", key)], b"").expect(200);
    }
    submit(&mut client, &long[..255], "/_admin/echo", b"").expect(202);
}

#[test]
fn simultaneous_submissions_with_one_key_run_once() {
    let deferd = Deferd::with_scripts("", &[]);
    let dir = TempDir::new();
    let (target, file) = append(&dir);
    let mut ids: Vec<String> = thread::scope(|scope| {
        let clients = [(); 16].map(|()| {
            scope.spawn(|| {
                let reply = submit(&mut deferd.client(), "k", &target, b"x\n").expect(202);
                reply.id().unwrap().to_owned()
            })
        });
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 1);
    deferd.client().result(&ids[0]).expect(200);
    assert_eq!(runs(&file), 1);
}

#[test]
fn a_key_outlives_a_restart_with_a_store_on_disk() {
    let dir = TempDir::new();
    let data = dir.join("data");
    let arguments = ["--data", data.to_str().unwrap()];
    let (target, file) = append(&dir);
    let mut deferd = Deferd::with_scripts("", &arguments);
    let mut client = deferd.client();
    let id = submit(&mut client, "k", &target, b"x\n").expect(202).id().unwrap().to_owned();
    client.result(&id).expect(200);
    deferd.signal("-TERM");
    deferd.wait();
    let deferd = Deferd::with_scripts("", &arguments);
    let mut client = deferd.client();
    assert_eq!(submit(&mut client, "k", &target, b"x\n").expect(202).id(), Some(id.as_str()));
    submit(&mut client, "k", &target, b"y\n").expect_error(422, 422);
    let next = submit(&mut client, "other", &target, b"x\n").expect(202);
    client.result(next.id().unwrap()).expect(200);
    assert_eq!(runs(&file), 2);
}

/// Keys take at most a quarter of `--max-stored`, and are removed with their jobs when an owner deletes all.
#[test]
fn deleting_all_jobs_frees_their_keys() {
    let deferd = Deferd::with_scripts("", &["--max-stored", "64K"]);
    let mut client = deferd.client();
    let mut counts = Vec::new();
    for round in 0..3 {
        let mut ids = Vec::new();
        let refused = loop {
            assert!(ids.len() < 64, "keys are not limited");
            let key = format!("{round}-{:0>200}", ids.len());
            let reply = submit(&mut deferd.client(), &key, "/_api/version", b"");
            let Some(id) = reply.id() else { break reply };
            client.result(id).expect(200);
            ids.push(id.to_owned());
        };
        let text = refused.expect_error(503, 21003).text();
        assert!(text.contains("a quarter of --max-stored"), "{text}");
        counts.push(ids.len());
        // The keys outlive the results that were collected, and likewise a deletion by id.
        client.delete(&format!("/_api/job/{}", ids[0])).expect_error(404, 404);
        let another = format!("{round}-x{:0>199}", 0);
        submit(&mut deferd.client(), &another, "/_api/version", b"").expect_error(503, 21003);
        client.store("GET", "/_admin/time", b"");
        client.delete("/_api/job/all").expect(200);
        let id =
            submit(&mut client, &format!("{round}-{:0>200}", 0), "/_api/version", b"").expect(202);
        assert_ne!(id.id(), Some(ids[0].as_str()), "its key is free");
        client.delete("/_api/job/all").expect(200);
    }
    assert!(counts[0] > 10 && counts.iter().all(|&count| count >= counts[0] - 1), "{counts:?}");
}

#[test]
fn a_known_submission_needs_no_place_in_a_full_queue() {
    let deferd = Deferd::with_scripts("", &["--workers", "1", "--queue", "1"]);
    let mut client = deferd.client();
    let hold = crate::support::hold::Hold::new();
    hold.start(&mut client);
    let first = submit(&mut client, "k", "/_admin/echo", b"x").expect(202);
    submit(&mut client, "other", "/_admin/echo", b"x").expect_error(503, 21003);
    let again = submit(&mut client, "k", "/_admin/echo", b"x").expect(202);
    assert_eq!(again.id(), first.id());
    hold.release();
}

#[test]
fn a_post_can_override_its_method() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    for field in ["x-http-method-override", "x-http-method", "x-method-override"] {
        let id = client.store("GET", "/_admin/time", b"");
        client.wait_done(&id);
        let path = format!("/_api/job/{id}");
        client.request("POST", &path, &[(field, "PUT")], b"").expect(200);
        client.request("POST", &path, &[(field, "DELETE")], b"").expect_error(404, 404);
        client.request("POST", &path, &[(field, "no method")], b"").expect_error(400, 400);
        // Other methods are not overridden.
        client.request("GET", "/_admin/time", &[(field, "DELETE")], b"").expect(200);
        let reply = client.request("POST", "/_admin/echo", &[(field, "BREW")], b"x").expect(200);
        assert_eq!(reply.json()["method"], "BREW");
        // It is framed as the answer to a POST.
        let reply = client.request("POST", "/_admin/echo", &[(field, "HEAD")], b"x").expect(200);
        assert_eq!(reply.json()["method"], "HEAD");
        client.request("POST", "/_api/job", &[(field, "PATCH")], b"").expect_error(405, 405);
    }
}

#[test]
fn options_says_what_is_allowed_and_runs_nothing() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let dir = TempDir::new();
    let (target, file) = append(&dir);
    for (target, allow) in [
        (target.as_str(), "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"),
        ("/_api/version", "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"),
        ("/_admin/echo", "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"),
        ("/_admin/time", "GET, HEAD, OPTIONS"),
        ("/_api/job/1", "DELETE, GET, HEAD, OPTIONS, PUT"),
        ("*", "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"),
    ] {
        let reply = client.request("OPTIONS", target, &[], b"").expect(200);
        assert_eq!(reply.header("allow"), Some(allow), "{target}");
        assert!(reply.body.is_empty());
    }
    client.request("OPTIONS", "/nowhere", &[], b"").expect_error(404, 404);
    assert_eq!(runs(&file), 0);
}
