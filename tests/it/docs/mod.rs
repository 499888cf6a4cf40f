//! What the documents say is what deferd does.

mod examples;
mod openapi;
mod readme;
mod reference;
