//! The listening sockets: made here, or handed over by a service manager.
//!
//! Owns the files of Unix sockets, and systemd's two protocols: socket activation (sd_listen_fds(3)) and readiness
//! (sd_notify(3)). Does not read `--listen`: `config` does. Invariant: no client can connect to a Unix socket that was
//! made here before its file has its mode and group, and a socket that another process still serves is never
//! replaced.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use listenfd::ListenFd;
use rustix::fs::Mode;
use rustix::io::FdFlags;
use rustix::net;

use crate::config::{Address, Socket, UnixSocket};
use crate::socket::Listener;

/// How many connections wait to be accepted, as with the standard library's sockets: the system bounds it.
const BACKLOG: i32 = 4096;

/// How often another port is tried that is free on both loopback addresses.
const PORT_TRIES: u32 = 20;

/// Where groups have their names.
const GROUPS: &str = "/etc/group";

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

/// Takes the sockets that a service manager hands over; `None` if it hands over none.
///
/// # Errors
/// Those of the system.
pub fn activated() -> io::Result<Option<Vec<Bound>>> {
    let mut sockets = ListenFd::from_env();
    let all: io::Result<Vec<Bound>> =
        (0..sockets.len()).map(|index| handed_over(&mut sockets, index)).collect();
    all.map(|all| Some(all).filter(|all| !all.is_empty()))
}

fn handed_over(sockets: &mut ListenFd, index: usize) -> io::Result<Bound> {
    // The wrong kind is an error of listenfd, and leaves the socket for the next try.
    if let Ok(Some(listener)) = sockets.take_tcp_listener(index) {
        rustix::io::fcntl_setfd(listener.as_fd(), FdFlags::CLOEXEC)?;
        return bound_tcp(listener);
    }
    let listener = sockets.take_unix_listener(index)?;
    let listener = listener.ok_or_else(|| io::Error::other("LISTEN_FDS names no socket"))?;
    rustix::io::fcntl_setfd(listener.as_fd(), FdFlags::CLOEXEC)?;
    let path = listener.local_addr()?.as_pathname().unwrap_or(Path::new("")).to_owned();
    bound_unix(listener, path, None)
}

/// Makes a socket, or the two of a port of loopback. To be called before there are threads that make files: a Unix
/// socket gets its first mode from the process' umask.
///
/// # Errors
/// Those of the system.
pub fn bind(socket: &Socket) -> io::Result<Vec<Bound>> {
    match socket {
        Socket::Tcp(address) => Ok(vec![bound_tcp(TcpListener::bind(address)?)?]),
        Socket::Loopback(port) => bind_loopback(*port),
        Socket::Unix(socket) => {
            let (listener, file) = bind_unix(socket)?;
            Ok(vec![bound_unix(listener, socket.path.clone(), Some(file))?])
        }
    }
}

/// Makes the sockets of both loopback addresses. A host without IPv6 has only one.
fn bind_loopback(port: u16) -> io::Result<Vec<Bound>> {
    let mut tries = if port == 0 { PORT_TRIES } else { 1 };
    loop {
        tries -= 1;
        let first = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        let same = first.local_addr()?.port();
        match TcpListener::bind((Ipv6Addr::LOCALHOST, same)) {
            Ok(second) => return Ok(vec![bound_tcp(first)?, bound_tcp(second)?]),
            Err(error) if is_without_ipv6(&error) => {
                log::info!("this host has no [::1]: 127.0.0.1:{same} alone listens");
                return Ok(vec![bound_tcp(first)?]);
            }
            // The port that was free on one of them may be taken on the other.
            Err(error) if error.kind() == ErrorKind::AddrInUse && tries > 0 => {}
            Err(error) => return Err(error),
        }
    }
}

fn is_without_ipv6(error: &io::Error) -> bool {
    let errno = rustix::io::Errno::from_io_error(error);
    error.kind() == ErrorKind::AddrNotAvailable || errno == Some(rustix::io::Errno::AFNOSUPPORT)
}

fn bound_tcp(listener: TcpListener) -> io::Result<Bound> {
    listener.set_nonblocking(true)?;
    let address = Address::Tcp(listener.local_addr()?);
    Ok(Bound { listener: Listener::Tcp(listener), address, file: None })
}

fn bound_unix(
    listener: UnixListener,
    path: PathBuf,
    file: Option<SocketFile>,
) -> io::Result<Bound> {
    listener.set_nonblocking(true)?;
    Ok(Bound { listener: Listener::Unix(listener), address: Address::Unix(path), file })
}

/// Makes a Unix socket, in place of one that no process serves any more.
fn bind_unix(socket: &UnixSocket) -> io::Result<(UnixListener, SocketFile)> {
    let UnixSocket { path, mode, group } = socket;
    let group = group.as_deref().map(group_id).transpose()?;
    remove_unserved(path)?;
    let fd = net::socket_with(
        net::AddressFamily::UNIX,
        net::SocketType::STREAM,
        net::SocketFlags::CLOEXEC,
        None,
    )?;
    let umask = rustix::process::umask(Mode::from_raw_mode(0o177));
    let bound = net::bind(&fd, &net::SocketAddrUnix::new(path)?);
    rustix::process::umask(umask);
    bound?;
    // From here on, an error removes it.
    let file = SocketFile(path.clone());
    if group.is_some() {
        std::os::unix::fs::lchown(path, None, group)?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(*mode))?;
    // Before this, a client cannot connect.
    net::listen(&fd, BACKLOG)?;
    Ok((UnixListener::from(fd), file))
}

/// Removes the file of a socket that no process serves any more.
fn remove_unserved(path: &Path) -> io::Result<()> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        let what = "the path exists and is not a socket";
        return Err(io::Error::new(ErrorKind::AlreadyExists, what));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
        Ok(_) => Err(ErrorKind::AddrInUse.into()),
    }
}

/// Returns the number of a group, which is named or is a number already.
fn group_id(name: &str) -> io::Result<u32> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let unknown = || {
        io::Error::new(
            ErrorKind::NotFound,
            format!("no group {name} in {GROUPS}; its number will do"),
        )
    };
    let groups = fs::read_to_string(GROUPS)?;
    let mut lines = groups.lines().map(|line| line.split(':'));
    let line = lines.find_map(|mut line| (line.next() == Some(name)).then_some(line));
    line.and_then(|mut line| line.nth(1)?.parse().ok()).ok_or_else(unknown)
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
