//! What the store's callers and its writer share: the ledger, the channel to the writer, and the tables.
//!
//! Owns the order in which changes reach the writer: it is the order in which the ledger saw them, because both happen
//! under one lock. Invariants: that lock is not held during a wait for the disk; reading never waits for a commit.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};

use crossbeam_channel::Sender;

use super::order::{Ack, Change, End, NewJob, OnDurable, Order, Urgency};
use super::outcome::{Outcome, promise};
use super::record::{Begun, Record, Stage};
use super::tables::{TableError, Tables};
use crate::clock::Scale;
use crate::exchange::Call;
use crate::files::Files;
use crate::job::stored::{StoredResponse, StoredResult, Summary};
use crate::job::{JobId, JobKey, Keep, Moment, RECORD, Rerun, message};
use crate::ledger::job::{Cancelled, Pending, Work};
use crate::ledger::locked::{Dispatch, Locked, Wake, Wakes};
use crate::ledger::{Finishing, InMemory, Ledger, Notice, Taken};
use crate::store::Finished;

/// How many bytes of results may be on their way to the disk before workers wait.
const MAX_BACKLOG: usize = 4 << 20;

/// The place of a request or a result.
#[derive(Debug)]
pub enum Place<T> {
    /// On disk.
    OnDisk,
    /// In memory, because it may not be on disk yet.
    Here(T),
}

/// The ledger of a store that keeps requests and results on disk.
pub type DiskLedger = Ledger<Place<Box<Call>>, Place<Arc<StoredResult>>>;

/// The record of a job without a result.
pub type DiskPending = Pending<Place<Box<Call>>>;

/// What callers and writer share.
pub struct Shared {
    /// Guarded by the one lock.
    pub state: Mutex<State>,
    /// The scale of the ages on disk.
    pub scale: Arc<Scale>,
    /// Where workers wait for changes of the state.
    pub dispatch: Dispatch,
    /// The files of large content.
    pub folder: Arc<dyn Files>,
    /// The tables; if the file cannot be opened, the reason.
    tables: RwLock<Result<Tables, String>>,
    open: Box<dyn Fn() -> Result<Tables, TableError> + Send + Sync>,
    /// Set by the writer while commits fail.
    failing: AtomicBool,
    /// How often the tables could not be read or changed.
    errors: AtomicU64,
    /// Set when the tables could not be read, until the writer has handled it.
    doubted: AtomicBool,
    /// Notified when the backlog has become smaller.
    eased: Condvar,
}

/// What the one lock guards.
pub struct State {
    /// The states of all jobs.
    pub ledger: DiskLedger,
    /// The channel to the writer; `None` once the store is closed.
    pub orders: Option<Sender<Order>>,
    /// The scale of the ages on disk.
    scale: Arc<Scale>,
    /// How many bytes of results are on their way to the disk.
    backlog: usize,
    /// The urgency of results; a lazy result is listed before it is durable.
    urgency: Urgency,
    /// The highest id that may be assigned before it is on disk.
    leased: Option<JobId>,
}

impl State {
    /// Returns the state over what was found on disk.
    pub const fn new(
        ledger: DiskLedger,
        scale: Arc<Scale>,
        orders: Sender<Order>,
        urgency: Urgency,
    ) -> Self {
        Self { ledger, scale, orders: Some(orders), backlog: 0, urgency, leased: None }
    }

    /// Returns whether an id may be assigned before it is on disk.
    pub fn is_leased(&self, id: JobId) -> bool {
        self.leased.is_some_and(|leased| id <= leased)
    }

    /// Allows the ids up to this one to be assigned.
    pub const fn lease(&mut self, up_to: JobId) {
        self.leased = Some(up_to);
    }

    /// Sends a change to the writer; returns `false` if the store is closed: then there is no answer.
    pub fn order(&self, order: Order) -> bool {
        self.orders.as_ref().is_some_and(|orders| orders.send(order).is_ok())
    }

    /// Sends a change whose outcome the caller will wait for.
    pub fn ask(&self, change: Change, on_durable: OnDurable) -> Outcome {
        let (ack, outcome) = promise();
        self.order(Order::new(change, on_durable, Ack::Soon(ack), Urgency::Urgent));
        outcome
    }

    /// Sends a change that must be durable before the caller continues.
    fn insist(&self, change: Change) -> Outcome {
        let (ack, outcome) = promise();
        let on_durable = OnDurable::Nothing;
        self.order(Order::new(change, on_durable, Ack::Durable(ack), Urgency::Urgent));
        outcome
    }

    /// Sends a change that is not urgent.
    pub fn put_off(&self, change: Change) {
        let on_durable = OnDurable::Nothing;
        self.order(Order::new(change, on_durable, Ack::None, Urgency::Lazy));
    }

