//! A job as its client sees it: its state, and how it ended.
//!
//! Owns the reading of its status, the wait for its end, and the words for both. Invariant: after the first few
//! requests, a wait asks at most once a second, whatever deferd makes of `prefer: wait`.

use std::fmt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use http::{HeaderValue, Method};

use super::server::{Answer, Question, Server};
use super::{Trouble, printable};
use crate::job::JobId;
use crate::protocol::{
    ASYNC_ID, ASYNC_RESULT, EXIT_CODE, EXIT_SIGNAL, JOB, JOB_STATE, PREFER, PROGRESS,
};

/// How long deferd is asked to wait in one request: less than the default of `--max-wait`.
pub const LONG_ROUND: Duration = Duration::from_secs(30);

/// How long deferd is asked to wait if the client shows progress.
pub const SHORT_ROUND: Duration = Duration::from_secs(1);

/// The state of a job.
pub enum State {
    /// It waits or runs.
    Pending(Pending),
    /// It is done.
    Done(Ending),
    /// It does not exist: it never did, or its result was collected.
    Unknown,
}

/// What a pending job shows.
pub struct Pending {
    state: Option<String>,
    pub progress: Option<String>,
}

/// How a job ended.
#[derive(Clone, Copy)]
pub struct Ending {
    pub status: u16,
    /// The exit code of a program that failed.
    exit_code: Option<u8>,
    signal: Option<u8>,
}

impl Ending {
    /// Returns the ending that a result shows.
    pub fn of(result: &Answer) -> Self {
        Self::with(result.status(), result)
    }

    fn with(status: u16, answer: &Answer) -> Self {
        let exit_code = answer.number(&EXIT_CODE);
        Self { status, exit_code, signal: answer.number(&EXIT_SIGNAL) }
    }

    pub const fn has_failed(self) -> bool {
        self.status >= 400
    }

    /// Returns the exit code that a shell would return if it ran the script itself.
    pub fn exit_code(self) -> u8 {
        match (self.signal, self.exit_code) {
            (Some(signal), _) => 128_u8.saturating_add(signal),
            (None, Some(code)) => code,
            (None, None) => u8::from(self.has_failed()),
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "status {}", self.status)?;
        if let Some(code) = self.exit_code {
            write!(f, ", exit code {code}")?;
        }
        if let Some(signal) = self.signal {
            write!(f, ", signal {signal}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&printable(self.state.as_deref().unwrap_or("pending")))?;
        match &self.progress {
            Some(line) => write!(f, ": {}", printable(line)),
            None => Ok(()),
        }
    }
}

/// Returns the path of a job, or of a resource below it.
pub fn path(id: JobId, rest: &str) -> String {
    format!("{JOB}/{id}{rest}")
}

/// Asks for the state of a job; deferd answers when it is done, or after this many seconds.
///
/// # Errors
/// [`Trouble::Refused`].
pub fn state(server: &Server, id: JobId, wait: u64) -> Result<State, Trouble> {
    let mut question = Question::new(Method::GET, path(id, ""));
    if wait > 0
        && let Ok(value) = HeaderValue::try_from(format!("wait={wait}"))
    {
        question.fields.insert(PREFER, value);
    }
    let answer = server.ask(question)?;
    match answer.status() {
        200 => ending(server, id, &answer),
        204 => {
            let (state, progress) = (answer.field(&JOB_STATE), answer.field(&PROGRESS));
            Ok(State::Pending(Pending { state, progress }))
        }
        404 => Ok(State::Unknown),
        _ => Err(answer.refusal()),
    }
}

/// Returns how a finished job ended: an older deferd reports that only on the result.
fn ending(server: &Server, id: JobId, status: &Answer) -> Result<State, Trouble> {
    if let Some(result) = status.number(&ASYNC_RESULT) {
        return Ok(State::Done(Ending::with(result, status)));
    }
    let result = server.ask(Question::new(Method::HEAD, path(id, "/result")))?;
    if result.has(&ASYNC_ID) {
        return Ok(State::Done(Ending::of(&result)));
    }
    if result.status() == 404 { Ok(State::Unknown) } else { Err(result.refusal()) }
}

/// Waits until a job is not pending or the time is over; calls `pending` with each answer before that.
///
/// # Errors
/// [`Trouble::Refused`].
pub fn wait(
    server: &Server,
    id: JobId,
    round: Duration,
    time_limit: Option<Duration>,
    mut pending: impl FnMut(&Pending),
) -> Result<State, Trouble> {
    let begin = Instant::now();
    let left = || time_limit.map_or(round, |limit| limit.saturating_sub(begin.elapsed()));
    // deferd may wait for less than it is asked to, or not at all.
    let mut rest = Duration::from_millis(10);
    loop {
        let asked = Instant::now();
        // `wait` has whole seconds (RFC 7240 section 4.3), so the last part of a second is spent in repeated requests.
        let state = state(server, id, left().min(round).as_secs())?;
        let State::Pending(it) = &state else { return Ok(state) };
        pending(it);
        if left().is_zero() {
            return Ok(state);
        }
        sleep(rest.saturating_sub(asked.elapsed()).min(left()));
        rest = (rest * 2).min(Duration::from_secs(1));
    }
}
