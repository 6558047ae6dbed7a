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
use crate::worker::{Outcome, Pass, Plan, Role, Spec};

/// A crash forgets at most this much of what was learned.
const SAVE_INTERVAL: Duration = Duration::from_secs(600);
/// Sessions and users of the source go first.
const LEARN_BYTES_PER_SECOND: f64 = 64e6;
/// Read between two looks at the clock.
const STEP_CHUNKS: u64 = 64;

impl JobManager {
    /// Starts both tasks; they end with the appliance.
    pub(super) fn tend_anchors(self: &Arc<Self>) {
        let (workers, stop) = (&self.parts.workers, &self.parts.stop);
        let what = "saves the content anchors, so that a crash forgets little of them";
        let saver = workers.register(Spec::new("anchor-saving", Role::Source, what));
        let parts = self.parts.clone();
        let plan = Plan { at_stop: true, ..Plan::after(SAVE_INTERVAL) };
        self.parts.tasks.spawn(saver.drive(stop.clone(), plan, move |_| {
            parts.anchors.save().map_err(|error| format!("they stay in memory: {error}"))?;
            Ok(Outcome::again_in(SAVE_INTERVAL))
        }));
        let what = "learns the content anchors of disks again where they were lost";
        let learner = workers.register(Spec::new("anchor-learning", Role::Source, what));
        let manager = self.clone();
        self.parts.tasks.spawn(learner.drive(stop.clone(), Plan::default(), move |pass| {
            manager.learn_missing(pass)?;
            Ok(Outcome::again_in(SAVE_INTERVAL))
        }));
    }

    fn learn_missing(&self, pass: &Pass) -> Result<(), String> {
        for job in self.list() {
            let Ok(Some(manifest)) = self.parts.repository.load(&job.spec.name) else { continue };
            let Ok((_, disks)) = resolve(&self.parts, &job.spec) else { continue };
            for (n, disk) in disks.iter().enumerate().take(manifest.tables.len()) {
                let key = DiskKey { job: job.spec.name.clone(), disk: n as u16 };
                let raw = disk.format == DiskFormat::Raw;
                if self.parts.stop.is_cancelled() || job.running.is_some() {
                    return Ok(());
                }
                if raw && !self.parts.anchors.knows(&key) {
                    tracing::info!(
                        job = key.job,
                        disk = disk.path,
                        "learning the content anchors of a disk again"
                    );
                    pass.worker().count("disks", 1);
                    if let Err(error) = learn(&self.parts, &key, Path::new(&disk.path), pass) {
                        tracing::warn!(%error, disk = disk.path, "the disk cannot be read for its anchors");
                    }
                }
            }
        }
        Ok(())
    }
}

fn learn(parts: &Parts, key: &DiskKey, path: &Path, pass: &Pass) -> std::io::Result<()> {
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
        pass.worker().progress(at, geometry.disk_len);
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
