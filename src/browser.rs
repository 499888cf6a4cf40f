//! Web pages: which of them may make the reader's browser send requests here, and under which names.
//!
//! Owns the checks of `host`, `origin`, `sec-fetch-site` (W3C Fetch Metadata) and `referer`, and the CORS
//! fields (the Fetch standard, section 3.2). A client that is no browser sends none of the last three and
//! is not concerned. Does not write the fields that keep an answer from foreign pages: the front does.
//! Invariant: a request that bears a sign of a foreign page is not run, unless its origin is allowed or
//! its route takes any page; navigations and simple requests included.

use std::net::{Ipv4Addr, Ipv6Addr};

use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, HOST, ORIGIN, REFERER, VARY,
};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Response, StatusCode};

use crate::error::Error;
use crate::exchange::{Connection, empty};
use crate::fields::{Lines, find};
use crate::protocol::EXPOSED;

const METHODS: HeaderValue = HeaderValue::from_static("DELETE, GET, HEAD, PATCH, POST, PUT");
/// How long a browser may remember a preflight, in seconds: as ArangoDB.
const MAX_AGE: HeaderValue = HeaderValue::from_static("1800");
const TRUE: HeaderValue = HeaderValue::from_static("true");
const ANY: HeaderValue = HeaderValue::from_static("*");

const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// The fields by which a page is known.
static NAMES: [HeaderName; 4] = [HOST, ORIGIN, HeaderName::from_static("sec-fetch-site"), REFERER];

/// Below these, a local network answers for its hosts, and public DNS does not (RFC 6762, RFC 8375).
const LOCAL_DOMAINS: [&str; 4] = [".local", ".lan", ".home.arpa", ".internal"];

/// How much of a field's value an error shows, in characters.
const SHOWN: usize = 100;

/// Whether the name in `host` matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostCheck {
    /// It must be a known name: a page that gave its own name our address (DNS rebinding) would
    /// otherwise pass for one of ours.
    Known,
    /// It may be any: callers show credentials, or the operator says so.
    Any,
}

/// What pages may do.
pub struct Policy {
    /// `--allow-origin`.
    pub allow_origin: Vec<String>,
    /// `--allow-host`.
    pub allow_host: Vec<String>,
    /// Whether `host` is checked on TCP connections. Over a Unix socket no browser comes.
    pub host_check: HostCheck,
    /// The name of this host; empty if it has none.
    pub own_name: String,
}

/// Which pages may read an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Those of this server alone.
    Own,
    /// The same, but pages of another origin may read theirs: a cache must not take one for the other.
    OwnVaries,
    /// Pages of any origin, without the reader's credentials.
    Anyone,
    /// Those of this origin, with the reader's credentials.
    With(HeaderValue),
}

/// What a request says of where it comes from.
pub struct Provenance<'a> {
    host: Lines<'a>,
    origin: Lines<'a>,
    site: Lines<'a>,
    referer: Lines<'a>,
    request: &'a Parts,
    connection: &'a Connection,
}

impl<'a> Provenance<'a> {
    /// That of a request which came over this connection.
    pub fn of(request: &'a Parts, connection: &'a Connection) -> Self {
        let [host, origin, site, referer] = find(&request.headers, &NAMES);
        Self { host, origin, site, referer, request, connection }
    }

    /// Whether nothing says that a page of another origin caused the request.
    fn is_own(&self) -> bool {
        if self.site.first.is_some() {
            // `none`: the reader typed the address, or chose a bookmark.
            return self.site.only().is_some_and(|site| site == "same-origin" || site == "none");
        }
        let page = match (self.origin.first, self.referer.first) {
            (None, None) => return true,
            (Some(_), _) => self.origin.only().and_then(text).and_then(Origin::parse),
            (None, Some(_)) => self.referer.only().and_then(text).and_then(Origin::of_page),
        };
        page.is_some_and(|page| self.is_from_here(&page))
    }

