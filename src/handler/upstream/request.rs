//! Makes the upstream's request from the client's.
//!
//! Owns target and fields; sends nothing. Invariants: the target stays below the route's path, however the upstream
//! reads dots and escapes; nothing that concerns only deferd (its credentials, its fields, its preferences) is
//! forwarded.

use std::net::IpAddr;

use http::header::{AUTHORIZATION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, VIA};
use http::uri::{PathAndQuery, Uri};
use http::{Method, Request};

use super::UpstreamRoute;
use crate::content::Content;
use crate::dots;
use crate::error::Error;
use crate::exchange::Call;
use crate::handler::hop_by_hop::{self, Direction};
use crate::prefer;
use crate::protocol::PREFER;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Returns the request for the upstream, without its content.
///
/// # Errors
/// Errors of [`target`].
pub fn forwarded(route: &UpstreamRoute, call: &Call) -> Result<Request<()>, Error> {
    let mut request = Request::new(());
    *request.method_mut() = call.request.method().clone();
    *request.uri_mut() = target(route, call.request.uri())?;
    *request.headers_mut() = fields(call);
    if let Some(content) = content(call).filter(|content| content.in_memory().is_none()) {
        // Without it, content that is read from a file would be sent in chunks.
        request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(content.len()));
    }
    Ok(request)
}

/// Returns the content to send, which may be empty if the method or the client defines content (RFC 9110 section 8.6);
/// `None` for HEAD, whose content has no meaning.
pub fn content(call: &Call) -> Option<&Content> {
    let request = &call.request;
    let method = request.method();
    let expected = [Method::POST, Method::PUT, Method::PATCH].contains(method)
        || request.headers().contains_key(CONTENT_LENGTH);
    let has_content = (expected || !request.body().is_empty()) && method != Method::HEAD;
    has_content.then_some(request.body())
}

/// Returns the upstream's target: replaces the prefix, keeps the query.
///
/// # Errors
/// [`Error::BadParameter`] for a path that some reader could resolve to a path above the route's: see [`dots::check`].
pub fn target(route: &UpstreamRoute, uri: &Uri) -> Result<Uri, Error> {
    let path = uri.path();
    let rest = path.strip_prefix(route.prefix.as_str()).unwrap_or(path);
    dots::check(rest).map_err(Error::bad_parameter)?;
    let base = route.path.as_str();
    // Exactly one slash joins the two.
    let (base, rest) = match (base.ends_with('/'), rest.strip_prefix('/')) {
        (true, Some(rest)) => (base, rest.to_owned()),
        (false, None) if !rest.is_empty() => (base, format!("/{rest}")),
        _ => (base, rest.to_owned()),
    };
    // After `/`, readers that resolve references (RFC 3986 section 4.2) would take further slashes for the beginning
    // of an authority, and likewise a backslash (WHATWG URL).
    let rest = if base == "/" { rest.trim_start_matches('/').to_owned() } else { rest };
    if base == "/" && rest.starts_with('\\') {
        return Err(Error::bad_parameter("the path begins with a backslash"));
    }
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let bad = |_| Error::bad_parameter("the target cannot be forwarded");
    let target = PathAndQuery::try_from(format!("{base}{rest}{query}")).map_err(bad)?;
    let builder = Uri::builder().scheme(route.scheme.clone()).authority(route.authority.clone());
    builder.path_and_query(target).build().map_err(|error| bad_target(&error))
}

fn bad_target(error: &http::Error) -> Error {
    Error::bad_parameter(format!("the target cannot be forwarded: {error}"))
}

fn fields(call: &Call) -> HeaderMap {
    let mut fields = call.request.headers().clone();
    let host = fields.get(HOST).cloned();
    let preferences = prefer::forwarded(&fields);
    hop_by_hop::strip(&mut fields, Direction::ToUpstream);
    remove_fields(&mut fields, is_ambiguous);
    if call.auth_type.is_some() {
        // Credentials for deferd end here. Without --auth, credentials are for the upstream.
        fields.remove(AUTHORIZATION);
    }
    fields.remove(PREFER);
    if let Some(preferences) = preferences {
        fields.insert(PREFER, preferences);
    }
    add_forwarded(&mut fields, call.connection.peer_ip(), host);
    fields.append(VIA, HeaderValue::from_static("1.1 deferd"));
    fields
}

/// Returns whether this name could pass for another field's: a CGI variable has `_` in place of a dash.
fn is_ambiguous(name: &str) -> bool {
    name.contains('_')
}

/// Returns whether only proxies send this field: about their client, or the target that it requested.
fn is_of_proxies(name: &str) -> bool {
    const NAMES: [&str; 4] = ["forwarded", "x-real-ip", "x-original-url", "x-rewrite-url"];
    // This field is a list: the client's address is appended to it.
    let is_list = name == FORWARDED_FOR.as_str();
    NAMES.contains(&name) || (name.starts_with("x-forwarded-") && !is_list)
}

fn remove_fields(fields: &mut HeaderMap, which: fn(&str) -> bool) {
    let names: Vec<HeaderName> =
        fields.keys().filter(|name| which(name.as_str())).cloned().collect();
    for name in names {
        fields.remove(name);
    }
}

