//! A client with little overhead: requests are bytes prepared in advance, answers are read into one buffer.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::server::wait_until;

/// After this time, the server counts as hanging.
const PATIENCE: Duration = Duration::from_secs(10);

/// Returns a request without content, as bytes.
pub fn request(method: &str, target: &str) -> Vec<u8> {
    format!("{method} {target} HTTP/1.1\r\nhost: localhost\r\n\r\n").into_bytes()
}

/// Returns the same request, deferred.
pub fn deferred(target: &str) -> Vec<u8> {
    let head = format!("GET {target} HTTP/1.1\r\nhost: localhost\r\nx-arango-async: store\r\n\r\n");
    head.into_bytes()
}

/// The parts of an answer that matter here.
pub struct Reply {
    pub status: u16,
    /// `x-arango-async-id`.
    pub id: Option<String>,
    pub body: Vec<u8>,
    /// The length of the whole answer, in bytes.
    pub length: usize,
    /// Whether the connection ends with it.
    pub closes: bool,
}

/// A connection that is kept.
pub struct Client {
    stream: TcpStream,
    buffer: Box<[u8]>,
    /// `buffer[start..end]` was read and not yet used.
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

    /// Opens `count` connections.
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

    /// Reads an answer whose length is known, without examining it: a load generator that parses measures itself.
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
                // The end of a child process can interrupt it.
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

    /// Submits a job; returns its id.
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

    /// Stores `count` results, with many requests pending at once.
    pub fn store(&mut self, deferred: &[u8], count: usize) {
        const BATCH: usize = 64;
        let mut stored = 0;
        wait_until(Duration::ZERO, || {
            let batch = BATCH.min(count - stored);
            self.send(&deferred.repeat(batch));
            // If the queue is full, the job is submitted again.
            stored += (0..batch).filter(|_| self.receive().status == 202).count();
            stored == count
        });
        self.wait_idle(Duration::from_millis(2));
    }
}

/// Returns the first answer in `bytes`, once it is complete; `ended` says that nothing follows them.
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

/// Returns a chunked body, once its last chunk has arrived, and its length on the wire.
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
        // An empty line follows each chunk; there are no trailers here.
        start = end + 2;
        if size == 0 {
            return (start <= bytes.len()).then_some((body, start));
        }
    }
}
