//! The schedule: which job a worker gets next, which caller is let in, and when a delay is over.
//!
//! Owns the lanes, one for each route, in which jobs and synchronous callers wait in one line, and the moments at which
//! delays end. Plain data: it takes no lock, reads no clock and wakes no thread; `C` notifies a caller. Invariants: a
//! job waits in at most one lane or is delayed, never both; what runs of a route never exceeds its limit; jobs of one
//! lane start in the order of their ids, notices that are tried again behind the others; a waiter is passed over only
//! while its own kind is at its limit, or by jobs if it is a notice. Jobs of the last lanes, notices, leave one worker
//! of several to the others. With n waiting jobs and r routes: `push`, `remove` O(log n), `next` O(r).

use std::collections::BTreeMap;
use std::time::Instant;

use crate::exchange::Owner;
use crate::job::{JobId, JobKey, RouteIndex};

/// How many jobs in a row may take the last free worker before older notices.
const MAX_PASSED: usize = 16;

/// How many requests of a route run at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// This many jobs and synchronous callers together: `concurrency=N`.
    Shared(usize),
    /// As many jobs as there are workers, and this many callers.
    Callers(usize),
    /// As many jobs as there are workers; callers have no limit, and never come here.
    Open,
}

/// A caller's place in a lane: behind the jobs up to an id, in the order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Turn(Option<JobId>, u64);

/// What happens to a job at the end of its delay, or at its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// It was delayed, and enters its lane again.
    Enter,
    /// The same of a notice, which takes no place of the queue and enters behind those that were not tried yet.
    EnterUnqueued,
    /// It was delayed, and its answer is there.
    Finish,
    /// It waited in the lane of this route, and is too late for an answer.
    Expire(RouteIndex),
}

/// The lanes and the delays.
pub struct Schedule<C> {
    /// How many jobs can run at once, whatever their routes.
    workers: usize,
    /// One for each route, at its index.
    lanes: Vec<Lane<C>>,
    /// How many jobs run.
    running: usize,
    /// How many jobs wait in all lanes.
    waiting: usize,
    /// How many jobs are delayed.
    delayed: usize,
    /// How many of those only have to be finished.
    asleep: usize,
    /// From which lane on jobs take no place of the queue.
    unqueued_from: usize,
    /// How many of those wait or are delayed.
    unqueued: usize,
    /// How many of those run.
    unqueued_running: usize,
    /// How many other jobs were claimed since the last of those.
    passed: usize,
    /// The next events by time; at most one for each job.
    timers: BTreeMap<(Instant, JobId), (JobKey, Due)>,
    /// The highest id that ever waited: a caller that comes stands behind it.
    newest: Option<JobId>,
    /// How many callers had to wait, which makes each [`Turn`] unique.
    turns: u64,
    /// How many callers wait.
    callers: usize,
}

struct Lane<C> {
    limit: Limit,
    /// Jobs that run, and places that stay taken behind them.
    jobs: usize,
    /// Callers that were let in.
    inside: usize,
    waiting: BTreeMap<JobId, Owner>,
    /// Notices that are tried again: a receiver that fails does not hold up the first attempts at others.
    again: BTreeMap<JobId, Owner>,
    callers: BTreeMap<Turn, C>,
}

impl<C> Lane<C> {
    const fn new(limit: Limit) -> Self {
        Self {
            limit,
            jobs: 0,
            inside: 0,
            waiting: BTreeMap::new(),
            again: BTreeMap::new(),
            callers: BTreeMap::new(),
        }
    }

    /// Returns how many more may run under a limit that jobs and callers share.
    const fn room(&self) -> usize {
        match self.limit {
            Limit::Shared(limit) => limit.saturating_sub(self.jobs + self.inside),
            Limit::Callers(_) | Limit::Open => usize::MAX,
        }
    }

    /// Returns the job that may run, if a worker is free.
    fn next(&self) -> Option<JobId> {
        let first = self.waiting.first_key_value().or_else(|| self.again.first_key_value());
        let (id, _) = first?;
        (self.room() > 0).then_some(*id)
    }

    /// Takes out a job that waits.
    fn take(&mut self, id: JobId) -> Option<Owner> {
        self.waiting.remove(&id).or_else(|| self.again.remove(&id))
    }

    /// Whether the caller that came first may run. Jobs before it have their places, as many as
    /// `free_workers` can take.
    fn has_room_for(&self, turn: Turn, free_workers: usize) -> bool {
        match self.limit {
            Limit::Shared(_) => {
                let room = self.room();
                let before = self.waiting.keys().take_while(|id| Some(**id) <= turn.0);
                room > before.take(room.min(free_workers)).count()
            }
            Limit::Callers(limit) => self.inside < limit,
            Limit::Open => true,
        }
    }
}

impl<C> Schedule<C> {
    /// Returns a schedule for so many workers, with a lane of each limit.
    pub fn new(workers: usize, limits: impl IntoIterator<Item = Limit>) -> Self {
        let lanes: Vec<_> = limits.into_iter().map(Lane::new).collect();
        Self {
            workers,
            unqueued_from: lanes.len(),
            lanes,
            running: 0,
            waiting: 0,
            delayed: 0,
            asleep: 0,
            unqueued: 0,
            unqueued_running: 0,
            passed: 0,
            timers: BTreeMap::new(),
            newest: None,
            turns: 0,
            callers: 0,
        }
    }

