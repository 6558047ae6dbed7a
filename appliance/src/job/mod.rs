//! Jobs and sessions: the only place where the stages are joined.
//!
//! Source: `manager` keeps the definitions and starts sessions, `driver` takes one session to its end over
//! any number of attempts, `replicate` composes one attempt out of `scan` and `send`, `base` moves
//! manifests. Target: `target` takes channels and requests, `receive` composes one session out of the
//! wire and `point`. State that must survive lies in `definitions` (files) and `records` (RocksDB).

mod base;
mod definitions;
mod driver;
mod manager;
mod plan;
mod point;
mod receive;
mod records;
mod replicate;
mod repositories;
mod requests;
mod scan;
mod send;
mod session;
mod snapshot;
mod source_state;
mod target;

pub use manager::{JobManager, Parts};
pub use target::TargetService;
