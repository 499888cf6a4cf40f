//! What is kept of a job besides its messages: a few lines of text that a person can read.
//!
//! Owns the form of those lines, `name: value` each, and of the lines of an idempotency key. Does no I/O. Invariant:
//! reading returns what was written; a record that lacks a line, or has an invalid one, is `None`.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;

use http::StatusCode;

use crate::content::{Content, ContentFile};
use crate::exchange::{Connection, Owner};
use crate::files::{FileName, Files};
use crate::hex;
use crate::job::execution::Attempts;
use crate::job::outcome::Outcome;
use crate::job::request_line::RequestLine;
use crate::job::stored::{Ending, Exit};
use crate::job::{JobId, Keep, Stamp};
use crate::store::IdempotencyKey;

/// A job in the table of jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The user to whom it belongs.
    pub owner: Owner,
    /// When it was accepted.
    pub created: Stamp,
    /// The accounted size of its request or its result, in bytes.
    pub footprint: usize,
    /// What its record keeps of its request; an older deferd did not keep it.
    pub line: RequestLine,
    /// Its state.
    pub state: Stage,
}

/// The state of a job, as far as it must be known after a crash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Its request waits, or was running when the process ended.
    Pending {
        /// Whether it runs.
        begun: Begun,
        /// How many processes have begun it.
        starts: u32,
        /// What happens to its result.
        keep: Keep,
        /// The connection over which the request came.
        connection: Connection,
        /// The scheme of its sender's credentials.
        auth_type: Option<&'static str>,
        /// The path of its target, which determines its route; for a notice, the name of its lane.
        path: String,
        /// The URL to notify when it is done.
        callback: Option<Box<str>>,
    },
    /// Its result is stored.
    Done {
        /// When the result was produced.
        finished: Stamp,
        /// The same by the clock that decides when it expires, in the form of [`Scale`](crate::clock::Scale); an older
        /// deferd did not store it.
        aged: Option<i64>,
        /// The attempts that were made.
        attempts: Attempts,
        /// How many bytes of its log are kept.
        log: usize,
        /// How much it wrote to stderr in all, in bytes.
        logged: u64,
        /// How it ended; `None` if an older deferd wrote this: then its message tells.
        ending: Option<Ending>,
    },
    /// Its result was collected, and its log is kept.
    Collected {
        /// When it was collected, in the form of [`Scale`](crate::clock::Scale).
        aged: i64,
        /// How many bytes of its log are kept.
        log: usize,
        /// How much it wrote to stderr in all, in bytes.
        logged: u64,
    },
}

/// Whether a job has begun, as far as that is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begun {
    /// Yes.
    Yes,
    /// It waits, or is delayed.
    No,
}

impl Record {
    /// Returns what happens to its result.
    pub const fn keep(&self) -> Keep {
        match self.state {
            Stage::Pending { keep, .. } => keep,
            Stage::Done { .. } | Stage::Collected { .. } => Keep::Result,
        }
    }

