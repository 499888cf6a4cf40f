//! Many clients at once over real sockets: whatever they do, some order of submit, start, finish, collect, cancel,
//! delete and expire explains what each saw of a job.
//!
//! `DEFERD_TEST_SEED` repeats the operations of a failure (their timing cannot be repeated),
//! `DEFERD_TEST_ROUNDS` makes it longer, and `DEFERD_TEST_OPTIONS` adds options to deferd.

mod clients;
mod model;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub use self::model::{Failures, Rules};

use self::model::{Answer, Event, Expiry, Operation, is_explained};
use crate::support::Deferd;

/// Each round has a few histories.
const ROUNDS: u64 = 500;

/// Runs clients of the instances at these addresses.
pub fn explain_all(addresses: &[SocketAddr], rules: Rules, rounds: u64) {
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64;
    let seed = variable("DEFERD_TEST_SEED").unwrap_or_else(clock);
    for seed in seed..seed + variable("DEFERD_TEST_ROUNDS").unwrap_or(rounds) {
        for (job, history) in clients::round(addresses, seed, rules.failures) {
            assert!(
                is_explained(&history, rules),
                "DEFERD_TEST_SEED={seed}: no order explains job {job} by {rules:?}\n{}",
                told(&history)
            );
        }
    }
}

fn variable(name: &str) -> Option<u64> {
    Some(std::env::var(name).ok()?.parse().expect(name))
}

/// Goes through all rounds.
fn explain(options: &[&str], expiry: Expiry) {
    let deferd = Deferd::start(options);
    explain_all(&[deferd.address], Rules { expiry, ..PLAIN }, ROUNDS);
}

/// Returns a history in readable form.
fn told(history: &[Event]) -> String {
    let zero = history[0].begin;
    let micros = |instant: Instant| (instant - zero).as_micros();
    history.iter().fold(String::new(), |mut text, event| {
        let end = event.end.map_or("?".to_owned(), |end| micros(end).to_string());
        let Event { client, operation, answer, begin, .. } = event;
        writeln!(
            text,
            "{:>6}..{end:<6} client {client}: {operation:?} → {answer:?}",
            micros(*begin)
        )
        .unwrap();
        text
    })
}

#[test]
fn every_history_of_a_job_is_explained() {
    explain(&["--workers", "2"], Expiry::Never);
}

#[test]
fn histories_with_expiry_are_explained() {
    explain(&["--workers", "2", "--ttl", "1ms"], Expiry::AnyTime);
}

/// Returns events in sequence; an event marked with `|` takes place at the same time as the previous one.
fn history(events: &[(&str, Operation, Answer)]) -> Vec<Event> {
    let zero = Instant::now();
    let at = |n: usize| zero + Duration::from_millis(n as u64);
    let mut slot = 0;
    let place = |(mark, operation, answer): &(&str, Operation, Answer)| {
        slot += if *mark == "|" { 0 } else { 10 };
        let (operation, answer) = (*operation, *answer);
        let waits = operation != Operation::Abandon && answer != Answer::Lost;
        let end = waits.then(|| at(slot + 5));
        Event { client: 0, operation, answer, begin: at(slot), end }
    };
    events.iter().map(place).collect()
}

/// Nothing fails, and results do not expire.
pub const PLAIN: Rules = Rules { expiry: Expiry::Never, failures: Failures::None };

#[test]
fn what_one_job_can_do_is_explained() {
    use {Answer as A, Operation as O};
    let submit = ("", O::Submit, A::Yes);
    for events in [
        &[submit, ("", O::Collect, A::Pending), ("", O::Collect, A::Result)][..],
        &[submit, ("", O::Collect, A::Unknown), ("|", O::Collect, A::Result)],
        &[
            submit,
            ("", O::Cancel, A::Yes),
            ("", O::Status, A::Pending),
            ("", O::Peek, A::Cancelled),
        ],
        &[submit, ("", O::Cancel, A::Yes), ("", O::Collect, A::Result)],
        &[submit, ("", O::Abandon, A::Yes), ("", O::Status, A::Unknown), ("", O::Status, A::Done)],
        &[
            submit,
            ("", O::Forget, A::Yes),
            ("|", O::Collect, A::Pending),
            ("", O::Status, A::Unknown),
        ],
        &[("", O::ListDone, A::Listed(true)), ("|", O::Submit, A::Yes)],
        &[submit, ("", O::ForgetNone, A::Yes), ("", O::ListDone, A::Listed(true))],
    ] {
        assert!(is_explained(&history(events), PLAIN), "{events:?}");
    }
    let expired = [submit, ("", O::Status, A::Done), ("", O::Collect, A::Unknown)];
    assert!(is_explained(&history(&expired), Rules { expiry: Expiry::AnyTime, ..PLAIN }));
}

