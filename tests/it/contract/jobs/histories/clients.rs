//! Clients that do random operations on the same few jobs, all at once, and record what they see.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use fastrand::Rng;

use super::model::{Answer, Event, Failures, Operation};
use crate::support::{Client, Reply, eventually};

const CLIENTS: usize = 4;
/// How many operations each of them does in a round.
const OPERATIONS: usize = 12;
/// About how many jobs they share in a round.
const JOBS: usize = 3;

/// What a client recorded: about a job, or about a list.
struct Note {
    of: Of,
    event: Event,
}

enum Of {
    Job(String),
    /// All jobs; the ids of a list.
    All(Vec<String>),
}

/// Returns the histories of the jobs of one round: the clients are spread over the instances at these addresses.
pub fn round(addresses: &[SocketAddr], seed: u64, failures: Failures) -> Vec<(String, Vec<Event>)> {
    let jobs = Mutex::new(Vec::new());
    let notes: Vec<Note> = thread::scope(|scope| {
        let start = |client| {
            let (jobs, address) = (&jobs, addresses[client % addresses.len()]);
            scope.spawn(move || One::new(client, address, seed, failures, jobs).run())
        };
        let clients: Vec<_> = (0..CLIENTS).map(start).collect();
        clients.into_iter().flat_map(|client| client.join().expect("it has not failed")).collect()
    });
    // An instance without its engine refuses to delete.
    eventually("all is deleted", || {
        Client::new(addresses[0]).delete("/_api/job/all").status == 200
    });
    let jobs = jobs.into_inner().unwrap_or_else(PoisonError::into_inner);
    jobs.into_iter().map(|job| (history(&job, &notes), job)).map(|(h, job)| (job, h)).collect()
}

/// Returns what was recorded about this job, in the order of the requests.
fn history(job: &str, notes: &[Note]) -> Vec<Event> {
    let concern = notes.iter().filter_map(|note| match (&note.of, note.event.operation) {
        (Of::Job(other), _) => (other == job).then_some(note.event),
        (Of::All(ids), Operation::ListDone | Operation::ListPending) => {
            let answer = Answer::Listed(ids.iter().any(|id| id == job));
            Some(Event { answer, ..note.event })
        }
        (Of::All(_), _) => Some(note.event),
    });
    let mut history: Vec<Event> = concern.collect();
    history.sort_by_key(|event| event.begin);
    history
}

/// One client.
struct One<'a> {
    number: usize,
    address: SocketAddr,
    client: Client,
    random: Rng,
    failures: Failures,
    jobs: &'a Mutex<Vec<String>>,
    notes: Vec<Note>,
}

impl<'a> One<'a> {
    fn new(
        number: usize,
        address: SocketAddr,
        seed: u64,
        failures: Failures,
        jobs: &'a Mutex<Vec<String>>,
    ) -> Self {
        let random = Rng::with_seed(seed * CLIENTS as u64 + number as u64);
        let client = Client::new(address);
        Self { number, address, client, random, failures, jobs, notes: Vec::new() }
    }

    fn run(mut self) -> Vec<Note> {
        for _ in 0..OPERATIONS {
            self.step();
        }
        self.notes
    }

    fn step(&mut self) {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if jobs.is_empty() || (jobs.len() < JOBS && self.random.usize(..3) == 0) {
            return self.submit();
        }
        let job = jobs[self.random.usize(..jobs.len())].clone();
        match self.random.usize(..24) {
            0..=5 => self.ask(job, Operation::Status, "GET", ""),
            6..=8 => self.ask(job, Operation::Peek, "GET", "/result"),
            9..=13 => self.ask(job, Operation::Collect, "PUT", ""),
            14..=16 => self.ask(job, Operation::Cancel, "PUT", "/cancel"),
            17 => self.ask(job, Operation::Forget, "DELETE", ""),
            18 | 19 => self.abandon(job),
            20 => self.list(Operation::ListDone, "done"),
            21 => self.list(Operation::ListPending, "pending"),
            22 => self.all(Operation::ForgetNone, "expired?stamp=1000000000"),
            _ => match self.random.usize(..3) {
                0 => self.all(Operation::ForgetAll, "all"),
                1 => self.all(Operation::ForgetExpired, "expired?stamp=99999999999"),
                _ => self.all(Operation::ForgetNone, "expired?stamp=0"),
            },
        }
    }

