//! Routes that specify what their clients cannot: that requests are deferred, under which key, and which methods are
//! allowed.

use crate::support::{Client, Deferd, Reply, TempDir, eventually, run_deferd};

/// Starts a deferd with the scripts of the tests behind `/hook/` and `/cgi/`, each with options.
fn start(hook: &str, cgi: &str) -> Deferd {
    let scripts = crate::support::fixtures().display().to_string();
    let hook = format!("/hook/=run:{scripts}{hook}");
    let cgi = format!("/cgi/=cgi:{scripts}{cgi}");
    Deferd::start(&["--route", &hook, "--route", &cgi])
}

fn lines(file: &std::path::Path) -> usize {
    std::fs::read_to_string(file).unwrap_or_default().lines().count()
}

#[track_caller]
fn post(client: &mut Client, target: &str, fields: &[(&str, &str)]) -> Reply {
    client.request("POST", target, fields, b"text\n")
}

#[test]
fn a_route_defers_every_request_that_says_nothing_itself() {
    let deferd = start(",defer=store", "");
    let mut client = deferd.client();
    for method in ["POST", "GET", "PUT", "DELETE", "BREW"] {
        let reply = client.request(method, "/hook/s-cat", &[], b"text").expect(202);
        let id = reply.id().expect("an id").to_owned();
        assert_eq!(reply.header("location"), Some(format!("/_api/job/{id}").as_str()));
        assert!(reply.body.is_empty());
        assert_eq!(client.result(&id).expect(200).text(), "text", "{method}");
    }
    // A refused HEAD has no content, and nothing runs.
    client.request("HEAD", "/hook/s-cat", &[], b"").expect(200).without_id();
    client.request("OPTIONS", "/hook/s-cat", &[], b"").expect(200).without_id();
    assert!(client.jobs().is_empty());
    // Requests that can never run are refused as usual, and other routes defer nothing.
    client.get("/hook/nothing").expect_error(404, 404);
    client.get("/_api/version").expect(200).without_id();
}

#[test]
fn the_request_s_own_word_wins_over_the_route_s() {
    let deferd = start(",defer=drop,accepted=200", "");
    let mut client = deferd.client();
    let by_route = post(&mut client, "/hook/s-cat", &[]).expect(200).without_id();
    assert!(by_route.body.is_empty(), "it is not the program's answer");
    for fields in [
        &[("x-arango-async", "no")][..],
        &[("x-arango-async", "")],
        &[("x-arango-async", "STORE")],
        &[("x-arango-async", "store"), ("x-arango-async", "store")],
    ] {
        let reply = post(&mut client, "/hook/s-cat", fields).expect(200).without_id();
        assert_eq!(reply.text(), "text\n", "{fields:?}");
    }
    // A client that knows the protocol gets the protocol's answer.
    let reply = post(&mut client, "/hook/s-cat", &[("x-arango-async", "store")]).expect(202);
    client.result(reply.id().unwrap()).expect(200);
    let reply = post(&mut client, "/hook/s-cat", &[("x-arango-async", "true")]).expect(202);
    reply.without_id();
    let reply = post(&mut client, "/hook/s-cat", &[("prefer", "respond-async")]).expect(202);
    assert_eq!(reply.header("preference-applied"), Some("respond-async"));
    client.result(reply.id().unwrap()).expect(200);
    let fields = [("prefer", "respond-async, wait=30")];
    assert_eq!(post(&mut client, "/hook/s-cat", &fields).expect(200).text(), "text\n");
}

#[test]
fn accepted_is_the_status_of_what_the_route_defers() {
    let deferd = start(",defer=store,accepted=200", ",defer=store,accepted=204");
    let mut client = deferd.client();
    let reply = post(&mut client, "/hook/s-cat", &[]).expect(200);
    let id = reply.id().expect("an id").to_owned();
    assert_eq!(reply.header("location"), Some(format!("/_api/job/{id}").as_str()));
    assert_eq!(client.result(&id).expect(200).text(), "text\n");
    let reply = post(&mut client, "/cgi/s-echo", &[]).expect(204);
    client.result(reply.id().unwrap()).expect(200);
}

#[test]
fn dropped_results_are_listed_nowhere_and_their_work_is_done() {
    let deferd = start(",defer=drop", "");
    let dir = TempDir::new();
    let file = dir.join("runs");
    let target = format!("/hook/c-append?{}", file.display());
    post(&mut deferd.client(), &target, &[]).expect(202).without_id();
    eventually("it ran", || lines(&file) == 1);
    assert!(deferd.client().jobs().is_empty());
}

