//! An upstream that never ends its content or its interim answers, or whose head has the largest allowed size.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::OnceLock;
use std::thread;

/// Starts it once; it ends with this program.
pub fn start() -> SocketAddr {
    static ADDRESS: OnceLock<SocketAddr> = OnceLock::new();
    *ADDRESS.get_or_init(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // If no thread can be started for it, the connection is closed.
                let serve = move || drop(answer(&stream));
                let _ = thread::Builder::new().stack_size(128 << 10).spawn(serve);
            }
        });
        address
    })
}

fn answer(mut stream: &TcpStream) -> std::io::Result<()> {
    let mut start = [0; 4096];
    let n = stream.read(&mut start)?;
    let line = &start[..n];
    if line.starts_with(b"GET /head") {
        let head: String = (0..90).map(|n| format!("x-{n}: {}\r\n", "v".repeat(650))).collect();
        return write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n{head}\r\n");
    }
    let part: &[u8] = if line.starts_with(b"GET /interim") {
        b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"
    } else {
        stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")?;
        &[b'x'; 4096]
    };
    loop {
        stream.write_all(part)?;
    }
}
