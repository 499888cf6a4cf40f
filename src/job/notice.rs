//! Notices: jobs of deferd's own, each of which tells a receiver that another job is done.
//!
//! Owns their lanes and the form of their requests: what a program or a URL is told. `ledger::notices` decides whether
//! there is a notice; `handler::completion` and `handler::upstream::callback` deliver them. Invariant: the name of
//! their lanes is not a path, so no request of a client leads there.

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri};

use super::request_line::RequestLine;
use super::stored::{Ending, Exit};
use super::{Age, ERROR_ROOM, JobId, RECORD, SHORT_LOG};
use crate::content::Content;
use crate::error::JSON;
use crate::exchange::{Call, Connection, Owner};
use crate::memory::allocated;
use crate::protocol::CALLBACK_URL;

/// The identity of a message, the same in each attempt to deliver it (Standard Webhooks).
pub const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");

/// The prefix of the fields that become variables of a program.
const VARIABLE: &str = "deferd-";

/// The job that a notice is about.
const JOB_ID: HeaderName = HeaderName::from_static("deferd-job-id");

/// The route of that job.
const ROUTE: HeaderName = HeaderName::from_static("deferd-route");

/// The status code of that job's result.
const STATUS: HeaderName = HeaderName::from_static("deferd-status");

/// When a notice to a URL was made, by the clock that cannot be set, in microseconds.
const MADE: HeaderName = HeaderName::from_static("deferd-made");

/// What a notice takes besides its variable parts, in bytes: its record, a request of eight fields, the end of a log.
const NOTICE: usize = RECORD + ERROR_ROOM + 1280 + SHORT_LOG;

/// The lanes of notices: they follow those of the routes, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoticeLane {
    /// Programs of a route, which run when a job is done.
    Completion,
    /// Requests to URLs that clients named.
    Callback,
}

impl NoticeLane {
    /// All lanes, in their order.
    pub const ALL: [Self; 2] = [Self::Completion, Self::Callback];

    /// Returns its name, which stands for a route in logs, metrics and records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Completion => "completion",
            Self::Callback => "callback",
        }
    }

    /// Returns the lane with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|lane| lane.name() == name)
    }

    /// Returns what the record of a notice keeps of its request.
    pub fn line(self) -> RequestLine {
        RequestLine::new(&Method::POST, self.name(), self.name())
    }
}

/// What happened to a job, as a program of its route is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A job is done.
    Done,
    /// A job has failed.
    Failure,
}

impl Event {
    /// Returns the option of a route that names the program.
    pub const fn option(self) -> &'static str {
        match self {
            Self::Done => "on-done",
            Self::Failure => "on-failure",
        }
    }
}

/// The receiver of a notice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Receiver {
    /// A program of the job's route.
    Program(Event),
    /// This URL.
    Url(Box<str>),
}

impl Receiver {
    /// Returns the lane for a notice to this receiver.
    pub const fn lane(&self) -> NoticeLane {
        match self {
            Self::Program(_) => NoticeLane::Completion,
            Self::Url(_) => NoticeLane::Callback,
        }
    }

    /// Returns the largest accounted size of a notice to this receiver, in bytes, if it has only the end of the log.
    pub fn room(&self, line: &RequestLine, owner: &Owner) -> usize {
        let owner = owner.name().map_or(0, str::len);
        let url = if let Self::Url(url) = self { allocated(url.len()) } else { 0 };
        // As text, a record may escape some characters of both.
        NOTICE + 2 * (line.footprint() + owner) + url
    }
}

/// What a program is told about a job.
pub struct Told<'a> {
    /// The id of the job.
    pub id: JobId,
    /// What its record keeps of its request.
    pub line: &'a RequestLine,
    /// The owner.
    pub owner: &'a Owner,
    /// How it ended.
    pub ending: Ending,
    /// From its first attempt to its result, in seconds.
    pub seconds: f64,
}

/// Returns the request of a notice to a program: its fields become variables, the log is its content.
pub fn to_program(event: Event, told: &Told<'_>, log: Content) -> Call {
    let Told { id, line, owner, ending, seconds } = told;
    let (_, target, route) = line.parts().unwrap_or_default();
    let code = match ending.exit {
        Some(Exit::Code(code)) => code.to_string(),
        Some(Exit::Signal(_)) | None => String::new(),
    };
    let mut request = Request::new(log);
    *request.method_mut() = Method::POST;
    *request.uri_mut() = match event {
        Event::Done => Uri::from_static("/on-done"),
        Event::Failure => Uri::from_static("/on-failure"),
    };
    for (name, value) in [
        (JOB_ID, id.to_string().as_str()),
        (ROUTE, route),
        (HeaderName::from_static("deferd-target"), target),
        (STATUS, ending.status.as_str()),
        (HeaderName::from_static("deferd-exit-code"), &code),
        (HeaderName::from_static("deferd-seconds"), &format!("{seconds:.3}")),
        (HeaderName::from_static("deferd-owner"), owner.name().unwrap_or_default()),
    ] {
        // Every target can be the value of a field, and so can every user's name.
        let value = HeaderValue::from_bytes(value.as_bytes());
        let value = value.unwrap_or(HeaderValue::from_static(""));
        request.headers_mut().insert(name, value);
    }
    call(request, owner)
}

