//! Where deferd listens: Unix sockets, inherited sockets, and the messages to the service manager.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::support::{
    Client, Deferd, Ended, PATIENCE, TempDir, eventually, first_line, run_deferd, uninterrupted,
};

/// A deferd that is not on a TCP port of its own; killed with the test.
struct Started(Child, String);

impl Started {
    fn new(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let line = first_line(&mut child);
        assert!(line.starts_with("listening on "), "deferd has not started: {line:?}");
        Self(child, line)
    }

    fn terminate(mut self) {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").arg(pid).status().unwrap().success());
        eventually("deferd ends", || self.0.try_wait().unwrap().is_some());
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn deferd(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_deferd"));
    command.args(arguments);
    command
}

fn version_over(path: &Path) -> String {
    version_with(path, "host: x\r\n")
}

/// Returns the answer to a request with these field lines.
fn version_with(path: &Path, fields: &str) -> String {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!("GET /_api/version HTTP/1.1\r\n{fields}connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_unix_socket_is_private_and_removed_at_the_end() {
    let dir = TempDir::new();
    let path = dir.join("socket");
    let listen = format!("unix:{}", path.display());
    // A socket on which nothing listens any more is left over from a crash.
    drop(UnixListener::bind(&path).unwrap());
    let started = Started::new(deferd(&["--listen", &listen]));
    assert_eq!(started.1, format!("listening on {listen}"));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let answer = version_over(&path);
    assert!(
        answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with(r#""1.4.3"}"#),
        "{answer}"
    );
    let second = run_deferd(&["--listen", &listen]);
    assert_eq!(second.code, Some(2), "a socket in use is not taken over");
    assert!(version_over(&path).starts_with("HTTP/1.1 200"));
    started.terminate();
    assert!(!path.exists());
}

/// No browser connects to a Unix socket, but a proxy does so on its behalf.
#[test]
fn unix_clients_use_any_host_and_pages_are_refused() {
    let dir = TempDir::new();
    let path = dir.join("socket");
    let listen = format!("unix:{}", path.display());
    let _started = Started::new(deferd(&["--listen", &listen, "--allow-host", "nas.example.org"]));
    let host = "host: pub.example\r\n";
    for (fields, status) in [
        ("", 200),
        ("origin: https://pub.example\r\n", 200),
        ("sec-fetch-site: same-origin\r\n", 200),
        ("sec-fetch-site: cross-site\r\n", 403),
        ("origin: https://evil.example\r\n", 403),
        ("referer: https://evil.example/\r\n", 403),
        ("origin: https://a.example\r\nx-forwarded-host: a.example\r\n", 200),
        ("origin: https://a.example\r\nx-forwarded-host: b.example\r\n", 403),
    ] {
        let answer = version_with(&path, &format!("{host}{fields}"));
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{fields}: {answer}");
    }
}

#[test]
fn a_file_that_is_not_a_socket_stays() {
    let dir = TempDir::new();
    let path = dir.join("precious");
    std::fs::write(&path, "data").unwrap();
    let listen = format!("unix:{}", path.display());
    let Ended { code, stderr: error, .. } = run_deferd(&["--listen", &listen]);
    assert_eq!(code, Some(2));
    assert!(error.contains("--listen") && error.contains("not a socket"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "data");
}

#[test]
fn a_unix_socket_has_the_configured_mode_and_group() {
    let dir = TempDir::new();
    let path = dir.join("socket");
    let gid = std::fs::metadata(&dir.0).unwrap().gid();
    let groups = std::fs::read_to_string("/etc/group").unwrap();
    let number = gid.to_string();
    let named = groups.lines().find(|line| line.split(':').nth(2) == Some(number.as_str()));
    let name = named.map_or(number.as_str(), |line| line.split(':').next().unwrap());
    for (options, mode) in [
        ("", 0o600),
        (",mode=0660", 0o660),
        (",mode=666", 0o666),
        (&format!(",mode=0660,group={name}"), 0o660),
        (&format!(",group={number}"), 0o600),
    ] {
        let listen = format!("unix:{}{options}", path.display());
        let started = Started::new(deferd(&["--listen", &listen]));
        assert_eq!(started.1, format!("listening on unix:{}", path.display()));
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!(
            (metadata.permissions().mode() & 0o777, metadata.gid()),
            (mode, gid),
            "{options}"
        );
        assert!(version_over(&path).starts_with("HTTP/1.1 200"));
        started.terminate();
        assert!(!path.exists());
    }
    let other = format!("unix:{},group={}", path.display(), gid + 1);
    // Only root may give a file to a group of which it is not a member.
    if std::fs::metadata("/proc/self").unwrap().uid() == 0 {
        let started = Started::new(deferd(&["--listen", &other]));
        assert_eq!(std::fs::metadata(&path).unwrap().gid(), gid + 1);
        started.terminate();
    } else {
        assert!(run_deferd(&["--listen", &other]).stderr.contains("a group you are in"));
        assert!(!path.exists(), "nothing is left behind");
    }
    let unknown = format!("unix:{},group=no-such-group", path.display());
    let Ended { code, stderr, .. } = run_deferd(&["--listen", &unknown]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains(&format!("--listen {unknown:?}: no group no-such-group")), "{stderr}");
    assert!(!path.exists(), "nothing is left behind");
}

/// Starts a deferd; returns it with every address that it reports, and the directory of its log.
fn listening(arguments: &[&str]) -> (Started, Vec<String>, TempDir) {
    let dir = TempDir::new();
    let (stdout, stderr) = (dir.join("stdout"), dir.join("stderr"));
    let child = deferd(arguments)
        .env_remove("RUST_LOG")
        .stdout(std::fs::File::create(&stdout).unwrap())
        .stderr(std::fs::File::create(&stderr).unwrap())
        .spawn()
        .unwrap();
    let started = Started(child, String::new());
    eventually("it listens", || std::fs::read_to_string(&stdout).unwrap().ends_with('\n'));
    let lines = std::fs::read_to_string(&stdout).unwrap();
    let addresses = lines.lines().map(|line| line.strip_prefix("listening on ").unwrap().into());
    (started, addresses.collect(), dir)
}

fn version_at(address: &str) {
    let address = address.strip_prefix("http://").unwrap().parse().unwrap();
    Client::new(address).get("/_api/version").expect(200);
}

#[test]
fn it_listens_at_several_addresses_and_ends_at_all() {
    let dir = TempDir::new();
    let path = dir.join("socket");
    let unix = format!("unix:{}", path.display());
    let arguments = ["--listen", "127.0.0.1:0", "--listen", &unix, "--listen=127.0.0.1:0"];
    for front in [&[][..], &["--front", "tiny_http"]] {
        let (started, addresses, _) = listening(&[&arguments[..], front].concat());
        let [first, second, third] = &addresses[..] else { panic!("{addresses:?}") };
        assert_eq!(second, &unix);
        assert_ne!(first, third);
        for _ in 0..3 {
            version_at(first);
            assert!(version_over(&path).starts_with("HTTP/1.1 200"));
            version_at(third);
        }
        started.terminate();
        assert!(!path.exists());
    }
}

#[test]
fn a_port_alone_is_that_of_both_loopback_addresses() {
    let has_ipv6 = TcpListener::bind("[::1]:0").is_ok();
    for (listen, warnings) in
        [(&["0"][..], 0), (&["localhost:0"], 0), (&[":0"], 1), (&[":0", ":0"], 1)]
    {
        let arguments: Vec<_> = listen.iter().flat_map(|text| ["--listen", *text]).collect();
        let (started, addresses, dir) = listening(&arguments);
        let each = if has_ipv6 { 2 } else { 1 };
        assert_eq!(addresses.len(), listen.len() * each, "{addresses:?}");
        for pair in addresses.chunks(each) {
            let port = pair[0].strip_prefix("http://127.0.0.1:").unwrap();
            assert!(pair.get(1).is_none_or(|second| *second == format!("http://[::1]:{port}")));
        }
        for address in &addresses {
            version_at(address);
        }
        started.terminate();
        let log = std::fs::read_to_string(dir.join("stderr")).unwrap();
        let warned = log.lines().filter(|line| line.contains("WARN"));
        assert_eq!(warned.count(), warnings, "{log}");
        assert!(log.contains("no --route: only the built-in endpoints answer"), "{log}");
    }
}

#[test]
fn an_address_error_is_named_and_leaves_no_file() {
    let dir = TempDir::new();
    let unix = format!("unix:{}", dir.join("socket").display());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let Ended { code, stderr, .. } = run_deferd(&["--listen", &unix, "--listen", &port]);
    assert_eq!(code, Some(2));
    assert!(
        stderr.contains(&format!("--listen {port:?}: ")) && stderr.contains("in use"),
        "{stderr}"
    );
    assert!(!dir.join("socket").exists());
}

/// Starts deferd as a service manager does: with the socket as descriptor 3, and the variables.
fn activated(socket: impl Into<OwnedFd>, arguments: &str) -> Started {
    let binary = env!("CARGO_BIN_EXE_deferd");
    let script = format!("LISTEN_FDS=1 LISTEN_PID=$$ exec {binary} {arguments} 3<&0 </dev/null");
    let mut shell = Command::new("sh");
    // Passed as stdin, it is inherited by no other process that a test starts, and shells know its number.
    shell.args(["-c", &script]).stdin(Stdio::from(socket.into()));
    Started::new(shell)
}

#[test]
fn an_inherited_socket_is_served() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let dir = TempDir::new();
    std::fs::write(dir.join("env"), "#!/bin/sh\nenv\nls -l /proc/self/fd\n").unwrap();
    std::fs::set_permissions(dir.join("env"), PermissionsExt::from_mode(0o755)).unwrap();
    let arguments = format!("--listen 127.0.0.1:1 --route /run/=run:{}", dir.0.display());
    let started = activated(listener, &arguments);
    assert_eq!(started.1, format!("listening on http://{address}"));
    let text = Client::new(address).get("/run/env").expect(200).text();
    assert!(!text.contains("LISTEN_"), "scripts do not see the variables: {text}");
    assert!(!text.contains("socket:"), "scripts do not get the socket: {text}");
    started.terminate();
}

#[test]
fn all_inherited_sockets_are_served() {
    let dir = TempDir::new();
    let (listener, path) = (TcpListener::bind("127.0.0.1:0").unwrap(), dir.join("socket"));
    let address = listener.local_addr().unwrap();
    let unix = UnixListener::bind(&path).unwrap();
    let binary = env!("CARGO_BIN_EXE_deferd");
    let script =
        format!("LISTEN_FDS=2 LISTEN_PID=$$ exec {binary} 3<&0 4<&2 </dev/null 2>/dev/null");
    let mut shell = Command::new("sh");
    shell.args(["-c", &script]).stdin(Stdio::from(OwnedFd::from(listener)));
    let mut child =
        shell.stdout(Stdio::piped()).stderr(Stdio::from(OwnedFd::from(unix))).spawn().unwrap();
    let line = first_line(&mut child);
    let started = Started(child, line);
    assert_eq!(started.1, format!("listening on http://{address}"));
    Client::new(address).get("/_api/version").expect(200);
    assert!(version_over(&path).starts_with("HTTP/1.1 200"));
    started.terminate();
    assert!(path.exists(), "it belongs to the service manager");
}

#[test]
fn an_inherited_unix_socket_is_served_and_stays() {
    let dir = TempDir::new();
    let path = dir.join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let started = activated(listener, "");
    assert!(version_over(&path).starts_with("HTTP/1.1 200"));
    started.terminate();
    assert!(path.exists(), "it belongs to the service manager");
}

#[test]
fn the_service_manager_is_notified() {
    let dir = TempDir::new();
    let socket = UnixDatagram::bind(dir.join("notify")).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_deferd"));
    command.env("NOTIFY_SOCKET", dir.join("notify"));
    let mut deferd = Deferd::start_by(command, &[]);
    let told = || {
        let mut buffer = [0; 100];
        let n = uninterrupted(|| socket.recv(&mut buffer)).unwrap();
        String::from_utf8(buffer[..n].to_vec()).unwrap()
    };
    assert_eq!(told(), "READY=1");
    deferd.client().get("/_api/version").expect(200);
    deferd.signal("-TERM");
    assert_eq!(told(), "STOPPING=1");
    assert!(deferd.wait().success());
}
