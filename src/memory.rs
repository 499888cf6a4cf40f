//! The budget of memory: how much content deferd holds at once, for any purpose (`--max-memory`).
//!
//! Owns the count, the shares that no holder may exceed, and the wait for room. Holds no content itself: each holder
//! of content also holds a [`Charge`], which gives its bytes back when it is dropped. Invariants: charges never exceed
//! the budget, and those of a share never exceed the share, except for what was [found](Allowance::charge_found) at
//! start; nothing here is counted by hand. What else the process keeps (`kept`) also takes from the budget, so that
//! all of its memory is bounded.

mod kept;

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use kept::Kept;

use crate::files::Files;

/// How often a thread that waits for room checks without being woken.
const LOOK: Duration = Duration::from_millis(100);

/// The part of the budget that one holder may have at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// For all content together whose senders are not verified yet.
    Quarter,
    /// For one peer, except a peer on loopback.
    Half,
    /// For the store.
    ThreeQuarters,
}

/// The memory that content may take, in bytes.
pub struct Budget {
    capacity: usize,
    used: AtomicUsize,
    /// What the process keeps besides that.
    kept: Kept,
    /// The number of threads that wait for room.
    waiting: AtomicUsize,
    lock: Mutex<()>,
    freed: Condvar,
    /// The shares of peers that hold something, or did so recently.
    peers: Mutex<HashMap<IpAddr, Weak<Share>>>,
    /// The folder for content that is too large for memory, and the budget of that folder.
    disk: Option<(Arc<dyn Files>, Arc<Self>)>,
}

/// What one holder has of the budget.
struct Share {
    capacity: usize,
    used: AtomicUsize,
}

/// The budget has no room for more content now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom;

/// The right to charge the budget, either within a share or without a bound of its own. Each holder, such as a
/// connection's thread, has an allowance of its own, so that cloning it does not write to a counter that all threads
/// share.
#[derive(Clone)]
pub struct Allowance(Arc<Bounds>);

struct Bounds {
    budget: Arc<Budget>,
    share: Option<Arc<Share>>,
    unproven: Option<Unproven>,
    /// The allowance for content on disk.
    disk: Option<Allowance>,
}

/// The disk for content that is too large for memory.
pub struct Disk {
    /// The folder of its files.
    pub folder: Arc<dyn Files>,
    /// How much content in transit, received or produced, it may hold at once, in bytes: the store accounts for what
    /// is stored.
    pub capacity: usize,
}

/// The charges of a sender that is not verified yet.
struct Unproven {
    /// The share of all such senders together.
    share: Arc<Share>,
    /// How much of the share this sender has, in bytes; `None` once it is verified.
    held: Mutex<Option<usize>>,
}

impl Unproven {
    fn held(&self) -> MutexGuard<'_, Option<usize>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn grow(&self, bytes: usize) -> Result<(), NoRoom> {
        if let Some(held) = &mut *self.held() {
            take(&self.share.used, self.share.capacity, bytes)?;
            *held += bytes;
        }
        Ok(())
    }

    fn shrink(&self, bytes: usize) {
        if let Some(held) = &mut *self.held() {
            self.share.used.fetch_sub(bytes, Ordering::AcqRel);
            *held -= bytes;
        }
    }

    fn end(&self) {
        let held = self.held().take().unwrap_or(0);
        self.share.used.fetch_sub(held, Ordering::AcqRel);
    }
}

/// A number of bytes of the budget, given back when dropped.
#[must_use]
pub struct Charge {
    allowance: Allowance,
    bytes: usize,
}

/// Returns the size of an allocation of `bytes`, in bytes: with a header of 8, in steps of 16, at least 32, as in
/// glibc on 64 bits; other allocators are similar.
pub const fn allocated(bytes: usize) -> usize {
    if bytes == 0 {
        return 0;
    }
    let size = (bytes + 8).next_multiple_of(16);
    if size < 32 { 32 } else { size }
}

/// Adds `bytes` to `used` unless that exceeds `capacity`.
fn take(used: &AtomicUsize, capacity: usize, bytes: usize) -> Result<(), NoRoom> {
    let more = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= capacity);
    used.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).map(drop).map_err(|_| NoRoom)
}

impl Budget {
    /// Returns a budget of `capacity` bytes, all free; memory that is not charged does not count.
    pub fn new(capacity: usize) -> Arc<Self> {
        Self::beside(Kept::nothing(), capacity, None)
    }

