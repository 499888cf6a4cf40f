//! The client: every command, against a real deferd.
//!
//! Knows no HTTP but what it checks with. Invariant: a command that does not end by itself fails its test.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::hold::Hold;
use crate::support::{
    Deferd, TempDir, eventually, first_line, fixtures, front_arguments, run_deferd, uninterrupted,
};

/// How a command ended.
struct Ended {
    code: Option<i32>,
    stdout: Vec<u8>,
    stderr: String,
}

impl Ended {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Asserts its exit code and what it printed.
    #[track_caller]
    fn expect(self, code: i32, stdout: &str) -> Self {
        assert_eq!((self.code, self.text().as_str()), (Some(code), stdout), "{}", self.stderr);
        self
    }

    /// Asserts a part of its message, which is one line.
    #[track_caller]
    fn says(self, part: &str) -> Self {
        assert!(self.stderr.contains(part), "{part:?}: {}", self.stderr);
        assert!(self.stderr.starts_with("deferd: ") && self.stderr.lines().count() == 1);
        self
    }
}

/// A place for the files of commands, and the deferd that they ask.
struct Place {
    dir: TempDir,
    url: String,
    token: Option<String>,
}

impl Place {
    fn at(url: String) -> Self {
        Self { dir: TempDir::new(), url, token: None }
    }

    fn of(deferd: &Deferd) -> Self {
        Self::at(format!("http://{}", deferd.address))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_deferd"));
        command
            .args(arguments)
            .current_dir(&self.dir.0)
            .env("DEFERD_URL", &self.url)
            .env_remove("DEFERD_TOKEN")
            .stdin(Stdio::null())
            .stdout(File::create(self.dir.join("stdout")).unwrap())
            .stderr(File::create(self.dir.join("stderr")).unwrap());
        if let Some(token) = &self.token {
            command.env("DEFERD_TOKEN", token);
        }
        command
    }

    #[track_caller]
    fn end(&self, mut child: Child) -> Ended {
        let mut status = None;
        eventually("the command ends", || {
            status = child.try_wait().unwrap();
            status.is_some()
        });
        Ended {
            code: status.unwrap().code(),
            stdout: fs::read(self.dir.join("stdout")).unwrap(),
            stderr: fs::read_to_string(self.dir.join("stderr")).unwrap(),
        }
    }

    #[track_caller]
    fn run(&self, arguments: &[&str]) -> Ended {
        self.end(self.command(arguments).spawn().unwrap())
    }

    /// The same with this on standard input.
    #[track_caller]
    fn run_with(&self, arguments: &[&str], stdin: &[u8]) -> Ended {
        let path = self.dir.join("stdin");
        fs::write(&path, stdin).unwrap();
        self.end(self.command(arguments).stdin(File::open(path).unwrap()).spawn().unwrap())
    }

    /// Submits a job; its id.
    #[track_caller]
    fn submit(&self, path: &str) -> String {
        let ended = self.run(&["submit", path]);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let text = ended.text();
        let id = text.strip_suffix('\n').unwrap();
        assert!(id.bytes().all(|b| b.is_ascii_digit()), "{text:?}");
        id.to_owned()
    }

    /// Submits a job and waits for its end; its id.
    #[track_caller]
    fn done(&self, path: &str) -> String {
        let id = self.submit(path);
        let code = self.run(&["wait", &id]).code;
        assert!(matches!(code, Some(0 | 1)), "{code:?}");
        id
    }

    /// Lists the files that are none of the harness.
    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.dir.0).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let own = ["stdin", "stdout", "stderr"];
        names.filter(|name| !own.contains(&name.as_str())).collect()
    }
}

fn start() -> (Deferd, Place) {
    let deferd = Deferd::with_scripts("", &[]);
    let place = Place::of(&deferd);
    (deferd, place)
}

/// A deferd on a Unix socket; killed with the test.
struct OverUnix {
    child: Child,
    place: Place,
}

impl OverUnix {
    fn start() -> Self {
        let dir = TempDir::new();
        let url = format!("unix:{}", dir.join("socket").display());
        let route = format!("/run/=run:{}", fixtures().display());
        let mut command = Command::new(env!("CARGO_BIN_EXE_deferd"));
        command.args(["--listen", &url, "--route", &route]).args(front_arguments());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        assert!(first_line(&mut child).starts_with("listening on "));
        Self { child, place: Place { dir, url, token: None } }
    }
}

