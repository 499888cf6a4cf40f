//! The scripts that run in the engine; each is one operation of the store.
//!
//! Owns their text: a line that tells the engine what the script may do, the prologue, and the script itself, whose
//! first lines are its contract. Invariants: an operation is one script, so it happens completely or not at all; a
//! release sends no other text.

use std::sync::OnceLock;

use crate::test_variable;

/// A script.
pub struct Script {
    /// Its name, for the log.
    pub name: &'static str,
    /// What it may do, as the engine reads it (redis.io: Eval flags).
    flags: &'static str,
    /// Its text after the prologue, which would be most of a binary that had it in each script.
    own: &'static str,
    /// The digest under which an engine stores it (SCRIPT LOAD).
    pub digest: OnceLock<String>,
}

/// The beginning of every script.
const PROLOGUE: &str = include_str!("scripts/prologue.lua");

/// What a test removes to show what it is for (`DEFERD_TEST_WITHOUT`): its name, the script, the text that is removed,
/// and the text that replaces it.
const CONTROLS: [(&str, &str, &str, &str); 4] = [
    ("memo", "submit", "if NONCE ~= '' then\n    local last", "if false then\n    local last"),
    ("fence", "finish", "if not is_living(inc) then return drop('fenced') end\n", ""),
    ("fence", "finish", " or j.F ~= ARGV[7]", ""),
    ("mercy", "reap", "if now < mercy then return {'mercy'} end", ""),
];

impl Script {
    /// Returns its text in the form that an engine gets.
    pub fn text(&self) -> String {
        let whole = ["#!lua flags=", self.flags, "\n", PROLOGUE, self.own].concat();
        let Some(without) = test_variable::read("DEFERD_TEST_WITHOUT") else { return whole };
        let own = CONTROLS.iter().filter(|(part, name, ..)| *part == without && *name == self.name);
        own.fold(whole, |whole, (_, _, text, instead)| whole.replace(text, instead))
    }
}

macro_rules! scripts {
    ($($(#[$doc:meta])* $name:ident: $file:literal, $flags:literal;)*) => {
        $($(#[$doc])* pub static $name: Script = Script {
            name: $file,
            flags: $flags,
            own: include_str!(concat!("scripts/", $file, ".lua")),
            digest: OnceLock::new(),
        };)*

        /// All scripts.
        #[cfg(test)]
        pub static ALL: &[&Script] = &[$(&$name),*];
    };
}

scripts! {
    /// Accepts a job. An engine without memory refuses only this script.
    SUBMIT: "submit", "";
    /// Hands out jobs.
    TAKE: "take", "allow-oom";
    /// Gives a job its result.
    FINISH: "finish", "allow-oom";
    /// Delays a job.
    RETRY: "retry", "allow-oom";
    /// Ends delays.
    DUE: "due", "allow-oom";
    /// Takes a result into delivery.
    COLLECT: "collect", "allow-oom";
    /// Ends deliveries.
    SETTLE: "settle", "allow-oom";
    /// Cancels a job.
    CANCEL: "cancel", "allow-oom";
    /// Forgets a job.
    FORGET: "forget", "allow-oom";
    /// Forgets jobs by time.
    FORGET_BEFORE: "forget_before", "allow-oom";
    /// Forgets all jobs of an owner.
    FORGET_ALL: "forget_all", "allow-oom";
    /// Removes what `FORGET_ALL` left.
    PURGE: "purge", "allow-oom";
    /// Removes what is old.
    EXPIRE: "expire", "allow-oom";
    /// Reads a job.
    LOOK: "look", "no-writes";
    /// Requests a message at the end of a job.
    WATCH: "watch", "allow-oom";
    /// Reads a list.
    LIST: "list", "no-writes";
    /// Reads records.
    RECORDS: "records", "no-writes";
    /// Reads the counters.
    STATS: "stats", "no-writes";
    /// Finds the job that was accepted under a key.
    RECALL: "recall", "allow-oom";
    /// Begins an incarnation.
    JOIN: "join", "allow-oom";
    /// Keeps an incarnation alive.
    BEAT: "beat", "allow-oom";
    /// Gives back the jobs of a dead incarnation.
    REAP: "reap", "allow-oom";
    /// Ends an incarnation in order.
    LEAVE: "leave", "allow-oom";
    /// Records another engine.
    EPOCH: "epoch", "allow-oom";
    /// Compares what runs.
    RECONCILE: "reconcile", "allow-oom";
    /// Undoes an operation that was given up.
    WITHDRAW: "withdraw", "allow-oom";
    /// Finds lanes that no instance serves.
    STRAY: "stray", "no-writes";
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{MAX_STARTS, RECORD};
    use crate::ledger::{idempotency, logs};

    #[test]
    fn the_scripts_have_the_limits_of_the_ledger() {
        let (places, logs) = (idempotency::PLACES, logs::MOST);
        let line = format!(
            "local RECORD, PLACES, STARTS, LOGS = {RECORD}, {places}, {MAX_STARTS}, {logs}\n"
        );
        assert!(PROLOGUE.contains(&line), "{line}");
    }

    #[test]
    fn each_control_removes_one_place() {
        for (part, name, text, _) in CONTROLS {
            let script = ALL.iter().find(|script| script.name == name).unwrap();
            assert_eq!(script.text().matches(text).count(), 1, "{part}: {name} has {text:?}");
        }
    }

    #[test]
    fn every_script_begins_with_its_contract() {
        for script in ALL {
            let Script { name, flags, own, .. } = script;
            let says = |words: &str| own.contains(words);
            assert!(own.starts_with(&format!("-- {name}: ")), "{name} does not say what it does");
            assert!(says("Replies"), "{name} does not say what it replies");
            assert_eq!(*flags == "no-writes", says("Changes nothing."), "{name}");
        }
    }
}
