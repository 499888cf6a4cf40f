//! The answers of an engine, read without trust: a part that is missing or of another type is empty.
//!
//! Owns nothing. Invariant: no answer causes a panic.

use redis::Value;

use crate::job::Stamp;
use crate::job::execution::Attempts;

/// The parts of an answer.
#[derive(Debug, Default)]
pub struct Reply(Vec<Value>);

impl Reply {
    /// Returns the parts of a list; any other answer becomes the only part.
    pub fn of(value: Value) -> Self {
        match value {
            Value::Array(parts) => Self(parts),
            other => Self(vec![other]),
        }
    }

    /// Returns how many parts there are.
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns a part as bytes.
    pub fn bytes(&self, n: usize) -> &[u8] {
        match self.0.get(n) {
            Some(Value::BulkString(bytes)) => bytes,
            Some(Value::SimpleString(text)) => text.as_bytes(),
            _ => b"",
        }
    }

    /// Returns a part as text.
    pub fn text(&self, n: usize) -> &str {
        std::str::from_utf8(self.bytes(n)).unwrap_or("")
    }

    /// Returns a part as a number; zero if it is not a number.
    pub fn number(&self, n: usize) -> u64 {
        match self.0.get(n) {
            Some(Value::Int(number)) => u64::try_from(*number).unwrap_or(0),
            _ => self.text(n).parse().unwrap_or(0),
        }
    }

    /// Returns a part as a size or a count; the largest possible one if it does not fit.
    pub fn size(&self, n: usize) -> usize {
        usize::try_from(self.number(n)).unwrap_or(usize::MAX)
    }

    /// Returns a part as a time; `None` if it is empty.
    pub fn stamp(&self, n: usize) -> Option<Stamp> {
        (!self.bytes(n).is_empty()).then(|| Stamp::from_micros(self.number(n)))
    }

    /// Returns two parts as the attempts at a job: when the first began, and how many were made.
    pub fn attempts(&self, n: usize) -> Attempts {
        Attempts { first: self.stamp(n), count: u32::try_from(self.number(n + 1)).unwrap_or(0) }
    }

    /// Replaces a part.
    pub fn set(&mut self, n: usize, value: Value) {
        if let Some(part) = self.0.get_mut(n) {
            *part = value;
        }
    }

    /// Removes and returns a part that is itself a list.
    pub fn take_list(&mut self, n: usize) -> Self {
        self.0.get_mut(n).map(|part| Self::of(std::mem::take(part))).unwrap_or_default()
    }

    /// Removes and returns the bytes of a part; `None` if it is missing.
    pub fn take_bytes(&mut self, n: usize) -> Option<Vec<u8>> {
        match self.0.get_mut(n).map(std::mem::take) {
            Some(Value::BulkString(bytes)) => Some(bytes),
            _ => None,
        }
    }
}
