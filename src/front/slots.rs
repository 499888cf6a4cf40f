//! Who may be connected: so many at once, and no peer more than half of them.
//!
//! Owns the count of connections and of requests in their hands. Invariants: a count goes down exactly
//! when the guard that raised it is dropped; once closed, no request begins.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::call::Connection;

/// The places for connections.
pub struct Slots {
    capacity: usize,
    taken: Mutex<Taken>,
    in_hand: InHand,
}

#[derive(Default)]
struct Taken {
    total: usize,
    by_peer: HashMap<IpAddr, usize>,
}

impl Slots {
    /// `capacity` free places.
    pub fn new(capacity: usize) -> Arc<Self> {
        Arc::new(Self { capacity, taken: Mutex::default(), in_hand: InHand::default() })
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

    /// The requests that are being answered.
    pub const fn in_hand(&self) -> &InHand {
        &self.in_hand
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
    /// [`InHand::begin`] of this front.
    pub fn begin_request(&self) -> Option<Busy<'_>> {
        self.slots.in_hand.begin()
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

/// How many requests were read and are not answered to the last byte; or that there will be no more.
#[derive(Default)]
pub struct InHand(AtomicUsize);

/// No request begins any more.
const CLOSED: usize = usize::MAX;

impl InHand {
    /// Counts a request as being answered until the guard is dropped; `None` when it must not begin,
    /// because the end would cut its answer.
    pub fn begin(&self) -> Option<Busy<'_>> {
        let more = |count| (count != CLOSED).then(|| count + 1);
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok().map(|_| Busy(self))
    }

    /// Lets no request begin any more, if none is being answered at this moment; whether that is so.
    pub fn close_if_idle(&self) -> bool {
        let closed = self.0.compare_exchange(0, CLOSED, Ordering::AcqRel, Ordering::Acquire);
        matches!(closed, Ok(_) | Err(CLOSED))
    }

    /// Takes back that it was closed.
    pub fn reopen(&self) {
        let _ = self.0.compare_exchange(CLOSED, 0, Ordering::AcqRel, Ordering::Acquire);
    }
}

/// A request that is being answered.
pub struct Busy<'a>(&'a InHand);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::AcqRel);
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
    #[test]
    fn what_is_in_hand_is_ended_before_the_end_and_nothing_begins_behind_it() {
        let in_hand = InHand::default();
        let (first, second) = (in_hand.begin().unwrap(), in_hand.begin().unwrap());
        drop(first);
        assert!(!in_hand.close_if_idle());
        assert!(in_hand.begin().is_some());
        drop(second);
        assert!(in_hand.close_if_idle() && in_hand.close_if_idle());
        assert!(in_hand.begin().is_none());
        in_hand.reopen();
        assert!(in_hand.begin().is_some());
    }
}
