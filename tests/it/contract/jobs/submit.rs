//! Submitting: what is deferred, what the 202 contains, the ids. `refuse` has what is refused instead.

use std::collections::BTreeSet;

use crate::support::hold::Hold;
use crate::support::{Ability, Client, Deferd, Reply, TempDir, lacks};

const STORE: (&str, &str) = ("x-arango-async", "store");
const TRUE: (&str, &str) = ("x-arango-async", "true");

/// The fields that keep an answer from foreign pages.
const GUARDS: [&str; 2] = ["cross-origin-resource-policy", "x-content-type-options"];

/// Returns the names of the fields that do not belong to the connection.
fn names(reply: &Reply) -> Vec<&str> {
    let own = ["date", "content-length", "connection"];
    let mut names: Vec<_> = reply.headers.iter().map(|(name, _)| name.as_str()).collect();
    names.retain(|name| !own.contains(name));
    // The fields that every answer of deferd's own has come first.
    names.sort_unstable_by_key(|name| (!GUARDS.contains(name), *name));
    names
}

fn target_of(script: &str, file: &std::path::Path) -> String {
    format!("/run/{script}?{}", file.display())
}

#[test]
fn store_is_answered_with_202_and_an_id() {
    let deferd = Deferd::start(&[]);
    let reply = deferd.client().request("GET", "/_api/version", &[STORE], b"").expect(202);
    let others = ["content-type", "location", "x-arango-async-id"];
    assert_eq!(names(&reply), [&GUARDS[..], &others].concat());
    assert_eq!(reply.header("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(reply.header("content-length"), Some("0"));
    assert_eq!(reply.header("location"), Some(&*format!("/_api/job/{}", reply.id().unwrap())));
}

#[test]
fn true_is_answered_with_202_without_an_id() {
    let deferd = Deferd::start(&[]);
    let reply = deferd.client().request("GET", "/_api/version", &[TRUE], b"").expect(202);
    assert_eq!(names(&reply), [&GUARDS[..], &["content-type"]].concat());
    assert_eq!(reply.header("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(reply.header("content-length"), Some("0"));
}

#[test]
fn true_does_the_work_is_never_listed_and_leaves_nothing() {
    let deferd = Deferd::with_scripts("", &["--workers", "1"]);
    let mut client = deferd.client();
    let hold = Hold::new();
    client.request("GET", &hold.target(), &[TRUE], b"").expect(202);
    hold.wait_for("started");
    client.request("GET", "/_admin/time", &[TRUE], b"").expect(202);
    assert_eq!(client.list("pending"), [""; 0], "neither the running nor the waiting one");
    hold.release();
    hold.wait_for("ended");
    // The only worker runs this job after the others, so their results were already dropped.
    let marker = client.store("GET", "/_api/version", b"");
    client.wait_done(&marker);
    assert_eq!(client.list("done"), [marker]);
    assert_eq!(client.list("pending"), [""; 0]);
}

#[test]
fn only_store_and_true_defer_whatever_is_around_them() {
    let deferd = Deferd::start(&[]);
    let mut client = deferd.client();
    for value in ["store", "  store", "store \t ", "\tstore", " true ", "true\t"] {
        let fields = [("x-arango-async", value)];
        client.request("GET", "/_api/version", &fields, b"").expect(202);
    }
    client.request("GET", "/_api/version", &[("X-ARANGO-Async", "store")], b"").expect(202);
    for value in [
        "TRUE",
        "True",
        "STORE",
        "Store",
        "1",
        "",
        " ",
        "yes",
        "false",
        "stores",
        "store;",
        "store,",
        "store true",
        "store, true",
        "\"store\"",
        "tru",
        "\u{a0}store",
        "st ore",
    ] {
        if !value.is_ascii() && lacks(Ability::Ascii) {
            continue;
        }
        let fields = [("x-arango-async", value)];
        let reply = client.request("GET", "/_api/version", &fields, b"").expect(200);
        assert_eq!(reply.text(), r#"{"server":"arango","version":"1.4.3"}"#, "{value:?}");
        assert_eq!((reply.id(), reply.header("location")), (None, None), "{value:?}");
    }
}

#[test]
fn every_method_but_options_can_be_deferred() {
    let deferd = Deferd::start(&[]);
    let mut client = deferd.client();
    for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "TRACE", "PROPFIND", "BREW", "x-y"] {
        let id = client.store(method, "/_admin/echo?a=b", b"content");
        let result = client.result(&id).expect(200).json();
        assert_eq!(result["method"], method);
        assert_eq!((&result["path"], &result["query"]), (&"/_admin/echo".into(), &"a=b".into()));
        assert_eq!(result["body"], "content", "{method}");
    }
}

#[test]
fn collecting_a_deferred_head_does_not_hang() {
    let deferd = Deferd::start(&[]);
    let mut client = deferd.client();
    let reply = client.request("HEAD", "/_admin/echo", &[STORE], b"").expect(202);
    let id = reply.id().unwrap().to_owned();
    let result = client.result(&id).expect(200);
    assert_eq!(result.header("content-type"), Some("application/json; charset=utf-8"));
    assert_eq!(result.header("content-length"), Some("0"));
    // If promised content were missing, this answer would be read as part of it.
    client.get("/_api/version").expect(200);
}

#[test]
fn options_is_never_deferred() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    for field in [STORE, TRUE] {
        for target in ["/_api/job", "/_admin/time", "/run/c-talk"] {
            let reply = client.request("OPTIONS", target, &[field], b"");
            assert!(reply.status != 202 && reply.id().is_none(), "{target} {reply:?}");
        }
    }
    let reply = client.request("OPTIONS", "/_api/job", &[STORE], b"").expect(200);
    assert!(reply.header("allow").is_some());
    assert_eq!(client.jobs(), [""; 0]);
}

#[test]
fn a_job_may_collect_another_jobs_result() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let inner = client.store("GET", "/run/c-talk", b"");
    client.wait_done(&inner);
    let outer = client.store("PUT", &format!("/_api/job/{inner}"), b"");
    client.wait_done(&outer);
    client.get(&format!("/_api/job/{inner}")).expect_error(404, 404);
    let result = client.result(&outer).expect(500);
    assert_eq!((result.text().as_str(), result.header("x-exit-code")), ("output\n", Some("3")));
    assert_eq!(result.header("x-arango-async-job-id"), Some(&*outer));
    client.put(&format!("/_api/job/{outer}")).expect_error(404, 404);
}

#[test]
fn requests_for_the_job_resource_can_be_deferred() {
    let deferd = Deferd::with_scripts("", &["--workers", "2"]);
    let mut client = deferd.client();
    let hold = Hold::new();
    let held = hold.start(&mut client);
    for (method, target, status) in [
        ("GET", "/_api/job/done".to_owned(), 200),
        ("GET", "/_api/job".to_owned(), 400),
        ("PUT", "/_api/job/7".to_owned(), 404),
        ("GET", format!("/_admin/job/{held}"), 204),
        ("PUT", format!("/_db/_system/_api/job/{held}/cancel"), 200),
    ] {
        let id = client.store(method, &target, b"");
        client.result(&id).expect(status);
    }
    client.result(&held).expect_job_error(410, 21);
}

#[test]
fn what_fails_after_the_202_says_so_in_its_result() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let id = client.store("GET", "/_admin/sleep?duration=x", b"");
    client.result(&id).expect_job_error(400, 400);
    // Its output is not a CGI response.
    let id = client.store("GET", "/cgi/c-talk", b"");
    client.result(&id).expect_job_error(502, 502);
}

#[test]
fn time_limit_gives_504_output_limit_gives_502() {
    let deferd = Deferd::with_scripts("", &["--timeout", "300ms"]);
    let mut client = deferd.client();
    let hold = Hold::new();
    let id = client.store("GET", &hold.target(), b"");
    let told = client.result(&id).expect_job_error(504, 504).text();
    assert!(told.contains("the script ran out of time: timeout 300ms"), "{told}");
    assert!(!hold.has("ended"));
    let deferd = Deferd::with_scripts("", &["--max-output", "1K"]);
    let mut client = deferd.client();
    let id = client.store("GET", "/run/c-zeros?2000", b"");
    client.result(&id).expect_job_error(502, 502);
    let id = client.store("GET", "/run/c-zeros?1024", b"");
    assert_eq!(client.result(&id).expect(200).body.len(), 1024);
}

#[test]
fn a_routes_own_limits_replace_the_general_ones() {
    let general = ["--timeout", "1ms", "--max-output", "1", "--workers", "1"];
    let deferd = Deferd::with_scripts(",timeout=60s,max-output=1K", &general);
    let mut client = deferd.client();
    let id = client.store("GET", "/run/c-zeros?1000", b"");
    assert_eq!(client.result(&id).expect(200).body.len(), 1000);
    let id = client.store("GET", "/run/c-zeros?1025", b"");
    client.result(&id).expect_job_error(502, 502);
}

#[test]
fn only_the_system_database_exists() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let id = client.store("GET", "/_db/_system/_admin/echo?x=1", b"");
    client.wait_done(&id);
    let result = client.put(&format!("/_db/_system/_api/job/{id}"));
    assert_eq!(result.id(), Some(&*id));
    assert_eq!(result.expect(200).json()["target"], "/_admin/echo?x=1");
    let id = client.store("GET", "/_db/_system/run/c-talk", b"");
    assert_eq!(client.result(&id).text(), "output\n");
}

