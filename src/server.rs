//! The wiring: from a configuration to a running deferd, and through its orderly shutdown.
//!
//! Owns the order in which everything is created and shut down, readable from top to bottom. Handles no request.
//! Invariant: no socket listens before every part that a request needs is ready.

mod limits;
mod programs;
mod table;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::allowed_hosts::{AllowedHosts, HostCheck};
use crate::auth::Auth;
use crate::config::{Address, Config, FrontKind, Invalid, Listen, shown};
use crate::cors::AllowedOrigins;
use crate::cross_origin::Policy;
use crate::descriptors::Descriptors;
#[cfg(feature = "tiny_http")]
use crate::front;
use crate::front::{InFlight, Listening, Stopper};
use crate::handler::reaper;
use crate::job::execution::Stop;
use crate::jobs::{Jobs, Limits};
use crate::listen::{self, Bound, SocketFile};
use crate::memory::{Budget, Disk, Part};
use crate::routes::Prefixes;
use crate::service::Service;
use crate::socket::Listener;
use crate::store::disk::{Directory, DiskStore, Recovered};
use crate::store::memory::MemoryStore;
#[cfg(feature = "redis")]
use crate::store::redis::{Clock, SharedStore, Sharing};
use crate::store::{Room, Stats, Store};
use crate::workers;

/// How much of `--max-stored` a worker needs to start a job, in bytes.
const START_ROOM: usize = 64 * 1024;

/// How long the shutdown waits until killed jobs are reaped.
const REAP_TIME: Duration = Duration::from_secs(7);
/// How long the shutdown waits for lingering processes of scripts.
const LEAVE_TIME: Duration = Duration::from_secs(1);
/// The period at which the shutdown checks whether all work is done.
const LOOK: Duration = Duration::from_millis(5);

/// A running deferd.
pub struct Server {
    jobs: Arc<Jobs>,
    service: Arc<Service>,
    front: Front,
    addresses: Vec<Address>,
    /// Their paths are removed with the server.
    _files: Vec<SocketFile>,
    grace: Duration,
}

/// The front, as the shutdown needs it.
enum Front {
    Strict(Stopper),
    #[cfg(feature = "tiny_http")]
    TinyHttp(front::tiny_http::Stopper),
}

/// Why deferd does not start.
#[derive(Debug)]
pub enum StartError {
    /// The configuration cannot be served: exit 2.
    Invalid(Invalid),
    /// The system refuses an operation: exit 1.
    System(io::Error),
}

impl From<Invalid> for StartError {
    fn from(invalid: Invalid) -> Self {
        Self::Invalid(invalid)
    }
}

