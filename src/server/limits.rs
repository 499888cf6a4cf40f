//! The limits of connections, configured and fixed.
//!
//! Owns the fixed limits, and the option that a client is told about if it exceeds a limit. Enforces none: `front`
//! does. Invariant: only a test can change the fixed limits.

use std::time::Duration;

use crate::config::{Config, Sizes, shown};
use crate::front::Limits;
use crate::test_variable;

/// The limit from the first byte of a head to its last.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// The longest time in which a client takes no byte of an answer.
const WRITE_TIME: Duration = Duration::from_secs(30);

/// Returns the limits of every connection.
pub fn of(config: &Config) -> Limits {
    Limits {
        max_head: config.max_head,
        max_body: config.sizes().body,
        max_body_option: body_option(config),
        head_time: test_variable::duration("DEFERD_TEST_HEAD_TIME", HEAD_TIME),
        body_time: config.body_timeout,
        write_time: test_variable::duration("DEFERD_TEST_WRITE_TIME", WRITE_TIME),
        idle_time: config.keep_alive,
    }
}

/// Returns the lowest limit of content, in the words for the client.
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
