//! Scripts: how they are found, what they receive, what happens to their output, and how they end.

mod cgi;
mod ending;
mod environment;
mod paths;
mod processes;
mod run;
mod stderr;
