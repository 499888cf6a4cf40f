//! The form of a route: `PREFIX=TARGET[,option=value]...`.
//!
//! Owns its syntax. Whether the directory exists is seen when the route is built, not here.

use std::path::PathBuf;
use std::time::Duration;

use super::value;
use crate::api;
use crate::store::StartRecord;

/// A route as it was configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteConfig {
    /// The path prefix.
    pub prefix: String,
    /// What stands behind it.
    pub target: Target,
    /// How long its jobs may run, where not as `--timeout` says.
    pub timeout: Option<Duration>,
    /// How many of its jobs run at once, where not as many as there are workers.
    pub concurrency: Option<usize>,
    /// How much its scripts may write to stdout, where not as `--max-output` says.
    pub max_output: Option<usize>,
    /// What has to be known of its jobs after a crash: `rerun=yes` runs them again.
    pub start_record: StartRecord,
}

/// What stands behind a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// CGI scripts below a directory.
    Cgi(PathBuf),
    /// Plain programs below a directory.
    Run(PathBuf),
}

/// Reads a route.
///
/// # Errors
/// What is wrong.
pub fn parse(text: &str) -> Result<RouteConfig, String> {
    let (prefix, rest) = text.split_once('=').ok_or("not of the form PREFIX=TARGET")?;
    let mut rest = rest.split(',');
    let target = target(rest.next().unwrap_or_default())?;
    let prefix = checked_prefix(prefix)?.to_owned();
    let mut route = RouteConfig {
        prefix,
        target,
        timeout: None,
        concurrency: None,
        max_output: None,
        start_record: StartRecord::Before,
    };
    for option in rest {
        let (name, text) = option
            .split_once('=')
            .ok_or_else(|| format!("{option:?} is not of the form option=value"))?;
        match name {
            "timeout" => value::duration(text).map(|v| route.timeout = Some(v)),
            "concurrency" => value::count(text).map(|v| route.concurrency = Some(v)),
            "max-output" => value::size(text).map(|v| route.max_output = Some(v)),
            "rerun" => rerun(text).map(|v| route.start_record = v),
            _ => Err("no such option of a route: timeout, concurrency, max-output, rerun".into()),
        }
        .map_err(|what| format!("{name} {text:?}: {what}"))?;
    }
    Ok(route)
}

fn rerun(text: &str) -> Result<StartRecord, String> {
    match text {
        "yes" => Ok(StartRecord::Never),
        "no" => Ok(StartRecord::Before),
        _ => Err("neither yes nor no".into()),
    }
}

fn checked_prefix(prefix: &str) -> Result<&str, String> {
    let own =
        |reserved: &&str| prefix.starts_with(*reserved) || prefix == reserved.trim_end_matches('/');
    if !prefix.starts_with('/') {
        return Err("the prefix does not begin with /".into());
    }
    if api::PREFIXES.iter().chain(&["/_db/"]).any(own) {
        return Err("/_api/, /_admin/ and /_db/ are deferd's own".into());
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/-._~!$&'()*+;:@".contains(&b);
    if !prefix.bytes().all(plain) || prefix.contains("//") {
        return Err("the prefix has characters that no plain path has".into());
    }
    Ok(prefix)
}

fn target(text: &str) -> Result<Target, String> {
    match text.split_once(':') {
        Some(("cgi", directory)) if !directory.is_empty() => Ok(Target::Cgi(directory.into())),
        Some(("run", directory)) if !directory.is_empty() => Ok(Target::Run(directory.into())),
        _ => Err("the target is neither cgi:DIR nor run:DIR".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_read() {
        let route = parse("/cgi-bin/=cgi:/srv/a=b,timeout=5s,concurrency=1,max-output=1M").unwrap();
        assert_eq!(route.prefix, "/cgi-bin/");
        assert_eq!(route.target, Target::Cgi("/srv/a=b".into()));
        assert_eq!(route.timeout, Some(Duration::from_secs(5)));
        assert_eq!((route.concurrency, route.max_output), (Some(1), Some(1 << 20)));
        assert_eq!(route.start_record, StartRecord::Before);
        assert_eq!(parse("/=run:x").unwrap().target, Target::Run("x".into()));
        assert_eq!(parse("/=run:x,rerun=yes").unwrap().start_record, StartRecord::Never);
    }

    #[test]
    fn routes_are_refused() {
        for (text, part) in [
            ("/x", "PREFIX=TARGET"),
            ("x=run:y", "begin with /"),
            ("/_api/x=run:y", "deferd's own"),
            ("/_admin=run:y", "deferd's own"),
            ("/_db/=run:y", "deferd's own"),
            ("/a b=run:y", "plain path"),
            ("/a//b=run:y", "plain path"),
            ("/x=y", "neither cgi:DIR"),
            ("/x=run:", "neither cgi:DIR"),
            ("/x=fcgi:y", "neither cgi:DIR"),
            ("/x=run:y,timeout", "option=value"),
            ("/x=run:y,timeout=5", "timeout \"5\": no unit"),
            ("/x=run:y,colour=red", "no such option of a route"),
            ("/x=run:y,concurrency=0", "at least 1"),
            ("/x=run:y,rerun=maybe", "rerun \"maybe\": neither yes nor no"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
