//! The storm: three instances, clients of all of them, and a fault every second; then every accepted job is accounted
//! for. And what happens without the parts that guarantee that.
//!
//! `DEFERD_TEST_SEED` repeats the choices of a failure (their timing cannot be repeated), `DEFERD_TEST_STORM` sets its
//! duration in seconds.

use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use fastrand::Rng;

use super::engine::Engine;
use super::instances::{Instances, start, start_without};
use super::proxy::{Proxy, Way};
use crate::support::hold::Hold;
use crate::support::{Deferd, TempDir, eventually};

const INSTANCES: usize = 3;
const CLIENTS: usize = 4;

/// How long after a fault of an instance it may explain a second delivery of a result.
const EXPLAINS: Duration = Duration::from_secs(10);

/// What the clients have seen of a job.
#[derive(Default)]
struct Seen {
    id: String,
    /// Which instance delivered its result, when, and with what status and content.
    deliveries: Vec<(usize, Instant, u16, String)>,
}

struct Answer {
    status: u16,
    id: Option<String>,
    text: String,
}

struct Storm {
    addresses: Mutex<Vec<SocketAddr>>,
    /// The accepted jobs by their number.
    jobs: Mutex<BTreeMap<usize, Seen>>,
    /// Which instances were hit, and when the hit ended; a fault of the engine hits all.
    hits: Mutex<Vec<(usize, Instant)>>,
    /// How many faults there were.
    faults: AtomicUsize,
    next: AtomicUsize,
    is_over: AtomicBool,
    file: String,
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Returns the route of job `n`: every third may run again.
fn route(n: usize) -> &'static str {
    if n.is_multiple_of(3) { "/again/" } else { "/run/" }
}

impl Storm {
    /// Sends a request to an instance; returns `None` if the answer does not arrive completely.
    fn ask(&self, n: usize, request: &str, body: &str) -> Option<Answer> {
        let address = self.addresses.lock().unwrap()[n];
        let mut stream = TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let length = if body.is_empty() {
            String::new()
        } else {
            format!("content-length: {}\r\n", body.len())
        };
        let head = format!("{request}host: localhost\r\nconnection: close\r\n{length}\r\n{body}");
        stream.write_all(head.as_bytes()).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        let field = |name: &str| {
            head.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                .map(str::to_owned)
        };
        let length: usize = field("content-length").map_or(0, |length| length.parse().unwrap());
        (body.len() == length).then_some(())?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some(Answer { status, id: field("x-arango-async-id"), text: body.to_owned() })
    }

    fn submit(&self, random: &mut Rng) {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        let span = if random.usize(..10) == 0 { 1.5 } else { random.f64() * 0.1 };
        let request =
            format!("POST {}o-mark?{} HTTP/1.1\r\nx-arango-async: store\r\n", route(n), self.file);
        let answer = self.ask(random.usize(..INSTANCES), &request, &format!("{n} {span:.3}\n"));
        let Some(id) = answer.filter(|answer| answer.status == 202).and_then(|answer| answer.id)
        else {
            return;
        };
        let before = self.jobs.lock().unwrap().insert(n, Seen { id, ..Seen::default() });
        assert!(before.is_none());
    }

    fn collect(&self, random: &mut Rng, from: Option<usize>) -> bool {
        let open: Vec<(usize, String)> = {
            let jobs = self.jobs.lock().unwrap();
            let open = jobs.iter().filter(|(_, seen)| seen.deliveries.is_empty());
            open.map(|(n, seen)| (*n, seen.id.clone())).collect()
        };
        if open.is_empty() {
            return false;
        }
        let (n, id) = &open[random.usize(..open.len().min(40))];
        let instance = from.unwrap_or_else(|| random.usize(..INSTANCES));
        let answer = self.ask(instance, &format!("PUT /_api/job/{id} HTTP/1.1\r\n"), "");
        if let Some(Answer { status, id: Some(_), text }) = answer {
            let mut jobs = self.jobs.lock().unwrap();
            let delivery = (instance, Instant::now(), status, text);
            jobs.get_mut(n).expect("it was accepted").deliveries.push(delivery);
        }
        true
    }

    fn hit(&self, instances: impl IntoIterator<Item = usize>) {
        let now = Instant::now();
        self.hits.lock().unwrap().extend(instances.into_iter().map(|n| (n, now)));
    }

