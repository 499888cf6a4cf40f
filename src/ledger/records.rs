//! The records of an owner's jobs as a list: filtered, in pages, ascending or descending by id.
//!
//! Owns the contents of a record, also as JSON, and how many jobs are examined for one page. Invariants: a page costs
//! the same however many jobs there are; the lock is held for 500 records at a time; a job is examined once, and
//! listed as it is at that time.

use super::job::{Done, Pending};
use super::{Found, JobState, Ledger};
use crate::exchange::Owner;
use crate::job::execution::Attempts;
use crate::job::request_line::RequestLine;
use crate::job::stored::{Ending, Exit, Summary};
use crate::job::{JobId, JobKey, Stamp};

/// How many records are examined for one page.
pub const MAX_LOOKS: usize = 10_000;

/// How many of them are examined under one hold of the lock.
const STEP: usize = 500;

/// What a list says about a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobRecord {
    /// Its id.
    pub id: JobId,
    /// Its state.
    pub state: JobState,
    /// What its record keeps of its request.
    pub line: RequestLine,
    /// The attempts that were made so far.
    pub attempts: Attempts,
    /// When it was accepted.
    pub created: Stamp,
    /// The last line that it wrote to stderr; only while it is pending.
    pub progress: Option<String>,
    /// How it ended, if it is done.
    pub end: Option<End>,
}

/// How and when a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// When its result was produced.
    pub finished: Stamp,
    /// When its result expires, if the wall clock is right; `None` if the result was dropped.
    pub expires: Option<Stamp>,
    /// How it ended.
    pub ending: Ending,
}

impl JobRecord {
    /// Returns the record as a JSON object whose members have this order.
    pub fn to_json(&self, owner: &Owner) -> String {
        let Self { id, state, line, attempts, created, progress, end } = self;
        let (method, target, route) =
            line.parts().map_or((None, None, None), |(method, target, route)| {
                (Some(method), Some(target), Some(route))
            });
        let ending = end.as_ref().map(|end| end.ending);
        let exit_code = match ending.and_then(|ending| ending.exit) {
            Some(Exit::Code(code)) => Some(code),
            Some(Exit::Signal(_)) | None => None,
        };
        let expires = end.as_ref().and_then(|end| end.expires);
        format!(
            r#"{{"id":"{id}","state":"{}","method":{},"target":{},"route":{},"owner":{},"attempts":{},"created":{},"started":{},"finished":{},"expires":{},"status":{},"exitCode":{},"bytes":{},"progress":{}}}"#,
            state.name(),
            quoted(method),
            quoted(target),
            quoted(route),
            quoted(Some(owner.name().unwrap_or(""))),
            attempts.count,
            created.unix_seconds(),
            number(attempts.first.map(Stamp::unix_seconds)),
            number(end.as_ref().map(|end| end.finished.unix_seconds())),
            number(expires.map(Stamp::unix_seconds)),
            number(ending.map(|ending| ending.status.as_u16())),
            number(exit_code),
            ending.map_or(0, |ending| ending.bytes),
            quoted(progress.as_deref()),
        )
    }
}

fn quoted(text: Option<&str>) -> String {
    text.map_or_else(|| "null".to_owned(), |text| serde_json::Value::from(text).to_string())
}

fn number(number: Option<impl ToString>) -> String {
    number.map_or_else(|| "null".to_owned(), |number| number.to_string())
}

/// The order in which records are listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// The lowest id first.
    #[default]
    Ascending,
    /// The highest id first.
    Descending,
}

/// Which records are listed, and in which order.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only records in this state.
    pub state: Option<JobState>,
    /// Only records of jobs that failed.
    pub only_failed: bool,
    /// Only records of the route with this prefix.
    pub route: Option<Box<str>>,
    /// The order of the list.
    pub order: Order,
}

/// A part of a list.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// At most as many as requested, in the order of the filter.
    pub records: Vec<JobRecord>,
    /// The id after which the list continues; `None` at its end.
    pub next: Option<JobId>,
}

/// The request for one [step](Ledger::step).
pub struct Step<'a> {
    filter: &'a Filter,
    /// Only ids after this one, in the order of the filter, are examined.
    after: Option<JobId>,
    /// How many records are requested.
    count: usize,
    /// How many may be examined.
    looks: usize,
}

/// What a step has found.
pub struct Stepped {
    records: Vec<JobRecord>,
    looked: usize,
    /// The last id that was examined, if there are more after it.
    next: Option<JobId>,
}

impl Page {
    /// Collects a page of at most `count` records after `after`, in steps of `step`, each of which takes the lock
    /// separately.
    pub fn collect(
        filter: &Filter,
        after: Option<JobId>,
        count: usize,
        step: impl Fn(&Step<'_>) -> Stepped,
    ) -> Self {
        let mut page = Self { records: Vec::new(), next: after };
        let mut left = MAX_LOOKS;
        loop {
            let count = count - page.records.len();
            let next = Step { filter, after: page.next, count, looks: left.min(STEP) };
            let stepped = step(&next);
            page.records.extend(stepped.records);
            page.next = stepped.next;
            left -= stepped.looked;
            if page.next.is_none() || left == 0 || stepped.looked == 0 || count == 0 {
                return page;
            }
        }
    }
}

impl Step<'_> {
    /// Returns whether pending jobs are examined, and whether done jobs are.
    pub fn lists(&self) -> [bool; 2] {
        [self.filter.takes_pending(), self.filter.takes_done()]
    }

