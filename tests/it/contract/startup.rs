//! The command line: the first line of stdout, the configuration file, start-up errors, exit codes.

use std::fs::File;
use std::net::TcpListener;
use std::process::{Command, Stdio};

use crate::support::{Ability, Client, Deferd, Ended, TempDir, eventually, lacks, run, run_deferd};

/// Asserts exit code 2, nothing on stdout, and one line on stderr with all of these parts.
#[track_caller]
fn assert_invalid(arguments: &[&str], parts: &[&str]) {
    let Ended { code, stdout, stderr } = run_deferd(arguments);
    assert_eq!((code, stdout.as_str()), (Some(2), ""), "{arguments:?}: {stderr}");
    assert_eq!(stderr.lines().count(), 1, "{arguments:?}: {stderr}");
    for part in parts {
        assert!(stderr.contains(part), "{arguments:?}: {part:?} is not in {stderr}");
    }
}

#[test]
fn a_start_up_error_names_option_value_and_fault() {
    for (arguments, parts) in [
        (&["--queue", "none"][..], &["--queue", "\"none\"", "number"][..]),
        (&["--queue", "0"], &["--queue", "\"0\"", "at least 1"]),
        (&["--workers", "0"], &["--workers", "\"0\"", "at least 1"]),
        (&["--workers", "99999"], &["--workers", "\"99999\"", "at most"]),
        (&["--max-connections=-1"], &["--max-connections", "\"-1\"", "number"]),
        (&["--max-body", "5X"], &["--max-body", "\"5X\"", "size"]),
        (&["--max-head", ""], &["--max-head", "\"\"", "size"]),
        (&["--max-stored", "99999999999G"], &["--max-stored", "99999999999G", "too large"]),
        (&["--max-output", "0"], &["--max-output", "\"0\"", "at least 1"]),
        (&["--ttl", "5"], &["--ttl", "\"5\"", "unit"]),
        (&["--timeout", "0s"], &["--timeout", "\"0s\"", "zero"]),
        (&["--body-timeout", "soon"], &["--body-timeout", "\"soon\"", "duration"]),
        (&["--grace", "99999999999h"], &["--grace", "99999999999h", "too long"]),
        (&["--listen", "localhost"], &["--listen", "\"localhost\"", "address"]),
        (&["--listen", "192.0.2.1:0"], &["--listen", "192.0.2.1:0", "--insecure"]),
        (&["--listen", "0.0.0.0:0"], &["--listen", "0.0.0.0:0", "loopback"]),
        (&["--listen", "[::]:0"], &["--listen", "[::]:0", "loopback"]),
        (&["--listen", "192.0.2.1:0", "--insecure"], &["--listen", "192.0.2.1:0", "address"]),
        (&["--route", "nonsense"], &["--route", "nonsense", "PREFIX=TARGET"]),
        (&["--route", "x=run:/"], &["--route", "x=run:/", "begin with /"]),
        (&["--route", "/_api/x=run:/"], &["--route", "/_api/x=run:/", "deferd's own"]),
        (&["--route", "/x=what:/"], &["--route", "/x=what:/", "target"]),
        (&["--route", "/x=run:/,colour=red"], &["--route", "colour=red", "no such option"]),
        (&["--route", "/x=run:/,timeout=1"], &["--route", "timeout", "\"1\"", "unit"]),
        (&["--route", "/x=run:/,concurrency=0"], &["--route", "concurrency", "at least 1"]),
        (&["--route", "/x=run:/,max-output=x"], &["--route", "max-output", "size"]),
        (&["--route", "/x=run:/no/such"], &["--route", "/x", "/no/such", "No such file"]),
        (&["--route", "/x=cgi:/dev/null"], &["--route", "/x", "/dev/null", "directory"]),
        (&["--route", "/x=run:/", "--route", "/x=cgi:/"], &["--route", "/x", "already"]),
        (&["--config", "/no/such/file"], &["--config", "/no/such/file", "No such file"]),
        (
            &["--data", "/etc/passwd"],
            &["--data \"/etc/passwd\"", "not a directory: choose another"],
        ),
        (&["--config", "/"], &["--config", "\"/\"", "directory"]),
        (&["--insecure=yes"], &["--insecure", "yes"]),
        (&["--queue"], &["--queue", "argument"]),
        (&["--nonsense"], &["--nonsense"]),
        (&["--nonsense=7"], &["--nonsense"]),
        (&["-x"], &["-x"]),
        (&["stray"], &["stray"]),
    ] {
        assert_invalid(arguments, parts);
    }
}

#[test]
fn an_address_in_use_is_a_start_up_error() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    assert_invalid(&["--listen", &address], &["--listen", &address, "in use"]);
}

#[test]
fn an_error_in_the_file_names_its_line() {
    let dir = TempDir::new();
    let file = dir.join("config").display().to_string();
    for (text, parts) in [
        ("queue 5\n\nttl soon\n", &[":3: ttl", "\"soon\"", "duration"][..]),
        ("colour red\n", &[":1: colour", "\"red\"", "no such option"]),
        ("# comment\nqueue\n", &[":2: queue", "\"\"", "number"]),
        ("insecure yes\n", &[":1: insecure", "\"yes\"", "no value"]),
        ("--queue 5\n", &[":1: --queue", "no such option"]),
        ("config /etc/other\n", &[":1: config", "no such option"]),
        ("route /x=run:\n", &[":1: route", "/x=run:", "target"]),
    ] {
        std::fs::write(&file, text).unwrap();
        let mut parts = parts.to_vec();
        parts.push(&file);
        assert_invalid(&["--config", &file], &parts);
        // The command line does not repair the file.
        assert_invalid(&["--queue", "7", "--config", &file, "--ttl", "1h"], &parts);
    }
}

