//! An answer that is sent while it is produced: the sink for a waiting client.
//!
//! Owns its framing (RFC 9112 sections 6 and 7.1): the announced length, chunks, or, for HTTP/1.0, the end of a
//! connection that can be reset. Never waits: what the client does not take at once stays in one buffer, and no more
//! is accepted until the buffer is empty. Invariants: an answer that fails midway has no end that a client could take
//! for the real one; the content is never longer than announced; an answer of any length takes the memory of one
//! buffer.

use std::io::{self, ErrorKind, Write};
use std::mem;
use std::os::fd::AsFd;

use http::Version;
use memmap2::MmapMut;

use super::client::Client;
use super::head::Persistence;
use super::output::Output;
use super::reply::{Content, Framing, Manner, Writer, has_content};
use crate::content::NoMemory;
use crate::exchange::Peer;
use crate::memory::Charge;
use crate::service::Session;
use crate::sink::{FIRST_ROOM, Head, Lost, Sink, Waits};

/// How much content is accepted at once if there is memory for it, in bytes: the capacity of a pipe.
const LARGE: usize = 64 * 1024;

/// A head that takes no more memory than this, in bytes, is not charged: it counts with its connection.
const SMALL_HEAD: usize = 16 * 1024;

/// The framing of a chunk before and after its content, in bytes: the size has at most five digits.
const CHUNK_HEAD: usize = 5 + CHUNK_END.len();
const CHUNK_END: &[u8] = b"\r\n";
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// The next part of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// The head.
    Head,
    /// This many bytes of content.
    Length(usize),
    /// Content in chunks, and then the last chunk.
    Chunks,
    /// Content, until the connection ends.
    UntilEnd,
    /// Nothing: content is dropped.
    End,
}

/// The memory of an answer until the client takes it.
enum Buffer {
    /// The head, and room for a little content.
    Small(Vec<u8>),
    /// Room for [`LARGE`] content: a map, because a heap would keep the memory after many such answers.
    Large(MmapMut),
}

impl Buffer {
    fn bytes(&mut self) -> &mut [u8] {
        match self {
            Self::Small(heap) => heap,
            Self::Large(map) => map,
        }
    }

    /// Returns how much content it has room for.
    const fn room(&self) -> usize {
        match self {
            Self::Small(_) => FIRST_ROOM,
            Self::Large(_) => LARGE,
        }
    }
}

/// An answer while it is produced.
pub struct Flow<'a, 's> {
    output: &'a mut Output<'s>,
    writer: &'a mut Writer,
    client: &'s Client,
    session: &'a Session<'s>,
    manner: Manner,
    next: Next,
    /// The bytes from `start` to `end` are to be sent; after them is the room for content.
    buffer: Buffer,
    start: usize,
    end: usize,
    /// Whether content has filled the room, so that a larger room is worthwhile.
    is_filled: bool,
    charge: Charge,
    /// Whether the client did not take all bytes of the last offer.
    waits: bool,
    is_sent: bool,
    lost: Option<Lost>,
}

impl<'a, 's> Flow<'a, 's> {
    /// Returns an answer of this form, without its head yet.
    pub fn new(
        output: &'a mut Output<'s>,
        writer: &'a mut Writer,
        client: &'s Client,
        session: &'a Session<'s>,
        manner: Manner,
    ) -> Self {
        Self {
            output,
            writer,
            client,
            session,
            manner,
            next: Next::Head,
            buffer: Buffer::Small(Vec::new()),
            start: 0,
            end: 0,
            is_filled: false,
            charge: session.memory().nothing(),
            waits: false,
            is_sent: false,
            lost: None,
        }
    }

    /// Sends the rest of an answer whose content is complete; returns what happens to the connection.
    ///
    /// # Errors
    /// Errors of the connection; `UnexpectedEof` if content is missing: the connection must be broken.
    pub fn finish(mut self) -> io::Result<Persistence> {
        let end = match (self.lost, self.next) {
            (Some(_), _) => return Err(ErrorKind::BrokenPipe.into()),
            (None, Next::Head | Next::Length(1..)) => return Err(ErrorKind::UnexpectedEof.into()),
            (None, Next::Chunks) => LAST_CHUNK,
            (None, Next::Length(0) | Next::UntilEnd | Next::End) => b"",
        };
        self.arm();
        self.output.write_all(&self.buffer.bytes()[self.start..self.end])?;
        self.output.write_all(end)?;
        self.disarm();
        Ok(self.manner.persistence)
    }

    /// If the end of the connection is the only end of the answer, makes that end a reset until the answer is
    /// complete. A client then sees a broken answer even if deferd itself ends.
    fn arm(&self) {
        if self.next == Next::UntilEnd {
            self.client.stream.reset_at_end();
        }
    }

    fn disarm(&self) {
        if self.next == Next::UntilEnd {
            self.client.stream.end_in_order();
        }
    }

    /// Returns the beginning of the room for content: a chunk has its size before it.
    fn room_start(&self) -> usize {
        self.end + if self.next == Next::Chunks { CHUNK_HEAD } else { 0 }
    }

