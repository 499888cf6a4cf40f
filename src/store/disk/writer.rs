//! The one writer: changes that arrive together are committed together.
//!
//! Owns the batch, the time of its commit, and what happens if that fails. Invariants: changes are made in their
//! order, except that while commits fail, changes that make room come before those that take it, unless both concern
//! one job (`part`); a change that a client may rely on is repeated until it is durable; a refused submission leaves
//! nothing behind, not even if the disk wrote it and reported that it did not.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvError, RecvTimeoutError, Sender};

use super::Durability;
use super::order::{Accepted, Ack, Change, OnDurable, Order, Urgency};
use super::state::{Place, Shared, State};
use super::tables::TableError;
use crate::exchange::Call;
use crate::files::FileName;
use crate::job::JobId;
use crate::job::stored::StoredResult;
use crate::ledger::job::{Phase, Work};
use crate::store::StoreUnavailable;

/// How long a change for which no thread waits is held back, to be committed together with others.
const LAZY: Duration = Duration::from_millis(20);
/// The same if all changes are of this kind; less than the promised 50 ms, to leave time for the commit.
const RELAXED: Duration = Duration::from_millis(40);
/// How much one commit contains, in changes and in bytes: redb holds it in memory.
const MAX_CHANGES: usize = 1024;
const MAX_BYTES: usize = 8 << 20;
/// How long no order must have arrived before the file is shortened, which takes a while.
const IDLE: Duration = Duration::from_secs(1);
/// The period at which the same failure is logged.
const TELL_EVERY: Duration = Duration::from_secs(60);
/// How far ids that may be assigned without being on disk may exceed the last id, in microseconds, the unit of ids:
/// ten minutes.
const LEASE: u64 = 600_000_000;

/// The writer's own state.
pub struct Writer {
    shared: Arc<Shared>,
    orders: Receiver<Order>,
    durability: Durability,
    /// How long a disk that failed is left alone.
    rest: Duration,
    batch: Vec<Order>,
    /// Whether something was freed since the last attempt to shorten the file.
    may_shrink: bool,
    /// The files that must still be removed.
    unnamed: BTreeSet<FileName>,
    /// The highest id that may be assigned without being on disk, once the batch is durable.
    lease: Option<JobId>,
    /// When the last failure was logged.
    told: Option<Instant>,
    /// Whether a failure was logged, but not yet its end.
    is_end_owed: bool,
    /// Receives, at the end, the accepted jobs that are not durable.
    lost: Sender<Vec<JobId>>,
}

impl Writer {
    /// Returns a writer for the orders that it receives.
    pub fn new(
        shared: Arc<Shared>,
        orders: Receiver<Order>,
        durability: Durability,
        rest: Duration,
        lost: Sender<Vec<JobId>>,
    ) -> Self {
        let (batch, may_shrink, unnamed, lease, told, is_end_owed) = <_>::default();
        Self {
            shared,
            orders,
            durability,
            rest,
            batch,
            may_shrink,
            unnamed,
            lease,
            told,
            is_end_owed,
            lost,
        }
    }

    /// Writes until the store is closed and everything is written, or cannot be written.
    pub fn run(mut self) {
        let mut written = Ok(());
        while written.is_ok() && self.gather() {
            written = self.commit();
        }
        let lost = self.batch.iter().filter_map(|order| match &order.on_durable {
            OnDurable::FlushRequest(job) => Some(job.id),
            _ => None,
        });
        let lost = lost.collect();
        if written.is_ok() {
            self.sign_off();
        }
        self.batch.clear();
        self.shared.abandon();
        self.shared.shut();
        // The thread that closed the store may no longer wait.
        let _ = self.lost.send(lost);
    }

