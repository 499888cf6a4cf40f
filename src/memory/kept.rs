//! What the process has besides charged content: freed memory that the allocator keeps, stacks, heads that are still
//! read, the pages of a store.
//!
//! Owns the reading of the process's memory and what follows from it for the budget. Charges nothing. Invariants: what
//! is kept counts only beyond [`BESIDE`], which every deferd needs; half of the budget stays usable whatever is kept,
//! so what was stored within its limits can be collected; if the memory cannot be read, nothing counts as kept.

use std::fs;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How much memory besides its content the process may have before it counts, in bytes: less than the 24 MiB that may
/// be resident above `--max-memory`, because some more is allocated between two readings.
const BESIDE: usize = 18 << 20;

/// How long a reading holds.
const FRESH: Duration = Duration::from_millis(50);

/// Returns the resident memory, in bytes; `None` if it is not known.
type Reading = Box<dyn Fn() -> Option<usize> + Send + Sync>;

/// What is kept besides the content.
pub struct Kept {
    reading: Option<Reading>,
    begin: Instant,
    /// When the next reading is due, in microseconds since `begin`.
    due: AtomicU64,
    /// What was charged at the last reading, in bytes.
    used: AtomicUsize,
    /// What was kept at the last reading, in bytes.
    bytes: AtomicUsize,
}

impl Kept {
    /// Never reads: nothing is kept.
    pub fn nothing() -> Self {
        Self::new(None)
    }

    /// Reads the memory of this process.
    pub fn of_process() -> Self {
        Self::new(Some(Box::new(resident)))
    }

    /// Reads by `reading`.
    pub fn new(reading: Option<Reading>) -> Self {
        Self {
            reading,
            begin: Instant::now(),
            due: AtomicU64::new(0),
            used: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
        }
    }

    /// Returns what was kept at the last reading, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Acquire)
    }

    /// Returns what is kept besides `used` bytes of content, in bytes. The last reading is used if it is fresh and not
    /// much was freed since: the allocator may keep what is freed.
    pub fn beside(&self, used: usize, capacity: usize) -> usize {
        let Some(reading) = &self.reading else { return 0 };
        let now = u64::try_from(self.begin.elapsed().as_micros()).unwrap_or(u64::MAX);
        let due = self.due.load(Ordering::Acquire);
        let is_freed = used.saturating_add(capacity / 16) < self.used.load(Ordering::Acquire);
        if now < due && !is_freed {
            return self.bytes();
        }
        let next = now.saturating_add(FRESH.as_micros() as u64);
        // One thread reads; the others use the last reading.
        if self.due.compare_exchange(due, next, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            let bytes = reading().map_or(0, |resident| kept(resident, used, capacity));
            self.used.store(used, Ordering::Release);
            self.bytes.store(bytes, Ordering::Release);
        }
        self.bytes()
    }
}

/// Returns how much of the resident memory is kept, in bytes.
const fn kept(resident: usize, used: usize, capacity: usize) -> usize {
    let most = capacity / 2;
    let kept = resident.saturating_sub(used).saturating_sub(BESIDE);
    if kept < most { kept } else { most }
}

/// Returns the resident memory of this process, in bytes. `/proc/self/statm` counts in pages without telling their
/// size, so it is not used.
fn resident() -> Option<usize> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    const MIB: usize = 1 << 20;

    #[test]
    fn what_is_kept_leaves_a_half() {
        for (resident, used, bytes) in [
            (0, 0, 0),
            (5, 0, 0),
            (18, 0, 0),
            (20, 0, 2),
            (20, 2, 0),
            (50, 32, 0),
            (60, 32, 10),
            (60, 0, 16),
            (1000, 0, 16),
        ] {
            let found = kept(resident * MIB, used * MIB, 32 * MIB);
            assert_eq!(found, bytes * MIB, "{resident} MiB resident, {used} MiB charged");
        }
    }

    #[test]
    fn a_look_is_fresh_until_much_is_freed() {
        let looks = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&looks);
        let kept = Kept::new(Some(Box::new(move || {
            Some((20 + count.fetch_add(1, Ordering::Relaxed)) * MIB)
        })));
        let begin = Instant::now();
        let mut asked = 0;
        while asked < 1000 {
            kept.beside(20 * MIB, 32 * MIB);
            asked += 1;
        }
        let most = begin.elapsed().as_millis() / FRESH.as_millis() + 1;
        let looked = looks.load(Ordering::Relaxed);
        assert!(u128::try_from(looked).unwrap() <= most, "{looked} looks in {:?}", begin.elapsed());
        let freed = kept.beside(0, 32 * MIB);
        assert_eq!(freed, ((20 + looked - 18) * MIB).min(16 * MIB), "20 MiB were freed");
        assert!(looks.load(Ordering::Relaxed) > looked);
    }

    #[test]
    fn without_a_reading_nothing_is_kept() {
        assert_eq!(Kept::nothing().beside(0, MIB), 0);
        assert_eq!(Kept::new(Some(Box::new(|| None))).beside(0, MIB), 0);
    }

    #[test]
    fn the_process_has_resident_memory() {
        assert!(resident().is_some_and(|bytes| bytes > MIB));
    }
}
