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
fn a_target_that_names_no_resource_of_this_server_is_refused() {
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
        (b"GET /_api/\xc3\xa4 HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"GET ?a HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"GET http://user@example.org/_api/version HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    ]);
}

/// Two hosts are two even where the target brings a third.
#[test]
fn an_absolute_form_does_not_excuse_a_second_host() {
    requests_are_refused(&[
        (b"GET http://a/_api/version HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n", 400),
        (b"GET http://a/_api/version HTTP/1.1\r\n\r\n", 400),
    ]);
}

#[test]
fn options_of_the_whole_server_is_answered_and_the_connection_kept() {
    let deferd = Deferd::start(&[]);
    unharmed(&deferd, || {
        let mut client = deferd.client();
        let reply = client.request("OPTIONS", "*", &[], b"");
        assert!(matches!(reply.status, 200 | 404), "{reply:?}");
        client.get("/_api/version").expect(200);
    });
}