    /// Waits for an order. If none arrives, shortens the file if that is worthwhile.
    fn next_order(&mut self) -> Result<Order, RecvError> {
        if self.may_shrink {
            match self.orders.recv_timeout(IDLE) {
                Err(RecvTimeoutError::Timeout) => self.shrink(),
                received => return received.map_err(|_| RecvError),
            }
        }
        self.orders.recv()
    }

    /// Shortens the file if much of it is free: redb doubles the file when it grows and reuses free pages, but never
    /// returns them by itself.
    fn shrink(&mut self) {
        self.may_shrink = false;
        let stored = self.shared.lock().ledger.stats().stored;
        if let Err(fault) = self.shared.shrink(stored) {
            log::debug!("the file could not be made shorter: {fault}");
            self.shared.reopen();
        }
    }

    /// Collects the next batch; returns `false` if there will be none.
    fn gather(&mut self) -> bool {
        let Ok(first) = self.next_order() else { return false };
        let lag = if self.durability == Durability::Relaxed { RELAXED } else { LAZY };
        let deadline = Instant::now() + lag;
        let (mut bytes, mut urgent) = (0, false);
        let mut next = Some(first);
        while let Some(order) = next {
            bytes += order.change.size();
            urgent |= order.urgency == Urgency::Urgent;
            self.batch.push(order);
            if self.batch.len() >= MAX_CHANGES || bytes >= MAX_BYTES {
                break;
            }
            let wait = || if urgent { None } else { self.orders.recv_deadline(deadline).ok() };
            next = self.orders.try_recv().ok().or_else(wait);
        }
        true
    }

    /// Commits the batch, however long that takes; returns an error if the store was closed before it succeeded.
    fn commit(&mut self) -> Result<(), StoreUnavailable> {
        if let Err(fault) = self.try_commit() {
            log::debug!("a commit failed, trying once more: {fault}");
            self.shared.reopen();
            if let Err(fault) = self.try_commit() {
                self.persist(fault)?;
            }
        }
        self.finish_batch();
        Ok(())
    }

    fn try_commit(&mut self) -> Result<(), TableError> {
        let last = self.last_id();
        self.lease = last.filter(|_| self.durability == Durability::Relaxed);
        let named = self.name_files();
        let changes = self.batch.iter_mut().map(|order| (&order.change, &mut order.unnamed));
        let committed = named.and_then(|()| {
            self.shared.with_tables(|tables| {
                tables.commit_overlay()?;
                tables.commit(changes, last.map(|last| (last, self.shared.scale.read())))
            })
        });
        committed.inspect_err(|_| self.shared.count_error())?;
        // Earlier failed reads no longer concern the tables that are now open.
        self.shared.trust();
        Ok(())
    }

    /// Makes the files that the batch names permanent: the thread that wrote a file has synced it, and this syncs the
    /// folder.
    fn name_files(&self) -> Result<(), TableError> {
        let adds = |change: &&Change| change.takes_room();
        let changes = self.batch.iter().map(|order| &order.change).filter(adds);
        let mut files = changes.filter_map(Change::file).peekable();
        if files.peek().is_none() {
            return Ok(());
        }
        // Before the commit: even if that fails, it may have made the names durable.
        files.for_each(|file| file.keep());
        let synced = self.shared.folder.sync();
        synced.map_err(|error| TableError::new(format!("content: {error}")))
    }

    /// Removes the files that no record names now. If a file cannot be removed, tries again after the next commit.
    fn remove_files(&mut self) {
        for order in &mut self.batch {
            self.unnamed.append(&mut order.unnamed);
            if let Change::Withdraw(_) = &order.change
                && let Some(file) = order.change.file()
            {
                file.give_up();
            }
        }
        self.unnamed.retain(|&name| match self.shared.folder.remove(name) {
            Ok(()) => false,
            Err(error) => {
                log::debug!("content/{name} cannot be removed, and is tried again: {error}");
                true
            }
        });
    }

