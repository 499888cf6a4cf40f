//! The shared store: several deferd on one engine. `scripts/test-shared` runs it.
//!
//! - [`engine`], [`proxy`], [`audit`]: the kit.
//! - [`suites`]: how the suites of `store` run over it.
//! - [`scripts`]: those that clients reach seldom.
//! - [`instances`]: what several instances promise together, one property a test.
//! - [`failures`]: what happens when an instance, the engine, or the way between them fails.
//! - [`histories`]: whatever the clients of several instances saw is explained by the model of one.
//! - [`storm`]: all of that at once, and what happens without the parts that hold it.

pub mod audit;
pub mod engine;
mod failures;
mod histories;
mod instances;
mod proxy;
mod scripts;
mod storm;
pub mod suites;
