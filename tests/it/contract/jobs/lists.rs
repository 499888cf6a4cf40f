//! The lists of done and pending jobs, and forgetting: one job, all jobs, or those before a stamp.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::support::hold::Hold;
use crate::support::{Client, Deferd, TempDir, eventually};
use serde_json::json;

/// Returns the current time, as a stamp with six decimals.
fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    format!("{}.{:06}", since.as_secs(), since.subsec_micros())
}

fn store_done(client: &mut Client) -> String {
    let id = client.store("GET", "/_api/version", b"");
    client.wait_done(&id);
    id
}

#[track_caller]
fn forget(client: &mut Client, which: &str) {
    let reply = client.delete(&format!("/_api/job/{which}")).expect(200).without_id();
    assert_eq!(reply.text(), r#"{"result":true}"#);
}

#[test]
fn the_lists_are_empty_arrays_at_first() {
    let deferd = Deferd::start(&[]);
    for place in ["/_api/job", "/_admin/job", "/_db/_system/_api/job"] {
        for list in ["done", "pending", "done/", "pending/?count=7"] {
            let reply = deferd.client().get(&format!("{place}/{list}")).expect(200).without_id();
            assert_eq!(reply.json(), json!([]));
        }
    }
}

#[test]
fn ids_are_listed_as_strings_in_ascending_order() {
    let deferd = Deferd::with_scripts("", &["--workers", "4"]);
    let mut client = deferd.client();
    let holds = [(); 3].map(|()| Hold::new());
    let ids = holds.each_ref().map(|hold| hold.start(&mut client));
    assert_eq!(client.get("/_api/job/pending").expect(200).json(), json!(ids));
    assert_eq!(client.list("done"), [""; 0]);
    for n in [2, 0, 1] {
        holds[n].release();
        client.wait_done(&ids[n]);
        assert!(!client.list("pending").contains(&ids[n]));
    }
    let done = client.get("/_api/job/done").expect(200).without_id();
    assert_eq!(done.text(), format!(r#"["{}","{}","{}"]"#, ids[0], ids[1], ids[2]));
    assert_eq!(client.list("done"), ids, "listing changes nothing");
}

#[test]
fn a_list_holds_at_most_count_ids_the_oldest_first() {
    let deferd = Deferd::with_scripts("", &["--workers", "1"]);
    let mut client = deferd.client();
    let hold = Hold::new();
    let mut ids = vec![hold.start(&mut client)];
    ids.extend((0..103).map(|_| client.store("GET", "/_api/version", b"")));
    for list in ["pending", "done"] {
        assert_eq!(client.list(list), ids[..100], "100 by default");
        for (count, expected) in [
            ("0", 0),
            ("1", 1),
            ("100", 100),
            ("103", 103),
            ("104", 104),
            ("105", 104),
            ("007", 7),
            ("99999999999999999999999999", 104),
        ] {
            assert_eq!(client.list(&format!("{list}?count={count}")), ids[..expected], "{count}");
        }
        hold.release();
        client.wait_done(ids.last().unwrap());
    }
    assert_eq!(client.list("pending"), [""; 0]);
}

/// Contract: more than 10 000 counts as 10 000.
#[test]
fn a_list_holds_at_most_10_000_ids() {
    const CLIENTS: usize = 55;
    let deferd = Deferd::start(&["--queue", "20000"]);
    // Many at once: on disk, they share commits.
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            let mut client = deferd.client();
            scope.spawn(move || {
                for _ in 0..10_010 / CLIENTS {
                    client.store("GET", "/_api/version", b"");
                }
            });
        }
    });
    let mut client = deferd.client();
    let listed = |client: &mut Client, count: &str| {
        ["done", "pending"].map(|list| client.list(&format!("{list}?count={count}")).len())
    };
    eventually("all are done", || listed(&mut client, "1")[1] == 0);
    for count in ["10000", "10001", "99999999999999999999999"] {
        assert_eq!(listed(&mut client, count), [10_000, 0], "{count}");
    }
    assert_eq!(listed(&mut client, "9999"), [9999, 0]);
}

#[test]
fn a_count_that_is_no_number_is_400() {
    let deferd = Deferd::start(&[]);
    let mut client = deferd.client();
    for list in ["done", "pending"] {
        for count in
            ["", "x", "-1", "-0", "+1", "1.5", "1x", "%20", "1%20", "0x1", "1e3", "NaN", "null"]
        {
            let reply = client.get(&format!("/_api/job/{list}?count={count}"));
            let message = reply.expect_error(400, 400).without_id().json()["errorMessage"].clone();
            assert!(message.as_str().unwrap().starts_with("bad parameter: "), "{message}");
        }
    }
}

