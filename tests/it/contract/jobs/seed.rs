//! The transcripts of the original documentation, request by request.

use crate::support::{Client, Deferd};
use serde_json::json;

const BAD_PARAMETER: &str =
    r#"{"error":true,"errorMessage":"bad parameter","code":400,"errorNum":400}"#;
const NOT_FOUND: &str = r#"{"error":true,"errorMessage":"not found","code":404,"errorNum":404}"#;
const VERSION: &str = r#"{"server":"arango","version":"1.4.3"}"#;

/// Defers `GET /_api/version`, as most of the transcripts begin.
fn defer_version(client: &mut Client) -> String {
    let reply = client.request("GET", "/_api/version", &[("x-arango-async", "store")], b"");
    assert_eq!(reply.status, 202);
    assert_eq!(reply.header("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(reply.text(), "");
    let id = reply.id().expect("the id field").to_owned();
    assert!(!id.is_empty() && id.bytes().all(|b| b.is_ascii_digit()));
    assert_eq!(reply.header("location"), Some(&*format!("/_api/job/{id}")));
    id
}

#[test]
fn t1_put_without_id() {
    let deferd = Deferd::start(&[]);
    let reply = deferd.client().put("/_api/job/").expect_error(400, 400);
    assert_eq!(reply.text(), BAD_PARAMETER);
}

#[test]
fn t2_put_of_an_unknown_job() {
    let deferd = Deferd::start(&[]);
    let reply = deferd.client().put("/_api/job/foobar").expect_error(404, 404);
    assert_eq!(reply.text(), NOT_FOUND);
}

#[test]
fn t3_a_result_is_fetched_once_under_both_names() {
    let deferd = Deferd::start(&[]);
    let mut client = deferd.client();
    let id = defer_version(&mut client);
    let reply = client.result(&id).expect(200);
    assert_eq!(reply.text(), VERSION);
    assert_eq!(reply.header("content-type"), Some("application/json; charset=utf-8"));
    assert_eq!(reply.header("x-arango-async-job-id"), Some(&*id));
    client.put(&format!("/_api/job/{id}")).expect_error(404, 404);
}

#[test]
fn t4_a_failed_job_keeps_its_own_error() {
    let deferd = Deferd::start(&[]);
    let mut client = deferd.client();
    let body = br#"{"name":" this name is invalid "}"#;
    let id = client.store("POST", "/_api/collection", body);
    let reply = client.result(&id).expect(400);
    assert_eq!(
        reply.text(),
        r#"{"error":true,"code":400,"errorNum":1208,"errorMessage":"cannot create collection: illegal name"}"#
    );
    assert_eq!(reply.header("content-type"), Some("application/json; charset=utf-8"));
}

#[test]
fn t5_and_t6_the_lists() {
    let deferd = Deferd::start(&[]);
    let mut client = deferd.client();
    let id = defer_version(&mut client);
    client.wait_done(&id);
    assert_eq!(client.get("/_api/job/done").expect(200).json(), json!([id]));
    assert_eq!(client.get("/_api/job/pending").expect(200).json(), json!([]));
}

#[test]
fn t7_to_t9_deleting() {
    let deferd = Deferd::start(&[]);
    let mut client = deferd.client();
    for target in ["all", "expired?stamp=1385372569", ""] {
        let id = defer_version(&mut client);
        let target = if target.is_empty() { &id } else { target };
        let reply = client.delete(&format!("/_api/job/{target}")).expect(200);
        assert_eq!(reply.json(), json!({"result": true}));
        assert_eq!(reply.id(), None);
    }
}

#[test]
fn t10_delete_of_an_unknown_job() {
    let deferd = Deferd::start(&[]);
    let reply = deferd.client().delete("/_api/job/foobar").expect_error(404, 404);
    assert_eq!(reply.text(), NOT_FOUND);
}
