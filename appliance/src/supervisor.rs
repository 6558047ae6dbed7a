//! Starts, joins and stops the parts of vbrd.
//!
//! `appliance` is the composition root, `orders`, `replicas`, `site`, `throttle` and `warm` carry out what the management API asks,
//! `state_dir` locks the state directory, `service` speaks to systemd.

pub mod appliance;
mod metrics;
mod orders;
mod replicas;
pub mod service;
mod site;
pub mod state_dir;
mod throttle;
mod warm;

pub use appliance::Appliance;
pub use service::Service;