    /// Returns the order of the list.
    pub const fn order(&self) -> Order {
        self.filter.order
    }

    /// Returns the id after which jobs are examined.
    pub const fn after(&self) -> Option<JobId> {
        self.after
    }

    /// Returns how many may be examined.
    pub const fn looks(&self) -> usize {
        self.looks
    }

    /// Examines records that a store has elsewhere, in the order of the filter. `found` should have one more record,
    /// if there is one, than may be examined.
    pub fn over(&self, found: impl Iterator<Item = JobRecord>) -> Stepped {
        let mut stepped = Stepped { records: Vec::new(), looked: 0, next: None };
        let mut last = self.after;
        for record in found {
            if stepped.records.len() == self.count || stepped.looked == self.looks {
                stepped.next = last;
                return stepped;
            }
            last = Some(record.id);
            stepped.looked += 1;
            if self.filter.takes_record(&record) {
                stepped.records.push(record);
            }
        }
        stepped
    }
}

impl Filter {
    fn takes_record(&self, record: &JobRecord) -> bool {
        let has_failed = || record.end.as_ref().is_some_and(|end| end.ending.outcome.is_failure());
        self.state.is_none_or(|state| state == record.state)
            && (!self.only_failed || has_failed())
            && self.route.as_ref().is_none_or(|prefix| record.line.has_prefix(prefix))
    }

    fn takes_pending(&self) -> bool {
        self.state != Some(JobState::Done) && !self.only_failed
    }

    fn takes_done(&self) -> bool {
        self.state.is_none_or(|state| state == JobState::Done)
    }

    fn takes(&self, found: &Found<'_, impl Sized, impl Sized>) -> bool {
        let (line, is_taken) = match found {
            Found::Unknown => return false,
            Found::Pending(pending) => {
                (&pending.line, self.state.is_none_or(|state| state == pending.state()))
            }
            Found::Done(done) => {
                (&done.line, !self.only_failed || done.summary.ending.outcome.is_failure())
            }
        };
        is_taken && self.route.as_ref().is_none_or(|prefix| line.has_prefix(prefix))
    }
}

impl<Q, R> Ledger<Q, R> {
    /// Returns the record of a job; `None` if it does not exist.
    pub fn record(&self, job: &JobKey) -> Option<JobRecord> {
        self.told(job.id, &self.find(job))
    }

    fn told(&self, id: JobId, found: &Found<'_, Q, R>) -> Option<JobRecord> {
        match found {
            Found::Unknown => None,
            Found::Pending(pending) => Some(told_pending(id, pending)),
            Found::Done(done) => Some(self.told_done(id, done)),
        }
    }

    fn told_done(&self, id: JobId, done: &Done<R>) -> JobRecord {
        let Done { created, finished, attempts, summary, .. } = *done;
        let ending = summary.ending;
        let end = End { finished, expires: Some(finished.after(self.plan.ttl)), ending };
        let (state, line) = (JobState::Done, done.line.clone());
        JobRecord { id, state, line, attempts, created, progress: None, end: Some(end) }
    }

    /// Returns the record that a pending job has if it ends now.
    pub(super) fn record_at_end(
        &self,
        job: &JobKey,
        pending: &Pending<Q>,
        Summary { ending, .. }: Summary,
        finished: Stamp,
    ) -> JobRecord {
        let expires = (!self.is_unwanted(job)).then(|| finished.after(self.plan.ttl));
        let end = Some(End { finished, expires, ending });
        JobRecord { state: JobState::Done, progress: None, end, ..told_pending(job.id, pending) }
    }

    /// Examines the next records of `owner`.
    pub fn step(&self, owner: &Owner, step: &Step<'_>) -> Stepped {
        let Step { filter, after, count, looks } = *step;
        let mut stepped = Stepped { records: Vec::new(), looked: 0, next: None };
        let Some(jobs) = self.owners.get(owner) else { return stepped };
        let pending = filter.takes_pending().then(|| jobs.pending.ids_behind(after, filter.order));
        let done = filter.takes_done().then(|| jobs.done.ids_behind(after, filter.order));
        let mut pending = pending.into_iter().flatten().peekable();
        let mut done = done.into_iter().flatten().peekable();
        let mut last = after;
        loop {
            let id = match (pending.peek(), done.peek()) {
                (None, None) => return stepped,
                (Some(id), None) | (None, Some(id)) => *id,
                (Some(pending), Some(done)) => match filter.order {
                    Order::Ascending => *pending.min(done),
                    Order::Descending => *pending.max(done),
                },
            };
            if stepped.records.len() == count || stepped.looked == looks {
                stepped.next = last;
                return stepped;
            }
            let found = if pending.next_if_eq(&id).is_some() {
                jobs.pending.get(id).map_or(Found::Unknown, Found::Pending)
            } else {
                done.next_if_eq(&id);
                jobs.done.get(id).map_or(Found::Unknown, Found::Done)
            };
            if filter.takes(&found) {
                stepped.records.extend(self.told(id, &found));
            }
            stepped.looked += 1;
            last = Some(id);
        }
    }
}

fn told_pending(id: JobId, pending: &Pending<impl Sized>) -> JobRecord {
    JobRecord {
        id,
        state: pending.state(),
        line: pending.line.clone(),
        attempts: pending.attempts(),
        created: pending.created,
        progress: pending.progress(),
        end: None,
    }
}
