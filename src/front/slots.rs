//! The places for connections: a fixed number, of which no peer (an IPv6 network of /64 is one) has more than half.
//!
//! Owns the count of connections. Invariant: it goes down once for each guard that raised it: when the guard is
//! dropped, or when its connection no longer needs a place, because its client has left.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::in_flight::{Busy, InFlight};
use crate::exchange::Connection;

/// The places for connections.
pub struct Slots {
    capacity: usize,
    taken: Mutex<Taken>,
    in_flight: InFlight,
}

#[derive(Default)]
struct Taken {
    total: usize,
    /// How many were taken since the start.
    ever: usize,
    by_peer: HashMap<IpAddr, usize>,
}

impl Slots {
    /// Returns `capacity` free places.
    pub fn new(capacity: usize) -> Arc<Self> {
        Arc::new(Self { capacity, taken: Mutex::default(), in_flight: InFlight::default() })
    }

    /// Takes a place for a connection; returns `None` if none is free for it.
    pub fn take(self: &Arc<Self>, connection: &Connection) -> Option<Slot> {
        let peer = connection.counted_peer();
        let mut taken = self.lock();
        let of_peer = taken.by_peer.get(&peer).copied().unwrap_or(0);
        let most = if peer.is_loopback() { self.capacity } else { self.capacity.div_ceil(2) };
        if taken.total >= self.capacity || of_peer >= most {
            return None;
        }
        taken.total += 1;
        taken.ever = taken.ever.wrapping_add(1);
        taken.by_peer.insert(peer, of_peer + 1);
        let released = AtomicBool::new(false);
        Some(Slot { slots: Arc::clone(self), peer, number: taken.ever, released })
    }

    /// Returns how many places there are.
    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    /// Returns the requests in flight.
    pub const fn in_flight(&self) -> &InFlight {
        &self.in_flight
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of one connection.
pub struct Slot {
    slots: Arc<Slots>,
    peer: IpAddr,
    number: usize,
    /// Whether the place was already given back.
    released: AtomicBool,
}

impl Slot {
    /// Begins a request, by [`InFlight::begin`] of this front.
    pub fn begin_request(&self) -> Option<Busy<'_>> {
        self.slots.in_flight.begin(self.number)
    }

    /// Gives the place back before the connection's thread ends: its client has left.
    pub fn release(&self) {
        if self.released.swap(true, Ordering::AcqRel) {
            return;
        }
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

impl Drop for Slot {
    fn drop(&mut self) {
        self.release();
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
        let neighbours = ["[2001:db8::1]:1", "[2001:db8::2:3]:1", "[2001:db8::4:5:6]:1"].map(from);
        let [Some(one), Some(other)] = [0, 1].map(|n| slots.take(&neighbours[n])) else { panic!() };
        drop((first, second));
        assert!(slots.take(&neighbours[2]).is_none(), "half are taken by their network");
        let first = slots.take(&from("[2001:db8:0:1::1]:1"));
        let second = slots.take(foreign);
        assert!(first.is_some() && second.is_some(), "others have their own half");
        drop((one, other));
        let others = [slots.take(local).unwrap(), slots.take(local).unwrap()];
        assert!(slots.take(local).is_none());
        drop((first, second));
        let all = [slots.take(local).unwrap(), slots.take(local).unwrap()];
        drop((others, all));
        assert!(slots.lock().by_peer.is_empty() && slots.lock().total == 0);
    }

    #[test]
    fn a_released_place_is_free_once() {
        let slots = Slots::new(2);
        let [left, other] = [(); 2].map(|()| slots.take(&Connection::Unix).unwrap());
        left.release();
        left.release();
        let next = slots.take(&Connection::Unix).expect("the place of a client that left");
        drop(left);
        assert!(slots.take(&Connection::Unix).is_none(), "it was given back before");
        drop((other, next));
        assert!(slots.lock().by_peer.is_empty() && slots.lock().total == 0);
    }
}
