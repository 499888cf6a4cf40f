//! The idempotency keys: which job was accepted under which key.
//!
//! Owns the two orders of each owner's keys, by key and by age, and their accounted size. Knows nothing of states and
//! disks. Invariant: a key is in both maps of its owner or in neither.

use std::collections::{BTreeMap, BTreeSet};

use super::{IdempotencyKey, Refused};
use crate::exchange::Owner;
use crate::job::{Age, JobId, JobKey};
use crate::memory::{Charge, allocated};

/// The accounted size of a key besides its own two copies, in bytes: its places in both maps.
pub const PLACES: usize = 224;

/// The keys of all owners.
#[derive(Default)]
pub struct Idempotency {
    owners: BTreeMap<Owner, OwnerKeys>,
    /// The accounted size of all keys, in bytes.
    bytes: usize,
}

/// The keys of one owner.
#[derive(Default)]
struct OwnerKeys {
    by_key: BTreeMap<Box<str>, Known>,
    by_age: BTreeSet<(Age, Box<str>)>,
}

/// What was accepted under a key.
struct Known {
    accepted: Age,
    id: JobId,
    fingerprint: [u8; 32],
    /// The charge for its memory.
    _charge: Charge,
}

impl IdempotencyKey {
    /// Returns its accounted size, in bytes.
    pub fn footprint(&self) -> usize {
        footprint(&self.key)
    }
}

/// Returns the accounted size of a key, in bytes.
fn footprint(key: &str) -> usize {
    PLACES + 2 * allocated(key.len())
}

impl Idempotency {
    /// Returns the accounted size of all keys, in bytes.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Records that a job was accepted under a key; `charge` is for the memory of the key.
    pub fn insert(&mut self, job: &JobKey, key: &IdempotencyKey, accepted: Age, charge: Charge) {
        let keys = self.owners.entry(job.owner.clone()).or_default();
        let known = Known { accepted, id: job.id, fingerprint: key.fingerprint, _charge: charge };
        keys.by_age.insert((accepted, key.key.clone()));
        keys.by_key.insert(key.key.clone(), known);
        self.bytes += key.footprint();
    }

    /// Removes a key; returns its accounted size, which is zero if it is unknown.
    pub fn take(&mut self, owner: &Owner, key: &str) -> usize {
        let Some(keys) = self.owners.get_mut(owner) else { return 0 };
        let Some(known) = keys.by_key.remove(key) else { return 0 };
        keys.by_age.remove(&(known.accepted, key.into()));
        if keys.by_key.is_empty() {
            self.owners.remove(owner);
        }
        self.bytes -= footprint(key);
        footprint(key)
    }

    /// Returns the job that was accepted under a key.
    ///
    /// # Errors
    /// [`Refused::KeyReused`] if the key was used for a different request.
    pub fn get(&self, owner: &Owner, key: &IdempotencyKey) -> Result<Option<JobId>, Refused> {
        let known = self.owners.get(owner).and_then(|keys| keys.by_key.get(&key.key));
        match known {
            None => Ok(None),
            Some(known) if known.fingerprint == key.fingerprint => Ok(Some(known.id)),
            Some(_) => Err(Refused::KeyReused),
        }
    }

    /// Removes all keys of an owner, except those whose jobs `is_kept` names; returns them, and their accounted size.
    pub fn forget(
        &mut self,
        owner: &Owner,
        is_kept: impl Fn(JobId) -> bool,
    ) -> (Vec<(Owner, Box<str>)>, usize) {
        let Some(OwnerKeys { by_key, .. }) = self.owners.remove(owner) else {
            return (Vec::new(), 0);
        };
        let (mut forgotten, mut bytes) = (Vec::new(), 0);
        for (key, known) in by_key {
            if is_kept(known.id) {
                let keys = self.owners.entry(owner.clone()).or_default();
                keys.by_age.insert((known.accepted, key.clone()));
                keys.by_key.insert(key, known);
            } else {
                bytes += footprint(&key);
                forgotten.push((owner.clone(), key));
            }
        }
        self.bytes -= bytes;
        (forgotten, bytes)
    }

    /// Removes the keys of jobs that were accepted before `before` and that `is_there` no longer finds. The other keys
    /// get the age `before`, and are checked again when that is old. Checks at most `most` keys.
    pub fn expire(
        &mut self,
        before: Age,
        most: usize,
        is_there: impl Fn(&JobKey) -> bool,
    ) -> Expired {
        let mut expired = Expired { keys: Vec::new(), bytes: 0, is_last: true };
        let mut left = most;
        self.owners.retain(|owner, keys| {
            let is_there = |id| is_there(&JobKey { owner: owner.clone(), id });
            for key in keys.expire(before, &mut left, is_there) {
                expired.bytes += footprint(&key);
                expired.keys.push((owner.clone(), key));
            }
            !keys.by_key.is_empty()
        });
        expired.is_last = left > 0;
        self.bytes -= expired.bytes;
        expired
    }
}

