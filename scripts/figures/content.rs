//! Content of any size: how soon it arrives, how fast, and how much memory that takes.
//!
//! One table; each part of it is in a file of its own: [`flowing`], what passes while a client waits, and [`stored`],
//! what is stored between a client and a script.

use super::flowing;
use super::peer::{Directory, end_on_signals};
use super::sample::title;
use super::stored;
use super::table::Table;

/// Prints the figures; only those of one part if `word` is its name.
pub fn print(word: Option<&str>) {
    title("content: answers as they come, and answers of a GiB");
    end_on_signals();
    let directory = Directory::new();
    let mut table = Table::default();
    if word.is_none_or(|word| word == "flowing") {
        flowing::measure(&mut table, &directory.0);
    }
    if word.is_none_or(|word| word == "stored") {
        stored::measure(&mut table, &directory.0);
    }
    table.print();
}
