//! The shared store for the suites of `store`: each test has an engine of its own, which is audited at its end.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use deferd::config::{Durability, StoreAddress};
use deferd::store::redis::{Clock, SharedStore, Sharing};
use deferd::store::{Plan, Store};

use super::audit::audit;
use super::engine::Engine;
use crate::store::kit::{CAPACITY, one_lane, room};

thread_local! {
    /// The engines of this test, which end with its thread.
    static ENGINES: RefCell<Vec<Engine>> = const { RefCell::new(Vec::new()) };
}

/// Opens the shared store on an engine of its own.
pub fn shared() -> Arc<dyn Store> {
    shared_with(one_lane())
}

/// Opens the shared store on an engine of its own, with these lanes.
pub fn shared_with(plan: Plan) -> Arc<dyn Store> {
    let engine = Engine::start(&[]);
    let store = open(&engine, plan, CAPACITY);
    ENGINES.with_borrow_mut(|engines| engines.push(engine));
    Arc::new(store)
}

/// Opens the store on an engine, with the clock of the test.
pub fn open(engine: &Engine, plan: Plan, capacity: usize) -> SharedStore {
    open_by(Clock::Caller, engine, plan, capacity)
}

/// Opens the store on an engine.
pub fn open_by(clock: Clock, engine: &Engine, plan: Plan, capacity: usize) -> SharedStore {
    let sharing = Sharing {
        address: StoreAddress::parse(&engine.address()).unwrap(),
        lease: Duration::from_secs(10),
        durability: Durability::Relaxed,
        clock,
    };
    let lanes: Vec<String> = (0..plan.lanes.len()).map(|n| format!("/lane{n}/")).collect();
    SharedStore::open(sharing, room(capacity), plan, lanes.into_iter()).unwrap()
}

/// Audits the engines of this test.
pub fn audit_engines() {
    ENGINES.with_borrow(|engines| {
        for engine in engines {
            audit(&mut engine.connect(), "default");
        }
    });
}
