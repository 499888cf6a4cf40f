//! Completion programs: a route's `on-done` and `on-failure`, which run when a job of the route is done or has failed.
//!
//! Owns their environment, and the choice of the program for a notice. `child` runs them; `server::programs` has
//! checked that no URL leads to them. Invariant: what a program does never changes the job that it is told about.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use http::request::Parts;
use rustix::process::Rlimit;

use super::child::{self, Script};
use super::pipes::{READ, Stdout};
use super::{Handler, Outcome, environment};
use crate::content::NoMemory;
use crate::error::Error;
use crate::exchange::{Call, empty};
use crate::job::execution::Execution;
use crate::job::notice::{self, Event};
use crate::job::request_line::beginning;
use crate::sink::Sink;
use crate::variables::Variables;

/// How long a program may run.
pub const TIME_LIMIT: Duration = Duration::from_secs(60);

/// The programs of one route.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The path prefix of the route.
    pub prefix: String,
    /// Runs for each job that is done: an absolute path.
    pub on_done: Option<PathBuf>,
    /// Runs for each job that failed: an absolute path.
    pub on_failure: Option<PathBuf>,
    /// What the operator adds to the environment of the route's scripts.
    pub variables: Arc<Variables>,
    /// The exit code that a `200` stands for; `None` if `200` does not imply one.
    pub code_of_success: Option<i32>,
}

impl Programs {
    /// Returns the program for this event.
    fn of(&self, event: Event) -> Option<&Path> {
        match event {
            Event::Done => self.on_done.as_deref(),
            Event::Failure => self.on_failure.as_deref(),
        }
    }

    /// Returns the environment of a program, for the notice in this call.
    fn environment(&self, call: &Call) -> Vec<(OsString, OsString)> {
        let mut environment = environment::of_host(&self.variables);
        let told = notice::variables(call.request.headers());
        environment
            .extend(told.map(|(name, value)| (name.into(), OsString::from_vec(value.to_vec()))));
        if let Some(code) = self.code_of_success.filter(|_| notice::is_of_success(&call.request)) {
            environment.push(("DEFERD_EXIT_CODE".into(), code.to_string().into()));
        }
        environment
    }
}

/// Drops what a program writes to stdout.
struct Dropped([u8; READ]);

impl Stdout for Dropped {
    fn room(&mut self, most: usize) -> Result<&mut [u8], NoMemory> {
        Ok(&mut self.0[..most.min(READ)])
    }

    fn advance(&mut self, _: usize) -> Result<(), NoMemory> {
        Ok(())
    }
}

/// Runs the completion programs of all routes.
pub struct CompletionHandler {
    programs: Vec<Programs>,
    /// How many descriptors a program may have; `None`: as many as deferd.
    descriptor_limit: Option<Rlimit>,
}

impl CompletionHandler {
    /// Returns a handler for these programs.
    pub fn new(programs: Vec<Programs>, descriptor_limit: Option<Rlimit>) -> Self {
        Self { programs, descriptor_limit }
    }

    /// Returns the program for a notice, by the current options.
    fn find(&self, event: Event, route: &str) -> Option<(&Path, &Programs)> {
        let programs = self.programs.iter().find(|of| beginning(&of.prefix) == route)?;
        Some((programs.of(event)?, programs))
    }
}

impl Handler for CompletionHandler {
    fn check(&self, _: &Parts) -> Result<(), Error> {
        Err(Error::NotFound("no request leads to a completion program".into()))
    }

    fn run(
        &self,
        call: &Call,
        execution: &Arc<Execution>,
        _: &mut dyn Sink,
    ) -> Result<Outcome, Error> {
        let told = notice::event(&call.request);
        let Some((event, (program, programs))) =
            told.and_then(|(event, route)| Some((event, self.find(event, route)?)))
        else {
            log::warn!("job={} the route has no such program any more", execution.job_as_log());
            return Ok(empty(StatusCode::NO_CONTENT).into());
        };
        let script = Script {
            program,
            directory: program.parent().unwrap_or(Path::new("/")),
            environment: programs.environment(call),
            stdin: call.request.body(),
            time_limit: TIME_LIMIT,
            max_output: usize::MAX,
            descriptor_limit: self.descriptor_limit,
        };
        let ended = child::run(&script, &mut Dropped([0; READ]), execution);
        let what = match &ended {
            Ok(status) if status.success() => return Ok(empty(StatusCode::OK).into()),
            Ok(status) => status.to_string(),
            Err(Error::Cancelled) => "ended with deferd".to_owned(),
            Err(error) => error.to_string(),
        };
        let (job, of) = (execution.job_as_log(), notice::job(&call.request));
        let (option, program) = (event.option(), program.display());
        log::warn!("job={job} of={of} {option}={program} failed: {what}");
        Err(ended.err().unwrap_or(Error::BadGateway("the program failed".into())))
    }
}
