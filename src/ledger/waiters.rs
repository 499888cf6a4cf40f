//! Waiters: the threads that wait for a job, each woken when the job is done or gone.
//!
//! Owns the wait of one thread. The job's record has the waiters of the job: a transition that ends their wait takes
//! them from there. Invariant: a notification is never lost, because it sets a flag as well as waking the thread.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// The period at which a waiting thread checks for what sends no notification, such as a client that left.
const LOOK: Duration = Duration::from_millis(250);

/// A thread that waits for a job.
#[derive(Debug)]
pub struct Waiter {
    thread: Thread,
    notified: AtomicBool,
}

impl Waiter {
    /// Returns the waiter of this thread.
    pub fn current() -> Self {
        Self { thread: thread::current(), notified: AtomicBool::new(false) }
    }

    /// Ends the wait.
    pub fn notify(&self) {
        self.notified.store(true, Ordering::Release);
        self.thread.unpark();
    }

    /// Wakes the thread, which checks whether its wait is over.
    pub fn rouse(&self) {
        self.thread.unpark();
    }

    /// Returns whether the wait was ended.
    pub fn is_notified(&self) -> bool {
        self.notified.load(Ordering::Acquire)
    }

    /// Waits for `span`, until [notified](Self::notify), or until `is_over` returns true: that is called whenever the
    /// thread is woken, at least four times a second, and at the end of the span. Only the thread of the waiter may
    /// call this.
    pub fn wait(&self, span: Duration, is_over: &dyn Fn() -> bool) {
        let deadline = Instant::now() + span;
        while !self.is_notified() {
            thread::park_timeout(LOOK.min(deadline.saturating_duration_since(Instant::now())));
            if self.is_notified() || is_over() || Instant::now() >= deadline {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::sync::{Arc, mpsc};

    #[test]
    fn a_notification_ends_the_wait() {
        let (tell, told) = mpsc::channel();
        let waiting = thread::spawn(move || {
            let waiter = Arc::new(Waiter::current());
            tell.send(Arc::clone(&waiter)).unwrap();
            waiter.wait(Duration::from_secs(3600), &|| false);
        });
        told.recv().unwrap().notify();
        waiting.join().unwrap();
    }

    #[test]
    fn a_woken_thread_checks_whether_its_wait_is_over() {
        let (tell, told) = mpsc::channel();
        let waiting = thread::spawn(move || {
            let waiter = Waiter::current();
            let asked = Cell::new(0);
            tell.send(thread::current()).unwrap();
            waiter.wait(Duration::from_secs(3600), &|| {
                tell.send(thread::current()).unwrap();
                asked.replace(asked.get() + 1) == 100
            });
        });
        let begin = Instant::now();
        told.iter().for_each(|thread| thread.unpark());
        waiting.join().unwrap();
        assert!(begin.elapsed() < 50 * LOOK, "it did not wait for its next look each time");
    }

    #[test]
    fn a_wait_ends_with_its_span_and_when_it_is_over() {
        let waiter = Waiter::current();
        let asked = Cell::new(0);
        let ask = || asked.replace(asked.get() + 1) > 0;
        waiter.wait(Duration::from_millis(1), &ask);
        assert_eq!(asked.get(), 1, "also a short wait sees that its client left");
        waiter.wait(Duration::from_secs(3600), &|| true);
        assert!(!waiter.is_notified());
        waiter.notify();
        waiter.wait(Duration::from_secs(3600), &|| false);
    }
}
