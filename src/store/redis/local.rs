//! What an instance has of the shared jobs: those that it runs, and its lanes.
//!
//! Owns the ledger of this process, in which a job is from when it is taken until it is given back, and which fence it
//! runs under. Does no I/O. Invariants: a job that the engine has taken away is never told to it again; a lane is asked
//! for no more jobs than it has room for.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::exchange::Call;
use crate::job::attempt::Claimed;
use crate::job::execution::{Execution, Stop};
use crate::job::log::LogEnd;
use crate::job::{JobId, JobKey, Keep, RouteIndex, Stamp};
use crate::ledger::job::Pending;
use crate::ledger::locked::{Wake, Wakes};
use crate::ledger::{Ledger, Plan, Room, Taken};

/// The part of the shared jobs that is here.
pub struct Local {
    /// Their states; results are elsewhere.
    pub ledger: Ledger<Box<Call>, ()>,
    /// What the engine knows them by.
    held: HashMap<JobId, Held>,
    /// How many jobs of each lane are asked for at the moment.
    asked: Vec<usize>,
    /// Whether no job is taken any more.
    pub is_draining: bool,
    /// Whether what runs here is being compared with what the engine knows.
    pub is_comparing: bool,
    /// How many threads ask for jobs at the moment.
    asking: usize,
    /// Whether the thread that watches the time has to look again.
    wakes_timekeeper: bool,
    /// Whether some thread could not ask for a lane whose room others keep.
    is_missed: bool,
    /// The jobs that were cancelled when they were not here yet, while some thread asks.
    cancelled: HashSet<JobId>,
}

/// A job that is here.
pub struct Held {
    /// The job.
    pub key: JobKey,
    /// Under which fence it runs.
    pub fence: u64,
    /// Which incarnation of this process took it.
    pub incarnation: u64,
    /// Whether the engine has taken it away since: its result is dropped.
    pub is_lost: bool,
    /// What it had come to before it was taken, until it begins.
    pub resumed: Option<Resumed>,
    /// The handle to its handler, once it began.
    pub execution: Option<Arc<Execution>>,
    /// Which progress the engine was told.
    pub told: Option<String>,
}

/// What a job had come to in its attempts before.
#[derive(Debug, Default)]
pub struct Resumed {
    /// When the first attempt began.
    pub started: Option<Stamp>,
    /// How many there were.
    pub made: u32,
    /// How often it could not begin for want of descriptors, processes or memory.
    pub shortages: u32,
    /// The last of what it wrote to stderr.
    pub log: LogEnd,
    /// The last line of that.
    pub progress: Option<String>,
}

/// A request for a job, for which room is kept in these lanes.
pub struct Asking(pub Vec<usize>);

impl Local {
    /// Nothing is here.
    pub fn new(room: Room, plan: Plan) -> Self {
        let lanes = plan.lanes.len();
        Self {
            ledger: Ledger::new(room, plan, None),
            held: HashMap::new(),
            asked: vec![0; lanes],
            is_draining: false,
            is_comparing: false,
            asking: 0,
            wakes_timekeeper: false,
            is_missed: false,
            cancelled: HashSet::new(),
        }
    }

    /// Returns which lanes to ask for a job; `None` if no job may be taken, or none has room.
    pub fn ask(&mut self) -> Option<Asking> {
        if self.is_draining || self.is_comparing {
            return None;
        }
        let mut lanes = Vec::with_capacity(self.asked.len());
        for (lane, (room, asked)) in self.ledger.rooms().zip(&self.asked).enumerate() {
            match room.saturating_sub(*asked) {
                0 => self.is_missed |= room > 0,
                _ => lanes.push(lane),
            }
        }
        if lanes.is_empty() {
            return None;
        }
        for lane in &lanes {
            self.asked[*lane] += 1;
        }
        self.asking += 1;
        Some(Asking(lanes))
    }

    /// Gives back the room that was kept; whether a thread has missed it.
    pub fn asked(&mut self, asking: &Asking) -> bool {
        for lane in &asking.0 {
            self.asked[*lane] -= 1;
        }
        self.asking -= 1;
        if self.asking == 0 {
            self.cancelled.clear();
        }
        std::mem::take(&mut self.is_missed)
    }

