//! Parameters of a query: `name=value` pairs between `&`, percent-encoded.
//!
//! Owns only the decoding; each endpoint decides what a value means.

use crate::dots::decode;

/// Returns the first value of `name`, decoded; empty without a `=`. Bytes that are not UTF-8 are replaced.
pub fn parameter(query: &str, name: &str) -> Option<String> {
    if query.is_empty() {
        return None;
    }
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(key)? == name.as_bytes())
            .then(|| decode(value).unwrap_or_else(|| value.as_bytes().to_vec()))
            .map(|value| String::from_utf8_lossy(&value).into_owned())
    })
}

/// Returns all names and values, decoded; a value is empty without a `=`. Bytes that are not UTF-8 are replaced; what
/// cannot be decoded stays as it is.
pub fn pairs(query: &str) -> impl Iterator<Item = (String, String)> {
    let text = |part: &str| {
        let bytes = decode(part).unwrap_or_else(|| part.as_bytes().to_vec());
        String::from_utf8_lossy(&bytes).into_owned()
    };
    query.split('&').filter(|pair| !pair.is_empty()).map(move |pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (text(name), text(value))
    })
}

/// Returns whether `name` is switched on, by ArangoDB's rule.
pub fn is_on(query: &str, name: &str) -> bool {
    parameter(query, name).is_some_and(|value| {
        matches!(value.to_ascii_lowercase().as_str(), "true" | "yes" | "on" | "y" | "1")
    })
}

/// Returns the value of `name` as a finite number.
pub fn number(query: &str, name: &str) -> Option<f64> {
    parameter(query, name)?.parse().ok().filter(|n: &f64| n.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_counts() {
        let query = "a=1&count=%31%30&b&count=7&bad=%zz&d=yes";
        assert_eq!(parameter(query, "count").as_deref(), Some("10"));
        assert_eq!(parameter(query, "b").as_deref(), Some(""));
        assert_eq!(parameter(query, "bad").as_deref(), Some("%zz"));
        assert_eq!(parameter(query, "c"), None);
        let all: Vec<_> = pairs("a=%31&b&&=c&%zz=%zz").collect();
        let expected = [("a", "1"), ("b", ""), ("", "c"), ("%zz", "%zz")];
        assert_eq!(all, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert!(is_on(query, "d") && !is_on(query, "b"));
        assert_eq!(number("t=1.5", "t"), Some(1.5));
        assert_eq!(number("t=inf", "t"), None);
        assert_eq!(number("t=", "t"), None);
    }
}
