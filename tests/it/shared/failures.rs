//! What happens when an instance, the engine, or the connection between them fails: the rows of the contract's table.

use std::time::{Duration, Instant};

use super::audit::audit;
use super::engine::{DURABLE, Engine};
use super::instances::{Instances, RunsAt, start};
use super::proxy::{Proxy, Way};
use crate::support::hold::Hold;
use crate::support::{Client, TempDir, eventually, run_deferd};

/// The lease of these instances.
const LEASE: Duration = Duration::from_secs(2);

/// How much time a loaded machine may add, at best.
const SLACK: Duration = Duration::from_secs(1);

/// Asserts that a job ends as interrupted.
#[track_caller]
fn assert_interrupted(client: &mut Client, id: &str) {
    let reply = client.result(id).expect(500);
    assert!(reply.text().contains("interrupted"), "{}", reply.text());
}

#[test]
fn a_job_whose_instance_died_is_interrupted_within_the_lease() {
    let took = (0..3).map(|_| {
        let mut instances = Instances::start(2);
        let mut runs = instances.run_at(1);
        let waits = instances.client(0).store("POST", "/run/s-cat", b"waits");
        let mut b = instances.all.pop().unwrap();
        b.signal("-KILL");
        b.wait();
        let died = Instant::now();
        let mut a = instances.client(0);
        a.wait_done(&runs.id);
        let took = died.elapsed();
        assert!(took >= LEASE / 2, "{took:?}");
        assert_interrupted(&mut a, &runs.id);
        runs.free_others();
        a.result(&waits).expect(200);
        instances.end_empty();
        took
    });
    let best = took.min().unwrap();
    assert!(best < LEASE * 5 / 4 + SLACK, "{best:?} at best");
}

#[test]
fn a_job_runs_again_at_most_three_times() {
    let mut instances = Instances::with(1, ",rerun=yes", &[]);
    let address = instances.engine.address();
    let dir = TempDir::new();
    let mut client = instances.client(0);
    let hold = Hold::new();
    let again = hold.start(&mut client);
    instances.all[0].signal("-KILL");
    instances.all[0].wait();
    hold.forget();
    instances.all[0] = start(&address, ",rerun=yes", &[]);
    hold.wait_for("started");
    hold.release();
    let mut client = instances.client(0);
    client.result(&again).expect(200);
    // Each attempt kills its instance.
    let file = dir.join("runs");
    let poison = client.store("POST", &format!("/run/c-poison?{}", file.display()), b"x");
    for _ in 0..3 {
        instances.all[0].wait();
        instances.all[0] = start(&address, ",rerun=yes", &[]);
    }
    let mut client = instances.client(0);
    assert_interrupted(&mut client, &poison);
    assert_eq!(std::fs::read(&file).unwrap(), b"xxx");
    assert_eq!(instances.end(), 0);
}

/// Failed attempts do not count as starts: a job whose instance dies in a later attempt runs again.
#[test]
fn retries_do_not_use_up_the_starts_of_a_job() {
    let options = ",rerun=yes,retry=9,backoff=20ms,retry-on=7";
    let mut instances = Instances::with(1, options, &[]);
    let dir = TempDir::new();
    let file = dir.join("runs");
    let target = format!("/run/c-late-poison?{}", file.display());
    let id = instances.client(0).store("GET", &target, b"");
    instances.all[0].wait();
    instances.all[0] = start(&instances.engine.address(), options, &[]);
    instances.client(0).result(&id).expect(200);
    assert_eq!(std::fs::read(&file).unwrap(), b"xxxxxx");
    assert_eq!(instances.end(), 0);
}

#[test]
fn a_result_of_a_dead_deliverer_is_restored() {
    let mut instances = Instances::start(2);
    let (mut a, mut b) = (instances.client(0), instances.client(1));
    let id = a.store("GET", "/run/h-big", b"");
    a.wait_done(&id);
    b.send_request("PUT", &format!("/_api/job/{id}"), &[], b"");
    b.wait_for_answer();
    a.put(&format!("/_api/job/{id}")).expect(404);
    let mut deliverer = instances.all.pop().unwrap();
    deliverer.signal("-KILL");
    deliverer.wait();
    eventually("it is back", || a.get(&format!("/_api/job/{id}")).status == 200);
    assert_eq!(a.result(&id).expect(200).body.len(), 16 << 20);
    assert_eq!(instances.end(), 0);
}

