//! What clients see, the same on both fronts.

mod auth;
mod browser;
mod builtins;
mod deadlines;
mod deferring;
mod drain;
mod hooks;
mod jobs;
mod life;
mod listen;
mod log;
mod startup;