impl Drop for OverUnix {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Every byte value, and no text.
fn binary(size: usize) -> Vec<u8> {
    let mut generator = fastrand::Rng::with_seed(1);
    std::iter::repeat_with(|| generator.u8(..)).take(size).collect()
}

#[test]
fn a_job_is_submitted_waited_for_and_fetched_once() {
    let (_deferd, place) = start();
    let id = place.submit("/run/s-where");
    place.run(&["wait", &id]).expect(0, "");
    place.run(&["status", &id]).expect(0, "done: status 200\n");
    assert!(!place.run(&["fetch", &id]).text().is_empty());
    for command in ["status", "wait", "fetch", "log", "cancel", "delete"] {
        place.run(&[command, &id]).expect(1, "").says(&format!("no job {id}"));
    }
}

#[test]
fn a_pending_job_is_not_done() {
    let (deferd, place) = start();
    let hold = Hold::new();
    let id = hold.start(&mut deferd.client());
    eventually("its progress is shown", || {
        let ended = place.run(&["status", &id]);
        ended.code == Some(4) && ended.text().ends_with("ing: holding\n")
    });
    let not_done = format!("job {id} is not done");
    place.run(&["wait", "-t", "1ms", &id]).expect(4, "").says(&not_done);
    place.run(&["fetch", &id]).expect(4, "").says(&not_done);
    assert_eq!(place.run(&["fetch", "-o", "file", &id]).code, Some(4));
    assert_eq!(place.files(), [""; 0], "nothing is written");
    assert!(place.run(&["list"]).text().starts_with(&format!("{id} ")));
    place.run(&["list", "--state", "pending"]).expect(0, &format!("{id}\n"));
    place.run(&["list", "--state", "done"]).expect(0, "");
    hold.release();
    place.run(&["wait", &id]).expect(0, "");
    place.run(&["list", "--state", "pending"]).expect(0, "");
    place.run(&["list", "--state", "done"]).expect(0, &format!("{id}\n"));
    // A page in each line.
    let listed = place.run(&["list", "--json"]).text();
    let pages = listed.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let jobs: Vec<_> = pages.flat_map(|page| page["jobs"].as_array().unwrap().clone()).collect();
    assert_eq!(jobs.len(), 1, "{jobs:?}");
    assert_eq!((&jobs[0]["id"], &jobs[0]["state"]), (&id.as_str().into(), &"done".into()));
    place.run(&["fetch", &id]).expect(0, "let go\n");
}

#[test]
fn binary_content_goes_both_ways() {
    let (_deferd, place) = start();
    let content = binary(10 << 20);
    let over_unix = OverUnix::start();
    for place in [&place, &over_unix.place] {
        let ended = place.run_with(&["run", "/run/s-cat"], &content);
        assert!(ended.code == Some(0) && ended.stdout == content, "{}", ended.stderr);
        let ended = place.run_with(&["submit", "-d", "-", "/run/s-cat"], &content);
        let id = ended.text().trim_end().to_owned();
        place.run(&["wait", &id]).expect(0, "");
        place.run(&["fetch", "-o", "file", &id]).expect(0, "");
        assert_eq!(place.files().iter().filter(|name| *name == "file").count(), 1);
        assert!(fs::read(place.dir.join("file")).unwrap() == content);
        place.run(&["fetch", &id]).expect(1, "");
    }
}

#[test]
fn content_makes_a_post_and_fields_are_sent() {
    let (_deferd, place) = start();
    let echo = |arguments: &[&str], stdin: &[u8]| -> serde_json::Value {
        let arguments: Vec<_> =
            ["run"].iter().chain(arguments).chain(&["/_admin/echo?a=b c"]).copied().collect();
        let ended = place.run_with(&arguments, stdin);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        serde_json::from_slice(&ended.stdout).unwrap()
    };
    assert_eq!(echo(&[], b"")["method"], "GET");
    assert_eq!(echo(&[], b"")["query"], "a=b%20c");
    let posted = echo(&["-H", "X-Some: thing", "-H", "x-empty:"], b"content");
    assert_eq!((&posted["method"], &posted["body"]), (&"POST".into(), &"content".into()));
    let fields = &posted["headers"];
    assert_eq!((&fields["x-some"], &fields["x-empty"]), (&"thing".into(), &"".into()));
    assert_eq!(fields["content-type"], serde_json::Value::Null);
    assert_eq!(echo(&["-d", "-"], b"")["method"], "POST");
    assert_eq!(echo(&["-X", "PATCH"], b"x")["method"], "PATCH");
    fs::write(place.dir.join("file"), "from a file").unwrap();
    let sent = echo(&["-X", "PUT", "-d", "@file"], b"not this");
    assert_eq!((&sent["method"], &sent["body"]), (&"PUT".into(), &"from a file".into()));
}

#[test]
fn content_from_a_pipe_is_sent_whole() {
    let (_deferd, place) = start();
    let content = binary(3 << 20);
    fs::write(place.dir.join("content"), &content).unwrap();
    let mut cat = Command::new("cat");
    let mut cat = cat.arg(place.dir.join("content")).stdout(Stdio::piped()).spawn().unwrap();
    let pipe = cat.stdout.take().unwrap();
    let ended = place.end(place.command(&["run", "/run/s-cat"]).stdin(pipe).spawn().unwrap());
    assert!(ended.code == Some(0) && ended.stdout == content, "{}", ended.stderr);
    cat.wait().unwrap();
}

#[test]
fn run_ends_as_the_script_did() {
    let (_deferd, place) = start();
    place.run(&["run", "/run/s-exit?0"]).expect(0, "so far");
    place.run(&["run", "/run/s-exit?3"]).expect(3, "so far").says("status 500, exit code 3");
    let killed = place.run(&["run", "/run/s-signal?KILL"]);
    assert_eq!(killed.code, Some(128 + 9));
    killed.says("status 500, signal 9");
    place.run(&["list"]).expect(0, "");
}

#[test]
fn a_failed_job_shows_in_the_exit_code() {
    let (_deferd, place) = start();
    let id = place.done("/run/s-exit?3");
    let ending = format!("job {id} ended with status 500, exit code 3");
    place.run(&["status", &id]).expect(1, "done: status 500, exit code 3\n");
    place.run(&["wait", &id]).expect(1, "").says(&ending);
    place.run(&["fetch", &id]).expect(1, "so far").says(&ending);
}

#[test]
fn a_failure_names_the_last_line_of_the_log() {
    let (_deferd, place) = start();
    let dir = TempDir::new();
    let gone = dir.join("none").display().to_string();
    let ended = place.run_with(&["run", &format!("/run/s-say?{gone}")], b"one\nthe \x1b[2Jend\n\n");
    assert_eq!(ended.code, Some(9));
    ended.says("exit code 9: the ?[2Jend");
}

#[test]
fn a_result_of_400_and_more_is_a_failure() {
    let (_deferd, place) = start();
    let ended = place.run(&["run", "-X", "POST", "/_api/collection"]);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.text().contains("errorNum"), "{}", ended.text());
    ended.says("ended with status 400");
}

