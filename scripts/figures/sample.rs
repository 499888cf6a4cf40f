//! Statistics and their output: medians with their range.

use std::fmt;
use std::time::Instant;

/// How often each side of a ratio is measured.
pub const ROUNDS: usize = 7;

/// The measured values, one for each round.
#[derive(Default)]
pub struct Sample(Vec<f64>);

impl Sample {
    /// Adds a measured value.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// Returns the number of values.
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns the value below which the share `q` of all values lies.
    pub fn quantile(&self, q: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[((sorted.len() - 1) as f64 * q).round() as usize]
    }

    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// Returns this divided by `other`, round by round: what disturbs a round disturbs both.
    pub fn over(&self, other: &Self) -> Self {
        assert_eq!(self.0.len(), other.0.len(), "both sides have as many rounds");
        Self(self.0.iter().zip(&other.0).map(|(a, b)| a / b).collect())
    }
}

impl FromIterator<f64> for Sample {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

/// How much was done in how much time, turn by turn, and the resulting values round by round.
#[derive(Default)]
pub struct Meter {
    count: f64,
    wall: f64,
    processor: f64,
    /// How much was done a second.
    pub rate: Sample,
    /// Processor time for each, in microseconds.
    pub cost: Sample,
}

impl Meter {
    /// Measures one turn: `work` returns how much it did, `processor_time` the total so far.
    pub fn turn(&mut self, processor_time: impl Fn() -> f64, work: impl FnOnce() -> usize) {
        let (begin, processor) = (Instant::now(), processor_time());
        self.count += work() as f64;
        self.wall += begin.elapsed().as_secs_f64();
        self.processor += processor_time() - processor;
    }

    /// Ends a round.
    pub fn end_round(&mut self) {
        self.rate.push(self.count / self.wall);
        self.cost.push(self.processor / self.count * 1e6);
        (self.count, self.wall, self.processor) = (0.0, 0.0, 0.0);
    }
}

/// `median (min – max)`, with the requested precision.
impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(0);
        let (min, max) = (self.quantile(0.0), self.quantile(1.0));
        write!(f, "{:>9.digits$}  ({min:.digits$} – {max:.digits$})", self.median())
    }
}

/// Prints the title, and the machine.
pub fn title(what: &str) {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    let load = read("/proc/loadavg");
    let load = load.split(' ').next().unwrap_or_default();
    println!("{what}");
    println!("{cores} cores, Linux {}, load {load} before", kernel.trim());
    println!("median (min – max) of {ROUNDS} rounds, both sides in turn\n");
}

/// Prints a line of the table.
pub fn row(what: &str, value: impl fmt::Display) {
    println!("{what:<44}{value}");
}
