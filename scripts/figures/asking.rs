//! Jobs from submission to collection, by how their clients ask for the result and where deferd keeps it: do clients
//! that poll take processor time from the work that they ask for?
//!
//! With `DEFERD_BEFORE`, an earlier deferd takes part.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use super::http_job::{DEFERD, HttpJob, Polling, WAITING};
use super::load::Load;
use super::sample::Sample;
use super::server::Server;
use super::store::Directory;
use super::table::{Aim, Table};

/// How many clients ask at once.
const CLIENTS: [usize; 3] = [1, 16, 64];
const ROUNDS: usize = 5;
/// How long one side runs before it counts, and while it counts.
const WARM_UP: Duration = Duration::from_millis(100);
const SPAN: Duration = Duration::from_millis(400);

/// Where the jobs are kept.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Store {
    Memory,
    Commit,
    Relaxed,
}

impl Store {
    const ALL: [Self; 3] = [Self::Memory, Self::Commit, Self::Relaxed];

    const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Commit => "commit",
            Self::Relaxed => "relaxed",
        }
    }

    /// Returns the arguments of a deferd that keeps its jobs there, below `directory`.
    fn arguments(self, directory: &Path) -> Vec<String> {
        if self == Self::Memory {
            return Vec::new();
        }
        let data = directory.join(self.name()).display().to_string();
        ["--data", &data, "--durability", self.name()].map(str::to_owned).to_vec()
    }
}

/// How clients ask for a result.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// They collect with `prefer: wait`.
    Waiting,
    /// They ask without a pause until the job is done, and collect.
    Polling,
    /// They try to collect, and pause each time for as long as they have waited.
    Resting,
}

impl Way {
    const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Polling => "polling",
            Self::Resting => "resting",
        }
    }

    fn times(self, address: SocketAddr, load: Load) -> Sample {
        match self {
            Self::Waiting => load.times(address, || HttpJob::new(WAITING)),
            Self::Polling => load.times(address, Polling::new),
            Self::Resting => load.times(address, || HttpJob::new(DEFERD)),
        }
    }
}

/// One of the sides that are measured in turn.
struct Side {
    who: &'static str,
    store: Store,
    way: Way,
    address: SocketAddr,
    /// The rates by number of clients.
    rates: [Sample; 3],
    /// The time below which 99 of 100 jobs are collected, in milliseconds.
    p99: [Sample; 3],
}

impl Side {
    fn turn(&mut self, n: usize) {
        let load = Load { clients: CLIENTS[n], warm_up: WARM_UP, span: SPAN };
        let times = self.way.times(self.address, load);
        self.rates[n].push(times.len() as f64 / SPAN.as_secs_f64());
        // If nothing was done within the span, it took longer than that.
        let p99 = if times.len() == 0 { f64::INFINITY } else { times.quantile(0.99) };
        self.p99[n].push(p99);
    }
}

/// Prints only this table.
pub fn print() {
    let mut table = Table::default();
    measure(&mut table);
    println!("asking: GET /_api/version, submitted, done and collected, RUST_LOG=warn");
    println!("medians of {ROUNDS} rounds, all sides in turn\n");
    table.print();
}

/// Measures all sides in turn.
pub fn measure(table: &mut Table) {
    let directory = Directory::new("bench-asking");
    let (mut servers, mut sides) = (Vec::new(), Vec::new());
    for store in Store::ALL {
        let this = store.arguments(&directory.0.join("this"));
        let before = store.arguments(&directory.0.join("before"));
        let this = Server::deferd("warn", &words(&this));
        let before = Server::before("warn", &words(&before));
        add_sides(&mut sides, "deferd", store, &this);
        if let Some(before) = &before {
            add_sides(&mut sides, "deferd before", store, before);
        }
        servers.extend([Some(this), before].into_iter().flatten());
    }
    for round in 0..ROUNDS {
        eprintln!("asking: round {} of {ROUNDS}", round + 1);
        for n in 0..CLIENTS.len() {
            sides.iter_mut().for_each(|side| side.turn(n));
        }
    }
    rows(table, &sides);
    aims(table, &sides);
}

fn words(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

fn add_sides(sides: &mut Vec<Side>, who: &'static str, store: Store, server: &Server) {
    for way in [Way::Waiting, Way::Polling, Way::Resting] {
        // `deferring` measures this case against others; here it is for the earlier deferd.
        if way == Way::Resting && store != Store::Memory {
            continue;
        }
        let (rates, p99) = (Default::default(), Default::default());
        sides.push(Side { who, store, way, address: server.address, rates, p99 });
    }
}

fn rows(table: &mut Table, sides: &[Side]) {
    for (n, clients) in CLIENTS.into_iter().enumerate() {
        for side in sides {
            let (store, way) = (side.store.name(), side.way.name());
            let work = format!("defer, {way}, collect, {store}, {clients} client(s)");
            table.row(&format!("{work}, jobs/s"), side.who, 0, &side.rates[n]);
            table.row(&format!("{work}, p99 ms"), side.who, 1, &side.p99[n]);
        }
    }
}

fn aims(table: &mut Table, sides: &[Side]) {
    let find = |who, store, way| {
        let is_it = |side: &&Side| side.who == who && side.store == store && side.way == way;
        sides.iter().find(is_it)
    };
    let own = |store, way| find("deferd", store, way).expect("every side of this deferd is there");
    let ratio = |a: &Side, b: &Side, n: usize| a.rates[n].over(&b.rates[n]).median();
    for store in Store::ALL {
        for n in [1, 2] {
            let what = format!("{}, {} clients: polling / waiting", store.name(), CLIENTS[n]);
            let polling = ratio(own(store, Way::Polling), own(store, Way::Waiting), n);
            table.aim(&what, polling, Aim::AtLeast(0.8));
        }
    }
    for way in [Way::Waiting, Way::Polling] {
        for (n, clients) in CLIENTS.into_iter().enumerate() {
            let what = format!("{}, {clients} client(s): relaxed / commit", way.name());
            let relaxed = ratio(own(Store::Relaxed, way), own(Store::Commit, way), n);
            table.aim(&what, relaxed, Aim::AtLeast(1.0));
        }
    }
    for side in sides.iter().filter(|side| side.who == "deferd") {
        let Some(before) = find("deferd before", side.store, side.way) else { continue };
        for (n, clients) in CLIENTS.into_iter().enumerate() {
            let (store, way) = (side.store.name(), side.way.name());
            let what = format!("{store}, {way}, {clients} client(s): deferd / deferd before");
            // Twenty such medians differ by a few hundredths even if both are the same program.
            table.aim(&what, ratio(side, before, n), Aim::AtLeast(0.95));
        }
    }
}
