//! Lifetime: the orderly shutdown by SIGTERM and SIGINT, its grace, and how long results live.
//!
//! Start-up and its errors are in `startup`.

use std::fs::Permissions;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;

use crate::support::hold::Hold;
use crate::support::{Ability, Client, Deferd, TempDir, eventually, lacks};

const STORE: [(&str, &str); 1] = [("x-arango-async", "store")];

/// Returns clients that are connected and have sent a request.
fn clients<const N: usize>(deferd: &Deferd) -> [Client; N] {
    [(); N].map(|()| {
        let mut client = deferd.client();
        client.get("/_api/version").expect(200);
        client
    })
}

/// Sends the signal and waits until deferd accepts no more connections and no more jobs. Uses up `watcher`'s
/// connection.
#[track_caller]
fn drain(deferd: &Deferd, signal: &str, watcher: &mut Client) {
    deferd.signal(signal);
    eventually("no new connections", || TcpStream::connect(deferd.address).is_err());
    // Not by repeated requests: an answer under way at this moment closes its connection.
    eventually("deferd says that it ends", || deferd.log().contains("ending: "));
    let reply = watcher.get("/_admin/server/availability").expect_error(503, 503);
    assert_eq!(reply.header("connection"), Some("close"));
    assert!(lacks(Ability::Closing) || watcher.is_closed(), "a connection is not kept any more");
}

#[test]
fn without_work_either_signal_ends_it_with_0() {
    for signal in ["-TERM", "-INT"] {
        let mut deferd = Deferd::start(&["--grace", "1h"]);
        let [_idle] = clients(&deferd);
        deferd.signal(signal);
        assert_eq!(deferd.wait().code(), Some(0));
        assert!(TcpStream::connect(deferd.address).is_err());
    }
}

#[test]
fn while_draining_only_new_jobs_are_503() {
    for signal in ["-TERM", "-INT"] {
        let mut deferd = Deferd::with_scripts("", &["--grace", "1h"]);
        let hold = Hold::new();
        let [mut watcher, mut store, mut forget, mut status, mut list, mut collect] =
            clients(&deferd);
        let done = store.store("GET", "/run/c-talk", b"");
        store.wait_done(&done);
        let running = hold.start(&mut store);
        drain(&deferd, signal, &mut watcher);
        store.request("GET", "/_api/version", &STORE, b"").expect_error(503, 503).without_id();
        let field = [("x-arango-async", "true")];
        forget.request("GET", "/_api/version", &field, b"").expect_error(503, 503);
        status.get(&format!("/_api/job/{running}")).expect(204);
        assert_eq!(list.list("pending"), [running]);
        let result = collect.put(&format!("/_api/job/{done}")).expect(500);
        assert_eq!((result.id(), result.text().as_str()), (Some(&*done), "output\n"));
        hold.release();
        assert_eq!(deferd.wait().code(), Some(0));
        assert!(hold.has("ended"));
    }
}

#[test]
fn within_the_grace_jobs_and_requests_are_finished() {
    let mut deferd = Deferd::with_scripts("", &["--grace", "1h", "--workers", "1"]);
    let [mut watcher, mut client, mut waiting] = clients(&deferd);
    let (job, synchronous, dir) = (Hold::new(), Hold::new(), TempDir::new());
    job.start(&mut client);
    client.store("GET", &format!("/run/c-touch?{}", dir.join("queued").display()), b"");
    waiting.send_request("GET", &synchronous.target(), &[], b"");
    synchronous.wait_for("started");
    drain(&deferd, "-TERM", &mut watcher);
    job.release();
    eventually("the queued job runs", || dir.join("queued").exists());
    synchronous.release();
    assert_eq!(waiting.try_read("GET").unwrap().expect(200).text(), "let go\n");
    assert_eq!(deferd.wait().code(), Some(0));
    assert!(job.has("ended"));
}

#[test]
fn past_the_grace_jobs_are_cancelled_or_never_start() {
    let dir = TempDir::new();
    // If it starts, even for a moment, the log says that it failed.
    let script = dir.join("no-interpreter");
    std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    std::fs::set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
    let route = format!("/own/=run:{}", dir.0.display());
    let arguments = ["--route", &route, "--grace", "200ms", "--workers", "1"];
    let mut deferd = Deferd::with_scripts("", &arguments);
    let mut client = deferd.client();
    let hold = Hold::deaf();
    hold.start(&mut client);
    let queued = client.store("GET", "/own/no-interpreter", b"");
    deferd.signal("-TERM");
    // Only a script that ignores SIGTERM can report that it received it.
    hold.wait_for("term");
    hold.release();
    assert_eq!(deferd.wait().code(), Some(0));
    let log = deferd.log();
    let lost = log.lines().find(|line| line.contains("lost with the memory store"));
    assert!(lost.is_some_and(|line| line.contains(&queued)), "{log}");
    assert!(!log.contains("cannot be started"), "{log}");
}

