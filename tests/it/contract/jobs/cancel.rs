//! Cancelling: a waiting job never runs, a running one is ended, a done one does not change.

use crate::support::hold::Hold;
use crate::support::{Client, Deferd, Reply, TempDir, eventually};

const CANCELED: &str =
    r#"{"error":true,"errorMessage":"canceled request","code":410,"errorNum":21}"#;

#[track_caller]
fn cancel(client: &mut Client, id: &str) {
    let reply = client.put(&format!("/_api/job/{id}/cancel")).expect(200).without_id();
    assert_eq!(reply.text(), r#"{"result":true}"#);
}

#[track_caller]
fn assert_canceled(reply: Reply) {
    let reply = reply.expect_job_error(410, 21);
    assert_eq!(reply.text(), CANCELED);
    assert_eq!(reply.header("content-type"), Some("application/json; charset=utf-8"));
}

#[test]
fn a_cancelled_queued_job_never_runs() {
    let deferd = Deferd::with_scripts("", &["--workers", "1"]);
    let mut client = deferd.client();
    let (hold, dir) = (Hold::new(), TempDir::new());
    let running = hold.start(&mut client);
    let touch = |name: &str| format!("/run/c-touch?{}", dir.join(name).display());
    let cancelled = client.store("GET", &touch("cancelled"), b"");
    let after = client.store("GET", &touch("after"), b"");
    cancel(&mut client, &cancelled);
    client.get(&format!("/_api/job/{cancelled}")).expect(200);
    assert_eq!(client.list("done"), [cancelled.as_str()]);
    assert_eq!(client.list("pending"), [running.as_str(), after.as_str()]);
    assert_canceled(client.get(&format!("/_api/job/{cancelled}/result")));
    assert_canceled(client.put(&format!("/_api/job/{cancelled}")));
    client.put(&format!("/_api/job/{cancelled}")).expect_error(404, 404);
    hold.release();
    // It was submitted after the cancelled job, and there is one worker.
    client.result(&after).expect(200);
    assert!(dir.join("after").exists() && !dir.join("cancelled").exists());
}

#[test]
fn a_cancelled_running_script_gets_sigterm() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let hold = Hold::new();
    let id = hold.start(&mut client);
    cancel(&mut client, &id);
    assert_canceled(client.result(&id));
    assert!(!hold.has("ended"));
    assert_eq!(deferd.children(), [0; 0]);
}

#[test]
fn a_cancelled_script_that_ignores_sigterm_stays_pending() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let hold = Hold::deaf();
    let id = hold.start(&mut client);
    cancel(&mut client, &id);
    hold.wait_for("term");
    // It is not yet killed, which happens only after some seconds; if it were, the next lines would hold nevertheless.
    cancel(&mut client, &id);
    hold.release();
    assert_canceled(client.result(&id));
    client.put(&format!("/_api/job/{id}/cancel")).expect_error(404, 404);
}

#[test]
fn a_script_that_minds_no_sigterm_is_killed() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let hold = Hold::deaf();
    let id = hold.start(&mut client);
    cancel(&mut client, &id);
    assert_canceled(client.result(&id));
    assert!(hold.has("term"), "it was asked first");
    assert_eq!(deferd.children(), [0; 0]);
}

#[test]
fn a_sleep_that_runs_is_cancelled() {
    let deferd = Deferd::start(&["--workers", "1", "--queue", "1"]);
    let mut client = deferd.client();
    let sleep = client.store("GET", "/_admin/sleep?duration=3600", b"");
    let mut next = String::new();
    // The queue has one place: it is free again once the only worker has begun the sleep.
    eventually("the sleep runs", || {
        let reply = client.request("GET", "/_api/version", &[("x-arango-async", "store")], b"");
        next = reply.id().unwrap_or_default().to_owned();
        reply.status == 202
    });
    client.get(&format!("/_api/job/{sleep}")).expect(204);
    cancel(&mut client, &sleep);
    assert_canceled(client.result(&sleep));
    client.result(&next).expect(200);
}

#[test]
fn cancelling_a_done_job_has_no_effect() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let id = client.store("GET", "/run/c-talk", b"");
    client.wait_done(&id);
    cancel(&mut client, &id);
    cancel(&mut client, &id);
    assert_eq!(client.result(&id).expect(500).text(), "output\n");
}

#[test]
fn only_the_job_that_was_named_is_cancelled() {
    let deferd = Deferd::with_scripts("", &["--workers", "2"]);
    let mut client = deferd.client();
    let holds = [Hold::new(), Hold::new()];
    let ids = holds.each_ref().map(|hold| hold.start(&mut client));
    let waiting = client.store("GET", "/_api/version", b"");
    cancel(&mut client, &ids[0]);
    assert_canceled(client.result(&ids[0]));
    client.result(&waiting).expect(200);
    holds[1].release();
    assert_eq!(client.result(&ids[1]).expect(200).text(), "let go\n");
}
