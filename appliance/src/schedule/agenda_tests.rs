//! The agenda on a clock of its own: what is due runs, once, in its window, at its own moment.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use vbr_api::{Retry, Schedule};

use super::agenda::{Agenda, Outcome, Past, Task};
use super::retry::RetryRule;
use super::rule::Rule;

const MINUTE: i64 = 60;
const HOUR: i64 = 3600;

fn at(seconds: i64) -> Timestamp {
    // 2026-11-02T00:00:00Z, a Monday.
    Timestamp::from_second(1_793_577_600 + seconds).unwrap()
}

fn every(minutes: u64) -> Schedule {
    Schedule { every_ms: Some(minutes * 60_000), ..Schedule::default() }
}

fn daily(time: &str) -> Schedule {
    Schedule { at: Some(time.into()), ..Schedule::default() }
}

fn past() -> Past {
    Past { created: at(0), started: None, sealed: None, rescheduled: None, failed: None }
}

fn tries(count: u32, minutes: u64) -> RetryRule {
    RetryRule::parse(&Retry { count, pause_ms: minutes * 60_000 }).unwrap()
}

fn agenda(jobs: &[(&str, Schedule)]) -> Agenda {
    let mut agenda = Agenda::new(TimeZone::UTC, 7);
    for (job, schedule) in jobs {
        agenda.put(job, Rule::parse(job, schedule, None).unwrap(), tries(3, 5), past());
    }
    agenda
}

/// Sessions of so many seconds; answers when each began, in seconds, with its job.
struct Site {
    agenda: Agenda,
    /// Seconds that a session takes.
    takes: i64,
    running: Vec<(String, i64, u32)>,
    began: Vec<(String, i64)>,
    suspended: usize,
    /// Sessions that fail, by their place among all that ended.
    fails: fn(usize) -> bool,
    ended: usize,
    /// Tries after failures: job, number, second.
    tried: Vec<(String, u32, i64)>,
}

impl Site {
    fn new(agenda: Agenda, takes: i64) -> Self {
        Self {
            agenda,
            takes,
            running: Vec::new(),
            began: Vec::new(),
            suspended: 0,
            fails: |_| false,
            ended: 0,
            tried: Vec::new(),
        }
    }

    /// From one second to another; the appliance is up.
    fn run(&mut self, seconds: std::ops::Range<i64>) {
        let mut now = seconds.start;
        while now < seconds.end {
            let ended: Vec<_> = self.running.extract_if(.., |(_, end, _)| *end <= now).collect();
            for (job, _, number) in ended {
                let fails = (self.fails)(self.ended);
                self.ended += 1;
                let outcome = if fails { Outcome::Failed(number) } else { Outcome::Sealed };
                self.agenda.ended(&job, outcome, at(now));
            }
            for task in self.agenda.tasks(at(now)) {
                match task {
                    Task::Start(job) => {
                        self.agenda.started(&job, false, 0, at(now));
                        self.began.push((job.clone(), now));
                        self.running.push((job, now + self.takes, 0));
                    }
                    Task::Retry(job, number, ordered) => {
                        self.agenda.started(&job, ordered, number, at(now));
                        self.tried.push((job.clone(), number, now));
                        self.running.push((job, now + self.takes, number));
                    }
                    Task::Resume(job) => {
                        self.agenda.started(&job, false, 0, at(now));
                        self.running.push((job, now + self.takes / 2, 0));
                    }
                    Task::Suspend(job) => {
                        self.running.retain(|(running, ..)| *running != job);
                        self.agenda.suspended(&job);
                        self.suspended += 1;
                    }
                }
            }
            let wake = self.agenda.wake(at(now)).map(|wake| wake.as_second() - at(0).as_second());
            let end = self.running.iter().map(|(_, end, _)| *end).min();
            now = wake.into_iter().chain(end).map(|next| next.max(now + 1)).min().unwrap_or(seconds.end);
        }
    }

    fn starts(&self, job: &str) -> Vec<i64> {
        self.began.iter().filter(|(name, _)| name == job).map(|(_, at)| *at).collect()
    }
}

#[test]
fn an_interval_keeps_its_beat() {
    let mut site = Site::new(agenda(&[("web", every(15))]), 40);
    site.run(0..HOUR);
    let starts = site.starts("web");
    assert_eq!((starts.len(), starts[0]), (4, 0), "{starts:?}");
    for (n, start) in starts.iter().enumerate().skip(1) {
        let beat = n as i64 * 15 * MINUTE;
        assert!((beat..beat + 91).contains(start), "{starts:?}");
    }
    // A session that takes longer than the interval is followed at once, and the beat stays.
    let mut site = Site::new(agenda(&[("web", every(15))]), 20 * MINUTE);
    site.run(0..2 * HOUR);
    let starts = site.starts("web");
    assert_eq!(starts.len(), 6, "{starts:?}");
}

