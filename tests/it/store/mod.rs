//! Stores as their makers see them: through the `Store` trait, and in their directory.
//!
//! What clients see of every store is in `contract::jobs`.

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