#[test]
fn past_the_grace_a_sleep_ends_too() {
    let mut deferd = Deferd::start(&["--grace", "100ms"]);
    let [mut client, mut waiting] = clients(&deferd);
    client.store("GET", "/_admin/sleep?duration=3600", b"");
    waiting.send_request("GET", "/_admin/sleep?duration=3600", &[], b"");
    deferd.signal("-TERM");
    assert_eq!(deferd.wait().code(), Some(0));
}

#[test]
fn the_end_waits_for_an_ignore_abort_run() {
    if lacks(Ability::Connection) {
        return;
    }
    let mut deferd = Deferd::with_scripts(",ignore-abort=yes", &["--grace", "1h"]);
    let [mut watcher, mut client] = clients(&deferd);
    let hold = Hold::new();
    client.send_request("GET", &hold.target(), &[], b"");
    hold.wait_for("started");
    drop(client);
    drain(&deferd, "-TERM", &mut watcher);
    hold.release();
    assert_eq!(deferd.wait().code(), Some(0));
    assert!(hold.has("ended"));
}

#[test]
fn a_second_signal_ends_it_at_once_with_its_scripts() {
    for (first, second) in [("-TERM", "-TERM"), ("-INT", "-INT"), ("-TERM", "-INT")] {
        let mut deferd = Deferd::with_scripts("", &["--grace", "1h"]);
        let [mut watcher, mut client] = clients(&deferd);
        let hold = Hold::deaf();
        hold.start(&mut client);
        let scripts = deferd.children();
        assert_eq!(scripts.len(), 1);
        drain(&deferd, first, &mut watcher);
        deferd.signal(second);
        assert_eq!(deferd.wait().code(), Some(0));
        eventually("no script is left", || crate::support::group_members(scripts[0]).is_empty());
    }
}

#[test]
fn the_results_that_the_end_loses_are_logged() {
    let mut deferd = Deferd::start(&[]);
    let mut client = deferd.client();
    let [lost, collected] = [(); 2].map(|()| client.store("GET", "/_api/version", b""));
    client.result(&collected).expect(200);
    client.wait_done(&lost);
    deferd.signal("-TERM");
    assert_eq!(deferd.wait().code(), Some(0));
    let log = deferd.log();
    let line = log.lines().find(|line| line.contains("lost")).expect("a line of the lost jobs");
    assert!(line.contains(&lost) && !line.contains(&collected), "{line}");
}

#[test]
fn what_waits_on_disk_is_left_for_the_next_deferd() {
    let (data, hold) = (TempDir::new(), Hold::new());
    let store = data.join("store").display().to_string();
    let arguments = ["--data", store.as_str(), "--workers", "1", "--grace", "1h"];
    let mut deferd = Deferd::with_scripts("", &arguments);
    let [mut watcher, mut client] = clients(&deferd);
    let running = hold.start(&mut client);
    let waiting = [(); 2].map(|()| client.store("GET", "/_api/version", b""));
    drain(&deferd, "-TERM", &mut watcher);
    hold.release();
    assert_eq!(deferd.wait().code(), Some(0));
    assert!(!deferd.log().contains("lost"), "{}", deferd.log());
    let deferd = Deferd::with_scripts("", &arguments);
    let mut client = deferd.client();
    client.result(&running).expect(200);
    for id in waiting {
        client.result(&id).expect(200);
    }
}

#[test]
fn results_expire_after_their_time_pending_jobs_do_not() {
    let deferd = Deferd::with_scripts("", &["--ttl", "300ms", "--workers", "2"]);
    let mut client = deferd.client();
    let hold = Hold::new();
    let pending = hold.start(&mut client);
    let done = client.store("GET", "/_api/version", b"");
    // Older than the result that expires here.
    eventually("the result expires", || client.get(&format!("/_api/job/{done}")).status == 404);
    client.put(&format!("/_api/job/{done}")).expect_error(404, 404);
    client.get(&format!("/_api/job/{pending}")).expect(204);
    assert_eq!(client.list("pending"), [pending.as_str()]);
    assert!(!hold.has("ended"));
    hold.release();
    eventually("its result expires", || client.get(&format!("/_api/job/{pending}")).status == 404);
    assert!(hold.has("ended"));
    assert_eq!(client.list("done"), [""; 0]);
}
