//! What each change does to the tables, within one transaction.
//!
//! Owns the rows that a change adds, replaces and removes, and the room that a transaction leaves. Neither begins nor
//! commits a transaction. Invariant: a row that names a file is removed only if the file is reported as unnamed.

use std::collections::BTreeSet;

use redb::{ReadableTable, Table, WriteTransaction};

use super::order::{Change, NewJob};
use super::record::{Begun, FileRecord, KeyRecord, Record, Stage, key_name};
use super::tables::{FILES, JOBS, KEYS, LOGS, MESSAGES, SPARE, TableError, key};
use crate::content::Content;
use crate::exchange::Owner;
use crate::files::FileName;
use crate::job::stored::StoredResult;
use crate::job::{JobId, Keep, message};
use crate::store::IdempotencyKey;

/// How much room in the file a change that takes room must leave, in bytes: so that jobs can be removed when the disk
/// is full, which takes some pages before it frees any.
const SPARE_ROOM: usize = 120 << 10;

type OpenTable<'a> = Table<'a, &'static [u8], &'static [u8]>;

/// The tables within one transaction.
pub struct OpenTables<'a> {
    jobs: OpenTable<'a>,
    messages: OpenTable<'a>,
    logs: OpenTable<'a>,
    keys: OpenTable<'a>,
    files: OpenTable<'a>,
    /// Whether a change has named a file.
    pub names_files: bool,
}

