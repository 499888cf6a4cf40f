//! From the configured routes to the route table, including the built-in endpoints.
//!
//! Owns the defaults of a route. Starts nothing. Invariant: every route that could otherwise run without a bound has a
//! limit for its synchronous callers.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::{StatusCode, Uri};

use super::programs;
use crate::api::{Access, Api};
use crate::config::{CONNECT_TIMEOUT, Config, HookConfig, Invalid, Pages, RouteConfig, Target};
use crate::deferral::OfRoute;
use crate::descriptors::Descriptors;
use crate::exchange::Owner;
use crate::handler::cgi::CgiHandler;
use crate::handler::completion::{self, CompletionHandler};
use crate::handler::run::RunHandler;
use crate::handler::upstream::callback::{self, CallbackHandler};
use crate::handler::upstream::{UpstreamHandler, UpstreamRoute};
use crate::handler::{Handler, ScriptRoute};
use crate::job::Rerun;
use crate::job::execution::OnLeave;
use crate::job::notice::NoticeLane;
use crate::jobs::Jobs;
use crate::ledger::schedule::Limit;
use crate::methods::AllowedMethods;
use crate::protocol::{ADMIN, API, SERVER};
use crate::retry::{After, Methods, Retry};
use crate::routes::{Route, Routes};
use crate::signature::{Scheme, Signature};
use crate::store::{Lane, Plan, Tells};
use crate::test_variable;
use crate::variables::Variables;

/// How many synchronous callers of a route run at once for each worker, if the route sets no limit.
const CALLERS_PER_WORKER: usize = 4;

/// How often a callback is sent at most, and the pause before the second attempt; it is doubled each time.
const CALLBACK_ATTEMPTS: u32 = 5;
const CALLBACK_BACKOFF: Duration = Duration::from_secs(5);

/// The prefixes of the built-in endpoints, which are the first routes of the table.
const BUILT_IN: [&str; 3] = [ADMIN, API, SERVER];

/// Returns the route table: the built-in endpoints and the configured routes.
///
/// # Errors
/// [`Invalid`], which names the route that cannot be served.
pub fn routes(
    config: &Config,
    jobs: &Arc<Jobs>,
    descriptors: &Descriptors,
) -> Result<Routes, Invalid> {
    let access = if config.auth.is_some() { Access::Credentials } else { Access::Open };
    let all = prefixes(config).chain(NoticeLane::ALL.map(NoticeLane::name));
    let all: Arc<[String]> = all.map(str::to_owned).collect();
    let api = || Api::new(Arc::clone(jobs), access, Arc::clone(&all), config.timeout);
    let built_in = BUILT_IN.into_iter().map(|prefix| Route {
        prefix: prefix.into(),
        callers: None,
        on_leave: OnLeave::Cancel,
        time_limit: config.timeout,
        retry: None,
        pages: Pages::Own,
        methods: AllowedMethods::OfHandler,
        deferral: OfRoute::default(),
        signature: None,
        handler: Box::new(api()),
    });
    let mut programs = Vec::new();
    let mut configured = Vec::new();
    for route in &config.routes {
        let variables = Variables::load(route.env_file.clone(), route.pass_env.clone());
        let variables =
            variables.map_err(|what| Invalid::new(&route.place, &route.prefix, what))?;
        let variables = Arc::new(variables);
        configured.push(Route {
            prefix: route.prefix.clone(),
            callers: match limit(route, config) {
                Limit::Shared(limit) | Limit::Callers(limit) => Some(limit),
                Limit::Open => None,
            },
            on_leave: route.on_leave,
            time_limit: route.timeout.unwrap_or(config.timeout),
            retry: route.retry.clone(),
            pages: route.pages,
            methods: methods(route),
            deferral: deferral(route),
            signature: signature(route)?,
            handler: handler(route, config, descriptors, &variables)?,
        });
        programs.extend(programs::of(route, config, &variables)?);
    }
    let completion = CompletionHandler::new(programs, descriptors.of_scripts);
    let time_limit = test_variable::duration("DEFERD_TEST_CALLBACK_TIME", callback::TIME_LIMIT);
    let allowed = config.allow_callback.clone().into();
    let max_age = test_variable::duration("DEFERD_TEST_CALLBACK_AGE", callback::MAX_AGE);
    let callback = CallbackHandler::new(allowed, secret(config)?, (time_limit, max_age));
    // In the order of `NoticeLane::ALL`.
    let notices = [
        notices(NoticeLane::Completion, completion::TIME_LIMIT, None, Box::new(completion)),
        notices(NoticeLane::Callback, time_limit, Some(again()), Box::new(callback)),
    ];
    Ok(Routes::new(built_in.chain(configured).chain(notices).collect()))
}

/// Returns the route for a lane of notices, to which no request of a client leads.
fn notices(
    lane: NoticeLane,
    time_limit: Duration,
    retry: Option<Retry>,
    handler: Box<dyn Handler>,
) -> Route {
    Route {
        prefix: lane.name().into(),
        callers: None,
        on_leave: OnLeave::Cancel,
        time_limit,
        retry,
        pages: Pages::Own,
        methods: AllowedMethods::OfHandler,
        deferral: OfRoute::default(),
        signature: None,
        handler,
    }
}

/// Returns how callbacks are retried: after any failure, whichever error of deferd's own represents it.
fn again() -> Retry {
    let backoff = test_variable::duration("DEFERD_TEST_CALLBACK_BACKOFF", CALLBACK_BACKOFF);
    Retry { most: CALLBACK_ATTEMPTS - 1, backoff, after: After::Upstream(Methods::All) }
}

