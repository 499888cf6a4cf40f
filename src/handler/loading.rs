//! Why the kernel cannot load a script that exists and is executable: mostly, its interpreter is missing.
//!
//! Owns the words for the reason. Starts nothing. Invariant: reads only the beginning of a file and its table of
//! segments.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{Access, access};
use rustix::io::Errno;

/// How much of a `#!` line the kernel reads, in bytes.
const MAX_LINE: usize = 255;

/// How many interpreters may be scripts themselves (`exec_binprm` of Linux).
const MAX_DEPTH: usize = 5;

/// How much of a name is shown, in characters.
const MAX_SHOWN: usize = 100;

/// The first bytes of a program (ELF).
const ELF: &[u8] = b"\x7fELF";

/// The byte order mark, which some editors put at the beginning of a text.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The segment that names the loader (`PT_INTERP`).
const INTERPRETER_SEGMENT: u32 = 3;

/// Returns why a program cannot be loaded; `None` if something else failed.
pub fn why_not(program: &Path, error: &io::Error) -> Option<String> {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::PermissionDenied => of_interpreter(program, 0),
        _ if error.raw_os_error() == Some(Errno::NOEXEC.raw_os_error()) => {
            Some(no_program(program))
        }
        _ => None,
    }
}

/// Follows the interpreter of a script, or the loader of a program, to the missing one.
fn of_interpreter(program: &Path, depth: usize) -> Option<String> {
    let head = beginning(program)?;
    let (name, kind) = match head.strip_prefix(b"#!") {
        Some(line) => (interpreter(line)?.to_vec(), "its interpreter"),
        None if head.starts_with(ELF) => (loader(program)?, "the loader of this program"),
        None => return None,
    };
    let path = Path::new(OsStr::from_bytes(&name));
    let fault = match path.metadata() {
        Err(_) => "is missing",
        Ok(metadata) if !metadata.is_file() || access(path, Access::EXEC_OK).is_err() => {
            "is not executable"
        }
        Ok(_) if depth < MAX_DEPTH => return of_interpreter(path, depth + 1),
        Ok(_) => return None,
    };
    let remedy = match (kind, name.ends_with(b"\r")) {
        ("its interpreter", true) => {
            ": the #! line ends with a carriage return (Windows line ends)"
        }
        ("its interpreter", false) => " (the #! line)",
        _ => ": it was built for another system or C library",
    };
    Some(format!("{kind} {} {fault}{remedy}", shown(&name)))
}

/// Returns why a file is not a program.
fn no_program(program: &Path) -> String {
    let head = beginning(program).unwrap_or_default();
    if head.starts_with(ELF) {
        return "it is a program for another kind of processor".into();
    }
    if head.strip_prefix(BYTE_ORDER_MARK).is_some_and(|rest| rest.starts_with(b"#!")) {
        return "a byte order mark stands before its #! line".into();
    }
    "it has no #! line and is not a program".into()
}

/// Returns the interpreter that a `#!` line names, without its argument.
fn interpreter(line: &[u8]) -> Option<&[u8]> {
    let line = line.split(|&b| b == b'\n').next()?;
    let is_blank = |b: &u8| b" \t".contains(b);
    line.split(is_blank).find(|word| !word.is_empty())
}

/// Returns the beginning of a file; `None` if it cannot be read.
fn beginning(program: &Path) -> Option<Vec<u8>> {
    let mut head = vec![0; MAX_LINE];
    let n = File::open(program).ok()?.read_at(&mut head, 0).ok()?;
    head.truncate(n);
    Some(head)
}

/// Returns the loader that a program of this machine's word size and byte order names (elf(5)).
fn loader(program: &Path) -> Option<Vec<u8>> {
    let file = File::open(program).ok()?;
    let is_64 = at(&file, 4, 1)?[0] == 2;
    let is_big = at(&file, 5, 1)?[0] == 2;
    let number = |offset: u64, size: usize| {
        let mut bytes = at(&file, offset, size)?;
        if !is_big {
            bytes.reverse();
        }
        Some(bytes.iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte)))
    };
    let (word, table, entry_size, count) = if is_64 {
        (8, number(32, 8)?, number(54, 2)?, number(56, 2)?)
    } else {
        (4, number(28, 4)?, number(42, 2)?, number(44, 2)?)
    };
    for n in 0..count {
        let entry = table.checked_add(n * entry_size)?;
        if number(entry, 4)? != u64::from(INTERPRETER_SEGMENT) {
            continue;
        }
        let (offset, size) = if is_64 { (8, 32) } else { (4, 16) };
        let (offset, size) = (number(entry + offset, word)?, number(entry + size, word)?);
        let mut name = at(&file, offset, usize::try_from(size).ok()?.min(4096))?;
        while name.last() == Some(&0) {
            name.pop();
        }
        return Some(name);
    }
    None
}

/// Reads this many bytes at an offset of a file.
fn at(file: &File, offset: u64, size: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; size];
    file.read_exact_at(&mut bytes, offset).ok()?;
    Some(bytes)
}

/// Returns a name in quotes, with invisible characters escaped.
fn shown(name: &[u8]) -> String {
    let name: String = String::from_utf8_lossy(name).chars().take(MAX_SHOWN).collect();
    format!("{name:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interpreter_is_the_first_word_of_the_line() {
        for (line, name) in [
            ("/bin/sh\necho", Some("/bin/sh")),
            (" /bin/sh -e\n", Some("/bin/sh")),
            ("\t/usr/bin/env perl", Some("/usr/bin/env")),
            ("/bin/sh\r\necho", Some("/bin/sh\r")),
            ("  \n/bin/sh", None),
            ("", None),
        ] {
            assert_eq!(interpreter(line.as_bytes()), name.map(str::as_bytes), "{line:?}");
        }
    }

    #[test]
    fn the_loader_of_a_program_is_found() {
        let loader = loader(&std::env::current_exe().unwrap());
        if let Some(name) = loader {
            assert!(name.starts_with(b"/lib"), "{name:?}");
        }
    }
}
