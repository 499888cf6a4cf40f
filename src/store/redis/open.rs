//! How the shared store is opened and closed.
//!
//! Owns the order of both. Invariant: nothing is taken before the instance has joined, and what was taken is reported
//! or given back before the connections end.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::unbounded;
use rustix::rand::{GetRandomFlags, getrandom};

use super::bell::{Bell, Message};
use super::engine::Engine;
use super::keeper::words;
use super::local::Local;
use super::operation::{Effect, Insist, Operation};
use super::primary::Primary;
use super::settler::{self, Task, Untold};
use super::{CLOSE_TIME, Inner, SharedStore, Sharing, Standing, script};
use crate::error::Error;
use crate::hex;
use crate::ledger::locked::Dispatch;
use crate::store::{Plan, Room};

impl SharedStore {
    /// Opens the store on an engine, for the routes of these prefixes.
    ///
    /// # Errors
    /// What is wrong with the engine, and what to do, in words.
    pub fn open(
        sharing: Sharing,
        room: Room,
        plan: Plan,
        lanes: impl Iterator<Item = impl Into<Box<str>>>,
    ) -> Result<Self, String> {
        let mut random = [0; 16];
        getrandom(&mut random, GetRandomFlags::empty())
            .map_err(|error| format!("no random numbers: {error}"))?;
        let Sharing { address, lease, durability, clock } = sharing;
        let (tasks, received) = unbounded();
        let primary = Primary::new(address, durability, hex::encode(&random));
        let engine = Engine::new(primary, clock, plan.workers, tasks.clone());
        drop(engine.connect().map_err(|trouble| words(&trouble))?);
        let inner = Arc::new(Inner {
            timekeeper: Mutex::new(engine.slot()),
            engine,
            dispatch: Dispatch::default(),
            bell: Bell::default(),
            tasks,
            untold: Untold::default(),
            capacity: room.capacity,
            reserve: room.reserve,
            memory: room.memory.clone(),
            local: Mutex::new(Local::new(room, plan.clone())),
            plan,
            lanes: lanes.map(Into::into).collect(),
            lease,
            durability,
            incarnation: AtomicU64::new(0),
            counters: Mutex::default(),
            due: Mutex::new(BTreeSet::new()),
            large: Mutex::default(),
            cancelled: Standing::of(&Error::Cancelled).map_err(|error| error.to_string())?,
            interrupted: Standing::of(&Error::Interrupted).map_err(|error| error.to_string())?,
            fenced: AtomicU64::new(0),
            reaped: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        });
        let store = Self(Arc::clone(&inner));
        inner.join(&mut inner.engine.slot()).map_err(|trouble| words(&trouble))?;
        let start = |name: &str, run: Box<dyn FnOnce(&Inner) + Send>| {
            let inner = Arc::clone(&inner);
            let thread = thread::Builder::new().name(name.into());
            thread
                .spawn(move || run(&inner))
                .map(drop)
                .map_err(|error| format!("no thread: {error}"))
        };
        let keeps_logs = !inner.plan.log_ttl.is_zero();
        start(
            "settler",
            Box::new(move |inner| {
                settler::run(&inner.engine, &received, &inner.untold, keeps_logs);
            }),
        )?;
        start("keeper", Box::new(Inner::keep))?;
        start("listener", Box::new(Inner::listen))?;
        Ok(store)
    }
}

impl Inner {
    fn listen(&self) {
        self.bell.listen(&self.engine, |message| match message {
            Message::Cancel(id) => self.stop_job(id),
            Message::Log(id, to, name) => self.tell_log(id, &to, name),
        });
    }

    /// Closes the store: sends what is still to be reported, and gives back what was taken, as far as the engine is
    /// reachable.
    pub(super) fn close(&self) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        let deadline = Instant::now() + CLOSE_TIME;
        // Otherwise `leave` would restore results that were delivered.
        self.untold.wait_for(None, CLOSE_TIME);
        let mut slot = self.engine.slot();
        let leave = || {
            let incarnation = self.incarnation().to_string();
            self.with_errors(Operation::new(&script::LEAVE, Effect::Harmless).with(incarnation))
        };
        while self.incarnation() != 0 && Instant::now() < deadline {
            match self.engine.run_over(&mut slot, &leave(), Insist::Once) {
                Ok(reply) if reply.text(0) == "more" => {}
                Ok(_) => break,
                // The other instances find out when the lease ends.
                Err(_) => self.engine.rest(Duration::from_millis(200)),
            }
        }
        self.engine.close();
        // The threads end with their connections, or shortly after.
        let _ = self.tasks.send(Task::End);
        self.bell.ring_all();
    }
}
