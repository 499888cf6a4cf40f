//! What several instances promise together, one property a test.

use std::process::Command;
use std::time::{Duration, Instant};

use super::audit::audit;
use super::engine::{DURABLE, Engine};
use super::proxy::{Proxy, Way};
use crate::support::hold::Hold;
use crate::support::{Client, Deferd, Reply, TempDir, eventually};

/// Instances on one engine, each with one worker and the scripts of the tests.
pub struct Instances {
    pub engine: Engine,
    pub all: Vec<Deferd>,
}

/// A job that runs on a chosen instance, and the jobs that keep the other instances busy.
pub struct RunsAt {
    pub hold: Hold,
    pub id: String,
    pub blockers: Vec<Hold>,
}

impl RunsAt {
    /// Lets the other instances continue.
    pub fn free_others(&mut self) {
        self.blockers.drain(..).for_each(|hold| hold.release());
    }
}

impl Instances {
    pub fn start(count: usize) -> Self {
        Self::with(count, "", &[])
    }

    pub fn with(count: usize, route_options: &str, options: &[&str]) -> Self {
        let engine = Engine::start(DURABLE);
        let address = engine.address();
        let all = (0..count).map(|_| start(&address, route_options, options)).collect();
        Self { engine, all }
    }

    pub fn client(&self, n: usize) -> Client {
        self.all[n].client()
    }

    /// Runs a job on an instance, submitted to another one.
    #[track_caller]
    pub fn run_at(&self, n: usize) -> RunsAt {
        let mut client = self.client((n + 1) % self.all.len());
        let mut blockers = Vec::new();
        for _ in 0..self.all.len() {
            let hold = Hold::new();
            let id = hold.start(&mut client);
            if runs_here(&self.all[n], &hold) {
                return RunsAt { hold, id, blockers };
            }
            blockers.push(hold);
        }
        panic!("no job runs on instance {n}");
    }

    /// Waits until an instance has a job's result, and collects it there. While the engine fails, the
    /// instance answers `503`, and is asked again.
    #[track_caller]
    pub fn result(&self, n: usize, id: &str) -> Reply {
        let mut reply = None;
        eventually("its result comes", || {
            let answer = self.client(n).put(&format!("/_api/job/{id}"));
            let is_there = !matches!(answer.status, 204 | 503);
            reply = Some(answer).filter(|_| is_there);
            is_there
        });
        reply.unwrap()
    }

    /// Submits a request to an instance until it accepts it; returns its id.
    #[track_caller]
    pub fn accepted(&self, n: usize, method: &str, target: &str, body: &[u8]) -> String {
        let mut id = None;
        eventually("a job is accepted", || {
            let reply =
                self.client(n).request(method, target, &[("x-arango-async", "store")], body);
            id = reply.id().filter(|_| reply.status == 202).map(str::to_owned);
            id.is_some()
        });
        id.unwrap()
    }

    /// Waits until an instance refuses jobs because the engine fails.
    #[track_caller]
    pub fn refuses(&self, n: usize) -> Reply {
        let mut refused = None;
        eventually("jobs are refused", || {
            let reply =
                self.client(n).request("POST", "/run/s-cat", &[("x-arango-async", "store")], b"x");
            refused = (reply.status == 503).then_some(reply);
            refused.is_some()
        });
        refused.unwrap()
    }

    /// Ends all instances in order, and audits what they leave.
    pub fn end(mut self) -> usize {
        for deferd in &mut self.all {
            deferd.signal("-TERM");
        }
        for deferd in &mut self.all {
            assert!(deferd.wait().success(), "{}", deferd.log());
        }
        audit(&mut self.engine.connect(), "default")
    }

    /// Does the same after deleting all jobs: nothing may be left, once the jobs that were waiting have run, and
    /// results that a client abandoned during delivery are restored.
    pub fn end_empty(self) {
        eventually("nothing is left", || {
            // Just after a failure of the engine it is refused.
            let deleted = self.client(0).delete("/_api/job/all").status == 200;
            deleted && audit(&mut self.engine.connect(), "default") == 0
        });
        assert_eq!(self.end(), 0);
    }
}

