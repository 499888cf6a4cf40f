//! What a script writes to stderr: a job's progress, its log, and the lines in deferd's own log.

use crate::support::{Client, Deferd, Reply, TempDir, eventually};

/// A job that has written something to stderr and then waits.
struct Talking {
    id: String,
    dir: TempDir,
}

impl Talking {
    fn start(client: &mut Client, words: &[u8]) -> Self {
        let dir = TempDir::new();
        let id = client.store("POST", &format!("/run/s-say?{}", dir.0.display()), words);
        Self { id, dir }
    }

    fn status(&self, client: &mut Client) -> Reply {
        client.get(&format!("/_api/job/{}", self.id))
    }

    fn log(&self, client: &mut Client) -> Reply {
        client.get(&format!("/_api/job/{}/log", self.id))
    }

    fn let_end(&self) {
        std::fs::write(self.dir.join("go"), "").unwrap();
    }
}

#[test]
fn progress_is_the_last_line_while_the_job_runs() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let exact = "x".repeat(100);
    for (words, progress) in [
        ("one\n", "one"),
        ("one\ntwo\nthree words here\n", "three words here"),
        ("one\r\ntwo\r\n", "two"),
        ("  blanks around \n", "blanks around"),
        // Tools that redraw a line end each version of it with a carriage return.
        ("10 %\r20 %\r30 %\r", "30 %"),
        ("copying\n10 %\r20 %\r100 %\n", "100 %"),
        (&format!("{exact}\n"), &exact),
        (&format!("{exact}y\n"), &exact),
        (&format!("{}\n", "x".repeat(100_000)), &exact),
    ] {
        let job = Talking::start(&mut client, words.as_bytes());
        eventually(&format!("{words:.40?} makes {progress:?}"), || {
            let reply = job.status(&mut client).expect(204);
            assert_eq!(reply.id(), None);
            reply.header("x-progress") == Some(progress)
        });
        job.let_end();
        client.wait_done(&job.id);
        assert_eq!(job.status(&mut client).header("x-progress"), None, "progress of what is done");
        assert_eq!(client.result(&job.id).header("x-progress"), None);
    }
}

/// Clients read field values as ASCII. Characters are counted, not bytes, and invalid text does no harm.
#[test]
fn progress_is_at_most_100_printable_characters() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    for words in [
        "\u{e4}".repeat(150).as_bytes(),
        b"a\tb\x07c\x1b[2Kd\x7f",
        b"a\0b\xff\xfe",
        "a\u{85}b\u{9b}c".as_bytes(),
    ] {
        let job = Talking::start(&mut client, &[words, b"\n"].concat());
        let mut progress = String::new();
        eventually("there is progress", || {
            let reply = job.status(&mut client).expect(204);
            progress = reply.header("x-progress").unwrap_or_default().to_owned();
            !progress.is_empty()
        });
        assert!(progress.starts_with(['a', '?']), "{progress:?}");
        assert!(progress.bytes().all(|b| b == b' ' || b.is_ascii_graphic()), "{progress:?}");
        assert_eq!(progress.chars().count().min(100), progress.chars().count());
        assert!(words.len() < 300 || progress.chars().count() == 100, "{progress:?}");
        job.let_end();
        client.result(&job.id).expect(200);
    }
}

#[test]
fn a_job_without_a_word_has_no_progress() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let silent = Talking::start(&mut client, b"");
    // When a later script has written something, this one has had its chance.
    let other = Talking::start(&mut client, b"hello\n");
    eventually("the other talks", || other.status(&mut client).header("x-progress").is_some());
    assert_eq!(silent.status(&mut client).expect(204).header("x-progress"), None);
    silent.let_end();
    other.let_end();
}

#[test]
fn a_log_exists_from_its_first_byte_until_removal() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let words = "one\n\n  tw\u{f6}\x1b[2K\r\nhalf a line";
    let job = Talking::start(&mut client, words.as_bytes());
    eventually("the log is there", || job.log(&mut client).expect(200).text() == words);
    job.let_end();
    client.wait_done(&job.id);
    for _ in 0..2 {
        let reply = job.log(&mut client).expect(200);
        assert!(reply.header("content-type").unwrap().starts_with("text/plain"), "{reply:?}");
        assert_eq!((reply.id(), &*reply.text()), (None, words));
    }
    client.result(&job.id).expect(200);
    // Once the client has the result, or a little later.
    eventually("it outlives the collection", || job.log(&mut client).text() == words);
    client.delete(&format!("/_api/job/{}", job.id)).expect(404);
    job.log(&mut client).expect_error(404, 404);
}

