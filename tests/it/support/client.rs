//! A client that reads answers to the byte, and the answers.
//!
//! It asserts of every answer what must hold for all; starts nothing. Invariant: every wait for the other side ends.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::{PATIENCE, eventually, uninterrupted};

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    /// Names in lower case, in the order received.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    /// Returns the only value of a field.
    #[track_caller]
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str());
        let value = values.next();
        assert_eq!(values.next(), None, "{name} more than once in {self:?}");
        value
    }

    /// Returns the announced length of its content.
    pub fn length(&self) -> Option<usize> {
        self.header("content-length").map(|length| length.parse().unwrap())
    }

    pub fn is_chunked(&self) -> bool {
        self.header("transfer-encoding") == Some("chunked")
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        assert_eq!(self.header("content-type"), Some("application/json; charset=utf-8"));
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// Returns the id in a `202` or a result.
    pub fn id(&self) -> Option<&str> {
        self.header("x-arango-async-id")
    }

    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{:?} {}", self.headers, self.text());
        self
    }

    /// Asserts one of deferd's own errors, with exactly these members.
    #[track_caller]
    pub fn expect_error(self, status: u16, number: u16) -> Self {
        let reply = self.expect(status);
        let json = reply.json();
        assert_eq!(json["error"], true, "{json}");
        assert_eq!(json["code"], status, "{json}");
        assert_eq!(json["errorNum"], number, "{json}");
        assert!(json["errorMessage"].is_string() && json.as_object().unwrap().len() == 4, "{json}");
        assert_eq!(reply.id(), None, "an error of the job manager has no id");
        assert_eq!(reply.header("retry-after").is_some(), status == 503, "{reply:?}");
        reply
    }
}

impl Reply {
    /// Asserts a job's result that is one of deferd's own errors: unlike the errors of the job resource, it has an id.
    #[track_caller]
    pub fn expect_job_error(self, status: u16, number: u16) -> Self {
        let reply = self.expect(status);
        assert!(reply.id().is_some(), "{reply:?}");
        let json = reply.json();
        assert_eq!(json["code"], status, "{json}");
        assert_eq!(json["errorNum"], number, "{json}");
        reply
    }

    /// Asserts that it is not a job's result: neither of the id fields is present.
    #[track_caller]
    pub fn without_id(self) -> Self {
        assert_eq!(self.header("x-arango-async-id"), None, "{self:?}");
        assert_eq!(self.header("x-arango-async-job-id"), None, "{self:?}");
        self
    }
}

/// A connection that is kept.
pub struct Client {
    stream: BufReader<TcpStream>,
    /// The first line of the last request, for the message if no answer arrives.
    asked: String,
}

impl Client {
    pub fn new(address: SocketAddr) -> Self {
        Self::try_new(address).unwrap()
    }

    /// Connects; fails without a panic if nothing listens.
    pub fn try_new(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Ok(Self { stream: BufReader::new(stream), asked: String::new() })
    }

    pub fn socket(&self) -> &TcpStream {
        self.stream.get_ref()
    }

