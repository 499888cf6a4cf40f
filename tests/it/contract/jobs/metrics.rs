//! The metrics: the counts agree exactly with what was done.

use std::collections::BTreeMap;

use crate::support::hold::Hold;
use crate::support::{Ability, Client, Deferd, Reply, TempDir, eventually, lacks};

const STORE: (&str, &str) = ("x-arango-async", "store");

/// Samples by their names with their labels.
struct Samples(BTreeMap<String, f64>);

impl Samples {
    #[track_caller]
    fn read(client: &mut Client) -> Self {
        let reply = client.get("/_admin/metrics").expect(200).without_id();
        let kind = reply.header("content-type");
        assert_eq!(kind, Some("text/plain; version=0.0.4; charset=utf-8"));
        let text = reply.text();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let samples = lines.map(|line| {
            let (name, value) = line.rsplit_once(' ').expect("a sample");
            (name.to_owned(), value.parse().expect("a number"))
        });
        Self(samples.collect())
    }

    #[track_caller]
    fn get(&self, name: &str) -> f64 {
        *self.0.get(name).unwrap_or_else(|| panic!("{name} is missing: {:?}", self.0.keys()))
    }

    fn state(&self, state: &str) -> f64 {
        self.get(&format!("deferd_jobs{{state=\"{state}\"}}"))
    }

    fn submitted(&self, route: &str) -> f64 {
        self.get(&format!("deferd_jobs_submitted_total{{route=\"{route}\"}}"))
    }

    fn finished(&self, route: &str, outcome: &str) -> f64 {
        let labels = format!("route=\"{route}\",outcome=\"{outcome}\"");
        self.get(&format!("deferd_jobs_finished_total{{{labels}}}"))
    }

    fn refused(&self, reason: &str) -> f64 {
        self.get(&format!("deferd_jobs_refused_total{{reason=\"{reason}\"}}"))
    }
}

#[test]
fn jobs_are_counted_by_route_state_and_outcome() {
    let deferd = Deferd::with_scripts(",timeout=1s", &["--workers", "3"]);
    let mut client = deferd.client();
    let before = Samples::read(&mut client);
    assert!(before.0.iter().all(|(name, value)| !name.contains("_total") || *value == 0.0));
    let mut ids = Vec::new();
    for (target, fire) in [
        ("/run/s-exit?0", STORE),
        ("/run/s-exit?0", ("x-arango-async", "true")),
        ("/run/s-exit?1", STORE),
        ("/run/s-forever", STORE),
        ("/_api/version", STORE),
        ("/_api/job/1", STORE),
    ] {
        let reply = client.request("GET", target, &[fire], b"").expect(202);
        ids.extend(reply.id().map(str::to_owned));
    }
    ids.iter().for_each(|id| client.wait_done(id));
    let delayed = client.store("GET", "/_admin/sleep?duration=3600", b"");
    eventually("it sleeps", || Samples::read(&mut client).state("delayed") == 1.0);
    client.put(&format!("/_api/job/{delayed}/cancel")).expect(200);
    client.put(&format!("/_api/job/{}", ids[0])).expect(200);
    eventually("all are done", || {
        let now = Samples::read(&mut client);
        now.finished("/run/", "ok") == 2.0 && now.finished("/_admin/", "canceled") == 1.0
    });
    let now = Samples::read(&mut client);
    let routes = ["/run/", "/cgi/", "/_api/", "/_admin/", "*"];
    assert_eq!(routes.map(|route| now.submitted(route)), [4.0, 0.0, 2.0, 1.0, 0.0]);
    for (route, outcomes) in [
        ("/run/", [2.0, 1.0, 1.0, 0.0, 0.0]),
        ("/_api/", [1.0, 1.0, 0.0, 0.0, 0.0]),
        ("/_admin/", [0.0, 0.0, 0.0, 1.0, 0.0]),
    ] {
        let names = ["ok", "error", "timeout", "canceled", "interrupted"];
        assert_eq!(names.map(|name| now.finished(route, name)), outcomes, "{route}");
    }
    let states = ["waiting", "delayed", "running", "done"].map(|state| now.state(state));
    assert_eq!(states, [0.0, 0.0, 0.0, 5.0]);
    // All of them had begun.
    assert_eq!(now.get("deferd_job_wait_seconds_count"), 7.0);
    assert_eq!(now.get("deferd_job_run_seconds_count"), 7.0);
    assert!(now.get("deferd_job_run_seconds_sum") >= 1.0, "one took that long");
    assert_eq!(now.get("deferd_job_run_seconds_bucket{le=\"+Inf\"}"), 7.0);
    assert!(now.get("deferd_job_run_seconds_bucket{le=\"0.5\"}") <= 6.0);
    assert!(now.get("deferd_stored_bytes") > 0.0);
    assert!(now.get("deferd_stored_limit_bytes") > now.get("deferd_stored_bytes"));
    assert!(now.get("deferd_memory_limit_bytes") > now.get("deferd_memory_bytes"));
    assert_eq!(now.get("deferd_store_errors_total"), 0.0);
    assert_eq!(now.get("deferd_log_lines_dropped_total"), 0.0);
    let build = now.0.keys().find(|name| name.starts_with("deferd_build_info{")).unwrap();
    assert!(build.contains(env!("CARGO_PKG_VERSION")), "{build}");
}

