//! Answers that flow: section 3 of the contract, *Synchronous answers flow*, and what section 11 says about them.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::unharmed;
use super::unharmed::{NOTICED, highest, memory, pour};
use crate::support::upstream::{Then, Upstream};
use crate::support::{
    Client, Deferd, FixedLimit, PATIENCE, TempDir, eventually, fixtures, with_limit,
};

const MIB: usize = 1 << 20;

/// A run of `f-steps`, and the files that control it.
struct Steps(TempDir);

impl Steps {
    fn new() -> Self {
        Self(TempDir::new())
    }

    fn query(&self) -> String {
        self.0.join("f").display().to_string()
    }

    fn target(&self) -> String {
        format!("/cgi/f-steps?{}", self.query())
    }

    /// Lets it write a step, or end.
    fn go(&self, step: &str) {
        std::fs::write(self.0.join(&format!("f.{step}")), "").unwrap();
    }

    #[track_caller]
    fn wait_for(&self, what: &str) {
        eventually(what, || self.has(what));
    }

    fn has(&self, what: &str) -> bool {
        self.0.join(&format!("f.{what}")).exists()
    }
}

/// Starts a script for a client that has not yet read any of its answer.
#[track_caller]
fn started(deferd: &Deferd, steps: &Steps, fields: &[(&str, &str)]) -> Client {
    let mut client = deferd.client();
    client.send_request("GET", &steps.target(), fields, b"");
    steps.wait_for("started");
    client
}

/// Sends a request and reads nothing.
fn asking(deferd: &Deferd, target: &str, version: &str) -> TcpStream {
    let mut stream = TcpStream::connect(deferd.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {target} HTTP/{version}\r\nhost: a\r\n\r\n").unwrap();
    stream
}

/// Reads until it has read these words; returns everything.
#[track_caller]
fn read_to(stream: &mut TcpStream, words: &str) -> Vec<u8> {
    let mut answer = Vec::new();
    while !answer.ends_with(words.as_bytes()) {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap_or_else(|error| panic!("before {words:?}: {error}"));
        answer.push(byte[0]);
    }
    answer
}

/// Returns how much a process has written, in bytes.
fn written(pid: u32) -> usize {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).expect("it runs");
    let bytes = io.lines().find_map(|line| line.strip_prefix("wchar: "));
    bytes.expect("a size").parse().expect("a number")
}

#[test]
fn each_piece_arrives_while_the_script_runs() {
    let deferd = Deferd::with_scripts("", &[]);
    unharmed(&deferd, || {
        let steps = Steps::new();
        let mut client = started(&deferd, &steps, &[]);
        let head = client.try_read_head().expect("a head").expect(200);
        assert!(head.is_chunked() && head.header("connection").is_none(), "{head:?}");
        for n in 1..4 {
            steps.go(&n.to_string());
            assert_eq!(client.read_chunk(), Some(format!("step {n}\n").into_bytes()));
        }
        assert!(!steps.has("ended"));
        steps.go("end");
        assert_eq!(client.read_chunk(), None);
        client.get("/_api/version").expect(200);
    });
}

#[test]
fn an_announced_length_frames_the_answer() {
    let deferd = Deferd::with_scripts("", &[]);
    unharmed(&deferd, || {
        let steps = Steps::new();
        let mut client = started(&deferd, &steps, &[("x-head", "Content-Length: 14")]);
        let head = client.try_read_head().expect("a head").expect(200);
        assert_eq!((head.length(), head.is_chunked()), (Some(14), false));
        steps.go("1");
        client.wait_for_answer();
        steps.go("2");
        assert_eq!(client.read_rest("GET", head).text(), "step 1\nstep 2\n");
        // The next answer is separate, and follows the end of the script.
        client.send_request("GET", "/_api/version", &[], b"");
        steps.go("end");
        client.try_read("GET").expect("an answer").expect(200);
        assert!(steps.has("ended"));
    });
}

