//! The access to the engine: each operation happens once, however often it is sent.
//!
//! Owns how long an operation is tried, and its connection: a slot of the `pool`, connected to the `primary`. Does not
//! know what an operation means. Invariants: a connection that failed is never used again, and neither is a connection
//! to an earlier engine; an operation whose reply was lost is sent again under its number, and an operation that is
//! given up is undone before its slot is forgotten; a thread waits for the engine no longer than its patience, and not
//! at all once the store is closed.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use redis::Value;

use super::health::Health;
use super::lock;
use super::operation::{Clock, Effect, Insist, Operation, Outcome, Trouble};
use super::pool::{Pool, Slot};
use super::primary::Primary;
use super::reply::Reply;
use super::settler::Task;
use super::wire::{Wire, call, full};
use crate::histogram::Histogram;

/// How long the engine may take to answer, and to answer an operation with a large body.
pub const REPLY_TIME: Duration = Duration::from_secs(5);
const LARGE_REPLY_TIME: Duration = Duration::from_secs(10);
/// The size from which a body is large, in bytes.
const LARGE: usize = 1 << 20;
/// How long an operation is tried for a client.
const PATIENCE: Duration = Duration::from_secs(10);
/// The pause between two attempts, at first and at most; each pause is varied by up to a quarter.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// How long replicas have to receive an operation, in milliseconds.
const REPLICAS_TIME: &[u8] = b"1000";

/// An operation that was given up, and that must be undone.
pub struct GivenUp {
    /// The slot over which it was sent.
    pub slot: u64,
    /// Its number in the slot.
    pub operation: u64,
    /// The idempotency key of the job that it submits, if there is one.
    pub key: Vec<u8>,
}

/// The engine.
pub struct Engine {
    primary: Primary,
    clock: Clock,
    pool: Pool,
    health: Health,
    closed: AtomicBool,
    /// Where threads pause before they try again.
    resting: Mutex<()>,
    end: Condvar,
    given_up: Sender<Task>,
}

impl Engine {
    /// Returns the access to an engine, over which nothing has been sent yet.
    pub fn new(primary: Primary, clock: Clock, workers: usize, given_up: Sender<Task>) -> Self {
        Self {
            primary,
            clock,
            pool: Pool::new(workers),
            health: Health::default(),
            closed: AtomicBool::new(false),
            resting: Mutex::default(),
            end: Condvar::new(),
            given_up,
        }
    }

    /// Returns a key of the queue.
    pub fn key(&self, name: &str) -> String {
        format!("{}{name}", self.primary.prefix)
    }

    /// Returns the name of this process in the engine.
    pub fn process(&self) -> &str {
        &self.primary.process
    }

    /// Returns which clock stamps jobs.
    pub const fn clock(&self) -> Clock {
        self.clock
    }

    /// Returns whether the engine is known not to answer, or not to accept changes.
    pub fn is_failing(&self) -> bool {
        self.health.is_failing()
    }

    /// Returns how often it failed.
    pub fn errors(&self) -> u64 {
        self.health.errors()
    }

    /// Returns how long it took to answer.
    pub fn latency(&self) -> Histogram {
        self.health.latency()
    }

    /// Returns whether another engine was found since the last call.
    pub fn take_changed(&self) -> bool {
        self.primary.take_changed()
    }

    /// Requests another comparison of the running jobs with the engine.
    pub fn note_changed(&self) {
        self.primary.note_changed();
    }