#[test]
fn refusals_and_trouble_have_exit_codes_of_their_own() {
    let (_deferd, place) = start();
    place.run(&["submit", "/nowhere"]).expect(3, "").says("GET /nowhere: status 404: not found");
    place.run(&["run", "/nowhere"]).expect(125, "").says("status 404");
    for (arguments, what) in [
        (&["submit"][..], "one PATH is needed"),
        (&["submit", "run/x"], "does not begin with /"),
        (&["submit", "-d", "text", "/x"], "neither @FILE nor -"),
        (&["submit", "-d", "@none", "/x"], "none: No such file"),
        (&["submit", "-H", "authorization: secret", "/x"], "DEFERD_TOKEN"),
        (&["submit", "-H", "x-arango-async: true", "/x"], "sets this field itself"),
        (&["fetch", "-o", "x", "1", "2"], "one job"),
        (&["status"], "an ID is needed"),
        (&["status", "01"], "not the id of a job"),
        (&["list", "--state", "lost"], "--state \"lost\""),
        (&["wait", "-t", "5", "1"], "no unit"),
        (&["log", "-o", "x", "1"], "invalid option '-o'"),
        (&["list", "--url", "https://x"], "neither http://HOST:PORT nor unix:/path"),
        (&["list", "--token-file", "none"], "--token-file none"),
    ] {
        let ended = place.run(arguments).expect(2, "").says(what);
        assert!(!ended.stderr.contains("secret"), "{}", ended.stderr);
    }
    place.run(&["run"]).expect(125, "").says("one PATH is needed");
}

