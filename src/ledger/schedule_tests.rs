//! The contract of the schedule, against a model that knows only what was pushed and what runs, and with threads.
//!
//! Jobs are pushed, claimed, removed and delayed, and callers enter and leave, in any order. Always: the jobs of a
//! lane start in the order of their ids, limits hold, no job or caller that could run is passed over, and nothing that
//! may run is left behind.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::schedule::*;
use crate::exchange::Owner;
use crate::job::{JobId, JobKey, RouteIndex};

const SEQUENCES: u64 = 500;
const OPERATIONS: usize = 300;
const WORKERS: usize = 3;
const LIMITS: [Limit; 4] = [Limit::Shared(1), Limit::Shared(2), Limit::Callers(2), Limit::Open];

fn job(number: u64) -> JobKey {
    JobKey { owner: Owner::anonymous(), id: JobId::new(number).unwrap() }
}

/// What the model knows about a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Caller {
    number: u64,
    lane: usize,
    /// How many jobs had been pushed for the first time when it arrived.
    after: u64,
    turn: Option<Turn>,
}

/// The state of the schedule, in plain lists.
#[derive(Default)]
struct Model {
    /// Jobs in lanes: from number to lane.
    waiting: BTreeMap<u64, usize>,
    delayed: BTreeMap<u64, (Instant, usize)>,
    running: BTreeMap<u64, usize>,
    /// The lanes of places that stay taken after their jobs.
    kept: Vec<usize>,
    line: Vec<Caller>,
    inside: Vec<Caller>,
}

impl Model {
    fn jobs(&self, lane: usize) -> usize {
        self.running.values().chain(&self.kept).filter(|l| **l == lane).count()
    }

    fn callers(&self, lane: usize) -> usize {
        self.inside.iter().filter(|caller| caller.lane == lane).count()
    }

    /// Returns whether a job of this lane has room, whatever else waits.
    fn has_room(&self, lane: usize) -> bool {
        match LIMITS[lane] {
            Limit::Shared(limit) => self.jobs(lane) + self.callers(lane) < limit,
            Limit::Callers(_) | Limit::Open => true,
        }
    }

    /// Returns the oldest job that may run.
    fn next(&self) -> Option<u64> {
        let mut seen = BTreeSet::new();
        let heads = self.waiting.iter().filter(|(_, lane)| seen.insert(**lane));
        heads.filter(|(_, lane)| self.has_room(**lane)).map(|(n, _)| *n).min()
    }

    /// Checks what must hold in every state after all callers were admitted for whom there is room.
    fn check(&self, context: &str) {
        for (lane, limit) in LIMITS.iter().enumerate() {
            let (jobs, callers) = (self.jobs(lane), self.callers(lane));
            match limit {
                Limit::Shared(limit) => assert!(jobs + callers <= *limit, "{context}"),
                Limit::Callers(limit) => assert!(callers <= *limit, "{context}"),
                Limit::Open => {}
            }
            let Some(first) = self.line.iter().find(|caller| caller.lane == lane) else { continue };
            // The caller must have a reason to wait: there is no room, or the rest is for older jobs that workers can
            // take.
            let older = self.waiting.iter().filter(|(n, l)| **l == lane && **n <= first.after);
            let free = WORKERS.saturating_sub(self.running.len());
            let reserved = older.count().min(free);
            let room = match limit {
                Limit::Shared(limit) => limit.saturating_sub(jobs + callers),
                Limit::Callers(limit) => limit.saturating_sub(callers),
                Limit::Open => usize::MAX,
            };
            let reserved = if matches!(limit, Limit::Shared(_)) { reserved } else { 0 };
            assert!(room <= reserved, "{context}: a caller waits beside room {room} > {reserved}");
        }
    }
}

/// The schedule, its model, and the time.
struct Pair {
    schedule: Schedule<u64>,
    model: Model,
    now: Instant,
    last_job: u64,
    last_caller: u64,
    random: Rng,
}

impl Pair {
    fn new(seed: u64) -> Self {
        Self {
            schedule: Schedule::new(WORKERS, LIMITS),
            model: Model::default(),
            now: Instant::now(),
            last_job: 0,
            last_caller: 0,
            random: Rng::with_seed(seed),
        }
    }

