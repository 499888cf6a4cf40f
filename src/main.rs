//! The command: arguments, logger, signals, and every exit code.
//!
//! Exit codes: 0 after an orderly end, 1 for a failure of the system, 2 for a configuration that cannot
//! be served.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use deferd::config::{self, Command, Config};
use deferd::server::{self, Server, StartError};
use signal_hook::consts::{SIGINT, SIGTERM};

fn main() -> ExitCode {
    match config::parse(std::env::args_os()) {
        Ok(Command::Help) => print(config::HELP),
        Ok(Command::Version) => print(concat!("deferd ", env!("CARGO_PKG_VERSION"), "\n")),
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

fn serve(config: &Config) -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    // Before anything listens, so that no signal finds nobody.
    let mut signals = match signals() {
        Ok(signals) => signals,
        Err(error) => return fail(1, &format!("cannot handle signals: {error}")),
    };
    let server = match server::start(config) {
        Ok(server) => server,
        Err(StartError::Invalid(invalid)) => return fail(2, &invalid),
        Err(StartError::System(error)) => return fail(1, &error),
    };
    announce(&server);
    wait_for_signal(&mut signals);
    let hurry = signals.set_nonblocking(true).is_ok();
    server.end(|| hurry && signals.read(&mut [0]).is_ok_and(|n| n > 0));
    ExitCode::SUCCESS
}

/// One byte for each SIGTERM and SIGINT.
fn signals() -> std::io::Result<UnixStream> {
    let (signals, sender) = UnixStream::pair()?;
    for signal in [SIGTERM, SIGINT] {
        signal_hook::low_level::pipe::register(signal, sender.try_clone()?)?;
    }
    Ok(signals)
}

/// The first line of stdout is for whoever started deferd with port 0; nobody may be reading it.
fn announce(server: &Server) {
    let mut stdout = std::io::stdout();
    let _ = writeln!(stdout, "listening on http://{}", server.address());
    let _ = stdout.flush();
    log::info!("deferd {} listening on http://{}", env!("CARGO_PKG_VERSION"), server.address());
}

/// Waits for the first signal; the second finds [`Server::end`] waiting.
fn wait_for_signal(signals: &mut UnixStream) {
    while !matches!(signals.read(&mut [0]), Ok(1)) {}
}