    fn was_hit(&self, instance: usize, delivered: Instant) -> bool {
        let hits = self.hits.lock().unwrap();
        hits.iter().any(|(n, at)| {
            *n == instance && *at + Duration::from_secs(1) > delivered && *at < delivered + EXPLAINS
        })
    }

    /// Checks that what the clients and the scripts have seen is consistent.
    fn check(&self) {
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        let mut begun: HashMap<usize, usize> = HashMap::new();
        for line in text.lines() {
            *begun.entry(line.parse().unwrap()).or_default() += 1;
        }
        let jobs = self.jobs.lock().unwrap();
        let (mut interrupted, mut again) = (0, 0);
        for (n, Seen { id, deliveries }) in &*jobs {
            let runs = begun.get(n).copied().unwrap_or(0);
            assert!(
                !deliveries.is_empty(),
                "job {n} ({id}) was accepted and is lost; it ran {runs} times"
            );
            let most = if route(*n) == "/again/" { 3 } else { 1 };
            assert!(runs <= most, "job {n} ({id}) ran {runs} times");
            for (_, _, status, text) in deliveries {
                match status {
                    200 => {
                        assert!(*text == format!("result {n}\n") && runs > 0, "job {n}: {text:?}")
                    }
                    500 => assert!(text.contains("interrupted"), "job {n}: {text:?}"),
                    status => panic!("job {n}: {status} {text:?}"),
                }
            }
            interrupted += usize::from(deliveries[0].2 == 500);
            for (instance, at, ..) in &deliveries[..deliveries.len() - 1] {
                again += 1;
                assert!(
                    self.was_hit(*instance, *at),
                    "job {n} ({id}) was delivered twice for no reason"
                );
            }
        }
        let all = self.next.load(Ordering::Relaxed);
        let unaccepted = begun.keys().filter(|n| !jobs.contains_key(n)).count();
        println!(
            "submitted {all}, accepted {}, interrupted {interrupted}, delivered again {again}, run without a 202 that \
             arrived {unaccepted}",
            jobs.len()
        );
        assert!(jobs.len() > all / 10, "hardly any job was accepted");
        assert!(begun.values().all(|runs| *runs <= 3));
    }
}

/// Faults of instances, of connections, and of one engine.
struct Weather {
    engine: Engine,
    proxies: Vec<Proxy>,
    deferds: Vec<Deferd>,
}

/// Faults of instances, and of two engines: the primary dies, and its replica replaces it.
struct Failovers {
    primary: Engine,
    replica: Engine,
    address: String,
    deferds: Vec<Deferd>,
}

impl Failovers {
    fn fault(&mut self, storm: &Storm, random: &mut Rng) {
        let n = random.usize(..INSTANCES);
        let mut wait = |most| thread::sleep(Duration::from_millis(random.u64(50..most)));
        match storm.faults.fetch_add(1, Ordering::Relaxed) % 4 {
            0 => {
                storm.hit([n]);
                self.deferds[n].signal("-KILL");
                self.deferds[n].wait();
                wait(600);
                self.deferds[n] = launch(&self.address);
                storm.addresses.lock().unwrap()[n] = self.deferds[n].address;
                storm.hit([n]);
            }
            1 => {
                // What is not on the replica is not acknowledged.
                self.replica.signal("-STOP");
                wait(1500);
                self.replica.signal("-CONT");
            }
            2 => {
                storm.hit([n]);
                self.deferds[n].signal("-STOP");
                wait(4000);
                self.deferds[n].signal("-CONT");
                storm.hit([n]);
            }
            _ => {
                self.replica.wait_in_step();
                // A collection that the replica has not seen is restored.
                storm.hit(0..INSTANCES);
                self.primary.kill();
                wait(1000);
                self.replica.command::<()>(&["REPLICAOF", "NO", "ONE"]);
                std::mem::swap(&mut self.primary, &mut self.replica);
                wait(1000);
                self.replica.restart_as_replica_of(&self.primary);
                storm.hit(0..INSTANCES);
            }
        }
    }
}

fn launch(address: &str) -> Deferd {
    let again = format!("/again/=run:{},rerun=yes", crate::support::fixtures().display());
    start(address, "", &["--workers", "3", "--route", &again, "--grace", "1s"])
}

