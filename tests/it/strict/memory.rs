//! Content, results and keys by the hundred MiB: what is held stays within `--max-memory`, what is stored within
//! `--max-stored`, and deferd serves again when they are free.
//!
//! [`unharmed`] asserts the first after each case: at its highest, the resident memory was at most 24 MiB above
//! `--max-memory`.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use super::unharmed;
use super::unharmed::{
    connections, detail, highest, memory, no_connection, pour, unharmed_within_memory,
};
use std::time::Duration;

use crate::support::hold::Hold;
use crate::support::upstream::{Then, Upstream};
use crate::support::{Client, Deferd, Reply, TempDir, eventually, fixtures};

/// The budget in these cases.
const MEMORY: [&str; 2] = ["--max-memory", "32M"];

const MIB: usize = 1 << 20;

const STORE: &str = "x-arango-async: store\r\n";

/// Sends the head of a request with content.
#[track_caller]
fn begin(deferd: &Deferd, target: &str, fields: &str) -> Client {
    let mut client = deferd.client();
    client.send(format!("POST {target} HTTP/1.1\r\nhost: a\r\n{fields}\r\n").as_bytes());
    client
}

/// Sends requests that are complete except for the last byte; returns how many were refused for lack of memory.
#[track_caller]
fn send_unfinished(clients: &[Client], content: &[u8]) -> usize {
    std::thread::scope(|scope| {
        let pours: Vec<_> =
            clients.iter().map(|client| scope.spawn(|| pour(client, content))).collect();
        pours.into_iter().for_each(|pour| assert!(pour.join().is_ok()));
    });
    let count = || {
        let mut refused = 0;
        for client in clients {
            client.socket().set_nonblocking(true).unwrap();
            refused += usize::from(client.socket().peek(&mut [0]).is_ok());
            client.socket().set_nonblocking(false).unwrap();
        }
        refused
    };
    // A busy host takes a while to answer all of them.
    let (mut refused, mut same) = (count(), 0);
    while same < 10 {
        std::thread::sleep(Duration::from_millis(50));
        let now = count();
        same = if now == refused { same + 1 } else { 0 };
        refused = now;
    }
    refused
}

/// Asserts the refusal of content for which there is no memory at this moment.
#[track_caller]
fn assert_no_memory(reply: Reply) {
    let reply = reply.expect_error(503, 503);
    let seconds: u64 = reply.header("retry-after").expect("retry-after").parse().unwrap();
    assert!(seconds >= 1);
    assert!(reply.text().contains("--max-memory"), "{}", reply.text());
}

