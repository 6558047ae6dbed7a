//! Control requests between paired appliances and their answers. Pure types, no IO.

use serde::{Deserialize, Serialize};

use crate::block::{PageHash, Root, ShortId};
use crate::error::Problem;

/// A request on the control stream, answered by one [`Response`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// What the target has of a replica of the asking site.
    ReplicaState {
        /// Replica name.
        replica: String,
    },
    /// The page table of a disk of a sealed point, from an entry on (at most 16,384 entries come back).
    PageTable {
        /// Replica name.
        replica: String,
        /// Restore point.
        point: String,
        /// Disk number.
        disk: u16,
        /// First page wanted.
        from_page: u64,
    },
    /// Bodies of at most 16 pages of a disk of a sealed point.
    Pages {
        /// Replica name.
        replica: String,
        /// Restore point.
        point: String,
        /// Disk number.
        disk: u16,
        /// Page numbers.
        pages: Vec<u64>,
    },
    /// Which of these chunks (at most 32,768) the target has: for `job plan`.
    Known {
        /// Short ids.
        ids: Vec<ShortId>,
    },
    /// Restore points that a next point would retire under this keep.
    WouldRetire {
        /// Replica name.
        replica: String,
        /// As in the job.
        keep: Option<u32>,
    },
    /// The session's building point is not wanted any more.
    Discard {
        /// Replica name.
        replica: String,
        /// Session id.
        session: String,
    },
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Response {
    ReplicaState(ReplicaState),
    PageTable {
        disk_len: u64,
        entries: Vec<(u64, PageHash)>,
        more: bool,
    },
    /// Each page is 1,024 ids, 32 KiB; none where the page is all zero.
    Pages(Vec<Option<Bytes32Page>>),
    /// One bit for each id, most significant bit first.
    Known(Vec<u8>),
    WouldRetire(Vec<String>),
    Done,
    Problem(Problem),
}

/// A page of ids as bytes.
pub type Bytes32Page = Vec<u8>;

/// What the target has of a replica.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaState {
    /// The last sealed point, if any.
    pub latest: Option<SealedState>,
    /// A point being built, if any.
    pub building: Option<BuildingState>,
}

/// A sealed point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedState {
    /// Its id.
    pub point: String,
    /// The session that sealed it.
    pub session: String,
    /// Length and root of each disk.
    pub disks: Vec<(u64, Root)>,
}

/// A point being built.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildingState {
    /// The session that builds it.
    pub session: String,
    /// Under which snapshot.
    pub snapshot_identity: String,
    /// Durable cursor of each disk.
    pub cursors: Vec<u64>,
}
