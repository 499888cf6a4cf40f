//! What happens, at the next start, to jobs that were not done when deferd was killed.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::{AccessGuard, Database, ReadableTable, TableDefinition};

use crate::strict::unharmed::highest;
use crate::support::hold::Hold;
use crate::support::upstream::{Then, Upstream};
use crate::support::{Client, Deferd, Ended, TempDir, eventually, run_deferd};

/// A directory of jobs, and a file to which they append.
struct Trial {
    dir: TempDir,
}

impl Trial {
    fn new() -> Self {
        Self { dir: TempDir::new() }
    }

    fn start(&self, route_options: &str, arguments: &[&str]) -> Deferd {
        let data = self.data();
        let mut all = vec!["--workers", "1", "--data", &data];
        all.extend_from_slice(arguments);
        Deferd::with_scripts(route_options, &all)
    }

    fn data(&self) -> String {
        self.dir.join("data").to_str().unwrap().to_owned()
    }

    fn file(&self) -> PathBuf {
        self.dir.join("file")
    }

    fn appended(&self) -> String {
        std::fs::read_to_string(self.file()).unwrap_or_default()
    }

    /// Returns the target that appends its content to the file.
    fn append(&self) -> String {
        format!("/run/c-append?{}", self.file().display())
    }

    fn submit_appends(&self, client: &mut Client, count: usize) -> Vec<String> {
        let one = |n| client.store("POST", &self.append(), format!("{n}\n").as_bytes());
        (0..count).map(one).collect()
    }
}

#[test]
fn more_jobs_than_the_queue_holds_run_in_their_order() {
    const JOBS: usize = 40;
    let (trial, hold) = (Trial::new(), Hold::new());
    let deferd = trial.start("", &["--queue", "100"]);
    let mut client = deferd.client();
    let running = hold.start(&mut client);
    let ids = trial.submit_appends(&mut client, JOBS);
    drop((client, deferd));
    assert_eq!(trial.appended(), "");
    let deferd = trial.start("", &["--queue", "3"]);
    let mut client = deferd.client();
    ids.iter().for_each(|id| drop(client.result(id).expect(200)));
    let expected: String = (0..JOBS).map(|n| format!("{n}\n")).collect();
    assert_eq!(trial.appended(), expected);
    // It ran, and its route does not permit a second run.
    let interrupted = client.result(&running).expect_job_error(500, 500);
    assert_eq!(interrupted.json()["errorMessage"], "interrupted");
    // And the queue takes new jobs.
    let id = client.store("POST", &trial.append(), b"new\n");
    client.result(&id).expect(200);
}

#[test]
fn a_job_runs_again_if_its_route_says_so() {
    let (trial, hold) = (Trial::new(), Hold::new());
    let deferd = trial.start(",rerun=yes", &[]);
    let running = hold.start(&mut deferd.client());
    drop(deferd);
    // The script that was left behind ends, and records it; the next one records that it has begun.
    hold.release();
    hold.wait_for("ended");
    hold.forget();
    let deferd = trial.start(",rerun=yes", &[]);
    hold.wait_for("started");
    let mut client = deferd.client();
    client.get(&format!("/_api/job/{running}")).expect(204);
    hold.release();
    assert_eq!(client.result(&running).expect(200).text(), "let go\n");
}

#[test]
fn a_job_that_kills_its_host_begins_three_times() {
    for durability in ["commit", "relaxed"] {
        let trial = Trial::new();
        let start = || trial.start(",rerun=yes", &["--durability", durability]);
        let mut deferd = start();
        let target = format!("/run/c-poison?{}", trial.file().display());
        // The end may cut off the answer.
        let request = format!(
            "POST {target} HTTP/1.1\r\nhost: x\r\nx-arango-async: store\r\ncontent-length: 6\r\n\r\nbegun\n"
        );
        deferd.client().send(request.as_bytes());
        for _ in 0..2 {
            assert!(!deferd.wait().success());
            deferd = start();
        }
        assert!(!deferd.wait().success());
        let deferd = start();
        let mut client = deferd.client();
        let mut done = Vec::new();
        eventually("it is done", || {
            done = client.list("done");
            !done.is_empty()
        });
        let interrupted = client.result(&done[0]).expect_job_error(500, 500);
        assert_eq!(interrupted.json()["errorMessage"], "interrupted");
        assert_eq!(trial.appended(), "begun\n".repeat(3), "{durability}");
    }
}