#[test]
fn an_http_1_0_client_reads_until_the_end() {
    let deferd = Deferd::with_scripts("", &[]);
    unharmed(&deferd, || {
        let steps = Steps::new();
        let mut stream = asking(&deferd, &steps.target(), "1.0");
        steps.go("1");
        let mut answer = read_to(&mut stream, "step 1\n");
        steps.go("end");
        stream.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8(answer).unwrap();
        let (head, content) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("connection: close") && !head.contains("chunked"), "{head}");
        assert_eq!(content, "step 1\n");
        // With a length, the connection stays open.
        let steps = Steps::new();
        steps.go("1");
        steps.go("end");
        let mut client = deferd.client();
        for _ in 0..2 {
            let fields = "connection: keep-alive\r\nx-head: Content-Length: 0";
            client.send(format!("GET {} HTTP/1.0\r\n{fields}\r\n\r\n", steps.target()).as_bytes());
            let reply = client.try_read("GET").expect("an answer").expect(200);
            assert_eq!(reply.header("connection"), Some("keep-alive"));
        }
    });
}

/// Without a length, the end of the answer is the end of the connection, but a reset is not an end.
#[test]
fn an_http_1_0_client_detects_the_end_of_deferd() {
    let deferd = Deferd::with_scripts("", &[]);
    let steps = Steps::new();
    let mut stream = asking(&deferd, &steps.target(), "1.0");
    steps.go("1");
    read_to(&mut stream, "step 1\n");
    deferd.signal("-KILL");
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

/// A Unix socket has no reset.
#[test]
fn http_1_0_over_a_unix_socket_gets_whole_answers() {
    let dir = TempDir::new();
    let path = dir.join("socket");
    let unix = format!("unix:{}", path.display());
    let listen = ["--listen", "127.0.0.1:0", "--listen", &unix];
    let deferd = Deferd::with_scripts(",timeout=2s", &listen);
    let answer = |steps: &Steps| {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET {} HTTP/1.0\r\n\r\n", steps.target()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    unharmed(&deferd, || {
        let (whole, broken) = (Steps::new(), Steps::new());
        for step in [&whole, &broken] {
            step.go("1");
        }
        whole.go("end");
        let reply = answer(&whole);
        assert!(reply.starts_with("HTTP/1.1 200 OK\r\n"), "{reply}");
        assert!(reply.contains("content-length: 7\r\n") && reply.ends_with("\r\n\r\nstep 1\n"));
        // It writes a step, and exceeds its time limit.
        let reply = answer(&broken);
        assert!(reply.starts_with("HTTP/1.1 504 ") && !reply.contains("step 1"), "{reply}");
    });
}

#[test]
fn answers_without_content_have_their_heads_at_once() {
    let deferd = Deferd::with_scripts("", &[]);
    unharmed(&deferd, || {
        for (method, head, length) in [
            ("HEAD", "Content-Length: 7", Some(7)),
            ("HEAD", "X-N: 1", None),
            ("GET", "Status: 204", None),
            ("GET", "Status: 304", None),
        ] {
            let steps = Steps::new();
            let mut client = deferd.client();
            client.send_request(method, &steps.target(), &[("x-head", head)], b"");
            let reply = client.try_read_head().expect("a head");
            assert!(!reply.is_chunked(), "{reply:?}");
            assert_eq!(reply.length(), length, "{reply:?}");
            steps.wait_for("started");
            // What it writes is dropped.
            steps.go("1");
            steps.go("end");
            client.get("/_api/version").expect(200);
        }
    });
}

