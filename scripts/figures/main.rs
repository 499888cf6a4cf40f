//! The benchmarks of deferd, one subcommand each: `scripts/bench-*` run them.
//!
//! They print and never fail because of speed. Both sides of every ratio are measured in one run, in turn, so that
//! other load on the machine affects both. Everything that is started is ended, and every wait ends within
//! [`server::TIME_LIMIT`].
//!
//! - [`scripts`]: a script job compared with the bare fork+exec of the same script.
//! - [`memory`]: sizes, start, and what a hundred thousand results cost.
//! - [`front`]: the strict front compared with a bare loop over sockets.
//! - [`auth`]: refusals of an unknown user compared with those of a wrong token.
//! - [`asking`]: jobs whose clients wait, compared with those whose clients poll, over each store.
//! - [`store`]: durable submissions compared with those in memory, and what they cost in syncs.
//! - `shared`: several deferd on one engine, compared with a bare loop of the same scripts; with the feature `redis`.
//! - [`records`]: a page of records, among more and more results.
//! - [`upstream`]: a deferred call to an upstream compared with the same call made directly, and clients that wait.
//! - [`limits`]: the highest memory that hostile clients make deferd hold; a [`crowd`], and an [`endless`] upstream
//!   make the `attempts`.
//! - [`content`]: answers as they arrive and answers of a GiB, compared with nginx and `cat`; [`flowing`] has what
//!   passes while a client waits, [`stored`] what is stored.
//! - [`all`]: deferd compared with what a user might choose instead, in one `table`: `deferring`, `running` scripts,
//!   `weighing`, and from the above [`asking`], [`memory`] and [`upstream`]. `peers` starts the other servers, each a
//!   `peer`; `load` runs their clients, which speak `http_job`, `gearman` or `beanstalk`.
//! - [`bare`]: that loop. [`client`], [`server`], [`sample`]: what all of them share.

#![allow(clippy::unwrap_used, reason = "a benchmark may panic")]

mod all;
mod asking;
mod attempts;
mod auth;
mod bare;
mod beanstalk;
mod client;
mod content;
mod crowd;
mod deferring;
mod endless;
mod flowing;
mod front;
mod gearman;
mod http_job;
mod limits;
mod load;
mod memory;
mod peer;
mod peers;
mod records;
mod running;
mod sample;
mod scripts;
mod server;
#[cfg(feature = "redis")]
mod shared;
mod store;
mod stored;
mod table;
mod upstream;
mod weighing;

fn main() {
    // Cargo adds `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut words = arguments.iter().map(String::as_str).filter(|word| !word.starts_with("--"));
    match (words.next(), words.next()) {
        (Some("scripts"), _) => scripts::print(),
        (Some("memory"), _) => memory::print(),
        (Some("front"), _) => front::print(),
        (Some("auth"), _) => auth::print(),
        (Some("asking"), _) => asking::print(),
        (Some("store"), _) => store::print(),
        #[cfg(feature = "redis")]
        (Some("shared"), _) => shared::print(),
        (Some("records"), _) => records::print(),
        (Some("upstream"), _) => upstream::print(),
        (Some("content"), word) => content::print(word),
        (Some("limits"), word) => limits::print(word),
        (Some("all"), Some(environment)) => all::print(environment.as_ref()),
        (Some("bare"), _) => bare::serve(),
        (Some("gearman-worker"), Some(address)) => gearman::work(address.parse().unwrap(), 2),
        _ => println!(
            "Usage: cargo bench --bench figures -- scripts | memory | front | auth | asking | \
             store | shared | records | upstream | content [WORD] | limits [WORD] | all PYTHON-ENVIRONMENT"
        ),
    }
}
