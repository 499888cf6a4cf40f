//! The records of jobs: `/_admin/jobs`, its filters and pages, one record, and the content of a result as text.

use std::os::unix::fs::PermissionsExt;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::support::hold::Hold;
use crate::support::{Client, Deferd, TempDir, eventually, fixtures, run_deferd};
use serde_json::{Value, json};

const JOBS: &str = "/_admin/jobs";

fn record(client: &mut Client, id: &str) -> Value {
    client.get(&format!("{JOBS}/{id}")).expect(200).without_id().json()
}

/// Returns the ids of a page, and the id after which the list continues.
#[track_caller]
fn page(client: &mut Client, query: &str) -> (Vec<String>, Option<String>) {
    let page = client.get(&format!("{JOBS}?{query}")).expect(200).without_id().json();
    let ids = page["jobs"].as_array().unwrap().iter();
    let ids = ids.map(|record| record["id"].as_str().unwrap().to_owned()).collect();
    let next = page["next"].as_str().map(str::to_owned);
    assert_eq!(page["more"], next.is_some(), "{page}");
    (ids, next)
}

/// Returns the ids of the jobs that pass the filter; all of them are on one page.
#[track_caller]
fn ids(client: &mut Client, query: &str) -> Vec<String> {
    let (ids, next) = page(client, query);
    assert_eq!(next, None, "{query}");
    ids
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

#[test]
fn a_record_tells_of_its_job_from_waiting_to_done() {
    let deferd = Deferd::with_scripts("", &["--workers", "1", "--ttl", "100s"]);
    let (mut client, hold) = (deferd.client(), Hold::new());
    let before = now();
    let running = hold.start(&mut client);
    let waiting = client.store("PUT", "/_db/_system/_api/version?a=%22", b"x");
    let told = record(&mut client, &waiting);
    let created = told["created"].as_f64().unwrap();
    assert!((before..=now()).contains(&created), "{told}");
    let expected = json!({
        "id": waiting, "state": "waiting", "method": "PUT", "target": "/_api/version?a=%22",
        "route": "/_api/", "owner": "", "attempts": 0, "created": created, "started": null,
        "finished": null, "expires": null, "status": null, "exitCode": null, "bytes": 0,
        "progress": null,
    });
    assert_eq!(told, expected);
    let told = record(&mut client, &running);
    assert_eq!((&told["state"], &told["attempts"]), (&json!("running"), &json!(1)), "{told}");
    let (created, started) = (told["created"].as_f64(), told["started"].as_f64());
    assert!(created <= started && started.unwrap() <= now(), "{told}");
    assert_eq!((&told["method"], &told["route"]), (&json!("GET"), &json!("/run/")));
    assert_eq!(told["target"], hold.target());
    hold.release();
    client.wait_done(&waiting);
    let told = record(&mut client, &waiting);
    let (finished, expires) = (told["finished"].as_f64().unwrap(), told["expires"].as_f64());
    assert!((expires.unwrap() - finished - 100.0).abs() < 0.001, "{told}");
    assert_eq!((&told["state"], &told["status"]), (&json!("done"), &json!(200)), "{told}");
    assert_eq!((&told["bytes"], &told["attempts"]), (&json!(37), &json!(1)), "{told}");
    // The members have this order.
    let text = client.get(&format!("{JOBS}/{waiting}")).text();
    let names = "id state method target route owner attempts created started finished expires status \
        exitCode bytes progress";
    let places: Vec<_> = names.split(' ').map(|name| text.find(&format!("\"{name}\":"))).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{text}");
    client.put(&format!("/_api/job/{waiting}")).expect(200);
    client.get(&format!("{JOBS}/{waiting}")).expect_error(404, 404);
    client.get(&format!("{JOBS}/1")).expect_error(404, 404);
}

#[test]
fn a_record_shows_progress_attempts_and_exit_code() {
    let dir = TempDir::new();
    // Nothing listens there.
    let up = "/up/=http://127.0.0.1:1/,retry=2,backoff=1ms";
    let deferd = Deferd::with_scripts("", &["--workers", "4", "--route", up]);
    let mut client = deferd.client();
    let failed = client.store("GET", "/run/s-exit?3", b"");
    client.wait_done(&failed);
    let told = record(&mut client, &failed);
    assert_eq!((&told["status"], &told["exitCode"]), (&json!(500), &json!(3)), "{told}");
    assert_eq!(told["bytes"], "so far".len());
    let tried = client.store("GET", "/up/x", b"");
    client.wait_done(&tried);
    let told = record(&mut client, &tried);
    assert_eq!((&told["status"], &told["attempts"]), (&json!(502), &json!(3)), "{told}");
    let killed = client.store("GET", "/run/s-signal?KILL", b"");
    client.wait_done(&killed);
    let told = record(&mut client, &killed);
    assert_eq!((&told["status"], &told["exitCode"]), (&json!(500), &Value::Null), "{told}");
    let says = format!("/run/s-say?{}", dir.join("").display());
    let saying = client.store("POST", &says, b"step <1>\nstep \"2\"/3\n");
    eventually("it says so", || record(&mut client, &saying)["progress"] == "step \"2\"/3");
    std::fs::write(dir.join("go"), "").unwrap();
    client.wait_done(&saying);
    assert_eq!(record(&mut client, &saying)["progress"], Value::Null);
    let long = client.store("GET", &format!("/_admin/time?{}", "x".repeat(1000)), b"");
    client.wait_done(&long);
    let told = record(&mut client, &long);
    assert_eq!(told["target"], format!("/_admin/time?{}", "x".repeat(243)));
    let delayed = client.store("GET", "/_admin/sleep?duration=3600", b"");
    eventually("it sleeps", || record(&mut client, &delayed)["state"] == "delayed");
    let status = client.get(&format!("/_api/job/{delayed}")).expect(204);
    assert_eq!(status.header("x-job-state"), Some("delayed"));
    client.request("POST", &format!("/_api/job/{delayed}/cancel"), &[], b"").expect(200);
    client.wait_done(&delayed);
    assert_eq!(record(&mut client, &delayed)["status"], 410);
}

#[test]
fn a_record_says_whether_its_request_can_be_sent_again() {
    let dir = TempDir::new();
    let secret = dir.join("secret");
    std::fs::write(&secret, "plain\n").unwrap();
    std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).unwrap();
    let signed = format!(
        "/signed/=run:{},secret={},signature=gitlab",
        fixtures().display(),
        secret.display()
    );
    let deferd = Deferd::with_scripts("", &["--route", &signed]);
    let mut client = deferd.client();
    let long = format!("/run/s-done?{}", "x".repeat(300));
    let with_secret = ("x-gitlab-token", "plain");
    for (method, target, body, repeatable) in [
        ("GET", "/run/s-done?a=%2F", "", Some("yes")),
        ("POST", "/run/s-done", "", Some("yes")),
        ("POST", "/run/s-done", "x", None),
        ("GET", &long, "", None),
        ("GET", "/signed/s-done", "", None),
    ] {
        let fields = [("x-arango-async", "store"), with_secret];
        let reply = client.request(method, target, &fields, body.as_bytes()).expect(202);
        let id = reply.id().unwrap().to_owned();
        client.wait_done(&id);
        let record = client.get(&format!("{JOBS}/{id}")).expect(200);
        assert_eq!(record.header("x-repeatable"), repeatable, "{method} {target}");
    }
}

