//! The primary: which of the hosts of `--store` is used, and what it must promise before jobs are entrusted to it.
//!
//! Owns how a connection is opened, and which engine was found last. Sends no operation but `epoch`. Invariants: an
//! engine that could lose what it acknowledges, or evict a key, is refused, and the message names the setting; this
//! holds for the first engine as for its replacements; a replacement never assigns an id again.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use redis::{Client, ConnectionAddr, IntoConnectionInfo, RedisConnectionInfo, Value};

use super::engine::REPLY_TIME;
use super::operation::Trouble;
use super::wire::{Wire, call, field, info, named, unreachable};
use super::{lock, script};
use crate::config::{Durability, StoreAddress, StoreHost};

/// How long connecting may take.
const CONNECT_TIME: Duration = Duration::from_secs(1);

/// The oldest engine that runs the scripts.
const OLDEST: (u64, u64) = (7, 0);

/// The identity of an engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Identity {
    replication: String,
    run: String,
}

/// The hosts, and the engine that was found among them.
pub struct Primary {
    /// Its possible addresses.
    pub address: StoreAddress,
    /// What it must promise.
    durability: Durability,
    /// The prefix of all keys.
    pub prefix: String,
    /// The name of this process in the engine.
    pub process: String,
    identity: Mutex<Option<Identity>>,
    /// Set when another engine, or another run of the same one, was found.
    changed: AtomicBool,
    /// How many engines, or runs of one, were found after the first: connections to earlier ones are dropped.
    generation: AtomicU64,
}

impl Primary {
    /// Returns a primary that was not looked for yet.
    pub fn new(address: StoreAddress, durability: Durability, process: String) -> Self {
        Self {
            prefix: format!("deferd:{{{}}}:", address.queue),
            address,
            durability,
            process,
            identity: Mutex::default(),
            changed: AtomicBool::new(false),
            generation: AtomicU64::new(0),
        }
    }

    /// Returns the number of the engine that was found last.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Returns whether another engine was found since the last call.
    pub fn take_changed(&self) -> bool {
        self.changed.swap(false, Ordering::AcqRel)
    }

    /// Requests another comparison of the running jobs with the engine.
    pub fn note_changed(&self) {
        self.changed.store(true, Ordering::Release);
    }

    /// Opens a connection to whichever host is the primary.
    ///
    /// # Errors
    /// What is wrong with the last of the hosts.
    pub fn connect(&self) -> Result<Wire, Trouble> {
        let mut last = Trouble::Unreachable("no host".into());
        for host in &self.address.hosts {
            match self.connect_to(host) {
                Ok(wire) => return Ok(wire),
                Err(trouble) => last = named(host, trouble),
            }
        }
        Err(last)
    }

    fn connect_to(&self, host: &StoreHost) -> Result<Wire, Trouble> {
        let address = match host {
            StoreHost::Tcp(host, port) => ConnectionAddr::Tcp(host.clone(), *port),
            StoreHost::Unix(path) => ConnectionAddr::Unix(path.clone()),
        };
        let mut settings =
            RedisConnectionInfo::default().set_db(self.address.database).set_skip_set_lib_name();
        if let Some(user) = &self.address.user {
            settings = settings.set_username(user);
        }
        if let Some(password) = &self.address.password {
            settings = settings.set_password(password);
        }
        let nodelay = redis::io::tcp::TcpSettings::default().set_nodelay(true);
        let info = address.into_connection_info().map_err(unreachable)?;
        let info = info.set_redis_settings(settings).set_tcp_settings(nodelay);
        let client = Client::open(info).map_err(unreachable)?;
        let connection = client.get_connection_with_timeout(CONNECT_TIME).map_err(|error| {
            match error.code() {
                Some(code) => Trouble::Refused(format!("{code} {}", error.detail().unwrap_or(""))),
                None if error.kind() == redis::ErrorKind::AuthenticationFailed => {
                    Trouble::Refused(error.to_string())
                }
                None => unreachable(error),
            }
        })?;
        let mut wire = Wire(connection);
        // The crate sets a time of its own for the handshake, and none after it.
        wire.set_time(REPLY_TIME)?;
        self.identify(&mut wire)?;
        Ok(wire)
    }

