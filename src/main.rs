//! The command: arguments, signals (SIGCHLD is the reaper's), and every exit code.
//!
//! Exit codes: 0 after an orderly end, 1 for a failure of the system, 2 for a configuration that cannot
//! be served.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;

use deferd::config::{self, Command, Config};
use deferd::handler::reaper;
use deferd::server::{self, Server, StartError};
use deferd::{listen, logger};
use log::Level;
use rustix::event::{PollFd, PollFlags, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};

fn main() -> ExitCode {
    match config::parse(std::env::args_os()) {
        Ok(Command::Help) => print(config::HELP),
        Ok(Command::Version) => print(concat!("deferd ", env!("CARGO_PKG_VERSION"), "\n")),
        Ok(Command::Token(user)) => token(&user),
        #[cfg(feature = "client")]
        Ok(Command::Client(word, arguments)) => deferd::client::main(word, arguments),
        #[cfg(not(feature = "client"))]
        Ok(Command::Client(word, _)) => {
            fail(2, &format!("{word}: this deferd was built without the client"))
        }
        Ok(Command::Serve(config)) => serve(&config),
        Err(invalid) => fail(2, &invalid),
    }
}

fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn fail(code: u8, error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("deferd: {error}");
    ExitCode::from(code)
}

/// Prints a fresh token for its user, and the line for the file of `--auth`.
fn token(user: &str) -> ExitCode {
    match deferd::auth::new_token(user) {
        Ok((token, line)) => print(&format!("token: {token}\nline for --auth: {line}\n")),
        Err(what) => fail(2, &format!("token {user:?}: {what}")),
    }
}

/// Executes this program once more, in the same process, with an allocator that gives memory back; returns if
/// that is done already, the operator has tuned it, or it cannot be.
///
/// glibc raises its thresholds to the largest block that was freed, and then keeps as much and more in each
/// arena; and the blocks that it caches for each of hundreds of threads lie between those that are free. It
/// reads these settings at the start of a process only. Scripts do not inherit them.
#[cfg(target_env = "gnu")]
fn tune_allocator() {
    use std::os::unix::process::CommandExt;
    const NAME: &str = "GLIBC_TUNABLES";
    const SETTINGS: &str = "glibc.malloc.tcache_count=4:glibc.malloc.mmap_threshold=131072:\
                            glibc.malloc.trim_threshold=131072";
    let mut arguments = std::env::args_os();
    let (None, Ok(program), Some(name)) =
        (std::env::var_os(NAME), std::env::current_exe(), arguments.next())
    else {
        return;
    };
    // What comes back is an error: then it runs as it is, and keeps more.
    let _ =
        std::process::Command::new(program).arg0(name).args(arguments).env(NAME, SETTINGS).exec();
}

fn serve(config: &Config) -> ExitCode {
    #[cfg(target_env = "gnu")]
    tune_allocator();
    let log = match logger::start(config.log) {
        Ok(log) => log,
        Err(error) => return fail(1, &error),
    };
    let code = serve_logged(config).unwrap_or_else(|(code, error)| {
        log.say(Level::Error, &error);
        code
    });
    log.flush();
    ExitCode::from(code)
}

/// Serves until the end; returns the exit code.
///
/// # Errors
/// Another exit code, and why.
fn serve_logged(config: &Config) -> Result<u8, (u8, String)> {
    // Before there are children.
    reaper::start().map_err(|error| (1, format!("cannot watch children: {error}")))?;
    // Before anything listens, so that no signal comes too early.
    let mut signals =
        Signals::new().map_err(|error| (1, format!("cannot handle signals: {error}")))?;
    let server = server::start(config).map_err(|error| match error {
        StartError::Invalid(invalid) => (2, invalid.to_string()),
        StartError::System(error) => (1, error.to_string()),
    })?;
    announce(&server);
    listen::notify("READY=1");
    while !signals.wait_for_end() {
        server.reload();
        log::info!("reloaded users, secrets and env-files; options are read only at start");
    }
    listen::notify("STOPPING=1");
    server.end(|| signals.ended_again());
    Ok(0)
}

/// The signals that concern deferd, each as a byte to be read.
struct Signals {
    /// SIGTERM and SIGINT.
    end: UnixStream,
    /// SIGHUP.
    reload: UnixStream,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        let pipe = |signals: &[i32]| -> std::io::Result<UnixStream> {
            let (receiver, sender) = UnixStream::pair()?;
            receiver.set_nonblocking(true)?;
            for &signal in signals {
                signal_hook::low_level::pipe::register(signal, sender.try_clone()?)?;
            }
            Ok(receiver)
        };
        // They would end deferd. Ignored signals would be so in scripts as well.
        for signal in [SIGUSR1, SIGUSR2] {
            signal_hook::flag::register(signal, Arc::default())?;
        }
        Ok(Self { end: pipe(&[SIGTERM, SIGINT])?, reload: pipe(&[SIGHUP])? })
    }

    /// Waits for a signal; `true` for the end, `false` for a reload.
    fn wait_for_end(&mut self) -> bool {
        loop {
            let mut fds =
                [PollFd::new(&self.end, PollFlags::IN), PollFd::new(&self.reload, PollFlags::IN)];
            // An interrupted wait finds nothing to read.
            let _ = poll(&mut fds, None);
            if self.ended_again() {
                return true;
            }
            // Several signals that came together are one.
            if self.reload.read(&mut [0; 64]).is_ok_and(|n| n > 0) {
                return false;
            }
        }
    }

    /// Whether another signal to end came.
    fn ended_again(&mut self) -> bool {
        self.end.read(&mut [0]).is_ok_and(|n| n > 0)
    }
}

/// Prints a line for each socket, for a program that started deferd with port 0. An unread or closed stdout is
/// no error.
fn announce(server: &Server) {
    let mut stdout = std::io::stdout();
    let lines = server.addresses().iter().map(|address| format!("listening on {address}\n"));
    let _ = stdout.write_all(lines.collect::<String>().as_bytes());
    let _ = stdout.flush();
    for address in server.addresses() {
        log::info!("deferd {} listening on {address}", env!("CARGO_PKG_VERSION"));
    }
}
