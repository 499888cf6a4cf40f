//! The answers of plain programs: exit codes, content types, and content of any size.

use crate::support::{Client, Deferd, Reply, TempDir, eventually, running_with_query};

/// Returns the answer to a request, and the result of the same request as a job.
#[track_caller]
fn both(client: &mut Client, target: &str, content: &[u8]) -> [Reply; 2] {
    let now = client.request("POST", target, &[], content);
    let id = client.store("POST", target, content);
    [now, client.result(&id)]
}

#[test]
fn only_exit_code_0_is_200() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    for code in ["0", "1", "2", "64", "126", "127", "128", "143", "255"] {
        for reply in both(&mut client, &format!("/run/s-exit?{code}"), b"") {
            let expected = if code == "0" { (200, None) } else { (500, Some(code)) };
            assert_eq!((reply.status, reply.header("x-exit-code")), expected);
            assert_eq!(reply.header("x-exit-signal"), None);
            assert_eq!(reply.header("content-type"), Some("text/plain; charset=utf-8"));
            assert_eq!(reply.text(), "so far");
        }
    }
}

#[test]
fn the_end_by_a_signal_is_500_with_its_number() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    for (name, number) in [("HUP", "1"), ("KILL", "9"), ("PIPE", "13"), ("TERM", "15")] {
        for reply in both(&mut client, &format!("/run/s-signal?{name}"), b"") {
            assert_eq!(reply.header("x-exit-signal"), Some(number));
            assert_eq!(reply.header("x-exit-code"), None);
            assert_eq!(reply.expect(500).text(), "Content-Type: text/plain\n\nso far");
        }
    }
}

#[test]
fn the_content_type_says_whether_the_output_is_utf_8() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    const TEXT: &str = "text/plain; charset=utf-8";
    const BYTES: &str = "application/octet-stream";
    for (content, content_type) in [
        (&b""[..], TEXT),
        (b"hello\n", TEXT),
        ("gr\u{fc}\u{df}e \u{1f980}".as_bytes(), TEXT),
        (b"\xef\xbb\xbfmark", TEXT),
        (b"latin \xfc", BYTES),
        (b"cut \xf0\x9f", BYTES),
        (b"overlong \xc0\xaf", BYTES),
        (b"surrogate \xed\xa0\x80", BYTES),
        (b"\xff\xfe\x00\x01", BYTES),
    ] {
        for reply in both(&mut client, "/run/s-cat", content) {
            assert_eq!(reply.header("content-type"), Some(content_type), "{content:?}");
            assert_eq!(reply.expect(200).body, content);
        }
    }
}

#[test]
fn what_looks_like_a_cgi_header_is_content() {
    let deferd = Deferd::with_scripts("", &[]);
    let output = b"Status: 404\nLocation: /run/s-exit\n\nhello";
    for reply in both(&mut deferd.client(), "/run/s-cat", output) {
        assert_eq!(reply.header("location"), None);
        assert_eq!(reply.expect(200).body, output);
    }
}

#[test]
fn large_content_goes_in_and_out_at_the_same_time() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    for mib in [1, 8] {
        let content: Vec<u8> = (0..=255).cycle().take(mib << 20).collect();
        for reply in both(&mut client, "/run/s-cat", &content) {
            assert!(reply.expect(200).body == content, "{mib} MiB");
        }
    }
}

/// If deferd first wrote all of stdin, it would wait for a script that waits until its output is read.
#[test]
fn a_script_may_write_much_before_it_reads_anything() {
    let deferd = Deferd::with_scripts("", &[]);
    let content = vec![b'x'; 1 << 20];
    for reply in both(&mut deferd.client(), "/run/s-write-first?1048576", &content) {
        let body = reply.expect(200).body;
        assert!(body[..1 << 20].iter().all(|&b| b == 0));
        assert_eq!(String::from_utf8_lossy(&body[1 << 20..]).trim(), "1048576");
    }
}

#[test]
fn a_script_may_leave_a_large_content_unread() {
    let deferd = Deferd::with_scripts("", &[]);
    let content = vec![b'x'; 8 << 20];
    for reply in both(&mut deferd.client(), "/run/s-done", &content) {
        assert_eq!(reply.expect(200).text(), "answered\n");
    }
}

#[test]
fn a_script_that_closes_its_pipes_is_waited_for() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let dir = TempDir::new();
    let target = format!("/run/s-close?{}", dir.0.display());
    let id = client.store("POST", &target, &vec![b'x'; 1 << 20]);
    eventually("the pipes are closed", || dir.join("closed").exists());
    // The end of stdout must not be taken for the end of the script: only the file ends it.
    for _ in 0..20 {
        client.get("/run/s-done").expect(200);
    }
    client.get(&format!("/_api/job/{id}")).expect(204);
    std::fs::write(dir.join("go"), "").unwrap();
    let reply = client.result(&id).expect(500);
    assert_eq!(reply.header("x-exit-code"), Some("3"));
    assert_eq!(reply.text(), "early");
}

/// A deferd that is stopped cannot have read it before: the script's end and its last output arrive at once.
#[test]
fn output_left_in_the_pipes_is_not_lost() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let dir = TempDir::new();
    let query = dir.0.display().to_string();
    let id = client.store("GET", &format!("/run/s-burst?{query}"), b"");
    eventually("it runs", || {
        client.get(&format!("/_api/job/{id}")).header("x-progress") == Some("running")
    });
    deferd.signal("-STOP");
    std::fs::write(dir.join("go"), "").unwrap();
    eventually("the script ends", || running_with_query(&query).is_empty());
    deferd.signal("-CONT");
    client.wait_done(&id);
    let log = client.get(&format!("/_api/job/{id}/log")).expect(200).text();
    assert_eq!(log, format!("{}end\n", ".".repeat(8188)));
    assert_eq!(client.result(&id).expect(200).body, vec![0; 20_000]);
}

/// Returns the processor time that a process has used, in clock ticks (10 ms).
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let rest = &stat[stat.rfind(')').unwrap()..];
    rest.split_whitespace().skip(12).take(2).map(|field| field.parse::<u64>().unwrap()).sum()
}

/// A closed pipe is always ready: if it stayed in the poll, the wait would become a busy loop.
#[test]
fn waiting_for_a_script_without_pipes_costs_no_processor_time() {
    let deferd = Deferd::with_scripts("", &[]);
    let mut client = deferd.client();
    let before = ticks(deferd.pid());
    client.request("POST", "/run/s-idle", &[], &vec![b'x'; 1 << 20]).expect(200);
    let used = ticks(deferd.pid()) - before;
    assert!(used < 20, "{used} ticks in a second of waiting");
}
