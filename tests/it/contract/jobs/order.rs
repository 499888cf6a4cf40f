//! First in, first out: the waiting jobs of a lane start in their order, whatever is cancelled in the meantime and
//! however full the queue is.
//!
//! A client keeps the queue full, and makes room by cancelling a waiting job at each `503`. Each script records when
//! it begins. That order is exact only where one job can begin at a time: with one worker; in a lane with a limit of
//! one; and with two workers whose scripts end one at a time, each after its successor has begun.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::support::{Client, Deferd, TempDir, eventually, fixtures};

/// The most jobs that wait.
const QUEUE: usize = 400;

/// How many jobs begin before the order is checked.
const STARTS: usize = 200;

/// The oldest waiting jobs are never cancelled: they may begin at that moment.
const SPARED: usize = 100;

/// A lane whose jobs run one at a time, and one without a limit.
const LANES: [&str; 2] = ["gated", "free"];

/// When a script ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// As soon as it can.
    AtOnce,
    /// When it is released: one at a time.
    OneByOne,
}

/// Where the jobs are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    InMemory,
    OnDisk,
}

#[test]
fn jobs_start_in_order_from_memory() {
    check_order(Kept::InMemory);
}

#[test]
fn jobs_start_in_order_from_disk() {
    check_order(Kept::OnDisk);
}

fn check_order(kept: Kept) {
    assert_in_order("one worker", &starts(kept, "1", End::AtOnce), &LANES);
    // If two run freely, it is not visible from outside which begins first; only the gated lane is exact.
    assert_in_order("two workers", &starts(kept, "2", End::AtOnce), &LANES[..1]);
    assert_in_order("two workers, one by one", &starts(kept, "2", End::OneByOne), &LANES);
}

/// Returns the lanes and numbers of jobs in the order in which they began, at a full queue with cancellations.
fn starts(kept: Kept, workers: &str, end: End) -> Vec<(String, usize)> {
    let routes = [
        format!("/gated/=run:{},concurrency=1", fixtures().display()),
        format!("/free/=run:{}", fixtures().display()),
    ];
    let queue = QUEUE.to_string();
    let mut arguments = vec!["--route", &routes[0], "--route", &routes[1]];
    arguments.extend(["--queue", &queue, "--workers", workers]);
    let mut order = Order::new();
    let data = order.dir.join("data").display().to_string();
    if kept == Kept::OnDisk {
        arguments.extend(["--data", &data]);
    }
    let deferd = Deferd::start(&arguments);
    let mut submitter = Submitter::new(deferd.client(), order.file());
    submitter.fill_the_queue();
    order.begin(end);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _over = SetAtEnd(&is_over);
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                submitter.submit_or_cancel();
            }
        });
        order.watch();
    });
    order.lines()
}

/// Sets the flag when it is dropped, even if a test has failed.
struct SetAtEnd<'a>(&'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The file in which the scripts record their starts, and the FIFO that holds them.
struct Order {
    dir: TempDir,
    /// Open at both ends, so that opening it does not block. `None` once nothing holds the scripts any more.
    go: Option<File>,
}

impl Order {
    fn new() -> Self {
        let dir = TempDir::new();
        let path = dir.join("order.go");
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        let go = OpenOptions::new().read(true).write(true).open(path).unwrap();
        File::create(dir.join("order")).unwrap();
        Self { dir, go: Some(go) }
    }

    /// Makes the scripts end in this way; until now all are held, so that the queue can be filled.
    fn begin(&mut self, end: End) {
        if end == End::AtOnce {
            std::fs::rename(self.dir.join("order.go"), self.dir.join("gone")).unwrap();
            // The scripts that have it open read its end.
            self.go = None;
        }
    }

    fn file(&self) -> PathBuf {
        self.dir.join("order")
    }

    fn lines(&self) -> Vec<(String, usize)> {
        let text = std::fs::read_to_string(self.file()).unwrap();
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        whole
            .map(|line| {
                let (lane, number) = line.trim_end().split_once('-').unwrap();
                (lane.to_owned(), number.parse().unwrap())
            })
            .collect()
    }

    /// Waits until enough have begun.
    fn watch(&self) {
        let Some(mut go) = self.go.as_ref() else {
            return eventually("enough jobs begin", || self.lines().len() >= STARTS);
        };
        eventually("two jobs begin", || self.lines().len() >= 2);
        for begun in 2..STARTS {
            go.write_all(b"\n").unwrap();
            eventually("the next job begins", || self.lines().len() > begun);
        }
    }
}

/// A client that keeps the queue full.
struct Submitter {
    client: Client,
    file: PathBuf,
    /// The number of the next job: with one submitter, jobs are in the order of their numbers.
    number: usize,
    /// Accepted jobs that were not cancelled, the oldest first.
    accepted: VecDeque<(usize, String)>,
    /// The state of a linear congruential generator, which decides what is cancelled.
    random: u32,
}

impl Submitter {
    fn new(client: Client, file: PathBuf) -> Self {
        Self { client, file, number: 0, accepted: VecDeque::new(), random: 1 }
    }

    fn fill_the_queue(&mut self) {
        while self.submit() {}
    }

    fn submit_or_cancel(&mut self) {
        if !self.submit() {
            self.cancel();
        }
    }

    /// Submits a job; returns `false` if the queue is full.
    fn submit(&mut self) -> bool {
        let lane = LANES[self.number % LANES.len()];
        let (file, number) = (self.file.display(), self.number);
        let target = format!("/{lane}/c-order?{file},{lane}-{number}");
        let reply = self.client.request("GET", &target, &[("x-arango-async", "store")], b"");
        if reply.status == 503 {
            return false;
        }
        let id = reply.expect(202).id().unwrap().to_owned();
        self.accepted.push_back((number, id));
        self.number += 1;
        true
    }

    /// Cancels one of the younger waiting jobs.
    fn cancel(&mut self) {
        let waiting = self.accepted.len().min(QUEUE) - SPARED;
        self.random = self.random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let from_the_youngest = self.random as usize % waiting;
        let place = self.accepted.len() - 1 - from_the_youngest;
        let (_, id) = self.accepted.remove(place).unwrap();
        self.client.put(&format!("/_api/job/{id}/cancel")).expect(200);
    }
}

/// Asserts that no job of these lanes began after a younger one of its lane.
#[track_caller]
fn assert_in_order(what: &str, starts: &[(String, usize)], lanes: &[&str]) {
    for &lane in lanes {
        let numbers = starts.iter().filter(|(of, _)| of == lane).map(|&(_, number)| number);
        let numbers: Vec<usize> = numbers.collect();
        let younger_before = |n: usize| numbers[..n].iter().filter(|&&m| m > numbers[n]).count();
        let late: Vec<usize> = (0..numbers.len()).map(younger_before).filter(|&n| n > 0).collect();
        assert!(
            late.is_empty(),
            "{what}: {} of {} jobs of the lane {lane:?} began after a younger one, the worst behind {} of them",
            late.len(),
            numbers.len(),
            late.iter().max().unwrap(),
        );
        assert!(numbers.len() > STARTS / 10, "{what}: {lane:?} had its share: {}", numbers.len());
    }
}
