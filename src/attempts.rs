//! Jobs that were begun and wait: for their next attempt, for the lane of a local redirect, for the end of a
//! delay. They hold no worker meanwhile.
//!
//! Owns the delay line behind the workers, and the thread that serves it. Whether there is another attempt
//! is `retry`'s. To the store such a job runs. Invariants: what waits here is ended at once when it
//! is stopped, by a cancellation or by the end, and past the deadline of a redirect; each attempt is taken
//! out once.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::error::Error;
use crate::exchange::{Answer, Call};
use crate::job::RouteIndex;
use crate::job::Stamp;
use crate::job::execution::Run;
use crate::queue::{Permit, Task};
use crate::routes::{Hop, Redirected, too_late};
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
    /// How often it could not begin for want of descriptors, processes or memory.
    pub shortages: u32,
    /// When this attempt must be over, with all redirects that it leads to.
    pub deadline: Instant,
    /// What this attempt was redirected to; set by a local redirect, dropped with the attempt.
    pub redirected: Option<Redirected>,
}

impl Attempt {
    /// Returns the request that is to be run, or ran last.
    pub fn hop(&self) -> Hop<'_> {
        let first = Hop { call: &self.call, count: 0, deadline: self.deadline };
        self.redirected.as_ref().map_or(first, Redirected::hop)
    }

    /// Returns what runs that request.
    pub fn hop_route(&self) -> RouteIndex {
        self.redirected.as_ref().map_or(self.route, |redirected| redirected.route)
    }

    /// Returns when it must be over although nothing runs: only a redirect waits on a deadline.
    fn expiry(&self) -> Option<Instant> {
        self.redirected.as_ref().map(|redirected| redirected.deadline)
    }
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
    /// What happens next, and when; at most one thing for each job.
    due: BTreeMap<Moment, Due>,
    /// All that no worker has taken yet.
    waiting: HashMap<JobKey, Waiting>,
    /// Jobs that were stopped since the thread last looked.
    stopped: Vec<JobKey>,
}

struct Waiting {
    attempt: Attempt,
    /// Its place in [`Line::due`]; `None` if it waits for a worker without a deadline.
    moment: Option<Moment>,
}

/// What happens to a job that waits.
enum Due {
    /// It is handed to the queue, for its next attempt.
    Again(Task),
    /// It is done with this answer. Until then it has a place.
    Answer(JobKey, Answer, Permit),
    /// Its redirect has waited for too long.
    TooLate(JobKey),
}

/// What the line comes up with.
pub enum Event {
    /// The time of a job's next attempt has come.
    Due(Task),
    /// A job is done with this answer.
    Over(JobKey, Box<Attempt>, Answer),
}

