//! The weight of contestants: at rest, and with the results that they keep.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::client::Client;
use super::peer::Memory;
use super::peers::Contestant;
use super::server::wait_until;
use super::table::{Aim, Table};

const MIB: f64 = 1024.0 * 1024.0;

/// How many results a peer is given.
const RESULTS: usize = 1000;

/// Adds what all of them weigh at rest; deferd is the first.
pub fn at_rest(table: &mut Table, weights: &[(&str, Memory)]) {
    let work = "memory at rest, MiB: proportional set (resident)";
    for (who, memory) in weights {
        let (proportional, resident) = (memory.proportional / MIB, memory.resident / MIB);
        table.once(work, who, &format!("{proportional:.1} ({resident:.1})"));
    }
    let [(_, deferd), others @ ..] = weights else { unreachable!("there are several") };
    for (who, other) in others {
        let what = format!("memory at rest, of that of {who}");
        table.aim(&what, deferd.proportional / other.proportional, Aim::LessThan(1.0));
    }
}

/// Adds what a result takes in Redis, not counting its own bytes, as in deferd's rows.
pub fn results(table: &mut Table, contestants: &[Contestant]) {
    for contestant in contestants {
        let Some(redis) = &contestant.redis else { continue };
        eprintln!("weighing results of {}", contestant.name);
        let mut client = Client::new(contestant.address);
        let submit = b"POST /submit HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n";
        let before = used(redis);
        let mut last = String::new();
        for _ in 0..RESULTS {
            let reply = client.exchange(submit);
            assert_eq!(reply.status, 202);
            last = super::http_job::id_in(&reply.body);
        }
        let result = super::client::request("GET", &format!("/result/{last}"));
        wait_until(Duration::from_millis(20), || client.exchange(&result).status == 200);
        let each = (used(redis) - before) / RESULTS as f64 - super::http_job::RESULT.len() as f64;
        let work = format!("bytes per result beside its body, of {RESULTS}");
        table.once(&work, contestant.name, &format!("{each:.0}"));
    }
}

/// Returns the memory that Redis uses for its data, in bytes.
fn used(redis: &Path) -> f64 {
    let mut stream = UnixStream::connect(redis).unwrap();
    stream.write_all(b"INFO memory\r\nQUIT\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("used_memory:"));
    line.unwrap_or_else(|| panic!("Redis says {text:?}")).parse().unwrap()
}