    fn note(&mut self, of: Of, operation: Operation, answer: Answer, begin: Instant) {
        let (client, end) = (self.number, Some(Instant::now()));
        self.notes.push(Note { of, event: Event { client, operation, answer, begin, end } });
    }

    /// Records an operation whose outcome is unknown.
    fn note_lost(&mut self, of: Of, operation: Operation, begin: Instant) {
        use Operation as O;
        let (operation, answer) = match operation {
            O::Collect | O::Abandon => (O::Abandon, Answer::Yes),
            O::Cancel | O::Forget | O::ForgetAll | O::ForgetExpired => (operation, Answer::Lost),
            // It had no effect.
            O::Submit | O::Status | O::Peek | O::ForgetNone | O::ListDone | O::ListPending => {
                return;
            }
        };
        let event = Event { client: self.number, operation, answer, begin, end: None };
        self.notes.push(Note { of, event });
    }

    /// Sends a request; `None` if it is refused because of a failure.
    fn send(&mut self, method: &str, target: &str, fields: &[(&str, &str)]) -> Option<Reply> {
        let reply = self.client.request(method, target, fields, b"");
        let may_fail = matches!(self.failures, Failures::Ways | Failures::Instances);
        let is_failing = may_fail && reply.status == 503;
        (!is_failing).then_some(reply)
    }

    /// Submits a job that is done at once, or one that can be seen while it runs; at times there are more than can run
    /// at once.
    fn submit(&mut self) {
        let target = self
            .random
            .choice(&["version", "sleep?duration=0.001", "sleep?duration=0.004"])
            .unwrap();
        let begin = Instant::now();
        let target = format!("/_admin/{target}");
        let Some(reply) = self.send("GET", &target, &[("x-arango-async", "store")]) else { return };
        let id = reply.expect(202).id().expect("an id").to_owned();
        self.note(Of::Job(id.clone()), Operation::Submit, Answer::Yes, begin);
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).push(id);
    }

    fn ask(&mut self, job: String, operation: Operation, method: &str, rest: &str) {
        let begin = Instant::now();
        match self.send(method, &format!("/_api/job/{job}{rest}"), &[]) {
            Some(reply) => self.note(Of::Job(job), operation, answer(operation, &reply), begin),
            None => self.note_lost(Of::Job(job), operation, begin),
        }
    }

    /// Begins to collect on a connection of its own, and leaves.
    fn abandon(&mut self, job: String) {
        let begin = Instant::now();
        let mut client = Client::new(self.address);
        client.send_request("PUT", &format!("/_api/job/{job}"), &[], b"");
        drop(client);
        self.note_lost(Of::Job(job), Operation::Abandon, begin);
    }

    fn list(&mut self, operation: Operation, which: &str) {
        let begin = Instant::now();
        let Some(reply) = self.send("GET", &format!("/_api/job/{which}?count=1000"), &[]) else {
            return;
        };
        let ids = serde_json::from_value(reply.expect(200).json()).expect("a list of ids");
        self.note(Of::All(ids), operation, Answer::Yes, begin);
    }

    fn all(&mut self, operation: Operation, rest: &str) {
        let begin = Instant::now();
        let of = Of::All(Vec::new());
        match self.send("DELETE", &format!("/_api/job/{rest}"), &[]) {
            Some(reply) => {
                reply.expect(200);
                self.note(of, operation, Answer::Yes, begin);
            }
            None => self.note_lost(of, operation, begin),
        }
    }
}

/// Returns the meaning of a reply. A result is recognized by its id, and a cancelled job's result by its status code.
fn answer(operation: Operation, reply: &Reply) -> Answer {
    let asks_for_result = matches!(operation, Operation::Peek | Operation::Collect);
    match (reply.status, reply.id().is_some()) {
        (410, true) if asks_for_result => Answer::Cancelled,
        (500, true) if asks_for_result && reply.text().contains("interrupted") => {
            Answer::Interrupted
        }
        (200, true) if asks_for_result => Answer::Result,
        (200, false) if operation == Operation::Status => Answer::Done,
        (200, false) if !asks_for_result => Answer::Yes,
        (204, false) => Answer::Pending,
        (404, false) => Answer::Unknown,
        _ => panic!("{operation:?} is never answered so: {reply:?}"),
    }
}
