//! Ranges of a result's content (RFC 9110 section 14): resuming a download that broke off.

use crate::support::in_both_stores;

/// More than stays in memory with `--data`.
const SIZE: usize = 200_000;

/// Returns content in which no two parts are equal.
fn content() -> Vec<u8> {
    (0..).flat_map(|n: u32| n.to_be_bytes()).take(SIZE).collect()
}

#[test]
fn a_download_resumes_where_it_broke_off() {
    in_both_stores(&[], |deferd| {
        let mut client = deferd.client();
        let id = client.store("POST", "/run/s-cat", &content());
        client.wait_done(&id);
        for target in [format!("/_api/job/{id}/result"), format!("/_admin/jobs/{id}/content")] {
            let whole = client.get(&target).expect(200);
            let (tag, weak) = (format!("\"{id}\""), format!("W/\"{id}\""));
            assert_eq!(whole.header("accept-ranges"), Some("bytes"));
            assert_eq!(whole.header("etag"), Some(&*tag));
            for (range, from, to) in [
                ("bytes=0-9", 0, 10),
                ("bytes=65530-65550", 65_530, 65_551),
                ("bytes=199990-", 199_990, SIZE),
                ("bytes=-100000", 100_000, SIZE),
            ] {
                let fields = [("range", range), ("if-range", &*tag)];
                let part = client.request("GET", &target, &fields, b"").expect(206);
                let told = format!("bytes {from}-{}/{SIZE}", to - 1);
                assert_eq!(part.header("content-range"), Some(&*told));
                assert!(part.body == content()[from..to], "{range}");
                assert_eq!(part.header("etag"), Some(&*tag));
                assert_eq!(part.header("content-security-policy"), Some("sandbox"));
                let length = (to - from).to_string();
                assert_eq!(part.header("content-length"), Some(&*length));
            }
            for (fields, what) in [
                (&[("range", "bytes=0-1,5-6")][..], "several ranges"),
                (&[("range", "bytes=5-1")], "no range"),
                (&[("range", "bytes=5-"), ("if-range", "\"other\"")], "another content"),
                (&[("range", "bytes=5-"), ("if-range", &*weak)], "weak"),
                (&[("range", "bytes=5-"), ("if-range", whole.header("date").unwrap())], "a date"),
            ] {
                let reply = client.request("GET", &target, fields, b"").expect(200);
                assert_eq!(reply.body, whole.body, "{what}");
            }
            let refused = client.request("GET", &target, &[("range", "bytes=200000-")], b"");
            let refused = refused.expect_error(416, 416);
            assert_eq!(refused.header("content-range"), Some("bytes */200000"));
            assert_eq!(refused.id(), None);
        }
    });
}

#[test]
fn head_says_the_length_and_collecting_gives_the_whole() {
    in_both_stores(&[], |deferd| {
        let mut client = deferd.client();
        let id = client.store("POST", "/run/s-cat", &content());
        client.wait_done(&id);
        let range = [("range", "bytes=5-9")];
        let head = client.request("HEAD", &format!("/_api/job/{id}/result"), &range, b"");
        assert_eq!(head.expect(200).header("content-length"), Some("200000"));
        let collected = client.request("PUT", &format!("/_api/job/{id}"), &range, b"").expect(200);
        assert!(collected.body == content());
        assert_eq!(collected.header("accept-ranges"), None);
        client.get(&format!("/_api/job/{id}/result")).expect_error(404, 404);
    });
}

#[test]
fn only_a_complete_200_has_ranges() {
    in_both_stores(&[], |deferd| {
        let mut client = deferd.client();
        for (head, status, tag) in [
            ("Status: 404\n", 404, None),
            ("Status: 206\nContent-Range: bytes 0-3/9\n", 206, None),
            ("Status: 200\nContent-Range: bytes 0-3/9\n", 200, None),
            ("Status: 200\nETag: \"own\"\n", 206, Some("\"own\"")),
        ] {
            let id = client.store("POST", "/cgi/s-cat", format!("{head}\nfour").as_bytes());
            client.wait_done(&id);
            let target = format!("/_api/job/{id}/result");
            let reply = client.request("GET", &target, &[("range", "bytes=1-2")], b"");
            assert_eq!((reply.status, reply.header("etag")), (status, tag), "{head}");
            let is_part = tag.is_some();
            assert_eq!(reply.text(), if is_part { "ou" } else { "four" }, "{head}");
            assert_eq!(reply.header("accept-ranges").is_some(), is_part, "{head}");
        }
        // Pending and unknown jobs have no ranges either.
        let pending = client.store("GET", "/_admin/sleep?duration=3600", b"");
        let range = [("range", "bytes=1-2")];
        client.request("GET", &format!("/_api/job/{pending}/result"), &range, b"").expect(204);
        client.request("GET", "/_api/job/1/result", &range, b"").expect_error(404, 404);
    });
}
