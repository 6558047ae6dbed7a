//! Verification of restore points on a schedule: the whole disks of each replica's newest point against its manifest.
//!
//! One point at a time, at a modest rate, and slower while sessions run. A chunk that is damaged is written again from
//! the cache, or from another place of this site that has it: a warning until the replica is verified without a finding.
//! Where nothing has it, the result is kept with the point, as that of an order is: a point that failed is no base
//! any more, so that the chunk is asked for again, and critical until it is removed, or mended by a later pass.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vbr_api::{Moment, RestorePoint, Warning};

use super::housekeeping::Kept;
use crate::accelerator::resolve::Resolver;
use crate::block::{ChunkId, DomainKey};
use crate::config::PacedSection;
use crate::repository::datastore::{Point, Replica};
use crate::repository::verify::{self, Outcome as Verified};
use crate::worker::{Outcome, Pace, Pass, Plan, Role, Spec, Workers};

/// Whether something is due is looked at so often, at least.
const LOOK_INTERVAL: Duration = Duration::from_secs(3600);

/// Restore points that a finding names.
const POINTS_NAMED_MAX: usize = 8;

/// Verification, over what it reads.
pub struct Verification {
    kept: Kept,
    /// Replicas with damage that could not be mended because they were in use: they are due at the next look.
    postponed: Mutex<BTreeSet<[u8; 16]>>,
}

impl Verification {
    /// Over these.
    pub fn new(kept: Kept) -> Self {
        Self { kept, postponed: Mutex::default() }
    }

    /// Starts the worker.
    pub fn tend(
        self,
        section: PacedSection,
        workers: &Workers,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) {
        let what = "verifies the newest restore point of each replica, whole, and mends what is damaged";
        let worker = workers.register(Spec::new("verification", Role::Target, what).steady());
        let Some(every) = section.every else { return worker.disable() };
        let look = every.min(LOOK_INTERVAL);
        tasks.spawn(worker.drive(stop.clone(), Plan::after(look), move |pass| {
            self.look(&section, every, pass)?;
            let points = self.kept.stores.replicas().into_iter().flat_map(|replica| replica.points());
            let mended = points.map(|point| (point.title(), point.mended_chunks()));
            Ok(Outcome { finding: finding(mended), ..Outcome::again_in(look) })
        }));
    }

