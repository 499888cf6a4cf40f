//! A client that costs little: requests are bytes made beforehand, answers are read into one buffer.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::server::wait_until;

/// Longer, and the server hangs.
const PATIENCE: Duration = Duration::from_secs(10);

/// A request without content, as bytes.
pub fn request(method: &str, target: &str) -> Vec<u8> {
    format!("{method} {target} HTTP/1.1\r\nhost: localhost\r\n\r\n").into_bytes()
}

/// The same, deferred.
pub fn deferred(target: &str) -> Vec<u8> {
    let head = format!("GET {target} HTTP/1.1\r\nhost: localhost\r\nx-arango-async: store\r\n\r\n");
    head.into_bytes()
}

/// What is of interest in an answer.
pub struct Reply {
    pub status: u16,
    /// `x-arango-async-id`.
    pub id: Option<String>,
    pub body: Vec<u8>,
    /// All of it, in bytes.
    pub length: usize,
    /// The connection ends with it.
    pub closes: bool,
}

/// A connection that is kept.
pub struct Client {
    stream: TcpStream,
    buffer: Box<[u8]>,
    /// `buffer[start..end]` was read and not used.
    start: usize,
    end: usize,
}

impl Client {
    pub fn new(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream, buffer: vec![0; 256 * 1024].into(), start: 0, end: 0 }
    }

    /// So many connections.
    pub fn several(address: SocketAddr, count: usize) -> Vec<Self> {
        (0..count).map(|_| Self::new(address)).collect()
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Reads an answer.
    pub fn receive(&mut self) -> Reply {
        loop {
            if let Some(reply) = parse(&self.buffer[self.start..self.end], false) {
                self.start += reply.length;
                return reply;
            }
            self.fill();
        }
    }

    /// Reads an answer whose length is known, without a look at it: a load generator that parses
    /// measures itself.
    pub fn skip(&mut self, length: usize) {
        while self.end - self.start < length {
            self.fill();
        }
        assert!(self.buffer[self.start..].starts_with(b"HTTP/1.1 200"));
        self.start += length;
    }

    fn fill(&mut self) {
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let n = loop {
            match self.stream.read(&mut self.buffer[self.end..]) {
                // The end of a child can interrupt it.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => break read.unwrap(),
            }
        };
        assert!(n > 0, "the server closed, or its answer is too large");
        self.end += n;
    }

    pub fn exchange(&mut self, request: &[u8]) -> Reply {
        self.send(request);
        self.receive()
    }

    /// Submits a job; its id.
    pub fn submit(&mut self, deferred: &[u8]) -> String {
        let reply = self.exchange(deferred);
        assert_eq!(reply.status, 202);
        reply.id.unwrap()
    }

    /// Waits until a job is done.
    pub fn wait_done(&mut self, id: &str, rest: Duration) {
        let status = request("GET", &format!("/_api/job/{id}"));
        wait_until(rest, || self.exchange(&status).status == 200);
    }

    /// Waits until no job is pending.
    pub fn wait_idle(&mut self, rest: Duration) {
        let pending = request("GET", "/_api/job/pending?count=1");
        wait_until(rest, || self.exchange(&pending).body == b"[]");
    }

    /// Stores `count` results, with many requests under way at once.
    pub fn store(&mut self, deferred: &[u8], count: usize) {
        const BATCH: usize = 64;
        let mut stored = 0;
        wait_until(Duration::ZERO, || {
            let batch = BATCH.min(count - stored);
            self.send(&deferred.repeat(batch));
            // Where the queue is full the job is submitted once more.
            stored += (0..batch).filter(|_| self.receive().status == 202).count();
            stored == count
        });
        self.wait_idle(Duration::from_millis(2));
    }
}

/// The first answer in `bytes`, once it is there as a whole; `ended` where nothing comes behind them.
pub fn parse(bytes: &[u8], ended: bool) -> Option<Reply> {
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(head) = response.parse(bytes).unwrap() else { return None };
    let value = |name: &str| {
        let field = response.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name))?;
        Some(std::str::from_utf8(field.value).unwrap())
    };
    let status = response.code.unwrap();
    let closes = value("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
    let rest = &bytes[head..];
    let (body, length) = match (value("content-length"), value("transfer-encoding")) {
        (Some(length), _) => {
            let length = length.trim().parse::<usize>().unwrap();
            (rest.get(..length)?.to_vec(), length)
        }
        (None, Some(_)) => chunked(rest)?,
        (None, None) if matches!(status, 204 | 304) => (Vec::new(), 0),
        (None, None) => (ended.then(|| rest.to_vec())?, rest.len()),
    };
    let id = value("x-arango-async-id").map(str::to_owned);
    Some(Reply { status, id, body, length: head + length, closes })
}

/// A chunked body, once its last chunk is there, and its length as it was sent.
fn chunked(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (mut body, mut start) = (Vec::new(), 0);
    loop {
        let httparse::Status::Complete((head, size)) =
            httparse::parse_chunk_size(&bytes[start..]).unwrap()
        else {
            return None;
        };
        let (begin, end) = (start + head, start + head + size as usize);
        body.extend_from_slice(bytes.get(begin..end)?);
        // Behind each stands an empty line; nobody here sends trailers.
        start = end + 2;
        if size == 0 {
            return (start <= bytes.len()).then_some((body, start));
        }
    }
}
