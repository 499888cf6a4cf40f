//! The record of a job, its states, and the pure transitions between them.
//!
//! ```text
//!  submit          claim           finish            collect, confirm
//! --------> Waiting -----> Running ------> Finishing ------> Done ------------------> (gone)
//!             ^ |  ^         | | ^             ^  (durable)  ^ |
//!             | |  | redirect| | | cancel:     |             | | collect
//!             | |  +---------+ | | the handler |     restore | v
//!             | |        retry | | is told     |         (in delivery)
//!             | |              v               |
//!             | |           Delayed            |
//!             | +---- cancel -----|------------+
//!             +-------------------+ due
//! ```
//!
//! Does no I/O, reads no clock (`now` is a parameter) and takes no lock. Invariant: a state carries exactly the data
//! that exists in it, so that nothing can be asked of a job too early.

use std::sync::Arc;
use std::time::Instant;

use super::submit::Size;
use super::waiters::Waiter;
use super::{JobState, Owed};
use crate::error::Error;
use crate::job::attempt::Attempt;
use crate::job::execution::{Attempts, Execution};
use crate::job::log::{JobLog, LogEnd};
use crate::job::request_line::RequestLine;
use crate::job::stored::{StoredResponse, StoredResult, Summary};
use crate::job::{Age, RouteIndex, Stamp};
use crate::memory::Charge;

/// A job without a result; `Q` is a request as its store keeps it.
#[derive(Debug)]
pub struct Pending<Q> {
    /// When it was accepted.
    pub created: Stamp,
    /// Its accounted size, in bytes.
    pub footprint: usize,
    /// The charge for the memory of it that the content does not charge itself.
    pub charge: Charge,
    /// Its route; `None` if no route matches the path of a job that was read from disk.
    pub route: Option<RouteIndex>,
    /// What its record keeps of its request.
    pub line: RequestLine,
    /// How many times deferd has started it: more than once only after a crash.
    pub starts: u32,
    /// The threads that wait for its result.
    pub waiters: Vec<Arc<Waiter>>,
    /// The programs and the URL to notify about its result, and the room for the notices, which is part of
    /// `footprint`.
    pub owed: Option<Box<Owed>>,
    /// Its state.
    pub phase: Phase<Q>,
}

/// The state of a pending job.
#[derive(Debug)]
pub enum Phase<Q> {
    /// It waits in the lane of a route.
    Waiting {
        /// The route.
        route: RouteIndex,
        /// What it will run.
        work: Work<Q>,
    },
    /// It has begun, and waits for a time: to run again, or to be finished.
    Delayed {
        /// The end of the delay.
        until: Instant,
        /// What happens at that time.
        attempt: Box<Attempt>,
    },
    /// A worker runs it; the request is with the worker.
    Running {
        /// Its place in a lane.
        place: LanePlace,
        /// The handle to its handler: stop it, see its progress.
        execution: Arc<Execution>,
        /// Whether it was cancelled: its result is then `410`, whatever the handler returns.
        cancelled: Cancelled,
    },
    /// Its result is decided and being stored.
    Finishing {
        /// The last of what it wrote to stderr.
        log: LogEnd,
        /// The attempts that were made.
        attempts: Attempts,
    },
}

/// What a waiting job runs when its turn comes.
#[derive(Debug)]
pub enum Work<Q> {
    /// Its request, for the first time.
    First(Q),
    /// The attempt so far: the job has begun before.
    Again(Box<Attempt>),
}

impl<Q> Work<Q> {
    /// Returns the deadline of a job that waits in a lane.
    pub fn expiry(&self) -> Option<Instant> {
        match self {
            Self::First(_) => None,
            Self::Again(attempt) => attempt.expiry(),
        }
    }
}

/// A running job's place in a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LanePlace {
    /// None: no worker runs it, and it only has to be finished.
    None,
    /// In the lane of this route, until the run ends.
    Of(RouteIndex),
    /// The same, but the place stays taken when the run ends, because some processes of the run are still there.
    Kept(RouteIndex),
}