    /// Makes a chunk of the first `n` bytes of the room.
    fn frame(&mut self, n: usize) {
        let mut head = [0; CHUNK_HEAD];
        let mut rest = &mut head[..];
        let _ = write!(rest, "{n:x}\r\n");
        let unused = rest.len();
        let head = &head[..CHUNK_HEAD - unused];
        let content = self.room_start();
        let buffer = self.buffer.bytes();
        if self.start == self.end {
            // Nothing precedes it in the buffer: the buffer begins a little later.
            self.start += unused;
            self.end += unused;
        } else {
            buffer.copy_within(content..content + n, content - unused);
        }
        buffer[self.end..self.end + head.len()].copy_from_slice(head);
        self.end += head.len() + n;
        buffer[self.end..self.end + CHUNK_END.len()].copy_from_slice(CHUNK_END);
        self.end += CHUNK_END.len();
    }

    /// Offers the pending bytes to the client.
    fn send(&mut self) {
        if self.start == self.end || self.lost.is_some() {
            return;
        }
        if !self.is_sent {
            self.arm();
        }
        match self.output.offer(&self.buffer.bytes()[self.start..self.end]) {
            Ok(taken) => {
                self.start += taken;
                self.is_sent |= taken > 0;
                if !self.is_sent {
                    // Another answer may be sent instead.
                    self.disarm();
                }
                self.waits = self.start < self.end;
            }
            Err(error) => {
                let is_slow = error.kind() == ErrorKind::TimedOut;
                self.lose(if is_slow { Lost::Slow } else { Lost::Left });
            }
        }
        if !self.waits {
            self.start = 0;
            self.end = 0;
        }
    }

    fn lose(&mut self, lost: Lost) {
        self.client.give_up();
        self.lost = Some(lost);
        self.waits = false;
        self.start = self.end;
    }

    /// Makes the room larger if content has filled it, the client has taken all of it, and there is memory.
    fn grow(&mut self) {
        let may_grow = matches!(self.buffer, Buffer::Small(_)) && self.is_filled;
        let charged = self.charge.bytes();
        if may_grow && self.end == 0 && self.charge.grow(LARGE).is_ok() {
            match MmapMut::map_anon(CHUNK_HEAD + LARGE + CHUNK_END.len()) {
                Ok(map) => self.buffer = Buffer::Large(map),
                Err(_) => self.charge.shrink_to(charged),
            }
        }
        self.is_filled = false;
    }
}

impl Sink for Flow<'_, '_> {
    fn begin(&mut self, Head { response, length, guard }: Head) -> Result<(), NoMemory> {
        if self.session.is_draining() {
            self.manner = self.manner.last();
        }
        let is_omitted = self.manner.content == Content::Omitted;
        let next = match (length, self.manner.version) {
            _ if is_omitted || !has_content(response.status()) => Next::End,
            (Some(length), _) => Next::Length(length),
            (None, Version::HTTP_10) => Next::UntilEnd,
            (None, _) => Next::Chunks,
        };
        let framing = match (next, length) {
            (Next::Chunks, _) => Framing::Chunked,
            (_, Some(length)) => Framing::Length(length),
            _ => Framing::Untold,
        };
        if next == Next::UntilEnd {
            self.manner = self.manner.last();
        }
        let head = mem::take(self.writer.compose(&response, guard, self.manner, framing));
        if head.len() > SMALL_HEAD {
            self.charge.grow(head.len())?;
        }
        self.end = head.len();
        self.buffer = Buffer::Small(head);
        self.next = next;
        self.output.begin_answer();
        if self.client.was_seen_leaving() {
            self.lose(Lost::Left);
        }
        Ok(())
    }

    fn room(&mut self, most: usize) -> Result<&mut [u8], NoMemory> {
        if self.waits {
            return Ok(&mut []);
        }
        self.grow();
        let start = self.room_start();
        let room = self.buffer.room();
        let end = start + room + CHUNK_END.len();
        if let Buffer::Small(heap) = &mut self.buffer
            && heap.len() < end
        {
            heap.resize(end, 0);
        }
        Ok(&mut self.buffer.bytes()[start..start + most.min(room)])
    }

    fn advance(&mut self, n: usize) {
        self.is_filled = n >= self.buffer.room();
        match &mut self.next {
            _ if n == 0 || self.lost.is_some() => return,
            Next::Head | Next::End => return,
            Next::Length(left) => {
                let n = n.min(*left);
                *left -= n;
                self.end += n;
            }
            Next::UntilEnd => self.end += n,
            Next::Chunks => self.frame(n),
        }
        self.send();
    }

    fn flush(&mut self) -> Result<(), Lost> {
        self.send();
        self.lost.map_or(Ok(()), Err)
    }

    fn waits(&self) -> Option<Waits<'_>> {
        let client = self.client.stream.as_fd();
        self.waits.then(|| Waits { client, tick: self.output.tick() })
    }

    fn is_live(&self) -> bool {
        true
    }

    fn is_sent(&self) -> bool {
        self.is_sent
    }

    fn lost(&self) -> Option<Lost> {
        self.lost
    }
}
