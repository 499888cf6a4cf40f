//! Fields of a head by their names: several at once, in one walk over all of them.
//!
//! Does not know what a field means. For the few fields that a head has, a walk costs no more than a single
//! lookup by hash. Invariant: a field that has several lines is never taken for one that has a single line.

use http::{HeaderMap, HeaderName, HeaderValue};

/// The lines of one field.
#[derive(Clone, Copy, Debug, Default)]
pub struct FieldLines<'a> {
    /// The first of them.
    pub first: Option<&'a HeaderValue>,
    /// Whether there are others.
    pub more: bool,
}

impl<'a> FieldLines<'a> {
    /// Returns the one line, if there is exactly one.
    pub fn only(self) -> Option<&'a HeaderValue> {
        self.first.filter(|_| !self.more)
    }

    /// Returns the one line as text, if there is exactly one and it is ASCII.
    pub fn only_text(self) -> Option<&'a str> {
        self.only().and_then(|value| value.to_str().ok())
    }
}

/// How much of a value an error shows, in characters.
const SHOWN: usize = 100;

/// Returns the beginning of a value, for people to read.
pub fn printable(value: &HeaderValue) -> String {
    let shown = |&b: &u8| if b == b' ' || b.is_ascii_graphic() { char::from(b) } else { '?' };
    value.as_bytes().iter().take(SHOWN).map(shown).collect()
}

/// Returns the lines of the fields of these names.
pub fn find<'a, const N: usize>(
    fields: &'a HeaderMap,
    names: &[HeaderName; N],
) -> [FieldLines<'a>; N] {
    let mut found = [FieldLines::default(); N];
    for (name, value) in fields {
        if let Some(place) = names.iter().position(|wanted| wanted == name) {
            let lines = &mut found[place];
            lines.more = lines.first.is_some();
            lines.first = lines.first.or(Some(value));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::{ACCEPT, EXPECT, HOST, VIA};

    #[test]
    fn the_first_line_is_found_and_whether_it_is_the_only_one() {
        let mut fields = HeaderMap::new();
        for (name, value) in [(HOST, "a"), (ACCEPT, "b"), (VIA, "c"), (HOST, "d"), (HOST, "e")] {
            fields.append(name, HeaderValue::from_static(value));
        }
        let [via, expect, host] = find(&fields, &[VIA, EXPECT, HOST]);
        assert_eq!((via.first.unwrap(), via.only().unwrap()), (&fields[VIA], &fields[VIA]));
        assert!(expect.first.is_none() && !expect.more);
        assert_eq!(host.first.unwrap(), "a");
        assert!(host.more && host.only().is_none());
    }
}
