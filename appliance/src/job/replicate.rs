//! THE composition at the source: host -> mover -> accelerator -> wire, for one attempt of one session.
//!
//! An attempt lives as long as its channel. Scanners (one blocking thread a disk) offer pages, the
//! preparer looks for bases of what is needed, the batcher packs it (a blocking thread each), the
//! transmitter spends credit, the receiver applies what the target says. All queues between them are bounded; bytes in flight are credit.
//! When the channel dies the attempt ends and the driver starts another one from the target's cursor.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::ahead::Ahead;
use super::answers::receive;
use super::bases::Bases;
use super::free::DiskFree;
use super::prepare::{Probes, Ready, Work, prepare_loop};
use super::scan::{Lanes, Room, scan_disk};
use super::send::batch_loop;
use super::session::SessionHandle;
use super::source_state::{Ids, PageKey, SourceState};
use super::tracked::Tracked;
use super::transmit::{Outgoing, Pipe, Rooms, transmit};
use crate::accelerator::effort::{Choice, Content, Controller, Harder, Made, Seen, Spare};
use crate::block::{BlockRead, DomainKey, PageHash};
use crate::error::Problem;
use crate::host::VmSnapshot;
use crate::limits::{BATCHES_PACKED_MAX, WORK_QUEUED_MAX};
use crate::repository::manifest::PageTable;
use crate::repository::source::{SourceRepository, StoredManifest};
use crate::wire::message::{Message, Open, Sealed};
use crate::wire::{SessionChannel, SessionSender, WireError};

/// Why an attempt ended without a seal.
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    /// The link or the channel is gone; go on when it is back.
    #[error("the link was lost: {0}")]
    Lost(String),
    /// Something an operator must see; `retry` says whether waiting helps.
    #[error(transparent)]
    Problem(#[from] Problem),
    /// Ordered to stop, or another part of the attempt failed first.
    #[error("stopped")]
    Cancelled,
}

impl From<WireError> for AttemptError {
    fn from(error: WireError) -> Self {
        Self::Lost(error.to_string())
    }
}

/// What the base is.
pub struct Base {
    /// Restore point at the target.
    pub point: String,
    /// The session that sealed it.
    pub session: String,
    /// The disks that it shows, by path; empty where that is not known.
    pub disk_paths: Vec<String>,
    /// Its page tables, by disk.
    pub tables: Vec<PageTable>,
}

/// One session at the source; lives over all its attempts.
pub struct Replication {
    /// Job name.
    pub job: String,
    /// Session id.
    pub session: String,
    /// The dedup domain shared with the target.
    pub key: DomainKey,
    /// The disks at one moment.
    pub snapshot: Arc<VmSnapshot>,
    /// The backup repository.
    pub repository: Arc<SourceRepository>,
    /// Figures and state.
    pub handle: Arc<SessionHandle>,
    /// What `Unchanged` means; none for a first run.
    pub base: Option<Base>,
    /// Where disks may have changed since the base.
    pub tracked: Tracked,
    /// Tables being built.
    pub state: SourceState,
    /// Seal although a disk changed while it was read.
    pub allow_live: bool,
    /// Set when content changed between naming and sending.
    pub torn: std::sync::atomic::AtomicBool,
    /// What of each disk does not travel; empty where everything does.
    pub free: Arc<[DiskFree]>,
    /// What content may serve as a base.
    pub bases: Bases,
    /// Questions on their way.
    pub probes: Probes,
    /// Chunks to send that have not reached the batcher.
    pub preparing: AtomicUsize,
    /// What may be sent before the target asks.
    pub ahead: Ahead,
    /// How hard to work.
    pub effort: Mutex<Controller>,
    /// Keep what is sent in the global cache.
    pub keep_sent: bool,
    /// Compressors of the whole appliance.
    pub compressors: Arc<Semaphore>,
    /// For batches that wait for the one that waits for credit.
    pub rooms: Rooms,
    /// Disks that are scanned at once: the session's slots.
    pub scans: usize,
    /// Ends blocking threads of an attempt.
    pub stop: CancellationToken,
}

