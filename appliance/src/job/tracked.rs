//! What a session need not read: what the source host's record of changes says was not written since the base.
//!
//! The record is of the session that sealed the base, or it is of no use. Without a doubt only: a disk that was resized, a
//! record that is missing, and one that was relied on for [`COMPARE_EVERY`] mean that everything is read and compared.
//! That is said in the session's figures and in the job's log.

use std::sync::Arc;
use std::time::Duration;

use vbr_api::{FreeSpace, Moment};

use super::driver::Driver;
use super::replicate::Base;
use super::story::Line;
use crate::block::{CHUNK_BYTES, Extent, PAGE_CHUNKS};
use crate::host::{SnapshotKind, VmSnapshot};

/// A fault of change tracking is found by us within this time, not by a disaster.
pub const COMPARE_EVERY: Duration = Duration::from_secs(7 * 24 * 3600);

/// By disk: where it may have changed since the base; none where it has to be read whole.
pub type Tracked = Vec<Option<Arc<[Extent]>>>;

impl Driver {
    /// Decides for each disk, and says so.
    pub(super) async fn tracked(&self, snapshot: &VmSnapshot, base: Option<&Base>) -> Tracked {
        let (records, job) = (self.parts.records.clone(), self.spec.name.clone());
        let compared = tokio::task::spawn_blocking(move || records.compared(&job)).await.ok().flatten();
        let due = compared.is_none_or(|at| is_due(at, Moment::now()));
        let mut why = None;
        let tracked: Tracked = (snapshot.disks.iter().enumerate())
            .map(|(n, disk)| {
                let old = base.and_then(|base| Some((base, base.tables.get(n)?)));
                let record = old.and_then(|(base, _)| disk.changes_since(&base.session));
                let doubt = match old {
                    None => "there is no restore point to build on",
                    _ if record.is_none() => "the host has no record of changes since the last restore point",
                    // A VM's disks may have changed places: the record would be of another one.
                    Some((base, _)) if base.disk_paths.get(n) != Some(&disk.spec.path) => {
                        "it is not known to be the same disk as in the last restore point"
                    }
                    Some((_, table)) if table.disk_len() != disk.reader.len() => "the disk has another size",
                    _ if self.spec.free_space != FreeSpace::Keep => {
                        "its free space is looked for, which changes without being written to"
                    }
                    _ if due => "a full compare is due, as it is once a week",
                    _ => return record,
                };
                why.get_or_insert_with(|| format!("{}: {doubt}", disk.spec.path));
                None
            })
            .collect();
        if base.is_some() && snapshot.disks.iter().any(|disk| disk.kind == SnapshotKind::Fleece) {
            let line = match &why {
                None => Line::info("tracked", "reads only what was written since the last restore point"),
                Some(why) => Line::info("tracked", format!("reads and compares everything: {why}")),
            };
            self.handle.tell(line);
        }
        let whole = why.clone();
        self.handle.update(|session| {
            session.tracked = tracked.iter().all(Option::is_some) && !tracked.is_empty();
            session.full_read_reason = whole.filter(|_| base.is_some());
        });
        tracked
    }

    /// Everything was read and compared, and sealed.
    pub(super) async fn note_compared(&self) {
        if self.handle.view().tracked {
            return;
        }
        let (records, job) = (self.parts.records.clone(), self.spec.name.clone());
        let _ = tokio::task::spawn_blocking(move || records.note_compared(&job, Moment::now())).await;
    }
}

/// A clock that was set back makes it due as well.
fn is_due(compared: Moment, now: Moment) -> bool {
    let since = now.duration_since(compared);
    since.is_negative() || since.unsigned_abs() >= COMPARE_EVERY
}

/// Pages in which something changed, with the chunks: ascending.
pub fn changed_pages(changes: &[Extent]) -> Vec<(u64, Vec<usize>)> {
    let (grid, per_page) = (CHUNK_BYTES as u64, PAGE_CHUNKS as u64);
    let mut pages: Vec<(u64, Vec<usize>)> = Vec::new();
    for extent in changes.iter().filter(|extent| extent.len > 0) {
        for chunk in extent.offset / grid..=(extent.end() - 1) / grid {
            let (page, position) = (chunk / per_page, (chunk % per_page) as usize);
            match pages.last_mut() {
                Some((last, chunks)) if *last == page => {
                    if chunks.last() != Some(&position) {
                        chunks.push(position);
                    }
                }
                _ => pages.push((page, vec![position])),
            }
        }
    }
    pages
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn once_a_week_nothing_is_taken_on_trust() {
        let now = Moment::now();
        let ago = |hours: i64| now.checked_sub(jiff::SignedDuration::from_hours(hours)).unwrap();
        assert!(!is_due(ago(1), now) && !is_due(ago(167), now));
        assert!(is_due(ago(168), now) && is_due(ago(-1), now));
    }

    proptest! {
        #[test]
        fn pages_hold_every_chunk_that_an_extent_touches(
            runs in prop::collection::vec((1u64..40_000_000, 1u64..3_000_000), 0..12),
        ) {
            let (mut at, mut changes, mut want) = (0, Vec::new(), std::collections::BTreeSet::new());
            for (gap, len) in runs {
                let extent = Extent { offset: at + gap, len };
                want.extend(extent.offset / 65_536..=(extent.end() - 1) / 65_536);
                at = extent.end();
                changes.push(extent);
            }
            let pages = changed_pages(&changes);
            prop_assert!(pages.is_sorted_by(|a, b| a.0 < b.0));
            prop_assert!(pages.iter().all(|(_, chunks)| chunks.is_sorted_by(|a, b| a < b)));
            let got: std::collections::BTreeSet<u64> =
                pages.iter().flat_map(|(page, chunks)| chunks.iter().map(move |c| page * 1024 + *c as u64)).collect();
            prop_assert_eq!(got, want);
        }
    }
}
