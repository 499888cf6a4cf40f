//! `on-done` and `on-failure`: what programs are told about jobs that have ended, and which programs are allowed.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use hmac_sha256::HMAC;

use crate::support::hold::Hold;
use crate::support::{Client, Deferd, TempDir, eventually, fixtures, run_deferd};

/// Writes an executable file.
fn executable(path: &Path, text: &str) -> String {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

/// Writes a program that saves what it is told in a new file below `dir/told`, named after the program.
fn program(dir: &TempDir, name: &str) -> String {
    let told = dir.join("told");
    fs::create_dir_all(&told).unwrap();
    let told = told.display();
    let text = format!(
        "#!/bin/sh\nfile={told}/{name}.$DEFERD_JOB_ID.$$\n\
         {{ env; echo; cat; }} >\"$file.new\"\nmv \"$file.new\" \"$file\"\n"
    );
    executable(&dir.join(name), &text)
}

/// What a program was told: its variables and its standard input.
type Told = (BTreeMap<String, String>, String);

/// Returns what the program of this name was told about a job, each time.
fn told(dir: &TempDir, name: &str, id: &str) -> Vec<Told> {
    let prefix = format!("{name}.{id}.");
    let mut told = Vec::new();
    for entry in fs::read_dir(dir.join("told")).unwrap().map(Result::unwrap) {
        let file = entry.file_name().into_string().unwrap();
        if file.starts_with(&prefix) && !file.ends_with(".new") {
            let text = fs::read_to_string(entry.path()).unwrap();
            let (variables, log) = text.split_once("\n\n").unwrap();
            let variables = variables.lines().filter_map(|line| line.split_once('='));
            let variables = variables.map(|(name, value)| (name.into(), value.into())).collect();
            told.push((variables, log.to_owned()));
        }
    }
    told
}

/// Waits until programs were told this many times in all, and asserts that it is not more.
#[track_caller]
fn wait_told(client: &mut Client, dir: &TempDir, count: usize) {
    let mut metrics = || client.get("/_admin/metrics").expect(200).text();
    let ended = of_completion("finished", ",outcome=\"ok\"", count);
    eventually(&ended, || metrics().contains(&ended));
    let metrics = metrics();
    assert!(metrics.contains(&of_completion("submitted", "", count)), "{metrics}");
    assert_eq!(fs::read_dir(dir.join("told")).unwrap().count(), count);
}

/// Returns the line of the metrics that counts notices to programs.
fn of_completion(what: &str, label: &str, count: usize) -> String {
    format!("deferd_jobs_{what}_total{{route=\"completion\"{label}}} {count}\n")
}

/// Returns what the program of this name was told about a job; asserts that it was told once.
#[track_caller]
fn told_once(dir: &TempDir, name: &str, id: &str) -> Told {
    let mut all = told(dir, name, id);
    assert_eq!(all.len(), 1, "{name} {id}");
    all.pop().unwrap()
}

/// Starts a deferd whose `/run/` tells both programs.
fn start(options: &str, arguments: &[&str]) -> (Deferd, TempDir) {
    let dir = TempDir::new();
    let (done, failure) = (program(&dir, "done"), program(&dir, "failure"));
    let scripts = fixtures().display().to_string();
    let route = format!("/run/=run:{scripts},on-done={done},on-failure={failure}{options}");
    let mut all = vec!["--route", route.as_str()];
    all.extend_from_slice(arguments);
    (Deferd::start(&all), dir)
}

/// Waits until all notices have ended, by a job whose notices come last; with them, there are `count`.
#[track_caller]
fn settle(client: &mut Client, dir: &TempDir, count: usize) {
    let id = client.store("POST", "/run/s-cat", b"");
    wait_told(client, dir, count);
    told_once(dir, "done", &id);
    client.result(&id);
}

#[test]
fn programs_are_notified_of_each_finished_job() {
    let (deferd, dir) = start("", &[]);
    let mut client = deferd.client();
    let good = client.store("POST", "/run/s-cat?a=b%20c", b"text");
    wait_told(&mut client, &dir, 1);
    let (variables, log) = told_once(&dir, "done", &good);
    let expected = [
        ("DEFERD_JOB_ID", good.as_str()),
        ("DEFERD_ROUTE", "/run/"),
        ("DEFERD_TARGET", "/run/s-cat?a=b%20c"),
        ("DEFERD_STATUS", "200"),
        ("DEFERD_EXIT_CODE", "0"),
        ("DEFERD_OWNER", ""),
    ];
    for (name, value) in expected {
        assert_eq!(variables.get(name).map(String::as_str), Some(value), "{name}");
    }
    let seconds: f64 = variables["DEFERD_SECONDS"].parse().unwrap();
    assert!((0.0..60.0).contains(&seconds), "{seconds}");
    assert!(variables.contains_key("HOME") && !variables.contains_key("REQUEST_METHOD"));
    assert!(!variables.contains_key("DEFERD_ATTEMPT") && log.is_empty(), "{variables:?} {log}");
    let bad = client.store("POST", "/run/s-exit?3", b"");
    wait_told(&mut client, &dir, 3);
    for name in ["done", "failure"] {
        let (variables, _) = told_once(&dir, name, &bad);
        assert_eq!((&*variables["DEFERD_STATUS"], &*variables["DEFERD_EXIT_CODE"]), ("500", "3"));
    }
    settle(&mut client, &dir, 4);
    assert!(told(&dir, "failure", &good).is_empty());
    // The job does not change, and a synchronous run has no notices.
    client.result(&good).expect(200);
    client.result(&bad).expect(500);
    client.request("POST", "/run/s-cat", &[], b"").expect(200);
    settle(&mut client, &dir, 5);
    let log = deferd.log_with("route=completion status=200");
    assert!(log.contains(&format!(" of={good} ")), "{log}");
}

#[test]
fn programs_get_the_log_of_the_job() {
    let (deferd, dir) = start("", &[]);
    let place = TempDir::new();
    fs::write(place.join("go"), "").unwrap();
    let target = format!("/run/s-say?{}", place.0.display());
    let lines: String = (0..2000).map(|n| format!("step {n}\n")).collect();
    let mut client = deferd.client();
    let id = client.store("POST", &target, lines.as_bytes());
    wait_told(&mut client, &dir, 1);
    let log = told_once(&dir, "done", &id).1;
    assert_eq!(log, lines[lines.len() - 8192..], "the last 8 KiB");
}

#[test]
fn cancelled_dropped_and_forgotten_jobs_have_notices() {
    let (deferd, dir) = start(",concurrency=1", &[]);
    let (mut client, hold) = (deferd.client(), Hold::new());
    let running = hold.start(&mut client);
    let waiting = client.store("POST", "/run/s-exit?1", b"");
    let forgotten = client.store("POST", "/run/s-exit?2", b"");
    client.put(&format!("/_api/job/{waiting}/cancel")).expect(200);
    wait_told(&mut client, &dir, 1);
    let (variables, _) = told_once(&dir, "done", &waiting);
    assert_eq!(variables["DEFERD_STATUS"], "410");
    client.delete(&format!("/_api/job/{forgotten}")).expect(200);
    client.put(&format!("/_api/job/{running}/cancel")).expect(200);
    wait_told(&mut client, &dir, 4);
    assert_eq!(told_once(&dir, "done", &running).0["DEFERD_STATUS"], "410");
    assert_eq!(told_once(&dir, "failure", &forgotten).0["DEFERD_EXIT_CODE"], "2");
    let file = dir.join("dropped");
    let target = format!("/run/c-append?{}", file.display());
    client.request("POST", &target, &[("x-arango-async", "true")], b"x").expect(202);
    let dropped = |entry: fs::DirEntry| {
        fs::read_to_string(entry.path()).unwrap().contains(&format!("DEFERD_TARGET={target}\n"))
    };
    wait_told(&mut client, &dir, 5);
    assert!(fs::read_dir(dir.join("told")).unwrap().map(Result::unwrap).any(dropped));
    settle(&mut client, &dir, 6);
    // A cancelled job has not failed.
    assert!(
        told(&dir, "failure", &waiting).is_empty() && told(&dir, "failure", &running).is_empty()
    );
    assert_eq!(client.jobs().len(), 2, "nothing but the cancelled jobs is listed");
}

#[test]
fn no_client_sees_a_notice_or_reaches_its_lane() {
    let (deferd, dir) = start("", &[]);
    let slow = Hold::new();
    let (script, target) = (fixtures().join("c-hold"), slow.target());
    let (_, base) = target.split_once('?').unwrap();
    let text = format!("#!/bin/sh\nQUERY_STRING={base} exec {}\n", script.display());
    executable(&dir.join("done"), &text);
    let mut client = deferd.client();
    let id = client.store("POST", "/run/s-cat", b"");
    slow.wait_for("started");
    assert_eq!(client.jobs(), [id.as_str()]);
    let records = client.get("/_admin/jobs").expect(200).json();
    assert_eq!(records["jobs"].as_array().unwrap().len(), 1, "{records}");
    let notice = id.parse::<u64>().unwrap() + 1;
    for n in notice..notice + 100 {
        client.put(&format!("/_api/job/{n}/cancel")).expect_error(404, 404);
    }
    client.delete("/_api/job/all").expect(200);
    for target in ["/completion", "/callback", "/on-done"] {
        deferd.client().get(target).expect_error(404, 404);
    }
    deferd.client().request("POST", "completion", &[], b"").expect(400);
    let metrics = client.get("/_admin/metrics").expect(200).text();
    assert!(metrics.contains(&of_completion("submitted", "", 1)), "{metrics}");
    slow.release();
    eventually("it is counted as done", || {
        let metrics = client.get("/_admin/metrics").expect(200).text();
        metrics.contains(&of_completion("finished", ",outcome=\"ok\"", 1))
    });
    let metrics = client.get("/_admin/metrics").expect(200).text();
    assert!(metrics.contains("deferd_job_run_seconds_count 1\n"), "notices are no jobs of clients");
}

#[test]
fn a_program_runs_again_after_a_kill() {
    let (dir, hold) = (TempDir::new(), Hold::new());
    let target = hold.target();
    let (_, base) = target.split_once('?').unwrap();
    let script = fixtures().join("c-hold");
    let text = format!("#!/bin/sh\nQUERY_STRING={base} exec {}\n", script.display());
    let program = executable(&dir.join("done"), &text);
    let route = format!("/run/=run:{},on-done={program}", fixtures().display());
    let data = dir.join("data").display().to_string();
    let arguments = ["--route", &route, "--data", &data];
    let mut deferd = Deferd::start(&arguments);
    let id = deferd.client().store("POST", "/run/s-cat", b"");
    hold.wait_for("started");
    deferd.signal("-KILL");
    deferd.wait();
    // The process that the kill has orphaned ends because of this.
    hold.forget();
    let deferd = Deferd::start(&arguments);
    hold.wait_for("started");
    hold.release();
    deferd.log_with(&format!("of={id} owner=- route=completion status=200"));
    deferd.client().result(&id).expect(200);
}

#[test]
fn a_failed_program_changes_no_job() {
    let (deferd, dir) = start("", &[]);
    executable(&dir.join("done"), "#!/bin/sh\necho why >&2\nexit 7\n");
    fs::remove_file(dir.join("failure")).unwrap();
    let mut client = deferd.client();
    let id = client.store("POST", "/run/s-exit?3", b"");
    let log = deferd.log_with("failed: exit status: 7");
    assert!(log.contains("stderr: why") && log.contains(&format!("of={id} on-done=")), "{log}");
    deferd.log_with(&format!("of={id} on-failure="));
    client.result(&id).expect(500);
}

#[test]
fn a_signed_route_tells_no_query() {
    let secret = TempDir::new();
    let file = secret.join("secret");
    fs::write(&file, "key").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let (deferd, dir) = start(&format!(",secret={},signature=github", file.display()), &[]);
    let code: String = HMAC::mac(b"", "key").iter().map(|byte| format!("{byte:02x}")).collect();
    let fields = [("x-arango-async", "store"), ("x-hub-signature-256", &*format!("sha256={code}"))];
    let mut client = deferd.client();
    let reply = client.request("POST", "/run/s-cat?hidden", &fields, b"").expect(202);
    wait_told(&mut client, &dir, 1);
    let (variables, _) = told_once(&dir, "done", reply.id().unwrap());
    assert_eq!(variables["DEFERD_TARGET"], "/run/s-cat");
    assert!(!variables.values().any(|value| value.contains("hidden")), "{variables:?}");
}

#[test]
fn a_program_that_a_url_leads_to_is_refused() {
    let dir = TempDir::new();
    let text = "#!/bin/sh\n";
    let [open, hidden, other, apart] = ["run/open", "run/.hooks/done", "other/x", "apart"]
        .map(|name| executable(&dir.join(name), text));
    std::os::unix::fs::symlink(&open, dir.join("link")).unwrap();
    std::os::unix::fs::symlink(&apart, dir.join("run/apart")).unwrap();
    fs::write(dir.join("plain"), text).unwrap();
    let at = |name: &str| dir.join(name).display().to_string();
    let [run, others, link, plain] = ["run", "other", "link", "plain"].map(at);
    let (to_link, missing) = (at("run/apart"), at("missing"));
    let below = "it lies below the directory of";
    for (program, what) in [
        ("open", Some(below)),
        ("../other/x", Some(below)),
        ("apart", Some(below)),
        (&open, Some(below)),
        (&hidden, Some(below)),
        (&other, Some(below)),
        (&link, Some(below)),
        (&to_link, Some(below)),
        (&missing, Some("No such file")),
        (&plain, Some("not a file that deferd may execute")),
        (&others, Some("below the directory")),
        (".hooks/done", None),
        (&apart, None),
    ] {
        let route = format!("/run/=run:{run},on-done={program}");
        let others = format!("/other/=cgi:{others}");
        let mut arguments = vec!["--listen", "127.0.0.1:0", "--route", &route, "--route", &others];
        match what {
            Some(what) => {
                let ended = run_deferd(&arguments);
                assert_eq!(ended.code, Some(2), "{program}: {}", ended.stderr);
                assert!(ended.stderr.contains(what), "{program}: {}", ended.stderr);
                assert!(ended.stderr.contains(&format!("on-done {program}")), "{}", ended.stderr);
            }
            None => {
                arguments.drain(..2);
                drop(Deferd::start(&arguments));
            }
        }
    }
    // If two routes share a directory, under whatever names, a hidden program is hidden from both.
    std::os::unix::fs::symlink(&run, dir.join("same")).unwrap();
    let same = format!("/same/=cgi:{}", at("same"));
    for (program, is_refused) in [(".hooks/done", false), ("open", true), (&hidden, true)] {
        let route = format!("/run/=run:{run},on-done={program}");
        let arguments = ["--route", &route, "--route", &same];
        if is_refused {
            assert!(run_deferd(&arguments).stderr.contains(below), "{program}");
        } else {
            drop(Deferd::start(&arguments));
        }
    }
    let ended = run_deferd(&["--route", "/up/=http://127.0.0.1:9/,on-failure=x"]);
    assert!(ended.stderr.contains("not an absolute path"), "{}", ended.stderr);
}

#[test]
fn links_that_may_reach_a_program_cause_a_warning() {
    let dir = TempDir::new();
    let program = executable(&dir.join("program"), "#!/bin/sh\n");
    fs::create_dir(dir.join("run")).unwrap();
    executable(&dir.join("run/.done"), "#!/bin/sh\n");
    let run = dir.join("run").display().to_string();
    for (program, links, is_warned) in
        [(&*program, "yes", true), (&program, "no", false), (".done", "yes", false)]
    {
        let route = format!("/run/=run:{run},on-done={program}");
        let other = format!("/other/=cgi:{run},links={links}");
        let deferd = Deferd::start(&["--route", &route, "--route", &other]);
        deferd.client().get("/_api/version").expect(200);
        let log = deferd.log_with("request=GET");
        let warns = log.contains("below the directory of /other/, which has links=yes");
        assert_eq!(warns, is_warned, "{program} links={links}: {log}");
    }
}
