//! The target's side of sessions: takes channels and requests of paired peers.
//!
//! Owns the table of running sessions: one a replica. A source that comes back after a cut finds its
//! old channel ended first, so two sessions never write one point. What a peer may touch follows from
//! its PeerId: replicas are looked up under the peer that asks.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vbr_api::{Moment, name_is_valid};

use super::learns::Learns;
use super::point::PointWriter;
use super::quota::Quotas;
use super::receive::{ReceiveError, Receiving, protocol};
use super::warm::Warmings;
use crate::accelerator::block_index::BlockIndex;
use crate::accelerator::global_cache::GlobalCache;
use crate::accelerator::resolve::Resolver;
use crate::accelerator::shared_filter::SharedSets;
use crate::block::ChunkSource;
use crate::error::Problem;
use crate::limits::{DISK_BYTES_MAX, DISKS_MAX, TARGET_SESSIONS_MAX};
use crate::repository::datastore::{BeginDisk, BeginSpec, Building, Datastores, Point, Replica, ReplicaSpec};
use crate::repository::retention::Policy;
use crate::wire::message::{Message, Open, Sealed};
use crate::wire::{Incoming, PeerRecord, SessionChannel, SessionReceiver, SessionSender};
use crate::worker::{Next, Outcome, Pass, Plan, Role, Spec, Workers};

/// How long a new channel waits for the end of the one it replaces.
const TAKE_OVER_TIMEOUT: Duration = Duration::from_secs(60);

/// How often the index of blocks and the sets of shared chunks are saved.
const SAVE_INTERVAL: Duration = Duration::from_secs(600);

struct Active {
    abort: CancellationToken,
    done: watch::Receiver<bool>,
    since: Moment,
}

/// Serves sources.
pub struct TargetService {
    pub(super) datastores: Arc<Datastores>,
    pub(super) cache: Arc<GlobalCache>,
    blocks: Arc<BlockIndex>,
    pub(super) shared: Arc<SharedSets>,
    pub(super) warmings: Arc<Warmings>,
    /// Restore points younger than this are kept whatever a source asks.
    min_age: Mutex<Duration>,
    pub(super) quotas: Quotas,
    pub(super) retire_soon: Arc<tokio::sync::Notify>,
    /// Points may have to be indexed.
    pub(super) index_soon: Arc<tokio::sync::Notify>,
    active: Mutex<HashMap<[u8; 16], Active>>,
    slots: Arc<Semaphore>,
    pub(super) tasks: TaskTracker,
    pub(super) stop: CancellationToken,
}

