//! Who may be connected: so many at once, and no peer more than half of them.
//!
//! Owns the count of connections and of requests in their hands. Invariant: a count goes down exactly
//! when the guard that raised it is dropped.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::call::Connection;

/// The places for connections.
pub struct Slots {
    capacity: usize,
    taken: Mutex<Taken>,
    /// Requests that were read and whose answer is not written yet.
    busy: AtomicUsize,
}

#[derive(Default)]
struct Taken {
    total: usize,
    by_peer: HashMap<IpAddr, usize>,
}

impl Slots {
    /// `capacity` free places.
    pub fn new(capacity: usize) -> Arc<Self> {
        Arc::new(Self { capacity, taken: Mutex::default(), busy: AtomicUsize::new(0) })
    }

    /// Takes a place for a connection; `None` if there is none left for it.
    pub fn take(self: &Arc<Self>, connection: &Connection) -> Option<Slot> {
        let peer = connection.peer_ip();
        let mut taken = self.lock();
        let of_peer = taken.by_peer.get(&peer).copied().unwrap_or(0);
        let most = if peer.is_loopback() { self.capacity } else { self.capacity.div_ceil(2) };
        if taken.total >= self.capacity || of_peer >= most {
            return None;
        }
        taken.total += 1;
        taken.by_peer.insert(peer, of_peer + 1);
        Some(Slot { slots: Arc::clone(self), peer })
    }

    /// How many requests are being answered.
    pub fn busy(&self) -> usize {
        self.busy.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of one connection.
pub struct Slot {
    slots: Arc<Slots>,
    peer: IpAddr,
}

impl Slot {
    /// Counts a request as being answered until the guard is dropped.
    pub fn begin_request(&self) -> Busy<'_> {
        self.slots.busy.fetch_add(1, Ordering::AcqRel);
        Busy(&self.slots)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.slots.lock();
        taken.total -= 1;
        if let Some(of_peer) = taken.by_peer.get_mut(&self.peer) {
            *of_peer -= 1;
            if *of_peer == 0 {
                taken.by_peer.remove(&self.peer);
            }
        }
    }
}

/// A request that is being answered.
pub struct Busy<'a>(&'a Slots);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_peer_holds_half_at_most_and_loopback_all() {
        let slots = Slots::new(4);
        let from = |peer: &str| Connection::Tcp {
            peer: peer.parse().unwrap(),
            local: "127.0.0.1:1".parse().unwrap(),
        };
        let foreign = &from("192.0.2.1:1");
        let mapped = &from("[::ffff:192.0.2.1]:2");
        let local = &from("127.0.0.1:3");
        let first = slots.take(foreign).unwrap();
        let second = slots.take(mapped).unwrap();
        assert!(slots.take(foreign).is_none());
        let others = [slots.take(local).unwrap(), slots.take(local).unwrap()];
        assert!(slots.take(local).is_none());
        drop((first, second));
        let all = [slots.take(local).unwrap(), slots.take(local).unwrap()];
        drop((others, all));
        assert!(slots.lock().by_peer.is_empty() && slots.lock().total == 0);
    }
}