#[test]
fn a_stalled_instance_is_fenced() {
    let instances = Instances::start(2);
    let mut runs = instances.run_at(1);
    instances.all[1].signal("-STOP");
    let mut a = instances.client(0);
    a.wait_done(&runs.id);
    runs.hold.release();
    instances.all[1].signal("-CONT");
    instances.all[1].log_with("taken for dead");
    assert_interrupted(&mut a, &runs.id);
    runs.free_others();
    // The instance goes on under another name.
    let mut next = instances.run_at(1);
    next.hold.release();
    next.free_others();
    instances.client(1).result(&next.id).expect(200);
    let metrics = instances.client(1).get("/_admin/metrics").text();
    assert!(metrics.contains("deferd_store_fenced_total 1\n"), "{metrics}");
    instances.end_empty();
}

/// A job that is cancelled before its instance could begin it ends with its 410.
#[test]
fn a_job_that_cannot_begin_and_is_cancelled_ends() {
    let mut instances = Instances::start(0);
    let proxy = Proxy::start(instances.engine.port);
    instances.all.push(start(&proxy.address(), ",rerun=yes", &["--workers", "2"]));
    let mut client = instances.client(0);
    let hold = Hold::deaf();
    let id = hold.start(&mut client);
    // Another instance takes this one for dead, and gives the job back while its script still runs here.
    let key = |name: &str| format!("deferd:{{default}}:{name}");
    let living = instances.engine.command::<Vec<String>>(&["ZRANGE", &key("i"), "0", "-1"]);
    proxy.hold(b"$4\r\njobs\r\n$1\r\n0\r\n$");
    instances.engine.command::<()>(&["ZREM", &key("i"), &living[0]]);
    instances.engine.command::<()>(&["SADD", &key("gone"), &living[0]]);
    eventually("the engine gives it out again", || proxy.hits() > 0);
    client.put(&format!("/_api/job/{id}/cancel")).expect(200);
    proxy.set(Way::Open);
    client.wait_done(&id);
    client.put(&format!("/_api/job/{id}")).expect(410);
    assert_eq!(instances.end(), 0);
}

/// If the engine refuses a result with a reply that this deferd does not know, the job is interrupted: otherwise it
/// would run for ever.
#[test]
fn a_job_whose_result_is_refused_is_interrupted() {
    let instances = Instances::start(1);
    let mut client = instances.client(0);
    let hold = Hold::new();
    let id = hold.start(&mut client);
    let living: Vec<String> =
        instances.engine.command(&["ZRANGE", "deferd:{default}:i", "0", "-1"]);
    let instance = format!("deferd:{{default}}:i:{}", living[0]);
    let process: String = instances.engine.command(&["HGET", &instance, "proc"]);
    let memo = format!("deferd:{{default}}:m:{process}");
    // For the engine, everything that arrives is late.
    let slots: Vec<String> = (0..40).map(|slot| slot.to_string()).collect();
    for slot in &slots {
        instances.engine.command::<()>(&["HSET", &memo, slot, "999999|"]);
    }
    hold.release();
    instances.all[0].log_with("the engine answers \"stale\" to finish");
    for slot in &slots {
        instances.engine.command::<()>(&["HDEL", &memo, slot]);
    }
    client.wait_done(&id);
    assert_interrupted(&mut client, &id);
    assert_eq!(instances.end(), 0);
}

/// An instance that returns to a queue of another form reports that, and takes no job.
#[test]
fn an_instance_that_cannot_join_anew_fails() {
    let instances = Instances::start(1);
    let meta = "deferd:{default}:meta";
    instances.engine.command::<()>(&["HSET", meta, "fmt", "9"]);
    instances.engine.command::<()>(&["DEL", "deferd:{default}:i"]);
    instances.all[0].log_with("fails: the queue has form 9");
    instances.refuses(0);
    let metrics = instances.client(0).get("/_admin/metrics").text();
    assert!(metrics.contains("deferd_store_up 0\n"), "{metrics}");
    instances.engine.command::<()>(&["HSET", meta, "fmt", "1"]);
    let id = instances.accepted(0, "POST", "/run/s-cat", b"x");
    instances.result(0, &id).expect(200);
    assert_eq!(instances.all[0].log().matches("fails: ").count(), 1, "{}", instances.all[0].log());
    assert_eq!(instances.end(), 0);
}

