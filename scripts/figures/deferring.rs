//! Deferring a trivial request and collecting its result: deferd, a bare loop as the limit, and others.

use std::time::Duration;

use super::load::Load;
use super::peers::Contestant;
use super::sample::Sample;
use super::table::{Aim, Table};

/// How many clients work at once.
const CLIENTS: [usize; 3] = [1, 16, 64];
const ROUNDS: usize = 5;
/// How long a contestant runs before it counts, and while it counts.
const WARM_UP: Duration = Duration::from_millis(150);
const SPAN: Duration = Duration::from_millis(450);

/// Measures all contestants in turn. The first is deferd, the second the limit.
pub fn measure(table: &mut Table, contestants: &[&Contestant]) {
    let mut rates: Vec<[Sample; 3]> = contestants.iter().map(|_| Default::default()).collect();
    for round in 0..ROUNDS {
        eprintln!("deferring: round {} of {ROUNDS}", round + 1);
        for (n, clients) in CLIENTS.into_iter().enumerate() {
            let load = Load { clients, warm_up: WARM_UP, span: SPAN };
            for (contestant, rates) in contestants.iter().zip(&mut rates) {
                rates[n].push(contestant.rate(load));
            }
        }
    }
    for (n, clients) in CLIENTS.into_iter().enumerate() {
        let work = format!("defer + collect, {clients} client(s), jobs/s");
        for (contestant, rates) in contestants.iter().zip(&rates) {
            table.row(&work, contestant.name, 0, &rates[n]);
        }
    }
    aims(table, contestants, &rates);
}

fn aims(table: &mut Table, contestants: &[&Contestant], rates: &[[Sample; 3]]) {
    let deferd = &rates[0];
    let against = |name: &str, n: usize| {
        let others = contestants.iter().position(|other| other.name.starts_with(name)).unwrap();
        deferd[n].over(&rates[others][n]).median()
    };
    let what = "defer + collect at 64 clients, of the bare loop's same two exchanges";
    table.aim(what, against("bare loop", 2), Aim::AtLeast(0.8));
    let storing = contestants.iter().filter(|other| other.stores_results);
    let least = storing.map(|other| against(other.name, 2)).min_by(f64::total_cmp).unwrap();
    let what = "defer + collect at 64 clients, times the best that stores results";
    table.aim(what, least, Aim::AtLeast(3.0));
    for name in ["gearmand", "beanstalkd"] {
        for n in [1, 2] {
            let what = format!("defer + collect at {} clients, times {name}", CLIENTS[n]);
            table.aim(&what, against(name, n), Aim::MoreThan(1.0));
        }
    }
}
