//! The built-in endpoints below `/_api/` and `/_admin/`, as a handler like any other.
//!
//! Owns how a request gets to its endpoint. `endpoints` lists them, and the other files answer. Invariant: a request
//! that matches no row of the table gets its `404` or `405` before anything is deferred.

mod admin;
mod collection;
mod echo;
mod endpoints;
mod follow;
mod job;
mod metrics;
mod openapi;
#[cfg(feature = "page")]
mod page;
mod query;
mod range;
mod records;

use std::cell::RefCell;
use std::io::Read as _;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{Method, Response};

use crate::content::{Content, ContentBuffer, NoMemory, SMALL, whole};
use crate::error::{Error, JSON, TEXT};
use crate::exchange::Call;
use crate::handler::{Handler, Outcome, Takes, options};
use crate::job::execution::Execution;
use crate::jobs::Jobs;
use crate::memory::{Allowance, Charge};
use crate::sink::Sink;
pub use endpoints::{is_open, is_page, question};
pub use job::{ASK_AGAIN, Question, id_value};
pub use openapi::Access;

/// The built-in endpoints.
pub struct Api {
    jobs: Arc<Jobs>,
    access: Access,
    /// The prefixes of all routes, at their indexes.
    prefixes: Arc<[String]>,
    /// The description of all endpoints, made when a client first asks for it.
    description: OnceLock<Content>,
    /// The longest time that an endpoint may take.
    time_limit: Duration,
}

impl Api {
    /// Returns the endpoints over these jobs, of routes with these prefixes, for clients with this access. An answer
    /// ends within `time_limit`.
    pub fn new(
        jobs: Arc<Jobs>,
        access: Access,
        prefixes: Arc<[String]>,
        time_limit: Duration,
    ) -> Self {
        Self { jobs, access, prefixes, description: OnceLock::new(), time_limit }
    }
}

/// A request for an endpoint.
struct Asked<'a> {
    api: &'a Api,
    call: &'a Call,
    /// The segment of the path that stands for `{id}`.
    id: &'a str,
    /// The answer is charged to this.
    memory: &'a Allowance,
    /// Stops the answer before it is complete.
    execution: &'a Execution,
    /// The sink of an answer that is sent while it is made.
    sink: RefCell<&'a mut dyn Sink>,
}

impl Asked<'_> {
    fn query(&self) -> &str {
        self.call.request.uri().query().unwrap_or_default()
    }

    /// Charges the memory for making an answer of about this size.
    ///
    /// # Errors
    /// `503` if there is no memory for it.
    fn charge(&self, bytes: usize) -> Result<Charge, Error> {
        let bytes = if bytes > SMALL { bytes } else { 0 };
        Ok(self.memory.charge(bytes)?)
    }

    /// Returns the content of an answer; its charge is held until it is sent.
    ///
    /// # Errors
    /// `503` if there is no memory for it.
    fn charged(&self, bytes: Vec<u8>) -> Result<Content, Error> {
        Ok(whole(bytes, self.memory.nothing())?.into())
    }
}

impl Handler for Api {
    fn check(&self, request: &Parts) -> Result<(), Error> {
        endpoints::check(request.uri.path())
    }

    fn check_deferred(&self, request: &Parts) -> Result<(), Error> {
        endpoints::check_method(&request.method, request.uri.path())
    }

    fn takes(&self, request: &Parts) -> Takes {
        let found = endpoints::find(&request.method, request.uri.path());
        found.map_or(Takes::Nothing, |(endpoint, _)| endpoint.takes)
    }

    fn run(
        &self,
        call: &Call,
        execution: &Arc<Execution>,
        sink: &mut dyn Sink,
    ) -> Result<Outcome, Error> {
        let (method, path) = (call.request.method(), call.request.uri().path());
        if method != Method::OPTIONS
            && let Some((endpoint, id)) = endpoints::find(method, path)
        {
            let (memory, sink) = (execution.memory(), RefCell::new(sink));
            let asked = Asked { api: self, call, id, memory, execution, sink };
            let mut outcome = (endpoint.answer)(&asked)?;
            if execution.job().is_some()
                && let Outcome::Answer(answer) = &mut outcome
                && answer.response.body().in_file().is_some()
            {
                // If that fails, the receipt is dropped, which restores a collected result.
                *answer.response.body_mut() = own_copy(answer.response.body(), execution)?;
            }
            return Ok(outcome);
        }
        endpoints::check(path)?;
        endpoints::check_method(method, path)?;
        Ok(options(&endpoints::allow(path)).into())
    }
}

/// Returns a copy of a stored result's content for the job that has asked for it: a file is removed with the one
/// record that names it, and the two jobs are removed at different times.
///
/// # Errors
/// `507` if there is no room for the copy, `503` if the file cannot be read, [`Error::Cancelled`] if the job is
/// stopped.
fn own_copy(content: &Content, execution: &Execution) -> Result<Content, Error> {
    let no_room = |error: NoMemory| Error::no_room_for("the answer", &error);
    let mut copy = ContentBuffer::new(execution.memory());
    let mut reader = content.reader();
    while reader.left() > 0 {
        if execution.stopped().is_some() {
            return Err(Error::Cancelled);
        }
        let room = copy.room(reader.left()).map_err(no_room)?;
        let n = reader.read(room).map_err(|error| Error::unreadable(&error))?;
        copy.advance(n);
    }
    copy.freeze().map_err(no_room)
}

/// Returns a `200` with JSON.
fn json(body: impl Into<Content>) -> Response<Content> {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

/// Returns a `200` with text, or without content.
fn text(body: impl Into<Content>) -> Response<Content> {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(CONTENT_TYPE, TEXT);
    response
}
