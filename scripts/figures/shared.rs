//! Several deferd on one engine: jobs a second, from the submission to the collected result, and how long that takes;
//! compared with a bare loop of the same scripts, which has no HTTP and no workers. And what a job costs in the
//! engine.
//!
//! The engine is `redis-server`, or what `DEFERD_TEST_ENGINE` names; its data is in the target directory.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use deferd::clock;
use deferd::config::{Durability, StoreAddress};
use deferd::exchange::{Call, Connection, Owner};
use deferd::job::request_line::RequestLine;
use deferd::job::{JobKey, Keep, Rerun, RouteIndex};
use deferd::ledger::schedule::Limit;
use deferd::memory::Allowance;
use deferd::store::redis::{Clock, SharedStore, Sharing};
use deferd::store::{Lane, Lookup, Patience, Plan, Room, Store, Submission, Tells};
use http::{Request, Response};

use super::client::{Client, deferred};
use super::sample::{Sample, title};
use super::server::Server;
use super::store::Directory;

/// How long one figure is measured.
const SPAN: Duration = Duration::from_secs(3);
/// The clients of all instances together, or the threads of the bare loop.
const CLIENTS: usize = 16;
/// The number of jobs that are weighed, and the content of each, in bytes.
const WEIGHED: usize = 10_000;
const CONTENT: usize = 300;

struct Engine {
    child: Child,
    port: u16,
    directory: Directory,
}

impl Engine {
    fn start(appends: &str) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let directory = Directory::new("bench-shared");
        let program = std::env::var("DEFERD_TEST_ENGINE").unwrap_or_else(|_| "redis-server".into());
        let child = Command::new(program)
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .args(["--appendonly", appends, "--appendfsync", "always", "--dir"])
            .arg(&directory.0)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let engine = Self { child, port, directory };
        while redis::Client::open(engine.address()).unwrap().get_connection().is_err() {
            thread::sleep(Duration::from_millis(10));
        }
        engine
    }

    fn address(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Returns the processor time so far, in seconds.
    fn processor_time(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
    }

    fn used_memory(&self) -> f64 {
        let mut connection = redis::Client::open(self.address()).unwrap().get_connection().unwrap();
        let info: String = redis::cmd("INFO").arg("memory").query(&mut connection).unwrap();
        let line = info.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap();
        line.parse().unwrap()
    }

    fn store(&self) -> SharedStore {
        let sharing = Sharing {
            address: StoreAddress::parse(&self.address()).unwrap(),
            lease: Duration::from_secs(10),
            durability: Durability::Relaxed,
            clock: Clock::Engine,
        };
        let room = Room { capacity: 1 << 30, reserve: 0, memory: Allowance::default() };
        let plan = Plan {
            workers: CLIENTS,
            queue: usize::MAX,
            ttl: Duration::MAX,
            log_ttl: Duration::ZERO,
            lanes: vec![Lane { limit: Limit::Open, rerun: Rerun::No, tells: Tells::NONE }],
        };
        SharedStore::open(sharing, room, plan, ["/bench/"].into_iter()).unwrap()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = &self.directory;
    }
}

/// Prints the figures.
pub fn print() {
    title("shared: jobs from the submission to the collected result, 16 clients, RUST_LOG=error");
    for appends in ["no", "yes"] {
        println!("appendonly {appends}, appendfsync always");
        let engine = Engine::start(appends);
        let bare = measure(&engine, |over, times| bare(&engine.store(), over, times));
        println!("  a bare loop of the scripts   {bare}");
        drop(engine);
        for count in 1..=3 {
            let engine = Engine::start(appends);
            let address = engine.address();
            let arguments = ["--store", &address, "--durability", "relaxed", "--workers", "8"];
            let servers: Vec<Server> =
                (0..count).map(|_| Server::deferd("error", &arguments)).collect();
            let figure = measure(&engine, |over, times| clients(&servers, over, times));
            println!("  {count} deferd                     {figure}");
            servers.into_iter().for_each(Server::end);
        }
    }
    weigh();
}

