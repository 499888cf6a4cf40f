//! What a job's script writes to stderr: its last bytes, and the threads that follow it.
//!
//! Owns how much is kept: [`KEPT`] bytes, and more while a client follows, up to [`BEHIND`]. Does not know what the
//! bytes mean, nor who wrote them. Invariants: an offset counts all bytes that were ever written, so its meaning does
//! not change when bytes are dropped; a thread that follows is woken by each write.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread, ThreadId};

use crate::memory::{Allowance, Charge, NoRoom};

/// How much of a log is kept, in bytes.
pub const KEPT: usize = 8 * 1024;

/// How far a client that follows may lag, in bytes.
pub const BEHIND: usize = 64 * 1024;

/// The last bytes that a job wrote to stderr.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogEnd {
    /// The bytes.
    pub text: Box<[u8]>,
    /// How much it wrote in all, in bytes: the offset after the text.
    pub offset: u64,
}

impl LogEnd {
    /// Returns the offset at which the text begins.
    pub fn start(&self) -> u64 {
        self.offset.saturating_sub(self.text.len() as u64)
    }

    /// Returns the part of it after an offset.
    #[must_use]
    pub fn behind(mut self, offset: u64) -> Self {
        let known = offset.saturating_sub(self.start());
        let known =
            usize::try_from(known).map_or(self.text.len(), |known| known.min(self.text.len()));
        if known > 0 {
            self.text = self.text[known..].into();
        }
        self
    }
}

/// The log of a job that has begun.
#[derive(Default)]
pub struct JobLog(Mutex<Tail>);

#[derive(Default)]
struct Tail {
    /// The last bytes: those that are kept, and up to as many again, so that trimming costs O(1) a byte.
    text: Vec<u8>,
    /// How much was written in all, in bytes.
    offset: u64,
    /// The threads that follow.
    followers: Vec<Thread>,
    /// The charge for what is kept for followers beyond [`KEPT`].
    charge: Option<Charge>,
}

impl JobLog {
    /// Continues after what earlier attempts wrote, which another process may have made.
    pub fn resume(&self, end: &LogEnd) {
        let tail = &mut *self.lock();
        tail.text.splice(..0, end.text.iter().copied());
        tail.offset += end.offset;
    }

    /// Appends bytes, and wakes the threads that follow.
    pub fn append(&self, bytes: &[u8]) {
        let tail = &mut *self.lock();
        let kept = if tail.followers.is_empty() { KEPT } else { BEHIND };
        tail.offset += bytes.len() as u64;
        tail.text.extend_from_slice(&bytes[bytes.len().saturating_sub(kept)..]);
        if tail.text.len() > kept + KEPT {
            tail.text.drain(..tail.text.len() - kept);
        }
        tail.followers.iter().for_each(Thread::unpark);
    }

    /// Returns the last [`KEPT`] bytes.
    pub fn end(&self) -> LogEnd {
        let tail = self.lock();
        let text = tail.text[tail.text.len().saturating_sub(KEPT)..].into();
        LogEnd { text, offset: tail.offset }
    }

    /// Makes this thread follow the log, whose bytes are then kept until the thread is [`BEHIND`] bytes behind.
    ///
    /// # Errors
    /// [`NoRoom`] if `memory` has no room for those bytes.
    pub fn follow(self: Arc<Self>, memory: &Allowance) -> Result<Follower, NoRoom> {
        let mut tail = self.lock();
        if tail.charge.is_none() {
            tail.charge = Some(memory.charge(BEHIND)?);
        }
        tail.followers.push(thread::current());
        drop(tail);
        Ok(Follower { log: self, thread: thread::current().id() })
    }

    /// Locks, even if the lock is poisoned: the guarded data is valid between any two statements.
    fn lock(&self) -> MutexGuard<'_, Tail> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread that follows a log until this is dropped.
pub struct Follower {
    log: Arc<JobLog>,
    thread: ThreadId,
}

impl Follower {
    /// Returns whether it follows this log.
    pub fn is_of(&self, log: &Arc<JobLog>) -> bool {
        Arc::ptr_eq(&self.log, log)
    }

    /// Returns whether the log has bytes after an offset.
    pub fn has_more(&self, offset: u64) -> bool {
        self.log.lock().offset > offset
    }

