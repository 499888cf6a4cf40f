//! A gate: how many jobs of one route run at once, and who is next.
//!
//! Owns the line of those who wait, jobs and synchronous callers alike, in order; or of the callers alone,
//! where only they are bounded. Delays, never refuses. Invariant: passes given out and not dropped never
//! exceed the limit, and a pass that comes back goes to the next in line, whose receiver may be gone: then
//! to the one behind.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crossbeam_channel::{Sender, bounded};

use super::{Ready, Task};
use crate::error::Error;
use crate::job::execution::{Execution, LOOK};

/// The gate of one route.
pub struct Gate {
    limit: usize,
    grant: Sender<Ready>,
    line: Mutex<Line>,
}

#[derive(Default)]
struct Line {
    /// Passes given out.
    busy: usize,
    waiting: VecDeque<Waiter>,
}

enum Waiter {
    Job(Task),
    Caller(Sender<Pass>),
}

/// A place among those of a route that run at once, passed on when dropped.
#[must_use]
pub struct Pass(Arc<Gate>);

impl Drop for Pass {
    fn drop(&mut self) {
        Gate::pass_on(&self.0);
    }
}

impl Gate {
    /// A gate that lets `limit` through at once and sends jobs that had to wait to `grant`.
    pub fn new(limit: usize, grant: Sender<Ready>) -> Arc<Self> {
        Arc::new(Self { limit, grant, line: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a job through, or keeps it until a pass comes back.
    pub fn admit(self: &Arc<Self>, task: Task) -> Option<Ready> {
        let mut line = self.lock();
        if line.busy >= self.limit {
            line.waiting.push_back(Waiter::Job(task));
            return None;
        }
        line.busy += 1;
        Some(Ready { task, pass: Some(Pass(Arc::clone(self))) })
    }

    /// Waits until the caller may go through.
    ///
    /// # Errors
    /// [`Error::GatewayTimeout`] past `deadline`, [`Error::Cancelled`] if the caller is stopped or its
    /// client leaves.
    pub fn enter(
        self: &Arc<Self>,
        deadline: Instant,
        execution: &Execution,
    ) -> Result<Pass, Error> {
        let mut line = self.lock();
        if line.busy < self.limit {
            line.busy += 1;
            return Ok(Pass(Arc::clone(self)));
        }
        let (sender, receiver) = bounded(1);
        line.waiting.push_back(Waiter::Caller(sender.clone()));
        drop(line);
        let error = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if let Ok(pass) = receiver.recv_timeout(left.min(LOOK)) {
                return Ok(pass);
            }
            execution.look();
            if execution.stopped().is_some() {
                break Error::Cancelled;
            }
            if left.is_zero() {
                break self.too_late();
            }
        };
        let gone = |w: &Waiter| matches!(w, Waiter::Caller(s) if s.same_channel(&sender));
        self.lock().waiting.retain(|waiter| !gone(waiter));
        Err(error)
    }

    /// Returns the error of a request whose turn does not come in time.
    pub fn too_late(&self) -> Error {
        let what = format!(
            "no turn within the route's timeout: at most {} of its requests run at once; \
             raise its concurrency= or timeout=",
            self.limit
        );
        Error::GatewayTimeout(what.into())
    }

    /// Drops the jobs from the line that do not wait any more.
    pub fn purge(&self, is_alive: impl Fn(&Task) -> bool) {
        let alive = |w: &Waiter| matches!(w, Waiter::Job(task) if is_alive(task));
        self.lock().waiting.retain(|w| matches!(w, Waiter::Caller(_)) || alive(w));
    }

    /// Hands a pass that came back to the next in line.
    fn pass_on(gate: &Arc<Self>) {
        let next = {
            let mut line = gate.lock();
            let next = line.waiting.pop_front();
            if next.is_none() {
                line.busy -= 1;
            }
            next
        };
        // A pass that nobody receives any more is dropped here, without the lock, and so passed on.
        match next {
            Some(Waiter::Job(task)) => {
                let _ = gate.grant.send(Ready { task, pass: Some(Pass(Arc::clone(gate))) });
            }
            Some(Waiter::Caller(caller)) => {
                let _ = caller.send(Pass(Arc::clone(gate)));
            }
            None => {}
        }
    }
}
