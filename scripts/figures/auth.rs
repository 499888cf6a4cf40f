//! How long a refusal takes: for an unknown user, and for a known one with a wrong token.

use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use super::client::Client;
use super::sample::{ROUNDS, Sample, row, title};
use super::server::Server;

/// The number of refusals of each kind, over all rounds.
const SAMPLES: usize = 10_000;

/// Returns a request whose credentials have the same length for every user.
fn request(pair_in_base64: &str) -> Vec<u8> {
    let fields = format!("host: localhost\r\nauthorization: Basic {pair_in_base64}\r\n");
    format!("GET /_api/version HTTP/1.1\r\n{fields}\r\n").into_bytes()
}

pub fn print() {
    title("A refusal: an unknown user beside a wrong token (microseconds)");
    let path = std::env::temp_dir().join(format!("deferd-bench-auth-{}", std::process::id()));
    std::fs::write(&path, format!("ann:{}\n", "0".repeat(64))).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let server = Server::deferd("off", &["--auth", path.to_str().unwrap()]);
    std::fs::remove_file(&path).unwrap();
    let mut client = Client::new(server.address);
    // `eve:secret` and `ann:secret`.
    let requests = [request("ZXZlOnNlY3JldA=="), request("YW5uOnNlY3JldA==")];
    let mut medians = [Sample::default(), Sample::default()];
    for _ in 0..ROUNDS {
        let mut times = [Sample::default(), Sample::default()];
        for n in 0..2 * SAMPLES.div_ceil(ROUNDS) {
            let begin = Instant::now();
            assert_eq!(client.exchange(&requests[n % 2]).status, 401);
            times[n % 2].push(begin.elapsed().as_secs_f64() * 1e6);
        }
        for (medians, times) in medians.iter_mut().zip(&times) {
            medians.push(times.median());
        }
    }
    let [unknown, wrong] = &medians;
    row("unknown user, median of a round", format_args!("{unknown:.2}"));
    row("wrong token", format_args!("{wrong:.2}"));
    row("ratio", format_args!("{:.4}", unknown.over(wrong)));
}
