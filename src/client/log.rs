//! `deferd log`: what a job's script wrote to stderr.
//!
//! Owns how a log is followed: a current deferd sends it as it grows; an older one is asked for the log every second,
//! and the new part is printed. Invariant: stdout gets each byte once. If a script writes more within that second than
//! deferd keeps, the excess is lost.

use std::thread::sleep;
use std::time::{Duration, Instant};

use http::Method;
use http::header::TRANSFER_ENCODING;

use super::commands::unknown;
use super::job::{self, State};
use super::output::{Broken, Output, print_bytes};
use super::server::{Answer, Patience, Question, Server};
use super::{Outcome, Trouble};
use crate::job::JobId;

/// Prints a log as it is now.
///
/// # Errors
/// [`Trouble::Refused`].
pub fn show(server: &Server, id: JobId) -> Result<Outcome, Trouble> {
    let answer = server.ask(question(id, ""))?;
    let Some(mut answer) = found(answer)? else { return Ok(unknown(id)) };
    print_bytes(&answer.content()?)?;
    Ok(Outcome::Done)
}

/// Prints a log until its job ends.
///
/// # Errors
/// [`Trouble::Refused`].
pub fn follow(server: &Server, id: JobId) -> Result<Outcome, Trouble> {
    let answer = server.ask_for(question(id, "?follow=1"), Patience::Endless)?;
    let Some(mut answer) = found(answer)? else { return Ok(unknown(id)) };
    if answer.has(&TRANSFER_ENCODING) {
        let printed = Output::Stdout.write(&mut answer.response.body_mut().as_reader());
        printed.map_err(|broken| match broken {
            Broken::Content(error) => {
                Trouble::Refused(format!("job {id}: its log broke off: {error}"))
            }
            Broken::Output(what) => Trouble::Refused(what),
        })?;
        return Ok(Outcome::Done);
    }
    let mut last = answer.content()?;
    print_bytes(&last)?;
    loop {
        // In this order: the log that is read next has everything that was written before the end.
        let asked = Instant::now();
        let state = job::state(server, id, 1)?;
        let log = server.ask(question(id, ""))?;
        let Some(mut answer) = found(log)? else { return Ok(Outcome::Done) };
        let log = answer.content()?;
        print_bytes(fresh(&last, &log))?;
        last = log;
        if !matches!(state, State::Pending(_)) {
            return Ok(Outcome::Done);
        }
        // deferd may wait for less than it is asked to, or not at all.
        sleep(Duration::from_secs(1).saturating_sub(asked.elapsed()));
    }
}

fn question(id: JobId, query: &str) -> Question {
    Question::new(Method::GET, job::path(id, "/log") + query)
}

/// Returns the answer; `None` if the job does not exist.
fn found(answer: Answer) -> Result<Option<Answer>, Trouble> {
    match answer.status() {
        // There is nothing left to follow.
        200 | 204 => Ok(Some(answer)),
        404 => Ok(None),
        _ => Err(answer.refusal()),
    }
}

/// Returns the new part of a log: what follows the longest end of `before` with which `log` begins.
fn fresh<'a>(before: &[u8], log: &'a [u8]) -> &'a [u8] {
    let most = before.len().min(log.len());
    let shared = (0..=most).rev().find(|&n| before.ends_with(&log[..n]));
    &log[shared.unwrap_or_default()..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_new_in_a_log_is_shown() {
        for (before, log, new) in [
            ("", "one\n", "one\n"),
            ("one\n", "one\n", ""),
            ("one\n", "one\ntwo\n", "two\n"),
            ("one\ntwo\n", "two\nthree\n", "three\n"),
            ("one\n", "three\n", "three\n"),
            ("aa", "aaa", "a"),
        ] {
            assert_eq!(fresh(before.as_bytes(), log.as_bytes()), new.as_bytes(), "{before:?}");
        }
    }
}