    /// Takes a refused submission off the accounts.
    pub fn withdraw(&mut self, job: &NewJob) {
        let Record { owner, footprint, .. } = &job.record;
        let name = JobKey { owner: owner.clone(), id: job.id };
        self.ledger.withdraw(&name, footprint + job.room, job.key.as_ref());
    }

    /// Records that a job was claimed; returns what the worker must wait for before the handler may have effects. On
    /// disk, a redirected job is already running.
    pub fn claim(&self, taken: &Taken<Place<Box<Call>>>) -> Option<Outcome> {
        if let Work::Again(attempt) = &taken.work
            && attempt.redirected.is_some()
        {
            return None;
        }
        let change = Change::Claim(taken.job.id, taken.starts);
        match (taken.rerun, self.urgency) {
            // Otherwise, a job that crashes its host within the 50 ms of a relaxed store would do so for ever.
            (Rerun::Yes, _) | (Rerun::No, Urgency::Urgent) => Some(self.insist(change)),
            (Rerun::No, Urgency::Lazy) | (Rerun::Harmless, _) => {
                self.put_off(change);
                None
            }
        }
    }

    /// Finishes a pending job with `response`, or with `410` if it was cancelled in time, and sends the result to the
    /// writer. A job that the shutdown has stopped stays as it is on disk, as after a crash.
    pub fn finish(&mut self, job: &JobKey, response: StoredResponse, now: Moment) -> Finished {
        if self.ledger.abandon(job) {
            return Finished::Left;
        }
        let Some(finishing) = self.ledger.begin_finish(job, response) else {
            return Finished::Dropped;
        };
        let Finishing { result, cancelled, created, attempts } = finishing;
        let is_unwanted = self.ledger.is_unwanted(job);
        let fitted =
            if is_unwanted { Ok(result) } else { self.ledger.fit_result(job, result, |_| RECORD) };
        let is_kept = fitted.is_ok() && cancelled == Cancelled::No && !is_unwanted;
        let result = fitted.unwrap_or_else(|error| error);
        let summary = result.summary();
        let result = Arc::new(result);
        let notices = self.ledger.take_notices(job, &result, summary, now, InMemory::Record);
        if is_unwanted && notices.is_empty() {
            self.ledger.finish(job, Place::OnDisk, summary, now);
            self.put_off(Change::Remove(vec![job.id]));
            return Finished::Dropped;
        }
        let kept = (!is_unwanted).then(|| {
            let aged = Some(self.scale.kept(now.age));
            let Summary { ending, log, logged } = summary;
            let (finished, ending) = (now.stamp, Some(ending));
            let state = Stage::Done { finished, aged, log, logged, attempts, ending };
            let line = self.ledger.pending(job).map(|pending| pending.line.clone());
            let (owner, line) = (job.owner.clone(), line.unwrap_or_default());
            let footprint = RECORD + line.footprint() + result.footprint();
            (Record { owner, created, footprint, line, state }, Arc::clone(&result))
        });
        let (notices, accepted) =
            notices.into_iter().map(|notice| self.new_job(notice, now)).unzip();
        let on_durable = match self.urgency {
            Urgency::Urgent => OnDurable::Finish(job.clone(), summary, now, accepted),
            Urgency::Lazy => {
                self.ledger.finish(job, Place::Here(result), summary, now);
                OnDurable::FlushResult(job.clone(), accepted)
            }
        };
        let change = Change::Finish(job.id, Box::new(End { kept, notices }));
        let (size, urgency) = (change.size(), self.urgency);
        if self.order(Order::new(change, on_durable, Ack::None, urgency)) {
            self.backlog += size;
        }
        if is_kept { Finished::Kept } else { Finished::Dropped }
    }

    /// Returns a notice in two forms: as it is written, and as it enters the schedule once it is durable, so that no
    /// notice is about a result that a crash would undo.
    fn new_job(&self, notice: Notice, now: Moment) -> (NewJob, (JobKey, Box<DiskPending>)) {
        let Notice { job, lane, route, call, line, size, charge } = notice;
        let state = Stage::Pending {
            begun: Begun::No,
            starts: 0,
            keep: Keep::Nothing,
            connection: call.connection,
            auth_type: call.auth_type,
            path: lane.name().to_owned(),
            callback: None,
        };
        let (owner, created, footprint) = (job.owner.clone(), now.stamp, size.footprint);
        let new_job = NewJob {
            id: job.id,
            record: Record { owner, created, footprint, line: line.clone(), state },
            room: 0,
            aged: self.scale.kept(now.age),
            request: (message::request_head(&call.request), call.request.into_body()),
            key: None,
        };
        let pending = Pending::waiting(route, Place::OnDisk, line, footprint, charge, created);
        (new_job, (job, Box::new(pending)))
    }

    /// Returns whether so much is on its way to the disk that workers should wait.
    pub const fn is_behind(&self) -> bool {
        self.backlog > MAX_BACKLOG
    }
}

