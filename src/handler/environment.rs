//! The environment of a script: the meta-variables of RFC 3875 section 4.1 and the common additions of other servers,
//! its user, its job, and what the operator adds.
//!
//! Owns the translation from a request; `group` adds `DEFERD_RUN`. Starts nothing. Invariant: of deferd's own
//! environment, only PATH, the user's variables and what the operator names reach a script, and a client can only set
//! variables named `HTTP_…`.

use std::ffi::{OsStr, OsString};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::LazyLock;

use http::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HOST, HeaderMap, HeaderName,
};

use super::ScriptRoute;
use super::hop_by_hop::{self, Direction};
use super::locate::Located;
use crate::exchange::{Call, Connection};
use crate::job::execution::Execution;
use crate::protocol::PRODUCT;
use crate::variables::Variables;

/// The PATH of scripts if deferd was started without PATH.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// The file of the host's users (passwd(5)).
const PASSWD: &str = "/etc/passwd";

/// The shell of a user for whom none is listed (passwd(5)).
const DEFAULT_SHELL: &str = "/bin/sh";

/// The variables of a script, by name.
type Pairs = Vec<(OsString, OsString)>;

/// Returns the environment; if a name occurs twice, the last value counts.
pub fn of(call: &Call, execution: &Execution, route: &ScriptRoute, script: &Located) -> Pairs {
    let request = &call.request;
    let mut environment = of_host(&route.variables);
    of_server(call, &mut environment);
    of_script(script, &mut environment);
    let mut set = |name: &str, value: OsString| environment.push((name.into(), value));
    set("QUERY_STRING", request.uri().query().unwrap_or_default().into());
    set("REQUEST_METHOD", request.method().as_str().into());
    set("REQUEST_URI", request.uri().path_and_query().map_or("/", |target| target.as_str()).into());
    if let (Some(name), Some(auth_type)) = (call.owner.name(), call.auth_type) {
        set("AUTH_TYPE", auth_type.into());
        set("REMOTE_USER", name.into());
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
    if let Some(id) = execution.job() {
        set("DEFERD_JOB_ID", id.to_string().into());
        set("DEFERD_ATTEMPT", execution.attempt().to_string().into());
    }
    environment
}

/// Returns the variables that do not depend on a request: PATH, the user, and what the operator adds.
pub fn of_host(variables: &Variables) -> Pairs {
    let mut environment = Vec::with_capacity(48);
    let mut set = |name: &str, value: OsString| environment.push((name.into(), value));
    set("PATH", std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into()));
    for (name, value) in USER.iter() {
        set(name, value.clone());
    }
    environment.extend(variables.current().iter().cloned());
    environment
}

/// Adds the variables of the server and the connection.
fn of_server(call: &Call, environment: &mut Pairs) {
    let mut set = |name: &str, value: OsString| environment.push((name.into(), value));
    let peer = call.connection.peer_ip().to_string();
    let (address, local_port, peer_port) = match call.connection {
        Connection::Tcp { peer, local } => (local.ip().to_canonical(), local.port(), peer.port()),
        // A Unix socket has no ports, and its clients are on this host.
        Connection::Unix => (IpAddr::V4(Ipv4Addr::LOCALHOST), 0, 0),
    };
    set("GATEWAY_INTERFACE", "CGI/1.1".into());
    set("REMOTE_ADDR", peer.clone().into());
    // "If the hostname is not available … the server MAY substitute the REMOTE_ADDR value" (4.1.9).
    set("REMOTE_HOST", peer.into());
    set("REMOTE_PORT", peer_port.to_string().into());
    set("SERVER_ADDR", address.to_string().into());
    set("SERVER_NAME", server_name(call).into());
    set("SERVER_PORT", local_port.to_string().into());
    set("SERVER_PROTOCOL", format!("{:?}", call.request.version()).into());
    set("SERVER_SOFTWARE", PRODUCT.into());
    // Without it, php-cgi refuses to run a script.
    set("REDIRECT_STATUS", "200".into());
}

/// Adds the variables for the script and for the rest of the path.
fn of_script(script: &Located, environment: &mut Pairs) {
    let mut set = |name: &str, value: OsString| environment.push((name.into(), value));
    set("DOCUMENT_ROOT", script.root.clone().into());
    set("PATH_INFO", OsString::from_vec(script.path_info.clone()));
    set("SCRIPT_FILENAME", script.program.clone().into());
    set("SCRIPT_NAME", OsString::from_vec(script.script_name.clone()));
    if !script.path_info.is_empty() {
        set("PATH_TRANSLATED", path_translated(script));
    }
}

