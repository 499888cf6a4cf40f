//! A system whose descriptors or threads are used up.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Pid, Resource, Rlimit, geteuid, getrlimit, prlimit};

use super::unharmed;
use super::unharmed::{connect, is_served};
use crate::support::upstream::{Then, Upstream};
use crate::support::{Client, Deferd, TempDir, eventually, fixtures};

/// A user that runs nothing else: the number of a user's threads is limited for everyone except root.
const NOBODY: u32 = 61_532;

/// Starts a deferd with room for 64 descriptors.
fn short_of_descriptors() -> Deferd {
    with_descriptors("64")
}

/// Starts a deferd with room for this many descriptors, a limit that it cannot raise.
fn with_descriptors(limit: &str) -> Deferd {
    let mut shell = Command::new("sh");
    let script = format!("ulimit -n {limit} && exec \"$0\" \"$@\"");
    shell.args(["-c", &script, env!("CARGO_BIN_EXE_deferd")]);
    let route = format!("/run/=run:{}", fixtures().display());
    Deferd::start_by(shell, &["--workers", "2", "--route", &route])
}

/// Leaves a deferd only `spare` descriptors, until dropped.
struct Squeezed {
    pid: Pid,
    before: Rlimit,
}

impl Squeezed {
    fn to(deferd: &Deferd, spare: u64) -> Self {
        let pid = Pid::from_raw(deferd.pid().try_into().unwrap()).unwrap();
        let is_open = |n: &u64| std::fs::exists(format!("/proc/{}/fd/{n}", deferd.pid())).unwrap();
        let taken = (0..).find(|n| !is_open(n)).unwrap();
        let limit = |current| prlimit(Some(pid), Resource::Nofile, current).unwrap();
        // Setting a limit returns the old one. The hard limit is that of this process.
        let maximum = getrlimit(Resource::Nofile).maximum;
        let before = limit(Rlimit { current: Some(taken + spare), maximum });
        Self { pid, before }
    }
}

impl Drop for Squeezed {
    fn drop(&mut self) {
        let _ = prlimit(Some(self.pid), Resource::Nofile, self.before);
    }
}

#[track_caller]
fn assert_delayed(deferd: &Deferd, id: &str) {
    eventually("it is put off", || {
        deferd.log().contains(&format!("job={id} cannot start, next attempt in 1.0s (1 of 5)"))
    });
}

/// Asserts that a synchronous request is refused at once, so that its client can try again.
#[track_caller]
fn assert_refused(client: &mut Client, target: &str) {
    let reply = client.get(target).expect_error(503, 503);
    assert_eq!(reply.header("retry-after"), Some("1"), "{reply:?}");
}

/// A `202` is a promise. Whatever a script or a call first finds missing, nothing of it has begun.
#[test]
fn jobs_short_of_descriptors_run_later() {
    let upstream = Upstream::start(|_, stream| {
        let _ = stream
            .write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok");
        Then::Close
    });
    let up = upstream.route("");
    let run = format!("/run/=run:{}", fixtures().display());
    let deferd = Deferd::start(&["--route", &run, "--route", &up]);
    unharmed(&deferd, || {
        let mut client = deferd.client();
        client.get("/_api/version").expect(200);
        for (target, spares) in [("/run/h-mark", &[0, 3][..]), ("/up/", &[0, 1])] {
            for &spare in spares {
                let dir = TempDir::new();
                let mark = dir.join("mark");
                let target = format!("{target}?{}", mark.display());
                let squeezed = Squeezed::to(&deferd, spare);
                let id = client.store("POST", &target, b"x");
                assert_delayed(&deferd, &id);
                assert_refused(&mut client, &target);
                let progress = client.get(&format!("/_api/job/{id}")).expect(204);
                assert!(progress.header("x-progress").unwrap().starts_with("cannot start, next"));
                assert!(!mark.exists());
                drop(squeezed);
                let reply = client.result(&id).expect(200);
                assert_eq!(reply.header("x-attempts"), None, "that is for routes with retry");
                assert_eq!(mark.exists(), target.starts_with("/run/"));
            }
        }
        assert_eq!(upstream.received().len(), 2);
    });
}

#[test]
fn jobs_behind_a_crowd_of_connections_run_later() {
    let deferd = short_of_descriptors();
    let mark = deferd.dir.join("mark");
    unharmed(&deferd, || {
        let mut first = deferd.client();
        first.get("/_api/version").expect(200);
        let crowd: Vec<_> = (0..100).map(|_| connect(deferd.address)).collect();
        eventually("it is told", || deferd.log().contains("cannot accept connections"));
        let id = first.store("GET", &format!("/run/h-mark?{}", mark.display()), b"");
        assert_delayed(&deferd, &id);
        drop(crowd);
        first.result(&id).expect(200);
        assert!(mark.exists());
    });
}

