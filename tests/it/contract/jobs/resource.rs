//! The job resource: the rows of its table for one job, and every request that it refuses.
//!
//! `lists` has the lists and the deletions of many, `cancel` has cancelling.

use std::io::Read;
use std::thread;

use crate::support::hold::Hold;
use crate::support::{Ability, Client, Deferd, Reply, TempDir, eventually, lacks};
use serde_json::json;

/// The three places of the job resource.
const PLACES: [&str; 3] = ["/_api/job", "/_admin/job", "/_db/_system/_api/job"];

fn job(id: &str) -> String {
    format!("/_api/job/{id}")
}

/// Starts a deferd; returns it with a client and a job that is done: `c-talk`, with stdout, stderr and an exit code.
fn with_done_job() -> (Deferd, Client, String) {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let id = client.store("GET", "/run/c-talk", b"");
    client.wait_done(&id);
    (deferd, client, id)
}

#[track_caller]
fn assert_result(reply: &Reply, id: &str) {
    assert_eq!((reply.status, reply.text().as_str()), (500, "output\n"));
    assert_eq!(reply.header("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(reply.header("x-exit-code"), Some("3"));
    assert_eq!(reply.header("x-arango-async-id"), Some(id));
    assert_eq!(reply.header("x-arango-async-job-id"), Some(id));
}

#[track_caller]
fn assert_empty(reply: Reply, status: u16) {
    assert_eq!(reply.expect(status).without_id().body, b"");
}

#[test]
fn a_done_job_in_every_row_at_every_place() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    for place in PLACES {
        for slash in ["", "/"] {
            let id = client.store("GET", "/run/c-talk", b"");
            client.wait_done(&id);
            let target = format!("{place}/{id}");
            assert_empty(client.get(&format!("{target}{slash}")), 200);
            assert_empty(client.get(&format!("{target}{slash}")), 200);
            assert_result(&client.get(&format!("{target}/result{slash}")), &id);
            assert_result(&client.get(&format!("{target}/result{slash}")), &id);
            let log = client.get(&format!("{target}/log{slash}")).expect(200).without_id();
            assert_eq!(log.text(), "first line\nlast line\n");
            assert!(log.header("content-type").unwrap().starts_with("text/plain"));
            let cancel = client.put(&format!("{target}/cancel{slash}")).expect(200).without_id();
            assert_eq!(cancel.json(), json!({"result": true}));
            assert_result(&client.put(&format!("{target}{slash}")), &id);
            client.put(&target).expect_error(404, 404);
            let id = client.store("GET", "/run/c-talk", b"");
            client.wait_done(&id);
            let target = format!("{place}/{id}{slash}");
            let deleted = client.delete(&target).expect(200).without_id();
            assert_eq!(deleted.text(), r#"{"result":true}"#);
            client.delete(&target).expect_error(404, 404);
        }
    }
}

#[test]
fn a_pending_job_in_every_row() {
    let deferd = Deferd::with_scripts("", &["--workers", "1"]);
    let mut client = deferd.client();
    let hold = Hold::new();
    let running = hold.start(&mut client);
    let queued = client.store("GET", "/_api/version", b"");
    for (id, state) in [(&running, "running"), (&queued, "waiting")] {
        let status = client.get(&job(id));
        assert_eq!(status.header("x-job-state"), Some(state));
        assert_eq!(status.header("retry-after"), Some("1"));
        assert_empty(status, 204);
        assert_empty(client.put(&job(id)), 204);
        assert_empty(client.get(&job(&format!("{id}/result"))), 204);
        client.get(&job(&format!("{id}/log"))).expect(200).without_id();
    }
    let deleted = client.delete(&job(&queued)).expect(200).without_id();
    assert_eq!(deleted.text(), r#"{"result":true}"#);
    let cancel = client.put(&job(&format!("{running}/cancel"))).expect(200).without_id();
    assert_eq!(cancel.text(), r#"{"result":true}"#);
}

#[test]
fn an_unknown_or_collected_job_is_404_in_every_row() {
    let (deferd, mut client, id) = with_done_job();
    client.put(&job(&id)).expect(500);
    // This only removes the log, which outlives the collection: once the client has the result, or a little later.
    eventually("the log is removed", || {
        client.delete(&job(&id)).expect_error(404, 404);
        client.get(&job(&format!("{id}/log"))).status == 404
    });
    for id in [id.as_str(), "1", "18446744073709551615"] {
        for place in PLACES {
            let target = format!("{place}/{id}");
            for (method, below) in [
                ("PUT", ""),
                ("GET", ""),
                ("GET", "/result"),
                ("GET", "/log"),
                ("PUT", "/cancel"),
                ("POST", "/cancel"),
                ("DELETE", ""),
            ] {
                let reply = client.request(method, &format!("{target}{below}"), &[], b"");
                let reply = reply.expect_error(404, 404).without_id();
                assert_eq!(
                    reply.text(),
                    r#"{"error":true,"errorMessage":"not found","code":404,"errorNum":404}"#
                );
                let hint = reply.header("x-hint").unwrap();
                for what in ["collected", "deleted", "--ttl", "--data", "another user"] {
                    assert!(hint.contains(what), "{hint}");
                }
            }
            client.request("HEAD", &target, &[], b"").expect(404).without_id();
        }
    }
    drop(deferd);
}

#[test]
fn only_the_canonical_form_is_an_id() {
    let (_deferd, mut client, id) = with_done_job();
    let encoded = format!("%{:x}{}", id.as_bytes()[0], &id[1..]);
    let zero = format!("0{id}");
    let (plus, minus, blank) = (format!("+{id}"), format!("-{id}"), format!("{id}%20"));
    for hostile in [
        "0123",
        "-5",
        "+5",
        "12abc",
        "18446744073709551616",
        "184467440737095516150",
        "%31",
        "0",
        "00",
        "foobar",
        "%20",
        "1.0",
        "1e3",
        "0x1",
        "%",
        "%zz",
        "%d9%a3",
        "..",
        ".",
        "Done",
        "done%20",
        &encoded,
        &zero,
        &plus,
        &minus,
        &blank,
    ] {
        for (method, below, status) in [
            ("PUT", "", 404),
            ("PUT", "/cancel", 404),
            ("DELETE", "", 404),
            ("GET", "", 400),
            ("GET", "/result", 400),
            ("GET", "/log", 400),
        ] {
            let target = job(&format!("{hostile}{below}"));
            // As in ArangoDB, a number is a job that does not exist; anything else is invalid.
            let is_number = hostile.bytes().all(|b| b.is_ascii_digit());
            let status = if is_number { 404 } else { status };
            let reply = client.request(method, &target, &[], b"").expect_error(status, status);
            assert!(reply.without_id().header("x-hint").is_some(), "{method} {target}");
        }
    }
    assert_result(&client.put(&job(&id)), &id);
}

#[test]
fn a_path_without_exactly_one_id_is_400() {
    let (_deferd, mut client, id) = with_done_job();
    for place in PLACES {
        for method in ["PUT", "GET", "DELETE"] {
            for slash in ["", "/", "?count=1", "/?stamp=1"] {
                let reply = client.request(method, &format!("{place}{slash}"), &[], b"");
                assert_eq!(
                    reply.expect_error(400, 400).text(),
                    r#"{"error":true,"errorMessage":"bad parameter","code":400,"errorNum":400}"#
                );
            }
        }
    }
    for (method, path) in [
        ("PUT", format!("{id}/cancel/now")),
        ("PUT", format!("{id}/cancle")),
        ("PUT", format!("{id}/CANCEL")),
        ("PUT", format!("{id}/result")),
        ("PUT", format!("{id}//")),
        ("PUT", format!("/{id}")),
        ("GET", format!("{id}/cancel")),
        ("GET", format!("{id}/result/x")),
        ("GET", format!("{id}//")),
        ("GET", format!("/{id}")),
        ("GET", "done/1".into()),
        ("GET", "pending/1".into()),
        ("GET", "/".into()),
        ("GET", "all".into()),
        ("GET", "expired?stamp=1".into()),
        ("DELETE", format!("{id}/cancel")),
        ("DELETE", format!("{id}//")),
        ("DELETE", format!("/{id}")),
        ("DELETE", "all/1".into()),
        ("DELETE", "expired/1?stamp=9999999999".into()),
    ] {
        client.request(method, &job(&path), &[], b"").expect_error(400, 400).without_id();
    }
    for (method, path) in
        [("PUT", "done"), ("PUT", "all"), ("DELETE", "done"), ("DELETE", "pending")]
    {
        client.request(method, &job(path), &[], b"").expect_error(404, 404);
    }
    assert_result(&client.put(&job(&id)), &id);
}

#[test]
fn any_other_method_is_405_with_allow() {
    let (_deferd, mut client, id) = with_done_job();
    for method in ["POST", "PATCH", "TRACE", "BREW", "get"] {
        for path in ["", "/", "/done", "/pending", "/all", &format!("/{id}"), "/foobar", "/1/2/3"] {
            let target = format!("/_api/job{path}");
            let reply = client.request(method, &target, &[], b"").expect_error(405, 405);
            let allow = reply.without_id().header("allow").unwrap().to_owned();
            let mut methods: Vec<_> = allow.split(", ").collect();
            methods.sort_unstable();
            assert_eq!(methods, ["DELETE", "GET", "HEAD", "OPTIONS", "PUT"]);
        }
    }
    client.get(&job(&id)).expect(200);
}

#[test]
fn head_is_answered_as_get_without_content_and_changes_nothing() {
    let (_deferd, mut client, id) = with_done_job();
    for path in
        ["done", "pending", &id, &format!("{id}/result"), &format!("{id}/log"), "1", "x", ""]
    {
        let target = job(path);
        let (get, head) = (client.get(&target), client.request("HEAD", &target, &[], b""));
        assert_eq!(head.status, get.status, "{target}");
        for name in ["content-type", "content-length", "x-arango-async-id", "x-exit-code"] {
            assert_eq!(head.header(name), get.header(name), "{target}");
        }
    }
    assert_result(&client.put(&job(&id)), &id);
}

#[test]
fn options_is_answered_with_allow_and_changes_nothing() {
    let (_deferd, mut client, id) = with_done_job();
    for path in ["", "all", &id, &format!("{id}/cancel"), "expired"] {
        let reply = client.request("OPTIONS", &job(path), &[], b"").expect(200).without_id();
        assert!(reply.header("allow").unwrap().contains("PUT"));
    }
    assert_result(&client.put(&job(&id)), &id);
}

#[test]
fn a_result_goes_to_exactly_one_of_many_collectors() {
    let deferd = Deferd::start(&[]);
    let count = if lacks(Ability::ManyConnections) { 3 } else { 8 };
    for _ in 0..5 {
        let id = deferd.client().store("GET", "/_api/version", b"");
        deferd.client().wait_done(&id);
        let mut clients: Vec<_> = (0..count).map(|_| deferd.client()).collect();
        let statuses: Vec<u16> = thread::scope(|scope| {
            let collect = |client: &mut Client| {
                let reply = client.put(&job(&id));
                assert_eq!(reply.id().is_some(), reply.status == 200);
                reply.status
            };
            let threads: Vec<_> =
                clients.iter_mut().map(|client| scope.spawn(move || collect(client))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let with = |status| statuses.iter().filter(|&&s| s == status).count();
        assert_eq!((with(200), with(404)), (1, count - 1));
    }
}

#[test]
fn a_broken_collection_keeps_the_result() {
    const SIZE: usize = 64 << 20;
    let deferd = Deferd::with_scripts(",max-output=64M", &[]);
    let mut client = deferd.client();
    let id = client.store("GET", &format!("/run/c-zeros?{SIZE}"), b"");
    client.wait_done(&id);
    let mut broken = deferd.client();
    broken.send_request("PUT", &job(&id), &[], b"");
    // Its first byte has arrived, and far more than fits into the buffers is still to come.
    broken.socket().read_exact(&mut [0; 1]).unwrap();
    client.put(&job(&id)).expect_error(404, 404);
    client.get(&job(&id)).expect_error(404, 404);
    drop(broken);
    eventually("the result is back", || client.get(&job(&id)).status == 200);
    assert_eq!(client.list("done"), [id.as_str()]);
    assert_eq!(client.result(&id).expect(200).body.len(), SIZE);
    client.put(&job(&id)).expect_error(404, 404);
}

#[test]
fn a_result_is_replayed_without_fields_of_the_connection() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    for status in ["200", "299", "302", "404", "418", "503", "599"] {
        let id = client.store("GET", &format!("/cgi/c-status?{status}"), b"");
        let result = client.result(&id).expect(status.parse().unwrap());
        assert_eq!(result.header("content-type"), Some("text/x-own"));
        assert_eq!(result.header("x-own"), Some("yes"));
        let cookies = result.headers.iter().filter(|(name, _)| name == "set-cookie");
        assert_eq!(cookies.map(|(_, value)| value.as_str()).collect::<Vec<_>>(), ["a=1", "b=2"]);
        for hop in ["connection", "x-hop", "keep-alive", "transfer-encoding"] {
            assert_eq!(result.header(hop), None);
        }
        assert_eq!(result.header("content-length"), Some("11"));
        assert_eq!(result.text(), "own content");
        assert_eq!(result.header("x-arango-async-job-id"), Some(&*id));
    }
}

#[test]
fn the_id_marks_a_jobs_own_204_and_404() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    for status in [204, 404] {
        let id = client.store("GET", &format!("/cgi/c-status?{status}"), b"");
        client.wait_done(&id);
        let peeked = client.get(&job(&format!("{id}/result"))).expect(status);
        let result = client.put(&job(&id)).expect(status);
        for reply in [peeked, result] {
            assert_eq!(reply.id(), Some(&*id));
            assert_eq!(reply.header("x-own"), Some("yes"));
        }
        client.put(&job(&id)).expect_error(404, 404);
    }
}

#[test]
fn the_status_of_a_done_job_says_how_it_ended() {
    let dir = TempDir::new();
    let data = dir.join("data").display().to_string();
    for arguments in [&[][..], &["--data", &data]] {
        let deferd = Deferd::with_scripts("", arguments);
        let mut client = deferd.client();
        for (target, status, field) in [
            ("/run/s-exit?0", "200", None),
            ("/run/s-exit?3", "500", Some(("x-exit-code", "3"))),
            ("/run/s-signal?KILL", "500", Some(("x-exit-signal", "9"))),
            ("/cgi/c-status?404", "404", None),
            ("/cgi/c-status?599", "599", None),
        ] {
            let id = client.store("GET", target, b"");
            client.wait_done(&id);
            for method in ["GET", "HEAD"] {
                let reply = client.request(method, &job(&id), &[], b"").expect(200).without_id();
                assert_eq!((reply.header("asyncresult"), &*reply.text()), (Some(status), ""));
                for name in ["x-exit-code", "x-exit-signal"] {
                    let expected = field.filter(|(field, _)| *field == name);
                    assert_eq!(reply.header(name), expected.map(|(_, value)| value), "{target}");
                }
            }
        }
        let id = client.store("GET", "/_admin/sleep?duration=600", b"");
        assert_eq!(client.get(&job(&id)).expect(204).header("asyncresult"), None);
        client.put(&job(&format!("{id}/cancel"))).expect(200);
        client.wait_done(&id);
        assert_eq!(client.get(&job(&id)).expect(200).header("asyncresult"), Some("410"));
    }
}

#[test]
fn a_script_cannot_fake_a_collected_result() {
    let deferd = Deferd::with_scripts("", &[]);
    let reply = deferd.client().get("/cgi/c-status?404").expect(404).without_id();
    assert_eq!(reply.header("x-own"), Some("yes"));
}

#[test]
fn progress_and_log_show_stderr_of_running_jobs() {
    let deferd = Deferd::with_scripts("", &["--workers", "1"]);
    let mut client = deferd.client();
    let hold = Hold::new();
    let id = hold.start(&mut client);
    eventually("the progress", || {
        let reply = client.get(&job(&id)).expect(204).without_id();
        reply.header("x-progress") == Some("holding")
    });
    assert_eq!(client.get(&job(&format!("{id}/log"))).expect(200).text(), "holding\n");
    hold.release();
    client.wait_done(&id);
    assert_eq!(client.get(&job(&id)).header("x-progress"), None);
    assert_eq!(client.get(&job(&format!("{id}/log"))).expect(200).text(), "holding\n");
    client.put(&job(&id)).expect(200);
    // The log is kept once the delivery is confirmed.
    eventually("the kept log", || client.get(&job(&format!("{id}/log"))).text() == "holding\n");
}
