//! Hostile clients against the strict front: section 5 of the contract, and every row of section 10.
//!
//! Each case runs against a deferd of its own, inside [`unharmed`]: whatever the client did, an honest
//! request is answered afterwards, and no memory, no thread and no descriptor is left behind. Where a
//! request is refused, what stands behind it would leave a job as its trace if it were ever read.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../support/mod.rs"]
mod support;

mod bodies;
mod chunks;
mod crowds;
mod expectations;
mod floods;
mod framing;
mod heads;
mod resets;
mod scarcity;
mod shapes;
mod silence;
mod smuggling;
mod targets;
mod trickles;
mod unharmed;

pub use unharmed::unharmed;
