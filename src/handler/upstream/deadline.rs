//! The context of a call to an upstream: its sockets learn from it when the call must end, and report the phase to it.
//!
//! Owns the one wait that all of them use. ureq passes kept connections from call to call and tells them nothing about
//! the call; every wait of a call happens in its own thread, so the context is found through the thread. Invariant: no
//! wait outlasts the limit of its phase, a stop, or the client for whom the call is made.

use std::cell::{Cell, RefCell};
use std::io::{self, ErrorKind};
use std::ops::Deref;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::noise::Noise;
use crate::error::Error;
use crate::job::execution::{Execution, WakerGuard};
use crate::sink::{Sink, Waits};

/// The phase of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its host's address is being looked up.
    Resolving,
    /// A connection is being opened.
    Connecting,
    /// The request is being written.
    Sending,
    /// No byte of the answer has arrived.
    Waiting,
    /// Part of the answer has arrived.
    Receiving,
}

/// The origin of a call's connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// It was kept after an earlier call.
    Kept,
    /// It was opened for this call.
    Fresh,
}

/// What the sockets of a call need to know about it.
pub struct CallContext {
    wake: Arc<Wake>,
    /// Tells whether the client has left.
    execution: Arc<Execution>,
    /// The deadline of the whole call.
    deadline: Instant,
    /// How long connecting may take.
    connect_limit: Duration,
    /// The deadline of this phase: that of the call, or of connecting.
    pub limit: Cell<Instant>,
    /// The phase of the call.
    pub phase: Cell<Phase>,
    /// The part of the answer that is neither its head nor content.
    pub noise: Noise,
    /// Whether the upstream has stopped taking the request.
    pub is_cut: Cell<bool>,
    /// Whether a read may wait for the upstream; otherwise it fails with `WouldBlock`, and can be repeated.
    pub may_wait: Cell<bool>,
    origin: Cell<Origin>,
}

/// Stops a call.
struct Wake {
    /// Set before `event`.
    stopped: AtomicBool,
    /// Readable once the call is stopped.
    event: OwnedFd,
}

impl Wake {
    fn new() -> Result<Arc<Self>, Error> {
        let short = |error: rustix::io::Errno| {
            let what = "cannot call the upstream";
            Error::shortage(what, &error.into()).unwrap_or(Error::Internal(what.into()))
        };
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(short)?;
        Ok(Arc::new(Self { stopped: AtomicBool::new(false), event }))
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }
}

thread_local! {
    /// The call that this thread makes.
    static CURRENT: RefCell<Option<Rc<CallContext>>> = const { RefCell::new(None) };
}

/// Makes a call the current one of this thread until it is dropped.
pub struct Entered<'a> {
    context: Rc<CallContext>,
    _waker: WakerGuard<'a>,
}

impl Deref for Entered<'_> {
    type Target = CallContext;

    fn deref(&self) -> &CallContext {
        &self.context
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        CURRENT.set(None);
    }
}

