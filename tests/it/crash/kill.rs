//! SIGKILL under load, repeatedly, on one directory: what clients were told still holds afterwards.
//!
//! Each round starts deferd on what the previous one left, accounts for every id that any client ever received, and
//! then lets clients submit, collect and delete until deferd is killed in the middle of that. The duration is random;
//! in every second round it begins at the first `202`. The seed is printed on failure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Client, Deferd, PATIENCE, TempDir, eventually, uninterrupted};
use fastrand::Rng;

/// The number of rounds, if there is time for all.
const ROUNDS: usize = 200;
const TIME: Duration = Duration::from_secs(90);
const CLIENTS: usize = 4;

/// The state of a job, as far as its client knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It was accepted: it exists.
    Accepted,
    /// Its result arrived completely, and nothing was answered on that connection since: it may exist once more.
    Delivered,
    /// Its result arrived completely, and a later submission was answered; or it was deleted: it is removed.
    Gone,
}

#[test]
fn whatever_is_killed_every_202_is_accounted_for() {
    let seed = std::process::id().into();
    eprintln!("seed {seed}");
    let (mut random, begin) = (Rng::with_seed(seed), Instant::now());
    let mut trial =
        Overlay { data: TempDir::new(), submitted: AtomicU64::new(0), known: Fates::new() };
    let (mut rounds, mut interrupted) = (0, 0);
    while rounds < ROUNDS && begin.elapsed() < TIME {
        let deferd = trial.start();
        interrupted += trial.account(&deferd);
        let begin = if rounds % 2 == 0 { Begin::Start } else { Begin::FirstAccepted };
        trial.live(deferd, begin, Duration::from_micros(random.u64(..80_000)));
        rounds += 1;
    }
    let deferd = trial.start();
    interrupted += trial.account(&deferd);
    eventually("the large results that are left are the files", || {
        let files = std::fs::read_dir(trial.data.join("store/content")).unwrap().count();
        let left = deferd.client().get("/_admin/jobs?state=done&count=1000").expect(200).json();
        let left = left["jobs"].as_array().unwrap();
        files == left.iter().filter(|job| job["bytes"].as_u64().unwrap() > 65536).count()
    });
    let ran = std::fs::read_to_string(trial.ran()).unwrap();
    let mut times = HashMap::new();
    ran.lines().for_each(|said| *times.entry(said).or_insert(0) += 1);
    times.retain(|_, &mut n| n > 1);
    assert!(times.is_empty(), "scripts ran twice: {times:?}");
    let jobs = trial.known.len();
    eprintln!(
        "{rounds} rounds, {jobs} jobs, {} ran, {interrupted} interrupted",
        ran.lines().count()
    );
}

/// When the time begins for which deferd lives.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Begin {
    Start,
    /// At the first `202`: however busy the machine is, there are jobs then.
    FirstAccepted,
}

/// What the clients and the killer know about the life of one deferd.
#[derive(Default)]
struct Life {
    /// Whether a client has received a `202`.
    accepted: AtomicBool,
    killed: AtomicBool,
}

/// What all clients know: for each id, the number that was submitted, and the fate of the job.
type Fates = BTreeMap<u64, (u64, Fate)>;

/// One directory, over the lives of all its deferds.
struct Overlay {
    data: TempDir,
    /// The numbers below this were submitted.
    submitted: AtomicU64,
    known: Fates,
}

impl Overlay {
    fn start(&self) -> Deferd {
        Deferd::with_scripts("", &["--data", self.data.join("store").to_str().unwrap()])
    }

    /// Returns the file in which each script leaves its number.
    fn ran(&self) -> PathBuf {
        self.data.join("ran")
    }

    /// Compares what exists with what is known, and collects it; returns how many jobs were interrupted.
    fn account(&mut self, deferd: &Deferd) -> usize {
        let mut client = deferd.client();
        eventually("what waits has run", || client.list("pending").is_empty());
        let ids = client.list("done?count=1000000");
        let there: BTreeSet<u64> = ids.iter().map(|id| id.parse().unwrap()).collect();
        for (id, (number, fate)) in &self.known {
            match fate {
                Fate::Accepted => assert!(there.contains(id), "job {id} ({number}) is lost"),
                Fate::Gone => assert!(!there.contains(id), "job {id} ({number}) is back"),
                Fate::Delivered => {}
            }
        }
        let interrupted = there.iter().filter(|&&id| self.collect(&mut client, id)).count();
        self.settle(&mut client);
        interrupted
    }

    /// Collects a result, once; returns whether its job was interrupted.
    fn collect(&mut self, client: &mut Client, id: u64) -> bool {
        let number = self.known.get(&id).map(|(number, _)| *number);
        let reply = client.put(&format!("/_api/job/{id}"));
        client.put(&format!("/_api/job/{id}")).expect_error(404, 404);
        let interrupted = reply.status == 500;
        if interrupted {
            assert_eq!(reply.json()["errorMessage"], "interrupted");
        } else {
            let text = reply.text();
            let said: u64 = text.lines().next().unwrap().parse().unwrap();
            assert!(text == content(said), "{id}: {} bytes", text.len());
            // A job whose 202 did not reach its client can be any of those that were submitted.
            let submitted = self.submitted.load(Ordering::Relaxed);
            assert!(number.map_or(said < submitted, |number| said == number), "{id}: {reply:?}");
        }
        self.known.insert(id, (number.unwrap_or_default(), Fate::Delivered));
        interrupted
    }

