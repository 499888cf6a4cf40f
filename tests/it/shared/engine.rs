//! An engine for a test: a real server on a free port, in a directory of its own.
//!
//! `DEFERD_TEST_ENGINE` names a server other than `redis-server`. Invariant: it ends with its test.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use redis::{Connection, Value};

use crate::support::{TempDir, eventually};

/// A server.
pub struct Engine {
    child: Option<Child>,
    pub port: u16,
    arguments: Vec<String>,
    dir: TempDir,
}

/// The settings under which an engine loses nothing that it acknowledged.
pub const DURABLE: &[&str] = &["--appendonly", "yes", "--appendfsync", "always"];

impl Engine {
    /// Starts an engine with these settings, in addition to those that every store needs.
    pub fn start(settings: &[&str]) -> Self {
        let arguments = settings.iter().map(ToString::to_string).collect();
        let mut engine = Self { child: None, port: free_port(), arguments, dir: TempDir::new() };
        for _ in 0..5 {
            if engine.launch() {
                return engine;
            }
            // Another process has taken the port in the meantime.
            engine.port = free_port();
        }
        panic!("the engine does not start:\n{}", engine.log());
    }

    /// Starts an engine that loses nothing.
    pub fn durable() -> Self {
        Self::start(DURABLE)
    }

    fn launch(&mut self) -> bool {
        let program = std::env::var("DEFERD_TEST_ENGINE").unwrap_or_else(|_| "redis-server".into());
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.join("log"))
            .unwrap();
        let child = Command::new(&program)
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .args(["--maxmemory-policy", "noeviction", "--dir"])
            .arg(&self.dir.0)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}; scripts/test-shared installs it"));
        self.child = Some(child);
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            if self.child.as_mut().is_none_or(|child| child.try_wait().unwrap().is_some()) {
                self.child = None;
                return false;
            }
            if let Ok(mut connection) = self.try_connect()
                && redis::cmd("PING").query::<Value>(&mut connection).is_ok()
            {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the engine does not answer:\n{}", self.log());
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    fn try_connect(&self) -> redis::RedisResult<Connection> {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.port))?;
        let connection = client.get_connection_with_timeout(Duration::from_secs(5))?;
        connection.set_read_timeout(Some(Duration::from_secs(20)))?;
        Ok(connection)
    }

    /// Returns a connection to it.
    pub fn connect(&self) -> Connection {
        self.try_connect().unwrap()
    }

    /// Runs a command.
    pub fn command<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let mut command = redis::cmd(words[0]);
        words[1..].iter().for_each(|word| {
            command.arg(*word);
        });
        command.query(&mut self.connect()).unwrap()
    }

    /// Returns its address in the form of `--store`.
    pub fn address(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Ends it without warning.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again at the same address.
    pub fn restart(&mut self) {
        self.kill();
        assert!(self.launch(), "it starts again:\n{}", self.log());
    }

    /// Starts an engine that loses nothing, as the replica of another.
    pub fn replica_of(primary: &Self) -> Self {
        Self::start(&[DURABLE, &["--replicaof", "127.0.0.1", &primary.port.to_string()]].concat())
    }

    /// Starts it again at the same address, as the replica of another.
    pub fn restart_as_replica_of(&mut self, primary: &Self) {
        let port = primary.port.to_string();
        self.arguments.extend(["--replicaof", "127.0.0.1", &port].map(str::to_owned));
        self.restart();
    }

    /// Waits until it has all data of its primary.
    pub fn wait_in_step(&self) {
        eventually("the replica has its primary", || {
            self.command::<String>(&["INFO", "replication"]).contains("master_link_status:up")
        });
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: &str) {
        let pid = self.child.as_ref().expect("it runs").id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Returns a port that is currently free.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
