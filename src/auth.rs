//! Authentication: users and the hashes of their tokens, from a file.
//!
//! Owns the file's form, the reading of `authorization`, and new tokens. A token is 256 random bits, so
//! a plain SHA-256 of it is enough: it cannot be guessed. Invariant: how long a check takes depends
//! on how many users there are, and not on whether the name or the token is right.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hmac_sha256::Hash;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use rustix::rand::{GetRandomFlags, getrandom};
use subtle::{Choice, ConstantTimeEq};

use crate::error::Error;
use crate::exchange::Owner;
use crate::{hex, operator_file};

/// The users of one file.
pub struct Auth {
    path: PathBuf,
    users: RwLock<Arc<[User]>>,
}

struct User {
    owner: Owner,
    /// Hashed, so that names of all lengths compare in the same time.
    name_hash: [u8; 32],
    token_hash: [u8; 32],
}

/// An authenticated caller.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The user.
    pub owner: Owner,
    /// The scheme of its credentials: `Basic` or `Bearer` (RFC 3875 section 4.1.1).
    pub auth_type: &'static str,
}

impl Auth {
    /// Reads the users.
    ///
    /// # Errors
    /// In words, what is wrong with the file and what to do.
    pub fn load(path: &Path) -> Result<Self, String> {
        let users = RwLock::new(read(path)?);
        Ok(Self { path: path.to_owned(), users })
    }

    /// Reads the file again; returns how many users there are now.
    ///
    /// # Errors
    /// What is wrong with the file; then the users stay as they were.
    pub fn reload(&self) -> Result<usize, String> {
        let users = read(&self.path)?;
        let count = users.len();
        *self.users.write().unwrap_or_else(PoisonError::into_inner) = users;
        Ok(count)
    }

    /// Returns whether the file is systemd's copy of another, which changes only when the service starts.
    pub fn is_copy(&self) -> bool {
        is_credential(&self.path)
    }

    /// Returns the user whose credentials are in these fields.
    ///
    /// # Errors
    /// [`Error::NotAuthorized`] if the credentials are missing or invalid.
    pub fn authenticate(&self, fields: &HeaderMap) -> Result<Caller, Error> {
        let mut values = fields.get_all(AUTHORIZATION).iter();
        let (Some(value), None) = (values.next(), values.next()) else {
            return Err(Error::NotAuthorized);
        };
        let credentials = Credentials::read(value.as_bytes()).ok_or(Error::NotAuthorized)?;
        let users = Arc::clone(&self.users.read().unwrap_or_else(PoisonError::into_inner));
        let auth_type = credentials.auth_type;
        find(users.iter(), &credentials)
            .map(|user| Caller { owner: user.owner.clone(), auth_type })
            .ok_or(Error::NotAuthorized)
    }
}

/// Finds the user with these credentials. Compares every user, and ends no comparison early.
fn find<'a>(users: impl Iterator<Item = &'a User>, credentials: &Credentials) -> Option<&'a User> {
    let mut found = None;
    for user in users {
        if bool::from(credentials.are_of(user)) {
            found = Some(user);
        }
    }
    found
}

/// The credentials of a client, hashed.
struct Credentials {
    auth_type: &'static str,
    /// `None` for Bearer: the token alone identifies the user.
    name_hash: Option<[u8; 32]>,
    token_hash: [u8; 32],
}

impl Credentials {
    /// Reads Basic (RFC 7617; the password is the token) or Bearer (RFC 6750).
    fn read(value: &[u8]) -> Option<Self> {
        let space = value.iter().position(|&b| b == b' ')?;
        let scheme = &value[..space];
        let rest = value[space..].trim_ascii();
        if scheme.eq_ignore_ascii_case(b"bearer") {
            let token_hash = Hash::hash(rest);
            return Some(Self { auth_type: "Bearer", name_hash: None, token_hash });
        }
        if !scheme.eq_ignore_ascii_case(b"basic") {
            return None;
        }
        let pair = BASE64_STANDARD.decode(rest).ok()?;
        let colon = pair.iter().position(|&b| b == b':')?;
        Some(Self {
            auth_type: "Basic",
            name_hash: Some(Hash::hash(&pair[..colon])),
            token_hash: Hash::hash(&pair[colon + 1..]),
        })
    }

