//! Request targets in every form (RFC 9112 section 3.2).

use super::smuggling::requests_are_refused;
use super::unharmed;
use crate::support::Deferd;

#[test]
fn the_authority_of_an_absolute_form_replaces_host() {
    let deferd = Deferd::start(&["--allow-host", "example.org"]);
    unharmed(&deferd, || {
        let mut client = deferd.client();
        for (target, host, path) in [
            ("http://example.org/_admin/echo?a=b", "example.org", "/_admin/echo"),
            ("http://example.org:8529/_admin/echo", "example.org:8529", "/_admin/echo"),
            ("https://[::1]/_admin/echo", "[::1]", "/_admin/echo"),
        ] {
            let echo = client.get(target).expect(200).json();
            assert_eq!((&echo["headers"]["host"], &echo["path"]), (&host.into(), &path.into()));
        }
    });
}

#[test]
fn a_target_without_a_resource_is_refused() {
    requests_are_refused(&[
        (b"CONNECT example.org:80 HTTP/1.1\r\nhost: example.org:80\r\n\r\n", 501),
        (b"CONNECT /_admin/echo HTTP/1.1\r\nhost: a\r\n\r\n", 501),
        (b"CONNECT http://a/_admin/echo HTTP/1.1\r\nhost: a\r\n\r\n", 501),
        (b"CONNECT * HTTP/1.1\r\nhost: a\r\n\r\n", 501),
        (b"GET example.org:80 HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"GET example.org HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"GET * HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"GET ftp://example.org/_api/version HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"GET http:///_api/version HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"GET http:/_api/version HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"GET file:///etc/passwd HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"GET /_api/version#fragment HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"GET /_api/version\x7f HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"GET http://\xc3\xa4/_api/version HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"GET http://{a}/_api/version HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"GET ?a HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"GET http://user@example.org/_api/version HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    ]);
}

/// Browsers encode these; curl, scripts and users of Prometheus do not.
#[test]
fn raw_bytes_are_percent_encoded_before_anything_reads_them() {
    let deferd = Deferd::with_scripts("", &[]);
    unharmed(&deferd, || {
        let mut client = deferd.client();
        for (raw, encoded) in [
            (&b"/_admin/echo?query=up{job=\"node\"}"[..], "query=up%7Bjob=%22node%22%7D"),
            (b"/_admin/echo?\xc3\xa4=\xe4\xff\x80", "%C3%A4=%E4%FF%80"),
            (b"/_admin/echo?<>\\^`|%zz", "%3C%3E%5C%5E%60%7C%zz"),
        ] {
            client.send(&[b"GET ", raw, b" HTTP/1.1\r\nhost: a\r\n\r\n"].concat());
            let echo = client.try_read("GET").unwrap().expect(200).json();
            assert_eq!(echo["query"], encoded);
            assert_eq!(echo["target"], format!("/_admin/echo?{encoded}"));
        }
        let environment = |target: &[u8]| {
            let mut client = deferd.client();
            client.send(&[b"GET ", target, b" HTTP/1.1\r\nhost: a\r\n\r\n"].concat());
            client.try_read("GET").unwrap().expect(200).text()
        };
        let text = environment(b"/cgi/s-environ/\xc3\xa4{}?\"\xe4\"");
        assert!(text.contains("QUERY_STRING=%22%E4%22\0"), "{text}");
        assert!(text.contains("PATH_INFO=/\u{e4}{}\0"), "{text}");
        // A raw backslash separates segments just as an encoded one does.
        client.send(b"GET /cgi/s-environ/..\\.. HTTP/1.1\r\nhost: a\r\n\r\n");
        client.try_read("GET").unwrap().expect(404);
    });
}

#[test]
fn a_refused_byte_of_a_target_is_named() {
    let deferd = Deferd::start(&[]);
    unharmed(&deferd, || {
        for (target, named) in [
            (&b"/a b"[..], "byte 3 of the request target is a blank (0x20)"),
            (b"/?x\ty", "byte 4 of the request target is a control character (0x09)"),
            (b"/\x7f", "byte 2 of the request target is a control character (0x7f)"),
            (b"/\xc3\xa4\0", "byte 4 of the request target is a control character (0x00)"),
            (b" /", "byte 1 of the request target is a blank (0x20)"),
        ] {
            let mut client = deferd.client();
            client.send(&[b"GET ", target, b" HTTP/1.1\r\nhost: a\r\n\r\n"].concat());
            let text = client.try_read("GET").unwrap().expect_error(400, 400).text();
            assert!(text.contains(named), "{text}");
            assert!(client.is_closed());
        }
    });
}

/// Two hosts are two even if the target names a third.
#[test]
fn an_absolute_form_does_not_excuse_a_second_host() {
    requests_are_refused(&[
        (b"GET http://a/_api/version HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n", 400),
        (b"GET http://a/_api/version HTTP/1.1\r\n\r\n", 400),
    ]);
}

#[test]
fn options_of_the_whole_server_is_answered() {
    let deferd = Deferd::start(&[]);
    unharmed(&deferd, || {
        let mut client = deferd.client();
        let reply = client.request("OPTIONS", "*", &[], b"");
        assert!(matches!(reply.status, 200 | 404), "{reply:?}");
        client.get("/_api/version").expect(200);
    });
}
