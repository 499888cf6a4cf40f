//! The listening socket: made here, or handed over by a service manager.
//!
//! Owns a Unix socket's file, and systemd's two protocols: socket activation (sd_listen_fds(3)) and readiness
//! (sd_notify(3)). Does not read `--listen`: `config` does. Invariant: only the owner can connect to a Unix
//! socket that was made here, and a socket that another process still serves is never replaced.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use listenfd::ListenFd;
use rustix::fs::Mode;
use rustix::io::FdFlags;

use crate::config::Address;
use crate::socket::Listener;

/// A socket that listens and does not block.
pub struct Bound {
    /// The socket.
    pub listener: Listener,
    /// Its address, with the real port.
    pub address: Address,
    /// The socket's file, which is removed when this is dropped.
    pub file: Option<SocketFile>,
}

/// The file of a Unix socket that was made here.
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Takes the socket that a service manager hands over, or makes one for `address`. To be called
/// before there are threads: a Unix socket gets its mode from the process' umask.
///
/// # Errors
/// Those of the system.
pub fn bind(address: &Address) -> io::Result<Bound> {
    if let Some(bound) = activated()? {
        return Ok(bound);
    }
    match address {
        Address::Tcp(address) => bound_tcp(TcpListener::bind(address)?),
        Address::Unix(path) => {
            let listener = bind_unix(path)?;
            listener.set_nonblocking(true)?;
            let file = Some(SocketFile(path.clone()));
            Ok(Bound { listener: Listener::Unix(listener), address: address.clone(), file })
        }
    }
}

fn bound_tcp(listener: TcpListener) -> io::Result<Bound> {
    listener.set_nonblocking(true)?;
    let address = Address::Tcp(listener.local_addr()?);
    Ok(Bound { listener: Listener::Tcp(listener), address, file: None })
}

/// The first socket of a service manager, if this process was started with one.
fn activated() -> io::Result<Option<Bound>> {
    let mut sockets = ListenFd::from_env();
    if sockets.len() == 0 {
        return Ok(None);
    }
    // The wrong kind is an error of listenfd, and leaves the socket for the next try.
    if let Ok(Some(listener)) = sockets.take_tcp_listener(0) {
        rustix::io::fcntl_setfd(listener.as_fd(), FdFlags::CLOEXEC)?;
        return bound_tcp(listener).map(Some);
    }
    let listener = sockets.take_unix_listener(0)?;
    let listener = listener.ok_or_else(|| io::Error::other("LISTEN_FDS names no socket"))?;
    rustix::io::fcntl_setfd(listener.as_fd(), FdFlags::CLOEXEC)?;
    listener.set_nonblocking(true)?;
    let path = listener.local_addr()?.as_pathname().unwrap_or(Path::new("")).to_owned();
    let address = Address::Unix(path);
    Ok(Some(Bound { listener: Listener::Unix(listener), address, file: None }))
}

/// Makes the socket with mode 0600, in place of one that no process serves any more.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    if let Ok(metadata) = fs::symlink_metadata(path) {
        if !metadata.file_type().is_socket() {
            let what = "the path exists and is not a socket";
            return Err(io::Error::new(ErrorKind::AlreadyExists, what));
        }
        match UnixStream::connect(path) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path)?,
            Err(error) => return Err(error),
            Ok(_) => return Err(ErrorKind::AddrInUse.into()),
        }
    }
    let umask = rustix::process::umask(Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(umask);
    listener
}

/// Tells the service manager a state (`READY=1`, `STOPPING=1`), if there is one that wants to know.
pub fn notify(state: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => UnixAddr::from_abstract_name(name),
        path => UnixAddr::from_pathname(std::ffi::OsStr::from_bytes(path)),
    };
    let sent = address.and_then(|address| {
        UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
    });
    if let Err(error) = sent {
        log::warn!("NOTIFY_SOCKET cannot be told {state}: {error}");
    }
}
