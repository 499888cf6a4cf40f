//! An attempt: a job from its first start to its result, over retries, redirects and delays.
//!
//! Owns what a worker knows about the job that it runs, and what is kept with the job while no worker has it. Decides
//! nothing: `handler::retry` decides whether there is another attempt. Invariant: a redirect and its deadline live as
//! long as the attempt that led to it.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use super::execution::{Attempts, Execution};
use super::{JobKey, RouteIndex, Stamp};
use crate::exchange::{Answer, Call};

/// A job between the start of its first attempt and its result.
pub struct Attempt {
    /// The request of the job.
    pub call: Call,
    /// The handle to its current handler.
    pub execution: Arc<Execution>,
    /// When the job was accepted.
    pub created: Stamp,
    /// When its first attempt began; `None` before.
    pub started: Option<Stamp>,
    /// The route of the job.
    pub route: RouteIndex,
    /// How many attempts were begun.
    pub made: u32,
    /// How often it could not start for lack of descriptors, processes or memory.
    pub shortages: u32,
    /// The deadline of this attempt, with all its redirects.
    pub deadline: Instant,
    /// The request of a local redirect; set by the redirect, dropped with the attempt.
    pub redirected: Option<Redirected>,
    /// The result at the end of the delay; set if the handler only requested a delay.
    pub answer: Option<Answer>,
}

impl Attempt {
    /// Returns the first attempt of a job, before it begins.
    pub fn first(call: Call, execution: Arc<Execution>, route: RouteIndex, created: Stamp) -> Self {
        Self {
            call,
            execution,
            created,
            started: None,
            route,
            made: 0,
            shortages: 0,
            deadline: Instant::now(),
            redirected: None,
            answer: None,
        }
    }

    /// Records in the handle how many attempts have begun.
    pub fn tell(&self) {
        self.execution.set_attempts(Attempts { first: self.started, count: self.made });
    }

    /// Returns the request that runs next, or that ran last.
    pub fn hop(&self) -> Hop<'_> {
        let first = Hop { call: &self.call, count: 0, deadline: self.deadline };
        self.redirected.as_ref().map_or(first, Redirected::hop)
    }

    /// Returns the route of that request.
    pub fn hop_route(&self) -> RouteIndex {
        self.redirected.as_ref().map_or(self.route, |redirected| redirected.route)
    }

    /// Returns the deadline of a job that does not run: a waiting job has one only after a redirect.
    pub fn expiry(&self) -> Option<Instant> {
        self.redirected.as_ref().map(|redirected| redirected.deadline)
    }
}

impl fmt::Debug for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attempt").field("route", &self.route).field("made", &self.made).finish()
    }
}

/// A job handed to a worker.
#[derive(Debug)]
pub struct Claimed {
    /// Which job.
    pub job: JobKey,
    /// What to run.
    pub attempt: Box<Attempt>,
}

/// A request that was run, and that may lead to a local redirect.
pub struct Hop<'a> {
    /// The request.
    pub call: &'a Call,
    /// How many redirects led to it.
    pub count: usize,
    /// The deadline of the first request, and of all that follow it.
    pub deadline: Instant,
}

/// A request that replaces the client's.
pub struct Redirected {
    /// The request.
    pub call: Call,
    /// The route of the request.
    pub route: RouteIndex,
    /// How many redirects led to it.
    pub count: usize,
    /// Its deadline, which covers all redirects.
    pub deadline: Instant,
}

impl Redirected {
    /// Returns the request as the next redirect sees it.
    pub const fn hop(&self) -> Hop<'_> {
        Hop { call: &self.call, count: self.count, deadline: self.deadline }
    }
}
