//! The clients of three instances: the model of one deferd (`contract::jobs::histories`) explains what each client saw
//! of a job, even while connections to the engine fail, and, with one relaxation, when an instance is taken for dead.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::engine::Engine;
use super::instances::{Instances, start};
use super::proxy::{Proxy, Way};
use crate::contract::jobs::histories::{Failures, PLAIN, Rules, explain_all};
use crate::support::Deferd;

const INSTANCES: usize = 3;

/// Explains what clients of three instances see, while `weather` changes according to the number of its calls.
fn explain(
    failures: Failures,
    lease: &str,
    rounds: u64,
    weather: impl Fn(usize, &[Proxy], &[Deferd]) + Send,
) {
    let engine = Engine::durable();
    let proxies: Vec<Proxy> = (0..INSTANCES).map(|_| Proxy::start(engine.port)).collect();
    let options = ["--workers", "2", "--lease", lease];
    let start = |proxy: &Proxy| start(&proxy.address(), "", &options);
    let instances = Instances { engine, all: proxies.iter().map(start).collect() };
    let addresses: Vec<_> = instances.all.iter().map(|deferd| deferd.address).collect();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let (all, proxies, is_over) = (&instances.all, &proxies, &is_over);
        scope.spawn(move || {
            let mut calls = 0;
            while !is_over.load(Ordering::Acquire) {
                weather(calls, proxies, all);
                calls += 1;
            }
        });
        let explained =
            scope.spawn(|| explain_all(&addresses, Rules { failures, ..PLAIN }, rounds));
        let explained = explained.join();
        is_over.store(true, Ordering::Release);
        explained.unwrap();
    });
    instances.end_empty();
}

#[test]
fn histories_of_three_instances_are_explained() {
    explain(Failures::Shared, "10s", 150, |_, _, _| thread::sleep(Duration::from_millis(50)));
}

#[test]
fn histories_are_explained_while_ways_to_the_engine_fail() {
    explain(Failures::Ways, "10s", 60, |n, proxies, _| {
        let ways = [Way::Cut, Way::Deaf, Way::Stalled];
        thread::sleep(Duration::from_millis(200));
        proxies[n % INSTANCES].set(ways[n / INSTANCES % ways.len()]);
        thread::sleep(Duration::from_millis(100));
        proxies[n % INSTANCES].set(Way::Open);
    });
}

#[test]
fn histories_are_explained_when_an_instance_is_taken_for_dead() {
    explain(Failures::Instances, "2s", 20, |n, _, all| {
        thread::sleep(Duration::from_millis(300));
        all[n % INSTANCES].signal("-STOP");
        thread::sleep(Duration::from_millis(2900));
        all[n % INSTANCES].signal("-CONT");
    });
}
