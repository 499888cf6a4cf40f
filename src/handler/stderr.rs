//! A script's stderr, line by line: to the log, to the job's log, and to its progress.
//!
//! Owns the splitting into lines. Does not read the pipe: `pipes` does. Invariant: a line without an end costs no more
//! memory than the longest line that is shown, nothing in a line can forge a second line of the log, and a script that
//! writes many lines does not fill the log.

use crate::job::execution::Execution;

/// A longer line is shown in pieces of this length, in bytes.
const MAX_LINE: usize = 4096;

/// How many lines of one run are logged; the others are only counted.
const MAX_LOGGED: usize = 100;

/// Splits what a script writes to stderr into lines.
pub struct Stderr<'a> {
    execution: &'a Execution,
    script: &'a str,
    line: Vec<u8>,
    /// How many lines the script has written.
    lines: usize,
}

impl<'a> Stderr<'a> {
    /// Returns the stderr of `script`, run for `execution`.
    pub fn new(execution: &'a Execution, script: &'a str) -> Self {
        Self { execution, script, line: Vec::new(), lines: 0 }
    }

    /// Takes bytes that were read.
    pub fn write(&mut self, bytes: &[u8]) {
        self.execution.append_log(bytes);
        for piece in bytes.split_inclusive(|&b| b == b'\n') {
            for part in piece.chunks(MAX_LINE) {
                self.line.extend_from_slice(part);
                if self.line.ends_with(b"\n") || self.line.len() >= MAX_LINE {
                    self.end_line();
                }
            }
        }
        // Tools that redraw a line end it with a carriage return: the log waits for the end of the line, the progress
        // does not.
        if let Some(end) = self.line.iter().rposition(|&b| b == b'\r') {
            self.show_progress(end);
        }
    }

    /// Ends the output: its last line counts even without a line feed.
    pub fn finish(mut self) {
        if !self.line.is_empty() {
            self.end_line();
        }
        let left_out = self.lines.saturating_sub(MAX_LOGGED);
        if left_out > 0 {
            log::info!(
                "job={} script={} stderr: {left_out} more lines are not logged",
                self.execution.job_as_log(),
                self.script,
            );
        }
    }

    fn end_line(&mut self) {
        self.show_progress(self.line.len());
        self.lines += 1;
        if self.lines <= MAX_LOGGED {
            let text = String::from_utf8_lossy(&self.line);
            log::info!(
                "job={} script={} stderr: {}",
                self.execution.job_as_log(),
                self.script,
                one_line(text.trim_end())
            );
        }
        self.line.clear();
    }

    /// Makes the line the progress: its part before a carriage return, or before its end.
    fn show_progress(&self, end: usize) {
        let text = String::from_utf8_lossy(&self.line[..end]);
        if let Some(last) = text.trim_end().rsplit('\r').next() {
            self.execution.set_line(last);
        }
    }
}

/// Returns the text with every control character escaped.
fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::JobId;
    use crate::memory::Allowance;

    #[test]
    fn progress_is_the_last_line() {
        let execution = Execution::new(JobId::new(1), Allowance::default());
        let mut stderr = Stderr::new(&execution, "test");
        for (written, progress) in [
            ("counting", None),
            (" lines\nsor", Some("counting lines")),
            ("ting\n\n", Some("sorting")),
            ("10 %\r20 %\r30", Some("20 %")),
            (" %\r", Some("30 %")),
        ] {
            stderr.write(written.as_bytes());
            assert_eq!(execution.progress().as_deref(), progress, "after {written:?}");
        }
        stderr.write(b"\nbye");
        stderr.finish();
        assert_eq!(execution.progress().as_deref(), Some("bye"));
        assert!(execution.log().text.ends_with(b"30 %\r\nbye"));
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let execution = Execution::default();
        let mut stderr = Stderr::new(&execution, "test");
        stderr.write(&[b'x'; 3 * MAX_LINE + 7]);
        assert_eq!(stderr.line.len(), 7);
    }

    #[test]
    fn a_line_of_the_log_stays_one_line() {
        assert_eq!(one_line("a\rb\x1b[2Kc"), "a\\rb\\u{1b}[2Kc");
    }
}
