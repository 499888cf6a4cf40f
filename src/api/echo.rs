//! The request as JSON, with the beginning of its content.
//!
//! Owns the members, which are in the order of their names. Invariant: the answer is written as the request is read,
//! and charged as it grows: there is no tree of it, and no other copy of what the client sent.

use std::fmt::{self, Display};
use std::io::{self, ErrorKind, Write};

use http::{HeaderMap, HeaderName, Response};
use serde_core::ser::{Serialize, Serializer};

use super::{Asked, json};
use crate::content::{Content, ContentBuffer, NoMemory};
use crate::error::Error;
use crate::exchange::Call;
use crate::handler::Outcome;
use crate::memory::Allowance;

/// How much of a request's content an echo shows, in bytes.
const MAX_ECHO: usize = 64 * 1024;

/// Shows a request to its client.
///
/// # Errors
/// `503` if there is no memory for it.
pub fn answer(asked: &Asked<'_>) -> Result<Outcome, Error> {
    echo(asked.call, asked.memory).map(Into::into)
}

/// Returns the request as JSON, with the first 64 KiB of its content. Bytes that are not UTF-8 are replaced;
/// `bodySize` is the true size in bytes.
fn echo(call: &Call, memory: &Allowance) -> Result<Response<Content>, Error> {
    let request = &call.request;
    let (uri, fields) = (request.uri(), request.headers());
    let mut text = Text(ContentBuffer::new(memory));
    // Reserved at once: growing from the first byte would take a dozen steps.
    text.0.room(size_of(call)).map_err(|error| Error::no_memory(&error))?;
    // Includes the bytes that show whether the last character is complete.
    let content =
        request.body().beginning(MAX_ECHO + 4).map_err(|error| Error::unreadable(&error))?;
    text.put(r#"{"body":"#)?.string(&Lossy(beginning(&content)))?;
    text.put(&format!(r#","bodySize":{}"#, request.body().len()))?;
    text.put(r#","client":"#)?.string(&call.connection)?;
    text.put(r#","headers":{"#)?;
    let mut names: Vec<&HeaderName> = fields.keys().collect();
    names.sort_unstable_by_key(|name| name.as_str());
    for (n, name) in names.into_iter().enumerate() {
        let comma = if n > 0 { "," } else { "" };
        text.put(comma)?.string(name)?.put(":")?.string(&Joined { fields, name })?;
    }
    text.put(r#"},"method":"#)?.string(request.method())?;
    text.put(r#","path":"#)?.string(&uri.path())?;
    text.put(r#","protocol":"#)?.string(&format_args!("{:?}", request.version()))?;
    match uri.query() {
        Some(query) => text.put(r#","query":"#)?.string(&query)?,
        None => text.put(r#","query":null"#)?,
    };
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    text.put(r#","target":"#)?.string(&target)?;
    text.put(r#","user":"#)?.string(&call.owner.as_log())?.put("}")?;
    Ok(json(text.0.freeze().map_err(|error| Error::no_memory(&error))?))
}

/// Estimates how much JSON a request becomes, in bytes.
fn size_of(call: &Call) -> usize {
    let request = &call.request;
    let fields =
        request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 8);
    request.body().len().min(MAX_ECHO) + fields.sum::<usize>() + 512
}

/// The JSON written so far.
struct Text(ContentBuffer);

impl Text {
    /// Appends JSON.
    fn put(&mut self, json: &str) -> Result<&mut Self, Error> {
        self.0.extend(json.as_bytes()).map_err(|error| Error::no_memory(&error))?;
        Ok(self)
    }

    /// Appends a string, with its quotes.
    fn string(&mut self, value: &dyn Display) -> Result<&mut Self, Error> {
        // Only the memory can fail here.
        serde_json::to_writer(&mut *self, &Shown(value))
            .map_err(|_| Error::no_memory(&NoMemory::Budget))?;
        Ok(self)
    }
}

impl Write for Text {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend(bytes).map_err(|_| ErrorKind::OutOfMemory)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A value whose `Display` text is written as a JSON string.
struct Shown<'a>(&'a dyn Display);

impl Serialize for Shown<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self.0)
    }
}

/// Bytes as text; what is not UTF-8 is replaced.
struct Lossy<'a>(&'a [u8]);

impl Display for Lossy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.utf8_chunks().try_for_each(|chunk| {
            f.write_str(chunk.valid())?;
            if chunk.invalid().is_empty() { Ok(()) } else { f.write_str("\u{fffd}") }
        })
    }
}

/// The values of a field, joined.
struct Joined<'a> {
    fields: &'a HeaderMap,
    name: &'a HeaderName,
}

impl Display for Joined<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fields.get_all(self.name).iter().enumerate().try_for_each(|(n, value)| {
            f.write_str(if n > 0 { ", " } else { "" })?;
            Lossy(value.as_bytes()).fmt(f)
        })
    }
}

/// Returns as much of the content as an echo shows, cut between characters.
fn beginning(content: &[u8]) -> &[u8] {
    let mut end = content.len().min(MAX_ECHO);
    let is_continuation = |at: usize| content.get(at).is_some_and(|byte| byte & 0xc0 == 0x80);
    if (end.saturating_sub(3)..end).any(|at| !is_continuation(at)) {
        while is_continuation(end) {
            end -= 1;
        }
    }
    &content[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::{Connection, Owner};
    use crate::memory::Budget;

    /// Returns the echo of this content, with fields that are not in the order of their names.
    fn echo_of(content: &[u8], memory: &Allowance) -> Result<Response<Content>, Error> {
        let request = http::Request::post("/_admin/echo?a=%22b")
            .header("x-two", "2")
            .header("x-one", "1")
            .header("x-two", http::HeaderValue::from_bytes(b"\xff\"").unwrap())
            .body(content.to_vec().into())
            .unwrap();
        let (connection, owner) = (Connection::Unix, Owner::anonymous());
        echo(&Call { request, connection, owner, auth_type: None }, memory)
    }

    #[test]
    fn an_echo_is_json_of_the_request() {
        let response = echo_of(b"a\x01\xff\n\xe2\x82", &Allowance::default()).unwrap();
        assert_eq!(
            std::str::from_utf8(response.body().in_memory().unwrap()).unwrap(),
            concat!(
                r#"{"body":"a\u0001\ufffd\n\ufffd","bodySize":6,"client":"unix","#,
                r#""headers":{"x-one":"1","x-two":"2, \ufffd\""},"method":"POST","#,
                r#""path":"/_admin/echo","protocol":"HTTP/1.1","query":"a=%22b","#,
                r#""target":"/_admin/echo?a=%22b","user":"-"}"#
            )
            .replace("\\ufffd", "\u{fffd}")
        );
    }

    #[test]
    fn an_echo_without_memory_is_refused() {
        let budget = Budget::new(600 << 10);
        let response = echo_of(&[1; MAX_ECHO], &budget.allowance()).unwrap();
        assert!(response.body().len() > 6 * MAX_ECHO);
        assert_eq!(echo_of(&[1; MAX_ECHO], &budget.allowance()).unwrap_err().status(), 503);
        drop(response);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn an_echo_is_cut_between_characters() {
        for (before, rest, kept) in [
            (MAX_ECHO - 1, "a".as_bytes(), MAX_ECHO),
            (MAX_ECHO, b"a", MAX_ECHO),
            (MAX_ECHO - 1, "\u{e4}".as_bytes(), MAX_ECHO - 1),
            (MAX_ECHO - 2, "\u{1f600}".as_bytes(), MAX_ECHO - 2),
            (MAX_ECHO - 3, "\u{20ac}x".as_bytes(), MAX_ECHO),
            (MAX_ECHO - 8, &[0x80; 99], MAX_ECHO),
        ] {
            let content = [&vec![b'x'; before][..], rest].concat();
            assert_eq!(beginning(&content).len(), kept.min(content.len()), "{before} {rest:?}");
        }
    }
}