#[test]
fn a_waiting_job_grows_old_and_refusals_have_their_reasons() {
    let deferd = Deferd::with_scripts("", &["--workers", "1", "--queue", "1"]);
    let (mut client, hold) = (deferd.client(), Hold::new());
    hold.start(&mut client);
    assert_eq!(Samples::read(&mut client).get("deferd_oldest_waiting_seconds"), 0.0);
    let named = [STORE, ("idempotency-key", "one")];
    client.request("GET", "/_api/version", &named, b"").expect(202);
    let age = || Samples::read(&mut deferd.client()).get("deferd_oldest_waiting_seconds");
    eventually("it grows old", || age() > 0.1);
    for _ in 0..3 {
        client.request("GET", "/_api/version", &[STORE], b"").expect_error(503, 21003);
    }
    client.request("GET", "/_api/version", &named, b"").expect(202);
    client.request("GET", "/_admin/time", &named, b"").expect_error(422, 422);
    let now = Samples::read(&mut client);
    assert_eq!((now.refused("queue_full"), now.refused("key_reused")), (3.0, 1.0));
    // A known submission is not a new job.
    assert_eq!((now.submitted("/_api/"), now.submitted("/run/")), (1.0, 1.0));
    assert_eq!((now.state("waiting"), now.state("running")), (1.0, 1.0));
}

/// Asserts that a refusal names its limit, and that it is counted for this reason alone.
#[track_caller]
fn assert_refused(deferd: &Deferd, reply: &Reply, words: &str, reason: &str) {
    let told = reply.json()["errorMessage"].as_str().unwrap().to_owned();
    assert!(told.contains(words), "{told}");
    assert!(reply.id().is_none());
    let samples = Samples::read(&mut deferd.client());
    let reasons = samples.0.iter().filter(|(name, _)| name.starts_with("deferd_jobs_refused"));
    let counted: Vec<_> = reasons.filter(|(_, count)| **count > 0.0).collect();
    let expected = format!("deferd_jobs_refused_total{{reason=\"{reason}\"}}");
    assert_eq!(counted, [(&expected, &1.0)]);
}

