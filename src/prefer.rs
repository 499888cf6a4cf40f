//! The `prefer` field (RFC 7240): how a client wants its request to be treated.
//!
//! Owns the field's syntax and the three preferences that deferd knows. Acts on none of them: the service and the
//! job resource do. Invariant: nothing in the field can make a request fail: what is
//! unknown or malformed is ignored, and ends at the next comma.

use std::time::Duration;

use http::{HeaderMap, HeaderValue};

use crate::protocol::PREFER;

/// What a client prefers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Preferences {
    /// Whether it has its request deferred (section 4.1).
    pub respond_async: bool,
    /// How long it would wait for the answer (section 4.3).
    pub wait: Option<Duration>,
    /// What it wants to see of what it made (section 4.2).
    pub content: Option<Content>,
}

/// What the answer to a request that makes something shows of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// `return=minimal`: as little as possible.
    Minimal,
    /// `return=representation`: the thing itself. Of a job that is its id.
    Representation,
}

impl Preferences {
    /// Returns those of a request. Of a preference that comes twice the first counts (section 2).
    pub fn of(fields: &HeaderMap) -> Self {
        let mut found = Self::default();
        let mut wait_seen = false;
        let mut return_seen = false;
        for element in elements(fields) {
            match element.name().as_str() {
                "respond-async" => found.respond_async = true,
                "wait" if !wait_seen => {
                    wait_seen = true;
                    found.wait = element.value().and_then(|value| seconds(&value));
                }
                "return" if !return_seen => {
                    return_seen = true;
                    found.content = element.value().and_then(|value| content(&value));
                }
                _ => {}
            }
        }
        found
    }
}

fn content(value: &str) -> Option<Content> {
    match value {
        "minimal" => Some(Content::Minimal),
        "representation" => Some(Content::Representation),
        _ => None,
    }
}

/// Returns the field as an upstream gets it: without what deferd has applied, which is `respond-async`, and
/// `wait` beside it; `None` if nothing is left.
pub fn forwarded(fields: &HeaderMap) -> Option<HeaderValue> {
    let applied: &[&str] = match Preferences::of(fields).respond_async {
        true => &["respond-async", "wait"],
        false => &[],
    };
    let left: Vec<&[u8]> = elements(fields)
        .filter(|element| !applied.contains(&element.name().as_str()))
        .map(|element| element.0)
        .collect();
    (!left.is_empty()).then(|| HeaderValue::from_bytes(&left.join(&b", "[..])).ok()).flatten()
}

/// One preference, with its parameters.
#[derive(Clone, Copy)]
struct Element<'a>(&'a [u8]);

impl Element<'_> {
    /// `name` or `name=value`, without parameters.
    fn pair(&self) -> &[u8] {
        split(self.0, b';').next().unwrap_or_default()
    }

    /// Returns the name, in lower case.
    fn name(&self) -> String {
        let name = split(self.pair(), b'=').next().unwrap_or_default();
        String::from_utf8_lossy(name).to_ascii_lowercase()
    }

    /// Returns the value, without its quotes; `None` for a name without a value.
    fn value(&self) -> Option<String> {
        let value = split(self.pair(), b'=').nth(1)?;
        let quoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
        String::from_utf8(quoted.unwrap_or(value).to_vec()).ok()
    }
}

/// Returns the preferences of all lines of the field, in order.
fn elements(fields: &HeaderMap) -> impl Iterator<Item = Element<'_>> {
    let lines = fields.get_all(PREFER).iter();
    let elements = lines.flat_map(|line| split(line.as_bytes(), b',')).map(Element);
    elements.filter(|element| !element.0.is_empty())
}

/// Splits at each `separator` that stands in no quoted string (RFC 9110 section 5.6.4), and trims.
fn split(text: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let mut quoted = false;
    let mut escaped = false;
    text.split(move |&byte| {
        let ends = byte == separator && !quoted;
        (quoted, escaped) = match byte {
            b'"' if !escaped => (!quoted, false),
            b'\\' if quoted && !escaped => (quoted, true),
            _ => (quoted, false),
        };
        ends
    })
    .map(<[u8]>::trim_ascii)
}

/// Reads whole seconds (RFC 9110's delta-seconds); more than a `u32` holds count as its maximum.
fn seconds(text: &str) -> Option<Duration> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| Duration::from_secs(text.parse::<u32>().unwrap_or(u32::MAX).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(lines: &[&str]) -> HeaderMap {
        let mut fields = HeaderMap::new();
        for line in lines {
            fields.append(PREFER, HeaderValue::from_str(line).unwrap());
        }
        fields
    }

    #[test]
    fn preferences_are_read_in_every_form_that_they_may_have() {
        for (lines, respond_async, wait) in [
            (&[][..], false, None),
            (&[""], false, None),
            (&["respond-async"], true, None),
            (&["Respond-Async"], true, None),
            (&["respond-async, wait=10"], true, Some(10)),
            (&["respond-async,wait=10"], true, Some(10)),
            (&[" ,, respond-async ;x=1 ,\twait = 10 ; y"], true, Some(10)),
            (&["respond-async", "wait=10"], true, Some(10)),
            (&["wait=\"10\""], false, Some(10)),
            (&["wait=3, wait=9"], false, Some(3)),
            (&["wait=x, wait=9"], false, None),
            (&["wait"], false, None),
            (&["wait="], false, None),
            (&["wait=-1"], false, None),
            (&["wait=1.5"], false, None),
            (&["wait=0"], false, Some(0)),
            (&["wait=99999999999999999999"], false, Some(u64::from(u32::MAX))),
            (&["x=\"a, respond-async\""], false, None),
            (&["x=\"a\\\", respond-async\", wait=1"], false, Some(1)),
            (&["x=\"open, respond-async"], false, None),
            (&["return=minimal; wait=5"], false, None),
            (&["respond-asynchronously, waits=1"], false, None),
        ] {
            let found = Preferences::of(&fields(lines));
            let wait = wait.map(Duration::from_secs);
            assert_eq!((found.respond_async, found.wait), (respond_async, wait), "{lines:?}");
        }
    }

    #[test]
    fn what_is_returned_is_the_first_that_is_said() {
        for (line, content) in [
            ("return=representation", Some(Content::Representation)),
            ("Return = \"representation\"; x=1", Some(Content::Representation)),
            ("wait=1, return=minimal, return=representation", Some(Content::Minimal)),
            ("return=nothing, return=representation", None),
            ("return", None),
            ("returns=representation", None),
        ] {
            assert_eq!(Preferences::of(&fields(&[line])).content, content, "{line}");
        }
    }

    #[test]
    fn what_was_applied_is_not_forwarded() {
        for (lines, left) in [
            (&[][..], None),
            (&["respond-async"], None),
            (&["respond-async, wait=3"], None),
            (&["wait=3"], Some("wait=3")),
            (&["respond-async, return=representation"], Some("return=representation")),
            (
                &["return=minimal, respond-async; a=b", "x=\"1,2\""],
                Some("return=minimal, x=\"1,2\""),
            ),
        ] {
            let left = left.map(|left| HeaderValue::from_str(left).unwrap());
            assert_eq!(forwarded(&fields(lines)), left, "{lines:?}");
        }
    }
}