#[test]
fn filters_list_what_passes_all_of_them() {
    let deferd = Deferd::with_scripts("", &["--workers", "2"]);
    let (mut client, hold) = (deferd.client(), Hold::new());
    let ok = client.store("GET", "/_api/version", b"");
    let failed = client.store("GET", "/run/s-exit?1", b"");
    let missing = client.store("GET", "/_api/job/1", b"");
    let redirect = client.store("GET", "/cgi/c-status?302", b"");
    for id in [&ok, &failed, &missing, &redirect] {
        client.wait_done(id);
    }
    let delayed = client.store("GET", "/_admin/sleep?duration=3600", b"");
    eventually("it sleeps", || ids(&mut client, "state=delayed") == [&*delayed]);
    let running = hold.start(&mut client);
    let other = Hold::new();
    let second = other.start(&mut client);
    let waiting = client.store("GET", "/run/s-exit?0", b"");
    // A cancelled job has not failed.
    let cancelled = client.store("GET", "/_api/version", b"");
    client.put(&format!("/_api/job/{cancelled}/cancel")).expect(200);
    let all =
        [&ok, &failed, &missing, &redirect, &delayed, &running, &second, &waiting, &cancelled];
    for (query, expected) in [
        ("", &all[..]),
        ("state=waiting", &[&waiting]),
        ("state=running", &[&running, &second]),
        ("state=done", &[&ok, &failed, &missing, &redirect, &cancelled]),
        ("failed=1", &[&failed, &missing]),
        ("failed=0", &all),
        ("failed=1&state=running", &[]),
        ("route=/run/", &[&failed, &running, &second, &waiting]),
        ("route=%2Frun%2F&failed=1", &[&failed]),
        ("route=/run", &[]),
        ("route=/_api/&state=done", &[&ok, &missing, &cancelled]),
    ] {
        let expected: Vec<&str> = expected.iter().map(|id| id.as_str()).collect();
        assert_eq!(ids(&mut client, query), expected, "{query}");
        let head = client.request("HEAD", &format!("{JOBS}?{query}"), &[], b"").expect(200);
        assert_eq!(head.header("content-type"), Some("application/json; charset=utf-8"));
    }
    for query in [
        "state=pending",
        "failed=2",
        "count=0",
        "count=1001",
        "count=x",
        "after=x",
        "after=007",
        "route=",
        "limit=7",
        "order=up",
        "state=done&state=done",
    ] {
        let name = query.split('=').next().unwrap();
        let refused = client.get(&format!("{JOBS}?{query}")).expect_error(400, 400);
        assert!(refused.text().contains(name), "{query}: {}", refused.text());
    }
    for target in [format!("{JOBS}/{ok}?x"), format!("{JOBS}/{ok}/content?x=1")] {
        assert!(client.get(&target).expect_error(400, 400).text().contains('x'));
    }
    client.request("POST", JOBS, &[], b"").expect_error(405, 405);
}