#[test]
fn a_deferd_that_is_down_is_named() {
    let dir = TempDir::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    for url in [closed, format!("unix:{}", dir.join("none").display())] {
        let place = Place::at(url);
        for arguments in [&["list"][..], &["submit", "/x"], &["fetch", "-o", "file", "1"]] {
            place.run(arguments).expect(3, "").says(&place.url);
        }
        place.run(&["run", "/x"]).expect(125, "").says(&place.url);
        assert_eq!(place.files(), [""; 0]);
    }
}

#[test]
fn a_result_that_cannot_be_written_stays() {
    let (_deferd, place) = start();
    let id = place.done("/run/h-big");
    let stays = "the result is still there";
    place.run(&["fetch", "-o", "none/file", &id]).expect(3, "").says(stays);
    // By a link: what would replace it must not find the device itself.
    symlink("/dev/full", place.dir.join("full")).unwrap();
    place.run(&["fetch", "-o", "full", &id]).expect(3, "").says(stays);
    fs::remove_file(place.dir.join("full")).unwrap();
    place.run(&["fetch", "-o", ".", &id]).expect(3, "").says(stays);

    // A file system that is full after 4 KiB, as far as this process sees it.
    let limited = "trap '' XFSZ; ulimit -f 8; exec \"$0\" fetch -o file \"$1\" 2>/dev/null";
    fs::write(place.dir.join("file"), "as before").unwrap();
    let mut sh = Command::new("sh");
    sh.arg("-c").arg(limited).arg(env!("CARGO_BIN_EXE_deferd")).arg(&id).current_dir(&place.dir.0);
    let status = sh.env("DEFERD_URL", &place.url).status().unwrap();
    assert_eq!(status.code(), Some(3));
    assert_eq!(place.files(), ["file"], "the beginning is removed");
    assert_eq!(fs::read_to_string(place.dir.join("file")).unwrap(), "as before");

    // A reader that leaves.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let child = place.command(&["fetch", &id]).stdout(writer).spawn().unwrap();
    let ended = place.end(child);
    assert_eq!(ended.code, Some(3));
    ended.says("Broken pipe").says(stays);

    place.run(&["fetch", "-o", "file", &id]).expect(0, "");
    assert_eq!(fs::metadata(place.dir.join("file")).unwrap().len(), 16 << 20);
    place.run(&["status", &id]).expect(1, "");
}

#[test]
fn run_leaves_a_result_that_it_cannot_print() {
    let (_deferd, place) = start();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let child = place.command(&["run", "/run/s-exit?0"]).stdout(writer).spawn().unwrap();
    let ended = place.end(child);
    assert_eq!(ended.code, Some(125));
    let text = place.run(&["list", "--state", "done"]).text();
    let id = text.trim_end();
    ended.says(&format!("job {id}: standard output: Broken pipe"));
    place.run(&["fetch", id]).expect(0, "so far");
}

#[test]
fn what_is_no_file_is_written_to_and_not_replaced() {
    let (_deferd, place) = start();
    fs::write(place.dir.join("file"), "before, and longer").unwrap();
    symlink("file", place.dir.join("link")).unwrap();
    let id = place.done("/run/s-exit?0");
    place.run(&["fetch", "-o", "link", &id]).expect(0, "");
    assert!(fs::symlink_metadata(place.dir.join("link")).unwrap().is_symlink());
    assert_eq!(fs::read_to_string(place.dir.join("file")).unwrap(), "so far");

    assert!(Command::new("mkfifo").arg(place.dir.join("pipe")).status().unwrap().success());
    let id = place.done("/run/s-exit?0");
    let fetch = place.command(&["fetch", "-o", "pipe", &id]).spawn().unwrap();
    assert_eq!(fs::read_to_string(place.dir.join("pipe")).unwrap(), "so far");
    place.end(fetch).expect(0, "");

    let id = place.done("/run/s-exit?0");
    place.run(&["fetch", "-o", "-", &id]).expect(0, "so far");
}

