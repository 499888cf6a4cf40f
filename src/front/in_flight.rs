//! The requests in flight: those that were read, and whose answers are not completely sent.
//!
//! Owns their count, and the decision that no more may begin. Does not know what they ask for. The count is kept in
//! several places, each on a cache line of its own, because every request of every connection changes it. Invariants:
//! a count goes down exactly when the guard that raised it is dropped; once closed, no request begins.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::thread;

/// The number of places in which the count is kept.
const PLACES: usize = 16;

/// One part of the count. Invariant of the type: no two share a cache line.
#[derive(Default)]
#[repr(align(64))]
struct Place(AtomicUsize);

/// Requests may begin.
const OPEN: u8 = 0;
/// The decision is being made.
const UNDECIDED: u8 = 1;
/// No request begins any more.
const CLOSED: u8 = 2;

/// The number of requests in flight, and whether more may begin.
#[derive(Default)]
pub struct InFlight {
    state: AtomicU8,
    places: [Place; PLACES],
}

// A thread that begins a request raises the count and then reads the state; a thread that closes changes the state and
// then reads the counts. All accesses are sequentially consistent, so at least one of the two sees the other.
impl InFlight {
    /// Counts a request of this connection until the guard is dropped; the number of the connection can be any.
    /// Returns `None` if the request must not begin, because shutting down would cut off its answer.
    pub fn begin(&self, connection: usize) -> Option<Busy<'_>> {
        loop {
            let busy = Busy::new(&self.places[connection % PLACES]);
            if self.state.load(Ordering::SeqCst) == OPEN {
                return Some(busy);
            }
            drop(busy);
            while self.state.load(Ordering::SeqCst) == UNDECIDED {
                thread::yield_now();
            }
            if self.state.load(Ordering::SeqCst) == CLOSED {
                return None;
            }
        }
    }

    /// Closes to further requests if none is in flight; returns whether it did.
    pub fn close_if_idle(&self) -> bool {
        self.state.store(UNDECIDED, Ordering::SeqCst);
        let idle = self.places.iter().all(|place| place.0.load(Ordering::SeqCst) == 0);
        self.state.store(if idle { CLOSED } else { OPEN }, Ordering::SeqCst);
        idle
    }

    /// Lets requests begin again.
    pub fn reopen(&self) {
        self.state.store(OPEN, Ordering::SeqCst);
    }
}

/// A request in flight.
pub struct Busy<'a>(&'a Place);

impl<'a> Busy<'a> {
    fn new(place: &'a Place) -> Self {
        place.0.fetch_add(1, Ordering::SeqCst);
        Self(place)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn closing_waits_for_requests_and_none_begins_after_it() {
        let in_flight = InFlight::default();
        let first = in_flight.begin(1).unwrap();
        let second = in_flight.begin(2).unwrap();
        drop(first);
        assert!(!in_flight.close_if_idle());
        assert!(in_flight.begin(1).is_some());
        drop(second);
        assert!(in_flight.close_if_idle() && in_flight.close_if_idle());
        assert!((0..=PLACES).all(|connection| in_flight.begin(connection).is_none()));
        in_flight.reopen();
        assert!(in_flight.begin(PLACES).is_some());
    }

    #[test]
    fn no_request_is_in_flight_while_it_is_closed() {
        const SPAN: Duration = Duration::from_secs(1);
        let in_flight = InFlight::default();
        let closed = AtomicU8::new(0);
        let over = AtomicU8::new(0);
        thread::scope(|scope| {
            for connection in 0..2 {
                let in_flight = &in_flight;
                let closed = &closed;
                let over = &over;
                scope.spawn(move || {
                    while over.load(Ordering::SeqCst) == 0 {
                        let busy = in_flight.begin(connection);
                        let wrong = busy.is_some() && closed.load(Ordering::SeqCst) != 0;
                        drop(busy);
                        if wrong {
                            over.store(2, Ordering::SeqCst);
                        }
                    }
                });
            }
            // While two threads always begin requests, closing succeeds often or seldom, depending on the machine.
            let begin = Instant::now();
            while begin.elapsed() < SPAN {
                if !in_flight.close_if_idle() {
                    thread::yield_now();
                    continue;
                }
                closed.store(1, Ordering::SeqCst);
                for _ in 0..50 {
                    std::hint::spin_loop();
                }
                closed.store(0, Ordering::SeqCst);
                in_flight.reopen();
            }
            let _ = over.compare_exchange(0, 1, Ordering::SeqCst, Ordering::SeqCst);
        });
        assert_eq!(over.into_inner(), 1, "a request was in flight while it was closed");
    }
}