    /// Whether this origin is the server that the request was sent to. A proxy on this host may name the
    /// server that its own client asked; no page can make a browser send that field unasked.
    fn is_from_here(&self, page: &Origin<'_>) -> bool {
        if self.host.only().and_then(text).is_some_and(|host| page.is_at(host)) {
            return true;
        }
        let forwarded = self.request.headers.get_all(FORWARDED_HOST).iter().filter_map(text);
        self.connection.peer_ip().is_loopback()
            && forwarded.flat_map(|line| line.split(',')).any(|host| page.is_at(host.trim()))
    }
}

impl Policy {
    /// Checks the name under which a request comes.
    ///
    /// # Errors
    /// [`Error::Forbidden`], which says what to allow.
    pub fn check_host(&self, seen: &Provenance<'_>) -> Result<(), Error> {
        let checked = self.host_check == HostCheck::Known
            && matches!(seen.connection, Connection::Tcp { .. });
        match seen.host.first {
            Some(host) if checked && (seen.host.more || !self.is_known(host)) => {
                Err(Error::Forbidden(
                    format!(
                        "the host \"{}\" is not a name of this host; see --allow-host",
                        printable(host)
                    )
                    .into(),
                ))
            }
            _ => Ok(()),
        }
    }

    /// Checks which page a request comes from, and says which pages may read the answer.
    ///
    /// # Errors
    /// [`Error::Forbidden`], which says what to allow.
    pub fn check_page(&self, seen: &Provenance<'_>) -> Result<Sharing, Error> {
        if let Some(sharing) = seen.origin.only().and_then(|origin| self.allowed(origin)) {
            return Ok(sharing);
        }
        if seen.is_own() { Ok(self.unshared(seen)) } else { Err(foreign_page(seen)) }
    }

    /// Which pages may read an answer if no page of another origin is allowed to.
    pub fn unshared(&self, seen: &Provenance<'_>) -> Sharing {
        // Caches keep no other answers.
        let is_cached = matches!(seen.request.method, Method::GET | Method::HEAD);
        if self.allow_origin.is_empty() || !is_cached { Sharing::Own } else { Sharing::OwnVaries }
    }

    /// Who may read an answer to this origin, if it is allowed: by its own name before `*`, which stands
    /// for every origin but `null`, the one of sandboxed and local pages.
    fn allowed(&self, origin: &HeaderValue) -> Option<Sharing> {
        let name = text(origin)?;
        let named = |allowed: &String| allowed != "*" && allowed.eq_ignore_ascii_case(name);
        if self.allow_origin.iter().any(named) {
            return Some(Sharing::With(origin.clone()));
        }
        let is_any = name.contains("://") && self.allow_origin.iter().any(|allowed| allowed == "*");
        is_any.then_some(Sharing::Anyone)
    }

    /// Whether no page from elsewhere can have the name in `host` for its own.
    fn is_known(&self, host: &HeaderValue) -> bool {
        // What nearly every client on this host sends, before anything is parsed.
        if let Some(port) = host.as_bytes().strip_prefix(b"localhost")
            && (port.is_empty() || port[0] == b':' && port[1..].iter().all(u8::is_ascii_digit))
        {
            return true;
        }
        let Some((name, _)) = text(host).and_then(name_and_port) else { return false };
        // Public DNS cannot answer for a name without a dot, nor for an address.
        if !name.contains('.') || name.starts_with('[') || name.parse::<Ipv4Addr>().is_ok() {
            return true;
        }
        self.allow_host.iter().any(|allowed| allowed.eq_ignore_ascii_case(name))
            || self.is_of_this_host(name.strip_suffix('.').unwrap_or(name))
    }

    /// Whether this is a loopback name (RFC 6761 section 6.3) or this host's own.
    fn is_of_this_host(&self, name: &str) -> bool {
        if name.eq_ignore_ascii_case("localhost") || without_suffix(name, ".localhost").is_some() {
            return true;
        }
        let own = self.own_name.as_str();
        let alone = own.split('.').next().unwrap_or_default();
        let is_own = |name: &str| !name.is_empty() && name.eq_ignore_ascii_case(alone);
        (!own.is_empty() && name.eq_ignore_ascii_case(own))
            || LOCAL_DOMAINS.iter().any(|domain| without_suffix(name, domain).is_some_and(is_own))
    }
}

/// An origin over http or https.
#[derive(Debug)]
struct Origin<'a> {
    name: &'a str,
    port: u16,
    /// The port that the scheme implies.
    default_port: u16,
}

