//! What clients see, the same on both fronts.

mod auth;
mod browser;
mod builtins;
#[cfg(feature = "client")]
mod client;
mod content;
mod deadlines;
mod deferring;
mod drain;
mod hooks;
pub mod jobs;
mod life;
mod listen;
mod log;
#[cfg(feature = "page")]
mod page;
mod startup;
