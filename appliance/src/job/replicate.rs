//! THE composition at the source: host -> mover -> accelerator -> wire, for one attempt of one session.
//!
//! An attempt lives as long as its channel. Scanners (one blocking thread a disk) offer pages, the
//! batcher (one blocking thread) packs what is needed, the transmitter spends credit, the receiver
//! applies what the target says. All queues between them are bounded; bytes in flight are credit.
//! When the channel dies the attempt ends and the driver starts another one from the target's cursor.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::scan::{Room, scan_disk};
use super::send::{Outgoing, batch_loop, transmit};
use super::session::SessionHandle;
use super::source_state::{Ids, PageKey, SourceState, Wanted};
use crate::block::{BlockRead, DomainKey, Geometry, PAGE_BYTES, PageHash};
use crate::error::Problem;
use crate::host::VmSnapshot;
use crate::limits::{PAGES_OPEN_MAX, SCANS_PER_SESSION_MAX};
use crate::repository::manifest::PageTable;
use crate::repository::source::{SourceRepository, StoredManifest};
use crate::wire::message::{Durable, Message, Need, Open, Sealed};
use crate::wire::{SessionChannel, SessionReceiver, SessionSender, WireError};

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
    /// Tables being built.
    pub state: SourceState,
    /// Seal although a disk changed while it was read.
    pub allow_live: bool,
    /// Set when content changed between naming and sending.
    pub torn: std::sync::atomic::AtomicBool,
    /// Compressors of the whole appliance.
    pub compressors: Arc<Semaphore>,
    /// Ends blocking threads of an attempt.
    pub stop: CancellationToken,
}

/// Credit between the transmitter and the receiver.
#[derive(Default)]
pub struct Credit {
    /// Batch payload sent in this attempt.
    pub sent: AtomicU64,
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
        AttemptError::Problem(Problem::io(format!("reading {path}"), error))
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
        };
        self.repository
            .store_provisional(&self.job, &manifest)
            .map_err(|e| repository_problem(&self.job, &e.to_string()))?;
        self.handle.note(|session| session.consistent = Some(consistent));
        Ok(Message::Seal(crate::wire::message::Seal { roots, consistent }))
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
    sender.send(Message::Open(open)).await?;
    let cursors = match receiver.recv().await? {
        Message::Opened(opened) if opened.cursors.len() == ctx.snapshot.disks.len() => opened.cursors,
        Message::Fail(problem) => return Err(problem.into()),
        _ => return Err(AttemptError::Lost("the target answered out of turn".into())),
    };
    ctx.state.begin_attempt(ctx.snapshot.disks.len());
    ctx.handle.activate();
    let credit = Arc::new(Credit::default());
    let (need_tx, need_rx) = mpsc::channel::<Vec<Wanted>>(2 * PAGES_OPEN_MAX);
    let (out_tx, out_rx) = mpsc::channel::<Outgoing>(1);
    let (durable_tx, durable_rx) = watch::channel(0u64);
    let last_durable = durable_rx.clone();
    let mut parts: JoinSet<Result<(), AttemptError>> = JoinSet::new();
    let room = Room::new();
    let ending = EndAttempt { sender: sender.clone(), room: room.clone() };
    spawn_scanners(ctx, &cursors, &sender, &room, &mut parts);
    let batcher = ctx.clone();
    parts.spawn_blocking(move || batch_loop(&batcher, need_rx, out_tx));
    parts.spawn(transmit(ctx.clone(), credit.clone(), sender.clone(), out_rx, durable_rx));
    let result = tokio::select! {
        sealed = receive(ctx, &mut receiver, need_tx, durable_tx) => sealed,
        failed = first_failure(&mut parts) => Err(failed),
    };
    drop(ending);
    parts.abort_all();
    while parts.join_next().await.is_some() {}
    if result.is_err() {
        // What the target had not called durable crosses the link again, at the most.
        let lost = credit.sent.load(Ordering::Relaxed).saturating_sub(*last_durable.borrow());
        ctx.handle.note(|session| session.bytes.resent += lost);
    }
    ctx.handle.settle();
    result
}

/// Wakes the blocking threads of an attempt when it ends, also when it is dropped half-way.
struct EndAttempt {
    sender: SessionSender,
    room: Room,
}

impl Drop for EndAttempt {
    fn drop(&mut self) {
        self.sender.close();
        self.room.close();
    }
}

