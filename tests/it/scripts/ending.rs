//! Processes that a script started and left behind: they end with the script if it is ended; otherwise they have a
//! moment.

use std::process::Command;
use std::time::{Duration, Instant};

use super::processes::{CANCELLED, Ended, Holdings, Place, assert_error, run_both, store_running};
use crate::support::{Ability, Deferd, eventually, lacks, not_tested};

/// Scripts that start processes which leave their group.
const LEAVING: [&str; 3] = ["/run/e-timeout", "/run/e-monitor", "/run/e-orphans"];

/// Asserts that nothing of the script runs once it has ended.
#[track_caller]
fn assert_nothing_runs_now(place: &Place) {
    assert_eq!(place.processes(), [0; 0], "they outlive their job");
}

#[test]
fn cancelling_ends_descendants_outside_the_group() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let before = Holdings::at_rest(&deferd, &mut client);
    for script in LEAVING {
        let place = Place::new();
        let id = store_running(&mut client, &place.target(script));
        client.put(&format!("/_api/job/{id}/cancel")).expect(200);
        assert_eq!(client.result(&id).expect(410).text(), CANCELLED);
        assert_nothing_runs_now(&place);
    }
    before.assert_restored(&deferd);
}

#[test]
fn the_time_limit_ends_descendants_outside_the_group() {
    let deferd = Deferd::with_scripts(",timeout=700ms", &[]);
    let mut client = deferd.client();
    client.get("/run/s-forever").expect(504);
    let before = Holdings::of(&deferd);
    for script in LEAVING {
        let place = Place::new();
        assert_error(&client.get(&place.target(script)), 504);
        assert_nothing_runs_now(&place);
        let id = client.store("GET", &place.target(script), b"");
        assert_error(&client.result(&id), 504);
        assert_nothing_runs_now(&place);
    }
    before.assert_restored(&deferd);
}

#[test]
fn the_output_limit_ends_descendants_outside_the_group() {
    let deferd = Deferd::with_scripts(",max-output=100K", &[]);
    let mut client = deferd.client();
    let before = Holdings::at_rest(&deferd, &mut client);
    for script in ["/run/e-flood", "/cgi/e-flood"] {
        let place = Place::new();
        if script.starts_with("/cgi/") && !lacks(Ability::Flow) {
            let mut client = deferd.client();
            client.send_request("GET", &place.target(script), &[], b"");
            client.read_broken().expect(200);
        } else {
            assert_error(&client.get(&place.target(script)), 502);
        }
        assert_nothing_runs_now(&place);
        let id = client.store("GET", &place.target(script), b"");
        assert_error(&client.result(&id), 502);
        assert_nothing_runs_now(&place);
    }
    before.assert_restored(&deferd);
}

#[test]
fn the_end_of_deferd_ends_descendants_outside_the_group() {
    for (grace, signals) in [("100ms", 1), ("10m", 2)] {
        for script in LEAVING {
            let mut deferd = Deferd::with_scripts("", &["--grace", grace]);
            let place = Place::new();
            let _waiting = run_both(&deferd, &place, script);
            for _ in 0..signals {
                deferd.signal("-TERM");
                eventually("it begins to end", || deferd.log().contains("ending"));
            }
            deferd.wait();
            assert_nothing_runs_now(&place);
        }
    }
}

/// A process with neither the variable of its run nor a place in its group is still found through its parents.
#[test]
fn cancelling_ends_a_program_of_another_user() {
    if !Command::new("id").arg("-u").output().unwrap().stdout.starts_with(b"0\n") {
        return not_tested("a program of another user, which only root may become");
    }
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let place = Place::new();
    let id = store_running(&mut client, &place.target("/run/e-su"));
    let sleeps = || place.processes().len() == 1;
    eventually("su has started the program", sleeps);
    client.put(&format!("/_api/job/{id}/cancel")).expect(200);
    client.result(&id).expect(410);
    assert_nothing_runs_now(&place);
}

/// It could be a descendant that is executing a program at this moment; but not for ever.
#[test]
fn a_daemon_without_environment_delays_no_end() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let place = Place::new();
    client.get(&place.target("/run/e-bare")).expect(200);
    let pid = std::fs::read_to_string(place.sign("pid")).unwrap().trim().parse().unwrap();
    let daemon = Ended(pid);
    let id = store_running(&mut client, &place.target("/run/e-timeout"));
    let begin = Instant::now();
    client.put(&format!("/_api/job/{id}/cancel")).expect(200);
    client.result(&id).expect(410);
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    assert_nothing_runs_now(&place);
    eventually("only the daemon lives on", || deferd.children() == [daemon.0]);
}

#[test]
fn descendants_may_tidy_up_after_sigterm() {
    for (options, status) in [("", 410), (",timeout=2s", 504)] {
        let deferd = Deferd::with_scripts(&format!("{options},max-output=1K"), &[]);
        let mut client = deferd.client();
        let place = Place::new();
        let id = store_running(&mut client, &place.target("/run/e-tidy"));
        if status == 410 {
            client.put(&format!("/_api/job/{id}/cancel")).expect(200);
        }
        client.result(&id).expect(status);
        assert!(place.sign("tidied").exists(), "{status}: done before all have tidied up");
        assert_nothing_runs_now(&place);
    }
}

