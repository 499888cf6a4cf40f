//! How requests and results are read from the tables and from files.
//!
//! Owns what happens if a read fails: reading a request is repeated, or its job is done with an error; a failed read
//! of a result is reported as what it is at this moment. Writes nothing. Invariant: the store's lock is not held
//! during a read.

use std::io::ErrorKind;

use super::DiskStore;
use super::loads::Unloaded;
use super::record::{Record, Stage};
use super::state::Place;
use super::tables::TableError;
use crate::clock;
use crate::content::{Content, IN_MEMORY};
use crate::error::Error;
use crate::exchange::Call;
use crate::job::execution::Execution;
use crate::job::stored::StoredResponse;
use crate::job::{JobKey, message};
use crate::ledger::Taken;
use crate::ledger::job::Work;
use crate::store::{Lookup, Store};

impl DiskStore {
    /// Reads a request, repeatedly if necessary; `None` if the job was stopped in the meantime, or if its request is
    /// damaged or larger than the memory: then the job has its result.
    fn fetch(&self, job: &JobKey, execution: &Execution) -> Option<Box<Call>> {
        let error = loop {
            match self.request(job) {
                Ok(call) => return Some(call),
                Err(Unloaded::Damaged(what)) => {
                    log::warn!("job={} its request is damaged: {what}", job.id);
                    break Error::Internal("the stored request is damaged".into());
                }
                Err(_) if self.shared.is_closed() => return None,
                Err(Unloaded::NoMemory) => {}
                Err(Unloaded::TooLarge) => {
                    let what = "the stored request is larger than --max-memory: raise that";
                    break Error::InsufficientStorage(what.into());
                }
                Err(Unloaded::TableError(fault)) => {
                    log::debug!("job={} its request cannot be read: {fault}", job.id);
                }
            }
            if execution.sleep(self.rest).is_err() {
                break Error::Cancelled;
            }
        };
        self.finish(job, error.response(), clock::now());
        None
    }

    /// Returns a claimed job with its request, which is read if it is on disk; `None` if the job was
    /// [finished](Self::fetch) instead.
    pub(super) fn load(&self, taken: Taken<Place<Box<Call>>>) -> Option<Taken<Box<Call>>> {
        let Taken { job, route, created, starts, rerun, execution, work } = taken;
        let work = match work {
            Work::First(Place::Here(call)) => Work::First(call),
            Work::First(Place::OnDisk) => Work::First(self.fetch(&job, &execution)?),
            Work::Again(attempt) => Work::Again(attempt),
        };
        Some(Taken { job, route, created, starts, rerun, execution, work })
    }

    /// Reads the request of a running job.
    fn request(&self, job: &JobKey) -> Result<Box<Call>, Unloaded> {
        let damaged = |what: &str| Unloaded::Damaged(what.into());
        let record = self.shared.read(|tables| tables.record(job.id))?;
        let Some(Record { owner, footprint, state, .. }) = record else {
            return Err(damaged("its record is missing or cannot be understood"));
        };
        let Stage::Pending { connection, auth_type, .. } = state else {
            return Err(damaged("its record is not that of a pending job"));
        };
        let content = self.file(job, footprint)?;
        let size = footprint - content.as_ref().map_or(0, Content::len);
        let message = self
            .loads
            .request(size, |charge| self.shared.read(|tables| tables.message(job.id, charge)))?;
        let request = message.and_then(|message| message::read_request(message, content));
        let request =
            request.ok_or_else(|| damaged("its message is missing or cannot be understood"))?;
        Ok(Box::new(Call { request, connection, owner, auth_type }))
    }

    /// Opens the content of a job's message if it is in a file; `footprint` is the size of both together.
    fn file(&self, job: &JobKey, footprint: usize) -> Result<Option<Content>, Unloaded> {
        // Smaller content is in the message: only content above this size is put into a file.
        if footprint <= IN_MEMORY {
            return Ok(None);
        }
        let named = || self.shared.read(|tables| tables.file(job.id));
        let Some(file) = named()? else { return Ok(None) };
        let content = file.content(&self.shared.folder);
        let Err(error) = content.open() else { return Ok(Some(content)) };
        let what = format!("content/{}: {error}", file.name);
        match error.kind() {
            // The record was removed in the meantime, and the file with it.
            ErrorKind::NotFound if named()?.as_ref() != Some(&file) => Ok(None),
            ErrorKind::NotFound | ErrorKind::UnexpectedEof => Err(Unloaded::Damaged(what)),
            _ => Err(TableError::new(what).into()),
        }
    }

    /// Reads a result of this footprint, which exists according to the ledger.
    pub(super) fn response(&self, job: &JobKey, footprint: usize) -> Lookup {
        let damaged = || Unloaded::Damaged("its message cannot be understood".into());
        let response = self.file(job, footprint).and_then(|content| {
            let size = footprint - content.as_ref().map_or(0, Content::len);
            let message = self.loads.result(job.id, size, |charge| {
                self.shared.read(|tables| tables.message(job.id, charge))
            })?;
            let response = |message| message::read_response(message, content).ok_or_else(damaged);
            message.map(response).transpose()
        });
        match response {
            Ok(Some(response)) => Lookup::Done(response),
            // It was deleted in bulk in the meantime.
            Ok(None) => Lookup::Unknown,
            Err(Unloaded::NoMemory) => Lookup::NoMemory,
            Err(Unloaded::TooLarge) => Lookup::TooLarge,
            Err(Unloaded::Damaged(what)) => {
                log::warn!("job={} its result is damaged: {what}", job.id);
                Lookup::Unreadable
            }
            Err(Unloaded::TableError(fault)) => {
                log::debug!("job={} its result cannot be read: {fault}", job.id);
                Lookup::Unreadable
            }
        }
    }
}

/// Opens the content of a result that is not yet durable, before its file can be removed.
pub(super) fn opened(response: StoredResponse) -> Lookup {
    match response.body().open() {
        Ok(()) => Lookup::Done(response),
        Err(error) if error.kind() == ErrorKind::NotFound => Lookup::Unknown,
        Err(error) => {
            log::debug!("a result cannot be read: {error}");
            Lookup::Unreadable
        }
    }
}