    /// Closes the access: no thread waits for the engine any more.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.pool.wake_all();
        drop(lock(&self.resting));
        self.end.notify_all();
    }

    /// Returns whether it was closed.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Returns a slot outside the pool, for a thread of its own.
    pub fn slot(&self) -> Slot {
        self.pool.slot()
    }

    /// Opens a connection to the primary.
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn connect(&self) -> Result<Wire, Trouble> {
        if self.is_closed() { Err(Trouble::Closed) } else { self.primary.connect() }
    }

    /// Records that it answers.
    pub fn is_well(&self) {
        self.health.is_well(&self.primary.address);
    }

    /// Records that it fails.
    pub fn fails(&self, trouble: &Trouble) {
        if !self.is_closed() {
            self.health.fails(&self.primary.address, trouble);
        }
    }

    /// Carries out an operation over a connection of the pool.
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn run(&self, operation: &Operation, insist: Insist) -> Outcome {
        if insist != Insist::Yes && operation.effect != Effect::Harmless && self.is_failing() {
            return Err(Trouble::Unreachable("the engine is failing".into()));
        }
        let mut slot = self.pool.borrow(insist, || self.is_closed())?;
        let outcome = self.run_over(&mut slot, operation, insist);
        if outcome.is_ok() && operation.effect != Effect::Harmless {
            self.is_well();
        }
        let in_doubt = match outcome {
            Err(Trouble::Unreachable(_)) => operation.effect != Effect::Harmless,
            Err(Trouble::Unreplicated) => operation.is_submission(),
            _ => false,
        };
        if in_doubt {
            self.give_up(&slot, operation);
            slot.retire();
        }
        outcome
    }

    /// Requests that an operation which may have happened be undone.
    pub fn give_up(&self, slot: &Slot, operation: &Operation) {
        let key = if operation.is_submission() {
            operation.arguments.get(12).cloned().unwrap_or_default()
        } else {
            Vec::new()
        };
        // The settler ends with the store.
        let _ = self.given_up.send(Task::Withdraw(GivenUp {
            slot: slot.number,
            operation: slot.operations,
            key,
        }));
    }

    /// Carries out an operation over a slot.
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn run_over(&self, slot: &mut Slot, operation: &Operation, insist: Insist) -> Outcome {
        slot.operations += 1;
        let began = Instant::now();
        let mut backoff = BACKOFF.0;
        // Set once the operation was sent and may have happened.
        let mut in_doubt = None;
        loop {
            let was_connected = self.is_connected(slot);
            let trouble = match self.attempt(slot, operation) {
                Ok(reply) => {
                    self.health.observe(began.elapsed());
                    return Ok(reply);
                }
                // The engine has answered: the operation happened, or was refused. If an earlier attempt was in doubt,
                // it stays in doubt although this one was refused.
                Err(Trouble::Full) => return Err(in_doubt.unwrap_or(Trouble::Full)),
                Err(Trouble::Closed) => return Err(Trouble::Closed),
                Err(Trouble::Unreplicated) if insist != Insist::Yes => {
                    return Err(Trouble::Unreplicated);
                }
                Err(trouble @ Trouble::Unreachable(_)) if was_connected && !self.is_closed() => {
                    // The connection may have died while it was idle: a new one shows whether the engine fails.
                    in_doubt = Some(trouble);
                    continue;
                }
                Err(trouble) => trouble,
            };
            self.fails(&trouble);
            let is_over = insist == Insist::Once
                || (insist == Insist::No
                    && (began.elapsed() >= PATIENCE || operation.effect == Effect::Harmless));
            let is_refused = matches!(trouble, Trouble::Refused(_));
            if !is_refused {
                in_doubt = Some(trouble.clone());
            }
            if self.is_closed()
                || is_over
                || (is_refused && insist == Insist::No && in_doubt.is_none())
            {
                return Err(in_doubt.unwrap_or(trouble));
            }
            self.rest(jittered(backoff));
            backoff = (backoff * 2).min(BACKOFF.1);
        }
    }

    /// Returns whether a slot has a connection to this engine that was used before.
    fn is_connected(&self, slot: &Slot) -> bool {
        slot.connection.is_some() && slot.generation == self.primary.generation()
    }

    /// Takes the connection out of a slot, or opens one.
    fn wire(&self, slot: &mut Slot) -> Result<Wire, Trouble> {
        let is_connected = self.is_connected(slot);
        match slot.connection.take() {
            Some(wire) if is_connected => Ok(wire),
            _ => {
                let wire = self.connect()?;
                slot.generation = self.primary.generation();
                Ok(wire)
            }
        }
    }

    fn attempt(&self, slot: &mut Slot, operation: &Operation) -> Outcome {
        let mut wire = self.wire(slot)?;
        let number = match operation.effect {
            Effect::Once | Effect::Replicated => slot.operations.to_string(),
            Effect::Harmless => String::new(),
        };
        let sent = self.send(&mut wire, slot, &number, operation);
        match sent {
            Ok(value) => {
                let replicated = self.replicate(&mut wire, operation.effect);
                if !matches!(replicated, Err(Trouble::Unreachable(_))) {
                    slot.connection = Some(wire);
                }
                replicated.map(|()| Reply::of(value))
            }
            Err(trouble) => {
                // Whatever is wrong, a new connection will find out; but if memory is full, it is full for all of
                // them.
                if trouble == Trouble::Full {
                    slot.connection = Some(wire);
                }
                Err(trouble)
            }
        }
    }

    fn send(
        &self,
        wire: &mut Wire,
        slot: &Slot,
        number: &str,
        operation: &Operation,
    ) -> Result<Value, Trouble> {
        if operation.size() <= LARGE {
            return self.send_within(wire, slot, number, operation);
        }
        wire.set_time(LARGE_REPLY_TIME)?;
        let answer = self.send_within(wire, slot, number, operation);
        wire.set_time(REPLY_TIME)?;
        answer
    }

    /// Sends an operation, whose answers arrive within the time of this connection.
    fn send_within(
        &self,
        wire: &mut Wire,
        slot: &Slot,
        number: &str,
        operation: &Operation,
    ) -> Result<Value, Trouble> {
        // The key names the operation, so a late body cannot replace the body of the next operation.
        let spool = self.key(&format!("b:{}:{}:{}", self.process(), slot.number, slot.operations));
        let slot = slot.number.to_string();
        let mut arguments: Vec<&[u8]> = operation.arguments.iter().map(Vec::as_slice).collect();
        let whole;
        if let Some((place, pieces)) = &operation.spool {
            let pieces: Vec<&[u8]> = pieces.iter().map(|piece| &piece[..]).collect();
            wire.send(&[&[b"SET"], &[spool.as_bytes()], &pieces, &[b"EX"], &[b"600"]])?;
            match wire.receive().map_err(full) {
                // An engine without memory refuses SET, but not the script that ends a job: that script gets the
                // message itself.
                Err(Trouble::Full) if !operation.is_submission() => {
                    whole = pieces.concat();
                    arguments[*place - 1] = &whole;
                }
                answer => {
                    answer?;
                    arguments[*place] = spool.as_bytes();
                }
            }
        }
        let at = match (self.clock, operation.at) {
            (Clock::Caller, Some(now)) => now.stamp.micros().to_string(),
            _ => String::new(),
        };
        let mut parts: Vec<&[u8]> = vec![
            self.primary.prefix.as_bytes(),
            self.process().as_bytes(),
            slot.as_bytes(),
            number.as_bytes(),
            at.as_bytes(),
        ];
        parts.append(&mut arguments);
        let answer = call(wire, operation.script, &parts).map_err(full);
        let is_refused = matches!(answer, Err(Trouble::Full | Trouble::Refused(_)));
        if is_refused && operation.is_submission() && operation.spool.is_some() {
            // No script removes the body.
            wire.ask(&[b"UNLINK", spool.as_bytes()])?;
        }
        answer
    }

    /// Waits until as many replicas as required have what was sent over this connection.
    fn replicate(&self, wire: &mut Wire, effect: Effect) -> Result<(), Trouble> {
        let replicas = self.primary.address.replicas;
        if effect != Effect::Replicated || replicas == 0 {
            return Ok(());
        }
        match wire.ask(&[b"WAIT", replicas.to_string().as_bytes(), REPLICAS_TIME])? {
            Value::Int(count) if count >= i64::from(replicas) => Ok(()),
            _ => Err(Trouble::Unreplicated),
        }
    }

    /// Reads keys by a pipeline: sends all commands first, then reads all answers.
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn read(&self, commands: &[&[&[u8]]], insist: Insist) -> Result<Vec<Value>, Trouble> {
        let mut slot = self.pool.borrow(insist, || self.is_closed())?;
        let mut backoff = BACKOFF.0;
        loop {
            let was_connected = self.is_connected(&slot);
            let outcome = self.read_over(&mut slot, commands);
            let Err(trouble) = &outcome else { return outcome };
            if was_connected && matches!(trouble, Trouble::Unreachable(_)) && !self.is_closed() {
                continue;
            }
            self.fails(trouble);
            if insist != Insist::Yes || self.is_closed() {
                return outcome;
            }
            self.rest(jittered(backoff));
            backoff = (backoff * 2).min(BACKOFF.1);
        }
    }

    fn read_over(&self, slot: &mut Slot, commands: &[&[&[u8]]]) -> Result<Vec<Value>, Trouble> {
        let mut wire = self.wire(slot)?;
        wire.set_time(LARGE_REPLY_TIME)?;
        for command in commands {
            let parts: Vec<[&[u8]; 1]> = command.iter().map(|part| [*part]).collect();
            let parts: Vec<&[&[u8]]> = parts.iter().map(|part| &part[..]).collect();
            wire.send(&parts)?;
        }
        let answers = commands.iter().map(|_| wire.receive()).collect::<Result<_, _>>()?;
        wire.set_time(REPLY_TIME)?;
        slot.connection = Some(wire);
        Ok(answers)
    }

    /// Waits for a while, or until the store is closed.
    pub fn rest(&self, span: Duration) {
        let end = Instant::now() + span;
        let mut resting = lock(&self.resting);
        while !self.is_closed() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            resting =
                self.end.wait_timeout(resting, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Returns a span varied by up to a quarter, so that instances do not all return at once.
fn jittered(span: Duration) -> Duration {
    let random = RandomState::new().hash_one(Instant::now()) % 501;
    span * (750 + random as u32) / 1000
}
