//! Verification of restore points on a schedule: the whole disks of each replica's newest point against its manifest.
//!
//! One point at a time, at a modest rate, and slower while sessions run. The result is kept with the point, as that
//! of an order is: a point that failed is no base any more, and critical until it is removed.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vbr_api::{Moment, RestorePoint};

use super::housekeeping::Kept;
use crate::config::PacedSection;
use crate::repository::datastore::Replica;
use crate::repository::verify;
use crate::worker::{Outcome, Pace, Pass, Plan, Role, Spec, Workers};

/// Whether something is due is looked at so often, at least.
const LOOK_INTERVAL: Duration = Duration::from_secs(3600);

/// Verification, over what it reads.
pub struct Verification(pub Kept);

impl Verification {
    /// Starts the worker.
    pub fn tend(
        self,
        section: PacedSection,
        workers: &Workers,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) {
        let what = "verifies the newest restore point of each replica, whole";
        let worker = workers.register(Spec::new("verification", Role::Target, what).reading());
        let Some(every) = section.every else { return worker.disable() };
        let look = every.min(LOOK_INTERVAL);
        tasks.spawn(worker.drive(stop.clone(), Plan::after(look), move |pass| {
            self.look(&section, every, pass)?;
            Ok(Outcome::again_in(look))
        }));
    }

    fn look(&self, section: &PacedSection, every: Duration, pass: &Pass) -> Result<(), String> {
        let mut pace = Pace::new(section.bytes_per_second);
        let mut failed = None;
        for replica in self.0.stores.replicas() {
            let points: Vec<RestorePoint> = replica.points().iter().map(|point| point.meta()).collect();
            if (pass.is_ordered() || is_due(&points, every, Moment::now()))
                && let Err(why) = self.verify(&replica, &mut pace, pass)
            {
                failed.get_or_insert(why);
            }
            if pass.stopped() {
                break;
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// The newest good point; an error where that could not be done.
    fn verify(&self, replica: &Replica, pace: &mut Pace, pass: &Pass) -> Result<(), String> {
        pass.worker().beat();
        let Some(point) = replica.latest() else { return Ok(()) };
        let Some(key) = self.0.wire.domain_key(point.domain_tag()) else {
            return Err(format!("{}: this site does not have the key of its domain", point.title()));
        };
        let total = point.disks().map_or(0, |disks| disks.iter().map(|(len, _)| len).sum());
        let mut read = 0;
        let report = verify::verify_paced(&point, &key, &mut |bytes| {
            read += bytes;
            pass.worker().progress(read, total);
            pace.spend(pass, bytes, self.0.is_busy())
        });
        match report {
            Err(error) if error.is_passing() => {
                tracing::info!(%error, "a restore point could not be verified now; it is tried again");
            }
            Err(error) => return Err(format!("{}: {error}", point.title())),
            Ok(None) => {} // vbrd stops; it begins again after the next start.
            Ok(Some(report)) => {
                pass.worker().count("points", 1);
                pass.worker().count("bytes", report.read_bytes);
                if report.ok {
                    tracing::info!(
                        point = point.id(),
                        replica = replica.name(),
                        "a restore point was verified"
                    );
                } else {
                    pass.worker().count("damaged", 1);
                    tracing::error!(
                        point = point.id(),
                        replica = replica.name(),
                        bad_chunks = report.bad_chunks,
                        "a restore point differs from its manifest; run the job again, then remove the point"
                    );
                }
            }
        }
        Ok(())
    }
}

/// True where the last verification of any of a replica's points is long ago, or its first point is.
fn is_due(points: &[RestorePoint], every: Duration, now: Moment) -> bool {
    let verified = points.iter().filter_map(|point| point.verified_at).max();
    let since = verified.or(points.iter().map(|point| point.sealed_at).min());
    // A clock that was set back makes it due: nobody knows how long ago it was.
    since.is_some_and(|since| since > now || now.duration_since(since).unsigned_abs() >= every)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vbr_api::PointState;

    fn point(sealed_s: i64, verified_s: Option<i64>) -> RestorePoint {
        let at = |s| Moment::from_second(s).unwrap();
        RestorePoint {
            id: "x".into(),
            replica: "web".into(),
            site: "branch".into(),
            session: String::new(),
            state: PointState::Sealed,
            snapshot_at: at(sealed_s),
            sealed_at: at(sealed_s),
            base: None,
            consistent: true,
            disks: Vec::new(),
            changed_bytes: 0,
            verified_at: verified_s.map(at),
            verified_ok: verified_s.map(|_| true),
            pinned_until: None,
            kept_because: Vec::new(),
            retires_next: false,
        }
    }

    #[test]
    fn due_a_while_after_the_last_one_or_the_first_seal() {
        let due = |points: &[RestorePoint], now: i64| {
            is_due(points, Duration::from_secs(100), Moment::from_second(now).unwrap())
        };
        assert!(!due(&[], 1000), "nothing to verify");
        assert!(!due(&[point(950, None), point(990, None)], 1000));
        assert!(due(&[point(900, None), point(990, None)], 1000), "it has points for so long");
        assert!(!due(&[point(10, Some(950)), point(990, None)], 1000));
        assert!(due(&[point(10, Some(900)), point(990, None)], 1000));
        assert!(due(&[point(10, Some(5000))], 1000), "the clock was set back");
    }
}
