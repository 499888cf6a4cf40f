//! `--store`: the address of an engine through which several deferd share one queue.
//!
//! Owns the form of that address. Connects to nothing. Invariant: a password is never shown, and never taken from the
//! command line, which every user of the host can read.

use std::fmt;
use std::path::PathBuf;

use crate::allowed_hosts::name_and_port;
use crate::dots;

/// The port of Redis and Valkey.
const PORT: u16 = 6379;

/// A shared engine, and the name of a queue in it.
#[derive(Clone, PartialEq, Eq)]
pub struct StoreAddress {
    /// Its possible hosts: deferd uses the one that is the primary.
    pub hosts: Vec<StoreHost>,
    /// The user; `None`: the engine's default.
    pub user: Option<String>,
    /// The password of that user.
    pub password: Option<String>,
    /// The number of the database.
    pub database: i64,
    /// The name of the queue.
    pub queue: String,
    /// How many replicas must have a change before it is acknowledged.
    pub replicas: u32,
    /// The address as it was given, without the password.
    text: String,
}

/// Where one engine listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreHost {
    /// A name or an address, and a port.
    Tcp(String, u16),
    /// A Unix socket.
    Unix(PathBuf),
}

impl StoreAddress {
    /// Reads `redis://[USER[:PASS]@]HOST[:PORT][,HOST[:PORT]…][/DB][?queue=NAME][&replicas=R]`, or `unix:PATH`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if cfg!(not(feature = "redis")) {
            return Err("this deferd was built without it: build it with the feature redis".into());
        }
        let (place, query) = text.split_once('?').unwrap_or((text, ""));
        let mut address = Self {
            hosts: Vec::new(),
            user: None,
            password: None,
            database: 0,
            queue: "default".into(),
            replicas: 0,
            text: hide(text),
        };
        if let Some(path) = place.strip_prefix("unix:") {
            let path = super::value::path(path)?;
            address.hosts.push(StoreHost::Unix(path));
        } else if let Some(rest) = place.strip_prefix("redis://") {
            address.read_authority(rest)?;
        } else if place.starts_with("rediss://") {
            return Err("TLS to the engine is not supported: put a tunnel before it".into());
        } else {
            return Err("neither redis://HOST nor unix:PATH".into());
        }
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("queue", name)) => address.queue = queue(name)?,
                Some(("replicas", count)) => {
                    let count = count.parse().ok().filter(|count| *count <= 16);
                    address.replicas = count.ok_or("replicas= must be from 0 to 16")?;
                }
                _ => return Err(format!("{pair:?} is neither queue=NAME nor replicas=N")),
            }
        }
        Ok(address)
    }

    fn read_authority(&mut self, rest: &str) -> Result<(), String> {
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        if !database.is_empty() {
            let what = "the database must be a number from 0 to 65535";
            self.database = database.parse::<u16>().map_err(|_| what)?.into();
        }
        let (user, hosts) = match authority.rsplit_once('@') {
            Some((user, hosts)) => (user, hosts),
            None => ("", authority),
        };
        let (user, password) = user.split_once(':').unwrap_or((user, ""));
        self.user = (!user.is_empty()).then(|| decoded(user)).transpose()?;
        self.password = (!password.is_empty()).then(|| decoded(password)).transpose()?;
        self.hosts = hosts.split(',').map(host).collect::<Result<_, _>>()?;
        Ok(())
    }
}

/// The address, without its password.
impl fmt::Display for StoreAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for StoreAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Returns an address with its password hidden.
pub fn hide(text: &str) -> String {
    if text.starts_with("unix:") {
        return text.into();
    }
    let begin = text.find("://").map_or(0, |at| at + 3);
    let rest = &text[begin..];
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let Some(at) = rest[..end].rfind('@').or_else(|| rest.rfind('@')) else { return text.into() };
    match rest[..at].split_once(':') {
        Some((user, _)) => format!("{}{user}:***{}", &text[..begin], &rest[at..]),
        None => text.into(),
    }
}

