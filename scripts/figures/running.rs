//! A script run for each request: deferd, a bare loop of spawns as the limit, and others. All run as many scripts at
//! once as there are clients.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::client::request;
use super::http_job::{Exchange, HttpJob, WAITING, Words};
use super::load::Load;
use super::peer::{Memory, Peer, free_address, wait_for};
use super::sample::Sample;
use super::scripts;
use super::server::Server;
use super::table::{Aim, Table};

const ROUNDS: usize = 5;
const LOAD: Load =
    Load { clients: 4, warm_up: Duration::from_millis(150), span: Duration::from_millis(1000) };

/// What the script prints.
const OK: &[u8] = b"ok\n";

/// The requests to deferd with scripts: the client waits for the result, as with all others.
const DEFERRED: Words = Words {
    submit: "GET /run/ok HTTP/1.1\r\nhost: localhost\r\nx-arango-async: store\r\n",
    result: OK,
    ..WAITING
};

/// Other programs that run scripts.
pub struct Others {
    webhook: (SocketAddr, Peer),
    lighttpd: (SocketAddr, Peer),
    busybox: (SocketAddr, Peer),
    spooler: Peer,
    scripts: scripts::Directory,
}

impl Others {
    /// Starts them; `directory` is for what they write.
    pub fn start(directory: &Path) -> Self {
        let scripts = scripts::Directory::new();
        let cgi = scripts.0.join("cgi-bin");
        fs::create_dir(&cgi).unwrap();
        // The same script with the head that CGI requires; one write, as in the other.
        let script = "#!/bin/sh\nprintf 'content-type: text/plain\\n\\nok\\n'\n";
        fs::write(cgi.join("ok"), script).unwrap();
        fs::set_permissions(cgi.join("ok"), fs::Permissions::from_mode(0o755)).unwrap();
        Self {
            webhook: webhook(&scripts.0, directory),
            lighttpd: lighttpd(&scripts.0, directory),
            busybox: busybox(&scripts.0),
            spooler: spooler(directory),
            scripts,
        }
    }

