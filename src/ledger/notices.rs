//! The outbox: the programs and URLs to notify when a job is done.
//!
//! Owns what a job owes, from its acceptance on, and makes the notices when its result is decided, in whatever way. A
//! notice is a job in a lane of its own, for which no client can ask; the store accepts it together with the result.
//! Invariants: a job that owes notices accounts for their room, so no notice is lost for lack of room; a notice itself
//! owes nothing, and takes no place of the queue.

use super::job::Pending;
use super::schedule::Limit;
use super::submit::Size;
use super::{Lane, Ledger, Plan, Tells};
use crate::exchange::{Call, Owner};
use crate::job::notice::{self, Event, NoticeLane, Receiver, Told};
use crate::job::request_line::RequestLine;
use crate::job::stored::{StoredResult, Summary};
use crate::job::{JobKey, Keep, Moment, RECORD, Rerun, RouteIndex, SHORT_LOG};
use crate::memory::{Charge, allocated};

/// The notices that a pending job owes.
#[derive(Debug)]
pub struct Owed {
    /// The URL that its client named.
    callback: Option<Box<str>>,
    /// The most that its notices take: the account of the job includes it.
    pub room: Size,
}

/// Which part of a notice its store keeps in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InMemory {
    /// The whole notice.
    All,
    /// Only its record.
    Record,
}

impl InMemory {
    /// Returns the size of a notice that takes `footprint` bytes in all.
    fn size(self, footprint: usize, line: &RequestLine) -> Size {
        let memory = match self {
            Self::All => footprint,
            Self::Record => RECORD + line.footprint(),
        };
        Size { footprint, memory }
    }
}

/// A notice that is ready to be accepted, with the room that it takes.
pub struct Notice {
    /// Its name: it is a job of the same owner.
    pub job: JobKey,
    /// Its lane.
    pub lane: NoticeLane,
    /// The index of its lane.
    pub route: RouteIndex,
    /// Its request, with its content.
    pub call: Call,
    /// What its record keeps of its request.
    pub line: RequestLine,
    /// Its accounted size.
    pub size: Size,
    /// The charge for its memory.
    pub charge: Charge,
}

/// Adds the lanes of notices to those of the routes. Half of the workers, at least one, run the notices of a lane, and
/// the [schedule](super::schedule) leaves one worker of several to the jobs, so slow receivers do not hold up all
/// jobs.
pub fn add_lanes(plan: &mut Plan) {
    let limit = Limit::Shared((plan.workers / 2).max(1));
    let lane = Lane { limit, rerun: Rerun::Yes, tells: Tells::NONE };
    plan.lanes.extend(NoticeLane::ALL.map(|_| lane));
}

/// The part of the room for one notice.
struct Part {
    size: Size,
    charge: Charge,
}

/// Returns the receivers: the programs of a route, and the URL.
fn receivers(tells: Tells, callback: Option<Box<str>>) -> impl Iterator<Item = Receiver> {
    let programs = [(tells.on_done, Event::Done), (tells.on_failure, Event::Failure)];
    let programs = programs.into_iter().filter(|(is_told, _)| *is_told);
    let programs = programs.map(|(_, event)| Receiver::Program(event));
    programs.chain(callback.map(Receiver::Url))
}

impl<Q, R> Ledger<Q, R> {
    /// Returns how many routes have a lane, without those of notices.
    pub(super) const fn routes(&self) -> usize {
        self.plan.lanes.len() - NoticeLane::ALL.len()
    }

    /// Returns whether this is a lane of notices.
    pub(super) const fn is_notice(&self, route: RouteIndex) -> bool {
        route.0 >= self.routes()
    }

    /// Returns the index of a lane of notices.
    pub const fn notice_route(&self, lane: NoticeLane) -> RouteIndex {
        RouteIndex(self.routes() + lane as usize)
    }

    /// Returns what a job of this route owes if its client has named this URL; `None` if it owes nothing. The room
    /// includes the URL itself.
    pub fn owed(
        &self,
        route: Option<RouteIndex>,
        callback: Option<Box<str>>,
        (line, owner): (&RequestLine, &Owner),
        kept: InMemory,
    ) -> Option<Box<Owed>> {
        let of_job =
            allocated(size_of::<Owed>()) + callback.as_ref().map_or(0, |url| allocated(url.len()));
        let mut room = Size { footprint: of_job, memory: of_job };
        let mut count = 0;
        for receiver in receivers(self.tells(route), callback.clone()) {
            let size = kept.size(receiver.room(line, owner), &receiver.lane().line());
            room.footprint += size.footprint;
            room.memory += size.memory;
            count += 1;
        }
        (count > 0).then(|| Box::new(Owed { callback, room }))
    }