    /// Lets the jobs of the last `lanes` take no place of the queue.
    pub fn unqueue(&mut self, lanes: usize) {
        self.unqueued_from = self.lanes.len() - lanes;
    }

    /// Returns how many jobs wait in lanes.
    pub const fn waiting(&self) -> usize {
        self.waiting
    }

    /// Returns how many jobs are delayed.
    pub const fn delayed(&self) -> usize {
        self.delayed
    }

    /// Returns how many jobs run.
    pub const fn running(&self) -> usize {
        self.running
    }

    /// Returns how many jobs of queued lanes wait, are delayed and run: notices are left out.
    pub fn of_clients(&self) -> (usize, usize, usize) {
        let notices = &self.lanes[self.unqueued_from..];
        let waiting: usize = notices.iter().map(|lane| lane.waiting.len() + lane.again.len()).sum();
        let delayed = self.unqueued - waiting;
        (self.waiting - waiting, self.delayed - delayed, self.running - self.unqueued_running)
    }

    /// Returns how many jobs of each route wait and run.
    pub fn by_lane(&self) -> impl Iterator<Item = (usize, usize)> {
        self.lanes.iter().map(|lane| (lane.waiting.len(), lane.jobs))
    }

    /// Returns how many more jobs of each route may run beside those that run and wait.
    pub fn rooms(&self) -> impl Iterator<Item = usize> {
        self.lanes.iter().map(|lane| lane.room().saturating_sub(lane.waiting.len()))
    }

    /// Returns the waiting job with the lowest id; notices are left out.
    pub fn first(&self) -> Option<JobKey> {
        let lanes = &self.lanes[..self.unqueued_from];
        let heads = lanes.iter().filter_map(|lane| lane.waiting.first_key_value());
        let (id, owner) = heads.min_by_key(|(id, _)| **id)?;
        Some(JobKey { owner: owner.clone(), id: *id })
    }

    /// Returns how many places of the queue are taken. As many jobs that only wait for a moment as there are
    /// workers take none, as if each had a worker: so a queue that is full of them has still taken as many jobs as
    /// it promises.
    pub const fn queue_len(&self) -> usize {
        let asleep = self.asleep.saturating_sub(self.workers);
        self.waiting + self.delayed - self.asleep - self.unqueued + asleep
    }

    const fn is_unqueued(&self, route: RouteIndex) -> bool {
        route.0 >= self.unqueued_from
    }

    /// Counts a job that waits, in its lane.
    fn wait(&mut self, route: RouteIndex) {
        self.waiting += 1;
        self.unqueued += usize::from(self.is_unqueued(route));
    }

    /// Counts it no longer.
    fn end_wait(&mut self, route: RouteIndex) {
        self.waiting -= 1;
        self.unqueued -= usize::from(self.is_unqueued(route));
    }

    /// Counts a claimed job, which no longer waits, as running.
    fn start(&mut self, route: RouteIndex) {
        self.end_wait(route);
        self.lanes[route.0].jobs += 1;
        self.running += 1;
        self.unqueued_running += usize::from(self.is_unqueued(route));
        self.passed = if self.is_unqueued(route) { 0 } else { self.passed + 1 };
    }

    /// Counts a job that was delayed no longer.
    fn end_delay(&mut self, due: Due) {
        self.delayed -= 1;
        self.asleep -= usize::from(due == Due::Finish);
        self.unqueued -= usize::from(due == Due::EnterUnqueued);
    }

    const fn free_workers(&self) -> usize {
        self.workers.saturating_sub(self.running)
    }
}

/// Jobs.
impl<C> Schedule<C> {
    /// Lets a job wait in a lane, at the place of its id; it is to be finished at `expiry` if it waits still.
    pub fn push(&mut self, route: RouteIndex, job: &JobKey, expiry: Option<Instant>) {
        self.newest = self.newest.max(Some(job.id));
        self.lanes[route.0].waiting.insert(job.id, job.owner.clone());
        self.wait(route);
        if let Some(at) = expiry {
            self.timers.insert((at, job.id), (job.clone(), Due::Expire(route)));
        }
    }

    /// Lets a notice that is tried again wait in its lane, behind those that were not tried yet.
    pub fn push_again(&mut self, route: RouteIndex, job: &JobKey) {
        self.lanes[route.0].again.insert(job.id, job.owner.clone());
        self.wait(route);
    }

    /// Takes a waiting job out of its lane; nothing if it does not wait there.
    pub fn remove(&mut self, route: RouteIndex, id: JobId, expiry: Option<Instant>) {
        if self.lanes[route.0].take(id).is_some() {
            self.end_wait(route);
        }
        if let Some(at) = expiry {
            self.timers.remove(&(at, id));
        }
    }

