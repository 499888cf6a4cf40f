//! Calls to other services.

mod calls;
mod misbehaving;

use crate::support::{Ability, Deferd, eventually, lacks};

/// Where an answer fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fails {
    /// Before its head is passed on: the client gets an error.
    AtHead,
    /// After its head: the answer is broken, and the access log says why.
    AtContent,
}

/// Requests something whose answer fails; returns the message about that, which contains nothing that a client sent.
#[track_caller]
fn failure(deferd: &Deferd, target: &str, fails: Fails, status: u16) -> String {
    let mut client = deferd.client();
    if fails == Fails::AtHead || lacks(Ability::Flow) {
        return client.get(target).expect_error(status, status).text();
    }
    let before = deferd.log().matches("broken=").count();
    client.send_request("GET", target, &[], b"");
    let reply = client.try_read_head().expect("an answer");
    if status == 504 && reply.status == status {
        // The limit was reached in an earlier phase: the machine is busy.
        return client.read_rest("GET", reply).expect_error(status, status).text();
    }
    client.read_break(reply.expect(200));
    let mut log = String::new();
    eventually("the log says why", || {
        log = deferd.log();
        log.matches("broken=").count() > before
    });
    let line = log.lines().rfind(|line| line.contains("broken=")).unwrap();
    line.split_once("broken=").unwrap().1.to_owned()
}
