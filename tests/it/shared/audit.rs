//! The audit: everything that an engine has is read, and all that follows from the jobs is computed anew.
//!
//! Knows the keys and nothing of how they change. Invariant: a key that no job explains is an error.

use std::collections::{BTreeMap, BTreeSet};

use redis::{Commands, Connection};

/// A queue as it is in an engine.
#[derive(Default)]
struct Queue {
    jobs: BTreeMap<String, BTreeMap<String, String>>,
    /// Lists and sets by name, with their members.
    lists: BTreeMap<String, BTreeSet<String>>,
    /// Strings by kind.
    strings: BTreeMap<String, BTreeSet<String>>,
    meta: BTreeMap<String, String>,
    keys: i64,
    strange: Vec<String>,
}

/// Returns the names of all keys.
fn scan(connection: &mut Connection) -> Vec<String> {
    connection.scan::<String>().unwrap().collect::<Result<_, _>>().unwrap()
}

impl Queue {
    fn read(connection: &mut Connection, prefix: &str) -> Self {
        let mut queue = Self::default();
        for key in scan(connection) {
            let Some(name) = key.strip_prefix(prefix) else { continue };
            let (kind, rest) = name.split_once(':').unwrap_or((name, ""));
            match kind {
                "meta" => queue.meta = connection.hgetall(&key).unwrap(),
                "j" => {
                    queue.jobs.insert(rest.into(), connection.hgetall(&key).unwrap());
                }
                "q" | "r" | "g" => {
                    queue.strings.entry(kind.into()).or_default().insert(rest.into());
                }
                "l" | "p" | "d" | "v" | "lg" | "w" | "ws" | "e" | "le" => {
                    queue.lists.insert(name.into(), connection.zrange(&key, 0, -1).unwrap());
                }
                "run" | "dlv" | "x" => {
                    queue.lists.insert(name.into(), connection.smembers(&key).unwrap());
                }
                "kb" => {
                    let bytes: BTreeMap<String, i64> = connection.hgetall(&key).unwrap();
                    queue.keys = bytes.values().sum();
                }
                "i" | "gone" | "h" | "m" | "b" | "k" | "ke" | "hz" | "hb" | "lanes" => {}
                _ => queue.strange.push(name.into()),
            }
        }
        queue
    }

    /// Returns the lists that there must be.
    fn expected(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut lists: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (id, job) in &self.jobs {
            let field = |name: &str| job.get(name).map_or("", String::as_str);
            let (owner, is_wanted) = (field("o"), field("u").is_empty());
            let mut add = |name: String| {
                lists.entry(name).or_default().insert(id.clone());
            };
            if matches!(field("s"), "q" | "w" | "r") && is_wanted {
                add(format!("p:{owner}"));
            }
            match field("s") {
                "q" => add(format!("l:{}", field("l"))),
                "w" if field("z").is_empty() => add("w".into()),
                "w" => add("ws".into()),
                "r" => {
                    add(format!("run:{}", field("i")));
                    if !field("x").is_empty() {
                        add(format!("x:{}", field("i")));
                    }
                }
                "d" => {
                    add(format!("d:{owner}"));
                    add("e".into());
                }
                "v" => {
                    add(format!("v:{owner}"));
                    add(format!("dlv:{}", field("i")));
                }
                "c" => {
                    add(format!("lg:{owner}"));
                    add("le".into());
                }
                other => panic!("job {id} is in state {other:?}: {job:?}"),
            }
        }
        lists
    }

    fn sum(&self, which: impl Fn(&str) -> bool, of: &str) -> i64 {
        let jobs = self.jobs.values().filter(|job| which(&job["s"]));
        jobs.map(|job| if of.is_empty() { 1 } else { job[of].parse::<i64>().unwrap() }).sum()
    }
}

/// Asserts that all keys of a queue agree; returns how many jobs there are.
#[track_caller]
pub fn audit(connection: &mut Connection, queue: &str) -> usize {
    let prefix = format!("deferd:{{{queue}}}:");
    let queue = Queue::read(connection, &prefix);
    let number = |name: &str| queue.meta.get(name).map_or(0, |text| text.parse::<i64>().unwrap());
    assert_eq!(queue.strange, Vec::<String>::new(), "keys that no operation makes");
    assert_eq!(queue.lists, queue.expected(), "lists, and what follows from the jobs");
    assert_eq!(number("waiting"), queue.sum(|state| state == "q", ""), "how many wait");
    assert_eq!(number("logbytes"), queue.sum(|state| state == "c", "b"), "bytes of kept logs");
    assert_eq!(number("keybytes"), queue.keys, "bytes of keys");
    assert_eq!(number("bytes"), queue.sum(|_| true, "b") + queue.keys, "bytes");
    for (id, job) in &queue.jobs {
        let has = |kind: &str| queue.strings.get(kind).is_some_and(|ids| ids.contains(id));
        let is_pending = matches!(&*job["s"], "q" | "w" | "r");
        assert_eq!(has("q"), is_pending, "the request of {id}: {job:?}");
        let has_result =
            matches!(&*job["s"], "d" | "v") || job.contains_key("z") || job.contains_key("x");
        assert_eq!(has("r"), has_result, "the result of {id}: {job:?}");
        assert!(!job.contains_key("u") || is_pending, "{id} is unwanted and done: {job:?}");
    }
    for (kind, ids) in &queue.strings {
        let orphans: Vec<_> = ids.iter().filter(|id| !queue.jobs.contains_key(*id)).collect();
        assert!(orphans.is_empty(), "{kind}: of jobs that are gone: {orphans:?}");
    }
    queue.jobs.len()
}
