//! Retiring restore points at the target: after each seal, and by a look now and then.
//!
//! What retires is `retention`'s decision, removing it the datastore's. A reader or a session in the way only puts
//! it off: the next look is soon then, and once an hour otherwise, because pins lapse and points grow old without a
//! seal. Owns nothing but the time of the next look. Blocking work runs on blocking threads.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::target::TargetService;
use crate::repository::RepositoryError;
use crate::repository::datastore::Replica;
use crate::repository::retention::Rules;
use crate::worker::{Outcome, Pass, Plan, Role, Spec, Worker, Workers};

/// The longest time between two looks.
const LOOK_INTERVAL: Duration = Duration::from_secs(3600);
/// The next look after something was in the way; twice as long each time it still is.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);

impl TargetService {
    /// What this site says, whatever a job asks.
    pub fn rules(&self) -> Rules {
        Rules { min_age: self.min_age(), zone: jiff::tz::TimeZone::system() }
    }

    /// Restore points that the replica's policy and the minimum age let go.
    pub fn plan_retirement(&self, replica: &Replica) -> Vec<String> {
        replica.plan_retention(&self.rules(), replica.clocks())
    }

    /// Looks at every replica at the start, then now and then, until the appliance stops.
    pub fn tend_retention(self: &Arc<Self>, workers: &Workers) {
        let what = "retires restore points that retention lets go";
        // Removing a large image, or merging one into its overlay, is one piece of work.
        let spec = Spec::new("retention", Role::Target, what).stuck_after(Duration::from_secs(2 * 3600));
        let plan = Plan {
            // Something was in the way after a seal.
            wake: Some(self.retire_soon.clone()),
            wake_delay: RETRY_INTERVAL,
            ..Plan::default()
        };
        let (service, wait) = (self.clone(), Mutex::new(RETRY_INTERVAL));
        let work = move |pass: &Pass| {
            // A removal that is cut short goes on at the next start.
            let looked = service.retire_due(pass.worker());
            let mut wait = wait.lock().unwrap_or_else(PoisonError::into_inner);
            let pause = if looked { LOOK_INTERVAL } else { *wait };
            *wait = if looked { RETRY_INTERVAL } else { (*wait * 2).min(LOOK_INTERVAL) };
            Ok(Outcome::again_in(pause))
        };
        self.tasks.spawn(workers.register(spec).drive(self.stop.clone(), plan, work));
    }

    /// Retires what is due; true where nothing was in the way.
    fn retire_due(&self, worker: &Worker) -> bool {
        let mut done = true;
        for replica in self.datastores.replicas() {
            worker.beat();
            replica.save_clock();
            if self.stop.is_cancelled() {
                return true;
            }
            let due = self.plan_retirement(&replica);
            let before = replica.points().len();
            done &= self.retire(&replica, &due);
            worker.count("retired", before.saturating_sub(replica.points().len()) as u64);
        }
        done
    }

    /// Retires these points; true where nothing was in the way.
    pub(super) fn retire(&self, replica: &Replica, points: &[String]) -> bool {
        let mut done = true;
        for id in points {
            match replica.retire(id) {
                Ok(()) => tracing::info!(point = %id, replica = replica.name(), "a restore point retired"),
                Err(RepositoryError::NotFound(_)) => {} // Somebody else was quicker.
                Err(error) => {
                    done = false;
                    tracing::info!(point = %id, %error, "a restore point could not be retired now; it is tried again");
                }
            }
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio_util::sync::CancellationToken;
    use tokio_util::task::TaskTracker;
    use vbr_api::Moment;

    use super::*;
    use crate::accelerator::block_index::BlockIndex;
    use crate::accelerator::global_cache::GlobalCache;
    use crate::accelerator::shared_filter::SharedSets;
    use crate::block::DomainTag;
    use crate::database::Database;
    use crate::limits::CACHE_BYTES_MIN;
    use crate::repository::datastore::{
        BeginDisk, BeginSpec, DatastoreConfig, Datastores, ReplicaSpec, SealSpec,
    };
    use crate::repository::retention::Policy;

    fn service(dir: &std::path::Path) -> Arc<TargetService> {
        let database = Database::open(&dir.join("database"), 16 << 20).unwrap();
        let cache = GlobalCache::open(&dir.join("packs"), database, CACHE_BYTES_MIN, 0).unwrap();
        let config = DatastoreConfig { name: "default".into(), path: dir.join("store"), reserve_bytes: 0 };
        let stores = Datastores::open(vec![config], &dir.join("run"));
        let (blocks, sets) = (BlockIndex::new(1 << 20), SharedSets::new(dir.join("shared")));
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        {
            use crate::repository::seeds::{InPlace, Seeds};
            let (seeds, _) = Seeds::open(dir.join("seeds.json"), Vec::new(), dir, |_, _| Ok(()));
            let places = Arc::new(InPlace { points: stores, seeds: Arc::new(seeds) });
            let blocks = Arc::new(blocks);
            let warmings =
                crate::job::Warmings::new(cache.clone(), blocks.clone(), places, tasks.clone(), stop.clone());
            TargetService::new(cache, blocks, Arc::new(sets), warmings, Duration::ZERO, tasks, stop)
        }
    }

    #[test]
    fn what_a_reader_held_up_retires_at_a_later_look() {
        let dir = tempfile::tempdir().unwrap();
        let service = service(dir.path());
        let worker = Workers::new(None).register(Spec::new("retention", Role::Target, "retires"));
        let now = Moment::now();
        let (owner_peer_id, domain_tag) = ("peer-1".to_owned(), DomainTag([1; 8]));
        let spec = ReplicaSpec { owner_peer_id, site: "branch".into(), name: "web".into(), domain_tag, now };
        let replica = service.datastores.for_session(None, &spec).unwrap();
        for session in ["s1", "s2"] {
            let begin = BeginSpec {
                session: session.into(),
                base: None,
                snapshot_identity: session.into(),
                snapshot_at: now,
                disks: vec![BeginDisk { source_path: "/a.img".into(), disk_len: 1 << 20 }],
                vm: None,
            };
            let building = replica.begin(&begin).unwrap();
            building.seal(SealSpec { consistent: true, now, volumes: Vec::new() }).unwrap();
        }
        assert!(service.retire_due(&worker), "without a policy nothing is due");
        replica.note_policy(&Policy { last: Some(1), ..Policy::default() }).unwrap();
        let first = replica.points()[0].clone();
        let reader = first.open_disk(0).unwrap();
        assert!(!service.retire_due(&worker), "a reader is in the way");
        assert_eq!(replica.points().len(), 2);
        drop(reader);
        assert!(service.retire_due(&worker));
        assert_eq!(replica.points().len(), 1);
        assert_ne!(replica.points()[0].id(), first.id());
    }
}
