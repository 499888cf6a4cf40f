//! The processes of scripts: every one ends, in time, and leaves nothing behind.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::{
    Ability, Client, Deferd, Reply, TempDir, eventually, group_members, lacks, running_with_query,
};

pub(super) const CANCELLED: &str =
    r#"{"error":true,"errorMessage":"canceled request","code":410,"errorNum":21}"#;

/// A directory that a script is called with: the script leaves its marks there, and its processes are recognized by
/// it.
pub(super) struct Place(pub TempDir);

impl Place {
    pub(super) fn new() -> Self {
        Self(TempDir::new())
    }

    pub(super) fn query(&self) -> String {
        self.0.0.display().to_string()
    }

    pub(super) fn target(&self, script: &str) -> String {
        format!("{script}?{}", self.query())
    }

    pub(super) fn sign(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(super) fn processes(&self) -> Vec<u32> {
        running_with_query(&self.query())
    }

    #[track_caller]
    pub(super) fn assert_nothing_runs(&self) {
        eventually("every process of the script ends", || self.processes().is_empty());
    }
}

/// The resources that deferd holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Holdings {
    descriptors: usize,
    threads: usize,
    children: Vec<u32>,
}

impl Holdings {
    pub(super) fn of(deferd: &Deferd) -> Self {
        let (descriptors, threads) = (deferd.descriptors(), deferd.threads());
        Self { descriptors, threads, children: deferd.children() }
    }

    /// Returns the holdings of a deferd that has run one script, so that what is created once exists.
    pub(super) fn at_rest(deferd: &Deferd, client: &mut Client) -> Self {
        client.get("/run/s-done").expect(200);
        let id = client.store("GET", "/run/s-done", b"");
        client.result(&id);
        let holdings = Self::of(deferd);
        assert!(holdings.children.is_empty(), "{holdings:?}");
        holdings
    }

    #[track_caller]
    pub(super) fn assert_restored(&self, deferd: &Deferd) {
        eventually("no more descriptors, threads and children than before", || {
            let now = Self::of(deferd);
            now.children == self.children
                && now.descriptors <= self.descriptors
                && now.threads <= self.threads
        });
    }
}

#[track_caller]
pub(super) fn assert_error(reply: &Reply, status: u16) {
    assert_eq!((reply.status, &reply.json()["errorNum"]), (status, &status.into()), "{reply:?}");
}

/// Submits a script and waits until it reports that it runs.
#[track_caller]
pub(super) fn store_running(client: &mut Client, target: &str) -> String {
    let id = client.store("GET", target, b"");
    eventually("the script runs", || {
        client.get(&format!("/_api/job/{id}")).header("x-progress") == Some("running")
    });
    id
}

#[test]
fn a_timeout_kills_the_scripts_whole_group() {
    let deferd = Deferd::with_scripts(",timeout=500ms", &[]);
    let mut client = deferd.client();
    // Not by `at_rest`: on a busy machine, a script may miss its time limit.
    client.get("/run/s-forever").expect(504);
    let before = Holdings::of(&deferd);
    for script in ["/run/s-forever", "/cgi/s-forever", "/run/s-stubborn", "/cgi/s-stubborn"] {
        let place = Place::new();
        assert_error(&client.get(&place.target(script)), 504);
        let id = client.store("GET", &place.target(script), b"");
        assert_error(&client.result(&id), 504);
        place.assert_nothing_runs();
    }
    before.assert_restored(&deferd);
}

/// The pipe to a script that reads nothing is full when its time is up.
#[test]
fn a_script_that_reads_nothing_is_killed_in_time() {
    let deferd = Deferd::with_scripts(",timeout=300ms", &[]);
    let mut client = deferd.client();
    let place = Place::new();
    let content = vec![b'x'; 1 << 20];
    let reply = client.request("POST", &place.target("/run/s-forever"), &[], &content);
    assert_error(&reply, 504);
    place.assert_nothing_runs();
}