impl Attempts {
    fn lock(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a job until `at`. Its task, with a place in the queue, comes up then.
    pub fn delay(self: &Arc<Self>, task: Task, attempt: Attempt, at: Instant) {
        let job = task.job.clone();
        match attempt.expiry() {
            Some(expiry) if expiry <= at => self.keep(job, attempt),
            _ => self.put(job, attempt, Some((at, Due::Again(task)))),
        }
    }

    /// Keeps a job until `at`, when it is done with this answer.
    pub fn answer(
        self: &Arc<Self>,
        job: JobKey,
        attempt: Attempt,
        answer: Answer,
        permit: Permit,
        at: Instant,
    ) {
        let due = Due::Answer(job.clone(), answer, permit);
        self.put(job, attempt, Some((at, due)));
    }

    /// Keeps a job until a worker takes it, or until its redirect is too late. Its task is the caller's to
    /// hand on, after this.
    pub fn keep(self: &Arc<Self>, job: JobKey, attempt: Attempt) {
        let due = attempt.expiry().map(|expiry| (expiry, Due::TooLate(job.clone())));
        self.put(job, attempt, due);
    }

    fn put(self: &Arc<Self>, job: JobKey, attempt: Attempt, due: Option<(Instant, Due)>) {
        let execution = Arc::clone(&attempt.run.execution);
        let (attempts, its) = (Arc::clone(self), job.clone());
        // Before a worker can take it: what that runs has a waker of its own.
        execution.set_waker(move || attempts.tell_stopped(its.clone()));
        {
            let mut line = self.lock();
            let moment = due.map(|(at, due)| line.plan(at, due));
            line.waiting.insert(job.clone(), Waiting { attempt, moment });
        }
        self.changed.notify_one();
        // A stop that came before it was here has found nothing.
        if execution.stopped().is_some() {
            self.tell_stopped(job);
        }
    }

    fn tell_stopped(&self, job: JobKey) {
        self.lock().stopped.push(job);
        self.changed.notify_one();
    }

    /// Takes out the attempt of a job whose task has come up; `None` if it is over, or this is not one
    /// that waited here.
    pub fn take(&self, job: &JobKey) -> Option<Attempt> {
        self.lock().remove(job)
    }

    /// Waits for the next thing that happens.
    pub fn next(&self) -> Event {
        let mut line = self.lock();
        loop {
            while let Some(job) = line.stopped.pop() {
                if let Some(attempt) = line.remove(&job) {
                    return Event::Over(job, Box::new(attempt), Error::Cancelled.response().into());
                }
            }
            let now = Instant::now();
            let next = line.due.first_key_value().map(|((at, _), _)| *at);
            line = match next {
                Some(at) if at <= now => match line.come_up() {
                    Some(event) => return event,
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

impl Line {
    fn plan(&mut self, at: Instant, due: Due) -> Moment {
        self.count += 1;
        let moment = (at, self.count);
        self.due.insert(moment, due);
        moment
    }

    /// Takes out a job, and with it its place in the queue, if it has one here.
    fn remove(&mut self, job: &JobKey) -> Option<Attempt> {
        let Waiting { attempt, moment } = self.waiting.remove(job)?;
        if let Some(moment) = moment {
            self.due.remove(&moment);
        }
        Some(attempt)
    }

    /// Lets what is due first happen.
    fn come_up(&mut self) -> Option<Event> {
        let (_, due) = self.due.pop_first()?;
        match due {
            Due::Again(task) => {
                let expiry = self.waiting.get(&task.job).and_then(|w| w.attempt.expiry());
                let moment = expiry.map(|at| self.plan(at, Due::TooLate(task.job.clone())));
                if let Some(waiting) = self.waiting.get_mut(&task.job) {
                    waiting.moment = moment;
                }
                Some(Event::Due(task))
            }
            Due::Answer(job, answer, _permit) => {
                let attempt = self.remove(&job)?;
                Some(Event::Over(job, Box::new(attempt), answer))
            }
            Due::TooLate(job) => {
                let attempt = self.remove(&job)?;
                Some(Event::Over(job, Box::new(attempt), too_late().response().into()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use bytes::Bytes;
    use http::{Request, StatusCode};

    use crate::exchange::{Connection, Owner, empty};
    use crate::job::JobId;
    use crate::job::execution::{Executions, Stop};
    use crate::memory::Allowance;
    use crate::queue::{Queue, Turn};

    const HOUR: Duration = Duration::from_secs(3600);

    fn call() -> Call {
        let (owner, connection) = (Owner::anonymous(), Connection::Unix);
        Call { request: Request::new(Bytes::new()), connection, owner, auth_type: None }
    }

    /// A job that was begun, and its task.
    fn begun(queue: &Queue, number: u64) -> (Task, Attempt) {
        let (id, route) = (JobId::new(number).unwrap(), RouteIndex(0));
        let job = JobKey { owner: Owner::anonymous(), id };
        let (run, now) = (
            Executions::default().begin(id, Allowance::default()),
            Stamp::from_unix_seconds(1.0).unwrap(),
        );
        let task = Task { job, route, gate: None, permit: queue.admit(), turn: Turn::Again };
        let attempt = Attempt {
            call: call(),
            run,
            created: now,
            started: now,
            route,
            made: 1,
            shortages: 0,
            deadline: Instant::now(),
            redirected: None,
        };
        (task, attempt)
    }

    fn redirected(deadline: Instant) -> Redirected {
        Redirected { call: call(), route: RouteIndex(0), count: 1, deadline }
    }

    #[track_caller]
    fn assert_over(event: Event, job: &JobKey, status: StatusCode) {
        let Event::Over(over, _, answer) = event else { panic!("a task is due") };
        assert_eq!((&over, answer.response.status()), (job, status));
    }

    #[test]
    fn a_stop_before_a_delay_ends_it() {
        let (queue, attempts) = (Queue::new(9), Arc::new(Attempts::default()));
        let (task, attempt) = begun(&queue, 1);
        let job = task.job.clone();
        attempt.run.execution.stop(Stop::Cancel);
        attempts.delay(task, attempt, Instant::now() + HOUR);
        assert_over(attempts.next(), &job, StatusCode::GONE);
        assert!(queue.is_empty() && attempts.lock().due.is_empty());
    }

    #[test]
    fn a_delayed_answer_comes_at_its_time() {
        let (queue, attempts) = (Queue::new(9), Arc::new(Attempts::default()));
        let now = Instant::now();
        for (number, span) in [(2, Duration::from_millis(20)), (1, Duration::ZERO)] {
            let (task, attempt) = begun(&queue, number);
            let answer = empty(StatusCode::OK).into();
            attempts.answer(task.job, attempt, answer, task.permit, now + span);
        }
        for number in [1, 2] {
            let job = begun(&queue, number).0.job;
            assert_over(attempts.next(), &job, StatusCode::OK);
        }
        assert!(now.elapsed() >= Duration::from_millis(20) && queue.is_empty());
    }

    #[test]
    fn a_waiting_redirect_ends_at_its_deadline() {
        let (queue, attempts) = (Queue::new(9), Arc::new(Attempts::default()));
        let now = Instant::now();
        // For its lane; for an attempt that would come too late; for a worker.
        for (number, delay) in [(1, None), (2, Some(HOUR)), (3, Some(Duration::ZERO))] {
            let (task, mut attempt) = begun(&queue, number);
            attempt.redirected = Some(redirected(now + Duration::from_millis(20 * number)));
            let job = task.job.clone();
            match delay {
                Some(delay) => attempts.delay(task, attempt, now + delay),
                None => attempts.keep(task.job, attempt),
            }
            if delay == Some(Duration::ZERO) {
                assert!(matches!(attempts.next(), Event::Due(task) if task.job == job));
            }
            assert_over(attempts.next(), &job, StatusCode::GATEWAY_TIMEOUT);
        }
        assert!(attempts.lock().due.is_empty() && queue.is_empty());
    }

    #[test]
    fn what_a_worker_takes_leaves_nothing_behind() {
        let (queue, attempts) = (Queue::new(9), Arc::new(Attempts::default()));
        let (task, mut attempt) = begun(&queue, 1);
        attempt.redirected = Some(redirected(Instant::now() + HOUR));
        let job = task.job.clone();
        attempts.keep(task.job, attempt);
        assert!(attempts.take(&job).is_some() && attempts.take(&job).is_none());
        assert!(attempts.lock().due.is_empty());
    }
}
