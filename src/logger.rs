//! The logger: what is logged, by `--log` or `RUST_LOG`, and how a line looks.
//!
//! Owns the reading of `RUST_LOG`, which is an environment variable that was often meant for another program. Writes
//! nothing itself: `log_writer` does. Invariant: no value of `RUST_LOG` silences deferd but one that says so; what
//! is invalid in it is reported.

use std::io::{self, Write};
use std::panic;
use std::thread;
use std::time::Duration;

use log::{Level, LevelFilter};

use crate::log_writer::{Form, LogWriter, prioritized};

/// What is logged if nothing else is said.
const DEFAULT: LevelFilter = LevelFilter::Info;

/// The name of deferd's own messages.
const OWN: &str = "deferd";

/// How long the end of the process waits for the log to be written.
pub const FLUSH_TIME: Duration = Duration::from_secs(2);

/// Starts the log: at `level`, or as `RUST_LOG` says.
///
/// # Errors
/// If the system has no thread left.
pub fn start(level: Option<LevelFilter>) -> io::Result<Log> {
    let form = Form::of_stderr();
    let writer = LogWriter::start(form, io::stderr())?;
    let log = Log { writer, form };
    let filter = match (level, std::env::var("RUST_LOG")) {
        (Some(level), _) => Filter { level, names: Vec::new(), invalid: Vec::new() },
        (None, text) => Filter::read(&text.unwrap_or_default()),
    };
    for part in &filter.invalid {
        // Not by the logger: what is valid may silence it.
        let what = "neither off, error, warn, info, debug, trace nor NAME=LEVEL: ignored";
        log.say(Level::Warn, &format!("RUST_LOG {part:?}: {what}"));
    }
    let mut builder = env_logger::Builder::new();
    builder.filter_level(filter.level);
    for (name, level) in &filter.names {
        builder.filter_module(name, *level);
    }
    #[cfg(feature = "tiny_http")]
    builder.filter_module(crate::front::tiny_http::LOG_TARGET, LevelFilter::Off);
    if form == Form::Journal {
        builder.format(|line, record| {
            let text = match record.target() {
                own if own.starts_with(OWN) => record.args().to_string(),
                other => format!("{other}: {}", record.args()),
            };
            line.write_all(prioritized(record.level(), &text).as_bytes())
        });
    }
    builder.target(env_logger::Target::Pipe(Box::new(log.writer.clone()))).init();
    log_panics(&log);
    Ok(log)
}

/// Has a panic logged: the standard library's own message would wait for stderr.
fn log_panics(log: &Log) {
    let writer = log.writer.clone();
    panic::set_hook(Box::new(move |panic| {
        log::error!("{}", panic.to_string().replace('\n', " "));
        if thread::current().name() == Some("main") {
            writer.flush_within(FLUSH_TIME);
        }
    }));
}

/// The log as `main` sees it.
pub struct Log {
    writer: LogWriter,
    form: Form,
}

impl Log {
    /// Writes a line whatever the level is.
    pub fn say(&self, level: Level, text: &str) {
        // It never fails: a line without room is counted.
        let _ = self.writer.clone().write_all(self.form.line(level, text).as_bytes());
    }

    /// Waits until all is written; not for ever.
    pub fn flush(&self) {
        self.writer.flush_within(FLUSH_TIME);
    }
}

/// What is logged.
#[derive(Debug, PartialEq, Eq)]
struct Filter {
    /// Messages of every name.
    level: LevelFilter,
    /// But of those whose name begins so.
    names: Vec<(String, LevelFilter)>,
    /// What was not understood.
    invalid: Vec<String>,
}

impl Filter {
    /// Reads `RUST_LOG`: levels and `NAME=LEVEL`, with commas between them.
    fn read(text: &str) -> Self {
        let mut filter = Self { level: DEFAULT, names: Vec::new(), invalid: Vec::new() };
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            if let Ok(level) = part.parse() {
                filter.level = level;
                continue;
            }
            let named = match part.split_once('=') {
                // The name of another program's part concerns no message of deferd's.
                Some((name, level)) if !name.is_empty() => {
                    level.parse().ok().map(|level| (name, level))
                }
                // A name alone means all messages of that name.
                None if part == OWN || part.starts_with("deferd::") => {
                    Some((part, LevelFilter::Trace))
                }
                _ => None,
            };
            match named {
                Some((name, level)) => filter.names.push((name.to_owned(), level)),
                None => filter.invalid.push(part.to_owned()),
            }
        }
        filter
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rust_log_silences_deferd_only_if_it_says_so() {
        use LevelFilter::{Debug, Error, Info, Off, Trace, Warn};
        for (text, level, names, invalid) in [
            ("", Info, &[][..], &[][..]),
            (" , ", Info, &[], &[]),
            ("warn", Warn, &[], &[]),
            ("WARN", Warn, &[], &[]),
            ("off", Off, &[], &[]),
            ("error,debug", Debug, &[], &[]),
            ("verbose", Info, &[], &["verbose"]),
            ("warning", Info, &[], &["warning"]),
            ("warn,5", Warn, &[], &["5"]),
            ("error, nonsense", Error, &[], &["nonsense"]),
            ("other=trace", Info, &[("other", Trace)], &[]),
            ("deferd=debug", Info, &[("deferd", Debug)], &[]),
            ("deferd::service=off,warn", Warn, &[("deferd::service", Off)], &[]),
            ("deferd", Info, &[("deferd", Trace)], &[]),
            ("deferd=loud", Info, &[], &["deferd=loud"]),
            ("=warn", Info, &[], &["=warn"]),
            ("other", Info, &[], &["other"]),
        ] {
            let names = names.iter().map(|(name, level)| ((*name).to_owned(), *level)).collect();
            let invalid = invalid.iter().map(|part| (*part).to_owned()).collect();
            assert_eq!(Filter::read(text), Filter { level, names, invalid }, "{text}");
        }
    }
}
