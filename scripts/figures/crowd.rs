//! Many connections at once whose clients send all that the server takes, and read nothing.
//!
//! One thread serves all of them with non-blocking sockets; what is sent is shared, so that the crowd itself is small.

use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketType, connect, socket, sockopt};

/// About how much of an answer the kernel takes from the server at most, in bytes: the rest waits in the server.
const RECEIVED: usize = 4096;

/// How long no connection must take a byte for the crowd to count as stuck.
const QUIET: Duration = Duration::from_millis(300);

/// How long the crowd sends at most.
const MOST: Duration = Duration::from_secs(1);

/// Pieces that a client sends in sequence.
pub type Bytes = Vec<Arc<[u8]>>;

/// Returns pieces of one request.
pub fn pieces<const N: usize>(pieces: [&[u8]; N]) -> Bytes {
    pieces.iter().map(|&piece| Arc::from(piece)).collect()
}

/// Clients, and what each of them has yet to send.
pub struct Crowd(Vec<Member>);

struct Member {
    stream: TcpStream,
    pieces: Bytes,
    piece: usize,
    sent: usize,
    is_over: bool,
}

impl Crowd {
    /// Connects `count` clients; each sends the pieces that `pieces` returns for its number.
    pub fn connect(
        address: SocketAddr,
        count: usize,
        mut pieces: impl FnMut(usize) -> Bytes,
    ) -> Self {
        let member = |n| Member {
            stream: client(address),
            pieces: pieces(n),
            piece: 0,
            sent: 0,
            is_over: false,
        };
        Self((0..count).map(member).collect())
    }

    /// Sends until the server takes nothing for a moment, or for [`MOST`].
    pub fn press(&mut self) {
        let (begin, mut progress) = (Instant::now(), Instant::now());
        while progress.elapsed() < QUIET && begin.elapsed() < MOST {
            if self.0.iter_mut().map(Member::send).fold(false, |any, more| any | more) {
                progress = Instant::now();
            } else {
                thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

impl Member {
    /// Sends once; returns whether the server took anything.
    fn send(&mut self) -> bool {
        let Some(piece) = self.pieces.get(self.piece).filter(|_| !self.is_over) else {
            return false;
        };
        // Not more, so that every client has its turn.
        let end = piece.len().min(self.sent + 64 * 1024);
        match self.stream.write(&piece[self.sent..end]) {
            Ok(n) => {
                self.sent += n;
                if self.sent == piece.len() {
                    (self.piece, self.sent) = (self.piece + 1, 0);
                }
                true
            }
            Err(error) => {
                self.is_over = error.kind() != ErrorKind::WouldBlock;
                false
            }
        }
    }
}

/// Returns a non-blocking connection that receives little before it is read.
fn client(address: SocketAddr) -> TcpStream {
    let socket: OwnedFd = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    sockopt::set_socket_recv_buffer_size(&socket, RECEIVED).unwrap();
    connect(&socket, &address).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(true).unwrap();
    stream
}
