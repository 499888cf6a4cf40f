//! How jobs and results are removed without being collected: by a client's request, and by age.
//!
//! Owns the repetition of such an operation until it is complete. Invariant: one operation changes a bounded number of
//! jobs.

use super::operation::{Clock, Effect, Operation};
use super::{Inner, owner, script};
use crate::clock;
use crate::exchange::Owner;
use crate::job::{Age, JobKey, Stamp};
use crate::store::StoreUnavailable;

impl Inner {
    /// Forgets a job.
    pub(super) fn forget(&self, job: &JobKey) -> Result<bool, StoreUnavailable> {
        self.untold.wait(Some(job.id));
        let operation = Operation::new(&script::FORGET, Effect::Replicated)
            .with(owner(job))
            .with(job.id.to_string());
        let reply = self.run(&operation)?;
        self.bell.ring(job.id);
        Ok(reply.text(0) == "forgotten")
    }

    /// Forgets all jobs of an owner.
    pub(super) fn forget_all(&self, owner: &Owner) -> Result<(), StoreUnavailable> {
        let operation = Operation::new(&script::FORGET_ALL, Effect::Replicated)
            .with(owner.name().unwrap_or(""));
        self.run(&operation)?;
        while self.run(&Operation::new(&script::PURGE, Effect::Once))?.text(0) == "more" {}
        Ok(())
    }

    /// Forgets the jobs of an owner that are stamped before a time.
    pub(super) fn forget_before(
        &self,
        owner: &Owner,
        before: Stamp,
    ) -> Result<(), StoreUnavailable> {
        self.untold.wait(None);
        self.forget_list(owner, before, "p")?;
        self.forget_list(owner, before, "d")
    }

    /// Forgets jobs by an operation that is repeated for as long as its reply asks for that.
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

    /// Removes what is older than `before`; returns the number of results.
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
}
