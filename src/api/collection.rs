//! Collections, as far as deferd has them: an empty list, and the check of a new name.
//!
//! Owns the rules for names (ArangoDB 1.4: a letter first, or `_` for a system collection; then letters, digits, `_`,
//! `-`; at most 64). Stores nothing: a legal name is answered with `501`. Invariant: reading a request takes no more
//! memory than the name in it, whatever else it contains.

use serde_core::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{Asked, json};
use crate::error::Error;
use crate::handler::Outcome;

const MAX_NAME: usize = 64;

/// How much JSON deferd reads, in bytes.
pub const MAX_JSON: usize = 64 * 1024;

/// The list in the form of ArangoDB 3. python-arango asks for it to check its connection.
const NONE: &str = r#"{"error":false,"code":200,"result":[]}"#;

/// Returns the list.
pub fn list(_: &Asked<'_>) -> Result<Outcome, Error> {
    Ok(json(NONE).into())
}

/// Refuses a new collection.
///
/// # Errors
/// Always an error, because deferd has no collections.
pub fn create(asked: &Asked<'_>) -> Result<Outcome, Error> {
    // The handler reads only what is in memory.
    let body = asked.call.request.body().beginning(MAX_JSON);
    Err(body.map_or_else(|error| Error::unreadable(&error), |body| refusal(&body)))
}

/// Returns the answer to a request for a new collection.
fn refusal(body: &[u8]) -> Error {
    // As in ArangoDB, empty content means a missing name, not broken JSON.
    if body.trim_ascii().is_empty() {
        return Error::IllegalName;
    }
    match serde_json::from_slice(body) {
        Err(error) => Error::BadJson(error.to_string().into()),
        Ok(Json::Object { name: Some(name), is_system }) if is_legal(&name, is_system) => {
            Error::NotImplemented("collections cannot be created".into())
        }
        Ok(_) => Error::IllegalName,
    }
}

/// The JSON of a new collection; other members are read and dropped.
enum Json {
    Object {
        /// `None` if it is missing or not a string.
        name: Option<String>,
        is_system: bool,
    },
    Text(String),
    True,
    Other,
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let (mut name, mut is_system) = (None, false);
        while let Some(key) = map.next_key()? {
            match key {
                Json::Text(key) if key == "name" => {
                    name = match map.next_value()? {
                        Json::Text(name) => Some(name),
                        _ => None,
                    };
                }
                Json::Text(key) if key == "isSystem" => {
                    is_system = matches!(map.next_value()?, Json::True);
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Json::Object { name, is_system })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Json::Other)
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::Text(text.to_owned()))
    }

    fn visit_bool<E>(self, on: bool) -> Result<Json, E> {
        Ok(if on { Json::True } else { Json::Other })
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Json, E> {
        Ok(Json::Other)
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
            (r#"{"name":"a"} x"#, 400, "600"),
            (r#"{"name":"a","b":[1,{"c":nul}]}"#, 400, "600"),
            (r#"{"name":{"name":"a"}}"#, 400, "1208"),
            (r#"{"name":["a"],"isSystem":[true]}"#, 400, "1208"),
            (r#"{"name":7,"name":"a"}"#, 501, "501"),
            (r#"{"n\u0061me":"a","x":{"y":[-1,1e9,null,"z"]}}"#, 501, "501"),
            (r#"{"name":"_a","isSystem":"true"}"#, 400, "1208"),
            (r#"{"name":"users-2_b"}"#, 501, "501"),
            (r#"{"name":"_users","isSystem":true}"#, 501, "501"),
        ] {
            let error = refusal(body.as_bytes());
            let answer =
                String::from_utf8(error.response().body().in_memory().unwrap().to_vec()).unwrap();
            assert_eq!(error.status().as_u16(), status, "{body}");
            assert!(answer.contains(&format!(r#""errorNum":{number}"#)), "{body}: {answer}");
        }
        assert!(is_legal(&"a".repeat(64), false) && !is_legal(&"a".repeat(65), false));
    }
}
