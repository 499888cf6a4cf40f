//! The handle to a running handler: stop it, see its progress.
//!
//! Owns the stop signal of each running handler, its last line of stderr (`log` has the other lines), and its waiting
//! client, if any: a client that leaves stops the run. Does not know what a handler is. Invariant: a stop is never
//! lost: a handler that only later starts to wait, or registers its waker, still sees it.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::lingering::Lingering;
use super::log::{JobLog, LogEnd};
use super::{JobId, Stamp};
use crate::exchange::Peer;
use crate::memory::Allowance;

/// The period at which a wait that does not watch the client's socket checks whether the client has left.
pub const LOOK: Duration = Duration::from_millis(250);

/// How much of the last line `x-progress` shows, in characters.
const PROGRESS_CHARS: usize = 100;

/// How urgently a handler is asked to stop; the later variant is more urgent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    /// End soon: a script gets SIGTERM and some seconds to clean up.
    Cancel,
    /// End now.
    Kill,
}

/// What happens to a run whose client leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnLeave {
    /// It is cancelled.
    #[default]
    Cancel,
    /// It continues: `ignore-abort=yes`.
    GoOn,
}

type Waker = Box<dyn Fn() + Send>;

/// The handle to a handler: for one job, or for a thread that runs one request after another for waiting clients.
#[derive(Default)]
pub struct Execution {
    /// The job that it runs for; `None` for a waiting client.
    job: Option<JobId>,
    /// The allowance that the handler's output is charged to.
    memory: Allowance,
    /// The waiting client; `None` for a job.
    client: Option<Arc<dyn Peer>>,
    /// Whether the current run continues when the client leaves. Only the client's thread sets it.
    goes_on: AtomicBool,
    signal: Mutex<Signal>,
    changed: Condvar,
    /// The last line on stderr that is not blank, made printable.
    progress: Mutex<String>,
    log: Arc<JobLog>,
    /// What lingers after the last run. Set by its handler, taken by the holder of its place in a lane.
    lingering: Mutex<Option<Lingering>>,
    /// How its last script ended, and that script's last line.
    script: Mutex<LastScript>,
    /// The number of the attempt, from 1. Only the job's worker sets it.
    attempt: AtomicU32,
    /// The attempts so far. Only the job's worker sets this.
    attempts: Mutex<Attempts>,
}

/// The attempts at a job so far, by this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attempts {
    /// When the first of them began.
    pub first: Option<Stamp>,
    /// How many were made.
    pub count: u32,
}

#[derive(Default)]
struct Signal {
    /// Set by a cancellation, a client that leaves, or the shutdown; never reset.
    stop: Option<Stop>,
    /// Set by a handler that waits in the kernel, dropped by its [`WakerGuard`].
    waker: Option<Waker>,
    /// The deadline of a request with its redirects; set while a local redirect is followed.
    deadline: Option<Instant>,
}

/// What is known about the current or last script.
#[derive(Default)]
struct LastScript {
    /// The last line that it wrote to stderr, made printable.
    line: String,
    /// Its exit code; `None` before its end, or if it was killed.
    exit_code: Option<i32>,
}

impl Execution {
    /// Returns the handle to the run of a job, or of a request that is not deferred; its output is charged to `memory`.
    pub fn new(job: Option<JobId>, memory: Allowance) -> Self {
        Self {
            job,
            client: None,
            memory,
            goes_on: AtomicBool::new(false),
            signal: Mutex::default(),
            changed: Condvar::new(),
            progress: Mutex::default(),
            log: Arc::default(),
            lingering: Mutex::default(),
            script: Mutex::default(),
            attempt: AtomicU32::new(1),
            attempts: Mutex::default(),
        }
    }

    /// Returns the job that it runs for; `None` for a waiting client.
    pub const fn job(&self) -> Option<JobId> {
        self.job
    }

