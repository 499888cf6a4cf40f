//! The tables: what is on disk, changed by whole transactions, and readable during them.
//!
//! Owns their names and their format's version; `transaction` translates each change into rows. Only this file names
//! redb, apart from the file beneath (`engine`) and its trait in `mod`. Invariants: a file of another format is
//! refused and not changed; a transaction is durable when [`Tables::commit`] returns, or none of it is visible; a
//! panic in redb, which means damage, is a [`TableError`].

use std::collections::BTreeSet;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use redb::{
    Database, Durability, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable,
    StorageBackend, TableDefinition,
};

use super::engine::dirty::DirtyRanges;
use super::engine::overlay::{HeldWrites, Overlay};
use super::order::Change;
use super::record::{FileRecord, KeyRecord, Record, Stage};
use super::transaction::{OpenTables, keep_spare_room};
use crate::clock::Reading;
use crate::content;
use crate::exchange::Owner;
use crate::files::FileName;
use crate::job::{JobId, message};
use crate::memory::Charge;
use crate::store::IdempotencyKey;

/// The versions of everything that is defined here and in `record`. A file gets the second version when it first names
/// a file of content, which an older deferd would take for missing content.
const FORMAT: u64 = 1;
const FORMAT_WITH_FILES: u64 = 2;

/// All tables have one type: redb's code is generic, and each further type of table would add 100 KiB of it.
type Definition = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// Names to numbers, in decimal: `format`, and `last`, the highest id that may have been assigned; `clock` is a
/// [`Reading`].
const META: Definition = TableDefinition::new("deferd");
/// Ids, as bytes in network order, to records.
pub(super) const JOBS: Definition = TableDefinition::new("jobs");
/// Ids to messages: the request of a pending job, the response of a done one.
pub(super) const MESSAGES: Definition = TableDefinition::new("messages");
/// Ids to the end of what a done job wrote to stderr, if it wrote anything.
pub(super) const LOGS: Definition = TableDefinition::new("logs");
/// Ids to the files that have the content of the job's message, if it is not in the message itself.
pub(super) const FILES: Definition = TableDefinition::new("files");
/// Owners and idempotency keys to the jobs that were accepted under them.
pub(super) const KEYS: Definition = TableDefinition::new("keys");

/// Names in the first table.
const FORMAT_NAME: &[u8] = b"format";
const LAST_NAME: &[u8] = b"last";
const CLOCK_NAME: &[u8] = b"clock";

/// Where a transaction tries out whether there is room; empty outside of transactions.
pub(super) const SPARE: Definition = TableDefinition::new("spare");

/// How much of the file may always be free, in bytes.
const SLACK: u64 = 4 << 20;

/// The cache for pages of the file, in bytes: the kernel also caches pages that are often read.
const CACHE: usize = 2 << 20;

/// Why the tables could not be read or changed.
#[derive(Debug)]
pub struct TableError(String);

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<E: Into<redb::Error>> From<E> for TableError {
    fn from(error: E) -> Self {
        Self(error.into().to_string())
    }
}

impl TableError {
    /// Returns a fault, in words.
    pub fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

/// Runs what may make redb panic if the file was damaged.
fn guarded<T>(run: impl FnOnce() -> Result<T, TableError>) -> Result<T, TableError> {
    catch_unwind(AssertUnwindSafe(run))
        .unwrap_or_else(|_| Err(TableError::new("redb panicked: the file is damaged")))
}

/// What is on disk when the file is opened.
#[derive(Default)]
pub struct Contents {
    /// All jobs.
    pub jobs: Vec<(JobId, Record)>,
    /// All files of content.
    pub files: Vec<(JobId, FileRecord)>,
    /// All keys.
    pub keys: Vec<(Owner, IdempotencyKey, KeyRecord)>,
    /// The highest id that may have been assigned.
    pub last: Option<JobId>,
    /// The clocks when `last` was written.
    pub reading: Option<Reading>,
}

/// The tables of one open file.
pub struct Tables {
    database: Database,
    overlay: Box<dyn HeldWrites>,
}

impl Tables {
    /// Opens the tables of a file. The file is not changed before [`commit_overlay`](Self::commit_overlay).
    ///
    /// # Errors
    /// [`TableError`] if deferd did not write the file, or if it is damaged.
    pub fn open(storage: DirtyRanges<impl StorageBackend + Clone>) -> Result<Self, TableError> {
        guarded(|| {
            let overlay = Overlay::new(storage)?;
            let mut builder = Database::builder();
            // Without this check, damage would show later, or never.
            builder.set_cache_size(CACHE).set_check_integrity_on_open(true);
            if overlay.len()? == 0 {
                return Err(TableError::new("it is empty"));
            }
            let database = builder.create_with_backend(overlay.clone())?;
            let tables = Self { database, overlay: Box::new(overlay) };
            tables.check_format()?;
            Ok(tables)
        })
    }

