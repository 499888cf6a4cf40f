//! Where deferd listens, as `--listen` names it, and the addresses of sockets.
//!
//! Owns their syntax and their display. Opens no socket and looks up no group: `listen` does.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::value;

/// The default mode of a Unix socket: only its owner can connect.
const PRIVATE: u32 = 0o600;

/// The value of one `--listen`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// The socket, or the two sockets, to open.
    pub socket: Socket,
    /// The value, as the operator wrote it.
    pub text: String,
    /// The place of the value, for errors: `--listen`, or a line of a file.
    pub place: String,
}

/// A socket to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Socket {
    /// One TCP address.
    Tcp(SocketAddr),
    /// This port of both loopback addresses.
    Loopback(u16),
    /// A path.
    Unix(UnixSocket),
}

/// A Unix socket to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixSocket {
    /// Its path.
    pub path: PathBuf,
    /// Who may connect: the permission bits of its file.
    pub mode: u32,
    /// The group of its file, by name or number; `None`: deferd's own.
    pub group: Option<String>,
}

impl Listen {
    /// Reads `ADDRESS:PORT`, `:PORT`, `PORT`, `localhost:PORT`, or `unix:PATH` with its options.
    ///
    /// # Errors
    /// What is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let socket = match text.strip_prefix("unix:") {
            Some(text) => Socket::Unix(unix(text)?),
            None => tcp(text)?,
        };
        Ok(Self { socket, text: text.to_owned(), place: "--listen".to_owned() })
    }
}

fn tcp(text: &str) -> Result<Socket, String> {
    if let Ok(address) = text.parse() {
        return Ok(Socket::Tcp(address));
    }
    let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
    // `parse` alone also accepts a sign.
    let digits = Some(port).filter(|port| port.bytes().all(|b| b.is_ascii_digit()));
    match digits.and_then(|port| port.parse().ok()) {
        Some(port) if host.is_empty() || host.eq_ignore_ascii_case("localhost") => {
            Ok(Socket::Loopback(port))
        }
        Some(port) if host == "*" => {
            Err(format!("not an address: all of IPv4 is 0.0.0.0:{port}, all of IPv6 [::]:{port}"))
        }
        _ => {
            Err("not an address, as 127.0.0.1:8529, [::1]:8529, localhost:8529, 8529 or unix:/path"
                .into())
        }
    }
}

fn unix(text: &str) -> Result<UnixSocket, String> {
    let mut parts = text.split(',');
    let path = value::path(parts.next().unwrap_or_default())?;
    let mut socket = UnixSocket { path, mode: PRIVATE, group: None };
    for part in parts {
        match part.split_once('=') {
            Some(("mode", digits)) => {
                socket.mode = mode(digits).ok_or_else(|| {
                    format!("mode {digits:?}: not the permissions of a file, as 0600 or 0660")
                })?;
            }
            Some(("group", name)) if !name.is_empty() => socket.group = Some(name.to_owned()),
            _ => return Err(format!("{part:?} is neither mode=0660 nor group=NAME")),
        }
    }
    Ok(socket)
}

/// Reads three octal digits, with or without a leading zero.
fn mode(text: &str) -> Option<u32> {
    let digits = if text.len() == 4 { text.strip_prefix('0')? } else { text };
    let is_octal = digits.len() == 3 && digits.bytes().all(|b| b.is_ascii_digit());
    u32::from_str_radix(digits, 8).ok().filter(|_| is_octal)
}

/// The address of a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A TCP address.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl Address {
    /// Returns whether only this host can reach it.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Self::Unix(_) => true,
        }
    }

    /// Returns the text that `--listen` takes.
    pub fn as_option(&self) -> String {
        match self {
            Self::Tcp(address) => address.to_string(),
            Self::Unix(_) => self.to_string(),
        }
    }
}

/// In the form of the first lines on stdout.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(text: &str) -> Result<Socket, String> {
        Listen::parse(text).map(|listen| listen.socket)
    }

    #[test]
    fn addresses_are_read() {
        for (text, expected) in [
            ("127.0.0.1:8529", Socket::Tcp("127.0.0.1:8529".parse().unwrap())),
            ("[::]:0", Socket::Tcp("[::]:0".parse().unwrap())),
            ("8529", Socket::Loopback(8529)),
            (":8529", Socket::Loopback(8529)),
            ("localhost:0", Socket::Loopback(0)),
            ("LocalHost:80", Socket::Loopback(80)),
        ] {
            assert_eq!(socket(text), Ok(expected), "{text}");
        }
        for (text, mode, group) in [
            ("unix:/run/x", 0o600, None),
            ("unix:/run/x,mode=0660", 0o660, None),
            ("unix:/run/x,group=www-data,mode=666", 0o666, Some("www-data")),
            ("unix:/run/x,group=33", 0o600, Some("33")),
        ] {
            let group = group.map(str::to_owned);
            let expected = UnixSocket { path: "/run/x".into(), mode, group };
            assert_eq!(socket(text), Ok(Socket::Unix(expected)), "{text}");
        }
    }

    #[test]
    fn addresses_are_refused() {
        for (text, part) in [
            ("", "not an address"),
            (":", "not an address"),
            ("localhost", "not an address"),
            ("localhost:", "not an address"),
            ("nas.lan:80", "not an address"),
            ("127.0.0.1", "not an address"),
            ("::1", "not an address"),
            ("65536", "not an address"),
            ("+80", "not an address"),
            ("localhost:+80", "not an address"),
            ("http://127.0.0.1:80", "not an address"),
            ("*:80", "0.0.0.0:80"),
            ("unix:", "not a path"),
            ("unix:,mode=0600", "not a path"),
            ("unix:/x,mode=", "mode \"\""),
            ("unix:/x,mode=8", "mode \"8\""),
            ("unix:/x,mode=0888", "mode \"0888\""),
            ("unix:/x,mode=4755", "mode \"4755\""),
            ("unix:/x,mode=+66", "mode \"+66\""),
            ("unix:/x,group=", "\"group=\""),
            ("unix:/x,owner=a", "\"owner=a\""),
            ("unix:/x,0660", "\"0660\""),
        ] {
            let error = socket(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
