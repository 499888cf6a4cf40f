//! A system that has nothing more to give: descriptors, threads.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::geteuid;

use crate::support::{Deferd, TempDir, eventually, fixtures};
use crate::unharmed;
use crate::unharmed::{connect, is_served};

/// A user that runs nothing else: the number of a user's threads is limited for all but root.
const NOBODY: u32 = 61_532;

/// A deferd with room for 64 descriptors.
fn short_of_descriptors() -> Deferd {
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -n 64 && exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_deferd")]);
    Deferd::start_by(shell, &["--route", &format!("/run/=run:{}", fixtures().display())])
}

/// A row of section 10: the accept loop ended for good.
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
            // Those whom there is no descriptor for wait; nobody is turned away.
            eventually("descriptors run out", || !is_served(&deferd));
            eventually("it is told", || deferd.log().contains("cannot accept connections"));
            // Who is connected already is served; a script that cannot be started is an error.
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

/// Connections that wait in the backlog while descriptors are out are served when their time comes.
#[test]
fn who_waits_for_a_descriptor_is_served_later() {
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
        // That user may not be able to reach the directory where the binary was built.
        let directory = TempDir::new();
        let binary = directory.join("deferd");
        std::fs::copy(env!("CARGO_BIN_EXE_deferd"), &binary).unwrap();
        let mut command = Command::new(binary);
        if geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        Self { deferd: Deferd::start_by(command, &["--workers", "2"]), _binary: directory }
    }

    /// Sets how many threads the user may have; as that user, since others may not.
    fn limit_threads(&self, limit: &str) {
        let mut command = Command::new("prlimit");
        command.args(["--pid", &self.deferd.pid().to_string(), &format!("--nproc={limit}:")]);
        if geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        assert!(command.status().expect("prlimit").success());
    }
}

/// A thread that cannot be had costs its connection, which is told, and nothing else.
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
            // Workers are there already.
            let id = first.store("GET", "/_api/version", b"");
            first.result(&id).expect(200);
            denied.limit_threads(&limit);
            eventually("others are served again", || is_served(deferd));
        }
        assert!(deferd.log().contains("no thread for a connection"));
    });
}
