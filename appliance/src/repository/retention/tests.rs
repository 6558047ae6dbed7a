use jiff::tz::TimeZone;
use proptest::prelude::*;

use super::*;

const DAY: i64 = 86_400;
/// 2026-01-01T00:00:00Z, a Thursday.
const START: i64 = 1_767_225_600;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(START + seconds).unwrap()
}

fn point(id: usize, seconds: i64) -> PointFacts {
    PointFacts {
        id: format!("p{id}"),
        sealed_at: at(seconds),
        observed_ms: seconds.max(0) as u64 * 1000,
        credible_at: None,
        pin: None,
        in_use: false,
        bad: false,
        unreadable: false,
    }
}

fn clocks(seconds: i64) -> Clocks {
    Clocks { now: at(seconds), observed_ms: seconds.max(0) as u64 * 1000 }
}

fn last(count: u32) -> Policy {
    Policy { last: Some(count), ..Policy::default() }
}

fn calendar(daily: u32, weekly: u32, monthly: u32, yearly: u32) -> Policy {
    Policy { last: None, calendar: KeepCalendar { daily, weekly, monthly, yearly } }
}

fn rules(min_age_days: i64) -> Rules {
    Rules { min_age: Duration::from_secs((min_age_days * DAY) as u64), zone: TimeZone::UTC }
}

