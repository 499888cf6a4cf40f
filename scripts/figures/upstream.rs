//! A deferred call to an upstream compared with the same call made directly; and clients that wait for a job: their
//! weight, and how soon they are woken.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use super::client::{Client, deferred, request};
use super::peer::{self, Peer, free_address};
use super::sample::{ROUNDS, Sample, row, title};
use super::server::{Server, wait_until};
use super::table::Table;

/// Calls in one round of one side.
const CALLS: usize = 100;
/// How many clients wait at once while they are weighed.
const WAITING: usize = 1000;
/// How many clients wait at once while they are woken.
const WOKEN: usize = 200;

/// Prints the figures.
pub fn print() {
    title("upstream: a deferred call beside the same call direct, and clients that wait");
    for time in [Duration::ZERO, Duration::from_millis(5)] {
        calls(time);
    }
    memory();
    wake_up();
}

/// Starts an upstream that takes `time` for each answer; it ends with this program.
fn upstream(time: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || answer(&stream.unwrap(), time));
        }
    });
    address
}

fn answer(mut stream: &TcpStream, time: Duration) {
    stream.set_nodelay(true).unwrap();
    let mut buffer = [0; 4096];
    let mut end = 0;
    while let Ok(n @ 1..) = stream.read(&mut buffer[end..]) {
        end += n;
        if buffer[..end].ends_with(b"\r\n\r\n") {
            end = 0;
            if !time.is_zero() {
                thread::sleep(time);
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").unwrap();
        }
    }
}

/// Measures the calls of one client: direct, through deferd, and deferred.
fn calls(time: Duration) {
    let upstream = upstream(time);
    let deferd = before(upstream);
    let sides = rounds(upstream, &deferd, None);
    let own = time.as_millis();
    println!("an upstream that takes {own} ms");
    for side in &sides {
        let (name, took) = (side.name, &side.took);
        row(&format!("{own} ms, {name}, ms"), format_args!("{took:.3}"));
    }
    let added = &sides[2].added;
    row("added by being deferred, ms (target <= 0.3)", format_args!("{added:.3}"));
    println!();
}

/// Adds what deferd and nginx add to a call, each in front of the same upstream; `directory` is for nginx.
pub fn beside_nginx(table: &mut Table, directory: &Path) {
    for time in [Duration::ZERO, Duration::from_millis(5)] {
        let upstream = upstream(time);
        let (deferd, (nginx, _peer)) = (before(upstream), nginx(upstream, directory, ""));
        let [direct, others @ ..] = &*rounds(upstream, &deferd, Some(nginx)) else {
            unreachable!("direct is the first");
        };
        let own = time.as_millis();
        table.row(&format!("call an upstream of {own} ms, ms"), direct.name, 3, &direct.took);
        for side in others {
            table.row(&format!("added to a call of {own} ms, ms"), side.name, 3, &side.added);
        }
    }
}

/// Starts a deferd in front of an upstream.
fn before(upstream: SocketAddr) -> Server {
    Server::deferd("warn", &["--route", &format!("/up/=http://{upstream}/")])
}

/// Starts an nginx that keeps its connections to the upstream; `more` are further directives.
pub fn nginx(upstream: SocketAddr, directory: &Path, more: &str) -> (SocketAddr, Peer) {
    let (mut peer, address) = (Peer::new(), free_address());
    let path = directory.join(format!("nginx-{}.conf", address.port()));
    let directory = directory.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {directory}/nginx-{name};\n"))
        .concat();
    let text = format!(
        "worker_processes auto;\ndaemon off;\npid {directory}/nginx.pid;\nerror_log /dev/null;\n\
         events {{}}\nhttp {{\naccess_log off;\n{temporary}\
         keepalive_requests 1000000;\n\
         upstream up {{ server {upstream}; keepalive 16; }}\n\
         server {{ listen {address};\nlocation /up/ {{ proxy_pass http://up/;\n\
         proxy_http_version 1.1; proxy_set_header Connection \"\"; {more} }} }}\n}}\n"
    );
    std::fs::write(&path, text).unwrap();
    peer.start(Command::new("nginx").args(["-e", "/dev/null", "-c"]).arg(&path));
    peer::wait_for("nginx", address);
    (address, peer)
}

/// One way to call the upstream.
struct Way {
    name: &'static str,
    call: Box<dyn FnMut()>,
    /// The median of each round, in milliseconds; and how much longer than the direct call that is.
    took: Sample,
    added: Sample,
}

impl Way {
    fn new(name: &'static str, call: impl FnMut() + 'static) -> Self {
        Self { name, call: Box::new(call), took: Sample::default(), added: Sample::default() }
    }
}

/// Makes calls in turn: direct, through deferd, deferred, and, if there is one, through nginx.
fn rounds(upstream: SocketAddr, deferd: &Server, nginx: Option<SocketAddr>) -> Vec<Way> {
    let plain = |address: SocketAddr, target: &str| {
        let (mut client, request) = (Client::new(address), request("GET", target));
        move || client.expect_hello(&request)
    };
    let (mut client, job) = (Client::new(deferd.address), deferred("/up/"));
    let mut ways = vec![
        Way::new("direct", plain(upstream, "/")),
        Way::new("through deferd", plain(deferd.address, "/up/")),
        Way::new("deferred, waited for, collected", move || {
            let id = client.submit(&job);
            let collect = format!(
                "PUT /_api/job/{id} HTTP/1.1\r\nhost: localhost\r\nprefer: wait=60\r\n\r\n"
            );
            client.expect_hello(collect.as_bytes());
        }),
    ];
    ways.extend(nginx.map(|address| Way::new("through nginx", plain(address, "/up/"))));
    for _ in 0..ROUNDS {
        let mut round: Vec<Sample> = ways.iter().map(|_| Sample::default()).collect();
        for _ in 0..CALLS {
            for (way, times) in ways.iter_mut().zip(&mut round) {
                times.push(millis(&mut way.call));
            }
        }
        for (way, times) in ways.iter_mut().zip(&round) {
            way.took.push(times.median());
            way.added.push(times.median() - round[0].median());
        }
    }
    ways
}

fn millis(call: impl FnOnce()) -> f64 {
    let begin = Instant::now();
    call();
    begin.elapsed().as_secs_f64() * 1e3
}

impl Client {
    fn expect_hello(&mut self, request: &[u8]) {
        let reply = self.exchange(request);
        assert_eq!((reply.status, &*reply.body), (200, &b"hello"[..]));
    }
}

/// Starts a deferd for many clients, and a job that does not end by itself.
fn with_endless_job() -> (Server, Client, String) {
    let deferd = Server::deferd("warn", &["--max-wait", "1h", "--max-connections", "2000"]);
    let mut client = Client::new(deferd.address);
    let id = client.submit(&deferred("/_admin/sleep?duration=3600"));
    (deferd, client, id)
}

fn connect(deferd: &Server) -> TcpStream {
    let stream = TcpStream::connect(deferd.address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Returns a request for a job that waits for it.
fn waiting(id: &str) -> Vec<u8> {
    format!("GET /_api/job/{id} HTTP/1.1\r\nhost: localhost\r\nprefer: wait=3600\r\n\r\n")
        .into_bytes()
}

/// Measures the cost of a client that waits, and of one that is only connected.
fn memory() {
    for (name, waits) in [("is connected and was served", false), ("waits (target <= 24)", true)] {
        let (deferd, _client, id) = with_endless_job();
        let before = deferd.resident();
        let mut streams: Vec<TcpStream> = (0..WAITING).map(|_| connect(&deferd)).collect();
        let version = request("GET", "/_api/version");
        for stream in &mut streams {
            // All have been served once: a thread that has just started weighs less.
            stream.write_all(&version).unwrap();
            assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
            if waits {
                stream.write_all(&waiting(&id)).unwrap();
            }
        }
        settle(&deferd);
        let each = (deferd.resident() - before) / WAITING as f64 / 1024.0;
        row(&format!("KiB for each of {WAITING} that {name}"), format_args!("{each:>9.1}"));
        if waits {
            let before = deferd.processor_time();
            thread::sleep(Duration::from_secs(2));
            let share = (deferd.processor_time() - before) / 2.0 * 100.0;
            row(&format!("processor of {WAITING} that wait, %"), format_args!("{share:>9.1}"));
        }
    }
    println!();
}

/// Waits until deferd does no more than it does in any second.
fn settle(deferd: &Server) {
    let mut last = 0.0;
    wait_until(Duration::from_millis(200), || {
        let now = deferd.resident();
        let settled = now == last;
        last = now;
        settled
    });
}

/// Measures the time from the end of a job to the answers: if all clients wait for the same job, and if each waits for
/// another and one of these ends.
fn wake_up() {
    let (mut median, mut last, mut one) = <(Sample, Sample, Sample)>::default();
    for _ in 0..ROUNDS {
        let (deferd, mut client, id) = with_endless_job();
        let streams: Vec<TcpStream> = (0..WOKEN).map(|_| wait_for(&deferd, &id)).collect();
        let times = end(&mut client, &id, &streams);
        median.push(times.median());
        last.push(times.quantile(1.0));
        let ids: Vec<String> =
            (0..WOKEN).map(|_| client.submit(&deferred("/_admin/sleep?duration=3600"))).collect();
        let streams: Vec<TcpStream> = ids.iter().map(|id| wait_for(&deferd, id)).collect();
        one.push(end(&mut client, &ids[0], &streams[..1]).median());
    }
    let what = "ms after its end (target <= 5)";
    row(&format!("one of {WOKEN} waiting, {what}"), format_args!("{one:.2}"));
    row(&format!("median of {WOKEN} waiting for one job, {what}"), format_args!("{median:.2}"));
    row(&format!("last of {WOKEN} waiting for one job, ms"), format_args!("{last:.2}"));
}

fn wait_for(deferd: &Server, id: &str) -> TcpStream {
    let mut stream = connect(deferd);
    stream.write_all(&waiting(id)).unwrap();
    stream
}

/// Ends a job; returns how long after that each of these had its answer, in milliseconds. One thread watches all of
/// them: more threads of our own would be measured as well.
fn end(client: &mut Client, id: &str, streams: &[TcpStream]) -> Sample {
    // Waits until all of them are asleep.
    thread::sleep(Duration::from_millis(300));
    let cancel = request("PUT", &format!("/_api/job/{id}/cancel"));
    let begin = Instant::now();
    client.send(&cancel);
    let mut times = Sample::default();
    let mut left: Vec<&TcpStream> = streams.iter().collect();
    while !left.is_empty() {
        let mut fds: Vec<PollFd<'_>> =
            left.iter().map(|stream| PollFd::new(*stream, PollFlags::IN)).collect();
        poll(&mut fds, None).unwrap();
        let answered: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut answered = answered.into_iter();
        left.retain(|_| {
            let is_answered = answered.next().unwrap();
            if is_answered {
                times.push(begin.elapsed().as_secs_f64() * 1e3);
            }
            !is_answered
        });
    }
    assert_eq!(client.receive().status, 200);
    times
}
