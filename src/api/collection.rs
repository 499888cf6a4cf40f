//! What of the collections exists so far: the list of none, and the check of a new one's name.
//!
//! Owns the rules for names (ArangoDB 1.4: a letter first, or `_` for a system collection; then
//! letters, digits, `_`, `-`; at most 64). Keeps nothing: a legal name is answered with `501`.

use bytes::Bytes;
use http::{Method, Response};
use serde_json::Value;

use super::json;
use crate::error::Error;

const MAX_NAME: usize = 64;

/// The list as ArangoDB 3 has it. python-arango asks for it to see whether it is connected.
const NONE: &str = r#"{"error":false,"code":200,"result":[]}"#;

/// The list, or the answer to a request for a new collection.
///
/// # Errors
/// What [`create`] gives.
pub fn answer(method: &Method, body: &[u8]) -> Result<Response<Bytes>, Error> {
    if method == Method::POST { Err(create(body)) } else { Ok(json(NONE)) }
}

/// The answer to a request for a new collection: as there are none yet, always an error.
fn create(body: &[u8]) -> Error {
    // Nothing at all is a missing name, not broken JSON, as ArangoDB has it.
    let parsed = if body.trim_ascii().is_empty() {
        Value::Null
    } else {
        match serde_json::from_slice(body) {
            Ok(parsed) => parsed,
            Err(error) => return Error::BadJson(error.to_string().into()),
        }
    };
    let is_system = parsed.get("isSystem").and_then(Value::as_bool).unwrap_or(false);
    match parsed.get("name").and_then(Value::as_str) {
        Some(name) if is_legal(name, is_system) => {
            Error::NotImplemented("collections cannot be created".into())
        }
        _ => Error::IllegalName,
    }
}

fn is_legal(name: &str, is_system: bool) -> bool {
    let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || (is_system && c == '_'));
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
    starts && name.bytes().all(legal) && name.len() <= MAX_NAME
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_and_names() {
        for (body, status, number) in [
            (r#"{"name":" this name is invalid "}"#, 400, "1208"),
            (r#"{"name":"1abc"}"#, 400, "1208"),
            (r#"{"name":"_users"}"#, 400, "1208"),
            (r#"{"name":""}"#, 400, "1208"),
            (r#"{"name":7}"#, 400, "1208"),
            (r#"{"name":"ä"}"#, 400, "1208"),
            ("{}", 400, "1208"),
            ("[]", 400, "1208"),
            ("null", 400, "1208"),
            ("", 400, "1208"),
            ("{\"name\":", 400, "600"),
            ("nonsense", 400, "600"),
            (r#"{"name":"users-2_b"}"#, 501, "501"),
            (r#"{"name":"_users","isSystem":true}"#, 501, "501"),
        ] {
            let error = create(body.as_bytes());
            let answer = String::from_utf8(error.response().body().to_vec()).unwrap();
            assert_eq!(error.status().as_u16(), status, "{body}");
            assert!(answer.contains(&format!(r#""errorNum":{number}"#)), "{body}: {answer}");
        }
        assert!(is_legal(&"a".repeat(64), false) && !is_legal(&"a".repeat(65), false));
    }
}
