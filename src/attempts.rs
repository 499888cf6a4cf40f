//! Jobs that wait for their next attempt, and hold no worker meanwhile.
//!
//! Owns the delay line between a failed attempt and the queue, and the thread that serves it. Whether there
//! is another attempt is `handler::retry`'s. To the store such a job runs. Invariants: what waits here is
//! ended at once when it is stopped, by a cancellation or by the end; each attempt is taken out once.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::call::Call;
use crate::handler::routes::RouteIndex;
use crate::job::Stamp;
use crate::job::execution::Run;
use crate::queue::Task;
use crate::store::JobKey;

/// A job between the start of its first attempt and the end of its last.
pub struct Attempt {
    /// What is run.
    pub call: Call,
    /// The one run of all attempts.
    pub run: Run,
    /// When the job was accepted.
    pub created: Stamp,
    /// When the first attempt began.
    pub started: Stamp,
    /// What runs it.
    pub route: RouteIndex,
    /// How many attempts were begun.
    pub made: u32,
}

/// The delay line.
#[derive(Default)]
pub struct Attempts {
    line: Mutex<Line>,
    changed: Condvar,
}

/// When something is due; with a number, because two jobs can be due at once.
type Moment = (Instant, u64);

#[derive(Default)]
struct Line {
    /// Makes moments unique.
    count: u64,
    /// What is to be handed to the queue, and when.
    due: BTreeMap<Moment, Task>,
    /// All that no worker has taken yet, due or not, and where their tasks were put.
    waiting: HashMap<JobKey, (Moment, Attempt)>,
    /// Jobs that were stopped since the thread last looked.
    stopped: Vec<JobKey>,
}

/// What the line comes up with.
pub enum Event {
    /// The time of a job's next attempt has come.
    Due(Task),
    /// A job was stopped while it waited.
    Stopped(JobKey, Box<Attempt>),
}

impl Attempts {
    fn lock(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a job until `at`. Its task, with a place in the queue, comes up then.
    pub fn delay(self: &Arc<Self>, task: Task, attempt: Attempt, at: Instant) {
        let job = task.job.clone();
        let execution = Arc::clone(&attempt.run.execution);
        {
            let mut line = self.lock();
            line.count += 1;
            let moment = (at, line.count);
            line.due.insert(moment, task);
            line.waiting.insert(job.clone(), (moment, attempt));
        }
        self.changed.notify_one();
        // After it is here: a stop that came before is told at once.
        let attempts = Arc::clone(self);
        execution.set_waker(move || {
            attempts.lock().stopped.push(job.clone());
            attempts.changed.notify_one();
        });
    }

    /// Takes out the attempt of a job whose task has come up; `None` if it was stopped, or this is not
    /// one that waited here.
    pub fn take(&self, job: &JobKey) -> Option<Attempt> {
        self.lock().waiting.remove(job).map(|(_, attempt)| attempt)
    }

    /// Waits for the next thing that happens.
    pub fn next(&self) -> Event {
        let mut line = self.lock();
        loop {
            while let Some(job) = line.stopped.pop() {
                if let Some((moment, attempt)) = line.waiting.remove(&job) {
                    // And with it its place in the queue.
                    line.due.remove(&moment);
                    return Event::Stopped(job, Box::new(attempt));
                }
            }
            let now = Instant::now();
            let next = line.due.first_key_value().map(|((at, _), _)| *at);
            line = match next {
                Some(at) if at <= now => match line.due.pop_first() {
                    Some((_, task)) => return Event::Due(task),
                    None => line,
                },
                Some(at) => {
                    let waited = self.changed.wait_timeout(line, at - now);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(line).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}
