//! What of the collections exists so far: the list of none, and the check of a new one's name.
//!
//! Owns the rules for names (ArangoDB 1.4: a letter first, or `_` for a system collection; then
//! letters, digits, `_`, `-`; at most 64). Keeps nothing: a legal name is answered with `501`. Invariant:
//! reading a request takes no more memory than its name has, whatever else it holds.

use bytes::Bytes;
use http::{Method, Response};
use serde_core::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::json;
use crate::error::Error;

const MAX_NAME: usize = 64;

/// How much JSON deferd reads, in bytes.
pub const MAX_JSON: usize = 64 * 1024;

/// The kinds of JSON that come to the same value for a visitor.
macro_rules! accept_any {
    ($value:expr) => {
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("JSON")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok($value)
        }

        fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
            Ok($value)
        }

        fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
            Ok($value)
        }

        fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
            Ok($value)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
            while items.next_element::<IgnoredAny>()?.is_some() {}
            Ok($value)
        }
    };
}

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
    if body.trim_ascii().is_empty() {
        return Error::IllegalName;
    }
    let mut json = serde_json::Deserializer::from_slice(body);
    let parsed = NewCollection::deserialize(&mut json).and_then(|new| json.end().map(|()| new));
    match parsed {
        Err(error) => Error::BadJson(error.to_string().into()),
        Ok(NewCollection { name: Some(name), is_system }) if is_legal(&name, is_system) => {
            Error::NotImplemented("collections cannot be created".into())
        }
        Ok(_) => Error::IllegalName,
    }
}

/// What is read of a request for a new collection, whatever else is in it: nothing of that is kept.
#[derive(Default)]
struct NewCollection {
    /// `None` if it is missing or not a string.
    name: Option<String>,
    is_system: bool,
}

impl<'de> Deserialize<'de> for NewCollection {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_any(NewCollectionVisitor)
    }
}

/// Takes any JSON for a new collection; only an object has a name.
struct NewCollectionVisitor;

impl<'de> Visitor<'de> for NewCollectionVisitor {
    type Value = NewCollection;

    accept_any!(NewCollection::default());

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<NewCollection, A::Error> {
        let mut new = NewCollection::default();
        while let Some(key) = map.next_key::<Scalar>()? {
            match key {
                Scalar::Text(key) if key == "name" => {
                    new.name = match map.next_value()? {
                        Scalar::Text(name) => Some(name),
                        Scalar::True | Scalar::Other => None,
                    };
                }
                Scalar::Text(key) if key == "isSystem" => {
                    new.is_system = matches!(map.next_value()?, Scalar::True);
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(new)
    }

    fn visit_str<E>(self, _: &str) -> Result<NewCollection, E> {
        Ok(NewCollection::default())
    }

    fn visit_bool<E>(self, _: bool) -> Result<NewCollection, E> {
        Ok(NewCollection::default())
    }
}

/// A value as far as it matters.
enum Scalar {
    Text(String),
    True,
    Other,
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_any(ScalarVisitor)
    }
}

struct ScalarVisitor;

impl<'de> Visitor<'de> for ScalarVisitor {
    type Value = Scalar;

    accept_any!(Scalar::Other);

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Scalar, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Scalar::Other)
    }

    fn visit_str<E>(self, text: &str) -> Result<Scalar, E> {
        Ok(Scalar::Text(text.to_owned()))
    }

    fn visit_bool<E>(self, on: bool) -> Result<Scalar, E> {
        Ok(if on { Scalar::True } else { Scalar::Other })
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
            let error = create(body.as_bytes());
            let answer = String::from_utf8(error.response().body().to_vec()).unwrap();
            assert_eq!(error.status().as_u16(), status, "{body}");
            assert!(answer.contains(&format!(r#""errorNum":{number}"#)), "{body}: {answer}");
        }
        assert!(is_legal(&"a".repeat(64), false) && !is_legal(&"a".repeat(65), false));
    }
}
