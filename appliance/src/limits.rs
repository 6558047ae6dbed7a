//! Every bound in the product, in one place, each with its unit in its name.
//!
//! A queue, a buffer or a count that is not here does not exist. Values were chosen so that ten
//! sessions at once stay inside 256 MiB at a source and 512 MiB at a target (see ARCHITECTURE.md).

use std::time::Duration;

/// Largest frame body on the wire. Small, so that control stays quick under bulk.
pub const FRAME_BYTES_MAX: usize = 256 * 1024;
/// Largest session message after its fragments are joined: a batch of incompressible chunks and its recipe.
pub const MESSAGE_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Largest control request or response.
pub const CONTROL_BYTES_MAX: usize = 1024 * 1024;

/// Plain bytes in one batch: one zstd frame.
pub const BATCH_PLAIN_BYTES_MAX: usize = 4 * 1024 * 1024;
/// A batch is closed when its compressed form has grown past this.
pub const BATCH_STORED_BYTES_TARGET: usize = 1024 * 1024;
/// The same where data does not shrink.
pub const BATCH_RAW_BYTES_TARGET: usize = 512 * 1024;
/// Payload bytes a source may have sent that the target has not yet called durable: the most that a
/// cut link makes it send again.
pub const CREDIT_BYTES: u64 = 3 * 1024 * 1024 + 512 * 1024;
/// Pages a source has offered whose chunks are not all on their way (32 KiB each).
pub const PAGES_OPEN_MAX: usize = 128;
/// Offered chunks of those pages; the scanner waits above it.
pub const CHUNKS_OPEN_MAX: usize = 3072;
/// A batch that is not full is sent after this long without another needed chunk.
pub const BATCH_WAIT: Duration = Duration::from_millis(200);
/// Batches that are compressed at once in the whole appliance.
pub const COMPRESSORS_MAX: usize = 2;
/// Disks of one session that are scanned at once.
pub const SCANS_PER_SESSION_MAX: usize = 2;
/// Chunk ids a session remembers as sent, to send a repetition as a reference.
pub const SENT_IDS_MAX: usize = 16 * 1024;

/// Group commit of the open pack: whichever comes first.
pub const GROUP_COMMIT_BYTES: u64 = 4 * 1024 * 1024;
/// See [`GROUP_COMMIT_BYTES`].
pub const GROUP_COMMIT_DELAY: Duration = Duration::from_millis(50);
/// Size of a full pack.
pub const PACK_BYTES: u64 = 64 * 1024 * 1024;
/// Smallest cache that works: open pack, pinned packs, one to evict.
pub const CACHE_BYTES_MIN: u64 = 256 * 1024 * 1024;

/// A building point is flushed and its cursor made durable at least this often while data comes in.
pub const CHECKPOINT_BYTES: u64 = 64 * 1024 * 1024;
/// See [`CHECKPOINT_BYTES`].
pub const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(3);

/// Sessions one target runs at once; more wait.
pub const TARGET_SESSIONS_MAX: usize = 64;
/// Sessions one source runs at once; more wait as `pending`.
pub const SOURCE_SESSIONS_MAX: usize = 16;
/// Disks in one VM.
pub const DISKS_MAX: usize = 64;
/// Largest disk: 64 TiB.
pub const DISK_BYTES_MAX: u64 = 64 << 40;

/// Heartbeats are sent this often on an idle control stream.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);
/// A link that answered nothing for this long is dead.
pub const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(20);
/// The kernel gives up unacknowledged data after this.
pub const TCP_USER_TIMEOUT: Duration = Duration::from_secs(15);
/// SIGTERM to exit.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Default and longest life of an invitation.
pub const INVITATION_DEFAULT: Duration = Duration::from_secs(600);
/// See [`INVITATION_DEFAULT`].
pub const INVITATION_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// Wrong secrets an invitation survives.
pub const INVITATION_TRIES: u32 = 5;
/// Paired peers.
pub const PEERS_MAX: usize = 1024;

/// RocksDB block cache and write buffers together at a source (bytes).
pub const DATABASE_MEMORY_BYTES: usize = 64 * 1024 * 1024;

/// Finished sessions kept in the history of a job.
pub const HISTORY_SESSIONS_MAX: usize = 1000;
