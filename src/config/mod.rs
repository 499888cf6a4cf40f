//! The configuration: from arguments and a file to checked values.
//!
//! Owns every option: its name, its default, its form and its place in `--help`; and the plain types of the values,
//! which the parts of deferd import from here. `command` reads the arguments, `file` the `--config` file, and `check`
//! compares options. Reads only text, and how much memory the host has. Invariant: an error names the option, the
//! value and what is wrong with it.

mod address;
mod check;
mod command;
mod file;
mod hook;
mod route;
mod sizes;
mod store;
mod value;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use address::{Address, Listen, Socket, UnixSocket};
pub use command::{Command, parse};
pub use hook::HookConfig;
use log::LevelFilter;
pub use route::{CONNECT_TIMEOUT, Links, Pages, RouteConfig, Target};
pub use sizes::{Sizes, shown};
pub use store::{StoreAddress, StoreHost};
pub use value::{duration, shown_duration};

use crate::callback_url::CallbackUrl;

/// `--help`.
pub const HELP: &str = include_str!("help.txt");

/// Everything that can be configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where to listen.
    pub listen: Vec<Listen>,
    /// The front that serves it.
    pub front: FrontKind,
    /// The file of the users; `None`: clients need no credentials.
    pub auth: Option<PathBuf>,
    /// Origins whose pages may send requests.
    pub allow_origin: Vec<String>,
    /// Further names in `host`; `*` stands for all.
    pub allow_host: Vec<String>,
    /// The URLs that callbacks may go to, each with all URLs below it.
    pub allow_callback: Vec<CallbackUrl>,
    /// The file of the secrets with which callbacks are signed.
    pub callback_secret: Option<PathBuf>,
    /// Whether deferd may listen beyond loopback without credentials.
    pub exposure: Exposure,
    /// The directory of the jobs; `None`: they are in memory, or in the `store`.
    pub data: Option<PathBuf>,
    /// The engine through which several deferd share their jobs.
    pub store: Option<StoreAddress>,
    /// How long a silent instance keeps the jobs that it runs.
    pub lease: Duration,
    /// When a change must be on disk.
    pub durability: Durability,
    /// The routes that the operator configured.
    pub routes: Vec<RouteConfig>,
    /// Worker threads.
    pub workers: usize,
    /// The limit of waiting jobs.
    pub queue: usize,
    /// The limit of content in memory, in bytes.
    pub max_memory: usize,
    /// The limit of waiting requests and kept results, in bytes; see [`sizes`](Self::sizes).
    pub max_stored: Option<usize>,
    /// The limit of a request's content, in bytes; see [`sizes`](Self::sizes).
    pub max_body: Option<usize>,
    /// The limit of a request's head, in bytes.
    pub max_head: usize,
    /// The limit of a script's stdout, in bytes, unless its route has one; see [`sizes`](Self::sizes).
    pub max_output: Option<usize>,
    /// The limit of open connections.
    pub max_connections: usize,
    /// How long a result is kept.
    pub ttl: Duration,
    /// How long a log is kept after its result was collected; zero: not at all.
    pub log_ttl: Duration,
    /// The time limit of a job, unless its route has one.
    pub timeout: Duration,
    /// The time limit for the content of a request, plus a second for each KiB.
    pub body_timeout: Duration,
    /// How long running jobs may go on during the shutdown.
    pub grace: Duration,
    /// The longest time that a client may wait for a job.
    pub max_wait: Duration,
    /// How long a connection may be idle between two requests.
    pub keep_alive: Duration,
    /// The level of the log; `None`: `RUST_LOG` decides.
    pub log: Option<LevelFilter>,
    /// The places of options that are not on the command line: see [`place`](Self::place).
    places: BTreeMap<String, String>,
}

/// When a change must be durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Before its answer.
    Commit,
    /// At most 50 ms after the change; its answer may come earlier.
    Relaxed,
}

/// A front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrontKind {
    /// The strict front, for all clients.
    Strict,
    /// tiny_http's accept loop, for trusted callers only.
    #[cfg(feature = "tiny_http")]
    TinyHttp,
}

/// Which hosts can reach deferd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposure {
    /// Only this host.
    Loopback,
    /// All hosts, because the operator set `--insecure`.
    Insecure,
}

impl Default for Config {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            listen: vec![Listen::parse("127.0.0.1:8529").expect("the default is an address")],
            front: FrontKind::Strict,
            auth: None,
            allow_origin: Vec::new(),
            allow_host: Vec::new(),
            allow_callback: Vec::new(),
            callback_secret: None,
            exposure: Exposure::Loopback,
            data: None,
            store: None,
            lease: Duration::from_secs(10),
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
            log_ttl: Duration::from_secs(3600),
            timeout: Duration::from_secs(3600),
            body_timeout: Duration::from_secs(20),
            grace: Duration::from_secs(30),
            max_wait: Duration::from_secs(60),
            keep_alive: Duration::from_secs(75),
            log: None,
            places: BTreeMap::new(),
        }
    }
}

