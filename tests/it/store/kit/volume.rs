//! A disk of the tests: storage for redb in memory, that remembers what was synced, and can fail.
//!
//! Knows neither redb's format nor jobs. What a power cut leaves of it is everything up to the last sync,
//! and of what came after that any part, sector by sector.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use fastrand::Rng;
use redb::StorageBackend;

/// What a disk writes whole or not at all, in bytes.
const SECTOR: usize = 512;

/// The disk; its clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Volume(Arc<Mutex<Disk>>);

#[derive(Debug, Default)]
struct Disk {
    /// As it reads now.
    bytes: Vec<u8>,
    medium: Medium,
    /// What was done since [`Volume::record`].
    record: Option<Vec<Event>>,
    faults: Faults,
    /// What fails, and how many calls of its kind came since.
    plan: Option<(FaultPlan, usize)>,
    /// How long it can be.
    limit: Option<u64>,
}

/// What changes a disk.
#[derive(Clone, Debug)]
pub enum Event {
    Write(u64, Vec<u8>),
    SetLen(u64),
    Sync,
}

/// What of a disk survives a power cut: what was synced, and what may have been written since.
#[derive(Clone, Debug, Default)]
pub struct Medium {
    synced: Vec<u8>,
    unsynced: Vec<Event>,
}

impl Medium {
    /// Takes in what is done next.
    pub fn take(&mut self, event: Event) {
        match event {
            Event::Sync => {
                let Self { synced, unsynced } = self;
                unsynced.drain(..).for_each(|event| apply(synced, &event, |_| true));
            }
            event => self.unsynced.push(event),
        }
    }

    /// How much would be at stake.
    pub fn at_stake(&self) -> usize {
        self.unsynced.len()
    }

    /// What a power cut may leave. Any part of what was not synced is there: what was written later
    /// without what was written before, and torn between sectors.
    pub fn image(&self, random: &mut Rng) -> Vec<u8> {
        let mut image = self.synced.clone();
        // From nearly nothing to nearly everything.
        let share = random.usize(..5);
        for event in &self.unsynced {
            let whole = random.usize(..3) > 0;
            let there = random.usize(..4) < share;
            apply(&mut image, event, |_| if whole { there } else { random.usize(..4) < share });
        }
        image
    }

    /// What is left when nothing that was not synced is.
    pub fn synced(&self) -> Vec<u8> {
        self.synced.clone()
    }
}

/// Does what is done to a disk, as far as it `is_done`, sector by sector.
fn apply(bytes: &mut Vec<u8>, event: &Event, mut is_done: impl FnMut(usize) -> bool) {
    match event {
        Event::SetLen(len) if is_done(0) => bytes.resize(*len as usize, 0),
        Event::SetLen(_) | Event::Sync => {}
        Event::Write(offset, data) => {
            let mut from = 0;
            while from < data.len() {
                let at = *offset as usize + from;
                let length = (SECTOR - at % SECTOR).min(data.len() - from);
                if is_done(at / SECTOR)
                    && let Some(place) = bytes.get_mut(at..at + length)
                {
                    place.copy_from_slice(&data[from..from + length]);
                }
                from += length;
            }
        }
    }
}

/// A kind of call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write,
    SetLen,
    Sync,
}

/// Which calls of a kind fail: `times` of them, after `after` that do not.
#[derive(Clone, Copy, Debug)]
pub struct FaultPlan {
    pub kind: Kind,
    pub after: usize,
    pub times: usize,
    pub how: How,
}

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Nothing of it is done.
    Cleanly,
    /// A write is done in part. A sync gives up: what was not synced counts as written from then on
    /// and never will be, though it can be read (as Linux does with ext4 and XFS).
    Badly,
    /// The same, but what a sync gave up cannot be read either (as btrfs does).
    Forgetfully,
}

/// How many calls of each kind there were, and how many of them failed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub calls: [usize; 4],
    pub failed: usize,
}

