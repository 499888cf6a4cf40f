//! The life of jobs as the service and the workers see it: submitted, waited for, collected, and the end.
//!
//! Owns what the store does not know: whether new jobs are accepted, and the handles to runs for waiting clients. Runs
//! nothing itself (`workers` does), and knows nothing of HTTP methods and paths (`api` does).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;

use crate::clock;
use crate::config::shown;
use crate::error::Error;
use crate::exchange::{Delivery, Peer, Receipt};
use crate::job::execution::{Execution, Executions, LOOK, Stop};
use crate::job::{JobId, JobKey, RouteIndex};
use crate::ledger::schedule::Turn;
use crate::memory::Budget;
use crate::metrics::{Metrics, Reason};
use crate::store::{DeliveryId, Refused, Store, StoreUnavailable, Submission};

/// All jobs of one deferd.
pub struct Jobs {
    /// The store that keeps them and hands them out.
    pub store: Arc<dyn Store>,
    /// The handles to the handlers that run for waiting clients.
    pub executions: Executions,
    /// The memory of all content.
    pub memory: Arc<Budget>,
    /// What is counted beside the store.
    pub metrics: Metrics,
    /// What a refusal names, and how many clients may watch.
    limits: Limits,
    /// How many clients wait for jobs or follow logs.
    watching: AtomicUsize,
    /// Set once, when the end begins.
    draining: AtomicBool,
}

/// The limits of a store, which holds jobs to them, and of clients.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// `--queue`.
    pub queue: usize,
    /// `--max-stored`, in bytes.
    pub stored: usize,
    /// How many connections there may be at once.
    pub connections: usize,
}

impl Jobs {
    /// The jobs of a store that has these limits.
    pub fn new(store: Arc<dyn Store>, memory: Arc<Budget>, limits: Limits) -> Self {
        Self {
            store,
            executions: Executions::default(),
            memory,
            metrics: Metrics::default(),
            limits,
            watching: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
        }
    }

