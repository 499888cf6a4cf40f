//! The files beneath the tables, which know nothing of jobs. `file` is the one file, `dirty` can rewrite what a failed
//! sync left in doubt, `overlay` holds writes back until the contents were verified.

pub mod dirty;
pub mod file;
pub mod overlay;
