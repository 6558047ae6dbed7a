//! Stages 2 and 6: data movers.
//!
//! The source mover walks the pages of a snapshot; the target mover keeps track of the pages of the point
//! being built. Neither knows the wire or the accelerator: `job` joins them.

pub mod source;
pub mod target;
