//! Reading gzip (RFC 1952) of one member without optional fields, as `gzip -n` writes it.
//!
//! Owns the decoder of the deflate format (RFC 1951), for what is embedded in this program. It is small and not fast.
//! Invariant: input that is invalid or cut short gives nothing, in a time that its length bounds.

/// The bytes of a gzip head without optional fields, and of the checksum and length at the end.
const HEAD: usize = 10;
const TAIL: usize = 8;

/// The longest code, in bits.
const MAX_BITS: usize = 15;

/// In which order the lengths of the codes for lengths come (RFC 1951 section 3.2.7).
const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

/// The first length and the first distance that each code stands for, and how many more bits follow (section 3.2.5).
const LENGTHS: [u16; 29] = [
    3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131,
    163, 195, 227, 258,
];
const LENGTH_BITS: [u8; 29] =
    [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0];
const DISTANCES: [u16; 30] = [
    1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537,
    2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577,
];

/// Returns what was compressed; `None` if this is not gzip of that kind.
pub fn inflate(gzip: &[u8]) -> Option<Vec<u8>> {
    let body = gzip.strip_prefix(&[0x1f, 0x8b, 8, 0])?.get(HEAD - 4..)?;
    let (body, tail) = body.split_at_checked(body.len().checked_sub(TAIL)?)?;
    let length = u32::from_le_bytes(tail[TAIL - 4..].try_into().ok()?);
    let mut bits = Bits { bytes: body, at: 0 };
    let mut out = Vec::new();
    loop {
        let is_last = bits.take(1)? == 1;
        match bits.take(2)? {
            0 => stored(&mut bits, &mut out)?,
            1 => {
                let (literals, distances) = fixed();
                compressed(&mut bits, &mut out, &literals, &distances)?;
            }
            2 => {
                let (literals, distances) = described(&mut bits)?;
                compressed(&mut bits, &mut out, &literals, &distances)?;
            }
            _ => return None,
        }
        if is_last {
            return (out.len() == length as usize).then_some(out);
        }
    }
}

/// Bits, the lowest of each byte first.
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    /// Takes a number of so many bits, the lowest first.
    fn take(&mut self, count: usize) -> Option<usize> {
        let mut number = 0;
        for n in 0..count {
            let byte = *self.bytes.get(self.at / 8)?;
            number |= usize::from(byte >> (self.at % 8) & 1) << n;
            self.at += 1;
        }
        Some(number)
    }
}

/// A Huffman code, by the lengths of its codes (section 3.2.2).
struct Code {
    /// How many codes there are of each length.
    counts: [usize; MAX_BITS + 1],
    /// The symbols, in the order of their codes.
    symbols: Vec<usize>,
}

impl Code {
    fn new(lengths: &[usize]) -> Self {
        let mut counts = [0; MAX_BITS + 1];
        let mut symbols: Vec<usize> = (0..lengths.len()).filter(|&n| lengths[n] > 0).collect();
        symbols.sort_by_key(|&symbol| lengths[symbol]);
        for &symbol in &symbols {
            counts[lengths[symbol]] += 1;
        }
        Self { counts, symbols }
    }

    fn next(&self, bits: &mut Bits<'_>) -> Option<usize> {
        let (mut code, mut first, mut index) = (0, 0, 0);
        for count in &self.counts[1..] {
            code = code << 1 | bits.take(1)?;
            first <<= 1;
            if code < first + count {
                return self.symbols.get(index + code.checked_sub(first)?).copied();
            }
            index += count;
            first += count;
        }
        None
    }
}

fn stored(bits: &mut Bits<'_>, out: &mut Vec<u8>) -> Option<()> {
    bits.at = bits.at.next_multiple_of(8);
    let length = bits.take(16)?;
    bits.take(16)?;
    let begin = bits.at / 8;
    out.extend_from_slice(bits.bytes.get(begin..begin + length)?);
    bits.at += length * 8;
    Some(())
}

