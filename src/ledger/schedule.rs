//! The schedule: which job a worker gets next, which caller is admitted, and when a delay is over.
//!
//! Owns the lanes, one for each route, in which jobs and synchronous callers wait in one line, and the times at which
//! delays end. Plain data: it takes no lock, reads no clock and wakes no thread; `C` notifies a caller. Invariants: a
//! job waits in at most one lane or is delayed, never both; the running requests of a route never exceed its limit;
//! the jobs of one lane start in the order of their ids, retried notices after all others; a waiting job or caller is
//! passed over only while its own kind is at its limit, or, if it is a notice, by jobs. Jobs of the last lanes, which
//! are for notices, leave one worker of several to the others. With n waiting jobs and r routes: `push`, `remove`
//! O(log n), `next` O(r).

use std::collections::BTreeMap;
use std::time::Instant;

use crate::exchange::Owner;
use crate::job::{JobId, JobKey, RouteIndex};

/// How many jobs in a row may take the last free worker before older notices.
const MAX_PASSED: usize = 16;

/// How many requests of a route may run at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// This many jobs and synchronous callers together: `concurrency=N`.
    Shared(usize),
    /// As many jobs as there are workers, and this many callers.
    Callers(usize),
    /// As many jobs as there are workers; callers have no limit, and do not use the lane.
    Open,
}

/// A caller's place in a lane: after the jobs up to an id, in the order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Turn(Option<JobId>, u64);

/// What happens to a job at the end of its delay, or at its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// It was delayed, and now enters its lane again.
    Enter,
    /// The same for a notice, which takes no place of the queue and enters after those that were not tried yet.
    EnterUnqueued,
    /// It was delayed, and its answer is ready.
    Finish,
    /// It waited in the lane of this route, and it is too late for an answer.
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
    /// The first lane whose jobs take no place of the queue.
    unqueued_from: usize,
    /// How many jobs of those lanes wait or are delayed.
    unqueued: usize,
    /// How many jobs of those lanes run.
    unqueued_running: usize,
    /// How many other jobs were claimed since the last job of those lanes.
    passed: usize,
    /// The next events by time; at most one for each job.
    timers: BTreeMap<(Instant, JobId), (JobKey, Due)>,
    /// The highest id that ever waited: a caller that arrives stands after it.
    newest: Option<JobId>,
    /// How many callers had to wait, which makes each [`Turn`] unique.
    turns: u64,
    /// How many callers wait.
    callers: usize,
}

struct Lane<C> {
    limit: Limit,
    /// Running jobs, and places that stay taken after their jobs.
    jobs: usize,
    /// Callers that were admitted.
    inside: usize,
    waiting: BTreeMap<JobId, Owner>,
    /// Notices that are retried: a receiver that fails does not hold up the first attempts at others.
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

    /// Returns the job that may run if a worker is free.
    fn next(&self) -> Option<JobId> {
        let first = self.waiting.first_key_value().or_else(|| self.again.first_key_value());
        let (id, _) = first?;
        (self.room() > 0).then_some(*id)
    }

    /// Removes a waiting job.
    fn take(&mut self, id: JobId) -> Option<Owner> {
        self.waiting.remove(&id).or_else(|| self.again.remove(&id))
    }

    /// Returns whether the first caller in line may run. Jobs before it have priority, but only as many as
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
    /// Returns a schedule for this many workers, with a lane for each limit.
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

    /// Exempts the jobs of the last `lanes` from the queue: they take no place of it.
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

    /// Returns, for each route, how many jobs may run in addition to those that run and wait.
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

    /// Returns how many places of the queue are taken. Jobs that only wait for a point in time take no place, up to as
    /// many as there are workers, as if each had a worker: so the queue accepts as many jobs as it promises.
    pub const fn queue_len(&self) -> usize {
        let asleep = self.asleep.saturating_sub(self.workers);
        self.waiting + self.delayed - self.asleep - self.unqueued + asleep
    }

    const fn is_unqueued(&self, route: RouteIndex) -> bool {
        route.0 >= self.unqueued_from
    }

    /// Counts a job as waiting in its lane.
    fn wait(&mut self, route: RouteIndex) {
        self.waiting += 1;
        self.unqueued += usize::from(self.is_unqueued(route));
    }

    /// Counts a job as no longer waiting.
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

