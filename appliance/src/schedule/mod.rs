//! When a job is due. Sans-IO: time is handed in.
//!
//! `calendar`: expressions in systemd's syntax. `window`: the hours in which something may run. `rule`: both, as a
//! job has them. `retry`: what follows a failure. `agenda`: which of all jobs is due. `resources`: which of those
//! that are due have slots to run.

pub mod agenda;
#[cfg(test)]
mod agenda_tests;
pub mod calendar;
pub mod resources;
#[cfg(test)]
mod resources_tests;
pub mod retry;
pub mod rule;
pub mod window;

use std::fmt;

/// Why an expression is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed(String);

impl Malformed {
    fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Malformed {}
