//! Who waits for a job and leaves: seen by the strict front, which has its own sockets.

use crate::support::hold::Hold;
use crate::support::{Deferd, eventually};

const LONG: &str = "wait=3600";

#[test]
fn a_client_that_leaves_while_it_waits_frees_its_thread_and_takes_nothing_along() {
    let deferd = Deferd::with_scripts("", &["--max-wait", "1h"]);
    let mut client = deferd.client();
    let (hold, other) = (Hold::new(), Hold::new());
    let id = hold.start(&mut client);
    let before = deferd.threads();
    let mut leaving = deferd.client();
    leaving.send_request("PUT", &format!("/_api/job/{id}"), &[("prefer", LONG)], b"");
    let mut deferring = deferd.client();
    let fields = [("prefer", "respond-async, wait=3600")];
    deferring.send_request("GET", &other.target(), &fields, b"");
    other.wait_for("started");
    eventually("both wait", || deferd.threads() >= before + 2);
    drop((leaving, deferring));
    eventually("their threads are free", || deferd.threads() <= before);
    client.get(&format!("/_api/job/{id}")).expect(204);
    hold.release();
    other.release();
    assert_eq!(client.result(&id).expect(200).text(), "let go\n");
    // The other's result is there as well, for whoever finds it in the list.
    eventually("the other is done", || client.list("done").len() == 1);
}
