//! The command line: which command it names, and the precedence of files, environment and arguments.
//!
//! Owns the words that name a command, and the precedence of the places of an option. The table of options defines
//! what an option means. Invariant: an argument that has no effect on its command is an error.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use lexopt::ValueExt;

use super::{Config, Invalid, Source, setter, store};

/// What the command line asks deferd to do.
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

/// Reads the arguments, and the files that they name. A later option replaces an earlier one, the command line
/// replaces the file, and repeatable options add up; but addresses of the command line replace those of the file.
///
/// # Errors
/// [`Invalid`].
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, Invalid> {
    let mut config = Config::default();
    // Set after all files, wherever the files are named.
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
                check_first("token", &from_line, &config)?;
                return token(&mut parser);
            }
            lexopt::Arg::Value(word) => {
                let Some(command) = client_command(&word) else {
                    return Err(lexopt::Arg::Value(word).unexpected().into());
                };
                check_first(command, &from_line, &config)?;
                return Ok(Command::Client(command, parser.raw_args()?.collect()));
            }
            other => return Err(other.unexpected().into()),
        }
    }
    if from_line.iter().any(|(name, _)| name == "listen") {
        config.replace("listen");
    }
    if let Some(text) = std::env::var_os("DEFERD_STORE").filter(|_| config.store.is_none()) {
        let place = "DEFERD_STORE".to_owned();
        let text = text.into_string().map_err(|text| {
            Invalid::new(&place, &store::hide(&text.to_string_lossy()), "not UTF-8")
        })?;
        config.set("store", &text, &Source { place, directory: None })?;
    }
    for (name, text) in from_line {
        let place = format!("--{name}");
        if name == "store" && store::has_password(&text) {
            let what = "a password here can be read by every user of this host: put the address into a --config \
                        file, or into the environment variable DEFERD_STORE";
            return Err(Invalid::new(&place, &store::hide(&text), what));
        }
        config.set(&name, &text, &Source { place, directory: None })?;
    }
    config.check()?;
    Ok(Command::Serve(Box::new(config)))
}

/// Checks that a command comes first: options before it would be for a server.
fn check_first(
    command: &str,
    from_line: &[(String, String)],
    config: &Config,
) -> Result<(), Invalid> {
    if from_line.is_empty() && *config == Config::default() {
        return Ok(());
    }
    let what = format!("takes no options before it: deferd {command} ...");
    Err(Invalid::new(command, "", what))
}

/// Reads the arguments of `token`: exactly one user.
fn token(parser: &mut lexopt::Parser) -> Result<Command, Invalid> {
    let mut user = None;
    while let Some(argument) = parser.next()? {
        match argument {
            lexopt::Arg::Short('h') | lexopt::Arg::Long("help") => return Ok(Command::Help),
            lexopt::Arg::Value(word) if user.is_none() => user = Some(word.string()?),
            lexopt::Arg::Value(word) => {
                let what = "one user too many: deferd token USER";
                return Err(Invalid::new("token", &word.to_string_lossy(), what));
            }
            other => return Err(other.unexpected().into()),
        }
    }
    user.map(Command::Token).ok_or_else(|| Invalid::new("token", "", "USER is missing"))
}

/// The words that name a command of the client.
const CLIENT: [&str; 9] =
    ["submit", "run", "status", "wait", "fetch", "log", "list", "cancel", "delete"];

fn client_command(word: &OsStr) -> Option<&'static str> {
    CLIENT.into_iter().find(|command| word == *command)
}
