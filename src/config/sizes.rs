//! The sizes that follow from each other, and from the memory of this host.
//!
//! Owns the defaults of `--max-memory`, `--max-stored`, `--max-body` and `--max-output`, and the rules between them.
//! Invariants: an explicit size is used as it is, or refused; only defaults are adapted; without `--data`, no content
//! is accepted that could never fit into memory.

use std::fs;
use std::path::Path;

use super::{Config, Invalid, RouteConfig};

/// Bounds of the default of `--max-memory`, in bytes.
const LEAST: usize = 16 << 20;
const MOST: usize = 256 << 20;

/// The default of `--max-body` and `--max-output` if the memory allows it, in bytes.
const CONTENT: usize = 16 << 20;

/// The default of `--max-stored` with `--data` or `--store`, in bytes.
const ON_DISK: usize = 1 << 30;

/// How large the fields of a script's result may be, in bytes.
const SCRIPT_FIELDS: usize = 64 * 1024;

/// The most that is stored with a message besides its content and its fields, in bytes: the log, the record.
const BESIDE: usize = 16 * 1024;

/// Sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// All content in memory.
    pub memory: usize,
    /// Waiting requests and kept results.
    pub stored: usize,
    /// The content of a request.
    pub body: usize,
    /// A script's stdout or an upstream's answer, if its route sets no limit.
    pub output: usize,
}

impl Config {
    /// Returns the sizes in effect.
    pub fn sizes(&self) -> Sizes {
        let memory = self.max_memory;
        // With --data, large content is in files.
        let content = if self.data.is_some() { CONTENT } else { CONTENT.min(memory / 4) };
        let most = self.most_content();
        // Without --data or --store, what is stored is in memory, and content in transit needs some memory too.
        let in_memory = memory - memory / 4;
        let stored = match (self.is_stored_elsewhere(), self.max_stored) {
            (true, stored) => stored.unwrap_or(ON_DISK),
            (false, stored) => stored.unwrap_or(in_memory).min(in_memory),
        };
        Sizes {
            memory,
            stored,
            body: self.max_body.unwrap_or(content.min(most)),
            output: self.max_output.unwrap_or(content.min(most)),
        }
    }

    /// Returns the size of the largest content that can be received and produced, in bytes. With `--data`, only
    /// `--max-stored` and the disk bound it. With `--store`, it must be readable again, with its fields and its log,
    /// while the process keeps up to half of the memory for other purposes: larger content would wait for ever.
    pub fn most_content(&self) -> usize {
        if self.data.is_some() {
            return usize::MAX;
        }
        if self.store.is_none() {
            return self.max_memory;
        }
        let beside = self.max_head.max(SCRIPT_FIELDS) + BESIDE;
        (self.max_memory / 2).saturating_sub(beside).max(self.max_memory / 4)
    }

    /// Checks that the largest content that an option allows can be received, and read back.
    pub(super) fn check_sizes(&self) -> Result<(), Invalid> {
        let most = self.most_content();
        let check = |place: &str, size: Option<usize>| {
            let Some(size) = size.filter(|size| *size > most) else { return Ok(()) };
            let memory = shown(self.max_memory);
            let what = if self.store.is_some() {
                format!(
                    "with --store content may take {most} bytes, because --max-memory is {memory}: raise that, or \
                     lower this"
                )
            } else {
                format!(
                    "without --data content is in memory, and --max-memory is {memory}: raise that, or \
                     lower this"
                )
            };
            Err(Invalid::new(place, &shown(size), what))
        };
        check(&self.place("max-body"), self.max_body)?;
        check(&self.place("max-output"), self.max_output)?;
        let of_route = |route: &RouteConfig| {
            check(&format!("{} {} max-output", route.place, route.prefix), route.max_output)
        };
        self.routes.iter().try_for_each(of_route)
    }
}

/// Returns a size in the form of the options.
pub fn shown(bytes: usize) -> String {
    let units = [(30, "G"), (20, "M"), (10, "K")];
    let whole = |&(shift, _): &(u32, &str)| bytes != 0 && bytes.trailing_zeros() >= shift;
    match units.into_iter().find(whole) {
        Some((shift, unit)) => format!("{}{unit}", bytes >> shift),
        None => bytes.to_string(),
    }
}

/// Returns the default of `--max-memory`: a quarter of the memory of this host or its control group.
pub fn default_memory() -> usize {
    let read = |path: &Path| fs::read_to_string(path).ok();
    let has = of_host(read).unwrap_or(usize::MAX);
    (has / 4).clamp(LEAST, MOST)
}

