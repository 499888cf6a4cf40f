//! The part of the shared jobs that an instance holds: the jobs that it runs, and its lanes.
//!
//! Owns the ledger of this process, which has a job from when it is taken until it is given back, and the fence under
//! which the job runs. Does no I/O. Invariants: nothing is sent to the engine about a job that it has taken away; an
//! instance asks for no more jobs of a lane than the lane has room for.

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

/// The part of the shared jobs that this instance holds.
pub struct Local {
    /// The states of these jobs; results are in the engine.
    pub ledger: Ledger<Box<Call>, ()>,
    /// What the engine needs to identify them.
    held: HashMap<JobId, Held>,
    /// How many jobs of each lane are being asked for.
    asked: Vec<usize>,
    /// Whether no more jobs are taken.
    pub is_draining: bool,
    /// Whether the jobs that run here are being compared with what the engine knows.
    pub is_comparing: bool,
    /// How many threads are asking for jobs.
    asking: usize,
    /// Whether the thread that watches the time must check again.
    wakes_timekeeper: bool,
    /// Whether a thread could not ask for a lane because other threads hold its room.
    is_missed: bool,
    /// The jobs that were cancelled before they arrived here, while a thread asks.
    cancelled: HashSet<JobId>,
}

/// A job that this instance holds.
pub struct Held {
    /// The job.
    pub key: JobKey,
    /// The fence under which it runs.
    pub fence: u64,
    /// The incarnation of this process that took it.
    pub incarnation: u64,
    /// Whether the engine has since taken it away: its result is then dropped.
    pub is_lost: bool,
    /// Its state from earlier attempts, until it begins.
    pub resumed: Option<Resumed>,
    /// The handle to its handler, once it has begun.
    pub execution: Option<Arc<Execution>>,
    /// The progress that was last sent to the engine.
    pub told: Option<String>,
}

/// The state of a job from earlier attempts.
#[derive(Debug, Default)]
pub struct Resumed {
    /// When the first attempt began.
    pub started: Option<Stamp>,
    /// How many attempts were made.
    pub made: u32,
    /// How often it could not begin for lack of descriptors, processes or memory.
    pub shortages: u32,
    /// The last bytes that it wrote to stderr.
    pub log: LogEnd,
    /// The last line among them.
    pub progress: Option<String>,
}

/// A request for a job, which holds room in these lanes.
pub struct Asking(pub Vec<usize>);

impl Local {
    /// Begins without jobs.
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

    /// Returns which lanes to ask for a job; `None` if no job may be taken, or no lane has room.
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

    /// Gives back the room that was held; returns whether another thread needed it.
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

    /// Cancels a job: returns its handle if it runs here; remembers the cancellation if the job may be on its way.
    pub fn cancel(&mut self, id: JobId) -> Option<Arc<Execution>> {
        let execution = self.execution(id);
        if execution.is_none() && self.asking > 0 {
            self.cancelled.insert(id);
        }
        execution
    }

    /// Makes the thread that watches the time check again.
    pub const fn wake_timekeeper(&mut self) {
        self.wakes_timekeeper = true;
    }

    /// Returns whether a thread is asking for jobs.
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
        // The engine lists the job; in this ledger, no client finds it.
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

    /// Returns a job that this instance holds.
    pub fn held(&self, id: JobId) -> Option<&Held> {
        self.held.get(&id)
    }

    /// Returns the key of a job here that waits, for the lane of its redirect or a delay.
    pub fn is_waiting(&self, id: JobId) -> Option<JobKey> {
        let held = self.held(id).filter(|held| !held.is_lost)?;
        (!self.ledger.is_running(&held.key)).then(|| held.key.clone())
    }

    /// Returns all jobs that this instance holds.
    pub fn all(&mut self) -> impl Iterator<Item = &mut Held> {
        self.held.values_mut()
    }

    /// Returns whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Removes a job that has its result or goes on elsewhere.
    pub fn remove(&mut self, id: JobId) -> Option<Held> {
        self.held.remove(&id)
    }

    /// Returns the handle to the handler of a job.
    pub fn execution(&self, id: JobId) -> Option<Arc<Execution>> {
        self.held(id).filter(|held| !held.is_lost)?.execution.clone()
    }

    /// Records that the engine has taken jobs away; returns how many. Running jobs are stopped, and waiting ones are
    /// removed.
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
