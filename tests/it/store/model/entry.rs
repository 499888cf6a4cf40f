//! What the model knows of a job, from its acceptance to its end.
//!
//! Knows neither stores nor lanes beside the job's own.

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

/// What the model knows of a job.
pub struct Entry {
    pub owner: Owner,
    pub n: usize,
    pub created: Stamp,
    /// What its request is accounted with.
    pub request: usize,
    /// Fire and forget, or forgotten since: nobody can ask for it.
    pub wanted: bool,
    /// In how many processes it was begun.
    pub starts: u32,
    /// What the disk says of whether it runs.
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
    /// In this lane; with what it had come to, if it was begun before.
    Waiting {
        lane: usize,
        again: Option<Again>,
    },
    Delayed {
        until: Instant,
        again: Again,
    },
    /// With a place in this lane; without one if it only has to be finished.
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

/// What the model knows of an attempt while the store has it.
pub struct Again {
    pub execution: Arc<Execution>,
    /// The lane and the deadline of what it was redirected to.
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

    /// When it has to be finished although it only waits.
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

    /// The lane of its own route.
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

    /// Nobody is taking it any more.
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

    /// How far it is, as its owner sees it.
    pub fn job_state(&self) -> JobState {
        match self.state {
            State::Waiting { .. } => JobState::Waiting,
            State::Delayed { .. } => JobState::Delayed,
            State::Running { .. } => JobState::Running,
            State::Done { .. } => JobState::Done,
        }
    }

    /// How it ended.
    pub fn ending(&self) -> Option<Ending> {
        match &self.state {
            State::Done { result, .. } => Some(result.ending()),
            _ => None,
        }
    }

    /// Its record, but for the attempts.
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

    /// What its record keeps of its request.
    pub fn line(&self) -> RequestLine {
        line(&call(self.n, &self.owner))
    }

    pub fn log(&self) -> LogEnd {
        match &self.state {
            State::Done { log, .. } => log.clone(),
            _ => self.execution().map(Execution::log).unwrap_or_default(),
        }
    }

    /// What this job's work ends with: `410` if it was cancelled, and `507` if there is no more `room`
    /// than its request has taken.
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