    /// Sends bytes as they are.
    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        let line = bytes.split(|&b| b == b'\r').next().unwrap_or_default();
        self.asked = String::from_utf8_lossy(&line[..line.len().min(200)]).into_owned();
        let sent = self.stream.get_mut().write_all(bytes);
        sent.unwrap_or_else(|error| panic!("{error}: {} cannot be sent", self.asked));
    }

    /// Sends a request, with `host` and the length of its content.
    #[track_caller]
    pub fn send_request(
        &mut self,
        method: &str,
        target: &str,
        fields: &[(&str, &str)],
        body: &[u8],
    ) {
        let mut head = format!("{method} {target} HTTP/1.1\r\nhost: localhost\r\n");
        for (name, value) in fields {
            write!(head, "{name}: {value}\r\n").unwrap();
        }
        if !body.is_empty() {
            write!(head, "content-length: {}\r\n", body.len()).unwrap();
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(body);
        self.send(&bytes);
    }

    /// Reads an answer; `None` if the connection was closed instead.
    #[track_caller]
    pub fn try_read(&mut self, method: &str) -> Option<Reply> {
        let reply = self.try_read_head()?;
        Some(self.read_rest(method, reply))
    }

    /// Reads the content of an answer whose head was read.
    #[track_caller]
    pub fn read_rest(&mut self, method: &str, mut reply: Reply) -> Reply {
        let (status, length) = (reply.status, reply.length());
        let without = method == "HEAD" || matches!(status, 100..=199 | 204 | 304);
        if without {
            let has_length = length.is_some() && method != "HEAD";
            assert!(!has_length, "{status} must not have a length: {reply:?}");
        } else if reply.is_chunked() {
            while let Some(chunk) = self.read_chunk() {
                reply.body.extend_from_slice(&chunk);
            }
        } else if let Some(length) = length {
            reply.body = vec![0; length];
            self.read_content(&mut reply.body);
        } else {
            assert_eq!(reply.header("connection"), Some("close"), "{reply:?}");
            let read = self.stream.read_to_end(&mut reply.body);
            read.unwrap_or_else(|error| self.give_up("content", &error));
        }
        reply
    }

    /// Reads the head of an answer, and leaves its content; `None` if the connection was closed instead.
    #[track_caller]
    pub fn try_read_head(&mut self) -> Option<Reply> {
        let line = self.read_line()?;
        let mut words = line.split(' ');
        assert_eq!(words.next(), Some("HTTP/1.1"), "{line:?}");
        let status: u16 = words.next().unwrap().parse().unwrap();
        let mut headers = Vec::new();
        loop {
            let line = self.read_line().expect("the head is whole");
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(": ").unwrap_or_else(|| panic!("{line:?}"));
            headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        let reply = Reply { status, headers, body: Vec::new() };
        assert!(reply.length().is_none() || !reply.is_chunked(), "both framings: {reply:?}");
        Some(reply)
    }

    /// Reads an answer that breaks off after its head: its content as far as it arrived, with the framing of chunks. A
    /// client that takes the end of the connection for the end of the content sees a reset.
    #[track_caller]
    pub fn read_broken(&mut self) -> Reply {
        let reply = self.try_read_head().expect("an answer");
        self.read_break(reply)
    }

    /// Reads the rest of such an answer.
    #[track_caller]
    pub fn read_break(&mut self, mut reply: Reply) -> Reply {
        let end = self.stream.read_to_end(&mut reply.body);
        if let Err(error) = &end
            && error.kind() != std::io::ErrorKind::ConnectionReset
        {
            self.give_up("break", error);
        }
        let is_broken = match reply.length() {
            Some(length) => reply.body.len() < length,
            None if reply.is_chunked() => !reply.body.ends_with(b"\r\n0\r\n\r\n"),
            None => end.is_err(),
        };
        assert!(is_broken, "{reply:?} is not broken");
        reply
    }

    /// Reads a chunk of content; `None` if it is the last.
    #[track_caller]
    pub fn read_chunk(&mut self) -> Option<Vec<u8>> {
        let size = self.read_line().expect("a chunk");
        let mut chunk = vec![0; usize::from_str_radix(&size, 16).expect("its size")];
        self.read_content(&mut chunk);
        assert_eq!(self.read_line().as_deref(), Some(""), "the chunk ends");
        (!chunk.is_empty()).then_some(chunk)
    }

    #[track_caller]
    fn read_content(&mut self, content: &mut [u8]) {
        let read = self.stream.read_exact(content);
        read.unwrap_or_else(|error| self.give_up("content", &error));
    }

    #[track_caller]
    fn read_line(&mut self) -> Option<String> {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(line.strip_suffix("\r\n").expect("CRLF").to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => self.give_up("head", &error),
        }
    }

    /// Ends the test: what it waited for does not arrive.
    #[track_caller]
    fn give_up(&self, part: &str, error: &std::io::Error) -> ! {
        panic!(
            "the {part} of the answer to {:?} does not come within {PATIENCE:?}: {error}",
            self.asked
        )
    }

    /// Waits until an answer has begun, without reading it.
    #[track_caller]
    pub fn wait_for_answer(&self) {
        match uninterrupted(|| self.socket().peek(&mut [0])) {
            Ok(n) => assert_eq!(n, 1, "no answer to {:?}", self.asked),
            Err(error) => self.give_up("beginning", &error),
        }
    }

    /// Returns whether the other side has closed, after whatever it still sent.
    pub fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => rest.is_empty(),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => true,
            Err(error) => self.give_up("end behind", &error),
        }
    }

    #[track_caller]
    pub fn request(
        &mut self,
        method: &str,
        target: &str,
        fields: &[(&str, &str)],
        body: &[u8],
    ) -> Reply {
        self.send_request(method, target, fields, body);
        self.try_read(method).expect("an answer")
    }

    #[track_caller]
    pub fn get(&mut self, target: &str) -> Reply {
        self.request("GET", target, &[], b"")
    }

    #[track_caller]
    pub fn put(&mut self, target: &str) -> Reply {
        self.request("PUT", target, &[], b"")
    }

    #[track_caller]
    pub fn delete(&mut self, target: &str) -> Reply {
        self.request("DELETE", target, &[], b"")
    }

    /// Submits a job whose result is kept; returns its id.
    #[track_caller]
    pub fn store(&mut self, method: &str, target: &str, body: &[u8]) -> String {
        let reply = self.request(method, target, &[("x-arango-async", "store")], body).expect(202);
        reply.id().expect("an id").to_owned()
    }

    /// Waits until the job is done.
    #[track_caller]
    pub fn wait_done(&mut self, id: &str) {
        eventually("the job is done", || self.get(&format!("/_api/job/{id}")).status != 204);
        self.get(&format!("/_api/job/{id}")).expect(200);
    }

    /// Waits for the result and collects it.
    #[track_caller]
    pub fn result(&mut self, id: &str) -> Reply {
        self.wait_done(id);
        let reply = self.put(&format!("/_api/job/{id}"));
        assert_eq!(reply.id(), Some(id), "{reply:?}");
        reply
    }

    /// Returns the ids of a list: `done` or `pending`, with a query if necessary.
    #[track_caller]
    pub fn list(&mut self, which: &str) -> Vec<String> {
        let json = self.get(&format!("/_api/job/{which}")).expect(200).json();
        let ids = json.as_array().expect("an array").iter();
        ids.map(|id| id.as_str().expect("a string").to_owned()).collect()
    }
}

impl Client {
    /// Returns all jobs that are listed. In this order: a job that ends in between is in both lists, not in neither.
    #[track_caller]
    pub fn jobs(&mut self) -> Vec<String> {
        let (mut ids, done) = (self.list("pending"), self.list("done"));
        ids.retain(|id| !done.contains(id));
        ids.extend(done);
        ids
    }
}
