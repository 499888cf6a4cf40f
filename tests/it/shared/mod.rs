//! The shared store: several deferd on one engine. `scripts/test-shared` runs it.
//!
//! - [`engine`], [`proxy`], [`audit`]: the kit.
//! - [`suites`]: how the suites of `store` run over it.
//! - [`scripts`]: the scripts that clients seldom reach.
//! - [`instances`]: what several instances promise together, one property a test.
//! - [`failures`]: what happens when an instance, the engine, or the way between them fails.
//! - [`histories`]: the model of one instance explains whatever the clients of several saw.
//! - [`storm`]: all of that at once, and what happens without the parts that prevent it.

pub mod audit;
pub mod engine;
mod failures;
mod histories;
mod instances;
mod proxy;
mod scripts;
mod storm;
pub mod suites;