#[test]
fn a_delayed_job_survives_an_end_and_a_kill() {
    let dir = TempDir::new();
    let data = dir.join("data").display().to_string();
    let is_busy = Arc::new(AtomicBool::new(true));
    let busy = Arc::clone(&is_busy);
    let upstream = Upstream::start(move |_, stream| {
        let status = if busy.load(Ordering::SeqCst) { "503 Busy" } else { "200 OK" };
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
        let _ = stream.write_all(answer.as_bytes());
        Then::Keep
    });
    let start = |backoff: &str| {
        let route = upstream.route(&format!(",retry=1,backoff={backoff}"));
        Deferd::start(&["--data", &data, "--route", &route])
    };
    let mut deferd = start("1h");
    let id = deferd.client().store("GET", "/up/", b"");
    for end in ["-TERM", "-KILL", "-TERM"] {
        eventually("it waits for its next attempt", || {
            deferd.log().contains(&format!("job={id} attempt 1 ended"))
        });
        // A later submission is durable, so everything before it is as well.
        deferd.client().store("GET", "/_admin/time", b"");
        deferd.signal(end);
        deferd.wait();
        deferd = start("1h");
        deferd.client().get(&format!("/_api/job/{id}")).expect(204);
    }
    eventually("it waits for its next attempt", || {
        deferd.log().contains(&format!("job={id} attempt 1 ended"))
    });
    deferd.signal("-TERM");
    deferd.wait();
    is_busy.store(false, Ordering::SeqCst);
    deferd = start("1h");
    deferd.client().result(&id).expect(200);
}

/// Removes from all records of jobs what older versions did not write.
fn make_old(trial: &Trial) {
    let jobs = TableDefinition::<&[u8], &[u8]>::new("jobs");
    let database = Database::create(trial.dir.join("data/jobs.redb")).unwrap();
    let write = database.begin_write().unwrap();
    {
        let mut table = write.open_table(jobs).unwrap();
        let read = |row: (AccessGuard<&[u8]>, AccessGuard<&[u8]>)| {
            (row.0.value().to_vec(), String::from_utf8(row.1.value().to_vec()).unwrap())
        };
        let rows: Vec<_> = table.iter().unwrap().map(|row| read(row.unwrap())).collect();
        for (id, record) in rows {
            let is_old = |line: &&str| {
                !["status: ", "exit: ", "signal: "].iter().any(|name| line.starts_with(name))
            };
            let old: String = record.split_inclusive('\n').filter(is_old).collect();
            assert!(old.len() < record.len(), "{record}");
            table.insert(&*id, old.as_bytes()).unwrap();
        }
    }
    write.commit().unwrap();
}

#[test]
fn status_tells_the_ending_after_restart_and_upgrade() {
    let trial = Trial::new();
    let mut deferd = trial.start("", &[]);
    let mut client = deferd.client();
    let targets = ["/run/s-exit?3", "/run/s-signal?KILL", "/cgi/c-status?404"];
    let ids = targets.map(|target| client.store("GET", target, b""));
    ids.iter().for_each(|id| client.wait_done(id));
    drop(client);
    for restart in ["as it is", "as an older version wrote it"] {
        deferd.signal("-TERM");
        deferd.wait();
        if restart != "as it is" {
            make_old(&trial);
        }
        deferd = trial.start("", &[]);
        let mut client = deferd.client();
        for (id, expected) in ids.iter().zip([
            (Some("500"), Some("3"), None),
            (Some("500"), None, Some("9")),
            (Some("404"), None, None),
        ]) {
            let reply = client.get(&format!("/_api/job/{id}")).expect(200);
            let [status, code, signal] =
                ["asyncresult", "x-exit-code", "x-exit-signal"].map(|name| reply.header(name));
            assert_eq!((status, code, signal), expected, "{restart}");
        }
    }
}

#[test]
fn an_orderly_end_leaves_what_runs_as_a_crash_does() {
    for (options, status) in [("", 500), (",rerun=yes", 200)] {
        let (trial, hold) = (Trial::new(), Hold::deaf());
        let mut deferd = trial.start(options, &["--grace", "100ms"]);
        let mut client = deferd.client();
        let running = hold.start(&mut client);
        let waiting = client.store("POST", &trial.append(), b"waited\n");
        deferd.signal("-TERM");
        hold.wait_for("term");
        hold.release();
        assert_eq!(deferd.wait().code(), Some(0));
        hold.forget();
        let deferd = trial.start(options, &[]);
        let mut client = deferd.client();
        if status == 200 {
            hold.wait_for("started");
            hold.release();
        }
        let result = client.result(&running).expect(status);
        assert_eq!(result.text().contains("interrupted"), status == 500, "{result:?}");
        client.result(&waiting).expect(200);
        assert_eq!(trial.appended(), "waited\n");
    }
}

