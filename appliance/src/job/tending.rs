//! Keeping the content anchors: saving them now and then, and learning them again where they were lost.
//!
//! Two background tasks of the job manager. Learning reads the disks of jobs that have a restore point whose
//! content was not all scanned (the table was lost, or the line too fast for bases), as they lie there now (what changed since is learned as it is sent), at no more than
//! [`LEARN_BYTES_PER_SECOND`]. Disks that can only be read through a process of their own (qcow2) are left
//! to their next full run.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vbr_api::DiskFormat;

use super::manager::JobManager;
use super::parts::Parts;
use super::prepare::block_of;
use super::snapshot::resolve;
use crate::accelerator::anchors::{BLOCK_BYTES, DiskKey, gear};
use crate::block::{BlockRead, CHUNK_BYTES, Geometry, is_zero};
use crate::block_file::RawFile;

/// A crash forgets at most this much of what was learned.
const SAVE_INTERVAL: Duration = Duration::from_secs(600);
/// Sessions and users of the source go first.
const LEARN_BYTES_PER_SECOND: f64 = 64e6;
/// Read between two looks at the clock.
const STEP_CHUNKS: u64 = 64;

impl JobManager {
    /// Starts both tasks; they end with the appliance.
    pub(super) fn tend_anchors(self: &Arc<Self>) {
        let parts = self.parts.clone();
        self.parts.tasks.spawn(async move {
            loop {
                let stopped = tokio::select! {
                    () = tokio::time::sleep(SAVE_INTERVAL) => false,
                    () = parts.stop.cancelled() => true,
                };
                let anchors = parts.anchors.clone();
                if let Ok(Err(error)) = tokio::task::spawn_blocking(move || anchors.save()).await {
                    tracing::warn!(%error, "the content anchors cannot be saved; they stay in memory");
                }
                if stopped {
                    return;
                }
            }
        });
        let manager = self.clone();
        self.parts.tasks.spawn(async move {
            loop {
                let learner = manager.clone();
                let _ = tokio::task::spawn_blocking(move || learner.learn_missing()).await;
                tokio::select! {
                    () = tokio::time::sleep(SAVE_INTERVAL) => {}
                    () = manager.parts.stop.cancelled() => return,
                }
            }
        });
    }

    fn learn_missing(&self) {
        for job in self.list() {
            let Ok(Some(manifest)) = self.parts.repository.load(&job.spec.name) else { continue };
            let Ok((_, disks)) = resolve(&self.parts, &job.spec) else { continue };
            for (n, disk) in disks.iter().enumerate().take(manifest.tables.len()) {
                let key = DiskKey { job: job.spec.name.clone(), disk: n as u16 };
                let raw = disk.format == DiskFormat::Raw;
                if self.parts.stop.is_cancelled() || job.running.is_some() {
                    return;
                }
                if raw && !self.parts.anchors.knows(&key) {
                    tracing::info!(
                        job = key.job,
                        disk = disk.path,
                        "learning the content anchors of a disk again"
                    );
                    if let Err(error) = learn(&self.parts, &key, Path::new(&disk.path)) {
                        tracing::warn!(%error, disk = disk.path, "the disk cannot be read for its anchors");
                    }
                }
            }
        }
    }
}

fn learn(parts: &Parts, key: &DiskKey, path: &Path) -> std::io::Result<()> {
    let disk = RawFile::open(path)?;
    let Some(image) = parts.anchors.relearn(key) else { return Ok(()) };
    let geometry = Geometry { disk_len: disk.len() };
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut whole = true;
    let (started, mut read, mut at) = (Instant::now(), 0.0, 0);
    while let Some(extent) = disk.next_data(at)? {
        let first = extent.offset / CHUNK_BYTES as u64;
        let last = extent.end().div_ceil(CHUNK_BYTES as u64).min(first + STEP_CHUNKS);
        for chunk in first..last {
            let data = &mut buffer[..geometry.chunk_len(chunk)];
            disk.read_at(geometry.chunk_range(chunk).start, data)?;
            read += data.len() as f64;
            if is_zero(data) {
                continue;
            }
            let mut anchors = Vec::new();
            gear::scan(data, |at, anchor| anchors.push((anchor, block_of(chunk, (at / BLOCK_BYTES) as u8))));
            parts.anchors.put(image, anchors);
        }
        at = geometry.chunk_range(last).start;
        whole = !parts.stop.is_cancelled();
        if at >= geometry.disk_len || !whole {
            break;
        }
        let due = Duration::from_secs_f64(read / LEARN_BYTES_PER_SECOND);
        std::thread::sleep(due.saturating_sub(started.elapsed()).min(Duration::from_secs(1)));
    }
    if whole {
        parts.anchors.learned(image);
    }
    Ok(())
}
