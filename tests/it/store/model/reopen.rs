//! How a store ends, and what must be there when it is opened again.

use crate::store::kit::*;
use deferd::error::Error;
use deferd::job::execution::Stop;
use deferd::job::log::LogEnd;
use deferd::job::{JobKey, MAX_STARTS, Moment, Rerun};
use deferd::store::Status;
use deferd::store::disk::{Durability, Recovered};

use super::entry::{Entry, Runs, State};
use super::{Disk, LANES, Trial};

/// How a store ends before it is opened again.
#[derive(Clone, Copy, Debug)]
enum End {
    /// In order, after what may still go on has gone on.
    Drained,
    /// In order.
    Closed,
    /// Without warning, after everything was durable.
    CrashedAfterFlush,
    /// Without warning.
    Crashed,
}

/// Returns the time of an opening, by the wall clock: later than any other.
pub fn reopening() -> Moment {
    at(4e9)
}

impl Trial {
    /// Chooses how the store may end now.
    fn choose_end(&mut self, durability: Durability) -> End {
        let ends = [End::Drained, End::Closed, End::CrashedAfterFlush, End::Crashed];
        // What a relaxed store has not flushed may be lost: that has suites of its own. The fate of a job that cannot
        // be asked for would not be visible.
        let is_unseen = self.count(|entry| !entry.wanted && entry.is_recent) > 0;
        let knows_all = durability == Durability::Commit && !is_unseen;
        *self.random.choice(if knows_all { &ends[..] } else { &ends[..3] }).unwrap()
    }

    /// Ends the store and opens it again on what is left.
    pub fn reopen(&mut self) {
        let Some(Disk { volume, durability }) = self.disk.take() else { return };
        let end = self.choose_end(durability);
        self.trace.note(format!("{end:?}"));
        let left = match end {
            End::Drained => {
                self.drain();
                volume.image()
            }
            End::Closed => {
                assert_eq!(self.store.close(), [], "all is durable");
                volume.image()
            }
            End::CrashedAfterFlush => {
                self.flush();
                volume.medium().image(&mut self.random)
            }
            End::Crashed => volume.medium().image(&mut self.random),
        };
        let volume = Volume::of(left);
        let (store, found) = self.limits.open(&volume, durability);
        (self.store, self.disk) = (store, Some(Disk { volume, durability }));
        // Running jobs are then done.
        self.store.flush().unwrap();
        self.recover_what_faded(end);
        self.recover_jobs(end, found);
        self.keys.values_mut().for_each(|named| named.stamp = named.created);
        self.deliveries.clear();
        self.line.clear();
        self.inside.clear();
    }

    /// Ends the store as deferd does: only redirected requests are still begun.
    fn drain(&mut self) {
        self.store.drain();
        let is_redirected = |entry: &Entry| match &entry.state {
            State::Waiting { again: Some(again), lane } => {
                again.redirected.is_some() && self.room_in(*lane) > 0
            }
            _ => false,
        };
        let expected = self.model.iter().find(|(_, entry)| is_redirected(entry));
        let claimed = claim(&*self.store).map(|claimed| claimed.job.id);
        assert_eq!(claimed, expected.map(|(id, _)| *id));
        self.store.stop(Stop::Kill);
        assert!(claim(&*self.store).is_none(), "it was stopped");
        for entry in self.model.values() {
            if let State::Running { attempt, .. } = &entry.state {
                assert_eq!(attempt.execution.stopped(), Some(Stop::Kill));
            }
        }
        assert_eq!(self.store.close(), [], "all is durable");
    }

    /// Restores removed jobs whose removal was not durable.
    fn recover_what_faded(&mut self, end: End) {
        for (id, mut entry) in std::mem::take(&mut self.fading) {
            let key = JobKey { owner: entry.owner.clone(), id };
            let is_back = self.store.status(&key).unwrap().is_some();
            assert!(!is_back || matches!(end, End::Crashed), "{id} is back");
            if is_back {
                entry.deliver_again();
                self.model.insert(id, entry);
            }
        }
        for (name, named) in std::mem::take(&mut self.fading_keys) {
            let is_back = self.store.recall(&name.0, &named.key) == Ok(Some(named.id));
            assert!(!is_back || matches!(end, End::Crashed), "{name:?} is back");
            if is_back {
                self.keys.insert(name, named);
            }
        }
    }

    /// Makes waiting and delayed jobs wait, and running ones end with an error, or wait again.
    fn recover_jobs(&mut self, end: End, found: Recovered) {
        let (mut waiting, mut gone) = (0, Vec::new());
        let before = self.tried.interrupted;
        for (&id, entry) in &mut self.model {
            entry.deliver_again();
            if !entry.is_pending() {
                continue;
            }
            let key = JobKey { owner: entry.owner.clone(), id };
            let is_done = || matches!(self.store.status(&key), Ok(Some(Status::Done(_))));
            let lane = entry.own_lane();
            let runs_again = LANES[lane].rerun == Rerun::Yes && entry.starts < MAX_STARTS;
            let is_interrupted = match end {
                End::Crashed if entry.is_recent && !runs_again => is_done(),
                _ => entry.recorded == Runs::Yes && !runs_again,
            };
            entry.is_recent = false;
            if !is_interrupted {
                waiting += 1;
                entry.state = State::Waiting { lane, again: None };
                if !runs_again {
                    entry.recorded = Runs::No;
                }
                continue;
            }
            self.tried.interrupted += 1;
            self.tried.exhausted += usize::from(LANES[lane].rerun == Rerun::Yes);
            let result = Error::Interrupted.response().into();
            let finished = reopening().stamp;
            entry.state = State::Done { finished, result, log: LogEnd::default(), delivery: None };
            if !entry.wanted {
                gone.push(id);
            }
        }
        gone.iter().for_each(|id| drop(self.model.remove(id)));
        assert_eq!((found.waiting, found.interrupted), (waiting, self.tried.interrupted - before));
    }
}