#[test]
fn a_cancelled_job_stays_cancelled_at_the_shutdown() {
    let (trial, hold) = (Trial::new(), Hold::deaf());
    let mut deferd = trial.start(",rerun=yes", &["--grace", "100ms"]);
    let mut client = deferd.client();
    let running = hold.start(&mut client);
    client.put(&format!("/_api/job/{running}/cancel")).expect(200);
    hold.wait_for("term");
    deferd.signal("-TERM");
    eventually("the end has begun", || deferd.log().contains("ending: "));
    hold.release();
    assert_eq!(deferd.wait().code(), Some(0));
    let deferd = trial.start(",rerun=yes", &[]);
    deferd.client().result(&running).expect_job_error(410, 21);
}

#[test]
fn the_result_of_a_job_names_its_missing_route() {
    let (trial, hold) = (Trial::new(), Hold::new());
    let deferd = trial.start(",rerun=yes", &[]);
    let mut client = deferd.client();
    let running = hold.start(&mut client);
    let queued = trial.submit_appends(&mut client, 2);
    drop((client, deferd));
    let deferd = Deferd::start(&["--data", &trial.data()]);
    let mut client = deferd.client();
    for id in queued.iter().chain([&running]) {
        client.result(id).expect_job_error(404, 404);
    }
    assert_eq!(trial.appended(), "");
}

#[test]
fn an_unwanted_job_runs_unlisted_after_a_restart() {
    let (trial, hold) = (Trial::new(), Hold::new());
    let deferd = trial.start("", &[]);
    let mut client = deferd.client();
    let running = hold.start(&mut client);
    let fire = [("x-arango-async", "true")];
    client.request("POST", &trial.append(), &fire, b"fired\n").expect(202);
    let forgotten = client.store("POST", &trial.append(), b"forgotten\n");
    client.delete(&format!("/_api/job/{forgotten}")).expect(200);
    drop((client, deferd));
    let deferd = trial.start("", &[]);
    let mut client = deferd.client();
    eventually("both have run", || trial.appended() == "fired\nforgotten\n");
    client.get(&format!("/_api/job/{forgotten}")).expect(404);
    client.wait_done(&running);
    eventually("nothing is pending", || client.list("pending").is_empty());
    assert_eq!(client.list("done"), [running]);
    // It does not run a second time either.
    drop((client, deferd));
    let deferd = trial.start("", &[]);
    let mut client = deferd.client();
    let last = client.store("POST", &trial.append(), b"last\n");
    client.result(&last).expect(200);
    assert_eq!(trial.appended(), "fired\nforgotten\nlast\n");
}

#[test]
fn content_larger_than_memory_outlives_a_kill() {
    const SIZE: usize = 12 << 20;
    let (trial, hold) = (Trial::new(), Hold::new());
    let sizes = ["--max-memory", "8M", "--max-body", "16M", "--max-output", "16M"];
    let deferd = trial.start("", &sizes);
    let mut client = deferd.client();
    let result = client.store("GET", &format!("/run/c-zeros?{SIZE}"), b"");
    client.wait_done(&result);
    hold.start(&mut client);
    let large = client.store("POST", "/run/s-cat", &vec![b'x'; SIZE]);
    let small = client.store("POST", &trial.append(), b"small\n");
    drop((client, deferd));
    // Files that no record names, as a kill leaves them, and a file of another program.
    let folder = Path::new(&trial.data()).join("content");
    let orphan = folder.join("0123456789abcdef".repeat(2));
    fs::write(&orphan, b"half of").unwrap();
    fs::write(folder.join("notes"), b"mine").unwrap();
    let deferd = trial.start("", &sizes);
    let mut client = deferd.client();
    client.result(&small).expect(200);
    assert!(client.result(&large).expect(200).body == vec![b'x'; SIZE]);
    assert_eq!(client.result(&result).expect(200).body.len(), SIZE);
    eventually("only the other program's file is left", || {
        fs::read_dir(&folder).unwrap().count() == 1
    });
    let highest = highest(&deferd);
    assert!(highest < 24 << 10, "{highest} KiB were resident");
}

