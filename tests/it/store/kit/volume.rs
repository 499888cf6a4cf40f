//! A disk for the tests: storage for redb in memory, and a folder of files, that records what was synced, and can
//! fail.
//!
//! Knows neither redb's format nor jobs. A power cut leaves everything up to the last sync, and any part of what came
//! after it, sector by sector. The sync of a file does not cover its name: the folder has a sync of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use deferd::content::{Content, ContentBuffer, NoMemory};
use deferd::files::{FileName, Files, Names, OpenFile};
use deferd::memory::{Allowance, Budget, Disk as DiskBudget};
use fastrand::Rng;
use redb::StorageBackend;

/// What a disk writes completely or not at all, in bytes.
const SECTOR: usize = 512;

/// The disk; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Volume(Arc<Mutex<Disk>>);

#[derive(Debug, Default)]
struct Disk {
    /// The contents as they read now.
    image: Image,
    medium: Medium,
    /// What was done since [`Volume::record`].
    record: Option<Vec<Event>>,
    faults: Faults,
    /// What fails, and how many calls of its kind were made since.
    plan: Option<(FaultPlan, usize)>,
    /// How long it can become.
    limit: Option<u64>,
}

/// The contents of a disk.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// The file of the tables.
    bytes: Vec<u8>,
    /// The contents of the files, including those without a name.
    files: BTreeMap<FileName, Vec<u8>>,
    /// Which of them are in the folder.
    names: BTreeSet<FileName>,
}

impl From<Vec<u8>> for Image {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, ..Self::default() }
    }
}

impl Image {
    /// Returns the same image with another file of the tables.
    #[must_use]
    pub fn with_bytes(&self, bytes: Vec<u8>) -> Self {
        Self { bytes, ..self.clone() }
    }
}

/// A change of a disk.
#[derive(Clone, Debug)]
pub enum Event {
    Write(u64, Vec<u8>),
    SetLen(u64),
    Sync,
    Create(FileName),
    WriteFile(FileName, u64, Vec<u8>),
    SyncFile(FileName),
    Remove(FileName),
    SyncFolder,
}

impl Event {
    /// Returns whether this sync makes it durable.
    fn is_of(&self, sync: &Self) -> bool {
        match (self, sync) {
            (Self::Write(..) | Self::SetLen(_), Self::Sync) => true,
            (Self::WriteFile(name, ..), Self::SyncFile(synced)) => name == synced,
            (Self::Create(_) | Self::Remove(_), Self::SyncFolder) => true,
            _ => false,
        }
    }
}

/// What a power cut leaves of a disk: what was synced, and what may have been written since.
#[derive(Clone, Debug, Default)]
pub struct Medium {
    synced: Image,
    unsynced: Vec<Event>,
}

impl Medium {
    /// Records the next change.
    pub fn take(&mut self, event: Event) {
        match event {
            sync @ (Event::Sync | Event::SyncFile(_) | Event::SyncFolder) => {
                let Self { synced, unsynced } = self;
                let done = unsynced.extract_if(.., |event| event.is_of(&sync));
                done.for_each(|event| apply(synced, &event, |_| true));
            }
            event => self.unsynced.push(event),
        }
    }

    /// Returns how many changes a power cut could lose.
    pub fn at_stake(&self) -> usize {
        self.unsynced.len()
    }

