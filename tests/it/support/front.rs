//! The front under test: `DEFERD_TEST_FRONT`. The contract is the same on both, except for what tiny_http cannot do:
//! that is listed here, and the tests that need it name it.

use std::env;
use std::process::Command;
use std::time::Duration;

/// What tiny_http 0.12 lacks, and no code outside of it can provide.
#[derive(Clone, Copy, Debug)]
pub enum Ability {
    /// Field values beyond ASCII: it closes the connection without an answer.
    Ascii,
    /// It closes a connection when the client asks for that, never because an answer requires it.
    Closing,
    /// It shows nothing of the connection: only a failed answer shows that a client has left.
    Connection,
    /// It waits for ever: for a head, for a client to take its answer, and between two requests.
    Deadlines,
    /// It reads the content of a refused request before the answer is sent.
    EarlyRefusal,
    /// Its answers are complete: a failure midway becomes an error, and nothing is sent before the end.
    Flow,
    /// Of connections that arrive at once, it serves at most eight, and sometimes fewer.
    ManyConnections,
    /// Its own `100` has fields that no `100` may have.
    Interim,
    /// It answers itself what it does not understand, without content.
    OwnRefusals,
    /// It does not listen beyond this host.
    Strangers,
    /// Fields after the last chunk: it takes the content for broken.
    Trailers,
    /// It handles pipelined requests at once; only their answers are in order.
    Turns,
}

fn is_tiny_http() -> bool {
    env::var("DEFERD_TEST_FRONT").is_ok_and(|front| front == "tiny_http")
}

/// Returns whether the front under test lacks this, and reports what is therefore left out.
pub fn lacks(ability: Ability) -> bool {
    let lacks = is_tiny_http();
    if lacks {
        eprintln!("left out on tiny_http: {ability:?}");
    }
    lacks
}

/// Returns the arguments that choose the front.
pub fn front_arguments() -> Vec<String> {
    env::var("DEFERD_TEST_FRONT").map_or_else(|_| Vec::new(), |front| vec!["--front".into(), front])
}

/// A limit of the strict front that no option changes.
#[derive(Clone, Copy)]
pub enum FixedLimit {
    /// From the first byte of a head to its last: 10 s.
    Head,
    /// The time in which no byte of an answer is taken: 30 s.
    Answer,
}

/// Returns the command of a deferd that has `time` in place of a fixed limit, so that its test need not wait for the
/// real one. `contract::deadlines` waits for both.
pub fn with_limit(limit: FixedLimit, time: Duration) -> Command {
    let variable = match limit {
        FixedLimit::Head => "DEFERD_TEST_HEAD_TIME",
        FixedLimit::Answer => "DEFERD_TEST_WRITE_TIME",
    };
    let mut command = Command::new(env!("CARGO_BIN_EXE_deferd"));
    command.env(variable, time.as_millis().to_string());
    command
}
