//! How jobs are looked up, and how those that are old go.
//!
//! Owns the reading of results and logs, those of other instances as well. Invariant: what is read is charged before it
//! comes.

use redis::Value;

use super::operation::{Clock, Effect, Insist, Operation};
use super::record::Told;
use super::reply::Reply;
use super::{Inner, SPOOLED, lock, owner, script};
use crate::clock;
use crate::content::copied;
use crate::exchange::Owner;
use crate::job::log::LogEnd;
use crate::job::{Age, JobId, JobKey, Stamp, message};
use crate::store::{JobRecord, Lookup, StoreUnavailable};

impl Inner {
    /// Reads what the engine knows of a job; `None` if it does not exist.
    pub(super) fn look(&self, job: &JobKey, logs: &str) -> Result<Option<Told>, StoreUnavailable> {
        self.untold.wait(Some(job.id));
        let operation = Operation::new(&script::LOOK, Effect::Harmless)
            .with(owner(job))
            .with(job.id.to_string())
            .with(logs);
        let reply = self.engine.run(&operation, Insist::No).map_err(|_| StoreUnavailable)?;
        Ok(Told::read(&reply))
    }

    /// Reads a result that is charged.
    pub(super) fn response(&self, job: &JobKey, bytes: usize) -> Lookup {
        let budget = self.memory.budget().allowance();
        if bytes > budget.capacity() {
            return Lookup::TooLarge;
        }
        let Ok(charge) = budget.charge(bytes) else { return Lookup::NoMemory };
        let key = self.engine.key(&format!("r:{}", job.id));
        let _turn = (bytes > SPOOLED).then(|| lock(&self.large));
        let get: [&[u8]; 2] = [b"GET", key.as_bytes()];
        let Ok(mut answers) = self.engine.read(&[&get], Insist::No) else {
            return Lookup::Unreadable;
        };
        match answers.pop() {
            Some(Value::BulkString(text)) => {
                let response = message::read_response(copied(&text, charge), None);
                response.map_or(Lookup::Unreadable, Lookup::Done)
            }
            // Deleted since.
            Some(Value::Nil) => Lookup::Unknown,
            _ => Lookup::Unreadable,
        }
    }

    /// Makes the record of a job that runs here as new as it is here.
    pub(super) fn freshen(&self, record: &mut JobRecord) {
        if record.end.is_none()
            && let Some(execution) = self.lock().execution(record.id)
        {
            record.progress = execution.progress();
            record.attempts = execution.attempts();
        }
    }

    /// Forgets jobs by an operation that is repeated as long as it says so.
    pub(super) fn forget_list(
        &self,
        owner: &Owner,
        before: Stamp,
        list: &str,
    ) -> Result<(), StoreUnavailable> {
        let mut after = "0".to_owned();
        loop {
            let operation = Operation::new(&script::FORGET_BEFORE, Effect::Replicated)
                .with(owner.name().unwrap_or(""))
                .number(before.micros())
                .with(list)
                .with(&after);
            let reply = self.run(&operation)?;
            if reply.text(1).is_empty() {
                return Ok(());
            }
            reply.text(1).clone_into(&mut after);
        }
    }

    pub(super) fn run(&self, operation: &Operation) -> Result<Reply, StoreUnavailable> {
        self.engine.run(operation, Insist::No).map_err(|trouble| {
            log::debug!("store: {trouble:?}");
            StoreUnavailable
        })
    }

    /// Removes what is older than `before`; returns how many results.
    pub(super) fn remove_old(&self, which: &str, before: Age) -> Result<usize, StoreUnavailable> {
        let (at, older) = match self.engine.clock() {
            Clock::Caller => (before.micros().max(0).to_string(), String::new()),
            Clock::Engine => {
                let older = clock::now().age.micros().saturating_sub(before.micros()).max(0);
                (String::new(), older.to_string())
            }
        };
        let mut count = 0;
        loop {
            let operation =
                Operation::new(&script::EXPIRE, Effect::Once).with(which).with(&at).with(&older);
            let reply = self.run(&operation)?;
            count += usize::try_from(reply.number(1)).unwrap_or(0);
            if reply.text(2) != "more" {
                return Ok(count);
            }
        }
    }

    /// The log of a job that runs in another instance, as far as that answers; else what was kept of its last attempt.
    pub(super) fn log_elsewhere(&self, job: &JobKey, told: &Told) -> Option<LogEnd> {
        let instance = self.engine.key(&format!("i:{}", told.incarnation));
        let proc: [&[u8]; 3] = [b"HGET", instance.as_bytes(), b"proc"];
        let Ok(Some(Value::BulkString(process))) =
            self.engine.read(&[&proc], Insist::No).map(|mut all| all.pop())
        else {
            return None;
        };
        let channel = self.engine.key(&format!("c:{}", String::from_utf8_lossy(&process)));
        self.bell.ask_for_log(|name| {
            let question = format!("log {} {} {name}", job.id, self.engine.process());
            let publish: [&[u8]; 3] = [b"PUBLISH", channel.as_bytes(), question.as_bytes()];
            // Without an answer it is unknown.
            let _ = self.engine.read(&[&publish], Insist::No);
        })
    }

    /// Answers another instance that asks for a log.
    pub(super) fn tell_log(&self, id: JobId, to: &str, name: u64) {
        let execution = self.lock().execution(id);
        let Some(execution) = execution else { return };
        let log = execution.log();
        let answer = [format!("said {name} {} ", log.offset).as_bytes(), &log.text].concat();
        let channel = self.engine.key(&format!("c:{to}"));
        let publish: [&[u8]; 3] = [b"PUBLISH", channel.as_bytes(), &answer];
        // It does not wait long.
        let _ = self.engine.read(&[&publish], Insist::No);
    }

    /// Whether a job is done or gone, as far as that can be known.
    pub(super) fn is_over(&self, job: &JobKey) -> bool {
        match self.look(job, "0") {
            Ok(Some(told)) => told.state == crate::store::JobState::Done,
            Ok(None) => true,
            Err(StoreUnavailable) => false,
        }
    }
}