/// Returns the request of a notice to a URL, made at `now`: the record of the job is its content.
pub fn to_url(url: &str, id: JobId, owner: &Owner, record: String, now: Age) -> Call {
    let mut request = Request::new(record.into());
    *request.method_mut() = Method::POST;
    let fields = request.headers_mut();
    fields.insert(CONTENT_TYPE, JSON);
    fields.insert(JOB_ID, HeaderValue::from(id.number()));
    fields.insert(WEBHOOK_ID, HeaderValue::try_from(format!("job_{id}")).expect("it is a word"));
    fields.insert(MADE, HeaderValue::from(now.micros()));
    if let Ok(url) = HeaderValue::from_str(url) {
        fields.insert(CALLBACK_URL, url);
    }
    call(request, owner)
}

fn call(request: Request<Content>, owner: &Owner) -> Call {
    Call { request, connection: Connection::Unix, owner: owner.clone(), auth_type: None }
}

/// Returns the event, and the route of the job, from a notice to a program. `None` if another version of deferd wrote
/// it in a form that this version does not know.
pub fn event(request: &Request<Content>) -> Option<(Event, &str)> {
    let option = request.uri().path().strip_prefix('/')?;
    let event = [Event::Done, Event::Failure].into_iter().find(|event| event.option() == option)?;
    Some((event, request.headers().get(ROUTE)?.to_str().ok()?))
}

/// Returns whether a notice to a program is about a job that ended with `200`.
pub fn is_of_success(request: &Request<Content>) -> bool {
    request.headers().get(STATUS).is_some_and(|status| status == StatusCode::OK.as_str())
}

/// Returns the job that a notice is about, for the log.
pub fn job(request: &Request<Content>) -> &str {
    request.headers().get(JOB_ID).and_then(|id| id.to_str().ok()).unwrap_or("-")
}

/// Returns when a notice to a URL was made; `None` if an older deferd wrote it.
pub fn made(request: &Request<Content>) -> Option<Age> {
    let made = request.headers().get(MADE)?.to_str().ok()?;
    made.parse().ok().map(Age::from_micros)
}

/// Returns the variables for a program, by name.
pub fn variables(fields: &HeaderMap) -> impl Iterator<Item = (String, &[u8])> {
    let is_variable = |name: &HeaderName| name.as_str().starts_with(VARIABLE);
    fields.iter().filter(move |(name, _)| is_variable(name)).map(|(name, value)| {
        (name.as_str().to_ascii_uppercase().replace('-', "_"), value.as_bytes())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::outcome::Outcome;
    use crate::job::request_line::MAX_TARGET;

    fn ending(exit: Option<Exit>) -> Ending {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        Ending { status, exit, outcome: Outcome::Error, bytes: 0 }
    }

    #[test]
    fn a_program_is_told_by_variables_and_the_log() {
        let line = RequestLine::new(&Method::POST, "/run/x?a=b", "/run/");
        let (id, owner) = (JobId::new(7).unwrap(), Owner::named("j\u{f6}rg"));
        for (exit, code) in [(Some(Exit::Code(3)), "3"), (Some(Exit::Signal(9)), ""), (None, "")] {
            let told = Told { id, line: &line, owner: &owner, ending: ending(exit), seconds: 1.5 };
            let call = to_program(Event::Failure, &told, b"log\n"[..].into());
            assert_eq!(event(&call.request), Some((Event::Failure, "/run/")));
            assert_eq!(call.request.body().in_memory().unwrap(), "log\n");
            let variables: Vec<_> = variables(call.request.headers()).collect();
            let expected = [
                ("DEFERD_JOB_ID", "7"),
                ("DEFERD_ROUTE", "/run/"),
                ("DEFERD_TARGET", "/run/x?a=b"),
                ("DEFERD_STATUS", "500"),
                ("DEFERD_EXIT_CODE", code),
                ("DEFERD_SECONDS", "1.500"),
                ("DEFERD_OWNER", "j\u{f6}rg"),
            ];
            let expected = expected.map(|(name, value)| (name.to_owned(), value.as_bytes()));
            assert_eq!(variables, expected);
        }
    }

    #[test]
    fn no_notice_to_a_program_is_larger_than_its_room() {
        for (target, owner) in [(1, 0), (MAX_TARGET, 0), (MAX_TARGET, 2000)] {
            let path = format!("/{}", "x".repeat(target - 1));
            let line = RequestLine::new(&Method::POST, &path, &path);
            let (id, owner) = (JobId::new(u64::MAX).unwrap(), Owner::named(&"o".repeat(owner)));
            let (ending, seconds) = (ending(Some(Exit::Code(i32::MIN))), 1e12);
            let told = Told { id, line: &line, owner: &owner, ending, seconds };
            let call = to_program(Event::Done, &told, vec![0; SHORT_LOG].into());
            let taken = RECORD + NoticeLane::Completion.line().footprint() + call.footprint();
            let room = Receiver::Program(Event::Done).room(&line, &owner);
            assert!(taken <= room, "{taken} of {room}");
        }
    }

    #[test]
    fn the_name_of_a_notice_lane_is_not_a_path() {
        for (n, lane) in NoticeLane::ALL.into_iter().enumerate() {
            assert_eq!((NoticeLane::named(lane.name()), lane as usize), (Some(lane), n));
            assert!(!lane.name().starts_with(['/', '*']));
        }
    }
}
