//! How jobs run: claimed, retried, redirected; and the callers in their lanes.
//!
//! Owns the transitions between the states of a pending job, each with its change of the schedule. Runs nothing.
//! Invariant: a running job has a place in its lane; the transition that ends the run gives it back, or a later call
//! if the place is kept.

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Sender;

use super::Ledger;
use super::job::{Cancelled, LanePlace, Pending, Phase, Work};
use super::schedule::{Due, Turn};
use crate::exchange::Call;
use crate::job::attempt::{Attempt, Claimed};
use crate::job::execution::Execution;
use crate::job::{JobKey, Rerun, RouteIndex, Stamp};
use crate::memory::Allowance;

/// How much memory must be free for a job to start, in bytes.
const START_MEMORY: usize = 1 << 20;

/// What a worker does if no job may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// It waits for a job.
    Forever,
    /// It returns without a job.
    None,
}

/// The outcome of asking for a job.
pub enum Next<T> {
    /// A job, which is running from now on.
    Job(T),
    /// No job may run now: a patient worker is counted as idle, and will be woken.
    Nothing,
    /// A job may run, but only when this many bytes of memory are free.
    NoMemory(usize),
    /// No more jobs will run.
    Closed,
}

/// A job that was claimed.
pub struct Taken<Q> {
    /// Which job.
    pub job: JobKey,
    /// The route in whose lane it has a place.
    pub route: RouteIndex,
    /// When it was accepted.
    pub created: Stamp,
    /// How many processes have begun it, including this one.
    pub starts: u32,
    /// Whether it runs again after a crash.
    pub rerun: Rerun,
    /// The handle to its handler.
    pub execution: Arc<Execution>,
    /// What to run.
    pub work: Work<Q>,
}

impl Taken<Box<Call>> {
    /// Returns what the worker gets.
    pub fn claimed(self) -> Claimed {
        let Self { job, route, created, execution, work, .. } = self;
        let attempt = match work {
            Work::First(call) => Box::new(Attempt::first(*call, execution, route, created)),
            Work::Again(attempt) => attempt,
        };
        Claimed { job, attempt }
    }
}

impl<T> Next<T> {
    /// Maps the job by `then`.
    pub fn map<U>(self, then: impl FnOnce(T) -> U) -> Next<U> {
        match self {
            Self::Job(job) => Next::Job(then(job)),
            Self::Nothing => Next::Nothing,
            Self::NoMemory(bytes) => Next::NoMemory(bytes),
            Self::Closed => Next::Closed,
        }
    }
}

/// Running jobs.
impl<Q, R> Ledger<Q, R> {
    /// Returns a job that has no result yet, forgotten or not.
    pub fn pending(&self, job: &JobKey) -> Option<&Pending<Q>> {
        let listed = self.owners.get(&job.owner).and_then(|jobs| jobs.pending.get(job.id));
        listed.or_else(|| self.unwanted.get(job).map(Box::as_ref))
    }

    /// Returns the same job, to be changed.
    pub fn pending_mut(&mut self, job: &JobKey) -> Option<&mut Pending<Q>> {
        let listed = self.owners.get_mut(&job.owner).and_then(|jobs| jobs.pending.get_mut(job.id));
        listed.or_else(|| self.unwanted.get_mut(job).map(Box::as_mut))
    }

    /// Returns whether no client can ask for the job: it was forgotten, or submitted without keeping its result.
    pub fn is_unwanted(&self, job: &JobKey) -> bool {
        self.unwanted.contains_key(job)
    }

    /// Claims the oldest job that may run, for a worker; what the job produces is charged to `memory`.
    pub fn claim(&mut self, memory: &Allowance, patience: Patience) -> Next<Taken<Q>> {
        if self.stopped.is_some() {
            return Next::Closed;
        }
        if let Some(least) = self.lacks_memory()
            && self.has_work()
        {
            return Next::NoMemory(least);
        }
        loop {
            // Each waiting job has a record; a job without one is skipped, so that the worker goes on.
            let Some((route, job)) = self.schedule().claim() else {
                self.idle += usize::from(patience == Patience::Forever);
                return Next::Nothing;
            };
            match self.begin(route, job, memory) {
                Some(taken) => return Next::Job(taken),
                None => self.schedule().release(route),
            }
        }
    }