/// Submits until the store refuses; returns the ids that were accepted, and the refusal.
#[track_caller]
fn submit_until_full(
    client: &mut Client,
    target: &str,
    most: usize,
    mut fields: impl FnMut(usize) -> Vec<(&'static str, String)>,
) -> (Vec<String>, Reply) {
    let mut ids = Vec::new();
    while ids.len() < most {
        let mut all = vec![("x-arango-async", "store".to_owned())];
        all.extend(fields(ids.len()));
        let all: Vec<_> = all.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let reply = client.request("GET", target, &all, b"");
        match reply.id() {
            Some(id) => ids.push(id.to_owned()),
            // There may be room when what waits has run.
            None if reply.text().contains("queue is full") && client.list("pending").len() > 1 => {}
            None => return (ids, reply),
        }
    }
    panic!("{most} jobs were accepted");
}

#[test]
fn unfinished_bodies_stay_within_the_budget() {
    let deferd = Deferd::with_scripts("", &MEMORY);
    let content = vec![b'x'; 7 * MIB];
    let chunk = [b"700000\r\n".as_slice(), &content].concat();
    let by_length = format!("content-length: {}\r\n", content.len() + 1);
    let deferred = format!("{STORE}{by_length}");
    let in_chunks = "transfer-encoding: chunked\r\n";
    for (target, fields, content) in [
        ("/_admin/echo", by_length.as_str(), &content),
        ("/_admin/echo", in_chunks, &chunk),
        ("/run/c-touch", &by_length, &content),
        ("/run/c-touch", &deferred, &content),
    ] {
        unharmed(&deferd, || {
            let clients: Vec<_> = (0..40).map(|_| begin(&deferd, target, fields)).collect();
            let refused = send_unfinished(&clients, content);
            // If all grow at the same time, it may be all of them.
            assert!(refused >= 30, "{refused} of 40 refused, {target} {fields}");
            for mut client in clients {
                client.socket().set_nonblocking(true).unwrap();
                if client.socket().peek(&mut [0]).is_ok() {
                    client.socket().set_nonblocking(false).unwrap();
                    assert_no_memory(client.try_read("POST").unwrap());
                }
            }
            no_connection(&deferd);
            deferd.client().request("POST", "/_admin/echo", &[], content).expect(200);
        });
    }
}

/// Answers over 4 KiB: smaller ones count with the connection.
#[test]
fn answers_of_endpoints_without_memory_are_refused() {
    const STEPS: [usize; 4] = [MIB, 64 << 10, 6 << 10, 5 << 10];
    let deferd = Deferd::with_scripts("", &["--max-memory", "16M"]);
    let mut client = deferd.client();
    let log = client.store("GET", "/run/s-lines?3000", b"");
    client.wait_done(&log);
    for _ in 0..400 {
        client.store("GET", "/_admin/time", b"");
    }
    eventually("all are done", || client.list("pending").is_empty());
    drop(client);
    let targets = [
        "/_admin/metrics".to_owned(),
        "/_admin/jobs?count=400".to_owned(),
        "/_api/job/done?count=400".to_owned(),
        format!("/_api/job/{log}/log"),
    ];
    unharmed(&deferd, || {
        let mut held = Vec::new();
        for step in STEPS {
            let fields = format!("content-length: {}\r\n", step + 1);
            let content = vec![b'x'; step];
            let mut is_full = false;
            while !is_full {
                let clients: Vec<_> =
                    (0..8).map(|_| begin(&deferd, "/_admin/echo", &fields)).collect();
                is_full = send_unfinished(&clients, &content) > 0;
                held.extend(clients);
            }
        }
        for target in &targets {
            assert_no_memory(deferd.client().get(target));
        }
        // There is also no memory for records: a job could not start while so little is free.
        let (_, refused) = submit_until_full(&mut deferd.client(), "/_admin/time", 100, |_| vec![]);
        let told = "queue is full: --max-memory 16M has no room for the records of more jobs";
        assert_eq!(refused.expect_error(503, 21003).json()["errorMessage"], told);
        drop(held);
        no_connection(&deferd);
        let metrics = deferd.client().get("/_admin/metrics").expect(200).text();
        let counted = "deferd_jobs_refused_total{reason=\"no_memory\"} 1\n";
        assert!(metrics.contains(counted), "{metrics}");
        for target in &targets {
            assert!(deferd.client().get(target).expect(200).body.len() > 4096, "{target}");
        }
    });
}

/// Starts a deferd whose scripts only run for senders that know the secret: `secret` in `x-gitlab-token`.
fn start_signed() -> (Deferd, TempDir) {
    let dir = TempDir::new();
    let secret = dir.join("secret");
    std::fs::write(&secret, "secret").unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    let (scripts, secret) = (fixtures(), secret.display());
    let route = format!("/run/=run:{},secret={secret},signature=gitlab", scripts.display());
    (Deferd::start(&[&MEMORY[..], &["--route", &route]].concat()), dir)
}

/// Behind a proxy on this host, every sender is a loopback peer, which may take all of the budget.
#[test]
fn content_before_its_signature_is_verified_takes_a_quarter() {
    const QUARTER: usize = 8 * MIB;
    let (deferd, _dir) = start_signed();
    let fields = |token: &str, length: usize| {
        format!("x-gitlab-token: {token}\r\ncontent-length: {length}\r\n")
    };
    let content = vec![b'x'; QUARTER];
    unharmed(&deferd, || {
        let first = begin(&deferd, "/run/s-cat", &fields("wrong", 5 * MIB + 1));
        pour(&first, &content[..5 * MIB]);
        let mut other = deferd.client();
        eventually("it is held", || detail(&mut other, "memory-used") >= 5 * MIB);
        let clients: Vec<_> =
            (0..40).map(|_| begin(&deferd, "/run/s-cat", &fields("wrong", MIB + 1))).collect();
        let refused = send_unfinished(&clients, &content[..MIB]);
        assert!(refused >= 37, "{refused} of 40 refused");
        // The other requests have their memory.
        other.request("POST", "/_admin/echo", &[], &content).expect(200);
        // A sender that knows the secret waits with the others until deferd has verified it.
        let mut client = begin(&deferd, "/run/s-cat", &fields("secret", QUARTER));
        pour(&client, &content);
        assert_no_memory(client.try_read("POST").unwrap());
        drop((first, other, clients, client));
        no_connection(&deferd);
        let mut client = begin(&deferd, "/run/s-cat", &fields("secret", QUARTER));
        pour(&client, &content);
        client.try_read("POST").unwrap().expect(200);
    });
}

/// Verified content is bounded by the budget alone.
#[test]
fn verified_content_gives_its_quarter_back() {
    let (deferd, _dir) = start_signed();
    let hold = Hold::new();
    let content = vec![b'x'; 5 * MIB];
    let fields = [("x-gitlab-token", "secret"), ("x-arango-async", "store")];
    let mut client = deferd.client();
    // All are held at once: two run, and one waits.
    for _ in 0..3 {
        client.request("POST", &hold.target(), &fields, &content).expect(202);
    }
    hold.release();
}

/// Without credentials no content is kept, whatever the endpoint.
#[test]
fn content_without_credentials_takes_no_memory() {
    let dir = TempDir::new();
    let users = dir.join("users");
    std::fs::write(&users, format!("root:{}\n", "0".repeat(64))).unwrap();
    std::fs::set_permissions(&users, std::fs::Permissions::from_mode(0o600)).unwrap();
    let deferd = Deferd::with_scripts("", &["--auth", users.to_str().unwrap()]);
    let available = "/_admin/server/availability";
    deferd.client().get(available).expect(200);
    let before = memory(&deferd);
    let content = vec![b'x'; 16 * MIB - 1];
    for (target, status) in [(available, 413), ("/_admin/echo", 401), ("/run/c-touch", 401)] {
        let fields = format!("content-length: {}\r\n", 16 * MIB);
        let mut clients: Vec<_> = (0..20).map(|_| begin(&deferd, target, &fields)).collect();
        for client in &mut clients {
            let reply = client.try_read("POST").expect("an answer").expect(status);
            assert_eq!(reply.header("connection"), Some("close"));
        }
        for client in &clients {
            pour(client, &content);
        }
        drop(clients);
        no_connection(&deferd);
    }
    // The same in chunks, whose sum is not in the head.
    let clients: Vec<_> =
        (0..20).map(|_| begin(&deferd, available, "transfer-encoding: chunked\r\n")).collect();
    let _ = send_unfinished(&clients, &[b"fffff0\r\n".as_slice(), &content[..MIB]].concat());
    let most = highest(&deferd);
    assert!(most <= before + 8 * 1024, "from {before} KiB to {most} KiB");
    deferd.client().get(available).expect(200);
}

#[test]
fn content_for_endpoints_without_use_is_limited() {
    let deferd = Deferd::start(&MEMORY);
    unharmed(&deferd, || {
        for target in [
            "/_api/version",
            "/_admin/server/availability",
            "/_admin/time",
            "/_admin/sleep?duration=0",
            "/_api/openapi.json",
            "/_api/job/done",
            "/_api/job/1",
        ] {
            let mut client = deferd.client();
            // These are the statuses of the endpoints without content.
            let status = client.request("POST", target, &[], b"").status;
            let dropped = vec![b'x'; 64 << 10];
            assert_eq!(client.request("POST", target, &[], &dropped).status, status, "{target}");
            assert_eq!(client.request("POST", target, &[], b"").status, status, "{target}");
            // One byte more is refused, before the client is asked for any content.
            let announced = "expect: 100-continue\r\ncontent-length: 65537\r\n";
            let mut client = begin(&deferd, target, announced);
            let reply = client.try_read("POST").expect("an answer").expect_error(413, 413);
            let text = reply.text();
            let message = "body too large: more than 64K for an endpoint that uses none";
            assert!(text.contains(message), "{target}: {text}");
            let mut client = begin(&deferd, target, "transfer-encoding: chunked\r\n");
            client.send(&[b"10001\r\n".as_slice(), &[b'x'; 65537], b"\r\n0\r\n\r\n"].concat());
            client.try_read("POST").expect("an answer").expect_error(413, 413);
        }
    });
}

#[test]
fn a_refusal_names_the_exceeded_limit() {
    let text_of = |arguments: &[&str], target: &str, length: usize| {
        let deferd = Deferd::start(arguments);
        let mut client = begin(&deferd, target, &format!("content-length: {length}\r\n"));
        client.try_read("POST").expect("an answer").expect_error(413, 413).text()
    };
    for (arguments, target, length, message) in [
        (&["--max-memory", "256M"][..], "/_admin/echo", 16 * MIB + 1, "--max-body 16M"),
        (&["--max-body", "1000"], "/_admin/echo", 1001, "--max-body 1000"),
        (&MEMORY, "/_admin/echo", 8 * MIB + 1, "--max-body 8M, a quarter of --max-memory"),
        (&MEMORY, "/_api/collection", (64 << 10) + 1, "64K for this endpoint"),
    ] {
        let text = text_of(arguments, target, length);
        assert!(text.contains(&format!("body too large: more than {message}")), "{text}");
    }
}

#[test]
fn unread_answers_stay_within_the_budget() {
    let dir = TempDir::new();
    let data = dir.join("data");
    for on_disk in [false, true] {
        let mut arguments = MEMORY.to_vec();
        arguments.extend(on_disk.then_some(["--data", data.to_str().unwrap()]).iter().flatten());
        let deferd = Deferd::with_scripts("", &arguments);
        let mut client = deferd.client();
        let stored = client.store("GET", "/run/c-zeros?8000000", b"");
        client.wait_done(&stored);
        let ids = [(); 40].map(|()| client.store("GET", "/run/c-zeros?300000", b""));
        ids.iter().for_each(|id| client.wait_done(id));
        drop(client);
        let content = vec![1; 64 << 10];
        unharmed_within_memory(&deferd, || {
            for what in 0..4 {
                let mut clients: Vec<_> = (0..40).map(|_| deferd.client()).collect();
                for (client, id) in clients.iter_mut().zip(&ids) {
                    let result = format!("/_api/job/{id}/result");
                    let same = format!("/_api/job/{stored}/result");
                    let (method, target, content) = match what {
                        0 => ("GET", "/run/c-zeros?7000000", b"".as_slice()),
                        1 => ("GET", same.as_str(), b"".as_slice()),
                        2 => ("GET", result.as_str(), b"".as_slice()),
                        _ => ("POST", "/_admin/echo", content.as_slice()),
                    };
                    client.send_request(method, target, &[], content);
                }
                clients.iter().for_each(Client::wait_for_answer);
            }
        });
        let reply = deferd.client().put(&format!("/_api/job/{stored}")).expect(200);
        assert_eq!(reply.body.len(), 8_000_000, "what was not delivered is still there");
    }
}

/// A result that many clients read at once is in memory once; a result on disk is not in memory: each client reads its
/// file.
#[test]
fn a_result_with_many_readers_is_held_once() {
    let dir = TempDir::new();
    let data = dir.join("data");
    const LARGE: usize = 12 * MIB;
    for (on_disk, held) in [(false, LARGE), (true, 0)] {
        let mut arguments = vec!["--max-memory", "64M"];
        arguments.extend(on_disk.then_some(["--data", data.to_str().unwrap()]).iter().flatten());
        let deferd = Deferd::with_scripts("", &arguments);
        unharmed_within_memory(&deferd, || {
            let mut client = deferd.client();
            let id = client.store("GET", &format!("/run/c-zeros?{LARGE}"), b"");
            client.wait_done(&id);
            let is_alone = |used| (held..held + MIB).contains(&used);
            eventually("the run is over", || is_alone(detail(&mut client, "memory-used")));
            let before = detail(&mut client, "memory-used");
            let mut readers: Vec<_> = (0..30).map(|_| deferd.client()).collect();
            for reader in &mut readers {
                reader.send_request("GET", &format!("/_api/job/{id}/result"), &[], b"");
            }
            readers.iter().for_each(Client::wait_for_answer);
            let used = detail(&mut client, "memory-used");
            assert!(is_alone(used), "{used}, on disk: {on_disk}");
            for mut reader in readers {
                assert_eq!(reader.try_read("GET").unwrap().expect(200).body.len(), LARGE);
            }
            eventually("the readers hold nothing", || detail(&mut client, "memory-used") <= before);
            client.delete("/_api/job/all").expect(200);
            eventually("nothing is held any more", || detail(&mut client, "memory-used") == 0);
        });
    }
}

#[test]
fn results_without_content_count_for_max_stored() {
    let deferd = Deferd::with_scripts("", &["--max-stored", "1M"]);
    let hold = Hold::new();
    unharmed(&deferd, || {
        let mut client = deferd.client();
        // The status of a pending job is a `204`.
        let pending = hold.start(&mut client);
        let target = format!("/_api/job/{pending}");
        let (ids, reply) = submit_until_full(&mut client, &target, 4096, |_| Vec::new());
        let text = reply.expect_error(503, 21003).text();
        assert!(text.contains("--max-stored"), "{text}");
        assert!(ids.len() > 500, "{}", ids.len());
        assert!(detail(&mut client, "stored-used") <= detail(&mut client, "stored-limit"));
        for id in [&ids[0], &ids[ids.len() - 1]] {
            client.result(id).expect(204);
        }
        hold.release();
        client.delete("/_api/job/all").expect(200);
        eventually("its room is free", || detail(&mut client, "stored-used") == 0);
    });
}

#[test]
fn deferred_reads_of_a_result_stay_within_max_stored() {
    for on_disk in [false, true] {
        let dir = TempDir::new();
        let data = dir.join("data");
        let mut arguments = vec!["--max-stored", "32M", "--max-memory", "64M"];
        arguments.extend(on_disk.then_some(["--data", data.to_str().unwrap()]).iter().flatten());
        let deferd = Deferd::with_scripts("", &arguments);
        unharmed_within_memory(&deferd, || {
            let mut client = deferd.client();
            let id = client.store("GET", "/run/c-zeros?12000000", b"");
            client.wait_done(&id);
            let ids: Vec<_> = (0..60)
                .map(|_| client.store("GET", &format!("/_api/job/{id}/result"), b""))
                .collect();
            let mut refused = 0;
            for id in &ids {
                client.wait_done(id);
                assert!(detail(&mut client, "stored-used") <= 32 * MIB);
                let reply = client.get(&format!("/_api/job/{id}/result"));
                if reply.status != 200 {
                    refused += 1;
                    // To read them from the disk at the same time needs memory first.
                    assert!(matches!(reply.status, 507 | 503), "{}", reply.text());
                    assert!(reply.text().contains("see --max-"), "{}", reply.text());
                }
            }
            assert!(refused >= 50, "{refused} of 60");
            let file = data.join("jobs.redb");
            let size = std::fs::metadata(&file).map_or(0, |file| file.len());
            // redb rounds each value up to a power of two, and frees it with the next commits.
            assert!(size <= 192 * MIB as u64, "{size} bytes on disk");
            client.delete("/_api/job/all").expect(200);
            eventually("their room is free", || detail(&mut client, "stored-used") == 0);
            assert_eq!(detail(&mut client, "stored-limit"), 32 * MIB);
        });
    }
}

/// If output that is kept as a whole does not fit into the memory, its script or call ends. An answer that flows is
/// not kept.
#[test]
fn a_result_beyond_free_memory_is_507_naming_it() {
    const LARGE: usize = 11_000_000;
    let upstream = Upstream::start(|_, stream| {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {LARGE}\r\n\r\n");
        let _ = stream.write_all(&[head.as_bytes(), &vec![0; LARGE]].concat());
        Then::Close
    });
    let limits = ["--max-memory", "16M", "--max-output", "12M", "--route", &upstream.route("")];
    let deferd = Deferd::with_scripts("", &limits);
    let (run, cgi) = (format!("/run/c-zeros?{LARGE}"), format!("/cgi/f-zeros?{LARGE}"));
    unharmed(&deferd, || {
        let body = "content-length: 4000000\r\n";
        let holders = [(); 2].map(|()| begin(&deferd, "/_admin/echo", body));
        assert_eq!(send_unfinished(&holders, &[b'x'; 3_900_000]), 0);
        let mut client = deferd.client();
        eventually("they are held", || detail(&mut client, "memory-used") > 7 * MIB);
        for (target, what) in [
            (&*run, "what the script writes"),
            (&*cgi, "what the script writes"),
            ("/up/", "the upstream's answer"),
        ] {
            let id = client.store("GET", target, b"");
            let text = client.result(&id).expect_job_error(507, 507).text();
            assert!(text.contains(&format!("{what} does not fit into --max-memory")), "{text}");
            let reply = client.get(target);
            if target == run {
                assert_eq!(reply.expect_error(507, 507).text(), text);
            } else {
                assert_eq!(reply.expect(200).body.len(), LARGE);
            }
        }
        drop(holders);
        eventually("they are gone", || detail(&mut client, "memory-used") == 0);
        client.get(&run).expect(200);
    });
}

#[test]
fn json_takes_no_more_memory_than_its_name() {
    let deferd = Deferd::start(&[]);
    unharmed(&deferd, || {
        let before = memory(&deferd);
        for part in [r#"{"a":["#, "[", r#"{"":0,"a":[1,{}],"b":"#, r#""name","#] {
            let content = [r#"{"x":["#, &part.repeat(65_000 / part.len())].concat();
            let mut clients: Vec<_> = (0..60).map(|_| deferd.client()).collect();
            for client in &mut clients {
                client.send_request("POST", "/_api/collection", &[], content.as_bytes());
            }
            for client in &mut clients {
                client.try_read("POST").expect("an answer").expect_error(400, 600);
            }
        }
        let most = highest(&deferd);
        assert!(most <= before + 16 * 1024, "from {before} KiB to {most} KiB");
    });
}

#[test]
fn keys_take_a_quarter_and_go_with_all() {
    let deferd = Deferd::start(&["--max-stored", "512K"]);
    unharmed(&deferd, || {
        let mut client = deferd.client();
        for round in ["first", "second"] {
            let key = |n: usize| vec![("idempotency-key", format!("{round}-{n:0>240}"))];
            let mut submit = |n: usize| {
                let (ids, reply) = submit_until_full(&mut client, "/_admin/time", n, key);
                ids.iter().for_each(|id| drop(client.result(id)));
                (ids.len(), reply)
            };
            let (count, reply) = submit(4096);
            let text = reply.expect_error(503, 21003).text();
            assert!(text.contains("a quarter of --max-stored"), "{text}");
            assert!((20..512).contains(&count), "{count} keys");
            let used = detail(&mut client, "stored-used");
            assert!((64 << 10..=128 << 10).contains(&used), "{used} bytes of keys");
            // Jobs without a key are accepted, and so are known submissions.
            client.store("GET", "/_admin/time", b"");
            let known = key(0);
            let fields = [("x-arango-async", "store"), (known[0].0, known[0].1.as_str())];
            client.request("GET", "/_admin/time", &fields, b"").expect(202);
            client.delete("/_api/job/all").expect(200);
            eventually("their room is free", || detail(&mut client, "stored-used") == 0);
        }
    });
}

/// Heads and pipelined requests are not content, but they are memory as well.
#[test]
fn large_heads_ahead_stay_within_the_budget() {
    let deferd = Deferd::start(&MEMORY);
    let fields: String = (0..97).map(|n| format!("x-{n}: {}\r\n", "v".repeat(150))).collect();
    let head = format!("GET /_admin/echo HTTP/1.1\r\nhost: a\r\n{fields}\r\n").repeat(8);
    unharmed_within_memory(&deferd, || {
        let clients: Vec<_> = (0..400).map(|_| deferd.client()).collect();
        for client in &clients {
            client.socket().set_nonblocking(true).unwrap();
            let _ = client.socket().write(head.as_bytes());
        }
        assert!(connections(&deferd) > 0);
        let version = |client: &mut Client| client.get("/_api/version").status == 200;
        eventually("others are served", || version(&mut deferd.client()));
    });
}
