//! An outgoing answer: adds the service's fields and counts content, for answers that are whole or still being
//! produced.
//!
//! Owns the fields that depend on the request and not on its handler. Does not write the access log. Invariant: a
//! response that is sent while it is produced has the same fields as a whole one.

use http::header::VARY;
use http::{HeaderValue, Response, StatusCode};

use crate::access_log::Answered;
use crate::content::NoMemory;
use crate::cors::{self, Sharing};
use crate::error::{Detail, Error};
use crate::exchange::{Answer, Peer};
use crate::protocol::{PREFER, PREFERENCE_APPLIED};
use crate::sink::{Collector, Head, Lost, Sink, Waits};

/// The outcome of answering a request.
pub enum Reply {
    /// This answer is to be sent.
    Answer(Answer),
    /// The sink has the whole response.
    Sent,
    /// The sink has sent some of a response that has no end: the connection is to be broken, and why.
    Broken(Detail),
}

impl Reply {
    /// Returns the answer of a request whose sink kept the response.
    pub fn whole(self, sink: Collector) -> Answer {
        match self {
            Self::Answer(answer) => answer,
            Self::Sent | Self::Broken(_) => sink.into_answer(),
        }
    }
}

/// Where the response to a synchronous request is.
pub enum Produced {
    /// It is whole, and nothing was written into the sink.
    Answer(Answer),
    /// It is in the sink, whole.
    InSink,
}

/// Whether the client said how it prefers to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preference {
    /// Yes: the answer depends on that.
    Stated,
    /// No.
    None,
}

/// The fields that an answer gets because of its request.
pub struct Additions {
    /// The pages that may read the answer.
    pub sharing: Sharing,
    /// Whether `prefer` counted.
    pub preference: Preference,
}

impl Additions {
    /// Adds them.
    pub fn add<T>(&self, response: &mut Response<T>) {
        let headers = response.headers_mut();
        if self.preference == Preference::Stated || headers.contains_key(PREFERENCE_APPLIED) {
            headers.append(VARY, HeaderValue::from(PREFER));
        }
        cors::disclose(response, self.sharing.clone());
    }
}

/// The sink of a synchronous request: it adds to the head, and counts.
pub struct Outgoing<'a> {
    sink: &'a mut dyn Sink,
    additions: &'a Additions,
    /// Set with the head.
    status: StatusCode,
    /// How much content was taken, in bytes.
    bytes: usize,
}

impl<'a> Outgoing<'a> {
    /// Returns a sink that hands on to `sink`.
    pub fn new(sink: &'a mut dyn Sink, additions: &'a Additions) -> Self {
        Self { sink, additions, status: StatusCode::OK, bytes: 0 }
    }

    /// Returns what is to be done with the response.
    pub fn reply(&self, produced: Result<Produced, Error>, peer: &dyn Peer) -> Reply {
        match produced {
            Ok(Produced::InSink) => match self.lost() {
                None => Reply::Sent,
                Some(lost) => Reply::Broken(lost.to_string().into()),
            },
            Ok(Produced::Answer(answer)) if !self.is_sent() => Reply::Answer(answer),
            Err(error) if !self.is_sent() => Reply::Answer(error.response().into()),
            Ok(Produced::Answer(_)) => Reply::Broken("the handler gave two answers".into()),
            Err(error) => Reply::Broken(match self.lost() {
                Some(lost) => lost.to_string().into(),
                None if peer.was_seen_leaving() => Lost::Left.to_string().into(),
                None => error.to_string().into(),
            }),
        }
    }

    /// Returns what the access log says of the reply.
    pub fn answered<'r>(&self, reply: &'r Reply) -> Answered<'r> {
        let (status, bytes) = (self.status, self.bytes);
        match reply {
            Reply::Answer(answer) => Answered::from(&answer.response),
            Reply::Sent => Answered { id: "-", status, bytes, broken: None },
            Reply::Broken(why) => Answered { id: "-", status, bytes, broken: Some(why) },
        }
    }
}

impl Sink for Outgoing<'_> {
    fn begin(&mut self, mut head: Head) -> Result<(), NoMemory> {
        self.status = head.response.status();
        self.additions.add(&mut head.response);
        self.sink.begin(head)
    }

    fn room(&mut self, most: usize) -> Result<&mut [u8], NoMemory> {
        self.sink.room(most)
    }

    fn advance(&mut self, n: usize) {
        self.bytes += n;
        self.sink.advance(n);
    }

    fn flush(&mut self) -> Result<(), Lost> {
        self.sink.flush()
    }

    fn waits(&self) -> Option<Waits<'_>> {
        self.sink.waits()
    }

    fn is_live(&self) -> bool {
        self.sink.is_live()
    }

    fn is_sent(&self) -> bool {
        self.sink.is_sent()
    }

    fn lost(&self) -> Option<Lost> {
        self.sink.lost()
    }
}