impl Replication {
    /// True where this session was told to stop.
    pub fn stopped(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// A disk of the snapshot.
    pub fn reader(&self, disk: u16) -> Result<Arc<dyn BlockRead>, AttemptError> {
        self.snapshot.disks.get(disk as usize).map(|disk| disk.reader.clone()).ok_or_else(|| {
            Problem::new("internal", format!("disk {disk}"), "not part of the session", "report this").into()
        })
    }

    /// The base's table of a disk; none for a disk that is new.
    pub fn base_table(&self, disk: u16) -> Option<&PageTable> {
        self.base.as_ref()?.tables.get(disk as usize)
    }

    /// Whether bases are looked for.
    pub fn looks_for_bases(&self) -> bool {
        self.effort.lock().unwrap_or_else(PoisonError::into_inner).bases()
    }

    /// Plain bytes of the next batch.
    pub fn batch_bytes(&self) -> usize {
        self.effort.lock().unwrap_or_else(PoisonError::into_inner).batch_bytes()
    }

    /// How the next batch is made, of so many plain bytes at most.
    pub fn choose(&self, spare: Spare, gathered: usize) -> Choice {
        self.effort.lock().unwrap_or_else(PoisonError::into_inner).choose(spare, gathered)
    }

    /// Whether it is worth more work. `trial` compresses pieces of it.
    pub fn harder(&self, spare: Spare, content: Content, trial: impl FnOnce() -> f64) -> Option<Harder> {
        self.effort.lock().unwrap_or_else(PoisonError::into_inner).harder(spare, content, trial)
    }

    /// A batch was handed on.
    pub fn line_seen(&self, seen: Seen) {
        self.effort.lock().unwrap_or_else(PoisonError::into_inner).seen(seen);
    }

    /// A batch was made.
    pub fn batch_made(&self, made: Made) {
        let mut controller = self.effort.lock().unwrap_or_else(PoisonError::into_inner);
        controller.made(made);
        let (effort, batch_bytes) = (controller.effort(), controller.batch_bytes() as u64);
        let reason = controller.reason();
        drop(controller);
        self.handle.note(|session| {
            session.compression = Some(vbr_api::Compression {
                effort: effort.name.into(),
                level: effort.level,
                batch_bytes,
                bases: effort.bases,
                reason,
            });
        });
    }

    /// A page of the base from the repository.
    pub fn base_page(&self, disk: u16, hash: &PageHash) -> Result<Ids, AttemptError> {
        let clock = &self.handle.clocks.source_mover;
        clock.time(|| self.repository.page(&self.job, disk, hash)).map_err(|e| {
            Problem::new(
                "repository_damaged",
                format!("the repository of job {}", self.job),
                e.to_string(),
                "the next attempt rebuilds it from the target; no disk data crosses the link for that",
            )
            .retry()
            .into()
        })
    }

    /// Keeps a page's ids and settles it. `same`: as at the base, whose page the repository has.
    pub fn settle_page(&self, key: PageKey, ids: &Ids, same: bool) -> Result<(), AttemptError> {
        let clock = &self.handle.clocks.source_mover;
        let zero = ids.iter().all(|id| id.is_zero());
        let hash = match (zero, same) {
            (true, _) => None,
            (false, true) => Some(crate::repository::manifest::page_hash(ids)),
            (false, false) => Some(
                clock
                    .time(|| self.repository.put_page(&self.job, key.0, ids))
                    .map_err(|e| repository_problem(&self.job, &e.to_string()))?,
            ),
        };
        if self.state.settle(key, hash) {
            clock
                .time(|| self.repository.note_built(&self.job, &self.session, key.0, key.1, hash))
                .map_err(|e| repository_problem(&self.job, &e.to_string()))?;
        }
        Ok(())
    }

    /// A read error of a source disk.
    pub fn read_problem(&self, disk: u16, error: &std::io::Error) -> AttemptError {
        let path = self.snapshot.disks.get(disk as usize).map_or("?", |disk| disk.spec.path.as_str());
        let what = format!("reading {path}");
        AttemptError::Problem(match error.kind() {
            std::io::ErrorKind::NotConnected => Problem::new(
                "source_lost",
                what,
                error.to_string(),
                "look whether the server of the disk runs and can be reached; the job is tried again as it says (--retry)",
            )
            .retry(),
            _ => Problem::io(what, error),
        })
    }

    /// Marks the session torn, or refuses to go on.
    pub fn changed_while_read(&self, disk: u16) -> Result<(), AttemptError> {
        let path = self.snapshot.disks.get(disk as usize).map_or("?", |disk| disk.spec.path.as_str());
        if self.allow_live {
            self.torn.store(true, Ordering::Relaxed);
            return Ok(());
        }
        Err(changed_problem(&[path.to_string()]).into())
    }

    /// What the seal says, after the last byte was read: stores the provisional manifest first.
    pub fn prepare_seal(&self) -> Result<Message, AttemptError> {
        let changed = self.snapshot.changed_during_read().map_err(|e| {
            Problem::new("snapshot", "checking the disks after the read", e.to_string(), "run the job again")
        })?;
        if !changed.is_empty() && !self.allow_live {
            return Err(changed_problem(&changed).into());
        }
        let consistent = changed.is_empty() && self.snapshot.one_moment && !self.torn.load(Ordering::Relaxed);
        let tables = self.state.tables();
        let roots = tables.iter().map(|table| table.root()).collect();
        let manifest = StoredManifest {
            point: String::new(),
            session: self.session.clone(),
            tables,
            disk_paths: self.snapshot.disks.iter().map(|disk| disk.spec.path.clone()).collect(),
            skipped: self.free.iter().map(|free| free.mask()).collect(),
        };
        self.repository
            .store_provisional(&self.job, &manifest)
            .map_err(|e| repository_problem(&self.job, &e.to_string()))?;
        self.handle.note(|session| session.consistent = Some(consistent));
        let volumes = self.free.iter().map(|free| free.notes()).collect();
        Ok(Message::Seal(crate::wire::message::Seal { roots, consistent, volumes }))
    }
}

fn repository_problem(job: &str, why: &str) -> Problem {
    Problem::new(
        "repository",
        format!("the repository of job {job} cannot be written"),
        why,
        "check the disk of the state directory, then run the job again",
    )
}

fn changed_problem(paths: &[String]) -> Problem {
    Problem::new(
        "changed_while_read",
        format!("no restore point was sealed: {} changed while it was read", paths.join(", ")),
        "the disk is in use and lies where no clone can be taken, so the copy would mix two moments",
        "stop the VM, or put the disk on XFS or btrfs so that a clone is taken, or run with --allow-live \
         to seal a point that is marked inconsistent",
    )
}

/// Runs one attempt over a fresh channel. Blocking threads are told to end when it returns.
pub async fn replicate(
    ctx: &Arc<Replication>,
    channel: SessionChannel,
    open: Open,
) -> Result<Sealed, AttemptError> {
    let (sender, mut receiver) = channel.split();
    let room = Room::new();
    ctx.handle.attach(Some(sender.clone()));
    let ending = EndAttempt { sender: sender.clone(), room: room.clone(), handle: ctx.handle.clone() };
    sender.send(Message::Open(open)).await?;
    let cursors = match receiver.recv().await? {
        Message::Opened(opened) if opened.cursors.len() == ctx.snapshot.disks.len() => opened.cursors,
        Message::Fail(problem) => return Err(problem.into()),
        _ => return Err(AttemptError::Lost("the target answered out of turn".into())),
    };
    ctx.state.begin_attempt(ctx.snapshot.disks.len());
    ctx.handle.activate();
    ctx.bases.note_cursors(&cursors);
    let (work_tx, work_rx) = mpsc::channel::<Work>(WORK_QUEUED_MAX);
    // As long as the other, so that the receiver, which feeds both, never waits for the batcher.
    let (ready_tx, ready_rx) = mpsc::channel::<Vec<Ready>>(2 * WORK_QUEUED_MAX);
    let (out_tx, out_rx) = mpsc::channel::<Outgoing>(BATCHES_PACKED_MAX + 2);
    let (durable_tx, durable_rx) = watch::channel(0u64);
    let pipe = Arc::new(Pipe::new(durable_rx));
    let mut cut = Cut { pipe: pipe.clone(), handle: ctx.handle.clone(), sealed: false };
    let mut parts: JoinSet<Result<(), AttemptError>> = JoinSet::new();
    spawn_scanners(ctx, &cursors, Lanes { sender: sender.clone(), room, work: work_tx.clone() }, &mut parts);
    let (batcher, fills) = (ctx.clone(), pipe.clone());
    parts.spawn_blocking(move || batch_loop(&batcher, ready_rx, out_tx, &fills));
    let (preparer, prepared, asks) = (ctx.clone(), ready_tx.clone(), sender.clone());
    parts.spawn_blocking(move || prepare_loop(&preparer, work_rx, prepared, &asks));
    parts.spawn(transmit(ctx.clone(), pipe.clone(), sender.clone(), out_rx));
    let result = tokio::select! {
        sealed = receive(ctx, &mut receiver, work_tx, ready_tx, durable_tx) => sealed,
        failed = first_failure(&mut parts) => Err(failed),
    };
    drop(ending);
    parts.abort_all();
    while parts.join_next().await.is_some() {}
    cut.sealed = result.is_ok();
    drop(cut);
    result
}

/// Counts what an attempt loses when it ends without a seal, also when it is dropped half-way, as by the end of a window.
struct Cut {
    pipe: Arc<Pipe>,
    handle: Arc<SessionHandle>,
    sealed: bool,
}

impl Drop for Cut {
    fn drop(&mut self) {
        if !self.sealed {
            // What the target had not called durable crosses the link again, at the most.
            let lost = self.pipe.outstanding();
            self.handle.note(|session| session.bytes.resent += lost);
        }
        self.handle.settle();
    }
}

/// Wakes the blocking threads of an attempt when it ends, also when it is dropped half-way.
struct EndAttempt {
    sender: SessionSender,
    room: Room,
    handle: Arc<SessionHandle>,
}

impl Drop for EndAttempt {
    fn drop(&mut self) {
        self.sender.close();
        self.room.close();
        self.handle.attach(None);
    }
}

fn spawn_scanners(
    ctx: &Arc<Replication>,
    cursors: &[u64],
    lanes: Lanes,
    parts: &mut JoinSet<Result<(), AttemptError>>,
) {
    let scans = Arc::new(Semaphore::new(ctx.scans.max(1)));
    for (disk, cursor) in cursors.iter().copied().enumerate() {
        let (ctx, lanes, scans) = (ctx.clone(), lanes.clone(), scans.clone());
        parts.spawn(async move {
            let _turn = scans.acquire_owned().await.map_err(|_| AttemptError::Cancelled)?;
            let scan = move || scan_disk(&ctx, disk as u16, cursor, &lanes);
            join(tokio::task::spawn_blocking(scan).await)
        });
    }
}

/// The first part that failed; never resolves while all go well.
async fn first_failure(parts: &mut JoinSet<Result<(), AttemptError>>) -> AttemptError {
    while let Some(done) = parts.join_next().await {
        if let Err(error) = join(done) {
            return error;
        }
    }
    std::future::pending().await
}

/// What a part of the attempt came to.
pub(super) fn join<T>(
    done: Result<Result<T, AttemptError>, tokio::task::JoinError>,
) -> Result<T, AttemptError> {
    done.unwrap_or_else(|e| {
        Err(Problem::new("internal", "a part of the session stopped", e.to_string(), "report this").into())
    })
}