    /// Checks which engine it is and that it is the primary. If it is not the one found before, also checks that it
    /// keeps changes, and makes it skip ids.
    fn identify(&self, wire: &mut Wire) -> Result<(), Trouble> {
        let info = info(wire, &[b"server", b"replication"])?;
        if field(&info, "role") != "master" {
            return Err(Trouble::Refused(format!(
                "it is a {}, not the primary",
                field(&info, "role")
            )));
        }
        let found = Identity {
            replication: field(&info, "master_replid").into(),
            run: field(&info, "run_id").into(),
        };
        if lock(&self.identity).as_ref() == Some(&found) {
            return Ok(());
        }
        check(wire, &info, self.durability)?;
        let parts = [
            self.prefix.as_bytes(),
            self.process.as_bytes(),
            b"",
            b"",
            b"",
            found.replication.as_bytes(),
        ];
        call(wire, &script::EPOCH, &parts)?;
        // Threads that find out at the same time do the same.
        if lock(&self.identity).replace(found).is_some() {
            self.generation.fetch_add(1, Ordering::AcqRel);
            self.changed.store(true, Ordering::Release);
        }
        Ok(())
    }
}

/// Checks that an engine with this INFO keeps what it acknowledges.
///
/// # Errors
/// What is missing, and what to do.
fn check(wire: &mut Wire, info: &str, durability: Durability) -> Result<(), Trouble> {
    let redis = field(info, "redis_version");
    let mut numbers = redis.split('.').map(|part| part.parse::<u64>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < OLDEST {
        let what = format!("the engine is version {redis}; use Redis or Valkey 7.0 or newer");
        return Err(Trouble::Refused(what));
    }
    let (policy, appends) = (setting(wire, "maxmemory-policy")?, setting(wire, "appendonly")?);
    let syncs = setting(wire, "appendfsync")?;
    let (Some(policy), Some(appends), Some(syncs)) = (policy, appends, syncs) else {
        log::warn!(
            "store: the engine does not show its settings (CONFIG GET); it must have maxmemory-policy noeviction, \
             appendonly yes and appendfsync always"
        );
        return Ok(());
    };
    if policy != "noeviction" {
        return Err(Trouble::Refused(format!(
            "the engine evicts keys (maxmemory-policy {policy}), and jobs with them: set maxmemory-policy noeviction"
        )));
    }
    let is_durable = appends == "yes" && syncs == "always";
    match durability {
        Durability::Commit if !is_durable => Err(Trouble::Refused(format!(
            "the engine has appendonly {appends} and appendfsync {syncs}, and may lose what it acknowledged: set \
             appendonly yes and appendfsync always, or say --durability relaxed"
        ))),
        Durability::Relaxed if !is_durable => {
            let lost = if appends == "yes" { "the last two seconds" } else { "all jobs" };
            log::info!("store: if the engine ends without warning, {lost} may be lost");
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Reads a setting of the engine; `None` if this user may not read it.
fn setting(wire: &mut Wire, name: &str) -> Result<Option<String>, Trouble> {
    match wire.ask(&[b"CONFIG", b"GET", name.as_bytes()]) {
        Ok(Value::Array(pair)) => Ok(match pair.get(1) {
            Some(Value::BulkString(value)) => Some(String::from_utf8_lossy(value).into_owned()),
            _ => None,
        }),
        Ok(_) => Ok(None),
        Err(Trouble::Refused(why))
            if why.starts_with("NOPERM") || why.starts_with("ERR unknown command") =>
        {
            Ok(None)
        }
        Err(trouble) => Err(trouble),
    }
}
