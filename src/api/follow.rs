//! Following a log: `/_api/job/ID/log?follow=1`, as plain text or as events (WHATWG HTML section 9.2).
//!
//! Owns the order of checks and waits, and the form of the events. `job/log` has the kept part of a log and its
//! offsets. Invariants: what a script wrote before its job's end is sent before the end is reported; a client can
//! resume at every offset that it was sent; a client that follows a log costs its connection's thread and one piece of
//! the log.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, VARY};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};

use super::query::is_on;
use super::{Asked, text};
use crate::error::{Error, TEXT};
use crate::exchange::{Guard, empty};
use crate::handler::Outcome;
use crate::job::JobKey;
use crate::job::execution::Execution;
use crate::job::log::{BEHIND, Follower, LogEnd};
use crate::job::outcome::Outcome as JobOutcome;
use crate::job::stored::{Ending, Exit};
use crate::jobs::Jobs;
use crate::memory::Allowance;
use crate::sink::{self, Head, Sink};
use crate::store::{JobState, Status};

/// The id of the last event that a disconnected client received.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Tells a proxy not to buffer the answer; nginx obeys it.
const BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

const EVENTS: HeaderValue = HeaderValue::from_static("text/event-stream");

/// After this much silence a comment is sent, so that no proxy takes the connection for dead.
const COMMENT: Duration = Duration::from_secs(15);

/// How much of a log is sent at once, in bytes.
const PIECE: usize = 16 * 1024;

/// A longer line is several events, each of this length, in bytes.
const MAX_LINE: usize = 4096;

/// Returns whether a request asks to follow a log.
pub fn is_wanted(asked: &Asked<'_>) -> bool {
    is_on(asked.query(), "follow")
}

/// Sends the log of a job until the job ends. If the answer cannot be streamed to the client, sends what is kept of
/// the log.
///
/// # Errors
/// `503` if half of all connections follow or wait, or if memory is short. After the head was sent: why the answer
/// breaks off.
pub fn answer(asked: &Asked<'_>) -> Result<Outcome, Error> {
    let (job, jobs) = (asked.job()?, &*asked.api.jobs);
    let resumed = last_event_id(asked.call.request.headers());
    // In this order: if the job is already done, its log is read completely.
    let is_pending = matches!(jobs.store.status(&job)?, Some(Status::Pending(..)));
    let end = jobs.store.log(&job)?.ok_or(Error::UnknownJob)?;
    if !is_pending && resumed.is_some_and(|offset| offset >= end.offset) {
        // A client that receives this status does not reconnect (WHATWG HTML section 9.2.3).
        return Ok(empty(StatusCode::NO_CONTENT).into());
    }
    if asked.call.request.method() != Method::GET || !asked.sink.borrow().is_live() {
        return Ok(text(asked.charged(end.text.into_vec())?).into());
    }
    let Some(_place) = jobs.watch() else {
        let what = "half of --max-connections wait for jobs or follow logs; try again later";
        return Err(Error::Unavailable(what.into()));
    };
    let form = Form::of(asked.call.request.headers());
    let mut sink = asked.sink.borrow_mut();
    let mut following = Following {
        jobs,
        memory: asked.memory,
        job,
        // What the script wrote under an earlier run of deferd is lost.
        offset: resumed.filter(|offset| *offset <= end.offset).unwrap_or(0),
        follower: None,
        was_sent: false,
        out: Out { sink: &mut **sink, execution: asked.execution, sent: Instant::now() },
        lines: Lines::default(),
        form,
    };
    following.begin()?;
    following.run()?;
    Ok(Outcome::Written)
}

/// Returns the offset from which a client wants to continue.
fn last_event_id(fields: &HeaderMap) -> Option<u64> {
    fields.get(LAST_EVENT_ID)?.to_str().ok()?.parse().ok()
}

/// The form in which a log is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Its bytes as they come.
    Text,
    /// Each line as an event.
    Events,
}

impl Form {
    fn of(fields: &HeaderMap) -> Self {
        let lines = fields.get_all(ACCEPT).iter().filter_map(|line| line.to_str().ok());
        let mut kinds = lines.flat_map(|line| line.split(','));
        let wants = |kind: &str| {
            kind.split(';')
                .next()
                .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("text/event-stream"))
        };
        if kinds.any(wants) { Self::Events } else { Self::Text }
    }
}