    /// Returns at most `most` bytes after an offset, as far as they are still kept.
    pub fn behind(&self, offset: u64, most: usize) -> LogEnd {
        let tail = self.log.lock();
        let behind = usize::try_from(tail.offset.saturating_sub(offset)).unwrap_or(usize::MAX);
        let text = &tail.text[tail.text.len() - behind.min(tail.text.len())..];
        let left = text.len().saturating_sub(most);
        LogEnd { text: text[..text.len() - left].into(), offset: tail.offset - left as u64 }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let mut tail = self.log.lock();
        let place = tail.followers.iter().position(|thread| thread.id() == self.thread);
        if let Some(place) = place {
            tail.followers.swap_remove(place);
        }
        if tail.followers.is_empty() {
            let surplus = tail.text.len().saturating_sub(KEPT);
            tail.text.drain(..surplus);
            tail.text.shrink_to(2 * KEPT);
            tail.charge = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Budget;

    fn written(log: &JobLog) -> (Vec<u8>, u64) {
        let LogEnd { text, offset } = log.end();
        (text.into(), offset)
    }

    #[test]
    fn the_log_keeps_its_last_8_kib() {
        let log = JobLog::default();
        let mut all = 0;
        for n in 0..5000 {
            let line = format!("line {n}\n");
            all += line.len() as u64;
            log.append(line.as_bytes());
        }
        log.append(&[b'.'; 100]);
        let (text, offset) = written(&log);
        assert_eq!((text.len(), offset), (KEPT, all + 100));
        assert!(String::from_utf8(text).unwrap().contains("line 4999\n"));
        log.append(&[b'#'; 100_000]);
        assert_eq!(written(&log), (vec![b'#'; KEPT], all + 100_100));
    }

    #[test]
    fn a_follower_sees_what_it_has_not_seen_unless_it_is_64_kib_behind() {
        let (log, memory) = (Arc::new(JobLog::default()), Allowance::default());
        log.append(b"before\n");
        let follower = Arc::clone(&log).follow(&memory).unwrap();
        assert_eq!(&*follower.behind(0, 100).text, b"before\n");
        assert!(follower.has_more(6) && !follower.has_more(7));
        for n in 0..BEHIND / 64 {
            log.append(format!("{n:063}\n").as_bytes());
        }
        let all = follower.behind(7, usize::MAX);
        let piece = follower.behind(7, 100);
        assert_eq!((piece.start(), piece.offset), (7, 107));
        assert!(all.text.starts_with(&piece.text));
        assert_eq!((all.start(), all.text.len()), (7, BEHIND));
        assert!(all.text.starts_with(format!("{:063}\n", 0).as_bytes()));
        assert_eq!(follower.behind(all.offset, 1).text.len(), 0);
        log.append(&[b'.'; BEHIND]);
        log.append(&[b'.'; KEPT]);
        assert!(follower.behind(7, 1).start() > 7, "the beginning is dropped");
        drop(follower);
        assert!(log.lock().text.capacity() <= 2 * KEPT);
        assert_eq!(log.end().text.len(), KEPT);
    }

    #[test]
    fn what_is_kept_for_followers_needs_memory_once_a_log() {
        let budget = Budget::new(1 << 20);
        let log = Arc::new(JobLog::default());
        let before = budget.used();
        let first = Arc::clone(&log).follow(&budget.allowance()).unwrap();
        let second = Arc::clone(&log).follow(&budget.allowance()).unwrap();
        let used = budget.used() - before;
        assert!((BEHIND..2 * BEHIND).contains(&used), "{used}");
        drop(first);
        assert_eq!(budget.used() - before, used, "one still follows");
        drop(second);
        assert_eq!(budget.used(), before);
        let all = budget.allowance().charge(1 << 20);
        let rest =
            if all.is_err() { budget.allowance().charge((1 << 20) - BEHIND + 1) } else { all };
        assert!(rest.is_ok() && Arc::clone(&log).follow(&budget.allowance()).is_err());
    }

    #[test]
    fn a_part_of_an_end_begins_where_it_is_asked_for() {
        let end = || LogEnd { text: (*b"cdef").into(), offset: 6 };
        for (offset, text) in
            [(0, "cdef"), (2, "cdef"), (3, "def"), (6, ""), (9, ""), (u64::MAX, "")]
        {
            assert_eq!(*end().behind(offset).text, *text.as_bytes(), "{offset}");
        }
    }
}
