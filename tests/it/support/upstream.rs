//! A scripted upstream: its test determines how it handles each request; it records what it received.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use super::{PATIENCE, eventually};

/// A request as it was received.
#[derive(Clone, Debug)]
pub struct Received {
    /// The number of the connection over which it came, from 0.
    pub connection: usize,
    /// `METHOD target HTTP/1.1`.
    pub line: String,
    /// Names in lower case, in the order received.
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Received {
    /// Returns all values of a field.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.fields.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect()
    }
}

/// What happens to a connection after a request.
pub enum Then {
    /// The next request is read.
    Keep,
    /// It is closed.
    Close,
    /// Nothing more is sent, until the other side closes it.
    Hang,
}

type Script = dyn Fn(&Received, &mut TcpStream) -> Then + Send + Sync;

/// The upstream; it ends with its test.
pub struct Upstream {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    received: Mutex<Vec<Received>>,
    /// Connections that the other side has closed.
    closed: Mutex<BTreeSet<usize>>,
    over: AtomicBool,
}

impl Upstream {
    /// Starts an upstream that handles each request by `script`.
    pub fn start(
        script: impl Fn(&Received, &mut TcpStream) -> Then + Send + Sync + 'static,
    ) -> Self {
        Self::over(TcpListener::bind("127.0.0.1:0").unwrap(), script)
    }

    /// Starts an upstream at the address of another one that has ended.
    pub fn start_at(
        address: SocketAddr,
        script: impl Fn(&Received, &mut TcpStream) -> Then + Send + Sync + 'static,
    ) -> Self {
        let mut listener = None;
        eventually("the address is free", || {
            listener = TcpListener::bind(address).ok();
            listener.is_some()
        });
        Self::over(listener.unwrap(), script)
    }

    fn over(
        listener: TcpListener,
        script: impl Fn(&Received, &mut TcpStream) -> Then + Send + Sync + 'static,
    ) -> Self {
        let address = listener.local_addr().unwrap();
        let (shared, script) = (Arc::new(Shared::default()), Arc::new(script));
        let its = Arc::clone(&shared);
        thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                if its.over.load(Ordering::Acquire) {
                    return;
                }
                let (shared, script) = (Arc::clone(&its), Arc::clone(&script));
                thread::spawn(move || serve(number, stream.unwrap(), &shared, &*script));
            }
        });
        Self { address, shared }
    }

    /// Starts an upstream that always answers with these bytes.
    pub fn answering(bytes: impl Into<Vec<u8>>, then: fn() -> Then) -> Self {
        let bytes = bytes.into();
        Self::start(move |_, stream| {
            let _ = stream.write_all(&bytes);
            then()
        })
    }

    /// Returns a route to it: `/up/=http://ADDRESS/`, and options.
    pub fn route(&self, options: &str) -> String {
        format!("/up/=http://{}/{options}", self.address)
    }

    /// Returns what it received so far.
    pub fn received(&self) -> Vec<Received> {
        self.shared.received.lock().unwrap().clone()
    }

    /// Returns the only request that it received.
    #[track_caller]
    pub fn only(&self) -> Received {
        let received = self.received();
        assert_eq!(received.len(), 1, "{received:?}");
        received[0].clone()
    }

    /// Waits until it has received this many requests.
    #[track_caller]
    pub fn wait_for(&self, count: usize) {
        eventually("the upstream gets the request", || self.received().len() >= count);
    }

    /// Waits until the other side has closed a connection that [hangs](Then::Hang).
    #[track_caller]
    pub fn wait_closed(&self, connection: usize) {
        let is_closed = || self.shared.closed.lock().unwrap().contains(&connection);
        eventually("the connection to the upstream is closed", is_closed);
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Release);
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(number: usize, stream: TcpStream, shared: &Shared, script: &Script) {
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    while let Some(received) = read(number, &mut reader) {
        shared.received.lock().unwrap().push(received.clone());
        match script(&received, &mut stream) {
            Then::Keep => {}
            Then::Close => return,
            Then::Hang => break,
        }
    }
    // To its end, or until the client breaks it.
    let _ = std::io::copy(&mut reader, &mut std::io::sink());
    shared.closed.lock().unwrap().insert(number);
}

/// Reads a request, whose content has a length or is missing.
fn read(connection: usize, reader: &mut BufReader<TcpStream>) -> Option<Received> {
    let mut next = || {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|&n| n > 0)?;
        Some(line.trim_end().to_owned())
    };
    let line = next()?;
    let mut fields = Vec::new();
    loop {
        let line = next()?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(": ").unwrap();
        fields.push((name.to_ascii_lowercase(), value.to_owned()));
    }
    let mut received = Received { connection, line, fields, body: Vec::new() };
    let length = received.all("content-length").first().map(|v| v.parse::<usize>().unwrap());
    // A content that is not read at once lets a script answer before it has arrived.
    if !received.line.contains("/early") {
        received.body = vec![0; length.unwrap_or(0)];
        reader.read_exact(&mut received.body).ok()?;
    }
    Some(received)
}