    fn look(&self, section: &PacedSection, every: Duration, pass: &Pass) -> Result<(), String> {
        let mut pace = Pace::new(section.bytes_per_second);
        let mut failed = None;
        for replica in self.kept.stores.replicas() {
            let points: Vec<RestorePoint> = replica.points().iter().map(|point| point.meta()).collect();
            let postponed =
                self.postponed.lock().unwrap_or_else(PoisonError::into_inner).remove(&replica.key());
            if (pass.is_ordered()
                || postponed
                || is_due(&points, |point| point.verified_at, every, Moment::now()))
                && let Err(why) = self.verify_all(&replica, &mut pace, pass)
            {
                failed.get_or_insert(why);
            }
            if pass.stopped() {
                break;
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// The newest good point and damaged ones; an error where that could not be done.
    fn verify_all(&self, replica: &Arc<Replica>, pace: &mut Pace, pass: &Pass) -> Result<(), String> {
        let (mut verified, mut mended) = (false, 0);
        for point in replica.to_verify() {
            let Some(outcome) = self.verify(replica, &point, pace, pass)? else { continue };
            verified = true;
            mended += outcome.mended;
            if outcome.postponed {
                self.postponed.lock().unwrap_or_else(PoisonError::into_inner).insert(replica.key());
            }
        }
        if verified && mended == 0 {
            // What was mended in earlier passes needs no attention any more.
            for point in replica.points().iter().filter(|point| point.mended_chunks() > 0) {
                point.forget_mended().map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }

    /// None where it cannot be verified now.
    fn verify(
        &self,
        replica: &Arc<Replica>,
        point: &Arc<Point>,
        pace: &mut Pace,
        pass: &Pass,
    ) -> Result<Option<Verified>, String> {
        pass.worker().beat();
        let Some(key) = self.kept.wire.domain_key(point.domain_tag()) else {
            return Err(format!("{}: this site does not have the key of its domain", point.title()));
        };
        let total = point.disks().map_or(0, |disks| disks.iter().map(|(len, _)| len).sum());
        let mut read = 0;
        let mut pace = |bytes: u64| {
            read += bytes;
            pass.worker().progress(read, total);
            pace.spend(pass, bytes, self.kept.is_busy())
        };
        let mut resolver = Resolver::new(self.kept.cache.clone(), self.kept.stores.clone(), key.clone());
        let mut find = |disk: u16, chunk: u64, id: ChunkId| {
            pass.worker().beat();
            self.find(&mut resolver, replica, (disk, chunk), id, &key)
        };
        match verify::verify_and_mend(replica, point, &key, &mut pace, &mut find) {
            Err(error) if error.is_passing() => {
                tracing::info!(%error, "a restore point could not be verified now; it is tried again");
                Ok(None)
            }
            Err(error) => Err(format!("{}: {error}", point.title())),
            Ok(None) => Ok(None), // vbrd stops; it begins again after the next start.
            Ok(Some(outcome)) => {
                tell(point, &outcome, pass);
                Ok(Some(outcome))
            }
        }
    }

    /// A chunk by its id: from the cache, from where the index knows it in a restore point, or from the same place
    /// of another replica, as machines that were installed alike have it.
    fn find(
        &self,
        resolver: &mut Resolver,
        replica: &Replica,
        (disk, chunk): (u16, u64),
        id: ChunkId,
        key: &DomainKey,
    ) -> Option<Vec<u8>> {
        if let Some((found, data)) = resolver.resolve(id.short(), |_, _| None)
            && found == id
        {
            return Some(data);
        }
        if let Some((_, data)) = replica.read_chunk(disk, chunk, id.short(), key) {
            return Some(data);
        }
        let others = self.kept.stores.replicas();
        let mut others = others.iter().filter(|other| other.key() != replica.key());
        others.find_map(|other| other.read_chunk(disk, chunk, id.short(), key)).map(|(_, data)| data)
    }
}

/// Counts and logs what a verification came to.
fn tell(point: &Point, outcome: &Verified, pass: &Pass) {
    let (title, report) = (point.title(), &outcome.report);
    pass.worker().count("points", 1);
    pass.worker().count("bytes", report.read_bytes);
    pass.worker().count("mended", outcome.mended);
    pass.worker().count("mended_elsewhere", outcome.elsewhere);
    if outcome.mended > 0 {
        let (mended, elsewhere) = (outcome.mended, outcome.elsewhere);
        tracing::warn!(mended, elsewhere, "{title} had damaged chunks; they were mended");
    }
    if report.ok {
        tracing::info!("{title} was verified");
        return;
    }
    pass.worker().count("damaged", 1);
    let (bad_chunks, alike) = (report.bad_chunks, outcome.alike.join(", "));
    tracing::error!(
        bad_chunks,
        alike,
        "{title} differs from its manifest, and what is missing is nowhere here; run the job again: what is bad is sent anew"
    );
}

/// What was mended, until the replicas are verified without a finding.
fn finding(mended: impl Iterator<Item = (String, u64)>) -> Option<Warning> {
    let points: Vec<(String, u64)> = mended.filter(|(_, chunks)| *chunks > 0).collect();
    let named: Vec<&str> = points.iter().take(POINTS_NAMED_MAX).map(|(title, _)| title.as_str()).collect();
    let more = points.len().saturating_sub(named.len());
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let chunks: u64 = points.iter().map(|(_, chunks)| chunks).sum();
    (chunks > 0).then(|| Warning {
        level: "warning".into(),
        what: format!(
            "verification found {chunks} damaged chunks in {}{more}; they were mended",
            named.join(", ")
        ),
        next_step: "look at the health of the disk; vbrctl task run verification says whether there is more"
            .into(),
    })
}

/// True where what was done last to any of a replica's points is long ago, or its first point is.
pub(super) fn is_due(
    points: &[RestorePoint],
    done_at: impl Fn(&RestorePoint) -> Option<Moment>,
    every: Duration,
    now: Moment,
) -> bool {
    let done = points.iter().filter_map(done_at).max();
    let since = done.or(points.iter().map(|point| point.sealed_at).min());
    // A clock that was set back makes it due: nobody knows how long ago it was.
    since.is_some_and(|since| since > now || now.duration_since(since).unsigned_abs() >= every)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use vbr_api::PointState;

    pub fn point(sealed_s: i64, verified_s: Option<i64>) -> RestorePoint {
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
            booted_at: None,
            booted_ok: None,
            pinned_until: None,
            kept_because: Vec::new(),
            retires_next: false,
            vm: None,
            vm_changes: Vec::new(),
        }
    }

    #[test]
    fn what_was_mended_is_a_warning_that_names_the_points() {
        let points = |count: usize| (0..count).map(|n| (format!("restore point a/b@{n}"), n as u64));
        assert_eq!(finding(points(1)), None);
        let found = finding(points(4)).unwrap();
        assert!(found.level == "warning" && found.what.contains("6 damaged chunks in restore point a/b@1, "));
        assert!(finding(points(11)).unwrap().what.contains("@8 and 2 more; they were mended"));
    }

    #[test]
    fn due_a_while_after_the_last_one_or_the_first_seal() {
        let due = |points: &[RestorePoint], now: i64| {
            let now = Moment::from_second(now).unwrap();
            is_due(points, |point| point.verified_at, Duration::from_secs(100), now)
        };
        assert!(!due(&[], 1000), "nothing to verify");
        assert!(!due(&[point(950, None), point(990, None)], 1000));
        assert!(due(&[point(900, None), point(990, None)], 1000), "it has points for so long");
        assert!(!due(&[point(10, Some(950)), point(990, None)], 1000));
        assert!(due(&[point(10, Some(900)), point(990, None)], 1000));
        assert!(due(&[point(10, Some(5000))], 1000), "the clock was set back");
    }
}
