//! What a script receives: its environment (RFC 3875 section 4.1), its directory, its standard input.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use crate::support::{
    Ability, Client, Deferd, Ended, Reply, TempDir, eventually, fixtures, lacks, run_deferd,
};

type Environment = BTreeMap<String, String>;

/// A PATH that only these tests have, with what the scripts need.
const PATH: &str = "/usr/bin:/bin:/of/this/test";

/// Starts a deferd whose own environment has secrets that no script may see.
fn start() -> Deferd {
    let mut command = Command::new(env!("CARGO_BIN_EXE_deferd"));
    command.env("PATH", PATH).env("A_SECRET", "of deferd").env("http_proxy", "http://localhost:9");
    let fixtures = fixtures().display().to_string();
    let cgi = format!("/cgi/=cgi:{fixtures}");
    let run = format!("/run/=run:{fixtures}");
    let hosts = ["--allow-host", "example.org", "--allow-host", "192.0.2.7"];
    Deferd::start_by(command, &[&["--route", &cgi, "--route", &run], &hosts[..]].concat())
}

/// Returns the environment that `s-environ` answers with, whether its header block was read or not; without the name
/// of the run, which differs each time.
#[track_caller]
fn environment(reply: Reply) -> Environment {
    let body = reply.expect(200).text();
    let body = body.split_once("\n\n").map_or(&*body, |(_, content)| content);
    let variables = body.split_terminator('\0').map(|v| v.split_once('=').unwrap());
    let variables: Vec<_> = variables.map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
    let count = variables.len();
    let mut environment = Environment::from_iter(variables);
    assert_eq!(environment.len(), count, "a variable more than once");
    let run = environment.remove("DEFERD_RUN").expect("the name of the run");
    assert!(run.len() == 32 && run.bytes().all(|b| b.is_ascii_hexdigit()), "{run}");
    // It differs for each connection.
    let port = environment.remove("REMOTE_PORT").expect("REMOTE_PORT");
    assert!(port.parse::<u16>().is_ok_and(|port| port > 0), "{port}");
    environment
}

