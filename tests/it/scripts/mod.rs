//! Scripts: how they are found, what they get, what becomes of what they write, and how they end.

mod cgi;
mod ending;
mod environment;
mod paths;
mod processes;
mod run;
mod stderr;
