//! The form of a route: `PREFIX=TARGET[,option=value]...`.
//!
//! Owns its syntax, and the options of a route by name. Does not check that the directory exists: that happens when
//! the route is built. Invariant: a route is either read completely, or refused with its option, value and what is
//! wrong.

use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use http::uri::Authority;

use super::hook::{self, HookConfig};
use super::value;
use crate::job::Rerun;
use crate::job::execution::OnLeave;
use crate::protocol::{ADMIN, API, DATABASE};
use crate::retry::{After, ExitCodes, Methods, Retry, TEMPORARY_FAILURE};
use crate::variables;

/// A route as the operator configured it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteConfig {
    /// Its place in errors: `--route`, or a line of a file.
    pub place: String,
    /// The path prefix.
    pub prefix: String,
    /// Its target.
    pub target: Target,
    /// The time limit of its jobs, if not `--timeout`.
    pub timeout: Option<Duration>,
    /// How many of its jobs run at once; `None`: as many as there are workers.
    pub concurrency: Option<usize>,
    /// The limit of its scripts' stdout or its upstream's answers, if not `--max-output`.
    pub max_output: Option<usize>,
    /// What happens to its jobs that a crash interrupted.
    pub rerun: Rerun,
    /// What happens to a synchronous run whose client leaves.
    pub on_leave: OnLeave,
    /// The time limit of connecting to its upstream, if not [`CONNECT_TIMEOUT`].
    pub connect_timeout: Option<Duration>,
    /// Whether its jobs are tried again.
    pub retry: Option<Retry>,
    /// Which web pages may send requests to it.
    pub pages: Pages,
    /// Where symbolic links below the directory of its scripts may lead.
    pub links: Links,
    /// The file of variables for its scripts.
    pub env_file: Option<PathBuf>,
    /// Which of deferd's own variables its scripts get.
    pub pass_env: Vec<String>,
    /// The options for webhooks: their clients cannot use deferd's own fields.
    pub hook: HookConfig,
}

/// Where symbolic links below the directory of a route may lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// Only below that directory.
    Inside,
    /// Anywhere: `links=yes`.
    Anywhere,
}

/// Which web pages may send requests to a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// Pages of this server, and of the allowed origins.
    Own,
    /// All: `pages=any`.
    Any,
}

/// The time limit of connecting to an upstream, unless its route has one.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The pause before the second attempt at a job, unless its route has one.
const BACKOFF: Duration = Duration::from_secs(1);

/// The target of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// CGI scripts below a directory.
    Cgi(PathBuf),
    /// Plain programs below a directory.
    Run(PathBuf),
    /// An HTTP service.
    Upstream(Uri),
}

impl RouteConfig {
    /// Returns all its paths: in a file, relative paths begin at the file's directory.
    pub(super) fn paths_mut(&mut self) -> Vec<&mut PathBuf> {
        let directory = match &mut self.target {
            Target::Cgi(directory) | Target::Run(directory) => Some(directory),
            Target::Upstream(_) => None,
        };
        directory.into_iter().chain(&mut self.env_file).chain(&mut self.hook.secret).collect()
    }
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
        place: "--route".into(),
        prefix,
        target,
        timeout: None,
        concurrency: None,
        max_output: None,
        rerun: Rerun::No,
        on_leave: OnLeave::Cancel,
        connect_timeout: None,
        retry: None,
        pages: Pages::Own,
        links: Links::Inside,
        env_file: None,
        pass_env: Vec::new(),
        hook: HookConfig::default(),
    };
    for option in rest {
        let (name, text) = option
            .split_once('=')
            .ok_or_else(|| format!("{option:?} is not of the form option=value"))?;
        set(&mut route, name, text).map_err(|what| format!("{name} {text:?}: {what}"))?;
    }
    if route.retry.as_ref().is_some_and(|retry| retry.most == 0) {
        return Err("backoff, retry-on and unsafe say how to try again, and retry=N how often: \
                    it is missing"
            .into());
    }
    route.hook.check()?;
    Ok(route)
}