/// Keys that were removed because of their age.
#[must_use]
pub struct Expired {
    /// The keys, with their owners.
    pub keys: Vec<(Owner, Box<str>)>,
    /// Their accounted size.
    pub bytes: usize,
    /// Whether all keys of that age were checked.
    pub is_last: bool,
}

impl OwnerKeys {
    fn expire(
        &mut self,
        before: Age,
        left: &mut usize,
        is_there: impl Fn(JobId) -> bool,
    ) -> Vec<Box<str>> {
        let mut expired = Vec::new();
        let mut kept = Vec::new();
        while *left > 0
            && let Some(first) = self.by_age.first()
            && first.0 < before
            && let Some((_, key)) = self.by_age.pop_first()
        {
            *left -= 1;
            let Some(known) = self.by_key.get_mut(&key) else { continue };
            if is_there(known.id) {
                known.accepted = before;
                kept.push((before, key));
            } else {
                self.by_key.remove(&key);
                expired.push(key);
            }
        }
        self.by_age.extend(kept);
        expired
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Allowance;

    fn at(seconds: u32) -> Age {
        Age::from_micros(i64::from(seconds) * 1_000_000)
    }

    fn key(name: &str, n: u8) -> IdempotencyKey {
        IdempotencyKey { key: name.into(), fingerprint: [n; 32] }
    }

    fn job(owner: &Owner, n: u32) -> JobKey {
        JobKey { owner: owner.clone(), id: JobId::new(n.into()).unwrap() }
    }

    fn put(keys: &mut Idempotency, job: &JobKey, key: &IdempotencyKey, accepted: Age) {
        keys.insert(job, key, accepted, Allowance::default().nothing());
    }

    #[test]
    fn a_key_outlives_its_retention_only_with_its_job() {
        let mut keys = Idempotency::default();
        let owner = Owner::named("ann");
        put(&mut keys, &job(&owner, 1), &key("a", 1), at(1));
        put(&mut keys, &job(&owner, 2), &key("b", 2), at(2));
        assert_eq!(keys.get(&owner, &key("a", 1)), Ok(Some(job(&owner, 1).id)));
        assert_eq!(keys.get(&owner, &key("a", 2)), Err(Refused::KeyReused));
        assert_eq!(keys.get(&Owner::named("bob"), &key("a", 2)), Ok(None));
        assert_eq!(keys.expire(at(1), 9, |_| false).keys, []);
        let second = job(&owner, 2);
        let Expired { keys: first, bytes, is_last } =
            keys.expire(at(9), 1, |other| *other == second);
        assert_eq!(first, [(owner.clone(), "a".into())]);
        assert_eq!((bytes, is_last), (footprint("a"), false));
        assert!(keys.expire(at(9), 9, |other| *other == second).is_last);
        assert_eq!(keys.get(&owner, &key("a", 2)), Ok(None));
        assert_eq!(keys.get(&owner, &key("b", 2)), Ok(Some(second.id)));
        assert_eq!(keys.expire(at(9), 9, |_| false).keys, []);
        assert_eq!(keys.expire(at(10), 9, |_| false).keys, [(owner, "b".into())]);
        assert!(keys.owners.is_empty() && keys.bytes() == 0);
    }

    #[test]
    fn forgetting_keys_spares_other_owners_and_pending_jobs() {
        let mut keys = Idempotency::default();
        let (ann, bob) = (Owner::named("ann"), Owner::named("bob"));
        for (owner, name, n) in [(&ann, "a", 1), (&ann, "b", 2), (&bob, "a", 3)] {
            put(&mut keys, &job(owner, n), &key(name, 0), at(n));
        }
        let under_way = job(&ann, 2).id;
        let (forgotten, bytes) = keys.forget(&ann, |id| id == under_way);
        assert_eq!((forgotten, bytes), (vec![(ann.clone(), "a".into())], footprint("a")));
        assert_eq!(keys.get(&ann, &key("a", 0)), Ok(None));
        assert_eq!(keys.get(&ann, &key("b", 0)), Ok(Some(under_way)));
        assert_eq!(keys.get(&bob, &key("a", 0)), Ok(Some(job(&bob, 3).id)));
        assert_eq!(keys.bytes(), footprint("a") + footprint("b"));
        assert_eq!(keys.take(&ann, "b"), footprint("b"));
        assert_eq!(keys.take(&ann, "b"), 0);
        assert_eq!(keys.bytes(), footprint("a"));
    }
}
