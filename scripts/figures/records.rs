//! The records of jobs: what a page of them costs, by number of jobs and by filter.
//!
//! In the store itself, without HTTP: a page must cost the same among a million results as among ten thousand. The
//! last rows are what others wait for in the meantime: the store is locked for a part of a page at a time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use deferd::content::Content;
use deferd::exchange::{Call, Connection, Owner};
use deferd::job::request_line::RequestLine;
use deferd::job::{Age, JobId, Keep, Moment, Rerun, RouteIndex, Stamp};
use deferd::ledger::schedule::Limit;
use deferd::memory::Allowance;
use deferd::store::memory::MemoryStore;
use deferd::store::{
    Accepted, Filter, JobState, Lane, Patience, Plan, Room, Store, Submission, Tells,
};
use http::{Request, Response};

use super::sample::{Sample, row, title};

const SIZES: [usize; 3] = [10_000, 100_000, 1_000_000];
/// One job in this many fails.
const FAILS: usize = 1000;
/// How often each page is requested.
const PAGES: usize = 51;
/// How long the status of jobs is requested while a client lists without a pause.
const SPAN: Duration = Duration::from_secs(1);

/// Prints the figures.
pub fn print() {
    title("records: a page of a store in memory, ms, of 51 pages each");
    let store = Filled::new();
    let mut ids = Vec::new();
    for size in SIZES {
        while ids.len() < size {
            ids.push(store.add(ids.len()));
        }
        store.print(&ids);
    }
}

struct Filled {
    store: MemoryStore,
    memory: Allowance,
    owner: Owner,
}

impl Filled {
    fn new() -> Self {
        let memory = Allowance::default();
        let room = Room { capacity: usize::MAX / 2, reserve: 0, memory: memory.clone() };
        let lanes = vec![Lane { limit: Limit::Open, rerun: Rerun::Harmless, tells: Tells::NONE }];
        let ttl = Duration::from_secs(86400);
        let (workers, queue, log_ttl) = (1, usize::MAX, Duration::ZERO);
        let plan = Plan { workers, queue, ttl, log_ttl, lanes };
        Self { store: MemoryStore::new(room, plan), memory, owner: Owner::anonymous() }
    }

    /// Adds the `n`-th result.
    fn add(&self, n: usize) -> JobId {
        let micros = 1_800_000_000_000_000 + n as u64;
        let age = Age::from_micros(i64::try_from(micros).unwrap());
        let now = Moment { stamp: Stamp::from_micros(micros), age };
        let request = Request::get(format!("/run/backup?n={n}")).body(Content::new()).unwrap();
        let line = RequestLine::new(request.method(), &request.uri().to_string(), "/run/");
        let owner = self.owner.clone();
        let call = Call { request, connection: Connection::Unix, owner, auth_type: None };
        let (route, keep) = (RouteIndex(0), Keep::Result);
        let submission = Submission { call, route, line, keep, key: None, callback: None };
        let id = self.store.submit(submission, now).map(Accepted::id).unwrap();
        let claimed = self.store.claim(&self.memory, Patience::None).unwrap();
        let status = if n.is_multiple_of(FAILS) { 500 } else { 200 };
        let response = Response::builder().status(status).body(Content::from("ok"));
        self.store.finish(&claimed.job, response.unwrap(), now);
        id
    }

    fn print(&self, ids: &[JobId]) {
        let (beginning, middle) = (None, Some(ids[ids.len() / 2]));
        let failed = Filter { only_failed: true, ..Filter::default() };
        let running = Filter { state: Some(JobState::Running), ..Filter::default() };
        let nowhere = Filter { route: Some("/nowhere/".into()), ..Filter::default() };
        for (what, filter, after, count) in [
            ("the first 100", &Filter::default(), beginning, 100),
            ("100 from the middle", &Filter::default(), middle, 100),
            ("the first 1000", &Filter::default(), beginning, 1000),
            ("failed=1, from the middle", &failed, middle, 100),
            ("state=running, of which there is none", &running, beginning, 100),
            ("a route without jobs", &nowhere, beginning, 100),
        ] {
            let times = (0..PAGES).map(|_| self.page(filter, after, count)).collect::<Sample>();
            row(&format!("{} results: {what}", ids.len()), format_args!("{times:.3}"));
        }
        let alone = self.statuses(ids, &nowhere, Company::None);
        let beside = self.statuses(ids, &nowhere, Company::Lists);
        for (what, times) in [("alone", alone), ("beside such lists", beside)] {
            let (median, high) = (times.median(), times.quantile(0.999));
            let what = format!("{} results: a status {what}, median, 99.9 %", ids.len());
            row(&what, format_args!("{median:.4} {high:.4}"));
        }
    }

    /// Returns how long a page takes, in milliseconds.
    fn page(&self, filter: &Filter, after: Option<JobId>, count: usize) -> f64 {
        let begin = Instant::now();
        self.store.records(&self.owner, filter, after, count).unwrap();
        begin.elapsed().as_secs_f64() * 1e3
    }

    /// Returns how long single requests take, in milliseconds.
    fn statuses(&self, ids: &[JobId], filter: &Filter, company: Company) -> Sample {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            if company == Company::Lists {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        self.page(filter, None, 100);
                    }
                });
            }
            let (begin, mut times) = (Instant::now(), Sample::default());
            while begin.elapsed() < SPAN {
                let id = ids[(times.len() * 7919) % ids.len()];
                let job = deferd::job::JobKey { owner: self.owner.clone(), id };
                let asked = Instant::now();
                self.store.status(&job).unwrap();
                times.push(asked.elapsed().as_secs_f64() * 1e3);
            }
            over.store(true, Ordering::Relaxed);
            times
        })
    }
}

/// What else is going on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Company {
    None,
    Lists,
}