/// Sets one option of a route from its text.
pub type Setter = fn(&mut RouteConfig, &str) -> Result<(), String>;

/// The options of every route.
const OPTIONS: [(&str, Setter); 8] = [
    ("timeout", |r, v| value::duration(v).map(|v| r.timeout = Some(v))),
    ("concurrency", |r, v| value::count(v).map(|v| r.concurrency = Some(v))),
    ("max-output", |r, v| value::size(v).map(|v| r.max_output = Some(v))),
    ("rerun", |r, v| yes_no(v, Rerun::Yes, Rerun::No).map(|v| r.rerun = v)),
    ("ignore-abort", |r, v| yes_no(v, OnLeave::GoOn, OnLeave::Cancel).map(|v| r.on_leave = v)),
    ("pages", |r, v| {
        value::choice(v, [("any", Pages::Any), ("own", Pages::Own)]).map(|v| r.pages = v)
    }),
    ("retry", |r, v| value::count(v).map(|v| retry(r).most = few(v))),
    ("backoff", |r, v| value::duration(v).map(|v| retry(r).backoff = v)),
];

/// The further options of a route to scripts.
const OF_SCRIPTS: [(&str, Setter); 4] = [
    ("links", |r, v| yes_no(v, Links::Anywhere, Links::Inside).map(|v| r.links = v)),
    ("env-file", |r, v| value::path(v).map(|v| r.env_file = Some(v))),
    ("pass-env", |r, v| names(v).map(|mut v| r.pass_env.append(&mut v))),
    ("retry-on", |r, v| exit_codes(v).map(|v| retry(r).after = After::Script(v))),
];

/// The further options of a route to an upstream.
const OF_UPSTREAMS: [(&str, Setter); 2] = [
    ("connect-timeout", |r, v| value::duration(v).map(|v| r.connect_timeout = Some(v))),
    ("unsafe", |r, v| {
        let methods = yes_no(v, Methods::All, Methods::Idempotent);
        methods.map(|v| retry(r).after = After::Upstream(v))
    }),
];

/// Sets one option.
fn set(route: &mut RouteConfig, name: &str, text: &str) -> Result<(), String> {
    let (kind, more): (_, &[_]) = match route.target {
        Target::Upstream(_) => ("a route", &OF_UPSTREAMS),
        Target::Cgi(_) | Target::Run(_) => ("a route to scripts", &OF_SCRIPTS),
    };
    let options = OPTIONS.iter().chain(more).chain(&hook::OPTIONS);
    if let Some((_, setter)) = options.clone().find(|(option, _)| *option == name) {
        return setter(route, text);
    }
    let names: Vec<&str> = options.map(|(name, _)| *name).collect();
    Err(format!("no such option of {kind}: {}", names.join(", ")))
}

/// Reads names of variables, separated by `+`.
fn names(text: &str) -> Result<Vec<String>, String> {
    let names = text.split('+').map(|name| variables::check_name(name).map(|()| name.to_owned()));
    names.collect()
}

fn yes_no<T: Copy>(text: &str, yes: T, no: T) -> Result<T, String> {
    value::choice(text, [("yes", yes), ("no", no)])
}

/// Returns the retry rule of a route, and creates it if needed; only the option `retry` turns retrying on.
fn retry(route: &mut RouteConfig) -> &mut Retry {
    let after = match route.target {
        Target::Upstream(_) => After::Upstream(Methods::Idempotent),
        Target::Cgi(_) | Target::Run(_) => After::Script(ExitCodes::Of(vec![TEMPORARY_FAILURE])),
    };
    route.retry.get_or_insert(Retry { most: 0, backoff: BACKOFF, after })
}

