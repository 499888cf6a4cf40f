//! One Markdown table of everything that was measured, the machine, and the aims.

use std::fmt::Write;
use std::process::Command;

use super::sample::Sample;

/// Rows, and aims, in the order in which they are printed.
#[derive(Default)]
pub struct Table {
    rows: String,
    aims: String,
}

impl Table {
    /// Adds what was measured of one side.
    pub fn row(&mut self, work: &str, who: &str, digits: usize, sample: &Sample) {
        let (min, max) = (sample.quantile(0.0), sample.quantile(1.0));
        let (min, median, max) =
            (figure(min, digits), figure(sample.median(), digits), figure(max, digits));
        writeln!(self.rows, "| {work} | {who} | {median} | {min} – {max} |").unwrap();
    }

    /// Adds a figure that was measured once.
    pub fn once(&mut self, work: &str, who: &str, value: &str) {
        writeln!(self.rows, "| {work} | {who} | {value} | |").unwrap();
    }

    /// Adds an aim.
    pub fn aim(&mut self, what: &str, figure: f64, aim: Aim) {
        let (sign, limit, is_met) = match aim {
            Aim::AtLeast(limit) => ("≥", limit, figure >= limit),
            Aim::MoreThan(limit) => (">", limit, figure > limit),
            Aim::AtMost(limit) => ("≤", limit, figure <= limit),
            Aim::LessThan(limit) => ("<", limit, figure < limit),
        };
        let digits = if figure < 10.0 { 2 } else { 0 };
        let figure = self::figure(figure, digits);
        let limit = self::figure(limit, digits).trim_end_matches(".00").to_owned();
        let verdict = if is_met { "met" } else { "**missed**" };
        writeln!(self.aims, "| must hold | {what} | {figure} | {sign} {limit}: {verdict} |")
            .unwrap();
    }

    pub fn print(&self) {
        println!("| work | side | median | min – max |\n|---|---|--:|---|");
        print!("{}{}", self.rows, self.aims);
    }
}

/// What a figure should be.
pub enum Aim {
    AtLeast(f64),
    MoreThan(f64),
    AtMost(f64),
    LessThan(f64),
}

/// Returns a number with blanks between the thousands.
fn figure(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut grouped = String::new();
    for (n, digit) in whole.chars().enumerate() {
        if n > 0 && (whole.len() - n).is_multiple_of(3) {
            grouped.push(' ');
        }
        grouped.push(digit);
    }
    grouped + rest
}

/// Returns the machine and the versions that are compared, in one line.
pub fn machine(python: &std::path::Path) -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |path: &str, name: &str| {
        let text = read(path);
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.trim_start_matches([' ', '\t', ':']).to_owned()
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = field("/proc/meminfo", "MemTotal");
    let memory = memory.trim_end_matches(" kB").parse::<f64>().unwrap_or(0.0) / (1024.0 * 1024.0);
    format!(
        "{}, {cores} cores, Linux {}, {memory:.0} GiB; deferd {}; {}; {}",
        field("/proc/cpuinfo", "model name"),
        read("/proc/sys/kernel/osrelease").trim(),
        env!("CARGO_PKG_VERSION"),
        packages(),
        wheels(python),
    )
}

/// Returns the versions of the Debian packages.
fn packages() -> String {
    let names = [
        "redis-server",
        "gearman-job-server",
        "beanstalkd",
        "webhook",
        "lighttpd",
        "busybox",
        "nginx",
        "task-spooler",
    ];
    let query = Command::new("dpkg-query")
        .args(["-W", "-f", "${Package} ${Version}\\n"])
        .args(names)
        .output()
        .unwrap();
    // Without Debian's epoch and revision.
    let version = |line: &str| {
        let (name, version) = line.split_once(' ')?;
        let version = version.split_once(':').map_or(version, |(_, rest)| rest);
        Some(format!("{name} {}", version.split(['-', '+']).next()?))
    };
    let text = String::from_utf8_lossy(&query.stdout);
    text.lines().filter_map(version).collect::<Vec<_>>().join(", ")
}

/// Returns the versions of the Python packages, and of Python.
fn wheels(python: &std::path::Path) -> String {
    let say = |arguments: &[&str]| {
        let output = Command::new(python).args(arguments).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let packages = include_str!("peers/requirements.txt").replace("==", " ");
    let packages: Vec<&str> = packages.lines().collect();
    format!("{}, {}", say(&["--version"]), packages.join(", "))
}