/// What is wrong with the configuration, in words for the operator.
#[derive(Debug, PartialEq, Eq)]
pub struct Invalid(String);

impl Invalid {
    /// Returns an error that names the option, its value and what is wrong.
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

/// Sets one option of a configuration from its text.
type Setter = fn(&mut Config, &str) -> Result<(), String>;

/// Every option that takes a value, by name.
const OPTIONS: [(&str, Setter); 29] = [
    ("listen", |c, v| Listen::parse(v).map(|v| c.listen.push(v))),
    ("front", |c, v| front(v).map(|v| c.front = v)),
    ("auth", |c, v| value::path(v).map(|v| c.auth = Some(v))),
    ("allow-origin", |c, v| value::origin(v).map(|v| c.allow_origin.push(v))),
    ("allow-host", |c, v| value::host(v).map(|v| c.allow_host.push(v))),
    ("allow-callback", |c, v| value::callback(v).map(|v| c.allow_callback.push(v))),
    ("callback-secret", |c, v| value::path(v).map(|v| c.callback_secret = Some(v))),
    ("route", |c, v| route::parse(v).map(|v| c.routes.push(v))),
    ("data", |c, v| value::path(v).map(|v| c.data = Some(v))),
    ("store", |c, v| StoreAddress::parse(v).map(|v| c.store = Some(v))),
    ("lease", |c, v| value::lease(v).map(|v| c.lease = v)),
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
    ("log-ttl", |c, v| value::duration_or_none(v).map(|v| c.log_ttl = v)),
    ("timeout", |c, v| value::duration(v).map(|v| c.timeout = v)),
    ("body-timeout", |c, v| value::duration(v).map(|v| c.body_timeout = v)),
    ("grace", |c, v| value::duration(v).map(|v| c.grace = v)),
    ("max-wait", |c, v| value::duration(v).map(|v| c.max_wait = v)),
    ("keep-alive", |c, v| value::duration(v).map(|v| c.keep_alive = v)),
    ("log", |c, v| value::level(v).map(|v| c.log = Some(v))),
    ("insecure", |c, v| value::flag(v).map(|()| c.exposure = Exposure::Insecure)),
];

/// Returns whether an option can be given several times.
fn is_repeatable(name: &str) -> bool {
    ["listen", "route", "allow-origin", "allow-host", "allow-callback"].contains(&name)
}

/// The source of an option.
struct Source<'a> {
    /// Its name in errors: the option, with its file and line if it has them.
    place: String,
    /// The directory at which relative paths begin; `None`: the working directory.
    directory: Option<&'a Path>,
}

fn setter(name: &str) -> Option<Setter> {
    OPTIONS.iter().find(|(option, _)| *option == name).map(|(_, setter)| *setter)
}

fn front(text: &str) -> Result<FrontKind, String> {
    match text {
        "strict" => Ok(FrontKind::Strict),
        #[cfg(feature = "tiny_http")]
        "tiny_http" => Ok(FrontKind::TinyHttp),
        #[cfg(not(feature = "tiny_http"))]
        "tiny_http" => {
            Err("this deferd was built without it: build it with the feature tiny_http".into())
        }
        _ => Err("neither strict nor tiny_http".into()),
    }
}

impl Config {
    /// Returns whether requests and results are kept outside this process.
    pub const fn is_stored_elsewhere(&self) -> bool {
        self.data.is_some() || self.store.is_some()
    }

    /// Sets the option of this name.
    fn set(&mut self, name: &str, text: &str, source: &Source<'_>) -> Result<(), Invalid> {
        let Source { place, directory } = source;
        let setter =
            setter(name).ok_or_else(|| Invalid::new(place, text, "no such option; see --help"))?;
        let shown = if name == "store" { &*store::hide(text) } else { text };
        setter(self, text).map_err(|what| Invalid::new(place, shown, what))?;
        for path in self.placed(name, place) {
            if let Some(directory) = directory {
                *path = directory.join(&*path);
            }
        }
        self.places.remove(name);
        let is_elsewhere = *place != format!("--{name}");
        if is_elsewhere && (!is_repeatable(name) || name == "allow-callback") {
            self.places.insert(name.to_owned(), place.clone());
        }
        Ok(())
    }