/// Returns whether an instance runs this script, whose environment has the query.
fn runs_here(deferd: &Deferd, hold: &Hold) -> bool {
    let target = hold.target();
    let (_, query) = target.split_once('?').unwrap();
    let has = |pid: &u32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.windows(query.len()).any(|part| part == query.as_bytes())
    };
    deferd.children().iter().any(has)
}

/// Starts an instance on the engine at this address.
pub fn start(address: &str, route_options: &str, options: &[&str]) -> Deferd {
    start_without("", address, route_options, options)
}

/// Starts an instance without one of the parts that guarantee the promises.
pub fn start_without(part: &str, address: &str, route_options: &str, options: &[&str]) -> Deferd {
    let mut command = Command::new(env!("CARGO_BIN_EXE_deferd"));
    command.env("DEFERD_TEST_WITHOUT", part);
    let own =
        ["--store", address, "--lease", "2s", "--workers", "1", "--grace", "5s", "--log-ttl", "0"];
    Deferd::with_scripts_by(command, route_options, &[&own, options].concat())
}

/// Asserts that the best of five runs is quick: the others may have met a busy machine.
#[track_caller]
fn assert_quick(most: Duration, run: impl FnMut() -> Duration) {
    let mut run = run;
    let best = (0..5).map(|_| run()).min().unwrap();
    assert!(best < most, "{best:?} at best");
}

#[test]
fn jobs_run_and_are_collected_on_any_instance() {
    let instances = Instances::start(3);
    let (mut a, mut c) = (instances.client(0), instances.client(2));
    let mut runs = instances.run_at(1);
    let id = runs.id.clone();
    a.get(&format!("/_api/job/{id}")).expect(204);
    assert_eq!(
        c.get(&format!("/_api/job/{id}")).expect(204).header("x-job-state"),
        Some("running")
    );
    runs.hold.release();
    assert_eq!(c.result(&id).text(), "let go\n");
    a.put(&format!("/_api/job/{id}")).expect(404);
    let echoed = a.store("POST", "/run/s-cat", b"from here");
    assert_eq!(c.result(&echoed).text(), "from here");
    // A body that is sent ahead of its script.
    let large = vec![b'x'; 300_000];
    let echoed = a.store("POST", "/run/s-cat", &large);
    assert!(c.result(&echoed).body == large, "large content comes back");
    runs.free_others();
    eventually("all is over", || a.list("pending").is_empty());
    instances.end_empty();
}

#[test]
fn the_queue_is_bounded_over_all_instances() {
    let instances = Instances::with(2, "", &["--queue", "3"]);
    let holds = [Hold::new(), Hold::new()];
    let (mut a, mut b) = (instances.client(0), instances.client(1));
    holds.iter().for_each(|hold| drop(hold.start(&mut a)));
    let ids: Vec<String> = (0..3).map(|_| a.store("POST", "/run/s-cat", b"x")).collect();
    let refused = b.request("POST", "/run/s-cat", &[("x-arango-async", "store")], b"x");
    assert!(refused.expect_error(503, 21003).header("retry-after").is_some());
    // The refusal has ended its connection.
    let mut b = instances.client(1);
    b.put(&format!("/_api/job/{}/cancel", ids[0])).expect(200);
    b.store("POST", "/run/s-cat", b"x");
    holds.iter().for_each(Hold::release);
    instances.end_empty();
}

#[test]
fn an_idempotency_key_is_known_to_all_instances() {
    let instances = Instances::start(2);
    let fields = [("x-arango-async", "store"), ("idempotency-key", "k-1")];
    let (mut a, mut b) = (instances.client(0), instances.client(1));
    let first = a.request("POST", "/run/s-cat", &fields, b"x").expect(202);
    let second = b.request("POST", "/run/s-cat", &fields, b"x").expect(202);
    assert_eq!(first.id(), second.id());
    b.request("POST", "/run/s-cat", &fields, b"y").expect(422);
    b.result(first.id().unwrap());
    let third = b.request("POST", "/run/s-cat", &fields, b"x").expect(202);
    assert_eq!(first.id(), third.id(), "also when it is gone");
    b.delete("/_api/job/all").expect(200);
    let fourth = a.request("POST", "/run/s-cat", &fields, b"x").expect(202);
    assert_ne!(first.id(), fourth.id());
    a.result(fourth.id().unwrap());
    instances.end();
}

