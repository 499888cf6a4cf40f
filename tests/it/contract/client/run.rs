//! `deferd run`: it ends as the script does, and signals cancel the job.

use super::*;
use crate::support::hold::Hold;

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
fn a_failure_names_the_last_line_of_the_log() {
    let (_deferd, place) = start();
    let dir = TempDir::new();
    let gone = dir.join("none").display().to_string();
    let ended = place.run_with(&["run", &format!("/run/s-say?{gone}")], b"one\nthe \x1b[2Jend\n\n");
    assert_eq!(ended.code, Some(9));
    ended.says("exit code 9: the ?[2Jend");
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
