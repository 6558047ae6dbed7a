//! The driver of a session at the source: slots, snapshot, one attempt, end. What follows an attempt that
//! failed is `attempts`.
//!
//! A stop of the appliance, or the end of its window, leaves the session `suspended` with its record, its clone and
//! the target's cursor in place, also where it still waits for slots.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use vbr_api::{FreeSpace, JobSpec, Moment, SessionState};

use super::ahead::Ahead;
use super::attempts::{Counted, Counting, sample};
use super::base::{FoundBase, Names, find_base, replica_state};
use super::bases::Bases;
use super::definitions::split_target;
use super::free::DiskFree;
use super::parts::Parts;
use super::prepare::Probes;
use super::records::SessionRecord;
use super::refresh::refresh_after;
use super::replicate::{AttemptError, Base, Replication, replicate};
use super::session::SessionHandle;
use super::slots::Slot;
use super::snapshot::{host_of, out_of_space, release, resolve};
use super::source_state::SourceState;
use super::stall::{StallBounds, watched};
use super::story::Line;
use super::transmit::Rooms;
use crate::accelerator::effort::Controller;
use crate::error::Problem;
use crate::host::VmSnapshot;
use crate::limits::SCANS_PER_SESSION_MAX;
use crate::repository::manifest::PageTable;
use crate::schedule::resources::Need;
use crate::wire::message::{Open, OpenDisk, Request};
use crate::wire::{PeerRecord, WireError, capability};

/// Taking a snapshot may stand still for this many times as long as anything else before it is given up: the
/// maps of a large file system are read in one piece of work.
const SNAPSHOT_PATIENCE: u32 = 4;

/// How a session's drive ended.
pub(super) enum End {
    Sealed { point: String },
    Failed(Problem),
    Cancelled,
    Suspended,
}

/// One session on its way.
pub struct Driver {
    pub(super) parts: Arc<Parts>,
    pub(super) handle: Arc<SessionHandle>,
    pub(super) spec: JobSpec,
    pub(super) record: SessionRecord,
    /// What of each disk does not travel.
    pub(super) free: Arc<[DiskFree]>,
    /// Disks it works on at once, by its slots.
    pub(super) tasks: usize,
}

impl Driver {
    /// Drives the session to its end, or to where it is suspended: with what it needs to go on.
    pub async fn drive(mut self) -> Option<SessionRecord> {
        let mut slot = None;
        let end = self.run(&mut slot).await;
        let repository = self.parts.repository.clone();
        let (job, session) = (self.spec.name.clone(), self.record.session.session.clone());
        let over = !matches!(end, End::Suspended);
        if over {
            self.parts.anchors.discard(&self.record.session.session); // What was not sealed.
        }
        self.handle.update(|s| {
            s.ended_at = over.then(Moment::now);
            match end {
                End::Sealed { point } => {
                    s.restore_point = Some(point);
                    s.error = None;
                    let torn = s.consistent == Some(false);
                    s.state = if torn { SessionState::Warning } else { SessionState::Succeeded };
                    for disk in &mut s.disks {
                        disk.processed_bytes = disk.virtual_bytes;
                    }
                }
                End::Failed(problem) => {
                    s.error = Some(problem.body());
                    s.state = SessionState::Failed;
                }
                End::Cancelled => s.state = SessionState::Cancelled,
                End::Suspended => s.state = SessionState::Suspended,
            }
        });
        drop(slot); // The next one runs when this one is seen to be over.
        let view = self.handle.view();
        tracing::info!(state = view.state.as_str(), sent_wire = view.bytes.sent_wire, "the session ended");
        let records = self.parts.records.clone();
        self.record.session = view.clone();
        let record = self.record.clone();
        let stored = tokio::task::spawn_blocking(move || {
            if over {
                let _ = repository.discard_progress(&job, &session);
                records.finish(&view)
            } else {
                records.store(&record)
            }
        });
        if let Ok(peer) = self.peer() {
            refresh_after(&self.parts, peer, &self.handle.view());
        }
        if let Ok(Err(problem)) = stored.await {
            tracing::error!(%problem, "the session's record cannot be kept");
        }
        (!over).then_some(self.record)
    }