impl<'a> Origin<'a> {
    /// Reads an origin as browsers send it (RFC 6454 section 6.2).
    fn parse(origin: &'a str) -> Option<Self> {
        let (scheme, authority) = origin.split_once("://")?;
        let default_port = match scheme {
            _ if scheme.eq_ignore_ascii_case("http") => 80,
            _ if scheme.eq_ignore_ascii_case("https") => 443,
            _ => return None,
        };
        let (name, port) = name_and_port(authority)?;
        Some(Self { name, port: port.unwrap_or(default_port), default_port })
    }

    /// The origin of the page at this address.
    fn of_page(address: &'a str) -> Option<Self> {
        let authority = address.find("://")? + 3;
        let end = address[authority..].find(['/', '?', '#', '\\']);
        Self::parse(&address[..end.map_or(address.len(), |length| authority + length)])
    }

    /// Whether `host` names it. Its scheme may be either, because a proxy may have added TLS.
    fn is_at(&self, host: &str) -> bool {
        name_and_port(host).is_some_and(|(name, port)| {
            name.eq_ignore_ascii_case(self.name) && port.unwrap_or(self.default_port) == self.port
        })
    }
}

/// Splits an authority without user information (RFC 3986 section 3.2) into its name, or address, and
/// its port.
fn name_and_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let end = if authority.starts_with('[') {
        authority.find(']')? + 1
    } else {
        authority.find(':').unwrap_or(authority.len())
    };
    let (name, rest) = authority.split_at(end);
    let is_valid = match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => !name.is_empty() && name.bytes().all(is_of_name),
    };
    let port = match rest.strip_prefix(':') {
        None if rest.is_empty() => None,
        Some("") => None,
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => Some(digits.parse().ok()?),
        _ => return None,
    };
    is_valid.then_some((name, port))
}

const fn is_of_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_')
}

/// What stands before this suffix, in whatever case.
fn without_suffix<'a>(name: &'a str, suffix: &str) -> Option<&'a str> {
    let (start, end) = name.split_at_checked(name.len().checked_sub(suffix.len())?)?;
    end.eq_ignore_ascii_case(suffix).then_some(start)
}

fn text(value: &HeaderValue) -> Option<&str> {
    value.to_str().ok()
}

/// The beginning of a value, for people to read.
fn printable(value: &HeaderValue) -> String {
    let shown = |&b: &u8| if b == b' ' || b.is_ascii_graphic() { char::from(b) } else { '?' };
    value.as_bytes().iter().take(SHOWN).map(shown).collect()
}

/// The refusal of a page, by the field that shows where it is from.
fn foreign_page(seen: &Provenance<'_>) -> Error {
    let [_, origin, site, referer] = &NAMES;
    let signs = [(origin, seen.origin), (site, seen.site), (referer, seen.referer)];
    let sign = signs.iter().find_map(|(name, lines)| lines.first.map(|value| (name, value)));
    let sign =
        sign.map_or_else(String::new, |(name, value)| format!(" ({name}: {})", printable(value)));
    let remedy = "see --allow-origin, or pages=any of a route";
    Error::Forbidden(format!("a web page of another origin sent this{sign}; {remedy}").into())
}