    /// Returns the lines.
    pub fn to_text(&self) -> String {
        let mut text = String::with_capacity(192);
        let state = match &self.state {
            Stage::Pending { begun: Begun::No, .. } => "queued",
            Stage::Pending { begun: Begun::Yes, .. } => "running",
            Stage::Done { .. } => "done",
            Stage::Collected { .. } => "collected",
        };
        let mut line = |name: &str, value: &dyn std::fmt::Display| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name}: {value}");
        };
        line("state", &state);
        line("owner", &self.owner.name().unwrap_or(""));
        line("created", &self.created.micros());
        line("bytes", &self.footprint);
        if let Some((method, target, route)) = self.line.parts() {
            line("method", &method);
            line("target", &target);
            line("route", &route);
            if self.line.is_repeatable() {
                line("repeatable", &"yes");
            }
        }
        match &self.state {
            Stage::Collected { aged, log, logged } => {
                line("aged", aged);
                line("log", log);
                if *logged != *log as u64 {
                    line("logged", logged);
                }
            }
            Stage::Done { finished, aged, log, logged, attempts, ending } => {
                if *log > 0 {
                    line("log", log);
                }
                if *logged != *log as u64 {
                    line("logged", logged);
                }
                if let Some(first) = attempts.first {
                    line("started", &first.micros());
                }
                line("attempts", &attempts.count);
                line("finished", &finished.micros());
                if let Some(aged) = aged {
                    line("aged", aged);
                }
                if let Some(Ending { status, exit, outcome, bytes }) = ending {
                    line("status", &status.as_u16());
                    line("outcome", &outcome.name());
                    line("content", bytes);
                    match exit {
                        Some(Exit::Code(code)) => line("exit", code),
                        Some(Exit::Signal(signal)) => line("signal", signal),
                        None => {}
                    }
                }
            }
            Stage::Pending { starts, keep, connection, auth_type, path, callback, .. } => {
                if *starts > 0 {
                    line("starts", starts);
                }
                line("result", &if *keep == Keep::Result { "kept" } else { "dropped" });
                match connection {
                    Connection::Tcp { peer, local } => {
                        line("peer", peer);
                        line("local", local);
                    }
                    Connection::Unix => line("peer", &"unix"),
                }
                if let Some(auth_type) = auth_type {
                    line("auth-type", auth_type);
                }
                line("path", path);
                if let Some(callback) = callback {
                    line("callback", callback);
                }
            }
        }
        text
    }

    /// Reads the lines.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let lines = Lines::read(bytes)?;
        let begun = match lines.get("state")? {
            "queued" => Some(Begun::No),
            "running" => Some(Begun::Yes),
            "done" | "collected" => None,
            _ => return None,
        };
        let owner = lines.get("owner")?;
        let owner = Owner::named(owner);
        let (created, footprint) = (lines.stamp("created")?, lines.get("bytes")?.parse().ok()?);
        let state = match begun {
            None if lines.get("state") == Some("collected") => Stage::Collected {
                aged: lines.aged()??,
                log: lines.log()?,
                logged: lines.logged()?,
            },
            None => Stage::Done {
                finished: lines.stamp("finished")?,
                aged: lines.aged()?,
                log: lines.log()?,
                logged: lines.logged()?,
                attempts: lines.attempts()?,
                ending: lines.ending()?,
            },
            Some(begun) => Stage::Pending {
                begun,
                starts: lines.starts(begun)?,
                keep: lines.keep()?,
                connection: lines.connection()?,
                auth_type: lines.auth_type()?,
                path: lines.get("path")?.to_owned(),
                callback: lines.get("callback").map(Into::into),
            },
        };
        Some(Self { owner, created, footprint, line: lines.request_line()?, state })
    }
}

/// A key in the table of keys, under its [`key_name`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRecord {
    /// The job that was accepted under it.
    pub id: JobId,
    /// When it was accepted.
    pub accepted: Stamp,
    /// The same by the clock that decides when it expires; an older deferd did not store it.
    pub aged: Option<i64>,
    /// The digest of what was submitted.
    pub fingerprint: [u8; 32],
}

/// A row of the table of files: where the content of a message is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileRecord {
    /// The name of the file.
    pub name: FileName,
    /// The range of its bytes.
    pub range: Range<usize>,
}

impl FileRecord {
    /// Returns where content is if it is in a file; otherwise `None`.
    pub fn of(content: &Content) -> Option<Self> {
        content.in_file().map(|(file, range)| Self { name: file.name(), range: range.clone() })
    }

    /// Returns the content.
    pub fn content(&self, folder: &Arc<dyn Files>) -> Content {
        Content::of_file(Arc::new(ContentFile::kept(folder, self.name)), self.range.clone())
    }

    /// Returns the lines.
    pub fn to_text(&self) -> String {
        let Self { name, range } = self;
        format!("file: {name}\nfrom: {}\nbytes: {}\n", range.start, range.len())
    }

    /// Reads the lines.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let lines = Lines::read(bytes)?;
        let name = FileName::parse(lines.get("file")?)?;
        let (from, bytes): (usize, usize) =
            (lines.get("from")?.parse().ok()?, lines.get("bytes")?.parse().ok()?);
        Some(Self { name, range: from..from.checked_add(bytes)? })
    }
}

/// Returns the name under which a key is stored: a user's name contains no line feed.
pub fn key_name(owner: &Owner, key: &str) -> String {
    format!("{}\n{key}", owner.name().unwrap_or(""))
}

impl KeyRecord {
    /// Returns the lines.
    pub fn to_text(&self) -> String {
        let mut text = format!("job: {}\naccepted: {}\n", self.id, self.accepted.micros());
        if let Some(aged) = self.aged {
            let _ = writeln!(text, "aged: {aged}");
        }
        let _ = writeln!(text, "fingerprint: {}", hex::encode(&self.fingerprint));
        text
    }

