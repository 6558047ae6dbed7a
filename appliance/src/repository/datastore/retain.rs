//! What a replica's retention is decided by, and what it fills: facts for [`retention`] and for quotas.
//!
//! Reads records and clocks, decides nothing: that is `retention`'s business, and the quota's. The policy is in
//! `replica.json` from the seal on, so a session that never seals changes nothing.

use std::sync::Arc;
use std::time::Duration;

use vbr_api::KeptPoint;

use super::building::lock;
use super::files;
use super::point::Point;
use super::record::ReplicaRecord;
use super::replica::Replica;
use super::store::Backend;
use crate::repository::RepositoryError;
use crate::repository::retention::{self, Clocks, PointFacts, Policy, Rules};

impl Replica {
    /// What its job last asked to keep.
    pub fn policy(&self) -> Policy {
        let record = lock(&self.record);
        Policy { last: record.keep, calendar: record.keep_calendar }
    }

    /// Keeps what a job asks. Durable when this returns.
    pub fn note_policy(&self, policy: &Policy) -> Result<(), RepositoryError> {
        let mut record = lock(&self.record);
        if record.keep != policy.last || record.keep_calendar != policy.calendar {
            let new = ReplicaRecord { keep: policy.last, keep_calendar: policy.calendar, ..record.clone() };
            self.shared.core.root.write_record(&self.shared.dir.join("replica.json"), &new)?;
            *record = new;
        }
        Ok(())
    }

    /// The points that retention lets go now, oldest first.
    pub fn plan_retention(&self, rules: &Rules, clocks: Clocks) -> Vec<String> {
        self.save_clock();
        retention::plan(&self.facts(), &self.policy(), rules, clocks)
    }

    /// The points that retention lets go once one more is sealed under this policy, oldest first.
    pub fn plan_after_next(&self, policy: &Policy, rules: &Rules, clocks: Clocks) -> Vec<String> {
        retention::plan_after_next(&self.facts(), policy, rules, clocks)
    }

    /// Why each point is kept, oldest first.
    pub fn kept(&self, rules: &Rules, clocks: Clocks) -> Vec<KeptPoint> {
        let facts = self.facts();
        let judged = retention::judge(&facts, &self.policy(), rules, clocks);
        let kept = facts.into_iter().zip(judged).map(|(point, reasons)| KeptPoint {
            id: point.id,
            kept_because: reasons.iter().map(ToString::to_string).collect(),
        });
        kept.collect()
    }

    /// A point's age that is beyond doubt; none for one that cannot be read.
    pub fn age(&self, id: &str) -> Option<Duration> {
        let facts = self.facts().into_iter().find(|point| point.id == id && !point.unreadable);
        facts.map(|point| retention::age(&point, self.clocks()))
    }

    /// The wall clock and the datastore's observed time, now.
    pub fn clocks(&self) -> Clocks {
        self.shared.core.clocks()
    }

    /// Its points as retention sees them, oldest first.
    pub(super) fn facts(&self) -> Vec<PointFacts> {
        let bases: Vec<String> =
            self.building_records().into_iter().filter_map(|(record, _)| record.base).collect();
        self.points().iter().map(|point| facts(point, &bases)).collect()
    }

    /// Writes observed time down where that is due.
    pub fn save_clock(&self) {
        if let Err(error) = self.shared.core.clock.write(&self.shared.core.root) {
            tracing::warn!(%error, "observed time was not written down; points are kept longer");
        }
    }

    /// Bytes that it fills, as a quota counts them. What points share counts once: with overlays that is what
    /// the files take; a reflink clone counts with what was written to it since the point before (the oldest
    /// point with all of it), which is an upper bound. Looks at every file; best effort.
    pub fn charged_bytes(&self) -> u64 {
        if self.shared.core.backend == Backend::Overlay {
            return files::stored_bytes(&self.shared.dir);
        }
        let mut sum = files::stored_bytes(&self.shared.pages_dir());
        for (n, point) in self.points().iter().enumerate() {
            let stored = files::stored_bytes(&self.shared.point_dir(point.id()));
            let shares = n > 0 && point.record().is_ok_and(|record| record.base.is_some());
            sum += if shares { stored.min(point.written_bytes()) } else { stored };
        }
        for (record, cursor) in self.building_records() {
            let stored = files::stored_bytes(&self.shared.building_dir(&record.session));
            let written = lock(&self.open_building).upgrade().map(|open| open.changed_bytes());
            let written = written.unwrap_or(0).max(cursor.changed_bytes);
            sum += if record.base.is_some() { stored.min(written) } else { stored };
        }
        sum
    }

    /// Before a point goes: what the next one still holds of it counts with that one from now on.
    pub(super) fn bequeath(&self, id: &str) -> Result<(), RepositoryError> {
        let points = self.points();
        let Some(at) = points.iter().position(|point| point.id() == id) else { return Ok(()) };
        match points.get(at + 1) {
            Some(next) if at > 0 && self.shared.core.backend == Backend::Reflink && !next.is_retiring() => {
                next.inherit(points[at].written_bytes())
            }
            _ => Ok(()),
        }
    }
}

fn facts(point: &Arc<Point>, bases: &[String]) -> PointFacts {
    let record = point.record().ok();
    PointFacts {
        id: point.id().to_string(),
        sealed_at: record.as_ref().map_or(vbr_api::Moment::MAX, |record| record.sealed_at),
        observed_ms: record.as_ref().map_or(u64::MAX, |record| record.observed_ms),
        credible_at: record.as_ref().and_then(|record| record.credible_at),
        pin: point.pin(),
        in_use: point.is_retiring() || bases.iter().any(|base| base == point.id()),
        bad: point.bad(),
        unreadable: record.is_none(),
    }
}
