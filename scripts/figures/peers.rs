//! What a user might choose instead of deferd to defer a request, set up as its own documents describe: each with
//! workers for the available processors.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::beanstalk::Beanstalk;
use super::gearman::Foreground;
use super::http_job::{DEFERD, FLASK, HttpJob, Words};
use super::load::{self, Load};
use super::peer::{Memory, Peer, free_address, memory, wait_for, wait_for_path};
use super::server::Server;

/// The protocol of a contestant's clients.
#[derive(Clone, Copy)]
enum Speech {
    Http(Words),
    Gearman,
    Beanstalk,
}

/// A program that takes part.
pub struct Contestant {
    pub name: &'static str,
    /// Its name without how it is used.
    pub short: &'static str,
    /// Whether it keeps results until they are asked for, and is neither deferd nor the limit.
    pub stores_results: bool,
    pub address: SocketAddr,
    /// Redis' socket, if it uses Redis.
    pub redis: Option<PathBuf>,
    speech: Speech,
    processes: Processes,
    /// A worker that is ours, and therefore not part of the contestant's weight.
    worker: Option<Peer>,
}

enum Processes {
    Server(Server),
    Peer(Peer),
}

impl Contestant {
    /// Returns the rate at which it does jobs under a load.
    pub fn rate(&self, load: Load) -> f64 {
        match self.speech {
            Speech::Http(words) => load.on(self.address, || HttpJob::new(words)),
            Speech::Gearman => load.on(self.address, || Foreground),
            Speech::Beanstalk => load.on(self.address, || Beanstalk),
        }
    }

    /// Lets it do one job.
    pub fn once(&self) {
        match self.speech {
            Speech::Http(words) => load::once(self.address, HttpJob::new(words)),
            Speech::Gearman => load::once(self.address, Foreground),
            Speech::Beanstalk => load::once(self.address, Beanstalk),
        }
    }

    pub fn memory(&self) -> Memory {
        match &self.processes {
            Processes::Server(server) => memory(&[server.pid()]),
            Processes::Peer(peer) => peer.memory(),
        }
    }

    fn server(name: &'static str, server: Server, words: Words) -> Self {
        Self {
            name,
            short: short(name),
            stores_results: false,
            address: server.address,
            redis: None,
            speech: Speech::Http(words),
            processes: Processes::Server(server),
            worker: None,
        }
    }

    fn flask(name: &'static str, address: SocketAddr, redis: PathBuf, peer: Peer) -> Self {
        Self {
            name,
            short: short(name),
            stores_results: true,
            address,
            redis: Some(redis),
            speech: Speech::Http(FLASK),
            processes: Processes::Peer(peer),
            worker: None,
        }
    }

    fn raw(name: &'static str, address: SocketAddr, speech: Speech, peer: Peer) -> Self {
        let processes = Processes::Peer(peer);
        Self {
            name,
            short: short(name),
            stores_results: false,
            address,
            redis: None,
            speech,
            processes,
            worker: None,
        }
    }
}

fn short(name: &'static str) -> &'static str {
    name.split(',').next().unwrap_or(name)
}

/// Returns deferd with its default settings.
pub fn deferd() -> Contestant {
    Contestant::server("deferd", Server::deferd("warn", &[]), DEFERD)
}

/// Returns the limit, and deferd's other front.
pub fn own() -> [Contestant; 2] {
    let tiny_http = Server::deferd("warn", &["--front", "tiny_http"]);
    // It serves eight kept connections, and no others until one of them is closed.
    let one_each = Words { closes: true, ..DEFERD };
    [
        Contestant::server("bare loop, no job (limit)", Server::bare(), DEFERD),
        Contestant::server("deferd, tiny_http, a connection a request", tiny_http, one_each),
    ]
}

/// Returns all others. `environment` is the Python environment, `directory` is for what they write.
pub fn others(environment: &Path, directory: &Path) -> Vec<Contestant> {
    let python = Python { environment, directory };
    vec![
        python.contestant(
            "Celery + Redis, Flask",
            "celery",
            &[
                "celery",
                "-A",
                "front_celery:queue",
                "worker",
                "-c",
                "2",
                "--without-gossip",
                "--without-mingle",
                "--without-heartbeat",
                "-l",
                "error",
            ],
        ),
        // The default worker forks for each job; this one does not.
        python.contestant(
            "RQ (SimpleWorker) + Redis, Flask",
            "rq",
            &[
                "rq",
                "worker-pool",
                "-n",
                "2",
                "-w",
                "rq.worker.SimpleWorker",
                "-q",
                "-u",
                "unix://REDIS",
            ],
        ),
        python.contestant(
            "huey + Redis, Flask",
            "huey",
            &["huey_consumer", "front_huey.queue", "-w", "2", "-k", "process", "-q"],
        ),
        gearmand(),
        beanstalkd(),
    ]
}

/// Peers in Python: a Redis, Flask under gunicorn, and workers.
struct Python<'a> {
    environment: &'a Path,
    directory: &'a Path,
}

