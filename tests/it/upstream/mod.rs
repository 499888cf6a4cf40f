//! Calls to other services.

mod calls;
mod misbehaving;
