//! What the store's callers and its writer share: the ledger with the way to the writer, and the tables.
//!
//! Owns the order in which changes reach the writer: it is that in which the ledger saw them, because both
//! happen under one lock. Invariants: that lock is not held while the disk is waited for; reading never
//! waits for a commit.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::order::{Change, NewJob};
use super::record::{Record, Stage};
use super::tables::{TableError, Tables};
use crate::exchange::Call;
use crate::job::stored::StoredResponse;
use crate::job::{Cancelled, JobId, Pending, Phase, RECORD, Stamp};
use crate::ledger::Ledger;
use crate::store::{Finished, JobKey, Keep, StoreUnavailable};

/// How many bytes of results may be on their way to the disk before those who finish jobs wait.
const MAX_BACKLOG: usize = 4 << 20;

/// Where a waiting request is.
#[derive(Debug)]
pub enum Request {
    /// On disk.
    OnDisk,
    /// Here, because it may not be on disk yet.
    Here(Box<Call>),
}

/// The ledger of a store whose results are all on disk.
pub type DiskLedger = Ledger<Request, ()>;

/// What the writer is to do.
pub struct Order {
    /// The change.
    pub change: Change,
    /// What the ledger learns when it is durable.
    pub then: OnDurable,
    /// Who waits for it.
    pub reply: Ack,
    /// Whether it is worth a commit of its own.
    pub pace: Urgency,
}

impl Order {
    /// Whether nothing depends on it.
    pub fn is_void(&self) -> bool {
        let nothing = matches!(self.then, OnDurable::Nothing) && matches!(self.reply, Ack::None);
        nothing && self.change.is_void()
    }
}

/// What the ledger learns when a change is durable.
#[derive(Debug)]
pub enum OnDurable {
    /// Nothing: it knows already.
    Nothing,
    /// The job is there.
    Accept(JobKey, Box<Pending<Request>>, Keep),
    /// The job, which it knows, need not be kept in memory.
    Settle(JobKey),
    /// The job has its result, since then.
    Complete(JobKey, Stamp),
}

/// Who waits for a change.
pub enum Ack {
    /// Nobody.
    None,
    /// Somebody who wants to know soon, one way or the other.
    Soon(Sender<Result<(), StoreUnavailable>>),
    /// Somebody who can only go on when it is durable.
    Durable(Sender<Result<(), StoreUnavailable>>),
}

/// How much a change matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// It is committed at once.
    Urgent,
    /// It goes with the next urgent one, or a little later.
    Lazy,
}

/// What callers and writer share.
pub struct Shared {
    state: Mutex<State>,
    /// While the file cannot be opened: why not.
    tables: RwLock<Result<Tables, String>>,
    open: Box<dyn Fn() -> Result<Tables, TableError> + Send + Sync>,
    /// Set by the writer while commits fail.
    failing: AtomicBool,
    /// Set when the tables could not be read, until the writer has seen to it.
    doubted: AtomicBool,
    /// Notified when the backlog became smaller.
    eased: Condvar,
}

/// What is guarded by the one lock.
pub struct State {
    /// The states of all jobs.
    pub ledger: DiskLedger,
    /// The way to the writer; `None` when the store is closed.
    pub orders: Option<Sender<Order>>,
    /// Bytes of results on their way to the disk.
    backlog: usize,
    /// How much a result matters.
    pace: Urgency,
    /// Ids up to this one may be given out before they are on disk.
    leased: Option<JobId>,
}

impl State {
    /// Over what was found on disk.
    pub const fn new(ledger: DiskLedger, orders: Sender<Order>, pace: Urgency) -> Self {
        Self { ledger, orders: Some(orders), backlog: 0, pace, leased: None }
    }

    /// Whether an id may be given out before it is on disk.
    pub fn is_leased(&self, id: JobId) -> bool {
        self.leased.is_some_and(|leased| id <= leased)
    }

    /// Allows the ids up to this one.
    pub const fn lease(&mut self, up_to: JobId) {
        self.leased = Some(up_to);
    }

    /// Hands a change to the writer; `false` when the store is closed: nobody will answer.
    pub fn order(&self, change: Change, then: OnDurable, reply: Ack, pace: Urgency) -> bool {
        let order = Order { change, then, reply, pace };
        self.orders.as_ref().is_some_and(|orders| orders.send(order).is_ok())
    }

    /// Hands over a change whose outcome the caller will wait for.
    pub fn ask(&self, change: Change, then: OnDurable) -> Receiver<Result<(), StoreUnavailable>> {
        let (reply, outcome) = bounded(1);
        self.order(change, then, Ack::Soon(reply), Urgency::Urgent);
        outcome
    }

    /// Hands over a change that the caller needs to be durable before it goes on.
    pub fn insist(&self, change: Change) -> Receiver<Result<(), StoreUnavailable>> {
        let (reply, outcome) = bounded(1);
        self.order(change, OnDurable::Nothing, Ack::Durable(reply), Urgency::Urgent);
        outcome
    }

    /// Hands over a change that has time.
    pub fn put_off(&self, change: Change) {
        self.order(change, OnDurable::Nothing, Ack::None, Urgency::Lazy);
    }

