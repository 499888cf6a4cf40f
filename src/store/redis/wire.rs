//! A connection to the engine: commands as bytes, and their answers.
//!
//! Owns the form of a command, and how long an answer may take. Invariants: large parts are not copied; the engine's
//! words are returned as they are.

use std::time::Duration;

use redis::{Connection, Value};

use super::operation::Trouble;
use super::script::Script;
use crate::config::StoreHost;

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Wire")
    }
}

/// A connection.
pub struct Wire(pub Connection);

impl Wire {
    /// Sets how long an answer may take.
    pub fn set_time(&self, time: Duration) -> Result<(), Trouble> {
        self.0.set_read_timeout(Some(time)).map_err(unreachable)?;
        self.0.set_write_timeout(Some(time)).map_err(unreachable)
    }

    /// Sends a command, each part of which may consist of pieces.
    pub fn send(&mut self, parts: &[&[&[u8]]]) -> Result<(), Trouble> {
        let mut text = Vec::with_capacity(256);
        text.extend_from_slice(format!("*{}\r\n", parts.len()).as_bytes());
        for part in parts {
            let length: usize = part.iter().map(|piece| piece.len()).sum();
            text.extend_from_slice(format!("${length}\r\n").as_bytes());
            for piece in *part {
                if piece.len() > super::SPOOLED {
                    // Large pieces are not copied.
                    self.0.send_packed_command(&text).map_err(unreachable)?;
                    self.0.send_packed_command(piece).map_err(unreachable)?;
                    text.clear();
                } else {
                    text.extend_from_slice(piece);
                }
            }
            text.extend_from_slice(b"\r\n");
        }
        self.0.send_packed_command(&text).map_err(unreachable)
    }

    /// Waits for an answer.
    pub fn receive(&mut self) -> Result<Value, Trouble> {
        match self.0.recv_response() {
            Ok(Value::ServerError(error)) => {
                Err(Trouble::Refused(format!("{} {}", error.code(), error.details().unwrap_or(""))))
            }
            Ok(value) => Ok(value),
            Err(error) if error.kind() == redis::ErrorKind::Io => Err(unreachable(error)),
            Err(error) => match error.code() {
                Some(code) => {
                    Err(Trouble::Refused(format!("{code} {}", error.detail().unwrap_or(""))))
                }
                None => Err(unreachable(error)),
            },
        }
    }

    /// Sends a command and waits for its answer.
    pub fn ask(&mut self, parts: &[&[u8]]) -> Result<Value, Trouble> {
        let parts: Vec<[&[u8]; 1]> = parts.iter().map(|part| [*part]).collect();
        let parts: Vec<&[&[u8]]> = parts.iter().map(|part| &part[..]).collect();
        self.send(&parts)?;
        self.receive()
    }
}

/// Turns an error of the crate into an error of the store.
pub fn unreachable(error: redis::RedisError) -> Trouble {
    Trouble::Unreachable(error.to_string())
}

/// Runs a script; an engine that lacks the script is sent its text first.
pub fn call(wire: &mut Wire, script: &'static Script, parts: &[&[u8]]) -> Result<Value, Trouble> {
    let digest = match script.digest.get() {
        Some(digest) => digest.clone(),
        None => load(wire, script)?,
    };
    let send = |wire: &mut Wire, digest: &str| {
        let head: [&[u8]; 3] = [b"EVALSHA", digest.as_bytes(), b"1"];
        let all: Vec<&[u8]> = head.iter().chain(parts).copied().collect();
        wire.ask(&all)
    };
    match send(wire, &digest) {
        Err(Trouble::Refused(why)) if why.starts_with("NOSCRIPT") => {
            let digest = load(wire, script)?;
            send(wire, &digest)
        }
        answer => answer,
    }
}

fn load(wire: &mut Wire, script: &'static Script) -> Result<String, Trouble> {
    match wire.ask(&[b"SCRIPT", b"LOAD", script.text().as_bytes()])? {
        Value::BulkString(digest) => {
            let digest = String::from_utf8_lossy(&digest).into_owned();
            Ok(script.digest.get_or_init(|| digest).clone())
        }
        _ => Err(Trouble::Unreachable(format!("an answer of another type to {}", script.name))),
    }
}

/// Reads sections of INFO.
///
/// # Errors
/// [`Trouble`].
pub fn info(wire: &mut Wire, sections: &[&[u8]]) -> Result<String, Trouble> {
    let head: [&[u8]; 1] = [b"INFO"];
    let parts: Vec<&[u8]> = head.iter().chain(sections).copied().collect();
    match wire.ask(&parts)? {
        Value::BulkString(text) => Ok(String::from_utf8_lossy(&text).into_owned()),
        _ => Err(Trouble::Unreachable("an answer of another type to INFO".into())),
    }
}

/// Returns a field of INFO.
pub fn field<'a>(info: &'a str, name: &str) -> &'a str {
    let mut lines = info.lines();
    lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or("")
}

/// Distinguishes full memory from other refusals.
pub fn full(trouble: Trouble) -> Trouble {
    match trouble {
        Trouble::Refused(why) if why.starts_with("OOM") || why.contains("-OOM") => Trouble::Full,
        other => other,
    }
}

/// Adds the name of the host to an error.
pub fn named(host: &StoreHost, trouble: Trouble) -> Trouble {
    let name = match host {
        StoreHost::Tcp(host, port) => format!("{host}:{port}"),
        StoreHost::Unix(path) => path.display().to_string(),
    };
    match trouble {
        Trouble::Unreachable(why) => Trouble::Unreachable(format!("{name}: {why}")),
        Trouble::Refused(why) => Trouble::Refused(format!("{name}: {why}")),
        other => other,
    }
}
