//! How jobs run: claimed, finished, delayed, redirected, cancelled, overdue.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::store::kit::*;
use deferd::job::attempt::{Attempt, Claimed};
use deferd::job::execution::Stop;
use deferd::job::stored::StoredResponse;
use deferd::job::{JobId, JobKey, Rerun, RouteIndex, Stamp};
use deferd::store::Finished;

use super::entry::{Again, Runs, State};
use super::{FAR, LANES, Trial, WORKERS};

impl Trial {
    /// Returns the oldest job whose lane has room.
    pub fn next(&self) -> Option<(JobId, usize)> {
        self.model.iter().find_map(|(id, entry)| match entry.state {
            State::Waiting { lane, .. } if self.room_in(lane) > 0 => Some((*id, lane)),
            _ => None,
        })
    }

    pub fn claim(&mut self) {
        if self.stats().running == WORKERS {
            return;
        }
        let (commits, expected) = (self.commits(), self.next());
        let claimed = claim(&*self.store);
        let found = claimed.as_ref().map(|claimed| (claimed.job.id, claimed.attempt.hop_route().0));
        self.trace.note(format!("claim: {found:?}"));
        assert_eq!(found, expected);
        let Some(Claimed { job, attempt }) = claimed else { return };
        let entry = self.model.get_mut(&job.id).expect("it waits");
        assert_eq!(job.owner, entry.owner);
        assert_eq!(attempt.created, entry.created);
        assert_eq!(attempt.call.request.uri().path(), format!("/job/{}", entry.n));
        assert_eq!(attempt.route.0, entry.own_lane());
        let State::Waiting { lane, again } = &entry.state else { panic!("it waits") };
        match again {
            Some(again) => assert!(Arc::ptr_eq(&attempt.execution, &again.execution)),
            None => {
                assert!(attempt.execution.stopped().is_none());
                entry.starts += 1;
            }
        }
        if attempt.redirected.is_none() {
            entry.recorded = Runs::Yes;
            entry.is_recent = match LANES[*lane].rerun {
                Rerun::Yes => false,
                Rerun::No => !commits,
                Rerun::Harmless => true,
            };
        }
        entry.state = State::Running { lane: Some(*lane), attempt };
    }

    /// Picks a running job, in a lane that `which` accepts.
    pub fn running(&mut self, which: impl Fn(Option<usize>) -> bool) -> Option<JobKey> {
        let running = self.model.iter().filter(|(_, entry)| match entry.state {
            State::Running { lane, .. } => which(lane),
            _ => false,
        });
        let running: Vec<JobKey> =
            running.map(|(&id, entry)| JobKey { owner: entry.owner.clone(), id }).collect();
        (!running.is_empty()).then(|| self.random.choice(&running).unwrap().clone())
    }

    /// Only workers finish jobs, and only jobs that were given to them.
    pub fn finish(&mut self) {
        let Some(key) = self.running(|_| true) else { return };
        let now = self.now();
        self.trace.note(format!("finish {} at {now:?}", key.id));
        let entry = &self.model[&key.id];
        let cancelled = entry.execution().is_some_and(|execution| execution.stopped().is_some());
        let its_own = response(entry.n);
        let finished = self.store.finish(&key, its_own.clone(), moment(now));
        self.finished(key.id, cancelled, now);
        // Not if no client can ask for the job, nor if an error replaced the response.
        let kept = match self.model.get(&key.id).map(|entry| &entry.state) {
            Some(State::Done { result, .. }) => *result == StoredResponse::from(its_own),
            _ => false,
        };
        assert_eq!(finished, if kept { Finished::Kept } else { Finished::Dropped });
    }

    /// Ends the work of a job.
    pub fn finished(&mut self, id: JobId, cancelled: bool, now: Stamp) {
        self.flush_if_need_be();
        let room = self.room_of(id);
        let Some(entry) = self.model.get_mut(&id) else { return };
        if entry.wanted {
            entry.finish(cancelled, now, room);
        } else {
            self.model.remove(&id);
        }
    }

    /// Takes from a worker a job that it gives back; returns whether the job goes on: a cancelled one does not.
    pub fn lay_down(&mut self) -> Option<(JobKey, Box<Attempt>, bool)> {
        let key = self.running(|lane| lane.is_some())?;
        let entry = self.model.get_mut(&key.id)?;
        let goes_on = entry.execution().is_some_and(|execution| execution.stopped().is_none());
        let State::Running { attempt, .. } = &entry.state else { panic!("it runs") };
        // Its log is needed if it ends.
        let held = State::Delayed { until: Instant::now(), again: Again::of(attempt) };
        let State::Running { attempt, .. } = std::mem::replace(&mut entry.state, held) else {
            panic!("it runs")
        };
        Some((key, attempt, goes_on))
    }