/// Reads exit codes that mean failure, separated by `+`, or `any`.
fn exit_codes(text: &str) -> Result<ExitCodes, String> {
    if text == "any" {
        return Ok(ExitCodes::Any);
    }
    let code = |text: &str| {
        let digits = text.bytes().all(|b| b.is_ascii_digit());
        let code = text.parse().ok().filter(|&code: &u8| code > 0 && digits);
        code.ok_or("neither any nor exit codes from 1 to 255, as 75+1")
    };
    let codes: Result<_, &str> = text.split('+').map(code).collect();
    Ok(ExitCodes::Of(codes?))
}

/// Bounds a number of attempts: more would take longer than any client waits.
fn few(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX - 1)
}

fn checked_prefix(prefix: &str) -> Result<&str, String> {
    let is_below =
        |reserved: &str| prefix.starts_with(reserved) || prefix == reserved.trim_end_matches('/');
    if !prefix.starts_with('/') {
        return Err("the prefix does not begin with /".into());
    }
    if [API, ADMIN, DATABASE].into_iter().any(is_below) {
        return Err(format!("{API}, {ADMIN} and {DATABASE} are deferd's own"));
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
        Some(("http" | "https", rest)) if rest.starts_with("//") => {
            upstream(text).map(Target::Upstream)
        }
        _ => Err("the target is neither cgi:DIR, run:DIR nor http://HOST[:PORT]/PATH".into()),
    }
}

