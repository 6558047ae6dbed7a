//! Retention: which restore points of a replica are kept, and why each.
//!
//! Pure. Decided by the target: what a job asks ([`Policy`]) is a request, the target's minimum age wins.
//! Kept are the newest `last` good points; the newest good point of each of the last so many days, ISO
//! weeks, months and years that have one; always the newest good point; whatever is pinned, in use,
//! unreadable, or younger than the minimum age. Without a policy everything is kept.
//!
//! What it holds against, and how:
//!
//! - *A source* names only its policy. It cannot name a point, and nothing below the minimum age or pinned
//!   goes whatever it asks. Days are counted by the target's clock at the seal, never by what a source says.
//! - *A wall clock that jumps*, forwards or back, for a while or for good, expires nothing. An age is the smaller of
//!   two: by the wall clock, and by the time that was really observed to pass while vbrd ran (kept on the
//!   datastore, fed by the monotonic clock). A place among the last days, weeks, months or years is lost only to
//!   days that passed on the [`calendar`]'s own time line, in which a jump has no length. A pin lapses only
//!   when both clocks say so.
//! - *A machine that was off for a month*: that month was not observed, so points stay a month longer. Waiting
//!   longer is fine, expiring early is not.
//!
//! Not its job: removing anything; knowing what is in use. Bounds: none of its own, it is linear in the points.

pub mod calendar;
mod reason;

#[cfg(test)]
mod tests;

use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use vbr_api::KeepCalendar;

pub use reason::{Reason, span};

/// A point as retention sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PointFacts {
    /// Restore point id.
    pub id: String,
    /// Wall clock of the target at the seal.
    pub sealed_at: Timestamp,
    /// Observed time of the datastore at the seal, milliseconds.
    pub observed_ms: u64,
    /// Its time on the calendar's own line, as its record says; worked out where that is older.
    pub credible_at: Option<Timestamp>,
    /// An operator's pin, which may have lapsed.
    pub pin: Option<Pin>,
    /// Base of a point that is being built, or being removed already.
    pub in_use: bool,
    /// A verification found bad blocks: it does not count among those that are kept.
    pub bad: bool,
    /// Its record cannot be read: it is never let go.
    pub unreadable: bool,
}

/// An operator holds a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pin {
    /// Lapses then, by the wall clock; never where there is none.
    pub until: Option<Timestamp>,
    /// And not before this much was observed, milliseconds.
    pub observed_until_ms: u64,
}

impl Pin {
    /// A pin that an operator sets now.
    pub fn new(until: Option<Timestamp>, clocks: Clocks) -> Self {
        let left = until.map_or(0, |until| millis_between(clocks.now, until));
        Self { until, observed_until_ms: clocks.observed_ms.saturating_add(left) }
    }

    /// True until both clocks say that it lapsed.
    pub fn holds(&self, clocks: Clocks) -> bool {
        self.until.is_none_or(|until| clocks.now < until || clocks.observed_ms < self.observed_until_ms)
    }
}

/// Both clocks, injected.
#[derive(Clone, Copy, Debug)]
pub struct Clocks {
    /// Wall clock.
    pub now: Timestamp,
    /// Observed time of the datastore, milliseconds.
    pub observed_ms: u64,
}

/// What a job asks to be kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// The newest so many.
    pub last: Option<u32>,
    /// The newest of each of so many days, weeks, months and years.
    pub calendar: KeepCalendar,
}

impl Policy {
    /// True where nothing is asked, which keeps everything.
    pub fn is_empty(&self) -> bool {
        self.last.is_none() && self.calendar.is_empty()
    }
}

/// What the target says, whatever a job asks.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Nothing younger goes.
    pub min_age: Duration,
    /// Where days begin.
    pub zone: TimeZone,
}

/// For each point, in the same order, why it is kept; it may go where there is no reason. `points` are in
/// order of sealing.
pub fn judge(points: &[PointFacts], policy: &Policy, rules: &Rules, clocks: Clocks) -> Vec<Vec<Reason>> {
    let mut reasons: Vec<Vec<Reason>> = points.iter().map(|_| Vec::new()).collect();
    let good: Vec<usize> = (0..points.len()).filter(|n| !points[*n].bad && !points[*n].unreadable).collect();
    let last = policy.last.map_or(1, |last| last.max(1)) as usize;
    // Of what is newer than the oldest of the last ones nothing goes, bad points included.
    let cut = good.iter().rev().nth(last - 1).copied().unwrap_or(0);
    for (n, point) in points.iter().enumerate() {
        let is_good = !point.bad && !point.unreadable;
        if policy.is_empty() {
            reasons[n].push(Reason::Everything);
        } else if n >= cut && is_good {
            reasons[n].push(policy.last.map_or(Reason::Newest, Reason::Last));
        } else if n >= cut && point.bad {
            reasons[n].push(Reason::Damaged);
        }
    }
    for (n, reason) in calendar::kept(points, &good, &policy.calendar, &rules.zone) {
        reasons[n].push(reason);
    }
    for (point, reasons) in points.iter().zip(&mut reasons) {
        if let Some(pin) = point.pin.filter(|pin| pin.holds(clocks)) {
            reasons.push(Reason::Pinned(pin.until));
        }
        if point.in_use {
            reasons.push(Reason::InUse);
        }
        if point.unreadable {
            reasons.push(Reason::Unreadable);
        } else if age(point, clocks) < rules.min_age {
            reasons.push(Reason::Young { min_age: rules.min_age, age: age(point, clocks) });
        }
    }
    reasons
}

/// The points that may go, oldest first.
pub fn plan(points: &[PointFacts], policy: &Policy, rules: &Rules, clocks: Clocks) -> Vec<String> {
    let judged = judge(points, policy, rules, clocks);
    let gone = points.iter().zip(judged).filter(|(_, reasons)| reasons.is_empty());
    gone.map(|(point, _)| point.id.clone()).collect()
}

/// The points that may go once one more is sealed, now, oldest first.
pub fn plan_after_next(points: &[PointFacts], policy: &Policy, rules: &Rules, clocks: Clocks) -> Vec<String> {
    let next = PointFacts {
        id: String::new(),
        sealed_at: clocks.now,
        observed_ms: clocks.observed_ms,
        credible_at: None,
        pin: None,
        in_use: false,
        bad: false,
        unreadable: false,
    };
    let mut with_next = points.to_vec();
    with_next.push(next);
    // The next point is the newest: it is never among them.
    plan(&with_next, policy, rules, clocks)
}

/// The age that is beyond doubt.
pub fn age(point: &PointFacts, clocks: Clocks) -> Duration {
    let observed = clocks.observed_ms.saturating_sub(point.observed_ms);
    Duration::from_millis(millis_between(point.sealed_at, clocks.now).min(observed))
}

fn millis_between(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.as_millisecond().saturating_sub(from.as_millisecond())).unwrap_or(0)
}
