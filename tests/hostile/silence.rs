//! Clients that ask for much and take nothing.

use std::io::Read;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Client, Deferd, eventually};
use crate::unharmed;
use crate::unharmed::{connections, is_served, without_hoarding};

/// Asks for 16 MiB, and waits until the answer has begun.
fn ask_for_much(deferd: &Deferd) -> Client {
    let mut client = deferd.client();
    client.send_request("GET", "/run/h-big", &[], b"");
    client.socket().peek(&mut [0]).unwrap();
    client
}

#[test]
fn an_answer_that_nobody_takes_holds_up_nobody_else_and_ends_with_its_client() {
    let deferd = without_hoarding();
    unharmed(&deferd, || {
        let silent = [ask_for_much(&deferd), ask_for_much(&deferd), ask_for_much(&deferd)];
        eventually("others are served", || is_served(&deferd));
        let id = deferd.client().store("GET", "/_api/version", b"");
        deferd.client().result(&id).expect(200);
        eventually("only the answers still wait", || connections(&deferd) == silent.len());
    });
}

/// Contract: cut after 30 s in which not one byte was taken. Twice as long would be too much.
#[test]
fn a_client_that_takes_nothing_is_cut_after_thirty_seconds() {
    let deferd = without_hoarding();
    unharmed(&deferd, || {
        let begin = Instant::now();
        let silent = ask_for_much(&deferd);
        eventually("others are served", || is_served(&deferd));
        eventually("the thread is gone", || connections(&deferd) == 0);
        let cut = begin.elapsed();
        assert!((29..50).contains(&cut.as_secs()), "cut after {cut:?}");
        let mut rest = Vec::new();
        let _ = silent.socket().read_to_end(&mut rest);
        assert!(rest.len() < 16 << 20, "the whole answer came");
    });
}

/// One who takes a little now and then is slow, not gone.
#[test]
fn a_client_that_takes_its_time_gets_the_whole_answer() {
    let deferd = without_hoarding();
    unharmed(&deferd, || {
        let mut slow = ask_for_much(&deferd);
        // The buffers of both sides are full for a while, several times.
        for _ in 0..8 {
            thread::sleep(Duration::from_millis(250));
            slow.socket().peek(&mut [0]).unwrap();
        }
        let reply = slow.try_read("GET").expect("an answer").expect(200);
        assert_eq!(reply.body.len(), 16 << 20);
        slow.get("/_api/version").expect(200);
    });
}
