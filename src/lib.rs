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
//! - [`logger`]: what is logged, and how a line looks; `log_writer` writes it and never blocks the thread that logs.
//! - [`config`]: every option, from text to checked values (`command`, `file`, `check`; `route`, `hook`, `address`,
//!   `store`, `sizes`, `value`). It starts nothing.
//! - [`server`]: the wiring, from top to bottom, and the orderly end. `table` makes the routes, `programs` finds
//!   those that are told of jobs, `limits` has the limits of connections.
//! - [`listen`]: the listening sockets, opened or handed over; readiness. `descriptors`: how many there may be.
//! - [`socket`]: TCP and Unix sockets alike. [`front`]: what is said over them: `accept` → `connection` (its
//!   `client`, `input`, `output`) → `head` (its `target`) → `body` (its `intake`) → service → `reply`, or `flow` for
//!   a response that is sent while it is produced. `slots` bounds connections, `in_flight` counts requests;
//!   `tiny_http` is the other front.
//! - [`service`]: checks a request; a `session` then runs it or defers it. `outgoing` is the response, `access_log`
//!   its line. `cross_origin` decides which web pages may send requests, `allowed_hosts` under which names, `cors`
//!   which may read the responses; `auth` finds the user; `deferral` (with `prefer`) how the client wants to be
//!   answered. An [`operator_file`] has users, secrets or variables that SIGHUP reads again.
//! - [`routes`]: finds the handler. `methods` has the methods of a route, `signature` checks signed requests.
//! - [`handler`]: runs a request. `cgi` and `run` translate for scripts, `locate` finds them, `environment` (with the
//!   operator's [`variables`]) prepares them, `child` runs them over its `pipes`, each in its `group`, with its
//!   `descendants` (found in the `process_table`); `stderr` reads their log and progress; the `reaper` has the children
//!   that deferd inherits; `loading` explains why a script cannot start; `header_block` reads what CGI scripts write.
//!   `upstream` calls another service: `request` makes what is sent, `resolve` finds the address, `socket` connects,
//!   `deadline` and `noise` bound the call; its `callback` posts the end of a job to a URL; [`plain_http`] is what ureq
//!   does of HTTP. `hop_by_hop` has the fields that end here; `completion` runs the programs that are told of jobs.
//! - [`sink`]: where a handler writes its response, for a job or for a client that waits.
//! - [`retry`]: whether a job is tried again, and when.
//! - [`api`]: the built-in endpoints, a handler like any other. `endpoints` is their table, one row each; `openapi`
//!   describes the rows; `job`, `records`, `admin`, `metrics`, `echo`, `collection` answer, `query` reads parameters,
//!   `range` cuts a part of a result, `follow` sends a log while it grows; `page` is the web page.
//! - [`jobs`]: jobs as the service sees them: submitted, waited for, collected; callers in their lanes.
//! - [`workers`]: the fixed pool that runs jobs, and the janitor.
//! - [`store`]: keeps jobs and hands them out: the contract, and the stores `memory`, `disk` and `redis` (feature: each
//!   operation is a `script` in an `engine`, by a connection of the `pool` to the `primary`, whose `health` is told;
//!   `promise` is the store: `submit` accepts a job, `claim` takes it, `running` ends it, `reading` finds results,
//!   `forgetting` removes; its threads are `keeper`, `settler` and `bell`). In `disk`, `open` checks the file, `submit`
//!   accepts a job, `state` hands each change to the `writer`, in `order`, which puts `record`s and messages into
//!   `tables`, where `transaction` makes each change; `engine` is the file below (`overlay`, `dirty`); `reading` finds
//!   requests and results again, `loads` holds the messages that are read, `outcome` what a change is answered with.
//! - [`ledger`]: the state of every job: `job` draws its life; `submit`, `running`, `finishing`, `notices`,
//!   `results`, `forgetting` and the `end` are its stations; `schedule`, `records` as they are listed, kept `logs`,
//!   `tally`, the `index` by time, `idempotency` keys, `waiters`, and the lock (`locked`).
//! - [`job`]: a job's id, stamp and `attempt`; the handle to a running handler (`execution`); processes that linger
//!   (`lingering`), what a run writes to stderr (`log`); requests and responses at rest (`message`, `stored`); what a
//!   record keeps of them (`request_line`, `outcome`); the jobs that tell of its end (`notice`).
//! - [`content`]: content while it comes, and `at_rest`, in memory or in a `file`; `utf8` tells text. [`memory`]: the
//!   budget that it is charged to (`kept`: what the heap keeps). [`files`]: the folder of content too large for memory.
//! - [`clock`]: the wall clock, and the clock by which things grow old.
//! - [`exchange`]: a request with its origin, a response with its receipt.
//! - [`dots`] keeps a path below its route or directory; [`callback_url`] decides which URLs may be told of jobs.
//! - [`fields`]: fields by their names. [`hex`]: bytes as digits. [`protocol`]: the names of deferd's own fields and
//!   paths.
//! - [`metrics`]: what is counted beside the store, in [`histogram`]s of durations.
//! - [`error`]: the one table of deferd's own errors. [`test_variable`]: what a test changes.
//!
//! Beside all of this, `client` has the commands that ask a running deferd (`arguments`, `commands`, `server` over
//! `transport`, and one file for each larger command).

pub mod access_log;
pub mod allowed_hosts;
pub mod api;
pub mod auth;
pub mod callback_url;
#[cfg(feature = "client")]
pub mod client;
pub mod clock;
pub mod config;
pub mod content;
pub mod cors;
pub mod cross_origin;
pub mod deferral;
pub mod descriptors;
pub mod dots;
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
pub mod plain_http;
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
pub mod test_variable;
pub mod variables;
pub mod workers;
