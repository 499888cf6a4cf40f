//! Lanes: how many jobs wait and run in each, and which callers are admitted.
//!
//! Recounts everything for each answer.

use crossbeam_channel::{Receiver, bounded};
use deferd::job::{JobId, RouteIndex, Stamp};
use deferd::ledger::schedule::{Limit, Turn};
use deferd::store::Stats;

use super::entry::{Entry, State};
use super::{LANES, Trial, WORKERS};

/// A synchronous caller.
pub struct Caller {
    pub lane: usize,
    /// The last job that arrived before it.
    pub after: Option<JobId>,
    /// Its place in line, if it had to wait.
    pub turn: Option<Turn>,
    pub let_in: Receiver<()>,
}

impl Trial {
    pub fn count(&self, which: impl Fn(&Entry) -> bool) -> usize {
        self.model.values().filter(|entry| which(entry)).count()
    }

    pub fn stats(&self) -> Stats {
        let lanes = 0..LANES.len();
        let by_lane = lanes.map(|lane| {
            (self.count(|entry| entry.waits_in(lane)), self.count(|entry| entry.runs_in(lane)))
        });
        let by_lane: Vec<(usize, usize)> = by_lane.collect();
        Stats {
            stored: self.stored(),
            capacity: self.limits.capacity,
            waiting: by_lane.iter().map(|(waiting, _)| waiting).sum(),
            delayed: self.count(|entry| matches!(entry.state, State::Delayed { .. })),
            running: by_lane.iter().map(|(_, running)| running).sum(),
            done: self.count(Entry::is_collectable),
            oldest: self.oldest(),
            by_lane,
        }
    }

    /// Returns when the first of the waiting jobs was accepted.
    fn oldest(&self) -> Option<Stamp> {
        let waits = |entry: &&Entry| matches!(entry.state, State::Waiting { .. });
        self.model.values().find(waits).map(|entry| entry.created)
    }

    /// Returns whether the queue is full: delays take as many places as exceed the workers.
    pub fn is_queue_full(&self) -> bool {
        let Stats { waiting, delayed, .. } = self.stats();
        let asleep = self.count(|entry| match &entry.state {
            State::Delayed { again, .. } => again.has_answer,
            _ => false,
        });
        waiting + delayed - asleep + asleep.saturating_sub(WORKERS) >= self.limits.queue
    }

    /// Returns how many more may run in a lane under a shared limit.
    pub fn room_in(&self, lane: usize) -> usize {
        let inside = self.inside.iter().filter(|caller| caller.lane == lane).count();
        match LANES[lane].limit {
            Limit::Shared(limit) => limit - self.count(|entry| entry.runs_in(lane)) - inside,
            Limit::Callers(_) | Limit::Open => usize::MAX,
        }
    }

    /// Returns whether the first caller in line may go in: together with the jobs that arrived before it, as far as
    /// there are workers for them.
    pub fn has_room_for(&self, lane: usize, after: Option<JobId>) -> bool {
        let inside = self.inside.iter().filter(|caller| caller.lane == lane).count();
        match LANES[lane].limit {
            Limit::Shared(_) => {
                let jobs = self.model.iter();
                let before = jobs.filter(|(id, job)| Some(**id) <= after && job.waits_in(lane));
                let free_workers = WORKERS - self.stats().running;
                self.room_in(lane) > before.count().min(free_workers)
            }
            Limit::Callers(limit) => inside < limit,
            Limit::Open => true,
        }
    }

    /// Admits the callers that may go in, and no others.
    pub fn let_in(&mut self) {
        for lane in 0..LANES.len() {
            while let Some(first) = self.line.iter().position(|caller| caller.lane == lane)
                && self.has_room_for(lane, self.line[first].after)
            {
                let caller = self.line.remove(first);
                assert!(caller.let_in.try_recv().is_ok(), "a caller is let in to lane {lane}");
                self.inside.push(caller);
                self.tried.let_in += 1;
            }
        }
        for Caller { lane, let_in, .. } in &self.line {
            assert!(let_in.try_recv().is_err(), "no caller is let in to lane {lane}");
        }
    }

    pub fn enter(&mut self) {
        let lane = 1 + self.random.usize(..LANES.len() - 1);
        let (wake, let_in) = bounded(1);
        let turn = self.store.enter_lane(RouteIndex(lane), &wake).err();
        self.trace.note(format!("enter {lane}: {turn:?}"));
        let is_first = self.line.iter().all(|caller| caller.lane != lane);
        let may_enter = is_first && self.has_room_for(lane, self.last);
        assert_eq!(turn.is_none(), may_enter);
        let caller = Caller { lane, after: self.last, turn, let_in };
        if may_enter { self.inside.push(caller) } else { self.line.push(caller) }
    }

    pub fn leave(&mut self) {
        let callers = self.line.len() + self.inside.len();
        if callers == 0 {
            return;
        }
        let n = self.random.usize(..callers);
        let caller = match n.checked_sub(self.line.len()) {
            Some(n) => self.inside.remove(n),
            None => self.line.remove(n),
        };
        self.trace.note(format!("leave {}: {:?}", caller.lane, caller.turn));
        // An admitted caller may report that, or may not know it yet.
        self.store.leave_lane(RouteIndex(caller.lane), caller.turn);
    }
}