    /// Returns what a power cut may leave. Any part of what was not synced may be there: later writes without earlier
    /// ones, and torn between sectors.
    pub fn image(&self, random: &mut Rng) -> Image {
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

    /// Returns what is left if everything that was not synced is lost.
    pub fn synced(&self) -> Image {
        self.synced.clone()
    }
}

/// Makes a change of a disk, as far as it `is_done`, sector by sector.
fn apply(image: &mut Image, event: &Event, mut is_done: impl FnMut(usize) -> bool) {
    match event {
        Event::SetLen(len) if is_done(0) => image.bytes.resize(*len as usize, 0),
        Event::SetLen(_) | Event::Sync | Event::SyncFile(_) | Event::SyncFolder => {}
        Event::Write(offset, data) => write(&mut image.bytes, *offset as usize, data, is_done),
        Event::WriteFile(name, offset, data) => {
            let (file, end) =
                (image.files.entry(*name).or_default(), *offset as usize + data.len());
            // A file may have grown without the data that was written.
            if file.len() < end && is_done(0) {
                file.resize(end, 0);
            }
            write(file, *offset as usize, data, is_done);
        }
        Event::Create(name) if is_done(0) => {
            image.files.entry(*name).or_default();
            image.names.insert(*name);
        }
        Event::Remove(name) if is_done(0) => {
            image.names.remove(name);
        }
        Event::Create(_) | Event::Remove(_) => {}
    }
}

/// Writes the sectors of `data` that are done, as far as there is room.
fn write(bytes: &mut [u8], offset: usize, data: &[u8], mut is_done: impl FnMut(usize) -> bool) {
    let mut from = 0;
    while from < data.len() {
        let at = offset + from;
        let length = (SECTOR - at % SECTOR).min(data.len() - from);
        if is_done(at / SECTOR)
            && let Some(place) = bytes.get_mut(at..at + length)
        {
            place.copy_from_slice(&data[from..from + length]);
        }
        from += length;
    }
}

/// A kind of call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write,
    SetLen,
    Sync,
    /// For a file of content, or the folder.
    Create,
    Open,
    Remove,
}

/// Which calls of a kind fail: `times` of them, after `after` calls that succeed.
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
    /// None of it is done.
    Cleanly,
    /// A write is done in part. A sync gives up: what was not synced then counts as written and never will be, though
    /// it can be read (as Linux does with ext4 and XFS).
    Badly,
    /// The same, but data that a sync gave up cannot be read either (as on btrfs).
    Forgetfully,
}

/// How many calls of each kind were made, and how many of them failed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub calls: [usize; 7],
    pub failed: usize,
}

impl Volume {
    /// Returns a disk with this on it.
    pub fn of(image: impl Into<Image>) -> Self {
        let image = image.into();
        let medium = Medium { synced: image.clone(), unsynced: Vec::new() };
        let disk = Disk { image, medium, ..Disk::default() };
        Self(Arc::new(Mutex::new(disk)))
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap()
    }

    /// Returns the file of the tables.
    pub fn bytes(&self) -> Vec<u8> {
        self.disk().image.bytes.clone()
    }

    /// Returns everything on it.
    pub fn image(&self) -> Image {
        self.disk().image.clone()
    }

    /// Returns the names of the files in its folder.
    pub fn names(&self) -> BTreeSet<FileName> {
        self.disk().image.names.clone()
    }

    /// Returns the right to have content in memory, and in this disk's folder if it is large.
    pub fn allowance(&self) -> Allowance {
        let disk = DiskBudget { folder: Arc::new(self.clone()), capacity: usize::MAX };
        Budget::with_disk(usize::MAX, disk).allowance()
    }

    /// Returns content of these bytes.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn content(&self, bytes: &[u8]) -> Result<Content, NoMemory> {
        let mut content = ContentBuffer::new(&self.allowance());
        content.extend(bytes)?;
        content.freeze()
    }

    /// Returns what a power cut would leave of it.
    pub fn medium(&self) -> Medium {
        self.disk().medium.clone()
    }

    /// Records changes from now on.
    pub fn record(&self) {
        self.disk().record = Some(Vec::new());
    }

    /// Returns how many changes were recorded.
    pub fn recorded(&self) -> usize {
        self.disk().record.as_ref().map_or(0, Vec::len)
    }

    /// Returns what was recorded.
    pub fn events(&self) -> Vec<Event> {
        self.disk().record.clone().unwrap_or_default()
    }

    /// Fails from now on as planned; `None` ends that.
    pub fn fail(&self, plan: Option<FaultPlan>) {
        self.disk().plan = plan.map(|plan| (plan, 0));
    }

    /// Limits its length from now on; `None`: no limit.
    pub fn limit(&self, limit: Option<u64>) {
        self.disk().limit = limit;
    }

    /// Returns how many calls there were, and how many failed.
    pub fn faults(&self) -> Faults {
        self.disk().faults
    }
}

