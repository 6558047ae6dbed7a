//! Jobs and sessions: the only place where the stages are joined.
//!
//! Source: `manager` keeps the definitions, `scheduler` and orders start sessions (`running`), `slots` says which of them may run, `driver` takes one session to its end over
//! any number of `attempts` (`patience` says how many, `stall` finds those that stand still), `replicate` composes one attempt out of `scan`, `prepare`, `send`, `transmit` (`credit` bounds what is on its way) and `answers`,
//! `bases` finds what content may serve as a base, `ahead` says what need not wait for the target's
//! answer and `refresh` keeps the filter that it rests on, `base` moves manifests. Target: `target` takes channels and requests, `receive` composes one session out of the
//! wire and `point`, `warm` makes images and restore points known, and `seeding` does so for a first run, whose disks `carry` gives to whoever takes them there by car. `mapping` says what must hold where a job goes on with a replica that is there. State that must survive lies in `definitions` (files) and `records` (RocksDB); `log` keeps what happened (`story` says
//! what that is), `pruning` what of it stays.

mod ahead;
mod answers;
mod attempts;
mod base;
mod bases;
mod carry;
mod credit;
mod definitions;
mod driver;
mod edit;
mod estimate;
mod free;
mod held;
mod learns;
mod log;
mod manager;
mod mapping;
mod parts;
mod patience;
mod plan;
mod point;
mod prepare;
mod pruning;
mod quota;
mod receive;
mod records;
mod refresh;
mod replicate;
mod repositories;
mod requests;
mod retiring;
mod running;
mod scan;
mod scheduler;
mod seeding;
mod send;
mod session;
mod slots;
mod snapshot;
mod source_state;
mod stall;
mod story;
mod succession;
mod target;
mod tending;
mod tracked;
mod transmit;
mod vm;
mod warm;
mod warm_disk;

pub use definitions::check_definitions;
pub use manager::JobManager;
pub use parts::{Parts, SourceStores, SourceWaits};
pub use stall::StallBounds;
pub use target::TargetService;
pub use warm::{Subject, Warmings};
