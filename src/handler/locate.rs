//! From a request path to a script, and never outside the route's directory.
//!
//! Owns the reading of the path below a script route. Starts nothing. Invariant: what it returns is
//! a regular, executable file whose real path, all symbolic links resolved, lies below the route's
//! directory.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use super::ScriptRoute;
use crate::error::Error;

/// A script that was found, and the rest of the path.
#[derive(Debug, PartialEq, Eq)]
pub struct Located {
    /// The real path of the script.
    pub program: PathBuf,
    /// The path that identifies the script, decoded (RFC 3875 section 4.1.13).
    pub script_name: Vec<u8>,
    /// The rest of the path, decoded; empty if there is none (RFC 3875 section 4.1.5).
    pub path_info: Vec<u8>,
}

/// Finds the script that `path` names: the first segments that lead to a file.
///
/// # Errors
/// [`Error::NotFound`] where there is none below the directory, [`Error::Forbidden`] where the file
/// may not be executed.
pub fn locate(route: &ScriptRoute, path: &str) -> Result<Located, Error> {
    let none = || Error::NotFound("no such script".into());
    let rest = path.strip_prefix(route.prefix.as_str()).ok_or_else(none)?;
    // One slash parts prefix and script; a second one would be an empty segment.
    let rest = if route.prefix.ends_with('/') { Some(rest) } else { rest.strip_prefix('/') };
    let rest = rest.ok_or_else(none)?;
    let mut file = route.directory.clone();
    let mut script_name = route.prefix.trim_end_matches('/').as_bytes().to_vec();
    let mut end = 0;
    for raw in rest.split('/') {
        let segment = decode(raw).filter(|s| is_plain_name(s)).ok_or_else(none)?;
        file.push(OsStr::from_bytes(&segment));
        script_name.push(b'/');
        script_name.extend_from_slice(&segment);
        end += raw.len();
        let metadata = file.metadata().map_err(|error| unreachable_file(&error))?;
        if metadata.is_file() {
            let program = confined(&file, &route.directory)?;
            let path_info = decode(&rest[end..]).ok_or_else(none)?;
            return Ok(Located { program, script_name, path_info });
        }
        if !metadata.is_dir() {
            return Err(none());
        }
        end += 1;
    }
    Err(none())
}

/// The real path of an executable file below `directory`.
fn confined(file: &Path, directory: &Path) -> Result<PathBuf, Error> {
    let program = file.canonicalize().map_err(|error| unreachable_file(&error))?;
    if !program.starts_with(directory) {
        return Err(Error::NotFound("no such script".into()));
    }
    access(&program, Access::EXEC_OK)
        .map_err(|_| Error::Forbidden("the script is not executable".into()))?;
    Ok(program)
}

fn unreachable_file(error: &std::io::Error) -> Error {
    match error.kind() {
        ErrorKind::PermissionDenied => Error::Forbidden("the script cannot be read".into()),
        _ => Error::NotFound("no such script".into()),
    }
}

/// Whether a decoded segment can only name an entry of its directory.
fn is_plain_name(segment: &[u8]) -> bool {
    !matches!(segment, b"" | b"." | b"..") && !segment.contains(&b'/')
}

/// Percent-decodes (RFC 3986 section 2.1); `None` for a broken escape or a NUL, which no file name
/// and no environment variable can hold.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let byte = if byte == b'%' { hex(bytes.next()?)? << 4 | hex(bytes.next()?)? } else { byte };
        decoded.push(byte);
    }
    (!decoded.contains(&0)).then_some(decoded)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|n| u8::try_from(n).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_decoded_or_refused() {
        for (text, decoded) in [
            ("a%20b", Some(&b"a b"[..])),
            ("%2e%2E", Some(b"..")),
            ("a+b", Some(b"a+b")),
            ("%ff", Some(b"\xff")),
            ("%00", None),
            ("%", None),
            ("%4", None),
            ("%zz", None),
            ("%+1", None),
        ] {
            assert_eq!(decode(text).as_deref(), decoded, "{text}");
        }
    }
}
