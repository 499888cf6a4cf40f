//! The names under which deferd answers: a page cannot reach this host under a name of its own.

use super::*;

/// Returns the status of a request for the version under this name.
fn status_of(deferd: &Deferd, host: &str, target: &str) -> u16 {
    let mut client = deferd.client();
    client.send(format!("GET {target} HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes());
    client.try_read("GET").unwrap().status
}

#[test]
fn a_name_that_is_not_this_host_s_is_refused() {
    let own = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let own = own.trim().split('.').next().unwrap().to_owned();
    let deferd = allowing();
    for (host, status) in [
        ("localhost", 200),
        ("localhost.", 200),
        ("a.localhost:80", 200),
        ("127.0.0.1:1", 200),
        ("192.0.2.1", 200),
        ("[::1]", 200),
        ("[2001:db8::1]:80", 200),
        ("anything", 200),
        (&own, 200),
        (&format!("{own}.local"), 200),
        (&format!("{}.LAN:80", own.to_ascii_uppercase()), 200),
        (&format!("{own}.home.arpa"), 200),
        (&format!("{own}.internal"), 200),
        ("nas.example.org:8529", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        (&format!("{own}.evil.example"), 403),
        (&format!("evil.{own}.local"), 403),
        ("evil.local", 403),
        ("evil.nas.example.org", 403),
        ("", 403),
    ] {
        assert_eq!(status_of(&deferd, host, "/_api/version"), status, "{host}");
    }
}

#[test]
fn a_refusal_names_the_host_and_the_option() {
    let deferd = Deferd::start(&[]);
    let mut client = deferd.client();
    let host = format!("evil.{}", "x".repeat(200));
    client.send(format!("GET /_api/version HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes());
    let message = client.try_read("GET").unwrap().expect_error(403, 403).text();
    assert!(message.contains("--allow-host") && message.contains(&host[..100]), "{message}");
    assert!(!message.contains(&host[..101]), "{message}");
}

#[test]
fn a_balancer_asks_for_availability_under_any_name() {
    let deferd = Deferd::start(&[]);
    for target in ["/_admin/server/availability", "/_db/_system/_admin/server/availability/"] {
        assert_eq!(status_of(&deferd, "evil.example", target), 200, "{target}");
    }
    for target in ["/_db/_system/_api/version", "/_db/x/_admin/server/availability", "/x"] {
        assert_eq!(status_of(&deferd, "evil.example", target), 403, "{target}");
    }
    let mut client = deferd.client();
    let deferred = "GET /_admin/server/availability HTTP/1.1\r\nhost: evil.example\r\n\
                    x-arango-async: store\r\n\r\n";
    client.send(deferred.as_bytes());
    client.try_read("GET").unwrap().expect_error(403, 403);
}

#[test]
fn credentials_replace_the_host_check_until_a_name_is_allowed() {
    let dir = TempDir::new();
    let (line, token) = user();
    let file = write_private(&dir.join("users"), &line);
    let arguments = ["--auth", file.as_str(), "--allow-host", "nas.example.org"];
    let status = |deferd: &Deferd, host: &str| {
        let mut client = deferd.client();
        let fields = format!("host: {host}\r\nauthorization: Bearer {token}\r\n");
        client.send(format!("GET /_api/version HTTP/1.1\r\n{fields}\r\n").as_bytes());
        client.try_read("GET").unwrap().status
    };
    let (open, named) = (Deferd::start(&arguments[..2]), Deferd::start(&arguments));
    for (host, with_name) in [("nas.example.org", 200), ("localhost", 200), ("evil.example", 403)] {
        assert_eq!(status(&open, host), 200, "{host}");
        assert_eq!(status(&named, host), with_name, "{host}");
    }
    let fields = [("sec-fetch-site", "cross-site"), ("authorization", &format!("Bearer {token}"))];
    open.client().request("GET", "/_api/version", &fields, b"").expect_error(403, 403);
    let any = Deferd::start(&["--allow-host", "*"]);
    assert_eq!(status(&any, "evil.example"), 200);
}

#[test]
fn strangers_are_served_under_known_names_only() {
    if lacks(Ability::Strangers) {
        return;
    }
    let arguments = ["--listen", "0.0.0.0:0", "--insecure", "--allow-host", "nas.example.org"];
    let (plain, named) = (Deferd::start(&arguments[..3]), Deferd::start(&arguments));
    for (host, without_name) in
        [("192.0.2.1", 200), ("router", 200), ("nas.example.org", 403), ("evil.example", 403)]
    {
        assert_eq!(status_of(&plain, host, "/_api/version"), without_name, "{host}");
        let with_name = if host == "evil.example" { 403 } else { 200 };
        assert_eq!(status_of(&named, host, "/_api/version"), with_name, "{host}");
    }
}
