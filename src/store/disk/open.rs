//! Opening: the directory, its lock, its file, and the ledger of its contents.
//!
//! Owns the names within the directory, the words for what can be wrong with them, and the removal of files that no
//! record names. Invariants: a file that cannot be understood is not changed; the file is created completely or not at
//! all.

use std::collections::HashMap;
use std::fmt::Display;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use http::StatusCode;

use super::engine::file::DiskFile;
use super::record::{Begun, FileRecord, Record, Stage};
use super::state::{DiskLedger, Place};
use super::tables::{Contents, TableError, Tables};
use crate::clock::Scale;
use crate::error::Error;
use crate::files::{FileName, Files, Folder};
use crate::job::execution::{Attempts, Execution};
use crate::job::notice::NoticeLane;
use crate::job::outcome::Outcome;
use crate::job::stored::{Ending, Summary};
use crate::job::{ERROR_ROOM, JobId, JobKey, MAX_STARTS, RECORD, Rerun, RouteIndex};
use crate::ledger::job::{Cancelled, Done, LanePlace, Pending, Phase, Work};
use crate::ledger::{InMemory, Ledger, Size};
use crate::store::{DeliveryId, Plan, Room};

/// The name of the file within the directory.
const FILE: &str = "jobs.redb";
/// The file while it is being created.
const NEW_FILE: &str = "jobs.redb.new";
/// The folder of large content.
const CONTENT: &str = "content";
/// The file that a running deferd holds locked.
const LOCK: &str = "lock";
/// How long to wait for the lock, and how often to check: a script that deferd was about to run when it was killed
/// holds the lock until it is executed.
const LOCK_TIME: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(10);

/// The ending of a job whose result is damaged.
const UNKNOWN: Ending = Ending {
    status: StatusCode::INTERNAL_SERVER_ERROR,
    exit: None,
    outcome: Outcome::Error,
    bytes: 0,
};

/// A directory that only this process uses.
pub struct Directory {
    path: PathBuf,
    folder: Arc<dyn Files>,
    /// Locked while it is open.
    _lock: File,
}

impl Directory {
    /// Creates the directory if necessary, for its owner only, and locks it.
    ///
    /// # Errors
    /// What is wrong with the directory, in words.
    pub fn open(path: &Path) -> Result<Self, String> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => "not a directory: choose another path".to_owned(),
            ErrorKind::PermissionDenied => format!("{error}; choose a path that you may write"),
            _ => error.to_string(),
        })?;
        let path = path.to_owned();
        let named = |error: &dyn Display| format!("{}: {error}", path.join(LOCK).display());
        let options = File::options().create(true).append(true).open(path.join(LOCK));
        let lock = options.map_err(|error| named(&error))?;
        let deadline = Instant::now() + LOCK_TIME;
        loop {
            match lock.try_lock() {
                Ok(()) => return Self::locked(path, lock),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(LOOK),
                Err(TryLockError::WouldBlock) => {
                    let what = "another deferd uses it: end that one, or choose another directory";
                    return Err(what.into());
                }
                Err(TryLockError::Error(error)) => return Err(named(&error)),
            }
        }
    }

    fn locked(path: PathBuf, lock: File) -> Result<Self, String> {
        let content = path.join(CONTENT);
        let named = |error: io::Error| format!("{}: {error}", content.display());
        let folder = Folder::open(&content).map_err(named)?;
        if !path.join(FILE).exists() && !folder.list().map_err(named)?.is_empty() {
            return Err(format!(
                "{} has the contents of a {FILE} that is missing: bring that back, or move both away to \
                 begin anew",
                content.display()
            ));
        }
        Ok(Self { path, folder: Arc::new(folder), _lock: lock })
    }

    /// Returns the folder of content that is too large for memory.
    pub fn folder(&self) -> Arc<dyn Files> {
        Arc::clone(&self.folder)
    }

    /// Opens its file; creates it if it is missing.
    ///
    /// # Errors
    /// What is wrong with the file, in words, with its path.
    pub fn file(&self) -> Result<DiskFile, String> {
        let path = self.path.join(FILE);
        let opened = match path.try_exists() {
            Ok(true) => DiskFile::open(&path).map_err(|error| error.to_string()),
            Ok(false) => self.make_file().map_err(|fault| fault.to_string()),
            Err(error) => Err(error.to_string()),
        };
        opened.map_err(|error| format!("{}: {error}", path.display()))
    }

    /// Returns the message about a file that cannot be used.
    pub fn refusal(&self, fault: &TableError) -> String {
        format!(
            "{}: {fault}; nothing was changed: restore the file from a copy, or move it away, with \
             {CONTENT} beside it, to begin anew",
            self.path.join(FILE).display()
        )
    }

    fn make_file(&self) -> Result<DiskFile, TableError> {
        let (new, path) = (self.path.join(NEW_FILE), self.path.join(FILE));
        // An earlier process may have left it behind, unfinished.
        fs::remove_file(&new).or_else(|error| match error.kind() {
            ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })?;
        let file = DiskFile::open(&new)?;
        Tables::make(file.clone())?;
        fs::rename(&new, path)?;
        File::open(&self.path)?.sync_all()?;
        Ok(file)
    }
}