#[test]
fn a_field_of_the_sender_s_own_is_the_key() {
    let deferd = start(",defer=store,idempotency=X-GitHub-Delivery", ",idempotency=x-id");
    let mut client = deferd.client();
    let dir = TempDir::new();
    let file = dir.join("runs");
    let target = format!("/hook/c-append?{}", file.display());
    let delivery = ("x-github-delivery", "72d3162e-cc78-11e3-81ab-4c9367dc0958");
    let first = post(&mut client, &target, &[delivery]).expect(202).id().unwrap().to_owned();
    for fields in [&[delivery][..], &[delivery, ("prefer", "respond-async")]] {
        let again = post(&mut client, &target, fields).expect(202);
        assert_eq!(again.id(), Some(first.as_str()));
    }
    client.result(&first).expect(200);
    assert_eq!(post(&mut client, &target, &[delivery]).expect(202).id(), Some(first.as_str()));
    client.request("POST", &target, &[delivery], b"other").expect_error(422, 422);
    assert_eq!(lines(&file), 1);
    // The client's own key takes precedence, and without any key each request is a job.
    let own = [delivery, ("idempotency-key", "own")];
    for fields in [&own[..], &[], &[("x-github-delivery", "")]] {
        let other = post(&mut client, &target, fields).expect(202).id().unwrap().to_owned();
        assert_ne!(other, first);
        client.result(&other).expect(200);
    }
    assert_eq!(lines(&file), 4);
    post(&mut client, &target, &[delivery, delivery]).expect_error(400, 400);
    let mut client = deferd.client();
    // It also counts for requests that the client defers itself, and for no others.
    let fields = [("x-arango-async", "store"), ("x-id", "a \"b\", c")];
    let first = post(&mut client, "/cgi/s-echo", &fields).expect(202);
    assert_eq!(post(&mut client, "/cgi/s-echo", &fields).expect(202).id(), first.id());
    post(&mut client, "/cgi/s-echo", &[("x-id", "a"), ("x-id", "b")]).expect(200);
}

#[test]
fn a_route_takes_the_methods_that_it_names() {
    let deferd = start(",defer=store,methods=POST", ",methods=GET+TRACE");
    let mut client = deferd.client();
    let refused = |client: &mut Client, method: &str, target: &str, fields: &[(&str, &str)]| {
        let reply = client.request(method, target, fields, b"").expect(405);
        reply.header("allow").expect("allow").to_owned()
    };
    for method in ["GET", "HEAD", "PUT", "TRACE", "post"] {
        assert_eq!(refused(&mut client, method, "/hook/s-cat", &[]), "OPTIONS, POST", "{method}");
        let fields = [("x-arango-async", "store")];
        assert_eq!(refused(&mut client, method, "/hook/s-cat", &fields), "OPTIONS, POST");
    }
    // The overriding method counts.
    let put = [("x-http-method-override", "PUT")];
    assert_eq!(refused(&mut client, "POST", "/hook/s-cat", &put), "OPTIONS, POST");
    let get = [("x-http-method-override", "GET")];
    let reply = client.request("POST", "/cgi/s-echo", &get, b"").expect(200);
    assert_eq!(reply.header("x-method"), Some("GET"));
    assert_eq!(refused(&mut client, "POST", "/cgi/s-echo", &[]), "GET, HEAD, OPTIONS, TRACE");
    client.request("HEAD", "/cgi/s-echo", &[], b"").expect(200);
    let reply = client.request("TRACE", "/cgi/s-echo", &[], b"").expect(200);
    assert_eq!(reply.header("x-method"), Some("TRACE"));
    // OPTIONS is answered; the route of a plain program lists its methods.
    let reply = client.request("OPTIONS", "/hook/s-cat", &[], b"").expect(200);
    assert_eq!(reply.header("allow"), Some("OPTIONS, POST"));
    client.request("OPTIONS", "/cgi/s-echo", &[], b"").expect(200);
    assert!(client.jobs().is_empty());
    // The method is checked before the key, and after the route.
    let fields = [("idempotency-key", "two words")];
    client.request("GET", "/hook/s-cat", &fields, b"").expect_error(405, 405);
    client.request("GET", "/nowhere/", &fields, b"").expect_error(404, 404);
    client.request("POST", "/hook/s-cat", &fields, b"").expect_error(400, 400);
}

#[test]
fn the_allowed_methods_apply_to_local_redirects() {
    let deferd = start(",methods=POST", "");
    let mut client = deferd.client();
    let body = b"Location: /hook/s-cat\n\n";
    let reply = client.request("POST", "/cgi/s-cat", &[], body).expect_error(405, 405);
    assert_eq!(reply.header("allow"), Some("OPTIONS, POST"));
    let id = client.store("POST", "/cgi/s-cat", body);
    client.result(&id).expect_job_error(405, 405);
}

#[test]
fn options_without_effect_are_start_up_errors() {
    for (options, part) in [
        ("accepted=200", "accepted=CODE needs defer=store or defer=drop"),
        ("defer=always", "defer \"always\": neither store nor drop"),
        ("methods=get", "\"get\" is not a method"),
    ] {
        let route = format!("/hook/=run:/tmp,{options}");
        let ended = run_deferd(&["--listen", "127.0.0.1:0", "--route", &route]);
        assert_eq!(ended.code, Some(2));
        assert!(
            ended.stderr.contains("--route") && ended.stderr.contains(part),
            "{}",
            ended.stderr
        );
    }
}
