//! What clients see of a job, the same on both fronts and over every store.

mod callbacks;
mod cancel;
mod completion;
mod concurrency;
mod delivery;
mod follow;
pub mod histories;
mod idempotency;
mod lists;
mod logs;
mod metrics;
mod nested;
mod order;
mod prefer;
mod ranges;
mod records;
mod refuse;
mod resource;
mod retry;
mod seed;
mod submit;
