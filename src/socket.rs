//! Sockets: TCP and Unix alike.
//!
//! Owns the difference between the two and nothing else. Invariant: whatever a phase does with a
//! connection works on both.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{
    self, AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with,
};

use crate::exchange::Connection;

/// A listening socket.
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// Unix.
    Unix(UnixListener),
}

/// A connection.
pub enum Stream {
    /// TCP.
    Tcp(TcpStream),
    /// Unix.
    Unix(UnixStream),
}

/// Calls the same method of whichever it is.
macro_rules! either {
    ($self:expr, $it:ident => $call:expr) => {
        match $self {
            Stream::Tcp($it) => $call,
            Stream::Unix($it) => $call,
        }
    };
}

/// Connects to a Unix socket by its path.
///
/// # Errors
/// As [`connect_to`], and for a path that is too long.
pub fn connect_unix(path: &Path, time: Duration) -> io::Result<UnixStream> {
    connect_to(&SocketAddrUnix::new(path)?, time)
}

/// Connects to a Unix socket. A socket with as many connections waiting as it takes makes others wait too.
///
/// # Errors
/// [`ErrorKind::TimedOut`] if that lasts longer than `time`, and those of the system.
pub fn connect_to(address: &SocketAddrUnix, time: Duration) -> io::Result<UnixStream> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // It bounds connecting as well (socket(7)).
    sockopt::set_socket_timeout(&socket, Timeout::Send, Some(time))?;
    match connect(&socket, address) {
        Ok(()) => Ok(socket.into()),
        Err(Errno::AGAIN) => {
            let what = "too many connections wait there already";
            Err(io::Error::new(ErrorKind::TimedOut, what))
        }
        Err(error) => Err(error.into()),
    }
}

impl Listener {
    /// Accepts a connection, with its ends.
    ///
    /// # Errors
    /// Those of the system.
    pub fn accept(&self) -> io::Result<(Stream, Connection)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept()?;
                let local = stream.local_addr()?;
                Ok((Stream::Tcp(stream), Connection::Tcp { peer, local }))
            }
            Self::Unix(listener) => Ok((Stream::Unix(listener.accept()?.0), Connection::Unix)),
        }
    }
}

#[cfg(feature = "tiny_http")]
impl Listener {
    /// Another handle of the same socket.
    ///
    /// # Errors
    /// Those of the system.
    pub fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Tcp(listener) => listener.try_clone().map(Self::Tcp),
            Self::Unix(listener) => listener.try_clone().map(Self::Unix),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        }
    }
}

impl Stream {
    /// Makes it ready to be served: blocking, and without delay for small writes.
    ///
    /// # Errors
    /// Those of the system.
    pub fn prepare(&self) -> io::Result<()> {
        if let Self::Tcp(stream) = self {
            stream.set_nodelay(true)?;
        }
        self.set_nonblocking(false)
    }

    /// Bounds each write.
    ///
    /// # Errors
    /// Those of the system.
    pub fn set_write_time(&self, time: Duration) -> io::Result<()> {
        either!(self, s => s.set_write_timeout(Some(time)))
    }

    /// Switches between waiting and not.
    ///
    /// # Errors
    /// Those of the system.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        either!(self, s => s.set_nonblocking(nonblocking))
    }

    /// Bounds each read.
    ///
    /// # Errors
    /// Those of the system.
    pub fn set_read_time(&self, time: Duration) -> io::Result<()> {
        either!(self, s => s.set_read_timeout(Some(time)))
    }

    /// Writes what the connection takes without waiting.
    ///
    /// # Errors
    /// `WouldBlock` if that is nothing; those of the connection.
    pub fn send_at_once(&self, bytes: &[u8]) -> io::Result<usize> {
        Ok(net::send(self, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?)
    }

    /// Has the end of the connection reset it, so that a client which reads until the end takes no broken answer for
    /// a whole one. A Unix socket has no reset.
    pub fn reset_at_end(&self) {
        if let Self::Tcp(stream) = self {
            let _ = net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
        }
    }

    /// Takes that back: the connection ends in order, and what was written is delivered.
    pub fn end_in_order(&self) {
        if let Self::Tcp(stream) = self {
            let _ = net::sockopt::set_socket_linger(stream, None);
        }
    }

    /// Returns whether its end can be a reset.
    pub const fn has_reset(&self) -> bool {
        matches!(self, Self::Tcp(_))
    }

    /// Says that nothing more will be written.
    pub fn end_writing(&self) {
        let _ = either!(self, s => s.shutdown(Shutdown::Write));
    }

    /// Whether the connection has broken meanwhile.
    pub fn is_broken(&self) -> bool {
        !matches!(either!(self, s => s.take_error()), Ok(None))
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        either!(self, s => s.as_fd())
    }
}

impl Read for &Stream {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        either!(*self, s => (&mut &*s).read(target))
    }
}

impl Write for &Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        either!(*self, s => (&mut &*s).write(bytes))
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        either!(*self, s => (&mut &*s).write_vectored(parts))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connecting_to_a_full_unix_socket_ends_in_time() {
        let path = std::env::temp_dir().join(format!("deferd-full-{}", std::process::id()));
        let listening =
            socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .unwrap();
        rustix::net::bind(&listening, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&listening, 0).unwrap();
        let mut waiting = Vec::new();
        let error = loop {
            match connect_unix(&path, Duration::from_millis(50)) {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
        };
        std::fs::remove_file(&path).unwrap();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(!waiting.is_empty());
        let gone = connect_unix(&path, Duration::from_secs(60)).unwrap_err();
        assert_eq!(gone.kind(), ErrorKind::NotFound);
    }
}
