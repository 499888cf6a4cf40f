//! Content that is stored: a GiB to a script and from one to two readers, how much memory that takes, and how large
//! the files are after many additions and removals. Compared with a shell that does the same: into a file, synced, and
//! out of it.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::client::Client;
use super::sample::Sample;
use super::server::Server;
use super::table::{Aim, Table};

/// How often each way is measured, in turn with the other.
const ROUNDS: usize = 3;

/// How much is stored in one round, in bytes.
const MUCH: usize = 1 << 30;

/// How many results are added and removed, their sizes in turn, in bytes, and one of how many stays.
const RESULTS: usize = 1500;
const SIZES: [usize; 3] = [300, 60_000, 200_000];
const STAYS: usize = 10;

/// Measures everything, into `table`; `directory` is for what the programs write.
pub fn measure(table: &mut Table, directory: &Path) {
    let programs = directory.join("programs");
    fs::create_dir(&programs).unwrap();
    for (name, line) in [("count", "exec wc -c"), ("zeros", "exec head -c $QUERY_STRING /dev/zero")]
    {
        let path = programs.join(name);
        fs::write(&path, format!("#!/bin/sh\n{line}\n")).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    }
    let data = directory.join("stored");
    let run = format!("/run/=run:{}", programs.display());
    let sizes = ["--max-memory", "32M", "--max-body", "2G", "--max-output", "2G"];
    let stored = ["--max-stored", "8G", "--data", data.to_str().unwrap(), "--route", &run];
    let server = Server::deferd("warn", &[&sizes[..], &stored].concat());
    let (mut in_deferd, mut in_shell) = <([Sample; 2], [Sample; 2])>::default();
    for _ in 0..ROUNDS {
        in_deferd[0].push(rate(|| to_script(server.address)));
        in_shell[0].push(rate(|| shell(directory, "cat FILE | wc -c")));
        in_deferd[1].push(rate(|| to_readers(server.address)));
        let readers = "cat FILE | cat >/dev/null & cat FILE | cat >/dev/null; wait";
        in_shell[1].push(rate(|| shell(directory, readers)));
    }
    let names = ["a stored GiB to a script", "a stored GiB to two readers"];
    for (name, (deferd, shell)) in names.iter().zip(in_deferd.iter().zip(&in_shell)) {
        table.row(&format!("{name}, MB/s"), "cat into a file, sync, cat", 0, shell);
        table.row(&format!("{name}, MB/s"), "deferd", 0, deferd);
        let share = deferd.over(shell).median();
        table.aim(&format!("{name}, of the rate of cat"), share, Aim::AtLeast(0.7));
    }
    let highest = server.highest() / f64::from(1 << 20);
    table.aim("a stored GiB, highest resident MiB of deferd", highest, Aim::AtMost(48.0));
    files(table, server.address, &data);
}

/// Returns the rate at which a GiB is processed, in MB a second.
fn rate(run: impl FnOnce()) -> f64 {
    let begin = Instant::now();
    run();
    MUCH as f64 / 1e6 / begin.elapsed().as_secs_f64()
}

/// Makes a shell store a GiB in a file, and do something with it.
fn shell(directory: &Path, then: &str) {
    let file = directory.join("copy").display().to_string();
    let line = format!("head -c {MUCH} /dev/zero | cat >FILE; sync FILE; {then}; rm FILE");
    let line = line.replace("FILE", &file);
    let status = Command::new("sh").args(["-c", &line]).stdout(Stdio::null()).status();
    assert!(status.unwrap().success());
}

/// Submits a request; returns its id. Its content is sent in pieces.
fn submit(address: SocketAddr, target: &str, length: usize) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "POST {target} HTTP/1.1\r\nhost: localhost\r\nx-arango-async: store\r\ncontent-length: {length}\r\n\
         connection: close\r\n\r\n"
    )
    .unwrap();
    let piece = vec![0; 64 << 10];
    let mut left = length;
    while left > 0 {
        left -= stream.write(&piece[..left.min(piece.len())]).unwrap();
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let id = answer.lines().find_map(|line| line.strip_prefix("x-arango-async-id: "));
    id.unwrap_or_else(|| panic!("{answer}")).to_owned()
}

/// Waits until a job is done.
fn wait_for(address: SocketAddr, id: &str) {
    Client::new(address).wait_done(id, Duration::from_millis(5));
}

/// Reads an answer to its last byte; returns its length.
fn read(address: SocketAddr, method: &str, target: &str) -> usize {
    let mut stream = TcpStream::connect(address).unwrap();
    let head =
        format!("{method} {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut buffer = vec![0; 256 << 10];
    let mut length = 0;
    while let n @ 1.. = stream.read(&mut buffer).unwrap() {
        length += n;
    }
    length
}

fn to_script(address: SocketAddr) {
    let id = submit(address, "/run/count", MUCH);
    wait_for(address, &id);
    read(address, "PUT", &format!("/_api/job/{id}"));
}

fn to_readers(address: SocketAddr) {
    let id = submit(address, &format!("/run/zeros?{MUCH}"), 0);
    wait_for(address, &id);
    let target = format!("/_api/job/{id}/result");
    thread::scope(|scope| {
        let readers = [(); 2].map(|()| scope.spawn(|| read(address, "GET", &target)));
        readers.into_iter().for_each(|reader| assert!(reader.join().unwrap() > MUCH));
    });
    read(address, "DELETE", &format!("/_api/job/{id}"));
}

/// Adds how large the files are after results of all sizes were added and nine in ten removed, and after all were.
fn files(table: &mut Table, address: SocketAddr, data: &Path) {
    let submit = |n: usize| submit(address, &format!("/run/zeros?{}", SIZES[n % SIZES.len()]), 0);
    let ids: Vec<String> = (0..RESULTS).map(submit).collect();
    ids.iter().for_each(|id| wait_for(address, id));
    let full = size(data);
    let (mut left, mut gone) = (0, 0);
    for (n, id) in ids.iter().enumerate() {
        if n % STAYS == 0 {
            left += SIZES[n % SIZES.len()];
        } else {
            read(address, "DELETE", &format!("/_api/job/{id}"));
            gone += 1;
        }
    }
    let bound = 1.1 * left as f64 + f64::from(4 << 20);
    let short = shortened(data, bound);
    let mib = |bytes: usize| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
    let work = format!("files, MiB, after {gone} of {RESULTS} results went");
    let what = format!("{} at most, of {} stored", mib(full), mib(left));
    table.once(&work, &what, &mib(short));
    let of_bound = short as f64 / bound;
    table.aim(&format!("{work}, of 1.1 × stored + 4 MiB"), of_bound, Aim::AtMost(1.0));
    read(address, "DELETE", "/_api/job/all");
    let empty = shortened(data, f64::from(4 << 20)) as f64 / f64::from(1 << 20);
    table.aim("files, MiB, when all are gone", empty, Aim::AtMost(4.0));
}

/// Waits until the files have at most this many bytes and no longer change, for at most ten seconds: they are
/// shortened when the store is idle. Returns their size.
fn shortened(data: &Path, bound: f64) -> usize {
    let end = Instant::now() + Duration::from_secs(10);
    let mut before = size(data);
    loop {
        thread::sleep(Duration::from_secs(1));
        let now = size(data);
        if (now == before && now as f64 <= bound) || Instant::now() >= end {
            return now;
        }
        before = now;
    }
}

/// Returns the total length of all files in a directory, in bytes.
fn size(directory: &Path) -> usize {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => size(&entry.path()),
        found => found.map_or(0, |found| found.len() as usize),
    });
    sizes.sum()
}