    /// Returns the number of the job's attempt, from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt.load(Ordering::Relaxed)
    }

    /// Sets the number of the attempt.
    pub fn set_attempt(&self, number: u32) {
        self.attempt.store(number, Ordering::Relaxed);
    }

    /// Returns the attempts at the job so far.
    pub fn attempts(&self) -> Attempts {
        *lock(&self.attempts)
    }

    /// Sets the number of attempts.
    pub fn set_attempts(&self, attempts: Attempts) {
        *lock(&self.attempts) = attempts;
    }

    /// Returns the allowance that the handler's output is charged to.
    pub const fn memory(&self) -> &Allowance {
        &self.memory
    }

    /// Returns the handle to all runs of this client, one request after another.
    pub fn watching(client: Arc<dyn Peer>, memory: Allowance) -> Self {
        Self { client: Some(client), ..Self::new(None, memory) }
    }

    /// Sets what happens to the next run if its client leaves.
    pub fn set_on_leave(&self, on_leave: OnLeave) {
        self.goes_on.store(on_leave == OnLeave::GoOn, Ordering::Relaxed);
    }

    /// Checks whether the client has left, which stops the run. If the run continues, only the place of the client's
    /// connection is given back.
    pub fn look(&self) {
        let is_gone = self.client.as_ref().is_some_and(|client| client.is_gone());
        if is_gone && !self.goes_on.load(Ordering::Relaxed) {
            self.stop(Stop::Cancel);
        }
    }

    /// Returns the descriptor that a handler must watch to see the client leave; when it fires, the handler must
    /// [look](Self::look).
    pub fn watched(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        self.client.as_ref().and_then(|client| client.watched())
    }

    /// Sets or removes the deadline of a redirected request.
    pub fn set_deadline(&self, deadline: Option<Instant>) {
        lock(&self.signal).deadline = deadline;
    }

    /// Returns the deadline of a run that begins now and may take `time_limit`.
    pub fn deadline(&self, time_limit: Duration) -> Instant {
        let own = Instant::now() + time_limit;
        lock(&self.signal).deadline.map_or(own, |deadline| deadline.min(own))
    }

    /// Returns the job's id for the log: `-` if there is no job.
    pub fn job_as_log(&self) -> String {
        self.job.map_or_else(|| "-".to_owned(), |id| id.to_string())
    }

    /// Asks the handler to stop. A more urgent request replaces an earlier one.
    pub fn stop(&self, stop: Stop) {
        let mut signal = lock(&self.signal);
        if signal.stop < Some(stop) {
            signal.stop = Some(stop);
            self.changed.notify_all();
            if let Some(waker) = &signal.waker {
                waker();
            }
        }
    }

    /// Returns whether, and how urgently, the handler was asked to stop.
    pub fn stopped(&self) -> Option<Stop> {
        lock(&self.signal).stop
    }

    /// Waits for `span`, or until asked to stop, or until the client leaves.
    ///
    /// # Errors
    /// The stop, if one was asked for.
    pub fn sleep(&self, span: Duration) -> Result<(), Stop> {
        let deadline = Instant::now() + span;
        loop {
            let mut signal = lock(&self.signal);
            if let Some(stop) = signal.stop {
                return Err(stop);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            let slice = if self.client.is_some() { left.min(LOOK) } else { left };
            signal =
                self.changed.wait_timeout(signal, slice).unwrap_or_else(PoisonError::into_inner).0;
            // Checking may stop this run, which takes the lock.
            drop(signal);
            self.look();
        }
    }

    /// Calls `waker` at each stop until the guard is dropped, and at once if a stop came before. `waker` must not
    /// block: it runs under the signal's lock.
    pub fn on_stop(&self, waker: impl Fn() + Send + 'static) -> WakerGuard<'_> {
        let mut signal = lock(&self.signal);
        if signal.stop.is_some() {
            waker();
        }
        let before = signal.waker.replace(Box::new(waker));
        drop(signal);
        drop(before);
        WakerGuard(self)
    }

    /// Sets what lingers after the run.
    pub fn leave_behind(&self, lingering: Option<Lingering>) {
        *lock(&self.lingering) = lingering;
    }

    /// Takes what lingers after the last run: the run's place in a lane is kept until that is gone.
    pub fn take_lingering(&self) -> Option<Lingering> {
        lock(&self.lingering).take()
    }

    /// Appends to the log. Only a job has one: no client could ask for the log of another run.
    pub fn append_log(&self, bytes: &[u8]) {
        if self.job.is_some() {
            self.log.append(bytes);
        }
    }

    /// Makes `line` the progress, unless it is blank.
    pub fn set_progress(&self, line: &str) {
        let shown = printable(line);
        if !shown.is_empty() {
            *lock(&self.progress) = shown;
        }
    }

    /// Records that a script or another handler begins.
    pub fn begin_script(&self) {
        *lock(&self.script) = LastScript::default();
    }

    /// Makes `line` the last line of the script, and the progress, unless it is blank.
    pub fn set_line(&self, line: &str) {
        let shown = printable(line);
        if !shown.is_empty() {
            lock(&self.script).line.clone_from(&shown);
            *lock(&self.progress) = shown;
        }
    }

    /// Returns the last line of the last script, printable, at most 100 characters.
    pub fn last_line(&self) -> Option<String> {
        let line = lock(&self.script).line.clone();
        (!line.is_empty()).then_some(line)
    }

    /// Sets the exit code of the script.
    pub fn set_exit_code(&self, code: Option<i32>) {
        lock(&self.script).exit_code = code;
    }

    /// Returns the exit code of the last script; `None` if it was killed, or if none ran.
    pub fn exit_code(&self) -> Option<i32> {
        lock(&self.script).exit_code
    }

    /// Returns the last line, printable, at most 100 characters.
    pub fn progress(&self) -> Option<String> {
        let progress = lock(&self.progress).clone();
        (!progress.is_empty()).then_some(progress)
    }

    /// Returns the end of the log.
    pub fn log(&self) -> LogEnd {
        self.log.end()
    }

    /// Returns the log, to be followed while it grows.
    pub fn growing_log(&self) -> Arc<JobLog> {
        Arc::clone(&self.log)
    }
}

impl std::fmt::Debug for Execution {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Execution").field("stopped", &self.stopped()).finish_non_exhaustive()
    }
}