#[test]
fn the_log_is_kept_with_a_failed_job_too() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let job = Talking::start(&mut client, b"last words\n");
    eventually("it talks", || job.status(&mut client).header("x-progress").is_some());
    client.put(&format!("/_api/job/{}/cancel", job.id)).expect(200);
    client.wait_done(&job.id);
    assert!(job.log(&mut client).expect(200).text().starts_with("last words\n"));
    client.delete(&format!("/_api/job/{}", job.id)).expect(200);
    job.log(&mut client).expect_error(404, 404);
}

#[test]
fn the_log_keeps_the_last_8_kib() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    for lines in [1_000, 3_000, 30_000] {
        let words: String = (0..lines).map(|n| format!("line {n}\n")).collect();
        let job = Talking::start(&mut client, words.as_bytes());
        let tail = &words[words.len() - 8192..];
        eventually("the tail is there", || job.log(&mut client).expect(200).text() == tail);
        job.let_end();
        client.wait_done(&job.id);
        assert_eq!(job.log(&mut client).expect(200).text(), tail);
    }
}

#[test]
fn every_line_is_logged_with_the_jobs_id() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let job = Talking::start(&mut client, b"first of these\nsecond of these\nthe end of these");
    job.let_end();
    client.result(&job.id).expect(200);
    let log = deferd.log_with("the end of these");
    for words in ["first of these", "second of these", "the end of these"] {
        let lines: Vec<_> = log.lines().filter(|line| line.contains(words)).collect();
        let [line] = lines[..] else { panic!("{words} is in {lines:?}") };
        assert!(line.contains("INFO") && line.contains(&format!("job={} ", job.id)), "{line}");
    }
}

#[test]
fn stderr_of_synchronous_requests_is_logged_too() {
    let deferd = Deferd::with_scripts("", &[]);
    let dir = TempDir::new();
    std::fs::write(dir.join("go"), "").unwrap();
    for prefix in ["/run", "/cgi"] {
        let target = format!("{prefix}/s-say?{}", dir.0.display());
        deferd.client().request("POST", &target, &[], format!("said in {prefix}\n").as_bytes());
        let words = format!("said in {prefix}");
        let said = |line: &str| line.contains("INFO") && line.contains(&words);
        assert!(deferd.log_with(&words).lines().any(said), "{}", deferd.log());
    }
}

/// A script may write what a stranger sent it: that must neither look like a line of deferd's own, nor control the
/// reader's terminal.
#[test]
fn no_script_can_forge_a_line_of_the_log() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let job =
        Talking::start(&mut client, b"begin\r[now INFO forged] \x1b[2K\x9b\x00 forged\x0bend\n");
    job.let_end();
    client.result(&job.id).expect(200);
    let log = deferd.log_with("begin");
    let line = log.lines().find(|line| line.contains("begin")).unwrap();
    assert!(line.contains("forged") && line.ends_with("end"), "{line:?}");
    assert!(!log.contains(|c: char| c.is_control() && c != '\n'), "{log:?}");
}

/// Returns the highest memory that a process has used, in KiB.
fn peak_memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_flood_on_stderr_neither_blocks_nor_fills_memory() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    client.get("/run/s-done").expect(200);
    let before = peak_memory(deferd.pid());
    for form in ["lines", "one-line"] {
        let id = client.store("GET", &format!("/run/s-flood?{form}"), b"");
        client.wait_done(&id);
        let log = client.get(&format!("/_api/job/{id}/log")).expect(200).body;
        assert_eq!(log.len(), 8192, "{form}");
        assert_eq!(client.result(&id).expect(200).text(), "answered\n");
    }
    let more = peak_memory(deferd.pid()) - before;
    assert!(more < 4096, "{more} KiB more than before");
}
