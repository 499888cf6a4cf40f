//! The commands for single steps: submitting content, and reading results, logs and lists.

use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use super::*;
use crate::support::hold::Hold;
use crate::support::upstream::{Then, Upstream};

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
    // Each line is a page.
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
fn a_failed_job_shows_in_the_exit_code() {
    let (_deferd, place) = start();
    let id = place.done("/run/s-exit?3");
    let ending = format!("job {id} ended with status 500, exit code 3");
    place.run(&["status", &id]).expect(1, "done: status 500, exit code 3\n");
    place.run(&["wait", &id]).expect(1, "").says(&ending);
    place.run(&["fetch", &id]).expect(1, "so far").says(&ending);
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
fn a_result_that_cannot_be_written_stays() {
    let (_deferd, place) = start();
    let id = place.done("/run/h-big");
    let stays = "the result is still there";
    place.run(&["fetch", "-o", "none/file", &id]).expect(3, "").says(stays);
    // Through a link: code that replaced the file must not reach the device itself.
    symlink("/dev/full", place.dir.join("full")).unwrap();
    place.run(&["fetch", "-o", "full", &id]).expect(3, "").says(stays);
    fs::remove_file(place.dir.join("full")).unwrap();
    place.run(&["fetch", "-o", ".", &id]).expect(3, "").says(stays);

    // For this process, the file system is full after 4 KiB.
    let limited = "trap '' XFSZ; ulimit -f 8; exec \"$0\" fetch -o file \"$1\" 2>/dev/null";
    fs::write(place.dir.join("file"), "as before").unwrap();
    let mut sh = Command::new("sh");
    sh.arg("-c").arg(limited).arg(env!("CARGO_BIN_EXE_deferd")).arg(&id).current_dir(&place.dir.0);
    let status = sh.env("DEFERD_URL", &place.url).status().unwrap();
    assert_eq!(status.code(), Some(3));
    assert_eq!(place.files(), ["file"], "the beginning is removed");
    assert_eq!(fs::read_to_string(place.dir.join("file")).unwrap(), "as before");

    // A reader that has left.
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
fn devices_and_links_are_written_and_not_replaced() {
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
fn a_wait_lasts_no_longer_than_it_was_given() {
    for (limit, asked) in [("400ms", None), ("1100ms", Some("wait=1"))] {
        let pending = Upstream::answering("HTTP/1.1 204 No Content\r\n\r\n", || Then::Close);
        let place = Place::at(format!("http://{}", pending.address));
        place.run(&["wait", "-t", limit, "5"]).expect(4, "");
        let received = pending.received();
        let (first, last) = (&received[0], received.last().unwrap());
        assert_eq!(first.all("prefer"), Vec::from_iter(asked), "{limit}");
        assert_eq!(last.all("prefer"), [""; 0], "less than a second is left");
    }
}

#[test]
fn a_wait_continues_if_deferd_does_not_wait() {
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
