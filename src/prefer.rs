//! The `prefer` field (RFC 7240): how a client wants its request to be treated.
//!
//! Owns the field's syntax and the four preferences that deferd knows. Acts on none of them: the service and the
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
    without(fields, applied)
}

/// Returns the field without these preferences; `None` if nothing is left.
fn without(fields: &HeaderMap, names: &[&str]) -> Option<HeaderValue> {
    let left: Vec<&[u8]> = elements(fields)
        .filter(|element| !names.contains(&element.name().as_str()))
        .map(|element| element.0)
        .collect();
    (!left.is_empty()).then(|| HeaderValue::from_bytes(&left.join(&b", "[..])).ok()).flatten()
}

/// The preference that names a URL to be told that a job is done: of OData 4.01 section 8.2.8.2, and of 4.0.
const CALLBACK: [&str; 2] = ["callback", "odata.callback"];

/// Takes the preference `callback` out of the fields; returns its URL, if it has one.
pub fn take_callback(fields: &mut HeaderMap) -> Option<String> {
    let element = elements(fields).find(|element| CALLBACK.contains(&element.name().as_str()))?;
    let url = element.parameter("url");
    match without(fields, &CALLBACK) {
        Some(left) => drop(fields.insert(PREFER, left)),
        None => drop(fields.remove(PREFER)),
    }
    url
}

/// Which preferences an answer tells that were applied (section 3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// `respond-async`.
    pub respond_async: bool,
    /// `return=representation`.
    pub representation: bool,
    /// `callback`.
    pub callback: bool,
}

impl Applied {
    /// Returns the value of the field that tells; `None` if there is nothing to be told.
    pub fn value(self) -> Option<HeaderValue> {
        let all = [
            (self.respond_async, "respond-async"),
            (self.representation, "return=representation"),
            (self.callback, "callback"),
        ];
        let applied: Vec<_> = all.iter().filter(|(is, _)| *is).map(|(_, name)| *name).collect();
        if applied.is_empty() { None } else { HeaderValue::try_from(applied.join(", ")).ok() }
    }
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
        String::from_utf8(unquoted(split(self.pair(), b'=').nth(1)?)?).ok()
    }

    /// Returns the value of a parameter, of which the first counts; `None` if it is missing or not text.
    fn parameter(&self, name: &str) -> Option<String> {
        let mut parameters = split(self.0, b';').skip(1).filter_map(|parameter| {
            let equals = parameter.iter().position(|&b| b == b'=')?;
            Some((parameter[..equals].trim_ascii(), parameter[equals + 1..].trim_ascii()))
        });
        let (_, value) = parameters.find(|(n, _)| n.eq_ignore_ascii_case(name.as_bytes()))?;
        String::from_utf8(unquoted(value)?).ok()
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

/// Returns the content of a quoted string, or a word as it is; `None` for a string without end.
fn unquoted(value: &[u8]) -> Option<Vec<u8>> {
    let Some(mut rest) = value.strip_prefix(b"\"") else { return Some(value.to_vec()) };
    let mut text = Vec::with_capacity(rest.len());
    loop {
        match rest {
            [b'"'] => return Some(text),
            [b'\\', byte, behind @ ..] => {
                text.push(*byte);
                rest = behind;
            }
            [b'"', ..] | [] => return None,
            [byte, behind @ ..] => {
                text.push(*byte);
                rest = behind;
            }
        }
    }
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
            (&["wait=\"1\\0\""], false, Some(10)),
            (&["wait=\"10"], false, None),
            (&["wait=\"10\"5"], false, None),
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
    fn a_callback_is_taken_out_with_its_url() {
        for (lines, url, left) in [
            (&["respond-async"][..], None, Some("respond-async")),
            (&["callback; url=\"http://h/?a,b;c\""], Some("http://h/?a,b;c"), None),
            (
                &["wait=1, Callback ;x=1; URL = \"http://h/\"", "respond-async"],
                Some("http://h/"),
                Some("wait=1, respond-async"),
            ),
            (&["odata.callback;url=\"http://h/\\\"\\\\\""], Some("http://h/\"\\"), None),
            (&["callback;url=http://h/"], Some("http://h/"), None),
            (&["callback;url=\"a\", callback;url=\"b\", x"], Some("a"), Some("x")),
            (&["callback"], None, None),
            (&["callback=\"http://h/\", y;url=\"z\""], None, Some("y;url=\"z\"")),
            (&["callback;url=\"a\"b"], None, None),
            (&["callbacks;url=\"a\""], None, Some("callbacks;url=\"a\"")),
        ] {
            let mut fields = fields(lines);
            assert_eq!(take_callback(&mut fields).as_deref(), url, "{lines:?}");
            let rest = fields.get_all(PREFER).iter().map(|value| value.to_str().unwrap());
            assert_eq!(rest.collect::<Vec<_>>(), left.into_iter().collect::<Vec<_>>(), "{lines:?}");
        }
    }

    #[test]
    fn what_was_applied_is_told_in_one_field() {
        let applied = Applied { respond_async: true, representation: true, callback: true };
        let value = HeaderValue::from_static("respond-async, return=representation, callback");
        assert_eq!(applied.value(), Some(value));
        assert_eq!(Applied::default().value(), None);
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
