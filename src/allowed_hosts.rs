//! The names under which deferd answers web pages: a defence against DNS rebinding.
//!
//! Owns the check of `host`, and what a name in an authority is (RFC 3986 section 3.2). Does not know from where a
//! request comes: `cross_origin` decides that. Invariant: over TCP a name that a foreign page could own does not pass,
//! unless the operator allows it or clients show credentials.

use std::net::{Ipv4Addr, Ipv6Addr};

use http::HeaderValue;

use crate::error::Error;
use crate::exchange::Connection;
use crate::fields::{FieldLines, printable};

/// Below these, a local network answers for its hosts, and public DNS does not (RFC 6762, RFC 8375).
const LOCAL_DOMAINS: [&str; 4] = [".local", ".lan", ".home.arpa", ".internal"];

/// Whether the name in `host` is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostCheck {
    /// It must be a known name: a page whose own name leads to this address (DNS rebinding) would otherwise pass for
    /// one of ours.
    Known,
    /// Any name: clients show credentials, or the operator allows it.
    Any,
}

/// The names under which deferd answers.
pub struct AllowedHosts {
    /// `--allow-host`.
    pub names: Vec<String>,
    /// Whether `host` is checked on TCP connections. Browsers do not connect to Unix sockets.
    pub check: HostCheck,
    /// The name of this host; empty if it has none.
    pub own_name: String,
}

impl AllowedHosts {
    /// Checks the name in `host` of a request that came over this connection.
    ///
    /// # Errors
    /// [`Error::Forbidden`], which says what to allow.
    pub fn check(&self, lines: FieldLines<'_>, connection: &Connection) -> Result<(), Error> {
        let is_checked =
            self.check == HostCheck::Known && matches!(connection, Connection::Tcp { .. });
        let Some(host) = lines.first.filter(|_| is_checked) else { return Ok(()) };
        if !lines.more && self.is_known(host) {
            return Ok(());
        }
        let shown = printable(host);
        let what = format!("the host \"{shown}\" is not a name of this host; see --allow-host");
        Err(Error::Forbidden(what.into()))
    }

    /// Returns whether no foreign page can own the name in `host`.
    fn is_known(&self, host: &HeaderValue) -> bool {
        // Nearly every client on this host sends this: no need to parse it.
        if let Some(port) = host.as_bytes().strip_prefix(b"localhost")
            && (port.is_empty() || port[0] == b':' && port[1..].iter().all(u8::is_ascii_digit))
        {
            return true;
        }
        let Some((name, _)) = host.to_str().ok().and_then(name_and_port) else { return false };
        // Public DNS cannot answer for a name without a dot, nor for an address.
        if !name.contains('.') || name.starts_with('[') || name.parse::<Ipv4Addr>().is_ok() {
            return true;
        }
        self.names.iter().any(|allowed| allowed.eq_ignore_ascii_case(name))
            || self.is_of_this_host(name.strip_suffix('.').unwrap_or(name))
    }

    /// Returns whether this is a loopback name (RFC 6761 section 6.3) or this host's own.
    fn is_of_this_host(&self, name: &str) -> bool {
        if name.eq_ignore_ascii_case("localhost") || without_suffix(name, ".localhost").is_some() {
            return true;
        }
        let own = self.own_name.as_str();
        let alone = own.split('.').next().unwrap_or_default();
        let is_own = |name: &str| !name.is_empty() && name.eq_ignore_ascii_case(alone);
        (!own.is_empty() && name.eq_ignore_ascii_case(own))
            || LOCAL_DOMAINS.iter().any(|domain| without_suffix(name, domain).is_some_and(is_own))
    }
}

/// Splits an authority without user information (RFC 3986 section 3.2) into its name, or address, and
/// its port.
pub fn name_and_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let end = if authority.starts_with('[') {
        authority.find(']')? + 1
    } else {
        authority.find(':').unwrap_or(authority.len())
    };
    let (name, rest) = authority.split_at(end);
    let is_valid = match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => !name.is_empty() && name.bytes().all(is_of_name),
    };
    let port = match rest.strip_prefix(':') {
        None if rest.is_empty() => None,
        Some("") => None,
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => Some(digits.parse().ok()?),
        _ => return None,
    };
    is_valid.then_some((name, port))
}

