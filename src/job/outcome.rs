//! The outcome of a job: one of five ways in which it can end.
//!
//! Owns how a result shows the outcome: deferd's own answers for cancelled and interrupted jobs are recognized by
//! their content, because a script may use the same status codes. Does no I/O.

use http::StatusCode;

use crate::error::Error;

/// The way in which a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its result has a status code below 400.
    Ok,
    /// Its result has another status code.
    Error,
    /// It exceeded its time limit.
    Timeout,
    /// It was cancelled, which is not a failure.
    Canceled,
    /// It was running when deferd crashed.
    Interrupted,
}

impl Outcome {
    /// All outcomes, in the order of their numbers.
    pub const ALL: [Self; 5] =
        [Self::Ok, Self::Error, Self::Timeout, Self::Canceled, Self::Interrupted];

    /// Returns the outcome of a job with this result.
    pub fn of(status: StatusCode, body: &[u8]) -> Self {
        let is = |error: &Error| *error.response().body() == *body;
        match status {
            StatusCode::GONE if is(&Error::Cancelled) => Self::Canceled,
            StatusCode::INTERNAL_SERVER_ERROR if is(&Error::Interrupted) => Self::Interrupted,
            StatusCode::GATEWAY_TIMEOUT => Self::Timeout,
            status if status.as_u16() < 400 => Self::Ok,
            _ => Self::Error,
        }
    }

    /// Returns whether the job failed.
    pub const fn is_failure(self) -> bool {
        matches!(self, Self::Error | Self::Timeout | Self::Interrupted)
    }

    /// Returns its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error => "error",
            Self::Timeout => "timeout",
            Self::Canceled => "canceled",
            Self::Interrupted => "interrupted",
        }
    }

    /// Returns the outcome with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_follows_from_status_and_content() {
        for (status, body, outcome) in [
            (200, b"".as_slice(), Outcome::Ok),
            (304, b"", Outcome::Ok),
            (410, b"", Outcome::Error),
            (410, &Error::Cancelled.response().body().in_memory().unwrap()[..], Outcome::Canceled),
            (200, &Error::Cancelled.response().body().in_memory().unwrap()[..], Outcome::Ok),
            (500, b"", Outcome::Error),
            (
                500,
                &Error::Interrupted.response().body().in_memory().unwrap()[..],
                Outcome::Interrupted,
            ),
            (504, b"", Outcome::Timeout),
            (404, b"", Outcome::Error),
        ] {
            assert_eq!(
                Outcome::of(StatusCode::from_u16(status).unwrap(), body),
                outcome,
                "{status}"
            );
        }
        for (n, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!((Outcome::named(outcome.name()), outcome as usize), (Some(outcome), n));
        }
    }
}