impl From<io::Error> for StartError {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

/// Starts everything; the accept loop comes last.
///
/// # Errors
/// [`StartError`].
pub fn start(config: &Config) -> Result<Server, StartError> {
    let bound = listen(config)?;
    let descriptors = Descriptors::prepare(config.max_connections, config.workers);
    let auth = config.auth.as_deref().map(|path| auth(config, path)).transpose()?;
    let directory = directory(config)?;
    let sizes = config.sizes();
    let disk = directory.as_ref().map(Directory::folder);
    let disk = disk.map(|folder| Disk { folder, capacity: sizes.stored });
    let memory = Budget::of_process(sizes.memory, disk);
    let limits = Limits {
        queue: config.queue,
        stored: sizes.stored,
        connections: descriptors.max_connections,
    };
    let jobs = Arc::new(Jobs::new(store(config, directory, &memory)?, memory, limits));
    let routes = Arc::new(table::routes(config, &jobs, &descriptors)?);
    workers::start(config.workers, &jobs, &routes, (config.ttl, config.log_ttl))?;
    let policy = policy(config);
    let callbacks = config.allow_callback.clone().into();
    let service = Service::new(routes, Arc::clone(&jobs), auth, policy, config.max_wait, callbacks);
    let service = Arc::new(service);
    let addresses = bound.iter().map(|bound| bound.address.clone()).collect();
    let (listeners, files): (Vec<_>, Vec<_>) =
        bound.into_iter().map(|bound| (bound.listener, bound.file)).unzip();
    if config.routes.is_empty() {
        log::info!("no --route: only the built-in endpoints answer");
    }
    let front = serve(config, listeners, &service, descriptors.max_connections)?;
    let files = files.into_iter().flatten().collect();
    Ok(Server { jobs, service, front, addresses, _files: files, grace: config.grace })
}

/// Takes the sockets that a service manager passes, or opens those that are configured.
fn listen(config: &Config) -> Result<Vec<Bound>, StartError> {
    if let Some(bound) = listen::activated()? {
        for Bound { address, .. } in &bound {
            config.check_exposure(address, "LISTEN_FDS")?;
        }
        if config.listen != Config::default().listen {
            log::info!("the service manager's sockets replace those of --listen");
        }
        return Ok(bound);
    }
    if let Some(listen) = config.listen.iter().find(|listen| listen.text.starts_with(':')) {
        let Listen { place, text, .. } = listen;
        log::warn!(
            "{place} {text} is 127.0.0.1{text} and [::1]{text}: other hosts cannot connect; for all \
             addresses say 0.0.0.0{text} or [::]{text}"
        );
    }
    let bind = |listen: &Listen| {
        listen::bind(&listen.socket).map_err(|error| cannot_listen(listen, &error).into())
    };
    let bound: Result<Vec<Vec<Bound>>, StartError> = config.listen.iter().map(bind).collect();
    bound.map(|bound| bound.into_iter().flatten().collect())
}

/// Opens the directory of `--data`.
fn directory(config: &Config) -> Result<Option<Directory>, Invalid> {
    let open =
        |path: &PathBuf| Directory::open(path).map_err(|what| invalid_data(config, path, what));
    config.data.as_ref().map(open).transpose()
}

fn invalid_data(config: &Config, path: &Path, what: String) -> Invalid {
    Invalid::new(&config.place("data"), &path.display().to_string(), what)
}

/// Opens the store.
fn store(
    config: &Config,
    directory: Option<Directory>,
    memory: &Arc<Budget>,
) -> Result<Arc<dyn Store>, Invalid> {
    let capacity = config.sizes().stored;
    let reserve = config.workers.saturating_mul(START_ROOM).min(capacity / 8);
    let room = Room { capacity, reserve, memory: memory.share(Part::ThreeQuarters) };
    let plan = table::plan(config);
    #[cfg(feature = "redis")]
    if let Some(address) = &config.store {
        let sharing = Sharing {
            address: address.clone(),
            lease: config.lease,
            durability: config.durability,
            clock: Clock::Engine,
        };
        let opened = SharedStore::open(sharing, room, plan, table::prefixes(config));
        let store = opened
            .map_err(|what| Invalid::new(&config.place("store"), &address.to_string(), what))?;
        log::info!("store={address} lease={:?}", config.lease);
        return Ok(Arc::new(store));
    }
    let (Some(directory), Some(path)) = (directory, &config.data) else {
        if config.max_stored.is_some_and(|stored| stored > capacity) {
            let (stored, memory) = (shown(capacity), shown(config.sizes().memory));
            log::warn!(
                "--max-stored is {stored}: three quarters of --max-memory, which is {memory}"
            );
        }
        return Ok(Arc::new(MemoryStore::new(room, plan)));
    };
    let prefixes = Prefixes::new(table::prefixes(config));
    let find = |path: &str| prefixes.find(path);
    let opened = DiskStore::open(directory, room, plan, config.durability, &find);
    let (store, found) = opened.map_err(|what| invalid_data(config, path, what))?;
    let Recovered { jobs, waiting, interrupted } = found;
    let directory = path.display();
    log::info!("data={directory} jobs={jobs} queued={waiting} interrupted={interrupted}");
    Ok(Arc::new(store))
}

fn cannot_listen(listen: &Listen, error: &io::Error) -> Invalid {
    let remedy = match error.kind() {
        io::ErrorKind::AddrInUse => "; another process listens there: end it, or choose another",
        io::ErrorKind::PermissionDenied => {
            "; choose a port from 1024 on, a path you may write, or a group you are in"
        }
        _ => "",
    };
    Invalid::new(&listen.place, &listen.text, format!("{error}{remedy}"))
}

fn auth(config: &Config, path: &Path) -> Result<Auth, Invalid> {
    let place = config.place("auth");
    Auth::load(path).map_err(|what| Invalid::new(&place, &path.display().to_string(), what))
}

/// Returns what web pages may do. A page under a foreign name cannot send credentials, so with `--auth` the name
/// matters only if the operator lists names.
fn policy(config: &Config) -> Policy {
    let names = config.allow_host.clone();
    let any = names.iter().any(|name| name == "*") || (config.auth.is_some() && names.is_empty());
    let check = if any { HostCheck::Any } else { HostCheck::Known };
    let own_name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let hosts = AllowedHosts { names, check, own_name };
    Policy { origins: AllowedOrigins(config.allow_origin.clone()), hosts }
}

/// Starts the front.
fn serve(
    config: &Config,
    listeners: Vec<Listener>,
    service: &Arc<Service>,
    max_connections: usize,
) -> io::Result<Front> {
    let limits = Arc::new(limits::of(config));
    match config.front {
        FrontKind::Strict => {
            let listening = Listening::new(listeners, max_connections)?;
            let stopper = listening.stopper();
            let service = Arc::clone(service);
            let thread = thread::Builder::new().name("accept".into());
            thread.spawn(move || listening.serve(&service, &limits))?;
            Ok(Front::Strict(stopper))
        }
        #[cfg(feature = "tiny_http")]
        FrontKind::TinyHttp => {
            let server = front::tiny_http::TinyHttp::new(listeners)?;
            let stopper = server.stopper();
            server.serve(service, &limits)?;
            Ok(Front::TinyHttp(stopper))
        }
    }
}

impl Front {
    /// Stops accepting connections.
    fn stop(&self) {
        match self {
            Self::Strict(stopper) => stopper.stop(),
            #[cfg(feature = "tiny_http")]
            Self::TinyHttp(stopper) => stopper.stop(),
        }
    }