    /// Returns the highest id that may be assigned before the next commit.
    fn last_id(&self) -> Option<JobId> {
        let accepts = self.batch.iter().any(|order| order.change.accepts());
        match self.durability {
            Durability::Commit if !accepts => None,
            Durability::Commit => self.shared.last_id(),
            Durability::Relaxed => {
                let last = self.shared.last_id()?;
                JobId::new(last.number().saturating_add(LEASE))
            }
        }
    }

    /// Repeats the commit until it succeeds, and meanwhile answers waiting threads, including new ones. Orders that do
    /// not fit all at once may fit in parts; the file of a request that its result replaces makes room for the next.
    fn persist(&mut self, mut fault: TableError) -> Result<(), StoreUnavailable> {
        self.shared.set_failing(true);
        let mut most = usize::MAX;
        loop {
            self.tell(&fault);
            self.refuse(is_hopeless);
            self.make_room();
            self.refuse(|_| true);
            let open = self.rest();
            let count = most.min(self.batch.len());
            match self.commit_first(count) {
                Ok(()) if self.batch.is_empty() => break,
                Ok(()) => most = most.saturating_mul(2),
                Err(_) if !open => return Err(StoreUnavailable),
                Err(other) => (fault, most) = (other, (count / 2).max(1)),
            }
        }
        self.shared.set_failing(false);
        // Logged only if the failure was logged: a disk may fail and work in turn.
        if std::mem::take(&mut self.is_end_owed) {
            log::info!("the store on disk works again");
        }
        Ok(())
    }