#[test]
fn exceeding_max_output_kills_the_whole_group() {
    let deferd = Deferd::with_scripts(",max-output=100K", &[]);
    let mut client = deferd.client();
    let before = Holdings::at_rest(&deferd, &mut client);
    for script in ["/run/s-endless", "/cgi/s-endless"] {
        let place = Place::new();
        if script.starts_with("/cgi/") && !lacks(Ability::Flow) {
            let mut client = deferd.client();
            client.send_request("GET", &place.target(script), &[], b"");
            client.read_broken().expect(200);
        } else {
            assert_error(&client.get(&place.target(script)), 502);
        }
        let id = client.store("GET", &place.target(script), b"");
        assert_error(&client.result(&id), 502);
        place.assert_nothing_runs();
    }
    before.assert_restored(&deferd);
}

#[test]
fn output_of_exactly_max_output_is_allowed() {
    let deferd = Deferd::with_scripts(",max-output=100K", &["--max-output", "1"]);
    let mut client = deferd.client();
    let content = vec![b'x'; 100 << 10];
    let reply = client.request("POST", "/run/s-cat", &[], &content);
    assert!(reply.expect(200).body == content);
    let content = vec![b'x'; (100 << 10) + 1];
    assert_error(&client.request("POST", "/run/s-cat", &[], &content), 502);
}

#[test]
fn children_that_hold_the_pipes_are_killed() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let before = Holdings::at_rest(&deferd, &mut client);
    let place = Place::new();
    let target = place.target("/run/s-background");
    // They hold them for longer than a client waits.
    assert_eq!(client.get(&target).expect(200).text(), "answered\n");
    let id = client.store("GET", &target, b"");
    assert_eq!(client.result(&id).expect(200).text(), "answered\n");
    place.assert_nothing_runs();
    before.assert_restored(&deferd);
}

/// Ends a process that left its group, even if the test fails.
pub(super) struct Ended(pub u32);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-KILL", &self.0.to_string()]).status();
    }
}

#[test]
fn a_daemon_outside_the_group_lives_on() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let before = Holdings::at_rest(&deferd, &mut client);
    for is_job in [false, true] {
        let place = Place::new();
        let target = place.target("/run/s-daemon");
        let reply = if is_job {
            let id = client.store("GET", &target, b"");
            client.result(&id)
        } else {
            client.get(&target)
        };
        let pid = std::fs::read_to_string(place.sign("pid")).unwrap().trim().parse().unwrap();
        let daemon = Ended(pid);
        assert_eq!(reply.expect(200).text(), "answered\n");
        assert_eq!(group_members(daemon.0), [daemon.0], "it may live: daemons do");
        // deferd inherits it. It holds nothing of deferd: on this side, the pipes are closed.
        let with_daemon = Holdings { children: vec![daemon.0], ..before.clone() };
        with_daemon.assert_restored(&deferd);
        drop(daemon);
        before.assert_restored(&deferd);
    }
}

#[test]
fn a_cancelled_script_gets_sigterm_and_may_tidy_up() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let before = Holdings::at_rest(&deferd, &mut client);
    for script in ["/run/s-tidy", "/cgi/s-tidy"] {
        let place = Place::new();
        let id = store_running(&mut client, &place.target(script));
        let reply = client.put(&format!("/_api/job/{id}/cancel")).expect(200);
        assert_eq!(reply.text(), r#"{"result":true}"#);
        assert_eq!(client.result(&id).expect(410).text(), CANCELLED);
        assert!(place.sign("tidied").exists(), "done before it has tidied up");
        place.assert_nothing_runs();
    }
    before.assert_restored(&deferd);
}

#[test]
fn a_stubborn_cancelled_script_is_killed_after_5_s() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let before = Holdings::at_rest(&deferd, &mut client);
    let place = Place::new();
    let id = store_running(&mut client, &place.target("/run/s-stubborn"));
    let begin = Instant::now();
    client.put(&format!("/_api/job/{id}/cancel")).expect(200);
    eventually("SIGTERM arrives", || place.sign("noticed").exists());
    // A second cancellation neither shortens nor extends its time.
    client.put(&format!("/_api/job/{id}/cancel")).expect(200);
    assert_eq!(client.result(&id).expect(410).text(), CANCELLED);
    assert!(begin.elapsed() >= Duration::from_millis(4_900), "{:?}", begin.elapsed());
    place.assert_nothing_runs();
    before.assert_restored(&deferd);
}

