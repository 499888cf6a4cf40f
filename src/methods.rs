//! Which methods a route takes.
//!
//! Owns the check and the words of its `allow`. What a method does is decided by the handler. Invariants: OPTIONS is
//! never refused here; HEAD goes with GET; TRACE is taken only where it is named.

use std::fmt::Write as _;

use http::Method;

use crate::error::Error;

/// The methods of a resource that takes any.
pub const ANY_METHOD: &str = "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT";

/// The methods of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowedMethods {
    /// The handler says which.
    OfHandler,
    /// All but TRACE: a script or an upstream would show the client fields that the client must not see, or run for a
    /// method that must have no effect (RFC 9110 section 9.3.8).
    NoTrace,
    /// Those that `methods=` names.
    Listed(Vec<Method>),
}

impl AllowedMethods {
    /// Refuses a method that the route does not take.
    ///
    /// # Errors
    /// [`Error::MethodNotSupported`].
    pub fn check(&self, method: &Method) -> Result<(), Error> {
        let is_taken = match self {
            Self::OfHandler => true,
            Self::NoTrace => method != Method::TRACE,
            Self::Listed(listed) => method == Method::OPTIONS || takes(listed, method),
        };
        if is_taken { Ok(()) } else { Err(Error::MethodNotSupported(self.allow().into())) }
    }

    /// Returns the methods as an `allow` field lists them.
    pub fn allow(&self) -> String {
        let Self::Listed(listed) = self else { return ANY_METHOD.into() };
        let mut names: Vec<&str> = listed.iter().map(Method::as_str).collect();
        if takes(listed, &Method::HEAD) {
            names.push("HEAD");
        }
        names.push("OPTIONS");
        names.sort_unstable();
        names.dedup();
        let mut allow = String::new();
        for name in names {
            let comma = if allow.is_empty() { "" } else { ", " };
            let _ = write!(allow, "{comma}{name}");
        }
        allow
    }
}

fn takes(listed: &[Method], method: &Method) -> bool {
    let goes_with = if method == Method::HEAD { &Method::GET } else { method };
    listed.contains(method) || listed.contains(goes_with)
}

/// Reads names of methods, with `+` between them.
///
/// # Errors
/// What is wrong.
pub fn parse(text: &str) -> Result<Vec<Method>, String> {
    let method = |name: &str| {
        // They are case-sensitive (RFC 9110 section 9.1): `get` is a method that no client sends.
        let is_plain = !name.is_empty() && !name.bytes().any(|b| b.is_ascii_lowercase());
        let method = Method::from_bytes(name.as_bytes()).ok().filter(|_| is_plain);
        match method.ok_or_else(|| format!("{name:?} is not a method, as in GET+POST"))? {
            Method::CONNECT => Err("CONNECT: deferd makes no tunnels".into()),
            method => Ok(method),
        }
    };
    text.split('+').map(method).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_takes_the_methods_that_it_lists() {
        let listed = |text| AllowedMethods::Listed(parse(text).unwrap());
        for (methods, taken, refused, allow) in [
            (AllowedMethods::OfHandler, &["TRACE", "BREW"][..], &[][..], ANY_METHOD),
            (AllowedMethods::NoTrace, &["BREW", "OPTIONS", "POST"], &["TRACE"], ANY_METHOD),
            (
                listed("POST"),
                &["POST", "OPTIONS"],
                &["GET", "HEAD", "TRACE", "post"],
                "OPTIONS, POST",
            ),
            (listed("POST+GET"), &["GET", "HEAD", "POST"], &["PUT"], "GET, HEAD, OPTIONS, POST"),
            (listed("HEAD"), &["HEAD"], &["GET"], "HEAD, OPTIONS"),
            (listed("TRACE+OPTIONS"), &["TRACE", "OPTIONS"], &["GET"], "OPTIONS, TRACE"),
            (listed("BREW"), &["BREW"], &["GET"], "BREW, OPTIONS"),
        ] {
            assert_eq!(methods.allow(), allow);
            for name in taken {
                assert_eq!(methods.check(&name.parse().unwrap()), Ok(()), "{allow} {name}");
            }
            for name in refused {
                let error = methods.check(&name.parse().unwrap()).unwrap_err();
                assert_eq!(error, Error::MethodNotSupported(allow.to_owned().into()));
            }
        }
    }

    #[test]
    fn what_is_no_method_is_refused() {
        for text in ["", "get", "GET+", "GET,POST", "GET POST", "CONNECT"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
