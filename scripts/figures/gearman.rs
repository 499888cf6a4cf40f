//! Gearman's protocol, as far as a client needs it for a foreground job and a worker to do it. The result goes through
//! the server to the waiting client; that of a background job would be dropped, because a job server keeps no results.

use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;

use super::http_job::RESULT;
use super::load::{Answer, Dialogue, Next};

const CAN_DO: u32 = 1;
const PRE_SLEEP: u32 = 4;
const NOOP: u32 = 6;
const SUBMIT_JOB: u32 = 7;
const JOB_CREATED: u32 = 8;
const GRAB_JOB: u32 = 9;
const NO_JOB: u32 = 10;
const JOB_ASSIGN: u32 = 11;
const WORK_COMPLETE: u32 = 13;

/// The length of magic, type and size.
const HEAD: usize = 12;

/// The dialogue of a client.
pub struct Foreground;

impl Dialogue for Foreground {
    fn begin(&mut self, out: &mut Vec<u8>) {
        // Function, no unique id, no workload.
        packet(out, SUBMIT_JOB, &[b"version\0", b"\0"]);
    }

    fn answer(&mut self, bytes: &[u8], _ended: bool, _out: &mut Vec<u8>) -> Option<Answer> {
        let (kind, size) = head(bytes.get(..HEAD)?);
        let length = HEAD + size;
        let data = bytes.get(HEAD..length)?;
        let next = match kind {
            JOB_CREATED => Next::Listen,
            WORK_COMPLETE => {
                assert!(data.ends_with(RESULT));
                Next::Done
            }
            _ => panic!("gearmand sends a packet of type {kind}"),
        };
        Some(Answer { length, closes: false, next })
    }
}

fn packet(out: &mut Vec<u8>, kind: u32, parts: &[&[u8]]) {
    let size: usize = parts.iter().map(|part| part.len()).sum();
    out.extend_from_slice(b"\0REQ");
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&(size as u32).to_be_bytes());
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

fn head(head: &[u8]) -> (u32, usize) {
    let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
    (word(4), word(8) as usize)
}

/// Runs workers for the server at `address`, one connection in each of `count` threads, until it ends.
pub fn work(address: SocketAddr, count: usize) {
    thread::scope(|scope| {
        for _ in 0..count {
            scope.spawn(|| Worker::new(address).run());
        }
    });
}

struct Worker(BufReader<TcpStream>);

impl Worker {
    fn new(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(BufReader::new(stream))
    }

    /// Runs until the connection ends.
    fn run(&mut self) -> Option<()> {
        self.send(CAN_DO, &[b"version"])?;
        self.send(GRAB_JOB, &[])?;
        loop {
            match self.receive()? {
                (NO_JOB, _) => self.send(PRE_SLEEP, &[])?,
                (NOOP, _) => self.send(GRAB_JOB, &[])?,
                (JOB_ASSIGN, data) => {
                    let handle = data.split_inclusive(|&b| b == 0).next().unwrap();
                    let mut out = Vec::new();
                    packet(&mut out, WORK_COMPLETE, &[handle, RESULT]);
                    packet(&mut out, GRAB_JOB, &[]);
                    self.0.get_mut().write_all(&out).ok()?;
                }
                (kind, _) => panic!("gearmand sends a worker a packet of type {kind}"),
            }
        }
    }

    fn send(&mut self, kind: u32, parts: &[&[u8]]) -> Option<()> {
        let mut out = Vec::new();
        packet(&mut out, kind, parts);
        self.0.get_mut().write_all(&out).ok()
    }

    fn receive(&mut self) -> Option<(u32, Vec<u8>)> {
        let mut bytes = [0; HEAD];
        self.0.read_exact(&mut bytes).ok()?;
        let (kind, size) = head(&bytes);
        let mut data = vec![0; size];
        self.0.read_exact(&mut data).ok()?;
        Some((kind, data))
    }
}