/// Keeps a waker registered.
#[must_use]
pub struct WakerGuard<'a>(&'a Execution);

impl Drop for WakerGuard<'_> {
    fn drop(&mut self) {
        let waker = lock(&self.0.signal).waker.take();
        drop(waker);
    }
}

/// The handles to runs for waiting clients, which the shutdown uses to stop them. The store has the handles of jobs.
#[derive(Default)]
pub struct Executions(Arc<Mutex<Runs>>);

#[derive(Default)]
struct Runs {
    /// Each handle is at the index that its [`Run`] knows.
    running: Vec<Option<Arc<Execution>>>,
    /// The free indexes.
    free: Vec<usize>,
    /// Set at the shutdown: a run that begins later is stopped at once.
    stop: Option<Stop>,
}

impl Executions {
    /// Returns the handle to everything that runs while this client waits.
    pub fn begin(&self, client: Arc<dyn Peer>, memory: Allowance) -> Run {
        let execution = Arc::new(Execution::watching(client, memory));
        let mut runs = lock(&self.0);
        if let Some(stop) = runs.stop {
            execution.stop(stop);
        }
        let place = runs.free.pop().unwrap_or(runs.running.len());
        if place == runs.running.len() {
            runs.running.push(None);
        }
        runs.running[place] = Some(Arc::clone(&execution));
        drop(runs);
        Run { runs: Arc::clone(&self.0), place, execution }
    }

    /// Stops every run, including those that begin later.
    pub fn stop_all(&self, stop: Stop) {
        let running: Vec<_> = {
            let mut runs = lock(&self.0);
            runs.stop = Some(stop);
            runs.running.iter().flatten().cloned().collect()
        };
        for execution in running {
            execution.stop(stop);
        }
    }
}

/// A handle that is in [`Executions`] until it is dropped.
pub struct Run {
    runs: Arc<Mutex<Runs>>,
    place: usize,
    /// The handle.
    pub execution: Arc<Execution>,
}

