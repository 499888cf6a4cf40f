//! The example scripts that are shipped do what they promise.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::{Deferd, eventually};
use serde_json::{Value, json};

/// Starts a deferd with the examples, called as their own comments say.
fn start() -> Deferd {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts");
    let cgi = format!("/cgi-bin/=cgi:{}", scripts.join("cgi-bin").display());
    let run = format!("/run/=run:{}", scripts.join("bin").display());
    Deferd::start(&["--route", &cgi, "--route", &run])
}

#[test]
fn slow_wc_counts() {
    let deferd = start();
    let mut client = deferd.client();
    let id = client.store("POST", "/run/slow-wc?delay=0", b"one two\nthree\n");
    client.wait_done(&id);
    let log = client.get(&format!("/_api/job/{id}/log")).expect(200).text();
    assert_eq!(log, "counting lines ...\ncounting words ...\ncounting bytes ...\n");
    assert_eq!(client.result(&id).expect(200).text(), "2 lines\n3 words\n14 bytes\n");
    let reply = client.request("POST", "/run/slow-wc?delay=soon", &[], b"x").expect(500);
    assert_eq!(reply.header("x-exit-code"), Some("2"));
}

#[test]
fn slow_wc_tells_its_progress_and_can_be_cancelled() {
    let deferd = start();
    let mut client = deferd.client();
    let id = client.store("POST", "/run/slow-wc?delay=600", b"one two\nthree\n");
    eventually("it tells its progress", || {
        let reply = client.get(&format!("/_api/job/{id}")).expect(204);
        reply.header("x-progress") == Some("counting lines ...")
    });
    client.put(&format!("/_api/job/{id}/cancel")).expect(200);
    client.result(&id).expect(410);
    assert!(deferd.children().is_empty());
}

#[test]
fn system_describes_this_host_as_json() {
    let deferd = start();
    let mut client = deferd.client();
    let id = client.store("GET", "/cgi-bin/system", b"");
    for reply in [client.get("/cgi-bin/system"), client.result(&id)] {
        let json = reply.expect(200).json();
        assert!(json["host"].is_string() && json["kernel"].is_string(), "{json}");
        assert!(json["uptime"].is_f64(), "{json}");
        let load = json["load"].as_array().unwrap();
        assert!(load.len() == 3 && load.iter().all(Value::is_number), "{json}");
        let memory = &json["memory"];
        assert!(memory["totalKiB"].as_u64() >= memory["availableKiB"].as_u64(), "{json}");
        assert!(memory["availableKiB"].as_u64() > Some(0), "{json}");
    }
}

/// Returns the checksum of POSIX, computed by the program itself.
fn cksum(content: &[u8]) -> u64 {
    let mut command = Command::new("cksum");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(content).unwrap();
    let output = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    output.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn upload_receives_a_megabyte_and_tells_how_far_it_is() {
    let deferd = start();
    let mut client = deferd.client();
    let content: Vec<u8> = (0..=255).rev().cycle().take(1_000_000).collect();
    let id = client.store("PUT", "/cgi-bin/upload", &content);
    client.wait_done(&id);
    let log = client.get(&format!("/_api/job/{id}/log")).expect(200).text();
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines[0], "received 65536 of 1000000 bytes (6 %)", "{log}");
    let end = ["received 1000000 of 1000000 bytes (100 %)", "making the checksum"];
    assert!(lines.ends_with(&end), "{log}");
    let reply = client.result(&id).expect(200);
    assert_eq!(reply.header("content-type"), Some("application/json"));
    let answer: Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!(answer, json!({"bytes": 1_000_000, "cksum": cksum(&content)}));
}

#[test]
fn upload_wants_a_file() {
    let deferd = start();
    let mut client = deferd.client();
    let reply = client.get("/cgi-bin/upload").expect(405);
    assert_eq!(reply.header("allow"), Some("POST, PUT"));
    let reply = client.request("POST", "/cgi-bin/upload", &[], b"").expect(200);
    assert_eq!(reply.text(), format!("{{\"bytes\":0,\"cksum\":{}}}\n", cksum(b"")));
}
