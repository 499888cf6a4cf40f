//! Processes that linger after a run, and what is held until they are gone.
//!
//! Owns neither: the processes are in the care of `handler::reaper`, and the place in a lane belongs to the store.
//! Invariant: what is held is dropped exactly when the lingering processes are gone, or at once if they are gone
//! already.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The lingering processes of a run.
#[derive(Clone)]
pub struct Lingering(Arc<Mutex<State>>);

enum State {
    /// The processes still linger; these values are held.
    Here(Vec<Box<dyn Send>>),
    Gone,
}

impl Lingering {
    /// Returns lingering processes for which nothing is held.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(State::Here(Vec::new()))))
    }

    /// Holds `held` until the processes are gone.
    pub fn hold(&self, held: impl Send + 'static) {
        if let State::Here(all) = &mut *self.lock() {
            all.push(Box::new(held));
        }
        // Otherwise `held` is dropped here, after the lock is released.
    }

    /// Records that the processes are gone.
    pub fn end(&self) {
        let before = std::mem::replace(&mut *self.lock(), State::Gone);
        drop(before);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Lingering {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Lingering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lingering")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_dropped_at_the_end_or_at_once() {
        let lingering = Lingering::new();
        let place = Arc::new(());
        lingering.hold(Arc::clone(&place));
        lingering.hold(Arc::clone(&place));
        assert_eq!(Arc::strong_count(&place), 3);
        lingering.clone().end();
        assert_eq!(Arc::strong_count(&place), 1);
        lingering.hold(Arc::clone(&place));
        assert_eq!(Arc::strong_count(&place), 1);
    }
}
