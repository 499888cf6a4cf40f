//! The `run:` target: plain programs whose stdout is the content and whose exit code is the status.
//!
//! Owns the translation of an exit status into a response. Does not start the program: `child` does. Invariant: exit
//! code 0, and no other, is `200`.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;

use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode};

use super::child::{self, Script};
use super::pipes::Stdout;
use super::{Handler, Outcome, ScriptRoute, environment, locate, options};
use crate::content::{Content, ContentBuffer, NoMemory, Utf8};
use crate::error::{Error, TEXT};
use crate::exchange::Call;
use crate::job::execution::Execution;
use crate::memory::Allowance;
use crate::methods::ANY_METHOD;
use crate::protocol::{EXIT_CODE, EXIT_SIGNAL, STDERR};
use crate::sink::Sink;

/// Runs the plain programs of one directory.
pub struct RunHandler {
    route: ScriptRoute,
}

impl RunHandler {
    /// Returns a handler for the programs of this route.
    pub fn new(route: ScriptRoute) -> Self {
        Self { route }
    }
}

impl Handler for RunHandler {
    fn check(&self, request: &Parts) -> Result<(), Error> {
        locate::locate(&self.route, request.uri.path()).map(drop)
    }

    /// Returns the answer as a whole, because its status depends on the exit code.
    fn run(
        &self,
        call: &Call,
        execution: &Arc<Execution>,
        _: &mut dyn Sink,
    ) -> Result<Outcome, Error> {
        if call.request.method() == Method::OPTIONS {
            // A plain program does not know methods: OPTIONS would run it.
            return Ok(options(ANY_METHOD).into());
        }
        let mut stdout = Kept::new(execution.memory());
        let status = run_script(&self.route, call, &mut stdout, execution)?;
        response(status, stdout, execution).map(Into::into)
    }

    fn reload(&self) -> Result<(), String> {
        self.route.variables.reload()
    }
}

/// Keeps the output of a program, and checks whether it is text.
struct Kept {
    content: ContentBuffer,
    text: Utf8,
}

impl Kept {
    fn new(memory: &Allowance) -> Self {
        Self { content: ContentBuffer::new(memory), text: Utf8::default() }
    }
}

impl Stdout for Kept {
    fn room(&mut self, most: usize) -> Result<&mut [u8], NoMemory> {
        self.content.room(most)
    }

    fn advance(&mut self, n: usize) -> Result<(), NoMemory> {
        self.text.push(self.content.advance(n));
        Ok(())
    }
}

/// Finds the script that a request names and runs it; `run:` and `cgi:` share this.
///
/// # Errors
/// Errors of [`locate::locate`] and [`child::run`].
pub fn run_script(
    route: &ScriptRoute,
    call: &Call,
    stdout: &mut dyn Stdout,
    execution: &Execution,
) -> Result<ExitStatus, Error> {
    let located = locate::locate(route, call.request.uri().path())?;
    let script = Script {
        program: &located.program,
        directory: &located.directory,
        environment: environment::of(call, execution, route, &located),
        stdin: call.request.body(),
        time_limit: route.time_limit,
        max_output: route.max_output,
        descriptor_limit: route.descriptor_limit,
    };
    let status = child::run(&script, stdout, execution)?;
    execution.set_exit_code(status.code());
    Ok(status)
}

fn response(
    status: ExitStatus,
    Kept { content, text }: Kept,
    execution: &Execution,
) -> Result<Response<Content>, Error> {
    let content = content.freeze().map_err(|error| Error::no_room_for("the answer", &error))?;
    let mut response = Response::new(content);
    let binary = HeaderValue::from_static("application/octet-stream");
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, if text.is_valid() { TEXT } else { binary });
    if let Some(signal) = status.signal() {
        headers.insert(EXIT_SIGNAL, HeaderValue::from(signal));
    } else if let Some(code) = status.code().filter(|&code| code != 0) {
        headers.insert(EXIT_CODE, HeaderValue::from(code));
    }
    if !status.success() {
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        // Only the owner of a job gets this line: a waiting client may be another user.
        let line = execution.job().and_then(|_| execution.last_line());
        if let Some(line) = line.and_then(|line| HeaderValue::try_from(line).ok()) {
            response.headers_mut().insert(STDERR, line);
        }
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::JobId;

    #[test]
    fn the_exit_status_becomes_the_status_code() {
        for (raw, status, field) in [
            (0, 200, None),
            (3 << 8, 500, Some(("x-exit-code", "3"))),
            (9, 500, Some(("x-exit-signal", "9"))),
        ] {
            let stdout = Kept::new(&Allowance::default());
            let response =
                response(ExitStatus::from_raw(raw), stdout, &Execution::default()).unwrap();
            assert_eq!(response.status().as_u16(), status);
            let found: Vec<_> = response
                .headers()
                .iter()
                .filter(|(name, _)| name.as_str().starts_with("x-exit"))
                .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
                .collect();
            assert_eq!(found, field.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_failed_job_shows_the_last_line_of_its_stderr() {
        for (job, raw, line) in [
            (JobId::new(1), 1 << 8, Some("why")),
            (JobId::new(1), 9, Some("why")),
            (JobId::new(1), 0, None),
            (None, 1 << 8, None),
        ] {
            let execution = Execution::new(job, Allowance::default());
            execution.set_line("why");
            let stdout = Kept::new(&Allowance::default());
            let response = response(ExitStatus::from_raw(raw), stdout, &execution).unwrap();
            let found = response.headers().get("x-stderr").map(|line| line.to_str().unwrap());
            assert_eq!(found, line);
        }
    }
}
