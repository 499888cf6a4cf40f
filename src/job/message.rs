//! Requests and responses as plain HTTP/1.1 messages (`message/http`, RFC 9112 section 10.1), for stores
//! that outlive the process.
//!
//! Owns that form, but not where it is kept. The content extends to the end of the message, whatever the fields say,
//! or is elsewhere. Invariant: reading returns what was written; any other message is `None`, never a different one.

use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, Version};

use super::stored::{Ending, StoredResponse, ending, read_fields, write_fields};
use crate::content::Content;

/// Returns a request's message up to its content.
pub fn request_head(request: &Request<Content>) -> Vec<u8> {
    let mut head = Vec::with_capacity(256);
    head.extend_from_slice(request.method().as_str().as_bytes());
    head.push(b' ');
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    head.extend_from_slice(target.as_bytes());
    let version = if request.version() == Version::HTTP_10 { "1.0" } else { "1.1" };
    head.extend_from_slice(format!(" HTTP/{version}\r\n").as_bytes());
    write_fields(request.headers(), &mut head);
    head.extend_from_slice(b"\r\n");
    head
}

/// Reads a request's message, whose content is `elsewhere` or follows its head.
pub fn read_request(message: Bytes, elsewhere: Option<Content>) -> Option<Request<Content>> {
    let (line, fields, body) = split(&message)?;
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    let mut request = Request::new(elsewhere.unwrap_or_else(|| message.slice(body..).into()));
    *request.method_mut() = Method::from_bytes(method.as_bytes()).ok()?;
    *request.uri_mut() = target.parse::<Uri>().ok()?;
    *request.version_mut() = match version {
        "HTTP/1.0" => Version::HTTP_10,
        "HTTP/1.1" => Version::HTTP_11,
        _ => return None,
    };
    read_fields(fields, request.headers_mut());
    Some(request)
}

/// Returns a response's message up to its content.
pub fn response_head(response: &StoredResponse) -> Vec<u8> {
    let status = response.status;
    let reason = status.canonical_reason().unwrap_or("");
    let mut head = format!("HTTP/1.1 {} {reason}\r\n", status.as_str()).into_bytes();
    head.extend_from_slice(&response.fields);
    head.extend_from_slice(b"\r\n");
    head
}

/// Reads a response's message, whose content is `elsewhere` or follows its head.
pub fn read_response(message: Bytes, elsewhere: Option<Content>) -> Option<StoredResponse> {
    let (line, fields, body) = split(&message)?;
    let code = line.strip_prefix(b"HTTP/1.1 ")?.get(..3)?;
    let status = StatusCode::from_bytes(code).ok()?;
    let body = elsewhere.unwrap_or_else(|| message.slice(body..).into());
    Some(StoredResponse { status, fields: fields.into(), body })
}

/// Reads how a job ended from a response's message.
pub fn read_ending(message: &[u8]) -> Option<Ending> {
    let (line, fields, body) = split(message)?;
    let code = line.strip_prefix(b"HTTP/1.1 ")?.get(..3)?;
    Some(ending(StatusCode::from_bytes(code).ok()?, fields, &message[body..]))
}

/// Returns the first line, the field lines, and where the content begins.
fn split(message: &[u8]) -> Option<(&[u8], &[u8], usize)> {
    let line = message.windows(2).position(|two| two == b"\r\n")?;
    // The empty line may follow the first line directly, so the search begins at the end of the first line.
    let end = line + message[line..].windows(4).position(|four| four == b"\r\n\r\n")?;
    Some((&message[..line], message.get(line + 2..end + 2)?, end + 4))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderValue, Response};

    fn joined(mut head: Vec<u8>, body: &[u8]) -> Bytes {
        head.extend_from_slice(body);
        head.into()
    }

    #[test]
    fn a_request_is_a_readable_message_and_comes_back() {
        let request = Request::put("/run/x?q=%20")
            .header("x-a", "1")
            .header("x-b", "2")
            .header("x-a", HeaderValue::from_bytes(b"\xff\t;").unwrap())
            .version(Version::HTTP_10)
            .body(Content::from("\r\n\r\nbody"))
            .unwrap();
        let message = joined(request_head(&request), request.body().in_memory().unwrap());
        assert!(message.starts_with(b"PUT /run/x?q=%20 HTTP/1.0\r\nx-a: 1\r\n"));
        let back = read_request(message, None).unwrap();
        assert_eq!((back.method(), back.uri()), (request.method(), request.uri()));
        assert_eq!((back.version(), back.body()), (request.version(), request.body()));
        assert_eq!(back.headers(), request.headers());
    }

    #[test]
    fn a_response_is_a_readable_message_and_comes_back() {
        for response in [
            Response::builder().status(418).header("x-a", "1").body("short".into()).unwrap(),
            Response::builder().status(204).body(Content::new()).unwrap(),
            Response::builder().status(799).body("\r\n".into()).unwrap(),
        ] {
            let stored = StoredResponse::from(response);
            let message = joined(response_head(&stored), stored.body().in_memory().unwrap());
            assert!(message.starts_with(format!("HTTP/1.1 {}", stored.status.as_str()).as_bytes()));
            assert_eq!(read_ending(&message), Some(stored.ending()));
            assert_eq!(read_response(message, None), Some(stored));
        }
    }

    #[test]
    fn an_invalid_message_is_none() {
        for text in ["", "\r\n\r\n", "GET /\r\n\r\n", "GET / HTTP/2\r\n\r\n", "GET / HTTP/1.1\r\n"]
        {
            assert!(read_request(Bytes::from_static(text.as_bytes()), None).is_none(), "{text:?}");
        }
        for text in ["", "HTTP/1.1 \r\n\r\n", "HTTP/1.1 99 x\r\n\r\n", "200 OK\r\n\r\n"] {
            assert!(read_response(Bytes::from_static(text.as_bytes()), None).is_none(), "{text:?}");
        }
    }
}
