//! The configuration: from arguments and a file to checked values.
//!
//! Owns every option: its name, its default, its form and its place in `--help`; and the plain types that say
//! what was chosen, which the parts of deferd import from here. Reads text only: arguments, the `--config`
//! file, and how much memory the host has. Invariant: an error names the option, the value and what is wrong with it.

mod address;
mod route;
mod sizes;
mod value;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use address::Address;
use lexopt::ValueExt;
pub use route::{CONNECT_TIMEOUT, Pages, RouteConfig, Target};
pub use sizes::{Sizes, shown};
pub use value::duration;

/// `--help`.
pub const HELP: &str = include_str!("help.txt");

/// Everything that can be configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The address to listen on.
    pub listen: Address,
    /// Which front serves it.
    pub front: FrontKind,
    /// The file of the users; `None`: clients need no credentials.
    pub auth: Option<PathBuf>,
    /// Origins whose pages may send requests.
    pub allow_origin: Vec<String>,
    /// Names in `host` beside those of this host; `*` stands for all.
    pub allow_host: Vec<String>,
    /// Whether strangers may be listened to without credentials.
    pub exposure: Exposure,
    /// Where jobs are kept; `None`: in memory.
    pub data: Option<PathBuf>,
    /// When what is kept there has to be on disk.
    pub durability: Durability,
    /// The routes beside the built-in ones.
    pub routes: Vec<RouteConfig>,
    /// Worker threads.
    pub workers: usize,
    /// Jobs that wait, at the most.
    pub queue: usize,
    /// All content in memory, in bytes, at the most.
    pub max_memory: usize,
    /// Waiting requests and kept results, in bytes, at the most; see [`sizes`](Self::sizes).
    pub max_stored: Option<usize>,
    /// A request's content, in bytes, at the most; see [`sizes`](Self::sizes).
    pub max_body: Option<usize>,
    /// A request's head, in bytes, at the most.
    pub max_head: usize,
    /// What a script may write to stdout, in bytes, where its route says nothing else; see
    /// [`sizes`](Self::sizes).
    pub max_output: Option<usize>,
    /// Connections at once.
    pub max_connections: usize,
    /// How long a result is kept.
    pub ttl: Duration,
    /// How long a job may run where its route says nothing else.
    pub timeout: Duration,
    /// How long the content of a request may take, beside a second for each KiB.
    pub body_timeout: Duration,
    /// How long running jobs have at the end.
    pub grace: Duration,
    /// How long a client may wait for a job that it asks after.
    pub max_wait: Duration,
}

/// When a change has to be durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Before the answer that tells of it.
    Commit,
    /// At most 50 ms after it was made, whatever was answered.
    Relaxed,
}

/// A front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrontKind {
    /// For all clients.
    Strict,
    /// tiny_http's accept loop, for trusted callers only.
    #[cfg(feature = "tiny_http")]
    TinyHttp,
}

/// Who can reach deferd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposure {
    /// Only this host.
    Loopback,
    /// All hosts, and the operator said so: `--insecure`.
    Insecure,
}

impl Default for Config {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            listen: Address::Tcp(SocketAddr::from(([127, 0, 0, 1], 8529))),
            front: FrontKind::Strict,
            auth: None,
            allow_origin: Vec::new(),
            allow_host: Vec::new(),
            exposure: Exposure::Loopback,
            data: None,
            durability: Durability::Commit,
            routes: Vec::new(),
            workers: cores.max(2),
            queue: 4096,
            max_memory: sizes::default_memory(),
            max_stored: None,
            max_body: None,
            max_head: 16 << 10,
            max_output: None,
            max_connections: 512,
            ttl: Duration::from_secs(24 * 3600),
            timeout: Duration::from_secs(3600),
            body_timeout: Duration::from_secs(20),
            grace: Duration::from_secs(30),
            max_wait: Duration::from_secs(60),
        }
    }
}

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Serve.
    Serve(Box<Config>),
    /// Print the help.
    Help,
    /// Print the version.
    Version,
    /// Make a token for this user.
    Token(String),
    /// Carry out this command of the client, with its arguments.
    Client(&'static str, Vec<OsString>),
}

/// What is wrong with the configuration, in words for the operator.
#[derive(Debug, PartialEq, Eq)]
pub struct Invalid(String);