impl<'a> OpenTables<'a> {
    /// Opens them.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn of(write: &'a WriteTransaction) -> Result<Self, TableError> {
        Ok(Self {
            jobs: write.open_table(JOBS)?,
            messages: write.open_table(MESSAGES)?,
            logs: write.open_table(LOGS)?,
            keys: write.open_table(KEYS)?,
            files: write.open_table(FILES)?,
            names_files: false,
        })
    }

    /// Makes a change, and adds to `unnamed` the files that no record names afterwards.
    ///
    /// # Errors
    /// [`TableError`], also if the record to change cannot be read.
    pub fn apply(
        &mut self,
        change: &Change,
        unnamed: &mut BTreeSet<FileName>,
    ) -> Result<(), TableError> {
        match change {
            Change::Nothing | Change::Settled => Ok(()),
            Change::Accept(job) => self.accept(job, unnamed),
            Change::Claim(id, count) => self.update(*id, |stage| {
                if let Stage::Pending { begun, starts, .. } = stage {
                    *begun = Begun::Yes;
                    *starts = *count;
                }
            }),
            Change::Retry(id) => self.update(*id, |stage| {
                if let Stage::Pending { begun, .. } = stage {
                    *begun = Begun::No;
                }
            }),
            Change::Finish(id, end) => {
                match &end.kept {
                    Some((record, result)) => self.finish(*id, record, result, unnamed)?,
                    None => self.remove(*id, unnamed)?,
                }
                end.notices.iter().try_for_each(|notice| self.accept(notice, unnamed))
            }
            Change::KeepLog(id, record) => {
                self.put_record(*id, record)?;
                self.messages.remove(key(*id).as_slice())?;
                self.name_file(*id, None, unnamed)
            }
            Change::Forget(ids) => ids.iter().try_for_each(|&id| self.forget(id, unnamed)),
            Change::Remove(ids) => ids.iter().try_for_each(|&id| self.remove(id, unnamed)),
            Change::Withdraw(job) => {
                self.remove(job.id, unnamed)?;
                let key = job.key.iter();
                key.map(|key| &key.key).try_for_each(|key| self.remove_key(&job.record.owner, key))
            }
            Change::RemoveKeys(keys) => {
                keys.iter().try_for_each(|(owner, key)| self.remove_key(owner, key))
            }
        }
    }

    fn accept(&mut self, job: &NewJob, unnamed: &mut BTreeSet<FileName>) -> Result<(), TableError> {
        self.put_record(job.id, &job.record)?;
        self.put_message(job.id, &job.request.0, &job.request.1, unnamed)?;
        if let Some(IdempotencyKey { key: name, fingerprint }) = &job.key {
            let record = KeyRecord {
                id: job.id,
                accepted: job.record.created,
                aged: Some(job.aged),
                fingerprint: *fingerprint,
            };
            let name = key_name(&job.record.owner, name);
            self.keys.insert(name.as_bytes(), record.to_text().as_bytes())?;
        }
        Ok(())
    }

    fn finish(
        &mut self,
        id: JobId,
        record: &Record,
        result: &StoredResult,
        unnamed: &mut BTreeSet<FileName>,
    ) -> Result<(), TableError> {
        self.put_record(id, record)?;
        let head = message::response_head(&result.response);
        self.put_message(id, &head, result.response.body(), unnamed)?;
        if !result.log.text.is_empty() {
            self.logs.insert(key(id).as_slice(), &*result.log.text)?;
        }
        Ok(())
    }

    /// Writes a message without joining its parts in memory first; if its content is in a file, writes where.
    fn put_message(
        &mut self,
        id: JobId,
        head: &[u8],
        body: &Content,
        unnamed: &mut BTreeSet<FileName>,
    ) -> Result<(), TableError> {
        self.name_file(id, FileRecord::of(body), unnamed)?;
        let body = body.in_memory().map_or(&[][..], |bytes| bytes);
        let mut place =
            self.messages.insert_reserve(key(id).as_slice(), head.len() + body.len())?;
        let bytes = place.as_mut();
        bytes[..head.len()].copy_from_slice(head);
        bytes[head.len()..].copy_from_slice(body);
        Ok(())
    }

    /// Records which file has the content of a job's message now, if any.
    fn name_file(
        &mut self,
        id: JobId,
        file: Option<FileRecord>,
        unnamed: &mut BTreeSet<FileName>,
    ) -> Result<(), TableError> {
        let id = key(id);
        let before = match &file {
            Some(file) => self.files.insert(id.as_slice(), file.to_text().as_bytes())?,
            None => self.files.remove(id.as_slice())?,
        };
        let before = before.and_then(|record| FileRecord::read(record.value()));
        let before = before.map(|before| before.name);
        let now = file.map(|file| file.name);
        self.names_files |= now.is_some();
        unnamed.extend(before.filter(|_| before != now));
        Ok(())
    }

    fn update(&mut self, id: JobId, change: impl FnOnce(&mut Stage)) -> Result<(), TableError> {
        let Some(mut record) = self.record(id)? else { return Ok(()) };
        change(&mut record.state);
        self.put_record(id, &record)
    }

    /// Reads the record of a job; `None` if there is no such job.
    fn record(&self, id: JobId) -> Result<Option<Record>, TableError> {
        let Some(row) = self.jobs.get(key(id).as_slice())? else { return Ok(None) };
        let damaged = || TableError::new(format!("the record of job {id} is damaged"));
        Record::read(row.value()).map(Some).ok_or_else(damaged)
    }

    fn put_record(&mut self, id: JobId, record: &Record) -> Result<(), TableError> {
        self.jobs.insert(key(id).as_slice(), record.to_text().as_bytes())?;
        Ok(())
    }

    fn forget(&mut self, id: JobId, unnamed: &mut BTreeSet<FileName>) -> Result<(), TableError> {
        if let Some(mut record) = self.record(id)?
            && let Stage::Pending { keep, .. } = &mut record.state
        {
            *keep = Keep::Nothing;
            return self.put_record(id, &record);
        }
        self.remove(id, unnamed)
    }

    fn remove_key(&mut self, owner: &Owner, key: &str) -> Result<(), TableError> {
        self.keys.remove(key_name(owner, key).as_bytes())?;
        Ok(())
    }

    fn remove(&mut self, id: JobId, unnamed: &mut BTreeSet<FileName>) -> Result<(), TableError> {
        self.name_file(id, None, unnamed)?;
        let key = key(id);
        self.jobs.remove(key.as_slice())?;
        self.messages.remove(key.as_slice())?;
        self.logs.remove(key.as_slice())?;
        Ok(())
    }
}

/// Ensures that the file has the room that removals need.
///
/// # Errors
/// [`TableError`] if the disk has no room.
pub fn keep_spare_room(write: &WriteTransaction) -> Result<(), TableError> {
    let mut spare = write.open_table(SPARE)?;
    drop(spare.insert_reserve(&b""[..], SPARE_ROOM)?);
    spare.remove(&b""[..])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use redb::Database;
    use redb::backends::InMemoryBackend;

    #[test]
    fn a_change_of_a_record_that_cannot_be_read_fails() {
        let database = Database::builder().create_with_backend(InMemoryBackend::new()).unwrap();
        let write = database.begin_write().unwrap();
        let mut open = OpenTables::of(&write).unwrap();
        let [damaged, missing] = [7, 8].map(|id| JobId::new(id).unwrap());
        open.jobs.insert(key(damaged).as_slice(), &b"no record"[..]).unwrap();
        for change in [Change::Claim, |id, _| Change::Retry(id), |id, _| Change::Forget(vec![id])] {
            let error = open.apply(&change(damaged, 1), &mut BTreeSet::new()).unwrap_err();
            assert_eq!(error.to_string(), "the record of job 7 is damaged");
            open.apply(&change(missing, 1), &mut BTreeSet::new()).unwrap();
        }
    }
}