/// Returns the user that runs the tests, as the host lists it.
fn user() -> [(&'static str, String); 4] {
    let id = Command::new("id").arg("-u").output().unwrap().stdout;
    let id = String::from_utf8(id).unwrap();
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    let mut lines = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let line = lines.find(|line| line[2] == id.trim()).expect("a user of this host");
    [("HOME", line[5]), ("LOGNAME", line[0]), ("USER", line[0]), ("SHELL", line[6])]
        .map(|(name, value)| (name, value.to_owned()))
}

/// Returns the environment for `GET /cgi/s-environ` without query or fields, with these changes: an empty name has no
/// meaning, and a value of `None` removes the variable.
fn plain(deferd: &Deferd, changes: &[(&str, Option<&str>)]) -> Environment {
    let port = deferd.address.port().to_string();
    let root = fixtures().canonicalize().unwrap().display().to_string();
    let script = format!("{root}/s-environ");
    let mut environment: Environment = [
        ("DOCUMENT_ROOT", &*root),
        ("PATH", PATH),
        ("GATEWAY_INTERFACE", "CGI/1.1"),
        ("HTTP_HOST", "localhost"),
        ("PATH_INFO", ""),
        ("QUERY_STRING", ""),
        ("REDIRECT_STATUS", "200"),
        ("REMOTE_ADDR", "127.0.0.1"),
        ("REMOTE_HOST", "127.0.0.1"),
        ("REQUEST_METHOD", "GET"),
        ("REQUEST_URI", "/cgi/s-environ"),
        ("SCRIPT_FILENAME", &script),
        ("SCRIPT_NAME", "/cgi/s-environ"),
        ("SERVER_ADDR", "127.0.0.1"),
        ("SERVER_NAME", "localhost"),
        ("SERVER_PORT", &port),
        ("SERVER_PROTOCOL", "HTTP/1.1"),
        ("SERVER_SOFTWARE", concat!("deferd/", env!("CARGO_PKG_VERSION"))),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    environment.extend(user().map(|(name, value)| (name.to_owned(), value)));
    for &(name, value) in changes {
        match value {
            Some(value) => environment.insert(name.to_owned(), value.to_owned()),
            None => environment.remove(name),
        };
    }
    environment
}

/// Starts a deferd whose operator adds these variables for scripts.
fn with_variables(own: &[(&str, &str)], options: &str) -> Deferd {
    let mut command = Command::new(env!("CARGO_BIN_EXE_deferd"));
    command.envs(own.iter().copied());
    let route = format!("/cgi/=cgi:{}{options}", fixtures().display());
    Deferd::start_by(command, &["--route", &route])
}

/// Writes a file that others cannot write.
fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    assert!(Command::new("chmod").arg("600").arg(path).status().unwrap().success());
}

/// Sends a head and a body as they are, and reads the answer.
fn raw(deferd: &Deferd, bytes: &str) -> Reply {
    let mut client = deferd.client();
    client.send(bytes.as_bytes());
    client.try_read("GET").expect("an answer")
}

#[test]
fn a_script_gets_only_meta_variables_path_and_user() {
    let deferd = start();
    let reply = deferd.client().get("/cgi/s-environ");
    assert_eq!(environment(reply), plain(&deferd, &[]));
}

#[test]
fn a_plain_program_gets_the_same_environment() {
    let deferd = start();
    let reply = deferd.client().get("/run/s-environ");
    let name = Some("/run/s-environ");
    let expected = plain(&deferd, &[("SCRIPT_NAME", name), ("REQUEST_URI", name)]);
    assert_eq!(environment(reply), expected);
}

#[test]
fn path_query_and_content_have_their_variables() {
    let deferd = start();
    let target = "/cgi/s-environ/a%20b/%C3%A4%2Fc//d/?x=1&y=%20+&z=/../?";
    let path_info = "/a b/ä/c//d/";
    let path_translated = format!("{}{path_info}", fixtures().display());
    let changes = [
        ("REQUEST_METHOD", Some("POST")),
        ("REQUEST_URI", Some(target)),
        ("PATH_INFO", Some(path_info)),
        ("PATH_TRANSLATED", Some(&*path_translated)),
        ("QUERY_STRING", Some("x=1&y=%20+&z=/../?")),
        ("CONTENT_LENGTH", Some("5")),
        ("CONTENT_TYPE", Some("text/x-test; charset=\"utf-8\"")),
    ];
    let expected = plain(&deferd, &changes);
    let fields = [("content-type", "text/x-test; charset=\"utf-8\"")];
    let reply = deferd.client().request("POST", target, &fields, b"hello");
    assert_eq!(environment(reply), expected);
}

#[test]
fn a_deferred_script_gets_its_requests_environment() {
    let deferd = start();
    let mut client = deferd.client();
    let id = client.store("DELETE", "/cgi/s-environ/x?y", b"hello");
    let path_translated = format!("{}/x", fixtures().display());
    let changes = [
        ("REQUEST_METHOD", Some("DELETE")),
        ("REQUEST_URI", Some("/cgi/s-environ/x?y")),
        ("DEFERD_JOB_ID", Some(&id)),
        ("DEFERD_ATTEMPT", Some("1")),
        ("PATH_INFO", Some("/x")),
        ("PATH_TRANSLATED", Some(&*path_translated)),
        ("QUERY_STRING", Some("y")),
        ("CONTENT_LENGTH", Some("5")),
        ("HTTP_X_ARANGO_ASYNC", Some("store")),
    ];
    assert_eq!(environment(client.result(&id)), plain(&deferd, &changes));
}

#[test]
fn repeated_fields_are_joined_with_commas_and_cookies_with_semicolons() {
    let deferd = start();
    let fields = [
        ("accept", "text/html"),
        ("cookie", "a=1"),
        ("Accept", "text/plain;q=0.5, */*"),
        ("X-Some-Thing9", "with  two blanks"),
        ("Cookie", "b=2; c=3"),
        ("x-empty", ""),
    ];
    let mut request = "GET /cgi/s-environ HTTP/1.1\r\nhost: localhost\r\n".to_owned();
    for (name, value) in fields {
        request += &format!("{name}: {value}\r\n");
    }
    let changes = [
        ("HTTP_ACCEPT", Some("text/html, text/plain;q=0.5, */*")),
        ("HTTP_COOKIE", Some("a=1; b=2; c=3")),
        ("HTTP_X_SOME_THING9", Some("with  two blanks")),
        ("HTTP_X_EMPTY", Some("")),
    ];
    let expected = plain(&deferd, &changes);
    assert_eq!(environment(raw(&deferd, &(request + "\r\n"))), expected);
}

/// `Proxy` would become `HTTP_PROXY`, which HTTP clients obey; credentials do not concern a script; the content's
/// fields have variables of their own; and an underscore must not let one field pass for another.
#[test]
fn fields_that_a_script_must_not_see_are_not_there() {
    let deferd = start();
    let fields = [
        ("proxy", "http://evil.example/"),
        ("authorization", "Basic c2VjcmV0"),
        ("content-type", "a/b"),
        ("content_length", "999"),
        ("x_forwarded_for", "forged"),
    ];
    let reply = deferd.client().request("POST", "/cgi/s-environ", &fields, b"hello");
    let changes = [
        ("REQUEST_METHOD", Some("POST")),
        ("CONTENT_LENGTH", Some("5")),
        ("CONTENT_TYPE", Some("a/b")),
    ];
    assert_eq!(environment(reply), plain(&deferd, &changes));
}

/// The content is decoded: a framework that sees `transfer-encoding` would decode it again, and lose it.
#[test]
fn fields_of_the_connection_end_before_the_script() {
    let deferd = start();
    let head = "POST /cgi/s-environ HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\
                connection: te, keep-alive, X-Hop\r\nx-hop: 1\r\nkeep-alive: timeout=5\r\n\
                te: trailers\r\ntrailer: x-end\r\nupgrade: h2c\r\nproxy-connection: keep-alive\r\n\
                x-end: 1\r\n\r\n3\r\na=1\r\n0\r\n\r\n";
    let reply = raw(&deferd, head);
    let changes = [
        ("REQUEST_METHOD", Some("POST")),
        ("CONTENT_LENGTH", Some("3")),
        ("HTTP_X_END", Some("1")),
    ];
    assert_eq!(environment(reply), plain(&deferd, &changes));
}

#[test]
fn server_name_is_the_host_that_was_requested() {
    let deferd = start();
    for (host, name) in [
        ("example.org:8080", "example.org"),
        ("example.org", "example.org"),
        ("[::1]:80", "[::1]"),
        ("192.0.2.7:1", "192.0.2.7"),
    ] {
        let request = format!("GET /cgi/s-environ HTTP/1.1\r\nhost: {host}\r\n\r\n");
        let changes = [("HTTP_HOST", Some(host)), ("SERVER_NAME", Some(name))];
        assert_eq!(environment(raw(&deferd, &request)), plain(&deferd, &changes), "{host}");
    }
}

#[test]
fn server_protocol_shows_http_1_0() {
    let deferd = start();
    let reply = raw(&deferd, "GET /cgi/s-environ HTTP/1.0\r\n\r\n");
    let changes = [
        ("SERVER_PROTOCOL", Some("HTTP/1.0")),
        ("SERVER_NAME", Some("127.0.0.1")),
        ("HTTP_HOST", None),
    ];
    assert_eq!(environment(reply), plain(&deferd, &changes));
}

#[test]
fn content_length_is_set_only_with_content() {
    let deferd = start();
    let mut client = deferd.client();
    let told = |reply: Reply| reply.expect(200).header("x-content-length").unwrap().to_owned();
    assert_eq!(told(client.request("POST", "/cgi/s-echo", &[], b"")), "unset");
    let empty = [("content-length", "0")];
    assert_eq!(told(client.request("POST", "/cgi/s-echo", &empty, b"")), "0");
    assert_eq!(told(client.request("GET", "/cgi/s-echo", &[], b"x")), "1");
}

/// Returns all byte values; the sequence is not text in any encoding.
fn all_bytes(length: usize) -> Vec<u8> {
    (0..=255).rev().cycle().take(length).collect()
}

#[test]
fn stdin_is_exactly_the_content_and_then_ends() {
    let deferd = start();
    let mut client = deferd.client();
    // The lengths around the sizes of pipes and buffers.
    for length in [0, 1, 255, 4095, 4096, 4097, 65_535, 65_536, 65_537] {
        let content = all_bytes(length);
        let echo = |client: &mut Client, target: &str| {
            let now = client.request("POST", target, &[], &content);
            let id = client.store("POST", target, &content);
            [now, client.result(&id)].map(|reply| reply.expect(200).body)
        };
        assert!(echo(&mut client, "/run/s-cat").iter().all(|body| *body == content), "{length}");
        assert!(echo(&mut client, "/cgi/s-echo").iter().all(|body| *body == content), "{length}");
    }
}

#[test]
fn chunked_content_reaches_the_script_whole_and_with_its_length() {
    let deferd = start();
    for (field, is_job) in [("x-other: 1", false), ("x-arango-async: store", true)] {
        for (chunks, content) in [
            (
                "5\r\nhello\r\n1;x=y\r\n \r\n005\r\nworld\r\n0\r\nx-trailer: 1\r\n\r\n",
                "hello world",
            ),
            ("5\r\nhello\r\n1;x=y\r\n \r\n005\r\nworld\r\n0\r\n\r\n", "hello world"),
            ("0\r\n\r\n", ""),
        ] {
            if chunks.contains("trailer") && lacks(Ability::Trailers) {
                continue;
            }
            let mut client = deferd.client();
            let head = "POST /cgi/s-echo HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked";
            client.send(format!("{head}\r\n{field}\r\n\r\n{chunks}").as_bytes());
            let mut reply = client.try_read("POST").unwrap();
            if is_job {
                let id = reply.expect(202).id().unwrap().to_owned();
                reply = client.result(&id);
            }
            let length = content.len().to_string();
            let told = if content.is_empty() { "unset" } else { &*length };
            assert_eq!(reply.header("x-content-length"), Some(told));
            assert_eq!(reply.expect(200).text(), content);
        }
    }
}

/// Returns what the descriptors of this process lead to.
fn links() -> Vec<String> {
    let entries = std::fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap().path());
    // The directory's own descriptor no longer exists when it is looked at.
    let links = entries.filter_map(|path| std::fs::read_link(path).ok());
    links.map(|link| link.display().to_string()).collect()
}

