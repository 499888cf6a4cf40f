//! Durable submissions: 202s a second by number of clients, and their cost in syncs, compared with the store in memory
//! and a bare loop that writes and syncs.
//!
//! All on one disk: that of the target directory. `strace` counts the syncs, in separate runs, because it slows down
//! what it watches.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use super::client::{Client, deferred, request};
use super::sample::{Meter, ROUNDS, Sample, row, title};
use super::server::Server;

const CLIENTS: [usize; 3] = [1, 8, 64];
/// The threads of the load generator: each sends on all of its connections before it reads.
const THREADS: usize = 2;
/// How often the sides take turns within a round.
const TURNS: usize = 4;
/// The duration of one turn of one side.
const SPAN: Duration = Duration::from_millis(120);
/// How often syncs are counted, and the store is opened.
const TRACED: usize = 3;
/// The number of results in the store that is opened.
const MANY: usize = 100_000;
/// What the bare loop writes at once: a page.
const PAGE: usize = 4096;

/// Prints the figures.
pub fn print() {
    title("store: deferring GET /_api/version, RUST_LOG=warn");
    let directory = Directory::new("bench-store");
    speed(&directory.0);
    syncs(&directory.0);
    opening(&directory.0);
}

/// A directory on the target's disk, removed when dropped.
pub struct Directory(pub PathBuf);

impl Directory {
    pub fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A deferd, its clients, and what was measured.
struct Side {
    server: Server,
    clients: Vec<Client>,
    meter: Meter,
}

impl Side {
    fn new(arguments: &[&str], count: usize) -> Self {
        let server = Server::deferd("warn", arguments);
        let clients = Client::several(server.address, count);
        Self { server, clients, meter: Meter::default() }
    }

    fn on_disk(directory: &Path, count: usize) -> Self {
        let data = directory.join(format!("{count}-clients"));
        Self::new(&["--data", data.to_str().unwrap()], count)
    }

    fn load(&mut self) {
        let Self { server, clients, meter } = self;
        meter.turn(|| server.processor_time(), || submit_for(clients, SPAN));
        // What follows belongs to no turn.
        self.clear();
    }

