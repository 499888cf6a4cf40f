//! The `cgi:` target: CGI/1.1 scripts (RFC 3875).
//!
//! Owns the reading of a script's response (section 6). `child` starts and feeds the script, `environment`
//! makes its environment. Command-line arguments from an "indexed" query (section 4.4) are
//! deliberately not given: they let a client choose a script's options. Invariant: output without a
//! valid header block never becomes a response.

use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;

use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Response, StatusCode};

use super::child::Output;
use super::hop_by_hop::{self, Direction};
use super::run::run_script;
use super::{Handler, Outcome, ScriptRoute, locate};
use crate::error::Error;
use crate::exchange::Call;
use crate::job::execution::Execution;

/// How many fields a script's response may have.
const MAX_FIELDS: usize = 100;

/// How large its header block may be, in bytes: it is held once more while it is read, and is not charged
/// to the budget of memory then.
const MAX_HEADER: usize = 64 * 1024;

const STATUS: HeaderName = HeaderName::from_static("status");

/// Runs the CGI scripts of one directory.
pub struct CgiHandler {
    route: ScriptRoute,
}

impl CgiHandler {
    /// Returns a handler for the scripts of this route.
    pub fn new(route: ScriptRoute) -> Self {
        Self { route }
    }
}

impl Handler for CgiHandler {
    fn check(&self, request: &Parts) -> Result<(), Error> {
        locate::locate(&self.route, request.uri.path()).map(drop)
    }

    fn run(&self, call: &Call, execution: &Arc<Execution>) -> Result<Outcome, Error> {
        let output = run_script(&self.route, call, execution)?;
        outcome(output, call.request.uri().path())
    }

    fn relays_fields(&self) -> bool {
        true
    }
}

fn invalid(why: impl Into<String>) -> Error {
    Error::BadGateway(format!("the script gave no valid CGI response: {}", why.into()).into())
}

/// Reads a script's output (RFC 3875 section 6.2).
fn outcome(output: Output, path: &str) -> Result<Outcome, Error> {
    if let Some(signal) = output.status.signal() {
        // Its output may be cut anywhere.
        return Err(Error::BadGateway(format!("the script was ended by signal {signal}").into()));
    }
    if !output.status.success() {
        log::warn!("path={path} the script ended with {}; its response counts", output.status);
    }
    let (fields, start) = header_block(&output.stdout)?;
    let status = status(&fields)?;
    let location = fields.get(LOCATION).map(|location| location.as_bytes());
    if let (None, Some(target @ [b'/', ..])) = (status, location) {
        let target =
            PathAndQuery::try_from(target).map_err(|_| invalid("Location is not a path"))?;
        return Ok(Outcome::LocalRedirect(target));
    }
    let redirect = location.map(|_| StatusCode::FOUND);
    let mut response = Response::new(output.stdout.freeze_from(start));
    *response.status_mut() = status.or(redirect).unwrap_or(StatusCode::OK);
    *response.headers_mut() = passed(fields);
    Ok(response.into())
}

/// Reads the header block, with LF or CRLF at the line ends; returns it, and where the content begins.
fn header_block(stdout: &[u8]) -> Result<(HeaderMap, usize), Error> {
    let mut lines = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let beginning = &stdout[..stdout.len().min(MAX_HEADER)];
    let (start, lines) = match httparse::parse_headers(beginning, &mut lines) {
        Ok(httparse::Status::Complete(block)) => block,
        Ok(httparse::Status::Partial) if stdout.len() > MAX_HEADER => {
            return Err(invalid("its header is larger than 64K"));
        }
        Ok(httparse::Status::Partial) => return Err(invalid("no empty line ends its header")),
        Err(error) => return Err(invalid(error.to_string())),
    };
    let mut fields = HeaderMap::with_capacity(lines.len());
    for line in lines {
        let name = HeaderName::from_bytes(line.name.as_bytes());
        let value = HeaderValue::from_bytes(line.value);
        let (Ok(name), Ok(value)) = (name, value) else {
            return Err(invalid(format!("the field {:?} is not valid", line.name)));
        };
        // "The script MUST NOT return more than one of each CGI field" (section 6.3).
        if [CONTENT_TYPE, LOCATION, STATUS].contains(&name) && fields.contains_key(&name) {
            return Err(invalid(format!("more than one {name}")));
        }
        fields.append(name, value);
    }
    // "The response header … MUST contain at least one CGI field" (section 6.2).
    if ![CONTENT_TYPE, LOCATION, STATUS].iter().any(|name| fields.contains_key(name)) {
        return Err(invalid("it has neither Content-Type, Location nor Status"));
    }
    Ok((fields, start))
}

