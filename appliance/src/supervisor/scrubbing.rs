//! The scrub: reading the global cache, and the manifests of all restore points, at a modest rate.
//!
//! A bad record of the cache is dropped, so that it comes again; a page of a manifest that does not fit its hash is
//! made anew from the disk it describes, or reported, with the restore points that have it. What was found stays a warning until a pass finds nothing.
//! Disks of restore points are `verifying`'s.

use std::collections::{BTreeSet, HashSet};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vbr_api::Warning;

use super::housekeeping::Kept;
use crate::accelerator::global_cache::ScrubReport;
use crate::block::PageHash;
use crate::config::PacedSection;
use crate::repository::datastore::{Point, Replica};
use crate::worker::{Outcome, Pace, Pass, Plan, Role, Spec, Workers};

/// Pages of one replica that a pass remembers to have read: the pages of 64 TiB.
const PAGES_SEEN_MAX: usize = 1 << 20;
/// Restore points that a finding names.
const POINTS_NAMED_MAX: usize = 8;
/// What a page of a manifest costs to read.
const PAGE_BYTES: u64 = 32 * 1024;

/// The scrub, over what it reads.
pub struct Scrub(pub Kept);

impl Scrub {
    /// Starts the worker.
    pub fn tend(
        self,
        section: PacedSection,
        workers: &Workers,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) {
        let what = "reads the cache and all manifests, drops what is damaged";
        let worker = workers.register(Spec::new("scrub", Role::Site, what).steady().remembered());
        let Some(every) = section.every else { return worker.disable() };
        let plan = Plan::every(&worker, every);
        tasks.spawn(worker.drive(stop.clone(), plan, move |pass| {
            let mut pace = Pace::new(section.bytes_per_second);
            let cache = self.cache(pass, &mut pace);
            let pages = self.manifests(pass, &mut pace);
            pass.worker().count("cache_records", cache.records);
            pass.worker().count("cache_bad", cache.bad);
            pass.worker().count("manifest_pages", pages.read);
            pass.worker().count("manifest_mended", pages.mended);
            pass.worker().count("manifest_bad", pages.bad);
            tracing::info!(?cache, pages = pages.read, bad_pages = pages.bad, "the scrub ended");
            Ok(Outcome { finding: finding(&cache, &pages), ..Outcome::again_in(every) })
        }));
    }

    fn cache(&self, pass: &Pass, pace: &mut Pace) -> ScrubReport {
        let key = |tag| self.0.wire.domain_key(tag);
        self.0.cache.scrub(&key, &mut |bytes, done, packs| {
            pass.worker().progress(done, packs);
            pace.spend(pass, bytes, self.0.is_busy())
        })
    }

    fn manifests(&self, pass: &Pass, pace: &mut Pace) -> Pages {
        let mut pages = Pages::default();
        for replica in self.0.stores.replicas() {
            self.manifests_of(&replica, pass, pace, &mut pages);
        }
        pages
    }

    /// Makes a page anew from the disk that it describes; true where that fits, and is on the disk.
    fn mend(&self, point: &Point, disk: u16, page: u64) -> bool {
        let key = self.0.wire.domain_key(point.domain_tag());
        key.is_some_and(|key| point.mend_page(disk, page, &key).is_ok())
            && point.check_page(disk, page).is_ok()
    }

    /// Pages that restore points share are read once.
    fn manifests_of(&self, replica: &Replica, pass: &Pass, pace: &mut Pace, pages: &mut Pages) {
        let (mut good, mut bad): (HashSet<PageHash>, HashSet<PageHash>) = Default::default();
        // The newest first: it is what the next session builds on.
        for point in replica.points().into_iter().rev().filter(|point| point.is_good()) {
            pass.worker().beat(); // Each may wait for a lease.
            let (Ok(disks), Ok(_lease)) = (point.disks(), point.lease()) else { continue };
            for disk in 0..disks.len() as u16 {
                let Ok(table) = point.table(disk) else { continue };
                for (page, hash) in table.iter() {
                    if good.contains(hash) {
                        continue;
                    }
                    if !bad.contains(hash) {
                        if !pace.spend(pass, PAGE_BYTES, self.0.is_busy()) {
                            return;
                        }
                        pages.read += 1;
                        let read = point.check_page(disk, *page);
                        if read.is_ok() && good.len() < PAGES_SEEN_MAX {
                            good.insert(*hash);
                        }
                        let Err(error) = read else { continue };
                        if error.is_passing() {
                            continue; // It retires meanwhile, for one.
                        }
                        if self.mend(&point, disk, *page) {
                            tracing::warn!(%error, disk, page, "{} had a damaged page; it was mended", point.title());
                            pages.mended += 1;
                            good.insert(*hash);
                            continue;
                        }
                        tracing::error!(%error, disk, page, "{} has a damaged page", point.title());
                        pages.bad += 1;
                        bad.insert(*hash);
                    }
                    pages.points.insert(point.title());
                }
            }
        }
    }
}

/// What the manifests' part of a pass found.
#[derive(Default)]
struct Pages {
    read: u64,
    /// Made anew from what the disks hold.
    mended: u64,
    bad: u64,
    points: BTreeSet<String>,
}

fn finding(cache: &ScrubReport, pages: &Pages) -> Option<Warning> {
    if pages.bad > 0 {
        let named: Vec<&str> = pages.points.iter().take(POINTS_NAMED_MAX).map(String::as_str).collect();
        let more = pages.points.len().saturating_sub(named.len());
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let what = format!(
            "the scrub found {} damaged pages in manifests, of {}{more}; their disks were not touched",
            pages.bad,
            named.join(", ")
        );
        let next =
            "verify these points (vbrctl restore-point verify); run the job again: what is bad is sent anew";
        return Some(Warning { level: "critical".into(), what, next_step: next.into() });
    }
    let mut found = Vec::new();
    if cache.bad + cache.vanished > 0 {
        found.push(format!(
            "{} damaged records and {} unreadable packs in the cache, of {} records; they were dropped and come \
             again when they are needed",
            cache.bad, cache.vanished, cache.records
        ));
    }
    if pages.mended > 0 {
        found.push(format!("{} damaged pages in manifests, which were mended from the disks", pages.mended));
    }
    (!found.is_empty()).then(|| Warning {
        level: "warning".into(),
        what: format!("the scrub found {}", found.join("; and ")),
        next_step: "look at the health of the disk; vbrctl task run scrub says whether there is more".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_costs_data_is_critical_and_comes_first() {
        let cache = ScrubReport { bad: 3, records: 9, ..ScrubReport::default() };
        let clean = ScrubReport { records: 9, whole: true, ..ScrubReport::default() };
        assert_eq!(finding(&clean, &Pages::default()), None);
        let found = finding(&cache, &Pages::default()).unwrap();
        assert!(found.level == "warning" && found.what.contains("3 damaged records"), "{found:?}");
        let mended = Pages { read: 5, mended: 2, ..Pages::default() };
        let found = finding(&clean, &mended).unwrap();
        assert!(found.level == "warning" && found.what.contains("2 damaged pages"), "{found:?}");
        let points = (0..10).map(|n| format!("restore point a/b@{n}")).collect();
        let found = finding(&cache, &Pages { read: 5, bad: 1, points, ..Pages::default() }).unwrap();
        assert!(found.level == "critical" && found.what.contains("and 2 more"), "{found:?}");
    }
}