    fn are_of(&self, user: &User) -> Choice {
        let name = self.name_hash.map_or(Choice::from(1), |hash| hash.ct_eq(&user.name_hash));
        name & self.token_hash.ct_eq(&user.token_hash)
    }
}

/// Reads a file that only deferd may read.
///
/// # Errors
/// In words, what is wrong with the file and what to do.
pub fn read_private(path: &Path) -> Result<String, String> {
    let text = operator_file::read(path, |metadata| {
        let readers = if is_credential(path) {
            // systemd's own mode for them; the directory above keeps the others out.
            0o440
        } else if metadata.gid() == rustix::process::getegid().as_raw() {
            0o040
        } else {
            0
        };
        check_mode(metadata.mode(), readers)
    })?;
    String::from_utf8(text).map_err(|_| "not text in UTF-8".into())
}

fn read(path: &Path) -> Result<Arc<[User]>, String> {
    let text = read_private(path)?;
    let mut users: Vec<User> = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let user = user(line).map_err(|what| format!("line {}: {what}", n + 1))?;
        if users.iter().any(|other| other.owner == user.owner) {
            return Err(format!("line {}: this user has a line already", n + 1));
        }
        users.push(user);
    }
    if users.is_empty() {
        return Err("it names no user; `deferd token USER` prints a line for one".into());
    }
    Ok(users.into())
}

/// Returns whether systemd has put this file there for deferd (systemd.exec(5), `LoadCredential=`).
fn is_credential(path: &Path) -> bool {
    let Some(directory) = std::env::var_os("CREDENTIALS_DIRECTORY") else { return false };
    let real = |path: &Path| path.canonicalize().ok().filter(|path| path.is_absolute());
    match (real(Path::new(&directory)), real(path)) {
        // A directory of its own, not a root that contains everything.
        (Some(directory), Some(path)) => {
            directory.parent().is_some() && path.starts_with(directory)
        }
        _ => false,
    }
}

/// Checks that only the owner of a file and these `readers` have access to it.
fn check_mode(mode: u32, readers: u32) -> Result<(), String> {
    let others = mode & 0o077 & !readers;
    if others == 0 {
        return Ok(());
    }
    let mode = mode & 0o777;
    Err(format!(
        "other users have access to it (mode {mode:03o}); chmod 600 it, or 640 in deferd's own group"
    ))
}

/// Reads `user:sha256-hex-of-token`.
fn user(line: &str) -> Result<User, &'static str> {
    const FORM: &str = "not of the form user:sha256-hex-of-token";
    let (name, digits) = line.rsplit_once(':').ok_or(FORM)?;
    check_name(name)?;
    let token_hash = hex::decode(digits).ok_or(FORM)?;
    Ok(User { owner: Owner::named(name), name_hash: Hash::hash(name.as_bytes()), token_hash })
}

/// Checks that Basic and a log line can carry this user name.
///
/// # Errors
/// What a valid user name is.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    let plain = |c: char| !c.is_control() && !c.is_whitespace() && c != ':';
    if name.is_empty() || !name.chars().all(plain) || name == "-" {
        return Err(
            "a user name is not empty, not -, and has no colon, blank or control character",
        );
    }
    Ok(())
}

