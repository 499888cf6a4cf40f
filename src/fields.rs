//! Fields of a head by their names: several at once, in one walk over all of them.
//!
//! Owns nothing else; what a field means is its reader's. For the few fields that a head has, a walk costs
//! no more than a single lookup by hash.

use http::{HeaderMap, HeaderName, HeaderValue};

/// The lines of one field.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lines<'a> {
    /// The first of them.
    pub first: Option<&'a HeaderValue>,
    /// Whether there are others.
    pub more: bool,
}

impl<'a> Lines<'a> {
    /// The one line, where there is exactly one.
    pub fn only(self) -> Option<&'a HeaderValue> {
        self.first.filter(|_| !self.more)
    }
}

/// The lines of the fields of these names.
pub fn find<'a, const N: usize>(fields: &'a HeaderMap, names: &[HeaderName; N]) -> [Lines<'a>; N] {
    let mut found = [Lines::default(); N];
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