    /// Records the place of the option that was just set; returns its paths.
    fn placed(&mut self, name: &str, place: &str) -> Vec<&mut PathBuf> {
        match (name, self.listen.last_mut(), self.routes.last_mut()) {
            ("listen", Some(listen), _) => {
                place.clone_into(&mut listen.place);
                match &mut listen.socket {
                    Socket::Unix(socket) => vec![&mut socket.path],
                    Socket::Tcp(_) | Socket::Loopback(_) => Vec::new(),
                }
            }
            ("route", _, Some(route)) => {
                place.clone_into(&mut route.place);
                route.paths_mut()
            }
            ("auth", ..) => self.auth.iter_mut().collect(),
            ("data", ..) => self.data.iter_mut().collect(),
            ("callback-secret", ..) => self.callback_secret.iter_mut().collect(),
            _ => Vec::new(),
        }
    }

    /// Removes the addresses that were given before: addresses of another source replace them.
    fn replace(&mut self, name: &str) {
        if name == "listen" {
            self.listen.clear();
        }
    }

    /// Returns the place of an option for errors: with its file and line if it has them.
    pub fn place(&self, name: &str) -> String {
        self.places.get(name).cloned().unwrap_or_else(|| format!("--{name}"))
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

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
        assert_eq!(read.listen, [Listen::parse("[::1]:0").unwrap()]);
        let several = config(&["--listen", "unix:/run/x", "--listen=8529"]).listen;
        assert_eq!(several, ["unix:/run/x", "8529"].map(|text| Listen::parse(text).unwrap()));
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
            (&["--durability", "relaxed"], "without --data DIR or --store"),
            (&["--data", ""], "--data \"\": not a path"),
            (&["--front", "fast"], "neither strict nor tiny_http"),
            (&["--allow-origin", "ui.example"], "--allow-origin \"ui.example\""),
            (&["--allow-host", "nas:80"], "--allow-host \"nas:80\""),
            (&["--allow-host", "*.lan"], "--allow-host \"*.lan\""),
            (
                &["--allow-callback", "h/"],
                "--allow-callback \"h/\": it is not a URL such as http://HOST/PATH",
            ),
            (&["--allow-callback", "http://h/?a"], "it has a query"),
            (&["--allow-callback", "http://h/"], "say --callback-secret FILE"),
            (&["--callback-secret", "f"], "--callback-secret \"f\": no callback is allowed"),
            #[cfg(not(feature = "tls"))]
            (&["--allow-callback", "https://h/"], "built without https"),
            (&["token"], "USER is missing"),
            (&["token", "ann", "extra"], "token \"extra\": one user too many"),
            (&["token", "ann", "--queue", "5"], "--queue"),
            (&["--queue", "5", "token", "ann", "extra"], "takes no options"),
            (&["--queue", "5", "token", "ann"], "takes no options"),
            (&["--data", "/x", "submit", "/y"], "submit \"\": takes no options before it"),
            (&["--insecure", "list"], "list \"\": takes no options before it: deferd list"),
            (&["--log", "verbose"], "--log \"verbose\": not a level"),
            (&["--keep-alive", "75"], "--keep-alive \"75\": no unit"),
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

    #[cfg(feature = "redis")]
    #[test]
    fn notices_are_refused_with_a_shared_store() {
        let what = "not available with --store: use --data DIR, or wait with prefer: wait=N";
        for (more, place) in [
            (&["--allow-callback", "http://h/"][..], "--allow-callback \"http://h/\""),
            (&["--route", "/a=run:.,on-done=/b"], "--route \"/a\": on-done, on-failure"),
        ] {
            let error = read(&[&["--store", "redis://h"], more].concat()).unwrap_err().to_string();
            assert_eq!(error, format!("{place}: {what}"));
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

    /// Reads a file with this text, in a directory of its own; an error shows that directory as `DIR`.
    fn from_file(name: &str, text: &str, more: &[&str]) -> Result<Config, String> {
        let dir = std::env::temp_dir().join(format!("deferd-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join("conf");
        std::fs::write(&file, text).unwrap();
        let parsed = read(&[&["--config", file.to_str().unwrap()], more].concat());
        std::fs::remove_dir_all(&dir).unwrap();
        match parsed {
            Ok(Command::Serve(config)) => Ok(*config),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.to_string().replace(dir.to_str().unwrap(), "DIR")),
        }
    }

    #[test]
    fn relative_paths_of_a_file_begin_at_its_directory() {
        let text = "route /a=run:x/y,env-file=e,secret=s,signature=github,owner=ann\nroute /b=cgi:/z\ndata d\n\
             auth ../u\nlisten unix:s,mode=0660\n";
        let config = from_file("relative", text, &["--route", "/c=run:w"]).unwrap();
        let under = |name: &str| {
            let dir = format!("deferd-relative-{}", std::process::id());
            std::env::temp_dir().join(dir).join(name)
        };
        let targets: Vec<_> = config.routes.iter().map(|route| route.target.clone()).collect();
        let expected =
            [Target::Run(under("x/y")), Target::Cgi("/z".into()), Target::Run("w".into())];
        assert_eq!(targets, expected);
        let first = &config.routes[0];
        let its = (first.env_file.clone(), first.hook.secret.clone());
        assert_eq!(its, (Some(under("e")), Some(under("s"))));
        assert_eq!(
            (config.data.clone(), config.auth.clone()),
            (Some(under("d")), Some(under("../u")))
        );
        let Socket::Unix(socket) = &config.listen[0].socket else { panic!() };
        assert_eq!((&socket.path, socket.mode), (&under("s"), 0o660));
        assert!(config.routes[1].place.ends_with("conf:2: route"), "{:?}", config.routes[1]);
        assert!(config.place("data").ends_with("conf:3: data"));
        assert_eq!(
            (config.routes[2].place.as_str(), config.place("queue")),
            ("--route", "--queue".into())
        );
        let config = from_file("relative", text, &["--data", "x"]).unwrap();
        assert_eq!(
            (config.data.clone(), config.place("data")),
            (Some("x".into()), "--data".into())
        );
    }

    #[test]
    fn addresses_add_up_and_the_command_line_replaces_those_of_a_file() {
        let texts = |config: Config| -> Vec<String> {
            config.listen.into_iter().map(|listen| listen.text).collect()
        };
        let file = "listen :1\nlisten 127.0.0.1:2\n";
        assert_eq!(texts(from_file("several", file, &[]).unwrap()), [":1", "127.0.0.1:2"]);
        let line = ["--listen", "3", "--listen", "4"];
        assert_eq!(texts(from_file("several", file, &line).unwrap()), ["3", "4"]);
    }

    #[test]
    fn lines_of_other_forms_are_explained() {
        for (text, part) in [
            ("listen = :1", "DIR/conf:1: listen \"= :1\": no such option: a line is a name"),
            ("listen = :1", "`listen :1`"),
            ("listen=127.0.0.1:1", "`listen 127.0.0.1:1`"),
            ("listen: 127.0.0.1:1", "`listen 127.0.0.1:1`"),
            ("--listen 127.0.0.1:1", "`listen 127.0.0.1:1`"),
            ("route = /a=run:b", "`route /a=run:b`"),
            ("data \"/var/lib\"", "without quotes"),
            ("queue 5 # five", "a comment has a line of its own"),
            ("data /x\t# here", "a comment has a line of its own"),
            ("queue 5\n\nqueue 5", "DIR/conf:3: queue \"5\": line 1 has this option already"),
            ("insecure\ninsecure", "line 1 has this option already"),
            ("/a=run:b", "DIR/conf:1: /a=run:b \"\": no such option; see --help"),
            ("[server]", "no such option; see --help"),
            ("listen 0.0.0.0:80", "DIR/conf:1: listen \"0.0.0.0:80\": not a loopback address"),
            ("route /a=run:.\nroute /a=cgi:.", "DIR/conf:2: route \"/a\": this prefix has"),
            ("max-memory 1M\nmax-body 2M", "DIR/conf:2: max-body \"2M\": without --data"),
            ("allow-callback http://h/", "DIR/conf:1: allow-callback \"http://h/\": callbacks are"),
            ("callback-secret f", "DIR/conf:1: callback-secret \"DIR/f\": no callback is"),
            ("durability relaxed", "DIR/conf:1: durability \"relaxed\""),
            ("insecure\nroute /a=run:.,owner=ann", "DIR/conf:2: route"),
            (
                "auth u\nroute /a=run:.,secret=s,signature=github",
                "DIR/conf:2: route \"/a\": with --auth",
            ),
        ] {
            let error = from_file("forms", text, &[]).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
        let text = "\u{feff}queue 5\r\nallow-host a\r\nallow-host b\r\nroute /a=run:x#y\r\n";
        assert_eq!(from_file("forms", text, &[]).unwrap().queue, 5);
    }

    #[test]
    fn every_option_is_in_the_help_and_the_help_is_short() {
        for (name, _) in OPTIONS {
            let option = format!("--{name}");
            assert!(HELP.split([' ', '\n', '[', ']', ',']).any(|word| word == option), "{name}");
        }
        assert!(HELP.lines().count() <= 60, "more than a sheet of paper");
        assert!(HELP.lines().all(|line| line.chars().count() <= 80));
    }
}
