//! All tests of the whole program: one executable, organized by what a test shows.
//!
//! - [`contract`]: what clients see, on both fronts; below `contract::jobs`, over every store as well.
//! - [`scripts`], [`upstream`]: the same for what runs a request, on both fronts.
//! - [`docs`]: what the documents promise, on both fronts.
//! - [`strict`]: what only the strict front guarantees.
//! - [`store`]: what only the developers of a store see: races, faults, files, accounts.
//! - [`crash`]: what remains after SIGKILL and after a power cut.
//! - `shared`: several deferd on one engine; with the feature `redis` only, and run by `scripts/test-shared`.
//! - [`support`]: the harness.
//!
//! `scripts/test` selects by these names alone, so a new suite runs wherever its directory does. All tests share one
//! process: no test changes what belongs to it (its directory, its environment).

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod contract;
mod docs;
mod scripts;
#[macro_use]
mod store;
mod crash;
#[cfg(feature = "redis")]
mod shared;
mod strict;
mod support;
mod upstream;
