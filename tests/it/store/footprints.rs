//! Footprints are accurate: the accounted size of jobs, results and keys is, within a quarter, the memory by which the
//! process grows.
//!
//! On the memory store: on disk, only the record of a result is in memory.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};

use crate::support::hold::Hold;
use crate::support::{Client, Deferd, eventually};

/// How many of a kind are weighed: enough that the free memory kept besides them does not matter.
const MANY: usize = 10_000;

/// How many requests are pending at once.
const BATCH: usize = 10;

/// How many jobs wait at most if they are then to be done: the heap would keep the memory of more requests, besides
/// the results.
const PART: usize = 100;

/// Returns the private memory of the process, in bytes.
fn private(deferd: &Deferd) -> usize {
    let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", deferd.pid())).unwrap();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Private_Dirty:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
}

/// Returns the size that deferd reports as stored, in bytes, rounded to 64 KiB.
fn accounted(client: &mut Client) -> usize {
    let version = client.get("/_api/version?details=true").expect(200).json();
    version["details"]["stored-used"].as_str().unwrap().parse().unwrap()
}

/// Submits `count` jobs, a batch at a time; `request` returns each one by its number.
fn submit(client: &Client, count: usize, mut request: impl FnMut(usize) -> String) {
    let mut input = BufReader::new(client.socket());
    for batch in 0..count / BATCH {
        let requests: String = (0..BATCH).map(|n| request(batch * BATCH + n)).collect();
        client.socket().write_all(requests.as_bytes()).unwrap();
        let mut answered = 0;
        while answered < BATCH {
            let mut line = String::new();
            // Unlike `read`, this continues when a signal interrupts it.
            assert!(input.read_line(&mut line).unwrap() > 0, "the connection ends");
            assert!(!line.starts_with("HTTP/1.1 ") || line.starts_with("HTTP/1.1 2"), "{line}");
            // A `202` has no content: an empty line ends it.
            answered += usize::from(line == "\r\n");
        }
    }
}

fn head(line: &str, fields: &str) -> String {
    format!("{line} HTTP/1.1\r\nhost: a\r\nx-arango-async: store\r\n{fields}\r\n")
}

/// The sizes of each item, in bytes.
#[derive(Clone, Copy)]
struct Each {
    accounted: f64,
    taken: f64,
}

impl Each {
    #[track_caller]
    fn is_true(self, what: &str) {
        let Self { accounted, taken } = self;
        let ratio = accounted / taken;
        eprintln!("{what}: {accounted:.0} bytes accounted, {taken:.0} taken, ratio {ratio:.2}");
        assert!(
            (0.75..=1.25).contains(&ratio),
            "{what}: {accounted:.0} accounted, {taken:.0} taken"
        );
    }
}

/// Returns the median of three weighings: where an allocator places small blocks is partly chance.
fn middle(weigh: impl Fn() -> Each) -> Each {
    let mut all = [(); 3].map(|()| weigh());
    all.sort_by(|a, b| a.taken.total_cmp(&b.taken));
    all[1]
}

/// Fills a deferd with this many of a kind, and weighs each.
#[track_caller]
fn weigh(
    deferd: &Deferd,
    count: usize,
    is_done: bool,
    mut request: impl FnMut(usize) -> String,
) -> Each {
    let (jobs, mut client) = (deferd.client(), deferd.client());
    let mut wait = || {
        if is_done {
            eventually("they are done", || client.list("pending?count=1").is_empty());
        }
    };
    // What is created once exists before.
    submit(&jobs, PART, |_| head("GET /_admin/time", ""));
    wait();
    let (before, accounted_before) = (private(deferd), accounted(&mut deferd.client()));
    for part in 0..count / PART {
        submit(&jobs, PART, |n| request(part * PART + n));
        wait();
    }
    let taken = private(deferd).saturating_sub(before) as f64 / count as f64;
    let accounted = (accounted(&mut deferd.client()) - accounted_before) as f64 / count as f64;
    Each { accounted, taken }
}

fn deferd() -> Deferd {
    Deferd::with_scripts("", &["--max-stored", "180M", "--max-memory", "256M", "--queue", "50000"])
}

#[test]
fn results_take_what_is_accounted() {
    for (what, line, length) in [
        ("a result without content", "HEAD /_admin/time", 0),
        ("a result of 51 bytes", "GET /_admin/time", 0),
        ("a result of 1 KiB", "POST /_admin/echo", 830),
        ("a result of 5 KB", "POST /_admin/echo", 4800),
    ] {
        let body = "x".repeat(length);
        let fields =
            if length > 0 { format!("content-length: {length}\r\n") } else { String::new() };
        let request = head(line, &fields) + &body;
        middle(|| weigh(&deferd(), MANY, true, |_| request.clone())).is_true(what);
    }
}

#[test]
fn waiting_jobs_take_what_is_accounted() {
    for (what, count, size, length) in [
        ("a job without content", 0, 0, 0),
        ("a job with 3 fields and 100 bytes", 3, 20, 100),
        ("a job with 20 fields and 100 bytes", 20, 20, 100),
        ("a job with 90 fields", 90, 20, 0),
        ("a job with 3 long fields and 3 KB", 3, 1000, 3000),
    ] {
        let mut fields = String::new();
        for n in 0..count {
            write!(fields, "x-field-{n}: {}\r\n", "v".repeat(size)).unwrap();
        }
        if length > 0 {
            write!(fields, "content-length: {length}\r\n").unwrap();
        }
        let request = head("POST /_admin/echo?a=1", &fields) + &"x".repeat(length);
        let mut each = middle(|| {
            let deferd = deferd();
            let holds = [(); 8].map(|()| Hold::new());
            for hold in holds.iter().take(workers()) {
                hold.start(&mut deferd.client());
            }
            let each = weigh(&deferd, MANY / 4, false, |_| request.clone());
            holds.iter().for_each(Hold::release);
            each
        });
        // This much is reserved for the error with which it may end, and is not used yet.
        each.accounted -= 1024.0;
        each.is_true(what);
    }
}

#[test]
fn idempotency_keys_take_what_is_accounted() {
    let result = middle(|| weigh(&deferd(), MANY, true, |_| head("HEAD /_admin/time", "")));
    for length in [8, 36, 250] {
        let both = middle(|| {
            weigh(&deferd(), MANY, true, |n| {
                head("HEAD /_admin/time", &format!("idempotency-key: {n:0>length$}\r\n"))
            })
        });
        let key =
            Each { accounted: both.accounted - result.accounted, taken: both.taken - result.taken };
        key.is_true(&format!("a key of {length} bytes"));
    }
}

/// As many as there are cores, and at least two.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8)
}
