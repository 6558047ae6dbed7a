//! When a job is due. Sans-IO: time is handed in.
//!
//! `calendar`: expressions in systemd's syntax.

pub mod calendar;