#[test]
fn a_script_inherits_its_three_pipes_and_no_other_descriptor() {
    let deferd = start();
    let mut client = deferd.client();
    // Pipes and sockets of others, which the script might inherit.
    let _idle = [deferd.client(), deferd.client()];
    let ids: Vec<_> = (0..20).map(|_| client.store("POST", "/run/s-descriptors", b"x")).collect();
    let script = fixtures().canonicalize().unwrap().join("s-descriptors").display().to_string();
    // What the tests themselves were started with does not come from deferd, and the shell holds the script.
    let outer = links();
    for id in ids {
        let text = client.result(&id).expect(200).text();
        let ours = |line: &&str| *line != script && !outer.iter().any(|other| other == line);
        let inherited: Vec<_> = text.lines().filter(ours).collect();
        assert_eq!(inherited.len(), 3, "{text}");
        assert!(inherited.iter().all(|line| line.starts_with("pipe:")), "{text}");
    }
}

#[test]
fn variables_come_from_a_file_and_from_deferd() {
    let dir = TempDir::new();
    let file = dir.join("env");
    write(&file, "# secrets\n\nTOKEN= a \"b\" $c=d \nBOTH=of the file\nHOME=/another\nEMPTY=\n");
    let own = [("PASSED", "on"), ("BOTH", "of deferd"), ("KEPT", "back")];
    let options = format!(",pass-env=PASSED+BOTH+MISSING_HERE,env-file={}", file.display());
    let deferd = with_variables(&own, &options);
    let environment = environment(deferd.client().get("/cgi/s-environ"));
    for (name, value) in [
        ("TOKEN", Some(" a \"b\" $c=d ")),
        ("BOTH", Some("of the file")),
        ("HOME", Some("/another")),
        ("EMPTY", Some("")),
        ("PASSED", Some("on")),
        ("MISSING_HERE", None),
        ("KEPT", None),
    ] {
        assert_eq!(environment.get(name).map(String::as_str), value, "{name}");
    }
    deferd.log_with("MISSING_HERE");
}