impl Python<'_> {
    fn contestant(&self, name: &'static str, short: &str, worker: &[&str]) -> Contestant {
        let mut peer = Peer::new();
        let redis = redis(&mut peer, &self.directory.join(short));
        let address = free_address();
        let socket = redis.to_str().unwrap();
        let front = format!("front_{short}:app");
        let bind = address.to_string();
        peer.start(&mut self.command(
            socket,
            &[
                "gunicorn",
                "-w",
                "2",
                "-k",
                "gthread",
                "--threads",
                "8",
                "--keep-alive",
                "60",
                "--log-level",
                "error",
                "-b",
                &bind,
                &front,
            ],
        ));
        let worker: Vec<String> = worker.iter().map(|word| word.replace("REDIS", socket)).collect();
        let worker: Vec<&str> = worker.iter().map(String::as_str).collect();
        peer.start(&mut self.command(socket, &worker));
        wait_for(name, address);
        Contestant::flask(name, address, redis, peer)
    }

    fn command(&self, redis: &str, words: &[&str]) -> Command {
        let mut command = Command::new(self.environment.join("bin").join(words[0]));
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/figures/peers");
        command.args(&words[1..]).current_dir(&sources);
        command.env("BENCH_REDIS", redis).env("PYTHONDONTWRITEBYTECODE", "1");
        command.env("PYTHONPATH", &sources).env("TMPDIR", self.directory);
        command
    }
}

/// Starts a Redis that keeps nothing on disk; returns its socket.
fn redis(peer: &mut Peer, directory: &Path) -> PathBuf {
    std::fs::create_dir(directory).unwrap();
    let socket = directory.join("redis");
    let mut command = Command::new("redis-server");
    command.args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"]).arg(&socket);
    peer.start(command.arg("--dir").arg(directory));
    wait_for_path("redis-server", &socket);
    socket
}

fn gearmand() -> Contestant {
    let (mut peer, address) = (Peer::new(), free_address());
    let port = address.port().to_string();
    // Its default backlog is 32, too few for 64 clients that arrive at once.
    peer.start(Command::new("gearmand").args([
        "-L",
        "127.0.0.1",
        "-p",
        &port,
        "-b",
        "1024",
        "-l",
        "stderr",
    ]));
    wait_for("gearmand", address);
    let name = "gearmand, foreground: keeps no result";
    let mut worker = Peer::new();
    worker.start(
        Command::new(std::env::current_exe().unwrap())
            .args(["gearman-worker", &address.to_string()]),
    );
    let mut contestant = Contestant::raw(name, address, Speech::Gearman, peer);
    contestant.worker = Some(worker);
    contestant
}

fn beanstalkd() -> Contestant {
    let (mut peer, address) = (Peer::new(), free_address());
    let port = address.port().to_string();
    peer.start(Command::new("beanstalkd").args(["-l", "127.0.0.1", "-p", &port]));
    wait_for("beanstalkd", address);
    let name = "beanstalkd, put + reserve + delete: no work, no result";
    Contestant::raw(name, address, Speech::Beanstalk, peer)
}
