//! Session messages and control requests: what two appliances say to each other.
//!
//! Pure types and their encoding; no IO. Frames, streams and fair sharing are `wire`'s business.
//!
//! A session, seen from both ends (`>` source to target, `<` target to source):
//!
//! ```text
//! > Open    names the replica, its disks, the base (point id and roots) and the snapshot's identity
//! < Opened  the cursor of each disk: 0, or where a cut session stopped
//! > Offer   one page of a disk: runs of unchanged / zero / offered chunks, and the offered short ids
//! < Need    the positions of that page that the target cannot resolve and verify by itself
//! > Probe   chunks that would serve as bases of needed ones, and 4 KiB blocks of needed chunks, by short ids
//! < Held    which of them the target has (and keeps while the session lasts)
//! > Batch   needed chunks, up to 4 MiB in one zstd frame, with bases that both hold as its reference prefix
//! < Durable payload bytes that are on stable storage now (credit), and the stage loads
//! > Seal    the root of every disk as the source computed it
//! < Sealed  the restore point's id, after everything is durable
//! ```
//!
//! Offers, needs and batches are pipelined. An offer is resolved when it arrives: every offered chunk
//! the target has (cache, restore points, the disk being built) is read, re-hashed and written at once,
//! so NEED is exact and no reference can fail later. The target may send NEED for a page again at any
//! time before `Sealed` (a chunk it was told to copy went bad); the source answers from its snapshot,
//! without bases.
//!
//! A source may also send a chunk ahead of the NEED, after its OFFER; the target takes it where it is missing and
//! ignores it where it is not. NEED names it all the same, and Seal may come before that NEED went out.
//!
//! A prefix is made of what the target is known to have: blocks of the base restore point (both named it
//! at `Open`), of what was sent or resolved earlier in this stream, of chunks it confirmed in `Held`, and
//! blocks of the needed chunks themselves that it said it knows. Every chunk of such a batch is checked
//! against the id it was offered with, so a base that is not what it should be costs a NEED. `Probe` is
//! sent only where there is something to ask.
//! Either side may send `Fail` and close.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use vbr_api::{KeepCalendar, VmConfig};

pub use super::encoding::{DecodeError, kind, pack, unpack};
pub use super::requests::{
    BuildingState, Bytes32Page, FilterCursor, ReplicaState, Request, Response, SealedState, SeedFrom,
    SeedState,
};

use crate::block::{Root, ShortId};
use crate::error::Problem;

/// A disk in `Open`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenDisk {
    /// Its path at the source, for people.
    pub source_path: String,
    /// Exact length in bytes.
    pub disk_len: u64,
    /// Root of this disk at the base restore point; none for a disk that is new.
    pub base_root: Option<Root>,
}

/// Opens a session, or goes on with one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// Lower-case hexadecimal, 32 digits; chosen by the source.
    pub session: String,
    /// Replica name within the source's site.
    pub replica: String,
    /// Datastore at the target; none for its default.
    pub datastore: Option<String>,
    /// The restore point whose content `Unchanged` means; none for a first run.
    pub base: Option<String>,
    /// Names one moment: a session goes on only under the same identity.
    pub snapshot_identity: String,
    /// When the snapshot was taken, milliseconds since 1970.
    pub snapshot_at_ms: i64,
    /// In order; the index is the disk's number.
    pub disks: Vec<OpenDisk>,
    /// Restore points to keep, as a request.
    pub keep: Option<u32>,
    /// And of how many days, weeks, months and years: behind the record, and only where something is asked. A
    /// target that does not know it ignores it, and then lets go by `keep` alone.
    #[serde(skip)]
    pub keep_calendar: KeepCalendar,
    /// What the VM is besides its disks, at the moment of the snapshot: behind that, as JSON, so that it may grow.
    #[serde(skip)]
    pub vm: Option<Box<VmConfig>>,
}

/// The target is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// First page of each disk that is not durable yet.
    pub cursors: Vec<u64>,
}

/// What a run of chunks is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunKind {
    /// As at the base restore point.
    Unchanged,
    /// All zeroes.
    Zero,
    /// Offered: the next short ids.
    Offered,
}

/// A run of chunks within a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// What it is.
    pub kind: RunKind,
    /// Chunks in it, 1..=1024.
    pub count: u16,
}

/// One page of a disk, changed in at least one chunk. Pages that are not offered are as at the base.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Disk number.
    pub disk: u16,
    /// Page number on that disk.
    pub page: u64,
    /// Cover the page's chunks exactly.
    pub runs: Vec<Run>,
    /// One for each chunk of the `Offered` runs, in order.
    pub ids: Vec<ShortId>,
}

/// Chunks of a page that must be sent. `chunks` empty: nothing is needed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Need {
    /// Disk number.
    pub disk: u16,
    /// Page number.
    pub page: u64,
    /// Runs (first position in the page, count), ascending and disjoint.
    pub chunks: Vec<(u16, u16)>,
}

