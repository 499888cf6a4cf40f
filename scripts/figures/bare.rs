//! The minimal server of HTTP/1.1 over blocking sockets: one thread per connection, a head parsed by httparse, a
//! constant written. The front's cost beyond it is the price of its checks; a deferred request's cost beyond it is the
//! price of being a job.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

/// The answer to a plain request: exactly as long as deferd's own to `GET /_api/version`.
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\n\
    content-type: application/json; charset=utf-8\r\n\
    date: Thu, 01 Jan 1970 00:00:00 GMT\r\n\
    x-content-type-options: nosniff\r\n\
    cross-origin-resource-policy: same-origin\r\n\
    content-length: 37\r\n\r\n\
    {\"server\":\"arango\",\"version\":\"1.4.3\"}";

/// The answer to a deferred request, as long as deferd's; its id is always the same.
const ACCEPTED: &[u8] = b"HTTP/1.1 202 Accepted\r\n\
    content-type: text/plain; charset=utf-8\r\n\
    location: /_api/job/1795621136846235\r\n\
    x-arango-async-id: 1795621136846235\r\n\
    date: Thu, 01 Jan 1970 00:00:00 GMT\r\n\
    x-content-type-options: nosniff\r\n\
    cross-origin-resource-policy: same-origin\r\n\
    content-length: 0\r\n\r\n";

/// The answer to a PUT: the result of that job.
const RESULT: &[u8] = b"HTTP/1.1 200 OK\r\n\
    content-type: application/json; charset=utf-8\r\n\
    x-arango-async-id: 1795621136846235\r\n\
    x-arango-async-job-id: 1795621136846235\r\n\
    date: Thu, 01 Jan 1970 00:00:00 GMT\r\n\
    content-length: 37\r\n\r\n\
    {\"server\":\"arango\",\"version\":\"1.4.3\"}";

/// Serves until killed.
pub fn serve() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("listening on http://{}", listener.local_addr().unwrap());
    for stream in listener.incoming() {
        let stream = stream.unwrap();
        let thread = thread::Builder::new().stack_size(256 * 1024);
        // A broken connection ends its thread and nothing else.
        thread.spawn(move || answer(&stream)).unwrap();
    }
}

fn answer(mut stream: &TcpStream) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut buffer = [0; 4096];
    let mut end = 0;
    loop {
        let n = stream.read(&mut buffer[end..]).ok().filter(|&n| n > 0)?;
        end += n;
        while let Some((used, answer)) = head(&buffer[..end]) {
            stream.write_all(answer).ok()?;
            buffer.copy_within(used..end, 0);
            end -= used;
        }
    }
}

/// Returns the length of the first head in `bytes`, once it is complete, and the answer to it.
fn head(bytes: &[u8]) -> Option<(usize, &'static [u8])> {
    let mut fields = [httparse::EMPTY_HEADER; 100];
    let mut request = httparse::Request::new(&mut fields);
    let httparse::Status::Complete(length) = request.parse(bytes).unwrap() else { return None };
    let is_deferred = |field: &httparse::Header<'_>| field.name == "x-arango-async";
    let answer = match request.method {
        Some("PUT") => RESULT,
        _ if request.headers.iter().any(is_deferred) => ACCEPTED,
        _ => ANSWER,
    };
    Some((length, answer))
}
