//! The metrics as text: `/_admin/metrics`, Prometheus' exposition format 0.0.4.
//!
//! Owns the names, the help and the labels. `metrics` and the store's tally do the counting. The metrics describe the
//! whole host, and are the same for every user. Invariant: no label contains anything that a client sent: routes,
//! outcomes, states and reasons are deferd's own words.

use std::fmt::Write as _;

use http::HeaderValue;
use http::header::CONTENT_TYPE;

use super::{Asked, text};
use crate::clock;
use crate::error::Error;
use crate::handler::Outcome;
use crate::histogram::{BOUNDS, Histogram};
use crate::job::outcome::Outcome as JobOutcome;
use crate::metrics::{Reason, lost_lines};
use crate::store::{EngineStats, Stats, Tally};

/// The type of the text (Prometheus, *Exposition formats*).
const EXPOSITION: HeaderValue =
    HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// Returns all metrics.
pub fn answer(asked: &Asked<'_>) -> Result<Outcome, Error> {
    let mut page = Page(String::with_capacity(16 << 10));
    let stats = asked.api.jobs.store.stats();
    let tally = asked.api.jobs.store.tally();
    write_process(&mut page, asked);
    match (asked.api.jobs.store.engine(), stats) {
        // If the engine fails, its metrics say so.
        (Some(engine), stats) => {
            write_engine(&mut page, &engine);
            if let Ok(stats) = stats {
                write_stats(&mut page, &stats);
            }
        }
        (None, stats) => write_stats(&mut page, &stats?),
    }
    write_tally(&mut page, &tally, &asked.api.prefixes);
    let mut response = text(asked.charged(page.0.into_bytes())?);
    response.headers_mut().insert(CONTENT_TYPE, EXPOSITION);
    Ok(response.into())
}

fn write_process(page: &mut Page, asked: &Asked<'_>) {
    let jobs = &asked.api.jobs;
    let metrics = &jobs.metrics;
    page.gauge("deferd_build_info", "Always 1.");
    let labels = [("version", env!("CARGO_PKG_VERSION")), ("store", jobs.store.name())];
    page.sample("deferd_build_info", &labels, 1);
    page.gauge("process_start_time_seconds", "When deferd started, in Unix seconds.");
    page.sample("process_start_time_seconds", &[], metrics.start.unix_seconds());
    page.gauge("deferd_connections", "Open connections; 0 behind the front tiny_http.");
    page.sample("deferd_connections", &[], metrics.connections());
    page.gauge("deferd_memory_bytes", "Memory of content and records.");
    page.sample("deferd_memory_bytes", &[], jobs.memory.used());
    page.gauge("deferd_memory_limit_bytes", "The limit of that: --max-memory.");
    page.sample("deferd_memory_limit_bytes", &[], jobs.memory.capacity());
    let name = "deferd_jobs_refused_total";
    page.counter(name, "Jobs that were not accepted.");
    for ((_, reason), count) in Reason::ALL.iter().zip(metrics.refused()) {
        page.sample(name, &[("reason", reason)], count);
    }
    page.counter("deferd_log_lines_dropped_total", "Lines of the log that were dropped.");
    page.sample("deferd_log_lines_dropped_total", &[], lost_lines());
    let help = "From the head of a request to its answer, with all that it waits for.";
    page.histogram("deferd_http_request_duration_seconds", help, &metrics.requests());
}

fn write_engine(page: &mut Page, engine: &EngineStats) {
    let EngineStats { is_up, latency, fenced, reaped } = engine;
    page.gauge("deferd_store_up", "1 if the engine of the shared store answers and takes changes.");
    page.sample("deferd_store_up", &[], u8::from(*is_up));
    let help = "From an operation of the shared store to its answer, repetitions included.";
    page.histogram("deferd_store_operation_seconds", help, latency);
    let name = "deferd_store_fenced_total";
    page.counter(name, "How often this instance was taken for dead and gave up what it ran.");
    page.sample(name, &[], fenced);
    let name = "deferd_store_reaped_total";
    page.counter(name, "Jobs of dead instances that this one ended or let run again.");
    page.sample(name, &[], reaped);
}

