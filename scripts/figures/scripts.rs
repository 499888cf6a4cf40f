//! What a script job costs compared with the bare fork+exec of the same script.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use super::client::{Client, deferred, request};
use super::sample::{Meter, ROUNDS, row, title};
use super::server::{Server, processor_time};

/// How often the sides take turns within a round, so that other load on the machine affects all.
const TURNS: usize = 4;

/// Scripts in one turn of one side.
const SCRIPTS: usize = 250;

/// Connections that submit and collect, with a thread each.
const CLIENTS: usize = 2;

/// How often a client asks whether its last job is done.
const REST: Duration = Duration::from_millis(3);

/// Prints the figures.
pub fn print() {
    title("scripts: a script that says ok, as a deferred job and bare");
    let workers = thread::available_parallelism().map_or(2, usize::from).max(2);
    let directory = Directory::new();
    let route = format!("/run/=run:{}", directory.0.display());
    let arguments = ["--workers", &workers.to_string(), "--route", &route];
    let quiet = Server::deferd("warn", &arguments);
    let logging = Server::deferd("info", &arguments);
    let before = Server::before("info", &arguments);
    let environment = environment(&quiet);
    let mut quietly = Client::several(quiet.address, CLIENTS);
    let mut with_log = Client::several(logging.address, CLIENTS);
    let mut before =
        before.map(|server| (Client::several(server.address, CLIENTS), server, Meter::default()));
    let mut meters = [Meter::default(), Meter::default(), Meter::default()];
    let [bare, silent, logged] = &mut meters;
    for _ in 0..ROUNDS {
        for _ in 0..TURNS {
            let own_time = || processor_time(std::process::id());
            bare.turn(own_time, || spawned(&directory.0, &environment, workers));
            silent.turn(|| quiet.processor_time(), || jobs(&mut quietly));
            logged.turn(|| logging.processor_time(), || jobs(&mut with_log));
            if let Some((clients, server, meter)) = &mut before {
                meter.turn(|| server.processor_time(), || jobs(clients));
            }
        }
        let before = before.as_mut().map(|(_, _, meter)| meter);
        [&mut *bare, &mut *silent, &mut *logged]
            .into_iter()
            .chain(before)
            .for_each(Meter::end_round);
    }
    print_rows(workers, &meters);
    if let Some((_, _, before)) = &before {
        let [_, _, logged] = &meters;
        let (rate, cost) = (&before.rate, &before.cost);
        row("deferd / deferd before, jobs/s", format_args!("{:.3}", logged.rate.over(rate)));
        row("the same, processor time a job", format_args!("{:.3}", logged.cost.over(cost)));
    }
}

fn print_rows(workers: usize, [bare, silent, logged]: &[Meter; 3]) {
    row(&format!("bare, {workers} threads, scripts/s"), &bare.rate);
    row(&format!("deferd, {workers} workers, no access log, jobs/s"), &silent.rate);
    row("deferd, access log to /dev/null, jobs/s", &logged.rate);
    let time = |meter: &Meter| bare.rate.over(&meter.rate);
    row("time of a job / bare, no access log", format_args!("{:.3}", time(silent)));
    row("time of a job / bare (target <= 1.15)", format_args!("{:.3}", time(logged)));
    // For the server and its scripts; the clients of deferd belong to the benchmark.
    row("bare, processor time a script, µs", &bare.cost);
    row("deferd, processor time a job, µs", &logged.cost);
    row("processor time / bare", format_args!("{:.3}", logged.cost.over(&bare.cost)));
}

/// The scripts, removed when dropped.
pub struct Directory(pub PathBuf);

impl Directory {
    pub fn new() -> Self {
        let path = std::env::temp_dir().join(format!("deferd-bench-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        let directory = Self(path.canonicalize().unwrap());
        directory.add("ok", "echo ok");
        // As the shell found it, before it added anything.
        directory.add("environment", "exec cat /proc/$$/environ");
        directory
    }

    fn add(&self, name: &str, line: &str) {
        let path = self.0.join(name);
        fs::write(&path, format!("#!/bin/sh\n{line}\n")).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Returns the environment that deferd gives a script, so that the bare side has the same.
pub fn environment(deferd: &Server) -> Vec<(OsString, OsString)> {
    let reply = Client::new(deferd.address).exchange(&request("GET", "/run/environment"));
    assert_eq!(reply.status, 200);
    let variables = reply.body.split(|&b| b == 0).filter_map(|variable| {
        let equals = variable.iter().position(|&b| b == b'=')?;
        let (name, value) = (&variable[..equals], &variable[equals + 1..]);
        Some((OsString::from_vec(name.to_vec()), OsString::from_vec(value.to_vec())))
    });
    variables.collect()
}

/// Runs scripts as jobs, from the first submission to the last result; returns how many.
fn jobs(clients: &mut [Client]) -> usize {
    let job = deferred("/run/ok");
    let share = SCRIPTS / clients.len();
    thread::scope(|scope| {
        for client in &mut *clients {
            scope.spawn(|| {
                let ids: Vec<String> = (0..share).map(|_| client.submit(&job)).collect();
                client.wait_done(&ids[share - 1], REST);
                for id in ids {
                    client.wait_done_and_collect(&id);
                }
            });
        }
    });
    share * clients.len()
}

impl Client {
    /// Collects a script's result. If the workers overtake each other, it may have to wait.
    fn wait_done_and_collect(&mut self, id: &str) {
        let collect = request("PUT", &format!("/_api/job/{id}"));
        let mut reply = self.exchange(&collect);
        if reply.status == 204 {
            self.wait_done(id, Duration::from_millis(1));
            reply = self.exchange(&collect);
        }
        assert_eq!((reply.status, &*reply.body), (200, &b"ok\n"[..]));
    }
}

/// Spawns scripts by a loop in each of `threads`; returns how many.
fn spawned(directory: &Path, environment: &[(OsString, OsString)], threads: usize) -> usize {
    let share = SCRIPTS / threads;
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| (0..share).for_each(|_| spawn(directory, environment)));
        }
    });
    share * threads
}

/// Runs the script once.
pub fn spawn(directory: &Path, environment: &[(OsString, OsString)]) {
    let output = Command::new(directory.join("ok"))
        .env_clear()
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .process_group(0)
        .spawn()
        .unwrap()
        .wait_with_output()
        .unwrap();
    assert!(output.status.success() && output.stdout == b"ok\n");
}
