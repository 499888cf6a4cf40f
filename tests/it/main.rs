//! All tests of the whole: one executable, laid out by what a test shows.
//!
//! - [`contract`]: what clients see, on both fronts; below `contract::jobs`, over every store as well.
//! - [`scripts`], [`upstream`]: the same of what runs a request, on both fronts.
//! - [`docs`]: what the documents promise, on both fronts.
//! - [`strict`]: what only the strict front holds.
//! - [`store`]: what only the makers of a store see: races, faults, files, accounts.
//! - [`crash`]: what is left by SIGKILL and by a power cut.
//! - `shared`: several deferd on one engine; with the feature `redis` only, and run by `scripts/test-shared`.
//! - [`support`]: the harness.
//!
//! `scripts/test` chooses by these names alone, so a new suite runs wherever its directory does. All share one
//! process: no test changes what belongs to that (its directory, its environment).

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
