//! vbrctl as a process against a vbrd that a test makes up: what goes to which stream, and exit statuses.

// Helpers of a test crate are tests too; clippy sees only functions marked #[test] as such.
#![allow(clippy::unwrap_used, clippy::panic)]

mod access;
mod doctor;
mod export;
mod failback;
mod fake;
mod orders;
mod samples;
mod seed;
mod setup;
mod sites;
mod waiting;
