//! Clients that request much and take nothing.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt};

use super::unharmed;
use super::unharmed::{connections, is_served, no_connection};
use crate::support::{Client, Deferd, FixedLimit, PATIENCE, eventually, with_limit};

/// Asks for 16 MiB, and waits until the answer has begun.
fn ask_for_much(deferd: &Deferd) -> Client {
    let mut client = deferd.client();
    client.send_request("GET", "/run/h-big", &[], b"");
    client.wait_for_answer();
    client
}

#[test]
fn an_unread_answer_delays_no_other_client() {
    let deferd = Deferd::with_scripts("", &[]);
    unharmed(&deferd, || {
        let silent = [ask_for_much(&deferd), ask_for_much(&deferd), ask_for_much(&deferd)];
        eventually("others are served", || is_served(&deferd));
        let id = deferd.client().store("GET", "/_api/version", b"");
        deferd.client().result(&id).expect(200);
        eventually("only the answers still wait", || connections(&deferd) == silent.len());
    });
}

/// Contract: a client that takes less than a KiB a second on average is cut off as well, after the same time. This one
/// never takes nothing for that long, and would need more than half a day.
#[test]
fn a_client_that_takes_too_little_is_cut() {
    let time = Duration::from_secs(5);
    let deferd = Deferd::with_scripts_by(with_limit(FixedLimit::Answer, time), "", &[]);
    unharmed(&deferd, || {
        let socket =
            socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .unwrap();
        // Small, so that deferd's side sees each KiB that is taken.
        sockopt::set_socket_recv_buffer_size(&socket, 2304).unwrap();
        connect(&socket, &deferd.address).unwrap();
        let mut slow = TcpStream::from(socket);
        slow.set_read_timeout(Some(PATIENCE)).unwrap();
        let begin = Instant::now();
        slow.write_all(b"GET /run/h-big HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
        eventually("it is served", || connections(&deferd) == 1);
        let mut taken = 0;
        while connections(&deferd) > 0 {
            taken += slow.read(&mut [0; 64]).unwrap_or(0);
            assert!(begin.elapsed() < PATIENCE, "not cut, having taken {taken}");
            thread::sleep(Duration::from_millis(160));
        }
        let cut = begin.elapsed();
        assert!(cut >= time, "cut after {cut:?} already");
        assert!(taken > 1024, "only {taken} were taken");
    });
}

/// A client that takes a little now and then is slow, but has not left.
#[test]
fn a_client_that_takes_its_time_gets_the_whole_answer() {
    let deferd = Deferd::with_scripts("", &[]);
    unharmed(&deferd, || {
        let mut slow = ask_for_much(&deferd);
        // The buffers of both sides are full for a while, several times.
        for _ in 0..8 {
            thread::sleep(Duration::from_millis(250));
            slow.wait_for_answer();
        }
        let reply = slow.try_read("GET").expect("an answer").expect(200);
        assert_eq!(reply.body.len(), 16 << 20);
        slow.get("/_api/version").expect(200);
    });
}

/// An allocator that keeps freed memory for later would have kept a hundred MiB of these.
#[test]
fn large_answers_and_contents_leave_no_memory() {
    let deferd = Deferd::with_scripts("", &[]);
    let content = vec![b'x'; 16 << 20];
    unharmed(&deferd, || {
        for _ in 0..2 {
            let waiting: Vec<_> = (0..6).map(|_| ask_for_much(&deferd)).collect();
            for mut client in waiting {
                assert_eq!(client.try_read("GET").unwrap().expect(200).body.len(), 16 << 20);
            }
            thread::scope(|scope| {
                for target in ["/run/s-cat", "/run/s-cat", "/run/s-exit", "/run/s-exit"] {
                    scope.spawn(|| {
                        let mut client = deferd.client();
                        client.request("POST", target, &[], &content);
                    });
                }
            });
        }
    });
}

#[test]
fn large_results_leave_no_memory() {
    let deferd = Deferd::with_scripts("", &[]);
    let content = vec![b'x'; 16 << 20];
    unharmed(&deferd, || {
        let mut client = deferd.client();
        let ids: Vec<_> = (0..6).map(|_| client.store("POST", "/run/s-cat", &content)).collect();
        for id in ids {
            assert_eq!(client.result(&id).expect(200).body.len(), content.len());
        }
        drop(client);
        no_connection(&deferd);
    });
}