/// If all instances are cut off for longer than the lease, nothing is lost and nothing is interrupted.
#[test]
fn an_outage_of_the_engine_interrupts_no_job() {
    let mut instances = Instances::start(2);
    let mut runs = instances.run_at(1);
    let mut a = instances.client(0);
    let waits = a.store("POST", "/run/s-cat", b"waits");
    let done = a.store("GET", "/_admin/time", b"");
    instances.engine.kill();
    assert_eq!(instances.refuses(0).header("retry-after"), Some("1"));
    let mut a = instances.client(0);
    a.get("/_admin/time").expect(200);
    assert!(a.get("/_admin/metrics").text().contains("deferd_store_up 0"));
    std::thread::sleep(LEASE * 3 / 2);
    instances.engine.restart();
    runs.hold.release();
    runs.free_others();
    instances.accepted(0, "GET", "/_admin/time", b"");
    assert_eq!(instances.result(0, &runs.id).expect(200).text(), "let go\n");
    instances.result(0, &waits).expect(200);
    instances.result(0, &done).expect(200);
    instances.end_empty();
}

#[test]
fn operations_whose_answers_were_lost_happen_once() {
    let mut instances = Instances::start(0);
    let proxy = Proxy::start(instances.engine.port);
    instances.all.push(start(&proxy.address(), "", &[]));
    let mut client = instances.client(0);
    let hold = Hold::new();
    let first = hold.start(&mut client);
    let mut accepted = Vec::new();
    for round in 0..9 {
        match round % 3 {
            0 => proxy.lose(b"\r\nnew\r\n"),
            1 => proxy.set(Way::Cut),
            _ => proxy.set(Way::Stalled),
        }
        let mut client = instances.client(0);
        client.send_request("POST", "/run/s-cat", &[("x-arango-async", "store")], b"x");
        eventually("the way is hit", || proxy.hits() > 0);
        proxy.set(Way::Open);
        // Refused without having been sent, or accepted once; a lost submission was accepted.
        let reply = client.try_read("POST").expect("an answer");
        assert!(reply.status == 202 || (reply.status == 503 && round % 3 > 0), "{reply:?}");
        accepted.extend(reply.id().filter(|_| reply.status == 202).map(str::to_owned));
        eventually("the engine is back", || {
            instances.client(0).get("/_admin/metrics").text().contains("deferd_store_up 1")
        });
    }
    assert!(accepted.len() >= 3, "{accepted:?}");
    proxy.lose(b"\r\nkept\r\n");
    hold.release();
    eventually("the answer to a result is lost", || proxy.hits() > 0);
    proxy.set(Way::Open);
    assert_eq!(instances.result(0, &first).text(), "let go\n");
    let mut client = instances.client(0);
    eventually("all have run", || client.list("pending").is_empty());
    let mut done = client.list("done");
    done.sort();
    accepted.sort();
    assert_eq!(done, accepted);
    for id in done {
        assert_eq!(client.result(&id).expect(200).text(), "x");
    }
    eventually("nothing is left", || audit(&mut instances.engine.connect(), "default") == 0);
    assert_eq!(instances.end(), 0);
}

/// A submission that was given up is undone when the engine is back.
#[test]
fn an_engine_that_stalls_delays_and_then_refuses() {
    let instances = Instances::start(1);
    let mut client = instances.client(0);
    let hold = Hold::new();
    hold.start(&mut client);
    let fields = [("x-arango-async", "store")];
    client.send_request("POST", "/run/s-cat", &fields, b"x");
    client.try_read("POST").expect("an answer").expect(202);
    instances.engine.signal("-STOP");
    client.send_request("POST", "/run/s-cat", &fields, b"given up");
    client.try_read("POST").expect("an answer").expect(503);
    instances.engine.signal("-CONT");
    hold.release();
    let mut client = instances.client(0);
    eventually("the engine is back", || {
        client.get("/_admin/metrics").text().contains("deferd_store_up 1")
    });
    eventually("what was accepted has run", || client.list("done").len() == 2);
    let memos: Vec<String> = instances.engine.command(&["KEYS", "*:m:*"]);
    eventually("the other is undone", || {
        let slots = instances.engine.command::<Vec<Vec<u8>>>(&["HVALS", &memos[0]]);
        slots.iter().any(|reply| reply.ends_with(b"withdrawn"))
    });
    assert!(client.list("pending").is_empty() && client.list("done").len() == 2);
    instances.end_empty();
}

#[test]
fn a_full_engine_refuses_jobs_and_can_be_emptied() {
    let instances = Instances::start(1);
    let mut client = instances.client(0);
    let id = client.store("POST", "/run/s-cat", b"x");
    client.wait_done(&id);
    instances.engine.command::<()>(&["CONFIG", "SET", "maxmemory", "1mb"]);
    let refused = instances.refuses(0);
    let mut client = instances.client(0);
    assert!(refused.text().contains("the engine's memory is full"), "{}", refused.text());
    assert_eq!(client.list("done"), [id.as_str()]);
    assert_eq!(client.result(&id).expect(200).text(), "x");
    client.delete("/_api/job/all").expect(200);
    instances.engine.command::<()>(&["CONFIG", "SET", "maxmemory", "0"]);
    let id = client.store("POST", "/run/s-cat", b"y");
    assert_eq!(client.result(&id).text(), "y");
    assert_eq!(instances.end(), 0);
}

