//! Retiring restore points at the target: after each seal, and by a look now and then.
//!
//! What retires is `retention`'s decision, removing it the datastore's. A reader or a session in the way only puts
//! it off: the next look is soon then, and once an hour otherwise, because pins lapse and points grow old without a
//! seal. Owns nothing but the time of the next look. Blocking work runs on blocking threads.

use std::sync::Arc;
use std::time::Duration;

use super::target::TargetService;
use crate::repository::RepositoryError;
use crate::repository::datastore::Replica;
use crate::repository::retention::Rules;

/// The longest time between two looks.
const LOOK_INTERVAL: Duration = Duration::from_secs(3600);
/// The next look after something was in the way.
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
    pub async fn tend_retention(self: Arc<Self>) {
        loop {
            let service = self.clone();
            let looking = tokio::task::spawn_blocking(move || service.retire_due());
            let looked = tokio::select! {
                looked = looking => looked.unwrap_or(false),
                // A removal that is cut short goes on at the next start.
                () = self.stop.cancelled() => return,
            };
            let wait = if looked { LOOK_INTERVAL } else { RETRY_INTERVAL };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                // Something was in the way after a seal.
                () = self.retire_soon.notified() => tokio::select! {
                    () = tokio::time::sleep(RETRY_INTERVAL) => {}
                    () = self.stop.cancelled() => return,
                },
                () = self.stop.cancelled() => return,
            }
        }
    }

    /// Retires what is due; true where nothing was in the way.
    fn retire_due(&self) -> bool {
        let mut done = true;
        for replica in self.datastores.replicas() {
            replica.save_clock();
            if self.stop.is_cancelled() {
                return true;
            }
            let due = self.plan_retirement(&replica);
            done &= self.retire(&replica, &due);
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
                    tracing::warn!(point = %id, %error, "a restore point could not be retired now; it is tried again");
                }
            }
        }
        done
    }
}