/// Reads the secrets of callbacks.
fn secret(config: &Config) -> Result<Option<Signature>, Invalid> {
    let Some(path) = &config.callback_secret else { return Ok(None) };
    let signature = Signature::load(Scheme::Standard, path, Owner::anonymous());
    let place = config.place("callback-secret");
    signature.map(Some).map_err(|what| Invalid::new(&place, &path.display().to_string(), what))
}

fn methods(route: &RouteConfig) -> AllowedMethods {
    route.hook.methods.clone().map_or(AllowedMethods::NoTrace, AllowedMethods::Listed)
}

/// Returns how the requests of a route are deferred if their clients do not ask for it.
fn deferral(route: &RouteConfig) -> OfRoute {
    let HookConfig { defer, accepted, idempotency, .. } = &route.hook;
    OfRoute {
        keep: *defer,
        accepted: accepted.unwrap_or(StatusCode::ACCEPTED),
        key_field: idempotency.clone(),
    }
}

/// Reads the secrets of a route.
fn signature(route: &RouteConfig) -> Result<Option<Signature>, Invalid> {
    let HookConfig { secret: Some(path), signature: Some(scheme), owner, .. } = &route.hook else {
        return Ok(None);
    };
    let owner = owner.as_deref().map_or(Owner::anonymous(), Owner::named);
    let signature = Signature::load(*scheme, path, owner);
    let invalid = |what| {
        Invalid::new(&route.place, &route.prefix, format!("secret {}: {what}", path.display()))
    };
    signature.map(Some).map_err(invalid)
}

/// Returns the prefixes of all routes, in the order of the table.
pub fn prefixes(config: &Config) -> impl Iterator<Item = &str> {
    BUILT_IN.into_iter().chain(config.routes.iter().map(|route| route.prefix.as_str()))
}

/// Returns how jobs run: a lane for each route of the table, in its order.
pub fn plan(config: &Config) -> Plan {
    let tells = Tells::NONE;
    let built_in = BUILT_IN.map(|_| Lane { limit: Limit::Open, rerun: Rerun::Harmless, tells });
    let configured = config.routes.iter().map(|route| {
        let (limit, rerun) = (limit(route, config), route.rerun);
        Lane { limit, rerun, tells: programs::tells(route) }
    });
    Plan {
        workers: config.workers,
        queue: config.queue,
        ttl: config.ttl,
        log_ttl: config.log_ttl,
        lanes: built_in.into_iter().chain(configured).collect(),
    }
}

/// Returns how many requests of a route run at once. If the route sets no limit, synchronous callers still have one if
/// each costs a process, or if a run can outlast its client: the limit of connections does not bound those.
fn limit(route: &RouteConfig, config: &Config) -> Limit {
    let is_script = !matches!(route.target, Target::Upstream(_));
    match route.concurrency {
        Some(limit) => Limit::Shared(limit),
        None if is_script || route.on_leave == OnLeave::GoOn => {
            Limit::Callers(CALLERS_PER_WORKER * config.workers)
        }
        None => Limit::Open,
    }
}

fn handler(
    route: &RouteConfig,
    config: &Config,
    descriptors: &Descriptors,
    variables: &Arc<Variables>,
) -> Result<Box<dyn Handler>, Invalid> {
    let script = |directory| {
        let script = script(route, config, directory, variables)?;
        let descriptor_limit = descriptors.of_scripts;
        Ok::<_, Invalid>(ScriptRoute { descriptor_limit, ..script })
    };
    match &route.target {
        Target::Cgi(directory) => Ok(Box::new(CgiHandler::new(script(directory)?))),
        Target::Run(directory) => Ok(Box::new(RunHandler::new(script(directory)?))),
        Target::Upstream(uri) => Ok(Box::new(UpstreamHandler::new(upstream(route, config, uri)?))),
    }
}

fn script(
    route: &RouteConfig,
    config: &Config,
    directory: &Path,
    variables: &Arc<Variables>,
) -> Result<ScriptRoute, Invalid> {
    let invalid = |what: io::Error| {
        let what = format!("directory {}: {what}", directory.display());
        Invalid::new(&route.place, &route.prefix, what)
    };
    if !directory.metadata().map_err(invalid)?.is_dir() {
        return Err(invalid(io::ErrorKind::NotADirectory.into()));
    }
    Ok(ScriptRoute {
        prefix: route.prefix.clone(),
        // The handler resolves its links for each request.
        directory: std::path::absolute(directory).map_err(invalid)?,
        links: route.links,
        variables: Arc::clone(variables),
        time_limit: route.timeout.unwrap_or(config.timeout),
        max_output: max_output(route, config),
        descriptor_limit: None,
    })
}

/// Returns how much a script or an upstream of this route may send, in bytes.
fn max_output(route: &RouteConfig, config: &Config) -> usize {
    route.max_output.unwrap_or(config.sizes().output)
}

fn upstream(route: &RouteConfig, config: &Config, uri: &Uri) -> Result<UpstreamRoute, Invalid> {
    let (Some(scheme), Some(authority)) = (uri.scheme(), uri.authority()) else {
        return Err(Invalid::new(&route.place, &route.prefix, "the target has no host"));
    };
    Ok(UpstreamRoute {
        prefix: route.prefix.clone(),
        scheme: scheme.clone(),
        authority: authority.clone(),
        path: uri.path().to_owned(),
        time_limit: route.timeout.unwrap_or(config.timeout),
        connect_limit: route.connect_timeout.unwrap_or(CONNECT_TIMEOUT),
        max_output: max_output(route, config),
        max_head: config.max_head,
    })
}
