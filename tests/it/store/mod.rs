//! Stores as their developers see them: through the `Store` trait, and in their directory.
//!
//! `contract::jobs` has what clients see of every store.

#[macro_use]
pub mod kit;

mod faults;
mod footprints;
mod format;
mod full_disk;
mod load;
mod model;
pub mod notices;
mod races;
mod shrink;
mod workers;