impl Drop for Run {
    fn drop(&mut self) {
        let mut runs = lock(&self.runs);
        runs.running[self.place] = None;
        runs.free.push(self.place);
    }
}

/// Returns the beginning of a line in printable ASCII, which every client can read as a field.
fn printable(line: &str) -> String {
    let shown = |c: char| if c == ' ' || c.is_ascii_graphic() { c } else { '?' };
    line.trim().chars().map(shown).take(PROGRESS_CHARS).collect()
}

/// Locks, even if the lock is poisoned: the guarded data is valid between any two statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn a_stop_before_the_wait_is_not_lost() {
        let execution = Execution::default();
        execution.stop(Stop::Cancel);
        assert_eq!(execution.sleep(Duration::from_secs(3600)), Err(Stop::Cancel));
        let woken = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&woken);
        let guard = execution.on_stop(move || {
            seen.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(woken.load(Ordering::Relaxed), 1);
        execution.stop(Stop::Cancel);
        assert_eq!(woken.load(Ordering::Relaxed), 1, "the same stop again is no news");
        execution.stop(Stop::Kill);
        assert_eq!(woken.load(Ordering::Relaxed), 2);
        drop(guard);
        assert_eq!(execution.stopped(), Some(Stop::Kill));
    }

    #[test]
    fn progress_is_printable_short_and_never_blank() {
        let execution = Execution::default();
        execution.set_progress("50 %\tdone\u{7}");
        execution.set_progress("   ");
        assert_eq!(execution.progress().unwrap(), "50 %?done?");
        execution.set_progress("gr\u{fc}n \u{1f980} \u{85}");
        assert_eq!(execution.progress().unwrap(), "gr?n ?");
        execution.set_progress(&"x".repeat(300));
        assert_eq!(execution.progress().unwrap().len(), 100);
    }

    #[test]
    fn the_last_line_is_that_of_the_last_script() {
        let execution = Execution::default();
        execution.set_line("first");
        execution.set_exit_code(Some(75));
        execution.set_progress("the next is in 1s");
        assert_eq!(execution.last_line().as_deref(), Some("first"));
        execution.begin_script();
        assert_eq!((execution.last_line(), execution.exit_code()), (None, None));
        assert_eq!(execution.progress().as_deref(), Some("the next is in 1s"));
    }

    /// A client that has left, without a socket.
    struct Left;

    impl Peer for Left {
        fn is_gone(&self) -> bool {
            true
        }

        fn was_seen_leaving(&self) -> bool {
            true
        }

        fn watched(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
            None
        }
    }

    #[test]
    fn a_client_that_leaves_ends_a_sleep() {
        let execution = Execution::watching(Arc::new(Left), Allowance::default());
        execution.set_on_leave(OnLeave::GoOn);
        assert_eq!(execution.sleep(Duration::from_millis(1)), Ok(()));
        execution.set_on_leave(OnLeave::Cancel);
        assert_eq!(execution.sleep(Duration::from_secs(3600)), Err(Stop::Cancel));
    }

    #[test]
    fn a_redirects_deadline_shortens_every_time_limit() {
        let execution = Execution::default();
        let soon = Instant::now() + Duration::from_secs(1);
        execution.set_deadline(Some(soon));
        assert_eq!(execution.deadline(Duration::from_secs(3600)), soon);
        assert!(execution.deadline(Duration::ZERO) < soon);
        execution.set_deadline(None);
        assert!(execution.deadline(Duration::from_secs(3600)) > soon);
    }

    #[test]
    fn a_run_that_begins_after_the_end_is_stopped() {
        let runs = Executions::default();
        let early = runs.begin(Arc::new(Left), Allowance::default());
        runs.stop_all(Stop::Cancel);
        let late = runs.begin(Arc::new(Left), Allowance::default());
        assert_eq!(early.execution.stopped(), Some(Stop::Cancel));
        assert_eq!(late.execution.stopped(), Some(Stop::Cancel));
        drop((early, late));
        assert_eq!(lock(&runs.0).free.len(), 2);
    }
}
