//! The handling of a request's content: kept or dropped, how much of it, and which allowance is charged.
//!
//! Owns the limits of content and the text of its refusal. Reads nothing itself: `body` or the other front does.
//! Invariant: content that is announced to be too large is refused before any of it is read.

use super::Limits;
use super::head::Framing;
use crate::config::shown;
use crate::content::ContentBuffer;
use crate::error::Error;
use crate::handler::Takes;
use crate::memory::Allowance;

/// How much content is read and dropped if the request needs none, in bytes.
const DROPPED: usize = 64 * 1024;

/// The rules for the content of a request.
pub struct Intake<'a> {
    /// How much may arrive, in bytes.
    most: usize,
    /// Which limit that is, for the refusal.
    limit: Limit,
    fate: Fate,
    limits: &'a Limits,
    /// The allowance that the content is charged to.
    memory: &'a Allowance,
}

/// The lowest limit of the content.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Limit {
    /// The limit of any content.
    Body,
    /// The limit of what the handler takes.
    Handler,
    /// The limit of the memory that the client may charge.
    Memory,
}

/// Whether content is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is kept.
    Kept,
    /// It is read and dropped.
    Dropped,
}

impl<'a> Intake<'a> {
    /// Returns the rules for content of which the handler takes this much.
    pub fn new(takes: Takes, limits: &'a Limits, memory: &'a Allowance) -> Self {
        let (of_handler, fate) = match takes {
            Takes::Any => (usize::MAX, Fate::Kept),
            Takes::UpTo(most) => (most, Fate::Kept),
            Takes::Nothing => (DROPPED, Fate::Dropped),
        };
        let of_memory =
            if fate == Fate::Kept { memory.of_content().capacity() } else { usize::MAX };
        let most = limits.max_body.min(of_handler).min(of_memory);
        let limit = match most {
            most if most == limits.max_body => Limit::Body,
            most if most == of_handler => Limit::Handler,
            _ => Limit::Memory,
        };
        Self { most, limit, fate, limits, memory }
    }

    /// Returns how much may arrive, in bytes.
    pub const fn most(&self) -> usize {
        self.most
    }

    /// Returns whether it is kept.
    pub const fn fate(&self) -> Fate {
        self.fate
    }

    /// Refuses content that is announced to be too large, before any of it is read.
    ///
    /// # Errors
    /// [`Error::BodyTooLarge`].
    pub fn check(&self, framing: Framing) -> Result<(), Error> {
        match framing {
            Framing::Length(length) if length > self.most as u64 => Err(self.too_large()),
            Framing::Length(_) | Framing::Chunked => Ok(()),
        }
    }

    /// Returns the state before any content has arrived.
    pub fn begin(&self) -> Taken {
        Taken { content: ContentBuffer::new(self.memory), received: 0 }
    }

    /// Takes bytes of the content.
    ///
    /// # Errors
    /// `413` if there are too many, `503` if there is no memory for them.
    pub fn take(&self, taken: &mut Taken, bytes: &[u8]) -> Result<(), Error> {
        taken.received += bytes.len();
        if taken.received > self.most {
            return Err(self.too_large());
        }
        match self.fate {
            Fate::Dropped => Ok(()),
            Fate::Kept => taken.content.extend(bytes).map_err(|error| Error::no_memory(&error)),
        }
    }

    /// Returns the refusal of content that exceeds the limit.
    pub fn too_large(&self) -> Error {
        let most = shown(self.most);
        Error::BodyTooLarge(match (self.limit, self.fate) {
            (Limit::Body, _) => format!("more than {}", self.limits.max_body_option).into(),
            (Limit::Handler, Fate::Kept) => format!("more than {most} for this endpoint").into(),
            (Limit::Handler, Fate::Dropped) => {
                format!("more than {most} for an endpoint that uses none").into()
            }
            (Limit::Memory, _) => {
                let option = self.memory.disk().map_or("--max-memory", |_| "--max-stored");
                let is_unproven = self.memory.of_content().unproven_capacity() == Some(self.most);
                let whom = if is_unproven {
                    "content until its signature is verified"
                } else {
                    "one client"
                };
                format!("more than {most}, which {option} allows {whom}").into()
            }
        })
    }
}

/// The content that has arrived.
pub struct Taken {
    /// The part that is kept.
    pub content: ContentBuffer,
    /// How much has arrived, kept or not, in bytes.
    pub received: usize,
}

#[cfg(test)]
mod tests {
    use super::super::head::tests::limits;
    use super::super::input::Input;
    use super::super::{RequestError, body};
    use super::*;
    use crate::memory::{Budget, Part};

    #[test]
    fn content_beyond_its_limit_is_refused_by_name() {
        let limits = limits();
        let unbounded = Allowance::default();
        let budget = Budget::new(100);
        let small = budget.peer("192.0.2.1".parse().unwrap());
        let unproven = small.until_proven(&budget.share(Part::Quarter));
        let until_verified =
            "more than 25, which --max-memory allows content until its signature is verified";
        for (takes, memory, most, named) in [
            (Takes::Any, &unbounded, 256, "more than --max-body 256"),
            (Takes::UpTo(10), &unbounded, 10, "more than 10 for this endpoint"),
            (Takes::UpTo(1000), &unbounded, 256, "more than --max-body 256"),
            (Takes::Nothing, &unbounded, 256, "more than --max-body 256"),
            (Takes::Any, &small, 50, "more than 50, which --max-memory allows one client"),
            (Takes::Any, &unproven, 25, until_verified),
        ] {
            let intake = Intake::new(takes, &limits, memory);
            assert!(intake.check(Framing::Length(most)).is_ok());
            let refused = intake.check(Framing::Length(most + 1)).unwrap_err();
            assert_eq!(refused, Error::BodyTooLarge(named.into()));
            let bytes = format!("{:x}\r\n", most + 1);
            let mut input = Input::new(bytes.as_bytes());
            let read = body::read(&mut input, Framing::Chunked, &limits, &intake);
            assert!(matches!(read, Err(RequestError::Refused(error)) if error == refused));
        }
    }
}
