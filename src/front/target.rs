//! The target of a request (RFC 9112 section 3.2): converted from what clients send to the one form that deferd uses.
//!
//! Owns its percent-encoding and its forms. Does not decode: each reader of a path does. Invariant: the result is a
//! URI by RFC 3986 in origin-form, whatever bytes a client has sent.

use std::borrow::Cow;

use http::header::{HOST, HeaderMap};
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Uri};
use memchr::{memchr, memrchr};

use crate::error::Error;

/// The longest target that can be represented, in bytes.
const MAX: usize = u16::MAX as usize - 1;

/// The treatment of a byte of a target.
enum Fate {
    Kept,
    /// Invalid in a URI, but clients send it and other servers accept it.
    Encoded,
    Refused,
}

const fn fate(byte: u8) -> Fate {
    match byte {
        0..=b' ' | 0x7f => Fate::Refused,
        b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' | 0x80.. => Fate::Encoded,
        _ => Fate::Kept,
    }
}

/// Returns a head with the target in its request line percent-encoded where necessary.
///
/// # Errors
/// `400` if the target has a byte that cannot be encoded.
pub fn encoded_in(head: &[u8]) -> Result<Cow<'_, [u8]>, Error> {
    let line = &head[..memchr(b'\r', head).unwrap_or(head.len())];
    let (Some(first), Some(last)) = (memchr(b' ', line), memrchr(b' ', line)) else {
        return Ok(head.into());
    };
    if first == last {
        return Ok(head.into());
    }
    Ok(match encoded(&line[first + 1..last])? {
        Cow::Borrowed(_) => head.into(),
        Cow::Owned(target) => [&head[..=first], &target, &head[last..]].concat().into(),
    })
}

/// Returns a target percent-encoded where necessary. A `%` stays: what a client has encoded is not encoded again.
///
/// # Errors
/// `400`, naming the first byte that is refused and its place; `414` if it is too long.
pub fn encoded(target: &[u8]) -> Result<Cow<'_, [u8]>, Error> {
    let mut encoded = 0;
    for (at, &byte) in target.iter().enumerate() {
        match fate(byte) {
            Fate::Kept => {}
            Fate::Encoded => encoded += 1,
            Fate::Refused => return Err(refused(byte, at)),
        }
    }
    if target.len() + 2 * encoded > MAX {
        return Err(Error::UriTooLong(format!("more than {MAX} bytes, percent-encoded").into()));
    }
    if encoded == 0 {
        return Ok(target.into());
    }
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let mut text = Vec::with_capacity(target.len() + 2 * encoded);
    for &byte in target {
        match fate(byte) {
            Fate::Encoded => {
                let (high, low) = (byte >> 4, byte & 15);
                text.extend([b'%', DIGITS[usize::from(high)], DIGITS[usize::from(low)]]);
            }
            Fate::Kept | Fate::Refused => text.push(byte),
        }
    }
    Ok(text.into())
}

/// Returns the refusal of a control character or blank after the first `at` bytes of the target.
fn refused(byte: u8, at: usize) -> Error {
    let kind = if byte == b' ' { "a blank" } else { "a control character" };
    let place = at + 1;
    Error::bad_parameter(format!(
        "byte {place} of the request target is {kind} (0x{byte:02x}): write it as %{byte:02X}"
    ))
}

/// Returns the target in origin-form. In absolute-form, its authority replaces `host`.
///
/// # Errors
/// `400` if it names no resource of this server.
pub fn origin_form(target: &str, method: &Method, fields: &mut HeaderMap) -> Result<Uri, Error> {
    let bad = || Error::bad_parameter("the request target is not valid");
    if target.contains('#') {
        let what = "the request target has a #: a fragment stays with the client, a name has %23";
        return Err(Error::bad_parameter(what));
    }
    if target.starts_with('/') || (target == "*" && *method == Method::OPTIONS) {
        return Ok(Uri::from(PathAndQuery::try_from(target).map_err(|_| bad())?));
    }
    let uri: Uri = target.parse().map_err(|_| bad())?;
    let (Some("http" | "https"), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(bad());
    };
    let host = HeaderValue::from_str(authority.as_str()).map_err(|_| bad())?;
    if fields.get_all(HOST).iter().count() == 1 {
        fields.insert(HOST, host);
    }
    uri.path_and_query().cloned().map(Uri::from).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_encoded_where_uris_have_no_such_byte() {
        for (target, expected) in [
            (&b"/a?b=c"[..], "/a?b=c"),
            (b"/%c3%a4%zz%", "/%c3%a4%zz%"),
            ("/ä?ü".as_bytes(), "/%C3%A4?%C3%BC"),
            (b"/caf\xe9\x80\xff", "/caf%E9%80%FF"),
            (b"/q?query=up{job=\"node\"}", "/q?query=up%7Bjob=%22node%22%7D"),
            (b"/<>\\^`|", "/%3C%3E%5C%5E%60%7C"),
            (b"/!$&'()*+,;=:@-._~[]?/#", "/!$&'()*+,;=:@-._~[]?/#"),
        ] {
            assert_eq!(encoded(target).unwrap(), expected.as_bytes());
        }
        // All bytes that are kept or encoded are then read, and mean the same.
        for byte in (0x21..=0xff).filter(|&byte| byte != 0x7f && byte != b'#') {
            let text = encoded(&[b'/', byte, b'?', byte]).unwrap().into_owned();
            let text = String::from_utf8(text).unwrap();
            let uri = origin_form(&text, &Method::GET, &mut HeaderMap::new()).unwrap();
            assert_eq!(uri.path_and_query().unwrap().as_str(), text);
        }
    }

    #[test]
    fn a_refused_byte_is_named_with_its_place() {
        for byte in (0..=b' ').chain([0x7f]) {
            let error = encoded(&[b'/', b'a', byte, b'"']).unwrap_err();
            let Error::BadParameter(what) = error else { panic!("{error:?}") };
            let expected = format!(
                "byte 3 of the request target is a {}",
                match byte {
                    b' ' => "blank (0x20): write it as %20".to_owned(),
                    _ => format!("control character (0x{byte:02x}): write it as %{byte:02X}"),
                }
            );
            assert_eq!(what, expected);
        }
    }

    #[test]
    fn a_head_is_changed_in_its_target_alone() {
        for (head, expected) in [
            (
                &b"GET /\xe4 HTTP/1.1\r\nx: \xe4\r\n\r\n"[..],
                &b"GET /%E4 HTTP/1.1\r\nx: \xe4\r\n\r\n"[..],
            ),
            (b"G\xe4 / HTTP/1.1\r\n\r\n", b"G\xe4 / HTTP/1.1\r\n\r\n"),
            (b"GET \xe4\r\nx: a b\r\n", b"GET \xe4\r\nx: a b\r\n"),
            (b"GET\r\n\r\n", b"GET\r\n\r\n"),
        ] {
            assert_eq!(encoded_in(head).unwrap(), expected);
        }
    }

    #[test]
    fn the_longest_target_is_read_and_a_longer_one_refused() {
        let read = |length: usize, byte: u8| {
            let target = [vec![b'/'], vec![byte; length - 1]].concat();
            let text = String::from_utf8(encoded(&target)?.into_owned()).unwrap();
            origin_form(&text, &Method::GET, &mut HeaderMap::new())
        };
        assert!(read(MAX, b'x').is_ok());
        assert_eq!(read(MAX + 1, b'x').unwrap_err().status(), 414);
        assert!(read(MAX / 3, b'"').is_ok());
        assert_eq!(read(MAX / 3 + 2, b'"').unwrap_err().status(), 414);
    }
}
