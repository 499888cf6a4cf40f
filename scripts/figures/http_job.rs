//! A job over HTTP: a request that is answered with an id, and requests for its result until it is done. And a request
//! that is answered with its result.

use std::time::{Duration, Instant};

use super::client::{parse, request};
use super::load::{Answer, Dialogue, Next};

/// What all of the servers compute.
pub const RESULT: &[u8] = br#"{"server":"arango","version":"1.4.3"}"#;

/// The requests to a server.
#[derive(Clone, Copy)]
pub struct Words {
    pub submit: &'static str,
    /// The text before the id.
    pub collect: &'static str,
    /// The fields of the request for the result.
    pub fields: &'static str,
    pub result: &'static [u8],
    /// Whether each request has a connection of its own.
    pub closes: bool,
}

/// The requests to deferd, and to the bare loop.
pub const DEFERD: Words = Words {
    submit: "GET /_api/version HTTP/1.1\r\nhost: localhost\r\nx-arango-async: store\r\n",
    collect: "PUT /_api/job/",
    fields: "",
    result: RESULT,
    closes: false,
};

/// The requests to deferd if the client waits for the result.
pub const WAITING: Words = Words { fields: "prefer: wait=60\r\n", ..DEFERD };

/// The requests to the peers behind Flask.
pub const FLASK: Words = Words {
    submit: "POST /submit HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n",
    collect: "GET /result/",
    fields: "",
    result: RESULT,
    closes: false,
};

/// The dialogue of a client.
pub struct HttpJob {
    words: Words,
    /// When the job was submitted; and, once it is accepted, the request for its result.
    begin: Instant,
    collect: Option<Vec<u8>>,
}

impl HttpJob {
    pub fn new(words: Words) -> Self {
        Self { words, begin: Instant::now(), collect: None }
    }

    fn end_of_head(&self) -> &'static str {
        if self.words.closes { "connection: close\r\n\r\n" } else { "\r\n" }
    }

    /// Returns the pause before the next request. The client asks at once, and then each time after it has waited as
    /// long again: a slow server gets few requests, and a quick one loses little time. (Pauses half as long made the
    /// peers slower with many clients, longer ones made them slower with one.)
    fn rest(&self) -> Duration {
        self.begin.elapsed()
    }
}

impl Dialogue for HttpJob {
    fn begin(&mut self, out: &mut Vec<u8>) {
        self.begin = Instant::now();
        self.collect = None;
        out.extend_from_slice(self.words.submit.as_bytes());
        out.extend_from_slice(self.end_of_head().as_bytes());
    }

    fn answer(&mut self, bytes: &[u8], ended: bool, out: &mut Vec<u8>) -> Option<Answer> {
        let reply = parse(bytes, ended)?;
        let next = match (&self.collect, reply.status) {
            (None, 202) => {
                let id = reply.id.unwrap_or_else(|| id_in(&reply.body));
                let Words { collect, fields, .. } = self.words;
                let end = self.end_of_head();
                let request = format!("{collect}{id} HTTP/1.1\r\nhost: localhost\r\n{fields}{end}");
                out.extend_from_slice(request.as_bytes());
                self.collect = Some(request.into_bytes());
                Next::Send(Duration::ZERO)
            }
            (Some(collect), 202 | 204) => {
                out.extend_from_slice(collect);
                Next::Send(self.rest())
            }
            (Some(_), 200) => {
                assert_eq!(reply.body, self.words.result);
                Next::Done
            }
            (_, status) => panic!("{status}: {}", String::from_utf8_lossy(&reply.body)),
        };
        Some(Answer { length: reply.length, closes: reply.closes, next })
    }
}

/// A client that asks deferd without a pause whether its job is done, and then collects: the loop that users of
/// drivers write.
pub struct Polling {
    /// The request for the job's status, once the job is accepted.
    status: Option<Vec<u8>>,
    is_done: bool,
}

impl Polling {
    pub const fn new() -> Self {
        Self { status: None, is_done: false }
    }
}

impl Dialogue for Polling {
    fn begin(&mut self, out: &mut Vec<u8>) {
        *self = Self::new();
        out.extend_from_slice(DEFERD.submit.as_bytes());
        out.extend_from_slice(b"\r\n");
    }

    fn answer(&mut self, bytes: &[u8], ended: bool, out: &mut Vec<u8>) -> Option<Answer> {
        let reply = parse(bytes, ended)?;
        let next = match (&self.status, reply.status) {
            (None, 202) => {
                let status = request("GET", &format!("/_api/job/{}", reply.id.unwrap()));
                out.extend_from_slice(&status);
                self.status = Some(status);
                Next::Send(Duration::ZERO)
            }
            (Some(status), 204) => {
                out.extend_from_slice(status);
                Next::Send(Duration::ZERO)
            }
            (Some(status), 200) if !self.is_done => {
                self.is_done = true;
                out.extend_from_slice(b"PUT");
                out.extend_from_slice(&status[b"GET".len()..]);
                Next::Send(Duration::ZERO)
            }
            (Some(_), 200) => {
                assert_eq!(reply.body, DEFERD.result);
                Next::Done
            }
            (_, status) => panic!("{status}: {}", String::from_utf8_lossy(&reply.body)),
        };
        Some(Answer { length: reply.length, closes: reply.closes, next })
    }
}

/// Returns the id in `{"id":"…"}`.
pub fn id_in(body: &[u8]) -> String {
    let text = std::str::from_utf8(body).unwrap();
    text.split('"').nth(3).unwrap_or_else(|| panic!("no id in {text:?}")).to_owned()
}

/// The dialogue of a client with a server that answers at once.
pub struct Exchange {
    pub request: Vec<u8>,
    pub result: &'static [u8],
}

impl Dialogue for Exchange {
    fn begin(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.request);
    }

    fn answer(&mut self, bytes: &[u8], ended: bool, _out: &mut Vec<u8>) -> Option<Answer> {
        let reply = parse(bytes, ended)?;
        assert_eq!((reply.status, &*reply.body), (200, self.result));
        Some(Answer { length: reply.length, closes: reply.closes, next: Next::Done })
    }
}
