//! The documents describe what deferd does.

mod examples;
mod openapi;
mod readme;
mod reference;