    /// Creates the tables in an empty file.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn make(storage: impl StorageBackend) -> Result<(), TableError> {
        guarded(|| {
            let database = Database::builder().create_with_backend(storage)?;
            let write = database.begin_write()?;
            write.open_table(META)?.insert(FORMAT_NAME, FORMAT.to_string().as_bytes())?;
            write.open_table(JOBS)?;
            write.open_table(MESSAGES)?;
            write.open_table(LOGS)?;
            write.open_table(KEYS)?;
            write.open_table(SPARE)?;
            write.commit()?;
            Ok(database.close()?)
        })
    }

    /// Allows the file to be changed: this must be called before a commit.
    ///
    /// # Errors
    /// [`TableError`]; the tables can still be read.
    pub fn commit_overlay(&self) -> Result<(), TableError> {
        Ok(self.overlay.commit()?)
    }

    /// Returns whether what is written to them is held back.
    pub fn is_held_back(&self) -> bool {
        self.overlay.is_open()
    }

    /// Shortens the file if more than half of it, and more than [`SLACK`], is free, relative to what is `stored` in it
    /// and in the files of content.
    ///
    /// # Errors
    /// [`TableError`]; then the tables must be opened anew.
    pub fn shrink(&mut self, stored: usize) -> Result<(), TableError> {
        guarded(|| {
            if self.overlay.length()? <= SLACK {
                return Ok(());
            }
            let mut in_files = 0;
            if let Some(files) = files_of(&self.database.begin_read()?)? {
                for row in files.iter()? {
                    let record = FileRecord::read(row?.1.value());
                    in_files += record.map_or(0, |record| record.range.len());
                }
            }
            let here = stored.saturating_sub(in_files) as u64;
            if self.overlay.length()? > 2 * here + SLACK {
                self.database.compact()?;
                let write = self.database.begin_write()?;
                keep_spare_room(&write)?;
                write.commit()?;
            }
            Ok(())
        })
    }

