//! What goes on by itself: commits are finished, and tests that nobody waits for any more are ended.

use std::sync::Arc;
use std::time::Duration;

use vbr_api::Flatten;

use super::{Failovers, title};
use crate::error::Problem;
use crate::host::target::{Flattening, TargetVm};
use crate::repository::datastore::{Replica, Stage, StartedRecord};

/// Between two looks at what runs.
pub const INTERVAL: Duration = Duration::from_secs(5);

impl Failovers {
    /// One look at every replica: answers whether there is anything to look after, or what went wrong.
    pub fn tend(&self) -> Result<bool, String> {
        let (mut faults, mut any) = (Vec::new(), false);
        for replica in self.stores.replicas() {
            any |= replica.stage().has_images();
            // Who has an order under way is left alone.
            let Ok(_turn) = self.turn(&replica) else { continue };
            if let Err(problem) = self.tend_one(&replica) {
                faults.push(format!("{}: {}", title(&replica), problem.why));
            }
        }
        if faults.is_empty() { Ok(any) } else { Err(faults.join("; ")) }
    }

    fn tend_one(&self, replica: &Arc<Replica>) -> Result<(), Problem> {
        let record = replica.failover()?;
        let Some(started) = record.started else { return Ok(()) };
        TargetVm::at(&replica.failover_dir()).bound_console();
        match record.stage {
            Stage::Permanent => self.flatten(replica),
            // Its vbrd was killed: nobody waits for the result.
            Stage::Test if !started.keep => self.undo_now(replica),
            _ => Ok(()),
        }
    }

    /// Goes on with making a VM independent of the restore points.
    pub(super) fn flatten(&self, replica: &Arc<Replica>) -> Result<(), Problem> {
        let Some(started) = replica.failover()?.started.filter(|started| !started.flattened) else {
            return Ok(());
        };
        let disks = started.disk_lens.len();
        match TargetVm::at(&replica.failover_dir()).flatten(disks)? {
            Some(Flattening::Runs(_)) => return Ok(()),
            Some(Flattening::Done) => {}
            // Off: nobody else writes to the images.
            None => replica.flatten_images()?,
        }
        replica.note_flattened()?;
        tracing::info!("the VM of {} is independent of its restore points", title(replica));
        Ok(())
    }

    /// How far that is. It is over only once the record says so.
    pub(super) fn flattened(&self, vm: &TargetVm, started: &StartedRecord) -> Flatten {
        let total_bytes = started.disk_lens.iter().sum();
        match vm.flatten_progress(started.disk_lens.len()) {
            Ok(Some(Flattening::Runs(done))) => done,
            Ok(Some(Flattening::Done)) => Flatten { done_bytes: total_bytes, total_bytes },
            // Off, or it cannot be asked: its state tells that.
            Ok(None) | Err(_) => Flatten { done_bytes: 0, total_bytes },
        }
    }
}
