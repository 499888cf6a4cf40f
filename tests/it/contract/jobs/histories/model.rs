//! The job as its clients may see it, and the search for an order that explains what they saw.
//!
//! A history is explained if its operations can be put in one order, each at some time between its request and its
//! answer, with the job's own steps (start, finish, expire) anywhere between them, such that a single job would give
//! each of the answers (Herlihy and Wing: linearizability). Jobs are independent: what concerns all of them, lists and
//! deletions in bulk, is treated as an operation on each.

use std::collections::HashSet;
use std::time::Instant;

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Submit,
    Status,
    Peek,
    Collect,
    /// A collection whose client leaves: it may or may not take the result, and may or may not deliver it.
    Abandon,
    Cancel,
    Forget,
    ForgetAll,
    /// With a stamp later than every job.
    ForgetExpired,
    /// With a stamp earlier than every job.
    ForgetNone,
    ListDone,
    ListPending,
}

/// The answer to an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// `202`, or `{"result":true}`, or it is unknown.
    Yes,
    /// `204`.
    Pending,
    /// `200` without a result.
    Done,
    /// The job's own response.
    Result,
    /// The response of a job that was cancelled.
    Cancelled,
    /// The response of a job whose instance has died.
    Interrupted,
    /// No answer: whether it took effect is unknown.
    Lost,
    /// `404`.
    Unknown,
    /// Whether the list has the job.
    Listed(bool),
}

/// An operation with its answer, and when it began and ended.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    pub client: usize,
    pub operation: Operation,
    pub answer: Answer,
    pub begin: Instant,
    /// `None`: its client has no answer, and it may take effect at any time or never.
    pub end: Option<Instant>,
}

/// How a job ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Ending {
    Result,
    Cancelled,
    Interrupted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Absent,
    Queued,
    Running,
    /// It was told to end.
    Ending,
    Done(Ending),
    /// Taken by a client that has left.
    Taken(Ending),
    /// Taken by a collection that does not deliver it.
    Held(Ending),
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct State {
    phase: Phase,
    /// How many collections, whose clients have left, have not taken the result.
    abandoned: u8,
}

/// What can happen apart from the operations.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub expiry: Expiry,
    pub failures: Failures,
}

/// What fails.
#[cfg_attr(
    not(feature = "redis"),
    allow(dead_code, reason = "only tests of the shared store make all of them")
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failures {
    /// Nothing fails.
    None,
    /// Nothing fails, in a shared store: a collection takes the job, and then reads its result; a deletion of many jobs
    /// between the two leaves it without one.
    Shared,
    /// The connections to the engine of a shared store fail, for so short a time that no instance is taken for dead: a
    /// `503` is not an answer.
    Ways,
    /// Instances die, or are taken for dead: what they run is interrupted, and what they have delivered may be
    /// restored.
    Instances,
}

/// When results expire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    Never,
    AnyTime,
}

impl State {
    const FIRST: Self = Self { phase: Phase::Absent, abandoned: 0 };

    fn with(self, phase: Phase) -> Self {
        Self { phase, ..self }
    }

    /// Returns the states that the job can reach by itself.
    fn steps(self, rules: Rules) -> Vec<Self> {
        match self.phase {
            Phase::Absent | Phase::Gone => Vec::new(),
            Phase::Queued => vec![self.with(Phase::Running)],
            Phase::Running | Phase::Ending => {
                let is_running = self.phase == Phase::Running;
                let ending = if is_running { Ending::Result } else { Ending::Cancelled };
                let mut steps = vec![self.with(Phase::Done(ending))];
                if rules.failures == Failures::Instances {
                    steps.push(self.with(Phase::Done(Ending::Interrupted)));
                }
                steps
            }
            Phase::Taken(ending) => vec![self.with(Phase::Done(ending)), self.with(Phase::Gone)],
            Phase::Held(ending) => vec![self.with(Phase::Done(ending))],
            Phase::Done(ending) => {
                let mut steps = Vec::new();
                if self.abandoned > 0 {
                    steps.push(Self { phase: Phase::Taken(ending), abandoned: self.abandoned - 1 });
                }
                if rules.expiry == Expiry::AnyTime {
                    steps.push(self.with(Phase::Gone));
                }
                steps
            }
        }
    }