    /// Claims this job, which waits in the lane of its route; `None` if the lane has no room.
    pub fn claim_this(&mut self, job: &JobKey, memory: &Allowance) -> Option<Taken<Q>> {
        let route = match self.pending(job)?.phase {
            Phase::Waiting { route, .. } if self.stopped.is_none() => route,
            _ => return None,
        };
        if !self.schedule().claim_this(route, job.id) {
            return None;
        }
        let taken = self.begin(route, job.clone(), memory);
        if taken.is_none() {
            self.schedule().release(route);
        }
        taken
    }

    /// Returns how many bytes must be free for a job to start, if they are not.
    pub fn lacks_memory(&self) -> Option<usize> {
        let budget = self.room.memory.budget();
        let least = START_MEMORY.min(budget.capacity() / 16);
        (!budget.has_free(least)).then_some(least)
    }

    /// Returns whether a waiting job may run now.
    pub fn has_work(&self) -> bool {
        self.schedule.next().is_some()
    }

    /// Returns, for each route, how many jobs may run in addition to those that run and wait.
    pub fn rooms(&self) -> impl Iterator<Item = usize> {
        self.schedule.rooms()
    }

    /// Removes an unwanted job that goes on elsewhere; frees its place.
    pub fn let_go(&mut self, job: &JobKey) {
        self.unschedule(job);
        let Some(pending) = self.unwanted.remove(job) else { return };
        self.stored -= pending.footprint;
        if let Phase::Running { place, .. } = pending.phase {
            self.release(place);
        }
    }

    /// Returns whether a worker runs the job.
    pub fn is_running(&self, job: &JobKey) -> bool {
        let phase = self.pending(job).map(|pending| &pending.phase);
        matches!(phase, Some(Phase::Running { .. } | Phase::Finishing { .. }))
    }

    /// Returns the jobs that have not begun.
    pub fn not_begun(&self) -> Vec<JobKey> {
        let is_first = |job: &JobKey| {
            let phase = self.pending(job).map(|pending| &pending.phase);
            matches!(phase, Some(Phase::Waiting { work: Work::First(_), .. }))
        };
        self.all_pending().into_iter().map(|(job, _)| job).filter(is_first).collect()
    }

    /// Lets a waiting job run.
    fn begin(&mut self, route: RouteIndex, job: JobKey, memory: &Allowance) -> Option<Taken<Q>> {
        let rerun = self.plan.lanes[route.0].rerun;
        let pending = self.pending_mut(&job)?;
        let work = pending.take_work()?;
        let execution = match &work {
            Work::First(_) => Arc::new(Execution::new(Some(job.id), memory.clone())),
            Work::Again(attempt) => Arc::clone(&attempt.execution),
        };
        pending.starts += u32::from(matches!(work, Work::First(_)));
        pending.phase = Phase::Running {
            place: LanePlace::Of(route),
            execution: Arc::clone(&execution),
            cancelled: Cancelled::No,
        };
        let (created, starts) = (pending.created, pending.starts);
        // From now on, the job has a log to follow.
        let watching = pending.waiters.clone();
        self.wakes.roused.extend(watching);
        if let Some(at) = work.expiry() {
            self.schedule.disarm(at, job.id);
        }
        Some(Taken { job, route, created, starts, rerun, execution, work })
    }

    /// Makes a running job wait until `until`, for its next attempt or for its answer.
    ///
    /// # Errors
    /// The attempt, if the job was cancelled or deferd is shutting down: the caller must then finish the job.
    pub fn retry(
        &mut self,
        job: &JobKey,
        attempt: Box<Attempt>,
        until: Instant,
    ) -> Result<(), Box<Attempt>> {
        let due = match &attempt.answer {
            Some(_) => Due::Finish,
            None if self.is_notice(attempt.route) => Due::EnterUnqueued,
            None => Due::Enter,
        };
        self.lay_down(job, attempt, |attempt| Phase::Delayed { until, attempt })?;
        let is_kept_out =
            self.is_draining || (self.is_draining_notices && due == Due::EnterUnqueued);
        if !is_kept_out {
            let is_next = self.schedule.next_due().is_none_or(|next| until < next);
            self.schedule().delay(job, until, due);
            self.wakes.timekeeper |= is_next;
        }
        Ok(())
    }

