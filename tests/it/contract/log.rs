//! The log: it holds up nothing, whether it is read or not, and its options work.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::thread;

use crate::support::{
    Client, Deferd, Ended, PATIENCE, TempDir, eventually, first_line, run, run_deferd,
};

/// A deferd with this stderr, killed with the test.
struct Started(Child, Client);

impl Started {
    fn new(mut command: Command, stderr: impl Into<Stdio>) -> Self {
        let mut child = command
            .args(["--listen", "127.0.0.1:0"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .unwrap();
        let line = first_line(&mut child);
        let address = line.strip_prefix("listening on http://").expect("an address");
        let client = Client::new(address.parse().unwrap());
        Self(child, client)
    }

    fn terminate(&mut self) {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").arg(pid).status().unwrap().success());
        eventually("deferd ends", || self.0.try_wait().unwrap().is_some());
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn deferd(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_deferd"));
    command.args(arguments).env_remove("RUST_LOG");
    command
}

/// A pipe holds some 400 lines; formerly, the next line stopped its thread for ever.
#[test]
fn an_unread_stderr_delays_no_request() {
    let (reader, stderr) = UnixStream::pair().unwrap();
    reader.set_read_timeout(Some(PATIENCE)).unwrap();
    let stderr = Stdio::from(OwnedFd::from(stderr));
    let mut started = Started::new(deferd(&[]), stderr);
    let target = format!("/_admin/time?{}", "x".repeat(1000));
    for _ in 0..3000 {
        started.1.get(&target).expect(200);
    }
    started.1.get("/_admin/server/availability").expect(200);
    let mut lines = BufReader::new(reader).lines().map(Result::unwrap);
    let dropped = lines.find(|line| line.contains("lines of the log were dropped")).unwrap();
    let count = dropped.strip_prefix("deferd: ").unwrap().split(' ').next().unwrap();
    assert!(count.parse::<u32>().unwrap() > 100, "{dropped}");
    // Later lines are written again, in the order of their events.
    let rest = thread::spawn(move || lines.collect::<Vec<_>>());
    started.1.get("/_admin/time?last").expect(200);
    started.terminate();
    let rest = rest.join().unwrap();
    let last = rest.iter().position(|line| line.contains("target=/_admin/time?last "));
    let end = rest.iter().position(|line| line.contains("ending: "));
    assert!(last.is_some() && end > last, "{rest:?}");
}

/// An orderly shutdown loses no line.
#[test]
fn the_last_line_before_the_end_is_written() {
    for _ in 0..10 {
        let mut deferd = Deferd::start(&[]);
        deferd.client().get("/_admin/time?last").expect(200);
        deferd.signal("-TERM");
        assert!(deferd.wait().success());
        assert!(deferd.log().contains("target=/_admin/time?last "), "{}", deferd.log());
        assert!(deferd.log().contains("ending: "), "{}", deferd.log());
    }
}

#[test]
fn a_script_has_at_most_a_hundred_lines_logged() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    for (lines, left_out) in [(100, None), (101, Some(1)), (350, Some(250))] {
        let id = client.store("GET", &format!("/run/s-lines?{lines}"), b"");
        client.result(&id).expect(200);
        let of_job = || {
            let log = deferd.log();
            let said = format!("job={id} script=");
            log.lines().filter(|line| line.contains(&said)).map(str::to_owned).collect::<Vec<_>>()
        };
        let all = 100 + usize::from(left_out.is_some());
        eventually("the lines are there", || of_job().len() >= all);
        let found = of_job();
        assert_eq!(found.len(), all, "{found:?}");
        assert!(found[99].ends_with("stderr: 100"), "{}", found[99]);
        if let Some(left_out) = left_out {
            let told = format!("stderr: {left_out} more lines are not logged");
            assert!(found[100].ends_with(&told), "{}", found[100]);
        }
    }
}

/// Runs a deferd with this `JOURNAL_STREAM`; returns what it logs for one request.
fn logged_with(stream: impl Fn(&File) -> String) -> String {
    let dir = TempDir::new();
    let path = dir.join("stderr");
    let stderr = File::create(&path).unwrap();
    let mut command = deferd(&["--listen", ":0"]);
    command.env("JOURNAL_STREAM", stream(&stderr));
    let mut started = Started::new(command, stderr);
    started.1.request("GET", "/_admin/time", &[("x-arango-async", "yes")], b"").expect(200);
    started.terminate();
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn lines_for_the_journal_have_a_priority_and_no_time() {
    let identity = |file: &File| {
        let metadata = file.metadata().unwrap();
        format!("{}:{}", metadata.dev(), metadata.ino())
    };
    let log = logged_with(identity);
    assert!(log.lines().all(|line| line.starts_with("<6>") || line.starts_with("<4>")), "{log}");
    assert!(log.contains("<6>request=GET target=/_admin/time peer="), "{log}");
    assert!(log.contains("<4>--listen :0 is 127.0.0.1:0"), "{log}");
    // Inherited by a process whose stderr is a different file.
    for other in ["1:1", "", "journal"] {
        let log = logged_with(|_| other.into());
        assert!(log.lines().all(|line| line.starts_with('[')), "{log}");
        assert!(log.contains(" INFO  "), "{log}");
    }
}

/// Returns the log of a deferd with this `RUST_LOG` and these options, after one request.
fn log_of(rust_log: &str, arguments: &[&str]) -> String {
    let dir = TempDir::new();
    let path = dir.join("stderr");
    let mut command = deferd(arguments);
    command.env("RUST_LOG", rust_log);
    let mut started = Started::new(command, File::create(&path).unwrap());
    started.1.request("GET", "/_admin/time", &[("x-arango-async", "yes")], b"").expect(200);
    started.terminate();
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn log_is_an_option_and_wins_over_rust_log() {
    let has = |log: &str| (log.contains(" WARN "), log.contains(" INFO "));
    for (rust_log, arguments, expected) in [
        ("", &[][..], (true, true)),
        ("warn", &[], (true, false)),
        ("off", &[], (false, false)),
        ("debug", &["--log", "error"], (false, false)),
        ("off", &["--log", "warn"], (true, false)),
        ("nonsense", &["--log=info"], (true, true)),
        ("other=debug", &[], (true, true)),
        ("verbose", &[], (true, true)),
    ] {
        let log = log_of(rust_log, arguments);
        assert_eq!(has(&log), expected, "{rust_log} {arguments:?}: {log}");
        let is_reported = rust_log == "verbose";
        assert_eq!(log.contains("RUST_LOG"), is_reported, "{rust_log} {arguments:?}: {log}");
    }
    let log = log_of("error,verbose", &[]);
    assert!(log.starts_with("deferd: RUST_LOG \"verbose\": neither off, error, "), "{log}");
    assert_eq!(log.lines().count(), 1, "{log}");
    let Ended { code, stderr, .. } = run_deferd(&["--log", "verbose"]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("--log \"verbose\": not a level: off, error, warn"), "{stderr}");
}

#[test]
fn a_start_up_error_follows_the_log() {
    let dir = TempDir::new();
    let missing = format!("/x=run:{}", dir.join("missing").display());
    let mut command = deferd(&["--listen", ":0", "--route", &missing]);
    let Ended { code, stderr, .. } = run(&mut command);
    assert_eq!(code, Some(2), "{stderr}");
    let lines: Vec<_> = stderr.lines().collect();
    assert_eq!(lines.len(), 2, "{stderr}");
    assert!(lines[0].contains("--listen :0 is 127.0.0.1:0"), "{stderr}");
    assert!(lines[1].starts_with("deferd: --route \"/x\": directory "), "{stderr}");
}

#[test]
fn an_async_field_without_meaning_is_logged() {
    let deferd = Deferd::start(&[]);
    let mut client = deferd.client();
    let ask = |client: &mut Client, fields: &[(&str, &str)]| {
        client.request("GET", "/_admin/time", fields, b"").status
    };
    for (values, told) in [
        (&["Store"][..], Some("x-arango-async is \"Store\", neither store nor true")),
        (&["x\ty"], Some("x-arango-async is \"x\\ty\", neither")),
        (&["store", "store"], Some("x-arango-async is there twice, neither")),
        (&[" store "], None),
        (&["true"], None),
    ] {
        let fields: Vec<_> = values.iter().map(|value| ("x-arango-async", *value)).collect();
        assert_eq!(ask(&mut client, &fields), if told.is_some() { 200 } else { 202 });
        if let Some(told) = told {
            eventually("it is told", || deferd.log().contains(told));
        }
    }
    client.get("/_admin/time?end").expect(200);
    deferd.log_with("/_admin/time?end");
    assert_eq!(deferd.log().matches(" WARN ").count(), 3, "{}", deferd.log());
}
