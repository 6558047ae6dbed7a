//! Stages 2 and 6: data movers.
//!
//! The source mover walks the pages of a snapshot; the target mover keeps track of the pages of the point
//! being built; `ceiling` spares the users of a source host. None of them knows the wire or the accelerator: `job` joins them.

pub mod ceiling;
pub mod source;
pub mod target;
