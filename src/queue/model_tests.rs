//! The queue against a model: after any sequence of submissions, starts, ends and cancellations, its count is
//! that of the jobs that were accepted and did not start, and what it hands out is what comes next.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use super::*;
use crate::exchange::Owner;
use crate::job::JobId;

const SEQUENCES: u64 = 500;
const OPERATIONS: usize = 200;
const CAPACITY: usize = 5;
const LIMIT: usize = 2;

/// A pseudo-random sequence (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
    }
}

fn key(n: u64) -> JobKey {
    JobKey { owner: Owner::anonymous(), id: JobId::parse(&n.to_string()).expect("it is canonical") }
}

/// A job, and whether its route has the gate.
type Job = (u64, bool);

/// What waits where, and what runs.
#[derive(Default)]
struct Model {
    line: VecDeque<Job>,
    at_gate: VecDeque<u64>,
    granted: VecDeque<u64>,
    /// Those of the route with the gate that run, or were let through.
    busy: usize,
    dead: BTreeSet<u64>,
    stale: bool,
}

impl Model {
    fn len(&self) -> usize {
        self.line.len() + self.at_gate.len() + self.granted.len()
    }

    /// Whether there is a place, perhaps after the dead were dropped.
    fn reserve(&mut self) -> bool {
        if self.len() >= CAPACITY && self.stale {
            self.stale = false;
            let dead = &self.dead;
            self.line.retain(|(n, _)| !dead.contains(n));
            self.at_gate.retain(|n| !dead.contains(n));
        }
        self.len() < CAPACITY
    }

    /// What comes next, if anything may run.
    fn next(&mut self) -> Option<Job> {
        if let Some(n) = self.granted.pop_front() {
            return Some((n, true));
        }
        while let Some((n, gated)) = self.line.pop_front() {
            if !gated {
                return Some((n, false));
            }
            if self.busy < LIMIT {
                self.busy += 1;
                return Some((n, true));
            }
            self.at_gate.push_back(n);
        }
        None
    }

    /// Whether anything may run.
    fn has_next(&self) -> bool {
        let runs = |&(_, gated): &Job| !gated || self.busy < LIMIT;
        !self.granted.is_empty() || self.line.iter().any(runs)
    }

    /// A job of the route with the gate ends.
    fn pass_on(&mut self) {
        match self.at_gate.pop_front() {
            Some(n) => self.granted.push_back(n),
            None => self.busy -= 1,
        }
    }
}

/// Does one thing to both.
fn step(queue: &Queue, gate: &Arc<Gate>, model: &mut Model, n: u64, random: &mut Random) {
    match random.below(8) {
        0..=3 => {
            let gated = random.below(2) == 0;
            let dead: BTreeSet<_> = model.dead.iter().map(|&n| key(n).id).collect();
            let permit = queue.reserve(|task| !dead.contains(&task.job.id));
            assert_eq!(permit.is_some(), model.reserve(), "a place for {n}");
            let Some(permit) = permit else { return };
            let (job, route, turn) = (key(n), RouteIndex(0), Turn::First);
            let gate = gated.then(|| Arc::clone(gate));
            queue.push(Task { job, route, gate, permit, turn });
            model.line.push_back((n, gated));
        }
        4 => {
            let waiting = model.line.iter().map(|(n, _)| n).chain(&model.at_gate);
            let waiting: Vec<u64> = waiting.copied().collect();
            if !waiting.is_empty() {
                model.dead.insert(waiting[random.below(waiting.len())]);
                model.stale = true;
                queue.mark_stale();
            }
        }
        _ => {}
    }
}

#[test]
fn the_count_is_that_of_the_jobs_that_wait_whatever_was_done() {
    let (mut refused, mut purged) = (0, 0);
    for seed in 1..=SEQUENCES {
        let (queue, mut model, mut random) = (Queue::new(CAPACITY), Model::default(), Random(seed));
        let gate = queue.new_gate(LIMIT);
        let mut running: Vec<Option<Pass>> = Vec::new();
        for n in 1..=OPERATIONS as u64 {
            let before = model.len();
            step(&queue, &gate, &mut model, n, &mut random);
            refused += usize::from(before == CAPACITY && model.len() == CAPACITY);
            purged += usize::from(model.len() < before);
            assert_eq!(queue.len(), model.len(), "seed {seed}, operation {n}");
            if random.below(3) == 0 && model.has_next() {
                let Ready { task, pass } = queue.next().expect("it is open");
                let expected = model.next().map(|(n, gated)| (key(n), gated));
                assert_eq!(Some((task.job.clone(), pass.is_some())), expected, "seed {seed}");
                running.push(pass);
            } else if !running.is_empty() && random.below(2) == 0 {
                let pass = running.swap_remove(random.below(running.len()));
                if pass.is_some() {
                    model.pass_on();
                }
                drop(pass);
            }
            assert_eq!(queue.len(), model.len(), "seed {seed}, operation {n}");
        }
    }
    assert!(refused > 0 && purged > 0, "the limit was not tried");
}
