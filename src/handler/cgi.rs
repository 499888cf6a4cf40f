//! The `cgi:` target: CGI/1.1 scripts (RFC 3875).
//!
//! Owns what a script's response means (section 6); `header_block` reads it, `child` starts and feeds the script,
//! `environment` makes its environment. Command-line arguments from an "indexed" query (section 4.4) are
//! deliberately not given: they let a client choose a script's options. Invariants: output without a valid header
//! block never becomes a response; a response has no more content than it announced, and no less.

use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;

use http::header::{HeaderValue, LOCATION};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, Response, StatusCode};

use super::child::Output;
use super::header_block::{self, HeaderBlock};
use super::hop_by_hop::{self, Direction};
use super::run::run_script;
use super::{Handler, Outcome, ScriptRoute, locate};
use crate::error::Error;
use crate::exchange::{Call, LengthOfGet};
use crate::job::execution::Execution;
use crate::sink::Sink;

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

    fn run(
        &self,
        call: &Call,
        execution: &Arc<Execution>,
        _: &mut dyn Sink,
    ) -> Result<Outcome, Error> {
        let output = run_script(&self.route, call, execution, announced_end)?;
        let (method, path) = (call.request.method(), call.request.uri().path());
        let run = format!("job={} path={path}", execution.job_as_log());
        outcome(output, method, &run).map_err(|fault| fault.tell(&run, execution))
    }

    fn relays_fields(&self) -> bool {
        true
    }

    fn reload(&self) -> Result<(), String> {
        self.route.variables.reload()
    }
}

/// Returns where the content ends that the header block announces, once that has come.
fn announced_end(stdout: &[u8]) -> Option<usize> {
    match header_block::read(stdout, header_block::Output::SoFar) {
        Ok(None) => None,
        Ok(Some(block)) => Some(content_end(&block).unwrap_or(usize::MAX)),
        // What is wrong is told at the end of the output.
        Err(_) => Some(usize::MAX),
    }
}

/// Returns where the content ends that a header block announces.
fn content_end(block: &HeaderBlock) -> Option<usize> {
    block.announced.map(|length| block.end.saturating_add(length))
}

/// What is wrong with a script's response.
struct Fault {
    what: String,
    /// The same for the operator, and for the owner of a job: with what the script wrote.
    in_full: String,
}

impl Fault {
    fn new(what: impl Into<String>) -> Self {
        let what = what.into();
        Self { in_full: what.clone(), what }
    }

    /// Tells the log and the job's own log; returns the error that stands for the response.
    fn tell(self, run: &str, execution: &Execution) -> Error {
        let Self { what, in_full } = self;
        log::warn!("{run} {in_full}");
        let log = execution.log();
        let is_open = !log.is_empty() && !log.ends_with(b"\n");
        let line_end = if is_open { "\n" } else { "" };
        execution.append_log(format!("{line_end}deferd: {in_full}\n").as_bytes());
        let is_job = execution.job().is_some();
        Error::BadGateway(if is_job { in_full } else { what }.into())
    }
}

fn invalid(why: &str) -> String {
    format!("the script gave no valid CGI response: {why}")
}

/// Reads a script's output (RFC 3875 section 6.2); `run` is what the log calls this run.
fn outcome(mut output: Output, method: &Method, run: &str) -> Result<Outcome, Fault> {
    if let Some(signal) = output.status.signal() {
        // Its output may be cut anywhere.
        return Err(Fault::new(format!("the script was ended by signal {signal}")));
    }
    let code = output.status.code().filter(|&code| code != 0);
    let exit = code.map(|code| format!(" (exit code {code})")).unwrap_or_default();
    let block = header_block::read(&output.stdout, header_block::Output::Whole);
    let block = block.map_err(|fault| Fault {
        what: invalid(&fault.to_string()),
        in_full: invalid(&(fault.with_line() + &exit)),
    })?;
    let Some(block) = block else { return Err(Fault::new(invalid("its header has no end"))) };
    if code.is_some() {
        log::warn!("{run} the script ended with {}; its response counts", output.status);
    }
    let location = block.fields.get(LOCATION).map(|location| location.as_bytes());
    if let (None, Some(target @ [b'/', ..])) = (block.status, location) {
        let target = PathAndQuery::try_from(target)
            .map_err(|_| Fault::new(invalid("its Location is not a path")))?;
        return Ok(Outcome::LocalRedirect(target));
    }
    let redirect = location.map(|_| StatusCode::FOUND);
    let status = block.status.or(redirect).unwrap_or(StatusCode::OK);
    // Those have no content, and may say how long it would be (RFC 9110 section 8.6).
    let has_content = *method != Method::HEAD
        && ![StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&status);
    let missing = cut_to_length(&mut output, &block, run);
    if let (Some(fault), true) = (missing, has_content) {
        return Err(fault);
    }
    let mut response = Response::new(output.stdout.freeze_from(block.end));
    *response.status_mut() = status;
    *response.headers_mut() = block.fields;
    hop_by_hop::strip(response.headers_mut(), Direction::Response);
    if let (Some(length), &Method::HEAD) = (block.announced, method) {
        response.extensions_mut().insert(LengthOfGet(Some(HeaderValue::from(length))));
    }
    Ok(response.into())
}

