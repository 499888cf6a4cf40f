//! The command line of the client: turns arguments into an action.
//!
//! Owns the options of each command, the two environment variables, and the check of each value. Sends nothing.
//! Invariant: no token is taken from the arguments.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::header::{AUTHORIZATION, CONNECTION, CONTENT_LENGTH, EXPECT, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use lexopt::ValueExt;

use super::Trouble;
use super::output::Output;
use super::server::Server;
use super::submission::{Source, Submission};
use crate::config;
use crate::job::JobId;
use crate::protocol::ASYNC;

/// Where deferd listens if no option says otherwise.
const DEFAULT_URL: &str = "http://127.0.0.1:8529";

/// The fields that only the client sets.
const OWN: [HeaderName; 5] = [ASYNC, CONNECTION, CONTENT_LENGTH, EXPECT, TRANSFER_ENCODING];

/// What the client is asked to do.
pub enum Action {
    Submit(Submission),
    Run(Submission),
    Status(Vec<JobId>),
    /// The time limit, if one was given.
    Wait(Vec<JobId>, Option<Duration>),
    Fetch(Vec<JobId>, Output),
    Log(Vec<JobId>, Follow),
    List(List),
    Cancel(Vec<JobId>),
    Delete(Vec<JobId>),
}

/// Whether a log is followed to the end of its job.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    No,
    Yes,
}

/// What is listed.
#[derive(Default)]
pub struct List {
    /// The jobs of this state; `None`: all jobs.
    pub state: Option<String>,
    pub form: Form,
}

/// The form of the list.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub enum Form {
    /// One line for each job.
    #[default]
    Lines,
    /// The JSON that deferd sends.
    Json,
}

/// What the arguments say, before they are checked against each other.
#[derive(Default)]
struct Words {
    url: Option<String>,
    token_file: Option<PathBuf>,
    method: Option<Method>,
    fields: HeaderMap,
    content: Option<Source>,
    output: Option<PathBuf>,
    time_limit: Option<Duration>,
    follow: bool,
    list: List,
    /// A path, or ids.
    operands: Vec<String>,
}

/// Reads the arguments after the name of the command; `None` if they ask for help.
///
/// # Errors
/// [`Trouble::Usage`].
pub fn parse(word: &str, arguments: Vec<OsString>) -> Result<Option<(Action, Server)>, Trouble> {
    let Some(words) = read(word, arguments)? else { return Ok(None) };
    let server = server(words.url.as_deref(), words.token_file.as_deref())?;
    Ok(Some((words.action(word)?, server)))
}

