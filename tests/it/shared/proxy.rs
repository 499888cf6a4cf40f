//! A proxy to an engine, whose connections can be cut and stalled.
//!
//! Knows no protocol. Invariant: its threads end with it.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// How a proxy forwards what it receives.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// At once.
    Open = 0,
    /// Nothing, until it is opened again.
    Stalled = 1,
    /// Only requests: answers are lost, and their connections end.
    Deaf = 2,
    /// Nothing: connections are refused.
    Cut = 3,
    /// Everything except answers with the words of [`Proxy::hold`], which wait until it is opened again.
    Held = 4,
    /// Everything except answers with the words of [`Proxy::lose`], whose connections end instead.
    Lossy = 5,
}

/// A proxy.
pub struct Proxy {
    pub port: u16,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    way: AtomicU8,
    over: AtomicBool,
    sockets: Mutex<Vec<TcpStream>>,
    words: Mutex<Vec<u8>>,
    /// How often a mode other than open has affected a request, an answer or a connection.
    hits: AtomicUsize,
}

impl State {
    fn is(&self, way: Way) -> bool {
        self.way.load(Ordering::Acquire) == way as u8
    }

    fn hit(&self) {
        self.hits.fetch_add(1, Ordering::AcqRel);
    }

    fn close_all(&self) {
        for socket in self.sockets.lock().unwrap().drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    fn has_words(&self, part: &[u8]) -> bool {
        let words = self.words.lock().unwrap();
        part.windows(words.len()).any(|window| window == &words[..])
    }

    /// Returns whether this part must wait.
    fn holds(&self, part: &[u8], answers: bool) -> bool {
        self.is(Way::Stalled) || (answers && self.is(Way::Held) && self.has_words(part))
    }

    /// Returns whether an answer is lost.
    fn loses(&self, part: &[u8]) -> bool {
        self.is(Way::Deaf) || (self.is(Way::Lossy) && self.has_words(part))
    }
}

impl Proxy {
    /// Starts a proxy in front of the port of an engine.
    pub fn start(engine: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming() {
                if shared.over.load(Ordering::Acquire) {
                    return;
                }
                let Ok(client) = client else { continue };
                if shared.is(Way::Cut) {
                    shared.hit();
                    continue;
                }
                let Ok(server) = TcpStream::connect(("127.0.0.1", engine)) else { continue };
                let copy = |from: &TcpStream, to: &TcpStream, answers: bool| {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let shared = Arc::clone(&shared);
                    thread::spawn(move || pass(from, to, &shared, answers));
                };
                let _ = (client.set_nodelay(true), server.set_nodelay(true));
                copy(&client, &server, false);
                copy(&server, &client, true);
                shared.sockets.lock().unwrap().extend([client, server]);
            }
        });
        Self { port, state }
    }

    /// Returns its address in the form of `--store`.
    pub fn address(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Sets how it forwards from now on.
    pub fn set(&self, way: Way) {
        self.state.hits.store(0, Ordering::Release);
        self.state.way.store(way as u8, Ordering::Release);
        if way == Way::Cut {
            self.state.close_all();
        }
    }

    /// Holds the answers that have these words.
    pub fn hold(&self, words: &[u8]) {
        *self.state.words.lock().unwrap() = words.to_vec();
        self.set(Way::Held);
    }

    /// Loses the answers that have these words.
    pub fn lose(&self, words: &[u8]) {
        *self.state.words.lock().unwrap() = words.to_vec();
        self.set(Way::Lossy);
    }

    /// Returns how many requests, answers and connections were affected since the mode was set: held, lost, or
    /// refused.
    pub fn hits(&self) -> usize {
        self.state.hits.load(Ordering::Acquire)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::Release);
        self.state.close_all();
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, state: &State, answers: bool) {
    let mut buffer = [0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if state.holds(&buffer[..count], answers) {
            state.hit();
        }
        while state.holds(&buffer[..count], answers) && !state.over.load(Ordering::Acquire) {
            thread::sleep(Duration::from_millis(5));
        }
        if answers && state.loses(&buffer[..count]) {
            state.hit();
            break;
        }
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