impl Weather {
    fn fault(&mut self, storm: &Storm, random: &mut Rng) {
        let n = random.usize(..INSTANCES);
        let millis = |random: &mut Rng, most: u64| Duration::from_millis(random.u64(50..most));
        let fault = random.usize(..7);
        match fault {
            0 => {
                storm.hit([n]);
                self.deferds[n].signal("-KILL");
                self.deferds[n].wait();
                thread::sleep(millis(random, 600));
                self.deferds[n] = launch(&self.proxies[n].address());
                storm.addresses.lock().unwrap()[n] = self.deferds[n].address;
            }
            1 => {
                storm.hit([n]);
                self.deferds[n].signal("-STOP");
                thread::sleep(millis(random, 4000));
                self.deferds[n].signal("-CONT");
            }
            2..=4 => {
                storm.hit([n]);
                let (way, most) =
                    [(Way::Cut, 3500), (Way::Deaf, 500), (Way::Stalled, 3500)][fault - 2];
                self.proxies[n].set(way);
                thread::sleep(millis(random, most));
                self.proxies[n].set(Way::Open);
            }
            5 => {
                storm.hit(0..INSTANCES);
                self.engine.kill();
                thread::sleep(millis(random, 3000));
                self.engine.restart();
            }
            _ => {
                storm.hit(0..INSTANCES);
                self.engine.signal("-STOP");
                thread::sleep(millis(random, 2500));
                self.engine.signal("-CONT");
            }
        }
        if fault == 5 || fault == 6 { storm.hit(0..INSTANCES) } else { storm.hit([n]) }
    }
}

/// Runs clients against these instances for a while, with faults; then accounts for every accepted job.
fn rage(addresses: Vec<SocketAddr>, mut fault: impl FnMut(&Storm, &mut Rng)) {
    let clock = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let seed = variable("DEFERD_TEST_SEED").unwrap_or_else(clock);
    let span = Duration::from_secs(variable("DEFERD_TEST_STORM").unwrap_or(60));
    println!("DEFERD_TEST_SEED={seed}");
    let dir = TempDir::new();
    let storm = Storm {
        addresses: Mutex::new(addresses),
        jobs: Mutex::default(),
        hits: Mutex::default(),
        faults: AtomicUsize::new(0),
        next: AtomicUsize::new(0),
        is_over: AtomicBool::new(false),
        file: dir.join("begun").display().to_string(),
    };
    thread::scope(|scope| {
        for n in 0..CLIENTS {
            let storm = &storm;
            scope.spawn(move || {
                let mut random = Rng::with_seed(seed * 100 + n as u64);
                while !storm.is_over.load(Ordering::Acquire) {
                    if random.usize(..5) < 2 {
                        storm.submit(&mut random)
                    } else {
                        storm.collect(&mut random, None);
                    }
                    thread::sleep(Duration::from_millis(random.u64(..20)));
                }
            });
        }
        let mut random = Rng::with_seed(seed);
        let end = Instant::now() + span;
        while Instant::now() < end {
            thread::sleep(Duration::from_millis(random.u64(600..1600)));
            fault(&storm, &mut random);
        }
        storm.is_over.store(true, Ordering::Release);
    });
    let mut random = Rng::with_seed(seed);
    let deadline = Instant::now() + Duration::from_secs(60);
    while storm.collect(&mut random, Some(0)) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(2));
    }
    storm.check();
}

#[test]
fn nothing_is_lost_or_doubled_in_a_storm() {
    let engine = Engine::durable();
    let proxies: Vec<Proxy> = (0..INSTANCES).map(|_| Proxy::start(engine.port)).collect();
    let deferds: Vec<Deferd> = proxies.iter().map(|proxy| launch(&proxy.address())).collect();
    let addresses = deferds.iter().map(|deferd| deferd.address).collect();
    let mut weather = Weather { engine, proxies, deferds };
    rage(addresses, |storm, random| weather.fault(storm, random));
    // A job that was accepted and whose 202 was lost exists as well.
    Instances { engine: weather.engine, all: weather.deferds }.end_empty();
}

