//! The idempotency keys: which job was accepted under which.
//!
//! Owns the two orders, by key and by age. Knows nothing of states and disks. Invariant: a key is in both
//! maps or in neither.

use std::collections::{BTreeMap, BTreeSet};

use super::{IdempotencyKey, JobKey, Refused};
use crate::call::Owner;
use crate::job::{JobId, Stamp};

/// What a key is accounted with beside its own length, in bytes.
const OVERHEAD: usize = 128;

/// The keys of all owners.
#[derive(Default)]
pub struct Keys {
    by_key: BTreeMap<(Owner, Box<str>), Known>,
    by_stamp: BTreeSet<(Stamp, Owner, Box<str>)>,
}

/// What was accepted under a key.
struct Known {
    accepted: Stamp,
    id: JobId,
    fingerprint: [u8; 32],
}

impl IdempotencyKey {
    /// What it is accounted with, in bytes.
    pub fn footprint(&self) -> usize {
        self.key.len() + OVERHEAD
    }
}

impl Keys {
    /// Records that a job was accepted under a key.
    pub fn put(&mut self, job: &JobKey, key: &IdempotencyKey, accepted: Stamp) {
        let name = (job.owner.clone(), key.key.clone());
        self.by_stamp.insert((accepted, job.owner.clone(), key.key.clone()));
        self.by_key.insert(name, Known { accepted, id: job.id, fingerprint: key.fingerprint });
    }

    /// Takes a key out.
    pub fn take(&mut self, owner: &Owner, key: &str) {
        if let Some(known) = self.by_key.remove(&(owner.clone(), key.into())) {
            self.by_stamp.remove(&(known.accepted, owner.clone(), key.into()));
        }
    }

    /// The job that was accepted under a key.
    ///
    /// # Errors
    /// [`Refused::KeyReused`] where that was another request.
    pub fn get(&self, owner: &Owner, key: &IdempotencyKey) -> Result<Option<JobId>, Refused> {
        match self.by_key.get(&(owner.clone(), key.key.clone())) {
            None => Ok(None),
            Some(known) if known.fingerprint == key.fingerprint => Ok(Some(known.id)),
            Some(_) => Err(Refused::KeyReused),
        }
    }

    /// Takes out the keys of jobs that were accepted before `before` and are gone, as `is_there`
    /// says; the others get the stamp `before`, to be looked at when that is old.
    pub fn expire(
        &mut self,
        before: Stamp,
        is_there: impl Fn(&JobKey) -> bool,
    ) -> Vec<(Owner, Box<str>)> {
        let mut expired = Vec::new();
        let mut kept = Vec::new();
        while let Some(first) = self.by_stamp.first()
            && first.0 < before
            && let Some((_, owner, key)) = self.by_stamp.pop_first()
        {
            let name = (owner, key);
            let Some(known) = self.by_key.get_mut(&name) else { continue };
            if is_there(&JobKey { owner: name.0.clone(), id: known.id }) {
                known.accepted = before;
                kept.push((before, name.0, name.1));
            } else {
                self.by_key.remove(&name);
                expired.push(name);
            }
        }
        self.by_stamp.extend(kept);
        expired
    }
}

/// What a key that expired was accounted with, in bytes.
pub const fn footprint(key: &str) -> usize {
    key.len() + OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_outlives_its_retention_only_with_its_job() {
        let mut keys = Keys::default();
        let at = |seconds: u32| Stamp::from_unix_seconds(f64::from(seconds)).unwrap();
        let owner = Owner::named("ann");
        let key = |name: &str, n| IdempotencyKey { key: name.into(), fingerprint: [n; 32] };
        let job = |n| JobKey { owner: owner.clone(), id: JobId::next(None, at(n)) };
        keys.put(&job(1), &key("a", 1), at(1));
        keys.put(&job(2), &key("b", 2), at(2));
        assert_eq!(keys.get(&owner, &key("a", 1)), Ok(Some(job(1).id)));
        assert_eq!(keys.get(&owner, &key("a", 2)), Err(Refused::KeyReused));
        assert_eq!(keys.get(&Owner::named("bob"), &key("a", 2)), Ok(None));
        assert_eq!(keys.expire(at(1), |_| false), []);
        assert_eq!(keys.expire(at(9), |other| *other == job(2)), [(owner.clone(), "a".into())]);
        assert_eq!(keys.get(&owner, &key("a", 2)), Ok(None));
        assert_eq!(keys.get(&owner, &key("b", 2)), Ok(Some(job(2).id)));
        assert_eq!(keys.expire(at(9), |_| false), []);
        assert_eq!(keys.expire(at(10), |_| false), [(owner, "b".into())]);
        assert!(keys.by_key.is_empty() && keys.by_stamp.is_empty());
    }
}