fn upstream(text: &str) -> Result<Uri, String> {
    let uri: Uri = text.parse().map_err(|error| format!("the target is not a URL: {error}"))?;
    let authority = uri.authority().map_or("", Authority::as_str);
    if authority.contains('@') {
        return Err(
            "the target must have no user in it: clients bring their own credentials".into()
        );
    }
    let host = uri.host().unwrap_or_default();
    // The port of `host:` or `host:99999` is invalid.
    if host.is_empty() || (authority.len() > host.len() && uri.port_u16().is_none()) {
        return Err("the target has no host or an invalid port".into());
    }
    if text.contains(['?', '#']) {
        return Err("the target must end with its path: the query is the client's".into());
    }
    if uri.scheme_str() == Some("https") && cfg!(not(feature = "tls")) {
        return Err("this deferd was built without https: build it with the feature tls".into());
    }
    Ok(uri)
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
        assert_eq!(route.rerun, Rerun::No);
        assert_eq!(parse("/=run:x").unwrap().target, Target::Run("x".into()));
        assert_eq!(parse("/=run:x,rerun=yes").unwrap().rerun, Rerun::Yes);
        assert_eq!(parse("/=run:x").unwrap().pages, Pages::Own);
        assert_eq!(parse("/=http://h/,pages=any").unwrap().pages, Pages::Any);
        assert_eq!(parse("/=run:x,pages=any,pages=own").unwrap().pages, Pages::Own);
        assert_eq!(parse("/=run:x").unwrap().on_leave, OnLeave::Cancel);
        for target in ["cgi:x", "run:x", "http://h"] {
            let route = parse(&format!("/={target},ignore-abort=yes")).unwrap();
            assert_eq!(route.on_leave, OnLeave::GoOn, "{target}");
        }
        let route = parse("/=cgi:x,links=yes,env-file=/etc/x.env,pass-env=A+B,pass-env=C").unwrap();
        assert_eq!((route.links, route.env_file), (Links::Anywhere, Some("/etc/x.env".into())));
        assert_eq!(route.pass_env, ["A", "B", "C"]);
        let route = parse("/llm/=http://[::1]:11434/v1,connect-timeout=300ms").unwrap();
        let uri: Uri = "http://[::1]:11434/v1".parse().unwrap();
        assert_eq!(route.target, Target::Upstream(uri));
        assert_eq!((route.connect_timeout, route.retry), (Some(Duration::from_millis(300)), None));
        let route = parse("/x=http://h,retry=3,backoff=5s,unsafe=yes").unwrap();
        let backoff = Duration::from_secs(5);
        assert_eq!(
            route.retry,
            Some(Retry { most: 3, backoff, after: After::Upstream(Methods::All) })
        );
        let retry = parse("/x=http://h,retry=1").unwrap().retry.unwrap();
        assert_eq!(retry.backoff, BACKOFF);
        assert_eq!(retry.after, After::Upstream(Methods::Idempotent));
        for (text, codes) in [
            ("/x=run:y,retry=3", ExitCodes::Of(vec![75])),
            ("/x=run:y,retry=3,retry-on=75+1", ExitCodes::Of(vec![75, 1])),
            ("/x=cgi:y,retry-on=255,retry=3", ExitCodes::Of(vec![255])),
            ("/x=cgi:y,retry=3,retry-on=any", ExitCodes::Any),
        ] {
            let retry = parse(text).unwrap().retry.unwrap();
            assert_eq!((retry.most, retry.after), (3, After::Script(codes)), "{text}");
        }
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
            (
                "/x=run:y,colour=red",
                "a route to scripts: timeout, concurrency, max-output, rerun, ",
            ),
            ("/x=http://h,colour=red", "a route: timeout, concurrency, max-output, rerun, "),
            ("/x=http://h,colour=red", "pages, retry, backoff, connect-timeout, unsafe"),
            ("/x=run:y,concurrency=0", "at least 1"),
            ("/x=run:y,rerun=maybe", "rerun \"maybe\": neither yes nor no"),
            ("/x=run:y,pages=all", "pages \"all\": neither any nor own"),
            ("/x=run:y,ignore-abort=maybe", "ignore-abort \"maybe\": neither yes nor no"),
            ("/x=run:y,links=maybe", "links \"maybe\": neither yes nor no"),
            ("/x=http://h,links=yes", "no such option of a route"),
            ("/x=run:y,env-file=", "env-file \"\": not a path"),
            ("/x=run:y,pass-env=A+", "not the name of a variable"),
            ("/x=run:y,pass-env=A=B", "not the name of a variable"),
            ("/x=run:y,pass-env=HTTP_PROXY", "HTTP_PROXY is a field"),
            ("/x=run:y,pass-env=DEFERD_JOB_ID", "deferd's own"),
            ("/x=run:y,pass-env=A+SCRIPT_NAME", "SCRIPT_NAME tells of the request"),
            ("/x=run:y,connect-timeout=1s", "no such option of a route to scripts"),
            ("/x=run:y,unsafe=yes", "no such option of a route to scripts"),
            ("/x=http://h/,retry-on=75", "no such option of a route"),
            ("/x=run:y,retry-on=75", "it is missing"),
            ("/x=run:y,retry=1,retry-on=0", "retry-on \"0\": neither any nor exit codes"),
            ("/x=run:y,retry=1,retry-on=256", "from 1 to 255"),
            ("/x=run:y,retry=1,retry-on=75+", "from 1 to 255"),
            ("/x=run:y,retry=1,retry-on=+75", "from 1 to 255"),
            ("/x=run:y,retry=1,retry-on=TEMPFAIL", "from 1 to 255"),
            ("/x=http://h/,retry=0", "at least 1"),
            ("/x=http://h/,backoff=1s", "it is missing"),
            ("/x=http://h/,unsafe=yes", "it is missing"),
            ("/x=http://h/,retry=1,unsafe=1", "neither yes nor no"),
            ("/x=http:y", "neither cgi:DIR"),
            ("/x=http://", "not a URL"),
            ("/x=http://h:/", "an invalid port"),
            ("/x=http://h:99999/", "an invalid port"),
            ("/x=http://u:p@h/", "no user"),
            ("/x=http://h/?q=1", "end with its path"),
            ("/x=http://h/#f", "end with its path"),
            #[cfg(not(feature = "tls"))]
            ("/x=https://h/", "without https"),
            ("/x=ftp://h/", "neither cgi:DIR"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