#[test]
fn pipelined_answers_keep_their_order() {
    let deferd = Deferd::with_scripts("", &[]);
    unharmed(&deferd, || {
        let steps = Steps::new();
        let mut client = started(&deferd, &steps, &[]);
        client.send_request("GET", "/cgi/f-zeros?70000", &[], b"");
        client.send_request("GET", "/_api/version", &[], b"");
        for step in ["1", "end"] {
            steps.go(step);
        }
        let mut answer = || client.try_read("GET").expect("an answer").expect(200);
        assert_eq!(answer().text(), "step 1\n");
        assert_eq!(answer().body, vec![0; 70_000]);
        answer().json();
    });
}

/// An answer of this size passes because only one buffer of it is in memory.
#[test]
fn a_slow_reader_slows_the_script_and_memory_stays() {
    let scripts = fixtures().display().to_string();
    let route = format!("/cgi/=cgi:{scripts},max-output=256M");
    let deferd = Deferd::start(&["--route", &route, "--max-memory", "1G"]);
    unharmed(&deferd, || {
        deferd.client().get("/cgi/f-zeros?1000000").expect(200);
        let before = memory(&deferd);
        let mut streams: Vec<_> =
            (0..4).map(|_| asking(&deferd, "/cgi/f-zeros?200000000", "1.1")).collect();
        for stream in &mut streams {
            stream.read_exact(&mut [0; 100_000]).unwrap();
        }
        assert_eq!(deferd.children().len(), 4, "none can go on");
        assert!(charged(&deferd) <= MIB, "{} bytes are charged", charged(&deferd));
        for mut stream in streams {
            let mut read = 100_000;
            let mut piece = vec![0; 1 << 16];
            while read < 200_000_000 {
                let n = stream.read(&mut piece).unwrap();
                assert!(n > 0, "it ends at {read}");
                read += n;
            }
        }
        let highest = highest(&deferd);
        assert!(highest < before + 4 * 1024, "{before} KiB grew to {highest}");
    });
}

/// Returns how much memory is charged, in bytes.
#[track_caller]
fn charged(deferd: &Deferd) -> usize {
    let metrics = deferd.client().get("/_admin/metrics").text();
    let bytes = metrics.lines().find_map(|line| line.strip_prefix("deferd_memory_bytes "));
    bytes.expect("a metric").parse().expect("a number")
}

/// A flow needs no memory that other requests could have taken.
#[test]
fn answers_flow_while_the_memory_is_in_use() {
    let deferd = Deferd::with_scripts("", &["--max-memory", "16M"]);
    unharmed(&deferd, || {
        let others: Vec<_> = (0..8)
            .map(|_| {
                let mut client = deferd.client();
                let length = "content-length: 4000000";
                let head = format!("POST /run/s-cat HTTP/1.1\r\nhost: a\r\n{length}\r\n\r\n");
                client.send(head.as_bytes());
                pour(&client, &vec![b'x'; 3_000_000]);
                client
            })
            .collect();
        eventually("the memory is in use", || charged(&deferd) > 8 * MIB);
        let reply = deferd.client().get("/cgi/f-zeros?3000000").expect(200);
        assert_eq!(reply.body.len(), 3_000_000);
        drop(others);
    });
}

#[test]
fn a_script_ends_with_the_client_that_leaves_midway() {
    let deferd = Deferd::with_scripts("", &[]);
    unharmed(&deferd, || {
        for reads in [true, false] {
            let mut stream = asking(&deferd, "/cgi/s-endless", "1.1");
            let mut piece = [0; 1000];
            stream.read_exact(&mut piece).unwrap();
            if !reads {
                let [script] = deferd.children()[..] else { panic!("{:?}", deferd.children()) };
                let mut before = written(script);
                eventually("every buffer is full", || {
                    std::thread::sleep(Duration::from_millis(50));
                    let now = written(script);
                    std::mem::replace(&mut before, now) == now
                });
            }
            drop(stream);
            let begin = Instant::now();
            eventually("the script has ended", || deferd.children().is_empty());
            assert!(begin.elapsed() < NOTICED, "only after {:?}", begin.elapsed());
        }
        eventually("the log says so", || {
            deferd.log().matches("left=yes broken=\"the client left\"").count() == 2
        });
    });
}

