//! The `cgi:` target: CGI/1.1 scripts (RFC 3875).
//!
//! Owns the meaning of a script's response (section 6) while it arrives; `header_block` reads its beginning, `child`
//! starts and feeds the script, `environment` makes its environment. Command-line arguments from an "indexed" query
//! (section 4.4) are deliberately not passed: they let a client choose a script's options. Invariants: output without
//! a valid header block never becomes a response; a response has exactly as much content as it announced.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;

use http::header::{HeaderValue, LOCATION};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, Response, StatusCode};

use super::header_block::{self, HeaderBlock, Invalid};
use super::hop_by_hop::{self, Direction};
use super::pipes::{Stdout, WRITTEN};
use super::run::run_script;
use super::{Handler, Outcome, ScriptRoute, locate};
use crate::config::shown;
use crate::content::{ContentBuffer, NoMemory};
use crate::error::Error;
use crate::exchange::{Call, Guard, LengthOfGet};
use crate::job::execution::Execution;
use crate::memory::Allowance;
use crate::sink::{FIRST_ROOM, Head, Lost, Sink, Waits};

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
        sink: &mut dyn Sink,
    ) -> Result<Outcome, Error> {
        let (method, path) = (call.request.method(), call.request.uri().path());
        let mut output = Output::new(method, self.route.max_output, sink, execution.memory());
        let status = run_script(&self.route, call, &mut output, execution)?;
        let run = format!("job={} path={path}", execution.job_as_log());
        output.end(status, &run).map_err(|failure| failure.tell(&run, execution))
    }

    fn relays_fields(&self) -> bool {
        true
    }

    fn reload(&self) -> Result<(), String> {
        self.route.variables.reload()
    }
}

/// What is wrong with a script's response.
struct Fault {
    what: String,
    /// The same for the operator and the owner of a job: also shows what the script wrote.
    in_full: String,
}

impl Fault {
    fn new(what: impl Into<String>) -> Self {
        let what = what.into();
        Self { in_full: what.clone(), what }
    }

    /// Returns the fault of a header block; `exit` tells how the script ended if it failed.
    fn of_header(fault: &Invalid, exit: &str) -> Self {
        Self { what: invalid(&fault.to_string()), in_full: invalid(&(fault.with_line() + exit)) }
    }

    /// Writes the fault to the log and to the job's own log; returns the error that replaces the response.
    fn tell(self, run: &str, execution: &Execution) -> Error {
        let Self { what, in_full } = self;
        log::warn!("{run} {in_full}");
        let log = execution.log().text;
        let is_open = !log.is_empty() && !log.ends_with(b"\n");
        let line_end = if is_open { "\n" } else { "" };
        execution.append_log(format!("{line_end}deferd: {in_full}\n").as_bytes());
        let is_job = execution.job().is_some();
        Error::BadGateway(if is_job { in_full } else { what }.into())
    }
}

/// Why a script's output became no response.
enum Failure {
    /// The script is at fault.
    Script(Fault),
    /// deferd is short of memory.
    NoRoom(NoMemory),
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Script(fault)
    }
}

impl From<NoMemory> for Failure {
    fn from(cause: NoMemory) -> Self {
        Self::NoRoom(cause)
    }
}

impl Failure {
    /// Reports the script's fault; returns the error that replaces the response.
    fn tell(self, run: &str, execution: &Execution) -> Error {
        match self {
            Self::Script(fault) => fault.tell(run, execution),
            Self::NoRoom(cause) => Error::no_room_for(WRITTEN, &cause),
        }
    }
}

fn invalid(why: &str) -> String {
    format!("the script gave no valid CGI response: {why}")
}

/// The state of reading a script's output.
enum Part {
    /// Reading the header block, which is kept here until it is complete.
    Header(ContentBuffer),
    /// Reading content, which goes into the sink.
    Content,
    /// The rest is dropped.
    Dropped(Why),
}

/// The reason that a script's output after its header block is dropped.
enum Why {
    /// The response has no content (RFC 9110 section 6.4.1); its head is in the sink.
    NoContent,
    /// It is a local redirect to this target (RFC 3875 section 6.2.2).
    LocalRedirect(PathAndQuery),
    /// The header block is invalid.
    Header(Invalid),
    /// The response failed.
    Fault(Fault),
}

/// A script's output, which becomes a response in the sink as it arrives (RFC 3875 section 6.2).
struct Output<'a> {
    method: &'a Method,
    max_output: usize,
    sink: &'a mut dyn Sink,
    part: Part,
    /// How much content the header block announces, in bytes.
    announced: Option<usize>,
    /// How much the script has written after the header block, in bytes.
    written: usize,
    waste: [u8; FIRST_ROOM],
}