    /// Closes them, so that they need no repair when they are opened again.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn close(self) -> Result<(), TableError> {
        self.overlay.finish();
        guarded(|| Ok(self.database.close()?))
    }

    fn check_format(&self) -> Result<(), TableError> {
        let found = match self.database.begin_read()?.open_table(META) {
            Ok(meta) => meta.get(FORMAT_NAME)?.and_then(|version| number(version.value())),
            Err(redb::TableError::Storage(error)) => return Err(error.into()),
            Err(_) => None,
        };
        match found {
            Some(FORMAT | FORMAT_WITH_FILES) => Ok(()),
            Some(other) => Err(TableError(format!(
                "its format is {other}, and this deferd knows {FORMAT} and {FORMAT_WITH_FILES}: use the \
                 deferd that wrote it"
            ))),
            None => Err(TableError::new("it is a database of another program")),
        }
    }

    /// Reads everything except messages and logs; for results that an older deferd stored, also reads from the message
    /// how the job ended.
    ///
    /// # Errors
    /// [`TableError`], which names the record that cannot be read.
    pub fn contents(&self) -> Result<Contents, TableError> {
        guarded(|| {
            let mut contents = Contents::default();
            let read = self.database.begin_read()?;
            for row in read.open_table(JOBS)?.iter()? {
                let (id, record) = row?;
                let name = || {
                    let bytes = || String::from_utf8_lossy(id.value()).into_owned();
                    read_id(id.value()).map_or_else(bytes, |id| id.to_string())
                };
                let known = read_id(id.value()).zip(Record::read(record.value()));
                let damaged = || TableError(format!("the record of job {} is damaged", name()));
                let (job, mut record) = known.ok_or_else(damaged)?;
                if let Stage::Done { ending: ending @ None, .. } = &mut record.state {
                    let message = read.open_table(MESSAGES)?.get(id.value())?;
                    *ending = message.and_then(|message| message::read_ending(message.value()));
                }
                contents.jobs.push((job, record));
            }
            for row in read.open_table(KEYS)?.iter()? {
                let (name, record) = row?;
                let name = String::from_utf8_lossy(name.value());
                let known = KeyRecord::read(&name, record.value());
                let damaged = || TableError(format!("the record of key {name:?} is damaged"));
                contents.keys.push(known.ok_or_else(damaged)?);
            }
            if let Some(files) = files_of(&read)? {
                for row in files.iter()? {
                    let (id, record) = row?;
                    let known = read_id(id.value()).zip(FileRecord::read(record.value()));
                    let damaged = || TableError::new("the record of a file is damaged");
                    contents.files.push(known.ok_or_else(damaged)?);
                }
            }
            let meta = read.open_table(META)?;
            let last = meta.get(LAST_NAME)?;
            contents.last = last.and_then(|last| number(last.value())).and_then(JobId::new);
            let reading = meta.get(CLOCK_NAME)?;
            let text = reading.as_ref().and_then(|reading| str::from_utf8(reading.value()).ok());
            contents.reading = text.and_then(Reading::parse);
            Ok(contents)
        })
    }

    /// Makes these changes durable, all of them or none. With `last`, records the highest id that may be assigned, and
    /// the clocks. Adds, to the set given with each change, the files that no record names once it is durable; it does
    /// so even if the commit fails, because the changes may be durable nevertheless.
    ///
    /// # Errors
    /// [`TableError`]; then the tables must be opened anew.
    pub fn commit<'a>(
        &self,
        changes: impl Iterator<Item = (&'a Change, &'a mut BTreeSet<FileName>)>,
        last: Option<(JobId, Reading)>,
    ) -> Result<(), TableError> {
        guarded(|| {
            let mut write = self.database.begin_write()?;
            write.set_durability(Durability::Immediate)?;
            let mut open = OpenTables::of(&write)?;
            let mut takes_room = false;
            for (change, unnamed) in changes {
                takes_room |= change.takes_room();
                open.apply(change, unnamed)?;
            }
            let names_files = open.names_files;
            drop(open);
            if names_files {
                let format = FORMAT_WITH_FILES.to_string();
                write.open_table(META)?.insert(FORMAT_NAME, format.as_bytes())?;
            }
            if takes_room {
                keep_spare_room(&write)?;
            }
            if let Some((last, reading)) = last {
                let mut meta = write.open_table(META)?;
                meta.insert(LAST_NAME, last.to_string().as_bytes())?;
                meta.insert(CLOCK_NAME, reading.to_string().as_bytes())?;
            }
            Ok(write.commit()?)
        })
    }

    /// Reads the record of a job; `None` if there is no such job, or its record cannot be understood.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn record(&self, id: JobId) -> Result<Option<Record>, TableError> {
        guarded(|| {
            let row = self.database.begin_read()?.open_table(JOBS)?.get(key(id).as_slice())?;
            Ok(row.and_then(|record| Record::read(record.value())))
        })
    }

    /// Reads where the content of a job's message is; `None` if it is in the message, or there is no such job.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn file(&self, id: JobId) -> Result<Option<FileRecord>, TableError> {
        guarded(|| {
            let Some(files) = files_of(&self.database.begin_read()?)? else { return Ok(None) };
            let Some(row) = files.get(key(id).as_slice())? else { return Ok(None) };
            let damaged = || TableError(format!("the record of the file of job {id} is damaged"));
            FileRecord::read(row.value()).map(Some).ok_or_else(damaged)
        })
    }

    /// Reads the message of a job, its request or its response, which then holds `charge`; content in a file is not
    /// included. `None` if there is no such job.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn message(&self, id: JobId, charge: Charge) -> Result<Option<Bytes>, TableError> {
        guarded(|| {
            let row = self.database.begin_read()?.open_table(MESSAGES)?.get(key(id).as_slice())?;
            Ok(row.map(|value| content::copied(value.value(), charge)))
        })
    }

    /// Reads the log of a done job; empty if it has none.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn log(&self, id: JobId) -> Result<Vec<u8>, TableError> {
        guarded(|| {
            let row = self.database.begin_read()?.open_table(LOGS)?.get(key(id).as_slice())?;
            Ok(row.map(|log| log.value().to_vec()).unwrap_or_default())
        })
    }
}

type ReadTable = ReadOnlyTable<&'static [u8], &'static [u8]>;

/// Returns the table of files, if any file was ever named.
fn files_of(read: &ReadTransaction) -> Result<Option<ReadTable>, TableError> {
    match read.open_table(FILES) {
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        files => Ok(Some(files?)),
    }
}

/// Returns an id as a key: the keys have the order of the ids.
pub(super) const fn key(id: JobId) -> [u8; 8] {
    id.number().to_be_bytes()
}

fn read_id(key: &[u8]) -> Option<JobId> {
    key.try_into().ok().map(u64::from_be_bytes).and_then(JobId::new)
}

fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}
