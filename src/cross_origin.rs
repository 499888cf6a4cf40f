//! Protection against cross-origin requests: which web pages may make the reader's browser send requests here.
//!
//! Owns the checks of `sec-fetch-site` (W3C Fetch Metadata), `origin` and `referer`. Clients other than browsers send
//! none of them, and always pass. Who may read an answer is `cors`, which host names count is `allowed_hosts`.
//! Invariant: a request that a foreign page caused is not run, unless its origin is allowed or its route takes any
//! page. That includes navigations and simple requests, except navigations to deferd's own page, which run nothing.

use http::header::{HOST, ORIGIN, REFERER};
use http::request::Parts;
use http::{HeaderName, Method};

use crate::allowed_hosts::{AllowedHosts, name_and_port};
use crate::cors::{AllowedOrigins, Sharing};
use crate::error::Error;
use crate::exchange::Connection;
use crate::fields::{FieldLines, find, printable};

const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// The fields that identify the page.
static NAMES: [HeaderName; 4] = [HOST, ORIGIN, HeaderName::from_static("sec-fetch-site"), REFERER];

/// What web pages may do.
pub struct Policy {
    /// Those of these origins.
    pub origins: AllowedOrigins,
    /// Under these names of this host.
    pub hosts: AllowedHosts,
}

/// What a request says about its page.
pub struct Provenance<'a> {
    host: FieldLines<'a>,
    origin: FieldLines<'a>,
    site: FieldLines<'a>,
    referer: FieldLines<'a>,
    request: &'a Parts,
    connection: &'a Connection,
}

impl<'a> Provenance<'a> {
    /// Reads it from a request that came over this connection.
    pub fn of(request: &'a Parts, connection: &'a Connection) -> Self {
        let [host, origin, site, referer] = find(&request.headers, &NAMES);
        Self { host, origin, site, referer, request, connection }
    }

    /// Returns whether no field says that a page of another origin caused the request.
    fn is_own(&self) -> bool {
        if self.site.first.is_some() {
            // `none`: the user typed the address, or chose a bookmark.
            return self.site.only().is_some_and(|site| site == "same-origin" || site == "none");
        }
        let page = match (self.origin.first, self.referer.first) {
            (None, None) => return true,
            (Some(_), _) => self.origin.only_text().and_then(Origin::parse),
            (None, Some(_)) => self.referer.only_text().and_then(Origin::of_page),
        };
        page.is_some_and(|page| self.is_from_here(&page))
    }

    /// Returns whether the user navigates here from a page, at the top level: not in a frame, nor as a part of a page.
    pub fn is_navigation(&self) -> bool {
        let says = |name: &str, value| {
            let mut lines = self.request.headers.get_all(name).iter();
            lines.next().is_some_and(|line| line == value) && lines.next().is_none()
        };
        matches!(self.request.method, Method::GET | Method::HEAD)
            && says("sec-fetch-mode", "navigate")
            && says("sec-fetch-dest", "document")
    }

    /// Returns whether this origin is the server that the request was sent to. A proxy on this host may name the server
    /// that its own client asked; no page can make a browser send that field.
    fn is_from_here(&self, page: &Origin<'_>) -> bool {
        if self.host.only_text().is_some_and(|host| page.is_at(host)) {
            return true;
        }
        let forwarded = self.request.headers.get_all(FORWARDED_HOST).iter();
        self.connection.peer_ip().is_loopback()
            && forwarded
                .filter_map(|line| line.to_str().ok())
                .flat_map(|line| line.split(','))
                .any(|host| page.is_at(host.trim()))
    }
}

impl Policy {
    /// Checks the name under which a request comes.
    ///
    /// # Errors
    /// [`Error::Forbidden`], which says what to allow.
    pub fn check_host(&self, seen: &Provenance<'_>) -> Result<(), Error> {
        self.hosts.check(seen.host, seen.connection)
    }

    /// Checks the page that a request comes from; returns the pages that may read the answer.
    ///
    /// # Errors
    /// [`Error::Forbidden`], which says what to allow.
    pub fn check_page(&self, seen: &Provenance<'_>) -> Result<Sharing, Error> {
        if let Some(sharing) =
            seen.origin.only().and_then(|origin| self.origins.sharing_with(origin))
        {
            return Ok(sharing);
        }
        if seen.is_own() { Ok(self.unshared(seen)) } else { Err(foreign_page(seen)) }
    }

