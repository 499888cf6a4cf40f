//! The environment of a script: the meta-variables of RFC 3875 section 4.1, and PATH.
//!
//! Owns the translation from a request; `group` adds `DEFERD_RUN`. Starts nothing. Invariant: nothing of deferd's own environment but PATH
//! reaches a script, and no client can set a variable that is not named `HTTP_…`.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use http::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HOST, HeaderMap, HeaderName,
};

use super::ScriptRoute;
use super::hop_by_hop::{self, Direction};
use super::locate::Located;
use crate::exchange::{Call, Connection};

/// The PATH of scripts if deferd was started without one.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// The environment, name by name.
pub fn of(call: &Call, route: &ScriptRoute, script: &Located) -> Vec<(OsString, OsString)> {
    let request = &call.request;
    let peer = call.connection.peer_ip().to_string();
    let (address, port) = server(call);
    let path = std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    let mut environment: Vec<(OsString, OsString)> = Vec::with_capacity(32);
    let mut set = |name: &str, value: OsString| environment.push((name.into(), value));
    set("PATH", path);
    set("GATEWAY_INTERFACE", "CGI/1.1".into());
    set("PATH_INFO", OsString::from_vec(script.path_info.clone()));
    set("QUERY_STRING", request.uri().query().unwrap_or_default().into());
    set("REMOTE_ADDR", peer.clone().into());
    // "If the hostname is not available … the server MAY substitute the REMOTE_ADDR value" (4.1.9).
    set("REMOTE_HOST", peer.into());
    set("REQUEST_METHOD", request.method().as_str().into());
    set("SCRIPT_NAME", OsString::from_vec(script.script_name.clone()));
    set("SERVER_NAME", address.into());
    set("SERVER_PORT", port.into());
    set("SERVER_PROTOCOL", format!("{:?}", request.version()).into());
    set("SERVER_SOFTWARE", concat!("deferd/", env!("CARGO_PKG_VERSION")).into());
    if let (Some(name), Some(auth_type)) = (call.owner.name(), call.auth_type) {
        set("AUTH_TYPE", auth_type.into());
        set("REMOTE_USER", name.into());
    }
    if !script.path_info.is_empty() {
        set("PATH_TRANSLATED", path_translated(route, script));
    }
    if !request.body().is_empty() || request.headers().contains_key(CONTENT_LENGTH) {
        set("CONTENT_LENGTH", request.body().len().to_string().into());
    }
    if let Some(value) = request.headers().get(CONTENT_TYPE) {
        set("CONTENT_TYPE", OsString::from_vec(value.as_bytes().to_vec()));
    }
    for name in request.headers().keys() {
        if let Some(variable) = http_variable(request.headers(), name) {
            set(&variable, OsString::from_vec(joined(request.headers(), name)));
        }
    }
    environment
}

/// Returns the host that the client asked for, without its port, or else the address that it connected to; and
/// the port that it connected to, which a Unix socket does not have.
fn server(call: &Call) -> (String, String) {
    let host = call.request.headers().get(HOST).and_then(|host| host.to_str().ok());
    let authority = host.and_then(|host| host.parse::<http::uri::Authority>().ok());
    let name = authority.map(|authority| authority.host().to_owned());
    match call.connection {
        Connection::Tcp { local, .. } => {
            (name.unwrap_or_else(|| local.ip().to_string()), local.port().to_string())
        }
        Connection::Unix => (name.unwrap_or_else(|| "localhost".to_owned()), "0".to_owned()),
    }
}

/// Returns the path info as a file below the route's directory (RFC 3875 section 4.1.6).
fn path_translated(route: &ScriptRoute, script: &Located) -> OsString {
    let mut path = route.directory.as_os_str().as_bytes().to_vec();
    path.extend_from_slice(&script.path_info);
    OsString::from_vec(path)
}

/// Returns the variable for a field (RFC 3875 section 4.1.18); `None` for fields that scripts must not see:
/// those that end here, those with a variable of their own, credentials, `Proxy` (which would become the variable
/// that HTTP clients read their proxy from), and names with other characters than letters, digits and
/// dashes, which could pass for another field's variable.
fn http_variable(fields: &HeaderMap, name: &HeaderName) -> Option<String> {
    let hidden = name.as_str() == "proxy"
        || [AUTHORIZATION, CONTENT_TYPE].contains(name)
        || hop_by_hop::ends_here(fields, name, Direction::ToScript)
        || !name.as_str().bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    (!hidden).then(|| format!("HTTP_{}", name.as_str().to_ascii_uppercase().replace('-', "_")))
}

/// Returns all values of a field as one (RFC 9110 section 5.3; `; ` for Cookie, RFC 9113 section 8.2.3).
fn joined(fields: &HeaderMap, name: &HeaderName) -> Vec<u8> {
    let separator: &[u8] = if name == COOKIE { b"; " } else { b", " };
    let values: Vec<&[u8]> = fields.get_all(name).iter().map(|value| value.as_bytes()).collect();
    values.join(separator)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn fields_become_variables_or_stay_out() {
        let mut fields = HeaderMap::new();
        fields.insert("connection", HeaderValue::from_static("close, X-Hop"));
        for (name, variable) in [
            ("x-arango-async", Some("HTTP_X_ARANGO_ASYNC")),
            ("accept", Some("HTTP_ACCEPT")),
            ("proxy", None),
            ("authorization", None),
            ("proxy-authorization", None),
            ("content-type", None),
            ("content-length", None),
            ("content_length", None),
            ("x.y", None),
            ("transfer-encoding", None),
            ("te", None),
            ("trailer", None),
            ("connection", None),
            ("x-hop", None),
            ("keep-alive", None),
            ("upgrade", None),
            ("expect", None),
            ("host", Some("HTTP_HOST")),
        ] {
            assert_eq!(
                http_variable(&fields, &HeaderName::from_static(name)).as_deref(),
                variable,
                "{name}"
            );
        }
    }

    #[test]
    fn repeated_fields_are_joined() {
        let mut fields = HeaderMap::new();
        for (name, value) in
            [("cookie", "a=1"), ("accept", "x/y"), ("cookie", "b=2"), ("accept", "z/*")]
        {
            fields.append(name, HeaderValue::from_static(value));
        }
        assert_eq!(joined(&fields, &COOKIE), b"a=1; b=2");
        assert_eq!(joined(&fields, &http::header::ACCEPT), b"x/y, z/*");
    }
}