fn write_stats(page: &mut Page, stats: &Stats) {
    let Stats { stored, capacity, waiting, delayed, running, done, oldest, .. } = stats;
    page.gauge("deferd_jobs", "Jobs by their state; notices are left out.");
    let states = [("waiting", waiting), ("delayed", delayed), ("running", running), ("done", done)];
    for (state, count) in states {
        page.sample("deferd_jobs", &[("state", state)], count);
    }
    let waits = oldest.map_or(0.0, |oldest| clock::now().stamp.since(oldest).as_secs_f64());
    page.gauge(
        "deferd_oldest_waiting_seconds",
        "How long the first waiting job has waited; 0 if none waits.",
    );
    page.sample("deferd_oldest_waiting_seconds", &[], waits);
    page.gauge("deferd_stored_bytes", "Stored requests, results and keys, with their records.");
    page.sample("deferd_stored_bytes", &[], stored);
    page.gauge("deferd_stored_limit_bytes", "The limit of that: --max-stored.");
    page.sample("deferd_stored_limit_bytes", &[], capacity);
}

fn write_tally(page: &mut Page, tally: &Tally, prefixes: &[String]) {
    let routes = || prefixes.iter().zip(&tally.routes);
    let name = "deferd_jobs_submitted_total";
    page.counter(name, "Jobs that were accepted.");
    for (prefix, of_route) in routes() {
        page.sample(name, &[("route", prefix)], of_route.submitted);
    }
    let name = "deferd_jobs_finished_total";
    page.counter(name, "Jobs that are done, by their outcome.");
    for (prefix, of_route) in routes() {
        for (outcome, count) in JobOutcome::ALL.iter().zip(of_route.finished) {
            page.sample(name, &[("route", prefix), ("outcome", outcome.name())], count);
        }
    }
    let help = "From the acceptance of a job to its first attempt, of jobs that have ended.";
    page.histogram("deferd_job_wait_seconds", help, &tally.wait);
    page.histogram("deferd_job_run_seconds", "From the first attempt to the result.", &tally.run);
    page.counter("deferd_store_errors_total", "How often the store could not be read or changed.");
    page.sample("deferd_store_errors_total", &[], tally.errors);
}

/// The text written so far. Writing to a string cannot fail.
struct Page(String);

impl Page {
    fn gauge(&mut self, name: &str, help: &str) {
        self.begin(name, help, "gauge");
    }

    fn counter(&mut self, name: &str, help: &str) {
        self.begin(name, help, "counter");
    }

    fn begin(&mut self, name: &str, help: &str, kind: &str) {
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.0.push_str(name);
        for (n, (label, text)) in labels.iter().enumerate() {
            let before = if n == 0 { "{" } else { "," };
            let _ = write!(self.0, "{before}{label}=\"{}\"", escaped(text));
        }
        let after = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{after} {value}");
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.begin(name, help, "histogram");
        let bucket = format!("{name}_bucket");
        let mut below = 0;
        for (bound, count) in BOUNDS.iter().zip(histogram.buckets) {
            below += count;
            self.sample(&bucket, &[("le", &bound.to_string())], below);
        }
        let count = histogram.count();
        self.sample(&bucket, &[("le", "+Inf")], count);
        self.sample(&format!("{name}_sum"), &[], histogram.micros as f64 / 1e6);
        self.sample(&format!("{name}_count"), &[], count);
    }
}

/// Escapes the value of a label as the format requires.
fn escaped(text: &str) -> String {
    text.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn samples_and_histograms_have_the_form_of_the_format() {
        let mut page = Page(String::new());
        page.sample("a", &[("b", "c\"\\\n"), ("d", "")], 1.5);
        assert_eq!(page.0, "a{b=\"c\\\"\\\\\\n\",d=\"\"} 1.5\n");
        let (mut page, mut histogram) = (Page(String::new()), Histogram::default());
        for millis in [1, 20, 5_000_000] {
            histogram.observe(Duration::from_millis(millis));
        }
        page.histogram("h", "Help.", &histogram);
        let lines: Vec<&str> = page.0.lines().collect();
        assert_eq!(
            lines[..3],
            ["# HELP h Help.", "# TYPE h histogram", "h_bucket{le=\"0.0001\"} 0"]
        );
        assert!(
            lines.contains(&"h_bucket{le=\"0.001\"} 1")
                && lines.contains(&"h_bucket{le=\"3600\"} 2")
        );
        assert_eq!(
            lines[lines.len() - 3..],
            ["h_bucket{le=\"+Inf\"} 3", "h_sum 5000.021", "h_count 3"]
        );
    }
}