    /// Takes a place for a client that waits for a job or follows its log; `None` if half of all connections, and at
    /// least one, do: the others are for requests that take no time.
    pub fn watch(&self) -> Option<Watching<'_>> {
        let most = (self.limits.connections / 2).max(1);
        let more = |watching| (watching < most).then_some(watching + 1);
        let taken = self.watching.fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
        // Made only then: one that is dropped gives a place back.
        taken.is_ok().then(|| Watching(self))
    }

    /// Checks whether a request with `bytes` of content would be accepted at this moment.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, bytes: usize) -> Result<(), Error> {
        self.check_draining()?;
        self.store.check(bytes).map_err(|refused| self.refuse(refused))
    }

    fn check_draining(&self) -> Result<(), Error> {
        if !self.is_draining() {
            return Ok(());
        }
        self.metrics.refuse(Reason::ShuttingDown);
        Err(Error::Unavailable("shutting down".into()))
    }

    /// Counts a refusal; returns the error that the client gets, which names the limit.
    fn refuse(&self, refused: Refused) -> Error {
        let Limits { queue, stored, .. } = self.limits;
        let stored = shown(stored);
        let full = |what: String| Error::QueueFull(what.into());
        let (reason, error) = match refused {
            Refused::Full => {
                let what = format!("the stored jobs have reached --max-stored {stored}");
                (Reason::StoreFull, full(what))
            }
            Refused::TooLarge => {
                let what = format!("more than --max-stored {stored} can hold");
                (Reason::TooLarge, Error::BodyTooLarge(what.into()))
            }
            Refused::NoMemory => {
                let most = shown(self.memory.capacity());
                let what = format!("--max-memory {most} has no room for the records of more jobs");
                (Reason::NoMemory, full(what))
            }
            Refused::ManyKeys => {
                let what = format!(
                    "idempotency keys have reached a quarter of --max-stored {stored}; they go with --ttl, or \
                     with DELETE /_api/job/all"
                );
                (Reason::ManyKeys, full(what))
            }
            Refused::QueueFull => {
                let what = format!("as many jobs wait as --queue {queue} allows");
                (Reason::QueueFull, full(what))
            }
            Refused::KeyReused => (Reason::KeyReused, Error::KeyReused),
            Refused::Unavailable => (Reason::StoreFails, StoreUnavailable.into()),
            Refused::EngineFull => {
                let what = "the engine's memory is full: collect results, or raise its maxmemory";
                (Reason::StoreFull, full(what.into()))
            }
        };
        self.metrics.refuse(reason);
        error
    }

    /// Submits a job; one that was accepted before under the same key is not run again.
    ///
    /// # Errors
    /// [`Error::QueueFull`], [`Error::Unavailable`] or [`Error::KeyReused`]; then nothing of it stays
    /// behind.
    pub fn submit(&self, submission: Submission) -> Result<JobId, Error> {
        if self.is_draining()
            && let Some(key) = &submission.key
        {
            let known = self.store.recall(&submission.call.owner, key);
            if let Some(id) = known.map_err(|refused| self.refuse(refused))? {
                return Ok(id);
            }
        }
        self.check_draining()?;
        let accepted = self.store.submit(submission, clock::now());
        Ok(accepted.map_err(|refused| self.refuse(refused))?.id())
    }

    /// Cancels a job; `false` if it does not exist.
    ///
    /// # Errors
    /// [`StoreUnavailable`]: it is cancelled, and that is not durable yet.
    pub fn cancel(&self, job: &JobKey) -> Result<bool, StoreUnavailable> {
        self.store.cancel(job, clock::now())
    }

    /// Waits for `span`, or until the job is done or gone, its client is, or deferd ends.
    pub fn wait(&self, job: &JobKey, span: Duration, peer: &dyn Peer) {
        self.store.wait(job, span, &|| peer.is_gone());
    }

    /// Waits for a synchronous caller's turn in the lane of a route, which lets `limit` run at once.
    ///
    /// # Errors
    /// [`Error::GatewayTimeout`] past `deadline`, [`Error::Cancelled`] if the caller is stopped or its client
    /// leaves.
    pub fn enter(
        &self,
        route: RouteIndex,
        limit: usize,
        deadline: Instant,
        execution: &Execution,
    ) -> Result<Place, Error> {
        let (wake, let_in) = bounded(1);
        let place = |turn| Place { store: Arc::clone(&self.store), route, turn };
        let Err(turn) = self.store.enter_lane(route, &wake) else { return Ok(place(None)) };
        // Dropped on the way, it leaves the line.
        let mut in_line = place(Some(turn));
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if let_in.recv_timeout(left.min(LOOK)).is_ok() {
                in_line.turn = None;
                return Ok(in_line);
            }
            execution.look();
            if execution.stopped().is_some() {
                return Err(Error::Cancelled);
            }
            if left.is_zero() {
                let what = format!(
                    "no turn within the route's timeout: at most {limit} of its requests run at once; \
                     raise its concurrency= or timeout="
                );
                return Err(Error::GatewayTimeout(what.into()));
            }
        }
    }

    /// Keeps a running job's place in its lane beyond the end of its run; `None` if it has none.
    pub fn keep_place(&self, job: &JobKey) -> Option<KeptPlace> {
        let route = self.store.keep_place(job)?;
        Some(KeptPlace { store: Arc::clone(&self.store), route })
    }

    /// Returns the receipt for a collected result; the receipt decides whether the job is removed or restored.
    pub fn receipt(self: &Arc<Self>, job: JobKey, delivery: DeliveryId) -> Receipt {
        let jobs = Arc::clone(self);
        Receipt::new(move |outcome| match outcome {
            Delivery::Confirmed => jobs.store.confirm(&job, delivery, clock::now()),
            Delivery::Failed => jobs.store.restore(&job, delivery),
        })
    }

    /// Forgets some hundred results that are older than `ttl`, and every log that is kept for longer than `log_ttl`;
    /// returns how many results, zero once all are forgotten.
    ///
    /// # Errors
    /// [`StoreUnavailable`].
    pub fn expire(&self, ttl: Duration, log_ttl: Duration) -> Result<usize, StoreUnavailable> {
        let now = clock::now().age;
        self.store.expire_logs(now.before(log_ttl));
        self.store.expire(now.before(ttl))
    }

    /// Accepts no more jobs from now on. Waiting jobs still run, unless the store keeps them for the next deferd.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.store.drain();
    }

    /// Whether deferd is ending.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Stops all runs, for jobs and for waiting clients, and ends all waits.
    pub fn stop(&self, stop: Stop) {
        self.store.stop(stop);
        self.executions.stop_all(stop);
    }

    /// Whether no job runs, and none waits to run in this process.
    pub fn is_idle(&self) -> bool {
        self.store.is_idle()
    }
}

/// The place of a client that waits for a job or follows its log; given back when dropped.
#[must_use]
pub struct Watching<'a>(&'a Jobs);

impl Drop for Watching<'_> {
    fn drop(&mut self) {
        self.0.watching.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A synchronous caller's place in a lane, or in the line for it; given back when dropped.
#[must_use]
pub struct Place {
    store: Arc<dyn Store>,
    route: RouteIndex,
    /// `None` once it was let in.
    turn: Option<Turn>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.store.leave_lane(self.route, self.turn);
    }
}

/// A job's place in a lane, when its run has ended; given back when dropped.
#[must_use]
pub struct KeptPlace {
    store: Arc<dyn Store>,
    route: RouteIndex,
}

impl Drop for KeptPlace {
    fn drop(&mut self) {
        self.store.give_up(self.route);
    }
}

impl From<StoreUnavailable> for Error {
    fn from(_: StoreUnavailable) -> Self {
        Self::Unavailable("the store is failing; try again later".into())
    }
}
