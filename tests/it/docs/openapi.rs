//! The description at `/_api/openapi.json` against the answers: every operation is requested in every way that it
//! knows, and the answers must be exactly those that are described.

use std::collections::BTreeSet;

use crate::support::{Client, Deferd, Reply, TempDir};
use serde_json::Value;

const ASYNC: (&str, &str) = ("x-arango-async", "store");

/// A described operation.
struct Operation<'a> {
    path: &'a str,
    /// In upper case.
    method: String,
    description: &'a Value,
}

/// The description, and what was seen of it.
struct Seen<'a> {
    root: &'a Value,
    statuses: BTreeSet<(String, String, String)>,
}

fn describe(client: &mut Client, fields: &[(&str, &str)]) -> Value {
    client.request("GET", "/_api/openapi.json", fields, b"").expect(200).json()
}

fn operations(root: &Value) -> Vec<Operation<'_>> {
    let paths = root["paths"].as_object().unwrap().iter();
    let operations = paths.flat_map(|(path, methods)| {
        methods.as_object().unwrap().iter().map(move |(method, description)| Operation {
            path,
            method: method.to_uppercase(),
            description,
        })
    });
    operations.collect()
}

impl Operation<'_> {
    /// Returns a target for this operation, with everything that it needs.
    fn target(&self, id: &str) -> String {
        let query = match self.path {
            "/_api/job/expired" => "?stamp=0",
            "/_admin/sleep" => "?duration=0",
            _ => "",
        };
        format!("{}{query}", self.path.replace("{id}", id))
    }

    fn content(&self) -> &'static [u8] {
        let takes_some = self.description["requestBody"].is_object();
        if takes_some { br#"{"name":"users"}"# } else { b"" }
    }

    fn send(&self, client: &mut Client, id: &str, fields: &[(&str, &str)]) -> Reply {
        client.request(&self.method, &self.target(id), fields, self.content())
    }
}

impl<'a> Seen<'a> {
    fn new(root: &'a Value) -> Self {
        Self { root, statuses: BTreeSet::new() }
    }

