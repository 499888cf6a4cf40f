//! The table of the built-in endpoints: one row for each, and the look-ups in it.
//!
//! Owns the paths, methods, parameters and answers. The functions that the rows name are in the files beside this one;
//! `openapi` writes the rows as OpenAPI. Invariant: routing, `allow`, the accepted content and the description come
//! from the rows alone, so an endpoint is added by adding a row.

use http::Method;

use super::job::Question;
#[cfg(feature = "page")]
use super::page;
use super::{Asked, admin, collection, echo, job, metrics, openapi, records};
use crate::error::Error;
use crate::handler::{Outcome, Takes};
use crate::job::JobId;
#[cfg(feature = "page")]
use crate::protocol::UI;
use crate::protocol::{
    ADMIN_JOB, ADMIN_VERSION, AVAILABILITY, COLLECTION, DESCRIPTION, ECHO, JOB, JOB_RECORDS,
    METRICS, SERVER, SLEEP, TIME, VERSION,
};

/// A row of the table.
pub struct Endpoint {
    /// The operation's name in the description, and in code generated from it; empty if it is not described.
    pub name: &'static str,
    pub path: Path,
    /// Empty: any method, even one that no standard defines.
    pub methods: &'static [Method],
    pub summary: &'static str,
    /// The parameters of the query, and fields that only this endpoint reads, each as an OpenAPI object.
    pub parameters: &'static [&'static str],
    /// The answers that not every endpoint has.
    pub answers: &'static [Answer],
    /// How much content it uses.
    pub takes: Takes,
    /// The type of that content: a name of `components.requestBodies` in `openapi.json`.
    pub content: Option<&'static str>,
    /// Whether it never asks for credentials.
    pub open: bool,
    /// Whether pages of other origins may link to it.
    page: bool,
    /// What it asks about a job that may be pending.
    question: Option<fn(JobId) -> Question>,
    /// The function that answers.
    pub answer: fn(&Asked<'_>) -> Result<Outcome, Error>,
}

/// The paths of an endpoint.
#[derive(PartialEq)]
pub struct Path {
    /// The beginnings of the paths; the description shows the first.
    places: &'static [&'static str],
    /// The rest of each path: `{id}` stands for one segment, [`ALL`] for any rest.
    rest: &'static str,
}

/// A way in which an endpoint answers.
pub enum Answer {
    /// With this status code and the shared response of this name in `openapi.json`.
    Shared(&'static str, &'static str),
    /// With `200` and text; the string is the description.
    Text(&'static str),
    /// With `200` and HTML; the string is the description.
    #[cfg(feature = "page")]
    Html(&'static str),
    /// With `200` and JSON: the description, then the name of the schema.
    Json(&'static str, &'static str),
    /// With `200` and an object that reports success: the description, then name and schema of its one further member.
    Member(&'static str, &'static str, &'static str),
}

use Answer::{Json, Member, Shared, Text};

static JOBS: &[&str] = &[JOB, ADMIN_JOB];
static RECORDS: &[&str] = &[JOB_RECORDS];
const ALL: &str = "/*";

const ANY: &[Method] = &[];
const READ: &[Method] = &[Method::GET, Method::HEAD];
const PUT: &[Method] = &[Method::PUT];
const POST: &[Method] = &[Method::POST];
/// POST is allowed as well, for clients that can send nothing else.
const CANCEL: &[Method] = &[Method::PUT, Method::POST];
const DELETE: &[Method] = &[Method::DELETE];
const OF_JOBS: &[Method] = &[Method::DELETE, Method::GET, Method::HEAD, Method::PUT];

/// The methods that clients are told about, in the order of `allow`.
pub static EVERY: [Method; 8] = [
    Method::DELETE,
    Method::GET,
    Method::HEAD,
    Method::OPTIONS,
    Method::PATCH,
    Method::POST,
    Method::PUT,
    Method::TRACE,
];

const COUNT: &str = r#"{"name":"count","in":"query","schema":{"type":"integer","minimum":0,"default":100},
    "description":"At most this many ids; more than 10 000 counts as 10 000."}"#;
const AFTER: &str = r#"{"name":"after","in":"query","schema":{"type":"string","pattern":"^(0|[1-9][0-9]{0,18})$"},
    "description":"The list continues after this id."}"#;
const MOST: &str = r#"{"name":"count","in":"query","schema":{"type":"integer","minimum":1,"maximum":1000,"default":100},
    "description":"At most this many records."}"#;
