//! What each command does, except `run` and `list`.
//!
//! Owns the words on stdout, and how the outcomes of several jobs become one. Invariant: a command asks for each of
//! its jobs, unless deferd refuses or cannot be reached.

use http::Method;

use super::arguments::{Action, Follow};
use super::fetch::{self, Fetched};
use super::job::{self, LONG_ROUND, State};
use super::list::list;
use super::log;
use super::output::print;
use super::run::run;
use super::server::{Question, Server};
use super::{Outcome, Trouble, tell};
use crate::job::JobId;

/// Carries out an action; returns the exit code.
///
/// # Errors
/// [`Trouble`].
pub fn carry_out(action: Action, server: Server) -> Result<u8, Trouble> {
    let outcome = match action {
        Action::Run(submission) => return run(server, submission),
        Action::Submit(submission) => {
            let id = submission.prepare()?.submit(&server)?;
            let named = |trouble| Trouble::Refused(format!("job {id} is submitted, but {trouble}"));
            print(&format!("{id}\n")).map_err(named)?;
            Outcome::Done
        }
        Action::Status(ids) => {
            let name = |id| if ids.len() > 1 { format!("{id} ") } else { String::new() };
            each(&ids, |id| status(&server, id, &name(id)))?
        }
        Action::Wait(ids, time_limit) => each(&ids, |id| {
            let state = job::wait(&server, id, LONG_ROUND, time_limit, |_| ())?;
            Ok(ended(id, &state))
        })?,
        Action::Fetch(ids, output) => each(&ids, |id| {
            Ok(match fetch::fetch(&server, id, &output)? {
                Fetched::Result(ending) if ending.has_failed() => Outcome::Failed,
                Fetched::Result(_) => Outcome::Done,
                Fetched::Pending => not_done(id),
                Fetched::Unknown => unknown(id),
            })
        })?,
        Action::Log(ids, follow) => each(&ids, |id| match follow {
            Follow::No => log::show(&server, id),
            Follow::Yes => log::follow(&server, id),
        })?,
        Action::List(what) => {
            list(&server, &what)?;
            Outcome::Done
        }
        Action::Cancel(ids) => each(&ids, |id| change(&server, id, Method::PUT, "/cancel"))?,
        Action::Delete(ids) => each(&ids, |id| change(&server, id, Method::DELETE, ""))?,
    };
    Ok(outcome.code())
}

/// Acts on each job; returns the worst outcome.
fn each(
    ids: &[JobId],
    mut act: impl FnMut(JobId) -> Result<Outcome, Trouble>,
) -> Result<Outcome, Trouble> {
    let mut worst = Outcome::Done;
    for &id in ids {
        worst = worst.max(act(id)?);
    }
    Ok(worst)
}

/// Prints the state of a job after its `name`.
fn status(server: &Server, id: JobId, name: &str) -> Result<Outcome, Trouble> {
    Ok(match job::state(server, id, 0)? {
        State::Pending(pending) => {
            print(&format!("{name}{pending}\n"))?;
            Outcome::NotDone
        }
        State::Done(ending) => {
            print(&format!("{name}done: {ending}\n"))?;
            if ending.has_failed() { Outcome::Failed } else { Outcome::Done }
        }
        State::Unknown => unknown(id),
    })
}

/// Reports on stderr, after a wait, a job that has failed or is not done.
fn ended(id: JobId, state: &State) -> Outcome {
    match state {
        State::Pending(_) => not_done(id),
        State::Unknown => unknown(id),
        State::Done(ending) if ending.has_failed() => {
            tell(&format!("job {id} ended with {ending}"));
            Outcome::Failed
        }
        State::Done(_) => Outcome::Done,
    }
}

/// Cancels or deletes a job.
///
/// # Errors
/// [`Trouble::Refused`].
pub(super) fn change(
    server: &Server,
    id: JobId,
    method: Method,
    rest: &str,
) -> Result<Outcome, Trouble> {
    let answer = server.ask(Question::new(method, job::path(id, rest)))?;
    match answer.status() {
        200 => Ok(Outcome::Done),
        404 => Ok(unknown(id)),
        _ => Err(answer.refusal()),
    }
}

fn not_done(id: JobId) -> Outcome {
    tell(&format!("job {id} is not done"));
    Outcome::NotDone
}

/// Reports that a job does not exist.
pub fn unknown(id: JobId) -> Outcome {
    tell(&format!("no job {id}"));
    Outcome::Failed
}