#[test]
fn sighup_reads_valid_files_of_variables_again() {
    let dir = TempDir::new();
    let file = dir.join("env");
    write(&file, "COLOUR=red\n");
    let deferd = with_variables(&[], &format!(",env-file={}", file.display()));
    let mut client = deferd.client();
    let mut colour = || environment(client.get("/cgi/s-environ")).remove("COLOUR");
    assert_eq!(colour().as_deref(), Some("red"));
    write(&file, "COLOUR=blue\n");
    assert_eq!(colour().as_deref(), Some("red"), "it is not read for each request");
    deferd.signal("-HUP");
    eventually("the file is read again", || colour().as_deref() == Some("blue"));
    for broken in ["COLOUR=green\nSCRIPT_NAME=/x\n", "COLOUR", "HTTP_PROXY=x\n"] {
        write(&file, broken);
        let before = deferd.log().matches("keeping the current ones").count();
        deferd.signal("-HUP");
        eventually("that is told", || {
            deferd.log().matches("keeping the current ones").count() > before
        });
        assert_eq!(colour().as_deref(), Some("blue"));
    }
    std::fs::remove_file(&file).unwrap();
    let before = deferd.log().matches("No such file").count();
    deferd.signal("-HUP");
    eventually("that is told", || deferd.log().matches("No such file").count() > before);
    assert_eq!(colour().as_deref(), Some("blue"));
}