    /// Takes a submission that is refused off the accounts.
    pub fn withdraw(&mut self, job: &NewJob) {
        let Record { owner, footprint, .. } = &job.record;
        let name = JobKey { owner: owner.clone(), id: job.id };
        self.ledger.withdraw(&name, *footprint, job.key.as_ref());
    }

    /// Ends a pending job with `response`, or `410` if it was cancelled in time, and hands that over.
    pub fn end(&mut self, job: &JobKey, response: StoredResponse, now: Stamp) -> Finished {
        let unwanted = self.ledger.is_unwanted(job);
        let pending = self.ledger.pending_mut(job);
        let pending = pending.filter(|p| !matches!(p.phase, Phase::Ending { .. }));
        let Some(pending) = pending else { return Finished::Dropped };
        let created = pending.created;
        let (result, cancelled) = pending.end(response);
        if unwanted {
            self.ledger.complete(job, (), now);
            self.put_off(Change::Remove(vec![job.id]));
            return Finished::Dropped;
        }
        let result = self.ledger.fit_result(job, result, |_| RECORD);
        let (owner, footprint) = (job.owner.clone(), RECORD + result.footprint());
        let record = Record { owner, created, footprint, state: Stage::Done { finished: now } };
        let change = Change::Finish(job.id, Box::new((record, result)));
        let then = OnDurable::Complete(job.clone(), now);
        let size = change.size();
        if self.order(change, then, Ack::None, self.pace) {
            self.backlog += size;
        }
        if cancelled == Cancelled::Yes { Finished::Dropped } else { Finished::Kept }
    }
}

impl Shared {
    /// Over tables that are open, and what is needed to open them again.
    pub fn new(
        state: State,
        tables: Tables,
        open: Box<dyn Fn() -> Result<Tables, TableError> + Send + Sync>,
    ) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(state),
            tables: RwLock::new(Ok(tables)),
            open,
            failing: AtomicBool::new(false),
            doubted: AtomicBool::new(false),
            eased: Condvar::new(),
        })
    }

    /// The ledger, and the way to the writer. A poisoned lock is taken all the same: the data is valid
    /// between any two statements.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the tables. Where that fails the writer is called: after one failure redb refuses
    /// everything until it is opened anew.
    ///
    /// # Errors
    /// [`TableError`], also where they are not open.
    pub fn read<T>(
        &self,
        run: impl FnOnce(&Tables) -> Result<T, TableError>,
    ) -> Result<T, TableError> {
        self.with_tables(run).inspect_err(|_| {
            if !self.doubted.swap(true, Ordering::AcqRel) {
                self.lock().put_off(Change::Nothing);
            }
        })
    }

    /// Forgets that the tables could not be read: what comes will show.
    pub fn trust(&self) {
        self.doubted.store(false, Ordering::Release);
    }

    /// Asks the writer for a change that the ledger need not learn of.
    pub fn ask(&self, change: Change) -> Receiver<Result<(), StoreUnavailable>> {
        self.lock().ask(change, OnDurable::Nothing)
    }

    /// Uses the tables.
    ///
    /// # Errors
    /// [`TableError`], also where they are not open.
    pub fn with_tables<T>(
        &self,
        run: impl FnOnce(&Tables) -> Result<T, TableError>,
    ) -> Result<T, TableError> {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        tables.as_ref().map_err(TableError::new).and_then(run)
    }

    /// Opens the tables anew, after a fault: until then redb refuses even to read. Where they have
    /// not been changed since they were opened last, and can be read, they are left as they are.
    pub fn reopen(&self) {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        let in_doubt = self.doubted.swap(false, Ordering::AcqRel);
        if !in_doubt && tables.as_ref().is_ok_and(Tables::is_on_trial) {
            return;
        }
        // The old one first: it lets go of the file.
        close(std::mem::replace(&mut *tables, Err(String::new())));
        *tables = (self.open)().map_err(|fault| fault.to_string());
    }

    /// Closes the tables for good.
    pub fn shut(&self) {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        close(std::mem::replace(&mut *tables, Err("the store is closed".into())));
    }

    /// Whether commits fail at the moment.
    pub fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Acquire)
    }

    /// Says whether commits fail.
    pub fn set_failing(&self, failing: bool) {
        self.failing.store(failing, Ordering::Release);
    }

    /// Whether the store is closed.
    pub fn is_closed(&self) -> bool {
        self.lock().orders.is_none()
    }

    /// Waits while much is on its way: so that workers do not fill the memory with results that the
    /// disk cannot take as fast, or at all.
    pub fn wait_for_ease(&self, mut state: MutexGuard<'_, State>) {
        while state.backlog > MAX_BACKLOG {
            state = self.eased.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Says that so many bytes have arrived.
    pub fn ease(&self, mut state: MutexGuard<'_, State>, bytes: usize) {
        state.backlog -= bytes;
        drop(state);
        self.eased.notify_all();
    }

    /// Says that the writer has ended, and nothing will arrive any more.
    pub fn abandon(&self) {
        let mut state = self.lock();
        state.orders = None;
        let bytes = state.backlog;
        self.ease(state, bytes);
    }

    /// The last id that was given out.
    pub fn last_id(&self) -> Option<JobId> {
        self.lock().ledger.last_id()
    }
}

fn close(tables: Result<Tables, String>) {
    if let Ok(Err(fault)) = tables.map(Tables::close) {
        log::debug!("the tables could not be closed in order: {fault}");
    }
}