/// Whether a running job was cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancelled {
    /// Yes: its result is `410`.
    Yes,
    /// No.
    No,
}

/// A job with a result; `R` is a result as its store keeps it.
#[derive(Debug)]
pub struct Done<R> {
    /// When it was accepted.
    pub created: Stamp,
    /// When its result was produced; this is its stamp.
    pub finished: Stamp,
    /// The same time by the clock that decides when it expires.
    pub age: Age,
    /// Its accounted size, in bytes.
    pub footprint: usize,
    /// The charge for the memory of it that the content does not charge itself.
    pub charge: Charge,
    /// What its record keeps of its request.
    pub line: RequestLine,
    /// The attempts that were made.
    pub attempts: Attempts,
    /// What is known about its result without reading it.
    pub summary: Summary,
    /// The current or last delivery.
    pub delivery: DeliveryId,
    /// The result.
    pub result: R,
}

/// Names one delivery of a result: a result that was restored is delivered under another id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeliveryId(pub u64);

impl<Q> Pending<Q> {
    /// Returns a job that waits in the lane of its route.
    pub const fn waiting(
        route: RouteIndex,
        request: Q,
        line: RequestLine,
        footprint: usize,
        charge: Charge,
        created: Stamp,
    ) -> Self {
        let phase = Phase::Waiting { route, work: Work::First(request) };
        Self {
            created,
            footprint,
            charge,
            route: Some(route),
            line,
            starts: 0,
            waiters: Vec::new(),
            owed: None,
            phase,
        }
    }

    /// Returns the same job with the notices that it owes.
    pub fn owing(self, owed: Option<Box<Owed>>) -> Self {
        Self { owed, ..self }
    }

    /// Returns the room that it reserves for notices.
    pub fn room_for_notices(&self) -> Size {
        self.owed.as_ref().map_or(Size::default(), |owed| owed.room)
    }

    /// Takes the work out of a job that waits or is delayed, which then needs another phase; returns `None` for any
    /// other job, which does not change.
    pub fn take_work(&mut self) -> Option<Work<Q>> {
        let finishing = Phase::Finishing { log: LogEnd::default(), attempts: Attempts::default() };
        match std::mem::replace(&mut self.phase, finishing) {
            Phase::Waiting { work, .. } => Some(work),
            Phase::Delayed { attempt, .. } => Some(Work::Again(attempt)),
            other => {
                self.phase = other;
                None
            }
        }
    }

    /// Returns whether its result is decided.
    pub const fn is_finishing(&self) -> bool {
        matches!(self.phase, Phase::Finishing { .. })
    }

    /// Decides the result: `response`, or `410` if the job was cancelled in time; returns which. From now on, the job
    /// can be neither claimed nor cancelled.
    pub fn finish(&mut self, response: StoredResponse) -> (StoredResult, Cancelled) {
        let cancelled = match self.phase {
            Phase::Running { cancelled, .. } => cancelled,
            Phase::Waiting { .. } | Phase::Delayed { .. } | Phase::Finishing { .. } => {
                Cancelled::No
            }
        };
        let response = match cancelled {
            Cancelled::Yes => Error::Cancelled.response().into(),
            Cancelled::No => response,
        };
        let log = self.log();
        self.phase = Phase::Finishing { log: log.clone(), attempts: self.attempts() };
        (StoredResult { response, log }, cancelled)
    }

    /// Cancels a running job: marks it and returns the handle to its handler. Returns `None` for a job that does not
    /// run: a waiting job is [finished](Self::finish) instead.
    pub fn cancel_running(&mut self) -> Option<Arc<Execution>> {
        match &mut self.phase {
            Phase::Waiting { .. } | Phase::Delayed { .. } | Phase::Finishing { .. } => None,
            Phase::Running { execution, cancelled, .. } => {
                *cancelled = Cancelled::Yes;
                Some(Arc::clone(execution))
            }
        }
    }

