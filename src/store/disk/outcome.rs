//! The outcome of a change: the writer's one answer, whether it became durable, to the thread that waits.
//!
//! Owns that answer. A channel would also do, but its receiver spins and yields before it sleeps, which delays the
//! writer if there are many clients. Invariant: dropping a promise is an answer too: the store was closed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::{self, Thread};

use crate::store::StoreUnavailable;

const UNKNOWN: u8 = 0;
const DURABLE: u8 = 1;
const REFUSED: u8 = 2;

/// What the thread that requested a change waits for.
pub struct Outcome(Arc<Answer>);

/// The writer's side.
pub struct Promise(Arc<Answer>);

struct Answer {
    thread: Thread,
    answer: AtomicU8,
}

/// Returns the promise of an outcome, and the outcome, for which only this thread can wait.
pub fn promise() -> (Promise, Outcome) {
    let answer = Arc::new(Answer { thread: thread::current(), answer: AtomicU8::new(UNKNOWN) });
    (Promise(Arc::clone(&answer)), Outcome(answer))
}

impl Promise {
    /// Answers that the change is durable.
    pub fn keep(self) {
        self.0.tell(DURABLE);
    }
}

/// Answers, unless the promise was kept, that the change is refused or the store closed.
impl Drop for Promise {
    fn drop(&mut self) {
        self.0.tell(REFUSED);
    }
}

impl Answer {
    fn tell(&self, answer: u8) {
        let told =
            self.answer.compare_exchange(UNKNOWN, answer, Ordering::AcqRel, Ordering::Acquire);
        if told.is_ok() {
            self.thread.unpark();
        }
    }
}

impl Outcome {
    /// Waits for the answer.
    ///
    /// # Errors
    /// [`StoreUnavailable`] if the change is not durable now, or the store was closed.
    pub fn wait(&self) -> Result<(), StoreUnavailable> {
        loop {
            match self.0.answer.load(Ordering::Acquire) {
                DURABLE => return Ok(()),
                REFUSED => return Err(StoreUnavailable),
                _ => thread::park(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_tells_whether_the_promise_was_kept() {
        for keep in [true, false] {
            let (promise, outcome) = promise();
            let writer = thread::spawn(move || if keep { promise.keep() } else { drop(promise) });
            assert_eq!(outcome.wait().is_ok(), keep);
            assert_eq!(outcome.wait().is_ok(), keep, "it stays so");
            writer.join().unwrap();
        }
    }
}