/// What was found on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The number of jobs and results.
    pub jobs: usize,
    /// How many of them wait to run.
    pub waiting: usize,
    /// How many were running when the process ended, and are done with an error.
    pub interrupted: usize,
}

/// Returns the ledger of what is on disk, the counts of it, and the jobs that must be finished with an error: those
/// that were running and do not run again, and those for whose path `find` returns no route.
pub fn ledger(
    contents: Contents,
    scale: &Scale,
    room: Room,
    plan: Plan,
    find: &dyn Fn(&str) -> Result<RouteIndex, Error>,
) -> (DiskLedger, Recovered, Vec<(JobKey, Error)>) {
    let ttl = plan.ttl;
    let age = |aged: Option<i64>, stamp| {
        aged.map_or_else(|| scale.age_of(stamp, ttl), |aged| scale.age(aged))
    };
    let mut ledger = Ledger::new(room, plan, contents.last);
    let mut recovered = Recovered { jobs: contents.jobs.len(), ..Recovered::default() };
    let mut failed = Vec::new();
    for (id, record) in contents.jobs {
        let Record { owner, created, footprint, line, state } = record;
        let job = JobKey { owner, id };
        match state {
            Stage::Collected { aged, log, logged } => {
                recovered.jobs -= 1;
                let charge = ledger.found_record(&line, 0);
                ledger.found_log(&job, log, logged, scale.age(aged), charge);
            }
            Stage::Done { finished, aged, log, logged, attempts, ending } => {
                let age = age(aged, finished);
                let (delivery, result) = (DeliveryId::default(), Place::OnDisk);
                let summary = Summary { ending: ending.unwrap_or(UNKNOWN), log, logged };
                let charge = ledger.found_record(&line, 0);
                let done = Done {
                    created,
                    finished,
                    age,
                    footprint,
                    charge,
                    line,
                    attempts,
                    summary,
                    delivery,
                    result,
                };
                ledger.found_result(job, Box::new(done));
            }
            Stage::Pending { begun, starts, keep, path, callback, .. } => {
                let found = match NoticeLane::named(&path) {
                    Some(lane) => Ok(ledger.notice_route(lane)),
                    None => find(&path),
                };
                let own = found.as_ref().ok().copied();
                let owed = ledger.owed(own, callback, (&line, &job.owner), InMemory::Record);
                let room = owed.as_ref().map_or(Size::default(), |owed| owed.room);
                let charge = ledger.found_record(&line, room.memory);
                // An older deferd did not account for the error with which the job may end.
                let footprint =
                    footprint.max(RECORD + line.footprint() + ERROR_ROOM) + room.footprint;
                let phase = match route_of(found, begun, starts, &ledger) {
                    Ok(route) => {
                        recovered.waiting += 1;
                        Phase::Waiting { route, work: Work::First(Place::OnDisk) }
                    }
                    Err(error) => {
                        recovered.interrupted += 1;
                        failed.push((job.clone(), error));
                        Phase::Running {
                            place: LanePlace::None,
                            execution: interrupted(starts),
                            cancelled: Cancelled::No,
                        }
                    }
                };
                let waiters = Vec::new();
                let pending = Pending {
                    created,
                    footprint,
                    charge,
                    route: own,
                    line,
                    starts,
                    waiters,
                    owed,
                    phase,
                };
                ledger.found_pending(&job, Box::new(pending), keep);
            }
        }
    }
    for (owner, key, record) in contents.keys {
        ledger.found_key(&JobKey { owner, id: record.id }, &key, age(record.aged, record.accepted));
    }
    (ledger, recovered, failed)
}

/// Removes the files that no record names: they were written and not yet named when a process ended. Warns of files
/// that are missing, or shorter than their records say.
pub fn sweep(folder: &dyn Files, named: &[(JobId, FileRecord)]) {
    let found = match folder.list() {
        Ok(found) => found,
        Err(error) => return log::warn!("the files in content cannot be listed: {error}"),
    };
    let mut lengths: HashMap<FileName, u64> = found.into_iter().collect();
    for (job, FileRecord { name, range }) in named {
        let len = lengths.remove(name);
        if len.is_none_or(|len| len < range.end as u64) {
            log::warn!("job={job} content/{name} is missing or cut: restore it from a copy");
        }
    }
    for &name in lengths.keys() {
        if let Err(error) = folder.remove(name) {
            log::warn!("content/{name} belongs to no job and cannot be removed: {error}");
        }
    }
}

/// Returns the handle for a job that was running when the process ended; only the number of its starts is known.
fn interrupted(starts: u32) -> Arc<Execution> {
    let execution = Execution::default();
    execution.set_attempts(Attempts { first: None, count: starts });
    Arc::new(execution)
}

/// Returns the route in whose lane a recovered job waits; an error if it does not run again.
fn route_of(
    found: Result<RouteIndex, Error>,
    begun: Begun,
    starts: u32,
    ledger: &DiskLedger,
) -> Result<RouteIndex, Error> {
    let route = found?;
    let runs_again = ledger.rerun(route) == Rerun::Yes && starts < MAX_STARTS;
    if begun == Begun::No || runs_again { Ok(route) } else { Err(Error::Interrupted) }
}
