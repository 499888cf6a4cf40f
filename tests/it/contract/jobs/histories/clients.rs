//! Clients that do at random what clients do, all at once to the same few jobs, and write down what they see.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use fastrand::Rng;

use super::model::{Answer, Event, Operation};
use crate::support::{Client, Reply};

const CLIENTS: usize = 4;
/// What each of them does in a round.
const OPERATIONS: usize = 12;
/// How many jobs they share in a round, about.
const JOBS: usize = 3;

/// What a client noted: of which job, or of a list.
struct Note {
    of: Of,
    event: Event,
}

enum Of {
    Job(String),
    /// All of them; a list's ids.
    All(Vec<String>),
}

/// The histories of the jobs of one round.
pub fn round(address: SocketAddr, seed: u64) -> Vec<(String, Vec<Event>)> {
    let jobs = Mutex::new(Vec::new());
    let notes: Vec<Note> = thread::scope(|scope| {
        let start = |client| {
            let jobs = &jobs;
            scope.spawn(move || One::new(client, address, seed, jobs).run())
        };
        let clients: Vec<_> = (0..CLIENTS).map(start).collect();
        clients.into_iter().flat_map(|client| client.join().expect("it has not failed")).collect()
    });
    Client::new(address).delete("/_api/job/all").expect(200);
    let jobs = jobs.into_inner().unwrap_or_else(PoisonError::into_inner);
    jobs.into_iter().map(|job| (history(&job, &notes), job)).map(|(h, job)| (job, h)).collect()
}

/// What was noted of this job, in the order of the requests.
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
    jobs: &'a Mutex<Vec<String>>,
    notes: Vec<Note>,
}

impl<'a> One<'a> {
    fn new(number: usize, address: SocketAddr, seed: u64, jobs: &'a Mutex<Vec<String>>) -> Self {
        let random = Rng::with_seed(seed * CLIENTS as u64 + number as u64);
        Self { number, address, client: Client::new(address), random, jobs, notes: Vec::new() }
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

    /// A job that is done at once, or one that can be met while it runs; sometimes more than run at once.
    fn submit(&mut self) {
        let target = self
            .random
            .choice(&["version", "sleep?duration=0.001", "sleep?duration=0.004"])
            .unwrap();
        let begin = Instant::now();
        let id = self.client.store("GET", &format!("/_admin/{target}"), b"");
        self.note(Of::Job(id.clone()), Operation::Submit, Answer::Yes, begin);
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).push(id);
    }

    fn ask(&mut self, job: String, operation: Operation, method: &str, rest: &str) {
        let begin = Instant::now();
        let reply = self.client.request(method, &format!("/_api/job/{job}{rest}"), &[], b"");
        self.note(Of::Job(job), operation, answer(operation, &reply), begin);
    }

    /// Begins to collect on a connection of its own, and goes away.
    fn abandon(&mut self, job: String) {
        let begin = Instant::now();
        let mut client = Client::new(self.address);
        client.send_request("PUT", &format!("/_api/job/{job}"), &[], b"");
        drop(client);
        let operation = Operation::Abandon;
        let event = Event { client: self.number, operation, answer: Answer::Yes, begin, end: None };
        self.notes.push(Note { of: Of::Job(job), event });
    }

    fn list(&mut self, operation: Operation, which: &str) {
        let begin = Instant::now();
        let ids = self.client.list(&format!("{which}?count=1000"));
        self.note(Of::All(ids), operation, Answer::Yes, begin);
    }

    fn all(&mut self, operation: Operation, rest: &str) {
        let begin = Instant::now();
        self.client.delete(&format!("/_api/job/{rest}")).expect(200);
        self.note(Of::All(Vec::new()), operation, Answer::Yes, begin);
    }
}

/// What a reply says. A result is told by its id, and a cancelled job's by its status code.
fn answer(operation: Operation, reply: &Reply) -> Answer {
    let asks_for_result = matches!(operation, Operation::Peek | Operation::Collect);
    match (reply.status, reply.id().is_some()) {
        (410, true) if asks_for_result => Answer::Cancelled,
        (200, true) if asks_for_result => Answer::Result,
        (200, false) if operation == Operation::Status => Answer::Done,
        (200, false) if !asks_for_result => Answer::Yes,
        (204, false) => Answer::Pending,
        (404, false) => Answer::Unknown,
        _ => panic!("{operation:?} is never answered so: {reply:?}"),
    }
}
