//! What the operator adds to the environment of a route's scripts: `env-file` and `pass-env`.
//!
//! Owns the form of the file, and which names the operator may not set. The variables of a request are set by
//! `environment`. Invariant: no variable that tells of the request, or that deferd sets for itself, comes from here.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use crate::operator_file;

/// The write permission of those who are neither the file's owner nor of its group.
const WRITABLE_BY_OTHERS: u32 = 0o002;

/// The variables that tell of the request (RFC 3875 section 4.1, and what other servers add).
const OF_REQUESTS: [&str; 24] = [
    "AUTH_TYPE",
    "CONTENT_LENGTH",
    "CONTENT_TYPE",
    "DOCUMENT_ROOT",
    "GATEWAY_INTERFACE",
    "PATH_INFO",
    "PATH_TRANSLATED",
    "QUERY_STRING",
    "REDIRECT_STATUS",
    "REMOTE_ADDR",
    "REMOTE_HOST",
    "REMOTE_IDENT",
    "REMOTE_PORT",
    "REMOTE_USER",
    "REQUEST_METHOD",
    "REQUEST_SCHEME",
    "REQUEST_URI",
    "SCRIPT_FILENAME",
    "SCRIPT_NAME",
    "SERVER_ADDR",
    "SERVER_NAME",
    "SERVER_PORT",
    "SERVER_PROTOCOL",
    "SERVER_SOFTWARE",
];

/// The beginnings of names that are the request's fields, and deferd's own.
const PREFIXES: [&str; 2] = ["HTTP_", "DEFERD_"];

type Pairs = Vec<(OsString, OsString)>;

/// The variables of one route.
#[derive(Debug, Default)]
pub struct Variables {
    file: Option<PathBuf>,
    passed: Vec<String>,
    read: RwLock<Arc<Pairs>>,
}

impl Variables {
    /// Reads the file, and those of deferd's own variables that are passed on. The file's count if both set one.
    ///
    /// # Errors
    /// In words, what is wrong with the file.
    pub fn load(file: Option<PathBuf>, passed: Vec<String>) -> Result<Self, String> {
        let variables = Self { file, passed, read: RwLock::default() };
        variables.reload()?;
        Ok(variables)
    }

    /// Reads them again.
    ///
    /// # Errors
    /// What is wrong with the file; then the variables stay as they were.
    pub fn reload(&self) -> Result<(), String> {
        let mut pairs: Pairs = Vec::new();
        for name in &self.passed {
            match std::env::var_os(name) {
                Some(value) => pairs.push((name.into(), value)),
                None => log::warn!("pass-env={name}: deferd itself has no such variable"),
            }
        }
        if let Some(path) = &self.file {
            let of_file = |what| format!("env-file {}: {what}", path.display());
            let mut read = read_file(path).and_then(|text| parse(&text)).map_err(of_file)?;
            log::info!("env-file {}: {} variables", path.display(), read.len());
            pairs.append(&mut read);
        }
        *self.read.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(pairs);
        Ok(())
    }

    /// Returns them, as they were read last.
    pub fn current(&self) -> Arc<Pairs> {
        Arc::clone(&self.read.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Checks a name that the operator sets.
///
/// # Errors
/// What is wrong with it.
pub fn check_name(name: &str) -> Result<(), String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    if name.is_empty() || name.as_bytes()[0].is_ascii_digit() || !name.bytes().all(plain) {
        let form = "not the name of a variable: it has letters, digits and _, and no digit first";
        return Err(format!("{name:?} is {form}"));
    }
    if OF_REQUESTS.contains(&name) {
        return Err(format!("{name} tells of the request: it cannot be set"));
    }
    match PREFIXES.into_iter().find(|prefix| name.starts_with(prefix)) {
        Some("HTTP_") => Err(format!("{name} is a field of the request: HTTP_… cannot be set")),
        Some(_) => Err(format!("{name} is deferd's own: DEFERD_… cannot be set")),
        None => Ok(()),
    }
}

/// Reads a file that others cannot write.
fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    operator_file::read(path, |metadata| {
        let mode = metadata.mode();
        if mode & WRITABLE_BY_OTHERS == 0 {
            return Ok(());
        }
        Err(format!("other users can write it (mode {:04o}): chmod o-w", mode & 0o7777))
    })
}

/// Reads the lines `NAME=VALUE`; those that begin with `#` and blank ones mean nothing.
fn parse(text: &[u8]) -> Result<Pairs, String> {
    let mut pairs: Pairs = Vec::new();
    for (n, line) in text.split(|&b| b == b'\n').enumerate() {
        if line.trim_ascii().is_empty() || line.trim_ascii_start().starts_with(b"#") {
            continue;
        }
        let (name, value) = pair(line).map_err(|what| format!("line {}: {what}", n + 1))?;
        if pairs.iter().any(|(other, _)| *other == name) {
            return Err(format!("line {}: {} is set already", n + 1, name.display()));
        }
        pairs.push((name, value));
    }
    Ok(pairs)
}

/// Reads a line. The value is what it is: quotes and dollar signs have no meaning.
fn pair(line: &[u8]) -> Result<(OsString, OsString), String> {
    let equals = line.iter().position(|&b| b == b'=').ok_or("not of the form NAME=VALUE")?;
    let (name, value) = (&line[..equals], &line[equals + 1..]);
    check_name(&String::from_utf8_lossy(name))?;
    if value.ends_with(b"\r") {
        return Err("the line ends with a carriage return (Windows line ends)".into());
    }
    if value.contains(&0) {
        return Err("the value has a NUL".into());
    }
    Ok((OsStr::from_bytes(name).to_owned(), OsString::from_vec(value.to_vec())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_they_are() {
        let text = b"# comment\n\n  # another\nA=1\nB_2= \"x\" $y \nEMPTY=\nC=a=b\nD=\xff";
        let read = parse(text).unwrap();
        let read: Vec<_> = read.iter().map(|(n, v)| (n.to_str().unwrap(), v.as_bytes())).collect();
        let expected: [(&str, &[u8]); 5] =
            [("A", b"1"), ("B_2", b" \"x\" $y "), ("EMPTY", b""), ("C", b"a=b"), ("D", b"\xff")];
        assert_eq!(read, expected);
    }

    #[test]
    fn lines_that_are_refused() {
        for (text, part) in [
            ("A", "line 1: not of the form NAME=VALUE"),
            ("A=1\n=2", "line 2: \"\" is not the name"),
            ("export A=1", "\"export A\" is not the name"),
            ("A =1", "\"A \" is not the name"),
            ("1A=1", "not the name"),
            ("A.B=1", "not the name"),
            ("HTTP_PROXY=x", "HTTP_PROXY is a field"),
            ("DEFERD_JOB_ID=x", "deferd's own"),
            ("PATH_INFO=x", "PATH_INFO tells of the request"),
            ("REDIRECT_STATUS=x", "tells of the request"),
            ("A=1\nA=2", "line 2: A is set already"),
            ("A=1\r\n", "carriage return"),
            ("A=\0", "NUL"),
        ] {
            let error = parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(part), "{text:?}: {error}");
        }
    }
}