impl TargetService {
    /// A service over these stores.
    pub fn new(
        cache: Arc<GlobalCache>,
        blocks: Arc<BlockIndex>,
        shared: Arc<SharedSets>,
        warmings: Arc<Warmings>,
        min_age: Duration,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            datastores: warmings.datastores().clone(),
            cache,
            blocks,
            shared,
            warmings,
            min_age: Mutex::new(min_age),
            quotas: Quotas::default(),
            retire_soon: Arc::default(),
            index_soon: Arc::default(),
            active: Mutex::new(HashMap::new()),
            slots: Arc::new(Semaphore::new(TARGET_SESSIONS_MAX)),
            tasks,
            stop,
        })
    }

    /// The age that restore points reach at least.
    pub fn min_age(&self) -> Duration {
        *self.min_age.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes it (a reload of the configuration).
    pub fn set_min_age(&self, min_age: Duration) {
        *self.min_age.lock().unwrap_or_else(PoisonError::into_inner) = min_age;
    }

    /// True while sessions are received.
    pub fn is_receiving(&self) -> bool {
        !self.active.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// What peers may fill here.
    pub fn quotas(&self) -> &Quotas {
        &self.quotas
    }

    /// Replicas that sessions of other sites fill now, in the order of names.
    pub fn receiving(&self) -> Vec<vbr_api::Receiving> {
        let active: HashMap<[u8; 16], Moment> = {
            let active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
            active.iter().map(|(key, session)| (*key, session.since)).collect()
        };
        let filled = self.datastores.replicas().into_iter().filter_map(|replica| {
            let since = *active.get(&replica.key())?;
            Some(vbr_api::Receiving { site: replica.site().into(), replica: replica.name().into(), since })
        });
        let mut filled: Vec<_> = filled.collect();
        filled.sort_by(|a, b| (&a.site, &a.replica).cmp(&(&b.site, &b.replica)));
        filled
    }

    /// Takes what comes in until the wire ends or the appliance stops.
    pub async fn serve(self: Arc<Self>, mut incoming: mpsc::Receiver<Incoming>) {
        loop {
            let next = tokio::select! {
                next = incoming.recv() => next,
                () = self.stop.cancelled() => None,
            };
            match next {
                None => return,
                Some(Incoming::Session { peer, channel }) => {
                    let service = self.clone();
                    self.tasks.spawn(async move { service.session(peer, channel).await });
                }
                Some(Incoming::Request { peer, request, reply }) => {
                    let service = self.clone();
                    self.tasks.spawn_blocking(move || {
                        let _ = reply.send(service.answer(&peer, request));
                    });
                }
            }
        }
    }

    /// Saves the index of blocks and the sets of shared chunks now and then, and when the appliance stops with
    /// much that is new: they are written whole, and a stop must not wait for a slow disk. What is forgotten costs bytes.
    pub fn tend_indexes(self: &Arc<Self>, path: PathBuf, workers: &Workers) {
        let what = "saves the index of blocks and the sets of shared chunks";
        let worker = workers.register(Spec::new("index-saving", Role::Target, what));
        let plan = Plan { at_stop: true, ..Plan::after(SAVE_INTERVAL) };
        let (service, saved) = (self.clone(), AtomicU64::new(self.blocks.stats().entries));
        let work = move |pass: &Pass| {
            service.shared.save(pass.is_last());
            let stats = service.blocks.stats();
            let worth = if pass.is_last() { stats.entries_max / 100 } else { 0 };
            if stats.entries.abs_diff(saved.load(Ordering::Relaxed)) > worth {
                let kept = service.blocks.save(&path);
                kept.map_err(|error| format!("the index of blocks stays in memory: {error}"))?;
                saved.store(stats.entries, Ordering::Relaxed);
            }
            Ok(Outcome::again_in(SAVE_INTERVAL))
        };
        self.tasks.spawn(worker.drive(self.stop.clone(), plan, work));
    }

    /// Indexes, at the start and when asked, every sealed point that the index does not know.
    pub fn tend_points(self: &Arc<Self>, workers: &Workers) {
        let what = "enters restore points into the index of chunks where they are missing";
        // A point of many terabytes is one step.
        let spec = Spec::new("point-indexing", Role::Target, what).stuck_after(Duration::from_secs(2 * 3600));
        let worker = workers.register(spec);
        let plan = Plan { wake: Some(self.index_soon.clone()), ..Plan::default() };
        let service = self.clone();
        let work = move |pass: &Pass| {
            service.index_missing(&|| {
                pass.worker().beat();
                pass.stopped()
            });
            Ok(Outcome { next: Next::WhenWoken, finding: None })
        };
        self.tasks.spawn(worker.drive(self.stop.clone(), plan, work));
    }

    /// Ends the session that fills a replica, if one does: the replica is the VM now.
    pub fn interrupt(&self, key: [u8; 16]) {
        let active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(session) = active.get(&key) {
            session.abort.cancel();
        }
    }

    async fn session(self: Arc<Self>, peer: PeerRecord, channel: SessionChannel) {
        let (sender, mut receiver) = channel.split();
        let opened = tokio::time::timeout(Duration::from_secs(60), receiver.recv()).await;
        let result = match opened {
            Ok(Ok(Message::Open(open))) => {
                let span = tracing::info_span!("session", session = %open.session, job = %open.replica, peer = %peer.name);
                let run = self.run(&peer, open, &sender, &mut receiver);
                tracing::Instrument::instrument(run, span).await
            }
            Ok(Ok(_)) => Err(protocol("a session begins with Open").into()),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(protocol("no Open within 60 s").into()),
        };
        match result {
            Ok(()) => {}
            Err(ReceiveError::Lost(why)) => tracing::info!(peer = %peer.name, %why, "a session paused"),
            Err(ReceiveError::Problem(problem)) => {
                tracing::warn!(peer = %peer.name, code = %problem.code, %problem, "a session was ended");
                let _ = sender.send(Message::Fail(problem)).await;
            }
        }
    }

    async fn run(
        self: &Arc<Self>,
        peer: &PeerRecord,
        open: Open,
        sender: &SessionSender,
        receiver: &mut SessionReceiver,
    ) -> Result<(), ReceiveError> {
        check_open(peer, &open)?;
        let _slot = self.slots.clone().try_acquire_owned().map_err(|_| {
            Problem::new(
                "busy",
                "the session was not started",
                format!("{TARGET_SESSIONS_MAX} sessions run at this target"),
                "it starts by itself when one of them is over",
            )
            .retry()
        })?;
        let policy = Policy { last: open.keep, calendar: open.keep_calendar };
        let service = self.clone();
        let (owner, names) = (peer.clone(), open.clone());
        // Before anything is made: who has no room leaves nothing behind.
        let (room, replica) = blocking(move || {
            service.inherit(&owner)?;
            let room = service.room(&owner, &names.replica, &policy)?;
            Ok((room, service.replica(&owner, &names)?))
        })
        .await?;
        let lease = self.take_over(replica.key()).await?;
        let session = open.session.clone();
        let building = {
            let replica = replica.clone();
            blocking(move || begin(&replica, &open)).await?
        };
        tracing::info!(%session, cursors = ?building.cursors(), "a session is received");
        let points: Arc<dyn ChunkSource> = self.warmings.places.clone();
        let resolver = Resolver::new(self.cache.clone(), points, peer.domain_key.clone());
        let (key, blocks) = (peer.domain_key.clone(), self.blocks.clone());
        let (shared, tag) = (self.shared.clone(), key.tag());
        let shared = blocking(move || Ok(shared.of(tag))).await?;
        let learns = Learns::new(shared, peer.origin());
        let writer = PointWriter::new(building.clone(), self.cache.clone(), resolver, key, blocks, learns);
        let writer = writer.within(room);
        let abort = lease.abort.clone();
        let receiving = Receiving::new(writer, building, self.cache.clone(), sender.clone(), abort);
        let point = match receiving.run(receiver).await {
            Ok(point) => point,
            Err(error) => {
                if matches!(&error, ReceiveError::Problem(problem) if problem.code == "root_mismatch") {
                    let session = session.clone();
                    blocking(move || replica.discard(&session).map_err(Problem::from)).await?;
                }
                return Err(error);
            }
        };
        self.sealed(peer, replica, point, policy, sender).await
    }

    /// Acknowledges the seal, then indexes the point and retires what is due.
    async fn sealed(
        self: &Arc<Self>,
        peer: &PeerRecord,
        replica: Arc<Replica>,
        point: Arc<Point>,
        policy: Policy,
        sender: &SessionSender,
    ) -> Result<(), ReceiveError> {
        let id = point.id().to_string();
        let (service, subject) = (self.clone(), replica.clone());
        let retired = blocking(move || {
            if let Err(error) = subject.note_policy(&policy) {
                tracing::warn!(%error, "what the job asks to keep could not be written down; the old policy holds");
            }
            Ok(service.plan_retirement(&subject))
        })
        .await?;
        tracing::info!(point = %id, "a restore point was sealed");
        sender.send(Message::Sealed(Sealed { point: id, retired: retired.clone() })).await?;
        let service = self.clone();
        let tag = peer.domain_key.tag();
        blocking(move || {
            service.index_point(tag, &replica, &point);
            if !service.retire(&replica, &retired) {
                service.retire_soon.notify_one();
            }
            Ok(())
        })
        .await?;
        Ok(())
    }

    fn replica(&self, peer: &PeerRecord, open: &Open) -> Result<Arc<Replica>, Problem> {
        let spec = ReplicaSpec {
            owner_peer_id: peer.peer_id.clone(),
            site: peer.name.clone(),
            name: open.replica.clone(),
            domain_tag: peer.domain_key.tag(),
            now: Moment::now(),
        };
        self.datastores.for_session(open.datastore.as_deref(), &spec)
    }

    /// Ends the session that writes this replica, if any, and takes its place.
    async fn take_over(self: &Arc<Self>, key: [u8; 16]) -> Result<Lease, Problem> {
        let abort = self.stop.child_token();
        let (done_tx, done_rx) = watch::channel(false);
        let old = {
            let mut active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
            active.insert(key, Active { abort: abort.clone(), done: done_rx, since: Moment::now() })
        };
        let lease = Lease { service: self.clone(), key, abort, done: done_tx };
        if let Some(mut old) = old {
            old.abort.cancel();
            let ended = old.done.wait_for(|done| *done);
            if tokio::time::timeout(TAKE_OVER_TIMEOUT, ended).await.is_err() {
                return Err(Problem::new(
                    "busy",
                    "the session was not started",
                    "an earlier channel of this replica has not ended yet",
                    "it starts by itself",
                )
                .retry());
            }
        }
        Ok(lease)
    }
}

/// The right to write one replica; given up when dropped.
struct Lease {
    service: Arc<TargetService>,
    key: [u8; 16],
    abort: CancellationToken,
    done: watch::Sender<bool>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.done.send_replace(true);
        let mut active = self.service.active.lock().unwrap_or_else(PoisonError::into_inner);
        if active.get(&self.key).is_some_and(|entry| entry.done.same_channel(&self.done.subscribe())) {
            active.remove(&self.key);
        }
    }
}

