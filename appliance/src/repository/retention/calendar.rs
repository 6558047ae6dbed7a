//! The last days, weeks, months and years: which point stands for each, and when one has had its time.
//!
//! Pure. Two time lines, because a wall clock may be wrong:
//!
//! - *The wall clock at each seal* says which day, ISO week, month and year a point belongs to, for people. The last
//!   good point of an unbroken run of one day stands for it; a clock that goes back makes a new run, so
//!   that points of two times never count as one.
//! - *The credible time* says how many places were taken since. It follows the wall clock as long as that is possible:
//!   between two seals vbrd was off for at most [`OFF_MAX_MS`], or ran a third of the time, and the clock was
//!   not set back by more than [`BACK_MAX_MS`]. Otherwise it goes on by what was observed. So a clock
//!   that jumps by 400 days and back takes no place from anybody; its points have none of their own.
//!
//! A machine that was really off for a month loses that month on the credible time line: what has a place
//! keeps it a month longer. Steps that a machine that was off explains as well cannot be told from that; such a
//! step may take one place, and the minimum age still holds. Each point's record keeps its credible time; the
//! line begins with the clock at a replica's first point.

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use vbr_api::KeepCalendar;

use super::{PointFacts, Reason};

/// Between two seals vbrd may have been off for this long: a long weekend.
const OFF_MAX_MS: i64 = 4 * 86_400_000;
/// The wall clock may have been ahead by this much: the credible time then stands still until it is right again.
const BACK_MAX_MS: i64 = 5 * 86_400_000;
/// Wall clock time that one observed span may stand for: a machine that runs eight hours a day.
const WALL_PER_OBSERVED: i64 = 3;

/// A kind of period.
#[derive(Clone, Copy)]
enum Period {
    Day,
    Week,
    Month,
    Year,
}

impl Period {
    /// Names the period that a date lies in; later ones are greater.
    fn of(self, date: Date) -> (i32, i32) {
        match self {
            Self::Day => (i32::from(date.year()), i32::from(date.day_of_year())),
            Self::Week => {
                let week = date.iso_week_date();
                (i32::from(week.year()), i32::from(week.week()))
            }
            Self::Month => (i32::from(date.year()), i32::from(date.month())),
            Self::Year => (i32::from(date.year()), 0),
        }
    }

    fn reason(self, date: Date) -> Reason {
        match self {
            Self::Day => Reason::Daily(date.to_string()),
            Self::Week => {
                let week = date.iso_week_date();
                Reason::Weekly(format!("{:04}-W{:02}", week.year(), week.week()))
            }
            Self::Month => Reason::Monthly(format!("{:04}-{:02}", date.year(), date.month())),
            Self::Year => Reason::Yearly(format!("{:04}", date.year())),
        }
    }
}

/// The points that stand for a day, week, month or year that still has its place, with the reason.
/// `good` are the numbers of those that count, ascending.
pub fn kept(
    points: &[PointFacts],
    good: &[usize],
    keep: &KeepCalendar,
    zone: &TimeZone,
) -> Vec<(usize, Reason)> {
    if keep.is_empty() {
        return Vec::new();
    }
    let date = |ms: i64| {
        let at = Timestamp::from_millisecond(ms).unwrap_or_default();
        zone.to_datetime(at).date()
    };
    let credible = credible(points);
    let dates: Vec<(Date, Date)> =
        good.iter().map(|n| (date(points[*n].sealed_at.as_millisecond()), date(credible[*n]))).collect();
    let rules = [
        (Period::Day, keep.daily),
        (Period::Week, keep.weekly),
        (Period::Month, keep.monthly),
        (Period::Year, keep.yearly),
    ];
    let mut kept = Vec::new();
    for (period, count) in rules {
        let mut places = 0u32;
        let mut newer: Option<((i32, i32), (i32, i32))> = None;
        for (n, (wall, credible)) in good.iter().zip(&dates).rev() {
            let own = (period.of(*wall), period.of(*credible));
            if newer.is_none_or(|newer| newer.1 != own.1) {
                places += 1;
            }
            if places > count {
                break;
            }
            if newer != Some(own) {
                kept.push((*n, period.reason(*wall)));
            }
            newer = Some(own);
        }
    }
    kept
}

/// The credible time of a point that is sealed now: what its record keeps, so that the time line does not
/// depend on which points are left.
pub fn next_credible(points: &[PointFacts], sealed_at: Timestamp, observed_ms: u64) -> Timestamp {
    let newest = points.iter().zip(credible(points)).rfind(|(point, _)| !point.unreadable);
    let last = newest.map(|(point, at)| (at, point.observed_ms));
    let at = advance(last, sealed_at.as_millisecond(), observed_ms);
    Timestamp::from_millisecond(at).unwrap_or(sealed_at)
}

/// The credible time of each point, milliseconds since 1970; never descending over those that can be read.
fn credible(points: &[PointFacts]) -> Vec<i64> {
    let mut line = Vec::with_capacity(points.len());
    let mut last: Option<(i64, u64)> = None;
    for point in points.iter() {
        if point.unreadable {
            line.push(last.map_or(0, |(at, _)| at));
            continue;
        }
        let before = last.map_or(i64::MIN, |(at, _)| at);
        let at = match point.credible_at {
            Some(at) => at.as_millisecond().max(before),
            None => advance(last, point.sealed_at.as_millisecond(), point.observed_ms),
        };
        last = Some((at, point.observed_ms));
        line.push(at);
    }
    line
}

/// Goes on from the last point's credible and observed time: with the wall clock where that is possible.
fn advance(last: Option<(i64, u64)>, wall: i64, observed_ms: u64) -> i64 {
    let Some((at, before_ms)) = last else { return wall };
    let passed = i64::try_from(observed_ms.saturating_sub(before_ms)).unwrap_or(i64::MAX);
    let latest = at.saturating_add(passed.saturating_mul(WALL_PER_OBSERVED)).saturating_add(OFF_MAX_MS);
    match wall > latest || wall < at.saturating_sub(BACK_MAX_MS) {
        true => at.saturating_add(passed),
        false => wall.max(at),
    }
}