const STATE: &str = r#"{"name":"state","in":"query","schema":{"enum":["waiting","delayed","running","done"]},
    "description":"Jobs in this state only."}"#;
const FAILED: &str = r#"{"name":"failed","in":"query","schema":{"enum":["0","1"]},
    "description":"`1`: only jobs whose results have a status code of 400 and above. A cancelled job has not failed."}"#;
const ROUTE: &str = r#"{"name":"route","in":"query","schema":{"type":"string","minLength":1},
    "description":"Only jobs of the route with this prefix."}"#;
const SORT: &str = r#"{"name":"order","in":"query","schema":{"enum":["oldest","newest"],"default":"oldest"},
    "description":"`newest`: the highest id first; `after` then means lower ids."}"#;
const FOLLOW: &str = r#"{"name":"follow","in":"query","schema":{"type":"string"},
    "description":"`1`: send each further line as it comes, until the job is done."}"#;
const LAST: &str = r#"{"name":"last-event-id","in":"header","schema":{"type":"string"},
    "description":"With `follow`: the id of the last event received; the log continues after it."}"#;
const STAMP: &str = r#"{"name":"stamp","in":"query","required":true,"schema":{"type":"number"},
    "description":"Unix seconds. The stamp of a job is the time of its submission, and of its completion once it is done."}"#;
const DETAILS: &str = r#"{"name":"details","in":"query","schema":{"type":"string"},
    "description":"`true`, `yes`, `on`, `y` or `1`: add the details."}"#;
const DURATION: &str = r#"{"name":"duration","in":"query","required":true,
    "schema":{"type":"number","minimum":0,"maximum":3600},"description":"Seconds."}"#;

const RANGE: &str = r#"{"name":"range","in":"header","schema":{"type":"string"},
    "description":"One range of bytes (RFC 9110 section 14). Several ranges, or an invalid one, get the whole."}"#;