    /// Returns the states after an operation with this answer. A collection that finds no job in a shared store may have
    /// had it for a moment.
    fn afters(
        self,
        operation: Operation,
        answer: Answer,
        rules: Rules,
    ) -> impl Iterator<Item = Self> {
        let held = match self.phase {
            Phase::Done(ending)
                if rules.failures != Failures::None
                    && (operation, answer) == (Operation::Collect, Answer::Unknown) =>
            {
                Some(self.with(Phase::Held(ending)))
            }
            _ => None,
        };
        self.after(operation, answer, rules).into_iter().chain(held)
    }

    /// Returns the state after an operation with this answer; `None` if that answer is impossible.
    fn after(self, operation: Operation, answer: Answer, rules: Rules) -> Option<Self> {
        use Operation as O;
        if operation == O::Abandon {
            return Some(Self { abandoned: self.abandoned + 1, ..self });
        }
        let (expected, phase) = match (operation, self.phase) {
            (O::Submit, Phase::Absent) => (Answer::Yes, Phase::Queued),
            (O::Submit, _) => return None,
            (O::ForgetNone, phase) => (Answer::Yes, phase),
            (O::ForgetAll | O::ForgetExpired, Phase::Absent) => (Answer::Yes, Phase::Absent),
            (O::ForgetAll | O::ForgetExpired, _) => (Answer::Yes, Phase::Gone),
            (O::ListDone, phase) => (Answer::Listed(matches!(phase, Phase::Done(_))), phase),
            (O::ListPending, phase) => (Answer::Listed(phase.is_pending()), phase),
            (_, phase @ (Phase::Absent | Phase::Taken(_) | Phase::Held(_) | Phase::Gone)) => {
                (Answer::Unknown, phase)
            }
            (O::Forget, _) => (Answer::Yes, Phase::Gone),
            (O::Cancel, Phase::Queued) => (Answer::Yes, Phase::Done(Ending::Cancelled)),
            (O::Cancel, Phase::Running) => (Answer::Yes, Phase::Ending),
            (O::Cancel, phase) => (Answer::Yes, phase),
            (O::Status, phase @ Phase::Done(_)) => (Answer::Done, phase),
            (O::Peek, phase @ Phase::Done(ending)) => (ending.answer(), phase),
            (O::Collect, Phase::Done(ending)) if rules.failures == Failures::Instances => {
                (ending.answer(), Phase::Taken(ending))
            }
            (O::Collect, Phase::Done(ending)) => (ending.answer(), Phase::Gone),
            (_, phase) => (Answer::Pending, phase),
        };
        (answer == expected || answer == Answer::Lost).then_some(self.with(phase))
    }
}

impl Phase {
    fn is_pending(self) -> bool {
        matches!(self, Self::Queued | Self::Running | Self::Ending)
    }
}

impl Ending {
    fn answer(self) -> Answer {
        match self {
            Self::Result => Answer::Result,
            Self::Cancelled => Answer::Cancelled,
            Self::Interrupted => Answer::Interrupted,
        }
    }
}

/// Returns whether some order of these events explains all of them.
pub fn is_explained(events: &[Event], rules: Rules) -> bool {
    assert!(events.len() < 128, "an event is a bit");
    let waited = mask(events.iter().map(|event| event.end.is_some()));
    // An event may be next if no remaining event had ended before it began.
    let before: Vec<u128> = events
        .iter()
        .map(|event| mask(events.iter().map(|e| e.end.is_some_and(|end| end < event.begin))))
        .collect();
    let mut seen = HashSet::from([(0, State::FIRST)]);
    let mut open = vec![(0_u128, State::FIRST)];
    while let Some((passed, state)) = open.pop() {
        if passed & waited == waited {
            return true;
        }
        let steps = state.steps(rules).into_iter().map(|state| (passed, state));
        let events = events.iter().enumerate().flat_map(|(n, event)| {
            let may_be_next = passed & (1 << n) == 0 && before[n] & !passed == 0;
            let states = may_be_next.then(|| state.afters(event.operation, event.answer, rules));
            states.into_iter().flatten().map(move |state| (passed | 1 << n, state))
        });
        let next = steps.chain(events).filter(|next| seen.insert(*next));
        open.extend(next);
    }
    false
}

/// Returns the bits of the values that are true.
fn mask(bits: impl Iterator<Item = bool>) -> u128 {
    bits.enumerate().map(|(n, bit)| u128::from(bit) << n).sum()
}
