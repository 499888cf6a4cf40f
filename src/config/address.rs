//! Where deferd listens, as `--listen` names it.
//!
//! Owns the two forms of an address, their syntax and how they are shown. Opens no socket: `listen` does.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::value;

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A TCP address.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl Address {
    /// Reads a TCP address with its port, or `unix:` and a path.
    ///
    /// # Errors
    /// What is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return value::path(path).map(Self::Unix);
        }
        let address = text.parse().map(Self::Tcp);
        address.map_err(|_| "not an address, as 127.0.0.1:8529, [::1]:8529 or unix:/path".into())
    }

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

/// As the first line of stdout has it.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
