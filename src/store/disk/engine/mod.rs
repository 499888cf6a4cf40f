//! What carries the tables: files that know no jobs. `file` is the one file, `dirty` can write again what a
//! failed sync left in doubt, `overlay` holds writes back until the contents were understood.

pub mod dirty;
pub mod file;
pub mod overlay;