    /// Lets everything run to its end, and removes it.
    fn clear(&mut self) {
        self.clients[0].wait_idle(Duration::from_millis(2));
        self.clients[0].exchange(&request("DELETE", "/_api/job/all"));
    }
}

/// Submits on all connections for a while; returns how many were accepted.
fn submit_for(clients: &mut [Client], span: Duration) -> usize {
    let (begin, job) = (Instant::now(), deferred("/_api/version"));
    let load = |clients: &mut [Client]| {
        let mut accepted = 0;
        while begin.elapsed() < span {
            clients.iter_mut().for_each(|client| client.send(&job));
            let replies = clients.iter_mut().map(Client::receive);
            // A full queue refuses: that counts as nothing.
            accepted += replies.filter(|reply| reply.status == 202).count();
        }
        accepted
    };
    let share = clients.len().div_ceil(THREADS);
    thread::scope(|scope| {
        let shares = clients.chunks_mut(share);
        let threads: Vec<_> = shares.map(|share| scope.spawn(|| load(share))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    })
}

fn speed(directory: &Path) {
    let mut disk = CLIENTS.map(|count| Side::on_disk(directory, count));
    let mut memory = CLIENTS.map(|count| Side::new(&[], count));
    let mut bare = (Bare::new(directory), Sample::default());
    for _ in 0..ROUNDS {
        for _ in 0..TURNS {
            disk.iter_mut().chain(&mut memory).for_each(Side::load);
        }
        disk.iter_mut().chain(&mut memory).for_each(|side| side.meter.end_round());
        bare.1.push(bare.0.rate());
    }
    for (what, sides) in [("disk", &disk), ("memory", &memory)] {
        for side in sides {
            row(&format!("{what}, {} client(s), 202s/s", side.clients.len()), &side.meter.rate);
        }
    }
    row("bare pwrite + fdatasync of a page, 1/s", &bare.1);
    let [one, _, many] = disk.map(|side| side.meter.rate);
    row("disk, 64 clients / 1 (target >= 5)", format_args!("{:.2}", many.over(&one)));
    row("disk, 1 client / bare loop", format_args!("{:.2}", one.over(&bare.1)));
}

/// A loop that overwrites a page, and makes it durable.
struct Bare(File);

impl Bare {
    fn new(directory: &Path) -> Self {
        let path = directory.join("bare");
        let file = OpenOptions::new().create_new(true).write(true).open(path).unwrap();
        file.write_all_at(&[1; PAGE], 0).unwrap();
        file.sync_all().unwrap();
        Self(file)
    }

    fn rate(&self) -> f64 {
        let begin = Instant::now();
        let mut count = 0_u32;
        while begin.elapsed() < SPAN {
            self.0.write_all_at(&[count as u8; PAGE], 0).unwrap();
            self.0.sync_data().unwrap();
            count += 1;
        }
        f64::from(count) / begin.elapsed().as_secs_f64()
    }
}

/// Opens many stored results, after a kill and after an orderly shutdown.
fn opening(directory: &Path) {
    let data = directory.join("many");
    let arguments = ["--data", data.to_str().unwrap(), "--max-stored", "1G"];
    let server = Server::deferd("warn", &arguments);
    Client::new(server.address).store(&deferred("/_admin/time"), MANY);
    drop(server);
    type End = fn(Server);
    for (what, end) in [("a kill", drop as End), ("an orderly end", Server::end)] {
        let (mut span, mut resident) = (Sample::default(), Sample::default());
        for round in 0..=TRACED {
            let begin = Instant::now();
            let server = Server::deferd("warn", &arguments);
            // The first one was opened after unrelated work.
            if round > 0 {
                span.push(begin.elapsed().as_secs_f64());
                resident.push(server.resident() / (1024.0 * 1024.0));
            }
            let list = request("GET", "/_api/job/done?count=10000");
            let ids = Client::new(server.address).exchange(&list).body;
            assert_eq!(ids.split(|&b| b == b',').count(), 10_000);
            end(server);
        }
        row(&format!("opening {MANY} after {what}, s (target <= 2)"), format_args!("{span:.2}"));
        row("resident then, MiB", format_args!("{resident:.1}"));
    }
}

fn syncs(directory: &Path) {
    if Command::new("strace").arg("-V").output().is_err() {
        row("syncs per 202", "not counted: there is no strace here");
        return;
    }
    for (count, target) in CLIENTS.into_iter().zip(["<= 2", "", "<= 0.2"]) {
        let mut sample = Sample::default();
        for round in 0..TRACED {
            sample.push(syncs_for(&directory.join(format!("traced-{count}-{round}")), count));
        }
        let target = if target.is_empty() { String::new() } else { format!(" (target {target})") };
        row(&format!("syncs per 202, {count} client(s){target}"), format_args!("{sample:.3}"));
    }
}

/// Submits for a while to a deferd under `strace`; returns the syncs per 202, including those for the jobs' ends.
fn syncs_for(directory: &Path, count: usize) -> f64 {
    std::fs::create_dir_all(directory).unwrap();
    let (trace, data) = (directory.join("trace"), directory.join("data"));
    let mut command = Command::new("strace");
    // With -D, deferd is the child process, and ends like any other.
    command.args(["-D", "-f", "--seccomp-bpf", "-e", "trace=fsync,fdatasync", "-o"]).arg(&trace);
    let server = Server::under(&mut command, &["--data", data.to_str().unwrap()]);
    let mut clients = Client::several(server.address, count);
    let traced = || std::fs::read_to_string(&trace).unwrap().matches("sync(").count();
    let before = traced();
    let accepted = submit_for(&mut clients, 4 * SPAN);
    clients[0].wait_idle(Duration::from_millis(2));
    (traced() - before) as f64 / accepted as f64
}