#[test]
fn an_ignore_abort_run_outlives_its_client_midway() {
    let deferd = Deferd::with_scripts(",ignore-abort=yes", &[]);
    unharmed(&deferd, || {
        let steps = Steps::new();
        let client = started(&deferd, &steps, &[]);
        drop(client);
        // What it writes is dropped.
        for step in ["1", "2", "3"] {
            steps.go(step);
        }
        deferd.client().get("/_api/version").expect(200);
        steps.go("end");
        steps.wait_for("ended");
        deferd.log_with("broken=\"the client left\"");
    });
}

/// The limits hold even if the client takes nothing.
#[test]
fn limits_midway_break_the_connection() {
    let deferd = Deferd::with_scripts(",timeout=700ms,max-output=32M", &[]);
    unharmed(&deferd, || {
        let late = || deferd.log().matches("the script ran out of time").count();
        for version in ["1.1", "1.0"] {
            let before = late();
            let mut stream = asking(&deferd, "/cgi/s-endless", version);
            eventually("the script has ended", || late() > before && deferd.children().is_empty());
            let mut answer = Vec::new();
            let end = stream.read_to_end(&mut answer);
            assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"));
            assert!(!answer.ends_with(b"0\r\n\r\n"));
            if version == "1.0" {
                assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
            }
        }
        let mut client = deferd.client();
        client.send_request("GET", "/cgi/s-endless", &[], b"");
        let reply = client.read_broken().expect(200);
        let broken = deferd.log_with("wrote more than max-output 32M");
        assert!(broken.contains("broken=\"bad gateway: the script wrote more than"), "{broken}");
        assert!(reply.body.len() <= (32 << 20) + MIB, "{}", reply.body.len());
    });
}

#[test]
fn a_client_that_takes_nothing_ends_its_script() {
    let deferd = Deferd::with_scripts_by(
        with_limit(FixedLimit::Answer, Duration::from_millis(500)),
        "",
        &[],
    );
    unharmed(&deferd, || {
        let mut stream = asking(&deferd, "/cgi/s-endless", "1.1");
        deferd.log_with("broken=\"the client took too little for too long\"");
        eventually("the script has ended", || deferd.children().is_empty());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(!answer.ends_with(b"0\r\n\r\n"));
    });
}

/// Only time in which bytes wait counts against the client.
#[test]
fn a_quiet_script_makes_no_slow_client() {
    let deferd = Deferd::with_scripts_by(
        with_limit(FixedLimit::Answer, Duration::from_millis(200)),
        "",
        &[],
    );
    unharmed(&deferd, || {
        let steps = Steps::new();
        let mut client = started(&deferd, &steps, &[]);
        for n in 1..4 {
            std::thread::sleep(Duration::from_millis(300));
            steps.go(&n.to_string());
        }
        steps.go("end");
        let reply = client.try_read("GET").expect("an answer").expect(200);
        assert_eq!(reply.text(), "step 1\nstep 2\nstep 3\n");
    });
}

#[test]
fn stderr_is_read_while_the_client_takes_nothing() {
    let deferd = Deferd::with_scripts("", &[]);
    unharmed(&deferd, || {
        let dir = TempDir::new();
        let file = dir.join("said");
        let stream = asking(&deferd, &format!("/cgi/f-loud?{}", file.display()), "1.1");
        eventually("a megabyte was read", || file.exists());
        drop(stream);
        eventually("the script has ended", || deferd.children().is_empty());
    });
}

