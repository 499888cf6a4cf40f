//! The line of a call: how the sockets that make it learn when it must end, and tell how far it is.
//!
//! Owns the one wait of all of them. ureq hands kept connections from call to call and tells them nothing of
//! the call; every wait of a call happens in its own thread, so its line is found there. Invariant: no wait
//! outlasts the limit of its phase, a stop, or the client for whom the call is made.

use std::cell::{Cell, RefCell};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::noise::Noise;
use crate::error::Error;
use crate::job::execution::{Execution, WakerGuard};

/// How far a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its host's address is looked for.
    Resolving,
    /// A connection is opened.
    Connecting,
    /// The request is written.
    Sending,
    /// Nothing of an answer has come yet.
    Waiting,
    /// Some of the answer has come.
    Receiving,
}

/// Where the connection of a call came from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// It was kept after an earlier call.
    Kept,
    /// It was opened for this call.
    Fresh,
}

/// What the sockets of a call need to know of it.
pub struct Current {
    wake: Arc<Wake>,
    /// Where a client that leaves is told.
    execution: Arc<Execution>,
    /// Of the whole call.
    deadline: Instant,
    /// How long connecting may take.
    connect_limit: Duration,
    /// When the waits of this phase end: the deadline, or that of connecting.
    pub limit: Cell<Instant>,
    /// How far the call is.
    pub phase: Cell<Phase>,
    /// What of the answer is neither its head nor content.
    pub noise: Noise,
    origin: Cell<Origin>,
}

/// Tells a call that it is stopped.
struct Wake {
    /// Set first.
    stopped: AtomicBool,
    /// Readable from then on.
    event: OwnedFd,
}

thread_local! {
    /// The call that this thread makes.
    static CURRENT: RefCell<Option<Rc<Current>>> = const { RefCell::new(None) };
}

/// The line from a call to its sockets; closed when dropped.
pub struct Line<'a> {
    current: Rc<Current>,
    _waker: WakerGuard<'a>,
}

impl<'a> Line<'a> {
    /// Opens the line of a call in this thread, with its deadline and how long connecting may take.
    ///
    /// # Errors
    /// [`Error::Shortage`] where no descriptor is left, [`Error::Cancelled`] where it was stopped
    /// before it began.
    pub fn open(
        execution: &'a Arc<Execution>,
        (deadline, connect_limit): (Instant, Duration),
    ) -> Result<Self, Error> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let short = |error: rustix::io::Errno| {
            let error = error.into();
            let what = "cannot call the upstream";
            Error::shortage(what, &error).unwrap_or(Error::Internal(what.into()))
        };
        let wake = Wake { stopped: AtomicBool::new(false), event: event.map_err(short)? };
        let wake = Arc::new(wake);
        let waker = Arc::clone(&wake);
        let guard = execution.on_stop(move || {
            waker.stopped.store(true, Ordering::Release);
            let _ = rustix::io::write(&waker.event, &1u64.to_ne_bytes());
        });
        if execution.stopped().is_some() {
            return Err(Error::Cancelled);
        }
        let (phase, origin) = (Cell::new(Phase::Sending), Cell::new(Origin::Kept));
        let limit = Cell::new(deadline);
        let execution = Arc::clone(execution);
        let noise = Noise::new();
        let current =
            Current { wake, execution, deadline, connect_limit, limit, phase, noise, origin };
        let current = Rc::new(current);
        CURRENT.set(Some(Rc::clone(&current)));
        Ok(Self { current, _waker: guard })
    }

    /// Begins an attempt: over a kept connection, unless one is opened.
    pub fn begin(&self) {
        self.current.origin.set(Origin::Kept);
        self.current.noise.reset();
        self.current.begin_sending();
    }

    /// How far the call is.
    pub fn phase(&self) -> Phase {
        self.current.phase.get()
    }

    /// Says that the head of the answer is there.
    pub fn begin_content(&self) {
        self.current.phase.set(Phase::Receiving);
        self.current.noise.begin_content();
    }

    /// What of the answer is neither its head nor content.
    pub fn noise(&self) -> &Noise {
        &self.current.noise
    }

    /// Whether the attempt failed because a kept connection was closed: nothing of an answer came, and
    /// that was neither for lack of time nor a stop.
    pub fn is_stale(&self) -> bool {
        self.current.origin.get() == Origin::Kept
            && matches!(self.phase(), Phase::Sending | Phase::Waiting)
            && self.current.may_go_on().is_ok()
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        CURRENT.set(None);
    }
}

impl Current {
    /// That of this thread.
    pub fn get() -> io::Result<Rc<Self>> {
        let current = CURRENT.with_borrow(Option::clone);
        current.ok_or_else(|| io::Error::other("a connection outside of a call"))
    }

    /// Waits until `fd` is ready for what `flags` say.
    ///
    /// # Errors
    /// As [`may_go_on`](Self::may_go_on).
    pub fn wait(&self, fd: impl AsFd, flags: PollFlags) -> io::Result<()> {
        loop {
            let left = self.limit.get().saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).ok();
            let client = self.execution.watched();
            let (wake, no_flags) = (self.wake.event.as_fd(), PollFlags::empty());
            let (watched, leaving) = client.unwrap_or((wake, no_flags));
            let mut fds = [
                PollFd::new(&fd, flags),
                PollFd::from_borrowed_fd(wake, PollFlags::IN),
                PollFd::from_borrowed_fd(watched, leaving),
            ];
            // An interrupted wait is an empty one: the loop looks at its clock.
            let _ = poll(&mut fds, timeout.as_ref());
            let (ready, left) = (!fds[0].revents().is_empty(), !fds[2].revents().is_empty());
            if left {
                self.execution.look();
            }
            self.may_go_on()?;
            if ready {
                return Ok(());
            }
        }
    }

    /// # Errors
    /// If the call was stopped, and `TimedOut` past the limit of this phase.
    pub fn may_go_on(&self) -> io::Result<()> {
        if self.wake.stopped.load(Ordering::Acquire) {
            return Err(io::Error::other("stopped"));
        }
        if Instant::now() >= self.limit.get() { Err(ErrorKind::TimedOut.into()) } else { Ok(()) }
    }

    /// A connection is to be opened.
    pub fn begin_connecting(&self) {
        self.origin.set(Origin::Fresh);
        self.phase.set(Phase::Resolving);
        self.limit.set(self.deadline.min(Instant::now() + self.connect_limit));
    }

    /// There is a connection.
    pub fn begin_sending(&self) {
        self.phase.set(Phase::Sending);
        self.limit.set(self.deadline);
    }

    /// Goes on from `from` to `to`; a TLS handshake reads and writes too, and is still connecting.
    pub fn advance(&self, from: Phase, to: Phase) {
        if self.phase.get() == from {
            self.phase.set(to);
        }
    }
}
