//! The forms of values: choices, names, counts, sizes, durations.
//!
//! Owns their syntax. Does not know the option: an error says what is wrong, and the caller names the option.

use std::path::PathBuf;
use std::time::Duration;

use log::LevelFilter;

use crate::callback_url::CallbackUrl;

/// Reads one of two words; returns its meaning.
///
/// # Errors
/// What is wrong.
pub fn choice<T: Copy>(text: &str, words: [(&str, T); 2]) -> Result<T, String> {
    let found = words.iter().find(|(word, _)| *word == text);
    let [(one, _), (other, _)] = words;
    found.map(|(_, meaning)| *meaning).ok_or_else(|| format!("neither {one} nor {other}"))
}

/// Reads the path of a file.
///
/// # Errors
/// What is wrong.
pub fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("not a path".into()) } else { Ok(text.into()) }
}

/// Reads an origin, as browsers send it, or `*` for all.
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

/// Reads a host name, without a port, or `*` for all.
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

/// Reads a URL that callbacks may go to, together with all URLs below it.
///
/// # Errors
/// What is wrong.
pub fn callback(text: &str) -> Result<CallbackUrl, String> {
    let url = CallbackUrl::parse(text)?;
    if url.has_query() {
        return Err("it has a query: the URLs that it covers may have one".into());
    }
    if url.is_secure() && cfg!(not(feature = "tls")) {
        return Err("this deferd was built without https: build it with the feature tls".into());
    }
    Ok(url)
}

/// Reads a number, at least one.
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

/// Reads a number of threads: at least one, and not too many for a system.
///
/// # Errors
/// What is wrong.
pub fn threads(text: &str) -> Result<usize, String> {
    count(text).and_then(|n| if n <= 1024 { Ok(n) } else { Err("must be at most 1024".into()) })
}

/// Reads a size of memory that suffices for a server.
///
/// # Errors
/// What is wrong.
pub fn memory(text: &str) -> Result<usize, String> {
    let size = size(text)?;
    if size < 1 << 20 { Err("must be at least 1M".into()) } else { Ok(size) }
}

/// Reads a size in bytes, or with one of the units K, M, G and T (powers of 1024, in either case, or as KiB), at least
/// one byte. KB is refused: to some programs it is 1000.
///
/// # Errors
/// What is wrong.
pub fn size(text: &str) -> Result<usize, String> {
    const FORM: &str = "not a size, as 512, 16K, 16M, 16MiB or 1G";
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let shift = match text[split..].strip_suffix("iB").unwrap_or(&text[split..]) {
        "" if split == text.len() => 0,
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        "T" | "t" => 40,
        _ => return Err(FORM.into()),
    };
    if split == 0 {
        return Err(FORM.into());
    }
    // It has digits only, so if it is not a number, it is too large.
    let bytes = text[..split].parse().ok().and_then(|number: u64| number.checked_mul(1 << shift));
    match bytes.and_then(|bytes| usize::try_from(bytes).ok()) {
        Some(0) => Err("must be at least 1".into()),
        Some(bytes) => Ok(bytes),
        None => Err("too large".into()),
    }
}

/// Reads a duration with its unit: ms, s, m, h, d or w; not zero, and at most a hundred years, so that the end of the
/// duration can be computed.
///
/// # Errors
/// What is wrong.
pub fn duration(text: &str) -> Result<Duration, String> {
    const CENTURY: u64 = 100 * 366 * 24 * 3600 * 1000;
    const FORM: &str = "not a duration, as 500ms, 30s, 5m, 24h or 7d";
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit: u64 = match &text[split..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60 * 1000,
        "h" => 3600 * 1000,
        "d" => 24 * 3600 * 1000,
        "w" => 7 * 24 * 3600 * 1000,
        "" if split > 0 => return Err("no unit: ms, s, m, h, d or w".into()),
        _ => return Err(FORM.into()),
    };
    if split == 0 {
        return Err(FORM.into());
    }
    // It has digits only, so if it is not a number, it is too large.
    match text[..split].parse().ok().and_then(|number: u64| number.checked_mul(unit)) {
        Some(0) => Err("must not be zero".into()),
        Some(millis) if millis <= CENTURY => Ok(Duration::from_millis(millis)),
        _ => Err("too long".into()),
    }
}