    fn pick(&mut self, from: &BTreeMap<u64, usize>) -> Option<(u64, usize)> {
        let n = (!from.is_empty()).then(|| self.random.usize(..from.len()))?;
        from.iter().nth(n).map(|(number, lane)| (*number, *lane))
    }

    fn step(&mut self) {
        match self.random.u8(..11) {
            0..=2 => self.push(),
            3 | 4 => self.claim(),
            5 => self.end_run(),
            6 => self.remove(),
            7 => self.enter(),
            8 => self.leave(),
            9 => self.give_up(),
            _ => self.pass_time(),
        }
        for number in self.schedule.admit() {
            let place = self.model.line.iter().position(|caller| caller.number == number);
            let caller = self.model.line.remove(place.expect("it waited"));
            let passed = self
                .model
                .line
                .iter()
                .any(|other| other.lane == caller.lane && other.number < caller.number);
            assert!(!passed, "an older caller of its lane waits still");
            self.model.inside.push(caller);
        }
    }

    fn push(&mut self) {
        self.last_job += 1;
        let lane = self.random.usize(..LIMITS.len());
        self.schedule.push(RouteIndex(lane), &job(self.last_job), None);
        self.model.waiting.insert(self.last_job, lane);
    }

    fn claim(&mut self) {
        if self.model.running.len() == WORKERS {
            return;
        }
        let claimed = self.schedule.claim();
        let expected = self.model.next().map(|n| (RouteIndex(self.model.waiting[&n]), job(n)));
        assert_eq!(claimed, expected);
        if let Some((RouteIndex(lane), claimed)) = claimed {
            self.model.waiting.remove(&claimed.id.number());
            self.model.running.insert(claimed.id.number(), lane);
        }
    }

    /// Ends a run: for good, for a delay, or for the lane of a redirect.
    fn end_run(&mut self) {
        let running = self.model.running.clone();
        let Some((number, lane)) = self.pick(&running) else { return };
        if self.random.bool() {
            self.schedule.release(RouteIndex(lane));
        } else {
            self.schedule.free_worker(RouteIndex(lane));
            self.model.kept.push(lane);
        }
        self.model.running.remove(&number);
        match self.random.u8(..3) {
            0 => {
                let until = self.now + Duration::from_secs(self.random.u64(..5));
                self.schedule.delay(&job(number), until, Due::Enter);
                self.model.delayed.insert(number, (until, lane));
            }
            1 => {
                let lane = self.random.usize(..LIMITS.len());
                self.schedule.push(RouteIndex(lane), &job(number), None);
                self.model.waiting.insert(number, lane);
            }
            _ => {}
        }
    }

    /// Gives up a place that was kept.
    fn give_up(&mut self) {
        if !self.model.kept.is_empty() {
            let lane = self.model.kept.swap_remove(self.random.usize(..self.model.kept.len()));
            self.schedule.give_up(RouteIndex(lane));
        }
    }

    fn remove(&mut self) {
        let waiting = self.model.waiting.clone();
        if let Some((number, lane)) = self.pick(&waiting) {
            self.schedule.remove(RouteIndex(lane), job(number).id, None);
            self.model.waiting.remove(&number);
        } else if let Some((number, (until, _))) = self.model.delayed.pop_first() {
            self.schedule.undelay(until, job(number).id);
        }
    }

    fn enter(&mut self) {
        self.last_caller += 1;
        let (number, lane, after) =
            (self.last_caller, self.random.usize(..LIMITS.len()), self.last_job);
        let entered = self.schedule.enter(RouteIndex(lane), number);
        let turn = entered.err();
        let caller = Caller { number, lane, after, turn };
        let waits = self.model.line.iter().any(|other| other.lane == lane);
        if turn.is_none() {
            assert!(!waits, "an older caller of its lane waits");
            self.model.inside.push(caller);
        } else {
            self.model.line.push(caller);
        }
    }

    fn leave(&mut self) {
        let (line, inside) = (self.model.line.len(), self.model.inside.len());
        if line + inside == 0 {
            return;
        }
        let n = self.random.usize(..line + inside);
        let caller = if n < line {
            self.model.line.remove(n)
        } else {
            Caller { turn: None, ..self.model.inside.remove(n - line) }
        };
        self.schedule.leave(RouteIndex(caller.lane), caller.turn);
    }

