//! The highest memory that hostile clients make deferd hold (`VmHWM`), attempt by attempt.
//!
//! Each attempt has a deferd of its own with `--max-memory 32M`, once in memory and once with `--data`. If an attempt
//! exceeds the aim, stderr shows its memory by kind of mapping. The attempts are in `attempts`.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::attempts::{ALL, Attempt};
use super::endless;
use super::peer::{Directory, end_on_signals};
use super::server::Server;

/// The limit that no attempt may exceed, in MiB.
const MOST: f64 = 64.0;

/// Scripts below `/run/` and `/cgi/`, each with its name and its lines.
const SCRIPTS: [(&str, &str); 8] = [
    ("large", "head -c 8000000 /dev/zero"),
    ("sized", "head -c \"$QUERY_STRING\" /dev/zero"),
    ("endless", "exec cat /dev/zero"),
    ("stderr", "exec cat /dev/zero >&2"),
    ("lines", "exec yes stderr >&2"),
    ("log", "head -c 9000 /dev/zero | tr '\\0' x >&2"),
    ("wait", "exec sleep 20"),
    // A head of nearly 64 KiB in fields of 8 000 bytes, without content.
    (
        "head",
        "echo 'content-type: text/plain'; x=$(head -c 8000 /dev/zero | tr '\\0' x)\n\
         for n in 1 2 3 4 5 6 7 8; do echo \"x-$n: $x\"; done; echo",
    ),
];

/// A deferd under attack.
pub struct Target {
    pub server: Server,
    /// The options with which it was started, to start it again.
    options: Vec<String>,
    pub is_on_disk: bool,
}

impl Target {
    fn start(options: Vec<String>, is_on_disk: bool) -> Self {
        let all: Vec<&str> = options.iter().map(String::as_str).collect();
        Self { server: Server::deferd("warn", &all), options, is_on_disk }
    }

    /// Kills it, and starts another over the same directory.
    pub fn restart(&mut self) {
        let options = std::mem::take(&mut self.options);
        // The lock of the directory is released with the process.
        self.server.kill();
        *self = Self::start(options, self.is_on_disk);
    }

    /// Returns the highest resident memory, in MiB.
    fn highest(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.server.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
    }
}

/// Prints the table of all attempts, or of those whose names contain `word`.
pub fn print(word: Option<&str>) {
    end_on_signals();
    let directory = Directory::new();
    let scripts = scripts(&directory.0);
    let begin = Instant::now();
    println!(
        "| attempt | VmHWM in memory, MiB | over `--data`, MiB | ≤ {MOST} |\n|---|--:|--:|---|"
    );
    let (mut highest, mut missed) = (0.0_f64, 0);
    for attempt in ALL.iter().filter(|attempt| word.is_none_or(|w| attempt.name.contains(w))) {
        let figures = [false, true].map(|on_disk| {
            let data = on_disk.then(|| directory.0.join("data"));
            let figure = figure(attempt, &scripts, &directory.0, data.as_deref());
            data.inspect(|data| drop(fs::remove_dir_all(data)));
            figure
        });
        let most = figures[0].max(figures[1]);
        highest = highest.max(most);
        missed += usize::from(most > MOST);
        let verdict = if most <= MOST { "yes" } else { "**no**" };
        let [in_memory, on_disk] = figures;
        println!("| {} | {in_memory:.1} | {on_disk:.1} | {verdict} |", attempt.name);
    }
    let seconds = begin.elapsed().as_secs();
    println!("| highest, in {seconds} s | {highest:.1} | | {missed} missed |");
}

/// Makes an attempt; returns the highest resident memory, in MiB.
fn figure(attempt: &Attempt, scripts: &Path, directory: &Path, data: Option<&Path>) -> f64 {
    let upstream = endless::start();
    let mut options = vec!["--max-memory".to_owned(), "32M".to_owned()];
    for (prefix, kind) in [("/run/", "run"), ("/cgi/", "cgi")] {
        options.extend(["--route".to_owned(), format!("{prefix}={kind}:{}", scripts.display())]);
    }
    options.extend(["--route".to_owned(), format!("/up/=http://{upstream}/")]);
    if attempt.needs_users {
        let users = directory.join("users");
        fs::write(&users, format!("root:{}\n", "0".repeat(64))).unwrap();
        fs::set_permissions(&users, fs::Permissions::from_mode(0o600)).unwrap();
        options.extend(["--auth".to_owned(), users.display().to_string()]);
    }
    if let Some(data) = data {
        options.extend(["--data".to_owned(), data.display().to_string()]);
    }
    let mut target = Target::start(options, data.is_some());
    let made = (attempt.make)(&mut target);
    let highest = target.highest();
    if highest > MOST {
        let what = if data.is_some() { "over --data" } else { "in memory" };
        eprintln!("{} {what}: {highest:.1} MiB; now {}", attempt.name, kinds(target.server.pid()));
    }
    drop(target);
    drop(made);
    highest
}

/// Writes the scripts.
fn scripts(directory: &Path) -> PathBuf {
    let scripts = directory.join("scripts");
    fs::create_dir(&scripts).unwrap();
    for (name, lines) in SCRIPTS {
        let path = scripts.join(name);
        fs::write(&path, format!("#!/bin/sh\n{lines}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    scripts
}

/// Returns the resident memory by kind of mapping, in MiB.
fn kinds(pid: u32) -> String {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
    let mut sums = [("heap", 0.0), ("arenas", 0.0), ("stacks", 0.0), ("maps", 0.0), ("files", 0.0)];
    let (mut kind, mut arena_end) = (0, 0);
    for line in maps.lines() {
        let first = line.split(' ').next().unwrap_or_default();
        if let Some((start, end)) = first.split_once('-') {
            let address = |text| u64::from_str_radix(text, 16).unwrap_or(0);
            let (start, end) = (address(start), address(end));
            // glibc's arenas begin at multiples of 64 MiB and have that size, most of it untouched.
            if start.is_multiple_of(64 << 20) && start > 1 << 40 {
                arena_end = start + (64 << 20);
            }
            kind = match line.rsplit(' ').next() {
                Some("[heap]") => 0,
                Some(name) if name.starts_with('/') => 4,
                _ if start < arena_end => 1,
                // The stack of a connection's thread, or of a worker.
                _ if matches!((end - start) >> 10, 248..=272 | 2040..=2064) => 2,
                _ => 3,
            };
        } else if let Some(size) = line.strip_prefix("Rss:") {
            let kib: f64 = size.trim().trim_end_matches(" kB").parse().unwrap_or(0.0);
            sums[kind].1 += kib / 1024.0;
        }
    }
    let mut text = String::new();
    for (kind, sum) in sums {
        write!(text, "{kind} {sum:.1} ").unwrap();
    }
    text
}
