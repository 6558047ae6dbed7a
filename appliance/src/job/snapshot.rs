//! The snapshot of a session: taken, found again after a restart, described, released.
//!
//! A session is bound to one moment. Where its snapshot cannot be found again, what was built from it is
//! forgotten and the session starts anew with another one.

use std::sync::Arc;
use std::time::Duration;

use vbr_api::{DiskSpec, JobSpec, SessionDisk};

use super::driver::Driver;
use super::free::mask;
use super::parts::Parts;
use super::vm::fitting;
use crate::block::Geometry;
use crate::error::Problem;
use crate::host::{SnapshotRequest, SourceHost, VmSnapshot};

/// Between two looks at the space that is left.
const SPACE_LOOK: Duration = Duration::from_secs(2);

impl Driver {
    /// The snapshot: the one of before where it is provably the same moment, a new one otherwise.
    pub(super) async fn snapshot(
        &mut self,
        host: Arc<dyn SourceHost>,
        disks: Vec<DiskSpec>,
    ) -> Result<VmSnapshot, Problem> {
        let request = self.snapshot_request(disks);
        let identity = self.record.snapshot_identity.clone();
        let (wish, allow_live) = (self.spec.free_space, self.record.allow_live);
        let handle = self.handle.clone();
        let take = move || {
            let reopened = match identity {
                Some(identity) => host.reopen(&request, &identity).map_err(Problem::from)?,
                None => None,
            };
            let again = reopened.is_some();
            let snapshot = match reopened {
                Some(snapshot) => snapshot,
                None => host.snapshot(&request).map_err(Problem::from)?,
            };
            mask(snapshot, wish, allow_live).map(|(snapshot, free)| (snapshot, free, again))
        };
        let taken = tokio::task::spawn_blocking(move || handle.clocks.source_host.time(take));
        let (mut snapshot, free, reopened) = taken
            .await
            .map_err(|e| Problem::new("internal", "taking a snapshot", e.to_string(), "report this"))??;
        self.parts.ceilings.limit(self.host_name(), &mut snapshot);
        self.free = free.into();
        if !reopened {
            self.record.snapshot_at_ms = snapshot.taken_at.as_millisecond();
            self.record.vm = snapshot.config.take().and_then(fitting);
            if self.record.snapshot_identity.take().is_some() {
                self.new_moment().await;
            }
        }
        self.record.snapshot_identity = Some(snapshot.identity.clone());
        self.describe(&snapshot);
        self.tell_vm_changes().await;
        self.keep_record().await?;
        Ok(snapshot)
    }

    /// Removes the snapshot that a suspended session kept.
    pub(super) async fn release_suspended(&self, identity: String) {
        let Ok((host, disks)) = resolve(&self.parts, &self.spec) else { return };
        let request = self.snapshot_request(disks);
        let released = tokio::task::spawn_blocking(move || match host.reopen(&request, &identity) {
            Ok(Some(snapshot)) => snapshot.release(false),
            _ => tracing::info!("the snapshot of a cancelled session was gone already"),
        });
        let _ = released.await;
    }

    fn snapshot_request(&self, disks: Vec<DiskSpec>) -> SnapshotRequest {
        let (job, session) = (self.spec.name.clone(), self.record.session.session.clone());
        SnapshotRequest { job, session, vm: vm_of(&self.spec), disks }
    }

    /// The old snapshot is gone: what was built from it is discarded, so that two moments never mix.
    async fn new_moment(&mut self) {
        let (repository, job) = (self.parts.repository.clone(), self.spec.name.clone());
        let session = self.record.session.session.clone();
        let _ = tokio::task::spawn_blocking(move || repository.discard_progress(&job, &session)).await;
        self.handle.update(|session| {
            session.warnings.retain(|warning| !warning.contains("snapshot"));
            session.bytes.changed = 0;
            session.bytes.zero = 0;
            session.bytes.deduplicated = 0;
        });
        tracing::info!("the earlier snapshot is gone; the session starts again with a new one");
    }

    fn describe(&self, snapshot: &VmSnapshot) {
        self.handle.update(|session| {
            session.transport_mode = snapshot.transport_mode.to_string();
            session.warnings.clone_from(&snapshot.warnings);
            if session.disks.len() == snapshot.disks.len() {
                return; // Goes on: keep the figures.
            }
            session.disks = snapshot
                .disks
                .iter()
                .zip(self.free.iter())
                .map(|(disk, free)| SessionDisk {
                    volumes: free.volumes(),
                    path: disk.spec.path.clone(),
                    format: disk.spec.format,
                    virtual_bytes: disk.reader.len(),
                    processed_bytes: 0,
                    read_bytes: 0,
                    changed_bytes: 0,
                    sent_bytes: 0,
                    snapshot: disk.kind.as_str().to_string(),
                })
                .collect();
            session.bytes.freed = self.free.iter().map(|free| free.freed_bytes).sum();
            session.bytes.virtual_ = session.disks.iter().map(|disk| disk.virtual_bytes).sum();
            let chunks = |disk: &SessionDisk| Geometry { disk_len: disk.virtual_bytes }.chunks();
            session.chunks.total = session.disks.iter().map(chunks).sum();
            session.chunks.unchanged = session.chunks.total;
        });
    }

