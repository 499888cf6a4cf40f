//! Large answers, and the memory that they needed.

use crate::support::{Client, Deferd};
use crate::unharmed;

/// Freed is given back: six answers of 16 MiB at once must not cost 100 MiB for good, and more with
/// every core (an allocator that keeps what its threads freed may keep that for each of its arenas).
#[test]
fn the_memory_of_large_answers_is_given_back() {
    let deferd = Deferd::with_scripts("", &[]);
    unharmed(&deferd, || {
        for _ in 0..2 {
            let mut clients: Vec<Client> = (0..6).map(|_| deferd.client()).collect();
            for client in &mut clients {
                client.send_request("GET", "/run/h-big", &[], b"");
            }
            // All of them have begun before the first of them ends.
            for client in &clients {
                client.socket().peek(&mut [0]).unwrap();
            }
            for client in &mut clients {
                let reply = client.try_read("GET").expect("an answer").expect(200);
                assert_eq!(reply.body.len(), 16 << 20);
            }
        }
    });
}

/// The same for content that comes in.
#[test]
fn the_memory_of_large_content_is_given_back() {
    let deferd = Deferd::with_scripts("", &[]);
    let content = vec![b'x'; 16 << 20];
    let target = "/run/h-mark?/dev/null";
    unharmed(&deferd, || {
        for _ in 0..2 {
            let mut clients: Vec<Client> = (0..6).map(|_| deferd.client()).collect();
            for client in &mut clients {
                // All but the last byte, so that all are held at once.
                let head = format!(
                    "POST {target} HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n",
                    content.len()
                );
                client.send(head.as_bytes());
                client.send(&content[1..]);
            }
            for client in &mut clients {
                client.send(b"x");
                client.try_read("POST").expect("an answer").expect(200);
            }
        }
    });
}
