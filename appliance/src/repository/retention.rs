//! Retention: which restore points of a replica may go.
//!
//! Pure. Decided by the target: what a job asks (`keep`) is a request, the target's minimum age wins.
//! Never in the plan: the newest `keep` good points, the latest good point, anything pinned, anything
//! that is the base of a point being built, points that cannot be read, and points younger than the
//! minimum age.
//!
//! Age is the smaller of two: by the wall clock, and by the time that was really observed to pass while
//! vbrd ran (kept on the datastore, fed by the monotonic clock). A wall clock that jumps forward by a
//! year therefore ages nothing; time while vbrd was down does not count, which only keeps points longer.

use std::time::Duration;

/// A point as retention sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PointAge {
    /// Restore point id.
    pub id: String,
    /// Wall clock at the seal.
    pub sealed_at: jiff::Timestamp,
    /// Observed time of the datastore at the seal, milliseconds.
    pub observed_ms: u64,
    /// Pinned, being read for a failover, or base of a point that is being built.
    pub held: bool,
    /// A verification found bad blocks: it does not count among those that are kept.
    pub bad: bool,
    /// Its record cannot be read: it is never in a plan.
    pub unreadable: bool,
}

/// Both clocks, injected.
#[derive(Clone, Copy, Debug)]
pub struct Clocks {
    /// Wall clock.
    pub now: jiff::Timestamp,
    /// Observed time of the datastore, milliseconds.
    pub observed_ms: u64,
}

/// The points that may go, oldest first. `points` are in order of sealing. Without `keep` nothing goes.
pub fn plan(points: &[PointAge], keep: Option<u32>, clocks: Clocks, min_age: Duration) -> Vec<String> {
    let Some(keep) = keep else { return Vec::new() };
    let keep = keep.max(1) as usize;
    let good = |point: &&PointAge| !point.bad && !point.unreadable;
    // Everything from here on stays: the oldest of the `keep` newest good points.
    let cut = points.iter().enumerate().filter(|(_, point)| good(point)).map(|(n, _)| n).rev().nth(keep - 1);
    let Some(cut) = cut else { return Vec::new() };
    points[..cut]
        .iter()
        .filter(|point| !point.held && !point.unreadable && age(point, clocks) >= min_age)
        .map(|point| point.id.clone())
        .collect()
}

/// The age that is beyond doubt.
pub fn age(point: &PointAge, clocks: Clocks) -> Duration {
    let wall = clocks.now.as_millisecond().saturating_sub(point.sealed_at.as_millisecond()).max(0) as u64;
    Duration::from_millis(wall.min(clocks.observed_ms.saturating_sub(point.observed_ms)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIN_AGE: Duration = Duration::from_secs(7 * 86_400);

    fn at(seconds: i64) -> jiff::Timestamp {
        jiff::Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn point(id: usize, seconds: i64) -> PointAge {
        PointAge {
            id: format!("p{id}"),
            sealed_at: at(seconds),
            observed_ms: seconds.max(0) as u64 * 1000,
            held: false,
            bad: false,
            unreadable: false,
        }
    }

    #[test]
    fn keeps_the_newest() {
        let points: Vec<_> = (0..5).map(|n| point(n, n as i64)).collect();
        let clocks = Clocks { now: at(100), observed_ms: 100_000 };
        assert_eq!(plan(&points, Some(2), clocks, Duration::ZERO), ["p0", "p1", "p2"]);
        assert_eq!(plan(&points, Some(0), clocks, Duration::ZERO).len(), 4);
        assert!(plan(&points, Some(9), clocks, Duration::ZERO).is_empty());
        assert!(plan(&points, None, clocks, Duration::ZERO).is_empty());
    }

    #[test]
    fn a_clock_that_jumps_ahead_ages_nothing() {
        let points: Vec<_> = (0..5).map(|n| point(n, n as i64)).collect();
        let clocks = Clocks { now: at(10 * 365 * 86_400), observed_ms: 60_000 };
        assert!(plan(&points, Some(1), clocks, MIN_AGE).is_empty());
    }

    proptest! {
        #[test]
        fn never_what_must_stay(
            marks in prop::collection::vec((0i64..3_000_000, any::<[bool; 3]>(), 0u64..3_000_000_000), 0..30),
            keep in prop::option::of(0u32..8),
            now in -1_000_000i64..40_000_000,
            observed_ms in 0u64..4_000_000_000,
        ) {
            let points: Vec<_> = marks.iter().enumerate().map(|(n, (seconds, [held, bad, unreadable], observed))| {
                PointAge { held: *held, bad: *bad, unreadable: *unreadable && *bad, observed_ms: *observed, ..point(n, *seconds) }
            }).collect();
            let clocks = Clocks { now: at(now), observed_ms };
            let gone = plan(&points, keep, clocks, MIN_AGE);
            let good: Vec<_> = points.iter().filter(|p| !p.bad && !p.unreadable).collect();
            for id in &gone {
                let p = points.iter().find(|p| p.id == *id).unwrap();
                prop_assert!(!p.held && !p.unreadable);
                prop_assert!(age(p, clocks) >= MIN_AGE);
            }
            let kept = keep.unwrap_or(u32::MAX).max(1) as usize;
            for p in good.iter().rev().take(kept) {
                prop_assert!(!gone.contains(&p.id), "one of the newest was retired");
            }
            if keep.is_none() { prop_assert!(gone.is_empty()); }
        }
    }
}