/// Returns a fresh token for a user, and the line for the file.
///
/// # Errors
/// If the name is invalid, or the system has no randomness.
pub fn new_token(name: &str) -> Result<(String, String), String> {
    check_name(name)?;
    let mut random = [0; 32];
    let got = getrandom(&mut random, GetRandomFlags::empty()).map_err(io::Error::from);
    if got.map_err(|error| error.to_string())? != random.len() {
        return Err("the system gave too little randomness".into());
    }
    let token = hex::encode(&random);
    let line = format!("{name}:{}", hex::encode(&Hash::hash(token.as_bytes())));
    Ok((token, line))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn file(text: &str, mode: u32) -> Result<Auth, String> {
        static COUNT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let n = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("deferd-auth-{}-{n}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let auth = Auth::load(&path);
        std::fs::remove_file(&path).unwrap();
        auth
    }

    fn asks(auth: &Auth, value: &str) -> Option<String> {
        let mut fields = HeaderMap::new();
        fields.insert(AUTHORIZATION, value.parse().unwrap());
        auth.authenticate(&fields).ok().map(|caller| caller.owner.as_log().to_owned())
    }

    #[test]
    fn users_are_known_by_their_tokens() {
        let (ann, line) = new_token("ann").unwrap();
        let (bob, other) = new_token("bob").unwrap();
        assert_ne!(ann, bob);
        let auth = file(&format!("# users\n\n{line}\n{other}\n"), 0o600).unwrap();
        let basic = |pair: String| format!("Basic {}", BASE64_STANDARD.encode(pair));
        for (value, who) in [
            (basic(format!("ann:{ann}")), Some("ann")),
            (basic(format!("bob:{bob}")), Some("bob")),
            (basic(format!("ann:{bob}")), None),
            (basic(format!("eve:{ann}")), None),
            (basic(format!(":{ann}")), None),
            (basic("ann:".into()), None),
            (basic("ann".into()), None),
            (format!("bearer  {bob}"), Some("bob")),
            (format!("Bearer {}", &bob[1..]), None),
            ("Bearer ".into(), None),
            ("Basic %%%".into(), None),
            (format!("Digest {ann}"), None),
            (ann, None),
        ] {
            assert_eq!(asks(&auth, &value).as_deref(), who, "{value}");
        }
        assert!(auth.authenticate(&HeaderMap::new()).is_err());
    }

    #[test]
    fn every_user_is_compared_for_any_credentials() {
        let users = ["ann", "bob", "eve"].map(|name| {
            let (token, line) = new_token(name).unwrap();
            (token, user(&line).unwrap())
        });
        let asks = |name: &str, token: &str| {
            let pair = BASE64_STANDARD.encode(format!("{name}:{token}"));
            let credentials = Credentials::read(format!("Basic {pair}").as_bytes()).unwrap();
            let mut compared = 0;
            let all = users.iter().map(|(_, user)| user).inspect(|_| compared += 1);
            let who = find(all, &credentials).map(|user| user.owner.as_log().to_owned());
            (who, compared)
        };
        for (token, user) in &users {
            let name = user.owner.as_log();
            assert_eq!(asks(name, token), (Some(name.to_owned()), users.len()));
            assert_eq!(asks(name, "wrong"), (None, users.len()));
            assert_eq!(asks("nobody", token), (None, users.len()));
        }
    }

    #[test]
    fn a_file_of_deferd_s_own_group_may_be_read_by_it() {
        let (_, line) = new_token("ann").unwrap();
        assert!(file(&line, 0o640).is_ok());
        assert!(file(&line, 0o440).is_ok());
        for (mode, readers, is_good) in [
            (0o640, 0o040, true),
            (0o640, 0, false),
            (0o440, 0o440, true),
            (0o444, 0o440, false),
            (0o100_600, 0, true),
        ] {
            assert_eq!(check_mode(mode, readers).is_ok(), is_good, "{mode:o} {readers:o}");
        }
    }

    #[test]
    fn files_that_are_refused() {
        let (_, line) = new_token("ann").unwrap();
        for (text, mode, part) in [
            (line.clone(), 0o644, "chmod 600"),
            (line.clone(), 0o660, "chmod 600"),
            (line.clone(), 0o650, "chmod 600"),
            (line.clone(), 0o641, "chmod 600"),
            (String::new(), 0o600, "no user"),
            ("ann".into(), 0o600, "line 1: not of the form"),
            ("ann:abc".into(), 0o600, "line 1: not of the form"),
            (format!("{line}\n{line}"), 0o600, "line 2: this user has a line already"),
            (line.replace("ann", "a b"), 0o600, "line 1: a user name"),
            (format!("ann:{}", "+1".repeat(32)), 0o600, "not of the form"),
        ] {
            let error = file(&text, mode).err().unwrap();
            assert!(error.contains(part), "{text}: {error}");
        }
        assert!(Auth::load(Path::new("/nonexistent")).is_err());
        assert!(new_token("a:b").is_err());
    }
}
