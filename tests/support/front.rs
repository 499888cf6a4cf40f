//! The front under test: `DEFERD_TEST_FRONT`. The contract is the same on both, but for what tiny_http
//! cannot do: that is listed here, and named by the tests that need it.

use std::env;

/// What tiny_http 0.12 does not have, and nobody can give it from outside.
#[derive(Clone, Copy, Debug)]
pub enum Ability {
    /// Field values beyond ASCII: it closes the connection without an answer.
    Ascii,
    /// A connection is closed when the client says so, never because an answer does.
    Closing,
    /// It shows nothing of the connection: that a client has left is seen when an answer fails.
    Connection,
    /// The content of a refused request is read before the answer goes out.
    EarlyRefusal,
    /// Of connections that come at once, it serves eight at most, and sometimes fewer.
    ManyConnections,
    /// Its own `100` has fields that no `100` may have.
    Interim,
    /// What it does not understand it answers itself, without content.
    OwnRefusals,
    /// Which request came last on a connection: its threads serve many connections by turns.
    Succession,
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
