//! The parts of an answer that carry no content: interim responses, chunk framing and trailers.
//!
//! Owns the bound on them. Does not read HTTP: whatever ureq takes out of its buffer is noise unless it is the final
//! head or content. Invariant: if an upstream sends endlessly, but no content, the call ends after at most
//! [`MAX_NOISE`] and one read.

use std::cell::Cell;

/// How much noise an answer may have, in bytes: before its final head, and again after content arrived.
pub const MAX_NOISE: usize = 64 * 1024;

/// How much framing is free for each byte of content: a chunk of one byte has five bytes of it.
const FRAMING: usize = 8;

/// How much is read at a time while there is noise, in bytes: little, so that excessive noise is noticed soon.
const SMALL_READ: usize = 4096;

/// The errors of an answer with too much noise.
pub const INTERIM: &str = "more than 64 KiB of interim responses";
pub const TRAILERS: &str = "more than 64 KiB of trailers or chunk framing";

/// How much of the answer was received and used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Used {
    /// All bytes, whatever they mean.
    bytes: usize,
    /// The content among them.
    content: usize,
}

/// The current part of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Interim responses, and the final head.
    Head,
    /// Content: the bytes used at the last check, and the noise since content arrived.
    Content { seen: Option<Used>, noise: usize },
}

/// The noise of one answer.
pub struct Noise {
    part: Cell<Part>,
    /// How many bytes arrived over the connection.
    came: Cell<usize>,
    /// How many bytes of content were passed on.
    content: Cell<usize>,
    excess: Cell<Option<&'static str>>,
}

impl Noise {
    /// Returns the noise of an answer that has not begun.
    pub const fn new() -> Self {
        Self {
            part: Cell::new(Part::Head),
            came: Cell::new(0),
            content: Cell::new(0),
            excess: Cell::new(None),
        }
    }

    /// Starts again from zero: another attempt begins.
    pub fn reset(&self) {
        self.part.set(Part::Head);
        self.came.set(0);
        self.content.set(0);
        self.excess.set(None);
    }

    /// Records that the final head has arrived.
    pub fn begin_content(&self) {
        self.part.set(Part::Content { seen: None, noise: 0 });
    }

    /// Records bytes that arrived over the connection.
    pub fn add(&self, bytes: usize) {
        self.came.set(self.came.get() + bytes);
    }

    /// Records how much content was passed on so far.
    pub fn set_content(&self, bytes: usize) {
        self.content.set(bytes);
    }

    /// Returns how much may be read at once.
    pub fn max_read(&self) -> usize {
        match self.part.get() {
            Part::Content { noise: 0, .. } => usize::MAX,
            _ => SMALL_READ,
        }
    }

    /// Checks the noise before more is read, while `unused` bytes are in the buffer.
    ///
    /// # Errors
    /// What exceeds its limit.
    pub fn check(&self, unused: usize) -> Result<(), &'static str> {
        let bytes = self.came.get().saturating_sub(unused);
        let (is_over, what) = match self.part.get() {
            // Until the final head has arrived, only interim responses are used.
            Part::Head => (bytes > MAX_NOISE, INTERIM),
            Part::Content { seen, noise } => {
                let used = Used { bytes, content: self.content.get() };
                // The first check marks the beginning of this part: the length of the head is not known here.
                let before = seen.unwrap_or(used);
                let content = used.content - before.content;
                let more = (used.bytes - before.bytes).saturating_sub(content);
                let noise = (noise + more).saturating_sub(FRAMING.saturating_mul(content));
                self.part.set(Part::Content { seen: Some(used), noise });
                // Content never stays unused: these bytes are a line of framing that has not ended, and cannot end if
                // it fills the buffer.
                (noise + unused >= MAX_NOISE, TRAILERS)
            }
        };
        if is_over {
            self.excess.set(Some(what));
            return Err(what);
        }
        Ok(())
    }

    /// Returns what exceeded its limit.
    pub fn excess(&self) -> Option<&'static str> {
        self.excess.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks `times` times, each after `came` bytes of which `content` are content; returns when there was too much
    /// noise.
    fn too_much(noise: &Noise, times: usize, (came, content): (usize, usize)) -> Option<usize> {
        (0..times).find(|_| {
            let checked = noise.check(0);
            noise.add(came);
            noise.set_content(noise.content.get() + content);
            checked.is_err()
        })
    }

    #[test]
    fn interim_responses_are_bounded() {
        let noise = Noise::new();
        assert_eq!(too_much(&noise, 17, (4096, 0)), None);
        assert_eq!((noise.check(0), noise.excess()), (Err(INTERIM), Some(INTERIM)));
        // An incomplete head is not an interim response.
        let noise = Noise::new();
        noise.add(MAX_NOISE + 100);
        assert_eq!(noise.check(100), Ok(()));
        noise.reset();
        assert_eq!((noise.check(0), noise.excess()), (Ok(()), None));
    }

    #[test]
    fn trailers_are_bounded_and_content_is_not() {
        let after_head = || {
            let noise = Noise::new();
            noise.add(MAX_NOISE);
            noise.begin_content();
            noise
        };
        for (what, step, cut) in [
            ("content of a length", (65_536, 65_536), None),
            ("chunks of one byte", (6, 1), None),
            ("many of them", (6000, 1000), None),
            ("chunks of one byte with long extensions", (25, 1), Some(4096)),
            ("nothing but noise", (100, 0), Some(656)),
        ] {
            assert_eq!(too_much(&after_head(), 100_000, step), cut, "{what}");
        }
        // However much content arrived before.
        let noise = after_head();
        assert_eq!(too_much(&noise, 1000, (65_600, 65_536)), None);
        assert_eq!(too_much(&noise, 1000, (100, 0)), Some(656));
        assert_eq!(noise.excess(), Some(TRAILERS));
        // A line that does not end.
        let noise = after_head();
        noise.check(0).unwrap();
        noise.add(MAX_NOISE);
        assert_eq!(noise.check(MAX_NOISE), Err(TRAILERS));
    }

    #[test]
    fn reads_are_small_while_there_is_noise() {
        let noise = Noise::new();
        assert_eq!(noise.max_read(), SMALL_READ);
        noise.begin_content();
        assert_eq!(noise.max_read(), usize::MAX);
        assert_eq!(too_much(&noise, 3, (100, 0)), None);
        assert_eq!(noise.max_read(), SMALL_READ);
    }
}
