//! Operations: a script with its arguments, and its outcome.
//!
//! Owns what is known about an operation apart from its meaning: whether it may happen twice, how long it is tried,
//! and what is sent ahead of it. Sends nothing.

use bytes::Bytes;

use super::reply::Reply;
use super::script::{self, Script};
use crate::job::Moment;

/// Why an operation did not happen, or may not have happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The engine was not reached, or has not answered.
    Unreachable(String),
    /// The engine refuses it; the text is the engine's.
    Refused(String),
    /// The engine's memory is full.
    Full,
    /// It happened, but too few replicas have it.
    Unreplicated,
    /// The store is closed.
    Closed,
}

/// The outcome of an operation.
pub type Outcome = Result<Reply, Trouble>;

/// Whether an operation may be sent again without a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It only reads, or may happen twice.
    Harmless,
    /// It must happen once.
    Once,
    /// It must happen once, and counts only once the replicas have it.
    Replicated,
}

/// How long a thread keeps trying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Insist {
    /// For as long as a client waits; not at all while the engine is known to fail.
    No,
    /// Until there is an answer, or the store is closed.
    Yes,
    /// Once.
    Once,
}

/// Which clock stamps jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// The clock of the engine.
    Engine,
    /// The caller's clock: for tests, whose clocks stand still and jump.
    Caller,
}

/// An operation: a script with its arguments.
pub struct Operation {
    /// The script.
    pub script: &'static Script,
    /// Whether it may happen twice.
    pub effect: Effect,
    /// Its time by the caller's clock.
    pub at: Option<Moment>,
    /// The arguments.
    pub arguments: Vec<Vec<u8>>,
    /// The message that is sent ahead, and the index of the argument that names its key; the argument before that is
    /// for the message itself.
    pub spool: Option<(usize, Vec<Bytes>)>,
}

impl Operation {
    /// Returns an operation without arguments.
    pub const fn new(script: &'static Script, effect: Effect) -> Self {
        Self { script, effect, at: None, arguments: Vec::new(), spool: None }
    }

    /// Returns whether it accepts a job.
    pub fn is_submission(&self) -> bool {
        std::ptr::eq(self.script, &raw const script::SUBMIT)
    }

    /// Returns how much is sent, in bytes.
    pub fn size(&self) -> usize {
        let ahead = self.spool.iter().flat_map(|(_, pieces)| pieces).map(Bytes::len);
        self.arguments.iter().map(Vec::len).chain(ahead).sum()
    }

    /// Sets its time by the caller's clock.
    pub const fn at(mut self, now: Moment) -> Self {
        self.at = Some(now);
        self
    }

    /// Adds an argument.
    pub fn with(mut self, argument: impl AsRef<[u8]>) -> Self {
        self.arguments.push(argument.as_ref().to_vec());
        self
    }

    /// Adds a number.
    pub fn number(self, number: impl TryInto<u64>) -> Self {
        // The engine's numbers are exact only up to 2^53, and no real number is as large.
        let number = number.try_into().unwrap_or(u64::MAX).min(1 << 52);
        self.with(number.to_string())
    }

    /// Adds a message: as an argument, or, if it is large, sent ahead, because an engine copies arguments twice.
    pub fn message(mut self, head: Vec<u8>, body: &Bytes) -> Self {
        if head.len() + body.len() <= super::SPOOLED {
            let message = [&head, &body[..]].concat();
            return self.with(message).with("");
        }
        self = self.with("").with("");
        self.spool = Some((self.arguments.len() - 1, vec![head.into(), body.clone()]));
        self
    }
}