/// Adds fields about the origin of the request. The fields that a proxy on this host wrote about its client are kept;
/// any other client could have invented them.
fn add_forwarded(fields: &mut HeaderMap, peer: IpAddr, host: Option<HeaderValue>) {
    if !peer.is_loopback() {
        remove_fields(fields, is_of_proxies);
    }
    let before = fields.get_all(FORWARDED_FOR).iter().map(HeaderValue::as_bytes);
    let mut hops: Vec<&[u8]> = before.collect();
    let peer = peer.to_string();
    hops.push(peer.as_bytes());
    if let Ok(hops) = HeaderValue::from_bytes(&hops.join(&b", "[..])) {
        fields.insert(FORWARDED_FOR, hops);
    }
    let proto = HeaderValue::from_static("http");
    for (name, value) in [(FORWARDED_HOST, host), (FORWARDED_PROTO, Some(proto))] {
        if let Some(value) = value.filter(|_| !fields.contains_key(&name)) {
            fields.insert(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn route(prefix: &str, path: &str) -> UpstreamRoute {
        UpstreamRoute {
            prefix: prefix.into(),
            scheme: http::uri::Scheme::HTTP,
            authority: "up.example:81".parse().unwrap(),
            path: path.into(),
            time_limit: Duration::from_secs(1),
            connect_limit: Duration::from_secs(1),
            max_output: 1,
            max_head: 1,
        }
    }

    #[test]
    fn the_prefix_is_replaced_and_the_query_kept() {
        for (prefix, path, asked, sent) in [
            ("/llm/", "/", "/llm/v1/chat?x=%2F..", "/v1/chat?x=%2F.."),
            ("/llm/", "/api/", "/llm/v1", "/api/v1"),
            ("/llm/", "/api", "/llm/v1", "/api/v1"),
            ("/llm", "/api/", "/llm/v1", "/api/v1"),
            ("/llm", "/api", "/llm/v1", "/api/v1"),
            ("/llm", "/api", "/llm", "/api"),
            ("/llm/", "/", "/llm/", "/"),
            ("/llm/", "/", "/llm/?q", "/?q"),
            ("/", "/", "/a//b/", "/a//b/"),
            ("/x/", "/", "/x/a%2Fb%5c?%zz/../", "/a%2Fb%5c?%zz/../"),
            // To readers that resolve references, this target would begin with an authority.
            ("/x/", "/", "/x//evil.example/", "/evil.example/"),
            ("/x/", "/", "/x////evil.example/", "/evil.example/"),
            ("/x", "/", "/x//evil.example/", "/evil.example/"),
            ("/x", "/", "/x//", "/"),
            ("/x/", "/api/", "/x///a", "/api//a"),
        ] {
            let sent_uri = target(&route(prefix, path), &asked.parse().unwrap()).unwrap();
            assert_eq!(sent_uri.to_string(), format!("http://up.example:81{sent}"), "{asked}");
        }
    }

    #[test]
    fn no_target_leaves_the_path_of_its_route() {
        for path in
            ["..", "%zz/%2e%2e/admin", "a%00/%2e%2e/b", "..;/admin", "%252e%252e%252fa", "%"]
        {
            let found = target(&route("/x/", "/api/"), &format!("/x/{path}").parse().unwrap());
            assert!(matches!(found, Err(Error::BadParameter(_))), "{path}: {found:?}");
        }
        for (base, path) in [("/", "\\evil.example"), ("/", "//\\evil.example")] {
            let found = target(&route("/x/", base), &format!("/x/{path}").parse().unwrap());
            assert!(matches!(found, Err(Error::BadParameter(_))), "{path}: {found:?}");
        }
    }

    #[test]
    fn only_a_proxy_on_this_host_is_believed() {
        for (peer, host, proto) in [
            ("127.0.0.1", "outer", "https"),
            ("::1", "outer", "https"),
            ("192.0.2.7", "me", "http"),
        ] {
            let mut fields = HeaderMap::new();
            fields.insert(FORWARDED_FOR, HeaderValue::from_static("198.51.100.1"));
            fields.insert(FORWARDED_HOST, HeaderValue::from_static("outer"));
            fields.insert(FORWARDED_PROTO, HeaderValue::from_static("https"));
            let own = Some(HeaderValue::from_static("me"));
            add_forwarded(&mut fields, peer.parse().unwrap(), own);
            assert_eq!(fields[FORWARDED_FOR], format!("198.51.100.1, {peer}"));
            assert_eq!(fields[FORWARDED_HOST], host);
            assert_eq!(fields[FORWARDED_PROTO], proto);
        }
    }

    #[test]
    fn fields_of_proxies_pass_from_this_host_only() {
        let names = [
            "forwarded",
            "x-real-ip",
            "x-forwarded-port",
            "x-forwarded-prefix",
            "x-forwarded-user",
            "x-original-url",
            "x-rewrite-url",
        ];
        for (peer, passes) in [("127.0.0.1", true), ("::1", true), ("192.0.2.7", false)] {
            let mut fields = HeaderMap::new();
            for name in names.iter().chain(&["x-forwardedness", "x-own"]) {
                fields.insert(*name, HeaderValue::from_static("v"));
            }
            add_forwarded(&mut fields, peer.parse().unwrap(), None);
            for name in names {
                assert_eq!(fields.contains_key(name), passes, "{name} from {peer}");
            }
            assert!(fields.contains_key("x-forwardedness") && fields.contains_key("x-own"));
        }
    }
}