#[test]
fn what_was_missed_runs_once() {
    for schedule in [every(15), daily("*:00"), daily("02:00")] {
        let mut site = Site::new(agenda(&[("web", schedule)]), 40);
        site.run(0..3 * HOUR);
        let before = site.starts("web").len();
        // Down for two days.
        let up = 51 * HOUR;
        site.run(up..up + 14 * MINUTE);
        let missed = &site.starts("web")[before..];
        assert_eq!(missed.len(), 1, "{missed:?}");
    }
}

#[test]
fn a_clock_that_jumps_back_puts_nothing_off() {
    let mut site = Site::new(agenda(&[("web", every(15))]), 40);
    site.run(400 * 24 * HOUR..400 * 24 * HOUR + HOUR);
    let before = site.starts("web").len();
    site.run(0..HOUR);
    assert!(site.starts("web").len() >= before + 3, "{:?}", site.starts("web"));
}

#[test]
fn a_window_suspends_and_goes_on() {
    let window = Some("20:00-22:00".to_owned());
    let mut site = Site::new(agenda(&[("web", Schedule { window, ..every(48 * 60) })]), 3 * HOUR);
    site.run(0..47 * HOUR);
    let starts = site.starts("web");
    assert_eq!(site.suspended, 1);
    assert!(starts.len() == 1 && (20 * HOUR..20 * HOUR + 5 * MINUTE).contains(&starts[0]), "{starts:?}");
    assert!(site.running.is_empty(), "it went on at 20:00 the next day");
}

#[test]
fn an_order_is_not_ended_by_a_window() {
    let window = Some("20:00-22:00".to_owned());
    let mut agenda = agenda(&[("web", Schedule { window, ..Schedule::default() })]);
    agenda.started("web", true, 0, at(HOUR));
    assert!(agenda.tasks(at(2 * HOUR)).is_empty());
}

#[test]
fn jobs_follow_each_other() {
    let after = Schedule { after: Some("db".into()), ..Schedule::default() };
    let mut site = Site::new(agenda(&[("db", daily("02:00")), ("web", after)]), MINUTE);
    site.run(0..72 * HOUR);
    let (db, web) = (site.starts("db"), site.starts("web"));
    assert_eq!((db.len(), web.len()), (3, 3));
    for (db, web) in db.iter().zip(&web) {
        assert_eq!(web - db, MINUTE);
    }
}

#[test]
fn failures_of_a_continuous_job_rest_longer() {
    let continuous = Schedule { continuous: true, ..Schedule::default() };
    let mut agenda = agenda(&[("web", continuous)]);
    let mut now = at(0);
    let mut rests = Vec::new();
    for _ in 0..7 {
        agenda.started("web", false, 0, now);
        agenda.ended("web", Outcome::Failed(0), now);
        let next = agenda.next("web", now).unwrap();
        rests.push(next.duration_since(now).as_secs());
        now = next;
    }
    assert_eq!(rests, [60, 120, 240, 480, 900, 900, 900]);
    agenda.started("web", false, 0, now);
    agenda.ended("web", Outcome::Sealed, now);
    assert_eq!(agenda.next("web", now).unwrap().duration_since(now), SignedDuration::from_secs(5));
}

#[test]
fn what_failed_is_tried_again_as_often_as_said() {
    let mut site = Site::new(agenda(&[("web", daily("02:00"))]), 60);
    site.fails = |ended| ended < 4 || ended == 5;
    site.run(0..71 * HOUR);
    // The first night: four failures. The second: at once. The third: one failure, and the first try succeeds.
    assert_eq!(site.starts("web").len(), 3, "{:?}", site.began);
    let tried: Vec<u32> = site.tried.iter().map(|(_, number, _)| *number).collect();
    assert_eq!(tried, [1, 2, 3, 1]);
    let mut before = site.starts("web")[0] + 60;
    for ((_, number, at), minutes) in site.tried.iter().zip([5, 10, 20]) {
        let pause = at - before;
        assert!((minutes * MINUTE..=minutes * 66).contains(&pause), "try {number} after {pause} s");
        before = at + 60;
    }
}

