//! A real disk that is full, with a real deferd: a small file system in memory.
//!
//! Mounting it needs root. If it cannot be mounted, the test says so on stderr, and passes.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::support::{Client, Deferd, Ended, Reply, TempDir, eventually, not_tested, run_deferd};

/// A small file system, unmounted with the test.
struct SmallDisk {
    dir: TempDir,
}

impl SmallDisk {
    /// Mounts one of this size; `None` if that is impossible.
    fn mount(size: &str) -> Option<Self> {
        let dir = TempDir::new();
        let options = format!("size={size},mode=700");
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options.as_str(), "deferd-test"])
            .arg(&dir.0)
            .stderr(Stdio::null())
            .status();
        if mount.is_ok_and(|status| status.success()) {
            return Some(Self { dir });
        }
        not_tested("a full disk, because none can be mounted here (that needs root)");
        None
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn remount(&self, options: &str) {
        let option = format!("remount,{options}");
        let mount = Command::new("mount").args(["-o", option.as_str()]).arg(&self.dir.0).status();
        assert!(mount.unwrap().success(), "{options}");
    }

    fn start(&self) -> Deferd {
        let data = self.data();
        let data = data.to_str().unwrap();
        Deferd::with_scripts(",rerun=yes", &["--data", data, "--max-stored", "1G", "--queue", "8"])
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.dir.0).status();
    }
}

/// Returns the content of job `n`, which is also its result.
fn content(n: usize) -> Vec<u8> {
    format!("job {n} ").bytes().cycle().take(100_000).collect()
}

/// Jobs that were accepted, by number and id.
type Accepted = Vec<(usize, String)>;

/// Submits a job, on a connection of its own: if it is refused, its content is not read.
fn submit(deferd: &Deferd, n: usize) -> Reply {
    let fields = [("x-arango-async", "store")];
    deferd.client().request("POST", "/run/s-cat", &fields, &content(n))
}

/// Submits jobs until the disk is full.
fn fill(deferd: &Deferd, accepted: &mut Accepted) {
    let first = accepted.len();
    eventually("the disk is full", || {
        let n = accepted.len();
        let reply = submit(deferd, n);
        match reply.status {
            202 => accepted.push((n, reply.id().unwrap().to_owned())),
            // The queue is full for a moment: the disk is slower than the client.
            503 if reply.json()["errorNum"] == 21003 => {}
            _ => {
                reply.expect_error(503, 503);
                return true;
            }
        }
        false
    });
    assert!(accepted.len() > first + 3, "only {} jobs fit", accepted.len() - first);
}

/// Asserts that every job exists, and is done with its own result or will be.
fn assert_there(client: &mut Client, accepted: &Accepted) {
    for (n, id) in accepted {
        let reply = client.get(&format!("/_api/job/{id}/result"));
        match reply.status {
            200 => assert!(reply.body == content(*n), "the result of job {n}"),
            // It cannot be read while the disk is retried.
            204 | 503 => {}
            status => panic!("job {n} ({id}): {status}"),
        }
    }
    let readable = |(n, id): &(usize, String), client: &mut Client| {
        let reply = client.get(&format!("/_api/job/{id}/result"));
        reply.status == 200 && reply.body == content(*n)
    };
    eventually("what is done can be read", || {
        let done: BTreeSet<String> = client.list("done?count=1000").into_iter().collect();
        let mut done = accepted.iter().filter(|(_, id)| done.contains(id));
        done.all(|job| readable(job, client))
    });
}

/// Deletes some jobs that are done: each deletion is answered, now or after a while.
fn delete_done(client: &mut Client, accepted: &mut Accepted, count: usize) {
    for id in client.list(&format!("done?count={count}")) {
        eventually("it is deleted", || {
            match client.delete(&format!("/_api/job/{id}")).status {
                200 => true,
                // It is deleted, but that was not yet durable.
                404 => true,
                status => {
                    assert_eq!(status, 503);
                    false
                }
            }
        });
        accepted.retain(|(_, other)| *other != id);
    }
}

/// Waits until jobs are accepted again.
fn assert_recovers(deferd: &Deferd, accepted: &mut Accepted) {
    let n = 1000 + accepted.len();
    eventually("jobs are accepted again", || {
        let reply = submit(deferd, n);
        let is_accepted = reply.status == 202;
        accepted.extend(is_accepted.then(|| (n, reply.id().unwrap().to_owned())));
        is_accepted
    });
}

fn collect_all(client: &mut Client, accepted: Accepted) {
    for (n, id) in accepted {
        let mut reply = None;
        eventually("the result is there", || {
            let answer = client.put(&format!("/_api/job/{id}"));
            let is_there = !matches!(answer.status, 204 | 503);
            reply = Some(answer);
            is_there
        });
        let reply = reply.unwrap().expect(200);
        assert!(reply.id() == Some(&id) && reply.body == content(n), "the result of job {n}");
    }
    assert_eq!(client.list("done"), [""; 0]);
}