/// Reads the Status field: three digits of a final status code, and a reason, which is ignored
/// (section 6.3.3).
fn status(fields: &HeaderMap) -> Result<Option<StatusCode>, Error> {
    let Some(value) = fields.get(STATUS) else { return Ok(None) };
    let code = value.as_bytes().split(|&b| b == b' ').next().unwrap_or_default();
    StatusCode::from_bytes(code)
        .ok()
        .filter(|code| (200..=599).contains(&code.as_u16()))
        .map(Some)
        .ok_or_else(|| invalid("its Status is not a final status code"))
}

fn passed(mut fields: HeaderMap) -> HeaderMap {
    hop_by_hop::strip(&mut fields, Direction::Response);
    // CGI's own (section 6.3.3).
    fields.remove(STATUS);
    fields
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::ContentBuffer;
    use crate::memory::Allowance;
    use bytes::Bytes;
    use std::process::ExitStatus;

    fn written(stdout: &str) -> ContentBuffer {
        let mut buffer = ContentBuffer::new(&Allowance::default());
        buffer.extend(stdout.as_bytes()).unwrap();
        buffer
    }

    fn read(stdout: &str) -> Result<Outcome, Error> {
        let status = ExitStatus::from_raw(0);
        outcome(Output { status, stdout: written(stdout) }, "/test")
    }

    fn answer(stdout: &str) -> Response<Bytes> {
        match read(stdout) {
            Ok(Outcome::Answer(answer)) => answer.response,
            Ok(Outcome::LocalRedirect(target)) => panic!("{stdout:?} redirects to {target}"),
            Ok(Outcome::Delayed(..)) => panic!("{stdout:?} is delayed"),
            Err(error) => panic!("{stdout:?} fails: {error:?}"),
        }
    }

    #[test]
    fn documents_and_client_redirects() {
        for (stdout, status, body) in [
            ("Content-Type: text/plain\n\nhello\n", 200, "hello\n"),
            ("content-type: text/plain\r\n\r\nhello", 200, "hello"),
            ("Status: 404 Not here\nContent-Type: a/b\n\n", 404, ""),
            ("Status: 204\n\n", 204, ""),
            ("Location: http://example.org/x\n\n", 302, ""),
            (
                "Location: http://example.org/x\nStatus: 303 See Other\nContent-Type: a/b\n\nsee",
                303,
                "see",
            ),
            ("Location: /x\nStatus: 301\n\n", 301, ""),
        ] {
            let response = answer(stdout);
            assert_eq!(
                (response.status().as_u16(), &response.body()[..]),
                (status, body.as_bytes())
            );
        }
    }

    #[test]
    fn local_redirects() {
        let Ok(Outcome::LocalRedirect(target)) = read("Location: /a/b?c=d\n\n") else { panic!() };
        assert_eq!(target.as_str(), "/a/b?c=d");
    }

    #[test]
    fn an_invalid_header_block_is_refused() {
        for stdout in [
            "",
            "hello",
            "hello\n\n",
            "\n\nhello",
            "Content-Type: a/b\nhello",
            "Content-Type: a/b\n\tfolded\n\n",
            "X-Only: other fields\n\n",
            "Status: 99\n\n",
            "Status: 100 Continue\n\n",
            "Status: abc\n\n",
            "Status: 2000\n\n",
            "Content-Type: a/b\nContent-Type: c/d\n\n",
            "Content Type: a/b\n\n",
            "Location: /with space\n\n",
        ] {
            assert!(matches!(read(stdout), Err(Error::BadGateway(_))), "{stdout:?}");
        }
    }

    #[test]
    fn a_header_of_64_kib_is_read_and_a_larger_one_refused() {
        let header = |size: usize| {
            let rest = "Content-Type: a/b\nX: \n\n".len();
            format!("Content-Type: a/b\nX: {}\n\ncontent", "x".repeat(size - rest))
        };
        assert_eq!(answer(&header(MAX_HEADER)).body(), "content");
        let Err(Error::BadGateway(what)) = read(&header(MAX_HEADER + 1)) else { panic!() };
        assert!(what.contains("larger than 64K"), "{what}");
    }

    #[test]
    fn a_script_that_was_killed_gives_no_response() {
        let stdout = written("Content-Type: text/plain\n\nhalf of");
        let output = Output { status: ExitStatus::from_raw(9), stdout };
        assert!(matches!(outcome(output, "/test"), Err(Error::BadGateway(_))));
    }

    #[test]
    fn hop_by_hop_fields_are_not_passed() {
        let response = answer(
            "Content-Type: a/b\nConnection: close, X-Hop\nX-Hop: 1\nContent-Length: 999\n\
             Transfer-Encoding: chunked\nX-Arango-Async-Id: 7\nSet-Cookie: a=1\nSet-Cookie: b=2\n\nx",
        );
        let names: Vec<_> = response.headers().keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["content-type", "set-cookie"]);
        assert_eq!(response.headers().get_all("set-cookie").iter().count(), 2);
    }
}
