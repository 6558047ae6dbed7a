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
/// Payload bytes a source may have sent that the target has not yet called durable: the most that a
/// cut link makes it send again.
pub const CREDIT_BYTES: u64 = 3 * 1024 * 1024 + 512 * 1024;
/// The same over a line above some 100 Mbit/s, where [`CREDIT_BYTES`] is less than is on its way.
pub const CREDIT_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Pages a source has offered whose chunks are not all on their way (32 KiB each).
pub const PAGES_OPEN_MAX: usize = 64;
/// Offered chunks of those pages; the scanner waits above it.
pub const CHUNKS_OPEN_MAX: usize = 3072;
/// A batch that is not full is sent after this long without another needed chunk.
pub const BATCH_WAIT: Duration = Duration::from_millis(200);
/// Batches that are compressed at once in the whole appliance.
pub const COMPRESSORS_MAX: usize = 2;
/// Batches that are packed, or being packed, and wait for the one that waits for credit: of all sessions
/// together, besides one of each. They are the time there is for working harder on one (some 7 s at 20 Mbit/s).
pub const BATCHES_PACKED_MAX: usize = 12;
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
/// Smallest cache that works: open pack, pinned packs, one to evict. Packs of a small cache are small.
pub const CACHE_BYTES_MIN: u64 = 64 * 1024 * 1024;

/// A building point is flushed and its cursor made durable at least this often while data comes in.
pub const CHECKPOINT_BYTES: u64 = 64 * 1024 * 1024;
/// See [`CHECKPOINT_BYTES`].
pub const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(3);

/// Sessions one target runs at once; more wait.
pub const TARGET_SESSIONS_MAX: usize = 64;
/// Sessions one source runs at once; more wait as `pending`.
pub const SOURCE_SESSIONS_MAX: usize = 16;
/// Disks at once of one source host, over one link, into one datastore, where `[resources]` does not say.
pub const SLOTS_DEFAULT: u32 = 4;
/// Most slots of one of them.
pub const SLOTS_MAX: usize = 64;
/// A lost link is waited for this long where `schedule.link_wait` does not say.
pub const LINK_WAIT: Duration = Duration::from_secs(12 * 3600);
/// A session without progress is told of after this long where `schedule.stall_warning` does not say.
pub const STALL_WARNING: Duration = Duration::from_secs(300);
/// Its attempt is cut after this long where `schedule.stall_cut` does not say.
pub const STALL_CUT: Duration = Duration::from_secs(900);
/// Trouble that may pass is tried again inside a session for this long.
pub const TROUBLE_PATIENCE: Duration = Duration::from_secs(60);
/// Disks in one VM.
pub const DISKS_MAX: usize = 64;
/// Largest disk: 64 TiB.
pub const DISK_BYTES_MAX: u64 = 64 << 40;

/// Heartbeats are sent this often on an idle control stream.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);
/// The same while sessions run: what control takes beside bulk is shown to operators.
pub const HEARTBEAT_BUSY_INTERVAL: Duration = Duration::from_secs(1);
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
/// Connections of one peer that carry sessions, where one does not fill the line.
pub const LINKS_MAX: usize = 6;
/// Restore points that a peer may have at a target that does not say: a point a minute for two weeks.
pub const QUOTA_POINTS: u32 = 20_000;
/// The most that a configuration may say.
pub const QUOTA_POINTS_MAX: usize = 10_000_000;
/// Paired peers.
pub const PEERS_MAX: usize = 1024;

/// RocksDB block cache and write buffers together at a source (bytes).
pub const DATABASE_MEMORY_BYTES: usize = 64 * 1024 * 1024;

/// Scrubs and verifications of restore points where the configuration does not say how often.
pub const HOUSEKEEPING_INTERVAL: Duration = Duration::from_secs(7 * 24 * 3600);
/// Bytes a second that they read where it does not say.
pub const HOUSEKEEPING_RATE: u64 = 32 * 1024 * 1024;
/// History older than this goes where `history.keep` does not say.
pub const HISTORY_KEEP: Duration = Duration::from_secs(365 * 24 * 3600);
/// Entries in the log of a job.
pub const JOB_LOG_ENTRIES_MAX: usize = 2000;
/// The same of all jobs together; with many jobs each has less.
pub const JOB_LOG_ENTRIES_ALL_MAX: usize = 200_000;
/// Bytes of text in one of them.
pub const JOB_LOG_TEXT_BYTES_MAX: usize = 2048;
/// Hooks that a configuration may name.
pub const NOTIFY_HOOKS_MAX: usize = 16;
/// Notifications that wait for one hook; more are dropped and counted.
pub const NOTIFY_QUEUED_MAX: usize = 64;
/// One try of a notification where `notify.NAME.timeout` does not say.
pub const NOTIFY_TIMEOUT: Duration = Duration::from_secs(10);

