//! deferd compared with everything else, in one table: `scripts/bench`.

use std::iter;
use std::path::Path;
use std::thread;
use std::time::Duration;

use super::peer::{Directory, Memory, end_on_signals};
use super::peers::{self, Contestant};
use super::running::{self, Others};
use super::table::{Table, machine};
use super::{asking, deferring, memory, upstream, weighing};

/// Prints the table; `environment` is the Python environment with what the peers need.
pub fn print(environment: &Path) {
    end_on_signals();
    let directory = Directory::new();
    let mut table = Table::default();
    beside_others(&mut table, environment, &directory.0);
    asking::measure(&mut table);
    upstream::beside_nginx(&mut table, &directory.0);
    memory::tabulate(&mut table);
    println!("{}\n", machine(&environment.join("bin/python")));
    table.print();
}

fn beside_others(table: &mut Table, environment: &Path, directory: &Path) {
    let deferd = peers::deferd();
    let peers = peers::others(environment, directory);
    let runners = Others::start(directory);
    iter::once(&deferd).chain(&peers).for_each(Contestant::once);
    // Waits until the work of their start is over.
    thread::sleep(Duration::from_secs(2));
    let weights: Vec<(&str, Memory)> = iter::once(&deferd)
        .chain(&peers)
        .map(|contestant| (contestant.short, contestant.memory()))
        .chain(runners.memory())
        .collect();
    // Another deferd would share its program with the first, which would then seem lighter.
    let own = peers::own();
    let all: Vec<&Contestant> = iter::once(&deferd).chain(&own).chain(&peers).collect();
    deferring::measure(table, &all);
    running::measure(table, &runners, directory);
    weighing::at_rest(table, &weights);
    weighing::results(table, &peers);
}
