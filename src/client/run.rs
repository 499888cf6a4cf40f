//! `deferd run`: a job that behaves as if its script ran here.
//!
//! Owns the progress on a terminal, and that SIGINT, SIGTERM and SIGHUP cancel the job. Invariants: from the moment in
//! which the request can be accepted, the first such signal cancels the job and the second ends only this process; a
//! signal that was ignored when this process began stays ignored, as in a shell's background.

use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use http::Method;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::{flag, low_level};

use super::fetch::{self, Fetched};
use super::job::{self, Ending, LONG_ROUND, SHORT_ROUND, State};
use super::output::Output;
use super::server::Server;
use super::submission::Submission;
use super::{Trouble, commands, printable, tell};
use crate::job::JobId;

/// The status of a cancelled job.
const GONE: u16 = 410;

/// The longest line of progress, in characters: it fits into a line of a terminal.
const WIDTH: usize = 78;

/// Submits, waits and fetches; returns the exit code of the script.
///
/// # Errors
/// [`Trouble`]; it names the job if one was submitted.
pub fn run(server: Server, submission: Submission) -> Result<u8, Trouble> {
    let prepared = submission.prepare()?;
    let server = Arc::new(server);
    let interrupt = Interrupt::watch(Arc::clone(&server))
        .map_err(|error| Trouble::Refused(format!("cannot handle signals: {error}")))?;
    let id = prepared.submit(&server)?;
    interrupt.begin(id);
    outcome(&server, id, &interrupt).map_err(|trouble| {
        let text = trouble.to_string();
        let name =
            if text.contains(&id.to_string()) { String::new() } else { format!("job {id}: ") };
        Trouble::Refused(format!("{name}{text}"))
    })
}

fn outcome(server: &Server, id: JobId, interrupt: &Interrupt) -> Result<u8, Trouble> {
    let progress = Progress::new(id);
    let round = if progress.is_shown { SHORT_ROUND } else { LONG_ROUND };
    let state = job::wait(server, id, round, None, |pending| {
        let line = pending.progress.clone().unwrap_or_else(|| pending.to_string());
        progress.show(&line);
    });
    progress.clear();
    let gone = || Trouble::Refused(format!("job {id} was collected or deleted by another client"));
    match (state?, interrupt.signal()) {
        (State::Done(Ending { status: GONE, .. }), Some(signal)) => {
            fetch::remove(server, id, None);
            tell(&format!("job {id} is canceled"));
            Ok(128 + signal)
        }
        (State::Done(_), _) => match fetch::fetch(server, id, &Output::Stdout)? {
            Fetched::Result(ending) => Ok(ending.exit_code()),
            Fetched::Pending | Fetched::Unknown => Err(gone()),
        },
        (State::Pending(_) | State::Unknown, _) => Err(gone()),
    }
}

/// The line of progress on a terminal.
struct Progress {
    id: JobId,
    /// Whether stderr is a terminal.
    is_shown: bool,
}

impl Progress {
    fn new(id: JobId) -> Self {
        Self { id, is_shown: io::stderr().is_terminal() }
    }

    fn show(&self, line: &str) {
        let text = printable(&format!("job {}: {line}", self.id));
        self.write(&text.chars().take(WIDTH).collect::<String>());
    }

    fn clear(&self) {
        self.write("");
    }

    /// Replaces the line.
    fn write(&self, text: &str) {
        if self.is_shown {
            let _ = write!(io::stderr(), "\r\x1b[K{text}");
        }
    }
}

/// What the signals do, and whether one came.
struct Interrupt {
    server: Arc<Server>,
    /// The last signal that arrived; 0: none.
    signal: Arc<AtomicUsize>,
    /// The job, once it was submitted.
    job: Mutex<Option<JobId>>,
}

impl Interrupt {
    /// Handles the signals from now on.
    fn watch(server: Arc<Server>) -> io::Result<Arc<Self>> {
        let (mut receiver, sender) = UnixStream::pair()?;
        let signal = Arc::new(AtomicUsize::new(0));
        let has_come = Arc::new(AtomicBool::new(false));
        let ignored = ignored();
        for number in [SIGINT, SIGTERM, SIGHUP] {
            if ignored >> (number - 1) & 1 == 1 {
                continue;
            }
            // In this order: the first signal passes this line, the second does not.
            flag::register_conditional_shutdown(number, 128 + number, Arc::clone(&has_come))?;
            flag::register_usize(number, Arc::clone(&signal), number.unsigned_abs() as usize)?;
            flag::register(number, Arc::clone(&has_come))?;
            low_level::pipe::register(number, sender.try_clone()?)?;
        }
        let interrupt = Arc::new(Self { server, signal, job: Mutex::default() });
        let its = Arc::clone(&interrupt);
        thread::spawn(move || {
            if receiver.read(&mut [0]).is_ok_and(|n| n > 0) {
                its.cancel();
            }
        });
        Ok(interrupt)
    }

    /// Names the job that a signal cancels; if a signal has already arrived, cancels the job now.
    fn begin(&self, id: JobId) {
        *self.job.lock().unwrap_or_else(PoisonError::into_inner) = Some(id);
        if self.signal().is_some() {
            self.cancel();
        }
    }

    /// Returns the signal that arrived.
    fn signal(&self) -> Option<u8> {
        u8::try_from(self.signal.load(Ordering::SeqCst)).ok().filter(|&signal| signal > 0)
    }

    fn cancel(&self) {
        let job = *self.job.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(id) = job else { return };
        let canceled = commands::change(&self.server, id, Method::PUT, "/cancel");
        if let Err(trouble) = canceled {
            tell(&format!("job {id} cannot be canceled: {trouble}"));
        }
    }
}

/// Returns the signals that this process ignored at its start; the lowest bit is signal 1.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
}