    /// `slot`: what it holds, for as long as it is not seen to be over.
    async fn run(&mut self, slot: &mut Option<Slot>) -> End {
        let (asked, peer) = (Instant::now(), split_target(&self.spec.target).0);
        let _filled = match self.parts.filling.take(peer, self.spec.replica(), &self.spec.name) {
            Ok(filled) => filled,
            Err(problem) => return End::Failed(problem),
        };
        match self.slot(asked).await {
            Ok(held) => *slot = Some(held),
            Err(End::Cancelled) => return self.given_up().await,
            Err(end) => return end,
        }
        self.handle.update(|session| session.state = SessionState::Running);
        let (host, disks) = match resolve(&self.parts, &self.spec) {
            Ok(found) => found,
            Err(problem) => return End::Failed(problem),
        };
        let (handle, bounds) = (self.handle.clone(), self.parts.waits.stall);
        let bounds = StallBounds { cut: bounds.cut * SNAPSHOT_PATIENCE, ..bounds };
        let snapshot = match watched(&handle, bounds, self.snapshot(host.clone(), disks)).await {
            Ok(Ok(snapshot)) => Arc::new(snapshot),
            Ok(Err(problem)) | Err(problem) => return End::Failed(problem),
        };
        let end = tokio::select! {
            end = self.attempts(&snapshot, slot, asked) => end,
            problem = out_of_space(snapshot.clone()) => End::Failed(problem),
        };
        if matches!(end, End::Suspended) {
            return end;
        }
        if matches!(end, End::Cancelled | End::Failed(_)) {
            self.discard_at_target().await;
        }
        let sealed = matches!(end, End::Sealed { .. });
        if sealed {
            self.note_compared().await;
            self.note_vm().await;
        }
        release(snapshot, sealed).await;
        end
    }

    /// Waits for its slots, with the others that asked since then.
    pub(super) async fn slot(&self, asked: Instant) -> Result<Slot, End> {
        self.handle.update(|session| session.state = SessionState::Pending);
        let slot = self.parts.slots.acquire(self.need(), asked, self.handle.clone());
        tokio::select! {
            slot = slot => Ok(slot),
            () = self.handle.cancel.cancelled() => Err(End::Cancelled),
            () = self.handle.pause.cancelled() => Err(End::Suspended),
        }
    }

    /// The source host.
    pub(super) fn host_name(&self) -> &str {
        host_of(&self.spec)
    }

    /// What it needs: a slot for each disk that is read at once.
    fn need(&self) -> Need {
        let disks = match self.spec.vm {
            None => self.spec.disks.len(),
            Some(_) => resolve(&self.parts, &self.spec).map_or(1, |(_, disks)| disks.len()),
        };
        Need {
            host: self.host_name().to_string(),
            peer: split_target(&self.spec.target).0.to_string(),
            datastore: self.spec.target.clone(),
            tasks: disks.clamp(1, SCANS_PER_SESSION_MAX) as u32,
            priority: self.spec.priority,
        }
    }

    /// Cancelled before it went on: what it left behind earlier goes.
    async fn given_up(&self) -> End {
        if let Some(identity) = self.record.snapshot_identity.clone() {
            self.release_suspended(identity).await;
            self.discard_at_target().await;
        }
        End::Cancelled
    }