#[test]
fn a_regular_run_takes_the_place_of_a_try() {
    let mut site = Site::new(agenda(&[("web", every(4))]), 60);
    site.fails = |_| true;
    site.run(0..HOUR);
    assert!(site.tried.is_empty() && site.starts("web").len() >= 14, "{:?}", site.tried);
    let mut agenda = agenda(&[("web", every(4))]);
    agenda.started("web", false, 0, at(0));
    agenda.ended("web", Outcome::Failed(0), at(60));
    assert_eq!(agenda.retry("web", at(60)), None);
    assert!(agenda.next("web", at(60)).unwrap() < at(5 * MINUTE));
}

#[test]
fn an_order_is_tried_again_outside_the_window_and_a_due_run_is_not() {
    let window = Some("20:00-22:00".to_owned());
    let schedule = Schedule { window, ..daily("20:00") };
    for ordered in [true, false] {
        let mut agenda = agenda(&[("web", schedule.clone())]);
        agenda.started("web", ordered, 0, at(22 * HOUR - 90));
        agenda.ended("web", Outcome::Failed(0), at(22 * HOUR - 30));
        let (number, of, when) = agenda.retry("web", at(22 * HOUR)).unwrap_or((0, 0, at(0)));
        if ordered {
            assert_eq!((number, of), (1, 3));
            assert!(when < at(22 * HOUR + 6 * MINUTE));
            assert_eq!(agenda.tasks(when), [Task::Retry("web".into(), 1, true)]);
        } else {
            // It would wait for the window, and there the regular run takes its place.
            assert_eq!(number, 0);
            assert!(agenda.next("web", at(22 * HOUR)).unwrap() >= at(44 * HOUR));
            assert!(agenda.tasks(at(23 * HOUR)).is_empty());
            assert_eq!(agenda.tasks(at(44 * HOUR + 10 * MINUTE)).len(), 1);
        }
    }
}

#[test]
fn what_no_try_mends_is_not_tried() {
    let mut agenda = agenda(&[("web", daily("02:00"))]);
    agenda.started("web", false, 0, at(0));
    agenda.ended("web", Outcome::Over, at(60));
    assert_eq!(agenda.retry("web", at(60)), None);
    agenda.started("web", false, 0, at(100));
    agenda.ended("web", Outcome::Failed(0), at(160));
    assert!(agenda.retry("web", at(160)).is_some());
    // Disabled meanwhile.
    agenda.put("web", Rule::parse("web", &daily("02:00"), None).unwrap().by_order(), RetryRule::NONE, past());
    assert_eq!((agenda.retry("web", at(160)), agenda.next("web", at(160))), (None, None));
}

#[test]
fn a_restart_forgets_no_try() {
    let mut before = agenda(&[("web", daily("02:00"))]);
    before.started("web", false, 0, at(2 * HOUR));
    before.ended("web", Outcome::Failed(1), at(2 * HOUR + 60));
    let rule = Rule::parse("web", &daily("02:00"), None).unwrap();
    let mut after = Agenda::new(TimeZone::UTC, 7);
    let failed = Some((at(2 * HOUR + 60), 1));
    after.put("web", rule, tries(3, 5), Past { started: Some(at(2 * HOUR)), failed, ..past() });
    let try_ = before.retry("web", at(2 * HOUR + 61));
    assert!(matches!(try_, Some((2, 3, _))), "{try_:?}");
    assert_eq!(try_, after.retry("web", at(2 * HOUR + 61)));
}

#[test]
fn a_new_schedule_makes_up_for_nothing() {
    let mut agenda = agenda(&[("web", Schedule::default())]);
    agenda.put("web", Rule::parse("web", &daily("02:00"), None).unwrap(), tries(3, 5), past());
    let now = at(100 * HOUR);
    agenda.reschedule("web", now);
    let next = agenda.next("web", now).unwrap();
    assert!(next >= at(122 * HOUR) && next < at(123 * HOUR), "{next}");
    // An interval that is over since the last start is due.
    agenda.started("web", true, 0, now);
    agenda.ended("web", Outcome::Sealed, now);
    agenda.put("web", Rule::parse("web", &every(60), None).unwrap(), tries(3, 5), past());
    agenda.reschedule("web", at(103 * HOUR));
    assert!(agenda.next("web", at(103 * HOUR)).unwrap() < at(103 * HOUR));
}

#[test]
fn sites_do_not_start_in_the_same_second() {
    let starts: std::collections::BTreeSet<i64> = (0..30)
        .map(|seed| {
            let mut agenda = Agenda::new(TimeZone::UTC, seed);
            agenda.put("web", Rule::parse("web", &daily("02:00"), None).unwrap(), tries(3, 5), past());
            agenda.next("web", at(0)).unwrap().as_second() - at(2 * HOUR).as_second()
        })
        .collect();
    assert!(starts.len() > 24 && starts.iter().all(|start| (0..300).contains(start)), "{starts:?}");
}

