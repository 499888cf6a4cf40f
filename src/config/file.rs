//! The file of `--config`: a line `name value` for each option.
//!
//! Owns its form, and the messages for lines in the forms of other programs' files. The table of options defines what
//! an option means. Invariants: an error names the file and the line; a line is understood completely or refused: a
//! quote or a comment never becomes part of a value.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Config, Invalid, Source, is_repeatable, setter};

impl Config {
    /// Reads a file. Its values replace earlier ones.
    pub(super) fn read_file(&mut self, path: &Path) -> Result<(), Invalid> {
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| Invalid::new("--config", &shown, error))?;
        // Editors on Windows begin a file with a byte order mark.
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let mut seen = BTreeMap::new();
        for (n, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (name, value) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            let (value, number) = (value.trim(), n + 1);
            let place = format!("{shown}:{number}: {name}");
            check_form(name, value).map_err(|what| Invalid::new(&place, value, what))?;
            let before = seen.insert(name, number);
            if let Some(before) = before.filter(|_| !is_repeatable(name)) {
                let what = format!("line {before} has this option already");
                return Err(Invalid::new(&place, value, what));
            }
            if before.is_none() {
                self.replace(name);
            }
            let directory = path.parent().unwrap_or(Path::new(""));
            self.set(name, value, &Source { place, directory: Some(directory) })?;
        }
        Ok(())
    }
}

/// Checks that a line has the form of this file.
///
/// # Errors
/// The form that it should have.
fn check_form(name: &str, value: &str) -> Result<(), String> {
    let plain = name.trim_start_matches("--");
    let split = plain.find(['=', ':']).unwrap_or(plain.len());
    let (option, rest) = plain.split_at(split);
    let is_other = name.starts_with("--") || !rest.is_empty() || value.starts_with('=');
    if setter(option).is_some() && is_other {
        let joined = [rest, value].concat();
        let value = joined.trim_start();
        let value = value.strip_prefix(['=', ':']).unwrap_or(value).trim_start();
        return Err(format!(
            "no such option: a line is a name, a blank and a value: `{option} {value}`"
        ));
    }
    let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''));
    if quote.is_some_and(|quote| value.ends_with(quote)) {
        return Err("a value stands without quotes".into());
    }
    if value.contains(" #") || value.contains("\t#") {
        return Err("a comment has a line of its own".into());
    }
    Ok(())
}
