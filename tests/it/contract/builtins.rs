//! The built-in endpoints: version, time, sleep, echo, availability, collection; each gives a waiting client and a
//! deferred request the same answer.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::support::{Client, Deferd, Reply, TempDir, eventually};

/// Sends a request twice, the second time deferred, with a method that the endpoint lacks: nothing is deferred.
#[track_caller]
fn expect_no_method(client: &mut Client, method: &str, target: &str) {
    for fields in [&[][..], &[("x-arango-async", "store")]] {
        client.request(method, target, fields, b"").expect_error(405, 405);
    }
}

/// Sends a request twice, the second time deferred, and asserts that the answers are equal except for fields that
/// vary.
#[track_caller]
fn both(client: &mut Client, method: &str, target: &str, body: &[u8]) -> Reply {
    let now = client.request(method, target, &[], body).without_id();
    let id = client.store(method, target, body);
    let later = client.result(&id);
    assert_eq!((later.status, &later.body), (now.status, &now.body), "{method} {target}");
    for name in ["content-type", "allow"] {
        assert_eq!(later.header(name), now.header(name), "{method} {target}");
    }
    now
}

#[test]
fn version_answers_any_method() {
    let deferd = Deferd::start(&[]);
    let mut client = deferd.client();
    for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "BREW"] {
        for query in ["", "/", "?details=false", "?details=0", "?details", "?x=details=true"] {
            let target = format!("/_api/version{query}");
            let reply = both(&mut client, method, &target, b"").expect(200);
            assert_eq!(reply.text(), r#"{"server":"arango","version":"1.4.3"}"#);
            assert_eq!(reply.header("content-type"), Some("application/json; charset=utf-8"));
        }
    }
    let head = client.request("HEAD", "/_api/version", &[], b"").expect(200);
    assert_eq!(head.header("content-length"), Some("37"));
}

#[test]
fn the_details_of_the_version_name_the_server() {
    let deferd = Deferd::start(&[]);
    let mut client = deferd.client();
    for on in ["true", "1", "yes"] {
        let target = format!("/_api/version?details={on}");
        let json = both(&mut client, "GET", &target, b"").expect(200).json();
        assert_eq!((&json["server"], &json["version"]), (&"arango".into(), &"1.4.3".into()));
        let details = json["details"].as_object().unwrap();
        assert!(details.values().all(serde_json::Value::is_string), "{details:?}");
        let values: Vec<_> = details.values().map(|value| value.as_str().unwrap()).collect();
        for value in [env!("CARGO_PKG_VERSION"), "memory", "debug"] {
            let value = if value == "debug" && !cfg!(debug_assertions) { "release" } else { value };
            assert!(values.contains(&value), "{value} in {details:?}");
        }
    }
}

#[test]
fn time_is_the_clock() {
    let deferd = Deferd::start(&[]);
    let mut client = deferd.client();
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let before = clock();
    let waited = client.get("/_admin/time").expect(200).without_id();
    let id = client.store("GET", "/_admin/time/", b"");
    let deferred = client.result(&id).expect(200);
    // A double can represent microseconds; its last digit may differ.
    for reply in [&waited, &deferred] {
        let json = reply.json();
        assert_eq!((&json["error"], &json["code"]), (&false.into(), &200.into()));
        assert_eq!(json.as_object().unwrap().len(), 3);
        let time = json["time"].as_f64().unwrap();
        assert!(before - 1e-5 <= time && time <= clock() + 1e-5, "{before} {time}");
    }
    assert!(waited.json()["time"].as_f64() <= deferred.json()["time"].as_f64());
    expect_no_method(&mut client, "POST", "/_admin/time");
}

