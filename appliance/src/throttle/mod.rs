//! Throttling: rules that bound what this site sends, and the arithmetic that keeps a bound.
//!
//! `rule`: whom a rule is for, and when it is in force. `network`: the addresses of one. `bucket`: when the next bytes
//! may go. `store`: the rules on disk. All but `store` are sans-IO: time is handed in.
//! Not its job: holding bytes back (the wire does, at the socket), and the commands of the console.
//! Bounds: `THROTTLE_RULES_MAX` rules.

pub mod bucket;
pub mod network;
pub mod rule;
pub mod store;

pub use bucket::{Bucket, SharedBucket};
pub use rule::Rule;
pub use store::Rules;

/// The name under which `wire.rate` of the configuration is shown: a bound for all peers, at all hours.
pub const CONFIGURED: &str = "wire.rate";
