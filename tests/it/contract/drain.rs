//! The shutdown under load: clients submit, run and collect when SIGTERM arrives.
//!
//! Every `202` is accounted for, and no answer is cut off: a connection ends only between two answers.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use crate::support::{Ability, Client, Deferd, PATIENCE, Reply, TempDir, eventually, lacks};

/// How many `202`s there are before the signal; on a machine that is too slow, as many as arrive in half of a test's
/// patience.
const ENOUGH: usize = 150;
const SOME: usize = 10;

/// An answer that is larger than any pair of socket buffers.
const LARGE: usize = 8 << 20;

/// What one client received.
#[derive(Default)]
struct Told {
    /// The ids and the words of jobs whose results are kept.
    stored: Vec<(String, String)>,
    /// The words of jobs whose results are dropped.
    forgotten: Vec<String>,
    /// The ids of results that arrived completely, and their status codes.
    collected: BTreeMap<String, u16>,
    /// How many synchronous requests were cancelled by the end of the grace.
    cancelled: usize,
}

/// A client that continues until nothing listens any more.
struct Visitor<'a> {
    deferd: &'a Deferd,
    /// The target of a job that notes its content.
    note: &'a str,
    name: usize,
    /// The number of `202`s of all clients.
    accepted: &'a AtomicUsize,
    client: Option<Client>,
    told: Told,
}

impl Visitor<'_> {
    fn visit(mut self) -> Told {
        for turn in 0.. {
            let word = format!("{}-{turn}", self.name);
            let going = match turn % 6 {
                0 | 1 => self.store(word),
                2 => self.forget(word),
                3 => self.look_at_much(),
                _ => self.collect(turn),
            };
            if going.is_none() {
                break;
            }
        }
        self.told
    }

    /// Returns the answer; `None` when nothing listens any more. The harness asserts that an answer that has begun is
    /// complete. A connection may end before that: then the request is sent over the next one.
    fn ask(&mut self, method: &str, target: &str, field: &str, body: &str) -> Option<Reply> {
        let length = body.len();
        let request = format!(
            "{method} {target} HTTP/1.1\r\nhost: a\r\n{field}content-length: {length}\r\n\r\n{body}"
        );
        loop {
            let mut client = match self.client.take() {
                Some(client) => client,
                None => Client::try_new(self.deferd.address).ok()?,
            };
            let sent = client.socket().write_all(request.as_bytes());
            if let Some(reply) = sent.ok().and_then(|()| client.try_read(method)) {
                let is_kept = reply.header("connection") != Some("close");
                self.client = Some(client).filter(|_| is_kept);
                return Some(reply);
            }
        }
    }

    fn store(&mut self, word: String) -> Option<()> {
        let line = format!("{word}\n");
        let reply = self.ask("POST", self.note, "x-arango-async: store\r\n", &line)?;
        if reply.status == 202 {
            self.told.stored.push((reply.id().unwrap().to_owned(), word));
            self.accepted.fetch_add(1, Ordering::Relaxed);
        } else {
            reply.expect_error(503, 503);
        }
        Some(())
    }

    fn forget(&mut self, word: String) -> Option<()> {
        let line = format!("{word}\n");
        let reply = self.ask("POST", self.note, "x-arango-async: true\r\n", &line)?;
        if reply.status == 202 {
            self.told.forgotten.push(word);
        }
        Some(())
    }

    fn look_at_much(&mut self) -> Option<()> {
        let reply = self.ask("GET", &format!("/run/c-zeros?{LARGE}"), "", "")?;
        if reply.status == 410 {
            self.told.cancelled += 1;
        } else {
            assert_eq!(reply.expect(200).body.len(), LARGE);
        }
        Some(())
    }

    fn collect(&mut self, turn: usize) -> Option<()> {
        let stored = &self.told.stored;
        let Some((id, _)) = stored.get(turn % stored.len().max(1)) else { return Some(()) };
        let id = id.clone();
        let reply = self.ask("PUT", &format!("/_api/job/{id}"), "", "")?;
        if reply.id() == Some(&id) {
            assert_eq!(self.told.collected.insert(id, reply.status), None, "collected twice");
        }
        Some(())
    }
}

/// Runs clients that do everything while deferd is told to end; returns what they received, the log, and the words
/// that jobs have recorded.
fn end_under_load(arguments: &[&str]) -> (Vec<Told>, String, Vec<String>) {
    let mut deferd = Deferd::with_scripts("", arguments);
    let dir = TempDir::new();
    let note = &format!("/run/c-append?{}", dir.join("words").display());
    let accepted = &AtomicUsize::new(0);
    let count = if lacks(Ability::ManyConnections) { 3 } else { 12 };
    let told = thread::scope(|scope| {
        let deferd = &deferd;
        let visitors: Vec<_> = (0..count)
            .map(|name| {
                let told = Told::default();
                let visitor = Visitor { deferd, note, name, accepted, client: None, told };
                scope.spawn(move || visitor.visit())
            })
            .collect();
        let begin = Instant::now();
        eventually("there is load", || {
            let ended = visitors.iter().any(|visitor| visitor.is_finished());
            let enough = if begin.elapsed() < PATIENCE / 2 { ENOUGH } else { SOME };
            ended || accepted.load(Ordering::Relaxed) >= enough
        });
        deferd.signal("-TERM");
        visitors.into_iter().map(|visitor| visitor.join().unwrap()).collect()
    });
    assert_eq!(deferd.wait().code(), Some(0));
    let words = std::fs::read_to_string(dir.join("words")).unwrap();
    (told, deferd.log(), words.lines().map(str::to_owned).collect())
}

/// Returns the ids that the log reports as lost.
fn lost(log: &str) -> BTreeSet<&str> {
    let lines = log.lines().filter_map(|line| line.split_once("lost with the memory store: "));
    lines.flat_map(|(_, ids)| ids.split(' ')).collect()
}

/// Asserts that each result was either collected or reported as lost.
#[track_caller]
fn assert_accounted_for(told: &Told, lost: &BTreeSet<&str>) {
    for (id, _) in &told.stored {
        let collected = told.collected.contains_key(id);
        assert_ne!(collected, lost.contains(id.as_str()), "{id}: collected is {collected}");
    }
}

#[test]
fn every_202_before_the_shutdown_is_accounted_for() {
    let (told, log, words) = end_under_load(&["--grace", "1h", "--workers", "2"]);
    let lost = lost(&log);
    for told in &told {
        assert_accounted_for(told, &lost);
        assert_eq!(told.cancelled, 0);
        for word in told.stored.iter().map(|(_, word)| word).chain(&told.forgotten) {
            assert_eq!(words.iter().filter(|w| *w == word).count(), 1, "{word} has run once");
        }
    }
    assert!(told.iter().any(|told| !told.collected.is_empty()), "nothing was collected: no load");
}

#[test]
fn past_the_grace_every_202_is_accounted_for() {
    let (told, log, words) = end_under_load(&["--grace", "1ms", "--workers", "1"]);
    let lost = lost(&log);
    for told in &told {
        assert_accounted_for(told, &lost);
        for (id, word) in &told.stored {
            let runs = words.iter().filter(|w| *w == word).count();
            let cancelled = told.collected.get(id) == Some(&410) || lost.contains(id.as_str());
            assert!(runs == 1 || (runs == 0 && cancelled), "{word} ran {runs} times");
        }
    }
}
