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
//! > Batch   needed chunks, up to 4 MiB in one zstd frame
//! < Durable payload bytes that are on stable storage now (credit), and the stage loads
//! > Seal    the root of every disk as the source computed it
//! < Sealed  the restore point's id, after everything is durable
//! ```
//!
//! Offers, needs and batches are pipelined. An offer is resolved when it arrives: every offered chunk
//! the target has (cache, restore points, the disk being built) is read, re-hashed and written at once,
//! so NEED is exact and no reference can fail later. The target may send NEED for a page again at any
//! time before `Sealed` (a chunk it was told to copy went bad); the source answers from its snapshot.
//! Either side may send `Fail` and close.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::block::{PAGE_CHUNKS, PageHash, Root, ShortId};
use crate::error::Problem;

/// What a message or request is refused for.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    /// The frame type is not one of a session message.
    #[error("unknown message type {0}")]
    UnknownType(u8),
    /// The body does not parse.
    #[error("message type {kind} does not parse: {why}")]
    Malformed {
        /// Frame type.
        kind: u8,
        /// What the parser says.
        why: String,
    },
    /// A count or length is out of bounds.
    #[error("message type {kind}: {what} is out of bounds")]
    Bounds {
        /// Frame type.
        kind: u8,
        /// Which field.
        what: &'static str,
    },
}

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
}

/// How the payload is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Codec {
    /// As is.
    Raw,
    /// One zstd frame.
    Zstd,
}

/// Recipe of a batch; the payload follows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchHeader {
    /// In stream order.
    pub entries: Vec<Entry>,
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
}

/// Frame types of session messages (32 and up; control frames lie below).
pub mod kind {
    #![allow(missing_docs)]
    pub const OPEN: u8 = 32;
    pub const OPENED: u8 = 33;
    pub const OFFER: u8 = 34;
    pub const NEED: u8 = 35;
    pub const BATCH: u8 = 36;
    pub const DURABLE: u8 = 37;
    pub const SEAL: u8 = 38;
    pub const SEALED: u8 = 39;
    pub const FAIL: u8 = 40;
}

impl Message {
    /// The frame type and body, as two parts so that a batch's payload is not copied.
    pub fn encode(&self) -> (u8, Bytes, Bytes) {
        let none = Bytes::new();
        match self {
            Self::Open(body) => (kind::OPEN, pack(body), none),
            Self::Opened(body) => (kind::OPENED, pack(body), none),
            Self::Offer(body) => (kind::OFFER, pack(body), none),
            Self::Need(body) => (kind::NEED, pack(body), none),
            Self::Batch(batch) => {
                let header = pack(&batch.header);
                let mut head = BytesMut::with_capacity(4 + header.len());
                head.put_u32(header.len() as u32);
                head.put_slice(&header);
                (kind::BATCH, head.freeze(), batch.payload.clone())
            }
            Self::Durable(body) => (kind::DURABLE, pack(body), none),
            Self::Seal(body) => (kind::SEAL, pack(body), none),
            Self::Sealed(body) => (kind::SEALED, pack(body), none),
            Self::Fail(body) => (kind::FAIL, pack(body), none),
        }
    }

    /// Parses and checks a whole message.
    pub fn decode(kind: u8, body: Bytes) -> Result<Self, DecodeError> {
        Ok(match kind {
            kind::OPEN => Self::Open(unpack(kind, &body)?),
            kind::OPENED => Self::Opened(unpack(kind, &body)?),
            kind::OFFER => Self::Offer(check_offer(unpack(kind, &body)?)?),
            kind::NEED => Self::Need(check_need(unpack(kind, &body)?)?),
            kind::BATCH => Self::Batch(decode_batch(body)?),
            kind::DURABLE => Self::Durable(unpack(kind, &body)?),
            kind::SEAL => Self::Seal(unpack(kind, &body)?),
            kind::SEALED => Self::Sealed(unpack(kind, &body)?),
            kind::FAIL => Self::Fail(unpack(kind, &body)?),
            other => return Err(DecodeError::UnknownType(other)),
        })
    }
}

fn decode_batch(mut body: Bytes) -> Result<Batch, DecodeError> {
    let short = DecodeError::Bounds { kind: kind::BATCH, what: "header length" };
    if body.len() < 4 {
        return Err(short);
    }
    let prefix = body.split_to(4);
    let len = u32::from_be_bytes([prefix[0], prefix[1], prefix[2], prefix[3]]) as usize;
    if len > body.len() {
        return Err(short);
    }
    let head = body.split_to(len);
    let header: BatchHeader = unpack(kind::BATCH, &head)?;
    if header.plain_len as usize > crate::limits::BATCH_PLAIN_BYTES_MAX {
        return Err(DecodeError::Bounds { kind: kind::BATCH, what: "plain length" });
    }
    Ok(Batch { header, payload: body })
}

fn check_offer(offer: Offer) -> Result<Offer, DecodeError> {
    let (mut total, mut offered) = (0usize, 0usize);
    for run in &offer.runs {
        total += run.count as usize;
        if run.kind == RunKind::Offered {
            offered += run.count as usize;
        }
        if run.count == 0 || total > PAGE_CHUNKS {
            return Err(DecodeError::Bounds { kind: kind::OFFER, what: "runs" });
        }
    }
    if offered != offer.ids.len() {
        return Err(DecodeError::Bounds { kind: kind::OFFER, what: "ids" });
    }
    Ok(offer)
}

fn check_need(need: Need) -> Result<Need, DecodeError> {
    let mut next = 0usize;
    for (first, count) in &need.chunks {
        let end = *first as usize + *count as usize;
        if (*first as usize) < next || *count == 0 || end > PAGE_CHUNKS {
            return Err(DecodeError::Bounds { kind: kind::NEED, what: "chunks" });
        }
        next = end;
    }
    Ok(need)
}

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

/// Encodes a record; these types cannot fail to encode.
pub fn pack<T: Serialize>(value: &T) -> Bytes {
    postcard::to_stdvec(value).map(Bytes::from).unwrap_or_default()
}

/// Decodes a record.
pub fn unpack<'a, T: Deserialize<'a>>(kind: u8, body: &'a [u8]) -> Result<T, DecodeError> {
    postcard::from_bytes(body).map_err(|e| DecodeError::Malformed { kind, why: e.to_string() })
}
