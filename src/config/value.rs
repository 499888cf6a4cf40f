//! The forms of values: choices, names, counts, sizes, durations.
//!
//! Owns their syntax. Errors say what is wrong; which option it was, the caller adds.

use std::path::PathBuf;
use std::time::Duration;

/// One of two words, for what each stands for.
///
/// # Errors
/// What is wrong.
pub fn choice<T: Copy>(text: &str, words: [(&str, T); 2]) -> Result<T, String> {
    let found = words.iter().find(|(word, _)| *word == text);
    let [(one, _), (other, _)] = words;
    found.map(|(_, meaning)| *meaning).ok_or_else(|| format!("neither {one} nor {other}"))
}

/// The path of a file.
///
/// # Errors
/// What is wrong.
pub fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("not a path".into()) } else { Ok(text.into()) }
}

/// An origin, as browsers send it, or `*` for all.
///
/// # Errors
/// What is wrong.
pub fn origin(text: &str) -> Result<String, String> {
    let name = text.split_once("://").map_or("", |(_, name)| name);
    let is_origin = !name.is_empty() && !name.contains('/');
    if text == "*" || text == "null" || is_origin {
        return Ok(text.to_owned());
    }
    Err("not an origin, as https://ui.example:8080, null or *".into())
}

/// A host name, without a port, or `*` for all.
///
/// # Errors
/// What is wrong.
pub fn host(text: &str) -> Result<String, String> {
    let is_name = !text.is_empty() && !text.contains(['/', ':', '@', ' ', '*']);
    if is_name || text == "*" {
        return Ok(text.to_owned());
    }
    Err("not a host name without a port, as nas.example.org, nor *".into())
}

/// A number, at least one.
///
/// # Errors
/// What is wrong.
pub fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".into()),
        Ok(n) => Ok(n),
        Err(_) => Err("not a whole number".into()),
    }
}

/// A number of threads: at least one, and few enough to be had.
///
/// # Errors
/// What is wrong.
pub fn threads(text: &str) -> Result<usize, String> {
    count(text).and_then(|n| if n <= 1024 { Ok(n) } else { Err("must be at most 1024".into()) })
}

/// A size of memory, enough to serve anything.
///
/// # Errors
/// What is wrong.
pub fn memory(text: &str) -> Result<usize, String> {
    let size = size(text)?;
    if size < 1 << 20 { Err("must be at least 1M".into()) } else { Ok(size) }
}

/// A size in bytes, or with one of the units K, M and G (powers of 1024), at least one byte.
///
/// # Errors
/// What is wrong.
pub fn size(text: &str) -> Result<usize, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let shift = match &text[split..] {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => return Err("not a size, as 512, 16K, 16M or 1G".into()),
    };
    let number: usize = text[..split].parse().map_err(|_| "not a size, as 512, 16K, 16M or 1G")?;
    match number.checked_mul(1 << shift) {
        Some(0) => Err("must be at least 1".into()),
        Some(bytes) => Ok(bytes),
        None => Err("too large".into()),
    }
}

/// A duration with its unit: ms, s, m or h; not zero, and at most a hundred years, so that a moment
/// that far away can be computed.
///
/// # Errors
/// What is wrong.
pub fn duration(text: &str) -> Result<Duration, String> {
    const CENTURY: u64 = 100 * 366 * 24 * 3600 * 1000;
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit: u64 = match &text[split..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60 * 1000,
        "h" => 3600 * 1000,
        "" => return Err("no unit: ms, s, m or h".into()),
        _ => return Err("not a duration, as 500ms, 30s, 5m or 24h".into()),
    };
    let number: u64 =
        text[..split].parse().map_err(|_| "not a duration, as 500ms, 30s, 5m or 24h")?;
    match number.checked_mul(unit) {
        Some(0) => Err("must not be zero".into()),
        Some(millis) if millis <= CENTURY => Ok(Duration::from_millis(millis)),
        _ => Err("too long".into()),
    }
}

/// A duration, or `0` for none.
///
/// # Errors
/// What is wrong.
pub fn duration_or_none(text: &str) -> Result<Duration, String> {
    if text == "0" { Ok(Duration::ZERO) } else { duration(text) }
}

/// The value of an option that needs none.
///
/// # Errors
/// What is wrong.
pub fn flag(text: &str) -> Result<(), String> {
    if text.is_empty() { Ok(()) } else { Err("takes no value".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [("1", 1), ("16K", 16384), ("16M", 16 << 20), ("1G", 1 << 30)] {
            assert_eq!(size(text), Ok(bytes));
        }
        for text in
            ["", "K", "0", "0M", "-1", "1.5M", "1k", "1KB", "99999999999G", "99999999999999999999"]
        {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations() {
        for (text, millis) in
            [("500ms", 500), ("30s", 30_000), ("5m", 300_000), ("24h", 86_400_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)));
        }
        for text in [
            "",
            "s",
            "5",
            "0s",
            "-1s",
            "1.5s",
            "5d",
            "5 s",
            "99999999999h",
            "99999999999999999999s",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
