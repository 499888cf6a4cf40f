//! What the built-in endpoints are, as OpenAPI 3.1.
//!
//! Owns the table of operations: every method of every endpoint with its parameters and the status
//! codes that it answers with. `openapi.json` beside this file has what the table refers to. A route
//! of the user's own is not described: what a script answers is not known here. Invariant: the table
//! and the endpoints name the same paths and methods (tested here), and the same status codes
//! (`tests/it/docs/openapi.rs`).

use bytes::Bytes;
use serde_json::{Map, Value, json as value};

/// What the table refers to.
const COMPONENTS: &str = include_str!("openapi.json");

/// Who may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everybody.
    Open,
    /// Who shows credentials (`--auth`).
    Credentials,
}

/// A row of the table.
struct Operation {
    /// Its name in the description, and in what is generated from it.
    id: &'static str,
    path: &'static str,
    /// Blank-separated.
    methods: &'static str,
    summary: &'static str,
    /// Blank-separated names of `components.parameters`.
    parameters: &'static str,
    /// A name of `components.requestBodies`.
    body: Option<&'static str>,
    /// Status codes, each with a name of `components.responses`: those of this operation alone.
    answers: &'static [(&'static str, &'static str)],
}

const fn row(
    id: &'static str,
    path: &'static str,
    methods: &'static str,
    summary: &'static str,
    parameters: &'static str,
    answers: &'static [(&'static str, &'static str)],
) -> Operation {
    Operation { id, path, methods, summary, parameters, body: None, answers }
}

/// What every operation may answer with, as it can be deferred, and refused before it is run.
const COMMON: [(&str, &str); 6] = [
    ("202", "Accepted"),
    ("400", "Refused"),
    ("403", "Refused"),
    ("413", "Refused"),
    ("422", "Refused"),
    ("503", "Busy"),
];

const ANY: &str = "get head post put patch delete trace";

const UNKNOWN: (&str, &str) = ("404", "Refused");

#[rustfmt::skip] // One line for each.
const OPERATIONS: [Operation; 19] = [
    row("listDone", "/_api/job/done", "get head", "The jobs that are done", "count", &[("200", "Ids")]),
    row("listPending", "/_api/job/pending", "get head", "The jobs that wait or run", "count", &[("200", "Ids")]),
    row("status", "/_api/job/{id}", "get head", "Whether a job is done", "id", &[("200", "Done"), ("204", "Pending"), UNKNOWN]),
    row("collect", "/_api/job/{id}", "put", "The result; then it is gone", "id", &[("204", "Pending"), UNKNOWN, ("default", "Result")]),
    row("peek", "/_api/job/{id}/result", "get head", "The result; it stays", "id", &[("204", "Pending"), UNKNOWN, ("default", "Result")]),
    row("log", "/_api/job/{id}/log", "get head", "What the job's script wrote to stderr", "id", &[("200", "Log"), UNKNOWN]),
    row("cancel", "/_api/job/{id}/cancel", "put", "Ends a job; its result is then 410", "id", &[("200", "True"), UNKNOWN]),
    row("forget", "/_api/job/{id}", "delete", "Forgets a job; work under way goes on", "id", &[("200", "True"), UNKNOWN]),
    row("forgetAll", "/_api/job/all", "delete", "Forgets all jobs", "", &[("200", "True")]),
    row("forgetExpired", "/_api/job/expired", "delete", "Forgets the jobs stamped before", "stamp", &[("200", "True")]),
    row("version", "/_api/version", ANY, "Which server this is", "details", &[("200", "Version")]),
    row("adminVersion", "/_admin/version", ANY, "Which server this is", "details", &[("200", "Version")]),
    row("time", "/_admin/time", "get head", "The server's clock", "", &[("200", "Time")]),
    row("sleep", "/_admin/sleep", "get head", "Takes its time", "duration", &[("200", "Slept"), ("504", "Refused")]),
    Operation { body: Some("Any"), ..row("echo", "/_admin/echo", ANY, "The request", "", &[("200", "Echo")]) },
    row("availability", "/_admin/server/availability", "get head", "Whether new requests are welcome", "", &[("200", "Available")]),
    row("description", super::DESCRIPTION, "get head", "This description", "", &[("200", "Description")]),
    row("collections", "/_api/collection", "get head", "The collections: none yet", "", &[("200", "Collections")]),
    Operation { body: Some("NewCollection"), ..row("createCollection", "/_api/collection", "post", "Not offered yet: a legal name is 501", "", &[("501", "Refused")]) },
];

