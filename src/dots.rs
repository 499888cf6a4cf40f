//! Dot segments: whether a path could lead some reader out of the directory that it begins in.
//!
//! Owns the decoding of paths, and the rule of how differently a path can be read. Resolves and changes nothing.
//! Invariant: a name is refused only if it is `.` or `..` to some reader.

/// The characters at which some readers end a segment.
const SEPARATORS: [u8; 2] = *b"/\\";

/// Percent-decodes (RFC 3986 section 2.1); returns `None` for a broken escape or a NUL, which no file name
/// and no environment variable can hold.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let byte = if byte == b'%' { hex(bytes.next()?)? << 4 | hex(bytes.next()?)? } else { byte };
        decoded.push(byte);
    }
    (!decoded.contains(&0)).then_some(decoded)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|n| u8::try_from(n).ok())
}

/// Refuses a path that has a dot segment for a reader that decodes it once or twice, takes a backslash for
/// a slash, cuts parameters off at `;` (servlet containers), or decodes overlong UTF-8.
///
/// # Errors
/// What is wrong with it.
pub fn check(path: &str) -> Result<(), &'static str> {
    let once = decode(path).ok_or("the path has a broken escape or %00")?;
    let twice = decode_leniently(&once);
    if [&once, &twice].into_iter().any(|path| has_segment(&without_overlong(path))) {
        return Err("the path has a dot segment");
    }
    Ok(())
}

/// Returns whether a decoded path has a segment that is `.` or `..`, cut at `;` or at a NUL as well.
fn has_segment(path: &[u8]) -> bool {
    let mut segments = path.split(|b| SEPARATORS.contains(b));
    segments.any(|segment| {
        let end = segment.iter().position(|b| b";\0".contains(b)).unwrap_or(segment.len());
        is_dots(segment) || is_dots(&segment[..end])
    })
}

/// Returns whether a decoded path has a segment that is just `.` or `..`, backslashes counted as slashes.
pub fn has_plain_segment(path: &[u8]) -> bool {
    path.split(|b| SEPARATORS.contains(b)).any(is_dots)
}

fn is_dots(segment: &[u8]) -> bool {
    matches!(segment, b"." | b"..")
}

/// Percent-decodes what can be decoded. A name with a literal percent sign is decoded once in a correct
/// reader, so that a second escape which is broken is a legal name: it stays.
fn decode_leniently(bytes: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&byte, behind)) = rest.split_first() {
        let escape = rest.get(..3).and_then(|escape| std::str::from_utf8(escape).ok());
        match escape.filter(|_| byte == b'%').and_then(|e| u8::from_str_radix(&e[1..], 16).ok()) {
            // `from_str_radix` takes a sign.
            Some(value) if rest[1] != b'+' => {
                decoded.push(value);
                rest = &rest[3..];
            }
            _ => {
                decoded.push(byte);
                rest = behind;
            }
        }
    }
    decoded
}

/// Returns the path with each ASCII character that stands in more than one byte replaced by itself (RFC 3629
/// section 10: decoders that accept those have been led out of directories).
fn without_overlong(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&byte, behind)) = rest.split_first() {
        let (value, len) = match *rest {
            [lead @ (0xc0 | 0xc1), last @ 0x80..=0xbf, ..] => ((lead & 1) << 6 | last & 0x3f, 2),
            [0xe0, middle @ (0x80 | 0x81), last @ 0x80..=0xbf, ..]
            | [0xf0, 0x80, middle @ (0x80 | 0x81), last @ 0x80..=0xbf, ..] => {
                ((middle & 1) << 6 | last & 0x3f, if byte == 0xe0 { 3 } else { 4 })
            }
            _ => {
                plain.push(byte);
                rest = behind;
                continue;
            }
        };
        plain.push(value);
        rest = &rest[len..];
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_that_climb_for_some_reader_are_refused() {
        for path in [
            "..",
            ".",
            "/..",
            "a/../b",
            "a/..",
            "./a",
            "a//../b",
            // Escaped, in part or whole.
            "%2e",
            "%2e%2E/a",
            ".%2e/a",
            "a%2f..%2fb",
            "a%2F%2e%2e",
            // Backslashes, raw and escaped.
            "..\\a",
            "a\\..\\b",
            "..%5ca",
            "a%5C%2e%2e",
            // Parameters of a segment, which servlet containers cut off.
            "..;/admin",
            "..;x=y/a",
            "%2e%2e;/a",
            "..%3b/a",
            "%2e%2e%3bx",
            ".;/a",
            "..;%2fa",
            "a;b/..;c/d",
            // Decoded twice, wholly and in part, in every order.
            "%252e%252e/a",
            "%252e%252e%252fa",
            "..%252fa",
            "%2e%252e",
            "..%253b/a",
            "..%255ca",
            "%252e%252e%253bx=y",
            "%25zz/%252e%252e/a",
            "%25zz%252f%252e%252e",
            "..%2500",
            ".%2500.%252f..",
            "..%3b%252e",
            "a%252f..%253bx",
            // Overlong.
            "%c0%ae",
            "%c0%ae%c0%ae/a",
            "a%c0%af..%c0%afb",
            "%e0%80%ae.",
            "%f0%80%80%ae%c0%ae",
            "..%c1%9ca",
            "%25c0%25ae.",
            "..%c0%bb",
        ] {
            assert_eq!(check(path), Err("the path has a dot segment"), "{path}");
        }
        for path in
            ["%", "a%4", "%zz/%2e%2e/a", "%zz", "%+1", "%u002e", "%00", ".%00", "..%00/a", "a/%00"]
        {
            assert_eq!(check(path), Err("the path has a broken escape or %00"), "{path}");
        }
    }

    #[test]
    fn every_other_name_passes() {
        for path in [
            "",
            "/",
            "a//b",
            "...",
            ".a",
            "a..",
            "%2e%2e%2e",
            "a/..b",
            "a%2fb",
            "%2F",
            "a;..",
            "a;x=..;y",
            ".htaccess",
            ";..",
            "%25zz",
            "%25",
            "100%25",
            "%252",
            "%25%2b1",
            "a%2500",
            "%252f",
            "%c3%a4",
            "a%c0%ae",
            "a%c0",
            "%e0%80",
            "..%20",
            "%ff%fe",
        ] {
            assert_eq!(check(path), Ok(()), "{path}");
        }
    }

    #[test]
    fn overlong_characters_become_ascii_and_others_stay() {
        for (bytes, plain) in [
            (&b"\xc0\xae"[..], &b"."[..]),
            (b"\xc1\x81", b"A"),
            (b"\xe0\x80\xaf", b"/"),
            (b"\xe0\x81\x9c", b"\\"),
            (b"\xf0\x80\x80\xae", b"."),
            (b"\xf0\x80\x81\x9c", b"\\"),
            ("äé€𝄞".as_bytes(), "äé€𝄞".as_bytes()),
            (b"\xc0", b"\xc0"),
            (b"\xc0.", b"\xc0."),
            (b"\xe0\xa0\x80", b"\xe0\xa0\x80"),
        ] {
            assert_eq!(without_overlong(bytes), plain, "{bytes:?}");
        }
    }

    #[test]
    fn escapes_are_decoded_or_refused() {
        for (text, decoded) in [
            ("a%20b", Some(&b"a b"[..])),
            ("%2e%2E", Some(b"..")),
            ("a+b", Some(b"a+b")),
            ("%ff", Some(b"\xff")),
            ("%00", None),
            ("%", None),
            ("%4", None),
            ("%zz", None),
            ("%+1", None),
        ] {
            assert_eq!(decode(text).as_deref(), decoded, "{text}");
        }
    }
}
