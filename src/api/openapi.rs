//! The built-in endpoints as OpenAPI 3.1.
//!
//! Owns the form of the description. What is specific to an endpoint comes from its row, and what several share from
//! `openapi.json` beside this file. Routes that the operator configures are not described: deferd does not know what
//! their scripts answer. Invariant: the description matches the answers (`tests/it/docs/openapi.rs`).

use http::Method;

use super::endpoints::{Answer, ENDPOINTS, EVERY, Endpoint};
use super::{Asked, json};
use crate::error::Error;
use crate::handler::Outcome;

/// What the rows have in common.
const SHARED: &str = include_str!("openapi.json");

/// Which clients may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// All clients.
    Open,
    /// Clients with credentials (`--auth`).
    Credentials,
}

/// Answers of every operation, because each can be deferred, or refused before it runs.
static COMMON: [Answer; 6] = [
    Answer::Shared("202", "Accepted"),
    Answer::Shared("400", "Refused"),
    Answer::Shared("403", "Refused"),
    Answer::Shared("413", "Refused"),
    Answer::Shared("422", "Refused"),
    Answer::Shared("503", "Busy"),
];

/// The answer where credentials are required. An open endpoint needs them too if it is deferred: a job has an owner.
static DENIED: Answer = Answer::Shared("401", "Unauthorized");

/// Returns the description, for clients with this access.
pub fn answer(asked: &Asked<'_>) -> Result<Outcome, Error> {
    let api = asked.api;
    let page = api.description.get_or_init(|| describe(api.access).into());
    Ok(json(page.clone()).into())
}

/// Returns the description. It is assembled as text: the rows contain nothing that JSON would escape.
fn describe(access: Access) -> String {
    let described = ENDPOINTS.chunk_by(|row, next| row.path == next.path);
    let described = described.filter(|rows| !rows[0].name.is_empty());
    let paths: Vec<String> = described.map(|rows| path(rows, access)).collect();
    let security = match access {
        Access::Open => "",
        Access::Credentials => r#""security":[{"basic":[]},{"bearer":[]}],"#,
    };
    let (head, tail) = SHARED.split_once('@').expect("it has a place for the version");
    let (paths, version) = (paths.join(","), env!("CARGO_PKG_VERSION"));
    format!(r#"{{"paths":{{{paths}}},{security}{}{version}{tail}"#, &head[1..])
}

/// Returns the member for a path, from the rows of that path.
fn path(rows: &[Endpoint], access: Access) -> String {
    let mut operations = Vec::new();
    for row in rows {
        for method in EVERY.iter().filter(|method| row.has(method) && *method != Method::OPTIONS) {
            let is_first = method == row.methods.first().unwrap_or(&Method::GET);
            let method = method.as_str().to_ascii_lowercase();
            let suffix = if is_first { String::new() } else { format!("-{method}") };
            let operation = operation(row, &method, &suffix, access);
            operations.push(format!(r#""{method}":{operation}"#));
        }
    }
    format!(r#""{}":{{{}}}"#, rows[0].path.pattern(), operations.join(","))
}

fn operation(row: &Endpoint, method: &str, suffix: &str, access: Access) -> String {
    let Endpoint { name, summary, parameters, content, .. } = row;
    let shared: &[&str] = if row.path.has_id() { &["id"] } else { &[] };
    let shared = shared.iter().chain(&["async", "prefer", "key", "callback"]);
    let shared = shared.map(|name| reference("parameters", name));
    let parameters: Vec<String> =
        parameters.iter().map(ToString::to_string).chain(shared).collect();
    let denied = (access == Access::Credentials).then_some(&DENIED);
    let answers = COMMON.iter().chain(row.answers).chain(denied);
    // Only GET has ranges (RFC 9110 section 14.2).
    let is_of_range = |answer: &&Answer| matches!(answer, Answer::Shared("206" | "416", _));
    let answers = answers.filter(|answer| method == "get" || !is_of_range(answer));
    let answers: Vec<String> = answers.map(response).collect();
    let security = if row.open { r#","security":[]"# } else { "" };
    let content = content.filter(|_| matches!(method, "post" | "put" | "patch"));
    let content = content.map(|name| reference("requestBodies", name));
    let content = content.map(|body| format!(r#","requestBody":{body}"#)).unwrap_or_default();
    format!(
        r#"{{"operationId":"{name}{suffix}","summary":"{summary}","parameters":[{}],"responses":{{{}}}{content}{security}}}"#,
        parameters.join(","),
        answers.join(","),
    )
}

/// Returns the member for an answer.
fn response(answer: &Answer) -> String {
    let (meaning, kind, schema) = match answer {
        Answer::Shared(status, name) => {
            return format!(r#""{status}":{}"#, reference("responses", name));
        }
        Answer::Text(meaning) => (meaning, "text/plain", r#"{"type":"string"}"#.to_owned()),
        #[cfg(feature = "page")]
        Answer::Html(meaning) => (meaning, "text/html", r#"{"type":"string"}"#.to_owned()),
        Answer::Json(meaning, schema) => (meaning, "application/json", (*schema).to_owned()),
        Answer::Member(meaning, name, schema) => {
            let success = reference("schemas", "Success");
            let schema = format!(
                r#"{{"allOf":[{success}],"properties":{{"{name}":{schema}}},"required":["{name}"],"unevaluatedProperties":false}}"#
            );
            (meaning, "application/json", schema)
        }
    };
    format!(r#""200":{{"description":"{meaning}","content":{{"{kind}":{{"schema":{schema}}}}}}}"#)
}

fn reference(kind: &str, name: &str) -> String {
    format!(r##"{{"$ref":"#/components/{kind}/{name}"}}"##)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_resolves_and_every_component_is_used() {
        for access in [Access::Open, Access::Credentials] {
            let text = describe(access);
            let description: serde_json::Value = serde_json::from_str(&text).unwrap();
            let paths = description["paths"].as_object().unwrap();
            let described: usize = paths.values().map(|path| path.as_object().unwrap().len()).sum();
            // If two members had the same name, only the last would remain.
            assert_eq!(described, text.matches(r#""summary":"#).count());
            for reference in text.split(r##""$ref":"#"##).skip(1) {
                let pointer = reference.split('"').next().unwrap();
                assert!(description.pointer(pointer).is_some(), "{pointer} is not there");
            }
            for (kind, names) in description["components"].as_object().unwrap() {
                for name in names.as_object().unwrap().keys() {
                    let used = text.contains(&format!(r##""#/components/{kind}/{name}""##));
                    let needless = access == Access::Open && name == "Unauthorized";
                    let is_scheme = kind == "securitySchemes";
                    assert!(used || needless || is_scheme, "{kind}/{name} is not used");
                }
            }
        }
    }
}