    fn resolve(&self, value: &'a Value) -> &'a Value {
        let Some(reference) = value["$ref"].as_str() else { return value };
        self.root.pointer(reference.strip_prefix('#').unwrap()).expect(reference)
    }

    /// Records an answer, which must be one of those that are described.
    fn note(&mut self, operation: &Operation<'a>, reply: &Reply) {
        let what = format!("{} {}: {reply:?}", operation.method, operation.path);
        let status = reply.status.to_string();
        let is_result = reply.status != 202 && reply.id().is_some();
        let status = if is_result { "default".to_owned() } else { status };
        let described = &operation.description["responses"][&status];
        assert!(described.is_object(), "not described: {what}");
        let described = self.resolve(described);
        if let Some(content) = described["content"].as_object() {
            let kind = reply.header("content-type").unwrap_or_default();
            let kind = kind.split(';').next().unwrap();
            assert!(content.contains_key(kind), "content not described: {what}");
        }
        for (name, header) in described["headers"].as_object().into_iter().flatten() {
            let is_required = self.resolve(header)["required"] == true;
            assert!(!is_required || reply.header(name).is_some(), "{name} is missing: {what}");
        }
        self.statuses.insert((operation.path.to_owned(), operation.method.clone(), status));
    }

    /// Asserts that everything that is described was seen.
    fn assert_complete(&self) {
        for operation in operations(self.root) {
            for status in operation.description["responses"].as_object().unwrap().keys() {
                let one = (operation.path.to_owned(), operation.method.clone(), status.clone());
                assert!(self.statuses.contains(&one), "described, and never answered: {one:?}");
            }
        }
    }
}

/// Starts an instance whose queue is permanently full.
fn full() -> Deferd {
    let deferd = Deferd::start(&["--workers", "1", "--queue", "1"]);
    let mut client = deferd.client();
    // The second finds room only when the first runs.
    crate::support::eventually("one runs and one waits", || {
        client.request("GET", "/_admin/sleep?duration=3600", &[ASYNC], b"");
        client.list("pending").len() == 2
    });
    deferd
}

#[test]
fn answers_and_description_match_exactly() {
    // Enough workers for the jobs that are forgotten while they sleep.
    let deferd = Deferd::start(&["--max-body", "1K", "--workers", "16"]);
    let (full, hasty) = (full(), Deferd::start(&["--timeout", "1ms"]));
    let mut client = deferd.client();
    let root = describe(&mut client, &[]);
    let mut seen = Seen::new(&root);
    for operation in operations(&root) {
        // A request with everything that the operation reports about a job.
        let done = client.store("GET", "/_admin/time", b"");
        client.wait_done(&done);
        let pending = client.store("GET", "/_admin/sleep?duration=3600", b"");
        for id in [&*done, &*pending, "1"] {
            seen.note(&operation, &operation.send(&mut client, id, &[]));
        }
        client.put(&format!("/_api/job/{pending}/cancel"));
        if operation.description["responses"]["416"].is_object() {
            for range in ["bytes=0-0", "bytes=99999-"] {
                seen.note(&operation, &operation.send(&mut client, &done, &[("range", range)]));
            }
        }

        // What every operation has in common. A refusal may end its connection.
        let deferred = operation.send(&mut client, "1", &[ASYNC]).expect(202);
        seen.note(&operation, &deferred);
        // It may forget all keys, so it ends before there is one.
        let path = format!("/_api/job/{}", deferred.id().unwrap());
        crate::support::eventually("it ran", || client.get(&path).status != 204);
        let named = [ASYNC, ("idempotency-key", "first")];
        client.request("GET", "/_admin/echo?first", &named, b"").expect(202);
        seen.note(&operation, &operation.send(&mut deferd.client(), "1", &named).expect(422));
        seen.note(&operation, &operation.send(&mut full.client(), "1", &[ASYNC]).expect(503));
        let foreign = [("origin", "http://elsewhere.example")];
        seen.note(&operation, &operation.send(&mut deferd.client(), "1", &foreign).expect(403));
        let twice = [("host", "localhost")];
        seen.note(&operation, &operation.send(&mut deferd.client(), "1", &twice).expect(400));
        let mut refused = deferd.client();
        refused.send_request(&operation.method, &operation.target("1"), &[], &[b'x'; 2000]);
        seen.note(&operation, &refused.try_read(&operation.method).unwrap().expect(413));
        if operation.path == "/_api/job/{id}/log" {
            let target = format!("{}?follow=1", operation.target(&done));
            let reply = client.request(&operation.method, &target, &[("last-event-id", "0")], b"");
            seen.note(&operation, &reply.expect(204));
        }
        if operation.path == "/_admin/sleep" {
            let target = "/_admin/sleep?duration=3600";
            let reply = hasty.client().request(&operation.method, target, &[], b"");
            seen.note(&operation, &reply.expect(504));
        }
    }
    seen.assert_complete();
}

#[test]
fn the_description_says_where_credentials_are_required() {
    let open = Deferd::start(&[]);
    let root = describe(&mut open.client(), &[]);
    assert_eq!(root["security"], Value::Null);

    let dir = TempDir::new();
    let users = dir.join("users");
    // The digest of `secret`.
    let line = "root:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b\n";
    std::fs::write(&users, line).unwrap();
    std::fs::set_permissions(&users, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let guarded = Deferd::start(&["--auth", users.to_str().unwrap()]);
    let root = describe(&mut guarded.client(), &[("authorization", "Bearer secret")]);
    assert_eq!(root["security"].as_array().unwrap().len(), 2);
    let mut seen = Seen::new(&root);
    for operation in operations(&root) {
        let is_open = operation.description["security"] == Value::Array(Vec::new());
        let reply = operation.send(&mut guarded.client(), "1", &[]);
        assert_eq!(reply.status, if is_open { 200 } else { 401 }, "{}", operation.path);
        seen.note(&operation, &reply);
        seen.note(&operation, &operation.send(&mut guarded.client(), "1", &[ASYNC]).expect(401));
    }
}

#[test]
fn the_description_names_the_version_that_answers() {
    let deferd = Deferd::start(&[]);
    let root = describe(&mut deferd.client(), &[]);
    assert_eq!(
        (&root["openapi"], &root["info"]["version"]),
        (&"3.1.0".into(), &env!("CARGO_PKG_VERSION").into())
    );
}
