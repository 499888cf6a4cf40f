//! Callback URLs: where a client may have deferd tell that its job is done.
//!
//! Owns their form, and which of them one that the operator allows covers. Calls none: `handler::upstream::callback`
//! does. Invariant: whatever a receiver makes of dots and escapes, a URL that is covered names the allowed host and
//! a path below the allowed one.

use http::Uri;
use http::uri::{Authority, Scheme};

use crate::dots;

/// How long a URL may be, in bytes.
pub const MAX_URL: usize = 2048;

/// A URL that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallbackUrl(Uri);

impl CallbackUrl {
    /// Reads an absolute URL of `http` or `https`, without user and fragment.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if text.len() > MAX_URL {
            return Err("it is longer than 2048 bytes");
        }
        if !text.is_ascii() {
            return Err("it has a character that is not ASCII: write its UTF-8 as %XX");
        }
        if text.contains('#') {
            return Err("it has a fragment");
        }
        let uri: Uri = text.parse().map_err(|_| "it is not a URL such as http://HOST/PATH")?;
        if ![Some(&Scheme::HTTP), Some(&Scheme::HTTPS)].contains(&uri.scheme()) {
            return Err("it begins neither with http:// nor with https://");
        }
        let authority = uri.authority().map_or("", Authority::as_str);
        if authority.contains('@') {
            return Err("it has a user");
        }
        let host = uri.host().unwrap_or_default();
        // The port of `host:` or `host:99999` is invalid.
        if host.is_empty() || (authority.len() > host.len() && uri.port_u16().is_none()) {
            return Err("it has no host, or an invalid port");
        }
        dots::check(uri.path())?;
        Ok(Self(uri))
    }

    /// Returns whether this URL, which the operator allows, covers another: scheme, host and port are the same, and
    /// the path is the same or goes on at a slash.
    pub fn covers(&self, other: &Self) -> bool {
        let same_host = self.0.host().zip(other.0.host());
        let same_host = same_host.is_some_and(|(own, other)| own.eq_ignore_ascii_case(other));
        let rest = other.0.path().strip_prefix(self.0.path());
        let is_below = rest.is_some_and(|rest| {
            rest.is_empty() || rest.starts_with('/') || self.0.path().ends_with('/')
        });
        self.0.scheme() == other.0.scheme() && same_host && self.port() == other.port() && is_below
    }

    fn port(&self) -> u16 {
        self.0.port_u16().unwrap_or(if self.is_secure() { 443 } else { 80 })
    }

    /// Returns whether it begins with `https`.
    pub fn is_secure(&self) -> bool {
        self.0.scheme() == Some(&Scheme::HTTPS)
    }

    /// Returns whether it has a query.
    pub fn has_query(&self) -> bool {
        self.0.query().is_some()
    }

    /// Returns the URL.
    pub const fn uri(&self) -> &Uri {
        &self.0
    }

    /// Returns its host and port, as the log shows it: its query may hold what no log may show.
    pub fn authority(&self) -> &str {
        self.0.authority().map_or("", Authority::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> CallbackUrl {
        CallbackUrl::parse(text).unwrap_or_else(|what| panic!("{text}: {what}"))
    }

    #[test]
    fn an_allowed_url_covers_what_is_below_it() {
        for (allowed, given, covers) in [
            ("https://h/", "https://h", true),
            ("https://h", "https://h/x?y=z", true),
            ("https://h/", "https://H:443/x", true),
            ("http://h:80", "http://h/", true),
            ("http://h", "https://h/", false),
            ("http://h:81", "http://h/", false),
            ("http://h", "http://h.evil.example/", false),
            ("http://h", "http://evil.example/h", false),
            ("http://h/a", "http://h/a", true),
            ("http://h/a", "http://h/a?b", true),
            ("http://h/a", "http://h/a/b", true),
            ("http://h/a", "http://h/ab", false),
            ("http://h/a", "http://h/A", false),
            ("http://h/a/", "http://h/a/b", true),
            ("http://h/a/", "http://h/a", false),
            ("http://h/a", "http://h/a%2Fb", false),
            ("http://[::1]:5/a", "http://[::1]:5/a/b", true),
            ("http://[::1]:5/a", "http://[::2]:5/a/b", false),
        ] {
            assert_eq!(url(allowed).covers(&url(given)), covers, "{allowed} {given}");
        }
    }

    #[test]
    fn urls_are_refused() {
        let long = format!("http://h/{}", "x".repeat(MAX_URL));
        for (text, what) in [
            ("", "it is not a URL such as http://HOST/PATH"),
            ("/a", "it begins neither"),
            ("h", "it begins neither"),
            ("ftp://h/", "it begins neither"),
            ("http://", "it is not a URL such as http://HOST/PATH"),
            ("http://h /", "it is not a URL such as http://HOST/PATH"),
            ("http://h/\u{e4}", "not ASCII"),
            ("http://h/?\u{e4}", "not ASCII"),
            ("http://\u{e4}/", "not ASCII"),
            ("http://u@h/", "it has a user"),
            ("http://u:p@h/", "it has a user"),
            ("http://h:/", "an invalid port"),
            ("http://h:99999/", "port"),
            ("http://h/#x", "it has a fragment"),
            ("http://h/a/../b", "dot segment"),
            ("http://h/a/%2e%2E/b", "dot segment"),
            ("http://h/a/%252e%252e/b", "dot segment"),
            ("http://h/a/..;x/b", "dot segment"),
            ("http://h/a/..%5cb", "dot segment"),
            ("http://h/%zz", "broken escape"),
            (&long, "longer than 2048"),
        ] {
            let error = CallbackUrl::parse(text).unwrap_err();
            assert!(error.contains(what), "{text}: {error}");
        }
    }
}