#[test]
fn a_limit_kills_a_stubborn_script_after_1_s() {
    let deferd = Deferd::with_scripts(",timeout=2s", &[]);
    let mut client = deferd.client();
    let place = Place::new();
    let id = store_running(&mut client, &place.target("/run/s-stubborn"));
    client.result(&id).expect(504);
    assert!(place.sign("noticed").exists(), "SIGTERM comes first");
    assert_nothing_runs_now(&place);
    let mut seconds = 0.0;
    eventually("the run is logged", || {
        let log = deferd.log();
        let run = log.split_once("run=").and_then(|(_, rest)| rest.split_once('s'));
        seconds = run.map_or(0.0, |(seconds, _)| seconds.parse().unwrap());
        run.is_some()
    });
    // The time limit, and 1 s more; a script that is stopped has 5 s.
    assert!((3.0..6.9).contains(&seconds), "{seconds}");
}

#[test]
fn what_stays_in_the_group_is_killed_and_counted() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let before = Holdings::at_rest(&deferd, &mut client);
    let (one, three) = (Place::new(), Place::new());
    client.get(&one.target("/run/e-lock")).expect(200);
    let id = client.store("GET", &three.target("/run/s-background"), b"");
    client.result(&id).expect(200);
    one.assert_nothing_runs();
    three.assert_nothing_runs();
    eventually("both are logged", || deferd.log().matches(" killed ").count() == 2);
    let log = deferd.log();
    assert!(log.contains("job=- script=e-lock killed 1 process that was left"), "{log}");
    let said = format!("job={id} script=s-background killed 3 processes that were left");
    assert!(log.contains(&said), "{log}");
    before.assert_restored(&deferd);
}

/// The answer to one of several runs arrives before the processes that it left are killed.
#[test]
fn the_result_does_not_wait_for_the_group() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let place = Place::new();
    let answered_before = (0..9).any(|_| {
        client.get(&place.target("/run/e-lock")).expect(200);
        !place.processes().is_empty()
    });
    assert!(answered_before);
    place.assert_nothing_runs();
}

#[test]
fn a_lane_of_one_never_runs_two() {
    // Processes left in the group keep the place; a process that has left the group is ended with the run.
    for (options, script, status) in
        [("", "/run/e-lock", 200), (",timeout=300ms", "/run/e-lock-apart", 504)]
    {
        let deferd = Deferd::with_scripts(&format!(",concurrency=1{options}"), &["--workers", "3"]);
        let place = Place::new();
        let target = place.target(script);
        let mut client = deferd.client();
        let ids: Vec<String> = (0..4).map(|_| client.store("GET", &target, b"")).collect();
        let mut callers: Vec<_> = (0..2).map(|_| deferd.client()).collect();
        for caller in &mut callers {
            caller.send_request("GET", &target, &[], b"");
        }
        for id in &ids {
            client.result(id).expect(status);
        }
        // A caller waits for its turn for as long as it may run.
        for caller in &mut callers {
            let reply = caller.try_read("GET").unwrap();
            assert!(reply.status == status || reply.status == 504, "{reply:?}");
        }
        assert!(!place.sign("clash").exists(), "{script}: two at once");
        place.assert_nothing_runs();
        // All places were given back.
        client.get(&target).expect(status);
    }
}

#[test]
fn a_daemon_has_time_to_leave_the_group() {
    const RUNS: usize = 100;
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let place = Place::new();
    for _ in 0..RUNS {
        assert_eq!(client.get(&place.target("/run/e-setsid")).expect(200).text(), "started\n");
    }
    // The time of the last run that leaves something ends after that of all others.
    let last = Place::new();
    client.get(&last.target("/run/e-lock")).expect(200);
    eventually("what the last has left is killed", || deferd.log().contains(" killed "));
    let daemons: Vec<Ended> = place.processes().into_iter().map(Ended).collect();
    assert_eq!(daemons.len(), RUNS, "{}", deferd.log());
    assert_eq!(deferd.log().matches(" killed ").count(), 1);
    drop(daemons);
    eventually("deferd reaps what it inherited", || deferd.children().is_empty());
}

#[test]
fn scripts_get_no_ignored_signal_and_deferd_survives_them() {
    let mut deferd = Deferd::with_scripts("", &[]);
    for signal in ["-USR1", "-USR2", "-HUP"] {
        deferd.signal(signal);
    }
    let reply = deferd.client().get("/run/e-usr1").expect(500);
    assert_eq!(reply.header("x-exit-signal"), Some("10"));
    eventually("the reload is logged", || deferd.log().contains("options are read only at start"));
    deferd.signal("-TERM");
    assert!(deferd.wait().success());
}
