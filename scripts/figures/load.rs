//! Clients in a closed loop, whatever protocol they speak: each does one piece of work after the other on a connection
//! of its own, and a thread serves many of them by epoll.
//!
//! A server's work is counted between two times at which all clients are working, so neither the first nor the last
//! pieces of a turn count.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};

use super::sample::Sample;

/// After this much silence, a server counts as hanging.
const PATIENCE: Duration = Duration::from_secs(20);

/// The threads of the load generator, each with its share of the clients.
const THREADS: usize = 2;

/// What a client sends and understands.
pub trait Dialogue: Send {
    /// Writes the first request of a piece of work.
    fn begin(&mut self, out: &mut Vec<u8>);
    /// Takes the first answer out of `bytes`, if it is complete; `ended` says that nothing follows them. Writes the
    /// next request to `out`.
    fn answer(&mut self, bytes: &[u8], ended: bool, out: &mut Vec<u8>) -> Option<Answer>;
}

/// An answer that was understood.
pub struct Answer {
    /// Its length, in bytes.
    pub length: usize,
    /// Whether the server announces the end of the connection.
    pub closes: bool,
    pub next: Next,
}

/// What a client does after an answer.
pub enum Next {
    /// It sends what it wrote, after a pause.
    Send(Duration),
    /// It waits for another answer.
    Listen,
    /// The piece of work is done.
    Done,
}

/// How clients load a server.
#[derive(Clone, Copy)]
pub struct Load {
    pub clients: usize,
    pub warm_up: Duration,
    pub span: Duration,
}

impl Load {
    /// Loads a server; returns the pieces of work a second.
    pub fn on<D: Dialogue>(self, address: SocketAddr, dialogue: impl Fn() -> D) -> f64 {
        self.times(address, dialogue).len() as f64 / self.span.as_secs_f64()
    }

    /// Loads a server; returns how long each piece of work took, in milliseconds.
    pub fn times<D: Dialogue>(self, address: SocketAddr, dialogue: impl Fn() -> D) -> Sample {
        let from = Instant::now() + self.warm_up;
        let until = from + self.span;
        let threads = THREADS.min(self.clients);
        thread::scope(|scope| {
            let threads: Vec<_> = (0..threads)
                .map(|n| {
                    let share = (n..self.clients).step_by(threads);
                    let dialogues: Vec<D> = share.map(|_| dialogue()).collect();
                    scope.spawn(move || drive(address, dialogues, from, until))
                })
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        })
    }
}

/// Does one piece of work, to check that the server works.
pub fn once(address: SocketAddr, dialogue: impl Dialogue) {
    drive(address, vec![dialogue], Instant::now(), Instant::now());
}

/// Runs clients with these dialogues until then, and lets them finish what they have begun; returns how long each
/// piece took that ended between the two times, in milliseconds.
fn drive<D: Dialogue>(
    address: SocketAddr,
    dialogues: Vec<D>,
    from: Instant,
    until: Instant,
) -> Vec<f64> {
    let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC).unwrap());
    let client = |(number, dialogue)| Client {
        address,
        stream: None,
        epoll: Arc::clone(&epoll),
        number: number as u64,
        dialogue,
        buffer: vec![0; 8192].into(),
        end: 0,
        out: Vec::new(),
        rests_until: None,
        begun: Instant::now(),
    };
    let mut clients: Vec<Client<D>> = dialogues.into_iter().enumerate().map(client).collect();
    clients.iter_mut().for_each(|client| client.begin(Instant::now()));
    let (mut times, mut at_work) = (Vec::new(), clients.len());
    let mut events = Vec::with_capacity(clients.len());
    while at_work > 0 {
        let rests = clients.iter().filter_map(|client| client.rests_until).min();
        wait(&*epoll, &mut events, rests);
        if rests.is_some_and(|rests| rests <= Instant::now()) {
            clients.iter_mut().for_each(Client::send_if_rested);
        }
        for event in events.drain(..) {
            let client = &mut clients[event.data.u64() as usize];
            if !client.listen() {
                continue;
            }
            let now = Instant::now();
            if from <= now && now < until {
                times.push((now - client.begun).as_secs_f64() * 1e3);
            }
            if now < until {
                client.begin(now);
            } else {
                at_work -= 1;
            }
        }
    }
    times
}

fn wait(epoll: impl AsFd, events: &mut Vec<epoll::Event>, rests: Option<Instant>) {
    let patience = rests.map_or(PATIENCE, |rests| rests.saturating_duration_since(Instant::now()));
    let patience = Timespec::try_from(patience).unwrap();
    match epoll::wait(epoll, rustix::buffer::spare_capacity(events), Some(&patience)) {
        Ok(0) => assert!(rests.is_some(), "a server says nothing for {PATIENCE:?}"),
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => panic!("epoll: {error}"),
    }
}

/// One client.
struct Client<D> {
    address: SocketAddr,
    /// `None` between a connection that the server closed and the next request.
    stream: Option<TcpStream>,
    /// The epoll instance for its events, and its number there.
    epoll: Arc<OwnedFd>,
    number: u64,
    dialogue: D,
    buffer: Box<[u8]>,
    /// `buffer[..end]` was read and not yet used.
    end: usize,
    /// What to send, at once or after the pause.
    out: Vec<u8>,
    rests_until: Option<Instant>,
    /// When it began this piece of work.
    begun: Instant,
}

impl<D: Dialogue> Client<D> {
    fn begin(&mut self, now: Instant) {
        self.begun = now;
        self.dialogue.begin(&mut self.out);
        self.send();
    }

    /// Connects if necessary, but not before there is something to send: an idle connection may occupy a thread of the
    /// server.
    fn send(&mut self) {
        if self.stream.is_none() {
            let stream = connect(self.address);
            let data = epoll::EventData::new_u64(self.number);
            epoll::add(&self.epoll, &stream, data, epoll::EventFlags::IN).unwrap();
            self.stream = Some(stream);
        }
        if let Some(stream) = &mut self.stream {
            stream.write_all(&self.out).unwrap();
        }
        self.out.clear();
    }

    fn send_if_rested(&mut self) {
        if self.rests_until.is_some_and(|until| until <= Instant::now()) {
            self.rests_until = None;
            self.send();
        }
    }

    /// Reads what has arrived and answers it; returns whether the piece of work is done.
    fn listen(&mut self) -> bool {
        let Some(stream) = &mut self.stream else { return false };
        let read = stream.read(&mut self.buffer[self.end..]).unwrap();
        self.end += read;
        while let Some(answer) =
            self.dialogue.answer(&self.buffer[..self.end], read == 0, &mut self.out)
        {
            self.buffer.copy_within(answer.length..self.end, 0);
            self.end -= answer.length;
            if answer.closes || read == 0 {
                self.stream = None;
            }
            match answer.next {
                Next::Send(Duration::ZERO) => self.send(),
                Next::Send(rest) => self.rests_until = Some(Instant::now() + rest),
                Next::Listen => {}
                Next::Done => return true,
            }
        }
        assert!(read > 0 || self.stream.is_none(), "the server closed in the middle of an answer");
        false
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}
