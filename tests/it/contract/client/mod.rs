//! The client: every command, against a real deferd.
//!
//! Knows HTTP only for its checks. Invariant: a command that does not end by itself fails its test.

mod jobs;
mod run;

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

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

    /// Asserts the exit code and what was printed.
    #[track_caller]
    fn expect(self, code: i32, stdout: &str) -> Self {
        assert_eq!((self.code, self.text().as_str()), (Some(code), stdout), "{}", self.stderr);
        self
    }

    /// Asserts a part of the message, which is one line.
    #[track_caller]
    fn says(self, part: &str) -> Self {
        assert!(self.stderr.contains(part), "{part:?}: {}", self.stderr);
        assert!(self.stderr.starts_with("deferd: ") && self.stderr.lines().count() == 1);
        self
    }
}

/// A directory for the files of commands, and the deferd that they ask.
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

    /// Runs a command with this on standard input.
    #[track_caller]
    fn run_with(&self, arguments: &[&str], stdin: &[u8]) -> Ended {
        let path = self.dir.join("stdin");
        fs::write(&path, stdin).unwrap();
        self.end(self.command(arguments).stdin(File::open(path).unwrap()).spawn().unwrap())
    }

    /// Submits a job; returns its id.
    #[track_caller]
    fn submit(&self, path: &str) -> String {
        let ended = self.run(&["submit", path]);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let text = ended.text();
        let id = text.strip_suffix('\n').unwrap();
        assert!(id.bytes().all(|b| b.is_ascii_digit()), "{text:?}");
        id.to_owned()
    }

    /// Submits a job and waits for its end; returns its id.
    #[track_caller]
    fn done(&self, path: &str) -> String {
        let id = self.submit(path);
        let code = self.run(&["wait", &id]).code;
        assert!(matches!(code, Some(0 | 1)), "{code:?}");
        id
    }

    /// Lists the files that do not belong to the harness.
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

/// Returns every byte value, which is not text.
fn binary(size: usize) -> Vec<u8> {
    let mut generator = fastrand::Rng::with_seed(1);
    std::iter::repeat_with(|| generator.u8(..)).take(size).collect()
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
fn a_users_token_is_sent_and_never_shown() {
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
    place.end(child).expect(3, "").says("its result broke off");
    assert_eq!(place.files(), [""; 0]);
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "nothing is removed");
}

#[test]
fn a_refusal_is_shown_although_deferd_stops_reading() {
    let deferd = Deferd::with_scripts("", &["--max-body", "1K"]);
    let place = Place::of(&deferd);
    let ended = place.run_with(&["submit", "-d", "-", "/run/s-cat"], &binary(8 << 20));
    ended.expect(3, "").says("status 413: body too large");
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