#[test]
fn invalid_variables_are_refused_at_start() {
    let dir = TempDir::new();
    let file = dir.join("env");
    let route = |options: &str| format!("/x/=run:/,{options}");
    let from_file = route(&format!("env-file={}", file.display()));
    let assert_refused = |route: &str, part: &str| {
        let Ended { code, stderr, .. } = run_deferd(&["--route", route]);
        assert_eq!(code, Some(2), "{stderr}");
        assert!(stderr.contains("--route") && stderr.contains(part), "{part}: {stderr}");
    };
    assert_refused(&from_file, "No such file");
    for (text, part) in [
        ("A=1\nHTTP_HOST=x\n", "line 2: HTTP_HOST"),
        ("PATH_INFO=x\n", "line 1: PATH_INFO"),
        ("DEFERD_JOB_ID=x\n", "line 1: DEFERD_JOB_ID"),
        ("no form\n", "line 1: not of the form NAME=VALUE"),
    ] {
        write(&file, text);
        assert_refused(&from_file, part);
        assert_refused(&from_file, &file.display().to_string());
    }
    write(&file, "A=1\n");
    assert!(Command::new("chmod").arg("602").arg(&file).status().unwrap().success());
    assert_refused(&from_file, "chmod o-w");
    assert_refused(&route("env-file=/dev/null"), "not a regular file");
    assert_refused(&route("pass-env=A+HTTP_PROXY"), "HTTP_PROXY");
    assert_refused(&route("pass-env=DOCUMENT_ROOT"), "DOCUMENT_ROOT");
}