/// Returns `None` if the help is asked for.
fn read(word: &str, arguments: Vec<OsString>) -> Result<Option<Words>, Trouble> {
    use lexopt::Arg::{Long, Short, Value};
    let submits = matches!(word, "submit" | "run");
    let mut words = Words::default();
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next()? {
        match argument {
            Short('h') | Long("help") => return Ok(None),
            Long("url") => words.url = Some(parser.value()?.string()?),
            Long("token-file") => words.token_file = Some(parser.value()?.into()),
            Short('X') if submits => words.method = Some(method(&parser.value()?.string()?)?),
            Short('H') if submits => add_field(&mut words.fields, &parser.value()?.string()?)?,
            Short('d') if submits => words.content = Some(source(parser.value()?)?),
            Short('o') if word == "fetch" => words.output = Some(parser.value()?.into()),
            Short('t') if word == "wait" => {
                words.time_limit = Some(time(&parser.value()?.string()?)?);
            }
            Short('f') if word == "log" => words.follow = true,
            Long("state") if word == "list" => {
                words.list.state = Some(state(parser.value()?.string()?)?);
            }
            Long("json") if word == "list" => words.list.form = Form::Json,
            Value(operand) if word != "list" => words.operands.push(operand.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Some(words))
}

impl Words {
    fn action(self, word: &str) -> Result<Action, Trouble> {
        Ok(match word {
            "submit" => Action::Submit(self.submission(Source::Nothing)?),
            "run" => Action::Run(self.submission(Source::Inherited)?),
            "status" => Action::Status(self.ids()?),
            "wait" => Action::Wait(self.ids()?, self.time_limit),
            "fetch" => Action::Fetch(self.ids()?, self.output()?),
            "log" => Action::Log(self.ids()?, if self.follow { Follow::Yes } else { Follow::No }),
            "list" => Action::List(self.list),
            "cancel" => Action::Cancel(self.ids()?),
            "delete" => Action::Delete(self.ids()?),
            _ => return Err(Trouble::Usage("no such command".into())),
        })
    }

    /// Returns the submission; this is its content if the arguments name none.
    fn submission(self, content: Source) -> Result<Submission, Trouble> {
        let [path] = self.operands.as_slice() else {
            return Err(Trouble::Usage("one PATH is needed, as /run/backup".into()));
        };
        if !path.starts_with('/') {
            return Err(Trouble::Usage(format!("{path:?} does not begin with /")));
        }
        Ok(Submission {
            path: path.clone(),
            method: self.method,
            fields: self.fields,
            content: self.content.unwrap_or(content),
        })
    }

    fn ids(&self) -> Result<Vec<JobId>, Trouble> {
        let id = |text: &String| {
            let what = || Trouble::Usage(format!("{text:?} is not the id of a job"));
            JobId::parse(text).ok_or_else(what)
        };
        match self.operands.as_slice() {
            [] => Err(Trouble::Usage("an ID is needed".into())),
            operands => operands.iter().map(id).collect(),
        }
    }

    fn output(&self) -> Result<Output, Trouble> {
        match &self.output {
            None => Ok(Output::Stdout),
            Some(path) if path.as_os_str() == "-" => Ok(Output::Stdout),
            Some(_) if self.operands.len() > 1 => {
                Err(Trouble::Usage("-o FILE takes the content of one job".into()))
            }
            Some(path) => Ok(Output::File(path.clone())),
        }
    }
}

/// Returns the deferd that the arguments name, or else the environment.
fn server(url: Option<&str>, token_file: Option<&Path>) -> Result<Server, Trouble> {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let token = match token_file {
        Some(path) => Some(token(path)?),
        None => variable("DEFERD_TOKEN"),
    };
    let url = url.map(str::to_owned).or_else(|| variable("DEFERD_URL"));
    Server::new(url.as_deref().unwrap_or(DEFAULT_URL), token.as_deref())
}

fn token(path: &Path) -> Result<String, Trouble> {
    let what = |what: &dyn std::fmt::Display| {
        Trouble::Usage(format!("--token-file {}: {what}", path.display()))
    };
    let text = std::fs::read_to_string(path).map_err(|error| what(&error))?;
    match text.lines().next().map(str::trim) {
        Some(token) if !token.is_empty() => Ok(token.to_owned()),
        _ => Err(what(&"its first line is empty")),
    }
}

fn method(text: &str) -> Result<Method, Trouble> {
    text.parse().map_err(|_| Trouble::Usage(format!("-X {text:?}: not a method")))
}

fn source(value: OsString) -> Result<Source, Trouble> {
    let path = PathBuf::from(value);
    let bytes = path.as_os_str().as_encoded_bytes();
    match bytes {
        b"-" | b"@-" => Ok(Source::Stdin),
        [b'@', _, ..] => {
            use std::os::unix::ffi::OsStrExt;
            Ok(Source::File(std::ffi::OsStr::from_bytes(&bytes[1..]).into()))
        }
        _ => Err(Trouble::Usage(format!("-d {}: neither @FILE nor -", path.display()))),
    }
}

fn time(text: &str) -> Result<Duration, Trouble> {
    config::duration(text).map_err(|what| Trouble::Usage(format!("-t {text:?}: {what}")))
}

fn state(text: String) -> Result<String, Trouble> {
    match text.as_str() {
        "waiting" | "delayed" | "running" | "done" | "pending" => Ok(text),
        _ => Err(Trouble::Usage(format!(
            "--state {text:?}: neither waiting, delayed, running, done nor pending"
        ))),
    }
}

fn add_field(fields: &mut HeaderMap, line: &str) -> Result<(), Trouble> {
    let what = |what: &str| Trouble::Usage(format!("-H {line:?}: {what}"));
    let (name, value) = line.split_once(':').ok_or_else(|| what("not NAME: VALUE"))?;
    let name = HeaderName::try_from(name).map_err(|_| what("not the name of a field"))?;
    if name == AUTHORIZATION {
        // All users of the host can see a program's arguments, so the value is not repeated in the message either.
        return Err(Trouble::Usage(
            "-H authorization: put the token into DEFERD_TOKEN or --token-file".into(),
        ));
    }
    if OWN.contains(&name) {
        return Err(what("deferd sets this field itself"));
    }
    let value =
        HeaderValue::try_from(value.trim()).map_err(|_| what("not the value of a field"))?;
    fields.append(name, value);
    Ok(())
}
