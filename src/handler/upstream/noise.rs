//! The part of an answer that carries nothing: interim responses, chunk framing and trailers.
//!
//! Owns the bound on it. Does not read HTTP: what ureq takes out of its buffer, and is neither the final head nor
//! content, is noise. Invariant: a call to an upstream that sends endlessly, but no content, ends after [`MAX_NOISE`]
//! and a read.

use std::cell::Cell;

/// How much noise an answer may have, in bytes: before its final head, and again since content came.
pub const MAX_NOISE: usize = 64 * 1024;

/// How much framing each byte of content may bring with it: a chunk of one byte has five.
const FRAMING: usize = 8;

/// How much is read at a time while there is noise, in bytes: little, so that much noise is noticed soon.
const SMALL_READ: usize = 4096;

/// The fault of an answer.
pub const INTERIM: &str = "more than 64 KiB of interim responses";
pub const TRAILERS: &str = "more than 64 KiB of trailers or chunk framing";

/// How much of the answer was read and used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Used {
    /// Bytes, whatever they mean.
    bytes: usize,
    /// Of these, content.
    content: usize,
}

/// The current part of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Interim responses, and the final head.
    Head,
    /// Content; the bytes used at the last look, and the noise since content came.
    Content { seen: Option<Used>, noise: usize },
}

/// The noise of one answer.
pub struct Noise {
    part: Cell<Part>,
    /// Bytes that came over the connection.
    came: Cell<usize>,
    /// Bytes of content that were handed on.
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

    /// Forgets what came: another attempt begins.
    pub fn reset(&self) {
        self.part.set(Part::Head);
        self.came.set(0);
        self.content.set(0);
        self.excess.set(None);
    }

    /// Notes that the final head is there.
    pub fn begin_content(&self) {
        self.part.set(Part::Content { seen: None, noise: 0 });
    }

    /// Notes bytes that came over the connection.
    pub fn add(&self, bytes: usize) {
        self.came.set(self.came.get() + bytes);
    }

    /// Notes how much content was handed on so far.
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
            // Until the final head is there, only interim responses are used.
            Part::Head => (bytes > MAX_NOISE, INTERIM),
            Part::Content { seen, noise } => {
                let used = Used { bytes, content: self.content.get() };
                // The first look is where this part begins: how long the head was is not known here.
                let before = seen.unwrap_or(used);
                let content = used.content - before.content;
                let more = (used.bytes - before.bytes).saturating_sub(content);
                let noise = (noise + more).saturating_sub(FRAMING.saturating_mul(content));
                self.part.set(Part::Content { seen: Some(used), noise });
                // Content never stays unused: this is a line of framing that has not ended, and cannot
                // end if it fills the buffer.
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

    /// Looks `times` before `came` bytes come, `content` of which are content; when it was too much.
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
        // A head that is not whole yet is no interim response.
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
        // However much content came before.
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