    fn pass_time(&mut self) {
        self.now += Duration::from_secs(1);
        while let Some((due, Due::Enter)) = self.schedule.take_due(self.now) {
            let number = due.id.number();
            let (until, lane) = self.model.delayed.remove(&number).expect("it is delayed");
            assert!(until <= self.now, "it comes too early");
            self.schedule.push(RouteIndex(lane), &due, None);
            self.model.waiting.insert(number, lane);
        }
        assert!(self.model.delayed.values().all(|(until, _)| *until > self.now), "one is late");
    }
}

#[test]
fn lanes_are_first_in_first_out_within_their_limits() {
    for seed in 0..SEQUENCES {
        let mut pair = Pair::new(seed);
        for operation in 0..OPERATIONS {
            pair.step();
            let context = format!("seed {seed}, operation {operation}");
            pair.model.check(&context);
            let (schedule, model) = (&pair.schedule, &pair.model);
            assert_eq!(schedule.waiting(), model.waiting.len(), "{context}");
            assert_eq!(schedule.running(), model.running.len(), "{context}");
            assert_eq!(schedule.delayed(), model.delayed.len(), "{context}");
            let next = schedule.next().map(|(_, id)| id.number());
            assert_eq!(next, model.next(), "{context}");
        }
    }
}

#[test]
fn a_job_in_a_lane_is_finished_at_its_deadline() {
    let mut schedule = Schedule::<()>::new(1, [Limit::Open]);
    let now = Instant::now();
    let deadline = now + Duration::from_secs(1);
    schedule.push(RouteIndex(0), &job(1), Some(deadline));
    assert_eq!((schedule.take_due(now), schedule.next_due()), (None, Some(deadline)));
    assert_eq!(schedule.take_due(deadline), Some((job(1), Due::Expire(RouteIndex(0)))));
    assert_eq!((schedule.waiting(), schedule.next_due()), (0, None));
    schedule.push(RouteIndex(0), &job(2), Some(deadline));
    assert!(schedule.claim().is_some());
    schedule.disarm(deadline, job(2).id);
    assert_eq!(schedule.take_due(deadline), None);
}

#[test]
fn delays_beyond_the_workers_fill_the_queue() {
    let mut schedule = Schedule::<()>::new(2, [Limit::Open]);
    let until = Instant::now();
    for number in 1..=3 {
        schedule.delay(&job(number), until, Due::Finish);
    }
    assert_eq!((schedule.delayed(), schedule.queue_len()), (3, 1));
    schedule.undelay(until, job(2).id);
    assert_eq!(schedule.queue_len(), 0);
    schedule.delay(&job(4), until, Due::Enter);
    assert_eq!(schedule.queue_len(), 1, "what runs again has a place of its own");
}

/// Workers, and threads that push and remove, run at once: each job is claimed once or removed, and the jobs of a lane
/// with a limit of one run one at a time, in their order.
#[test]
fn threads_share_a_schedule_under_one_lock() {
    const JOBS: u64 = 20_000;
    let schedule = Mutex::new(Schedule::<()>::new(4, [Limit::Shared(1), Limit::Open]));
    let (claimed, removed) = (Mutex::new(Vec::new()), AtomicUsize::new(0));
    let (pushed, at_once) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let is_over = || {
        let over = pushed.load(Ordering::Acquire) == JOBS as usize;
        over && schedule.lock().unwrap().waiting() == 0
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            for number in 1..=JOBS {
                let lane = RouteIndex((number % 2) as usize);
                schedule.lock().unwrap().push(lane, &job(number), None);
                pushed.fetch_add(1, Ordering::Release);
            }
        });
        scope.spawn(|| {
            for number in (1..=JOBS).step_by(7) {
                let lane = RouteIndex((number % 2) as usize);
                let mut schedule = schedule.lock().unwrap();
                let before = schedule.waiting();
                schedule.remove(lane, job(number).id, None);
                removed.fetch_add(before - schedule.waiting(), Ordering::Relaxed);
            }
        });
        for _ in 0..4 {
            scope.spawn(|| {
                while !is_over() {
                    let mut locked = schedule.lock().unwrap();
                    let Some((lane, job)) = locked.claim() else { continue };
                    claimed.lock().unwrap().push((lane, job.id));
                    drop(locked);
                    if lane == RouteIndex(0) {
                        assert_eq!(at_once.fetch_add(1, Ordering::SeqCst), 0, "two at once");
                        at_once.fetch_sub(1, Ordering::SeqCst);
                    }
                    schedule.lock().unwrap().release(lane);
                }
            });
        }
    });
    let claimed = claimed.into_inner().unwrap();
    for lane in [RouteIndex(0), RouteIndex(1)] {
        let ids: Vec<JobId> =
            claimed.iter().filter(|(l, _)| *l == lane).map(|(_, id)| *id).collect();
        assert!(ids.is_sorted_by(|a, b| a < b), "each once, in order");
    }
    assert_eq!(claimed.len() + removed.into_inner(), JOBS as usize);
    assert_eq!(schedule.into_inner().unwrap().running(), 0);
}

