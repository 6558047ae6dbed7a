//! Starts, joins and stops the parts of vbrd.
//!
//! `appliance` is the composition root, `orders`, `housekeeping`, `replicas`, `failovers`, `planned`, `failback`, `site`, `throttle`, `warm` and `life` carry out what
//! the management API asks, `doctor` looks at what commonly goes wrong, `consoles` and `remote` what consoles at other sites do, `scrubbing` and `verifying` are its own
//! background workers, `state_dir` locks the state directory, `state_format` keeps older vbrds out of it, `state_file` and `state_move` let it leave and come back, `stores` opens what vbrd keeps,
//! `service` speaks to systemd.

pub mod appliance;
mod booting;
mod consoles;
mod doctor;
mod failback;
mod failovers;
mod housekeeping;
mod life;
mod metrics;
mod orders;
mod planned;
mod remote;
mod replicas;
mod scrubbing;
pub mod service;
mod site;
pub mod state_dir;
mod state_file;
mod state_format;
mod state_move;
mod stores;
mod throttle;
mod verifying;
mod warm;

pub use crate::host::target::{become_tap, become_vm};
pub use appliance::Appliance;
pub use life::Restart;
pub use service::Service;