/// The description, for callers with this access.
pub fn describe(access: Access) -> Bytes {
    description(access).to_string().into()
}

fn description(access: Access) -> Value {
    let mut description: Value = serde_json::from_str(COMPONENTS).expect("its tests parse it");
    description["info"]["version"] = env!("CARGO_PKG_VERSION").into();
    let mut paths = Map::new();
    for operation in &OPERATIONS {
        let path = paths.entry(operation.path).or_insert_with(|| value!({}));
        for method in operation.methods.split(' ') {
            path[method] = operation.describe(method, access);
        }
    }
    description["paths"] = Value::Object(paths);
    if access == Access::Credentials {
        description["security"] = value!([{"basic": []}, {"bearer": []}]);
    }
    description
}

impl Operation {
    fn describe(&self, method: &str, access: Access) -> Value {
        let first = self.methods.starts_with(method);
        let id = if first { self.id.to_owned() } else { format!("{}-{method}", self.id) };
        let names = self.parameters.split_whitespace().chain(["async", "prefer", "key"]);
        let mut operation = value!({
            "operationId": id,
            "summary": self.summary,
            "parameters": names.map(|name| reference("parameters", name)).collect::<Vec<_>>(),
            "responses": self.responses(access),
        });
        if let Some(body) = self.body.filter(|_| matches!(method, "post" | "put" | "patch")) {
            operation["requestBody"] = reference("requestBodies", body);
        }
        if self.is_open() {
            operation["security"] = value!([]);
        }
        operation
    }

    fn responses(&self, access: Access) -> Map<String, Value> {
        // Where it is open it still is not, deferred: a job has an owner.
        let denied = (access == Access::Credentials).then_some(("401", "Unauthorized"));
        let answers = COMMON.iter().chain(self.answers).copied().chain(denied);
        answers.map(|(status, name)| (status.to_owned(), reference("responses", name))).collect()
    }

    fn is_open(&self) -> bool {
        self.path == super::OPEN
    }
}

fn reference(kind: &str, name: &str) -> Value {
    value!({ "$ref": format!("#/components/{kind}/{name}") })
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::super::{Endpoint, TABLE};
    use super::*;

    #[test]
    fn every_method_of_every_endpoint_is_described_and_no_other() {
        let mut described = BTreeMap::<&str, BTreeSet<String>>::new();
        for operation in &OPERATIONS {
            // The paths of the job resource share its methods.
            let path =
                if operation.path.starts_with("/_api/job/") { "/_api/job" } else { operation.path };
            let methods = operation.methods.split(' ').map(str::to_uppercase);
            described.entry(path).or_default().extend(methods);
        }
        let mut expected = BTreeMap::from([("/_api/job", Endpoint::Job(""))]);
        expected.extend(TABLE);
        for (path, endpoint) in expected {
            let allow = endpoint.allow().unwrap_or("DELETE, GET, HEAD, PATCH, POST, PUT, TRACE");
            let methods = allow.split(", ").filter(|&method| method != "OPTIONS");
            let methods = methods.map(str::to_owned).collect::<BTreeSet<_>>();
            assert_eq!(described.remove(path), Some(methods), "{path}");
        }
        assert_eq!(described, BTreeMap::new());
    }

    #[test]
    fn every_reference_is_to_something_and_everything_is_referred_to() {
        for access in [Access::Open, Access::Credentials] {
            let description = description(access);
            let mut found = BTreeSet::new();
            references(&description, &mut found);
            for reference in &found {
                let pointer = reference.strip_prefix('#').unwrap();
                assert!(description.pointer(pointer).is_some(), "{reference} is not there");
            }
            for (kind, names) in description["components"].as_object().unwrap() {
                for name in names.as_object().unwrap().keys() {
                    let used = found.contains(&format!("#/components/{kind}/{name}"));
                    let needless =
                        access == Access::Open && matches!(&**name, "Unauthorized" | "Challenge");
                    assert!(
                        used || needless || kind == "securitySchemes",
                        "{kind}/{name} is not used"
                    );
                }
            }
        }
    }

    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(members) => {
                if let Some(Value::String(reference)) = members.get("$ref") {
                    found.insert(reference.clone());
                }
                members.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
}
