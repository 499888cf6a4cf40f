//! Answers that pass while their client waits: how soon each piece arrives, how fast a GiB passes, and how much memory
//! that takes. Answers of upstreams are compared with nginx, answers of scripts with a `cat` that writes into the
//! client's socket.

use std::cell::Cell;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::client::request;
use super::sample::{ROUNDS, Sample};
use super::server::Server;
use super::table::{Aim, Table};
use super::upstream::nginx;

/// How much passes in one round of one way, in bytes.
const MUCH: usize = 1 << 30;

/// How many pieces are sent in one round of one way, and the pause between them.
const PIECES: usize = 50;
const APART: Duration = Duration::from_millis(4);
const PIECE: &[u8] = b"a piece of an answer\n";

/// The scripts: one copies a file to its answer, one writes many zero bytes.
const COPY: &str = "printf 'content-type: text/plain\\n\\n'; exec cat \"$QUERY_STRING\"";
const ZEROS: &str =
    "printf 'content-type: text/plain\\n\\n'; exec head -c \"$QUERY_STRING\" /dev/zero";

/// Measures everything, into `table`; `directory` is for what the programs write.
pub fn measure(table: &mut Table, directory: &Path) {
    for (name, line) in [("copy", COPY), ("zeros", ZEROS)] {
        let path = directory.join(name);
        fs::write(&path, format!("#!/bin/sh\n{line}\n")).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    }
    let source = Source::start(directory);
    pieces(table, directory, &source);
    much(table, directory, &source);
}

/// Starts a deferd that has little memory for content.
fn deferd(directory: &Path, name: &str, source: &Source) -> Server {
    let data = directory.join(name).display().to_string();
    let cgi = format!("/cgi/=cgi:{},max-output=2G", directory.display());
    let up = format!("/up/=http://{}/,max-output=2G", source.address);
    let limits = ["--data", &data, "--max-memory", "32M"];
    Server::deferd("warn", &[&limits[..], &["--route", &cgi, "--route", &up]].concat())
}

/// One way for an answer to reach the client.
struct Way<'a> {
    name: &'static str,
    /// Requests the answer; returns the connection on which it arrives.
    begin: Box<dyn Fn() -> TcpStream + 'a>,
}

impl<'a> Way<'a> {
    fn new(name: &'static str, begin: impl Fn() -> TcpStream + 'a) -> Self {
        Self { name, begin: Box::new(begin) }
    }

    /// Returns the answer of a server to a request.
    fn asking(name: &'static str, address: SocketAddr, target: &str) -> Self {
        let request = request("GET", target);
        Self::new(name, move || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_nodelay(true).unwrap();
            stream.write_all(&request).unwrap();
            stream
        })
    }
}

/// Adds how long pieces take from their source to the client.
fn pieces(table: &mut Table, directory: &Path, source: &Source) {
    let server = deferd(directory, "pieces", source);
    let (nginx, _peer) = nginx(source.address, directory, "proxy_buffering off;");
    let upstream = [
        Way::asking("direct", source.address, "/pieces"),
        Way::asking("deferd", server.address, "/up/pieces"),
        Way::asking("nginx, proxy_buffering off", nginx, "/up/pieces"),
    ];
    let script = [
        Way::new("cat into a socket", || {
            into_socket(Command::new("cat").arg(source.write_into_fifo()))
        }),
        Way::new("deferd", || {
            let target = format!("/cgi/copy?{}", source.write_into_fifo().display());
            (Way::asking("", server.address, &target).begin)()
        }),
    ];
    for (what, ways) in [("an upstream", &upstream[..]), ("a script", &script)] {
        let mut delays: Vec<_> = ways.iter().map(|_| <(Sample, Sample)>::default()).collect();
        for _ in 0..ROUNDS {
            for (way, (first, each)) in ways.iter().zip(&mut delays) {
                let round = source.follow((way.begin)());
                first.push(round[0]);
                each.push(round.into_iter().collect::<Sample>().median());
            }
        }
        for (way, (first, each)) in ways.iter().zip(&delays) {
            table.row(&format!("first piece of {what}, ms behind"), way.name, 2, first);
            table.row(&format!("each piece of {what}, ms behind"), way.name, 2, each);
        }
        let what = format!("first piece of {what}, ms behind");
        table.aim(&what, delays[1].0.median(), Aim::AtMost(5.0));
    }
}

/// Adds how fast a GiB passes, and deferd's memory during that.
fn much(table: &mut Table, directory: &Path, source: &Source) {
    let servers = ["upstream", "script"].map(|name| deferd(directory, name, source));
    let (nginx, _peer) = nginx(source.address, directory, "");
    let zeros = format!("head -c {MUCH} /dev/zero | cat");
    let upstream = [
        Way::asking("nginx", nginx, &format!("/up/{MUCH}")),
        Way::asking("deferd", servers[0].address, &format!("/up/{MUCH}")),
        Way::asking("direct", source.address, &format!("/{MUCH}")),
    ];
    let script = [
        Way::new("cat into a socket", || into_socket(Command::new("sh").args(["-c", &zeros]))),
        Way::asking("deferd", servers[1].address, &format!("/cgi/zeros?{MUCH}")),
    ];
    for (what, ways) in [("an upstream", &upstream[..]), ("a script", &script)] {
        let mut rates: Vec<_> = ways.iter().map(|_| Sample::default()).collect();
        for _ in 0..ROUNDS {
            for (way, rate) in ways.iter().zip(&mut rates) {
                rate.push(drain(way));
            }
        }
        for (way, rate) in ways.iter().zip(&rates) {
            table.row(&format!("a GiB of {what}, MB/s"), way.name, 0, rate);
        }
        let share = rates[1].over(&rates[0]).median();
        let what = format!("a GiB of {what}, of the rate of {}", ways[0].name);
        table.aim(&what, share, Aim::AtLeast(0.7));
    }
    for (what, server) in [("an upstream", &servers[0]), ("a script", &servers[1])] {
        let highest = server.highest() / f64::from(1 << 20);
        let what = format!("a GiB of {what}, highest resident MiB of deferd");
        table.aim(&what, highest, Aim::AtMost(48.0));
    }
}