impl<'a> Output<'a> {
    fn new(
        method: &'a Method,
        max_output: usize,
        sink: &'a mut dyn Sink,
        memory: &Allowance,
    ) -> Self {
        let part = Part::Header(ContentBuffer::new(memory));
        let waste = [0; FIRST_ROOM];
        Self { method, max_output, sink, part, announced: None, written: 0, waste }
    }

    /// Ends the header block that was just read.
    fn end_header(&mut self, block: HeaderBlock) -> Result<(), NoMemory> {
        let Part::Header(read) = &self.part else { return Ok(()) };
        let content = read.in_memory().unwrap_or_default()[block.end..].to_vec();
        self.announced = block.announced;
        self.written = content.len();
        self.part = match local_redirect(&block) {
            Some(Ok(target)) => Part::Dropped(Why::LocalRedirect(target)),
            Some(Err(fault)) => Part::Dropped(Why::Fault(fault)),
            None => self.begin(block)?,
        };
        if matches!(self.part, Part::Content) {
            self.put(&content)?;
        }
        Ok(())
    }

    /// Begins the response of a header block.
    fn begin(&mut self, block: HeaderBlock) -> Result<Part, NoMemory> {
        let redirect = block.fields.contains_key(LOCATION).then_some(StatusCode::FOUND);
        let status = block.status.or(redirect).unwrap_or(StatusCode::OK);
        let is_head = *self.method == Method::HEAD;
        // Such responses have no content, but may announce its length (RFC 9110 section 8.6).
        let has_content =
            !is_head && ![StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&status);
        if let Some(length) =
            block.announced.filter(|&length| has_content && length > self.max_output)
        {
            let most = shown(self.max_output);
            let what = format!("the script announced {length} bytes: more than max-output {most}");
            return Ok(Part::Dropped(Why::Fault(Fault::new(what))));
        }
        let mut response = Response::new(());
        *response.status_mut() = status;
        *response.headers_mut() = block.fields;
        hop_by_hop::strip(response.headers_mut(), Direction::Response);
        if is_head {
            let length = LengthOfGet(block.announced.map(HeaderValue::from));
            response.extensions_mut().insert(length);
        }
        // If the method is an override of POST, the client expects the content of a POST: it has none.
        let length = block.announced.filter(|_| has_content);
        self.sink.begin(Head { response, length, guard: Guard::Verbatim })?;
        Ok(if has_content { Part::Content } else { Part::Dropped(Why::NoContent) })
    }

    /// Returns how much of the announced content is still missing.
    fn left(&self) -> usize {
        self.announced.map_or(usize::MAX, |length| length.saturating_sub(self.written))
    }

    /// Puts what followed the end of the header block into the sink, which has room for it.
    fn put(&mut self, content: &[u8]) -> Result<(), NoMemory> {
        let mut content = &content[..content.len().min(self.announced.unwrap_or(usize::MAX))];
        while !content.is_empty() {
            let room = self.sink.room(content.len())?;
            let n = room.len();
            room.copy_from_slice(&content[..n]);
            self.sink.advance(n);
            content = &content[n..];
        }
        Ok(())
    }

    /// Ends the response of a script that ended with this status; `run` is the name of this run in the log.
    fn end(mut self, status: ExitStatus, run: &str) -> Result<Outcome, Failure> {
        if let Some(signal) = status.signal() {
            // The output may have been cut anywhere.
            return Err(Fault::new(format!("the script was ended by signal {signal}")).into());
        }
        let code = status.code().filter(|&code| code != 0);
        let exit = code.map(|code| format!(" (exit code {code})")).unwrap_or_default();
        if let Part::Header(read) = &self.part {
            let block = header_block::read(
                read.in_memory().unwrap_or_default(),
                header_block::Output::Whole,
            );
            let block = block.map_err(|fault| Fault::of_header(&fault, &exit))?;
            let block = block.ok_or_else(|| Fault::new(invalid("its header has no end")))?;
            self.end_header(block)?;
        }
        let (left, written) = (self.left(), self.written);
        let outcome = match self.part {
            Part::Dropped(Why::Header(fault)) => Err(Fault::of_header(&fault, &exit))?,
            Part::Dropped(Why::Fault(fault)) => Err(fault)?,
            Part::Dropped(Why::LocalRedirect(target)) => Outcome::LocalRedirect(target),
            Part::Content if self.announced.is_some() && left > 0 => {
                let length = written + left;
                let what = "the script announced";
                Err(Fault::new(format!("{what} {length} bytes of content and wrote {written}")))?
            }
            Part::Dropped(Why::NoContent) | Part::Header(_) | Part::Content => Outcome::Written,
        };
        if code.is_some() {
            log::warn!("{run} the script ended with {status}; its response counts");
        }
        if let Some(length) = self.announced.filter(|&length| written > length) {
            let what = "bytes that it announced: the rest is dropped";
            log::warn!("{run} the script wrote more than the {length} {what}");
        }
        Ok(outcome)
    }
}

