//! The connections of an instance to its engine, each with the numbers of the operations sent over it.
//!
//! Owns how many there are, and which are borrowed. Connects to nothing. Invariant: a borrowed slot is given back when
//! it is dropped, or its number is never used again.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::lock;
use super::operation::{Insist, Trouble};
use super::wire::Wire;

/// How long a thread waits for a connection of the pool.
const BORROW_TIME: Duration = Duration::from_secs(2);
/// How many connections a pool has at most.
const MOST_CONNECTIONS: usize = 32;

/// A connection with the numbers of the operations that were sent over it, or over its predecessors.
#[derive(Debug)]
pub struct Slot {
    /// Its number in this process.
    pub number: u64,
    /// The number of its last operation.
    pub operations: u64,
    /// The connection; `None` if it must be opened first.
    pub connection: Option<Wire>,
    /// The generation of the engine that it leads to, counted from the first.
    pub generation: u64,
}

/// The slots of an instance.
pub struct Pool {
    most: usize,
    places: Mutex<Places>,
    freed: Condvar,
    slots: AtomicU64,
}

#[derive(Default)]
struct Places {
    idle: Vec<Slot>,
    /// How many slots were made, including those that are borrowed.
    made: usize,
}

/// A slot of the pool, given back when dropped.
pub struct Borrowed<'a> {
    pool: &'a Pool,
    /// `None` only while it is being dropped.
    slot: Option<Slot>,
}

impl Pool {
    /// Returns a pool for this many workers. Does not connect.
    pub fn new(workers: usize) -> Self {
        Self {
            most: (workers + 8).min(MOST_CONNECTIONS),
            places: Mutex::default(),
            freed: Condvar::new(),
            slots: AtomicU64::new(0),
        }
    }

    /// Returns a slot outside the pool, for a thread of its own.
    pub fn slot(&self) -> Slot {
        let number = self.slots.fetch_add(1, Ordering::Relaxed);
        Slot { number, operations: 0, connection: None, generation: 0 }
    }

    /// Borrows a slot, as soon as one is free.
    ///
    /// # Errors
    /// [`Trouble`]: all are in use for too long, or `is_closed`.
    pub fn borrow(
        &self,
        insist: Insist,
        is_closed: impl Fn() -> bool,
    ) -> Result<Borrowed<'_>, Trouble> {
        let deadline = Instant::now() + BORROW_TIME;
        let mut places = lock(&self.places);
        loop {
            if is_closed() {
                return Err(Trouble::Closed);
            }
            if let Some(slot) = places.idle.pop() {
                return Ok(Borrowed { pool: self, slot: Some(slot) });
            }
            if places.made < self.most {
                places.made += 1;
                return Ok(Borrowed { pool: self, slot: Some(self.slot()) });
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() && insist != Insist::Yes {
                return Err(Trouble::Refused("all connections to it are in use".into()));
            }
            let span = if insist == Insist::Yes { BORROW_TIME } else { left };
            places =
                self.freed.wait_timeout(places, span).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Makes all waiting threads check again.
    pub fn wake_all(&self) {
        drop(lock(&self.places));
        self.freed.notify_all();
    }
}

impl Borrowed<'_> {
    /// Replaces the slot by a new one: this one is never used again.
    pub fn retire(mut self) {
        self.slot = None;
    }
}

impl Deref for Borrowed<'_> {
    type Target = Slot;

    fn deref(&self) -> &Slot {
        self.slot.as_ref().expect("it is there until it is dropped")
    }
}

impl DerefMut for Borrowed<'_> {
    fn deref_mut(&mut self) -> &mut Slot {
        self.slot.as_mut().expect("it is there until it is dropped")
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        let mut places = lock(&self.pool.places);
        match self.slot.take() {
            Some(slot) => places.idle.push(slot),
            None => places.made -= 1,
        }
        drop(places);
        self.pool.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_reused_and_a_retired_number_is_not() {
        let pool = Pool::new(1);
        let borrow = || pool.borrow(Insist::No, || false).unwrap();
        let all: Vec<Borrowed<'_>> = (0..9).map(|_| borrow()).collect();
        let refused = pool.borrow(Insist::No, || false).err();
        assert!(matches!(refused, Some(Trouble::Refused(_))), "{refused:?}");
        let closed = pool.borrow(Insist::Yes, || true).err();
        assert_eq!(closed, Some(Trouble::Closed));
        drop(all);
        let mut numbers: Vec<u64> = (0..9).map(|_| borrow()).map(|slot| slot.number).collect();
        numbers.dedup();
        assert_eq!(numbers, [8], "the last one that came back");
        borrow().retire();
        let all: Vec<Borrowed<'_>> = (0..9).map(|_| borrow()).collect();
        let mut numbers: Vec<u64> = all.iter().map(|slot| slot.number).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [0, 1, 2, 3, 4, 5, 6, 7, 9]);
    }

    #[test]
    fn a_thread_that_panics_gives_its_slot_back() {
        let pool = Pool::new(1);
        for _ in 0..20 {
            let panicked = std::thread::scope(|scope| {
                scope
                    .spawn(|| {
                        let _place = pool.borrow(Insist::No, || false).unwrap();
                        std::panic::resume_unwind(Box::new("no matter"));
                    })
                    .join()
            });
            assert!(panicked.is_err());
        }
        assert!(pool.borrow(Insist::No, || false).is_ok());
    }
}
