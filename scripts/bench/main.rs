//! The figures that deferd is measured by, one subcommand each: `scripts/bench-*` run them.
//!
//! They print and never fail on speed. Both sides of every ratio are measured in one run, in turn, so
//! that whatever else the machine does falls on both. Everything that is started is ended, and every
//! wait ends within [`server::TIME_LIMIT`].
//!
//! - [`scripts`]: a script job beside the bare fork+exec of the same script.
//! - [`memory`]: sizes, start, and what a hundred thousand results cost.
//! - [`front`]: the strict front beside a bare loop over sockets.
//! - [`auth`]: refusals of an unknown user beside those of a wrong token.
//! - [`store`]: durable submissions beside those in memory, and what they cost in syncs.
//! - [`upstream`]: a deferred call to an upstream beside the same call direct, and clients that wait.
//! - [`bare`]: that loop. [`client`], [`server`], [`sample`]: what all of them share.

#![allow(clippy::unwrap_used, reason = "a benchmark may panic")]

mod auth;
mod bare;
mod client;
mod front;
mod memory;
mod sample;
mod scripts;
mod server;
mod store;
mod upstream;

fn main() {
    // Cargo adds `--bench`.
    match std::env::args().skip(1).find(|argument| !argument.starts_with("--")).as_deref() {
        Some("scripts") => scripts::print(),
        Some("memory") => memory::print(),
        Some("front") => front::print(),
        Some("auth") => auth::print(),
        Some("store") => store::print(),
        Some("upstream") => upstream::print(),
        Some("bare") => bare::serve(),
        _ => println!(
            "Usage: cargo bench --bench figures -- scripts | memory | front | auth | store | upstream"
        ),
    }
}