/// Returns the target of a header block that is a local redirect, if it is one.
fn local_redirect(block: &HeaderBlock) -> Option<Result<PathAndQuery, Fault>> {
    let location = block.fields.get(LOCATION)?.as_bytes();
    if block.status.is_some() || !location.starts_with(b"/") {
        return None;
    }
    let target = PathAndQuery::try_from(location);
    Some(target.map_err(|_| Fault::new(invalid("its Location is not a path"))))
}

impl Stdout for Output<'_> {
    fn room(&mut self, most: usize) -> Result<&mut [u8], NoMemory> {
        let left = self.left();
        match &mut self.part {
            // Little enough that content read together with the block's end has room after the head.
            Part::Header(read) => read.room(most.min(FIRST_ROOM)),
            // One byte more shows whether there is more.
            Part::Content => self.sink.room(most.min(left.saturating_add(1))),
            Part::Dropped(_) => Ok(&mut self.waste[..most.min(FIRST_ROOM)]),
        }
    }

    fn advance(&mut self, n: usize) -> Result<(), NoMemory> {
        let left = self.left();
        match &mut self.part {
            Part::Header(read) => {
                read.advance(n);
                match header_block::read(
                    read.in_memory().unwrap_or_default(),
                    header_block::Output::SoFar,
                ) {
                    Ok(None) => Ok(()),
                    Ok(Some(block)) => self.end_header(block),
                    Err(invalid) => {
                        // The fault is reported at the end of the script.
                        self.part = Part::Dropped(Why::Header(invalid));
                        Ok(())
                    }
                }
            }
            Part::Content => {
                self.sink.advance(n.min(left));
                self.written += n;
                Ok(())
            }
            Part::Dropped(_) => {
                self.written += n;
                Ok(())
            }
        }
    }

    fn is_beyond_end(&self) -> bool {
        let is_refused = matches!(self.part, Part::Dropped(Why::Fault(_)));
        is_refused || self.announced.is_some_and(|length| self.written > length)
    }

    fn flush(&mut self) -> Result<(), Lost> {
        self.sink.flush()
    }

    fn waits(&self) -> Option<Waits<'_>> {
        self.sink.waits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::Content;
    use crate::job::JobId;
    use crate::sink::Collector;
    use http::HeaderName;
    use rustix::io::Errno;

    /// Reads what a script wrote that ended with this wait status, in pieces of `size` bytes.
    fn read_in_pieces(
        method: &Method,
        stdout: &str,
        status: i32,
        size: usize,
    ) -> Result<(Outcome, Collector), Fault> {
        let memory = Allowance::default();
        let mut sink = Collector::new(&memory);
        let mut output = Output::new(method, 1 << 20, &mut sink, &memory);
        let mut rest = stdout.as_bytes();
        while !rest.is_empty() && !output.is_beyond_end() {
            let room = output.room(rest.len().min(size)).unwrap();
            let n = room.len();
            room.copy_from_slice(&rest[..n]);
            output.advance(n).unwrap();
            rest = &rest[n..];
        }
        match output.end(ExitStatus::from_raw(status), "test") {
            Ok(outcome) => Ok((outcome, sink)),
            Err(Failure::Script(fault)) => Err(fault),
            Err(Failure::NoRoom(cause)) => panic!("{cause:?}"),
        }
    }

    fn read_as(method: &Method, stdout: &str) -> Result<(Outcome, Collector), Fault> {
        let whole = read_in_pieces(method, stdout, 0, usize::MAX);
        let in_bytes = read_in_pieces(method, stdout, 0, 1);
        assert_eq!(whole.is_ok(), in_bytes.is_ok(), "{stdout:?}");
        in_bytes
    }

    fn fault(stdout: &str, status: i32) -> Fault {
        let read = read_in_pieces(&Method::GET, stdout, status, usize::MAX);
        read.map(drop).expect_err("it is no response")
    }

    fn answer_to(method: &Method, stdout: &str) -> Response<Content> {
        match read_as(method, stdout) {
            Ok((Outcome::Written, sink)) => sink.into_answer().response,
            Ok(_) => panic!("{stdout:?} is no document"),
            Err(fault) => panic!("{stdout:?} fails: {}", fault.in_full),
        }
    }

    fn answer(stdout: &str) -> Response<Content> {
        answer_to(&Method::GET, stdout)
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
                (response.status().as_u16(), &response.body().in_memory().unwrap()[..]),
                (status, body.as_bytes())
            );
        }
    }

    #[test]
    fn local_redirects() {
        let read = read_as(&Method::GET, "Location: /a/b?c=d\n\nignored");
        let Ok((Outcome::LocalRedirect(target), _)) = read else { panic!() };
        assert_eq!(target.as_str(), "/a/b?c=d");
    }

    #[test]
    fn a_fault_is_reported_with_and_without_the_output() {
        let invalid = fault("Content-Type: a/b\nsecret\n\n", 0);
        assert!(invalid.what.ends_with("no valid CGI response: line 2 is not a field"));
        assert!(
            invalid.in_full.ends_with("no valid CGI response: line 2 is not a field: \"secret\"")
        );
        assert!(read_as(&Method::GET, "Location: /with space\n\n").is_err());
        let nothing = fault("", 3 << 8);
        assert!(nothing.in_full.ends_with("it wrote nothing (exit code 3)"), "{}", nothing.in_full);
    }

    #[test]
    fn content_is_as_long_as_announced() {
        for (length, content) in [("5", "hello"), ("2", "he"), ("0", "")] {
            let stdout = format!("Content-Type: a/b\nContent-Length: {length}\n\nhello");
            assert_eq!(answer(&stdout).body(), content);
        }
        let short = "Content-Type: a/b\nContent-Length: 100\n\nso far\n";
        assert_eq!(fault(short, 0).what, "the script announced 100 bytes of content and wrote 7");
        let much = fault(&short.replace("100", "2000000"), 0);
        assert_eq!(much.what, "the script announced 2000000 bytes: more than max-output 1M");
        assert!(read_as(&Method::GET, &short.replace("100", "99999999999999999999")).is_err());
        // Responses that have no content.
        for stdout in ["Status: 304\nContent-Length: 9\n\n", "Status: 204\nContent-Length: 9\n\n"] {
            assert_eq!(answer(stdout).body(), "");
        }
        let head = answer_to(&Method::HEAD, short);
        let length = head.extensions().get::<LengthOfGet>().and_then(|l| l.0.clone());
        assert_eq!((length.unwrap(), head.body().len()), (HeaderValue::from(100), 0));
    }

    #[test]
    fn content_beyond_the_announced_length_is_detected() {
        for (stdout, is_beyond) in [
            ("Content-Type: a/b\nContent-Length: 3\n", false),
            ("Content-Type: a/b\nContent-Length: 3\n\nhel", false),
            ("Content-Type: a/b\nContent-Length: 3\n\nhell", true),
            ("Content-Type: a/b\n\nhel", false),
            ("Content-Type: a/b\nContent-Length: 2000000\n\n", true),
            ("no header\n", false),
        ] {
            let memory = Allowance::default();
            let mut sink = Collector::new(&memory);
            let mut output = Output::new(&Method::GET, 1 << 20, &mut sink, &memory);
            let room = output.room(stdout.len()).unwrap();
            room.copy_from_slice(stdout.as_bytes());
            output.advance(stdout.len()).unwrap();
            assert_eq!(output.is_beyond_end(), is_beyond, "{stdout:?}");
        }
    }

    #[test]
    fn a_script_that_was_killed_gives_no_response() {
        let killed = fault("Content-Type: text/plain\n\nhalf of", 9);
        assert_eq!(killed.what, "the script was ended by signal 9");
    }

    /// A sink that has no room for a head.
    struct Full(NoMemory);

    impl Sink for Full {
        fn begin(&mut self, _: Head) -> Result<(), NoMemory> {
            Err(std::mem::replace(&mut self.0, NoMemory::Budget))
        }

        fn room(&mut self, _: usize) -> Result<&mut [u8], NoMemory> {
            Ok(&mut [])
        }

        fn advance(&mut self, _: usize) {}

        fn flush(&mut self) -> Result<(), Lost> {
            Ok(())
        }

        fn waits(&self) -> Option<Waits<'_>> {
            None
        }

        fn is_live(&self) -> bool {
            true
        }

        fn is_sent(&self) -> bool {
            false
        }

        fn lost(&self) -> Option<Lost> {
            None
        }
    }

    /// The end of the output ends the header block, for which there is then no room.
    #[test]
    fn a_shortage_of_deferd_is_no_fault_of_the_script() {
        for (cause, status) in [
            (NoMemory::Budget, 507),
            (NoMemory::System(Errno::NOMEM.into()), 503),
            (NoMemory::Disk(Errno::NOSPC.into()), 507),
        ] {
            let (memory, mut sink) = (Allowance::default(), Full(cause));
            let mut output = Output::new(&Method::GET, 1 << 20, &mut sink, &memory);
            let stdout = b"Content-Type: a/b\n";
            output.room(stdout.len()).unwrap().copy_from_slice(stdout);
            output.advance(stdout.len()).unwrap();
            let execution = Execution::new(JobId::new(1), memory);
            let failure = output.end(ExitStatus::default(), "test").err().unwrap();
            assert_eq!(failure.tell("test", &execution).status().as_u16(), status);
            assert_eq!(execution.log().text.len(), 0, "nothing is told of the script");
        }
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
