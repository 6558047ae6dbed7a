//! Logs: how vbrd tells what it does.
//!
//! [`logs`] sets up the one subscriber of the process and can change its level while running.
//!
//! Not its job: deciding what is worth a warning (who recovers, logs), and keeping history. Stage
//! clocks are `busy`'s.

pub mod logs;