    /// Returns the oldest job that may run: that a worker is free, the caller knows. Notices leave one worker of
    /// several to the jobs; on the last free one, jobs come first, but not for ever.
    pub fn next(&self) -> Option<(RouteIndex, JobId)> {
        let has_room_for_notice = self.unqueued_running < self.workers.saturating_sub(1).max(1);
        let prefers_jobs = self.free_workers() <= 1 && self.passed < MAX_PASSED;
        let lanes = self.lanes.iter().enumerate().map(|(n, lane)| (RouteIndex(n), lane));
        let heads = lanes
            .filter(|(route, _)| has_room_for_notice || !self.is_unqueued(*route))
            .filter_map(|(route, lane)| Some((route, lane.next()?)));
        heads.min_by_key(|(route, id)| (prefers_jobs && self.is_unqueued(*route), *id))
    }

    /// Claims the oldest job that may run: from now on it runs.
    pub fn claim(&mut self) -> Option<(RouteIndex, JobKey)> {
        let (route, id) = self.next()?;
        let owner = self.lanes[route.0].take(id)?;
        self.start(route);
        Some((route, JobKey { owner, id }))
    }

    /// Claims this job, which waits in the lane of this route; `false` if it has no room.
    pub fn claim_this(&mut self, route: RouteIndex, id: JobId) -> bool {
        let lane = &mut self.lanes[route.0];
        if lane.room() == 0 || lane.take(id).is_none() {
            return false;
        }
        self.start(route);
        true
    }

    /// Forgets the deadline of a job that was claimed.
    pub fn disarm(&mut self, expiry: Instant, id: JobId) {
        self.timers.remove(&(expiry, id));
    }

    /// Gives back the place of a job that ran.
    pub fn release(&mut self, route: RouteIndex) {
        self.free_worker(route);
        self.give_up(route);
    }

    /// Counts a job as ended, whose place stays taken.
    pub fn free_worker(&mut self, route: RouteIndex) {
        self.running -= 1;
        self.unqueued_running -= usize::from(self.is_unqueued(route));
    }

    /// Gives back a place that stayed taken.
    pub fn give_up(&mut self, route: RouteIndex) {
        self.lanes[route.0].jobs -= 1;
    }

    /// Delays a job, which is in no lane, until `until`.
    pub fn delay(&mut self, job: &JobKey, until: Instant, due: Due) {
        self.timers.insert((until, job.id), (job.clone(), due));
        self.delayed += 1;
        self.asleep += usize::from(due == Due::Finish);
        self.unqueued += usize::from(due == Due::EnterUnqueued);
    }

    /// Takes out a delayed job.
    pub fn undelay(&mut self, until: Instant, id: JobId) {
        if let Some((_, due)) = self.timers.remove(&(until, id)) {
            self.end_delay(due);
        }
    }

    /// Returns when the next delay or deadline is over.
    pub fn next_due(&self) -> Option<Instant> {
        self.timers.first_key_value().map(|((at, _), _)| *at)
    }

    /// Takes out the next job whose delay or deadline is over.
    pub fn take_due(&mut self, now: Instant) -> Option<(JobKey, Due)> {
        let first = self.timers.first_entry().filter(|first| first.key().0 <= now)?;
        let (job, due) = first.remove();
        match due {
            Due::Enter | Due::EnterUnqueued | Due::Finish => self.end_delay(due),
            Due::Expire(route) => self.remove(route, job.id, None),
        }
        Some((job, due))
    }
}

/// Synchronous callers.
impl<C> Schedule<C> {
    /// Lets a caller in, or gives it a place in line: it is one of those that
    /// [`admit`](Self::admit) returns later.
    ///
    /// # Errors
    /// Its place.
    pub fn enter(&mut self, route: RouteIndex, caller: C) -> Result<(), Turn> {
        let free = self.free_workers();
        let turn = Turn(self.newest, self.turns);
        let lane = &mut self.lanes[route.0];
        if lane.callers.is_empty() && lane.has_room_for(turn, free) {
            lane.inside += 1;
            return Ok(());
        }
        lane.callers.insert(turn, caller);
        self.turns += 1;
        self.callers += 1;
        Err(turn)
    }

    /// Takes a caller out of the line; if it was let in meanwhile, gives its place back.
    pub fn leave(&mut self, route: RouteIndex, turn: Option<Turn>) {
        let lane = &mut self.lanes[route.0];
        if turn.and_then(|turn| lane.callers.remove(&turn)).is_some() {
            self.callers -= 1;
        } else {
            lane.inside -= 1;
        }
    }

    /// Lets in the callers for whom there is room, and returns them. To be called after every change.
    pub fn admit(&mut self) -> Vec<C> {
        let mut admitted = Vec::new();
        let free = self.free_workers();
        if self.callers == 0 {
            return admitted;
        }
        for lane in &mut self.lanes {
            while let Some(first) = lane.callers.first_entry().map(|first| *first.key())
                && lane.has_room_for(first, free)
                && let Some(caller) = lane.callers.remove(&first)
            {
                lane.inside += 1;
                self.callers -= 1;
                admitted.push(caller);
            }
        }
        admitted
    }
}