const fn is_of_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_')
}

/// Returns the part before this suffix, in any case.
fn without_suffix<'a>(name: &'a str, suffix: &str) -> Option<&'a str> {
    let (start, end) = name.split_at_checked(name.len().checked_sub(suffix.len())?)?;
    end.eq_ignore_ascii_case(suffix).then_some(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRANGER: &str = "192.0.2.1:1";
    const PROXY: &str = "[::ffff:127.0.0.1]:1";

    fn hosts(names: &[&str]) -> AllowedHosts {
        let names = names.iter().map(ToString::to_string).collect();
        AllowedHosts { names, check: HostCheck::Known, own_name: "Box.example.net".into() }
    }

    fn from(peer: &str) -> Connection {
        let local = "192.0.2.9:80".parse().unwrap();
        Connection::Tcp { peer: peer.parse().unwrap(), local }
    }

    fn check(hosts: &AllowedHosts, host: &[u8], connection: &Connection) -> Result<(), Error> {
        let value = HeaderValue::from_bytes(host).unwrap();
        hosts.check(FieldLines { first: Some(&value), more: false }, connection)
    }

    #[test]
    fn known_hosts_pass() {
        let names = hosts(&["nas.example.org", "Bücher.example"]);
        for host in [
            "localhost",
            "LOCALHOST:8529",
            "localhost.",
            "a.localhost:1",
            "localhost:",
            "127.0.0.1:8529",
            "127.9.9.9",
            "192.0.2.1",
            "[::1]:8529",
            "[2001:db8::1]",
            "anything",
            "other_box:80",
            "box.example.net:8529",
            "BOX.example.NET.",
            "box.local",
            "Box.LAN:80",
            "box.home.arpa",
            "box.internal.",
            "NAS.example.org:80",
        ] {
            assert_eq!(check(&names, host.as_bytes(), &from(STRANGER)), Ok(()), "{host}");
        }
        assert_eq!(names.check(FieldLines::default(), &from(STRANGER)), Ok(()));
        let host = HeaderValue::from_static("localhost");
        let twice = FieldLines { first: Some(&host), more: true };
        assert!(names.check(twice, &from(STRANGER)).is_err());
    }

    #[test]
    fn foreign_hosts_are_refused() {
        let mut names = hosts(&["nas.example.org"]);
        for host in [
            &b"evil.example"[..],
            b"localhost.evil.example",
            b"127.0.0.1.evil.example",
            b"box.example.net.evil.example",
            b"evil.box.example.net",
            b"evil.nas.example.org",
            b"box.evil.local",
            b"evil.local",
            b"box.example.local",
            b"other.lan",
            b".local",
            b"boxlocal.",
            b"xlocalhost.",
            b"localhost:1@evil.example",
            b"localhost:x",
            b"box:99999",
            b"[::1].evil.example",
            b"[evil.example]",
            b"[::1",
            b"evil%2eexample",
            b"evil\xe3\x80\x82example",
            b":80",
            b".",
            b"",
        ] {
            let shown = String::from_utf8_lossy(host);
            assert!(check(&names, host, &from(STRANGER)).is_err(), "{shown}");
            assert!(check(&names, host, &from(PROXY)).is_err(), "{shown}");
            assert!(check(&names, host, &Connection::Unix).is_ok(), "{shown}");
            names.check = HostCheck::Any;
            assert!(check(&names, host, &from(STRANGER)).is_ok(), "{shown}");
            names.check = HostCheck::Known;
        }
        names.own_name = String::new();
        assert!(check(&names, b".local", &from(STRANGER)).is_err());
    }

    #[test]
    fn a_refusal_shows_the_printable_beginning_of_the_host() {
        let host = [&b"evil\xff\""[..], &[b'x'; 200]].concat();
        let refused = check(&hosts(&[]), &host, &from(STRANGER));
        let shown = format!("\"evil?\"{}\"", "x".repeat(94));
        let Err(Error::Forbidden(message)) = refused else { panic!("{refused:?}") };
        assert!(message.contains(&shown) && message.contains("--allow-host"), "{message}");
    }
}