/// How a chunk of a batch comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entry {
    /// The next chunk's bytes of the batch's plain data, for this disk and chunk number.
    Literal {
        /// Disk number.
        disk: u16,
        /// Chunk number on the disk.
        chunk: u64,
    },
    /// Same content as a literal sent earlier on this session's stream.
    Copy {
        /// Disk number.
        disk: u16,
        /// Chunk number on the disk.
        chunk: u64,
        /// Whose content it is.
        id: ShortId,
    },
    /// As a literal; its bytes are x86 code with places added
    /// ([`branches`](crate::accelerator::branches)).
    Code {
        /// Disk number.
        disk: u16,
        /// Chunk number on the disk.
        chunk: u64,
    },
}

impl Entry {
    /// Disk and chunk number.
    pub fn place(&self) -> (u16, u64) {
        let (Self::Literal { disk, chunk } | Self::Copy { disk, chunk, .. } | Self::Code { disk, chunk }) =
            *self;
        (disk, chunk)
    }
}

/// How the payload is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Codec {
    /// As is.
    Raw,
    /// One zstd frame.
    Zstd,
}

/// Where blocks of a reference prefix come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PrefixFrom {
    /// A chunk of the base restore point.
    Base {
        /// Disk number.
        disk: u16,
        /// Chunk number on the disk.
        chunk: u64,
    },
    /// A chunk of the point being built: in an earlier batch of this stream, resolved by the target, or
    /// before the cursor.
    Built {
        /// Disk number.
        disk: u16,
        /// Chunk number on the disk.
        chunk: u64,
    },
    /// The chunk whose id was the nth offered as a base in this stream, confirmed in a `Held`.
    Held {
        /// Counted from 0 over all probes of the stream.
        number: u32,
    },
    /// Blocks of a chunk that this batch carries, as the target said in a `Held` that it knows them.
    Known {
        /// Disk number.
        disk: u16,
        /// Chunk number on the disk.
        chunk: u64,
    },
}

/// Blocks of one chunk in the prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrefixRun {
    /// Whose.
    pub from: PrefixFrom,
    /// Bit n: the nth block of 4 KiB. They follow each other in ascending order.
    pub blocks: u16,
}

/// Recipe of a batch; the payload follows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchHeader {
    /// In stream order.
    pub entries: Vec<Entry>,
    /// The reference prefix, in order; empty where the frame stands alone.
    pub prefix: Vec<PrefixRun>,
    /// Of the payload.
    pub codec: Codec,
    /// Bytes after decoding; bounds the decoder.
    pub plain_len: u32,
}

/// Needed chunks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Recipe.
    pub header: BatchHeader,
    /// Encoded chunks, concatenated.
    pub payload: Bytes,
}

/// Asks what the target has besides whole chunks. Every probe is answered by one `Held`, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Chunks that would serve as bases.
    pub bases: Vec<ShortId>,
    /// Needed chunks by their blocks.
    pub blocks: Vec<BlockOffer>,
}

/// A needed chunk, and the ids of its blocks of 4 KiB.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockOffer {
    /// Disk number.
    pub disk: u16,
    /// Chunk number on the disk.
    pub chunk: u64,
    /// One for each block; zeroes where there is nothing to ask.
    pub ids: Vec<[u8; 8]>,
}

/// What the target has of a `Probe`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// One for each base.
    pub bases: Vec<bool>,
    /// One for each chunk: bit n for its nth block.
    pub blocks: Vec<u16>,
}

/// Credit and progress.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Durable {
    /// Payload bytes of batches received in this stream so far that are on stable storage.
    pub payload_bytes: u64,
    /// Durable cursor of each disk (first page that is not).
    pub cursors: Vec<u64>,
    /// Milliseconds each stage was busy since the session opened: accelerator, mover, host.
    pub busy_ms: [u64; 3],
}

/// Everything was sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// One for each disk.
    pub roots: Vec<Root>,
    /// False where a disk changed while it was read or the disks are not of one moment.
    pub consistent: bool,
    /// For each disk the volumes inside it and what became of their free space: for people. Empty where
    /// nobody looked.
    pub volumes: Vec<Vec<VolumeNote>>,
}

/// What became of a volume's free space; blocks that were skipped are zeroes in all that was named and sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeNote {
    /// `partition 1`, `vg0/root`.
    pub name: String,
    /// `ext4`, …
    pub kind: String,
    /// Bytes that did not travel.
    pub skipped_bytes: u64,
    /// One sentence.
    pub reason: String,
}

/// The restore point exists, durably.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// Its id.
    pub point: String,
    /// Restore points retired by it.
    pub retired: Vec<String>,
}

/// A session message.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Message {
    Open(Open),
    Opened(Opened),
    Offer(Offer),
    Need(Need),
    Batch(Batch),
    Durable(Durable),
    Seal(Seal),
    Sealed(Sealed),
    Fail(Problem),
    Probe(Probe),
    Held(Held),
}