fn begin(replica: &Arc<Replica>, open: &Open) -> Result<Arc<Building>, Problem> {
    let spec = BeginSpec {
        session: open.session.clone(),
        base: open.base.clone(),
        snapshot_identity: open.snapshot_identity.clone(),
        snapshot_at: Moment::from_millisecond(open.snapshot_at_ms).unwrap_or(Moment::UNIX_EPOCH),
        disks: open
            .disks
            .iter()
            .map(|disk| BeginDisk { source_path: disk.source_path.clone(), disk_len: disk.disk_len })
            .collect(),
        vm: open.vm.as_deref().cloned(),
    };
    if let Some(base) = &open.base {
        let point = replica.point(base)?;
        for (n, disk) in open.disks.iter().enumerate() {
            let root = point.table(n as u16).map(|table| table.root()).ok();
            if disk.base_root.is_some() && root != disk.base_root {
                return Err(Problem::new(
                    "base_mismatch",
                    "the session was not started",
                    format!("restore point {base} has another root than the source says"),
                    "the source rebuilds its repository by itself and tries again",
                )
                .retry());
            }
        }
    }
    if let Some(building) = replica.reopen(&spec.session)? {
        if continues(&building, &spec) {
            return Ok(building);
        }
        drop(building); // Another moment or another base: the two never mix in one point.
        replica.discard(&spec.session)?;
    }
    Ok(replica.begin(&spec)?)
}