    /// Returns the same, with a disk for content that is too large for memory.
    pub fn with_disk(capacity: usize, disk: Disk) -> Arc<Self> {
        Self::beside(Kept::nothing(), capacity, Some(disk))
    }

    /// Returns a budget of `capacity` bytes, less what the process keeps besides its charges.
    pub fn of_process(capacity: usize, disk: Option<Disk>) -> Arc<Self> {
        Self::beside(Kept::of_process(), capacity, disk)
    }

    fn beside(kept: Kept, capacity: usize, disk: Option<Disk>) -> Arc<Self> {
        Arc::new(Self {
            capacity,
            used: AtomicUsize::new(0),
            kept,
            waiting: AtomicUsize::new(0),
            lock: Mutex::new(()),
            freed: Condvar::new(),
            peers: Mutex::default(),
            disk: disk.map(|disk| (disk.folder, Self::new(disk.capacity))),
        })
    }

    /// Returns its capacity, in bytes.
    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    /// Returns how many bytes are charged.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Acquire)
    }

    /// Returns how many bytes the process kept besides its charges at the last reading.
    pub fn kept(&self) -> usize {
        self.kept.bytes()
    }

    /// Returns how many bytes can be charged in all, if `bytes` are to be charged now. Up to half of the capacity,
    /// this does not depend on what is kept.
    fn usable(&self, bytes: usize) -> usize {
        let used = self.used();
        if used.saturating_add(bytes) <= self.capacity / 2 {
            return self.capacity;
        }
        self.capacity - self.kept.beside(used, self.capacity)
    }

    /// Returns an allowance that only the budget itself bounds.
    pub fn allowance(self: &Arc<Self>) -> Allowance {
        Allowance::new(self, None, |disk| disk.allowance())
    }

    /// Returns an allowance that is bounded by a part of the budget.
    pub fn share(self: &Arc<Self>, part: Part) -> Allowance {
        Allowance::new(self, Some(self.new_share(part)), |disk| disk.share(part))
    }

    fn new_share(&self, part: Part) -> Arc<Share> {
        let capacity = match part {
            Part::Quarter => self.capacity / 4,
            Part::Half => self.capacity / 2,
            Part::ThreeQuarters => self.capacity - self.capacity / 4,
        };
        Arc::new(Share { capacity, used: AtomicUsize::new(0) })
    }

    /// Returns the allowance of a peer: up to half of the budget, for all its connections together. A charge counts
    /// for as long as it is held, whether the peer is still connected or not. A peer on this host has no bound of its
    /// own.
    pub fn peer(self: &Arc<Self>, peer: IpAddr) -> Allowance {
        if peer.is_loopback() {
            return self.allowance();
        }
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let share = peers.get(&peer).and_then(Weak::upgrade).unwrap_or_else(|| {
            // The map has as many entries as there are connections and charges, and a few dead ones.
            peers.retain(|_, share| share.strong_count() > 0);
            let share = self.new_share(Part::Half);
            peers.insert(peer, Arc::downgrade(&share));
            share
        });
        drop(peers);
        Allowance::new(self, Some(share), |disk| disk.peer(peer))
    }

    /// Returns whether `bytes` are free at this moment.
    pub fn has_free(&self, bytes: usize) -> bool {
        self.usable(bytes).saturating_sub(self.used()) >= bytes
    }

    /// Waits until `bytes` are free, or until `is_over` returns true, because waiting has no more use. `is_over` is
    /// called at first, when room became free, and ten times a second.
    pub fn wait_for(&self, bytes: usize, is_over: impl Fn() -> bool) {
        let is_free = || self.has_free(bytes);
        if is_free() {
            return;
        }
        self.waiting.fetch_add(1, Ordering::SeqCst);
        // Called without the lock: a thread that gives room back takes it, and may hold a lock that `is_over` needs.
        while !is_free() && !is_over() {
            let guard = self.guard();
            if is_free() {
                break;
            }
            drop(self.freed.wait_timeout(guard, LOOK));
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }

    fn guard(&self) -> MutexGuard<'_, ()> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) > 0 {
            drop(self.guard());
            self.freed.notify_all();
        }
    }
}