    /// Returns which pages may read an answer if no page of another origin is allowed to.
    pub fn unshared(&self, seen: &Provenance<'_>) -> Sharing {
        self.origins.unshared(&seen.request.method)
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

    /// Returns the origin of the page at this address.
    fn of_page(address: &'a str) -> Option<Self> {
        let authority = address.find("://")? + 3;
        let end = address[authority..].find(['/', '?', '#', '\\']);
        Self::parse(&address[..end.map_or(address.len(), |length| authority + length)])
    }

    /// Returns whether `host` names it. Its scheme may be either, because a proxy may have added TLS.
    fn is_at(&self, host: &str) -> bool {
        name_and_port(host).is_some_and(|(name, port)| {
            name.eq_ignore_ascii_case(self.name) && port.unwrap_or(self.default_port) == self.port
        })
    }
}

/// Returns the refusal of a page, naming the field that gives its origin.
fn foreign_page(seen: &Provenance<'_>) -> Error {
    let [_, origin, site, referer] = &NAMES;
    let signs = [(origin, seen.origin), (site, seen.site), (referer, seen.referer)];
    let sign = signs.iter().find_map(|(name, lines)| lines.first.map(|value| (name, value)));
    let sign =
        sign.map_or_else(String::new, |(name, value)| format!(" ({name}: {})", printable(value)));
    let remedy = "see --allow-origin, or pages=any of a route";
    Error::Forbidden(format!("a web page of another origin sent this{sign}; {remedy}").into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allowed_hosts::HostCheck;
    use http::Request;

    const STRANGER: &str = "192.0.2.1:1";
    const PROXY: &str = "[::ffff:127.0.0.1]:1";

    fn policy(allow_origin: &[&str]) -> Policy {
        let origins = AllowedOrigins(allow_origin.iter().map(ToString::to_string).collect());
        let hosts =
            AllowedHosts { names: Vec::new(), check: HostCheck::Any, own_name: String::new() };
        Policy { origins, hosts }
    }

    fn from(peer: &str) -> Connection {
        let local = "192.0.2.9:80".parse().unwrap();
        Connection::Tcp { peer: peer.parse().unwrap(), local }
    }

    fn request(fields: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder();
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    /// What becomes of a request for `box:8529` with these fields; `None`: it is refused.
    fn checked(
        allow_origin: &[&str],
        peer: &Connection,
        fields: &[(&str, &str)],
    ) -> Option<Sharing> {
        let request = request(&[&[("host", "box:8529")], fields].concat());
        policy(allow_origin).check_page(&Provenance::of(&request, peer)).ok()
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
        let origin = |value| ("origin", value);
        let referer = |value| ("referer", value);
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
            let request = request(&[("host", host), ("origin", origin)]);
            let connection = from(STRANGER);
            let checked = policy(&[]).check_page(&Provenance::of(&request, &connection));
            assert_eq!(checked.is_ok(), passes, "{host} {origin}");
        }
        let request = request(&[("origin", "http://box")]);
        let connection = from(STRANGER);
        let checked = policy(&[]).check_page(&Provenance::of(&request, &connection));
        assert!(checked.is_err(), "no host");
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
    fn an_allowed_origin_passes_from_another_site_too() {
        const UI: &str = "https://ui.example";
        let fields = [("origin", UI), ("sec-fetch-site", "cross-site")];
        for sent in [&fields[..], &fields[..1]] {
            let found = |allow: &[&str]| checked(allow, &from(STRANGER), sent);
            assert_eq!(found(&[UI]), Some(Sharing::With(UI.parse().unwrap())), "{sent:?}");
            assert_eq!(found(&["*"]), Some(Sharing::Anyone), "{sent:?}");
            assert_eq!(found(&["https://other.example"]), None, "{sent:?}");
        }
        for refused in [&[fields[0], fields[0]], &[fields[0], ("origin", "null")]] {
            assert_eq!(checked(&["*", UI], &from(STRANGER), refused), None, "{refused:?}");
        }
        assert_eq!(checked(&["*", UI], &from(STRANGER), &fields[1..]), None);
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
            let request = request(fields);
            let connection = from(STRANGER);
            let refused = policy(&[]).check_page(&Provenance::of(&request, &connection));
            let Err(Error::Forbidden(message)) = refused else { panic!("{refused:?}") };
            assert!(message.contains(part) && message.contains("--allow-origin"), "{message}");
        }
    }
}
