//! How results are collected, and how jobs are forgotten.

use crate::store::kit::moment;
use deferd::job::{JobId, JobKey};
use deferd::store::DeliveryId;

use super::entry::{Entry, State};
use super::{Trial, assert_lookup};

impl Trial {
    pub fn collect(&mut self) {
        let key = self.pick();
        self.trace.note(format!("collect {}", key.id));
        let mut named = None;
        let found = self.store.collect(&key).map(|(response, id)| {
            named = Some(id);
            response
        });
        let expected = self.visible(&key);
        assert_lookup(&found, expected.as_deref());
        if let Some(Entry { state: State::Done { delivery, .. }, .. }) = expected {
            *delivery = named;
        }
        if let Some(id) = named {
            assert!(self.deliveries.iter().all(|(_, other)| *other != id), "it has its own name");
            self.deliveries.push((key, id));
        }
    }

    pub fn confirm(&mut self) {
        let (key, id) = self.delivery();
        self.trace.note(format!("confirm {} of {}", id.0, key.id));
        self.store.confirm(&key, id, super::at(super::THEN));
        let delivered = self
            .model
            .extract_if(key.id..=key.id, |_, entry| entry.owner == key.owner && entry.is_in(id));
        self.fading.extend(delivered);
    }

    pub fn restore(&mut self) {
        let (key, id) = self.delivery();
        self.trace.note(format!("restore {} of {}", id.0, key.id));
        self.store.restore(&key, id);
        if let Some(entry) = self.model.get_mut(&key.id)
            && entry.owner == key.owner
            && entry.is_in(id)
        {
            entry.deliver_again();
        }
    }

    /// Returns a current delivery, if there is one, or any earlier one; sometimes of another job.
    pub fn delivery(&mut self) -> (JobKey, DeliveryId) {
        let mut jobs = self.model.iter();
        let under_way = jobs.find_map(|(&id, entry)| match entry.state {
            State::Done { delivery: Some(delivery), .. } => {
                Some((JobKey { owner: entry.owner.clone(), id }, delivery))
            }
            _ => None,
        });
        let past = self.random.usize(..self.deliveries.len() + 1);
        let past = self.deliveries.get(past).cloned();
        let of_none = (self.pick(), DeliveryId::default());
        match (self.random.usize(..6), under_way, past) {
            (0, Some((key, _)), Some((_, id))) => (key, id),
            (0..2, _, Some(past)) => past,
            (_, Some(under_way), _) => under_way,
            _ => of_none,
        }
    }

    pub fn forget(&mut self) {
        let key = self.pick();
        self.trace.note(format!("forget {}", key.id));
        let forgotten = self.store.forget(&key).unwrap();
        assert_eq!(forgotten, self.visible(&key).is_some());
        if forgotten {
            self.forget_those(|id, _| *id == key.id);
        }
    }

    pub fn forget_all(&mut self) {
        let owner = self.pick().owner;
        self.trace.note("forget all".into());
        self.store.forget_all(&owner).unwrap();
        self.forget_those(|_, entry| entry.owner == owner);
        // Their removal is durable before a crash, like that of results.
        self.keys.retain(|(of, _), _| *of != owner);
    }

    pub fn forget_before(&mut self) {
        let (owner, before) = (self.pick().owner, self.now());
        self.trace.note(format!("forget before {before:?}"));
        self.store.forget_before(&owner, before).unwrap();
        self.forget_those(|_, entry| entry.owner == owner && entry.stamp() < before);
    }

    pub fn expire(&mut self) {
        let before = self.now();
        self.trace.note(format!("expire before {before:?}"));
        let expired = self.store.expire(moment(before).age).unwrap();
        let count = self.model.len();
        let gone =
            self.model.extract_if(.., |_, entry| entry.is_collectable() && entry.stamp() < before);
        self.fading.extend(gone);
        assert_eq!(expired, count - self.model.len());
        let old = self.keys.extract_if(.., |_, named| named.stamp < before);
        for (name, mut named) in old.collect::<Vec<_>>() {
            // A key lives at least as long as its job.
            if self.model.contains_key(&named.id) {
                named.stamp = before;
                self.keys.insert(name, named);
            } else {
                self.fading_keys.insert(name, named);
            }
        }
    }

    /// Removes results at once; pending jobs go on, but no client can ask for them.
    pub fn forget_those(&mut self, which: impl Fn(&JobId, &Entry) -> bool) {
        self.model.retain(|id, entry| !which(id, entry) || entry.is_pending());
        for (id, entry) in &mut self.model {
            entry.wanted &= !which(id, entry);
        }
    }
}
