//! The weight of deferd: its file, its start, its memory at rest, and results by the hundred thousand.
//!
//! Two deferds run side by side, one with few results and one with many, and are asked in turn.

use std::thread;
use std::time::{Duration, Instant, SystemTime};

use super::client::{Client, deferred, request};
use super::sample::{ROUNDS, Sample, row, title};
use super::server::Server;
use super::table::{Aim, Table};

const MIB: f64 = 1024.0 * 1024.0;
const STARTS: usize = 20;
const MANY: usize = 100_000;
const FEW: usize = 1000;
const MILLION: usize = 1_000_000;
/// Submissions in a round: 5 040 in all.
const SUBMISSIONS: usize = 720;
/// All other requests in a round.
const REQUESTS: usize = 100;

/// Prints the figures.
pub fn print() {
    title(&format!("memory: the binary, its start, and {MANY} results"));
    at_rest();
    let mut few = Side::start();
    let mut many = Side::start();
    grow(&mut many);
    println!();
    submit(&mut few, &mut many).print("submit", "none");
    few.client.store(&few.job, FEW);
    for (what, pair) in ask(&mut few, &mut many) {
        pair.print(what, &FEW.to_string());
    }
    delete(&mut few, &mut many);
}

/// Adds the same figures to a table, with results up to a [`MILLION`].
pub fn tabulate(table: &mut Table) {
    let (ready, _) = starts();
    table.once("binary, MiB", "deferd", &format!("{:.2}", binary() / MIB));
    table.row("exec to listening, ms", "deferd", 1, &ready);
    let mut few = Side::start();
    few.client.store(&few.job, FEW);
    let mut many = Side::start();
    let body = many.body();
    let before = many.server.resident();
    let mut stored = 0;
    for count in [10_000, MANY, MILLION] {
        eprintln!("storing {count} results");
        many.client.store(&many.job, count - stored);
        stored = count;
        let resident = many.server.resident();
        let each = (resident - before) / count as f64 - body as f64;
        let who = format!("deferd, {count} results");
        table.once("bytes per result beside its body", &who, &format!("{each:.0}"));
        table.once("resident, MiB", &who, &format!("{:.1}", resident / MIB));
        if count == MANY {
            let what = "100 000 results, bytes each beside the body";
            table.aim(what, each, Aim::AtMost(400.0));
        }
    }
    let submitted = ("submit", submit(&mut few, &mut many));
    for (what, pair) in [submitted].into_iter().chain(ask(&mut few, &mut many)) {
        for (stored, sample) in [(FEW, &pair.few), (MILLION, &pair.many)] {
            table.row(
                &format!("{what}, µs"),
                &format!("deferd, {stored} results"),
                1,
                &middle(sample),
            );
        }
        table.row(&format!("{what}, {MILLION} results / {FEW}"), "deferd", 2, &pair.ratio);
    }
}

/// Returns the middle half of many single requests: the outliers are caused by the machine.
fn middle(sample: &Sample) -> Sample {
    let mut middle = Sample::default();
    [0.25, 0.5, 0.75].into_iter().for_each(|q| middle.push(sample.quantile(q)));
    middle
}

/// Returns the size of the program.
fn binary() -> f64 {
    std::fs::metadata(env!("CARGO_BIN_EXE_deferd")).unwrap().len() as f64
}

fn at_rest() {
    row("binary, MiB (target <= 2.0)", format_args!("{:>9.2}", binary() / MIB));
    let (ready, resident) = starts();
    row("exec to listening, ms, of 20 (target <= 20)", format_args!("{ready:.1}"));
    row("resident at rest, MiB, of 20 (target <= 4)", format_args!("{resident:.2}"));
}

/// Returns the milliseconds from exec to listening, and the resident memory then, in MiB.
fn starts() -> (Sample, Sample) {
    let (mut ready, mut resident) = (Sample::default(), Sample::default());
    for _ in 0..STARTS {
        let begin = Instant::now();
        let server = Server::deferd("info", &[]);
        ready.push(begin.elapsed().as_secs_f64() * 1e3);
        thread::sleep(Duration::from_millis(200));
        resident.push(server.resident() / MIB);
    }
    (ready, resident)
}

/// A deferd with some results.
struct Side {
    server: Server,
    client: Client,
    job: Vec<u8>,
}

impl Side {
    fn start() -> Self {
        let server = Server::deferd("warn", &["--max-memory", "8G"]);
        let client = Client::new(server.address);
        // Its content is formatted, so the result has memory of its own.
        Self { server, client, job: deferred("/_admin/time") }
    }

    /// Returns the length of a result's body.
    fn body(&mut self) -> usize {
        let (_, id) = self.submit();
        self.client.wait_done(&id, Duration::ZERO);
        self.client.exchange(&request("PUT", &format!("/_api/job/{id}"))).body.len()
    }