#[test]
fn an_answer_during_the_shutdown_is_whole_and_last() {
    let mut deferd = Deferd::with_scripts("", &["--grace", "1m"]);
    let (begun, new) = (Steps::new(), Steps::new());
    let mut early = started(&deferd, &begun, &[]);
    let head = early.try_read_head().expect("a head");
    let mut late = deferd.client();
    late.get("/_api/version").expect(200);
    deferd.signal("-TERM");
    deferd.log_with("ending");
    // Its head is sent now, and announces that the connection ends.
    late.send_request("GET", &new.target(), &[], b"");
    new.wait_for("started");
    let last = late.try_read_head().expect("a head");
    assert_eq!(last.header("connection"), Some("close"));
    for steps in [&begun, &new] {
        steps.go("1");
        steps.go("end");
    }
    assert_eq!(early.read_rest("GET", head).text(), "step 1\n");
    assert_eq!(late.read_rest("GET", last).text(), "step 1\n");
    assert_eq!(deferd.wait().code(), Some(0));
}

#[test]
fn events_of_an_upstream_arrive_one_by_one() {
    for framing in ["transfer-encoding: chunked\r\n", "connection: close\r\n"] {
        let steps = Steps::new();
        let base = steps.query();
        let upstream = Upstream::start(move |_, stream| {
            let event = |text: &str| match framing.contains("chunked") {
                true => format!("{:x}\r\n{text}\r\n", text.len()),
                false => text.to_owned(),
            };
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n";
            write!(stream, "{head}{framing}\r\n").unwrap();
            for n in 1..4 {
                let go = format!("{base}.{n}");
                eventually("the next event", || std::path::Path::new(&go).exists());
                stream.write_all(event(&format!("data: {n}\n\n")).as_bytes()).unwrap();
            }
            if framing.contains("chunked") {
                stream.write_all(b"0\r\n\r\n").unwrap();
            }
            Then::Close
        });
        let deferd = Deferd::start(&["--route", &upstream.route("")]);
        let mut client = deferd.client();
        client.send_request("GET", "/up/events", &[("accept", "text/event-stream")], b"");
        let head = client.try_read_head().expect("a head").expect(200);
        assert!(head.is_chunked(), "{head:?}");
        for n in 1..4 {
            steps.go(&n.to_string());
            assert_eq!(client.read_chunk(), Some(format!("data: {n}\n\n").into_bytes()));
        }
        assert_eq!(client.read_chunk(), None);
        client.get("/_api/version").expect(200);
    }
}

#[test]
fn an_upstream_is_held_up_and_left_with_its_client() {
    let upstream = Upstream::start(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
        while stream.write_all(&[b'x'; 10_000]).is_ok() {}
        Then::Close
    });
    let route = upstream.route(",max-output=16M,timeout=1s");
    let deferd = Deferd::start(&["--route", &route, "--max-memory", "64M"]);
    unharmed(&deferd, || {
        // If it were not held up, it would soon exceed max-output; instead, it times out first.
        let stream = asking(&deferd, "/up/", "1.1");
        let log = deferd.log_with("broken=");
        assert!(log.contains("its answer was not complete in time"), "{log}");
        drop(stream);
        let mut leaves = asking(&deferd, "/up/", "1.1");
        leaves.read_exact(&mut [0; 100]).unwrap();
        leaves.shutdown(Shutdown::Both).unwrap();
        deferd.log_with("broken=\"the client left\"");
    });
}

/// The fields that depend on the request are the same as in complete answers.
#[test]
fn a_flowing_answer_has_the_fields_of_a_whole_one() {
    let origin = "https://page.example";
    let deferd = Deferd::with_scripts("", &["--allow-origin", origin]);
    let steps = Steps::new();
    let mut client = started(&deferd, &steps, &[("origin", origin)]);
    let head = client.try_read_head().expect("a head").expect(200);
    assert_eq!(head.header("access-control-allow-origin"), Some(origin));
    assert_eq!(head.header("vary"), Some("origin"));
    // The script decides about them.
    assert_eq!(head.header("x-content-type-options"), None);
    assert_eq!(head.header("cross-origin-resource-policy"), None);
    steps.go("end");
    client.read_rest("GET", head);
}