#[test]
fn a_job_with_a_missing_file_reports_that() {
    let (trial, hold) = (Trial::new(), Hold::new());
    let deferd = trial.start("", &[]);
    let mut client = deferd.client();
    let result = client.store("GET", "/run/c-zeros?100000", b"");
    client.wait_done(&result);
    hold.start(&mut client);
    let request = client.store("POST", "/run/s-cat", &[b'x'; 100_000]);
    let small = client.store("POST", &trial.append(), b"small\n");
    drop((client, deferd));
    for (n, file) in fs::read_dir(Path::new(&trial.data()).join("content")).unwrap().enumerate() {
        let path = file.unwrap().path();
        // One is missing, and the other is truncated.
        if n == 0 { fs::remove_file(path).unwrap() } else { fs::write(path, b"short").unwrap() }
    }
    let deferd = trial.start("", &[]);
    let mut client = deferd.client();
    client.result(&small).expect(200);
    let told = client.result(&request).expect_job_error(500, 500).text();
    assert!(told.contains("the stored request is damaged"), "{told}");
    client.get(&format!("/_api/job/{result}/result")).expect_error(503, 503);
    deferd.log_with("is missing or cut");
    deferd.log_with(&format!("job={request} its request is damaged: content/"));
    client.delete(&format!("/_api/job/{result}")).expect(200);
    client.delete(&format!("/_api/job/{result}")).expect_error(404, 404);
}

#[test]
fn contents_without_their_records_are_not_removed() {
    let trial = Trial::new();
    let deferd = trial.start("", &[]);
    let id = deferd.client().store("GET", "/run/c-zeros?100000", b"");
    deferd.client().wait_done(&id);
    drop(deferd);
    let data = trial.data();
    let (file, away) = (Path::new(&data).join("jobs.redb"), Path::new(&data).join("away"));
    fs::rename(&file, &away).unwrap();
    let Ended { code, stderr, .. } = run_deferd(&["--listen", "127.0.0.1:0", "--data", &data]);
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("content") && stderr.contains("move both away"), "{stderr}");
    fs::rename(away, file).unwrap();
    let deferd = trial.start("", &[]);
    assert_eq!(deferd.client().result(&id).expect(200).body.len(), 100_000);
}

/// Fills the memory with content that is still arriving: clients have sent most of theirs.
fn fill_memory(deferd: &Deferd) -> Vec<Client> {
    let mut clients = Vec::new();
    let head = "POST /run/c-talk HTTP/1.1\r\nhost: x\r\ncontent-length: 61000\r\n\r\n";
    let request = [head.as_bytes(), &[b'x'; 60_000]].concat();
    eventually("the memory is full", || {
        let mut client = deferd.client();
        client.send(&request);
        clients.push(client);
        let version = deferd.client().get("/_api/version?details=true").json();
        let details =
            |name: &str| version["details"][name].as_str().unwrap().parse::<u64>().unwrap();
        details("memory-limit") - details("memory-used") <= 192 << 10
    });
    clients
}

#[test]
fn the_end_starts_no_job_that_lacks_memory() {
    let trial = Trial::new();
    // A sixteenth of this must be free.
    let mut deferd = trial.start("", &["--max-memory", "4M"]);
    let clients = fill_memory(&deferd);
    let id = deferd.client().store("POST", &trial.append(), b"once\n");
    deferd.signal("-TERM");
    eventually("the end has begun", || deferd.log().contains("ending: "));
    drop(clients);
    assert!(deferd.wait().success());
    assert_eq!(trial.appended(), "");
    let deferd = trial.start("", &["--max-memory", "4M"]);
    deferd.client().result(&id).expect(200);
    assert_eq!(trial.appended(), "once\n");
}

#[test]
fn a_cancelled_job_stays_cancelled_and_a_deleted_one_gone() {
    let (trial, hold) = (Trial::new(), Hold::new());
    let deferd = trial.start("", &[]);
    let mut client = deferd.client();
    hold.start(&mut client);
    let ids = trial.submit_appends(&mut client, 2);
    client.put(&format!("/_api/job/{}/cancel", ids[0])).expect(200);
    drop((client, deferd));
    let deferd = trial.start("", &[]);
    let mut client = deferd.client();
    client.wait_done(&ids[1]);
    assert_eq!(trial.appended(), "1\n");
    client.get(&format!("/_api/job/{}/result", ids[0])).expect_job_error(410, 21);
    for id in &ids {
        client.delete(&format!("/_api/job/{id}")).expect(200);
    }
    drop((client, deferd));
    let deferd = trial.start("", &[]);
    for id in ids {
        deferd.client().get(&format!("/_api/job/{id}")).expect(404);
    }
}