    /// Makes a running job wait in the lane of its redirect's target.
    ///
    /// # Errors
    /// As of [`retry`](Self::retry).
    pub fn redirect(&mut self, job: &JobKey, attempt: Box<Attempt>) -> Result<(), Box<Attempt>> {
        let (route, expiry) = (attempt.hop_route(), attempt.expiry());
        self.lay_down(job, attempt, |attempt| Phase::Waiting {
            route,
            work: Work::Again(attempt),
        })?;
        let next = self.schedule.next_due();
        self.schedule().push(route, job, expiry);
        self.wakes.timekeeper |= expiry.is_some_and(|at| next.is_none_or(|next| at < next));
        Ok(())
    }

    /// Ends the run of a job that goes on later; `then` turns its attempt into its next phase.
    fn lay_down(
        &mut self,
        job: &JobKey,
        attempt: Box<Attempt>,
        then: impl FnOnce(Box<Attempt>) -> Phase<Q>,
    ) -> Result<(), Box<Attempt>> {
        let is_stopped = self.stopped.is_some();
        let Some(pending) = self.pending_mut(job) else { return Err(attempt) };
        let Phase::Running { place, cancelled: Cancelled::No, .. } = pending.phase else {
            return Err(attempt);
        };
        if is_stopped {
            return Err(attempt);
        }
        pending.phase = then(attempt);
        self.release(place);
        Ok(())
    }

    pub(super) fn release(&mut self, place: LanePlace) {
        match place {
            LanePlace::None => {}
            LanePlace::Of(route) => self.schedule().release(route),
            LanePlace::Kept(route) => self.schedule().free_worker(route),
        }
    }

    /// Keeps a running job's place in its lane beyond the end of the run, until it is [given up](Self::give_up);
    /// returns `None` if the job has no place.
    pub fn keep_place(&mut self, job: &JobKey) -> Option<RouteIndex> {
        let Phase::Running { place, .. } = &mut self.pending_mut(job)?.phase else { return None };
        let LanePlace::Of(route) = *place else { return None };
        *place = LanePlace::Kept(route);
        Some(route)
    }

    /// Gives up a place that was kept after its run had ended.
    pub fn give_up(&mut self, route: RouteIndex) {
        self.schedule().give_up(route);
    }

    /// Removes and returns the jobs whose delay or deadline is over and that only have to be finished; jobs that run
    /// again enter their lanes. Also returns when the next delay or deadline is over.
    pub fn overdue(&mut self, now: Instant) -> (Vec<Claimed>, Option<Instant>) {
        let mut overdue = Vec::new();
        while let Some((job, due)) = self.schedule().take_due(now) {
            let Some(pending) = self.pending_mut(&job) else { continue };
            // Only jobs that were already tried have a delay or a deadline.
            let Some(Work::Again(attempt)) = pending.take_work() else { continue };
            match due {
                Due::Enter | Due::EnterUnqueued => {
                    let (route, expiry) = (attempt.hop_route(), attempt.expiry());
                    pending.phase = Phase::Waiting { route, work: Work::Again(attempt) };
                    if due == Due::EnterUnqueued {
                        self.schedule().push_again(route, &job);
                    } else {
                        self.schedule().push(route, &job, expiry);
                    }
                }
                Due::Finish | Due::Expire(_) => {
                    let execution = Arc::clone(&attempt.execution);
                    let cancelled = Cancelled::No;
                    let place = LanePlace::None;
                    pending.phase = Phase::Running { place, execution, cancelled };
                    overdue.push(Claimed { job, attempt });
                }
            }
        }
        (overdue, self.schedule.next_due())
    }

    /// Removes a job that waits or is delayed from the schedule.
    pub(super) fn unschedule(&mut self, job: &JobKey) {
        match self.pending(job).map(|pending| &pending.phase) {
            Some(Phase::Waiting { route, work }) => {
                let (route, expiry) = (*route, work.expiry());
                self.schedule().remove(route, job.id, expiry);
            }
            Some(Phase::Delayed { until, .. }) => {
                let until = *until;
                self.schedule().undelay(until, job.id);
            }
            _ => {}
        }
    }
}

/// Synchronous callers.
impl<Q, R> Ledger<Q, R> {
    /// Admits a caller, or gives it a place in the lane: `wake` gets a message when it is admitted.
    ///
    /// # Errors
    /// Its place in the lane.
    pub fn enter_lane(&mut self, route: RouteIndex, wake: &Sender<()>) -> Result<(), Turn> {
        self.schedule().enter(route, wake.clone())
    }

    /// Removes a caller from the lane, or frees its place if it was admitted.
    pub fn leave_lane(&mut self, route: RouteIndex, turn: Option<Turn>) {
        self.schedule().leave(route, turn);
    }
}
