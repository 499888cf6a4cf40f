//! Finds the script of a request path, never outside the route's directory.
//!
//! Owns the reading of the path below a script route. Starts nothing. Invariants: a script that it returns is a
//! regular, executable file; unless the route has `links=yes`, its real path, with all symbolic links resolved, is
//! below the route's directory as that is at this moment; the same holds for the file that the rest of the path names,
//! if it exists.

use std::ffi::OsStr;
use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use super::ScriptRoute;
use crate::config::Links;
use crate::dots::{self, decode};
use crate::error::Error;

/// A script that was found, and the rest of the path.
#[derive(Debug, PartialEq, Eq)]
pub struct Located {
    /// The real path of the route's directory.
    pub root: PathBuf,
    /// The script below it, with the requested name: a program may act differently under the name of a link.
    pub program: PathBuf,
    /// The real path of the directory that contains the script.
    pub directory: PathBuf,
    /// The path that identifies the script, decoded (RFC 3875 section 4.1.13).
    pub script_name: Vec<u8>,
    /// The rest of the path, decoded; may be empty (RFC 3875 section 4.1.5).
    pub path_info: Vec<u8>,
}

/// How much of a refused path the log shows, in characters.
const MAX_SHOWN: usize = 200;

/// Why a path leads to no script.
enum Refusal {
    /// It names no script.
    Missing,
    /// It leads out of the directory, or to something that clients must not reach: only the log has the reason.
    Outside(&'static str),
    /// The file may not be run.
    Forbidden(&'static str),
}

use Refusal::Outside;

/// Finds the script that `path` names: the first segments that lead to a file. If the path leads out of the directory,
/// the log has the reason.
///
/// # Errors
/// [`Error::NotFound`] if it names no script below the directory, [`Error::Forbidden`] if the file may not be
/// executed.
pub fn locate(route: &ScriptRoute, path: &str) -> Result<Located, Error> {
    find(route, path).map_err(|refusal| match refusal {
        Refusal::Missing => Error::NotFound("no such script".into()),
        Refusal::Forbidden(why) => Error::Forbidden(why.into()),
        Outside(why) => {
            log::warn!("path={} route={} status=404 refused: {why}", shown(path), route.prefix);
            Error::NotFound("no such script".into())
        }
    })
}

/// Returns the beginning of a path in printable form.
fn shown(path: &str) -> String {
    let printable = |c: char| if c.is_ascii_graphic() { c } else { '?' };
    path.chars().take(MAX_SHOWN).map(printable).collect()
}

fn find(route: &ScriptRoute, path: &str) -> Result<Located, Refusal> {
    let none = || Refusal::Missing;
    let rest = path.strip_prefix(route.prefix.as_str()).ok_or_else(none)?;
    let rest = if route.prefix.ends_with('/') { Some(rest) } else { rest.strip_prefix('/') };
    let rest = rest.ok_or_else(none)?;
    // Resolved for each request: the directory may be a link that is changed while deferd runs, such as
    // `current -> releases/7`.
    let root = route.directory.canonicalize().map_err(|_| Outside(NO_DIRECTORY))?;
    let mut file = root.clone();
    let mut script_name = route.prefix.trim_end_matches('/').as_bytes().to_vec();
    let mut end = 0;
    for raw in rest.split('/') {
        end += raw.len();
        if !raw.is_empty() {
            let segment = decode(raw).ok_or(Outside(BROKEN))?;
            check_name(&segment)?;
            file.push(OsStr::from_bytes(&segment));
            script_name.push(b'/');
            script_name.extend_from_slice(&segment);
            let metadata = entry(&file, &root, route.links)?;
            if metadata.is_file() {
                if segment.ends_with(b"~") {
                    return Err(Outside("a name that ends with ~ is a backup"));
                }
                let directory = home(&file, &root, route.links)?;
                let path_info = decode(&rest[end..]).ok_or(Outside(BROKEN))?;
                check_path_info(&path_info, &root, route.links)?;
                return Ok(Located { root, program: file, directory, script_name, path_info });
            }
            if !metadata.is_dir() {
                return Err(none());
            }
        }
        end += 1;
    }
    Err(none())
}

/// Looks up an entry of a directory. A link that leads out of `root` is refused before its target is examined: the
/// answer would show whether the target exists.
fn entry(file: &Path, root: &Path, links: Links) -> Result<Metadata, Refusal> {
    let may_leave = links == Links::Anywhere || !file.is_symlink();
    if !may_leave && file.canonicalize().is_ok_and(|real| !real.starts_with(root)) {
        return Err(Outside(LINK));
    }
    file.metadata().map_err(|error| unreachable_file(&error))
}

/// Returns the real directory of an executable file, and checks that it is below `root` if required.
fn home(file: &Path, root: &Path, links: Links) -> Result<PathBuf, Refusal> {
    access(file, Access::EXEC_OK)
        .map_err(|_| Refusal::Forbidden("the script is not executable"))?;
    let mut real = file.canonicalize().map_err(|error| unreachable_file(&error))?;
    if links == Links::Inside && !real.starts_with(root) {
        return Err(Outside(LINK));
    }
    real.pop();
    Ok(real)
}

/// Returns whether the text has a control character of ASCII, or of C1 in UTF-8 (U+0080 to U+009F).
fn has_control(text: &[u8]) -> bool {
    text.iter().any(u8::is_ascii_control)
        || text.windows(2).any(|pair| matches!(pair, [0xc2, 0x80..=0x9f]))
}

fn unreachable_file(error: &std::io::Error) -> Refusal {
    match error.kind() {
        ErrorKind::PermissionDenied => Refusal::Forbidden("the script cannot be read"),
        _ => Refusal::Missing,
    }
}

const BROKEN: &str = "it has a broken escape or %00";
const LINK: &str = "a symbolic link leads out of the directory, which only links=yes allows";
const NO_DIRECTORY: &str = "the directory of the route is missing";

/// Refuses a decoded segment that could name anything other than an entry of its directory, or that names a hidden
/// entry (`.git`), which is not meant for clients.
fn check_name(segment: &[u8]) -> Result<(), Refusal> {
    match segment {
        b"." | b".." => Err(Outside("it has a dot segment")),
        _ if segment.contains(&b'/') => Err(Outside("a name has an encoded slash")),
        [b'.', ..] => Err(Outside("a name begins with a dot")),
        _ => Ok(()),
    }
}

/// Refuses a decoded path info whose file (`PATH_TRANSLATED`) could be outside the directory, or that has control
/// characters.
fn check_path_info(path_info: &[u8], root: &Path, links: Links) -> Result<(), Refusal> {
    if dots::has_plain_segment(path_info) {
        return Err(Outside("the path info has a dot segment"));
    }
    if has_control(path_info) {
        return Err(Outside("the path info has a control character"));
    }
    if links == Links::Anywhere {
        return Ok(());
    }
    let mut file = root.to_owned();
    for name in path_info.split(|&b| b == b'/').filter(|name| !name.is_empty()) {
        file.push(OsStr::from_bytes(name));
        // A path that does not exist, or cannot be examined, leads nowhere; nor does any path below it.
        let Ok(metadata) = file.symlink_metadata() else { break };
        if metadata.is_symlink() {
            // A dangling link may lead to a file by the time the script opens it.
            file = file.canonicalize().map_err(|_| Outside(LINK))?;
            if !file.starts_with(root) {
                return Err(Outside(LINK));
            }
        }
    }
    Ok(())
}