#[test]
fn signals_cancel_a_run() {
    let (deferd, place) = start();
    for (signal, code) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        let hold = Hold::new();
        let run = place.command(&["run", &hold.target()]).spawn().unwrap();
        hold.wait_for("started");
        kill(signal, run.id());
        place.end(run).expect(code, "").says("is canceled");
        assert!(!hold.has("ended"));
        assert_eq!(deferd.client().jobs(), [""; 0], "nothing is left");
    }
}

#[test]
fn a_second_signal_ends_a_run_at_once() {
    let (deferd, place) = start();
    let hold = Hold::deaf();
    let run = place.command(&["run", &hold.target()]).spawn().unwrap();
    hold.wait_for("started");
    kill("INT", run.id());
    hold.wait_for("term");
    kill("INT", run.id());
    place.end(run).expect(130, "");
    hold.release();
    let mut client = deferd.client();
    eventually("the job is done", || client.list("done").len() == 1);
}

#[test]
fn a_signal_that_is_ignored_stays_so() {
    let (_deferd, place) = start();
    let hold = Hold::new();
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' HUP; exec \"$0\" run \"$1\""]);
    shell.arg(env!("CARGO_BIN_EXE_deferd")).arg(hold.target()).env("DEFERD_URL", &place.url);
    let stdout = File::create(place.dir.join("stdout")).unwrap();
    fs::write(place.dir.join("stderr"), "").unwrap();
    let run = shell.stdin(Stdio::null()).stdout(stdout).spawn().unwrap();
    hold.wait_for("started");
    kill("HUP", run.id());
    hold.release();
    place.end(run).expect(0, "let go\n");
}

fn kill(signal: &str, pid: u32) {
    let status = Command::new("kill").args(["-s", signal, &pid.to_string()]).status().unwrap();
    assert!(status.success());
}

#[test]
fn a_job_is_cancelled_or_deleted() {
    let (deferd, place) = start();
    let mut client = deferd.client();
    let hold = Hold::new();
    let id = hold.start(&mut client);
    place.run(&["cancel", &id]).expect(0, "");
    place.run(&["wait", &id]).expect(1, "").says("ended with status 410");
    let other = place.done("/run/s-exit?0");
    place.run(&["delete", &id, &other]).expect(0, "");
    place.run(&["list"]).expect(0, "");
}

#[test]
fn several_jobs_have_the_worst_outcome() {
    let (deferd, place) = start();
    let hold = Hold::new();
    let pending = hold.start(&mut deferd.client());
    let [good, bad] = ["/run/s-exit?0", "/run/s-exit?3"].map(|path| place.done(path));
    assert_eq!(place.run(&["status", &good, &good]).code, Some(0));
    assert_eq!(place.run(&["status", &good, &pending]).code, Some(4));
    let all = place.run(&["status", &pending, &bad, &good]);
    assert_eq!(all.code, Some(1));
    let words: Vec<_> =
        all.text().lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(words, [pending, bad.clone(), good.clone()]);
    let fetched = place.run(&["fetch", &good, &bad]);
    assert_eq!((fetched.code, fetched.text().as_str()), (Some(1), "so farso far"));
}

#[test]
fn a_log_is_shown_and_followed() {
    let (deferd, place) = start();
    let dir = TempDir::new();
    let target = format!("/run/s-say?{}", dir.0.display());
    let id = deferd.client().store("POST", &target, b"one\ntwo\n");
    eventually("the log is there", || place.run(&["log", &id]).text() == "one\ntwo\n");
    let follow = place.command(&["log", "-f", &id]).spawn().unwrap();
    let stdout = place.dir.join("stdout");
    eventually("it is followed", || fs::read(&stdout).unwrap() == b"one\ntwo\n");
    fs::write(dir.join("go"), "").unwrap();
    place.end(follow).expect(0, "one\ntwo\n");
}

#[test]
fn what_comes_late_into_a_log_is_followed() {
    let (_deferd, place) = start();
    let hold = Hold::new();
    let id = place.submit(&hold.target());
    let follow = place.command(&["log", "-f", &id]).spawn().unwrap();
    hold.wait_for("started");
    eventually("it is there", || fs::read(place.dir.join("stdout")).unwrap() == b"holding\n");
    hold.release();
    place.end(follow).expect(0, "holding\n");
}

