//! The three limits of the front that no option changes, with their real values.
//!
//! All other tests of them use shorter values ([`with_limit`](crate::support::with_limit)).

use std::io::Read;
use std::thread;
use std::time::{Duration, Instant};

use crate::strict::unharmed;
use crate::strict::unharmed::connections;
use crate::support::{Ability, Deferd, PATIENCE, eventually, lacks};

/// Asserts that the limit was kept, and not exceeded twofold, even on a busy machine.
#[track_caller]
fn assert_lasted(begin: Instant, seconds: u64) {
    let (lasted, limit) = (begin.elapsed(), Duration::from_secs(seconds));
    assert!(lasted >= limit, "only {lasted:?}");
    assert!(lasted < 2 * limit, "as much as {lasted:?}");
}

/// Contract: a head is cut off after 10 s, however little is missing.
fn a_head_is_cut_after_ten_seconds() {
    let deferd = Deferd::start(&[]);
    unharmed(&deferd, || {
        let mut client = deferd.client();
        let begin = Instant::now();
        client.send(b"GET /_api/version HTTP/1.1\r\nhost: a\r\n");
        let told = client.try_read("GET").expect("an answer").expect_error(408, 408).text();
        assert!(told.contains("the head was not complete within 10s of its first byte"), "{told}");
        assert_lasted(begin, 10);
    });
}

/// Contract: a client is cut off after 30 s in which it took no byte.
fn a_client_that_takes_nothing_is_cut_after_thirty_seconds() {
    let deferd = Deferd::with_scripts("", &[]);
    unharmed(&deferd, || {
        let begin = Instant::now();
        let mut silent = deferd.client();
        silent.send_request("GET", "/run/h-big", &[], b"");
        silent.wait_for_answer();
        eventually("the thread is gone", || connections(&deferd) == 0);
        assert_lasted(begin, 30);
        let mut rest = Vec::new();
        let _ = silent.socket().read_to_end(&mut rest);
        assert!(rest.len() < 16 << 20, "the whole answer came");
    });
}

/// Contract: a connection is closed after 75 s between two requests, or without a first one, without an answer.
fn an_idle_connection_is_closed_after_75_seconds() {
    let deferd = Deferd::start(&[]);
    unharmed(&deferd, || {
        let begin = Instant::now();
        let mut idle = [deferd.client(), deferd.client()];
        idle[0].get("/_api/version").expect(200);
        for client in &mut idle {
            client.socket().set_read_timeout(Some(2 * PATIENCE)).unwrap();
            assert!(client.is_closed(), "something came");
            assert_lasted(begin, 75);
        }
    });
}

/// All at once, because they last as long as their limits.
#[test]
fn heads_answers_and_idleness_have_10_30_and_75_seconds() {
    if lacks(Ability::Deadlines) {
        return;
    }
    thread::scope(|scope| {
        scope.spawn(a_head_is_cut_after_ten_seconds);
        scope.spawn(a_client_that_takes_nothing_is_cut_after_thirty_seconds);
        scope.spawn(an_idle_connection_is_closed_after_75_seconds);
    });
}