    fn tells(&self, route: Option<RouteIndex>) -> Tells {
        route.map_or(Tells::NONE, |route| self.plan.lanes[route.0].tells)
    }

    /// Makes the notices of a pending job whose result is decided, in the room that its account has for them. They
    /// must be [accepted](Self::accept_notice) once the result is as durable as the store promises.
    pub fn take_notices(
        &mut self,
        job: &JobKey,
        result: &StoredResult,
        summary: Summary,
        now: Moment,
        kept: InMemory,
    ) -> Vec<Notice> {
        let Some(pending) = self.pending_mut(job) else { return Vec::new() };
        let Some(owed) = pending.owed.take() else { return Vec::new() };
        let Owed { callback, mut room } = *owed;
        pending.footprint -= room.footprint;
        let mut charge = pending.charge.split(room.memory);
        let (line, route) = (pending.line.clone(), pending.route);
        let tells = self.tells(route);
        let has_failed = summary.ending.outcome.is_failure();
        let tells = Tells { on_failure: tells.on_failure && has_failed, ..tells };
        let mut notices = Vec::new();
        for receiver in receivers(tells, callback) {
            let part = kept.size(receiver.room(&line, &job.owner), &receiver.lane().line());
            room.footprint -= part.footprint;
            let part = Part { size: part, charge: charge.split(part.memory) };
            notices.extend(self.notice(job, result, &receiver, (summary, now, kept), part));
        }
        self.stored -= room.footprint;
        notices
    }

    /// Makes a notice in its part of the room; it has the whole log if that fits, otherwise the end of the log.
    fn notice(
        &mut self,
        of: &JobKey,
        result: &StoredResult,
        receiver: &Receiver,
        (summary, now, kept): (Summary, Moment, InMemory),
        mut part: Part,
    ) -> Option<Notice> {
        let lane = receiver.lane();
        let line = lane.line();
        let of_call = |call: &Call| kept.size(RECORD + line.footprint() + call.footprint(), &line);
        let mut call = self.request_to(of, receiver, &result.log.text, summary, now)?;
        let mut size = of_call(&call);
        if !self.fit_notice(size, &mut part) {
            let log = &result.log.text;
            let end = &log[log.len().saturating_sub(SHORT_LOG)..];
            call = self.request_to(of, receiver, end, summary, now)?;
            size = of_call(&call);
            if !self.fit_notice(size, &mut part) {
                debug_assert!(false, "it was reserved");
                size = part.size;
            }
        }
        let job = JobKey { owner: of.owner.clone(), id: self.next_id(now.stamp) };
        let (route, charge) = (self.notice_route(lane), part.charge);
        Some(Notice { job, lane, route, call, line, size, charge })
    }

    /// Puts a notice on the accounts in place of its part of the room; returns `false` if it is larger and does not
    /// fit.
    fn fit_notice(&mut self, size: Size, part: &mut Part) -> bool {
        let grown = size.footprint.saturating_sub(part.size.footprint);
        self.make_room(grown);
        let has_room = grown == 0 || self.stored.saturating_add(grown) <= self.room.capacity;
        if !has_room || part.charge.resize(size.memory).is_err() {
            return false;
        }
        self.stored = self.stored - part.size.footprint + size.footprint;
        true
    }

    /// Returns the request that notifies the receiver about a job.
    fn request_to(
        &self,
        job: &JobKey,
        receiver: &Receiver,
        log: &[u8],
        summary: Summary,
        now: Moment,
    ) -> Option<Call> {
        let pending = self.pending(job)?;
        Some(match receiver {
            Receiver::Program(event) => {
                let first = pending.attempts().first.unwrap_or(now.stamp);
                let seconds = now.stamp.since(first).as_secs_f64();
                let (id, line, owner) = (job.id, &pending.line, &job.owner);
                let told = Told { id, line, owner, ending: summary.ending, seconds };
                notice::to_program(*event, &told, log.to_vec().into())
            }
            Receiver::Url(url) => {
                let record = self.record_at_end(job, pending, summary, now.stamp);
                let record = record.to_json(&job.owner);
                notice::to_url(url, job.id, &job.owner, record, now.age)
            }
        })
    }

    /// Returns the number of undelivered notices.
    pub fn undelivered(&self) -> usize {
        self.unwanted
            .values()
            .filter(|pending| pending.route.is_some_and(|route| self.is_notice(route)))
            .count()
    }

    /// Accepts a notice: it waits in its lane from now on, and no client can ask for it.
    pub fn accept_notice(&mut self, job: &JobKey, pending: Box<Pending<Q>>) {
        self.tally.submit(pending.route);
        self.enter(job, pending, Keep::Nothing);
    }
}