#[test]
fn ids_are_canonical_and_strictly_increasing() {
    let deferd = Deferd::start(&[]);
    let submit = |client: &mut Client| -> u64 {
        let id = client.store("GET", "/_api/version", b"");
        let number: u64 = id.parse().unwrap();
        assert_eq!(number.to_string(), id, "canonical");
        number
    };
    let runs: Vec<Vec<u64>> = std::thread::scope(|scope| {
        let run = || {
            let mut client = deferd.client();
            (0..50).map(|_| submit(&mut client)).collect()
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(run)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(runs.iter().all(|run| run.is_sorted_by(|a, b| a < b)), "{runs:?}");
    let all: BTreeSet<u64> = runs.iter().flatten().copied().collect();
    assert_eq!(all.len(), 200, "unique over all connections");
    assert!(submit(&mut deferd.client()) > *all.last().unwrap());
}

#[test]
fn one_worker_runs_jobs_in_id_order() {
    let deferd = Deferd::with_scripts("", &["--workers", "1"]);
    let mut client = deferd.client();
    let dir = TempDir::new();
    let target = target_of("c-append", &dir.join("order"));
    for n in 0..10 {
        client.request("POST", &target, &[TRUE], format!("{n}").as_bytes()).expect(202);
    }
    let marker = client.store("GET", "/_admin/time", b"");
    client.wait_done(&marker);
    assert_eq!(std::fs::read_to_string(dir.join("order")).unwrap(), "0123456789");
}

#[test]
fn two_workers_run_two_jobs_at_once() {
    let deferd = Deferd::with_scripts("", &["--workers", "2"]);
    let mut client = deferd.client();
    let dir = TempDir::new();
    let target = target_of("c-meet", &dir.join("m"));
    let ids = [client.store("GET", &target, b""), client.store("GET", &target, b"")];
    for id in ids {
        client.result(&id).expect(200);
    }
}

#[test]
fn synchronous_requests_need_no_worker() {
    let deferd = Deferd::with_scripts("", &["--workers", "1"]);
    let mut client = deferd.client();
    let hold = Hold::new();
    let id = hold.start(&mut client);
    assert_eq!(client.get("/run/c-talk").expect(500).text(), "output\n");
    client.get(&format!("/_api/job/{id}")).expect(204);
    hold.release();
    assert_eq!(client.result(&id).text(), "let go\n");
}