/// Reads an answer of a GiB to its last byte; returns the rate, in MB a second.
fn drain(way: &Way<'_>) -> f64 {
    let begin = Instant::now();
    let mut stream = (way.begin)();
    let mut buffer = vec![0; 256 << 10];
    let mut read = 0;
    while read < MUCH {
        let n = stream.read(&mut buffer).unwrap();
        assert!(n > 0, "{} ends after {read} bytes", way.name);
        read += n;
    }
    MUCH as f64 / 1e6 / begin.elapsed().as_secs_f64()
}

/// Runs a program whose stdout is a socket; returns the other end of the socket.
fn into_socket(command: &mut Command) -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (socket, _) = listener.accept().unwrap();
    socket.set_nodelay(true).unwrap();
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::from(OwnedFd::from(socket))).spawn().unwrap();
    // It ends with the client at the latest.
    thread::spawn(move || child.wait());
    stream
}

/// The source of the pieces: an upstream, and FIFOs for scripts.
struct Source {
    address: SocketAddr,
    /// The directory of the FIFOs.
    directory: PathBuf,
    /// How many FIFOs were made.
    fifos: Cell<usize>,
    /// The times at which the pieces were written.
    written: Receiver<Instant>,
    writer: Arc<Mutex<Sender<Instant>>>,
}

impl Source {
    /// Starts the upstream, which ends with this program.
    fn start(directory: &Path) -> Self {
        let (sender, written) = channel();
        let writer = Arc::new(Mutex::new(sender));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let its = Arc::clone(&writer);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let writer = Arc::clone(&its);
                thread::spawn(move || serve(&stream.unwrap(), &writer));
            }
        });
        Self { address, directory: directory.to_owned(), fifos: Cell::new(0), written, writer }
    }

    /// Writes the pieces into a FIFO, once it is opened for reading; returns its path. Each round has its own: the
    /// reader of the previous round may not have seen the end yet, and would take pieces.
    fn write_into_fifo(&self) -> PathBuf {
        self.fifos.set(self.fifos.get() + 1);
        let path = self.directory.join(format!("fifo-{}", self.fifos.get()));
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        let (fifo, writer) = (path.clone(), Arc::clone(&self.writer));
        thread::spawn(move || {
            let mut fifo = OpenOptions::new().write(true).open(fifo).unwrap();
            write_pieces(&writer, |piece| fifo.write_all(piece));
        });
        path
    }

    /// Reads the pieces; returns how many milliseconds each took from its source.
    fn follow(&self, mut stream: TcpStream) -> Vec<f64> {
        let mut delays = Vec::new();
        let mut read = Vec::new();
        let mut buffer = [0; 4096];
        while delays.len() < PIECES {
            let n = stream.read(&mut buffer).unwrap();
            assert!(n > 0, "the answer ends early");
            let now = Instant::now();
            read.extend_from_slice(&buffer[..n]);
            let come = read.windows(PIECE.len()).filter(|part| part == &PIECE).count();
            while delays.len() < come {
                let written = self.written.recv().unwrap();
                delays.push(now.saturating_duration_since(written).as_secs_f64() * 1e3);
            }
        }
        delays
    }
}

/// Writes the pieces, and reports when each was written.
fn write_pieces(
    writer: &Mutex<Sender<Instant>>,
    mut write: impl FnMut(&[u8]) -> std::io::Result<()>,
) {
    for _ in 0..PIECES {
        thread::sleep(APART);
        writer.lock().unwrap().send(Instant::now()).unwrap();
        if write(PIECE).is_err() {
            return;
        }
    }
}

/// Answers `/pieces` with the pieces, in chunks, and `/N` with N bytes.
fn serve(mut stream: &TcpStream, writer: &Mutex<Sender<Instant>>) {
    stream.set_nodelay(true).unwrap();
    let bytes = vec![b'x'; 256 << 10];
    let mut head = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        head.extend_from_slice(&buffer[..n]);
        if !head.ends_with(b"\r\n\r\n") {
            continue;
        }
        let text = String::from_utf8(std::mem::take(&mut head)).unwrap();
        let target = text.split(' ').nth(1).unwrap();
        let Ok(mut left) = target.trim_start_matches('/').parse::<usize>() else {
            stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").unwrap();
            let size = format!("{:x}\r\n", PIECE.len());
            write_pieces(writer, |piece| {
                stream.write_all(&[size.as_bytes(), piece, b"\r\n"].concat())
            });
            let _ = stream.write_all(b"0\r\n\r\n");
            continue;
        };
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {left}\r\n\r\n").unwrap();
        while left > 0 {
            let Ok(n) = stream.write(&bytes[..left.min(bytes.len())]) else { return };
            left -= n;
        }
    }
}
