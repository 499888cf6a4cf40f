//! One range of a result's content, to resume a download that broke off (RFC 9110 section 14).
//!
//! Owns the reading of `range` and `if-range`, and the fields of the answer. Invariant: a request is answered with the
//! whole content, never an error, unless it has exactly one valid range of the same content that the client already
//! holds; only a range beyond the end is refused.

use std::ops::Range;

use http::header::{ACCEPT_RANGES, CONTENT_RANGE, ETAG, HeaderMap, IF_RANGE, RANGE};
use http::{HeaderName, HeaderValue, Method, Response, StatusCode};

use crate::content::Content;
use crate::error::Error;
use crate::exchange::Call;
use crate::fields::{FieldLines, find};

const BYTES: HeaderValue = HeaderValue::from_static("bytes");

/// The part of some content that is asked for.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    /// All of it.
    Whole,
    /// These bytes.
    Part(Range<usize>),
    /// Bytes beyond its end.
    BehindEnd,
}

/// Answers with the requested range of `whole`, a `200`. Its entity tag is its own, or else `tag`. If the whole is
/// requested, `otherwise` makes its content.
pub fn answer(
    call: &Call,
    mut whole: Response<Content>,
    tag: HeaderValue,
    otherwise: impl FnOnce(Content) -> Content,
) -> Response<Content> {
    let request = &call.request;
    let fields = whole.headers_mut();
    fields.insert(ACCEPT_RANGES, BYTES);
    let tag = fields.entry(ETAG).or_insert(tag).clone();
    let length = whole.body().len();
    let asked = match *request.method() {
        Method::GET => asked(request.headers(), &tag, length),
        // Only GET has ranges (section 14.2).
        _ => Asked::Whole,
    };
    match asked {
        Asked::Whole => whole.map(otherwise),
        Asked::Part(range) => {
            let (first, last) = (range.start, range.end - 1);
            let mut part = whole.map(|content| content.slice(range));
            *part.status_mut() = StatusCode::PARTIAL_CONTENT;
            insert(&mut part, CONTENT_RANGE, &format!("bytes {first}-{last}/{length}"));
            part
        }
        Asked::BehindEnd => {
            let what = format!("the content has {length} bytes");
            let mut refusal = Error::RangeNotSatisfiable(what.into()).response();
            insert(&mut refusal, CONTENT_RANGE, &format!("bytes */{length}"));
            refusal
        }
    }
}

/// Returns the entity tag of a result that has none of its own: its job's id.
pub fn tag(id: &HeaderValue) -> HeaderValue {
    let tag = [b"\"", id.as_bytes(), b"\""].concat();
    HeaderValue::from_bytes(&tag).expect("an id and quotes are a field value")
}

fn insert(response: &mut Response<Content>, name: HeaderName, text: &str) {
    let value = HeaderValue::from_str(text).expect("words and digits are a field value");
    response.headers_mut().insert(name, value);
}

/// Reads which part is requested of content of this length with this entity tag.
fn asked(fields: &HeaderMap, tag: &HeaderValue, length: usize) -> Asked {
    let [range, condition] = find(fields, &[RANGE, IF_RANGE]);
    let Some(range) = range.only_text() else { return Asked::Whole };
    if !holds(condition, tag) {
        return Asked::Whole;
    }
    read(range, length).unwrap_or(Asked::Whole)
}

/// Returns whether the client holds the beginning of this content: only a strong tag proves that (section 13.1.5).
fn holds(condition: FieldLines<'_>, tag: &HeaderValue) -> bool {
    let is_strong = tag.as_bytes().starts_with(b"\"");
    condition.first.is_none() || is_strong && condition.only() == Some(tag)
}

/// Reads a range; `None` if the value is not exactly one valid range of bytes.
fn read(range: &str, length: usize) -> Option<Asked> {
    let (unit, range) = range.split_once('=')?;
    let (first, last) = range.trim().split_once('-')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    if first.is_empty() {
        return Some(match number(last)? {
            0 => Asked::BehindEnd,
            _ if length == 0 => Asked::Whole,
            suffix => Asked::Part(length.saturating_sub(suffix)..length),
        });
    }
    let first = number(first)?;
    let last = if last.is_empty() { usize::MAX } else { number(last)? };
    match (first <= last, first < length) {
        (false, _) => None,
        (true, false) => Some(Asked::BehindEnd),
        (true, true) => Some(Asked::Part(first..last.saturating_add(1).min(length))),
    }
}

/// Reads a number, which may exceed the length of any content.
fn number(digits: &str) -> Option<usize> {
    let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| digits.parse().unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(lines: &[(HeaderName, &'static str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn one_valid_range_gets_a_part_anything_else_the_whole() {
        use Asked::{BehindEnd, Part, Whole};
        for (range, asked) in [
            ("bytes=0-0", Part(0..1)),
            ("bytes=2-4", Part(2..5)),
            ("bytes=2-", Part(2..10)),
            ("bytes=9-", Part(9..10)),
            ("bytes=0-9999999999999999999999999", Part(0..10)),
            ("bytes=-3", Part(7..10)),
            ("bytes=-30", Part(0..10)),
            ("BYTES=1-1", Part(1..2)),
            ("bytes= 1-1 ", Part(1..2)),
            ("bytes=10-", BehindEnd),
            ("bytes=99999999999999999999999-", BehindEnd),
            ("bytes=10-20", BehindEnd),
            ("bytes=-0", BehindEnd),
            ("bytes=4-2", Whole),
            ("bytes=0-1,3-4", Whole),
            ("bytes=-", Whole),
            ("bytes=", Whole),
            ("bytes=a-b", Whole),
            ("bytes=+1-2", Whole),
            ("bytes=1-2-3", Whole),
            ("lines=1-2", Whole),
            ("1-2", Whole),
        ] {
            let tag = HeaderValue::from_static("\"7\"");
            assert_eq!(super::asked(&fields(&[(RANGE, range)]), &tag, 10), asked, "{range}");
        }
        assert_eq!(read("bytes=0-", 0), Some(BehindEnd));
        assert_eq!(read("bytes=-1", 0), Some(Whole));
    }

    #[test]
    fn only_the_same_strong_tag_resumes_a_download() {
        for (tag, condition, is_part) in [
            ("\"7\"", "\"7\"", true),
            ("\"7\"", "\"8\"", false),
            ("\"7\"", "W/\"7\"", false),
            ("W/\"7\"", "W/\"7\"", false),
            ("\"7\"", "Thu, 26 Nov 2026 04:20:04 GMT", false),
        ] {
            let fields = fields(&[(RANGE, "bytes=1-"), (IF_RANGE, condition)]);
            let asked = asked(&fields, &HeaderValue::from_static(tag), 10);
            assert_eq!(asked != Asked::Whole, is_part, "{tag} {condition}");
        }
        let mut twice = fields(&[(RANGE, "bytes=1-"), (IF_RANGE, "\"7\"")]);
        twice.append(IF_RANGE, HeaderValue::from_static("\"7\""));
        assert_eq!(asked(&twice, &HeaderValue::from_static("\"7\""), 10), Asked::Whole);
    }
}
