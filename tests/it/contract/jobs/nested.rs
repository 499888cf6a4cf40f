//! Jobs whose request asks for another job's result: each job keeps a result of its own.

use crate::support::{Client, eventually, in_both_stores};

/// More than stays in memory with `--data`.
const SIZE: usize = 200_000;

/// Returns content in which no two parts are equal.
fn content() -> Vec<u8> {
    (0..).flat_map(|n: u32| n.to_be_bytes()).take(SIZE).collect()
}

/// Runs a job whose result is [`content`]; returns its id.
fn inner_job(client: &mut Client) -> String {
    let id = client.store("POST", "/run/s-cat", &content());
    client.wait_done(&id);
    id
}

/// Submits a request for another job's result as a job, and waits until it is done; returns its id.
fn outer_job(client: &mut Client, method: &str, target: &str, range: Option<&str>) -> String {
    let mut fields = vec![("x-arango-async", "store")];
    fields.extend(range.map(|range| ("range", range)));
    let id = client.request(method, target, &fields, b"").expect(202).id().unwrap().to_owned();
    client.wait_done(&id);
    id
}

fn assert_readable(client: &mut Client, id: &str, expected: &[u8]) {
    for _ in 0..2 {
        let peeked = client.get(&format!("/_api/job/{id}/result"));
        assert!(matches!(peeked.status, 200 | 206), "{peeked:?}");
        assert!(peeked.body == expected, "the content differs");
    }
}

fn assert_collectable(client: &mut Client, id: &str, expected: &[u8]) {
    assert_readable(client, id, expected);
    assert!(client.put(&format!("/_api/job/{id}")).body == expected, "the content differs");
    client.get(&format!("/_api/job/{id}")).expect_error(404, 404);
}

#[test]
fn a_result_of_a_result_outlives_it() {
    in_both_stores(&[], |deferd| {
        let mut client = deferd.client();
        let all = content();
        for (below, range, expected) in [
            ("_api/job/{}/result", None, &all[..]),
            ("_api/job/{}/result", Some("bytes=100-109"), &all[100..110]),
            ("_api/job/{}/result", Some("bytes=5-150000"), &all[5..150_001]),
            ("_admin/jobs/{}/content", None, &all[..64 * 1024]),
            ("_admin/jobs/{}/content", Some("bytes=1000-99999"), &all[1000..100_000]),
        ] {
            for inner_first in [true, false] {
                let inner = inner_job(&mut client);
                let target = format!("/{}", below.replace("{}", &inner));
                let outer = outer_job(&mut client, "GET", &target, range);
                if inner_first {
                    assert_collectable(&mut client, &inner, &all);
                    assert_collectable(&mut client, &outer, expected);
                } else {
                    assert_collectable(&mut client, &outer, expected);
                    assert_collectable(&mut client, &inner, &all);
                }
            }
        }
        assert_eq!(client.list("done"), [""; 0]);
    });
}

#[test]
fn a_collection_as_a_job_has_the_result_instead() {
    in_both_stores(&[], |deferd| {
        let mut client = deferd.client();
        let inner = inner_job(&mut client);
        let mut id = inner;
        for _ in 0..3 {
            let outer = outer_job(&mut client, "PUT", &format!("/_api/job/{id}"), None);
            client.get(&format!("/_api/job/{id}")).expect_error(404, 404);
            assert_readable(&mut client, &outer, &content());
            id = outer;
        }
        assert_collectable(&mut client, &id, &content());
    });
}

#[test]
fn a_collection_that_finds_no_room_leaves_the_result() {
    in_both_stores(&["--max-stored", "300K", "--workers", "1"], |deferd| {
        let mut client = deferd.client();
        let inner = inner_job(&mut client);
        let outer = outer_job(&mut client, "PUT", &format!("/_api/job/{inner}"), None);
        client.result(&outer).expect_job_error(507, 507);
        eventually("it is back", || client.get(&format!("/_api/job/{inner}")).status == 200);
        assert_collectable(&mut client, &inner, &content());
        assert_eq!(client.list("done"), [""; 0]);
    });
}