    /// Returns the present, or a time far ahead.
    pub fn moment(&mut self) -> Instant {
        let now = Instant::now();
        if self.random.usize(..3) == 0 { now + FAR } else { now }
    }

    pub fn retry(&mut self) {
        let Some((key, mut attempt, goes_on)) = self.lay_down() else { return };
        let (until, now) = (self.moment(), self.now());
        if self.random.usize(..2) == 0 {
            attempt.redirected = None;
        }
        if self.random.usize(..4) == 0 {
            attempt.answer = Some(response(0).into());
        }
        let again = Again::of(&attempt);
        self.trace.note(format!("retry {} with {:?}", key.id, again.redirected));
        self.store.retry(&key, attempt, until, moment(now));
        if !goes_on {
            return self.finished(key.id, true, now);
        }
        let entry = self.model.get_mut(&key.id).expect("it ran");
        if again.redirected.is_none() {
            entry.recorded = Runs::No;
            entry.is_recent = true;
        }
        entry.state = State::Delayed { until, again };
    }

    pub fn redirect(&mut self) {
        let Some((key, mut attempt, goes_on)) = self.lay_down() else { return };
        let (lane, deadline, now) = (self.random.usize(..LANES.len()), self.moment(), self.now());
        attempt.redirected = Some(redirected(RouteIndex(lane), deadline));
        let again = Some(Again::of(&attempt));
        self.trace.note(format!("redirect {} to {lane}", key.id));
        self.store.redirect(&key, attempt, moment(now));
        if !goes_on {
            return self.finished(key.id, true, now);
        }
        let entry = self.model.get_mut(&key.id).expect("it ran");
        entry.state = State::Waiting { lane, again };
    }

    /// Ends delays and deadlines that are over: some jobs must be finished, others wait again.
    pub fn overdue(&mut self) {
        let mut due = self.store.overdue(Duration::ZERO);
        let now = Instant::now();
        let is_over = |moment: Instant| moment <= now;
        due.sort_by_key(|claimed| claimed.job.id);
        let ids: Vec<JobId> = due.iter().map(|claimed| claimed.job.id).collect();
        self.trace.note(format!("overdue: {ids:?}"));
        let mut expected = Vec::new();
        for (id, entry) in &mut self.model {
            let too_late = |again: &Again| again.expiry().is_some_and(is_over);
            match &mut entry.state {
                State::Waiting { again: Some(again), .. } if too_late(again) => {
                    expected.push(*id);
                }
                State::Delayed { until, again } if is_over(*until) => {
                    if again.has_answer || too_late(again) {
                        expected.push(*id);
                    } else {
                        let lane =
                            again.redirected.map_or(route(entry.n, LANES.len()).0, |to| to.0);
                        let (execution, redirected) =
                            (Arc::clone(&again.execution), again.redirected);
                        let again = Some(Again { execution, redirected, has_answer: false });
                        entry.state = State::Waiting { lane, again };
                    }
                }
                _ => {}
            }
        }
        assert_eq!(ids, expected);
        self.tried.due += due.len();
        for Claimed { job, attempt } in due {
            let entry = self.model.get_mut(&job.id).expect("it was expected");
            assert_eq!(job.owner, entry.owner);
            entry.state = State::Running { lane: None, attempt };
        }
    }

    /// Makes the handler write to its stderr, which no store knows about.
    pub fn write_log(&mut self) {
        let size = self.random.usize(..300);
        let Some(key) = self.running(|_| true) else { return };
        let Some(execution) = self.model[&key.id].execution() else { return };
        self.trace.note(format!("write {size} bytes from {}", key.id));
        execution.append_log(&vec![b'a' + (size % 26) as u8; size]);
        execution.set_progress(&format!("{size} bytes"));
    }

    pub fn cancel(&mut self) {
        let (key, now) = (self.pick(), self.now());
        self.trace.note(format!("cancel {} at {now:?}", key.id));
        let cancelled = self.store.cancel(&key, moment(now)).unwrap();
        self.flush_if_need_be();
        let room = self.room_of(key.id);
        let expected = self.visible(&key);
        assert_eq!(cancelled, expected.is_some());
        let Some(entry) = expected else { return };
        match &entry.state {
            State::Waiting { .. } | State::Delayed { .. } => entry.finish(true, now, room),
            State::Running { attempt, .. } => {
                assert_eq!(attempt.execution.stopped(), Some(Stop::Cancel));
            }
            State::Done { .. } => {}
        }
    }
}
