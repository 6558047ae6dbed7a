//! vbr's appliance: everything `vbrd` is made of. See ARCHITECTURE.md for the data path.

pub mod accelerator;
pub mod block;
pub mod block_file;
pub mod busy;
pub mod config;
pub mod control;
pub mod database;
pub mod error;
pub mod failover;
pub mod free_space;
pub mod host;
pub mod job;
pub mod limits;
pub mod mover;
pub mod nbd;
pub mod notify;
pub mod pulse;
pub mod repository;
pub mod schedule;
pub mod supervisor;
pub mod telemetry;
pub mod throttle;
pub mod vm_config;
pub mod wire;
pub mod worker;