impl Invalid {
    /// An error that names the option, its value and what is wrong.
    pub fn new(option: &str, value: &str, what: impl fmt::Display) -> Self {
        Self(format!("{option} {value:?}: {what}"))
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Invalid {}

impl From<lexopt::Error> for Invalid {
    fn from(error: lexopt::Error) -> Self {
        Self(format!("{error}; see --help"))
    }
}

/// Reads the arguments, and the files that they name. A later option replaces an earlier one, the
/// command line replaces the file, and routes add up.
///
/// # Errors
/// [`Invalid`].
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, Invalid> {
    let mut config = Config::default();
    // Set after all files, wherever these are named.
    let mut from_line: Vec<(String, String)> = Vec::new();
    let mut parser = lexopt::Parser::from_iter(arguments);
    while let Some(argument) = parser.next()? {
        match argument {
            lexopt::Arg::Short('h') | lexopt::Arg::Long("help") => return Ok(Command::Help),
            lexopt::Arg::Short('V') | lexopt::Arg::Long("version") => return Ok(Command::Version),
            lexopt::Arg::Long("config") => config.read_file(Path::new(&parser.value()?))?,
            lexopt::Arg::Long("insecure") => from_line.push(("insecure".into(), String::new())),
            lexopt::Arg::Long(name) if setter(name).is_some() => {
                let name = name.to_owned();
                let text = parser.value()?.into_string().map_err(|text| {
                    Invalid::new(&format!("--{name}"), &text.to_string_lossy(), "not UTF-8")
                })?;
                from_line.push((name, text));
            }
            lexopt::Arg::Value(word) if word == "token" => {
                let user =
                    parser.value().map_err(|_| Invalid::new("token", "", "USER is missing"))?;
                return Ok(Command::Token(user.string()?));
            }
            lexopt::Arg::Value(word) if client_command(&word).is_some() => {
                let word = client_command(&word).unwrap_or_default();
                return Ok(Command::Client(word, parser.raw_args()?.collect()));
            }
            other => return Err(other.unexpected().into()),
        }
    }
    for (name, text) in from_line {
        config.set(&name, &text, &format!("--{name}"))?;
    }
    config.check()?;
    Ok(Command::Serve(Box::new(config)))
}

/// The words that name a command of the client.
const CLIENT: [&str; 9] =
    ["submit", "run", "status", "wait", "fetch", "log", "list", "cancel", "delete"];

fn client_command(word: &OsStr) -> Option<&'static str> {
    CLIENT.into_iter().find(|command| word == *command)
}

/// Sets one option of a configuration from its text.
type Setter = fn(&mut Config, &str) -> Result<(), String>;

/// Every option that takes a value, by name.
const OPTIONS: [(&str, Setter); 22] = [
    ("listen", |c, v| Address::parse(v).map(|v| c.listen = v)),
    ("front", |c, v| front(v).map(|v| c.front = v)),
    ("auth", |c, v| value::path(v).map(|v| c.auth = Some(v))),
    ("allow-origin", |c, v| value::origin(v).map(|v| c.allow_origin.push(v))),
    ("allow-host", |c, v| value::host(v).map(|v| c.allow_host.push(v))),
    ("route", |c, v| route::parse(v).map(|v| c.routes.push(v))),
    ("data", |c, v| value::path(v).map(|v| c.data = Some(v))),
    ("durability", |c, v| {
        let words = [("commit", Durability::Commit), ("relaxed", Durability::Relaxed)];
        value::choice(v, words).map(|v| c.durability = v)
    }),
    ("workers", |c, v| value::threads(v).map(|v| c.workers = v)),
    ("queue", |c, v| value::count(v).map(|v| c.queue = v)),
    ("max-memory", |c, v| value::memory(v).map(|v| c.max_memory = v)),
    ("max-stored", |c, v| value::size(v).map(|v| c.max_stored = Some(v))),
    ("max-body", |c, v| value::size(v).map(|v| c.max_body = Some(v))),
    ("max-head", |c, v| value::size(v).map(|v| c.max_head = v)),
    ("max-output", |c, v| value::size(v).map(|v| c.max_output = Some(v))),
    ("max-connections", |c, v| value::count(v).map(|v| c.max_connections = v)),
    ("ttl", |c, v| value::duration(v).map(|v| c.ttl = v)),
    ("timeout", |c, v| value::duration(v).map(|v| c.timeout = v)),
    ("body-timeout", |c, v| value::duration(v).map(|v| c.body_timeout = v)),
    ("grace", |c, v| value::duration(v).map(|v| c.grace = v)),
    ("max-wait", |c, v| value::duration(v).map(|v| c.max_wait = v)),
    ("insecure", |c, v| value::flag(v).map(|()| c.exposure = Exposure::Insecure)),
];

fn setter(name: &str) -> Option<Setter> {
    OPTIONS.iter().find(|(option, _)| *option == name).map(|(_, setter)| *setter)
}

fn front(text: &str) -> Result<FrontKind, String> {
    match text {
        "strict" => Ok(FrontKind::Strict),
        #[cfg(feature = "tiny_http")]
        "tiny_http" => Ok(FrontKind::TinyHttp),
        #[cfg(not(feature = "tiny_http"))]
        "tiny_http" => Err("this deferd was built without it".into()),
        _ => Err("neither strict nor tiny_http".into()),
    }
}

impl Config {
    /// Sets the option of this name; `place` says where it stands.
    fn set(&mut self, name: &str, text: &str, place: &str) -> Result<(), Invalid> {
        let setter =
            setter(name).ok_or_else(|| Invalid::new(place, text, "no such option; see --help"))?;
        setter(self, text).map_err(|what| Invalid::new(place, text, what))
    }