#[test]
fn help_and_version_are_printed_and_exit_0() {
    for arguments in [&["--help"][..], &["-h"], &["--queue", "7", "--help"]] {
        let Ended { code, stdout, stderr } = run_deferd(arguments);
        assert_eq!((code, stderr.as_str()), (Some(0), ""));
        assert!(stdout.contains("Usage: deferd") && stdout.contains("--max-stored"), "{stdout}");
    }
    for argument in ["--version", "-V"] {
        let Ended { code, stdout, .. } = run_deferd(&[argument]);
        assert_eq!(code, Some(0));
        assert_eq!(stdout, concat!("deferd ", env!("CARGO_PKG_VERSION"), "\n"));
    }
}

#[test]
fn a_failure_of_the_system_exits_1() {
    let deferd = env!("CARGO_BIN_EXE_deferd");
    // Enough descriptors to be loaded, whatever was inherited, and too few to serve.
    let script = "exec 3<&- && ulimit -n 4 && exec \"$1\" --listen 127.0.0.1:0";
    let Ended { code, stdout, stderr } = run(Command::new("sh").args(["-c", script, "sh", deferd]));
    assert_eq!((code, stdout.as_str()), (Some(1), ""), "{stderr}");
    assert!(stderr.contains("deferd: "), "{stderr}");
    let script = "exec \"$1\" --help >/dev/full";
    assert_eq!(run(Command::new("sh").args(["-c", script, "sh", deferd])).code, Some(1));
}

#[test]
fn the_first_line_of_stdout_names_the_address() {
    let mut deferd = Deferd::start(&[]);
    assert_ne!(deferd.address.port(), 0);
    // The harness has read the line and closed the pipe.
    deferd.client().get("/_api/version").expect(200);
    deferd.signal("-TERM");
    assert_eq!(deferd.wait().code(), Some(0));
}

#[test]
fn the_line_is_all_that_is_on_stdout() {
    let dir = TempDir::new();
    let stdout = dir.join("stdout");
    let mut child = Command::new(env!("CARGO_BIN_EXE_deferd"))
        .args(["--listen", "127.0.0.1:0"])
        .stdin(Stdio::null())
        .stdout(File::create(&stdout).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let read = || std::fs::read_to_string(&stdout).unwrap();
    eventually("the line", || read().ends_with('\n'));
    let line = read();
    let address = line.trim_end().strip_prefix("listening on http://").unwrap().parse().unwrap();
    Client::new(address).get("/_api/version").expect(200);
    Client::new(address).get("/nowhere").expect(404);
    let _ = Command::new("kill").arg(child.id().to_string()).status();
    let mut ended = None;
    eventually("deferd ends", || {
        ended = child.try_wait().unwrap();
        ended.is_some()
    });
    assert_eq!(ended.unwrap().code(), Some(0));
    assert_eq!(read(), line);
}

#[test]
fn with_insecure_it_listens_to_strangers() {
    if lacks(Ability::Strangers) {
        return;
    }
    let deferd = Deferd::start(&["--listen", "0.0.0.0:0", "--insecure"]);
    assert!(deferd.address.ip().is_unspecified());
    deferd.client().get("/_api/version").expect(200);
}

#[test]
fn the_command_line_replaces_options_of_the_file() {
    let dir = TempDir::new();
    let file = dir.join("config").display().to_string();
    let scripts = crate::support::fixtures().display().to_string();
    let text = format!(
        "# what a file may hold\n\n  max-body   10\nmax-output\t1K\n\nroute /file/=run:{scripts}\n"
    );
    std::fs::write(&file, text).unwrap();
    let line_route = format!("/line/=run:{scripts}");
    let echo = |deferd: &Deferd, length: usize| {
        deferd.client().request("POST", "/_admin/echo", &[], &vec![b'x'; length]).status
    };
    let deferd = Deferd::start(&["--config", &file]);
    assert_eq!((echo(&deferd, 10), echo(&deferd, 11)), (200, 413));
    deferd.client().get("/file/c-zeros?1024").expect(200);
    let refused = deferd.client().get("/file/c-zeros?1025").expect(502).text();
    assert!(refused.contains("more than max-output 1K"), "{refused}");
    deferd.client().get("/line/c-zeros?1").expect(404);
    // The command line takes precedence, whether it is before or after the file.
    for arguments in [
        ["--max-body", "20", "--config", &file, "--route", &line_route],
        ["--route", &line_route, "--config", &file, "--max-body", "20"],
    ] {
        let deferd = Deferd::start(&arguments);
        assert_eq!((echo(&deferd, 20), echo(&deferd, 21)), (200, 413));
        deferd.client().get("/file/c-zeros?1").expect(200);
        deferd.client().get("/line/c-zeros?1024").expect(200);
        deferd.client().get("/line/c-zeros?1025").expect(502);
    }
}

#[test]
fn a_later_option_replaces_an_earlier_one() {
    let deferd = Deferd::start(&["--max-body", "10", "--max-body=20"]);
    let echo = |length| deferd.client().request("POST", "/_admin/echo", &[], &vec![b'x'; length]);
    assert_eq!((echo(20).status, echo(21).status), (200, 413));
}
