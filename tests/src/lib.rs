//! The harness: two sites on one machine, a shaped link between them, disks, faults and figures.
//!
//! Everything here drives the real `vbrd` and `vbrctl` from outside; nothing links the appliance.
//! The suites are in `tests/tests/`, the tools in `tests/src/bin/`; README.md says how to run each.

pub mod bench;
pub mod chart;
pub mod clock;
pub mod counter;
pub mod dependencies;
pub mod disk;
pub mod fault;
pub mod hook;
pub mod libvirtd;
pub mod link;
pub mod machine;
pub mod measure;
pub mod mount;
pub mod nbdkit;
pub mod process;
pub mod rate;
pub mod report;
pub mod site;
pub mod slow_disk;
pub mod system;
pub mod vm;
pub mod work;
pub mod workload;
pub mod world;
