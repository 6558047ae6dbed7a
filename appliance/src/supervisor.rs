//! Starts, joins and stops the parts of vbrd.
//!
//! `appliance` is the composition root, `orders`, `housekeeping`, `replicas`, `site` and `throttle` carry out what the management API asks,
//! `scrubbing` and `verifying` are its own background workers,
//! `state_dir` locks the state directory, `service` speaks to systemd.

pub mod appliance;
mod housekeeping;
mod metrics;
mod orders;
mod replicas;
mod scrubbing;
pub mod service;
mod site;
pub mod state_dir;
mod throttle;
mod verifying;

pub use appliance::Appliance;
pub use service::Service;