const PENDING: Answer = Shared("204", "Pending");
const UNDER_WAY: Answer = Shared("204", "UnderWay");
const RESULT: Answer = Shared("default", "Result");
const UNKNOWN: Answer = Shared("404", "Refused");
const NOT_OFFERED: Answer = Shared("501", "Refused");
const TOO_LATE: Answer = Shared("504", "Refused");
const DONE: Answer = Shared("200", "Done");
const LINES: Answer = Shared("200", "Log");
const AT_END: Answer = Shared("204", "AtEnd");
const COUNTS: Answer = Text("Prometheus text format 0.0.4; the same for every user.");
const PART: Answer = Shared("206", "Part");
const BEHIND_END: Answer = Shared("416", "Refused");
const BEGINNING: Answer = Text("The beginning of the content.");
const RECORD: Answer = Shared("200", "Record");
const PAGE_OF_RECORDS: Answer = Json(
    "Records in the order of their ids; at most 10 000 jobs are looked at. If `more` is true, the list continues after `next`.",
    r##"{"type":"object","properties":{"jobs":{"type":"array",
        "items":{"$ref":"#/components/schemas/Record"}},"more":{"type":"boolean"},"next":{"type":"string"}},
        "required":["jobs","more"],"additionalProperties":false}"##,
);
const IDS: Answer = Json(
    "Ids, ascending.",
    r#"{"type":"array","items":{"type":"string","pattern":"^[1-9][0-9]{0,18}$"}}"#,
);
const TRUE: Answer = Json(
    "It was carried out.",
    r#"{"type":"object","properties":{"result":{"const":true}},"required":["result"],
        "additionalProperties":false}"#,
);
const PROTOCOL: Answer = Json(
    "The version of ArangoDB whose protocol this is; the details describe this server.",
    r#"{"type":"object","properties":{"server":{"const":"arango"},"version":{"type":"string"},
        "details":{"type":"object","additionalProperties":{"type":"string"}}},
        "required":["server","version"],"additionalProperties":false}"#,
);
const CLOCK: Answer = Member("Unix seconds.", "time", NUMBER);
const SLEPT: Answer = Member("How long it took.", "duration", NUMBER);
const REQUEST: Answer = Json(
    "The request.",
    r#"{"type":"object","properties":{"method":{"type":"string"},"target":{"type":"string"},
        "path":{"type":"string"},"query":{"type":["string","null"]},"protocol":{"type":"string"},
        "client":{"type":"string"},"user":{"type":"string"},
        "headers":{"type":"object","additionalProperties":{"type":"string"}},
        "body":{"type":"string"},"bodySize":{"type":"integer"}},"additionalProperties":false,
        "required":["method","target","path","query","protocol","client","user","headers","body",
        "bodySize"]}"#,
);
const WELCOME: Answer = Member("New requests are accepted.", "mode", r#"{"const":"default"}"#);
const PAGE: Answer =
    Json("This description.", r#"{"type":"object","required":["openapi","paths"]}"#);
const NONE: Answer = Member("The collections.", "result", r#"{"type":"array"}"#);

const NUMBER: &str = r#"{"type":"number"}"#;

/// The first row that matches a request answers it. Rows of one path stand together.
#[rustfmt::skip] // One line for each row.
pub static ENDPOINTS: &[Endpoint] = &[
    row("listDone", at(JOBS, "/done"), READ, "The jobs that are done", &[COUNT, AFTER], &[IDS], job::done),
    row("listPending", at(JOBS, "/pending"), READ, "The jobs that are pending", &[COUNT, AFTER], &[IDS], job::pending),
    row("forgetAll", at(JOBS, "/all"), DELETE, "Deletes all jobs of the caller", &[], &[TRUE], job::forget_all),
    row("forgetExpired", at(JOBS, "/expired"), DELETE, "Deletes the jobs stamped before a time", &[STAMP], &[TRUE], job::forget_expired),
    Endpoint { question: Some(Question::End), ..row("status", at(JOBS, "/{id}"), READ, "Whether a job is done", &[], &[DONE, UNDER_WAY, UNKNOWN], job::status) },
    Endpoint { question: Some(Question::End), ..row("collect", at(JOBS, "/{id}"), PUT, "Returns the result, and deletes it", &[], &[PENDING, UNKNOWN, RESULT], job::collect) },
    row("forget", at(JOBS, "/{id}"), DELETE, "Deletes a job; a running one is not stopped", &[], &[TRUE, UNKNOWN], job::forget),
    Endpoint { question: Some(Question::End), ..row("peek", at(JOBS, "/{id}/result"), READ, "Returns the result, or a range of it; it stays", &[RANGE], &[PENDING, UNKNOWN, BEHIND_END, RESULT], job::peek) },
    Endpoint { question: Some(Question::Log), ..row("log", at(JOBS, "/{id}/log"), READ, "What the job's script wrote to stderr", &[FOLLOW, LAST], &[LINES, AT_END, UNKNOWN], job::log) },
    row("cancel", at(JOBS, "/{id}/cancel"), CANCEL, "Cancels a job; its result is then 410", &[], &[TRUE, UNKNOWN], job::cancel),
    row("", at(JOBS, ALL), OF_JOBS, "", &[], &[], job::malformed),
    row("version", at(&[VERSION], ""), ANY, "Which server this is", &[DETAILS], &[PROTOCOL], admin::version),
    row("adminVersion", at(&[ADMIN_VERSION], ""), ANY, "Which server this is", &[DETAILS], &[PROTOCOL], admin::version),
    row("time", at(&[TIME], ""), READ, "The server's clock", &[], &[CLOCK], admin::time),
    row("sleep", at(&[SLEEP], ""), READ, "Answers after a time", &[DURATION], &[SLEPT, TOO_LATE], admin::sleep),
    Endpoint { takes: Takes::Any, content: Some("Any"), ..row("echo", at(&[ECHO], ""), ANY, "The request", &[], &[REQUEST], echo::answer) },
    Endpoint { open: true, ..row("availability", at(&[AVAILABILITY], ""), READ, "Whether new requests are accepted", &[], &[WELCOME], admin::availability) },
    row("description", at(&[DESCRIPTION], ""), READ, "This description", &[], &[PAGE], openapi::answer),
    row("collections", at(&[COLLECTION], ""), READ, "The collections: an empty list", &[], &[NONE], collection::list),
    Endpoint { takes: Takes::UpTo(collection::MAX_JSON), content: Some("NewCollection"), ..row("createCollection", at(&[COLLECTION], ""), POST, "Creates no collection: a legal name is 501", &[], &[NOT_OFFERED], collection::create) },
    row("listRecords", at(RECORDS, ""), READ, "The records of the jobs", &[STATE, FAILED, ROUTE, SORT, AFTER, MOST], &[PAGE_OF_RECORDS], records::list),
    row("record", at(RECORDS, "/{id}"), READ, "The record of a job", &[], &[RECORD, UNKNOWN], records::one),
    row("content", at(RECORDS, "/{id}/content"), READ, "The first 64 KiB of a result, or a range of it, as plain text", &[RANGE], &[BEGINNING, PENDING, PART, UNKNOWN, BEHIND_END], records::content),
    row("metrics", at(&[METRICS], ""), READ, "The metrics, for Prometheus", &[], &[COUNTS], metrics::answer),
    #[cfg(feature = "page")]
    Endpoint { page: true, ..row("page", at(&[UI], ""), READ, "A page that shows the jobs", &[], &[Answer::Html("The page, as gzip.")], page::answer) },
    row("", at(&[SERVER], ""), ANY, "", &[], &[], admin::server),
];

const fn at(places: &'static [&'static str], rest: &'static str) -> Path {
    Path { places, rest }
}

const fn row(
    name: &'static str,
    path: Path,
    methods: &'static [Method],
    summary: &'static str,
    parameters: &'static [&'static str],
    answers: &'static [Answer],
    answer: fn(&Asked<'_>) -> Result<Outcome, Error>,
) -> Endpoint {
    Endpoint {
        name,
        path,
        methods,
        summary,
        parameters,
        answers,
        takes: Takes::Nothing,
        content: None,
        open: false,
        page: false,
        question: None,
        answer,
    }
}

impl Endpoint {
    /// Returns whether it has this method.
    pub fn has(&self, method: &Method) -> bool {
        self.methods.is_empty() || self.methods.contains(method)
    }
}

impl Path {
    /// Returns the rest of a path that has one of these beginnings.
    fn rest<'a>(&self, path: &'a str) -> Option<&'a str> {
        self.places.iter().find_map(|place| path.strip_prefix(place))
    }

    /// Returns the segment that stands for `{id}` (empty if this path has none); `None` if the rest does not match.
    fn id<'a>(&self, rest: &'a str) -> Option<&'a str> {
        if let Some(behind) = self.rest.strip_prefix("/{id}") {
            let rest = rest.strip_prefix('/')?;
            let (id, tail) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            return (tail == behind).then_some(id);
        }
        let is_below = self.rest == ALL && (rest.is_empty() || rest.starts_with('/'));
        (is_below || rest == self.rest).then_some("")
    }

    /// Returns the path as the description shows it.
    pub fn pattern(&self) -> String {
        [self.places[0], self.rest].concat()
    }

    /// Returns whether the path has an id in it.
    pub fn has_id(&self) -> bool {
        self.rest.starts_with("/{id}")
    }
}