#[test]
fn jobs_of_the_last_lanes_take_no_place_of_the_queue() {
    let mut schedule: Schedule<()> = Schedule::new(2, [Limit::Open, Limit::Shared(1)]);
    schedule.unqueue(1);
    let until = Instant::now();
    for number in 1..=3 {
        schedule.push(RouteIndex(1), &job(number), None);
    }
    schedule.push(RouteIndex(0), &job(4), None);
    schedule.delay(&job(5), until, Due::EnterUnqueued);
    schedule.delay(&job(6), until, Due::EnterUnqueued);
    assert_eq!((schedule.waiting(), schedule.delayed(), schedule.queue_len()), (4, 2, 1));
    assert_eq!((schedule.of_clients(), schedule.first()), ((1, 0, 0), Some(job(4))));
    assert_eq!(schedule.claim(), Some((RouteIndex(1), job(1))));
    schedule.remove(RouteIndex(1), job(2).id, None);
    schedule.undelay(until, job(5).id);
    assert_eq!(schedule.take_due(until), Some((job(6), Due::EnterUnqueued)));
    assert_eq!((schedule.waiting(), schedule.delayed(), schedule.queue_len()), (2, 0, 1));
    schedule.remove(RouteIndex(0), job(4).id, None);
    assert_eq!((schedule.waiting(), schedule.queue_len()), (1, 0));
}

#[test]
fn notices_leave_a_worker_to_the_jobs() {
    let limits = [Limit::Open, Limit::Open, Limit::Open];
    for (workers, most) in [(1, 1), (2, 1), (3, 2), (8, 7)] {
        let mut schedule: Schedule<()> = Schedule::new(workers, limits);
        schedule.unqueue(2);
        for number in 1..=20 {
            schedule.push(RouteIndex(1 + number as usize % 2), &job(number), None);
        }
        let claimed: Vec<_> = std::iter::from_fn(|| schedule.claim()).collect();
        assert_eq!(claimed.len(), most, "{workers} workers");
        schedule.push(RouteIndex(0), &job(99), None);
        if workers == 1 {
            schedule.release(claimed[0].0);
        }
        assert_eq!(schedule.claim(), Some((RouteIndex(0), job(99))), "{workers} workers");
        // The place of a job that has ended does not occupy a worker.
        if workers > 1 {
            schedule.free_worker(claimed[0].0);
            assert!(schedule.claim().is_some(), "{workers} workers");
        }
    }
}

#[test]
fn jobs_pass_older_notices_but_not_for_ever() {
    let mut schedule: Schedule<()> = Schedule::new(1, [Limit::Open, Limit::Open]);
    schedule.unqueue(1);
    schedule.push(RouteIndex(1), &job(1), None);
    let mut passed = 0;
    for number in 2..100 {
        schedule.push(RouteIndex(0), &job(number), None);
        let (route, _) = schedule.claim().expect("it waits");
        schedule.release(route);
        if route == RouteIndex(1) {
            break;
        }
        passed += 1;
    }
    assert!((1..90).contains(&passed), "{passed}");
}

#[test]
fn a_retried_notice_waits_behind_the_others() {
    let mut schedule: Schedule<()> = Schedule::new(1, [Limit::Open, Limit::Open]);
    schedule.unqueue(1);
    let route = RouteIndex(1);
    for number in [1, 2] {
        schedule.push_again(route, &job(number));
    }
    schedule.push(route, &job(3), None);
    schedule.remove(route, job(1).id, None);
    assert_eq!((schedule.waiting(), schedule.queue_len()), (2, 0));
    for number in [3, 2] {
        assert_eq!(schedule.claim(), Some((route, job(number))));
        schedule.release(route);
    }
    assert_eq!((schedule.waiting(), schedule.claim()), (0, None));
}