/// A running script is not stopped when its record is forgotten, and ends like any other.
#[test]
fn a_forgotten_script_runs_on_to_its_end() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let before = Holdings::at_rest(&deferd, &mut client);
    let place = Place::new();
    let id = client.store("POST", &place.target("/run/s-say"), b"running\n");
    eventually("the script runs", || deferd.log().contains("running"));
    client.delete(&format!("/_api/job/{id}")).expect(200);
    assert!(!place.processes().is_empty());
    std::fs::write(place.sign("go"), "").unwrap();
    place.assert_nothing_runs();
    before.assert_restored(&deferd);
}

/// Starts a job and a synchronous request with this script, and waits until both run.
pub(super) fn run_both(deferd: &Deferd, place: &Place, script: &str) -> Client {
    let mut client = deferd.client();
    let mut waiting = deferd.client();
    waiting.send_request("GET", &place.target(script), &[], b"");
    store_running(&mut client, &place.target(script));
    // Each writes a line to stderr when everything is started.
    eventually("both run", || deferd.log().matches("stderr: running").count() == 2);
    waiting
}

#[test]
fn after_its_end_deferd_leaves_no_process_of_a_script() {
    let mut deferd = Deferd::with_scripts("", &["--grace", "100ms"]);
    let place = Place::new();
    let mut waiting = run_both(&deferd, &place, "/run/s-tidy");
    deferd.signal("-TERM");
    // A client that waits for an answer gets one.
    assert_eq!(waiting.try_read("GET").unwrap().expect(410).text(), CANCELLED);
    assert!(deferd.wait().success());
    assert!(place.sign("tidied").exists());
    place.assert_nothing_runs();
}

#[test]
fn a_second_signal_kills_even_what_ignores_the_first() {
    let mut deferd = Deferd::with_scripts("", &["--grace", "10m"]);
    let place = Place::new();
    let _waiting = run_both(&deferd, &place, "/run/s-stubborn");
    deferd.signal("-TERM");
    eventually("it begins to end", || deferd.log().contains("ending"));
    assert!(!place.processes().is_empty(), "the grace is for them");
    deferd.signal("-TERM");
    deferd.wait();
    place.assert_nothing_runs();
    assert!(!place.sign("noticed").exists(), "at once means without SIGTERM");
}

#[test]
fn two_hundred_jobs_leave_no_descriptor_thread_or_process() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let before = Holdings::at_rest(&deferd, &mut client);
    let place = Place::new();
    let unread = vec![b'x'; 100_000];
    let ids: Vec<String> = (0..200)
        .map(|n| match n % 5 {
            0 => client.store("POST", "/run/s-cat", b"content"),
            1 => client.store("GET", "/run/s-exit?3", b""),
            2 => client.store("POST", "/cgi/s-done", &unread),
            3 => client.store("GET", "/cgi/s-where", b""),
            _ => client.store("GET", &place.target("/run/s-background"), b""),
        })
        .collect();
    for (n, id) in ids.iter().enumerate() {
        let status = [200, 500, 502, 200, 200][n % 5];
        client.result(id).expect(status);
    }
    before.assert_restored(&deferd);
    place.assert_nothing_runs();
}

#[test]
fn scripts_keep_the_descriptor_limit_of_the_start() {
    let dir = TempDir::new();
    let script = dir.join("limit");
    // The limit is set directly after the start.
    let text =
        "#!/bin/sh\nuntil [ $(ulimit -Sn) = 150 ]; do sleep 0.02; done\nulimit -Sn\nulimit -Hn\n";
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
    let mut shell = Command::new("sh");
    let deferd = env!("CARGO_BIN_EXE_deferd");
    shell.args(["-c", "ulimit -Sn 150; ulimit -Hn 1500; exec \"$0\" \"$@\"", deferd]);
    let route = format!("/own/=run:{},timeout=60s", dir.0.display());
    let deferd = Deferd::start_by(shell, &["--route", &route, "--max-connections", "100"]);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", deferd.pid())).unwrap();
    let limit = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    // Four for each connection, and 1024.
    assert_eq!(limit.split_whitespace().nth(3), Some("1424"), "{limit}");
    let mut client = deferd.client();
    assert_eq!(client.get("/own/limit").expect(200).text(), "150\n1500\n");
    let id = client.store("GET", "/own/limit", b"");
    assert_eq!(client.result(&id).expect(200).text(), "150\n1500\n");
    client.get("/_admin/time?end").expect(200);
    let log = deferd.log_with("/_admin/time?end");
    assert!(!log.contains("WARN"), "{log}");
}
