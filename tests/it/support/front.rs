//! The front under test: `DEFERD_TEST_FRONT`. The contract is the same on both, but for what tiny_http
//! cannot do: that is listed here, and named by the tests that need it.

use std::env;
use std::process::Command;
use std::time::Duration;

/// What tiny_http 0.12 does not have, and nobody can give it from outside.
#[derive(Clone, Copy, Debug)]
pub enum Ability {
    /// Field values beyond ASCII: it closes the connection without an answer.
    Ascii,
    /// A connection is closed when the client says so, never because an answer does.
    Closing,
    /// It shows nothing of the connection: that a client has left is seen when an answer fails.
    Connection,
    /// It waits without end: for a head, for a client to take its answer, and between two requests.
    Deadlines,
    /// The content of a refused request is read before the answer goes out.
    EarlyRefusal,
    /// Answers are whole: what fails midway is an error, and nothing comes before the end.
    Flow,
    /// Of connections that come at once, it serves eight at most, and sometimes fewer.
    ManyConnections,
    /// Its own `100` has fields that no `100` may have.
    Interim,
    /// What it does not understand it answers itself, without content.
    OwnRefusals,
    /// It is not let out of this host.
    Strangers,
    /// Fields behind the last chunk: to it the content is broken.
    Trailers,
    /// Requests that a client sends ahead are handled at once; only their answers are in order.
    Turns,
}

fn is_tiny_http() -> bool {
    env::var("DEFERD_TEST_FRONT").is_ok_and(|front| front == "tiny_http")
}

/// Whether the front under test lacks this. What is left out because of that is told.
pub fn lacks(ability: Ability) -> bool {
    let lacks = is_tiny_http();
    if lacks {
        eprintln!("left out on tiny_http: {ability:?}");
    }
    lacks
}

/// The arguments that choose the front.
pub fn front_arguments() -> Vec<String> {
    env::var("DEFERD_TEST_FRONT").map_or_else(|_| Vec::new(), |front| vec!["--front".into(), front])
}

/// A limit of the strict front that no option changes.
#[derive(Clone, Copy)]
pub enum FixedLimit {
    /// From the first byte of a head to its last: 10 s.
    Head,
    /// Without a byte of an answer being taken: 30 s.
    Answer,
}

/// Returns the command of a deferd that has `time` in place of a fixed limit, so that its test need not wait
/// for the real one. `contract::deadlines` waits for both.
pub fn with_limit(limit: FixedLimit, time: Duration) -> Command {
    let variable = match limit {
        FixedLimit::Head => "DEFERD_TEST_HEAD_TIME",
        FixedLimit::Answer => "DEFERD_TEST_WRITE_TIME",
    };
    let mut command = Command::new(env!("CARGO_BIN_EXE_deferd"));
    command.env(variable, time.as_millis().to_string());
    command
}