#[test]
fn a_crowd_leaves_a_reserve_for_jobs() {
    let deferd = with_descriptors("128");
    let log = deferd.log_with("WARN");
    let warning = log.lines().find(|line| line.contains("WARN")).expect("a warning");
    for part in ["128 descriptors", "--max-connections 512", "only 48", "LimitNOFILE", "3072"] {
        assert!(warning.contains(part), "{part}: {warning}");
    }
    unharmed(&deferd, || {
        let mut first = deferd.client();
        first.get("/_api/version").expect(200);
        let crowd: Vec<_> = (0..60).map(|_| connect(deferd.address)).collect();
        let mut refused = deferd.client();
        let reply = refused.try_read("GET").expect("an answer").expect_error(503, 503);
        assert_eq!(reply.header("retry-after"), Some("1"));
        let dir = TempDir::new();
        let ids = ["a", "b", "c", "d"].map(|name| {
            first.store("GET", &format!("/run/h-mark?{}", dir.join(name).display()), b"")
        });
        for id in ids {
            first.result(&id).expect(200);
        }
        assert!(!deferd.log().contains("cannot start, next"), "{}", deferd.log());
        drop(crowd);
    });
}

/// A row of section 10: the accept loop ended for ever.
#[test]
fn running_out_of_descriptors_passes() {
    let deferd = short_of_descriptors();
    let mark = deferd.dir.join("mark");
    let target = format!("/run/h-mark?{}", mark.display());
    unharmed(&deferd, || {
        for _ in 0..2 {
            let mut first = deferd.client();
            first.get("/_api/version").expect(200);
            let crowd: Vec<_> = (0..100).map(|_| connect(deferd.address)).collect();
            // Connections for which there is no descriptor wait; no client is turned away.
            eventually("descriptors run out", || !is_served(&deferd));
            eventually("it is told", || deferd.log().contains("cannot accept connections"));
            // A client that is already connected is served; a script that cannot be started is an error.
            first.get("/_api/version").expect(200);
            let reply = first.get(&target);
            assert!(reply.status >= 500, "{reply:?}");
            assert!(!mark.exists());
            drop(crowd);
            eventually("others are served again", || is_served(&deferd));
            eventually("scripts run again", || first.get(&target).status == 200);
            std::fs::remove_file(&mark).unwrap();
        }
    });
}

/// Connections that wait in the backlog while there are no descriptors are served later.
#[test]
fn connections_without_descriptors_are_served_later() {
    let deferd = short_of_descriptors();
    unharmed(&deferd, || {
        let crowd: Vec<_> = (0..100).map(|_| connect(deferd.address)).collect();
        eventually("it is told", || deferd.log().contains("cannot accept connections"));
        let mut late = deferd.client();
        late.send_request("GET", "/_api/version", &[], b"");
        let request = b"GET /_api/version HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        for mut stream in crowd {
            stream.write_all(request).unwrap();
        }
        late.try_read("GET").expect("an answer").expect(200);
    });
}

/// A deferd whose user may be denied threads.
struct Denied {
    deferd: Deferd,
    _binary: TempDir,
}

impl Denied {
    fn start() -> Self {
        // That user may not be able to reach the directory of the binary. A program makes the copy: if it were open
        // for writing here, a child of another test could hold it open while it runs.
        let directory = TempDir::new();
        let binary = directory.join("deferd");
        let mut copy = Command::new("cp");
        copy.arg(env!("CARGO_BIN_EXE_deferd")).arg(fixtures().join("s-done")).arg(&directory.0);
        assert!(copy.status().unwrap().success());
        let route = format!("/own/=run:{}", directory.0.display());
        let mut command = Command::new(binary);
        if geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        let arguments = ["--workers", "2", "--route", &route];
        Self { deferd: Deferd::start_by(command, &arguments), _binary: directory }
    }

    /// Sets how many threads the user may have; as that user, because others may not.
    fn limit_threads(&self, limit: &str) {
        let mut command = Command::new("prlimit");
        command.args(["--pid", &self.deferd.pid().to_string(), &format!("--nproc={limit}:")]);
        if geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        assert!(command.status().expect("prlimit").success());
    }
}

/// If a thread cannot be started, it costs its connection, which is logged, and nothing else.
#[test]
fn running_out_of_threads_passes() {
    let denied = Denied::start();
    let deferd = &denied.deferd;
    unharmed(deferd, || {
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", deferd.pid())).unwrap();
        let limit = limits.lines().find(|line| line.starts_with("Max processes")).unwrap();
        let limit = limit.split_whitespace().nth(2).unwrap().to_owned();
        for _ in 0..2 {
            let mut first = deferd.client();
            first.get("/_api/version").expect(200);
            denied.limit_threads("1");
            for _ in 0..50 {
                deferd.client().try_read("GET").expect("an answer").expect_error(503, 503);
            }
            // The workers already exist.
            let id = first.store("GET", "/_api/version", b"");
            first.result(&id).expect(200);
            denied.limit_threads(&limit);
            eventually("others are served again", || is_served(deferd));
        }
        deferd.log_with("no thread for a connection");
    });
}

#[test]
fn jobs_short_of_processes_run_later() {
    let denied = Denied::start();
    let deferd = &denied.deferd;
    unharmed(deferd, || {
        let mut client = deferd.client();
        client.get("/own/s-done").expect(200);
        denied.limit_threads("1");
        let id = client.store("GET", "/own/s-done", b"");
        assert_delayed(deferd, &id);
        assert_refused(&mut client, "/own/s-done");
        denied.limit_threads("10000");
        client.result(&id).expect(200);
    });
}