/// NOREPLICAS stands for every reply with which an engine refuses changes but can still be read.
#[test]
fn an_engine_that_takes_no_changes_is_read() {
    let instances = Instances::start(1);
    let mut client = instances.client(0);
    let id = client.store("POST", "/run/s-cat", b"x");
    client.wait_done(&id);
    instances.engine.command::<()>(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    instances.refuses(0);
    let mut client = instances.client(0);
    client.get(&format!("/_api/job/{id}")).expect(200);
    assert_eq!(client.get(&format!("/_api/job/{id}/result")).expect(200).text(), "x");
    assert_eq!(client.list("done"), [id.as_str()]);
    client.put(&format!("/_api/job/{id}")).expect(503);
    instances.engine.command::<()>(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    instances.accepted(0, "GET", "/_admin/time", b"");
    assert_eq!(instances.result(0, &id).expect(200).text(), "x");
    instances.end_empty();
}

/// Asserts that deferd does not start, and why.
#[track_caller]
fn assert_refused(store: &str, more: &[&str], why: &str) {
    let ended = run_deferd(&[&["--listen", "127.0.0.1:0", "--store", store], more].concat());
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("--store") && ended.stderr.contains(why),
        "{why}: {}",
        ended.stderr
    );
}

#[test]
fn an_engine_that_breaks_promises_is_refused_at_the_start() {
    assert_refused("redis://127.0.0.1:1", &[], "cannot be reached");
    let plain = Engine::start(&[]);
    assert_refused(&plain.address(), &[], "appendfsync always");
    let evicts = Engine::start(&["--maxmemory-policy", "allkeys-lru"]);
    assert_refused(&evicts.address(), &["--durability", "relaxed"], "noeviction");
    let locked = Engine::start(DURABLE);
    locked.command::<()>(&["CONFIG", "SET", "requirepass", "secret"]);
    assert_refused(&locked.address(), &[], "NOAUTH");
    let with = locked.address().replace("127", ":wrong@127");
    assert_refused(&with, &[], "a password here can be read");
    let strange = Engine::durable();
    strange.command::<()>(&["HSET", "deferd:{default}:meta", "fmt", "9"]);
    assert_refused(&strange.address(), &[], "form 9");
}

#[test]
fn a_password_comes_from_the_environment() {
    let engine = Engine::start(DURABLE);
    engine.command::<()>(&["CONFIG", "SET", "requirepass", "s/cret"]);
    let address = engine.address().replace("127", ":s%2Fcret@127");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_deferd"));
    command.env("DEFERD_STORE", &address);
    let deferd = crate::support::Deferd::start_by(command, &[]);
    let mut client = deferd.client();
    let id = client.store("GET", "/_admin/time", b"");
    client.result(&id).expect(200);
    assert!(!deferd.log().contains("cret"), "{}", deferd.log());
    let mut wrong = std::process::Command::new(env!("CARGO_BIN_EXE_deferd"));
    wrong.args(["--listen", "127.0.0.1:0"]).env("DEFERD_STORE", address.replace("s%2Fcret", "no"));
    let ended = crate::support::run(&mut wrong);
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.starts_with("deferd: DEFERD_STORE"), "{}", ended.stderr);
}

#[test]
fn a_store_address_that_is_not_utf8_is_refused() {
    use std::os::unix::ffi::OsStrExt;
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_deferd"));
    let address = std::ffi::OsStr::from_bytes(b"redis://:secr\xff@127.0.0.1");
    command.args(["--listen", "127.0.0.1:0"]).env("DEFERD_STORE", address);
    let ended = crate::support::run(&mut command);
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert_eq!(ended.stderr, "deferd: DEFERD_STORE \"redis://:***@127.0.0.1\": not UTF-8\n");
}