    /// Has a job stopped that was cancelled: it runs here, or is on its way.
    pub fn cancel(&mut self, id: JobId) -> Option<Arc<Execution>> {
        let execution = self.execution(id);
        if execution.is_none() && self.asking > 0 {
            self.cancelled.insert(id);
        }
        execution
    }

    /// Has the thread that watches the time look again.
    pub const fn wake_timekeeper(&mut self) {
        self.wakes_timekeeper = true;
    }

    /// Whether some thread asks for jobs.
    pub const fn is_asking(&self) -> bool {
        self.asking > 0
    }

    /// Takes in a job.
    pub fn insert(
        &mut self,
        held: Held,
        route: RouteIndex,
        call: Call,
        pending: impl FnOnce(RouteIndex, Box<Call>) -> Pending<Box<Call>>,
    ) {
        let key = held.key.clone();
        self.held.insert(key.id, held);
        // It is listed where the engine lists it; here no client finds it.
        self.ledger.found_pending(&key, Box::new(pending(route, Box::new(call))), Keep::Nothing);
    }

    /// Returns a job that begins, for its worker.
    pub fn begin(&mut self, taken: Taken<Box<Call>>) -> Claimed {
        let Claimed { job, mut attempt } = taken.claimed();
        if self.cancelled.remove(&job.id) {
            attempt.execution.stop(Stop::Cancel);
        }
        if let Some(held) = self.held.get_mut(&job.id) {
            held.execution = Some(Arc::clone(&attempt.execution));
            if let Some(Resumed { started, made, shortages, log, progress }) = held.resumed.take() {
                (attempt.started, attempt.made, attempt.shortages) = (started, made, shortages);
                attempt.execution.growing_log().resume(&log);
                if let Some(line) = progress {
                    attempt.execution.set_progress(&line);
                }
            }
        }
        Claimed { job, attempt }
    }

    /// Returns a job that is here.
    pub fn held(&self, id: JobId) -> Option<&Held> {
        self.held.get(&id)
    }

    /// Whether a job is here that only waits, for the lane of its redirect or a delay.
    pub fn is_waiting(&self, id: JobId) -> Option<JobKey> {
        let held = self.held(id).filter(|held| !held.is_lost)?;
        (!self.ledger.is_running(&held.key)).then(|| held.key.clone())
    }

    /// Returns all that are here.
    pub fn all(&mut self) -> impl Iterator<Item = &mut Held> {
        self.held.values_mut()
    }

    /// Whether none is here.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Lets go of a job, which has its result or goes on elsewhere.
    pub fn remove(&mut self, id: JobId) -> Option<Held> {
        self.held.remove(&id)
    }

    /// Returns the handle to what runs for a job.
    pub fn execution(&self, id: JobId) -> Option<Arc<Execution>> {
        self.held(id).filter(|held| !held.is_lost)?.execution.clone()
    }

    /// Notes that the engine has taken away jobs; returns how many. Those that run are stopped, and those that wait
    /// here are gone.
    pub fn lose(&mut self, is_lost: impl Fn(&Held) -> bool) -> usize {
        let mut count = 0;
        let mut waiting = Vec::new();
        for held in self.held.values_mut().filter(|held| !held.is_lost) {
            if !is_lost(held) {
                continue;
            }
            held.is_lost = true;
            count += 1;
            match self.ledger.is_running(&held.key) {
                true => {
                    if let Some(execution) = &held.execution {
                        execution.stop(Stop::Cancel);
                    }
                }
                false => waiting.push(held.key.clone()),
            }
        }
        for key in waiting {
            self.ledger.let_go(&key);
            self.held.remove(&key.id);
        }
        count
    }
}

impl Wake for Local {
    fn wakes(&mut self) -> Wakes {
        let mut wakes = self.ledger.wakes();
        wakes.timekeeper |= std::mem::take(&mut self.wakes_timekeeper);
        wakes
    }

    fn is_stopped(&self) -> bool {
        self.ledger.is_stopped()
    }
}