    /// Returns the weight of each.
    pub fn memory(&self) -> [(&'static str, Memory); 4] {
        [
            ("webhook", self.webhook.1.memory()),
            ("lighttpd", self.lighttpd.1.memory()),
            ("busybox httpd", self.busybox.1.memory()),
            ("task-spooler", self.spooler.memory()),
        ]
    }

    fn spool(&self, directory: &Path) {
        let mut command = self.tsp(directory);
        let output = command.arg("-fn").arg(self.scripts.0.join("ok")).output().unwrap();
        assert_eq!(output.stdout, OK);
    }

    fn tsp(&self, directory: &Path) -> Command {
        tsp(&self.spooler, directory)
    }
}

fn webhook(scripts: &Path, directory: &Path) -> (SocketAddr, Peer) {
    let (mut peer, address) = (Peer::new(), free_address());
    let hooks = directory.join("hooks.json");
    let script = scripts.join("ok");
    let hook = format!(
        r#"[{{"id":"ok","execute-command":"{}","include-command-output-in-response":true}}]"#,
        script.display()
    );
    fs::write(&hooks, hook).unwrap();
    let port = address.port().to_string();
    let mut command = Command::new("webhook");
    peer.start(command.args(["-ip", "127.0.0.1", "-port", &port, "-hooks"]).arg(&hooks));
    wait_for("webhook", address);
    (address, peer)
}

fn lighttpd(scripts: &Path, directory: &Path) -> (SocketAddr, Peer) {
    let (mut peer, address) = (Peer::new(), free_address());
    let path = directory.join("lighttpd.conf");
    let lines = [
        "server.modules = (\"mod_cgi\")".to_owned(),
        format!("server.document-root = \"{}\"", scripts.display()),
        "server.bind = \"127.0.0.1\"".to_owned(),
        format!("server.port = {}", address.port()),
        "server.max-keep-alive-requests = 100000".to_owned(),
        "cgi.assign = (\"\" => \"\")\n".to_owned(),
    ];
    fs::write(&path, lines.join("\n")).unwrap();
    peer.start(Command::new("lighttpd").arg("-D").arg("-f").arg(&path));
    wait_for("lighttpd", address);
    (address, peer)
}

fn busybox(scripts: &Path) -> (SocketAddr, Peer) {
    let (mut peer, address) = (Peer::new(), free_address());
    let mut command = Command::new("busybox");
    peer.start(command.args(["httpd", "-f", "-p", &address.to_string(), "-h"]).arg(scripts));
    wait_for("busybox httpd", address);
    (address, peer)
}

/// Starts the spooler, whose server starts with the first job, in a session of its own.
fn spooler(directory: &Path) -> Peer {
    let peer = Peer::new();
    assert!(tsp(&peer, directory).args(["-fn", "true"]).status().unwrap().success());
    peer
}

fn tsp(peer: &Peer, directory: &Path) -> Command {
    let mut command = Command::new("tsp");
    command.env("TS_SOCKET", directory.join("tsp")).env("TMPDIR", directory);
    command.env("TS_SLOTS", LOAD.clients.to_string()).stdin(Stdio::null());
    peer.marked(&mut command);
    command
}

/// Measures one side once.
type Rate<'a> = Box<dyn Fn() -> f64 + 'a>;

/// Measures all sides in turn.
pub fn measure(table: &mut Table, others: &Others, directory: &Path) {
    let route = format!("/run/=run:{}", others.scripts.0.display());
    let workers = LOAD.clients.to_string();
    let deferd = Server::deferd("warn", &["--workers", &workers, "--route", &route]);
    let environment = scripts::environment(&deferd);
    let get = |address: SocketAddr, target: &'static str| {
        move || LOAD.on(address, || Exchange { request: request("GET", target), result: OK })
    };
    let sides: [(&str, Rate); 7] = [
        ("bare posix_spawn loop (limit)", {
            let path = &others.scripts.0;
            Box::new(|| loops(|| scripts::spawn(path, &environment)))
        }),
        ("deferd, deferred and collected", {
            Box::new(|| LOAD.on(deferd.address, || HttpJob::new(DEFERRED)))
        }),
        ("deferd, synchronous", Box::new(get(deferd.address, "/run/ok"))),
        ("adnanh/webhook", Box::new(get(others.webhook.0, "/hooks/ok"))),
        ("lighttpd, CGI", Box::new(get(others.lighttpd.0, "/cgi-bin/ok"))),
        ("busybox httpd, CGI, a connection a request", {
            Box::new(get(others.busybox.0, "/cgi-bin/ok"))
        }),
        ("task-spooler, tsp -fn", Box::new(|| loops(|| others.spool(directory)))),
    ];
    let mut rates: Vec<Sample> = sides.iter().map(|_| Sample::default()).collect();
    for round in 0..ROUNDS {
        eprintln!("running scripts: round {} of {ROUNDS}", round + 1);
        for ((_, rate), rates) in sides.iter().zip(&mut rates) {
            rates.push(rate());
        }
    }
    let work = format!("run `echo ok`, {workers} at once, scripts/s");
    for ((who, _), rates) in sides.iter().zip(&rates) {
        table.row(&work, who, 0, rates);
    }
    let [bare, deferred, _, peers @ ..] = &*rates else { unreachable!("there are seven") };
    let what = "script jobs, of the bare spawn loop";
    table.aim(what, deferred.over(bare).median(), Aim::AtLeast(0.85));
    for (rates, (who, _)) in peers.iter().zip(&sides[3..]) {
        let what = format!("script jobs, times {who}");
        table.aim(&what, deferred.over(rates).median(), Aim::MoreThan(1.0));
    }
}

/// Does this work repeatedly in as many threads as there are clients elsewhere; returns how often a second.
fn loops(work: impl Fn() + Sync) -> f64 {
    let from = Instant::now() + LOAD.warm_up;
    let until = from + LOAD.span;
    let one = || {
        let mut count = 0;
        loop {
            work();
            let now = Instant::now();
            if now >= until {
                return count;
            }
            count += usize::from(from <= now);
        }
    };
    let count: usize = thread::scope(|scope| {
        let threads: Vec<_> = (0..LOAD.clients).map(|_| scope.spawn(one)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    count as f64 / LOAD.span.as_secs_f64()
}
