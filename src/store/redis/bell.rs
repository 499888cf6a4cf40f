//! The bell: what instances send each other through the engine, and the threads here that wait for it.
//!
//! Owns the subscription and the threads that wait for a job, for work, or for another instance's log. Messages carry
//! hints, never a job: a lost message costs a second. Invariant: after the subscription was interrupted, every thread
//! checks for itself.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::engine::Engine;
use super::lock;
use super::operation::Trouble;
use super::reply::Reply;
use crate::job::JobId;
use crate::job::log::LogEnd;
use crate::ledger::waiters::Waiter;
use crossbeam_channel::{Receiver, Select, Sender, bounded, unbounded};

/// How long a worker without work waits before it checks without being woken.
const LOOK: Duration = Duration::from_secs(1);

/// How long a thread waits for the log of another instance.
const LOG_TIME: Duration = Duration::from_millis(500);

/// A message to this instance.
pub enum Message {
    /// This job must be stopped.
    Cancel(JobId),
    /// An instance asks for the log of a job that runs here: the job, the instance's channel, and the number of the
    /// question.
    Log(JobId, String, u64),
}

/// The threads that wait.
pub struct Bell {
    waiters: Mutex<HashMap<JobId, Vec<Arc<Waiter>>>>,
    work: (Sender<()>, Receiver<()>),
    /// How many workers wait for work.
    idle: AtomicUsize,
    questions: Mutex<HashMap<u64, Sender<LogEnd>>>,
    asked: AtomicU64,
}

impl Default for Bell {
    fn default() -> Self {
        Self {
            waiters: Mutex::default(),
            work: unbounded(),
            idle: AtomicUsize::new(0),
            questions: Mutex::default(),
            asked: AtomicU64::new(0),
        }
    }
}

impl Bell {
    /// Waits for work, at most for a second. The worker then checks the engine itself.
    pub fn wait_for_work(&self) {
        self.idle.fetch_add(1, Ordering::AcqRel);
        let mut select = Select::new();
        select.recv(&self.work.1);
        if let Ok(woken) = select.select_timeout(LOOK) {
            // This struct holds both ends.
            let _ = woken.recv(&self.work.1);
        }
        self.idle.fetch_sub(1, Ordering::AcqRel);
    }

    /// Returns how many workers wait for work.
    pub fn idle(&self) -> usize {
        self.idle.load(Ordering::Acquire)
    }

    /// Wakes a worker, if one waits, or is about to.
    pub fn wake_worker(&self) {
        if self.work.0.len() < self.idle().max(1) {
            let _ = self.work.0.send(());
        }
    }

    /// Wakes every worker.
    pub fn wake_workers(&self) {
        for _ in self.work.0.len()..self.idle() {
            let _ = self.work.0.send(());
        }
    }

    /// Registers this thread to be notified when this job may be done or gone.
    pub fn watch(&self, id: JobId) -> Arc<Waiter> {
        let waiter = Arc::new(Waiter::current());
        lock(&self.waiters).entry(id).or_default().push(Arc::clone(&waiter));
        waiter
    }

    /// Cancels the notification of a thread.
    pub fn unwatch(&self, id: JobId, waiter: &Arc<Waiter>) {
        let mut all = lock(&self.waiters);
        if let Some(waiters) = all.get_mut(&id) {
            waiters.retain(|other| !Arc::ptr_eq(other, waiter));
            if waiters.is_empty() {
                all.remove(&id);
            }
        }
    }

    /// Notifies the threads that wait for a job.
    pub fn ring(&self, id: JobId) {
        for waiter in lock(&self.waiters).remove(&id).unwrap_or_default() {
            waiter.notify();
        }
    }

    /// Notifies all threads.
    pub fn ring_all(&self) {
        let all = std::mem::take(&mut *lock(&self.waiters));
        all.values().flatten().for_each(|waiter| waiter.notify());
        self.wake_workers();
    }

    /// Asks another instance for the log of a job that runs there; `None` if it does not answer soon. `send` sends the
    /// question, which has this number.
    pub fn ask_for_log(&self, send: impl FnOnce(u64)) -> Option<LogEnd> {
        let name = self.asked.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = bounded(1);
        lock(&self.questions).insert(name, sender);
        send(name);
        let log = receiver.recv_timeout(LOG_TIME).ok();
        lock(&self.questions).remove(&name);
        log
    }

    /// Passes an answer to the thread that asked: the number of the question, the offset of the log, the log.
    fn answer(&self, said: &[u8]) {
        let mut parts = said.splitn(3, |&b| b == b' ');
        let mut number = || std::str::from_utf8(parts.next()?).ok()?.parse::<u64>().ok();
        let (Some(name), Some(offset)) = (number(), number()) else { return };
        let text = parts.next().unwrap_or_default().into();
        if let Some(sender) = lock(&self.questions).remove(&name) {
            // The thread may have stopped waiting.
            let _ = sender.try_send(LogEnd { text, offset });
        }
    }

    /// Listens until the store is closed; passes to `tell` the messages that are not for threads that wait here.
    pub fn listen(&self, engine: &Engine, tell: impl Fn(Message)) {
        while !engine.is_closed() {
            if let Err(trouble) = self.subscribe(engine, &tell) {
                log::debug!("store: the subscription ended: {trouble:?}");
                engine.rest(Duration::from_millis(200));
            }
        }
    }

    fn subscribe(&self, engine: &Engine, tell: &impl Fn(Message)) -> Result<(), Trouble> {
        let mut wire = engine.connect()?;
        let (own, all) = (engine.key(&format!("c:{}", engine.process())), engine.key("bell"));
        let mut received = Reply::of(wire.ask(&[b"SUBSCRIBE", own.as_bytes(), all.as_bytes()])?);
        self.ring_all();
        while !engine.is_closed() {
            self.take_in(&received, &own, tell);
            received = Reply::of(wire.receive()?);
        }
        Ok(())
    }

    fn take_in(&self, received: &Reply, own: &str, tell: &impl Fn(Message)) {
        let id = |text: &str| JobId::parse(text);
        if received.text(0) != "message" {
            return;
        }
        if received.text(1) != own {
            return id(received.text(2)).into_iter().for_each(|id| self.ring(id));
        }
        let payload = received.bytes(2);
        if let Some(said) = payload.strip_prefix(b"said ") {
            return self.answer(said);
        }
        let mut words = received.text(2).split(' ');
        match (words.next(), words.next().and_then(id), words.next(), words.next()) {
            (Some("work"), ..) => self.wake_worker(),
            (Some("cancel"), Some(id), ..) => tell(Message::Cancel(id)),
            (Some("log"), Some(id), Some(to), Some(name)) => {
                if let Ok(name) = name.parse() {
                    tell(Message::Log(id, to.to_owned(), name));
                }
            }
            // A beat arrives at least every second: without one, the connection is dead.
            _ => {}
        }
    }
}