/// Returns the memory of this host, or of the smallest control group around this process, in bytes.
fn of_host(read: impl Fn(&Path) -> Option<String>) -> Option<usize> {
    let info = read(Path::new("/proc/meminfo"));
    let total = info.as_deref().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
    });
    let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let limits = groups.lines().filter_map(|line| {
        // `0::/path` in version 2, `N:memory:/path` in version 1.
        let mut parts = line.splitn(3, ':').skip(1);
        let controllers = parts.next()?;
        let path = parts.next()?.trim_start_matches('/');
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => return None,
        };
        let directory = Path::new(root).join(path);
        // The limit of a group bounds all groups below it; within a container, the path may not be visible.
        let above = directory.ancestors().take_while(|at| at.starts_with(root));
        above.filter_map(|at| read(&at.join(file))?.trim().parse::<usize>().ok()).min()
    });
    limits.chain(total).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_group_bounds_the_memory_of_the_host() {
        let info = ("/proc/meminfo", "MemTotal:       4000 kB\nMemFree: 1 kB\n");
        let group = |line| ("/proc/self/cgroup", line);
        for (files, expected) in [
            (&[info][..], Some(4000 << 10)),
            (&[], None),
            (
                &[info, group("0::/a/b\n"), ("/sys/fs/cgroup/a/b/memory.max", "max\n")],
                Some(4000 << 10),
            ),
            (
                &[
                    info,
                    group("0::/a/b\n"),
                    ("/sys/fs/cgroup/a/b/memory.max", "3000000\n"),
                    ("/sys/fs/cgroup/a/memory.max", "2000000\n"),
                ],
                Some(2_000_000),
            ),
            (&[info, group("0::/\n"), ("/sys/fs/cgroup/memory.max", "1000000\n")], Some(1_000_000)),
            (
                &[
                    info,
                    group("3:cpu:/x\n5:memory:/docker/x\n"),
                    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "2500000\n"),
                ],
                Some(2_500_000),
            ),
            (
                &[group("5:memory:/\n"), ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9\n")],
                Some(9),
            ),
        ] {
            let read = |path: &Path| {
                let found = files.iter().find(|(name, _)| Path::new(name) == path);
                found.map(|(_, text)| (*text).to_owned())
            };
            assert_eq!(of_host(read), expected, "{files:?}");
        }
    }

    #[test]
    fn defaults_fit_the_memory_and_explicit_sizes_stay() {
        let config = |memory: usize| Config { max_memory: memory, ..Config::default() };
        let small = config(16 << 20).sizes();
        assert_eq!((small.stored, small.body, small.output), (12 << 20, 4 << 20, 4 << 20));
        let large = config(256 << 20).sizes();
        assert_eq!((large.stored, large.body, large.output), (192 << 20, 16 << 20, 16 << 20));
        let disk = Config { data: Some("/x".into()), ..config(16 << 20) };
        assert_eq!((disk.sizes().stored, disk.sizes().body), (1 << 30, 16 << 20));
        let explicit = Config { max_body: Some(8 << 20), max_stored: Some(99), ..config(16 << 20) };
        assert_eq!((explicit.sizes().body, explicit.sizes().stored), (8 << 20, 99));
        assert!(explicit.check_sizes().is_ok());
    }

    #[test]
    fn content_larger_than_the_memory_is_refused_at_start() {
        let config = Config { max_memory: 16 << 20, ..Config::default() };
        for (config, named) in [
            (Config { max_body: Some(17 << 20), ..config.clone() }, "--max-body \"17M\""),
            (Config { max_output: Some(1 << 30), ..config.clone() }, "--max-output \"1G\""),
        ] {
            let error = config.check_sizes().unwrap_err().to_string();
            assert!(error.contains(named) && error.contains("--max-memory is 16M"), "{error}");
            let on_disk = Config { data: Some("/x".into()), ..config };
            assert!(on_disk.check_sizes().is_ok());
        }
    }

    #[cfg(feature = "redis")]
    #[test]
    fn content_that_could_not_be_read_back_is_refused_at_start() {
        let address = crate::config::StoreAddress::parse("redis://h:1").unwrap();
        let config = Config { max_memory: 16 << 20, store: Some(address), ..Config::default() };
        let most = config.most_content();
        assert!(most < 8 << 20);
        for (size, is_ok) in [(most, true), (most + 1, false)] {
            let body = Config { max_body: Some(size), ..config.clone() };
            let output = Config { max_output: Some(size), ..config.clone() };
            for config in [body, output] {
                let checked = config.check_sizes().map_err(|error| error.to_string());
                assert_eq!(checked.is_ok(), is_ok, "{checked:?}");
                let names_both = |error: &String| {
                    error.contains(&most.to_string()) && error.contains("--max-memory is 16M")
                };
                assert!(checked.as_ref().err().is_none_or(names_both), "{checked:?}");
            }
        }
    }

    #[test]
    fn content_on_disk_may_be_larger_than_memory() {
        let config = Config { max_memory: 16 << 20, data: Some("/x".into()), ..Config::default() };
        for (body, output) in [(1 << 40, 1 << 41), (99, 98)] {
            let (max_body, max_output) = (Some(body), Some(output));
            let config = Config { max_body, max_output, ..config.clone() };
            assert!(config.check_sizes().is_ok());
            assert_eq!((config.sizes().body, config.sizes().output), (body, output));
        }
    }

    #[test]
    fn sizes_are_shown_in_the_form_of_options() {
        for (bytes, text) in [
            (0, "0"),
            (1000, "1000"),
            (1024, "1K"),
            (1536, "1536"),
            (16 << 20, "16M"),
            (3 << 30, "3G"),
        ] {
            assert_eq!(shown(bytes), text);
        }
    }
}