/// Returns whether an address contains a password.
pub fn has_password(text: &str) -> bool {
    hide(text) != text
}

fn queue(name: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 64 || !name.chars().all(is_plain) {
        return Err("queue= must be 1 to 64 letters, digits, -, _ or .".into());
    }
    Ok(name.into())
}

fn host(text: &str) -> Result<StoreHost, String> {
    if text.is_empty() {
        return Err("a host is missing".into());
    }
    let (name, port) = name_and_port(text)
        .map(|(name, port)| (name, port.unwrap_or(PORT)))
        .filter(|(_, port)| *port != 0)
        .ok_or("a host is HOST or HOST:PORT, and a port is a number from 1 to 65535")?;
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    Ok(StoreHost::Tcp(address.unwrap_or(name).into(), port))
}

/// Decodes a user or a password (RFC 3986 section 2.1).
fn decoded(text: &str) -> Result<String, String> {
    let bytes = dots::decode(text)
        .ok_or("a % in user or password must begin an escape such as %40, but not %00")?;
    String::from_utf8(bytes).map_err(|_| "user or password is not UTF-8".into())
}

#[cfg(all(test, feature = "redis"))]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_and_its_password_is_hidden() {
        let address =
            StoreAddress::parse("redis://ann:a%40b@h1,h2:7000,[::1]:7001/3?queue=a-1&replicas=2")
                .unwrap();
        let tcp = |host: &str, port| StoreHost::Tcp(host.into(), port);
        assert_eq!(address.hosts, [tcp("h1", 6379), tcp("h2", 7000), tcp("::1", 7001)]);
        assert_eq!(
            (address.user.as_deref(), address.password.as_deref()),
            (Some("ann"), Some("a@b"))
        );
        assert_eq!((address.database, &*address.queue, address.replicas), (3, "a-1", 2));
        assert_eq!(
            address.to_string(),
            "redis://ann:***@h1,h2:7000,[::1]:7001/3?queue=a-1&replicas=2"
        );
        let plain = StoreAddress::parse("redis://:p/w@x").map(|address| address.to_string());
        assert!(plain.is_err_and(|error| !error.contains("p/w")), "a slash must be escaped");
        let local = StoreAddress::parse("unix:/run/redis.sock?queue=q").unwrap();
        assert_eq!(local.hosts, [StoreHost::Unix("/run/redis.sock".into())]);
        assert_eq!((&*local.queue, local.replicas), ("q", 0));
        for text in ["redis://:p@x", "redis://u:p@x?queue=1", "redis://u:p/w@x", "redis://:p?q@x"] {
            assert!(has_password(text) && !hide(text).contains(":p"), "{text}: {}", hide(text));
        }
        for text in ["redis://u@h:1/2?queue=x", "unix:/run/a:b@c/redis.sock?queue=x"] {
            assert!(!has_password(text), "{text}");
        }
    }

    #[test]
    fn an_invalid_address_is_explained() {
        for (text, part) in [
            ("h:1", "neither redis:// nor"),
            ("rediss://h", "TLS"),
            ("redis://", "host is missing"),
            ("redis://h,", "host is missing"),
            ("redis://h:0", "a port is"),
            ("redis://h:x", "a port is"),
            ("redis://h x", "a host is"),
            ("redis://:7000", "a host is"),
            ("redis://[::1", "a host is"),
            ("redis://[::1]7000", "a host is"),
            ("redis://::1:7000", "a host is"),
            ("redis://u:%00@h", "%00"),
            ("redis://h/x", "the database"),
            ("redis://h?queue=", "queue="),
            ("redis://h?queue=a:b", "queue="),
            ("redis://h?replicas=99", "replicas="),
            ("redis://h?other=1", "neither queue="),
            ("redis://u%4@h", "escape"),
            ("unix:", "not a path"),
        ] {
            let part = part.replace("redis:// nor", "redis://HOST nor");
            let error = StoreAddress::parse(text).unwrap_err();
            assert!(error.contains(&part), "{text}: {error}");
        }
    }
}