/// Returns the rows of a path, each with the segment that stands for its `{id}`.
fn rows(path: &str) -> impl Iterator<Item = (&'static Endpoint, &str)> {
    let path = path.strip_suffix('/').unwrap_or(path);
    // A request examines all rows before its own: rows with the same places are compared once.
    let mut seen: (&[&str], Option<&str>) = (&[], None);
    ENDPOINTS.iter().filter_map(move |endpoint| {
        let Endpoint { path: pattern, .. } = endpoint;
        if !std::ptr::eq(seen.0, pattern.places) {
            seen = (pattern.places, pattern.rest(path));
        }
        Some((endpoint, pattern.id(seen.1?)?))
    })
}

/// Returns the endpoint that answers this method at this path, and the segment that stands for its `{id}`.
pub fn find<'a>(method: &Method, path: &'a str) -> Option<(&'static Endpoint, &'a str)> {
    rows(path).find(|(endpoint, _)| endpoint.has(method))
}

/// Refuses a path that no endpoint has, whatever the method.
///
/// # Errors
/// [`Error::NotFound`].
pub fn check(path: &str) -> Result<(), Error> {
    rows(path).next().map(drop).ok_or_else(|| Error::NotFound("no such endpoint".into()))
}

/// Refuses a method that no endpoint of a path has. Every path has OPTIONS, which lists the methods.
///
/// # Errors
/// [`Error::MethodNotSupported`].
pub fn check_method(method: &Method, path: &str) -> Result<(), Error> {
    let has_method = method == Method::OPTIONS || find(method, path).is_some();
    if has_method { Ok(()) } else { Err(Error::MethodNotSupported(allow(path).into())) }
}

/// Returns the methods that a path has, as the field `allow` lists them.
pub fn allow(path: &str) -> String {
    let mut allow = String::new();
    // A row for any method does not include TRACE.
    for method in EVERY.iter().filter(|method| *method != Method::TRACE) {
        if method == Method::OPTIONS || find(method, path).is_some() {
            allow.push_str(if allow.is_empty() { "" } else { ", " });
            allow.push_str(method.as_str());
        }
    }
    allow
}