    fn submit(&mut self) -> (f64, String) {
        let begin = Instant::now();
        let id = self.client.submit(&self.job);
        (micros(begin), id)
    }

    /// Waits for the result and collects it; returns the time of the collection.
    fn collect(&mut self, id: &str) -> f64 {
        self.client.wait_done(id, Duration::ZERO);
        let collect = request("PUT", &format!("/_api/job/{id}"));
        let begin = Instant::now();
        let reply = self.client.exchange(&collect);
        assert_eq!(reply.status, 200);
        micros(begin)
    }

    fn time_of(&mut self, request: &[u8]) -> f64 {
        let begin = Instant::now();
        let reply = self.client.exchange(request);
        assert_eq!(reply.status, 200);
        micros(begin)
    }
}

fn micros(begin: Instant) -> f64 {
    begin.elapsed().as_secs_f64() * 1e6
}

/// Fills a deferd, and prints what that takes.
fn grow(side: &mut Side) {
    let body = side.body();
    let before = side.server.resident();
    let begin = Instant::now();
    side.client.store(&side.job, MANY);
    let seconds = begin.elapsed().as_secs_f64();
    let each = (side.server.resident() - before) / MANY as f64 - body as f64;
    row(
        &format!("bytes per result beside its {body} (target <= 400)"),
        format_args!("{each:>9.0}"),
    );
    row(
        &format!("resident with {MANY}, MiB"),
        format_args!("{:>9.1}", side.server.resident() / MIB),
    );
    row("stored through one connection, jobs/s", format_args!("{:>9.0}", MANY as f64 / seconds));
}

/// The latencies of one kind of request on both sides.
#[derive(Default)]
struct Pair {
    few: Sample,
    many: Sample,
    /// The ratio of the medians, round by round.
    ratio: Sample,
}

impl Pair {
    /// Measures both sides in turn.
    fn measure(count: usize, mut both: impl FnMut() -> (f64, f64)) -> Self {
        let mut pair = Self::default();
        for _ in 0..ROUNDS {
            let (mut few, mut many) = (Sample::default(), Sample::default());
            for _ in 0..count {
                let (of_few, of_many) = both();
                few.push(of_few);
                many.push(of_many);
                pair.few.push(of_few);
                pair.many.push(of_many);
            }
            pair.ratio.push(many.median() / few.median());
        }
        pair
    }

    fn print(&self, what: &str, few: &str) {
        for (stored, sample) in [(few, &self.few), (&MANY.to_string(), &self.many)] {
            let (median, p99) = (sample.median(), sample.quantile(0.99));
            row(
                &format!("{what}, {stored} stored, µs"),
                format_args!("{median:>9.1}  p99 {p99:.0}"),
            );
        }
        row(&format!("{what}, ratio of the medians"), format_args!("{:.3}", self.ratio));
    }
}

fn submit(few: &mut Side, many: &mut Side) -> Pair {
    Pair::measure(SUBMISSIONS, || {
        let (of_few, few_id) = few.submit();
        let (of_many, many_id) = many.submit();
        few.collect(&few_id);
        many.collect(&many_id);
        (of_few, of_many)
    })
}

fn ask(few: &mut Side, many: &mut Side) -> [(&'static str, Pair); 3] {
    let list = request("GET", "/_api/job/done?count=100");
    let listed = Pair::measure(REQUESTS, || (few.time_of(&list), many.time_of(&list)));
    let collected = Pair::measure(REQUESTS, || {
        // Submitted directly before, so that as many stay stored.
        let (_, few_id) = few.submit();
        let (_, many_id) = many.submit();
        (few.collect(&few_id), many.collect(&many_id))
    });
    let expired = request("DELETE", "/_api/job/expired?stamp=1");
    let expired = Pair::measure(REQUESTS, || (few.time_of(&expired), many.time_of(&expired)));
    [("list of 100", listed), ("collect", collected), ("expire none of them", expired)]
}

/// Deletes everything by its age.
fn delete(few: &mut Side, many: &mut Side) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let everything = format!("/_api/job/expired?stamp={}", now.as_secs() + 3600);
    let everything = request("DELETE", &everything);
    let mut of_few = Sample::default();
    for _ in 0..ROUNDS {
        of_few.push(few.time_of(&everything) / 1e3);
        few.client.store(&few.job, FEW);
    }
    let of_many = many.time_of(&everything) / 1e3;
    row(&format!("expire all {FEW}, ms"), format_args!("{of_few:.2}"));
    row(&format!("expire all {MANY}, ms, once"), format_args!("{of_many:>9.1}"));
    let resident = many.server.resident() / MIB;
    row("resident after that, MiB", format_args!("{resident:>9.1}"));
}
