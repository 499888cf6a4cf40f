//! Whether content is UTF-8, told while it comes.
//!
//! Owns what of a character the end of a piece has cut. Invariant: what it says does not depend on where pieces end.

/// A check of content that comes in pieces.
#[derive(Default)]
pub struct Utf8 {
    /// The beginning of a character, and how long that is.
    cut: [u8; 4],
    cut_len: usize,
    is_broken: bool,
}

impl Utf8 {
    /// Looks at the next piece.
    pub fn push(&mut self, mut piece: &[u8]) {
        while self.cut_len > 0 && !self.is_broken {
            let Some((&next, rest)) = piece.split_first() else { return };
            piece = rest;
            // No beginning is longer than three bytes.
            self.cut[self.cut_len] = next;
            self.cut_len += 1;
            match std::str::from_utf8(&self.cut[..self.cut_len]) {
                Ok(_) => self.cut_len = 0,
                Err(error) => self.is_broken = error.error_len().is_some(),
            }
        }
        if self.is_broken {
            return;
        }
        if let Err(error) = std::str::from_utf8(piece) {
            self.is_broken = error.error_len().is_some();
            if !self.is_broken {
                let cut = &piece[error.valid_up_to()..];
                self.cut[..cut.len()].copy_from_slice(cut);
                self.cut_len = cut.len();
            }
        }
    }

    /// Whether all that has come is UTF-8, if nothing more comes.
    pub const fn is_valid(&self) -> bool {
        !self.is_broken && self.cut_len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_valid(content: &[u8], size: usize) -> bool {
        let mut check = Utf8::default();
        content.chunks(size).for_each(|piece| check.push(piece));
        check.is_valid()
    }

    #[test]
    fn where_pieces_end_changes_nothing() {
        let mut text = "xé\u{20ac}\u{1f600}".repeat(3).into_bytes();
        for size in 1..=text.len() {
            assert!(is_valid(b"", size));
            for end in 0..=text.len() {
                let cut = &text[..end];
                assert_eq!(is_valid(cut, size), std::str::from_utf8(cut).is_ok(), "{cut:?} {size}");
            }
            for at in 0..text.len() {
                for bit in 0..8 {
                    text[at] ^= 1 << bit;
                    let valid = std::str::from_utf8(&text).is_ok();
                    assert_eq!(is_valid(&text, size), valid, "{text:?} {size}");
                    text[at] ^= 1 << bit;
                }
            }
        }
    }
}
