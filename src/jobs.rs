//! The life of jobs: accepted into store and queue together, handed out, collected, cancelled.
//!
//! Owns the order in which store, queue and running executions are touched. Runs nothing itself
//! (that is `workers`) and knows nothing of HTTP methods and paths (that is `api`). Invariant: a job is
//! stored only with a place in the queue in hand, so a refused job leaves nothing behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use crate::error::Error;
use crate::exchange::{Delivery, Peer, Receipt};
use crate::job::RouteIndex;
use crate::job::execution::Executions;
use crate::job::{JobId, Stamp};
use crate::ledger::waiters::Waiters;
use crate::memory::Budget;
use crate::queue::{Permit, Queue, Task, Turn};
use crate::routes::Routes;
use crate::store::{
    Accepted, Begun, JobKey, Recovered, Refused, Status, Store, StoreUnavailable, Submission,
};

/// How much memory must be free for a job to start, in bytes.
const START_MEMORY: usize = 1 << 20;

/// All jobs of one deferd.
pub struct Jobs {
    /// Where they are kept.
    pub store: Arc<dyn Store>,
    /// Where they wait for a worker.
    pub queue: Queue,
    /// The lines to all handlers: those of jobs, and of the threads that serve clients.
    pub executions: Executions,
    /// The memory of all content.
    pub memory: Arc<Budget>,
    /// What wakes those who wait for a job.
    bell: Arc<Waiters>,
    /// Set once, when deferd begins to end.
    draining: AtomicBool,
    /// Set once, when nobody may wait for a job any more.
    closing: AtomicBool,
}

/// The moment that it is.
pub fn now() -> Stamp {
    Stamp::from(SystemTime::now())
}

impl Jobs {
    /// No jobs yet.
    pub fn new(store: Arc<dyn Store>, queue: Queue, memory: Arc<Budget>) -> Self {
        let bell = store.bell();
        Self {
            store,
            queue,
            executions: Executions::default(),
            memory,
            bell,
            draining: AtomicBool::new(false),
            closing: AtomicBool::new(false),
        }
    }

    /// Waits until there is memory for a job to begin with: a mebibyte, or a sixteenth of a small budget.
    pub fn wait_for_memory(&self) {
        let least = START_MEMORY.min(self.memory.capacity() / 16);
        self.memory.wait_for(least, || self.queue.is_closed());
    }

    /// Whether a request with `bytes` of content would be accepted at this moment.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, bytes: usize) -> Result<(), Error> {
        self.store.check(bytes)?;
        self.reserve().map(drop)
    }

    /// Takes a place in the queue.
    fn reserve(&self) -> Result<Permit, Error> {
        if self.is_draining() {
            return Err(Error::Unavailable("shutting down".into()));
        }
        let permit = self.queue.reserve(|task| self.is_alive(task));
        permit.ok_or(Error::QueueFull("".into()))
    }

    /// Whether a worker still has to run the job of a task.
    fn is_alive(&self, task: &Task) -> bool {
        match task.turn {
            Turn::First => self.store.is_queued(&task.job),
            Turn::Again => self.store.may_go_on(&task.job),
        }
    }

    /// Accepts a job; one that was accepted before under the same key is not run again.
    ///
    /// # Errors
    /// [`Error::QueueFull`], [`Error::Unavailable`] or [`Error::KeyReused`]; then nothing of it stays
    /// behind.
    pub fn submit(
        &self,
        submission: Submission,
        routes: &Routes,
        route: RouteIndex,
    ) -> Result<JobId, Error> {
        let owner = submission.call.owner.clone();
        if let Some(key) = &submission.key
            && let Some(id) = self.store.recall(&owner, key)?
        {
            return Ok(id);
        }
        let permit = self.reserve()?;
        let accepted = self.store.submit(submission, now())?;
        if let Accepted::New(id) = accepted {
            let gate = routes.get(route).gate.clone();
            let (job, turn) = (JobKey { owner, id }, Turn::First);
            self.queue.push(Task { job, route, gate, permit, turn });
        }
        Ok(accepted.id())
    }

    /// Takes over the jobs that the store has found where it keeps them: those that wait run in
    /// their order, however many they are; those that ran are done with `500`, unless their route
    /// says that they run again. Returns how many of each.
    pub fn recover(&self, found: Vec<Recovered>, routes: &Routes) -> (usize, usize) {
        let (mut queued, mut interrupted) = (0, 0);
        for Recovered { job, path, begun } in found {
            let result = match routes.find(&path) {
                Err(error) => error,
                Ok(route) if begun == Begun::No || routes.get(route).runs_again() => {
                    let (gate, permit) = (routes.get(route).gate.clone(), self.queue.admit());
                    self.queue.push(Task { job, route, gate, permit, turn: Turn::First });
                    queued += 1;
                    continue;
                }
                Ok(_) => Error::Interrupted,
            };
            self.store.finish(&job, result.response(), now());
            interrupted += 1;
        }
        (queued, interrupted)
    }

    /// Cancels a job; `false` if it does not exist.
    ///
    /// # Errors
    /// [`StoreUnavailable`]: it is cancelled, and that is not durable yet.
    pub fn cancel(&self, job: &JobKey) -> Result<bool, StoreUnavailable> {
        let cancelled = self.store.cancel(job, now());
        self.queue.mark_stale();
        cancelled
    }

    /// Waits for `span`, or until the job is done or gone, its client is, or deferd ends.
    pub fn wait(&self, job: &JobKey, span: Duration, peer: &dyn Peer) {
        self.bell.wait(job, span, || {
            let is_pending = matches!(self.store.status(job), Some(Status::Pending(_)));
            !is_pending || self.closing.load(Ordering::Acquire) || peer.is_gone()
        });
    }

    /// Lets nobody wait any longer.
    pub fn end_waits(&self) {
        self.closing.store(true, Ordering::Release);
        self.bell.notify_all();
    }

    /// The receipt for a result that was collected: it settles what becomes of the job.
    pub fn receipt(self: &Arc<Self>, job: JobKey) -> Receipt {
        let jobs = Arc::clone(self);
        Receipt::new(move |delivery| match delivery {
            Delivery::Confirmed => jobs.store.confirm(&job),
            Delivery::Failed => jobs.store.restore(&job),
        })
    }

    /// Forgets every result that is older than `ttl`; returns how many.
    pub fn expire(&self, ttl: Duration) -> usize {
        self.store.expire_results(now().before(ttl))
    }

    /// Accepts no more jobs from now on. Those that wait run yet, unless the store keeps them for the
    /// next deferd.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        if self.store.outlives_the_process() {
            self.queue.close();
        }
    }

    /// Whether deferd is ending.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Whether nothing runs, and nothing waits to run.
    pub fn is_idle(&self) -> bool {
        (self.queue.is_closed() || self.queue.is_empty()) && self.executions.is_empty()
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Full => Self::QueueFull("the stored jobs have reached --max-stored".into()),
            Refused::TooLarge => Self::BodyTooLarge("more than --max-stored can hold".into()),
            Refused::NoMemory => Self::QueueFull(
                "the memory for the records of jobs is in use; see --max-memory".into(),
            ),
            Refused::ManyKeys => Self::QueueFull(
                "idempotency keys have reached a quarter of --max-stored; they go with --ttl, or with \
                 DELETE /_api/job/all"
                    .into(),
            ),
            Refused::KeyReused => Self::KeyReused,
            Refused::StoreUnavailable => StoreUnavailable.into(),
        }
    }
}

impl From<StoreUnavailable> for Error {
    fn from(_: StoreUnavailable) -> Self {
        Self::Unavailable("the store on disk is failing; try again later".into())
    }
}