/// Returns a duration in the form of the options: in the largest unit that fits a whole number of times.
pub fn shown_duration(span: Duration) -> String {
    let millis = span.as_millis();
    let units = [(24 * 3600 * 1000, "d"), (3600 * 1000, "h"), (60 * 1000, "m"), (1000, "s")];
    let unit = units.into_iter().find(|(unit, _)| millis > 0 && millis.is_multiple_of(*unit));
    let (unit, name) = unit.unwrap_or((1, "ms"));
    format!("{}{name}", millis / unit)
}

/// Reads how long a silent instance is taken for alive.
///
/// # Errors
/// What is wrong with it.
pub fn lease(text: &str) -> Result<Duration, String> {
    let lease = duration(text)?;
    if !(Duration::from_secs(2)..=Duration::from_secs(3600)).contains(&lease) {
        return Err("must be from 2s to 1h".into());
    }
    Ok(lease)
}

/// Reads a duration, or `0` for none.
///
/// # Errors
/// What is wrong.
pub fn duration_or_none(text: &str) -> Result<Duration, String> {
    if text == "0" { Ok(Duration::ZERO) } else { duration(text) }
}

/// Reads a level of the log: less important messages are not logged.
///
/// # Errors
/// What is wrong.
pub fn level(text: &str) -> Result<LevelFilter, String> {
    text.parse().map_err(|_| "not a level: off, error, warn, info, debug or trace".into())
}

/// Checks the value of an option that takes none.
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
        for (text, bytes) in [
            ("1", 1),
            ("16K", 16384),
            ("16k", 16384),
            ("16KiB", 16384),
            ("16M", 16 << 20),
            ("16m", 16 << 20),
            ("16MiB", 16 << 20),
            ("1G", 1 << 30),
            ("1GiB", 1 << 30),
            ("1g", 1 << 30),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        assert_eq!(size("1T").ok(), usize::try_from(1u64 << 40).ok());
        for text in [
            "",
            "K",
            "iB",
            "KiB",
            "0",
            "0M",
            "-1",
            "1.5M",
            "1KB",
            "1iB",
            "1B",
            "1 K",
            "1kib",
            "99999999999G",
            "99999999999999999999",
        ] {
            assert!(size(text).is_err(), "{text}");
        }
        assert_eq!(size("99999999999999999999"), Err("too large".into()));
    }

    #[test]
    fn durations() {
        for (text, millis) in [
            ("500ms", 500),
            ("30s", 30_000),
            ("5m", 300_000),
            ("24h", 86_400_000),
            ("7d", 604_800_000),
            ("1w", 604_800_000),
        ] {
            let span = duration(text).unwrap();
            assert_eq!(span, Duration::from_millis(millis), "{text}");
            let shown = shown_duration(span);
            assert_eq!(duration(&shown), Ok(span), "{text} as {shown}");
        }
        let shown = [0, 90_000, 86_400_000].map(Duration::from_millis).map(shown_duration);
        assert_eq!(shown, ["0ms", "90s", "1d"]);
        for text in [
            "",
            "s",
            "5",
            "0s",
            "0d",
            "-1s",
            "1.5s",
            "5D",
            "5 s",
            "36601d",
            "99999999999h",
            "99999999999999999999s",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn levels() {
        assert_eq!(level("warn"), Ok(LevelFilter::Warn));
        assert_eq!(level("OFF"), Ok(LevelFilter::Off));
        for text in ["", "warning", "verbose", "3", "deferd=info"] {
            assert!(level(text).is_err(), "{text}");
        }
    }
}