/// A client that follows a log.
struct Following<'a> {
    jobs: &'a Jobs,
    /// What is kept for the client, other than the rest of the log, is charged to this.
    memory: &'a Allowance,
    job: JobKey,
    /// The offset up to which the log was sent.
    offset: u64,
    /// `Some` from the start of the job until its end, and then until all that it wrote has been sent.
    follower: Option<Follower>,
    /// Whether any of the log was sent: from then on, nothing may be skipped.
    was_sent: bool,
    out: Out<'a>,
    lines: Lines,
    form: Form,
}

impl Following<'_> {
    fn begin(&mut self) -> Result<(), Error> {
        let mut response = Response::new(());
        let fields = response.headers_mut();
        fields.insert(CONTENT_TYPE, if self.form == Form::Events { EVENTS } else { TEXT });
        fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        fields.insert(BUFFERING, HeaderValue::from_static("no"));
        fields.insert(VARY, HeaderValue::from(ACCEPT));
        let head = Head { response, length: None, guard: Guard::Added };
        self.out.sink.begin(head).map_err(|error| Error::no_memory(&error))?;
        sink::flush(self.out.sink, self.out.execution)
    }

    fn run(&mut self) -> Result<(), Error> {
        let jobs = self.jobs;
        loop {
            // In this order: the log that is read next has everything that was written before the end.
            let status = jobs.store.status(&self.job)?;
            let log = jobs.store.growing_log(&self.job);
            if let Some(Status::Pending(state, _)) = &status
                && let Some(follower) = &self.follower
                && log.as_ref().map_or(*state != JobState::Running, |log| !follower.is_of(log))
            {
                // In a shared store, the next attempt may run on another instance, with a log of its own.
                self.follower = None;
            }
            if self.follower.is_none() {
                let following = log.map(|log| log.follow(self.memory));
                self.follower = following.transpose().map_err(Error::from)?;
            }
            let piece = self.next_piece()?;
            let is_all = piece.text.is_empty();
            self.send(&piece)?;
            match status {
                _ if !is_all => {}
                Some(Status::Pending(state, _)) => {
                    if state != JobState::Running && jobs.is_draining() {
                        // The job may be kept for the next run of deferd.
                        return Err(Error::Unavailable("shutting down".into()));
                    }
                    self.wait(state)?;
                }
                Some(Status::Done(ending)) => return self.end(Some(ending)),
                None => return self.end(None),
            }
        }
    }

    /// Returns the piece of the log that is to be sent next; empty if the script has written no more.
    fn next_piece(&self) -> Result<LogEnd, Error> {
        let piece = match &self.follower {
            Some(follower) => follower.behind(self.offset, PIECE),
            None => {
                let end = self.jobs.store.log(&self.job)?.unwrap_or_default();
                end.behind(self.offset)
            }
        };
        if self.was_sent && self.follower.is_some() && piece.start() > self.offset {
            let what = format!("the client is more than {} KiB behind the log", BEHIND / 1024);
            return Err(Error::Unavailable(what.into()));
        }
        Ok(piece)
    }

    fn send(&mut self, piece: &LogEnd) -> Result<(), Error> {
        let LogEnd { text, offset } = piece;
        match self.form {
            _ if text.is_empty() => return Ok(()),
            Form::Text => self.out.write(text)?,
            Form::Events => {
                self.lines.end = piece.start();
                for line in text.split_inclusive(|&b| b == b'\n') {
                    self.lines.take(line, &mut self.out)?;
                }
                self.lines.send(&mut self.out)?;
            }
        }
        self.was_sent = true;
        self.offset = *offset;
        Ok(())
    }

    /// Waits until there is something to send, or until the next comment is due.
    fn wait(&mut self, state: JobState) -> Result<(), Error> {
        let quiet = COMMENT.saturating_sub(self.out.sent.elapsed());
        if quiet.is_zero() && self.form == Form::Events {
            self.out.write(b": nothing yet\n\n")?;
        }
        let quiet = if quiet.is_zero() { COMMENT } else { quiet };
        let (execution, store) = (self.out.execution, &self.jobs.store);
        store.wait(&self.job, quiet, &|| {
            execution.look();
            let may_go_on = state == JobState::Running || !self.jobs.is_draining();
            let has_more = match &self.follower {
                Some(follower) => follower.has_more(self.offset),
                None => store.growing_log(&self.job).is_some(),
            };
            has_more || !may_go_on || execution.stopped().is_some()
        });
        if execution.stopped().is_some() { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// Reports how the job ended, unless the job was deleted or collected before deferd could see its end.
    fn end(&mut self, ending: Option<Ending>) -> Result<(), Error> {
        if self.form == Form::Events {
            self.lines.end(&mut self.out)?;
            let event = format!("id: {}\nevent: done\ndata: {}\n\n", self.offset, told(ending));
            self.out.write(event.as_bytes())?;
        }
        Ok(())
    }
}

/// Returns the end of a job as JSON.
fn told(ending: Option<Ending>) -> String {
    let Some(Ending { status, exit, outcome, .. }) = ending else {
        return r#"{"status":null,"exitCode":null}"#.to_owned();
    };
    let status = status.as_u16();
    match exit {
        Some(Exit::Code(code)) => format!(r#"{{"status":{status},"exitCode":{code}}}"#),
        Some(Exit::Signal(signal)) => {
            format!(r#"{{"status":{status},"exitCode":null,"signal":{signal}}}"#)
        }
        None if outcome == JobOutcome::Ok => format!(r#"{{"status":{status},"exitCode":0}}"#),
        None => format!(r#"{{"status":{status},"exitCode":null}}"#),
    }
}

/// Where the answer to a client that follows is written.
struct Out<'a> {
    sink: &'a mut dyn Sink,
    execution: &'a Execution,
    /// When something was last sent.
    sent: Instant,
}

impl Out<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        sink::write_all(self.sink, bytes, self.execution)?;
        self.sent = Instant::now();
        Ok(())
    }
}

/// A log as events, one for each line.
#[derive(Default)]
struct Lines {
    /// The beginning of a line whose end has not arrived.
    line: Vec<u8>,
    /// The offset after all bytes that were taken.
    end: u64,
    /// Events that are ready to be sent.
    events: String,
}

impl Lines {
    /// Takes bytes, at most up to the end of a line.
    fn take(&mut self, bytes: &[u8], out: &mut Out<'_>) -> Result<(), Error> {
        for part in bytes.chunks(MAX_LINE) {
            self.line.extend_from_slice(part);
            self.end += part.len() as u64;
            if self.line.ends_with(b"\n") {
                self.add(self.line.len());
            } else if self.line.len() >= MAX_LINE {
                self.add(whole_characters(&self.line));
            }
            if self.events.len() >= MAX_LINE {
                self.send(out)?;
            }
        }
        Ok(())
    }

    /// Makes an event of the first bytes of the line. A carriage return also ends a line in an event stream, so it
    /// begins another `data` line of the event.
    fn add(&mut self, length: usize) {
        let offset = self.end - (self.line.len() - length) as u64;
        let text = String::from_utf8_lossy(&self.line[..length]);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        // Writing to a string cannot fail.
        let _ = writeln!(self.events, "id: {offset}");
        for line in text.split('\r') {
            let _ = writeln!(self.events, "data: {line}");
        }
        self.events.push('\n');
        self.line.drain(..length);
    }

    /// Ends the last line, which may lack a line feed.
    fn end(&mut self, out: &mut Out<'_>) -> Result<(), Error> {
        if !self.line.is_empty() {
            self.add(self.line.len());
        }
        self.send(out)
    }

    fn send(&mut self, out: &mut Out<'_>) -> Result<(), Error> {
        if !self.events.is_empty() {
            out.write(self.events.as_bytes())?;
            self.events.clear();
        }
        Ok(())
    }
}

/// Returns the length without a last character that is incomplete.
fn whole_characters(bytes: &[u8]) -> usize {
    let is_begun = |n: usize| {
        let rest = &bytes[bytes.len() - n..];
        std::str::from_utf8(rest)
            .is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
    };
    bytes.len() - (1..=3.min(bytes.len())).find(|&n| is_begun(n)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::Collector;

    /// Returns the events that these pieces of a log make; the log begins at this offset.
    fn events(begin: u64, pieces: &[&[u8]]) -> String {
        let memory = Allowance::default();
        let mut sink = Collector::new(&memory);
        let head = Head { response: Response::new(()), length: None, guard: Guard::Added };
        sink.begin(head).unwrap();
        let execution = Execution::default();
        let mut out = Out { sink: &mut sink, execution: &execution, sent: Instant::now() };
        let mut lines = Lines { end: begin, ..Lines::default() };
        for piece in pieces {
            for line in piece.split_inclusive(|&b| b == b'\n') {
                lines.take(line, &mut out).unwrap();
            }
        }
        lines.end(&mut out).unwrap();
        String::from_utf8(sink.into_answer().response.body().in_memory().unwrap().to_vec()).unwrap()
    }

    #[test]
    fn each_line_is_an_event_with_the_offset_behind_it() {
        for (begin, pieces, expected) in [
            (0, &[&b""[..]][..], ""),
            (0, &[b"one\ntwo\n"], "id: 4\ndata: one\n\nid: 8\ndata: two\n\n"),
            (
                7,
                &[b"o", b"ne\n", b"\n", b"end"],
                "id: 11\ndata: one\n\nid: 12\ndata: \n\nid: 15\ndata: end\n\n",
            ),
            (0, &[b"10 %\r20 %\r\n"], "id: 11\ndata: 10 %\ndata: 20 %\n\n"),
            (0, &[b"id: 5\n\xff\n"], "id: 6\ndata: id: 5\n\nid: 8\ndata: \u{fffd}\n\n"),
        ] {
            assert_eq!(events(begin, pieces), expected, "{pieces:?}");
        }
    }

    #[test]
    fn a_line_without_end_is_sent_in_pieces_of_whole_characters() {
        let line = ["x", &"\u{20ac}".repeat(4000), "\n"].concat();
        let sent = events(0, &[line.as_bytes()]);
        let mut text = String::new();
        let mut last = 0;
        for event in sent.split_terminator("\n\n") {
            let (id, data) = event.split_once("\ndata: ").unwrap();
            let id: usize = id.strip_prefix("id: ").unwrap().parse().unwrap();
            assert!(data.len() <= 2 * MAX_LINE && id - last <= 2 * MAX_LINE, "{}", data.len());
            text.push_str(data);
            last = id;
            assert!(id == line.len() || text.len() == id, "it can go on there");
        }
        assert_eq!(format!("{text}\n"), line);
    }

    #[test]
    fn the_end_tells_status_and_exit_code() {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        let of = |status, exit, outcome| Some(Ending { status, exit, outcome, bytes: 0 });
        for (ending, expected) in [
            (None, r#"{"status":null,"exitCode":null}"#),
            (of(StatusCode::OK, None, JobOutcome::Ok), r#"{"status":200,"exitCode":0}"#),
            (of(status, Some(Exit::Code(3)), JobOutcome::Error), r#"{"status":500,"exitCode":3}"#),
            (
                of(status, Some(Exit::Signal(9)), JobOutcome::Error),
                r#"{"status":500,"exitCode":null,"signal":9}"#,
            ),
            (of(StatusCode::GONE, None, JobOutcome::Canceled), r#"{"status":410,"exitCode":null}"#),
        ] {
            assert_eq!(told(ending), expected);
        }
    }

    #[test]
    fn events_are_sent_to_a_client_that_accepts_them() {
        for (accept, form) in [
            (&[][..], Form::Text),
            (&["*/*"], Form::Text),
            (&["text/event-stream"], Form::Events),
            (&["text/plain", "text/html, Text/Event-Stream;q=0.9"], Form::Events),
        ] {
            let mut fields = HeaderMap::new();
            for line in accept {
                fields.append(ACCEPT, HeaderValue::from_static(line));
            }
            assert_eq!(Form::of(&fields), form, "{accept:?}");
        }
    }
}
