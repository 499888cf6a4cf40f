//! Opening: the directory, its lock, its file, and the ledger of what is in there.
//!
//! Owns the names within the directory and the words for what can be wrong with them. Invariants: a file
//! that cannot be understood is not changed; the file is made whole or not at all.

use std::fmt::Display;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::engine::file::DiskFile;
use super::record::{Record, Stage};
use super::state::{DiskLedger, Request};
use super::tables::{Contents, TableError, Tables};
use crate::job::{Done, ERROR_ROOM, Pending, RECORD};
use crate::ledger::Ledger;
use crate::store::{JobKey, Recovered, Room};

/// The name of the file within the directory.
const FILE: &str = "jobs.redb";
/// The same while it is made.
const NEW_FILE: &str = "jobs.redb.new";
/// What a running deferd holds locked.
const LOCK: &str = "lock";
/// How long to wait for the lock, and how often to look: a script that a deferd was about to run when
/// it was killed holds it until it is executed.
const LOCK_TIME: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(10);

/// A directory that this process has for itself.
pub struct Directory {
    path: PathBuf,
    /// Locked for as long as it is open.
    _lock: File,
}

impl Directory {
    /// Makes the directory if need be, for its owner only, and locks it.
    ///
    /// # Errors
    /// In words.
    pub fn open(path: &Path) -> Result<Self, String> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => "it is no directory: choose another path".to_owned(),
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
                Ok(()) => return Ok(Self { path, _lock: lock }),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(LOOK),
                Err(TryLockError::WouldBlock) => {
                    let what = "another deferd uses it: end that one, or choose another directory";
                    return Err(what.into());
                }
                Err(TryLockError::Error(error)) => return Err(named(&error)),
            }
        }
    }

    /// Opens its file, which is made if there is none.
    ///
    /// # Errors
    /// In words, with the file's path.
    pub fn file(&self) -> Result<DiskFile, String> {
        let path = self.path.join(FILE);
        let opened = match path.try_exists() {
            Ok(true) => DiskFile::open(&path).map_err(|error| error.to_string()),
            Ok(false) => self.make_file().map_err(|fault| fault.to_string()),
            Err(error) => Err(error.to_string()),
        };
        opened.map_err(|error| format!("{}: {error}", path.display()))
    }

    /// What to say of a file that cannot be served.
    pub fn refusal(&self, fault: &TableError) -> String {
        format!(
            "{}: {fault}; nothing was changed: restore the file from a copy, or move it away to \
             begin anew",
            self.path.join(FILE).display()
        )
    }

    fn make_file(&self) -> Result<DiskFile, TableError> {
        let (new, path) = (self.path.join(NEW_FILE), self.path.join(FILE));
        // Left behind by one who did not come to the end of this.
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

/// The ledger of what is on disk, and the jobs among it that are not done, by id.
pub fn ledger(contents: Contents, room: Room) -> (DiskLedger, Vec<Recovered>) {
    let mut ledger = Ledger::new(room, contents.last);
    let mut recovered = Vec::new();
    for (id, record) in contents.jobs {
        let Record { owner, created, footprint, state } = record;
        let job = JobKey { owner, id };
        let charge = ledger.found_record();
        match state {
            Stage::Done { finished } => {
                let done = Done { created, finished, footprint, charge, result: () };
                ledger.found_result(job, Box::new(done));
            }
            Stage::Pending { begun, keep, path, .. } => {
                // An older deferd did not account for the error that it may end with.
                let footprint = footprint.max(RECORD + ERROR_ROOM);
                let pending = Pending::queued(Request::OnDisk, footprint, charge, created);
                ledger.found_pending(job.clone(), Box::new(pending), keep);
                recovered.push(Recovered { job, path, begun });
            }
        }
    }
    for (owner, key, record) in contents.keys {
        ledger.found_key(&JobKey { owner, id: record.id }, &key, record.accepted);
    }
    (ledger, recovered)
}
