//! What the strict front serves, beside a bare loop that does the least; and whole jobs a second.

use std::thread;
use std::time::{Duration, Instant};

use super::client::{Client, deferred, request};
use super::sample::{Meter, ROUNDS, row, title};
use super::server::{Server, wait_until};

const CONNECTIONS: usize = 64;

/// The threads of the load generator, each with its share of the connections. Each sends on all of
/// them before it reads, so that there is always something to answer.
const THREADS: usize = 2;

/// How often the sides take turns within a round: often, so that what else the machine does falls on
/// both.
const TURNS: usize = 16;

/// One turn of one side.
const SPAN: Duration = Duration::from_millis(80);

/// Prints the figures.
pub fn print() {
    title("front: GET /_api/version at 64 keep-alive connections, RUST_LOG=warn");
    let deferd = Server::deferd("warn", &[]);
    serving(&deferd);
    jobs(&deferd);
}

fn serving(deferd: &Server) {
    let bare = Server::bare();
    let mut sides = [Side::of(deferd), Side::of(&bare)];
    assert_eq!(sides[0].length, sides[1].length, "both answer as many bytes");
    for _ in 0..ROUNDS {
        for turn in 0..TURNS {
            // Who comes first changes, in case it matters.
            sides[turn % 2].load();
            sides[1 - turn % 2].load();
        }
        sides.iter_mut().for_each(|side| side.meter.end_round());
    }
    let [Meter { rate: deferd, cost: deferd_cost, .. }, Meter { rate: bare, cost: bare_cost, .. }] =
        sides.map(|side| side.meter);
    row("deferd, requests/s", &deferd);
    row("bare std::net + httparse, requests/s", &bare);
    row("deferd / bare (target >= 0.9)", format_args!("{:.3}", deferd.over(&bare)));
    row("deferd, its processor time a request, µs", format_args!("{deferd_cost:.2}"));
    row("bare, its processor time a request, µs", format_args!("{bare_cost:.2}"));
}

/// One of the two servers, its connections, and what was measured.
struct Side<'a> {
    server: &'a Server,
    clients: Vec<Client>,
    request: Vec<u8>,
    /// Of an answer, in bytes.
    length: usize,
    meter: Meter,
}

impl<'a> Side<'a> {
    fn of(server: &'a Server) -> Self {
        let mut clients = Client::several(server.address, CONNECTIONS);
        let request = request("GET", "/_api/version");
        let length = clients[0].exchange(&request).length;
        Self { server, clients, request, length, meter: Meter::default() }
    }

    /// Loads the server for one turn.
    fn load(&mut self) {
        let Self { server, clients, request, length, meter } = self;
        let round_trips = |clients: &mut [Client]| {
            clients.iter_mut().for_each(|client| client.send(request));
            clients.iter_mut().for_each(|client| client.skip(*length));
        };
        meter.turn(|| server.processor_time(), || by_threads(clients, round_trips));
    }
}

/// Submits and collects jobs whose work is next to nothing.
fn jobs(deferd: &Server) {
    let job = deferred("/_api/version");
    let sides = [1, CONNECTIONS];
    let mut sides = sides.map(|count| (Client::several(deferd.address, count), Meter::default()));
    for _ in 0..ROUNDS {
        for _ in 0..TURNS {
            for (clients, meter) in &mut sides {
                let work = || by_threads(clients, |clients| collect_each(clients, &job));
                meter.turn(|| deferd.processor_time(), work);
            }
        }
        sides.iter_mut().for_each(|(_, meter)| meter.end_round());
    }
    for (clients, meter) in &sides {
        row(&format!("submit + collect, {} connection(s), jobs/s", clients.len()), &meter.rate);
    }
}

/// One job on each connection, submitted, then asked for until it is there.
fn collect_each(clients: &mut [Client], job: &[u8]) {
    clients.iter_mut().for_each(|client| client.send(job));
    let mut pending: Vec<(&mut Client, Vec<u8>)> = clients
        .iter_mut()
        .map(|client| {
            let id = client.receive().id.unwrap();
            (client, request("PUT", &format!("/_api/job/{id}")))
        })
        .collect();
    wait_until(Duration::ZERO, || {
        pending.iter_mut().for_each(|(client, collect)| client.send(collect));
        pending.retain_mut(|(client, _)| client.receive().status != 200);
        pending.is_empty()
    });
}

/// Shares the connections among the threads of the load generator, which do `each` with theirs again
/// and again for a turn; how often that was, counted by connections.
fn by_threads(clients: &mut [Client], each: impl Fn(&mut [Client]) + Sync) -> usize {
    let (begin, each) = (Instant::now(), &each);
    let load = |clients: &mut [Client]| {
        let mut count = 0;
        while begin.elapsed() < SPAN {
            each(clients);
            count += clients.len();
        }
        count
    };
    let share = clients.len().div_ceil(THREADS);
    thread::scope(|scope| {
        let shares = clients.chunks_mut(share);
        let threads: Vec<_> = shares.map(|share| scope.spawn(|| load(share))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    })
}