    /// One attempt over a fresh channel, to the seal or to what ends it.
    pub(super) async fn attempt(
        &self,
        snapshot: &Arc<VmSnapshot>,
        kept: &mut Option<Arc<Replication>>,
        without_base: bool,
        stop: CancellationToken,
    ) -> Result<String, AttemptError> {
        let peer = self.peer()?;
        let wire = self.parts.wire.clone();
        let job = self.spec.name.clone();
        let state = replica_state(&wire, &peer.peer_id, self.spec.replica()).await?;
        if let Some(latest) = state.latest.as_ref().filter(|l| l.session == self.record.session.session) {
            // Sealed before; only the acknowledgement was lost, and with it what changed.
            self.parts.anchors.sealed(&job, &self.record.session.session, false, |_, _| true);
            return self.promote(&latest.point).await;
        }
        let first = state.latest.is_none();
        if first && state.building.is_none() {
            self.seeded(&peer).await?;
        }
        self.check_map(state.latest.as_ref(), snapshot.disks.len()).await?;
        // After a root that did not match, everything is offered; what the target has is not sent.
        let latest = state.latest.as_ref().filter(|_| !without_base);
        let names = Names::of(&self.spec);
        let found = find_base(&wire, &peer.peer_id, names, &self.parts.repository, latest).await?;
        let resumed = state.building.as_ref().is_some_and(|b| b.session == self.record.session.session);
        self.handle.update(|session| {
            session.state = SessionState::Running;
            let seeded = first && self.spec.seed.is_some();
            session.mode = if seeded { "seeded" } else { found.mode }.to_string();
            session.error = None;
            session.resumed += u32::from(resumed);
        });
        let mode = found.mode;
        let goes_on = if resumed { ", going on from the durable position" } else { "" };
        self.handle.tell(Line::info("attempt", format!("sends to {}, {mode}{goes_on}", peer.name)));
        let ctx = self.context(snapshot, kept, found, &peer, stop).await?;
        let channel = wire.open_session(&peer.peer_id).await?;
        if let Some(rate) = self.spec.rate_bps {
            channel.limit_rate(&job, rate);
        }
        let counters = channel.counters();
        let counting = Counting { handle: self.handle.clone(), base: self.handle.view().bytes, counters };
        let mut sampler = JoinSet::new();
        sampler.spawn(sample(counting.clone()));
        let counted = Counted(counting);
        let work = replicate(&ctx, channel, self.open(&ctx, &peer));
        let result = watched(&self.handle, self.parts.waits.stall, work).await;
        let result = result.unwrap_or_else(|stalled| Err(stalled.into()));
        drop((sampler, counted));
        self.note_line(&peer.peer_id, &ctx);
        self.parts.gates.keep(&job, ctx.ahead.gate());
        let sealed = match result {
            Err(AttemptError::Cancelled) if ctx.stopped() => return Err(AttemptError::Cancelled),
            Err(AttemptError::Cancelled) => return Err(AttemptError::Lost("the channel closed".into())),
            other => other?,
        };
        if !sealed.retired.is_empty() {
            let text =
                format!("restore points that this one lets go at the target: {}", sealed.retired.join(", "));
            self.handle.tell(Line::info("retired", text));
        }
        let done = ctx.clone();
        let _ = tokio::task::spawn_blocking(move || done.bases.sealed(&done)).await;
        self.promote(&sealed.point).await
    }

    fn bases(&self, disks: usize) -> Bases {
        let (anchors, cache) = (self.parts.anchors.clone(), self.parts.cache.clone());
        let names = (self.spec.name.as_str(), self.record.session.session.as_str());
        Bases::new(anchors, cache, self.parts.base_chunks.clone(), names, disks)
    }

    async fn ahead(&self, peer: &PeerRecord) -> Ahead {
        let (filters, id, tag) = (self.parts.filters.clone(), peer.peer_id.clone(), peer.domain_key.tag());
        let able = self.parts.wire.peer_can(&id, capability::SHARED_FILTER);
        let filter = tokio::task::spawn_blocking(move || filters.of(&id, tag)).await.ok();
        Ahead::new(filter.filter(|_| able), self.parts.gates.of(&self.spec.name))
    }

    /// What the line to a peer took the last time.
    fn line(&self, peer: &str) -> Option<f64> {
        self.parts.lines.lock().unwrap_or_else(PoisonError::into_inner).get(peer).copied()
    }

    fn note_line(&self, peer: &str, ctx: &Replication) {
        let line = ctx.effort.lock().unwrap_or_else(PoisonError::into_inner).line();
        if let Some(line) = line {
            let mut lines = self.parts.lines.lock().unwrap_or_else(PoisonError::into_inner);
            lines.insert(peer.to_string(), line);
        }
    }

