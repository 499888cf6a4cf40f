//! Web pages: which of them may make the reader's browser send requests here, and under which names.
//!
//! Owns the checks of `origin` and `host` and the CORS fields (the Fetch standard, section 3.2). A
//! client that is no browser sends no `origin` and is not concerned. Invariant: without an allowed
//! origin no request that a page caused is run, simple ones included.

use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, HOST, ORIGIN, VARY,
};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderName, HeaderValue, Method, Response, StatusCode};

use crate::call::empty;
use crate::error::Error;
use crate::fields::find;

/// The fields of an answer that a page may read, beside those that it always may.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "x-arango-async-id, x-arango-async-job-id, x-progress, location, retry-after, \
     preference-applied, x-attempts, x-exit-code, x-exit-signal",
);
const METHODS: HeaderValue = HeaderValue::from_static("DELETE, GET, HEAD, PATCH, POST, PUT");
/// How long a browser may remember a preflight, in seconds: as ArangoDB.
const MAX_AGE: HeaderValue = HeaderValue::from_static("1800");
const TRUE: HeaderValue = HeaderValue::from_static("true");

/// The fields by which a page is known.
static NAMES: [HeaderName; 2] = [HOST, ORIGIN];

/// Whether the name in `host` matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostCheck {
    /// It must be a name of this host: a page that gave its own name our address (DNS rebinding)
    /// would otherwise pass for one of ours.
    Loopback,
    /// It may be any: callers show credentials, or the operator wants strangers.
    Any,
}

/// What pages may do.
pub struct Policy {
    /// `--allow-origin`.
    pub allow_origin: Vec<String>,
    /// `--allow-host`.
    pub allow_host: Vec<String>,
    /// Whether `host` is checked.
    pub host_check: HostCheck,
}

/// The foreign origin that an answer has to name; `None` where no foreign page is concerned.
pub type Foreign = Option<HeaderValue>;

impl Policy {
    /// Checks a request.
    ///
    /// # Errors
    /// [`Error::Forbidden`], which says what to allow.
    pub fn check(&self, request: &Parts) -> Result<Foreign, Error> {
        let [host, origin] = find(&request.headers, &NAMES);
        let host = host.first.and_then(|host| host.to_str().ok());
        if let Some(host) = host.filter(|_| self.host_check == HostCheck::Loopback)
            && !self.is_own_host(host)
        {
            return Err(Error::Forbidden(
                "host is not a name of this host; see --allow-host".into(),
            ));
        }
        if origin.first.is_none() {
            return Ok(None);
        }
        let origin = origin.only().ok_or_else(foreign_origin)?;
        let text = origin.to_str().map_err(|_| foreign_origin())?;
        if is_own_origin(text, host) {
            return Ok(None);
        }
        let allowed = |allowed: &String| allowed == "*" || allowed.eq_ignore_ascii_case(text);
        if self.allow_origin.iter().any(allowed) {
            return Ok(Some(origin.clone()));
        }
        Err(foreign_origin())
    }

    fn is_own_host(&self, host: &str) -> bool {
        // What nearly everybody sends here, before anything is parsed.
        if host == "localhost" || host.starts_with("localhost:") && is_port(&host[10..]) {
            return true;
        }
        let Ok(authority) = host.parse::<Authority>() else { return false };
        let name = authority.host();
        let address = name.trim_start_matches('[').trim_end_matches(']').parse();
        let loopback = address.is_ok_and(|ip: std::net::IpAddr| ip.to_canonical().is_loopback());
        let local = name.eq_ignore_ascii_case("localhost")
            || name.to_ascii_lowercase().ends_with(".localhost");
        loopback
            || local
            || self.allow_host.iter().any(|allowed| allowed.eq_ignore_ascii_case(name))
    }
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit())
}

fn foreign_origin() -> Error {
    Error::Forbidden("a page of another origin; see --allow-origin".into())
}

/// Whether a page of this origin came from here: the same host and port, under either scheme, because
/// a proxy may have added TLS.
fn is_own_origin(origin: &str, host: Option<&str>) -> bool {
    let name = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    name.zip(host).is_some_and(|(name, host)| name.eq_ignore_ascii_case(host))
}

/// The answer to a preflight of an allowed origin; `None` for any other request.
pub fn preflight(request: &Parts, foreign: &Foreign) -> Option<Response<Bytes>> {
    foreign.as_ref()?;
    let asks = request.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
    if request.method != Method::OPTIONS || !asks {
        return None;
    }
    let mut response = empty(StatusCode::OK);
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    headers.insert(ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    if let Some(asked) = request.headers.get(ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, asked.clone());
    }
    Some(response)
}

/// Lets a page of the foreign origin read the answer.
pub fn disclose(response: &mut Response<Bytes>, foreign: Foreign) {
    let Some(origin) = foreign else { return };
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
    headers.append(VARY, HeaderValue::from_static("origin"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn policy(host_check: HostCheck) -> Policy {
        Policy {
            allow_origin: vec!["https://ui.example".into()],
            allow_host: vec!["nas.lan".into()],
            host_check,
        }
    }

    fn check(policy: &Policy, host: &str, origins: &[&str]) -> Result<Foreign, Error> {
        let mut request = Request::builder().header(HOST, host);
        for origin in origins {
            request = request.header(ORIGIN, *origin);
        }
        policy.check(&request.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn hosts() {
        for (host, own) in [
            ("localhost", true),
            ("LOCALHOST:8529", true),
            ("a.localhost:1", true),
            ("127.0.0.1:8529", true),
            ("127.9.9.9", true),
            ("[::1]:8529", true),
            ("nas.lan:80", true),
            ("example.org", false),
            ("localhost:1@example.org", false),
            ("localhost.example.org", false),
            ("192.0.2.1", false),
            ("", false),
        ] {
            assert_eq!(check(&policy(HostCheck::Loopback), host, &[]).is_ok(), own, "{host}");
            assert!(check(&policy(HostCheck::Any), host, &[]).is_ok());
        }
    }

    #[test]
    fn origins() {
        let policy = policy(HostCheck::Any);
        for (origins, foreign) in [
            (&[][..], Some(false)),
            (&["http://localhost:1"], Some(false)),
            (&["https://localhost:1"], Some(false)),
            (&["https://ui.example"], Some(true)),
            (&["http://ui.example"], None),
            (&["http://localhost:2"], None),
            (&["http://localhost"], None),
            (&["null"], None),
            (&[""], None),
            (&["http://localhost:1", "http://localhost:1"], None),
        ] {
            let found = check(&policy, "localhost:1", origins).ok().map(|origin| origin.is_some());
            assert_eq!(found, foreign, "{origins:?}");
        }
    }
}
