//! Where a handler writes its response: the head first, then the content as it comes.
//!
//! Owns what all sinks promise, and the one that keeps the response whole ([`Collector`]): a job's, and that of a front
//! which sends whole answers only. The one that sends it on while it is written is the strict front's (`front/flow`).
//! Invariants: a sink never waits, so that a handler waits for all that it serves in one place; what has been sent is
//! never taken back: a handler that fails then has broken its answer.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use http::Response;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::content::{ContentBuffer, NoMemory};
use crate::error::Error;
use crate::exchange::{Answer, Guard, Receipt};
use crate::job::execution::{Execution, LOOK};
use crate::memory::Allowance;

/// How much content a sink has room for behind the head, before it sends anything, in bytes.
pub const FIRST_ROOM: usize = 4 * 1024;

/// The head of a response.
pub struct Head {
    /// Status code and fields; the front adds those of the connection.
    pub response: Response<()>,
    /// How long the content will be, in bytes; `None` if that is not announced.
    pub length: Option<usize>,
    /// Whether the front guards the answer.
    pub guard: Guard,
}

/// Why a client gets no more of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// It has left.
    Left,
    /// It took too little for too long.
    Slow,
}

/// As the access log says it.
impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Left => "the client left",
            Self::Slow => "the client took too little for too long",
        })
    }
}

/// The client that has to take some of the content, before there is room for more.
pub struct Waits<'a> {
    /// What `poll` has to watch for writing.
    pub client: BorrowedFd<'a>,
    /// How long to wait at once, until the next [`flush`](Sink::flush).
    pub tick: Duration,
}

/// Where a handler writes one response.
pub trait Sink {
    /// Takes the head, before any content. Sends nothing yet.
    ///
    /// # Errors
    /// [`NoMemory`] if a large head finds none.
    fn begin(&mut self, head: Head) -> Result<(), NoMemory>;

    /// Returns room for content, at most `most` bytes, which is not zero: [`FIRST_ROOM`] behind the head, if so much is
    /// asked for; nothing while it [waits](Self::waits).
    ///
    /// # Errors
    /// [`NoMemory`], of a sink that keeps the response.
    fn room(&mut self, most: usize) -> Result<&mut [u8], NoMemory>;

    /// Takes the first `n` bytes of the room for content, and sends what the client takes at once.
    fn advance(&mut self, n: usize);

    /// Sends what the client takes at once of what is there, the head too.
    ///
    /// # Errors
    /// [`Lost`]: what is written from now on is dropped. The handler's [`look`](Execution::look) at the client then
    /// finds that it has left.
    fn flush(&mut self) -> Result<(), Lost>;

    /// Returns the client for which content waits; `None` if there is room.
    fn waits(&self) -> Option<Waits<'_>>;

    /// Returns whether the client reads the response while it is written.
    fn is_live(&self) -> bool;

    /// Returns whether some of the response has been sent: another answer can no longer take its place.
    fn is_sent(&self) -> bool;

    /// Returns why the client gets no more of it.
    fn lost(&self) -> Option<Lost>;
}

/// Writes all of `content`, and waits for the client as long as that takes. For what has nothing else to wait for.
///
/// # Errors
/// [`Error::Cancelled`] as of [`flush`]; without memory, that error.
pub fn write_all(
    sink: &mut dyn Sink,
    mut content: &[u8],
    execution: &Execution,
) -> Result<(), Error> {
    while !content.is_empty() {
        let room = sink.room(content.len()).map_err(|error| Error::no_memory(&error))?;
        let n = room.len();
        room.copy_from_slice(&content[..n]);
        sink.advance(n);
        content = &content[n..];
        flush(sink, execution)?;
    }
    Ok(())
}

/// Sends what is there, and waits for the client as long as that takes.
///
/// # Errors [`Error::Cancelled`] if `execution` is stopped before the client has taken all, as it is when the client
/// leaves or is too slow.
pub fn flush(sink: &mut dyn Sink, execution: &Execution) -> Result<(), Error> {
    loop {
        if sink.flush().is_err() {
            execution.look();
        }
        let is_taken = sink.waits().is_none() && sink.lost().is_none();
        if !is_taken && execution.stopped().is_some() {
            return Err(Error::Cancelled);
        }
        let Some(Waits { client, tick }) = sink.waits() else { return Ok(()) };
        let timeout = Timespec::try_from(tick.min(LOOK)).ok();
        let _ = poll(&mut [PollFd::from_borrowed_fd(client, PollFlags::OUT)], timeout.as_ref());
        execution.look();
    }
}

/// A sink that keeps the response whole.
pub struct Collector {
    head: Option<Head>,
    content: ContentBuffer,
}

impl Collector {
    /// Returns a sink without a response, whose content is charged to `memory` as it comes.
    pub fn new(memory: &Allowance) -> Self {
        Self { head: None, content: ContentBuffer::new(memory) }
    }

    /// Returns the whole response.
    pub fn into_answer(self) -> Answer {
        let Some(Head { response, guard, .. }) = self.head else {
            return Error::Internal("the handler wrote no response".into()).response().into();
        };
        match self.content.freeze() {
            Ok(content) => {
                Answer { response: response.map(|()| content), guard, receipt: Receipt::none() }
            }
            Err(error) => Error::no_room_for("the answer", &error).response().into(),
        }
    }
}

impl Sink for Collector {
    fn begin(&mut self, head: Head) -> Result<(), NoMemory> {
        self.head = Some(head);
        Ok(())
    }

    fn room(&mut self, most: usize) -> Result<&mut [u8], NoMemory> {
        self.content.room(most)
    }

    fn advance(&mut self, n: usize) {
        self.content.advance(n);
    }

    fn flush(&mut self) -> Result<(), Lost> {
        Ok(())
    }

    fn waits(&self) -> Option<Waits<'_>> {
        None
    }

    fn is_live(&self) -> bool {
        false
    }

    fn is_sent(&self) -> bool {
        false
    }

    fn lost(&self) -> Option<Lost> {
        None
    }
}