#[test]
fn users_show_their_token_and_nobody_else_sees_it() {
    let dir = TempDir::new();
    let made = run_deferd(&["token", "ann"]).stdout;
    let after = |name| made.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned();
    let (token, line) = (after("token: "), after("line for --auth: "));
    let users: PathBuf = dir.join("users");
    fs::write(&users, line).unwrap();
    fs::set_permissions(&users, fs::Permissions::from_mode(0o600)).unwrap();
    let deferd = Deferd::with_scripts("", &["--auth", users.to_str().unwrap()]);
    let mut place = Place::of(&deferd);
    place.run(&["submit", "/run/s-exit?0"]).expect(3, "").says("status 401");
    place.run(&["wait", "1"]).expect(3, "").says("status 401");
    place.run(&["run", "/run/s-exit?0"]).expect(125, "").says("status 401");

    fs::write(place.dir.join("token"), format!("{token}\n")).unwrap();
    place.run(&["run", "--token-file", "token", "/run/s-exit?0"]).expect(0, "so far");
    place.token = Some("wrong".into());
    place.run(&["list"]).expect(3, "").says("status 401");
    place.run(&["list", "--token-file", "token"]).expect(0, "");
    place.token = Some(token.clone());
    let id = place.done("/run/s-exit?0");
    assert!(place.run(&["list"]).text().starts_with(&id));
    place.run(&["fetch", &id]).expect(0, "so far");
    place.run(&["run", "/run/s-exit?3"]).expect(3, "so far");
    deferd.log_with("/run/s-exit?3");
    assert!(!deferd.log().contains(&token));
}

#[test]
fn an_answer_that_breaks_off_loses_nothing() {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let place = Place::at(format!("http://{}", listener.local_addr().unwrap()));
    let child = place.command(&["fetch", "-o", "file", "7"]).spawn().unwrap();
    let mut stream = crate::support::accept(&listener);
    assert!(uninterrupted(|| stream.read(&mut [0; 4096])).unwrap() > 0);
    let head = "HTTP/1.1 200 OK\r\nx-arango-async-id: 7\r\ncontent-length: 10\r\n\r\nhalf";
    stream.write_all(head.as_bytes()).unwrap();
    drop(stream);
    place.end(child).expect(3, "").says("its result breaks off");
    assert_eq!(place.files(), [""; 0]);
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "nothing is removed");
}

#[test]
fn a_refusal_is_told_though_deferd_reads_no_more() {
    let deferd = Deferd::with_scripts("", &["--max-body", "1K"]);
    let place = Place::of(&deferd);
    let ended = place.run_with(&["submit", "-d", "-", "/run/s-cat"], &binary(8 << 20));
    ended.expect(3, "").says("status 413: body too large");
}

#[test]
fn a_wait_goes_on_where_deferd_does_not_wait() {
    let deferd = Deferd::with_scripts("", &["--max-wait", "1ms"]);
    let place = Place::of(&deferd);
    let hold = Hold::new();
    let id = hold.start(&mut deferd.client());
    let begin = Instant::now();
    let wait = place.command(&["wait", &id]).spawn().unwrap();
    let asked = || deferd.log().matches(&format!("GET target=/_api/job/{id} ")).count();
    eventually("it asks again", || asked() >= 6);
    // After 10, 20, 40, 80 and 160 ms.
    assert!(begin.elapsed() >= Duration::from_millis(300), "it asks without a pause");
    hold.release();
    place.end(wait).expect(0, "");
}

#[test]
fn each_command_has_help() {
    let help = run_deferd(&["run", "--help"]);
    assert_eq!(help.code, Some(0));
    assert!(help.stdout.lines().all(|line| line.chars().count() <= 80), "{}", help.stdout);
    let commands = ["submit", "run", "status", "wait", "fetch", "log", "list", "cancel", "delete"];
    let line = format!("deferd {} ", commands.join("|"));
    assert!(deferd::config::HELP.contains(&line), "{line}");
    for command in commands {
        assert!(help.stdout.contains(&format!("deferd {command} ")), "{command}");
        assert_eq!(run_deferd(&[command, "-h"]).stdout, help.stdout);
    }
}
