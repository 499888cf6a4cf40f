//! Handlers, which run requests: their trait. The handlers themselves are in the files beside this one.
//!
//! Owns what the handlers have in common. A handler gets a complete request and a handle that can stop it; it writes
//! the response into a sink, or returns it as a whole. Invariant: it sees no store, no queue and no connection; only
//! the handle tells for which job it runs, if any.

pub mod cgi;
pub mod child;
pub mod completion;
pub mod descendants;
pub mod environment;
pub mod group;
pub mod header_block;
pub mod hop_by_hop;
pub mod loading;
pub mod locate;
pub mod pipes;
pub mod process_table;
pub mod reaper;
pub mod run;
pub mod stderr;
pub mod upstream;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::header::ALLOW;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Response, StatusCode};
use rustix::process::Rlimit;

use crate::config::Links;
use crate::content::Content;
use crate::error::{Error, allow};
use crate::exchange::{Answer, Call, empty};
use crate::job::execution::Execution;
use crate::sink::Sink;
use crate::variables::Variables;

/// What a handler returns.
pub enum Outcome {
    /// The complete answer. Nothing was written into the sink.
    Answer(Answer),
    /// The response was written into the sink, to its end.
    Written,
    /// The answer is what deferd answers to `GET` on this target (RFC 3875 section 6.2.2).
    LocalRedirect(PathAndQuery),
    /// This answer, after this delay: the caller waits without holding anything.
    Delayed(Answer, Duration),
}

impl<T: Into<Answer>> From<T> for Outcome {
    fn from(answer: T) -> Self {
        Self::Answer(answer.into())
    }
}

/// How much content a handler uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// As much as the limits allow.
    Any,
    /// At most this many bytes.
    UpTo(usize),
    /// None: content that a client sends is dropped.
    Nothing,
}

/// A handler of requests.
pub trait Handler: Send + Sync {
    /// Refuses a request that can never run, before its content is read and before a `202`.
    ///
    /// # Errors
    /// The answer to the client.
    fn check(&self, request: &Parts) -> Result<(), Error>;

    /// Refuses a request that could never run as a job, before a `202`; for a waiting client, [`run`](Self::run) makes
    /// this check.
    ///
    /// # Errors
    /// The answer to the client.
    fn check_deferred(&self, _: &Parts) -> Result<(), Error> {
        Ok(())
    }

    /// Returns how much content of this request, which has passed `check`, the handler uses.
    fn takes(&self, _: &Parts) -> Takes {
        Takes::Any
    }

    /// Runs the request to its end, or until `execution` is stopped. The response is written into `sink`, or returned.
    ///
    /// # Errors
    /// The error that is the answer; if part of a response was already sent, the reason why it breaks off.
    fn run(
        &self,
        call: &Call,
        execution: &Arc<Execution>,
        sink: &mut dyn Sink,
    ) -> Result<Outcome, Error>;

    /// Returns whether a script or an upstream sets the fields of the answers, so that deferd adds none.
    fn relays_fields(&self) -> bool {
        false
    }

    /// Reads again the files that may change while deferd runs.
    ///
    /// # Errors
    /// What is wrong; then nothing changes.
    fn reload(&self) -> Result<(), String> {
        Ok(())
    }
}

/// Returns the answer to OPTIONS (RFC 9110 section 9.3.7).
pub fn options(methods: &str) -> Response<Content> {
    let mut response = empty(StatusCode::OK);
    response.headers_mut().insert(ALLOW, allow(methods));
    response
}

/// What the scripts of one route have in common.
#[derive(Clone, Debug)]
pub struct ScriptRoute {
    /// The path prefix of the route.
    pub prefix: String,
    /// The directory of the scripts: an absolute path, which may contain symbolic links.
    pub directory: PathBuf,
    /// Where symbolic links below it may lead.
    pub links: Links,
    /// What the operator adds to the environment of the scripts.
    pub variables: Arc<Variables>,
    /// How long a script may run.
    pub time_limit: Duration,
    /// The limit of a script's stdout, in bytes.
    pub max_output: usize,
    /// How many descriptors a script may have; `None`: as many as deferd.
    pub descriptor_limit: Option<Rlimit>,
}
