//! The limits of connections, configured and fixed.
//!
//! Owns two fixed ones and the way to shorten any fixed limit for a test (`table` does so with three of callbacks);
//! decides which option a client is told of that exceeded one. Enforces none: `front` does. Invariant: a release has no
//! way to change a fixed one.

use std::time::Duration;

use crate::config::{Config, Sizes, shown};
use crate::front::Limits;

/// From the first byte of a head to its last.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// Without a byte of an answer being taken.
const WRITE_TIME: Duration = Duration::from_secs(30);

/// Returns the limits of every connection.
pub fn of(config: &Config) -> Limits {
    Limits {
        max_head: config.max_head,
        max_body: config.sizes().body,
        max_body_option: body_option(config),
        head_time: fixed(HEAD_TIME, "DEFERD_TEST_HEAD_TIME"),
        body_time: config.body_timeout,
        write_time: fixed(WRITE_TIME, "DEFERD_TEST_WRITE_TIME"),
        idle_time: config.keep_alive,
    }
}

/// Returns a fixed limit, or the one that a test has put in its place in milliseconds, so that it need not
/// wait for the real one. Only a build with debug assertions asks for that variable.
pub fn fixed(time: Duration, variable: &str) -> Duration {
    if !cfg!(debug_assertions) {
        return time;
    }
    let millis = |text: String| text.parse().expect("a test says milliseconds");
    std::env::var(variable).map_or(time, |text| Duration::from_millis(millis(text)))
}

/// Returns which limit of content is the lowest, as the client is told.
fn body_option(config: &Config) -> String {
    let Sizes { memory, body, .. } = config.sizes();
    match config.max_body {
        Some(most) if most > body => format!("--max-memory {}", shown(memory)),
        None if config.data.is_none() && body == memory / 4 => {
            format!("--max-body {}, a quarter of --max-memory", shown(body))
        }
        _ => format!("--max-body {}", shown(body)),
    }
}
