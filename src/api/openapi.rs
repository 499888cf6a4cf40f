//! The built-in endpoints as OpenAPI 3.1.
//!
//! Owns the form of the description; what it says of an endpoint is in the row of that, and what several share in
//! `openapi.json` beside this file. A route of the user's own is not described: what a script answers is not
//! known here. Invariant: what is described is what is answered (`tests/openapi.rs`).

use bytes::Bytes;
use serde_json::{Map, Value, json as value};

use super::endpoints::{Answer, ENDPOINTS, Endpoint, Parameter};
use super::{Asked, json};
use crate::error::Error;
use crate::handler::Outcome;

/// What the rows have in common.
const SHARED: &str = include_str!("openapi.json");

/// Who may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everybody.
    Open,
    /// Who shows credentials (`--auth`).
    Credentials,
}

/// What every operation may answer with, as it can be deferred, and refused before it is run.
const COMMON: [Answer; 6] = [
    Answer::Shared("202", "Accepted"),
    Answer::Shared("400", "Refused"),
    Answer::Shared("403", "Refused"),
    Answer::Shared("413", "Refused"),
    Answer::Shared("422", "Refused"),
    Answer::Shared("503", "Busy"),
];

/// Where credentials are asked for. What is open still is not, deferred: a job has an owner.
const DENIED: Answer = Answer::Shared("401", "Unauthorized");

/// The methods that are described of an endpoint that has any.
const ANY: [&str; 7] = ["get", "head", "post", "put", "patch", "delete", "trace"];

/// The description, for callers with the access that there is.
pub fn answer(asked: &Asked<'_>) -> Result<Outcome, Error> {
    let api = asked.api;
    let page = api.description.get_or_init(|| describe(api.access).to_string().into());
    Ok(json(Bytes::clone(page)).into())
}

fn describe(access: Access) -> Value {
    let mut description = parsed(SHARED);
    description["info"]["version"] = env!("CARGO_PKG_VERSION").into();
    let mut paths = Map::new();
    for endpoint in ENDPOINTS.iter().filter(|endpoint| !endpoint.name.is_empty()) {
        let path = paths.entry(endpoint.path.pattern()).or_insert_with(|| value!({}));
        let of_its_own = endpoint.methods.iter().map(|method| method.as_str().to_ascii_lowercase());
        let any = ANY.iter().filter(|_| endpoint.methods.is_empty()).map(ToString::to_string);
        for (n, method) in of_its_own.chain(any).enumerate() {
            let id = endpoint.name.to_owned();
            let id = if n == 0 { id } else { format!("{id}-{method}") };
            path[&method] = operation(endpoint, &method, id, access);
        }
    }
    description["paths"] = Value::Object(paths);
    if access == Access::Credentials {
        description["security"] = value!([{"basic": []}, {"bearer": []}]);
    }
    description
}

fn operation(endpoint: &Endpoint, method: &str, id: String, access: Access) -> Value {
    let shared =
        endpoint.path.has_id().then_some("id").into_iter().chain(["async", "prefer", "key"]);
    let shared = shared.map(|name| reference("parameters", name));
    let parameters = endpoint.parameters.iter().map(parameter).chain(shared);
    let denied = (access == Access::Credentials).then_some(&DENIED);
    let answers = COMMON.iter().chain(endpoint.answers).chain(denied);
    let mut operation = value!({
        "operationId": id,
        "summary": endpoint.summary,
        "parameters": parameters.collect::<Vec<_>>(),
        "responses": answers.map(response).collect::<Map<_, _>>(),
    });
    let has_content = matches!(method, "post" | "put" | "patch");
    if let Some(content) = endpoint.content.filter(|_| has_content) {
        operation["requestBody"] = reference("requestBodies", content);
    }
    if endpoint.open {
        operation["security"] = value!([]);
    }
    operation
}

fn parameter(parameter: &Parameter) -> Value {
    let Parameter { name, required, schema, meaning } = parameter;
    value!({
        "name": name, "in": "query", "required": required, "description": meaning,
        "schema": parsed(schema),
    })
}

/// Returns an answer with its status code.
fn response(answer: &Answer) -> (String, Value) {
    let content = |kind: &str, schema: Value| value!({ kind: { "schema": schema } });
    let json = |schema: Value| content("application/json", schema);
    let own = match answer {
        Answer::Shared(status, name) => return ((*status).into(), reference("responses", name)),
        Answer::Empty(meaning) => value!({ "description": meaning }),
        Answer::Text(meaning) => {
            let text = value!({ "type": "string" });
            value!({ "description": meaning, "content": content("text/plain", text) })
        }
        Answer::Json(meaning, schema) => {
            value!({ "description": meaning, "content": json(parsed(schema)) })
        }
        Answer::Member(meaning, name, schema) => {
            let schema = value!({
                "allOf": [reference("schemas", "Success")],
                "properties": { *name: parsed(schema) },
                "required": [name],
                "unevaluatedProperties": false,
            });
            value!({ "description": meaning, "content": json(schema) })
        }
    };
    ("200".to_owned(), own)
}

fn parsed(json: &str) -> Value {
    serde_json::from_str(json).expect("a test parses all of them")
}

fn reference(kind: &str, name: &str) -> Value {
    value!({ "$ref": format!("#/components/{kind}/{name}") })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_reference_is_to_something_and_everything_is_referred_to() {
        for access in [Access::Open, Access::Credentials] {
            let description = describe(access);
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