    /// Returns the requests that are being answered.
    fn in_flight(&self) -> &InFlight {
        match self {
            Self::Strict(stopper) => stopper.in_flight(),
            #[cfg(feature = "tiny_http")]
            Self::TinyHttp(stopper) => stopper.in_flight(),
        }
    }
}

impl Server {
    /// Returns the addresses that it listens on, with the actual ports.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// Reads again what can change while deferd runs: the users, and the variables of scripts.
    pub fn reload(&self) {
        self.service.reload();
    }

    /// Shuts down in order: no new connections, no new jobs; running jobs have the grace period to end, and so have
    /// waiting jobs in a store in memory; the rest is then cancelled and reaped. Polls `hurry`: if it returns true,
    /// everything ends at once.
    pub fn end(&self, mut hurry: impl FnMut() -> bool) {
        self.front.stop();
        let stats = self.jobs.store.stats();
        self.jobs.drain();
        if let Ok(Stats { waiting, delayed, running, .. }) = stats {
            log::info!("ending: {} jobs wait, {running} run", waiting + delayed);
        }
        let mut waited = self.wait(self.grace, &mut hurry);
        if waited == Waited::TooLong {
            self.jobs.stop(Stop::Cancel);
            waited = self.wait(REAP_TIME, &mut hurry);
        }
        if waited != Waited::Idle {
            self.jobs.stop(Stop::Kill);
            self.wait(REAP_TIME, &mut || false);
        }
        reaper::wait_for_groups(LEAVE_TIME);
        let store = &self.jobs.store;
        workers::log_lost(store.name(), &store.close());
    }

    /// Returns whether nothing waits, runs or is being answered; from then on, no request begins.
    fn is_over(&self) -> bool {
        let in_flight = self.front.in_flight();
        if !self.jobs.is_idle() || !in_flight.close_if_idle() {
            return false;
        }
        // The last request in flight may have submitted a job before the drain.
        let over = self.jobs.is_idle();
        if !over {
            in_flight.reopen();
        }
        over
    }

    /// Waits until all work is done.
    fn wait(&self, span: Duration, hurry: &mut impl FnMut() -> bool) -> Waited {
        let deadline = Instant::now() + span;
        loop {
            if self.is_over() {
                return Waited::Idle;
            }
            if hurry() {
                return Waited::Hurried;
            }
            if Instant::now() >= deadline {
                return Waited::TooLong;
            }
            thread::sleep(LOOK);
        }
    }
}

/// How a wait for the end of all work ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Waited {
    /// All work is done.
    Idle,
    /// Some work was not done in time.
    TooLong,
    /// A second signal came.
    Hurried,
}