    /// Reads a file: a line `name value` for each option, `#` before comments.
    fn read_file(&mut self, path: &Path) -> Result<(), Invalid> {
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| Invalid::new("--config", &shown, error))?;
        for (n, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (name, value) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            self.set(name, value.trim(), &format!("{shown}:{}: {name}", n + 1))?;
        }
        Ok(())
    }

    /// Checks whether `address` may be listened on: a service manager can hand over another one than
    /// the configured.
    ///
    /// # Errors
    /// [`Invalid`], with what to do.
    pub fn check_exposure(&self, address: &Address) -> Result<(), Invalid> {
        if address.is_local() {
            return Ok(());
        }
        if self.exposure == Exposure::Loopback && self.auth.is_none() {
            let what = "not a loopback address: every host that reaches it could run the routes; \
                        say --auth FILE, or --insecure if that is meant";
            return Err(Invalid::new("--listen", &address.as_option(), what));
        }
        if self.front != FrontKind::Strict {
            let what = "not a loopback address, and --front tiny_http is for trusted callers only; \
                        use --front strict";
            return Err(Invalid::new("--listen", &address.as_option(), what));
        }
        Ok(())
    }

    /// Checks what concerns more than one option.
    fn check(&self) -> Result<(), Invalid> {
        self.check_exposure(&self.listen)?;
        self.check_sizes()?;
        if self.data.is_none() && self.durability != Durability::Commit {
            let what = "there is nothing to be durable without --data DIR";
            return Err(Invalid::new("--durability", "relaxed", what));
        }
        for (n, route) in self.routes.iter().enumerate() {
            if self.routes[..n].iter().any(|other| other.prefix == route.prefix) {
                return Err(Invalid::new(
                    "--route",
                    &route.prefix,
                    "this prefix has a route already",
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(arguments: &[&str]) -> Result<Command, Invalid> {
        parse(["deferd"].iter().chain(arguments).map(OsString::from))
    }

    fn config(arguments: &[&str]) -> Config {
        match read(arguments) {
            Ok(Command::Serve(config)) => *config,
            other => panic!("{arguments:?}: {other:?}"),
        }
    }

    #[test]
    fn options_are_read() {
        assert_eq!(config(&[]), Config::default());
        let read = config(&[
            "--listen=[::1]:0",
            "--ttl",
            "5m",
            "--max-stored",
            "1G",
            "--queue",
            "7",
            "--queue=8",
        ]);
        assert_eq!(read.listen, Address::Tcp("[::1]:0".parse().unwrap()));
        assert_eq!(config(&["--listen", "unix:/run/x"]).listen, Address::Unix("/run/x".into()));
        assert_eq!((read.ttl, read.queue), (Duration::from_secs(300), 8));
        assert_eq!(read.max_stored, Some(1 << 30));
        assert_eq!(config(&["--max-memory", "32M"]).sizes().memory, 32 << 20);
        assert_eq!(config(&["--insecure", "--listen", "0.0.0.0:1"]).exposure, Exposure::Insecure);
        assert_eq!(super::parse(["x".into(), "-h".into()]), Ok(Command::Help));
        assert_eq!(super::parse(["x".into(), "--version".into()]), Ok(Command::Version));
    }

    #[test]
    fn an_error_names_the_option_the_value_and_what_is_wrong() {
        for (arguments, part) in [
            (&["--queue", "none"][..], "--queue \"none\": not a whole number"),
            (&["--queue", "0"], "--queue \"0\": must be at least 1"),
            (&["--ttl", "5"], "--ttl \"5\": no unit"),
            (&["--max-body", "5X"], "--max-body \"5X\""),
            (&["--max-memory", "1K"], "--max-memory \"1K\": must be at least 1M"),
            (&["--max-memory", "1M", "--max-body", "2M"], "--max-body \"2M\": without --data"),
            (&["--max-memory", "1M", "--route", "/x=run:.,max-output=2M"], "max-output \"2M\""),
            (&["--listen", "localhost"], "--listen \"localhost\""),
            (&["--listen", "0.0.0.0:80"], "--listen \"0.0.0.0:80\": not a loopback address"),
            (&["--listen", "0.0.0.0:80"], "--insecure"),
            (&["--listen", "unix:"], "--listen \"unix:\""),
            (&["--durability", "some"], "neither commit nor relaxed"),
            (&["--durability", "relaxed"], "without --data DIR"),
            (&["--data", ""], "--data \"\": not a path"),
            (&["--front", "fast"], "neither strict nor tiny_http"),
            (&["--allow-origin", "ui.example"], "--allow-origin \"ui.example\""),
            (&["--allow-host", "nas:80"], "--allow-host \"nas:80\""),
            (&["--allow-host", "*.lan"], "--allow-host \"*.lan\""),
            (&["token"], "USER is missing"),
            #[cfg(feature = "tiny_http")]
            (&["--insecure", "--front=tiny_http", "--listen=0.0.0.0:80"], "trusted callers only"),
            (&["--route", "x=run:."], "--route \"x=run:.\": the prefix does not begin with /"),
            (&["--route", "/a=run:.", "--route", "/a=cgi:."], "has a route already"),
            (&["--insecure=yes"], "insecure"),
            (&["--nonsense"], "--nonsense"),
            (&["stray"], "stray"),
            (&["--queue"], "queue"),
            (&["--config", "/nonexistent/file"], "--config \"/nonexistent/file\""),
        ] {
            let error = read(arguments).unwrap_err().to_string();
            assert!(error.contains(part), "{arguments:?}: {error}");
        }
    }

    #[test]
    fn a_value_that_is_not_utf8_is_refused_by_name() {
        use std::os::unix::ffi::OsStringExt;
        let value = OsString::from_vec(b"/data/\xff".to_vec());
        let error = parse(["x".into(), "--data".into(), value]).unwrap_err().to_string();
        assert!(error.starts_with("--data \"/data/") && error.ends_with("not UTF-8"), "{error}");
    }

    #[test]
    fn a_file_is_read_and_the_command_line_replaces_it() {
        let path = std::env::temp_dir().join(format!("deferd-config-{}", std::process::id()));
        let file = path.to_str().unwrap();
        std::fs::write(&path, "# comment\n\nqueue 5\nttl\t10s\nroute /a=run:/tmp\ninsecure\n")
            .unwrap();
        let both = config(&["--ttl", "20s", "--config", file, "--route", "/b=cgi:/tmp"]);
        assert_eq!((both.queue, both.ttl), (5, Duration::from_secs(20)));
        assert_eq!(both.routes.len(), 2);
        assert_eq!(both.exposure, Exposure::Insecure);
        std::fs::write(&path, "queue 5\nttl soon\n").unwrap();
        let error = read(&["--config", file]).unwrap_err().to_string();
        assert!(error.contains(&format!("{file}:2: ttl \"soon\"")), "{error}");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn every_option_is_in_the_help_and_the_help_is_short() {
        for (name, _) in OPTIONS {
            assert!(HELP.contains(&format!("--{name}")), "{name}");
        }
        assert!(HELP.lines().count() <= 40, "more than a screen and a half");
        assert!(HELP.lines().all(|line| line.chars().count() <= 80));
    }
}