/// Drops content beyond the length that was announced; returns the fault of content that is shorter.
fn cut_to_length(output: &mut Output, block: &HeaderBlock, run: &str) -> Option<Fault> {
    let (end, announced) = (content_end(block)?, block.announced?);
    if output.stdout.len() > end {
        log::warn!(
            "{run} the script wrote more than the {announced} bytes that it announced: the rest is dropped"
        );
        output.stdout.truncate(end);
    }
    let written = output.stdout.len() - block.end;
    let what = || format!("the script announced {announced} bytes of content and wrote {written}");
    (written < announced).then(|| Fault::new(what()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::ContentBuffer;
    use crate::memory::Allowance;
    use bytes::Bytes;
    use http::HeaderName;
    use std::process::ExitStatus;

    fn written(stdout: &str) -> ContentBuffer {
        let mut buffer = ContentBuffer::new(&Allowance::default());
        buffer.extend(stdout.as_bytes()).unwrap();
        buffer
    }

    fn read_as(method: &Method, stdout: &str) -> Result<Outcome, Fault> {
        let status = ExitStatus::from_raw(0);
        outcome(Output { status, stdout: written(stdout) }, method, "test")
    }

    fn read(stdout: &str) -> Result<Outcome, Fault> {
        read_as(&Method::GET, stdout)
    }

    fn answer(stdout: &str) -> Response<Bytes> {
        match read(stdout) {
            Ok(Outcome::Answer(answer)) => answer.response,
            Ok(Outcome::LocalRedirect(target)) => panic!("{stdout:?} redirects to {target}"),
            Ok(Outcome::Written | Outcome::Delayed(..)) => panic!("{stdout:?} is no document"),
            Err(fault) => panic!("{stdout:?} fails: {}", fault.in_full),
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
    fn what_is_invalid_is_told_with_and_without_what_was_written() {
        let Err(fault) = read("Content-Type: a/b\nsecret\n\n") else { panic!() };
        assert!(fault.what.ends_with("no valid CGI response: line 2 is not a field"));
        assert!(
            fault.in_full.ends_with("no valid CGI response: line 2 is not a field: \"secret\"")
        );
        assert!(read("Location: /with space\n\n").is_err());
        let output = Output { status: ExitStatus::from_raw(3 << 8), stdout: written("") };
        let Err(fault) = outcome(output, &Method::GET, "test") else { panic!() };
        assert!(fault.in_full.ends_with("it wrote nothing (exit code 3)"), "{}", fault.in_full);
    }

    #[test]
    fn content_is_as_long_as_it_was_announced() {
        for (length, content) in [("5", "hello"), ("2", "he"), ("0", "")] {
            let stdout = format!("Content-Type: a/b\nContent-Length: {length}\n\nhello");
            assert_eq!(answer(&stdout).body(), content);
        }
        let short = "Content-Type: a/b\nContent-Length: 100\n\nso far\n";
        let Err(fault) = read(short) else { panic!() };
        assert_eq!(fault.what, "the script announced 100 bytes of content and wrote 7");
        assert!(read(&short.replace("100", "99999999999999999999")).is_err());
        // Those that have no content.
        for stdout in ["Status: 304\nContent-Length: 9\n\n", "Status: 204\nContent-Length: 9\n\n"] {
            assert_eq!(answer(stdout).body(), "");
        }
        let Ok(Outcome::Answer(head)) = read_as(&Method::HEAD, short) else { panic!() };
        let length = head.response.extensions().get::<LengthOfGet>().and_then(|l| l.0.clone());
        assert_eq!(length.unwrap(), "100");
    }

    #[test]
    fn the_end_of_the_content_is_known_with_the_header() {
        for (stdout, end) in [
            ("Content-Type: a/b\nContent-Length: 5\n", None),
            ("Content-Type: a/b\nContent-Length: 5\n\nhel", Some(42)),
            ("Content-Type: a/b\n\nhel", Some(usize::MAX)),
            ("no header\n", Some(usize::MAX)),
        ] {
            assert_eq!(announced_end(stdout.as_bytes()), end, "{stdout:?}");
        }
    }

    #[test]
    fn a_script_that_was_killed_gives_no_response() {
        let stdout = written("Content-Type: text/plain\n\nhalf of");
        let output = Output { status: ExitStatus::from_raw(9), stdout };
        assert!(outcome(output, &Method::GET, "test").is_err());
    }

    #[test]
    fn hop_by_hop_fields_are_not_passed() {
        let response = answer(
            "Content-Type: a/b\nConnection: close, X-Hop\nX-Hop: 1\nContent-Length: 1\n\
             Transfer-Encoding: chunked\nX-Arango-Async-Id: 7\nSet-Cookie: a=1\nSet-Cookie: b=2\n\nx",
        );
        let names: Vec<_> = response.headers().keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["content-type", "set-cookie"]);
        assert_eq!(response.headers().get_all("set-cookie").iter().count(), 2);
    }
}