/// The user of the scripts, which is the user of this process: from the host's users, or else from deferd's own
/// environment.
static USER: LazyLock<[(&str, OsString); 4]> = LazyLock::new(|| {
    let uid = rustix::process::getuid().as_raw();
    let passwd = std::fs::read(PASSWD).unwrap_or_default();
    user(uid, &passwd, |name| std::env::var_os(name))
});

/// Returns the variables of a user from the lines of passwd(5), or else from `own`.
fn user(
    uid: u32,
    passwd: &[u8],
    own: impl Fn(&str) -> Option<OsString>,
) -> [(&'static str, OsString); 4] {
    let mut lines = passwd.split(|&b| b == b'\n').map(|line| line.split(|&b| b == b':').collect());
    let line: Option<Vec<&[u8]>> = lines.find(|line: &Vec<&[u8]>| {
        line.len() >= 7 && std::str::from_utf8(line[2]).is_ok_and(|n| n.parse() == Ok(uid))
    });
    let [name, home, shell] = match line {
        Some(line) => {
            [line[0], line[5], line[6]].map(|part| Some(OsStr::from_bytes(part).to_owned()))
        }
        None => [own("LOGNAME").or_else(|| own("USER")), own("HOME"), own("SHELL")],
    };
    let or = |value: Option<OsString>, default: &str| {
        value.filter(|value| !value.is_empty()).unwrap_or_else(|| default.into())
    };
    let name = or(name, &uid.to_string());
    [
        ("HOME", or(home, "/")),
        ("LOGNAME", name.clone()),
        ("USER", name),
        ("SHELL", or(shell, DEFAULT_SHELL)),
    ]
}

/// Returns the host that the client asked for, without its port, or else the address that it connected to.
fn server_name(call: &Call) -> String {
    let host = call.request.headers().get(HOST).and_then(|host| host.to_str().ok());
    let authority = host.and_then(|host| host.parse::<http::uri::Authority>().ok());
    let name = authority.map(|authority| authority.host().to_owned());
    name.unwrap_or_else(|| match call.connection {
        Connection::Tcp { local, .. } => local.ip().to_canonical().to_string(),
        Connection::Unix => "localhost".to_owned(),
    })
}

/// Returns the path info as a file below the route's directory (RFC 3875 section 4.1.6).
fn path_translated(script: &Located) -> OsString {
    let mut path = script.root.as_os_str().as_bytes().to_vec();
    path.extend_from_slice(&script.path_info);
    OsString::from_vec(path)
}

/// Returns the variable for a field (RFC 3875 section 4.1.18); `None` for fields that scripts must not see: hop-by-hop
/// fields, those with a variable of their own, credentials, `Proxy` (it would become the variable from which HTTP
/// clients read their proxy), and names with characters other than letters, digits and dashes, which could pass for
/// another field's variable.
fn http_variable(fields: &HeaderMap, name: &HeaderName) -> Option<String> {
    let hidden = name.as_str() == "proxy"
        || [AUTHORIZATION, CONTENT_TYPE].contains(name)
        || hop_by_hop::ends_here(fields, name, Direction::ToScript)
        || !name.as_str().bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    (!hidden).then(|| format!("HTTP_{}", name.as_str().to_ascii_uppercase().replace('-', "_")))
}

/// Returns all values of a field, joined (RFC 9110 section 5.3; by `; ` for Cookie, RFC 9113 section 8.2.3).
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

    #[test]
    fn the_user_comes_from_passwd_or_the_environment() {
        let passwd = b"root:x:0:0:root:/root:/bin/bash\n\nann:x:7:7::/home/ann:\nbroken:x:8\n";
        let of = |uid, own: &[(&str, &str)]| {
            let own = |name: &str| {
                own.iter().find(|(other, _)| *other == name).map(|(_, value)| value.into())
            };
            user(uid, passwd, own).map(|(_, value)| value.into_string().unwrap())
        };
        let other = [("HOME", "/x"), ("SHELL", "/y"), ("USER", "z")];
        assert_eq!(of(0, &other), ["/root", "root", "root", "/bin/bash"]);
        assert_eq!(of(7, &other), ["/home/ann", "ann", "ann", "/bin/sh"]);
        assert_eq!(of(8, &other), ["/x", "z", "z", "/y"]);
        assert_eq!(of(9, &[("HOME", "")]), ["/", "9", "9", "/bin/sh"]);
    }
}