    /// Once a later submission is durable, everything answered earlier on this connection is as well.
    fn settle(&mut self, client: &mut Client) {
        let number = self.submitted.fetch_add(1, Ordering::Relaxed);
        let target = format!("/run/k-once?{}", self.ran().display());
        let id = client.store("POST", &target, content(number).as_bytes());
        self.known.values_mut().for_each(|(_, fate)| *fate = Fate::Gone);
        self.known.insert(id.parse().unwrap(), (number, Fate::Accepted));
    }

    /// Lets clients work with deferd until it is killed.
    fn live(&mut self, deferd: Deferd, begin: Begin, span: Duration) {
        let (address, life, ran) = (deferd.address, Life::default(), self.ran());
        let fates = thread::scope(|scope| {
            let work = |n| work(address, n, &ran, &self.submitted, &life);
            let clients: Vec<_> = (0..CLIENTS).map(|n| scope.spawn(move || work(n))).collect();
            if begin == Begin::FirstAccepted {
                eventually("a job is accepted", || life.accepted.load(Ordering::Acquire));
            }
            // This wait is intended: until the moment of the kill.
            thread::sleep(span);
            // Dropping it kills it by SIGKILL.
            drop(deferd);
            life.killed.store(true, Ordering::Release);
            clients.into_iter().flat_map(|client| client.join().unwrap()).collect::<Vec<_>>()
        });
        self.known.extend(fates);
    }
}

/// Returns the content of a request, and of its result: some is so large that it is a file.
fn content(number: u64) -> String {
    let rest = if number.is_multiple_of(4) { "x".repeat(100_000) } else { String::new() };
    format!("{number}\n{rest}")
}

/// Submits jobs one after the other, and collects or deletes some, until the connection breaks.
fn work(address: SocketAddr, client: usize, ran: &Path, number: &AtomicU64, life: &Life) -> Fates {
    let mut fates = Fates::new();
    let Some(mut raw) = Raw::new(address) else { return fates };
    let target = format!("/run/k-once?{}", ran.display());
    loop {
        let n = number.fetch_add(1, Ordering::Relaxed);
        let body = content(n);
        let Some((202, id, _)) = raw.exchange("POST", &target, &body) else { break };
        let id = id.expect("a 202 has an id");
        life.accepted.store(true, Ordering::Release);
        // Everything earlier on this connection is older, and therefore durable.
        let delivered = fates.values_mut().filter(|(_, fate)| *fate == Fate::Delivered);
        delivered.for_each(|(_, fate)| *fate = Fate::Gone);
        fates.insert(id, (n, Fate::Accepted));
        let job = format!("/_api/job/{id}");
        if (n as usize + client).is_multiple_of(5) {
            // From now on it may be removed, and it is certainly removed once this is answered.
            fates.insert(id, (n, Fate::Delivered));
            let Some((200, ..)) = raw.exchange("DELETE", &job, "") else { break };
            fates.insert(id, (n, Fate::Gone));
        } else if (n as usize + client).is_multiple_of(2) {
            let collected = loop {
                match raw.exchange("PUT", &job, "") {
                    Some((204, ..)) => thread::yield_now(),
                    other => break other,
                }
            };
            // Not complete: it may have been under way, and then it still exists.
            let Some((200, _, text)) = collected else { break };
            assert!(text == body, "{} bytes of {}", text.len(), body.len());
            fates.insert(id, (n, Fate::Delivered));
        }
    }
    eventually("deferd was killed", || life.killed.load(Ordering::Acquire));
    fates
}

/// A connection that may break at any moment.
struct Raw(TcpStream, Vec<u8>);

impl Raw {
    fn new(address: SocketAddr) -> Option<Self> {
        let stream = TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).ok()?;
        Some(Self(stream, Vec::new()))
    }

    /// Returns status, id and content of a complete answer; `None` if the connection breaks before.
    fn exchange(
        &mut self,
        method: &str,
        target: &str,
        body: &str,
    ) -> Option<(u16, Option<u64>, String)> {
        let deferred = if method == "POST" { "x-arango-async: store\r\n" } else { "" };
        let length = body.len();
        let request = format!(
            "{method} {target} HTTP/1.1\r\nhost: localhost\r\n{deferred}content-length: {length}\r\n\r\n{body}"
        );
        self.0.write_all(request.as_bytes()).ok()?;
        loop {
            if let Some(answer) = self.parse() {
                return Some(answer);
            }
            let mut bytes = [0; 4096];
            match uninterrupted(|| self.0.read(&mut bytes)) {
                Ok(0) | Err(_) => return None,
                Ok(n) => self.1.extend_from_slice(&bytes[..n]),
            }
        }
    }

    fn parse(&mut self) -> Option<(u16, Option<u64>, String)> {
        let mut fields = [httparse::EMPTY_HEADER; 32];
        let mut response = httparse::Response::new(&mut fields);
        let httparse::Status::Complete(head) = response.parse(&self.1).unwrap() else {
            return None;
        };
        let number = |name: &str| {
            let field = response.headers.iter().find(|field| field.name == name)?;
            std::str::from_utf8(field.value).unwrap().parse::<u64>().ok()
        };
        let (status, id) = (response.code.unwrap(), number("x-arango-async-id"));
        let end = head + number("content-length").unwrap_or(0) as usize;
        let body = self.1.get(head..end)?;
        let text = String::from_utf8(body.to_vec()).unwrap();
        self.1.drain(..end);
        Some((status, id, text))
    }
}
