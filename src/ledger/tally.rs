//! The tally of a store: counts of its jobs since the process began.
//!
//! Owns the counts. They are kept under the store's lock, which each of these events takes anyway: so they cost no
//! synchronization of their own, and always agree with the states of the jobs. Invariant: a job is counted when this
//! process accepts it, and when it gets its result, in whatever way.

use crate::histogram::Histogram;
use crate::job::execution::Attempts;
use crate::job::notice::NoticeLane;
use crate::job::outcome::Outcome;
use crate::job::{RouteIndex, Stamp};

/// Counts of jobs by what happened to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// One for each route, at its index; the last are those of the notices' lanes.
    pub routes: Vec<OfRoute>,
    /// From acceptance to the first attempt, of jobs that are done.
    pub wait: Histogram,
    /// From the first attempt to the result.
    pub run: Histogram,
    /// How often the store could not be read or changed.
    pub errors: u64,
}

/// The counts of one route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OfRoute {
    /// How many were accepted.
    pub submitted: u64,
    /// How many ended, in the order of [`Outcome::ALL`].
    pub finished: [u64; Outcome::ALL.len()],
}

impl Tally {
    /// Returns the tally of this many routes, the last of which are the lanes of notices.
    pub fn new(routes: usize) -> Self {
        Self { routes: vec![OfRoute::default(); routes], ..Self::default() }
    }

    /// Counts a job that was accepted.
    pub(crate) fn submit(&mut self, route: Option<RouteIndex>) {
        if let Some(of_route) = self.of(route) {
            of_route.submitted += 1;
        }
    }

    /// Counts a job that has its result.
    pub(crate) fn finish(
        &mut self,
        route: Option<RouteIndex>,
        outcome: Outcome,
        created: Stamp,
        attempts: Attempts,
        finished: Stamp,
    ) {
        if let Some(of_route) = self.of(route) {
            of_route.finished[outcome as usize] += 1;
        }
        // A notice waits for its receiver, so it is no measure of how jobs run.
        let is_notice =
            route.is_some_and(|route| route.0 >= self.routes.len() - NoticeLane::ALL.len());
        if let Some(first) = attempts.first.filter(|_| !is_notice) {
            self.wait.observe(first.since(created));
            self.run.observe(finished.since(first));
        }
    }

    fn of(&mut self, route: Option<RouteIndex>) -> Option<&mut OfRoute> {
        self.routes.get_mut(route?.0)
    }
}