/// True where a session may go on with what was built: same moment, same base, same disks.
fn continues(building: &Building, spec: &BeginSpec) -> bool {
    let lens = (0..building.disk_count()).map(|disk| building.disk(disk).map_or(0, |disk| disk.len()));
    building.snapshot_identity() == spec.snapshot_identity
        && building.base() == spec.base.as_deref()
        && lens.eq(spec.disks.iter().map(|disk| disk.disk_len))
}

fn check_open(peer: &PeerRecord, open: &Open) -> Result<(), Problem> {
    if !peer.grants.iter().any(|grant| grant == "replicate") {
        return Err(Problem::not_allowed(
            "the session was not started",
            "this site did not grant you to replicate into it",
            "pair the sites with an invitation of the target",
        ));
    }
    let hex = open.session.len() == 32 && open.session.bytes().all(|b| b.is_ascii_hexdigit());
    if !hex || !name_is_valid(&open.replica) || open.snapshot_identity.len() > 256 {
        return Err(protocol("the session's names are not valid"));
    }
    let disks = open.disks.len();
    if disks == 0 || disks > DISKS_MAX || open.disks.iter().any(|disk| disk.disk_len > DISK_BYTES_MAX) {
        return Err(protocol("the number or the size of the disks is out of bounds"));
    }
    Ok(())
}

/// Blocking work of a session.
async fn blocking<R: Send + 'static>(
    work: impl FnOnce() -> Result<R, Problem> + Send + 'static,
) -> Result<R, Problem> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| {
        Err(Problem::new("internal", "a part of the session stopped", e.to_string(), "report this"))
    })
}
