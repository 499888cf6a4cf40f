//! What remains when deferd or the machine ends without warning.

mod kill;
mod notices;
mod power;
mod recovery;