/// Returns whether this path never asks for credentials.
pub fn is_open(path: &str) -> bool {
    rows(path).any(|(endpoint, _)| endpoint.open)
}

/// Returns whether this path is a page, to which pages of other origins may link.
pub fn is_page(path: &str) -> bool {
    rows(path).any(|(endpoint, _)| endpoint.page)
}

/// Returns what a request asks about a job; `None` if it asks about none, or changes one.
pub fn question(method: &Method, path: &str) -> Option<Question> {
    let (endpoint, id) = find(method, path)?;
    Some(endpoint.question?(JobId::parse(id)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::ANY_METHOD;

    #[test]
    fn the_first_row_that_fits_answers() {
        for (method, path, found) in [
            ("GET", "/_api/job/", Some(("", ""))),
            ("GET", "/_api/job/done/", Some(("listDone", ""))),
            ("PUT", "/_api/job/done", Some(("collect", "done"))),
            ("HEAD", "/_admin/job/12", Some(("status", "12"))),
            ("PUT", "/_admin/job/12/cancel", Some(("cancel", "12"))),
            ("GET", "/_admin/job/12/cancel", Some(("", ""))),
            ("GET", "/_api/job//", Some(("status", ""))),
            ("DELETE", "/_api/job/12//", Some(("", ""))),
            ("DELETE", "/_api/job/all", Some(("forgetAll", ""))),
            ("POST", "/_api/job/12", None),
            ("POST", "/_api/job/12/cancel", Some(("cancel", "12"))),
            ("GET", "/_admin/jobs/", Some(("listRecords", ""))),
            ("GET", "/_admin/jobs/12", Some(("record", "12"))),
            ("GET", "/_admin/jobs/12/content", Some(("content", "12"))),
            ("GET", "/_api/jobs", None),
            ("BREW", "/_api/version/", Some(("version", ""))),
            ("GET", "/_admin/version", Some(("adminVersion", ""))),
            ("POST", "/_api/collection", Some(("createCollection", ""))),
            ("GET", "/_api/version//", None),
            ("GET", "/_api/", None),
            ("GET", "/_admin/unknown", None),
            ("GET", "*", Some(("", ""))),
        ] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let row = find(&method, path).map(|(endpoint, id)| (endpoint.name, id));
            assert_eq!(row, found, "{method} {path}");
        }
    }

    #[test]
    fn a_path_allows_the_methods_of_its_rows() {
        for (path, methods) in [
            ("/_api/job", Some("DELETE, GET, HEAD, OPTIONS, PUT")),
            ("/_admin/job/12/log/x", Some("DELETE, GET, HEAD, OPTIONS, PUT")),
            ("/_admin/time", Some("GET, HEAD, OPTIONS")),
            ("/_api/collection/", Some("GET, HEAD, OPTIONS, POST")),
            ("/_api/version", Some(ANY_METHOD)),
            ("*", Some(ANY_METHOD)),
            ("/_api/jobs", None),
            ("/_admin/unknown", None),
        ] {
            assert_eq!(check(path).ok().map(|()| allow(path)).as_deref(), methods, "{path}");
            let methods = methods.unwrap_or("OPTIONS");
            for method in &EVERY {
                let is_allowed = methods == ANY_METHOD || methods.split(", ").any(|m| m == method);
                assert_eq!(check_method(method, path).is_ok(), is_allowed, "{method} {path}");
            }
        }
    }

    #[test]
    fn a_request_that_reads_a_job_asks_of_it() {
        for (method, path, job) in [
            (Method::GET, "/_api/job/12", Some(("end", 12))),
            (Method::PUT, "/_admin/job/12/", Some(("end", 12))),
            (Method::HEAD, "/_api/job/12/result", Some(("end", 12))),
            (Method::PUT, "/_api/job/12/result", None),
            (Method::DELETE, "/_api/job/12", None),
            (Method::GET, "/_api/job/12/log", Some(("log", 12))),
            (Method::GET, "/_api/job/done", None),
            (Method::GET, "/_api/job/012", None),
        ] {
            let asked = question(&method, path).map(|question| match question {
                Question::End(id) => ("end", id.number()),
                Question::Log(id) => ("log", id.number()),
            });
            assert_eq!(asked, job, "{method} {path}");
        }
    }
}
