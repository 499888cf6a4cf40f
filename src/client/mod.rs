//! The client: `deferd submit`, `run` and the other commands, for a deferd that is already running.
//!
//! Owns the exit codes and how trouble is reported. `arguments` reads the command line; `server` sends requests over
//! `transport`; `submission` makes a job from the arguments, `job` asks for its state, `fetch` writes its result to an
//! `output`, `run` does all of that, `list` lists the jobs. Imports nothing that serves requests. Invariants: stdout
//! gets what was asked for and nothing else; deferd removes a result only after its content was written.

mod arguments;
mod commands;
mod fetch;
mod job;
mod list;
mod log;
mod output;
mod run;
mod server;
mod submission;
mod transport;

use std::ffi::OsString;
use std::fmt;
use std::io::Write;
use std::process::ExitCode;

/// `deferd COMMAND --help`.
pub const HELP: &str = include_str!("help.txt");

/// The exit code of `deferd run` for errors of its own: lower codes belong to the script.
const RUN_TROUBLE: u8 = 125;

/// How a command ended that received its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// The jobs are done, and none has failed.
    Done,
    /// A job is not done.
    NotDone,
    /// A job has failed, or does not exist.
    Failed,
}

impl Outcome {
    const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::NotDone => 4,
        }
    }
}

/// Why a command could not be carried out.
#[derive(Debug)]
enum Trouble {
    /// The arguments are invalid.
    Usage(String),
    /// deferd cannot be reached or refuses, or the output cannot be written.
    Refused(String),
}

impl Trouble {
    const fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Refused(_) => 3,
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Usage(what) | Self::Refused(what)) = self;
        f.write_str(what)
    }
}

impl From<lexopt::Error> for Trouble {
    fn from(error: lexopt::Error) -> Self {
        Self::Usage(error.to_string())
    }
}

/// Carries out a command.
pub fn main(word: &str, arguments: Vec<OsString>) -> ExitCode {
    let ended = match arguments::parse(word, arguments) {
        Ok(None) => output::print(HELP).map(|()| 0),
        Ok(Some((action, server))) => commands::carry_out(action, server),
        Err(Trouble::Usage(what)) => {
            Err(Trouble::Usage(format!("{word}: {what}; see deferd {word} --help")))
        }
        Err(other) => Err(other),
    };
    ExitCode::from(ended.unwrap_or_else(|trouble| {
        tell(&trouble);
        if word == "run" { RUN_TROUBLE } else { trouble.code() }
    }))
}

/// Writes a message to stderr.
fn tell(what: &dyn fmt::Display) {
    let _ = writeln!(std::io::stderr(), "deferd: {}", printable(&what.to_string()));
}

/// Removes from a text what a terminal would obey; the text may come from elsewhere.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}