fn spawn_scanners(
    ctx: &Arc<Replication>,
    cursors: &[u64],
    sender: &SessionSender,
    room: &Room,
    parts: &mut JoinSet<Result<(), AttemptError>>,
) {
    let scans = Arc::new(Semaphore::new(SCANS_PER_SESSION_MAX));
    for (disk, cursor) in cursors.iter().copied().enumerate() {
        let (ctx, sender, scans) = (ctx.clone(), sender.clone(), scans.clone());
        let room = room.clone();
        parts.spawn(async move {
            let _turn = scans.acquire_owned().await.map_err(|_| AttemptError::Cancelled)?;
            let scan = move || scan_disk(&ctx, disk as u16, cursor, &sender, &room);
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

fn join(done: Result<Result<(), AttemptError>, tokio::task::JoinError>) -> Result<(), AttemptError> {
    done.unwrap_or_else(|e| {
        Err(Problem::new("internal", "a part of the session stopped", e.to_string(), "report this").into())
    })
}

async fn receive(
    ctx: &Arc<Replication>,
    receiver: &mut SessionReceiver,
    needs: mpsc::Sender<Vec<Wanted>>,
    durable: watch::Sender<u64>,
) -> Result<Sealed, AttemptError> {
    loop {
        match receiver.recv().await? {
            Message::Need(need) => take_need(ctx, need, &needs).await?,
            Message::Durable(progress) => take_durable(ctx, &progress, &durable),
            Message::Sealed(sealed) => return Ok(sealed),
            Message::Fail(problem) => return Err(problem.into()),
            _ => return Err(AttemptError::Lost("the target sent a message out of turn".into())),
        }
    }
}

async fn take_need(
    ctx: &Arc<Replication>,
    need: Need,
    needs: &mpsc::Sender<Vec<Wanted>>,
) -> Result<(), AttemptError> {
    let key: PageKey = (need.disk, need.page);
    let positions: Vec<usize> = crate::accelerator::recipe::needed(&need).collect();
    let forced = match ctx.state.need(key, positions.len()) {
        Some(Some(ids)) => {
            let worker = ctx.clone();
            let settle = move || worker.settle_page(key, &ids, false);
            join(tokio::task::spawn_blocking(settle).await)?;
            ctx.state.close(key);
            return Ok(());
        }
        Some(None) => false,
        None => {
            reopen(ctx, key, positions.len()).await?;
            true
        }
    };
    let geometry = Geometry { disk_len: ctx.reader(need.disk)?.len() };
    if positions.last().is_some_and(|last| *last >= geometry.page_chunks(need.page)) {
        return Err(AttemptError::Lost("the target asked for chunks past the end of a disk".into()));
    }
    if !forced {
        let bytes: u64 = positions
            .iter()
            .map(|position| geometry.chunk_len(need.page * 1024 + *position as u64) as u64)
            .sum();
        ctx.handle.note(|session| {
            session.bytes.deduplicated = session.bytes.deduplicated.saturating_sub(bytes);
            session.chunks.known = session.chunks.known.saturating_sub(positions.len() as u64);
        });
    }
    let (disk, page) = key;
    let wanted = positions.into_iter().map(|position| Wanted { disk, page, position, forced }).collect();
    needs.send(wanted).await.map_err(|_| AttemptError::Cancelled)
}

/// The target asks again for chunks of a page: open it once more from the manifest being built.
async fn reopen(ctx: &Arc<Replication>, key: PageKey, count: usize) -> Result<(), AttemptError> {
    if ctx.state.add_need(key, count) {
        return Ok(());
    }
    let lost = || AttemptError::Lost("the target asked for a page that was not offered".into());
    let hash = ctx.state.hash(key).ok_or_else(lost)?;
    let worker = ctx.clone();
    let ids = tokio::task::spawn_blocking(move || worker.base_page(key.0, &hash))
        .await
        .map_err(|e| AttemptError::Lost(e.to_string()))??;
    let offer = super::source_state::OpenOffer { ids, remaining: Some(count), room: None };
    ctx.state.open(key, offer);
    Ok(())
}

fn take_durable(ctx: &Replication, progress: &Durable, durable: &watch::Sender<u64>) {
    durable.send_replace(progress.payload_bytes);
    ctx.handle.note_target_busy(progress.busy_ms);
    let settled = ctx.state.progress();
    ctx.handle.note(|session| {
        for (n, disk) in session.disks.iter_mut().enumerate() {
            let page = settled.get(n).copied().unwrap_or(0);
            disk.processed_bytes = disk.processed_bytes.max((page * PAGE_BYTES).min(disk.virtual_bytes));
        }
    });
}