#[test]
fn pages_go_on_behind_the_last_record() {
    let deferd = Deferd::with_scripts("", &["--workers", "1"]);
    let (mut client, hold) = (deferd.client(), Hold::new());
    let mut all: Vec<String> = (0..5).map(|_| client.store("GET", "/_api/version", b"")).collect();
    client.wait_done(&all[4]);
    all.push(hold.start(&mut client));
    all.extend((0..5).map(|_| client.store("GET", "/_api/version", b"")));
    for (count, order) in [1, 2, 3, 5, 10, 11, 12]
        .into_iter()
        .flat_map(|count| ["", "&order=oldest", "&order=newest"].map(|order| (count, order)))
    {
        let (mut seen, mut after) = (Vec::new(), "0".to_owned());
        loop {
            let (ids, next) = page(&mut client, &format!("count={count}&after={after}{order}"));
            assert!(ids.len() == count || next.is_none());
            seen.extend(ids);
            let Some(next) = next else { break };
            assert_eq!(seen.last(), Some(&next));
            after = next;
        }
        if order == "&order=newest" {
            seen.reverse();
        }
        assert_eq!(seen, all, "{order}");
        assert_eq!(seen.len(), 11);
    }
    let (none, next) = page(&mut client, "after=18446744073709551615");
    assert_eq!((none.len(), next), (0, None));
}

#[test]
fn the_lists_of_ids_go_on_where_their_link_says() {
    let deferd = Deferd::start(&[]);
    let mut client = deferd.client();
    let all: Vec<String> = (0..5).map(|_| client.store("GET", "/_api/version", b"")).collect();
    all.iter().for_each(|id| client.wait_done(id));
    for place in ["/_api/job/done", "/_admin/job/done/", "/_db/_system/_api/job/done"] {
        for (count, pages) in [(1, 5), (2, 3), (5, 1), (6, 1)] {
            let (mut seen, mut requests) = (Vec::new(), 0);
            let mut target = format!("{place}?count={count}");
            loop {
                let reply = client.get(&target).expect(200).without_id();
                let ids: Vec<String> = serde_json::from_value(reply.json()).unwrap();
                seen.extend(ids);
                requests += 1;
                let Some(link) = reply.header("link") else { break };
                let link = link.strip_suffix(">; rel=\"next\"").and_then(|l| l.strip_prefix('<'));
                target = link.expect("RFC 8288").to_owned();
            }
            assert_eq!((&seen, requests), (&all, pages), "{place}, {count}");
        }
        let rest = client.get(&format!("{place}?after={}", all[2])).expect(200);
        assert_eq!((rest.json(), rest.header("link")), (json!(all[3..]), None));
        let none = client.get(&format!("{place}?count=0")).expect(200);
        assert_eq!((none.json(), none.header("link")), (json!([]), None));
        let refused = client.get(&format!("{place}?after=x")).expect_error(400, 400);
        assert!(refused.text().contains("after"));
    }
}

