//! From the configured routes to the route table, with the built-in endpoints in it.
//!
//! Owns what a route has if its configuration says nothing. Starts nothing. Invariant: every route that could
//! run without a bound has one for its synchronous callers.

use std::io;
use std::path::Path;
use std::sync::Arc;

use http::Uri;

use crate::api::{self, Access, Api};
use crate::config::{CONNECT_TIMEOUT, Config, Invalid, Pages, Rerun, RouteConfig, Target};
use crate::descriptors::Descriptors;
use crate::handler::cgi::CgiHandler;
use crate::handler::run::RunHandler;
use crate::handler::upstream::{UpstreamHandler, UpstreamRoute};
use crate::handler::{Handler, ScriptRoute};
use crate::job::execution::OnLeave;
use crate::jobs::Jobs;
use crate::routes::{Route, Routes};
use crate::store::StartRecord;

/// How many synchronous callers of a route run at once for each worker, if the route says nothing else.
const CALLERS_PER_WORKER: usize = 4;

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
    let built_in = api::PREFIXES.into_iter().map(|prefix| Route {
        prefix: prefix.into(),
        gate: None,
        callers: None,
        on_leave: OnLeave::Cancel,
        time_limit: config.timeout,
        start_record: StartRecord::Soon,
        retry: None,
        pages: Pages::Own,
        handler: Box::new(Api::new(Arc::clone(jobs), access, config.timeout)),
    });
    let most_callers = CALLERS_PER_WORKER * config.workers;
    let configured = config.routes.iter().map(|route| {
        Ok(Route {
            prefix: route.prefix.clone(),
            gate: route.concurrency.map(|limit| jobs.queue.new_gate(limit)),
            callers: bounds_callers(route).then(|| jobs.queue.new_gate(most_callers)),
            on_leave: route.on_leave,
            time_limit: route.timeout.unwrap_or(config.timeout),
            start_record: match route.rerun {
                Rerun::Yes => StartRecord::Never,
                Rerun::No => StartRecord::Before,
            },
            retry: route.retry,
            pages: route.pages,
            handler: handler(route, config, descriptors)?,
        })
    });
    let routes: Result<Vec<Route>, Invalid> = built_in.map(Ok).chain(configured).collect();
    routes.map(Routes::new)
}

/// Returns whether a route without a limit of its own bounds its synchronous callers. A script costs a process; a
/// run that goes on without its client is not bounded by the connections.
fn bounds_callers(route: &RouteConfig) -> bool {
    let is_script = !matches!(route.target, Target::Upstream(_));
    route.concurrency.is_none() && (is_script || route.on_leave == OnLeave::GoOn)
}

fn handler(
    route: &RouteConfig,
    config: &Config,
    descriptors: &Descriptors,
) -> Result<Box<dyn Handler>, Invalid> {
    let script = |directory| {
        let script = script(route, config, directory)?;
        let descriptor_limit = descriptors.of_scripts;
        Ok::<_, Invalid>(ScriptRoute { descriptor_limit, ..script })
    };
    match &route.target {
        Target::Cgi(directory) => Ok(Box::new(CgiHandler::new(script(directory)?))),
        Target::Run(directory) => Ok(Box::new(RunHandler::new(script(directory)?))),
        Target::Upstream(uri) => Ok(Box::new(UpstreamHandler::new(upstream(route, config, uri)?))),
    }
}

fn script(route: &RouteConfig, config: &Config, directory: &Path) -> Result<ScriptRoute, Invalid> {
    let invalid = |what: io::Error| {
        Invalid::new("--route", &route.prefix, format!("directory {}: {what}", directory.display()))
    };
    let real = directory.canonicalize().map_err(invalid)?;
    if !real.is_dir() {
        return Err(invalid(io::ErrorKind::NotADirectory.into()));
    }
    Ok(ScriptRoute {
        prefix: route.prefix.clone(),
        directory: real,
        time_limit: route.timeout.unwrap_or(config.timeout),
        max_output: max_output(route, config),
        descriptor_limit: None,
    })
}

/// Returns how much a script or upstream of this route may give, in bytes.
fn max_output(route: &RouteConfig, config: &Config) -> usize {
    route.max_output.map_or(config.sizes().output, |most| most.min(config.most_content()))
}

fn upstream(route: &RouteConfig, config: &Config, uri: &Uri) -> Result<UpstreamRoute, Invalid> {
    let (Some(scheme), Some(authority)) = (uri.scheme(), uri.authority()) else {
        return Err(Invalid::new("--route", &route.prefix, "the target has no host"));
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