impl Volume {
    /// A disk with this on it.
    pub fn of(image: Vec<u8>) -> Self {
        let medium = Medium { synced: image.clone(), unsynced: Vec::new() };
        let disk = Disk { bytes: image, medium, ..Disk::default() };
        Self(Arc::new(Mutex::new(disk)))
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap()
    }

    /// Everything on it.
    pub fn bytes(&self) -> Vec<u8> {
        self.disk().bytes.clone()
    }

    /// What a power cut would leave of it.
    pub fn medium(&self) -> Medium {
        self.disk().medium.clone()
    }

    /// Records what is done from now on.
    pub fn record(&self) {
        self.disk().record = Some(Vec::new());
    }

    /// How much was recorded.
    pub fn recorded(&self) -> usize {
        self.disk().record.as_ref().map_or(0, Vec::len)
    }

    /// What was recorded.
    pub fn events(&self) -> Vec<Event> {
        self.disk().record.clone().unwrap_or_default()
    }

    /// Fails from now on as planned; `None` for no more.
    pub fn fail(&self, plan: Option<FaultPlan>) {
        self.disk().plan = plan.map(|plan| (plan, 0));
    }

    /// Is this long from now on; `None` for as long as it is asked to.
    pub fn limit(&self, limit: Option<u64>) {
        self.disk().limit = limit;
    }

    /// How many calls there were.
    pub fn faults(&self) -> Faults {
        self.disk().faults
    }
}

impl Disk {
    /// Counts a call; how it fails, if it does.
    fn call(&mut self, kind: Kind) -> Option<How> {
        self.faults.calls[kind as usize] += 1;
        let (plan, count) = self.plan.as_mut().filter(|(plan, _)| plan.kind == kind)?;
        *count += 1;
        let fails = *count > plan.after && *count - plan.after <= plan.times;
        self.faults.failed += usize::from(fails);
        fails.then_some(plan.how)
    }

    fn done(&mut self, event: Event) {
        if let Some(record) = &mut self.record {
            record.push(event.clone());
        }
        apply(&mut self.bytes, &event, |_| true);
        self.medium.take(event);
    }

    /// A sync fails, and gives up what it should have written.
    fn give_up(&mut self, how: How) {
        self.medium.unsynced.retain(|event| matches!(event, Event::SetLen(_)));
        if how == How::Forgetfully {
            self.bytes.clone_from(&self.medium.synced);
            for event in &self.medium.unsynced {
                apply(&mut self.bytes, event, |_| true);
            }
        }
    }
}

fn error() -> io::Error {
    io::Error::other("the disk fails")
}

impl StorageBackend for Volume {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk().bytes.len() as u64)
    }

    fn read(&self, offset: u64, target: &mut [u8]) -> io::Result<()> {
        let mut disk = self.disk();
        if disk.call(Kind::Read).is_some() {
            return Err(error());
        }
        let from = offset as usize;
        let found =
            disk.bytes.get(from..from + target.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        target.copy_from_slice(found);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = self.disk();
        if disk.call(Kind::SetLen).is_some() {
            return Err(error());
        }
        if disk.limit.is_some_and(|limit| len > limit.max(disk.bytes.len() as u64)) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        disk.done(Event::SetLen(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.disk();
        match disk.call(Kind::Sync) {
            None => {
                disk.done(Event::Sync);
                return Ok(());
            }
            Some(How::Cleanly) => {}
            Some(how) => disk.give_up(how),
        }
        Err(error())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut disk = self.disk();
        match disk.call(Kind::Write) {
            None => {
                disk.done(Event::Write(offset, data.to_vec()));
                return Ok(());
            }
            Some(How::Cleanly) => {}
            Some(How::Badly | How::Forgetfully) => {
                let part = data[..data.len() / 2].to_vec();
                disk.done(Event::Write(offset, part));
            }
        }
        Err(error())
    }
}
