//! deferd runs slow HTTP requests in the background: `202` and an id at once, the complete response later.
//!
//! The binary is the product; this library is its inside, laid out so that it can be read and tested.
//! There is no async runtime: connections and workers are threads, and every wait has a deadline.
//!
//! # Layout
//!
//! In the order in which a request meets the files:
//!
//! - `main`: arguments, signals, exit codes.
//! - [`logger`]: what is logged, and how a line looks; `log_writer` writes it, and never holds up who logs.
//! - [`config`]: every option, from text to checked values. It imports no part that serves requests.
//! - [`server`]: the wiring, from top to bottom (`table` makes the routes), and the orderly end. `limits` are those of a
//!   connection.
//! - [`listen`]: the listening sockets, made or handed over; readiness. `descriptors`: how many there may be.
//! - [`socket`]: TCP and Unix sockets alike. [`front`]: what is said over them. `accept` → `connection` (with its
//!   `client`) → `head` (its `target`) → `body` (its `intake`) → (service) → `reply`, or `flow` for an answer that is
//!   sent while it is produced; `tiny_http` is the other front.
//! - [`service`]: checks a request; a `session` then runs it or defers it. `outgoing` is the answer, and `access_log`
//!   tells of it. `cross_origin` says which web pages may send requests, `allowed_hosts` under which names, `cors` which
//!   of them may read the answers; `auth` says who sends them, `deferral` (and in it `prefer`) how a client wants to be
//!   answered. An [`operator_file`] has the users, secrets or variables that SIGHUP reads again.
//! - [`routes`]: finds the handler. `methods` says which methods a route takes, `signature` who may call it unasked.
//!   [`handler`]: what runs a request. `cgi` and `run` translate for scripts,
//!   `locate` finds them, `environment` (with the operator's [`variables`]) prepares them, `child` runs them, each in its
//!   `group`, with its `descendants` (found in the `process_table`); the `reaper` has the children that deferd inherits;
//!   `loading` says why a script cannot start, `header_block` reads what CGI scripts answer. `upstream` calls
//!   another service, `hop_by_hop` says which fields end here. `dots` keeps a path from climbing out of theirs.
//! - [`retry`]: whether a job is tried once more, and when.
//! - [`api`]: the built-in endpoints, the job resource among them: a handler like any other. `endpoints` is the
//!   table of them, one row each; `openapi` describes the rows. `page` is what a browser shows.
//!   `follow` sends a log while it grows.
//! - [`jobs`]: jobs as the service sees them: submitted, waited for, collected; callers in their lanes.
//! - [`workers`]: the fixed pool that runs jobs, and the janitor.
//! - [`store`]: where jobs are kept, and who hands them out: the promise, and the stores that keep it: `memory`, `redis`
//!   (feature: `script`s in an engine, sent by `engine`; its threads are `keeper`, `settler` and `bell`), and
//!   `disk`. There `submit` accepts a job, `state` hands each change to the `writer`, in `order`, which puts `record`s
//!   and messages into `tables`; `engine` carries those; `loads` has the messages that are read.
//! - [`ledger`]: the state of every job: `job` draws its life, `submit`, `running`, `results` and `forgetting` are the
//!   stations of it; with the `schedule`, the `records` as they are listed, the `tally`, the `index` by time,
//!   `idempotency` keys, `waiters`, and the lock (`locked`).
//! - [`job`]: a job's id, stamp and `attempt`; the handle to a running handler (`execution`), what a run
//!   leaves behind (`lingering`), what it writes to stderr (`log`); requests and responses at rest (`message`, `stored`); what a record keeps of them
//!   (`request_line`, `outcome`).
//! - [`content`]: content while it comes, and at rest: in memory, or in a file. [`memory`]: the budget that all of it
//!   is charged to. [`files`]: the folder of what is too large for memory.
//! - [`clock`]: the wall clock, and the clock by which things grow old.
//! - [`sink`]: where a handler writes its response, for a job or for a client that waits.
//! - [`exchange`]: a request with its origin, an answer with its receipt.
//! - [`fields`]: fields by their names. [`hex`]: bytes as digits. [`protocol`]: the names of the fields and paths that
//!   are deferd's own.
//! - [`metrics`]: what is counted beside the store, in [`histogram`]s of durations.
//! - [`error`]: the one table of deferd's own errors.
//!
//! And beside all of this: `client`, the commands that ask a deferd, such as `deferd run`.

pub mod access_log;
pub mod allowed_hosts;
pub mod api;
pub mod auth;
#[cfg(feature = "client")]
pub mod client;
pub mod clock;
pub mod config;
pub mod content;
pub mod cors;
pub mod cross_origin;
pub mod deferral;
pub mod descriptors;
pub mod error;
pub mod exchange;
pub mod fields;
pub mod files;
pub mod front;
pub mod handler;
pub mod hex;
pub mod histogram;
pub mod job;
pub mod jobs;
pub mod ledger;
pub mod listen;
pub mod log_writer;
pub mod logger;
pub mod memory;
pub mod methods;
pub mod metrics;
pub mod operator_file;
pub mod outgoing;
pub mod prefer;
pub mod protocol;
pub mod retry;
pub mod routes;
pub mod server;
pub mod service;
pub mod signature;
pub mod sink;
pub mod socket;
pub mod store;
pub mod variables;
pub mod workers;