    /// Counts a job as no longer delayed.
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
    /// Puts a job into a lane, at the place of its id; if it is still waiting at `expiry`, it must be finished.
    pub fn push(&mut self, route: RouteIndex, job: &JobKey, expiry: Option<Instant>) {
        self.newest = self.newest.max(Some(job.id));
        self.lanes[route.0].waiting.insert(job.id, job.owner.clone());
        self.wait(route);
        if let Some(at) = expiry {
            self.timers.insert((at, job.id), (job.clone(), Due::Expire(route)));
        }
    }

    /// Puts a retried notice into its lane, after those that were not tried yet.
    pub fn push_again(&mut self, route: RouteIndex, job: &JobKey) {
        self.lanes[route.0].again.insert(job.id, job.owner.clone());
        self.wait(route);
    }

    /// Removes a waiting job from its lane; does nothing if it does not wait there.
    pub fn remove(&mut self, route: RouteIndex, id: JobId, expiry: Option<Instant>) {
        if self.lanes[route.0].take(id).is_some() {
            self.end_wait(route);
        }
        if let Some(at) = expiry {
            self.timers.remove(&(at, id));
        }
    }

    /// Returns the oldest job that may run, provided that a worker is free, which only the caller knows. Notices leave
    /// one worker of several to the jobs; on the last free worker, jobs come first, but not for ever.
    pub fn next(&self) -> Option<(RouteIndex, JobId)> {
        let has_room_for_notice = self.unqueued_running < self.workers.saturating_sub(1).max(1);
        let prefers_jobs = self.free_workers() <= 1 && self.passed < MAX_PASSED;
        let lanes = self.lanes.iter().enumerate().map(|(n, lane)| (RouteIndex(n), lane));
        let heads = lanes
            .filter(|(route, _)| has_room_for_notice || !self.is_unqueued(*route))
            .filter_map(|(route, lane)| Some((route, lane.next()?)));
        heads.min_by_key(|(route, id)| (prefers_jobs && self.is_unqueued(*route), *id))
    }

    /// Claims the oldest job that may run: it is running from now on.
    pub fn claim(&mut self) -> Option<(RouteIndex, JobKey)> {
        let (route, id) = self.next()?;
        let owner = self.lanes[route.0].take(id)?;
        self.start(route);
        Some((route, JobKey { owner, id }))
    }

    /// Claims this job, which waits in the lane of this route; returns `false` if the lane has no room.
    pub fn claim_this(&mut self, route: RouteIndex, id: JobId) -> bool {
        let lane = &mut self.lanes[route.0];
        if lane.room() == 0 || lane.take(id).is_none() {
            return false;
        }
        self.start(route);
        true
    }

    /// Removes the deadline of a job that was claimed.
    pub fn disarm(&mut self, expiry: Instant, id: JobId) {
        self.timers.remove(&(expiry, id));
    }

    /// Gives back the place of a job whose run has ended.
    pub fn release(&mut self, route: RouteIndex) {
        self.free_worker(route);
        self.give_up(route);
    }

    /// Counts a job as ended, but keeps its place taken.
    pub fn free_worker(&mut self, route: RouteIndex) {
        self.running -= 1;
        self.unqueued_running -= usize::from(self.is_unqueued(route));
    }

    /// Gives back a place that was kept.
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

    /// Removes a delayed job.
    pub fn undelay(&mut self, until: Instant, id: JobId) {
        if let Some((_, due)) = self.timers.remove(&(until, id)) {
            self.end_delay(due);
        }
    }

    /// Returns when the next delay or deadline is over.
    pub fn next_due(&self) -> Option<Instant> {
        self.timers.first_key_value().map(|((at, _), _)| *at)
    }

    /// Removes and returns the next job whose delay or deadline is over.
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
    /// Admits a caller, or gives it a place in the lane: [`admit`](Self::admit) returns it later.
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

    /// Removes a caller from the lane; if it was admitted in the meantime, gives its place back.
    pub fn leave(&mut self, route: RouteIndex, turn: Option<Turn>) {
        let lane = &mut self.lanes[route.0];
        if turn.and_then(|turn| lane.callers.remove(&turn)).is_some() {
            self.callers -= 1;
        } else {
            lane.inside -= 1;
        }
    }

    /// Admits the callers for whom there is room, and returns them. Must be called after every change.
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