impl Allowance {
    fn new(
        budget: &Arc<Budget>,
        share: Option<Arc<Share>>,
        on_disk: impl FnOnce(&Arc<Budget>) -> Self,
    ) -> Self {
        let disk = budget.disk.as_ref().map(|(_, disk)| on_disk(disk));
        Self(Arc::new(Bounds { budget: Arc::clone(budget), share, unproven: None, disk }))
    }

    /// Returns the folder for content that is too large for memory, and an empty charge for content there; `None` if
    /// there is no such folder.
    pub fn disk(&self) -> Option<(&Arc<dyn Files>, Charge)> {
        let folder = self.0.budget.disk.as_ref().map(|(folder, _)| folder);
        folder.zip(self.0.disk.as_ref().map(Self::nothing))
    }

    /// Returns the allowance that bounds content of any size: that of the disk, if there is a folder for it.
    pub fn of_content(&self) -> &Self {
        self.0.disk.as_ref().unwrap_or(self)
    }

    /// Returns the same allowance for a sender that is not verified yet: until [`prove`](Self::prove), its charges
    /// also take from that share of the budget.
    #[must_use]
    pub fn until_proven(&self, of_all: &Self) -> Self {
        let Bounds { budget, share, .. } = &*self.0;
        let unproven = of_all.0.share.clone();
        let unproven = unproven.map(|share| Unproven { share, held: Mutex::new(Some(0)) });
        let on_disk = self.0.disk.as_ref().zip(of_all.0.disk.as_ref());
        let disk = on_disk.map(|(disk, of_all)| disk.until_proven(of_all));
        Self(Arc::new(Bounds { budget: Arc::clone(budget), share: share.clone(), unproven, disk }))
    }

    /// Gives back what this sender has of the share of unverified senders, because it is now verified. Its charges to
    /// the budget remain.
    pub fn prove(&self) {
        if let Some(unproven) = &self.0.unproven {
            unproven.end();
        }
        if let Some(disk) = &self.0.disk {
            disk.prove();
        }
    }

    /// Charges `bytes`.
    ///
    /// # Errors
    /// [`NoRoom`]; then nothing is charged.
    pub fn charge(&self, bytes: usize) -> Result<Charge, NoRoom> {
        let mut charge = self.nothing();
        charge.grow(bytes)?;
        Ok(charge)
    }

    /// Charges `bytes` even if there is no room: for content that already exists.
    pub fn charge_found(&self, bytes: usize) -> Charge {
        if let Some(share) = &self.0.share {
            share.used.fetch_add(bytes, Ordering::AcqRel);
        }
        self.0.budget.used.fetch_add(bytes, Ordering::AcqRel);
        Charge { allowance: self.clone(), bytes }
    }

    /// Returns an empty charge, to be grown.
    pub fn nothing(&self) -> Charge {
        Charge { allowance: self.clone(), bytes: 0 }
    }

    /// Returns how much can be charged at most, in bytes: what is larger can never fit.
    pub fn capacity(&self) -> usize {
        let Bounds { budget, share, .. } = &*self.0;
        let of_share = share.as_ref().map_or(budget.capacity, |share| share.capacity);
        of_share.min(self.unproven_capacity().unwrap_or(of_share))
    }

    /// Returns the capacity for unverified senders; `None` if this sender is verified, or needs no verification.
    pub fn unproven_capacity(&self) -> Option<usize> {
        let unproven = self.0.unproven.as_ref()?;
        unproven.held().is_some().then_some(unproven.share.capacity)
    }

    /// Returns the budget.
    pub fn budget(&self) -> &Arc<Budget> {
        &self.0.budget
    }
}

/// Has no bound: for tests, and for what is bounded in another way.
impl Default for Allowance {
    fn default() -> Self {
        Budget::new(usize::MAX).allowance()
    }
}

impl fmt::Debug for Allowance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Allowance").field("capacity", &self.capacity()).finish_non_exhaustive()
    }
}

impl Charge {
    /// Returns the whole charge, and leaves an empty one.
    pub fn take(&mut self) -> Self {
        Self { allowance: self.allowance.clone(), bytes: std::mem::take(&mut self.bytes) }
    }