/// Runs `run`, which records how long each job took, for a while.
fn measure(engine: &Engine, run: impl FnOnce(&AtomicBool, &Mutex<Sample>)) -> String {
    let (over, times) = (AtomicBool::new(false), Mutex::new(Sample::default()));
    let (began, processor) = (Instant::now(), engine.processor_time());
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(SPAN);
            over.store(true, Ordering::Release);
        });
        run(&over, &times);
    });
    let (span, times) = (began.elapsed().as_secs_f64(), times.into_inner().unwrap());
    let jobs = times.len() as f64;
    let engine_share = (engine.processor_time() - processor) / span;
    format!(
        "{:6.0} jobs/s, p50 {:5.1} ms, p99 {:5.1} ms, {:3.0} % of a core in the engine, {:4.0} us a job",
        jobs / span,
        times.quantile(0.5) * 1e3,
        times.quantile(0.99) * 1e3,
        engine_share * 100.0,
        engine_share * span / jobs * 1e6,
    )
}

/// Runs clients that submit a job and wait for its result, over all instances in turn.
fn clients(servers: &[Server], over: &AtomicBool, times: &Mutex<Sample>) {
    thread::scope(|scope| {
        for n in 0..CLIENTS {
            scope.spawn(move || {
                let mut client = Client::new(servers[n % servers.len()].address);
                while !over.load(Ordering::Acquire) {
                    let began = Instant::now();
                    client.send(&deferred("/_api/version"));
                    let reply = client.receive();
                    assert_eq!(reply.status, 202);
                    let id = reply.id.unwrap();
                    let head = format!(
                        "PUT /_api/job/{id} HTTP/1.1\r\nhost: localhost\r\nprefer: wait=20\r\n\r\n"
                    );
                    client.send(head.as_bytes());
                    assert_eq!(client.receive().status, 200);
                    times.lock().unwrap().push(began.elapsed().as_secs_f64());
                }
            });
        }
    });
}

fn submission(n: usize) -> Submission {
    let request = Request::post(format!("/bench/{n}")).body(vec![b'x'; CONTENT].into()).unwrap();
    let line = RequestLine::new(request.method(), request.uri().path(), "/bench/");
    let call =
        Call { request, connection: Connection::Unix, owner: Owner::anonymous(), auth_type: None };
    Submission { call, route: RouteIndex(0), line, keep: Keep::Result, key: None, callback: None }
}

/// Runs threads that submit a job, take one, finish it and collect it.
fn bare(store: &SharedStore, over: &AtomicBool, times: &Mutex<Sample>) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let memory = Allowance::default();
                while !over.load(Ordering::Acquire) {
                    let began = Instant::now();
                    store
                        .submit(submission(next.fetch_add(1, Ordering::Relaxed)), clock::now())
                        .unwrap();
                    let Some(claimed) = store.claim(&memory, Patience::None) else { continue };
                    let key = JobKey { owner: Owner::anonymous(), id: claimed.job.id };
                    store.finish(&key, Response::new(vec![b'y'; CONTENT].into()), clock::now());
                    let Lookup::Done((_, delivery)) = store.collect(&key) else { continue };
                    store.confirm(&key, delivery, clock::now());
                    times.lock().unwrap().push(began.elapsed().as_secs_f64());
                }
            });
        }
    });
    store.flush().unwrap();
}

/// Weighs waiting jobs.
fn weigh() {
    let engine = Engine::start("no");
    let store = Arc::new(engine.store());
    store.submit(submission(0), clock::now()).unwrap();
    let before = engine.used_memory();
    for n in 1..=WEIGHED {
        store.submit(submission(n), clock::now()).unwrap();
    }
    let each = (engine.used_memory() - before) / WEIGHED as f64;
    println!("a waiting job of {CONTENT} bytes: {each:.0} bytes in the engine");
}
