//! What the strict front serves, compared with a minimal loop; and complete jobs a second.

use std::thread;
use std::time::{Duration, Instant};

use super::client::{Client, deferred, request};
use super::sample::{Meter, ROUNDS, row, title};
use super::server::{Server, wait_until};

const CONNECTIONS: usize = 64;

/// The threads of the load generator, each with its share of the connections. Each sends on all of them before it
/// reads, so that there is always something to answer.
const THREADS: usize = 2;

/// How often the sides take turns within a round: often, so that other load on the machine affects both.
const TURNS: usize = 16;

/// The duration of one turn of one side.
const SPAN: Duration = Duration::from_millis(80);

/// Prints the figures.
pub fn print() {
    title("front: GET /_api/version at 64 keep-alive connections, RUST_LOG=warn");
    let (deferd, before) = (Server::deferd("warn", &[]), Server::before("warn", &[]));
    serving(&deferd, before.as_ref());
    jobs(&deferd, before.as_ref());
}

fn serving(deferd: &Server, before: Option<&Server>) {
    let bare = Server::bare();
    let servers = [deferd, &bare].into_iter().chain(before);
    let mut sides: Vec<Side<'_>> = servers.map(Side::of).collect();
    assert_eq!(sides[0].length, sides[1].length, "both answer as many bytes");
    for _ in 0..ROUNDS {
        for turn in 0..TURNS {
            // The order of the sides alternates, in case it matters.
            let count = sides.len();
            (0..count).for_each(|side| sides[(turn + side) % count].load());
        }
        sides.iter_mut().for_each(|side| side.meter.end_round());
    }
    let mut meters = sides.into_iter().map(|side| side.meter);
    let (deferd, bare) = (meters.next().unwrap(), meters.next().unwrap());
    row("deferd, requests/s", &deferd.rate);
    row("bare std::net + httparse, requests/s", &bare.rate);
    row("deferd / bare (target >= 0.9)", format_args!("{:.3}", deferd.rate.over(&bare.rate)));
    row("deferd, its processor time a request, µs", format_args!("{:.2}", deferd.cost));
    row("bare, its processor time a request, µs", format_args!("{:.2}", bare.cost));
    if let Some(before) = meters.next() {
        row("deferd / deferd before", format_args!("{:.3}", deferd.rate.over(&before.rate)));
    }
}

/// One of the two servers, its connections, and what was measured.
struct Side<'a> {
    server: &'a Server,
    clients: Vec<Client>,
    request: Vec<u8>,
    /// The length of an answer, in bytes.
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

/// Submits and collects jobs that do almost no work.
fn jobs<'a>(deferd: &'a Server, before: Option<&'a Server>) {
    let job = deferred("/_api/version");
    for count in [1, 16, CONNECTIONS] {
        let side =
            |server: &'a Server| (server, Client::several(server.address, count), Meter::default());
        let mut sides: Vec<(&Server, Vec<Client>, Meter)> =
            [deferd].into_iter().chain(before).map(side).collect();
        for _ in 0..ROUNDS {
            for turn in 0..TURNS {
                let count = sides.len();
                for side in 0..count {
                    let (server, clients, meter) = &mut sides[(turn + side) % count];
                    let work = || by_threads(clients, |clients| collect_each(clients, &job));
                    meter.turn(|| server.processor_time(), work);
                }
            }
            sides.iter_mut().for_each(|(_, _, meter)| meter.end_round());
        }
        let now = &sides[0].2.rate;
        row(&format!("submit + collect, {count} connection(s), jobs/s"), now);
        if let Some((_, _, before)) = sides.get(1) {
            row("  deferd / deferd before", format_args!("{:.3}", now.over(&before.rate)));
        }
    }
}

/// Submits one job on each connection, and asks for it until it is done.
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

/// Distributes the connections over the threads of the load generator, which apply `each` to theirs repeatedly for a
/// turn; returns how often, counted by connections.
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
