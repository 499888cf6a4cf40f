//! The connection to an upstream, as ureq uses it: a socket on which every wait can be stopped.
//!
//! Owns connecting, reading and writing; knows no HTTP. Invariant: every wait goes through the call's
//! [context](super::deadline), so that the call's time limit and stop bound it.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use rustix::event::PollFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt};
use ureq::Agent;
use ureq::config::ConfigBuilder;
use ureq::typestate::AgentScope;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport,
};

use super::deadline::{CallContext, Phase};
use super::resolve::{self, Found};
use crate::plain_http::AtConnect;

/// Returns an agent of ureq that uses deferd's own sockets.
pub fn agent(config: ConfigBuilder<AgentScope>) -> Agent {
    let sockets = Sockets;
    #[cfg(feature = "tls")]
    let (config, sockets) = {
        use ureq::tls::{RootCerts, TlsConfig};
        use ureq::unversioned::transport::RustlsConnector;
        let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
        (config.tls_config(tls), sockets.chain(RustlsConnector::default()))
    };
    Agent::with_parts(config.build(), sockets.chain(Opened), AtConnect)
}

/// Opens connections.
#[derive(Debug)]
struct Sockets;

impl Connector for Sockets {
    type Out = Socket;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        _: Option<()>,
    ) -> Result<Option<Socket>, ureq::Error> {
        let current = CallContext::get()?;
        current.begin_connecting();
        let addresses = addresses(details.uri, &current)?;
        current.phase.set(Phase::Connecting);
        let stream = open(&addresses, &current)?;
        let config = details.config;
        let sizes = (config.input_buffer_size(), config.output_buffer_size());
        let buffers = LazyBuffers::new(sizes.0, sizes.1);
        Ok(Some(Socket { stream, sizes, buffers, cut: Cut::No }))
    }
}

/// Tells the call that connecting is done, TLS included, and counts the answer's bytes as ureq sees them.
#[derive(Debug)]
struct Opened;

impl<T: Transport> Connector<T> for Opened {
    type Out = Counted<T>;

    fn connect(
        &self,
        _: &ConnectionDetails<'_>,
        chained: Option<T>,
    ) -> Result<Option<Counted<T>>, ureq::Error> {
        CallContext::get()?.begin_sending();
        Ok(chained.map(Counted))
    }
}

/// A connection, TLS included, that ends when an answer has too much [noise](super::noise).
#[derive(Debug)]
struct Counted<T>(T);

impl<T: Transport> Transport for Counted<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.0.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.0.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        let current = CallContext::get()?;
        let before = self.0.buffers().input().len();
        current.noise.check(before).map_err(io::Error::other)?;
        let has_come = self.0.await_input(timeout)?;
        current.noise.add(self.0.buffers().input().len().saturating_sub(before));
        Ok(has_come)
    }

    fn is_open(&mut self) -> bool {
        self.0.is_open()
    }

    fn is_tls(&self) -> bool {
        self.0.is_tls()
    }
}

fn addresses(uri: &http::Uri, current: &CallContext) -> io::Result<Vec<SocketAddr>> {
    let default = if uri.scheme() == Some(&http::uri::Scheme::HTTPS) { 443 } else { 80 };
    let port = uri.port_u16().unwrap_or(default);
    match resolve::addresses(uri.host().unwrap_or_default(), port)? {
        Found::Addresses(addresses) => Ok(addresses),
        Found::Lookup(lookup) => {
            current.wait(&lookup.ready, PollFlags::IN)?;
            lookup.answer()
        }
    }
}

/// Connects to the first address that accepts. Each address gets an equal share of the remaining time, so that one
/// that does not answer cannot use up all of it.
fn open(addresses: &[SocketAddr], current: &CallContext) -> io::Result<TcpStream> {
    let limit = current.limit.get();
    let mut last = io::Error::from(ErrorKind::NotFound);
    for (n, address) in addresses.iter().enumerate() {
        let left = limit.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(addresses.len() - n).unwrap_or(u32::MAX);
        current.limit.set(Instant::now() + share);
        let opened = open_one(address, current);
        current.limit.set(limit);
        match opened {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
        current.may_go_on()?;
    }
    Err(last)
}

fn open_one(address: &SocketAddr, current: &CallContext) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    match connect(&socket, address) {
        Err(error) if error == rustix::io::Errno::INPROGRESS => {
            current.wait(&socket, PollFlags::OUT)?;
            sockopt::socket_error(&socket)??;
        }
        connected => connected?,
    }
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Whether the upstream has stopped taking the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    No,
    Yes,
}

/// A connection.
struct Socket {
    /// Non-blocking.
    stream: TcpStream,
    /// Sizes of the buffers for input and output, in bytes.
    sizes: (usize, usize),
    buffers: LazyBuffers,
    cut: Cut,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").finish_non_exhaustive()
    }
}

impl Transport for Socket {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, _: NextTimeout) -> Result<(), ureq::Error> {
        let current = CallContext::get()?;
        // Also checked here: a socket that takes everything, or nothing more, never waits.
        current.may_go_on()?;
        let mut bytes = &self.buffers.output()[..amount];
        while !bytes.is_empty() && self.cut == Cut::No {
            match (&self.stream).write(bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    current.wait(&self.stream, PollFlags::OUT)?;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The upstream may have answered before it read everything: its answer is still to be read.
                Err(_) => self.cut = Cut::Yes,
            }
        }
        current.is_cut.set(self.cut == Cut::Yes);
        Ok(())
    }

    fn await_input(&mut self, _: NextTimeout) -> Result<bool, ureq::Error> {
        let current = CallContext::get()?;
        current.advance(Phase::Sending, Phase::Waiting);
        let buffer = self.buffers.input_append_buf();
        if buffer.is_empty() {
            return Err(ureq::Error::LargeResponseHeader(self.sizes.0, self.sizes.0));
        }
        let most = buffer.len().min(current.noise.max_read());
        let buffer = &mut buffer[..most];
        let n = loop {
            match (&self.stream).read(buffer) {
                Ok(n) => break n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if !current.may_wait.get() {
                        return Err(error.into());
                    }
                    current.wait(&self.stream, PollFlags::IN)?;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // ureq takes a reset for the end of content that has no other end.
                Err(error) => return Err(io::Error::other(error).into()),
            }
        };
        // Checked between any two reads, so that a call can be stopped even if its upstream sends without a pause.
        current.may_go_on()?;
        if n > 0 {
            current.advance(Phase::Waiting, Phase::Receiving);
        }
        self.buffers.input_appended(n);
        Ok(n > 0)
    }

    /// Returns whether the connection is usable: ureq asks before it keeps it, and before it uses it again. An idle
    /// connection needs no buffers.
    fn is_open(&mut self) -> bool {
        if self.buffers.input().is_empty() {
            self.buffers = LazyBuffers::new(self.sizes.0, self.sizes.1);
        }
        let quiet =
            matches!((&self.stream).read(&mut [0]), Err(e) if e.kind() == ErrorKind::WouldBlock);
        quiet && self.cut == Cut::No
    }
}