impl Disk {
    /// Counts a call; returns how it fails, if it does.
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
        apply(&mut self.image, &event, |_| true);
        self.medium.take(event);
    }

    /// Makes a sync fail, and give up what it should have written. The list of files is in the journal of a file
    /// system, which is not given up.
    fn give_up(&mut self, sync: &Event, how: How) {
        let is_lost = |event: &Event| {
            event.is_of(sync) && matches!(event, Event::Write(..) | Event::WriteFile(..))
        };
        self.medium.unsynced.retain(|event| !is_lost(event));
        if how == How::Forgetfully {
            self.image.clone_from(&self.medium.synced);
            for event in &self.medium.unsynced {
                apply(&mut self.image, event, |_| true);
            }
        }
    }

    fn sync(&mut self, sync: Event) -> io::Result<()> {
        match self.call(Kind::Sync) {
            None => {
                self.done(sync);
                return Ok(());
            }
            Some(How::Cleanly) => {}
            Some(how) => self.give_up(&sync, how),
        }
        Err(error())
    }

    /// Makes a change, or fails; a write that fails badly is done in part.
    fn attempt(&mut self, kind: Kind, event: Event) -> io::Result<()> {
        let Some(how) = self.call(kind) else {
            self.done(event);
            return Ok(());
        };
        if how != How::Cleanly {
            let half = |data: &[u8]| data[..data.len() / 2].to_vec();
            match event {
                Event::Write(offset, data) => self.done(Event::Write(offset, half(&data))),
                Event::WriteFile(name, offset, data) => {
                    self.done(Event::WriteFile(name, offset, half(&data)));
                }
                // It is done, but reported as failed.
                event @ (Event::Create(_) | Event::Remove(_)) => self.done(event),
                _ => {}
            }
        }
        Err(error())
    }
}

/// The names that the files of all disks get.
static NAMES: Names = Names::new(7);

impl Files for Volume {
    fn new_name(&self) -> FileName {
        NAMES.next()
    }

    fn create(&self, name: FileName) -> io::Result<Arc<dyn OpenFile>> {
        let mut disk = self.disk();
        assert!(!disk.image.files.contains_key(&name), "{name} stands for two contents");
        disk.attempt(Kind::Create, Event::Create(name))?;
        Ok(Arc::new(File(self.clone(), name)))
    }

    fn open(&self, name: FileName) -> io::Result<Arc<dyn OpenFile>> {
        let mut disk = self.disk();
        if disk.call(Kind::Open).is_some() {
            return Err(error());
        }
        if !disk.image.names.contains(&name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Arc::new(File(self.clone(), name)))
    }

    fn remove(&self, name: FileName) -> io::Result<()> {
        self.disk().attempt(Kind::Remove, Event::Remove(name))
    }

    fn list(&self) -> io::Result<Vec<(FileName, u64)>> {
        let mut disk = self.disk();
        if disk.call(Kind::Open).is_some() {
            return Err(error());
        }
        let Image { files, names, .. } = &disk.image;
        Ok(names.iter().map(|name| (*name, files[name].len() as u64)).collect())
    }

    fn sync(&self) -> io::Result<()> {
        self.disk().sync(Event::SyncFolder)
    }
}

/// An open file of a disk; it stays usable after its name was removed.
struct File(Volume, FileName);

impl OpenFile for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.disk().image.files[&self.1].len() as u64)
    }

    fn read_at(&self, at: u64, target: &mut [u8]) -> io::Result<usize> {
        let mut disk = self.0.disk();
        if disk.call(Kind::Read).is_some() {
            return Err(error());
        }
        let rest = disk.image.files[&self.1].get(at as usize..).unwrap_or_default();
        let n = rest.len().min(target.len());
        target[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }

    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let event = Event::WriteFile(self.1, at, bytes.to_vec());
        self.0.disk().attempt(Kind::Write, event)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.disk().sync(Event::SyncFile(self.1))
    }
}

fn error() -> io::Error {
    io::Error::other("the disk fails")
}

impl StorageBackend for Volume {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk().image.bytes.len() as u64)
    }

    fn read(&self, offset: u64, target: &mut [u8]) -> io::Result<()> {
        let mut disk = self.disk();
        if disk.call(Kind::Read).is_some() {
            return Err(error());
        }
        let from = offset as usize;
        let found =
            disk.image.bytes.get(from..from + target.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        target.copy_from_slice(found);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = self.disk();
        if disk.call(Kind::SetLen).is_some() {
            return Err(error());
        }
        if disk.limit.is_some_and(|limit| len > limit.max(disk.image.bytes.len() as u64)) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        disk.done(Event::SetLen(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk().sync(Event::Sync)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.disk().attempt(Kind::Write, Event::Write(offset, data.to_vec()))
    }
}
