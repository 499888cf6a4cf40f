//! The variables by which a test changes a deferd that it starts: limits that it need not wait for, and parts that it
//! does without.
//!
//! Owns the reading of the environment for them. Invariant: a release has none.

use std::time::Duration;

/// Returns the value of a variable whose name begins with `DEFERD_TEST_`; `None` without debug assertions.
pub fn read(name: &str) -> Option<String> {
    if cfg!(debug_assertions) { std::env::var(name).ok() } else { None }
}

/// Returns a fixed limit, or the one that a test has put in its place, in milliseconds.
pub fn duration(name: &str, fixed: Duration) -> Duration {
    let millis = |text: String| text.parse().expect("a test says milliseconds");
    read(name).map_or(fixed, |text| Duration::from_millis(millis(text)))
}
