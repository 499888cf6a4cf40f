//! What the model knows about a job, from its acceptance to its end.
//!
//! Knows neither stores nor lanes other than the job's own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::store::kit::*;
use deferd::error::Error;
use deferd::exchange::Owner;
use deferd::job::attempt::Attempt;
use deferd::job::execution::{Attempts, Execution};
use deferd::job::log::LogEnd;
use deferd::job::request_line::RequestLine;
use deferd::job::stored::{Ending, StoredResponse, StoredResult};
use deferd::job::{JobId, RECORD, SHORT_LOG, Stamp};
use deferd::store::{DeliveryId, End, JobRecord, JobState, Refused, Status};

use super::LANES;

/// What the model knows about a job.
pub struct Entry {
    pub owner: Owner,
    pub n: usize,
    pub created: Stamp,
    /// The accounted size of its request.
    pub request: usize,
    /// Whether clients can ask for it: it is neither fire and forget nor forgotten.
    pub wanted: bool,
    /// In how many processes it was begun.
    pub starts: u32,
    /// What the disk records about whether it runs.
    pub recorded: Runs,
    /// Whether a crash may undo that.
    pub is_recent: bool,
    pub state: State,
}

/// Whether a job runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runs {
    Yes,
    No,
}

pub enum State {
    /// Waiting in this lane; with its state from earlier attempts, if it was begun before.
    Waiting {
        lane: usize,
        again: Option<Again>,
    },
    Delayed {
        until: Instant,
        again: Again,
    },
    /// Running, with a place in this lane, or without one if it only has to be finished.
    Running {
        lane: Option<usize>,
        attempt: Box<Attempt>,
    },
    Done {
        finished: Stamp,
        result: StoredResponse,
        log: LogEnd,
        delivery: Option<DeliveryId>,
    },
}

/// What the model knows about an attempt while the store has it.
pub struct Again {
    pub execution: Arc<Execution>,
    /// The lane and the deadline of its redirect.
    pub redirected: Option<(usize, Instant)>,
    pub has_answer: bool,
}

impl Again {
    pub fn of(attempt: &Attempt) -> Self {
        let redirected = attempt.redirected.as_ref();
        Self {
            execution: Arc::clone(&attempt.execution),
            redirected: redirected.map(|redirected| (redirected.route.0, redirected.deadline)),
            has_answer: attempt.answer.is_some(),
        }
    }

    /// Returns when it must be finished even if it still waits.
    pub fn expiry(&self) -> Option<Instant> {
        self.redirected.map(|(_, deadline)| deadline)
    }
}

impl Entry {
    pub fn is_pending(&self) -> bool {
        !matches!(self.state, State::Done { .. })
    }

    pub fn is_collectable(&self) -> bool {
        matches!(self.state, State::Done { delivery: None, .. })
    }

    /// Returns the lane of its own route.
    pub fn own_lane(&self) -> usize {
        route(self.n, LANES.len()).0
    }

    pub fn is_in(&self, id: DeliveryId) -> bool {
        matches!(self.state, State::Done { delivery: Some(own), .. } if own == id)
    }

    pub fn waits_in(&self, lane: usize) -> bool {
        matches!(self.state, State::Waiting { lane: own, .. } if own == lane)
    }

    pub fn runs_in(&self, lane: usize) -> bool {
        matches!(self.state, State::Running { lane: Some(own), .. } if own == lane)
    }

    pub fn execution(&self) -> Option<&Execution> {
        match &self.state {
            State::Waiting { again, .. } => again.as_ref().map(|again| &*again.execution),
            State::Delayed { again, .. } => Some(&again.execution),
            State::Running { attempt, .. } => Some(&attempt.execution),
            State::Done { .. } => None,
        }
    }

    pub fn is_visible(&self) -> bool {
        self.wanted && (self.is_pending() || self.is_collectable())
    }

    pub fn stamp(&self) -> Stamp {
        match self.state {
            State::Done { finished, .. } => finished,
            _ => self.created,
        }
    }

    pub fn bytes(&self) -> usize {
        match &self.state {
            State::Done { result, log, .. } => {
                let (response, log) = (result.clone(), log.clone());
                RECORD + self.line().footprint() + StoredResult { response, log }.footprint()
            }
            _ => self.request,
        }
    }

    /// Ends its delivery: no client is taking it any more.
    pub fn deliver_again(&mut self) {
        if let State::Done { delivery, .. } = &mut self.state {
            *delivery = None;
        }
    }

    pub fn status(&self) -> Status {
        match &self.state {
            State::Done { result, .. } => Status::Done(result.ending()),
            _ => Status::Pending(self.job_state(), self.execution().and_then(Execution::progress)),
        }
    }

    /// Returns its state, as its owner sees it.
    pub fn job_state(&self) -> JobState {
        match self.state {
            State::Waiting { .. } => JobState::Waiting,
            State::Delayed { .. } => JobState::Delayed,
            State::Running { .. } => JobState::Running,
            State::Done { .. } => JobState::Done,
        }
    }

    /// Returns how it ended.
    pub fn ending(&self) -> Option<Ending> {
        match &self.state {
            State::Done { result, .. } => Some(result.ending()),
            _ => None,
        }
    }

    /// Returns its record, except for the attempts.
    pub fn record(&self, id: JobId) -> JobRecord {
        let end = match &self.state {
            State::Done { finished, result, .. } => {
                let expires = finished.after(Duration::MAX);
                Some(End { finished: *finished, expires: Some(expires), ending: result.ending() })
            }
            _ => None,
        };
        JobRecord {
            id,
            state: self.job_state(),
            line: self.line(),
            attempts: Attempts::default(),
            created: self.created,
            progress: self.execution().and_then(Execution::progress),
            end,
        }
    }

    /// Returns what its record keeps of its request.
    pub fn line(&self) -> RequestLine {
        line(&call(self.n, &self.owner))
    }

    pub fn log(&self) -> LogEnd {
        match &self.state {
            State::Done { log, .. } => log.clone(),
            _ => self.execution().map(Execution::log).unwrap_or_default(),
        }
    }

    /// Returns what this job's work ends with: `410` if it was cancelled, and `507` if it needs more than `room` and
    /// what its request has taken.
    pub fn finish(&mut self, cancelled: bool, now: Stamp, room: usize) {
        let response = if cancelled { Error::Cancelled.response() } else { response(self.n) };
        let (result, log) = (StoredResponse::from(response), self.log());
        self.state = State::Done { finished: now, result, log: log.clone(), delivery: None };
        if self.bytes() > self.request.max(room) {
            let result = Refused::Full.of_result().response().into();
            let LogEnd { text, offset } = log;
            let text = text[text.len().saturating_sub(SHORT_LOG)..].into();
            let log = LogEnd { text, offset };
            self.state = State::Done { finished: now, result, log, delivery: None };
        }
    }
}