fn schedule() -> impl Strategy<Value = Schedule> {
    let when = prop_oneof![
        (1u64..600).prop_map(every),
        (0u32..24, 0u32..60).prop_map(|(h, m)| daily(&format!("{h}:{m:02}"))),
        Just(daily("*:0/20")),
        Just(Schedule { continuous: true, ..Schedule::default() }),
        Just(Schedule { after: Some("j0".into()), ..Schedule::default() }),
    ];
    let window = prop_oneof![2 => Just(None), 1 => (0u32..24, 1u32..23).prop_map(|(from, long)| {
        Some(format!("{from:02}:00-{:02}:30", (from + long) % 24))
    })];
    (when, window).prop_map(|(when, window)| Schedule { window, ..when })
}

/// A job whose runs fail is overdue when the second one after its last restore point was due, and not before; one that
/// only orders start never is.
#[test]
fn a_job_is_overdue_after_two_runs_that_brought_nothing() {
    let mut agenda =
        agenda(&[("quarter", every(15)), ("night", daily("02:00")), ("ordered", Schedule::default())]);
    let overdue = |agenda: &Agenda, job: &str, after: i64| agenda.is_overdue(job, at(after));
    assert!(!overdue(&agenda, "quarter", 30 * MINUTE) && overdue(&agenda, "quarter", 34 * MINUTE));
    assert!(!overdue(&agenda, "night", 26 * HOUR) && overdue(&agenda, "night", 26 * HOUR + 6 * MINUTE));
    agenda.started("quarter", false, 0, at(40 * MINUTE));
    agenda.ended("quarter", Outcome::Sealed, at(41 * MINUTE));
    assert!(!overdue(&agenda, "quarter", 70 * MINUTE) && overdue(&agenda, "quarter", 75 * MINUTE));
    agenda.started("quarter", false, 0, at(60 * MINUTE));
    agenda.ended("quarter", Outcome::Failed(0), at(61 * MINUTE));
    assert!(overdue(&agenda, "quarter", 75 * MINUTE), "a failure brings nothing");
    assert!(!overdue(&agenda, "ordered", 1000 * HOUR));
}

proptest! {
    /// Over four days, whatever the rules: every job that is not after another one runs within a day of being due, never
    /// outside its window, never twice at once; and the same seed gives the same starts.
    #[test]
    fn every_due_job_runs(
        schedules in prop::collection::vec(schedule(), 1..6),
        takes in 1i64..3000,
        failing in 0usize..3,
    ) {
        let jobs: Vec<(String, Schedule)> =
            schedules.into_iter().enumerate().map(|(n, schedule)| (format!("j{n}"), schedule)).collect();
        let jobs: Vec<(&str, Schedule)> = jobs.iter()
            .filter(|(name, schedule)| schedule.after.as_ref() != Some(name))
            .map(|(name, schedule)| (name.as_str(), schedule.clone())).collect();
        let run = || {
            let mut site = Site::new(agenda(&jobs), takes);
            let fails: [fn(usize) -> bool; 3] = [|_| false, |ended| ended % 3 != 0, |_| true];
            site.fails = fails[failing];
            site.run(0..96 * HOUR);
            site
        };
        let site = run();
        let again = run();
        prop_assert_eq!((&site.began, &site.tried), (&again.began, &again.tried));
        for (job, number, start) in &site.tried {
            let (_, schedule) = jobs.iter().find(|(name, _)| name == job).unwrap();
            let rule = Rule::parse(job, schedule, None).unwrap();
            prop_assert!(*number >= 1 && *number <= 3 && !schedule.continuous, "{} try {}", job, number);
            prop_assert!(rule.is_open(at(*start), &TimeZone::UTC), "{} is tried at {}", job, start);
        }
        for (job, schedule) in &jobs {
            let starts = site.starts(job);
            let rule = Rule::parse(job, schedule, None).unwrap();
            for start in &starts {
                prop_assert!(rule.is_open(at(*start), &TimeZone::UTC), "{} at {}", job, start);
            }
            if schedule.after.is_none() {
                let gaps = starts.iter().chain([&(96 * HOUR)]).scan(0, |last, start| {
                    let gap = start - *last;
                    *last = *start;
                    Some(gap)
                });
                // A day for the window, and what a suspended session takes of the next ones.
                let longest = gaps.max().unwrap_or(0);
                prop_assert!(longest <= 50 * HOUR, "{} rests for {} s: {:?}", job, longest, starts);
            }
        }
    }
}