#[test]
fn sleep_lasts_and_says_how_long() {
    let deferd = Deferd::start(&[]);
    let mut client = deferd.client();
    for (duration, shown) in [("0", 0.0), ("0.0", 0.0), ("0.05", 0.05), ("1e-2", 0.01)] {
        let target = format!("/_admin/sleep?duration={duration}");
        let begin = Instant::now();
        let json = client.get(&target).expect(200).without_id().json();
        assert!(begin.elapsed() >= Duration::from_secs_f64(shown));
        assert_eq!((&json["error"], &json["code"]), (&false.into(), &200.into()));
        assert_eq!((json["duration"].as_f64(), json.as_object().unwrap().len()), (Some(shown), 3));
        let begin = Instant::now();
        let id = client.store("GET", &target, b"");
        assert_eq!(client.result(&id).expect(200).json(), json);
        assert!(begin.elapsed() >= Duration::from_secs_f64(shown));
    }
    let reply = client.get("/_admin/sleep?duration=0.05").expect(200);
    assert_eq!(reply.text(), r#"{"error":false,"code":200,"duration":0.05}"#);
}

#[test]
fn a_sleep_with_an_invalid_duration_is_400() {
    let deferd = Deferd::start(&[]);
    let mut client = deferd.client();
    for query in [
        "",
        "?",
        "?duration",
        "?duration=",
        "?duration=x",
        "?duration=-1",
        "?duration=-0.001",
        "?duration=3600.001",
        "?duration=3601",
        "?duration=1e9",
        "?duration=NaN",
        "?duration=inf",
        "?duration=1s",
        "?duration=%201",
        "?seconds=1",
    ] {
        let target = format!("/_admin/sleep{query}");
        both(&mut client, "GET", &target, b"").expect_error(400, 400);
    }
    expect_no_method(&mut client, "PUT", "/_admin/sleep?duration=0");
}

#[test]
fn a_sleep_past_the_time_limit_is_504() {
    let deferd = Deferd::start(&["--timeout", "50ms"]);
    let mut client = deferd.client();
    let begin = Instant::now();
    let late = both(&mut client, "GET", "/_admin/sleep?duration=3600", b"");
    let told = late.expect_error(504, 504).text();
    assert!(told.contains("longer than --timeout 50ms"), "{told}");
    assert!(begin.elapsed() >= Duration::from_millis(100));
    both(&mut client, "GET", "/_admin/sleep?duration=0", b"").expect(200);
}

/// Starts a deferd with two workers, once in memory and once over a store on disk.
fn with_two_workers() -> [(Deferd, TempDir); 2] {
    ["", "--data"].map(|option| {
        let data = TempDir::new();
        let store = data.join("store").display().to_string();
        let mut arguments = vec!["--workers", "2"];
        if !option.is_empty() {
            arguments.extend([option, store.as_str()]);
        }
        (Deferd::start(&arguments), data)
    })
}

#[test]
fn deferred_sleeps_hold_no_worker() {
    for (deferd, _data) in with_two_workers() {
        let mut client = deferd.client();
        for _ in 0..4 {
            let fields = [("x-arango-async", "true")];
            client.request("GET", "/_admin/sleep?duration=3600", &fields, b"").expect(202);
        }
        let kept = [(); 4].map(|()| client.store("GET", "/_admin/sleep?duration=3600", b""));
        let other = client.store("GET", "/_api/version", b"");
        client.result(&other).expect(200);
        for id in &kept {
            client.get(&format!("/_api/job/{id}")).expect(204);
            client.put(&format!("/_api/job/{id}/cancel")).expect(200);
            client.result(id).expect_job_error(410, 21);
        }
    }
}

#[test]
fn deferred_sleeps_are_answered_when_they_end() {
    for (deferd, _data) in with_two_workers() {
        let mut client = deferd.client();
        let begin = Instant::now();
        let spans = ["0.6", "0.3", "0"];
        let ids = spans.map(|s| client.store("GET", &format!("/_admin/sleep?duration={s}"), b""));
        let ended = client.result(&ids[2]).expect(200);
        assert_eq!(ended.text(), r#"{"error":false,"code":200,"duration":0}"#);
        for (n, span) in [(1, 0.3), (0, 0.6)] {
            let reply = client.result(&ids[n]).expect(200);
            assert!(begin.elapsed() >= Duration::from_secs_f64(span), "{:?}", begin.elapsed());
            assert_eq!(reply.json()["duration"], span);
        }
    }
}

/// Everything is bounded: beyond the workers' share, a sleep takes a place in the queue.
#[test]
fn sleeps_fill_the_queue() {
    let deferd = Deferd::start(&["--workers", "1", "--queue", "2"]);
    let mut client = deferd.client();
    let fields = [("x-arango-async", "store")];
    let mut accepted = Vec::new();
    eventually("the queue is full", || {
        let reply = client.request("GET", "/_admin/sleep?duration=3600", &fields, b"");
        accepted.extend(reply.id().map(str::to_owned));
        accepted.len() == 3
    });
    // While the previous sleep is still running, it has no place yet.
    let mut refused = None;
    eventually("all three sleep", || {
        let reply = client.request("GET", "/_admin/time", &fields, b"");
        refused = (reply.status == 503).then_some(reply);
        refused.is_some()
    });
    refused.unwrap().expect_error(503, 21003);
    // The first has the share of the worker, the others have a place each.
    client.put(&format!("/_api/job/{}/cancel", accepted[2])).expect(200);
    client.result(&accepted[2]).expect(410);
    let id = client.store("GET", "/_admin/time", b"");
    client.result(&id).expect(200);
}

#[test]
fn echo_is_the_request_as_json() {
    let deferd = Deferd::start(&[]);
    let mut client = deferd.client();
    for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "BREW"] {
        let fields = [("x-one", "1"), ("x-two", "2"), ("X-One", "one"), ("x-arango-async", "no")];
        let target = "/_admin/echo?a=%20b&c";
        let now = client.request(method, target, &fields, b"some \"text\"").expect(200).json();
        let fields = [fields[0], fields[1], fields[2], ("x-arango-async", "store")];
        let reply = client.request(method, target, &fields, b"some \"text\"").expect(202);
        let later = client.result(reply.id().unwrap()).expect(200).json();
        for json in [&now, &later] {
            assert_eq!(json["method"], method);
            assert_eq!(json["path"], "/_admin/echo");
            assert_eq!(json["query"], "a=%20b&c");
            assert_eq!(json["body"], "some \"text\"");
            let headers = &json["headers"];
            assert_eq!((&headers["x-one"], &headers["x-two"]), (&"1, one".into(), &"2".into()));
            assert_eq!(headers["host"], "localhost");
        }
    }
}

#[test]
fn echo_takes_any_bytes_and_shows_64_kib() {
    let deferd = Deferd::start(&[]);
    let mut client = deferd.client();
    for body in [vec![], vec![0, 0xff, b'"', b'\\', 0x1b], vec![b'x'; 300_000]] {
        let now = client.request("POST", "/_admin/echo", &[], &body).expect(200).json();
        let id = client.store("POST", "/_admin/echo", &body);
        let later = client.result(&id).expect(200).json();
        for json in [now, later] {
            assert_eq!(json["bodySize"], body.len());
            let shown = &body[..body.len().min(64 << 10)];
            assert_eq!(json["body"], String::from_utf8_lossy(shown).as_ref());
        }
    }
}

#[test]
fn availability_is_200_while_deferd_serves() {
    let deferd = Deferd::start(&[]);
    let mut client = deferd.client();
    let json = both(&mut client, "GET", "/_admin/server/availability", b"").expect(200).json();
    assert_eq!((&json["error"], &json["code"]), (&false.into(), &200.into()));
    client.request("HEAD", "/_admin/server/availability", &[], b"").expect(200);
    expect_no_method(&mut client, "DELETE", "/_admin/server/availability");
}

#[test]
fn a_collection_of_an_illegal_name_is_400_1208() {
    let deferd = Deferd::start(&[]);
    let mut client = deferd.client();
    for body in [
        r#"{"name":" this name is invalid "}"#,
        r#"{"name":""}"#,
        r#"{"name":"1a"}"#,
        r#"{"name":"_system"}"#,
        r#"{"name":"a/b"}"#,
        r#"{"name":7}"#,
        "{}",
        "[]",
        "7",
        "",
    ] {
        let reply = both(&mut client, "POST", "/_api/collection", body.as_bytes());
        assert_eq!(
            reply.expect_error(400, 1208).text(),
            r#"{"error":true,"code":400,"errorNum":1208,"errorMessage":"cannot create collection: illegal name"}"#,
            "{body}"
        );
    }
}

#[test]
fn an_invalid_collection_is_400_a_legal_one_501() {
    let deferd = Deferd::start(&[]);
    let mut client = deferd.client();
    for body in ["nonsense", "{", r#"{"name":"a"} x"#, "\u{feff}{}", r#"{"name":'a'}"#] {
        both(&mut client, "POST", "/_api/collection", body.as_bytes()).expect_error(400, 600);
    }
    both(&mut client, "POST", "/_api/collection", b"{\"name\":\"\xff\"}").expect_error(400, 600);
    for body in [r#"{"name":"users"}"#, r#"{"name":"a-b_9"}"#] {
        both(&mut client, "POST", "/_api/collection/", body.as_bytes()).expect_error(501, 501);
    }
}

#[test]
fn the_list_of_collections_is_empty() {
    let deferd = Deferd::start(&[]);
    let reply = both(&mut deferd.client(), "GET", "/_api/collection", b"").expect(200);
    assert_eq!(reply.text(), r#"{"error":false,"code":200,"result":[]}"#);
    expect_no_method(&mut deferd.client(), "DELETE", "/_api/collection");
}

#[test]
fn options_is_answered_with_the_methods_of_the_endpoint() {
    let deferd = Deferd::start(&[]);
    let mut client = deferd.client();
    for (target, method) in [
        ("/_api/job", "PUT"),
        ("/_admin/time", "GET"),
        ("/_admin/sleep", "HEAD"),
        ("/_admin/server/availability", "GET"),
        ("/_api/collection", "POST"),
    ] {
        let reply = client.request("OPTIONS", target, &[], b"").expect(200).without_id();
        assert!(reply.header("allow").unwrap().split(", ").any(|m| m == method), "{target}");
    }
}