    /// Returns the handle to its handlers, from its beginning until it has a result.
    fn execution(&self) -> Option<&Execution> {
        match &self.phase {
            Phase::Waiting { work: Work::First(_), .. } | Phase::Finishing { .. } => None,
            Phase::Waiting { work: Work::Again(attempt), .. } | Phase::Delayed { attempt, .. } => {
                Some(&attempt.execution)
            }
            Phase::Running { execution, .. } => Some(execution),
        }
    }

    /// Returns its state, as its owner sees it.
    pub const fn state(&self) -> JobState {
        match self.phase {
            Phase::Waiting { .. } => JobState::Waiting,
            Phase::Delayed { .. } => JobState::Delayed,
            Phase::Running { .. } | Phase::Finishing { .. } => JobState::Running,
        }
    }

    /// Returns the attempts that were made so far.
    pub fn attempts(&self) -> Attempts {
        match &self.phase {
            Phase::Finishing { attempts, .. } => *attempts,
            _ => self.execution().map(Execution::attempts).unwrap_or_default(),
        }
    }

    /// Returns the last line that the job wrote to stderr.
    pub fn progress(&self) -> Option<String> {
        self.execution().and_then(Execution::progress)
    }

    /// Returns the end of what the job wrote to stderr.
    pub fn log(&self) -> LogEnd {
        match &self.phase {
            Phase::Finishing { log, .. } => log.clone(),
            _ => self.execution().map(Execution::log).unwrap_or_default(),
        }
    }

    /// Returns the log while it grows, if the job has begun.
    pub fn growing_log(&self) -> Option<Arc<JobLog>> {
        self.execution().map(Execution::growing_log)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::Content;
    use http::{Request, Response};

    use crate::exchange::{Call, Connection, Owner};
    use crate::job::JobId;
    use crate::memory::Allowance;

    fn attempt(execution: &Arc<Execution>) -> Box<Attempt> {
        let (connection, owner) = (Connection::Unix, Owner::anonymous());
        let call =
            Call { request: Request::new(Content::new()), connection, owner, auth_type: None };
        let (route, created) = (RouteIndex(0), Stamp::from_micros(1));
        Box::new(Attempt::first(call, Arc::clone(execution), route, created))
    }

    fn in_phase(phase: Phase<()>) -> Pending<()> {
        let created = Stamp::from_micros(1);
        let charge = Allowance::default().nothing();
        let waiting =
            Pending::waiting(RouteIndex(0), (), RequestLine::default(), 0, charge, created);
        Pending { phase, ..waiting }
    }

    #[test]
    fn a_job_cancelled_while_running_finishes_with_410() {
        for cancel in [true, false] {
            let execution = Arc::new(Execution::default());
            let (place, cancelled) = (LanePlace::None, Cancelled::No);
            let mut pending = in_phase(Phase::Running { place, execution, cancelled });
            assert_eq!(cancel && pending.cancel_running().is_some(), cancel);
            let (result, _) = pending.finish(Response::new(Content::from(&b"too late"[..])).into());
            let status = result.response.to_response().status().as_u16();
            assert_eq!(status, if cancel { 410 } else { 200 });
            assert!(pending.cancel_running().is_none(), "its result is decided");
        }
    }

    #[test]
    fn progress_and_log_stay_with_a_job_that_waits_again() {
        let execution = Arc::new(Execution::new(JobId::new(1), Allowance::default()));
        execution.set_progress("half");
        execution.append_log(b"half\n");
        let (until, route) = (Instant::now(), RouteIndex(0));
        for phase in [
            Phase::Delayed { until, attempt: attempt(&execution) },
            Phase::Waiting { route, work: Work::Again(attempt(&execution)) },
        ] {
            let mut pending = in_phase(phase);
            assert!(pending.cancel_running().is_none(), "it does not run");
            assert_eq!(pending.progress().as_deref(), Some("half"));
            let (result, _) = pending.finish(Response::new(Content::new()).into());
            assert_eq!((&*result.log.text, result.log.offset), (&b"half\n"[..], 5));
            assert_eq!((pending.progress(), pending.log()), (None, result.log));
        }
    }
}