#[test]
fn cancelling_on_one_instance_stops_the_script_on_another() {
    let instances = Instances::start(2);
    let mut a = instances.client(0);
    assert_quick(Duration::from_millis(500), || {
        let mut runs = instances.run_at(1);
        let began = Instant::now();
        a.put(&format!("/_api/job/{}/cancel", runs.id)).expect(200);
        a.wait_done(&runs.id);
        let took = began.elapsed();
        a.put(&format!("/_api/job/{}", runs.id)).expect(410);
        assert!(!runs.hold.has("ended"), "it was stopped");
        runs.free_others();
        eventually("all is over", || a.list("pending").is_empty());
        took
    });
    instances.end_empty();
}

#[test]
fn a_client_of_one_instance_is_woken_by_another() {
    let instances = Instances::start(2);
    let mut a = instances.client(0);
    assert_quick(Duration::from_millis(400), || {
        let mut runs = instances.run_at(1);
        let target = format!("/_api/job/{}", runs.id);
        a.send_request("PUT", &target, &[("prefer", "wait=30")], b"");
        let job = format!("deferd:{{default}}:j:{}", runs.id);
        eventually("it waits", || instances.engine.command(&["HEXISTS", &job, "w"]));
        let began = Instant::now();
        runs.hold.release();
        a.try_read("PUT").expect("an answer").expect(200);
        let took = began.elapsed();
        runs.free_others();
        took
    });
    instances.end_empty();
}

#[test]
fn log_and_progress_of_another_instance_are_shown() {
    let instances = Instances::start(2);
    let mut a = instances.client(0);
    let RunsAt { hold, id, blockers } = instances.run_at(1);
    eventually("its log comes", || a.get(&format!("/_api/job/{id}/log")).text() == "holding\n");
    eventually("its progress comes", || {
        a.get(&format!("/_api/job/{id}")).header("x-progress") == Some("holding")
    });
    let record = a.get(&format!("/_admin/jobs/{id}")).expect(200).json();
    assert_eq!((&record["state"], &record["progress"]), (&"running".into(), &"holding".into()));
    blockers.iter().for_each(Hold::release);
    hold.release();
    a.result(&id);
    instances.end();
}

#[test]
fn a_deletion_spares_a_delivery_of_another_instance() {
    let instances = Instances::start(2);
    let (mut a, mut b) = (instances.client(0), instances.client(1));
    let id = a.store("GET", "/run/h-big", b"");
    a.wait_done(&id);
    b.send_request("PUT", &format!("/_api/job/{id}"), &[], b"");
    b.wait_for_answer();
    a.put(&format!("/_api/job/{id}")).expect(404);
    a.delete("/_api/job/all").expect(200);
    let reply = b.try_read("PUT").expect("an answer").expect(200);
    assert_eq!(reply.body.len(), 16 << 20);
    eventually("nothing is left", || audit(&mut instances.engine.connect(), "default") == 0);
    assert_eq!(instances.end(), 0);
}

#[test]
fn jobs_of_an_unserved_route_wait() {
    let mut instances = Instances::start(1);
    let (hold, dir) = (Hold::new(), TempDir::new());
    let only = format!("/only/=run:{}", crate::support::fixtures().display());
    let b = start(&instances.engine.address(), "", &["--route", &only]);
    let mut client = b.client();
    hold.start(&mut client);
    let second = Hold::new();
    second.start(&mut client);
    let touched = dir.join("touched");
    let ids: Vec<String> = (0..2)
        .map(|_| client.store("POST", &format!("/only/c-touch?{}", touched.display()), b""))
        .collect();
    instances.all.push(b);
    let mut b = instances.all.pop().unwrap();
    b.signal("-TERM");
    hold.release();
    second.release();
    assert!(b.wait().success());
    let mut a = instances.client(0);
    let pending = a.list("pending");
    assert!(ids.iter().all(|id| pending.contains(id)), "{pending:?}");
    assert!(!touched.exists());
    a.put(&format!("/_api/job/{}/cancel", ids[0])).expect(200);
    a.put(&format!("/_api/job/{}", ids[0])).expect(410);
    let c = start(&instances.engine.address(), "", &["--route", &only]);
    a.result(&ids[1]).expect(200);
    assert!(touched.exists());
    instances.all.push(c);
    instances.end_empty();
}

