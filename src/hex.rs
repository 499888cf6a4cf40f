//! Bytes as hexadecimal digits, and back.
//!
//! Owns nothing but the digits: lower case is written, both cases are read.

use std::fmt::Write as _;

/// Returns the digits of these bytes.
pub fn encode(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Reads exactly as many bytes as are wanted; `None` if the text is anything else than their digits.
pub fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
        let digit = |at: usize| char::from(pair[at]).to_digit(16);
        *byte = u8::try_from(digit(0)? << 4 | digit(1)?).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_written_and_read() {
        assert_eq!(encode(&[0, 0x1f, 0xff]), "001fff");
        assert_eq!(decode("001fFF"), Some([0, 0x1f, 0xff]));
        for text in ["001ff", "001ffff", "001f-1", "+1+1+1", "\u{e9}\u{e9}\u{e9}", ""] {
            assert_eq!(decode::<3>(text), None, "{text}");
        }
    }
}