#[test]
fn what_no_job_can_do_is_not_explained() {
    use {Answer as A, Operation as O};
    let submit = ("", O::Submit, A::Yes);
    for events in [
        // Delivered twice; lost; back from the dead.
        &[submit, ("", O::Collect, A::Result), ("", O::Collect, A::Result)][..],
        &[submit, ("", O::Collect, A::Result), ("|", O::Collect, A::Result)],
        &[submit, ("", O::Status, A::Unknown)],
        &[submit, ("", O::Status, A::Done), ("", O::Collect, A::Unknown)],
        &[submit, ("", O::Collect, A::Result), ("", O::Status, A::Done)],
        &[submit, ("", O::Forget, A::Yes), ("", O::Collect, A::Result)],
        &[submit, ("", O::ForgetAll, A::Yes), ("", O::Status, A::Pending)],
        &[submit, ("", O::ForgetExpired, A::Yes), ("", O::ListDone, A::Listed(true))],
        // Done, and then pending again; cancelled without a cancel, or not cancelled in spite of one.
        &[submit, ("", O::Status, A::Done), ("", O::Collect, A::Pending)],
        &[submit, ("", O::Peek, A::Cancelled)],
        &[
            submit,
            ("", O::Status, A::Pending),
            ("", O::Peek, A::Result),
            ("", O::Cancel, A::Yes),
            ("", O::Peek, A::Cancelled),
        ],
        &[
            submit,
            ("", O::Cancel, A::Yes),
            ("", O::Status, A::Pending),
            ("", O::Collect, A::Result),
        ],
        // In no list, in the wrong one, or in both.
        &[
            submit,
            ("", O::Status, A::Pending),
            ("", O::ListDone, A::Listed(true)),
            ("", O::ListPending, A::Listed(true)),
        ],
        &[submit, ("", O::Status, A::Done), ("", O::ListDone, A::Listed(false))],
        &[submit, ("", O::ListDone, A::Listed(true)), ("", O::Status, A::Pending)],
        // An abandoned collection takes the result once, and only after it began.
        &[submit, ("", O::Abandon, A::Yes), ("", O::Collect, A::Result), ("", O::Status, A::Done)],
        &[submit, ("", O::Status, A::Done), ("", O::Status, A::Unknown), ("", O::Abandon, A::Yes)],
    ] {
        assert!(!is_explained(&history(events), PLAIN), "{events:?}");
    }
}

#[test]
fn what_the_death_of_an_instance_explains() {
    use {Answer as A, Operation as O};
    let submit = ("", O::Submit, A::Yes);
    let dying = Rules { failures: Failures::Instances, ..PLAIN };
    for events in [
        &[submit, ("", O::Collect, A::Result), ("", O::Collect, A::Result)][..],
        &[
            submit,
            ("", O::Collect, A::Result),
            ("", O::Status, A::Unknown),
            ("", O::Peek, A::Result),
        ],
        &[submit, ("", O::Status, A::Pending), ("", O::Peek, A::Interrupted)],
        // Whether an operation without an answer took effect is unknown.
        &[submit, ("", O::Cancel, A::Lost), ("", O::Peek, A::Cancelled)],
        &[submit, ("", O::Cancel, A::Lost), ("", O::Peek, A::Result), ("", O::Forget, A::Lost)],
    ] {
        assert!(is_explained(&history(events), dying), "{events:?}");
    }
    for events in [
        &[submit, ("", O::Status, A::Unknown)][..],
        &[submit, ("", O::Collect, A::Result), ("", O::Collect, A::Interrupted)],
        &[submit, ("", O::Forget, A::Yes), ("", O::Status, A::Done)],
        &[submit, ("", O::Peek, A::Cancelled), ("", O::Cancel, A::Lost)],
        &[submit, ("", O::Status, A::Done), ("", O::Status, A::Pending)],
    ] {
        assert!(!is_explained(&history(events), dying), "{events:?}");
    }
    // A collection in a shared store may take the job for a moment, and never loses it.
    let taken = [
        submit,
        ("", O::Status, A::Done),
        ("", O::Collect, A::Unknown),
        ("|", O::Status, A::Unknown),
    ];
    for (failures, is) in
        [(Failures::None, false), (Failures::Shared, true), (Failures::Ways, true)]
    {
        let rules = Rules { failures, ..PLAIN };
        let [back, lost] =
            [A::Done, A::Unknown].map(|then| [&taken[..], &[("", O::Status, then)]].concat());
        assert_eq!(is_explained(&history(&back), rules), is, "{failures:?}");
        let forgotten =
            [&back[..], &[("", O::Forget, A::Yes), ("", O::Status, A::Unknown)]].concat();
        assert_eq!(is_explained(&history(&forgotten), rules), is, "{failures:?}");
        let kept = [&lost[..], &[("", O::ListDone, A::Listed(true))]].concat();
        assert_eq!(is_explained(&history(&kept), rules), is, "{failures:?}");
    }
    let interrupted = [submit, ("", O::Peek, A::Interrupted)];
    assert!(!is_explained(&history(&interrupted), PLAIN));
}