#[test]
fn jobs_waiting_at_an_instances_end_go_elsewhere() {
    let mut instances = Instances::start(2);
    let runs = instances.run_at(1);
    let others = Hold::new();
    let mut a = instances.client(0);
    if instances.all[0].children().is_empty() {
        others.start(&mut a);
    }
    let ids: Vec<String> = (0..3).map(|_| a.store("POST", "/run/s-cat", b"x")).collect();
    let mut b = instances.all.pop().unwrap();
    b.signal("-TERM");
    runs.hold.release();
    assert!(b.wait().success());
    drop(runs);
    others.release();
    for id in ids {
        a.result(&id).expect(200);
    }
    instances.end_empty();
}

/// A job whose instance ends while the engine's reply is on its way there is given back, and has not begun.
#[test]
fn a_job_on_its_way_to_an_ending_instance_returns() {
    let instances = Instances::with(1, "", &["--lease", "20s"]);
    let proxy = Proxy::start(instances.engine.port);
    let mut b = start(&proxy.address(), "", &["--lease", "20s"]);
    let (first, second) = (Hold::new(), Hold::new());
    let mut a = instances.client(0);
    first.start(&mut a);
    // `b` may have taken it: then `a` gets another one.
    let third = (!runs_here(&instances.all[0], &first)).then(Hold::new);
    if let Some(third) = &third {
        third.start(&mut a);
        first.release();
        first.wait_for("ended");
    }
    // The answer to a request for a job, which has a job.
    proxy.hold(b"$4\r\njobs\r\n$1\r\n0\r\n$");
    let id = a.store("GET", &second.target(), b"");
    eventually("the engine gives it out", || proxy.hits() > 0);
    b.signal("-TERM");
    b.log_with("ending: ");
    proxy.set(Way::Open);
    let began = Instant::now();
    assert!(b.wait().success(), "{}", b.log());
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    a.get(&format!("/_api/job/{id}")).expect(204);
    assert!(!second.has("started"));
    third.as_ref().unwrap_or(&first).release();
    second.wait_for("started");
    second.release();
    a.result(&id).expect(200);
    instances.end_empty();
}

/// A redirected job is retried by the instance that holds it: no message of the engine ends that delay.
#[test]
fn a_redirected_job_is_retried_on_time() {
    let instances = Instances::with(1, ",retry=1,backoff=50ms,retry-on=7", &[]);
    let mut client = instances.client(0);
    assert_quick(Duration::from_millis(600), || {
        let began = Instant::now();
        let id = client.store("POST", "/cgi/s-cat", b"Location: /run/s-fail?7\n\n");
        client.wait_done(&id);
        let took = began.elapsed();
        let reply = client.result(&id).expect(500);
        assert_eq!(reply.header("x-attempts"), Some("2"), "{reply:?}");
        took
    });
    assert_eq!(instances.end(), 0);
}

/// A deferred sleep ends on time and a failed job is retried on time, whichever instance then runs it.
#[test]
fn delays_end_on_time_on_any_instance() {
    let instances = Instances::with(2, ",retry=2,backoff=100ms,retry-on=7", &[]);
    let (mut a, mut b) = (instances.client(0), instances.client(1));
    // The backoff is 100 ms, and then twice that.
    for (target, status) in [("/_admin/sleep?duration=0.3", 200), ("/run/s-fail?7", 500)] {
        assert_quick(Duration::from_millis(1500), || {
            let began = Instant::now();
            let id = a.store("GET", target, b"");
            b.wait_done(&id);
            let took = began.elapsed();
            assert!(took >= Duration::from_millis(300), "{target}: {took:?}");
            let reply = b.result(&id).expect(status);
            assert_eq!(reply.header("x-attempts"), (status == 500).then_some("3"), "{target}");
            took
        });
    }
    assert_eq!(instances.end(), 0);
}
