//! The shutdown: no job begins any more, and what runs is asked to stop.
//!
//! Owns what a ledger still does while it drains, and after it was stopped. Invariant: a job that the shutdown has
//! stopped stays as its store keeps it, as after a crash.

use std::sync::Arc;

use super::Ledger;
use super::job::{Cancelled, Pending, Phase, Work};
use crate::job::JobKey;
use crate::job::execution::{Execution, Stop};

impl<Q, R> Ledger<Q, R> {
    /// Begins no more jobs: waiting and delayed jobs stay in the store; jobs that began, and wait for the lane of a
    /// redirect, go on.
    pub fn drain(&mut self) {
        self.is_draining = true;
        for (job, _) in self.all_pending() {
            let goes_on = match self.pending(&job).map(|pending| &pending.phase) {
                Some(Phase::Waiting { work: Work::Again(attempt), .. }) => {
                    attempt.redirected.is_some()
                }
                _ => false,
            };
            if !goes_on {
                self.unschedule(&job);
            }
        }
    }

    /// Retries no more notices: a shutdown after which the store keeps nothing would otherwise wait for all their
    /// delays. Notices that wait for their first attempt still run.
    pub fn drain_notices(&mut self) {
        self.is_draining_notices = true;
        for (job, _) in self.all_pending() {
            let is_delayed = |pending: &Pending<Q>| {
                let is_again =
                    matches!(&pending.phase, Phase::Waiting { work: Work::Again(_), .. });
                is_again || matches!(pending.phase, Phase::Delayed { .. })
            };
            let is_notice =
                |pending: &&Pending<Q>| pending.route.is_some_and(|route| self.is_notice(route));
            if self.pending(&job).filter(is_notice).is_some_and(is_delayed) {
                self.unschedule(&job);
            }
        }
    }

    /// Stops everything: no job is claimed any more, no thread waits, and running jobs are asked to stop. This is one
    /// step, so that no job takes the shutdown for a client's cancellation.
    pub fn stop(&mut self, stop: Stop) {
        self.stopped = Some(stop);
        let pending = self.all_pending();
        for (job, execution) in &pending {
            self.unschedule(job);
            if let Some(execution) = execution {
                execution.stop(stop);
            }
            if let Some(pending) = self.pending_mut(job) {
                let mut waiters = std::mem::take(&mut pending.waiters);
                self.wakes.waiters.append(&mut waiters);
            }
        }
        self.wakes.workers += std::mem::take(&mut self.idle);
        self.wakes.timekeeper = true;
    }

    /// Leaves a job as its store keeps it if the shutdown has stopped it: the next process then finds that it was
    /// running. Returns `false` if the job must be finished, because it was cancelled or has ended.
    pub fn abandon(&mut self, job: &JobKey) -> bool {
        let is_ending = self.stopped.is_some();
        let Some(pending) = self.pending_mut(job) else { return false };
        let Phase::Running { place, execution, cancelled: Cancelled::No } = &pending.phase else {
            return false;
        };
        if !is_ending || execution.stopped().is_none() {
            return false;
        }
        let place = *place;
        pending.phase = Phase::Finishing { log: pending.log(), attempts: pending.attempts() };
        self.release(place);
        true
    }

    /// Returns every pending job, with its handle if it runs.
    pub(super) fn all_pending(&self) -> Vec<(JobKey, Option<Arc<Execution>>)> {
        let execution = |pending: &Pending<Q>| match &pending.phase {
            Phase::Running { execution, .. } => Some(Arc::clone(execution)),
            _ => None,
        };
        let listed = self.owners.iter().flat_map(|(owner, jobs)| {
            let key = move |id| JobKey { owner: owner.clone(), id };
            jobs.pending.records().map(move |(id, pending)| (key(id), execution(pending)))
        });
        let unwanted = self.unwanted.iter().map(|(job, pending)| (job.clone(), execution(pending)));
        listed.chain(unwanted).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::Owner;
    use crate::job::request_line::RequestLine;
    use crate::job::{JobId, Keep, Rerun, RouteIndex, Stamp};
    use crate::ledger::schedule::Limit;
    use crate::ledger::{Lane, Next, Patience, Plan, Room, Size, Tells};
    use crate::memory::Allowance;
    use std::time::Duration;

    /// Stopped jobs are left for the next process only if nothing else goes on from that moment.
    #[test]
    fn the_shutdown_stops_running_jobs_in_the_same_step() {
        let (memory, hour) = (Allowance::default(), Duration::from_secs(3600));
        let lanes = vec![Lane { limit: Limit::Open, rerun: Rerun::No, tells: Tells::NONE }];
        let plan = Plan { workers: 1, queue: 1, ttl: hour, log_ttl: hour, lanes };
        let room = Room { capacity: usize::MAX, reserve: 0, memory: memory.clone() };
        let mut ledger: Ledger<(), ()> = Ledger::new(room, plan, None);
        let job = JobKey { owner: Owner::anonymous(), id: JobId::new(1).unwrap() };
        let size = Size { footprint: 0, memory: 0 };
        let admitted = ledger.admit(size, None).unwrap();
        let (route, line) = (RouteIndex(0), RequestLine::default());
        let stamp = Stamp::from_unix_seconds(1.0).unwrap();
        let pending = Pending::waiting(route, (), line, 0, admitted.record, stamp);
        ledger.accept(&job, Box::new(pending), Keep::Result);
        let Next::Job(taken) = ledger.claim(&memory, Patience::None) else { panic!("it waits") };
        assert!(!ledger.abandon(&job), "it may be finished");
        ledger.stop(Stop::Kill);
        assert_eq!(taken.execution.stopped(), Some(Stop::Kill));
        assert!(ledger.abandon(&job), "it is left");
    }
}
