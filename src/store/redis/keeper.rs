//! The keeper: the thread that shows the other instances that this one lives, and takes over what dead ones left.
//!
//! Owns the beats, and what is done once with each beat. Invariants: only the engine's answer takes an instance's jobs
//! away; the jobs are then stopped, and the instance joins anew.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::operation::{Effect, Insist, Operation, Trouble};
use super::pool::Slot;
use super::record::read_ending;
use super::{Counters, Inner, script};
use crate::clock;
use crate::error::Error;
use crate::job::JobId;
use crate::job::execution::Stop;

/// The longest time between two beats; and between two warnings of lanes that no instance serves.
const BEAT: Duration = Duration::from_secs(1);
const WARN: Duration = Duration::from_secs(60);

/// The time between a failed beat and the next one.
const AGAIN: Duration = Duration::from_millis(100);

impl Inner {
    /// Beats until the store is closed.
    pub fn keep(&self) {
        let mut slot = self.engine.slot();
        let span = (self.lease / 4).min(BEAT);
        let mut warned = Instant::now();
        while !self.engine.is_closed() {
            match self.beat(&mut slot) {
                Ok(()) => self.engine.rest(span),
                Err(trouble) => {
                    log::debug!("store: no beat: {trouble:?}");
                    self.engine.rest(AGAIN);
                }
            }
            if warned.elapsed() > WARN {
                warned = Instant::now();
                self.warn_of_strays();
            }
        }
    }

    fn beat(&self, slot: &mut Slot) -> Result<(), Trouble> {
        let engine = &self.engine;
        let incarnation = match self.incarnation() {
            0 => self.join(slot)?,
            living => living,
        };
        let lease = self.lease.as_micros();
        let mut operation = Operation::new(&script::BEAT, Effect::Harmless)
            .with(incarnation.to_string())
            .number(lease);
        let progress = self.progress();
        for (id, line) in &progress {
            operation = operation.with(id.to_string()).with(line);
        }
        let reply = engine.run_over(slot, &operation, Insist::Once)?;
        if reply.text(0) != "ok" {
            self.fenced(incarnation);
            return Err(Trouble::Refused("this instance was taken for dead".into()));
        }
        engine.is_well();
        self.note_progress(progress);
        self.set_counters(Counters {
            bytes: reply.size(1),
            log_bytes: reply.size(2),
            waiting: reply.size(3),
        });
        (4..reply.len())
            .filter_map(|n| JobId::parse(reply.text(n)))
            .for_each(|id| self.stop_job(id));
        self.reap(slot)?;
        self.end_due(slot)?;
        let purge = Operation::new(&script::PURGE, Effect::Once);
        engine.run_over(slot, &purge, Insist::Once)?;
        if engine.take_changed() {
            self.compare(slot, incarnation)?;
        }
        Ok(())
    }

    /// Joins the instances.
    ///
    /// # Errors
    /// [`Trouble`]; if the engine refuses this instance, it also counts as failing.
    pub fn join(&self, slot: &mut Slot) -> Result<u64, Trouble> {
        let uname = rustix::system::uname();
        let limits = self.limits();
        let mut operation = Operation::new(&script::JOIN, Effect::Once)
            .number(self.lease.as_micros())
            .with(uname.nodename().to_bytes())
            .with(std::process::id().to_string())
            .with(env!("CARGO_PKG_VERSION"))
            .with(&limits);
        for lane in &self.lanes {
            operation = operation.with(&**lane);
        }
        let reply = self.engine.run_over(slot, &operation, Insist::Once)?;
        let refusal = match reply.text(0) {
            "joined" => None,
            "format" => Some(format!(
                "the queue has form {}, which this deferd does not know: use the deferd that wrote it, or another \
                 queue=NAME",
                reply.text(1)
            )),
            other => Some(format!("the engine answers {other:?} to join")),
        };
        if let Some(why) = refusal {
            let trouble = Trouble::Refused(why);
            self.engine.fails(&trouble);
            return Err(trouble);
        }
        if (2..reply.len()).any(|n| !reply.text(n).is_empty() && reply.text(n) != limits) {
            log::warn!("store: another instance has other limits; here {limits}");
        }
        let incarnation = reply.number(1);
        self.set_incarnation(incarnation);
        self.bell.wake_workers();
        Ok(incarnation)
    }

    /// Returns the progress of jobs here that the engine does not know yet.
    fn progress(&self) -> Vec<(JobId, String)> {
        let mut local = self.lock();
        let mut lines = Vec::new();
        for held in local.all().filter(|held| !held.is_lost) {
            let Some(line) = held.execution.as_ref().and_then(|execution| execution.progress())
            else {
                continue;
            };
            if held.told.as_ref() != Some(&line) {
                lines.push((held.key.id, line));
            }
        }
        lines
    }