    /// Leaves the disk alone for a while; returns `false` if the store was closed.
    fn rest(&mut self) -> bool {
        let until = Instant::now() + self.rest;
        while Instant::now() < until {
            match self.orders.recv_deadline(until) {
                Ok(order) if is_hopeless(&order) => {
                    self.batch.extend(refused(order, &self.shared));
                }
                Ok(order) => self.batch.push(order),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        true
    }

    /// Commits the changes that make room, without those that need room first; and opens the tables, so that results
    /// can be read in the meantime.
    fn make_room(&mut self) {
        self.shared.reopen();
        let (room, rest) = part(std::mem::take(&mut self.batch));
        let count = room.len();
        self.batch = room;
        self.batch.extend(rest);
        if count > 0 && self.commit_first(count).is_err() {
            self.shared.reopen();
        }
    }

    /// Commits the first orders of the batch, and removes them from it.
    fn commit_first(&mut self, count: usize) -> Result<(), TableError> {
        let rest = self.batch.split_off(count);
        let committed = self.try_commit();
        if committed.is_ok() {
            self.finish_batch();
        }
        self.batch.extend(rest);
        committed
    }

    /// Refuses these orders.
    fn refuse(&mut self, which: impl Fn(&Order) -> bool) {
        for order in std::mem::take(&mut self.batch) {
            if which(&order) {
                self.batch.extend(refused(order, &self.shared));
            } else {
                self.batch.push(order);
            }
        }
    }

    fn tell(&mut self, fault: &TableError) {
        if self.told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            log::error!(
                "the store on disk fails, new jobs are refused until it works again: {fault}"
            );
            self.told = Some(Instant::now());
            self.is_end_owed = true;
        }
    }

    /// Tells the ledger that the batch is durable, and the threads that wait for it.
    fn finish_batch(&mut self) {
        self.remove_files();
        self.may_shrink |= self.batch.iter().any(|order| order.change.may_free());
        let mut waste = Vec::new();
        let mut arrived = 0;
        let mut state = self.shared.lock();
        for order in &mut self.batch {
            if let Change::Finish(..) = &order.change {
                arrived += order.change.size();
            }
            let on_durable = std::mem::replace(&mut order.on_durable, OnDurable::Nothing);
            waste.extend(durable(&mut state, on_durable));
        }
        if let Some(lease) = self.lease {
            state.lease(lease);
        }
        self.shared.ease(state, arrived);
        for order in self.batch.drain(..) {
            match order.ack {
                Ack::None => {}
                Ack::Soon(promise) | Ack::Durable(promise) => promise.keep(),
            }
        }
    }

    /// Records exactly the last id that was assigned.
    fn sign_off(&self) {
        let last = self.shared.last_id().map(|last| (last, self.shared.scale.read()));
        let signed = self.shared.with_tables(|tables| tables.commit(std::iter::empty(), last));
        if let Err(fault) = signed {
            log::warn!("cannot close the store on disk: {fault}");
        }
    }
}

/// What is no longer needed in memory, to be dropped without the lock.
enum Waste {
    Request(#[expect(dead_code, reason = "it is there to be dropped")] Place<Box<Call>>),
    Result(#[expect(dead_code, reason = "it is there to be dropped")] Place<Arc<StoredResult>>),
}

/// Tells the ledger that a change is durable.
fn durable(state: &mut State, on_durable: OnDurable) -> Option<Waste> {
    match on_durable {
        OnDurable::Nothing => None,
        OnDurable::Accept(job, pending, keep) => {
            state.ledger.accept(&job, pending, keep);
            None
        }
        OnDurable::Finish(job, summary, now, notices) => {
            state.ledger.finish(&job, Place::OnDisk, summary, now);
            accept(state, notices);
            None
        }
        OnDurable::FlushRequest(job) => match &mut state.ledger.pending_mut(&job)?.phase {
            Phase::Waiting { work: Work::First(request), .. } => {
                Some(Waste::Request(std::mem::replace(request, Place::OnDisk)))
            }
            _ => None,
        },
        OnDurable::FlushResult(job, notices) => {
            accept(state, notices);
            let Some(result) = state.ledger.result_mut(&job) else {
                // The result was collected in the meantime; its log may be kept.
                state.ledger.flush_log(&job);
                return None;
            };
            Some(Waste::Result(std::mem::replace(result, Place::OnDisk)))
        }
    }
}

fn accept(state: &mut State, notices: Accepted) {
    for (notice, pending) in notices {
        state.ledger.accept_notice(&notice, pending);
    }
}

/// Returns whether this can be refused without asking a disk that failed, perhaps because it is full.
const fn is_hopeless(order: &Order) -> bool {
    !matches!(order.change, Change::Settled)
}

/// Splits orders into those that make room and the rest. Both parts keep their order, and the first can be committed
/// before the second: an order that must follow one of the rest is in the rest.
fn part(orders: Vec<Order>) -> (Vec<Order>, Vec<Order>) {
    let (mut room, mut rest) = (Vec::new(), Vec::new());
    let mut waiting = HashSet::new();
    let (mut keys_wait, mut room_waits) = (false, false);
    for order in orders {
        let change = &order.change;
        let goes = match change {
            Change::Settled => !room_waits,
            Change::RemoveKeys(_) => !keys_wait,
            change => change.makes_room() && !change.jobs().iter().any(|id| waiting.contains(id)),
        };
        if goes {
            room.push(order);
        } else {
            waiting.extend(change.jobs().iter().copied());
            keys_wait |= matches!(change, Change::Accept(_));
            room_waits |= change.makes_room();
            rest.push(order);
        }
    }
    (room, rest)
}

/// Tells a waiting thread that its change is delayed. A submission is withdrawn: from the accounts, and from the disk,
/// which may have it. Returns what remains to be done, if anything: a disk that fails for days must not fill the
/// memory with orders that no thread waits for.
fn refused(mut order: Order, shared: &Shared) -> Option<Order> {
    if let Ack::Soon(_) = &order.ack {
        if let Change::Accept(job) = &order.change {
            shared.lock().withdraw(job);
            order.on_durable = OnDurable::Nothing;
            order.change = order.change.withdrawn();
        }
        // Only now, when nothing of the submission is left.
        order.ack = Ack::None;
    }
    (!order.is_void()).then_some(order)
}
