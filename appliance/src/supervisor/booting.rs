//! Restore points are tried by themselves: the newest of each VM is started away from everybody, looked at, and thrown away.
//!
//! One at a time, and only replicas whose restore points know their VM: what else would be started is a guess. The restore point
//! carries the result. A replica whose last test failed is critical until one succeeds: nobody should learn of it on the day that counts.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vbr_api::{FailoverRequest, Moment, RestorePoint, TestRequest, Warning};

use super::verifying::is_due;
use crate::config::FailoverSection;
use crate::failover::Failovers;
use crate::repository::datastore::{Datastores, Replica, Stage};
use crate::worker::{Outcome, Pass, Plan, Role, Spec, Workers};

/// Whether something is due is looked at so often, at least.
const LOOK_INTERVAL: Duration = Duration::from_secs(3600);
/// Replicas that a finding names.
const NAMED_MAX: usize = 8;

/// See the module.
pub struct BootTests {
    /// Carries them out.
    pub failovers: Arc<Failovers>,
    /// Whose restore points.
    pub stores: Arc<Datastores>,
}

impl BootTests {
    /// Starts the worker.
    pub fn tend(
        self,
        section: &FailoverSection,
        workers: &Workers,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) {
        let what = "starts the newest restore point of each VM away from everybody, to see that it does";
        let worker = workers.register(Spec::new("boot-test", Role::Target, what).steady());
        let Some(every) = section.test_every else { return worker.disable() };
        let (look, section) = (every.min(LOOK_INTERVAL), section.clone());
        tasks.spawn(worker.drive(stop.clone(), Plan::after(look), move |pass| {
            self.look(&section, every, pass)?;
            let failed = self.stores.replicas().into_iter().filter(|replica| has_failed(&points(replica)));
            let titles = failed.map(|replica| format!("{}/{}", replica.site(), replica.name()));
            Ok(Outcome { finding: finding(titles.collect()), ..Outcome::again_in(look) })
        }));
    }

    fn look(&self, section: &FailoverSection, every: Duration, pass: &Pass) -> Result<(), String> {
        let mut failed = None;
        for replica in self.stores.replicas() {
            pass.worker().beat();
            let Some(point) = replica.latest().filter(|point| point.vm().is_some()) else { continue };
            let due = is_due(&points(&replica), |point| point.booted_at, every, Moment::now());
            if replica.stage() != Stage::Idle || !(due || pass.is_ordered()) {
                continue;
            }
            let request = TestRequest {
                start: FailoverRequest { point: point.id().into(), ..FailoverRequest::default() },
                expect: section.test_expect.clone(),
                within_ms: Some(section.test_within.as_millis() as u64),
                ..TestRequest::default()
            };
            let stopped = || {
                pass.worker().beat();
                pass.stopped()
            };
            match self.failovers.test(&replica, point.id(), &request, &stopped) {
                Ok(test) if test.ok => pass.worker().count("started", 1),
                Ok(_) if pass.stopped() => break,
                Ok(test) => {
                    pass.worker().count("failed", 1);
                    tracing::error!(why = test.why, "{} did not stand its test", point.title());
                }
                // An order for it is under way: the next look finds it still due.
                Err(problem) if problem.retry => tracing::info!(%problem, "a test is put off"),
                Err(problem) => _ = failed.get_or_insert(format!("{}: {}", point.title(), problem.why)),
            }
            if pass.stopped() {
                break;
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

fn points(replica: &Replica) -> Vec<RestorePoint> {
    replica.points().iter().map(|point| point.meta()).collect()
}

/// Whether the last test of any of a replica's points failed.
fn has_failed(points: &[RestorePoint]) -> bool {
    let last = points.iter().filter(|point| point.booted_at.is_some()).max_by_key(|point| point.booted_at);
    last.is_some_and(|point| point.booted_ok == Some(false))
}

fn finding(titles: Vec<String>) -> Option<Warning> {
    let more = titles.len().saturating_sub(NAMED_MAX);
    let named = titles.iter().take(NAMED_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    (!titles.is_empty()).then(|| Warning {
        level: "critical".into(),
        what: format!("{named}{more} did not start in the last test"),
        next_step: "look at it: vbrctl failover test REPLICA@latest --keep; vbrctl restore-point show says when it last did"
            .into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::verifying::tests::point;

    #[test]
    fn the_last_test_counts_whichever_point_it_was_of() {
        let tested = |sealed: i64, booted: Option<(i64, bool)>| RestorePoint {
            booted_at: booted.map(|(at, _)| Moment::from_second(at).unwrap()),
            booted_ok: booted.map(|(_, ok)| ok),
            ..point(sealed, None)
        };
        assert!(!has_failed(&[tested(10, None)]));
        assert!(has_failed(&[tested(10, Some((20, true))), tested(30, Some((40, false))), tested(50, None)]));
        assert!(!has_failed(&[tested(10, Some((60, true))), tested(30, Some((40, false)))]));
    }

    #[test]
    fn a_finding_names_replicas_within_bounds() {
        assert_eq!(finding(Vec::new()), None);
        let found = finding((0..10).map(|n| format!("branch/vm{n}")).collect()).unwrap();
        assert!(
            found.level == "critical" && found.what.contains("branch/vm7 and 2 more did not"),
            "{found:?}"
        );
    }
}