#[test]
fn forgotten_jobs_still_run_and_leave_nothing() {
    let deferd = Deferd::with_scripts("", &["--workers", "1"]);
    for forget_by in ["ID", "all", "expired?stamp=99999999999"] {
        let mut client = deferd.client();
        let (hold, dir) = (Hold::new(), TempDir::new());
        let running = hold.start(&mut client);
        let touch = format!("/run/c-touch?{}", dir.join("ran").display());
        let queued = client.store("GET", &touch, b"");
        for id in [&running, &queued] {
            let before = client.get(&format!("/_api/job/{id}")).status;
            assert_eq!(before == 204, forget_by == "ID" || id == &running);
            forget(&mut client, &forget_by.replace("ID", id));
            client.get(&format!("/_api/job/{id}")).expect_error(404, 404);
            client.put(&format!("/_api/job/{id}/cancel")).expect_error(404, 404);
        }
        assert_eq!(client.list("pending"), [""; 0]);
        hold.release();
        hold.wait_for("ended");
        // The only worker runs this job after the others.
        let marker = store_done(&mut client);
        assert!(dir.join("ran").exists());
        assert_eq!(client.list("done"), [marker.as_str()]);
        client.delete(&format!("/_api/job/{running}")).expect_error(404, 404);
        forget(&mut client, &marker);
    }
}

#[test]
fn all_forgets_earlier_jobs_and_no_later_ones() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    forget(&mut client, "all");
    let done = store_done(&mut client);
    let hold = Hold::new();
    let running = hold.start(&mut client);
    forget(&mut client, "all/");
    assert_eq!(client.jobs(), [""; 0]);
    for id in [done, running] {
        client.put(&format!("/_api/job/{id}")).expect_error(404, 404);
    }
    let later = store_done(&mut client);
    assert_eq!(client.list("done"), [later]);
    hold.release();
}

#[test]
fn a_missing_or_invalid_stamp_forgets_nothing() {
    let deferd = Deferd::start(&[]);
    let mut client = deferd.client();
    let id = store_done(&mut client);
    for query in [
        "",
        "?",
        "?stamp",
        "?stamp=",
        "?stamp=x",
        "?stamp=9999999999x",
        "?stamp=0x7fffffff",
        "?stamp=%20",
        "?stamp=9999999999%2C5",
        "?stamp=NaN",
        "?stamp=inf",
        "?count=9999999999",
        "?stamps=9999999999",
        "?stamp=9999999999%009",
        "?stamp=1e999",
    ] {
        let reply = client.delete(&format!("/_api/job/expired{query}")).expect_error(400, 400);
        let message = reply.json()["errorMessage"].as_str().unwrap().to_owned();
        assert!(message.starts_with("bad parameter"), "{query}: {message}");
    }
    assert_eq!(client.list("done"), [id]);
}

#[test]
fn expired_forgets_what_is_stamped_before_and_keeps_the_rest() {
    let deferd = Deferd::with_scripts("", &["--workers", "2"]);
    let mut client = deferd.client();
    let early = now();
    let first = store_done(&mut client);
    let hold = Hold::new();
    let running = hold.start(&mut client);
    let between = now();
    let second = store_done(&mut client);
    for stamp in [early.as_str(), "0", "-5", "1385372569", "1.5", "-1.5e3"] {
        forget(&mut client, &format!("expired?stamp={stamp}"));
    }
    assert_eq!(client.list("done"), [first.as_str(), second.as_str()]);
    assert_eq!(client.list("pending"), [running.as_str()]);
    // The fraction counts: all of this is likely to happen within one second.
    forget(&mut client, &format!("expired?stamp={between}"));
    assert_eq!(client.list("done"), [second.as_str()]);
    assert_eq!(client.list("pending"), [""; 0], "the pending job was stamped when it was created");
    let late = now();
    forget(&mut client, &format!("expired/?stamp={late}"));
    assert_eq!(client.list("done"), [""; 0]);
    hold.release();
}

#[test]
fn a_jobs_stamp_becomes_the_time_of_its_completion() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let hold = Hold::new();
    let id = hold.start(&mut client);
    let between = now();
    hold.release();
    client.wait_done(&id);
    forget(&mut client, &format!("expired?stamp={between}"));
    client.get(&format!("/_api/job/{id}")).expect(200);
    let late = now();
    forget(&mut client, &format!("expired?stamp={late}"));
    client.get(&format!("/_api/job/{id}")).expect_error(404, 404);
}

#[test]
fn peeking_and_asking_do_not_change_a_jobs_stamp() {
    let deferd = Deferd::start(&[]);
    let mut client = deferd.client();
    let id = store_done(&mut client);
    let after = now();
    client.get(&format!("/_api/job/{id}")).expect(200);
    client.get(&format!("/_api/job/{id}/result")).expect(200);
    client.put(&format!("/_api/job/{id}/cancel")).expect(200);
    forget(&mut client, &format!("expired?stamp={after}"));
    client.get(&format!("/_api/job/{id}")).expect_error(404, 404);
}