/// The answer to a preflight of an allowed origin; `None` for any other request.
pub fn preflight(request: &Parts, sharing: &Sharing) -> Option<Response<Bytes>> {
    let is_allowed = matches!(sharing, Sharing::Anyone | Sharing::With(_));
    if request.method != Method::OPTIONS
        || !is_allowed
        || !request.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
    {
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

/// Lets the pages that may read the answer do so.
pub fn disclose(response: &mut Response<Bytes>, sharing: Sharing) {
    let headers = response.headers_mut();
    match sharing {
        Sharing::Own => return,
        Sharing::OwnVaries => {}
        Sharing::Anyone => {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, ANY);
            headers.remove(ACCESS_CONTROL_ALLOW_CREDENTIALS);
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        }
        Sharing::With(origin) => {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        }
    }
    headers.append(VARY, HeaderValue::from_static("origin"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    const STRANGER: &str = "192.0.2.1:1";
    const PROXY: &str = "[::ffff:127.0.0.1]:1";

    fn policy(allow_origin: &[&str], allow_host: &[&str]) -> Policy {
        let strings = |texts: &[&str]| texts.iter().map(ToString::to_string).collect();
        Policy {
            allow_origin: strings(allow_origin),
            allow_host: strings(allow_host),
            host_check: HostCheck::Known,
            own_name: "Box.example.net".into(),
        }
    }

    fn from(peer: &str) -> Connection {
        let local = "192.0.2.9:80".parse().unwrap();
        Connection::Tcp { peer: peer.parse().unwrap(), local }
    }

    fn request(fields: &[(&str, &[u8])]) -> Parts {
        let mut request = Request::builder();
        for (name, value) in fields {
            request = request.header(*name, HeaderValue::from_bytes(value).unwrap());
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn known_hosts_pass() {
        let names = policy(&[], &["nas.example.org", "Bücher.example"]);
        for host in [
            "localhost",
            "LOCALHOST:8529",
            "localhost.",
            "a.localhost:1",
            "localhost:",
            "127.0.0.1:8529",
            "127.9.9.9",
            "192.0.2.1",
            "[::1]:8529",
            "[2001:db8::1]",
            "anything",
            "other_box:80",
            "box.example.net:8529",
            "BOX.example.NET.",
            "box.local",
            "Box.LAN:80",
            "box.home.arpa",
            "box.internal.",
            "NAS.example.org:80",
        ] {
            let request = request(&[("host", host.as_bytes())]);
            let connection = from(STRANGER);
            let checked = names.check_host(&Provenance::of(&request, &connection));
            assert_eq!(checked, Ok(()), "{host}");
        }
        let (without, connection) = (request(&[]), from(STRANGER));
        assert_eq!(names.check_host(&Provenance::of(&without, &connection)), Ok(()));
    }

    #[test]
    fn foreign_hosts_are_refused() {
        let mut names = policy(&[], &["nas.example.org"]);
        for host in [
            &b"evil.example"[..],
            b"localhost.evil.example",
            b"127.0.0.1.evil.example",
            b"box.example.net.evil.example",
            b"evil.box.example.net",
            b"evil.nas.example.org",
            b"box.evil.local",
            b"evil.local",
            b"box.example.local",
            b"other.lan",
            b".local",
            b"boxlocal.",
            b"xlocalhost.",
            b"localhost:1@evil.example",
            b"localhost:x",
            b"box:99999",
            b"[::1].evil.example",
            b"[evil.example]",
            b"[::1",
            b"evil%2eexample",
            b"evil\xe3\x80\x82example",
            b":80",
            b".",
            b"",
        ] {
            let shown = String::from_utf8_lossy(host);
            let request = request(&[("host", host)]);
            let checked = |names: &Policy, connection: &Connection| {
                names.check_host(&Provenance::of(&request, connection)).is_ok()
            };
            assert!(!checked(&names, &from(STRANGER)), "{shown}");
            assert!(!checked(&names, &from(PROXY)), "{shown}");
            assert!(checked(&names, &Connection::Unix), "{shown}");
            names.host_check = HostCheck::Any;
            assert!(checked(&names, &from(STRANGER)), "{shown}");
            names.host_check = HostCheck::Known;
        }
        names.own_name = String::new();
        let (request, connection) = (request(&[("host", b".local")]), from(STRANGER));
        assert!(names.check_host(&Provenance::of(&request, &connection)).is_err());
    }

    #[test]
    fn a_refusal_shows_the_printable_beginning_of_the_host() {
        let host = [&b"evil\xff\""[..], &[b'x'; 200]].concat();
        let (request, connection) = (request(&[("host", &host)]), from(STRANGER));
        let refused = policy(&[], &[]).check_host(&Provenance::of(&request, &connection));
        let shown = format!("\"evil?\"{}\"", "x".repeat(94));
        let Err(Error::Forbidden(message)) = refused else { panic!("{refused:?}") };
        assert!(message.contains(&shown) && message.contains("--allow-host"), "{message}");
    }

    /// What becomes of a request for `box:8529` with these fields; `None`: it is refused.
    fn checked(
        allow_origin: &[&str],
        peer: &Connection,
        fields: &[(&str, &str)],
    ) -> Option<Sharing> {
        let mut all = vec![("host", &b"box:8529"[..])];
        all.extend(fields.iter().map(|(name, value)| (*name, value.as_bytes())));
        let request = request(&all);
        policy(allow_origin, &[]).check_page(&Provenance::of(&request, peer)).ok()
    }

    #[test]
    fn fetch_metadata_decide_where_they_are_sent() {
        let site = |value| ("sec-fetch-site", value);
        for (fields, passes) in [
            (&[site("same-origin")][..], true),
            (&[site("none")], true),
            (&[site("same-origin"), ("origin", "https://proxy.example")], true),
            (&[site("same-origin"), ("referer", "https://proxy.example/")], true),
            (&[site("cross-site")], false),
            (&[site("same-site")], false),
            (&[site("cross-site"), ("sec-fetch-mode", "navigate")], false),
            (&[site("cross-site"), ("origin", "http://box:8529")], false),
            (&[site("cross-site"), ("referer", "http://box:8529/")], false),
            (&[site("")], false),
            (&[site("Same-Origin")], false),
            (&[site("same-origin, none")], false),
            (&[site("same-origin"), site("same-origin")], false),
            (&[site("none"), site("cross-site")], false),
            (&[site("unheard-of")], false),
        ] {
            let found = checked(&[], &from(STRANGER), fields);
            assert_eq!(found, passes.then_some(Sharing::Own), "{fields:?}");
        }
    }

    #[test]
    fn without_fetch_metadata_the_origin_or_the_page_decides() {
        let (origin, referer) = (|value| ("origin", value), |value| ("referer", value));
        for (fields, passes) in [
            (&[][..], true),
            (&[("sec-fetch-mode", "cors")], true),
            (&[origin("http://box:8529")], true),
            (&[origin("https://box:8529")], true),
            (&[origin("HTTP://BOX:8529")], true),
            (&[origin("http://box:8529"), referer("http://evil.example/")], true),
            (&[referer("http://box:8529/")], true),
            (&[referer("http://box:8529")], true),
            (&[referer("https://Box:8529?q=http://evil.example")], true),
            (&[origin("http://box")], false),
            (&[origin("https://box")], false),
            (&[origin("http://box:85290")], false),
            (&[origin("http://box:8529/")], false),
            (&[origin("http://box:8529x")], false),
            (&[origin("ftp://box:8529")], false),
            (&[origin("box:8529")], false),
            (&[origin("http://u@box:8529")], false),
            (&[origin("http://box:8529@evil.example")], false),
            (&[origin("null")], false),
            (&[origin("")], false),
            (&[origin("*")], false),
            (&[origin("http://")], false),
            (&[origin("null"), referer("http://box:8529/")], false),
            (&[origin("http://box:8529"), origin("http://box:8529")], false),
            (&[referer("http://evil.example/http://box:8529/")], false),
            (&[referer("http://evil.example?http://box:8529/")], false),
            (&[referer("http://box:8529@evil.example/")], false),
            (&[referer("http://evil@box:8529/")], false),
            (&[referer("http://evil.example\\@box:8529/")], false),
            (&[referer("http://box:8529.evil.example/")], false),
            (&[referer("/run/x")], false),
            (&[referer("about:blank")], false),
            (&[referer("")], false),
            (&[referer("http://box:8529/"), referer("http://box:8529/")], false),
        ] {
            let found = checked(&[], &from(STRANGER), fields);
            assert_eq!(found, passes.then_some(Sharing::Own), "{fields:?}");
        }
    }

    #[test]
    fn a_default_port_may_be_left_out() {
        for (host, origin, passes) in [
            ("box", "http://box", true),
            ("box", "https://box", true),
            ("box", "http://box:80", true),
            ("box", "https://box:443", true),
            ("box:80", "http://box", true),
            ("box:443", "https://box", true),
            ("[::1]:8529", "http://[::1]:8529", true),
            ("[::1]", "https://[::1]", true),
            ("box", "http://box:443", false),
            ("box", "https://box:80", false),
            ("box:443", "http://box", false),
            ("box:8529", "http://box", false),
            ("[::1]:8529", "http://[::1]", false),
            ("[::1]:8529", "http://[::2]:8529", false),
            ("", "http://box", false),
            ("", "http://", false),
        ] {
            let request = request(&[("host", host.as_bytes()), ("origin", origin.as_bytes())]);
            let connection = from(STRANGER);
            let checked = policy(&[], &[]).check_page(&Provenance::of(&request, &connection));
            assert_eq!(checked.is_ok(), passes, "{host} {origin}");
        }
        let (request, connection) = (request(&[("origin", b"http://box")]), from(STRANGER));
        let policy = policy(&[], &[]);
        assert!(policy.check_page(&Provenance::of(&request, &connection)).is_err(), "no host");
    }

    #[test]
    fn a_proxy_on_this_host_may_name_the_host() {
        let page = ("origin", "https://pub.example:444");
        for (forwarded, passes) in [
            ("pub.example:444", true),
            ("PUB.example:444", true),
            ("inner, pub.example:444", true),
            ("pub.example", false),
            ("pub.example:444@x", false),
            ("", false),
        ] {
            let fields = [page, ("x-forwarded-host", forwarded)];
            let found = |peer: &Connection| checked(&[], peer, &fields).is_some();
            assert_eq!(found(&from(PROXY)), passes, "{forwarded}");
            assert_eq!(found(&Connection::Unix), passes, "{forwarded}");
            assert!(!found(&from(STRANGER)), "{forwarded}");
            let foreign = [page, ("sec-fetch-site", "cross-site"), fields[1]];
            assert_eq!(checked(&[], &from(PROXY), &foreign), None, "{forwarded}");
        }
    }

    #[test]
    fn allowed_origins_pass_and_named_ones_with_credentials() {
        const UI: &str = "https://ui.example";
        let named = |name| Some(Sharing::With(HeaderValue::from_static(name)));
        let any = Some(Sharing::Anyone);
        for (allow, origin, sharing) in [
            (&[UI][..], UI, named(UI)),
            (&[UI], "https://UI.example", named("https://UI.example")),
            (&[UI], "http://ui.example", None),
            (&[UI], "https://ui.example:444", None),
            (&[UI], "null", None),
            (&["*"], UI, any.clone()),
            (&["*"], "null", None),
            (&["*"], "NULL", None),
            (&["*"], "*", None),
            (&["*"], "", None),
            (&["*", UI], UI, named(UI)),
            (&[UI, "*"], UI, named(UI)),
            (&[UI, "*"], "https://other.example", any),
            (&["null"], "null", named("null")),
            (&["*", "null"], "null", named("null")),
        ] {
            let fields = [("origin", origin), ("sec-fetch-site", "cross-site")];
            assert_eq!(checked(allow, &from(STRANGER), &fields), sharing, "{allow:?} {origin}");
            assert_eq!(
                checked(allow, &from(STRANGER), &fields[..1]),
                sharing,
                "{allow:?} {origin}"
            );
            let twice = [fields[0], fields[0]];
            assert_eq!(checked(allow, &from(STRANGER), &twice), None, "{allow:?} {origin}");
        }
        let without_origin = [("sec-fetch-site", "cross-site")];
        assert_eq!(checked(&["*", UI], &from(STRANGER), &without_origin), None);
        assert_eq!(checked(&[UI], &from(STRANGER), &[]), Some(Sharing::OwnVaries));
    }

    #[test]
    fn a_refusal_shows_where_the_page_is_from() {
        for (fields, part) in [
            (
                &[("origin", "https://evil.example"), ("sec-fetch-site", "cross-site")][..],
                "origin: https://evil.example",
            ),
            (&[("sec-fetch-site", "cross-site")], "sec-fetch-site: cross-site"),
            (&[("referer", "http://evil.example/x")], "referer: http://evil.example/x"),
        ] {
            let all: Vec<_> =
                fields.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
            let (request, connection) = (request(&all), from(STRANGER));
            let refused = policy(&[], &[]).check_page(&Provenance::of(&request, &connection));
            let Err(Error::Forbidden(message)) = refused else { panic!("{refused:?}") };
            assert!(message.contains(part) && message.contains("--allow-origin"), "{message}");
        }
    }
}
