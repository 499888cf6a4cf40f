//! beanstalkd's protocol, as far as a client needs it to put a job, reserve one and delete it. The work in between
//! would be done by the client: there is no worker and no result.

use std::time::Duration;

use super::http_job::RESULT;
use super::load::{Answer, Dialogue, Next};

/// The dialogue of a client.
pub struct Beanstalk;

impl Dialogue for Beanstalk {
    fn begin(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("put 0 0 60 {}\r\n", RESULT.len()).as_bytes());
        out.extend_from_slice(RESULT);
        out.extend_from_slice(b"\r\n");
    }

    fn answer(&mut self, bytes: &[u8], _ended: bool, out: &mut Vec<u8>) -> Option<Answer> {
        let end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
        let line = std::str::from_utf8(&bytes[..end]).unwrap();
        let mut words = line.split(' ');
        let (mut length, mut next) = (end + 2, Next::Send(Duration::ZERO));
        match words.next() {
            Some("INSERTED") => out.extend_from_slice(b"reserve\r\n"),
            Some("RESERVED") => {
                // It may be the job of another client.
                let id = words.next().unwrap();
                length += words.next().unwrap().parse::<usize>().unwrap() + 2;
                if length > bytes.len() {
                    return None;
                }
                out.extend_from_slice(format!("delete {id}\r\n").as_bytes());
            }
            Some("DELETED") => next = Next::Done,
            _ => panic!("beanstalkd says {line:?}"),
        }
        Some(Answer { length, closes: false, next })
    }
}