/// Finished sessions kept in the history of a job.
pub const HISTORY_SESSIONS_MAX: usize = 1000;

/// Bytes of a batch's reference prefix: three times the largest batch.
pub const PREFIX_BYTES_MAX: usize = 3 * BATCH_PLAIN_BYTES_MAX;
/// Bases offered in one probe.
pub const PROBE_BASES_MAX: usize = 4096;
/// Chunks whose blocks are offered in one probe.
pub const PROBE_CHUNKS_MAX: usize = 1024;
/// Probes on their way; as many as there are open pages.
pub const PROBES_OPEN_MAX: usize = PAGES_OPEN_MAX;
/// Offered bases that both ends remember the number of, newest (16 bytes each at the target).
pub const HELD_BASES_MAX: usize = 64 * 1024;
/// Bases of which a session remembers whether their bytes can be had (some 80 bytes each).
pub const BASES_SOUGHT_MAX: usize = 16 * 1024;
/// Verified chunks that all sessions of a source together keep in memory for their next batches (64 KiB each).
pub const BASE_CHUNKS_MAX: usize = 128;
/// Verified chunks that a session at a target keeps in memory because the next batch may use them too (64 KiB each).
pub const BASES_IN_MEMORY_MAX: usize = 48;
/// Pages of ids that a session keeps at hand to look up bases (32 KiB each).
pub const BASE_PAGES_IN_MEMORY_MAX: usize = 24;
/// Memory of the content anchors where `accelerator.anchor_memory` does not say.
pub const ANCHOR_MEMORY_BYTES: usize = 64 * 1024 * 1024;
/// Memory of the target's index of 4 KiB blocks where `accelerator.block_memory` does not say.
pub const BLOCK_MEMORY_BYTES: usize = 128 * 1024 * 1024;
/// Stored bytes of one batch: with its recipe it fits a message.
pub const BATCH_STORED_BYTES_MAX: usize = 1792 * 1024;
/// Chunks in one batch.
pub const BATCH_ENTRIES_MAX: usize = 4096;

/// Volumes that a restore point's record tells of, over all disks.
pub const VOLUME_NOTES_MAX: usize = 1024;
/// Bytes of text in one of those notes.
pub const VOLUME_NOTE_BYTES_MAX: usize = 1024;
/// The configuration of a VM, whole, as JSON.
pub const VM_CONFIG_BYTES_MAX: usize = 1024 * 1024;
/// The hypervisor's own words in it.
pub const VM_DEFINITION_BYTES_MAX: usize = 256 * 1024;
/// Network cards of a VM.
pub const VM_NICS_MAX: usize = 64;

/// Pages with needed chunks that wait at the source: each open page once, and each batch that may be on
/// its way (the credit window holds some 450 of 8 KiB) asked for again in two pages.
pub const WORK_QUEUED_MAX: usize = 32 * PAGES_OPEN_MAX;

/// Chunks that may wait for their batch and were sent ahead of the target's answer: the largest batch.
pub const AHEAD_CHUNKS_MAX: usize = BATCH_PLAIN_BYTES_MAX / (64 * 1024);
/// Sets of shared chunks that a target has in memory, one a dedup domain; the one used longest ago goes.
pub const SHARED_SETS_MAX: usize = 8;
/// Memory of a set for the first branches of chunks, 8 bytes a chunk; used page by page.
pub const SHARED_FIRST_BYTES: usize = 16 * 1024 * 1024;
/// Filters of shared chunks that a source has in memory, one a target (at most 4.8 MiB each).
pub const SHARED_FILTERS_MAX: usize = 4;
/// Deltas of one refresh of such a filter: a whole one comes in 20.
pub const SHARED_DELTAS_MAX: usize = 64;

/// Throttling rules of a site.
pub const THROTTLE_RULES_MAX: usize = 64;
/// Lowest rate that may be asked for, bits a second: below it no session gets its heartbeats through in time.
pub const RATE_BPS_MIN: u64 = 64_000;
/// Highest rate that may be asked for, bits a second.
pub const RATE_BPS_MAX: u64 = 1_000_000_000_000;

/// Images that a target reads chunks from in place; the one entered first goes.
pub const SEEDS_MAX: usize = 256;
/// Warmings that wait; one runs at a time.
pub const WARMINGS_WAITING_MAX: usize = 64;
/// Warmings that are over and remembered.
pub const WARMINGS_PAST_MAX: usize = 64;
/// What a warming reads, bytes a second.
pub const WARM_BYTES_PER_SECOND: u64 = 400 * 1024 * 1024;
/// The same while sessions run.
pub const WARM_BYTES_PER_SECOND_BUSY: u64 = 32 * 1024 * 1024;