#[test]
fn a_full_disk_loses_no_job_and_permits_deletion() {
    let Some(disk) = SmallDisk::mount("12m") else { return };
    let deferd = disk.start();
    let mut client = deferd.client();
    let mut accepted = Accepted::new();
    fill(&deferd, &mut accepted);
    assert_there(&mut client, &accepted);
    let log = deferd.log_with("the store on disk fails");
    let told = log.lines().filter(|line| line.contains("the store on disk fails")).count();
    assert_eq!(told, 1, "{log}");
    // Killed, and started on the disk that is still full.
    drop((client, deferd));
    fs::write(disk.dir.join("ballast"), vec![0; 64 << 20]).unwrap_err();
    let mut deferd = disk.start();
    let mut client = deferd.client();
    assert_there(&mut client, &accepted);
    delete_done(&mut client, &mut accepted, 12);
    assert_recovers(&deferd, &mut accepted);
    // Ended in order, with the disk full to the last byte, and started again.
    fill(&deferd, &mut accepted);
    drop(client);
    deferd.signal("-TERM");
    deferd.signal("-TERM");
    deferd.wait();
    drop(deferd);
    fs::write(disk.dir.join("more"), vec![0; 64 << 20]).unwrap_err();
    let deferd = disk.start();
    let mut client = deferd.client();
    assert_there(&mut client, &accepted);
    delete_done(&mut client, &mut accepted, 12);
    assert_recovers(&deferd, &mut accepted);
    collect_all(&mut client, accepted);
}

#[test]
fn a_full_disk_recovers_when_room_is_made() {
    let Some(disk) = SmallDisk::mount("24m") else { return };
    let ballast = disk.dir.join("ballast");
    fs::write(&ballast, vec![0; 16 << 20]).unwrap();
    let deferd = disk.start();
    let mut client = deferd.client();
    let mut accepted = Accepted::new();
    fill(&deferd, &mut accepted);
    fs::remove_file(ballast).unwrap();
    assert_recovers(&deferd, &mut accepted);
    collect_all(&mut client, accepted);
}

#[test]
fn a_read_only_disk_is_refused_and_unchanged() {
    let Some(disk) = SmallDisk::mount("12m") else { return };
    let deferd = disk.start();
    let mut client = deferd.client();
    let mut accepted = Accepted::new();
    assert_recovers(&deferd, &mut accepted);
    client.wait_done(&accepted[0].1);
    drop((client, deferd));
    let file = disk.data().join("jobs.redb");
    let before = fs::read(&file).unwrap();
    disk.remount("ro");
    let data = disk.data().display().to_string();
    let Ended { code, stderr: said, .. } =
        run_deferd(&["--listen", "127.0.0.1:0", "--data", &data]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains(disk.data().to_str().unwrap()) && said.contains("ead-only"), "{said}");
    assert!(fs::read(&file).unwrap() == before);
    disk.remount("rw");
    let deferd = disk.start();
    collect_all(&mut deferd.client(), accepted);
}

#[test]
fn a_file_removed_behind_its_back_takes_no_more_jobs() {
    let dir = TempDir::new();
    let data = dir.join("data");
    let deferd = Deferd::with_scripts("", &["--data", data.to_str().unwrap()]);
    let mut client = deferd.client();
    let mut accepted = Accepted::new();
    assert_recovers(&deferd, &mut accepted);
    client.wait_done(&accepted[0].1);
    fs::remove_file(data.join("jobs.redb")).unwrap();
    let fields = [("x-arango-async", "store")];
    client.request("POST", "/run/s-cat", &fields, b"lost").expect_error(503, 503);
    eventually("the log says why", || deferd.log().contains("the file was removed"));
    // What can be read still is.
    assert_there(&mut client, &accepted);
}

#[test]
fn relaxed_jobs_lost_at_the_end_are_logged() {
    let dir = TempDir::new();
    let data = dir.join("data");
    let relaxed = ["--data", data.to_str().unwrap(), "--durability", "relaxed"];
    let mut deferd = Deferd::with_scripts("", &relaxed);
    let mut accepted = Accepted::new();
    assert_recovers(&deferd, &mut accepted);
    deferd.client().wait_done(&accepted[0].1);
    fs::remove_file(data.join("jobs.redb")).unwrap();
    let lost = submit(&deferd, 0).expect(202);
    deferd.signal("-TERM");
    deferd.signal("-TERM");
    deferd.wait();
    deferd.log_with(&format!("lost with the disk store: {}\n", lost.id().unwrap()));
}
