//! The connection to a deferd, as ureq uses it: TCP or a Unix socket.
//!
//! Owns connecting, reading and writing; knows no HTTP. Invariant: every wait ends, except a read that was asked to
//! have no limit.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use ureq::Agent;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport,
};

use crate::plain_http::{self, AtConnect};
use crate::protocol::PRODUCT;
use crate::socket::{Stream, connect_unix};

/// How long connecting to one address may take.
const CONNECT_TIME: Duration = Duration::from_secs(10);

/// How long deferd may stop reading a request.
const WRITE_TIME: Duration = Duration::from_secs(30);

/// How long deferd may send nothing: longer than it is asked to wait.
const READ_TIME: Duration = Duration::from_secs(90);

/// Where a deferd listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A name or an address, and a port.
    Tcp(String, u16),
    /// The path of a socket.
    Unix(PathBuf),
}

/// Returns an agent of ureq with connections to this place, one for each request.
pub fn agent(place: Place) -> Agent {
    let config = plain_http::config()
        .user_agent(PRODUCT)
        .timeout_per_read(Some(READ_TIME))
        .max_idle_connections(0);
    Agent::with_parts(config.build(), Opening(place), AtConnect)
}

/// Opens connections.
#[derive(Debug)]
struct Opening(Place);

impl Connector for Opening {
    type Out = Connection;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        _: Option<()>,
    ) -> Result<Option<Connection>, ureq::Error> {
        let stream = match &self.0 {
            Place::Tcp(name, port) => Stream::Tcp(connect(name, *port)?),
            Place::Unix(path) => Stream::Unix(connect_unix(path, CONNECT_TIME)?),
        };
        stream.prepare()?;
        stream.set_write_time(WRITE_TIME)?;
        let config = details.config;
        let buffers = LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size());
        Ok(Some(Connection { stream, buffers, cut: None }))
    }
}

/// Connects to the first address that accepts the connection.
fn connect(name: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::from(ErrorKind::NotFound);
    for address in (name, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_TIME) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// A connection.
struct Connection {
    stream: Stream,
    buffers: LazyBuffers,
    /// Why deferd stopped reading the request.
    cut: Option<io::Error>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

impl Transport for Connection {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    /// Sends the bytes. If deferd refuses, it may have answered before it had read everything: then the rest is
    /// dropped, and the answer can still be read.
    fn transmit_output(&mut self, amount: usize, _: NextTimeout) -> Result<(), ureq::Error> {
        if self.cut.is_none() {
            let bytes = &self.buffers.output()[..amount];
            self.cut = (&self.stream).write_all(bytes).err();
        }
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        if let Some(limit) = timeout.for_read().not_zero() {
            self.stream.set_read_time(*limit)?;
        }
        let buffer = self.buffers.input_append_buf();
        let read = loop {
            match (&self.stream).read(buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        match read {
            Ok(0) => self.cut.take().map_or(Ok(false), |cut| Err(cut.into())),
            Ok(n) => {
                self.buffers.input_appended(n);
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let late = || io::Error::new(ErrorKind::TimedOut, "no answer in time");
                Err(self.cut.take().unwrap_or_else(late).into())
            }
            // ureq takes a reset for the end of content that has no other end.
            Err(error) => Err(self.cut.take().unwrap_or_else(|| io::Error::other(error)).into()),
        }
    }

    fn is_open(&mut self) -> bool {
        false
    }
}
