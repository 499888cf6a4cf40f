//! What hostile clients do to deferd's memory: each attempt by its name. `limits` makes and measures them.
//!
//! An attempt leaves its connections open, so that what they hold is still there when deferd is measured.

use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use super::client::{Client, request};
use super::crowd::{Bytes, Crowd, pieces};
use super::limits::Target;

/// As many connections as deferd serves at once.
const CROWD: usize = 512;

/// The largest content that `--max-memory 32M` allows a request, in bytes.
const BODY: usize = 8 << 20;

/// How long a store is filled at most.
const FILLING: Duration = Duration::from_secs(2);

/// One attempt.
pub struct Attempt {
    pub name: &'static str,
    /// Whether deferd asks for credentials, which the clients do not have.
    pub needs_users: bool,
    pub make: fn(&mut Target) -> Vec<Crowd>,
}

const fn attempt(name: &'static str, make: fn(&mut Target) -> Vec<Crowd>) -> Attempt {
    Attempt { name, needs_users: false, make }
}

/// All attempts.
pub static ALL: &[Attempt] = &[
    attempt("512 connections that are idle", |t| vec![crowd(t, |_| Bytes::new())]),
    attempt("512 unfinished bodies of 8 MiB to echo", |t| bodies(t, "/_admin/echo", "")),
    attempt("the same in chunks", |t| vec![crowd(t, |_| chunks("/_admin/echo"))]),
    attempt("the same to a script", |t| bodies(t, "/run/large", "")),
    attempt("the same to a script, deferred", |t| bodies(t, "/run/large", STORE)),
    attempt("the same to an upstream", |t| bodies(t, "/up/endless", "")),
    Attempt {
        name: "the same to the open endpoint, without credentials",
        needs_users: true,
        make: |t| bodies(t, "/_admin/server/availability", ""),
    },
    Attempt {
        name: "the same to echo, without credentials",
        needs_users: true,
        make: |t| bodies(t, "/_admin/echo", ""),
    },
    attempt("512 unfinished bodies of 4 KiB", |t| unfinished(t, 4 << 10)),
    attempt("512 unfinished bodies of 64 KiB", |t| unfinished(t, 64 << 10)),
    attempt("512 heads of 16 KiB that do not end", |t| vec![crowd(t, |_| endless_head())]),
    attempt("512 requests with 98 fields, asleep", |t| {
        many_fields(t, "GET /_admin/sleep?duration=20")
    }),
    attempt("512 requests with 98 fields that wait for a job", |t| {
        let id = Client::new(t.server.address).submit(&deferred("/_admin/sleep?duration=20"));
        many_fields(t, &format!("GET /_api/job/{id}?prefer"))
    }),
    attempt("512 requests with 98 fields to scripts that wait", |t| {
        many_fields(t, "GET /run/wait")
    }),
    attempt("512 pipelines of requests with 98 fields to echo", |t| {
        vec![crowd(t, |_| {
            vec![head("GET /_admin/echo", &fields(98, 150)).into_bytes().into(); 200]
        })]
    }),
    attempt("512 unread outputs of 8 MB", |t| unread(t, CROWD, |_| "/run/large".into())),
    attempt("512 unread answers of an endless script", |t| {
        unread(t, CROWD, |_| "/run/endless".into())
    }),
    attempt("512 readers of one stored result of 8 MB", |t| {
        let id = stored(t, "/run/sized?8000000");
        unread(t, CROWD, |_| format!("/_api/job/{id}/result"))
    }),
    attempt("512 readers of 100 stored results of 200 KB", |t| {
        let ids: Vec<_> = (0..100).map(|_| stored(t, "/run/sized?200000")).collect();
        unread(t, CROWD, |n| format!("/_api/job/{}/result", ids[n % ids.len()]))
    }),
    attempt("512 readers of 400 stored results of 40 KB", |t| {
        let ids: Vec<_> = (0..400).map(|_| stored(t, "/run/sized?40000")).collect();
        unread(t, CROWD, |n| format!("/_api/job/{}/result", ids[n % ids.len()]))
    }),
    attempt("512 unread CGI answers with heads of 64 KB", |t| {
        unread(t, CROWD, |_| "/cgi/head".into())
    }),
    attempt("512 readers of one stored CGI answer with such a head", |t| {
        let id = stored(t, "/cgi/head");
        unread(t, CROWD, |_| format!("/_api/job/{id}/result"))
    }),
    attempt("512 unread echoes of 64 KiB of control characters", |t| {
        vec![crowd(t, |_| pieces([&post("/_admin/echo", "", 64 << 10), &[1; 64 << 10]]))]
    }),
    attempt("512 unread lists of 10 000 ids", |t| {
        fill(t, &deferred("/_admin/time"), 10_000);
        unread(t, CROWD, |_| "/_api/job/done?count=10000".into())
    }),
    attempt("512 unread descriptions", |t| unread(t, CROWD, |_| "/_api/openapi.json".into())),
    attempt("512 unread logs of 8 KiB", |t| {
        let id = stored(t, "/run/log");
        unread(t, CROWD, |_| format!("/_api/job/{id}/log"))
    }),
    attempt("small results to the limit, deleted, then bodies of 8 MiB", |t| {
        fill(t, &deferred("/_admin/time"), 200_000);
        delete_all(t);
        bodies(t, "/_admin/echo", "")
    }),
    attempt("results of 1 KB to the limit, deleted, then bodies of 8 MiB", |t| {
        fill(t, &deferred_post("/_admin/echo", 500), 200_000);
        delete_all(t);
        bodies(t, "/_admin/echo", "")
    }),
    attempt("results of 30 KB to the limit, deleted, then bodies of 64 KiB and 8 MiB", |t| {
        fill(t, &deferred_post("/_admin/echo", 30_000), 2_000);
        delete_all(t);
        let mut small = unfinished(t, 64 << 10);
        small.clear();
        bodies(t, "/_admin/echo", "")
    }),
    attempt("60 results of 8 MB", |t| {
        fill(t, &deferred("/run/large"), 60);
        Vec::new()
    }),
    attempt("60 deferred reads of a stored result of 8 MB", |t| {
        let id = stored(t, "/run/sized?8000000");
        fill(t, &deferred(&format!("/_api/job/{id}/result")), 60);
        Vec::new()
    }),
    attempt("6 stored results of 8 MB, each read on a connection of its own", |t| {
        let ids: Vec<_> = (0..6).map(|_| stored(t, "/run/sized?8000000")).collect();
        ids.iter().flat_map(|id| unread(t, 1, |_| format!("/_api/job/{id}/result"))).collect()
    }),
    attempt("100 000 results without content", |t| {
        let id = Client::new(t.server.address).submit(&deferred("/_admin/sleep?duration=60"));
        fill(t, &deferred(&format!("/_api/job/{id}")), 100_000);
        Vec::new()
    }),
    attempt("idempotency keys of 255 bytes to the limit", |t| {
        keys(t);
        Vec::new()
    }),
    attempt("bodies of 64 KiB, fired and forgotten", |t| {
        held(t);
        let job = deferred_post("/_admin/echo", 64 << 10);
        fill(t, &replaced(&job, STORE, "x-arango-async: true\r\n"), 4000);
        Vec::new()
    }),
    attempt("waiting jobs with 98 fields, to the limit", |t| {
        held(t);
        fill(t, head("GET /_admin/echo", &(fields(97, 150) + STORE)).as_bytes(), 4000);
        Vec::new()
    }),
    attempt("waiting jobs with targets of 15 KB, to the limit", |t| {
        held(t);
        fill(t, &deferred(&format!("/_admin/echo?{}", "x".repeat(15_000))), 4000);
        Vec::new()
    }),
    attempt("512 times 64 KiB of nested JSON", |t| {
        vec![crowd(t, |_| json(&br#"{"a":["#.repeat(10)))]
    }),
    attempt("512 times 64 KiB of members", |t| vec![crowd(t, |_| json(br#"{"a":1,"b":[2,{}],"#))]),
    attempt("512 answers of an endless upstream", |t| unread(t, CROWD, |_| "/up/endless".into())),
    attempt("512 answers of an upstream with heads of 60 KB", |t| {
        unread(t, CROWD, |_| "/up/head".into())
    }),
    attempt("512 endless interim answers of an upstream", |t| {
        unread(t, CROWD, |_| "/up/interim".into())
    }),
    attempt("60 scripts that write to stderr without end", |t| {
        unread(t, 60, |_| "/run/stderr".into())
    }),
    attempt("jobs that write lines to stderr without end", |t| {
        fill(t, &deferred("/run/lines"), 60);
        Vec::new()
    }),
    attempt("a restart with a store that is full of large results", |t| {
        fill(t, &deferred("/run/sized?1000000"), 60);
        restart(t);
        bodies(t, "/_admin/echo", "")
    }),
    attempt("a restart with a store of 40 000 results", |t| {
        fill(t, &deferred("/_admin/time"), 40_000);
        restart(t);
        bodies(t, "/_admin/echo", "")
    }),
    attempt("small results to the limit, heads that do not end, bodies", |t| {
        fill(t, &deferred("/_admin/time"), 200_000);
        let heads = Crowd::connect(t.server.address, 400, |_| endless_head());
        let bodies = Crowd::connect(t.server.address, 112, |_| body("/_admin/echo", ""));
        pressed([heads, bodies])
    }),
    attempt("256 sleeping requests with 98 fields, 128 bodies, 128 unread outputs", |t| {
        let address = t.server.address;
        let fields = head("GET /_admin/sleep?duration=20", &fields(98, 150));
        let asleep = Crowd::connect(address, 256, |_| pieces([fields.as_bytes()]));
        let bodies = Crowd::connect(address, 128, |_| body("/run/large", STORE));
        let output = request("GET", "/run/large");
        pressed([asleep, bodies, Crowd::connect(address, 128, |_| pieces([&output]))])
    }),
];

const STORE: &str = "x-arango-async: store\r\n";

fn head(line: &str, fields: &str) -> String {
    format!("{line} HTTP/1.1\r\nhost: localhost\r\n{fields}\r\n")
}

fn post(path: &str, fields: &str, length: usize) -> Vec<u8> {
    head(&format!("POST {path}"), &format!("{fields}content-length: {length}\r\n")).into_bytes()
}

fn deferred(path: &str) -> Vec<u8> {
    head(&format!("GET {path}"), STORE).into_bytes()
}

fn deferred_post(path: &str, length: usize) -> Vec<u8> {
    [post(path, STORE, length), vec![b'x'; length]].concat()
}

fn replaced(bytes: &[u8], old: &str, new: &str) -> Vec<u8> {
    String::from_utf8(bytes.to_vec()).unwrap().replace(old, new).into_bytes()
}

/// Returns `count` fields with values of `size` bytes.
fn fields(count: usize, size: usize) -> String {
    (0..count).map(|n| format!("x-{n}: {}\r\n", "v".repeat(size))).collect()
}

fn crowd(target: &Target, pieces: impl FnMut(usize) -> Bytes) -> Crowd {
    let mut crowd = Crowd::connect(target.server.address, CROWD, pieces);
    crowd.press();
    crowd
}

fn pressed<const N: usize>(mut crowds: [Crowd; N]) -> Vec<Crowd> {
    crowds.iter_mut().for_each(Crowd::press);
    crowds.into()
}

/// Returns zeros that all clients share.
fn zeros() -> Arc<[u8]> {
    static ZEROS: OnceLock<Arc<[u8]>> = OnceLock::new();
    Arc::clone(ZEROS.get_or_init(|| vec![0; BODY - 1].into()))
}

/// Returns a request without the last byte of its content.
fn body(path: &str, fields: &str) -> Bytes {
    vec![post(path, fields, BODY).into(), zeros()]
}

fn bodies(target: &Target, path: &str, fields: &str) -> Vec<Crowd> {
    vec![crowd(target, |_| body(path, fields))]
}

fn unfinished(target: &Target, size: usize) -> Vec<Crowd> {
    let content = vec![0; size - 1];
    vec![crowd(target, |_| pieces([&post("/_admin/echo", "", size), &content]))]
}

fn chunks(path: &str) -> Bytes {
    static CHUNK: OnceLock<Arc<[u8]>> = OnceLock::new();
    let chunk =
        CHUNK.get_or_init(|| [b"8000\r\n".as_slice(), &[0; 0x8000], b"\r\n"].concat().into());
    let mut all =
        pieces([head(&format!("POST {path}"), "transfer-encoding: chunked\r\n").as_bytes()]);
    all.extend(vec![Arc::clone(chunk); BODY / 0x8000]);
    all
}

fn endless_head() -> Bytes {
    let all = head("GET /_admin/echo", &fields(98, 155));
    pieces([&all.as_bytes()[..all.len() - 2]])
}

/// Returns requests with the largest number of fields; `?prefer` marks a request that waits.
fn many_fields(target: &Target, line: &str) -> Vec<Crowd> {
    let (line, waits) =
        line.strip_suffix("?prefer").map_or((line, ""), |line| (line, "prefer: wait=20\r\n"));
    let all = head(line, &(fields(97, 150) + waits));
    vec![crowd(target, |_| pieces([all.as_bytes()]))]
}

fn unread(target: &Target, count: usize, path: impl Fn(usize) -> String) -> Vec<Crowd> {
    let mut crowd =
        Crowd::connect(target.server.address, count, |n| pieces([&request("GET", &path(n))]));
    crowd.press();
    // Waits until the answers are there: scripts take their time.
    settle(target);
    vec![crowd]
}

/// Returns 64 KiB of the JSON for a new collection, in which `part` is repeated.
fn json(part: &[u8]) -> Bytes {
    let content = [br#"{"name":"#.as_slice(), &part.repeat((64 << 10) / part.len() - 1)].concat();
    pieces([&post("/_api/collection", "", content.len()), &content])
}

/// Waits until the resident memory no longer grows, for at most one second.
fn settle(target: &Target) {
    let (begin, mut last, mut since) = (Instant::now(), 0.0, Instant::now());
    while begin.elapsed() < Duration::from_secs(1) && since.elapsed() < Duration::from_millis(300) {
        let now = target.server.resident();
        if now > last {
            (last, since) = (now, Instant::now());
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Runs a job to its end; returns its id.
fn stored(target: &Target, path: &str) -> String {
    let mut client = Client::new(target.server.address);
    let id = client.submit(&deferred(path));
    client.wait_done(&id, Duration::from_millis(2));
    id
}

/// Submits a job repeatedly, until there is no room for more.
fn fill(target: &Target, job: &[u8], most: usize) {
    const BATCH: usize = 32;
    let mut client = Client::new(target.server.address);
    let begin = Instant::now();
    let (mut accepted, mut refused) = (0, 0);
    while accepted < most && refused < 3 && begin.elapsed() < FILLING {
        // A refusal of content closes the connection, and what follows is not read.
        let batch = if job.ends_with(b"\r\n") { BATCH } else { 1 };
        client.send(&job.repeat(batch));
        let before = accepted;
        for _ in 0..batch {
            let reply = client.receive();
            accepted += usize::from(reply.status == 202);
            if reply.closes {
                client = Client::new(target.server.address);
                break;
            }
        }
        if accepted == before {
            // There may be room after waiting jobs have run.
            refused += 1;
            settle(target);
        }
    }
    settle(target);
}

/// Occupies all workers.
fn held(target: &Target) {
    let mut client = Client::new(target.server.address);
    for _ in 0..8 {
        client.submit(&deferred("/_admin/sleep?duration=60"));
    }
}

fn keys(target: &Target) {
    let mut client = Client::new(target.server.address);
    let begin = Instant::now();
    for n in 0_u64.. {
        let field = format!("{STORE}idempotency-key: {n:0>255}\r\n");
        let status = client.exchange(head("GET /_admin/time", &field).as_bytes()).status;
        if status != 202 || begin.elapsed() > FILLING {
            break;
        }
    }
}

fn delete_all(target: &Target) {
    let mut client = Client::new(target.server.address);
    assert_eq!(client.exchange(&request("DELETE", "/_api/job/all")).status, 200);
}

/// Starts deferd again over what is stored on disk.
fn restart(target: &mut Target) {
    if target.is_on_disk {
        target.restart();
    }
}