impl Wake for State {
    fn wakes(&mut self) -> Wakes {
        let dropped = self.ledger.take_dropped_logs();
        if !dropped.is_empty() {
            self.put_off(Change::Remove(dropped));
        }
        self.ledger.wakes()
    }

    fn is_stopped(&self) -> bool {
        self.ledger.is_stopped()
    }
}

impl Shared {
    /// Returns the shared state over open tables, with what is needed to open them again.
    pub fn new(
        state: State,
        tables: Tables,
        open: Box<dyn Fn() -> Result<Tables, TableError> + Send + Sync>,
        folder: Arc<dyn Files>,
    ) -> Arc<Self> {
        Arc::new(Self {
            scale: Arc::clone(&state.scale),
            state: Mutex::new(state),
            dispatch: Dispatch::default(),
            folder,
            tables: RwLock::new(Ok(tables)),
            open,
            failing: AtomicBool::new(false),
            errors: AtomicU64::new(0),
            doubted: AtomicBool::new(false),
            eased: Condvar::new(),
        })
    }

    /// Locks the ledger and the channel to the writer.
    pub fn lock(&self) -> Locked<'_, State> {
        self.dispatch.lock(&self.state)
    }

    /// Reads the tables. If that fails, calls the writer: after one failure, redb refuses everything until it is
    /// opened anew.
    ///
    /// # Errors
    /// [`TableError`], also if they are not open.
    pub fn read<T>(
        &self,
        run: impl FnOnce(&Tables) -> Result<T, TableError>,
    ) -> Result<T, TableError> {
        self.with_tables(run).inspect_err(|_| {
            self.count_error();
            if !self.doubted.swap(true, Ordering::AcqRel) {
                self.lock().put_off(Change::Nothing);
            }
        })
    }

    /// Clears the mark that the tables could not be read: the next read will show.
    pub fn trust(&self) {
        self.doubted.store(false, Ordering::Release);
    }

    /// Asks the writer for a change whose outcome the ledger need not know.
    pub fn ask(&self, change: Change) -> Outcome {
        self.lock().ask(change, OnDurable::Nothing)
    }

    /// Uses the tables.
    ///
    /// # Errors
    /// [`TableError`], also if they are not open.
    pub fn with_tables<T>(
        &self,
        run: impl FnOnce(&Tables) -> Result<T, TableError>,
    ) -> Result<T, TableError> {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        tables.as_ref().map_err(TableError::new).and_then(run)
    }

    /// Opens the tables anew after a fault: until then, redb refuses even to read. Tables that were not changed since
    /// they were last opened, and that can be read, stay as they are.
    pub fn reopen(&self) {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        let in_doubt = self.doubted.swap(false, Ordering::AcqRel);
        if !in_doubt && tables.as_ref().is_ok_and(Tables::is_held_back) {
            return;
        }
        // The old tables first, because they hold the file.
        close(std::mem::replace(&mut *tables, Err(String::new())));
        *tables = (self.open)().map_err(|fault| fault.to_string());
    }

    /// Shortens the file of the tables if that is worthwhile with `stored` bytes of content. Reads wait during that
    /// time.
    ///
    /// # Errors
    /// [`TableError`]; then the tables must be opened anew.
    pub fn shrink(&self, stored: usize) -> Result<(), TableError> {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        match &mut *tables {
            Ok(tables) if !tables.is_held_back() => tables.shrink(stored),
            _ => Ok(()),
        }
    }

    /// Closes the tables for good.
    pub fn shut(&self) {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        close(std::mem::replace(&mut *tables, Err("the store is closed".into())));
    }

    /// Counts a failed attempt to read or change the tables.
    pub fn count_error(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of failed attempts.
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    /// Returns whether commits currently fail.
    pub fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Acquire)
    }

    /// Sets whether commits fail.
    pub fn set_failing(&self, failing: bool) {
        self.failing.store(failing, Ordering::Release);
    }

    /// Returns whether the store is closed.
    pub fn is_closed(&self) -> bool {
        self.lock().orders.is_none()
    }

    /// Waits while much is on its way to the disk, so that workers do not fill the memory with results faster than the
    /// disk can take them.
    pub fn wait_for_ease(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.is_behind() {
            state = self.eased.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Records that this many bytes are on disk.
    pub fn ease(&self, mut state: Locked<'_, State>, bytes: usize) {
        state.backlog -= bytes;
        drop(state);
        self.eased.notify_all();
    }

    /// Records that the writer has ended, and that nothing more will be written.
    pub fn abandon(&self) {
        let mut state = self.lock();
        state.orders = None;
        let bytes = state.backlog;
        self.ease(state, bytes);
    }

    /// Returns the last id that was assigned.
    pub fn last_id(&self) -> Option<JobId> {
        self.lock().ledger.last_id()
    }
}

fn close(tables: Result<Tables, String>) {
    if let Ok(Err(fault)) = tables.map(Tables::close) {
        log::debug!("cannot close the tables: {fault}");
    }
}