#[test]
fn records_show_the_jobs_of_their_owner_alone() {
    let dir = TempDir::new();
    let mut lines = String::new();
    let tokens = ["ann", "bob"].map(|user| {
        let text = run_deferd(&["token", user]).stdout;
        let after = |what: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(what)).unwrap();
            line.to_owned()
        };
        lines += &(after("line for --auth: ") + "\n");
        format!("Bearer {}", after("token: "))
    });
    let users = dir.join("users");
    std::fs::write(&users, lines).unwrap();
    std::fs::set_permissions(&users, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let deferd = Deferd::start(&["--auth", users.to_str().unwrap()]);
    let mut client = deferd.client();
    let mut ask = |who: usize, target: &str, more: &[(&str, &str)]| {
        let fields = [&[("authorization", &*tokens[who])], more].concat();
        client.request("GET", target, &fields, b"")
    };
    let submitted = [0, 1].map(|who| {
        let reply = ask(who, "/_api/version", &[("x-arango-async", "store")]).expect(202);
        reply.id().unwrap().to_owned()
    });
    for (who, name) in ["ann", "bob"].into_iter().enumerate() {
        let page = ask(who, JOBS, &[]).expect(200).json();
        let jobs = page["jobs"].as_array().unwrap();
        assert_eq!(jobs.len(), 1);
        assert_eq!((&jobs[0]["id"], &jobs[0]["owner"]), (&json!(submitted[who]), &json!(name)));
        for below in ["", "/content"] {
            let foreign = format!("{JOBS}/{}{below}", submitted[1 - who]);
            ask(who, &foreign, &[]).expect_error(404, 404);
        }
    }
    deferd.client().get(JOBS).expect_error(401, 11);
}

#[test]
fn the_content_of_a_result_is_plain_text() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let hold = Hold::new();
    let pending = hold.start(&mut client);
    client.get(&format!("{JOBS}/{pending}/content")).expect(204).without_id();
    let html =
        client.store("POST", "/cgi/s-cat", b"Content-Type: text/html\nX-Own: yes\n\n<script>");
    let failed = client.store("GET", "/run/s-exit?3", b"");
    let large = client.store("GET", "/run/c-zeros?65537", b"");
    let mut expected = vec![(html, b"<script>".to_vec()), (failed, b"so far".to_vec())];
    expected.push((large, vec![0; 65536]));
    for (id, content) in expected {
        client.wait_done(&id);
        for _ in 0..2 {
            let reply = client.get(&format!("{JOBS}/{id}/content")).expect(200).without_id();
            assert_eq!(reply.body, content);
            assert_eq!(reply.header("content-type"), Some("text/plain; charset=utf-8"));
            assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
            assert_eq!(reply.header("content-security-policy"), Some("sandbox"));
            assert_eq!((reply.header("x-own"), reply.header("x-exit-code")), (None, None));
        }
    }
    client.get(&format!("{JOBS}/1/content")).expect_error(404, 404);
}

#[test]
fn a_segment_that_is_no_id_is_refused_by_name() {
    let deferd = Deferd::start(&[]);
    let mut client = deferd.client();
    for below in ["", "/content"] {
        for id in ["abc", "-1", "done", "1%20", "0x10"] {
            let reply = client.get(&format!("{JOBS}/{id}{below}")).expect_error(400, 400);
            let told = format!("bad parameter: \"{id}\" is not the id of a job");
            assert_eq!(reply.json()["errorMessage"], told);
            assert_eq!(reply.header("x-hint"), None, "it is no request of the job resource");
        }
        for id in ["0", "007", "18446744073709551616", "1"] {
            client.get(&format!("{JOBS}/{id}{below}")).expect_error(404, 404);
        }
    }
}

#[test]
fn records_outlive_a_restart_on_disk() {
    let dir = TempDir::new();
    let data = dir.join("data").display().to_string();
    let hold = Hold::new();
    let before = {
        let mut deferd = Deferd::with_scripts("", &["--data", &data, "--workers", "1"]);
        let mut client = deferd.client();
        let done = client.store("POST", "/run/s-exit?3", b"x");
        client.wait_done(&done);
        hold.start(&mut client);
        client.store("PUT", "/run/s-cat?q", b"x");
        let page = client.get(JOBS).expect(200).json();
        deferd.signal("-KILL");
        deferd.wait();
        page
    };
    let deferd = Deferd::with_scripts("", &["--data", &data]);
    let mut client = deferd.client();
    let id = |n: usize| before["jobs"][n]["id"].as_str().unwrap();
    client.wait_done(id(2));
    let after = client.get(JOBS).expect(200).json();
    assert_eq!(after["jobs"][0], before["jobs"][0], "nothing has changed");
    for name in ["id", "method", "target", "route", "owner", "created"] {
        assert_eq!(after["jobs"][1][name], before["jobs"][1][name], "{name}");
        assert_eq!(after["jobs"][2][name], before["jobs"][2][name], "{name}");
    }
    let interrupted = &after["jobs"][1];
    assert_eq!((&interrupted["status"], &interrupted["attempts"]), (&json!(500), &json!(1)));
    assert_eq!(interrupted["started"], Value::Null);
    assert_eq!(ids(&mut client, "failed=1"), [id(0), id(1)]);
    assert_eq!(after["jobs"][2]["status"], 200);
}