    /// Reads the lines, and the name under which they are stored.
    pub fn read(name: &str, bytes: &[u8]) -> Option<(Owner, IdempotencyKey, Self)> {
        let lines = Lines::read(bytes)?;
        let (owner, key) = name.split_once('\n')?;
        let owner = Owner::named(owner);
        let fingerprint = hex::decode(lines.get("fingerprint")?)?;
        let (id, accepted) = (JobId::parse(lines.get("job")?)?, lines.stamp("accepted")?);
        Some((
            owner,
            IdempotencyKey { key: key.into(), fingerprint },
            Self { id, accepted, aged: lines.aged()?, fingerprint },
        ))
    }
}

/// The lines of a record.
struct Lines<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Lines<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        text.lines().map(|line| line.split_once(": ")).collect::<Option<_>>().map(Self)
    }

    fn get(&self, name: &str) -> Option<&'a str> {
        self.0.iter().find(|(n, _)| *n == name).map(|(_, value)| *value)
    }

    fn stamp(&self, name: &str) -> Option<Stamp> {
        self.get(name)?.parse().ok().map(Stamp::from_micros)
    }

    fn aged(&self) -> Option<Option<i64>> {
        self.get("aged").map_or(Some(None), |aged| aged.parse().ok().map(Some))
    }

    /// Returns how many bytes of the log are kept; an older deferd did not record it.
    fn log(&self) -> Option<usize> {
        self.get("log").map_or(Some(0), |log| log.parse().ok())
    }

    /// Returns how much was logged: the line exists only if not all of the log is kept; an older deferd never wrote
    /// it.
    fn logged(&self) -> Option<u64> {
        self.get("logged").map_or_else(|| Some(self.log()? as u64), |logged| logged.parse().ok())
    }

    /// Returns the number of starts; an older deferd did not count them.
    fn starts(&self, begun: Begun) -> Option<u32> {
        match self.get("starts") {
            None => Some(u32::from(begun == Begun::Yes)),
            Some(starts) => starts.parse().ok(),
        }
    }

    /// Returns what is kept of the request; an older deferd did not record it.
    fn request_line(&self) -> Option<RequestLine> {
        match (self.get("method"), self.get("target"), self.get("route")) {
            (None, None, None) => Some(RequestLine::default()),
            (method, target, route) => {
                let line = RequestLine::from_parts(method?, target?, route?)?;
                Some(match self.get("repeatable") {
                    Some("yes") => line.repeatable(target?),
                    _ => line,
                })
            }
        }
    }

    /// Returns the attempts; an older deferd did not record them.
    fn attempts(&self) -> Option<Attempts> {
        let first = match self.get("started") {
            None => None,
            Some(_) => Some(self.stamp("started")?),
        };
        let count = self.get("attempts").map_or(Some(0), |count| count.parse().ok())?;
        Some(Attempts { first, count })
    }

    /// Returns the ending; an older deferd did not record it.
    fn ending(&self) -> Option<Option<Ending>> {
        let number = |name: &str| match self.get(name) {
            None => Some(None),
            Some(text) => text.parse().ok().map(Some),
        };
        let exit = number("exit")?.map(Exit::Code).or(number("signal")?.map(Exit::Signal));
        let lines = (self.get("status"), self.get("outcome"), self.get("content"));
        let (Some(status), Some(outcome), Some(content)) = lines else { return Some(None) };
        let status = StatusCode::from_bytes(status.as_bytes()).ok()?;
        let outcome = Outcome::named(outcome)?;
        let bytes = content.parse().ok()?;
        Some(Some(Ending { status, exit, outcome, bytes }))
    }

    fn keep(&self) -> Option<Keep> {
        match self.get("result")? {
            "kept" => Some(Keep::Result),
            "dropped" => Some(Keep::Nothing),
            _ => None,
        }
    }

    fn connection(&self) -> Option<Connection> {
        let peer = self.get("peer")?;
        if peer == "unix" {
            return Some(Connection::Unix);
        }
        let address = |text: &str| text.parse::<SocketAddr>().ok();
        Some(Connection::Tcp { peer: address(peer)?, local: address(self.get("local")?)? })
    }

    fn auth_type(&self) -> Option<Option<&'static str>> {
        match self.get("auth-type") {
            None => Some(None),
            Some("Basic") => Some(Some("Basic")),
            Some("Bearer") => Some(Some("Bearer")),
            Some(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> Vec<Record> {
        let at = Stamp::from_micros;
        let tcp = Connection::Tcp {
            peer: "[::1]:5".parse().unwrap(),
            local: "127.0.0.1:1".parse().unwrap(),
        };
        let attempts = Attempts { first: Some(at(5)), count: 2 };
        let done = |status, exit| {
            let status = StatusCode::from_u16(status).unwrap();
            let (outcome, bytes) = (Outcome::Timeout, 7);
            let ending = Some(Ending { status, exit, outcome, bytes });
            let finished = at(u64::MAX);
            Stage::Done { finished, aged: Some(-5), log: 9, logged: 10, attempts, ending }
        };
        let pending = |begun, starts, keep, connection, auth_type| Stage::Pending {
            begun,
            starts,
            keep,
            connection,
            auth_type,
            path: "/a: b".into(),
            callback: (starts > 1).then(|| "https://a/b?c".into()),
        };
        [
            ("ann", pending(Begun::No, 2, Keep::Result, tcp, Some("Basic"))),
            ("", pending(Begun::Yes, 1, Keep::Nothing, Connection::Unix, None)),
            ("ann", Stage::Collected { aged: 5, log: 1, logged: 1 }),
            ("ann", Stage::Collected { aged: 5, log: 1, logged: 2 }),
            ("b: c", done(200, None)),
            ("", done(500, Some(Exit::Code(3)))),
            ("", done(500, Some(Exit::Signal(9)))),
            (
                "",
                Stage::Done {
                    finished: at(1),
                    aged: Some(-5),
                    log: 9,
                    logged: 9,
                    attempts: Attempts::default(),
                    ending: None,
                },
            ),
        ]
        .map(|(name, state)| {
            let owner = Owner::named(name);
            let line = RequestLine::new(&http::Method::PUT, "/a: b?c", "/a: b");
            let line = if name.is_empty() { line.repeatable("/a: b?c") } else { line };
            Record { owner, created: at(7), footprint: 99, line, state }
        })
        .to_vec()
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        for record in records() {
            assert_eq!(Record::read(record.to_text().as_bytes()), Some(record));
        }
    }

    #[test]
    fn a_record_that_lacks_a_line_is_none() {
        for record in records() {
            let text = record.to_text();
            let optional = [
                "auth-type",
                "callback",
                "starts",
                "status",
                "exit",
                "signal",
                "outcome",
                "content",
                "aged: -5",
                "log: ",
                "logged",
                "started",
                "attempts",
                "repeatable",
            ];
            let is_needed = |line: &&str| !optional.iter().any(|name| line.starts_with(name));
            for line in text.lines().filter(is_needed) {
                let rest = text.replace(&format!("{line}\n"), "");
                assert_eq!(Record::read(rest.as_bytes()), None, "{line}");
            }
        }
        assert_eq!(Record::read(b"\xff"), None);
        assert_eq!(Record::read(b"no colon"), None);
    }

    #[test]
    fn a_record_without_starts_has_begun_once_if_it_runs() {
        for record in records() {
            let text = record.to_text();
            let older: String = text
                .lines()
                .filter(|line| !line.starts_with("starts"))
                .map(|line| format!("{line}\n"))
                .collect();
            let read = Record::read(older.as_bytes()).expect("an older deferd wrote it");
            if let Stage::Pending { begun, starts, .. } = read.state {
                assert_eq!(starts, u32::from(begun == Begun::Yes));
            }
        }
    }

    #[test]
    fn a_file_is_read_as_it_was_written() {
        let name = FileName::parse(&"0123456789abcdef".repeat(2)).unwrap();
        let record = FileRecord { name, range: 7..usize::MAX };
        assert_eq!(FileRecord::read(record.to_text().as_bytes()), Some(record));
        assert_eq!(FileRecord::read(b"file: ../jobs.redb\nfrom: 0\nbytes: 1\n"), None);
    }

    #[test]
    fn a_key_is_read_as_it_was_written() {
        let owner = Owner::named("ann");
        let record = KeyRecord {
            id: JobId::parse("12").unwrap(),
            accepted: Stamp::from_micros(3),
            aged: Some(4),
            fingerprint: std::array::from_fn(|n| n as u8 * 8),
        };
        let name = key_name(&owner, "a\"b");
        let read = KeyRecord::read(&name, record.to_text().as_bytes()).unwrap();
        let key = IdempotencyKey { key: "a\"b".into(), fingerprint: record.fingerprint };
        assert_eq!(read, (owner, key, record));
        assert_eq!(KeyRecord::read(&name, b"job: 1\naccepted: 1\nfingerprint: 00\n"), None);
    }
}