/// The codes of section 3.2.6.
fn fixed() -> (Code, Code) {
    let length = |symbol| match symbol {
        0..144 | 280..288 => 8,
        144..256 => 9,
        _ => 7,
    };
    (Code::new(&(0..288).map(length).collect::<Vec<_>>()), Code::new(&[5; 30]))
}

/// Reads the codes of a block that describes them (section 3.2.7).
fn described(bits: &mut Bits<'_>) -> Option<(Code, Code)> {
    let (literals, distances) = (bits.take(5)? + 257, bits.take(5)? + 1);
    let count = bits.take(4)? + 4;
    let mut lengths = [0; 19];
    for place in &ORDER[..count] {
        lengths[*place] = bits.take(3)?;
    }
    let code = Code::new(&lengths);
    let mut lengths: Vec<usize> = Vec::new();
    while lengths.len() < literals + distances {
        let (value, times) = match code.next(bits)? {
            16 => (*lengths.last()?, 3 + bits.take(2)?),
            17 => (0, 3 + bits.take(3)?),
            18 => (0, 11 + bits.take(7)?),
            length => (length, 1),
        };
        lengths.extend(std::iter::repeat_n(value, times));
    }
    let (literal, distance) = lengths.split_at(literals);
    Some((Code::new(literal), Code::new(distance.get(..distances)?)))
}

fn compressed(
    bits: &mut Bits<'_>,
    out: &mut Vec<u8>,
    literals: &Code,
    distances: &Code,
) -> Option<()> {
    loop {
        let symbol = literals.next(bits)?;
        if let Ok(literal) = u8::try_from(symbol) {
            out.push(literal);
            continue;
        }
        let Some(kind) = symbol.checked_sub(257) else { return Some(()) };
        let more = bits.take(usize::from(*LENGTH_BITS.get(kind)?))?;
        let length = usize::from(LENGTHS[kind]) + more;
        let kind = distances.next(bits)?;
        let first = usize::from(*DISTANCES.get(kind)?);
        let distance = first + bits.take((kind / 2).saturating_sub(1))?;
        let begin = out.len().checked_sub(distance)?;
        // One byte after the other: they may be those that are appended here.
        for n in begin..begin + length {
            out.push(out[n]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A gzip member of one last block that has these bytes.
    fn gzip(block: &[u8], length: u8) -> Vec<u8> {
        let head = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
        [&head[..], block, &[0, 0, 0, 0, length, 0, 0, 0]].concat()
    }

    #[test]
    fn blocks_of_every_kind_are_read() {
        let stored = [1, 5, 0, 0xfa, 0xff, b'h', b'e', b'l', b'l', b'o'];
        assert_eq!(inflate(&gzip(&stored, 5)).unwrap(), b"hello");
        // As `gzip -n` makes of `hello hello hello`: literals, then a copy that overlaps itself.
        let fixed = [0xcb, 0x48, 0xcd, 0xc9, 0xc9, 0x57, 0xc8, 0x40, 0x27, 0x00];
        assert_eq!(inflate(&gzip(&fixed, 17)).unwrap(), b"hello hello hello");
        assert_eq!(inflate(&gzip(&[3, 0], 0)).unwrap(), b"");
    }

    #[test]
    fn what_is_broken_gives_nothing() {
        let fixed = [0xcb, 0x48, 0xcd, 0xc9, 0xc9, 0x57, 0xc8, 0x40, 0x27, 0x00];
        for length in 0..fixed.len() - 1 {
            assert_eq!(inflate(&gzip(&fixed[..length], 17)), None, "{length}");
        }
        assert_eq!(inflate(&gzip(&fixed, 16)), None, "its length is another");
        assert_eq!(inflate(&gzip(&[7], 0)), None, "there is no such block");
        // A copy of what is not there.
        assert_eq!(inflate(&gzip(&[0x03, 0x02], 0)), None);
        assert_eq!(inflate(b"\x1f\x8b\x08"), None);
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..2000 {
            let block: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(40).collect();
            let _ = inflate(&gzip(&block, 9));
        }
    }
}