#[test]
fn the_primary_is_found_again_after_a_failover() {
    let primary = Engine::durable();
    let replica = Engine::replica_of(&primary);
    replica.wait_in_step();
    assert_refused(&replica.address(), &[], "not the primary");
    let both = format!("redis://127.0.0.1:{},127.0.0.1:{}?replicas=1", replica.port, primary.port);
    let mut instances = Instances { engine: replica, all: vec![start(&both, "", &[])] };
    let mut client = instances.client(0);
    let hold = Hold::new();
    let runs = hold.start(&mut client);
    let waits = client.store("POST", "/run/s-cat", b"waits");
    drop(primary);
    instances.engine.command::<()>(&["REPLICAOF", "NO", "ONE"]);
    // With `replicas=1`, nothing is acknowledged any more: the other replica is now the primary.
    let fields = [("x-arango-async", "store")];
    let refused = client.request("POST", "/run/s-cat", &fields, b"x");
    assert_eq!(refused.status, 503);
    instances.all[0].signal("-KILL");
    instances.all[0].wait();
    hold.release();
    instances.all[0] = start(&instances.engine.address(), "", &[]);
    let mut client = instances.client(0);
    // It began on the engine that is lost, and its instance died: so it is interrupted.
    assert_interrupted(&mut client, &runs);
    client.result(&waits).expect(200);
    instances.end_empty();
}

/// All keys of a queue are in one slot, so one node of a cluster can hold the queue.
#[test]
fn a_cluster_node_has_a_queue_and_a_lost_slot_is_an_outage() {
    let engine = Engine::start(&[DURABLE, &["--cluster-enabled", "yes"]].concat());
    assert_refused(&engine.address(), &[], "CLUSTERDOWN");
    engine.command::<()>(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
    let is_up = || engine.command::<String>(&["CLUSTER", "INFO"]).contains("cluster_state:ok");
    eventually("the cluster is up", is_up);
    let instances = Instances { all: vec![start(&engine.address(), "", &[])], engine };
    let before = instances.accepted(0, "POST", "/run/s-cat", b"before");
    instances.client(0).wait_done(&before);
    let slot = instances.engine.command::<i64>(&["CLUSTER", "KEYSLOT", "{default}"]).to_string();
    instances.engine.command::<()>(&["CLUSTER", "DELSLOTS", &slot]);
    instances.refuses(0);
    instances.engine.command::<()>(&["CLUSTER", "ADDSLOTS", &slot]);
    let after = instances.accepted(0, "POST", "/run/s-cat", b"after");
    for id in [before, after] {
        instances.result(0, &id).expect(200);
    }
    instances.end_empty();
}

/// The former primary kept everything, and its replacement does not: it gets no job.
#[test]
fn an_engine_that_breaks_promises_is_refused_after_a_failover() {
    let primary = Engine::durable();
    let replica = Engine::start(&["--replicaof", "127.0.0.1", &primary.port.to_string()]);
    let both = format!("redis://127.0.0.1:{},127.0.0.1:{}", primary.port, replica.port);
    let instances = Instances { all: vec![start(&both, "", &[])], engine: replica };
    instances.engine.wait_in_step();
    drop(primary);
    instances.all[0].log_with("fails: ");
    instances.engine.command::<()>(&["REPLICAOF", "NO", "ONE"]);
    instances.refuses(0);
    instances.all[0].log_with("appendonly no and appendfsync everysec, and may lose");
    assert_eq!(instances.engine.command::<usize>(&["ZCARD", "deferd:{default}:l:/run/"]), 0);
    instances.engine.command::<()>(&["CONFIG", "SET", "appendfsync", "always"]);
    instances.engine.command::<()>(&["CONFIG", "SET", "appendonly", "yes"]);
    let id = instances.accepted(0, "POST", "/run/s-cat", b"x");
    instances.result(0, &id).expect(200);
    assert_eq!(instances.end(), 0);
}

/// Only an engine that hides its settings is trusted without a check.
#[test]
fn an_engine_that_hides_its_settings_is_warned_of() {
    let renamed = Engine::start(&["--rename-command", "CONFIG", ""]);
    let forbidden = Engine::start(&[]);
    forbidden.command::<()>(&["ACL", "SETUSER", "default", "-config"]);
    for engine in [renamed, forbidden] {
        let instances = Instances { all: vec![start(&engine.address(), "", &[])], engine };
        instances.all[0].log_with("does not show its settings");
        assert_eq!(instances.end(), 0);
    }
}

#[test]
fn an_engine_that_lost_everything_stops_what_runs() {
    let mut instances = Instances { engine: Engine::start(&[]), all: Vec::new() };
    let address = instances.engine.address();
    instances.all.push(start(&address, "", &["--durability", "relaxed"]));
    let mut client = instances.client(0);
    let RunsAt { hold, id, .. } = instances.run_at(0);
    instances.engine.restart();
    instances.all[0].log_with("taken for dead");
    eventually("it is unknown", || client.get(&format!("/_api/job/{id}")).status == 404);
    eventually("its script is stopped", || instances.all[0].children().is_empty());
    assert!(!hold.has("ended"));
    let id = instances.accepted(0, "POST", "/run/s-cat", b"x");
    instances.result(0, &id).expect(200);
    assert_eq!(instances.end(), 0);
}