#[test]
fn a_refusal_names_its_limit_and_is_counted_for_it() {
    let kept = "/run/c-zeros?12000";
    for (options, kept, content, key, status, words, reason) in [
        (["--queue", "1"], None, 0, "", 503, "as many jobs wait as --queue 1 allows", "queue_full"),
        (
            ["--max-stored", "16K"],
            Some(kept),
            6000,
            "",
            503,
            "the stored jobs have reached --max-stored 16K",
            "store_full",
        ),
        (
            ["--max-stored", "16K"],
            None,
            20_000,
            "",
            413,
            "more than --max-stored 16K can hold",
            "too_large",
        ),
        (
            ["--max-stored", "5K"],
            None,
            0,
            &"k".repeat(255),
            503,
            "keys have reached a quarter of --max-stored 5K",
            "many_keys",
        ),
    ] {
        let deferd = Deferd::with_scripts("", &[&["--workers", "1"], &options[..]].concat());
        let (mut client, hold) = (deferd.client(), Hold::new());
        if let Some(target) = kept {
            let id = client.store("GET", target, b"");
            client.wait_done(&id);
        }
        if reason == "queue_full" {
            hold.start(&mut client);
            client.store("GET", "/_api/version", b"");
        }
        let content = vec![b'x'; content];
        let refused = (0..64).find_map(|n| {
            let key = format!("{n:0>3}{key}");
            let mut fields = vec![STORE];
            if reason == "many_keys" {
                fields.push(("idempotency-key", &key[..255]));
            }
            // If content is not read, the connection ends.
            let reply = deferd.client().request("POST", "/_api/version", &fields, &content);
            (reply.status != 202).then_some(reply)
        });
        let refused = refused.expect("a refusal").expect(status);
        assert_refused(&deferd, &refused, words, reason);
        hold.release();
    }
}

#[test]
fn jobs_refused_at_the_end_are_counted() {
    let mut deferd = Deferd::with_scripts("", &["--grace", "60s"]);
    let (mut client, hold) = (deferd.client(), Hold::new());
    hold.start(&mut client);
    // Opened before the shutdown begins, after which no connection is accepted.
    let (mut first, mut second) = (deferd.client(), deferd.client());
    for client in [&mut first, &mut second] {
        client.get("/_api/version").expect(200);
    }
    deferd.signal("-TERM");
    deferd.log_with("ending: ");
    let reply = first.request("GET", "/_api/version", &[STORE], b"").expect_error(503, 503);
    assert!(reply.text().contains("shutting down"), "{}", reply.text());
    assert_eq!(Samples::read(&mut second).refused("shutting_down"), 1.0);
    hold.release();
    assert!(deferd.wait().success());
}

#[test]
fn requests_and_connections_are_counted() {
    let deferd = Deferd::start(&[]);
    let mut client = deferd.client();
    let before = Samples::read(&mut client);
    for _ in 0..5 {
        client.get("/_api/version").expect(200);
    }
    client.get("/nowhere").expect_error(404, 404);
    let now = Samples::read(&mut client);
    let name = "deferd_http_request_duration_seconds_count";
    // Including the earlier request that read it.
    assert_eq!(now.get(name) - before.get(name), 7.0);
    let started = now.get("process_start_time_seconds");
    let since = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64() - started;
    assert!((0.0..600.0).contains(&since), "{started}");
    if lacks(Ability::ManyConnections) {
        return;
    }
    let open = now.get("deferd_connections");
    let others: Vec<Client> = (0..3).map(|_| deferd.client()).collect();
    let connections = |client: &mut Client| Samples::read(client).get("deferd_connections");
    eventually("they are open", || connections(&mut client) == open + 3.0);
    drop(others);
    eventually("they are gone", || connections(&mut client) == open);
}

#[test]
fn an_interrupted_job_is_counted_by_the_next_start() {
    let (dir, hold) = (TempDir::new(), Hold::new());
    let data = dir.join("data").display().to_string();
    let mut deferd = Deferd::with_scripts("", &["--data", &data]);
    hold.start(&mut deferd.client());
    deferd.signal("-KILL");
    deferd.wait();
    let deferd = Deferd::with_scripts("", &["--data", &data]);
    let mut client = deferd.client();
    eventually("it is done", || Samples::read(&mut client).finished("/run/", "interrupted") == 1.0);
    let now = Samples::read(&mut client);
    // The previous process had accepted it.
    assert_eq!((now.submitted("/run/"), now.state("done")), (0.0, 1.0));
}