    /// The session's tables: those of the attempt before while its base stands, new ones otherwise.
    async fn context(
        &self,
        snapshot: &Arc<VmSnapshot>,
        kept: &mut Option<Arc<Replication>>,
        found: FoundBase,
        peer: &PeerRecord,
        stop: CancellationToken,
    ) -> Result<Arc<Replication>, AttemptError> {
        let point = |base: &Option<Base>| base.as_ref().map(|base| base.point.clone());
        let (repository, job) = (self.parts.repository.clone(), self.spec.name.clone());
        let session = self.record.session.session.clone();
        let (built, torn) = match kept.take().filter(|old| point(&old.base) == point(&found.base)) {
            Some(old) => (old.state.all_built(), old.torn.load(Ordering::Relaxed)),
            None => {
                let session = session.clone();
                let built = tokio::task::spawn_blocking(move || repository.built(&job, &session)).await;
                (built.ok().and_then(Result::ok).unwrap_or_default(), false)
            }
        };
        let tracked = self.tracked(snapshot, found.base.as_ref()).await;
        let tables = (snapshot.disks.iter().enumerate())
            .map(|(n, disk)| match found.base.as_ref().and_then(|base| base.tables.get(n)) {
                Some(table) => table.resized(disk.reader.len()),
                None => PageTable::new(disk.reader.len()),
            })
            .collect();
        let ctx = Arc::new(Replication {
            job: self.spec.name.clone(),
            session,
            key: peer.domain_key.clone(),
            snapshot: snapshot.clone(),
            repository: self.parts.repository.clone(),
            handle: self.handle.clone(),
            base: found.base,
            tracked,
            state: SourceState::new(tables, built),
            allow_live: self.record.allow_live,
            torn: AtomicBool::new(torn),
            free: self.free.clone(),
            bases: self.bases(snapshot.disks.len()),
            probes: Probes::default(),
            preparing: AtomicUsize::new(0),
            ahead: self.ahead(peer).await,
            effort: Mutex::new(Controller::starting_from(
                self.line(&peer.peer_id),
                self.parts.look_for_bases,
            )),
            keep_sent: self.parts.keep_sent,
            compressors: self.parts.compressors.clone(),
            rooms: Rooms::new(self.parts.packed.clone()),
            scans: self.tasks,
            stop,
        });
        *kept = Some(ctx.clone());
        Ok(ctx)
    }

    fn open(&self, ctx: &Replication, peer: &PeerRecord) -> Open {
        let disks = ctx.snapshot.disks.iter().enumerate().map(|(n, disk)| OpenDisk {
            source_path: disk.spec.path.clone(),
            disk_len: disk.reader.len(),
            base_root: ctx.base_table(n as u16).map(PageTable::root),
        });
        Open {
            session: ctx.session.clone(),
            replica: self.spec.replica().to_string(),
            datastore: split_target(&self.spec.target).1.map(str::to_string),
            base: ctx.base.as_ref().map(|base| base.point.clone()),
            snapshot_identity: moment(&ctx.snapshot.identity, self.spec.free_space),
            snapshot_at_ms: self.record.snapshot_at_ms,
            disks: disks.collect(),
            keep: self.spec.keep,
            keep_calendar: self.spec.keep_calendar,
            vm: self.vm_for(peer).map(Box::new),
        }
    }

    async fn promote(&self, point: &str) -> Result<String, AttemptError> {
        let (repository, job) = (self.parts.repository.clone(), self.spec.name.clone());
        let (session, id) = (self.record.session.session.clone(), point.to_string());
        let promoted = tokio::task::spawn_blocking(move || repository.promote(&job, &session, &id)).await;
        if let Ok(Err(error)) = promoted {
            tracing::warn!(%error, "the repository is behind; the next session rebuilds it from the target");
        }
        Ok(point.to_string())
    }

    fn peer(&self) -> Result<PeerRecord, AttemptError> {
        let name = split_target(&self.spec.target).0;
        self.parts.wire.peer(name).ok_or_else(|| {
            let next = "pair with it again (vbrctl peer join), or remove the job";
            AttemptError::Problem(Problem::new(
                "not_found",
                format!("peer {name}"),
                "it is not paired any more",
                next,
            ))
        })
    }

    async fn discard_at_target(&self) {
        let Ok(peer) = self.peer() else { return };
        let request = Request::Discard {
            replica: self.spec.replica().to_string(),
            session: self.record.session.session.clone(),
        };
        let asked = self.parts.wire.request(&peer.peer_id, request);
        let answer: Result<Result<_, WireError>, _> =
            tokio::time::timeout(Duration::from_secs(10), asked).await;
        if !matches!(answer, Ok(Ok(_))) {
            tracing::info!(
                "the target could not be told; it discards the unfinished point at the next session"
            );
        }
    }
}

/// Names what is read: the snapshot, and whether its free space is masked.
fn moment(identity: &str, free_space: FreeSpace) -> String {
    match free_space {
        FreeSpace::Keep => identity.to_string(),
        FreeSpace::Auto => format!("{identity} without free space"),
    }
}