#[test]
fn nothing_is_lost_or_doubled_over_failovers() {
    let primary = Engine::durable();
    let replica = Engine::replica_of(&primary);
    replica.wait_in_step();
    let address =
        format!("redis://127.0.0.1:{},127.0.0.1:{}?replicas=1", primary.port, replica.port);
    let deferds: Vec<Deferd> = (0..INSTANCES).map(|_| launch(&address)).collect();
    let addresses = deferds.iter().map(|deferd| deferd.address).collect();
    let mut failovers = Failovers { primary, replica, address, deferds };
    rage(addresses, |storm, random| failovers.fault(storm, random));
    failovers.replica.wait_in_step();
    Instances { engine: failovers.primary, all: failovers.deferds }.end_empty();
}

/// Without the memo, an operation whose answer is lost happens twice.
#[test]
fn without_the_memo_jobs_double() {
    for (part, doubles) in [("memo", true), ("", false)] {
        let engine = Engine::durable();
        let proxy = Proxy::start(engine.port);
        let deferd = start_without(part, &proxy.address(), "", &[]);
        let hold = Hold::new();
        hold.start(&mut deferd.client());
        for round in 0..3 {
            let mut client = deferd.client();
            let before = client.list("pending").len();
            // The engine receives the submission, and its answer is lost.
            proxy.lose(b"\r\nnew\r\n");
            client.send_request("POST", "/run/s-cat", &[("x-arango-async", "store")], b"x");
            eventually("the answer is lost", || proxy.hits() > 0);
            proxy.set(Way::Open);
            client.try_read("POST").expect("an answer").expect(202);
            let more = deferd.client().list("pending").len() - before;
            assert_eq!(more > 1, doubles, "without {part:?}, round {round}: {more}");
            assert!(more > 0);
        }
        hold.release();
    }
}

/// Without the fence, the result of a run that was taken away replaces that of the job's current run.
#[test]
fn without_the_fence_a_dead_run_gives_the_result() {
    for (part, kept) in [("fence", true), ("", false)] {
        let engine = Engine::durable();
        let options = [",rerun=yes", ",rerun=yes"];
        let all = options
            .iter()
            .map(|options| start_without(part, &engine.address(), options, &[]))
            .collect();
        let instances = Instances { engine, all };
        let mut runs = instances.run_at(1);
        runs.free_others();
        instances.all[1].signal("-STOP");
        // The run there ends, and another one begins here.
        let began_again = || instances.client(0).get(&format!("/_api/job/{}", runs.id));
        runs.hold.release();
        runs.hold.wait_for("ended");
        runs.hold.forget();
        runs.hold.wait_for("started");
        assert_eq!(began_again().status, 204);
        instances.all[1].signal("-CONT");
        if kept {
            eventually("it gives the result", || began_again().status == 200);
        } else {
            let log = instances.all[1].log_with(" result dropped");
            assert_eq!(began_again().status, 204, "{log}");
        }
        runs.hold.release();
        instances.result(0, &runs.id).expect(200);
    }
}

/// Without mercy, the first instance that returns after an outage takes the others for dead.
#[test]
fn without_mercy_an_outage_interrupts_jobs() {
    let engine = Engine::durable();
    let all = (0..3).map(|_| start_without("mercy", &engine.address(), "", &[])).collect();
    let mut instances = Instances { engine, all };
    let mut client = instances.client(0);
    let holds: Vec<Hold> = (0..3).map(|_| Hold::new()).collect();
    let ids: Vec<String> = holds.iter().map(|hold| hold.start(&mut client)).collect();
    let mut is_interrupted = false;
    for _ in 0..10 {
        instances.engine.kill();
        // Longer than the lease.
        thread::sleep(Duration::from_secs(3));
        instances.engine.restart();
        let is_done =
            |id: &String| instances.client(1).get(&format!("/_api/job/{id}")).status == 200;
        eventually("all are back", || {
            is_interrupted = ids.iter().any(is_done);
            let is_up = |n| {
                let metrics = instances.client(n).get("/_admin/metrics").text();
                metrics.contains("deferd_store_up 1\n")
            };
            is_interrupted || (0..3).all(is_up)
        });
        if is_interrupted {
            break;
        }
    }
    holds.iter().for_each(Hold::release);
    assert!(is_interrupted, "mercy is of no use");
}