    async fn keep_record(&mut self) -> Result<(), Problem> {
        self.record.session = self.handle.view();
        let (records, record) = (self.parts.records.clone(), self.record.clone());
        tokio::task::spawn_blocking(move || records.store(&record)).await.unwrap_or_else(|e| {
            Err(Problem::new("internal", "keeping a record", e.to_string(), "report this"))
        })
    }
}

/// Ends where the file system that holds the moment falls below its floor of free space: what is left belongs to the VM.
pub(super) async fn out_of_space(snapshot: Arc<VmSnapshot>) -> Problem {
    loop {
        tokio::time::sleep(SPACE_LOOK).await;
        let looked = snapshot.clone();
        if let Ok(Some(why)) = tokio::task::spawn_blocking(move || looked.space_low()).await {
            tracing::warn!(why, "the snapshot is given up: the VM needs the space");
            return Problem::new(
                "snapshot",
                "the snapshot was given up, so that the VM does not run out of space",
                why,
                "free space there, or shorten the session; the job is tried again as it says (--retry)",
            )
            .retry();
        }
    }
}

/// Takes the snapshot down once the last reader of an ended attempt is gone.
pub(super) async fn release(snapshot: Arc<VmSnapshot>, sealed: bool) {
    for _ in 0..100 {
        if Arc::strong_count(&snapshot) == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    match Arc::into_inner(snapshot) {
        Some(snapshot) => {
            let _ = tokio::task::spawn_blocking(move || snapshot.release(sealed)).await;
        }
        None => tracing::warn!("a reader still holds the snapshot; its clone is removed at the next start"),
    }
}

/// The name of a job's host.
pub(super) fn host_of(spec: &JobSpec) -> &str {
    spec.vm.as_deref().and_then(|vm| vm.split_once('/')).map_or("local", |(host, _)| host)
}

/// The name of a job's VM at its host.
pub(super) fn vm_of(spec: &JobSpec) -> Option<String> {
    spec.vm.as_deref().and_then(|vm| vm.split_once('/')).map(|(_, name)| name.to_owned())
}

/// The host and the disks of a job.
pub fn resolve(parts: &Parts, spec: &JobSpec) -> Result<(Arc<dyn SourceHost>, Vec<DiskSpec>), Problem> {
    let Some(vm) = &spec.vm else {
        return Ok((parts.hosts.get("local").map_err(Problem::from)?, spec.disks.clone()));
    };
    let (host, name) = vm.split_once('/').ok_or_else(|| {
        Problem::invalid(format!("VM {vm}"), "it is not HOST/VM", "vbrctl vm list shows what there is")
    })?;
    let host = parts.hosts.get(host).map_err(Problem::from)?;
    let disks = host.resolve(name).map_err(Problem::from)?;
    if spec.exclude.is_empty() {
        return Ok((host, disks));
    }
    let left: Vec<DiskSpec> =
        disks.into_iter().filter(|disk| !spec.exclude.iter().any(|word| is_named(disk, word))).collect();
    if left.is_empty() {
        return Err(Problem::invalid(
            format!("job {}", spec.name),
            format!("every disk of VM {vm} is left out"),
            "exclude fewer disks: vbrctl job edit --exclude; vbrctl vm list -o wide shows them",
        ));
    }
    Ok((host, left))
}

/// Each word of `exclude` names a disk that the VM has. Asked when somebody says it: a disk that is detached later is not
/// missed.
pub(super) fn check_exclusions(host: &dyn SourceHost, spec: &JobSpec) -> Result<(), Problem> {
    let (Some(vm), false) = (vm_of(spec), spec.exclude.is_empty()) else { return Ok(()) };
    let disks = host.resolve(&vm).map_err(Problem::from)?;
    let unknown = spec.exclude.iter().find(|word| !disks.iter().any(|disk| is_named(disk, word)));
    unknown.map_or(Ok(()), |word| {
        Err(Problem::invalid(
            format!("job {}", spec.name),
            format!("its VM has no disk {word:?} that could be left out"),
            "name the path of a disk, or the last part of it: vbrctl vm list -o wide",
        ))
    })
}

/// By its path, or by the last part of it.
fn is_named(disk: &DiskSpec, word: &str) -> bool {
    disk.path == word || disk.path.rsplit('/').next() == Some(word)
}
