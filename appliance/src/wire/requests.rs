//! Control requests between paired appliances and their answers. Pure types, no IO.

use serde::{Deserialize, Serialize};
use vbr_api::{DiskFormat, KeepCalendar};

use super::site_requests::{SiteRequest, SiteResponse};
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
    /// What the asking site lacks of the filter of its domain's shared chunks, or the next piece of it. Only
    /// to a site with the capability (see [`capability`](crate::wire::capability)).
    SharedFilter {
        /// How far it has got; none without a filter.
        cursor: Option<FilterCursor>,
        /// What it will take, in bytes, until it is up to date.
        bytes_max: u64,
    },
    /// As `WouldRetire`, with all that a job asks. Only to a site with the capability.
    WouldRetireUnder {
        /// Replica name.
        replica: String,
        /// As in the job.
        keep: Option<u32>,
        /// As in the job.
        keep_calendar: KeepCalendar,
    },
    /// About the sites themselves. Only to a site with the capability.
    Site(SiteRequest),
    /// What is here may serve as the seed of a first run: makes it known, and says how far that is. Asked again until
    /// it is. Only to a site with the capability.
    Seed {
        /// Where it is.
        from: SeedFrom,
    },
}

/// What a source wants its first run to start from, at the target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeedFrom {
    /// The latest restore point of a replica of the asking site.
    Replica {
        /// Replica name.
        name: String,
    },
    /// An image beneath one of the directories that the target allows.
    Image {
        /// Absolute, at most 4,096 bytes.
        path: String,
        /// Declared, never probed.
        format: DiskFormat,
    },
}

/// How far a seed is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeedState {
    /// All of it is.
    pub ready: bool,
    /// What was read of it.
    pub read_bytes: u64,
    /// What there is to read.
    pub total_bytes: u64,
}

/// How far a source has got with the filter of shared chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterCursor {
    /// Of the filter.
    pub epoch: u64,
    /// Keys that it has (or, while parts come, will have).
    pub position: u32,
    /// The target's sum over these keys; told back unchanged.
    pub check: u64,
    /// Bytes of the whole filter that have come; none once it is complete.
    pub part: Option<u32>,
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
    /// A packed delta of the filter; none where it would take more bytes than the question allows, or where
    /// there is no filter.
    SharedFilter(Option<Vec<u8>>),
    Site(SiteResponse),
    Seed(SeedState),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::message::{pack, unpack};

    fn golden<T>(value: &T, hex: &str)
    where
        T: Serialize + for<'a> Deserialize<'a> + PartialEq + std::fmt::Debug,
    {
        let bytes = pack(value);
        assert_eq!(data_encoding::HEXLOWER.encode(&bytes), hex);
        assert_eq!(unpack::<T>(0, &bytes).as_ref(), Ok(value));
    }

    /// Numbers of the variants never change: a new one goes to the end.
    #[test]
    fn golden_requests() {
        golden(&Request::ReplicaState { replica: "web".into() }, "0003776562");
        golden(&Request::Known { ids: vec![ShortId([7; 16])] }, "030107070707070707070707070707070707");
        golden(&Request::Discard { replica: "a".into(), session: "b".into() }, "0501610162");
        golden(&Request::SharedFilter { cursor: None, bytes_max: 300 }, "0600ac02");
        let cursor = FilterCursor { epoch: 5, position: 6, check: 7, part: Some(8) };
        golden(&Request::SharedFilter { cursor: Some(cursor), bytes_max: 1 }, "0601050607010801");
        let keep_calendar = KeepCalendar { daily: 1, weekly: 2, monthly: 3, yearly: 4 };
        golden(
            &Request::WouldRetireUnder { replica: "a".into(), keep: Some(5), keep_calendar },
            "070161010501020304",
        );
        golden(&Request::Seed { from: SeedFrom::Replica { name: "a".into() } }, "09000161");
        let image = SeedFrom::Image { path: "/b".into(), format: DiskFormat::Qcow2 };
        golden(&Request::Seed { from: image }, "0901022f6201");
    }

    #[test]
    fn golden_responses() {
        golden(&Response::Known(vec![0x80]), "030180");
        golden(&Response::Done, "05");
        golden(&Response::SharedFilter(None), "0700");
        golden(&Response::SharedFilter(Some(vec![1, 2])), "0701020102");
        golden(&Response::Seed(SeedState { ready: true, read_bytes: 300, total_bytes: 5 }), "0901ac0205");
    }
}
