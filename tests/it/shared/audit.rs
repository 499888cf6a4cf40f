//! The audit: reads everything that an engine has, and recomputes everything that follows from the jobs.
//!
//! Knows the keys, but not how they change. Invariant: a key that no job explains is an error.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use redis::{Commands, Connection};

/// How long pending operations may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The contents of a queue in an engine.
#[derive(Default)]
struct Queue {
    jobs: BTreeMap<String, BTreeMap<String, String>>,
    /// Lists and sets by name, with their members.
    lists: BTreeMap<String, BTreeSet<String>>,
    /// Strings by kind.
    strings: BTreeMap<String, BTreeSet<String>>,
    meta: BTreeMap<String, String>,
    keys: i64,
    /// Owners and their idempotency keys: by owner, and by age.
    by_owner: BTreeSet<String>,
    by_age: BTreeSet<String>,
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
                "n" | "q" | "r" | "g" => {
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
                "k" => {
                    let keys: Vec<String> = connection.hkeys(&key).unwrap();
                    queue.by_owner.extend(keys.iter().map(|key| format!("{rest}\n{key}")));
                }
                "ke" => queue.by_age = connection.zrange(&key, 0, -1).unwrap(),
                "i" | "gone" | "h" | "m" | "b" | "hz" | "hb" | "lanes" => {}
                _ => queue.strange.push(name.into()),
            }
        }
        queue
    }

    /// Returns the lists that must exist.
    fn expected(&self) -> Result<BTreeMap<String, BTreeSet<String>>, String> {
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
                other => return Err(format!("job {id} is in state {other:?}: {job:?}")),
            }
        }
        Ok(lists)
    }

    fn sum(&self, which: impl Fn(&str) -> bool, of: &str) -> i64 {
        let jobs = self.jobs.values().filter(|job| job.get("s").is_some_and(|state| which(state)));
        jobs.map(|job| {
            if of.is_empty() {
                1
            } else {
                job.get(of).and_then(|text| text.parse().ok()).unwrap_or(0)
            }
        })
        .sum()
    }
}

/// Asserts that all keys of a queue agree, once pending operations have ended; returns the number of jobs.
#[track_caller]
pub fn audit(connection: &mut Connection, queue: &str) -> usize {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match look(connection, queue) {
            Ok(jobs) => return jobs,
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(50)),
            Err(error) => panic!("{error}"),
        }
    }
}

/// Compares the keys; returns the number of jobs.
///
/// # Errors
/// What does not agree.
pub fn look(connection: &mut Connection, queue: &str) -> Result<usize, String> {
    let prefix = format!("deferd:{{{queue}}}:");
    let queue = Queue::read(connection, &prefix);
    equal("keys that no operation makes", &queue.strange, &Vec::new())?;
    let number = |name: &str| queue.meta.get(name).map_or(0, |text| text.parse::<i64>().unwrap());
    equal("lists, and what follows from the jobs", &queue.lists, &queue.expected()?)?;
    equal("how many wait", &number("waiting"), &(queue.sum(|state| state == "q", "")))?;
    equal("bytes of kept logs", &number("logbytes"), &(queue.sum(|state| state == "c", "b")))?;
    equal("keys by age, and those of the owners", &queue.by_age, &queue.by_owner)?;
    equal("bytes of keys", &number("keybytes"), &(queue.keys))?;
    equal("bytes", &number("bytes"), &(queue.sum(|_| true, "b") + queue.keys))?;
    for (id, job) in &queue.jobs {
        let has = |kind: &str| queue.strings.get(kind).is_some_and(|ids| ids.contains(id));
        let is_pending = matches!(&*job["s"], "q" | "w" | "r");
        equal(&format!("the request of {id}: {job:?}"), &has("q"), &is_pending)?;
        let has_lines = job.get("s").is_some_and(|state| state != "c");
        equal(&format!("the lines of {id}: {job:?}"), &has("n"), &has_lines)?;
        let has_result =
            matches!(&*job["s"], "d" | "v") || job.contains_key("z") || job.contains_key("x");
        equal(&format!("the result of {id}: {job:?}"), &has("r"), &has_result)?;
        equal(
            &format!("{id} is unwanted and done: {job:?}"),
            &(job.contains_key("u") && !is_pending),
            &false,
        )?;
    }
    for (kind, ids) in &queue.strings {
        let orphans: Vec<_> = ids.iter().filter(|id| !queue.jobs.contains_key(*id)).collect();
        equal(&format!("{kind} of jobs that are gone"), &orphans, &Vec::new())?;
    }
    Ok(queue.jobs.len())
}

fn equal<T: PartialEq + std::fmt::Debug>(
    what: &str,
    found: &T,
    expected: &T,
) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{what}: {found:?} and not {expected:?}")) }
}