    fn note_progress(&self, lines: Vec<(JobId, String)>) {
        let mut lines: HashMap<JobId, String> = lines.into_iter().collect();
        for held in self.lock().all() {
            if let Some(line) = lines.remove(&held.key.id) {
                held.told = Some(line);
            }
        }
    }

    /// Stops a job that was cancelled elsewhere.
    pub fn stop_job(&self, id: JobId) {
        let (execution, waiting) = {
            let mut local = self.lock();
            (local.cancel(id), local.is_waiting(id))
        };
        if let Some(execution) = execution {
            execution.stop(Stop::Cancel);
        }
        // A waiting job has no handler that would see the stop.
        if let Some(key) = waiting {
            self.finish(&key, Error::Cancelled.response().into(), clock::now());
        }
    }

    /// Gives back what dead instances had.
    fn reap(&self, slot: &mut Slot) -> Result<(), Trouble> {
        loop {
            let operation = self.with_errors(
                Operation::new(&script::REAP, Effect::Harmless).number(self.lease.as_micros()),
            );
            let reply = self.engine.run_over(slot, &operation, Insist::Once)?;
            if reply.text(0) != "reaped" {
                return Ok(());
            }
            let (interrupted, again, restored) =
                (reply.number(4), reply.number(5), reply.number(6));
            self.count_reaped(interrupted + again);
            log::warn!(
                "store: instance {} of {} (pid {}) is gone: interrupted={interrupted} again={again} undelivered={restored}",
                reply.text(1),
                reply.text(2),
                reply.text(3)
            );
            if reply.text(7) == "0" {
                return Ok(());
            }
        }
    }

    /// Ends the delays that are over.
    pub fn end_due(&self, slot: &mut Slot) -> Result<(), Trouble> {
        let reply = self.engine.run_over(
            slot,
            &Operation::new(&script::DUE, Effect::Once),
            Insist::Once,
        )?;
        for n in (1..reply.len()).step_by(6) {
            let Some(id) = JobId::parse(reply.text(n)) else { continue };
            if let (Some(ending), Some(created)) =
                (read_ending(reply.text(n + 2)), reply.stamp(n + 3))
            {
                self.count_finished(
                    reply.text(n + 1),
                    ending.outcome,
                    created,
                    reply.attempts(n + 4),
                    clock::now().stamp,
                );
            }
            self.bell.ring(id);
        }
        Ok(())
    }

    /// Reconciles what the engine and this instance know about the jobs that run here, after a failover or a restart.
    fn compare(&self, slot: &mut Slot, incarnation: u64) -> Result<(), Trouble> {
        self.lock().is_comparing = true;
        let compared = self.compare_when_still(slot, incarnation);
        self.lock().is_comparing = false;
        self.bell.wake_workers();
        if compared.is_err() {
            self.engine.note_changed();
        }
        compared
    }

    fn compare_when_still(&self, slot: &mut Slot, incarnation: u64) -> Result<(), Trouble> {
        let deadline = Instant::now() + self.lease / 2;
        while self.lock().is_asking() {
            if Instant::now() > deadline || self.engine.is_closed() {
                return Err(Trouble::Unreachable("workers wait for it still".into()));
            }
            self.engine.rest(Duration::from_millis(5));
        }
        let operation =
            Operation::new(&script::RECONCILE, Effect::Harmless).with(incarnation.to_string());
        let mut operation = self.with_errors(operation);
        for held in
            self.lock().all().filter(|held| !held.is_lost && held.incarnation == incarnation)
        {
            operation = operation.with(held.key.id.to_string()).with(held.fence.to_string());
        }
        let reply = self.engine.run_over(slot, &operation, Insist::Once)?;
        if reply.text(0) == "fenced" {
            self.fenced(incarnation);
            return Ok(());
        }
        let stopped: Vec<JobId> =
            (1..reply.len()).filter_map(|n| JobId::parse(reply.text(n))).collect();
        let count = self.lock().lose(|held| stopped.contains(&held.key.id));
        log::warn!(
            "store: the engine was replaced or restarted; {count} jobs that run here are unknown to it, and stopped"
        );
        Ok(())
    }

    fn warn_of_strays(&self) {
        let Ok(reply) =
            self.engine.run(&Operation::new(&script::STRAY, Effect::Harmless), Insist::No)
        else {
            return;
        };
        for n in (0..reply.len().saturating_sub(1)).step_by(2) {
            let (lane, waiting) = (reply.text(n), reply.number(n + 1));
            log::warn!("store: {waiting} jobs of {lane} wait, and no instance has this route");
        }
    }
}

/// Returns what went wrong, in words.
pub fn words(trouble: &Trouble) -> String {
    match trouble {
        Trouble::Unreachable(why) => format!("the engine cannot be reached: {why}"),
        Trouble::Refused(why) => why.clone(),
        Trouble::Full => "the engine's memory is full: raise its maxmemory".into(),
        Trouble::Unreplicated => "too few replicas have what the engine was told".into(),
        Trouble::Closed => "the store is closed".into(),
    }
}