    /// Returns `bytes` of it, or all if it has fewer, as a separate charge.
    pub fn split(&mut self, bytes: usize) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Self { allowance: self.allowance.clone(), bytes }
    }

    /// Returns the allowance that it is charged to.
    pub const fn allowance(&self) -> &Allowance {
        &self.allowance
    }

    /// Returns how many bytes it is.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns how large it can become, in bytes.
    pub fn capacity(&self) -> usize {
        self.allowance.capacity()
    }

    /// Charges `bytes` more.
    ///
    /// # Errors
    /// [`NoRoom`]; then it is as before.
    pub fn grow(&mut self, bytes: usize) -> Result<(), NoRoom> {
        if bytes == 0 {
            // This succeeds even if more is charged than the capacity.
            return Ok(());
        }
        let Bounds { budget, share, unproven, .. } = &*self.allowance.0;
        if let Some(unproven) = unproven {
            unproven.grow(bytes)?;
        }
        let of_share = share.as_ref().map_or(Ok(()), |s| take(&s.used, s.capacity, bytes));
        let taken = of_share.and_then(|()| {
            let of_budget = take(&budget.used, budget.usable(bytes), bytes);
            of_budget.inspect_err(|NoRoom| {
                if let Some(share) = share {
                    share.used.fetch_sub(bytes, Ordering::AcqRel);
                }
            })
        });
        match taken {
            Ok(()) => self.bytes += bytes,
            Err(NoRoom) => unproven.iter().for_each(|unproven| unproven.shrink(bytes)),
        }
        taken
    }

    /// Gives back all but `bytes`.
    pub fn shrink_to(&mut self, bytes: usize) {
        let more = self.bytes.saturating_sub(bytes);
        if more == 0 {
            return;
        }
        self.bytes -= more;
        let Bounds { budget, share, unproven, .. } = &*self.allowance.0;
        if let Some(unproven) = unproven {
            unproven.shrink(more);
        }
        if let Some(share) = share {
            share.used.fetch_sub(more, Ordering::AcqRel);
        }
        budget.give_back(more);
    }

    /// Changes the charge to `bytes`, more or less than before.
    ///
    /// # Errors
    /// [`NoRoom`]; then it is as before.
    pub fn resize(&mut self, bytes: usize) -> Result<(), NoRoom> {
        self.shrink_to(bytes);
        self.grow(bytes - self.bytes)
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

impl fmt::Debug for Charge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Charge({})", self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::sync::mpsc;
    use std::thread;

    #[test]
    fn charges_never_exceed_the_budget_or_their_share() {
        let budget = Budget::new(100);
        let all = budget.allowance();
        let store = budget.share(Part::ThreeQuarters);
        let mut first = store.charge(75).unwrap();
        assert_eq!(store.charge(1).unwrap_err(), NoRoom);
        let second = all.charge(25).unwrap();
        assert_eq!(first.grow(1), Err(NoRoom));
        assert_eq!((budget.used(), first.bytes()), (100, 75));
        drop(second);
        assert_eq!(first.resize(76), Err(NoRoom), "its share is full");
        first.resize(10).unwrap();
        let third = all.charge(90).unwrap();
        assert_eq!(store.charge(1).unwrap_err(), NoRoom, "its share is not, the budget is");
        drop((first, third));
        assert_eq!(
            (budget.used(), store.0.share.as_ref().unwrap().used.load(Ordering::Relaxed)),
            (0, 0)
        );
    }

    #[test]
    fn a_charge_beyond_every_number_is_refused() {
        let budget = Budget::new(usize::MAX);
        let _first = budget.allowance().charge(1).unwrap();
        assert_eq!(budget.allowance().charge(usize::MAX).unwrap_err(), NoRoom);
    }

    #[test]
    fn a_peer_holds_half_and_loopback_all() {
        let budget = Budget::new(100);
        let stranger = "192.0.2.1".parse().unwrap();
        let local = "127.0.0.1".parse().unwrap();
        let held = budget.peer(stranger).charge(50).unwrap();
        assert!(budget.peer(stranger).charge(1).is_err(), "on another connection as well");
        let others = [budget.peer(local).charge(25), budget.peer(local).charge(25)];
        assert!(others.iter().all(Result::is_ok));
        drop((held, others));
        drop(budget.peer(local).charge(100).unwrap());
        drop(budget.peer("192.0.2.2".parse().unwrap()));
        assert!(budget.peers.lock().unwrap().len() <= 1, "peers that hold nothing are forgotten");
    }

    #[test]
    fn unproven_senders_hold_a_quarter_until_they_prove_themselves() {
        let budget = Budget::new(100);
        let unproven = budget.share(Part::Quarter);
        let all = budget.allowance();
        let (ann, eve) = (all.until_proven(&unproven), all.until_proven(&unproven));
        let mut of_ann = ann.charge(10).unwrap();
        let of_eve = eve.charge(15).unwrap();
        assert_eq!((of_ann.grow(1), ann.capacity()), (Err(NoRoom), 25));
        ann.prove();
        assert_eq!((ann.capacity(), budget.used()), (100, 25), "what it has is still charged");
        of_ann.grow(50).unwrap();
        assert_eq!(eve.charge(11).unwrap_err(), NoRoom);
        let full = all.charge(20).unwrap();
        assert_eq!(eve.charge(6).unwrap_err(), NoRoom, "the budget is full");
        drop(full);
        drop((eve.charge(10).unwrap(), of_eve, of_ann));
        let of_share = unproven.0.share.as_ref().unwrap().used.load(Ordering::Relaxed);
        assert_eq!((budget.used(), of_share), (0, 0));
        let peer = budget.peer("192.0.2.1".parse().unwrap());
        let _held = peer.charge(45).unwrap();
        assert_eq!(peer.until_proven(&unproven).charge(6).unwrap_err(), NoRoom);
        assert!(peer.until_proven(&unproven).charge(5).is_ok(), "a peer has half all the same");
    }

    #[test]
    fn what_is_found_counts_beyond_the_capacity() {
        let budget = Budget::new(10);
        let found = budget.share(Part::Half).charge_found(100);
        assert!(budget.allowance().charge(1).is_err());
        let mut nothing = budget.allowance().nothing();
        assert!(nothing.resize(0).is_ok(), "what needs no more fits");
        drop(found);
        assert!(budget.allowance().charge(10).is_ok());
    }

    #[test]
    fn what_the_process_keeps_takes_from_the_budget() {
        const MIB: usize = 1 << 20;
        // 12 MiB more than a process needs, whatever is charged.
        let charged = Arc::new(AtomicUsize::new(0));
        let resident = Arc::clone(&charged);
        let reading = move || Some(resident.load(Ordering::Relaxed) + 30 * MIB);
        let budget = Budget::beside(Kept::new(Some(Box::new(reading))), 32 * MIB, None);
        let memory = budget.allowance();
        assert_eq!(memory.charge(21 * MIB).unwrap_err(), NoRoom);
        let held = memory.charge(20 * MIB).unwrap();
        charged.store(20 * MIB, Ordering::Relaxed);
        assert_eq!((budget.kept(), memory.charge(1).unwrap_err()), (12 * MIB, NoRoom));
        let waits = Cell::new(0);
        budget.wait_for(MIB, || waits.replace(waits.get() + 1) > 0);
        assert!(waits.get() > 0, "a job waits as well");
        drop(held);
        // As much is now kept as was charged: half can be charged nevertheless.
        assert_eq!(memory.charge(17 * MIB).unwrap_err(), NoRoom);
        drop(memory.charge(16 * MIB).unwrap());
        budget.wait_for(16 * MIB, || panic!("there is room"));
    }

    #[test]
    fn is_over_may_take_a_lock_that_guards_a_charge() {
        let budget = Budget::new(10);
        let store = Arc::new(Mutex::new(Some(budget.allowance().charge(10).unwrap())));
        let (asks, asked) = mpsc::channel();
        let (gives, given) = mpsc::channel();
        let its = Arc::clone(&store);
        thread::spawn(move || {
            let mut held = its.lock().unwrap();
            asked.recv().unwrap();
            // The waiter calls `is_over`, which waits for the store.
            drop(held.take());
        });
        thread::spawn(move || {
            budget.wait_for(1, || {
                let _ = asks.send(());
                drop(store.lock().unwrap());
                false
            });
            gives.send(()).unwrap();
        });
        given.recv_timeout(Duration::from_secs(60)).expect("the wait ends");
    }

    #[test]
    fn a_wait_ends_with_room_or_when_it_is_over() {
        let budget = Budget::new(10);
        let held = budget.allowance().charge(8).unwrap();
        budget.wait_for(2, || panic!("there is room"));
        budget.wait_for(3, || true);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| budget.wait_for(3, || false));
            while budget.waiting.load(Ordering::SeqCst) == 0 {
                thread::yield_now();
            }
            drop(held);
            waiting.join().unwrap();
        });
        assert_eq!(budget.waiting.load(Ordering::SeqCst), 0);
    }
}
