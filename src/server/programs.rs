//! The completion programs of routes: found at the start, and refused if a URL leads to them.
//!
//! Owns that rule. Runs nothing. Invariant: a program below the directory of a route is hidden there: a name in its
//! path begins with a dot, and `locate` refuses such paths. A link in a route with `links=yes` may lead anywhere: the
//! log warns about that.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Access, access};

use crate::config::{Config, Invalid, Links, RouteConfig, Target};
use crate::handler::completion::Programs;
use crate::job::notice::Event;
use crate::ledger::Tells;
use crate::variables::Variables;

/// Returns which programs of a route are notified about its jobs.
pub const fn tells(route: &RouteConfig) -> Tells {
    Tells { on_done: route.hook.on_done.is_some(), on_failure: route.hook.on_failure.is_some() }
}

/// Finds the programs of a route; `None` for a route without them.
///
/// # Errors
/// [`Invalid`], which names the route, the option and the program.
pub fn of(
    route: &RouteConfig,
    config: &Config,
    variables: &Arc<Variables>,
) -> Result<Option<Programs>, Invalid> {
    if tells(route) == Tells::NONE {
        return Ok(None);
    }
    let find = |event: Event, program: &Option<PathBuf>| {
        let found = program.as_deref().map(|program| find(program, route, config)).transpose();
        found.map_err(|what| {
            let (option, program) = (event.option(), program.as_deref().unwrap_or(Path::new("")));
            let what = format!("{option} {}: {what}", program.display());
            Invalid::new(&route.place, &route.prefix, what)
        })
    };
    Ok(Some(Programs {
        prefix: route.prefix.clone(),
        on_done: find(Event::Done, &route.hook.on_done)?,
        on_failure: find(Event::Failure, &route.hook.on_failure)?,
        variables: Arc::clone(variables),
        code_of_success: matches!(route.target, Target::Run(_)).then_some(0),
    }))
}

/// Returns the directory of the scripts of a route.
fn directory(route: &RouteConfig) -> Option<&Path> {
    match &route.target {
        Target::Cgi(directory) | Target::Run(directory) => Some(directory),
        Target::Upstream(_) => None,
    }
}

/// Returns the absolute path of a program that can be executed, and that no URL leads to.
fn find(program: &Path, route: &RouteConfig, config: &Config) -> Result<PathBuf, String> {
    let path = match directory(route) {
        _ if program.is_absolute() => program.to_owned(),
        Some(directory) => directory.join(program),
        None => return Err("not an absolute path, and the route has no directory".into()),
    };
    let path = std::path::absolute(path).map_err(|error| error.to_string())?;
    let real = path.canonicalize().map_err(|error| format!("{}: {error}", path.display()))?;
    let own = directory(route).and_then(|directory| directory.canonicalize().ok());
    for other in &config.routes {
        // Routes may share a directory: what is hidden there is hidden from all of them.
        let is_own = program.is_relative()
            && own.is_some()
            && directory(other).and_then(|directory| directory.canonicalize().ok()) == own;
        // If a directory is missing, its own route reports the error.
        for root in directory(other).and_then(|directory| roots(directory).ok()).iter().flatten() {
            for path in [&path, &real] {
                let Ok(rest) = path.strip_prefix(root) else { continue };
                if !(is_own && is_hidden(rest)) {
                    return Err(format!(
                        "it lies below the directory of {}, so a request could run it: move it out of there, or \
                         name it by a path below the directory with a name that begins with a dot",
                        other.prefix
                    ));
                }
            }
        }
    }
    warn_of_links(program, config);
    if !real.is_file() || access(&real, Access::EXEC_OK).is_err() {
        return Err("not a file that deferd may execute".into());
    }
    Ok(path)
}

/// Warns if a link in the directory of a route may lead to an absolute program: a link can be created at any time.
fn warn_of_links(program: &Path, config: &Config) {
    let mut routes = config.routes.iter().filter(|_| program.is_absolute());
    if let Some(route) = routes.find(|route| route.links == Links::Anywhere) {
        log::warn!(
            "a symbolic link below the directory of {}, which has links=yes, lets requests run {} if it leads there",
            route.prefix,
            program.display()
        );
    }
}

/// Returns a directory under its configured name, and under its real path.
fn roots(directory: &Path) -> io::Result<[PathBuf; 2]> {
    Ok([std::path::absolute(directory)?, directory.canonicalize()?])
}

/// Returns whether a name in this path is hidden from all requests.
fn is_hidden(path: &Path) -> bool {
    path.iter().any(|name| name.as_encoded_bytes().starts_with(b"."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hidden_path_has_a_name_with_a_dot_first() {
        for (path, hidden) in
            [(".hooks/done", true), ("a/.done", true), ("done", false), ("a.d/done.sh", false)]
        {
            assert_eq!(is_hidden(Path::new(path)), hidden, "{path}");
        }
    }
}