fn words(points: &[PointFacts], policy: Policy, rules: &Rules, clocks: Clocks) -> Vec<(String, String)> {
    let judged = judge(points, &policy, rules, clocks);
    let kept = points.iter().zip(judged).filter(|(_, reasons)| !reasons.is_empty());
    kept.map(|(point, reasons)| {
        (point.id.clone(), reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
    })
    .collect()
}

#[test]
fn keeps_the_newest() {
    let points: Vec<_> = (0..5).map(|n| point(n, n as i64)).collect();
    assert_eq!(plan(&points, &last(2), &rules(0), clocks(100)), ["p0", "p1", "p2"]);
    assert_eq!(plan_after_next(&points, &last(2), &rules(0), clocks(100)), ["p0", "p1", "p2", "p3"]);
    assert_eq!(plan(&points, &last(0), &rules(0), clocks(100)).len(), 4);
    assert!(plan(&points, &last(9), &rules(0), clocks(100)).is_empty());
    assert!(plan(&points, &Policy::default(), &rules(0), clocks(100)).is_empty());
    assert!(plan_after_next(&points, &Policy::default(), &rules(0), clocks(100)).is_empty());
}

#[test]
fn days_weeks_months_and_years() {
    // Two points a day for 60 days.
    let points: Vec<_> = (0..120).map(|n| point(n, n as i64 * DAY / 2 + 3600)).collect();
    let kept = words(&points, calendar(3, 2, 2, 5), &rules(0), clocks(60 * DAY));
    let wanted = [
        ("p105", "weekly 2026-W08"),
        ("p115", "daily 2026-02-27"),
        ("p117", "daily 2026-02-28, monthly 2026-02"),
        // 2026-03-01 is a Sunday: the week's last as well.
        ("p119", "newest, daily 2026-03-01, weekly 2026-W09, monthly 2026-03, yearly 2026"),
    ];
    assert_eq!(kept, wanted.map(|(id, words)| (id.to_string(), words.to_string())));
}

#[test]
fn days_begin_where_the_target_is() {
    // 23:30 and 00:30 UTC are one day in Auckland, and two in London.
    let points = [point(0, DAY - 1800), point(1, DAY + 1800)];
    let mut rules = rules(0);
    assert_eq!(plan(&points, &calendar(2, 0, 0, 0), &rules, clocks(2 * DAY)).len(), 0);
    rules.zone = TimeZone::fixed(jiff::tz::offset(13));
    assert_eq!(plan(&points, &calendar(2, 0, 0, 0), &rules, clocks(2 * DAY)), ["p0"]);
}

#[test]
fn pins_lapse_when_both_clocks_say_so() {
    let until = at(10 * DAY);
    let pin = Pin::new(Some(until), clocks(0));
    let seen =
        |now: i64, observed: i64| pin.holds(Clocks { now: at(now), observed_ms: observed as u64 * 1000 });
    assert!(seen(9 * DAY, 9 * DAY) && !seen(10 * DAY, 10 * DAY));
    assert!(seen(400 * DAY, 9 * DAY), "the clock jumped ahead");
    assert!(seen(-400 * DAY, 20 * DAY), "the clock jumped back");
    assert!(!seen(400 * DAY, 11 * DAY));
    let forever = Pin::new(None, clocks(0));
    assert!(forever.holds(clocks(4000 * DAY)));
    let mut points: Vec<_> = (0..3).map(|n| point(n, n as i64)).collect();
    points[0].pin = Some(pin);
    assert_eq!(plan(&points, &last(1), &rules(0), clocks(DAY)), ["p1"]);
    assert_eq!(plan(&points, &last(1), &rules(0), clocks(11 * DAY)), ["p0", "p1"]);
}

#[test]
fn bad_points_do_not_count_and_unreadable_ones_stay() {
    let mut points: Vec<_> = (0..5).map(|n| point(n, n as i64)).collect();
    (points[4].bad, points[2].bad, points[0].unreadable) = (true, true, true);
    assert_eq!(plan(&points, &last(1), &rules(0), clocks(DAY)), ["p1", "p2"]);
    assert!(plan(&points, &last(3), &rules(0), clocks(DAY)).is_empty(), "there are only two good ones");
    points.iter_mut().for_each(|point| point.bad = true);
    assert!(plan(&points, &last(1), &rules(0), clocks(DAY)).is_empty(), "nothing good is left");
    assert!(plan(&points, &calendar(1, 1, 1, 1), &rules(0), clocks(DAY)).is_empty());
}

#[test]
fn a_month_off_makes_points_wait_a_month_longer() {
    // A point a day for 10 days, a month off (nothing observed), a point a day for 10 days.
    let mut points: Vec<_> = (0..10).map(|n| point(n, n as i64 * DAY)).collect();
    for n in 10..20 {
        let mut after = point(n, (n as i64 + 30) * DAY);
        after.observed_ms = n as u64 * DAY as u64 * 1000;
        points.push(after);
    }
    let now = Clocks { now: at(50 * DAY), observed_ms: 20 * DAY as u64 * 1000 };
    assert_eq!(plan(&points, &calendar(5, 0, 0, 0), &rules(0), now).len(), 15);
    // The month off was January's end: its last point still has a place of its own.
    let kept = words(&points, calendar(0, 0, 1, 0), &rules(0), now);
    assert_eq!(kept.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["p9", "p19"]);
    // Seven days of age were not reached by what was observed.
    let young = plan(&points, &last(1), &rules(15), now);
    assert_eq!(young, ["p0", "p1", "p2", "p3", "p4", "p5"]);
}

/// A way through time: for each point the true time, and how far the wall clock was off at the seal. At the
/// first point it was right.
fn story() -> impl Strategy<Value = Vec<(i64, i64)>> {
    let gap = prop_oneof![1i64..7200, 1i64..3 * DAY, 1i64..50 * DAY];
    let off = prop_oneof![4 => Just(0i64), 1 => Just(400i64), 1 => Just(-400i64), 1 => -4000i64..-60, 1 => 300i64..4000];
    prop::collection::vec((gap, off), 1..60).prop_map(|steps| {
        let mut now = 4001 * DAY;
        let step = |(n, (gap, off)): (usize, (i64, i64))| {
            now += gap;
            (now, if n == 0 { 0 } else { off * DAY })
        };
        steps.into_iter().enumerate().map(step).collect()
    })
}

fn policies() -> impl Strategy<Value = Policy> {
    (prop::option::of(0u32..6), 0u32..9, 0u32..6, 0u32..6, 0u32..4).prop_map(
        |(last, daily, weekly, monthly, yearly)| Policy {
            last,
            calendar: KeepCalendar { daily, weekly, monthly, yearly },
        },
    )
}

/// Names the period that a date lies in.
type Name = fn(jiff::civil::Date) -> String;

/// Points of a story as they are when the clock was right, and as they are with its jumps.
fn points_of(story: &[(i64, i64)]) -> [Vec<PointFacts>; 2] {
    let make = |with: bool| {
        let points = story.iter().enumerate().map(|(n, (now, off))| PointFacts {
            sealed_at: at(now + if with { *off } else { 0 }),
            ..point(n, *now)
        });
        points.collect()
    };
    [make(false), make(true)]
}

proptest! {
    /// What must stay, whatever the stamps, marks and clocks are.
    #[test]
    fn never_what_must_stay(
        marks in prop::collection::vec((0i64..30_000_000, any::<[bool; 3]>(), 0u64..30_000_000_000, any::<bool>()), 0..30),
        policy in policies(),
        now in -1_000_000i64..400_000_000,
        observed_ms in 0u64..40_000_000_000,
    ) {
        let points: Vec<_> = marks.iter().enumerate().map(|(n, (seconds, [in_use, bad, unreadable], observed, pinned))| {
            let pin = pinned.then_some(Pin { until: None, observed_until_ms: 0 });
            PointFacts { in_use: *in_use, bad: *bad, unreadable: *unreadable && *bad, observed_ms: *observed, pin, ..point(n, *seconds) }
        }).collect();
        let clocks = Clocks { now: at(now), observed_ms };
        let rules = rules(7);
        let gone = plan(&points, &policy, &rules, clocks);
        for id in &gone {
            let p = points.iter().find(|p| p.id == *id).unwrap();
            prop_assert!(p.pin.is_none() && !p.in_use && !p.unreadable);
            prop_assert!(age(p, clocks) >= rules.min_age);
        }
        let good = points.iter().filter(|p| !p.bad && !p.unreadable);
        for p in good.rev().take(policy.last.unwrap_or(1).max(1) as usize) {
            prop_assert!(!gone.contains(&p.id), "one of the newest was let go");
        }
        if policy.is_empty() { prop_assert!(gone.is_empty()); }
    }

    /// At least as many days, weeks, months and years are there as were asked for, or all there are.
    #[test]
    fn every_period_asked_for_is_there(story in story(), policy in policies()) {
        let [points, _] = points_of(&story);
        let end = Clocks { now: at(story[story.len() - 1].0 + 9000 * DAY), observed_ms: u64::MAX };
        let judged = judge(&points, &policy, &rules(0), end);
        let keep = policy.calendar;
        let kinds: [(&str, u32, Name); 4] = [
            ("daily", keep.daily, |d| d.to_string()),
            ("weekly", keep.weekly, |d| format!("{:?}", (d.iso_week_date().year(), d.iso_week_date().week()))),
            ("monthly", keep.monthly, |d| format!("{}-{}", d.year(), d.month())),
            ("yearly", keep.yearly, |d| d.year().to_string()),
        ];
        for (word, count, name) in kinds {
            let date = |p: &PointFacts| name(TimeZone::UTC.to_datetime(p.sealed_at).date());
            let all: std::collections::HashSet<String> = points.iter().map(date).collect();
            let kept: Vec<&PointFacts> = points.iter().zip(&judged)
                .filter(|(_, reasons)| reasons.iter().any(|r| r.to_string().starts_with(word)))
                .map(|(p, _)| p).collect();
            prop_assert_eq!(kept.len(), all.len().min(count as usize), "{}: each period once", word);
            // The newest periods, and of each its newest point.
            for p in &kept {
                let newer = points.iter().filter(|other| other.observed_ms > p.observed_ms);
                prop_assert!(newer.clone().all(|other| date(other) != date(p)));
                let later: std::collections::HashSet<String> = newer.map(date).collect();
                prop_assert!(later.len() < count as usize);
            }
        }
    }

    /// A clock that jumps, for any time and back or not, lets nothing go that a right clock would keep.
    #[test]
    fn a_clock_that_jumps_expires_nothing(story in story(), policy in policies(), off_now in -4000i64..4000) {
        let [right, jumped] = points_of(&story);
        let now = story[story.len() - 1].0 + 60;
        for rules in [rules(0), rules(7), rules(90)] {
            let kept = plan(&right, &policy, &rules, clocks(now));
            let clocks = Clocks { now: at(now + off_now * DAY), ..clocks(now) };
            for id in plan(&jumped, &policy, &rules, clocks) {
                prop_assert!(kept.contains(&id), "{} went because of a jump", id);
            }
        }
    }

    /// Retiring step by step comes to the same as retiring at the end: what goes once would never have
    /// been needed again. And more is kept where more is asked for.
    #[test]
    fn what_goes_is_never_wanted_back(story in story(), policy in policies(), more in policies()) {
        let [points, _] = points_of(&story);
        let rules = rules(2);
        let mut left: Vec<PointFacts> = Vec::new();
        let mut gone_before: Vec<String> = Vec::new();
        for (n, point) in points.iter().enumerate() {
            let now = clocks(story[n].0);
            left.push(point.clone());
            let gone = plan(&left, &policy, &rules, now);
            left.retain(|point| !gone.contains(&point.id));
            let all = plan(&points[..=n], &policy, &rules, now);
            prop_assert!(gone_before.iter().all(|id| all.contains(id)), "it was wanted back");
            gone_before = all;
        }
        let kept: Vec<&String> = points.iter().map(|p| &p.id).filter(|id| !gone_before.contains(id)).collect();
        for id in kept {
            prop_assert!(left.iter().any(|point| point.id == *id), "{} is missing", id);
        }
        let (a, b) = (policy.calendar, more.calendar);
        let larger = Policy {
            last: policy.last.max(more.last),
            calendar: KeepCalendar {
                daily: a.daily.max(b.daily),
                weekly: a.weekly.max(b.weekly),
                monthly: a.monthly.max(b.monthly),
                yearly: a.yearly.max(b.yearly),
            },
        };
        if !policy.is_empty() {
            let now = clocks(story[story.len() - 1].0);
            for id in plan(&points, &larger, &rules, now) {
                prop_assert!(gone_before.contains(&id), "asking for more let {} go", id);
            }
        }
    }
}
