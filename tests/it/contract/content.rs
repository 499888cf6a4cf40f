//! Content larger than memory, on every path that it takes with `--data`; nothing of it is left.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use hmac_sha256::HMAC;

use crate::support::{Client, Deferd, TempDir, eventually, fixtures};

/// More than the memory for content allows here.
const SIZE: usize = 6 << 20;

const LIMITS: [&str; 6] = ["--max-memory", "4M", "--max-body", "8M", "--max-output", "8M"];

/// A deferd with little memory, over a directory of its own.
struct Small {
    dir: TempDir,
    deferd: Deferd,
}

impl Small {
    fn start(routes: &[&str]) -> Self {
        let dir = TempDir::new();
        let data = dir.join("data").display().to_string();
        let routes = routes.iter().flat_map(|route| ["--route", route]);
        let all: Vec<&str> = LIMITS.into_iter().chain(["--data", &data]).chain(routes).collect();
        let deferd = Deferd::with_scripts("", &all);
        Self { dir, deferd }
    }

    fn files(&self) -> usize {
        fs::read_dir(self.dir.join("data/content")).unwrap().count()
    }

    #[track_caller]
    fn assert_nothing_is_left(&self) {
        eventually("no file is left", || self.files() == 0);
        assert!(!self.deferd.log().contains("panicked"), "{}", self.deferd.log());
    }
}

fn content(seed: u8) -> Vec<u8> {
    (0..SIZE).map(|n| (n / 251) as u8 ^ seed).collect()
}

#[test]
fn content_larger_than_memory_passes_on_every_way() {
    let scripts = Deferd::with_scripts("", &["--max-body", "8M", "--max-output", "8M"]);
    let upstream = format!("/up/=http://{}/run/", scripts.address);
    let small = Small::start(&[&upstream]);
    let mut client = small.deferd.client();
    let bytes = content(0);
    for target in ["/run/s-cat", "/up/s-cat"] {
        let id = client.store("POST", target, &bytes);
        client.wait_done(&id);
        assert_eq!(small.files(), 1, "{target}: the result");
        let peeked = client.get(&format!("/_api/job/{id}/result")).expect(200);
        assert!(peeked.body == bytes, "{target}");
        assert!(client.result(&id).expect(200).body == bytes, "{target}");
        small.assert_nothing_is_left();
        let reply = client.request("POST", target, &[], &bytes).expect(200);
        assert!(reply.body == bytes, "{target}, synchronous");
        small.assert_nothing_is_left();
    }
    let head = b"Content-Type: text/plain\n\n";
    let id = client.store("POST", "/cgi/s-cat", &[head, &bytes[..]].concat());
    assert!(client.result(&id).expect(200).body == bytes, "without its header block");
    small.assert_nothing_is_left();
}

#[test]
fn a_key_and_a_signature_are_of_the_whole_content() {
    let dir = TempDir::new();
    let secret = dir.join("secret");
    fs::write(&secret, "a secret\n").unwrap();
    fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).unwrap();
    let (scripts, secret) = (fixtures().display().to_string(), secret.display());
    let small = Small::start(&[&format!("/hook/=run:{scripts},secret={secret},signature=gitea")]);
    let mut client = small.deferd.client();
    let (bytes, mut other) = (content(1), content(1));
    other[SIZE - 1] ^= 1;
    let code: String =
        HMAC::mac(&bytes, "a secret").iter().map(|byte| format!("{byte:02x}")).collect();
    let mut send = |target: &str, fields: &[(&str, &str)], bytes: &[u8]| {
        let fields = [&[("x-arango-async", "store")], fields].concat();
        client.request("POST", target, &fields, bytes)
    };
    let signature = [("x-gitea-signature", &*code)];
    let id = send("/hook/s-cat", &signature, &bytes).expect(202).id().unwrap().to_owned();
    send("/hook/s-cat", &signature, &other).expect_error(401, 11);
    let key = [("idempotency-key", "k")];
    let first = send("/run/s-cat", &key, &bytes).expect(202).id().unwrap().to_owned();
    assert_eq!(send("/run/s-cat", &key, &bytes).expect(202).id(), Some(&*first));
    send("/run/s-cat", &key, &other).expect_error(422, 422);
    for id in [id, first] {
        assert!(client.result(&id).expect(200).body == bytes);
    }
    small.assert_nothing_is_left();
}

#[test]
fn refused_cut_and_failed_requests_leave_no_file() {
    let small = Small::start(&[]);
    let bytes = content(2);
    let head = |target: &str, fields: &str| {
        format!("POST {target} HTTP/1.1\r\nhost: x\r\nx-arango-async: store\r\n{fields}\r\n\r\n")
    };
    // The client leaves midway.
    let mut leaves = small.deferd.client();
    leaves.send(head("/run/s-cat", &format!("content-length: {SIZE}")).as_bytes());
    leaves.send(&bytes[..SIZE / 2]);
    eventually("some of it is in a file", || small.files() == 1);
    drop(leaves);
    small.assert_nothing_is_left();
    // The script reads none of it, or writes too much, or is forgotten, or its result is dropped.
    let mut client: Client = small.deferd.client();
    let unread = client.store("POST", "/run/s-exit?3", &bytes);
    client.result(&unread).expect(500);
    let over = client.store("GET", "/run/c-zeros?9000000", b"");
    let told = client.result(&over).expect_job_error(502, 502).text();
    assert!(told.contains("max-output 8M"), "{told}");
    client.request("POST", "/run/s-cat", &[("x-arango-async", "true")], &bytes).expect(202);
    let forgotten = client.store("POST", "/run/s-cat", &bytes);
    client.delete(&format!("/_api/job/{forgotten}")).expect(200);
    eventually("all have run", || client.list("pending").is_empty());
    client.store("POST", "/run/s-cat", &bytes);
    client.delete("/_api/job/all").expect(200);
    small.assert_nothing_is_left();
}