impl CallContext {
    /// Enters a call in this thread, with its deadline and a limit for connecting.
    ///
    /// # Errors
    /// [`Error::Shortage`] if no descriptor is left, [`Error::Cancelled`] if the call was stopped before it began.
    pub fn enter(
        execution: &Arc<Execution>,
        deadline: Instant,
        connect_limit: Duration,
    ) -> Result<Entered<'_>, Error> {
        let wake = Wake::new()?;
        let waker = Arc::clone(&wake);
        let guard = execution.on_stop(move || waker.stop());
        if wake.stopped.load(Ordering::Acquire) {
            return Err(Error::Cancelled);
        }
        let context = Rc::new(Self {
            wake,
            execution: Arc::clone(execution),
            deadline,
            connect_limit,
            limit: Cell::new(deadline),
            phase: Cell::new(Phase::Sending),
            noise: Noise::new(),
            is_cut: Cell::new(false),
            may_wait: Cell::new(true),
            origin: Cell::new(Origin::Kept),
        });
        CURRENT.set(Some(Rc::clone(&context)));
        Ok(Entered { context, _waker: guard })
    }

    /// Returns the context of this thread's call.
    pub fn get() -> io::Result<Rc<Self>> {
        let current = CURRENT.with_borrow(Option::clone);
        current.ok_or_else(|| io::Error::other("a connection outside of a call"))
    }

    /// Begins an attempt; it uses a kept connection unless a new one is opened.
    pub fn begin(&self) {
        self.origin.set(Origin::Kept);
        self.noise.reset();
        self.is_cut.set(false);
        self.may_wait.set(true);
        self.begin_sending();
    }

    /// Begins to open a connection.
    pub fn begin_connecting(&self) {
        self.origin.set(Origin::Fresh);
        self.phase.set(Phase::Resolving);
        self.limit.set(self.deadline.min(Instant::now() + self.connect_limit));
    }

    /// Begins to send over a connection.
    pub fn begin_sending(&self) {
        self.phase.set(Phase::Sending);
        self.limit.set(self.deadline);
    }

    /// Begins to receive content, after the head of the answer.
    pub fn begin_content(&self) {
        self.phase.set(Phase::Receiving);
        self.noise.begin_content();
    }

    /// Moves from phase `from` to `to`; during a TLS handshake, which also reads and writes, the phase stays
    /// connecting.
    pub fn advance(&self, from: Phase, to: Phase) {
        if self.phase.get() == from {
            self.phase.set(to);
        }
    }

    /// Waits until `fd` is ready for what `flags` say.
    ///
    /// # Errors
    /// As [`may_go_on`](Self::may_go_on).
    pub fn wait(&self, fd: impl AsFd, flags: PollFlags) -> io::Result<()> {
        while !self.wait_for(&fd, flags, Duration::MAX)? {}
        Ok(())
    }

    /// Waits until the client has taken what a sink holds for it. A client that has left, or is too slow, stops the
    /// call, unless the call goes on without it.
    ///
    /// # Errors
    /// As [`may_go_on`](Self::may_go_on).
    pub fn send(&self, sink: &mut dyn Sink) -> io::Result<()> {
        loop {
            if sink.flush().is_err() {
                self.execution.look();
                self.may_go_on()?;
            }
            let Some(Waits { client, tick }) = sink.waits() else { return Ok(()) };
            self.wait_for(client, PollFlags::OUT, tick)?;
        }
    }

    /// Waits for at most `span`, or until `fd` is ready; returns whether it is.
    fn wait_for(&self, fd: impl AsFd, flags: PollFlags, span: Duration) -> io::Result<bool> {
        let left = self.limit.get().saturating_duration_since(Instant::now()).min(span);
        let timeout = Timespec::try_from(left).ok();
        let wake = self.wake.event.as_fd();
        let (client, leaving) = self.execution.watched().unwrap_or((wake, PollFlags::empty()));
        let mut fds = [
            PollFd::new(&fd, flags),
            PollFd::from_borrowed_fd(wake, PollFlags::IN),
            PollFd::from_borrowed_fd(client, leaving),
        ];
        // An interrupted wait finds nothing ready: the caller's loop checks its clock.
        let _ = poll(&mut fds, timeout.as_ref());
        let [ready, _, left] = fds.map(|fd| !fd.revents().is_empty());
        if left {
            self.execution.look();
        }
        self.may_go_on()?;
        Ok(ready)
    }

    /// Checks whether the call goes on.
    ///
    /// # Errors
    /// If the call was stopped, and `TimedOut` past the limit of this phase.
    pub fn may_go_on(&self) -> io::Result<()> {
        if self.wake.stopped.load(Ordering::Acquire) {
            return Err(io::Error::other("stopped"));
        }
        if Instant::now() >= self.limit.get() { Err(ErrorKind::TimedOut.into()) } else { Ok(()) }
    }

    /// Returns whether the attempt failed because a kept connection was closed: no byte of an answer arrived, and
    /// there was neither a timeout nor a stop.
    pub fn is_stale(&self) -> bool {
        self.origin.get() == Origin::Kept
            && matches!(self.phase.get(), Phase::Sending | Phase::Waiting)
            && self.may_go_on().is_ok()
    }
}
