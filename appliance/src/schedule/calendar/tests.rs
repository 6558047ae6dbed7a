//! The same next ten times as systemd's own tool, over random expressions and zones; and what is refused.

use std::process::Command;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::Calendar;

/// Their clocks change in March and October, in November, in April the other way, by half an hour, and never.
const ZONES: [&str; 5] =
    ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Santiago", "Asia/Kolkata"];
const TIMES: usize = 10;

/// One place: `*`, values, ranges, repetitions, lists.
fn place(first: u32, last: u32) -> impl Strategy<Value = String> {
    let one = (first..=last).prop_map(|value| format!("{value:02}"));
    let range =
        (first..last).prop_flat_map(move |a| (Just(a), a + 1..=last)).prop_map(|(a, b)| format!("{a}..{b}"));
    let step = (first..last, 1..=last).prop_map(move |(a, n)| format!("{a}/{}", n.min(last - a)));
    let stepped = (first..last, 1..=last).prop_flat_map(move |(a, n)| {
        let n = n.min(last - a);
        (a + n..=last).prop_map(move |b| format!("{a}..{b}/{n}"))
    });
    let listed = prop_oneof![4 => one, 1 => range, 1 => step, 1 => stepped];
    prop_oneof![2 => Just("*".to_owned()), 3 => prop::collection::vec(listed, 1..4).prop_map(|all| all.join(","))]
}

fn weekdays() -> impl Strategy<Value = String> {
    const DAYS: &[&str] = &["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun", "monday", "Saturday"];
    let one = prop::sample::select(DAYS).prop_map(str::to_owned);
    let range = (0usize..6)
        .prop_flat_map(|a| (Just(a), a + 1..7))
        .prop_map(move |(a, b)| format!("{}..{}", DAYS[a], DAYS[b]));
    let some =
        prop::collection::vec(prop_oneof![2 => one, 1 => range], 1..3).prop_map(|all| all.join(",") + " ");
    prop_oneof![2 => Just(String::new()), 1 => some]
}

fn date() -> impl Strategy<Value = String> {
    let year = prop_oneof![4 => Just("*-".to_owned()), 1 => Just(String::new()), 1 => place(2025, 2040).prop_map(|y| y + "-")];
    let day = prop_oneof![
        3 => place(1, 31).prop_map(|day| format!("-{day}")),
        1 => (1u32..=28).prop_map(|day| format!("~{day:02}")),
        1 => (8u32..=28).prop_map(|day| format!("~{day:02}/7")),
    ];
    let date = (year, place(1, 12), day).prop_map(|(year, month, day)| format!("{year}{month}{day} "));
    prop_oneof![1 => Just(String::new()), 2 => date]
}

fn time() -> impl Strategy<Value = String> {
    let second = prop_oneof![
        3 => Just(String::new()),
        1 => place(0, 59).prop_map(|s| format!(":{s}")),
        1 => Just(":0..30/7.5".to_owned()),
        1 => Just(":12.25".to_owned()),
    ];
    (place(0, 23), place(0, 59), second).prop_map(|(h, m, s)| format!("{h}:{m}{s}"))
}

fn expression() -> impl Strategy<Value = String> {
    const WORDS: &[&str] = &[
        "minutely",
        "hourly",
        "daily",
        "weekly",
        "monthly",
        "quarterly",
        "semiannually",
        "yearly",
        "@1893456000",
    ];
    let word = prop::sample::select(WORDS).prop_map(str::to_owned);
    let zone = prop_oneof![6 => Just(""), 1 => Just(" UTC"), 1 => Just(" Europe/Lisbon"), 1 => Just(" Pacific/Auckland")];
    let put = (weekdays(), date(), time()).prop_map(|(w, d, t)| format!("{w}{d}{t}"));
    (prop_oneof![1 => word, 20 => put], zone).prop_map(|(expression, zone)| expression + zone)
}

/// What systemd's tool says: the times of each expression, in order; none for one that it fails on. None where
/// the tool is not there.
fn systemd(zone: &str, base: Timestamp, expressions: &[String]) -> Option<Vec<Option<Vec<Timestamp>>>> {
    let base_time = base.strftime("%Y-%m-%d %H:%M:%S UTC").to_string();
    let mut command = Command::new("systemd-analyze");
    command.env("TZ", format!(":{zone}")).args([
        "calendar",
        "--iterations=10",
        "--base-time",
        &base_time,
        "--",
    ]);
    let said = command.args(expressions).output().ok()?;
    if !said.status.success() {
        // It stops at the first that it fails on.
        return match expressions {
            [one] => {
                println!("{one}: {}", String::from_utf8_lossy(&said.stderr).trim());
                Some(vec![None])
            }
            [] => Some(Vec::new()),
            _ => {
                let (some, others) = expressions.split_at(expressions.len() / 2);
                Some([systemd(zone, base, some)?, systemd(zone, base, others)?].concat())
            }
        };
    }
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let blocks: Vec<&str> = said.split("\n\n").filter(|block| !block.trim().is_empty()).collect();
    assert_eq!(blocks.len(), expressions.len());
    let time = |line: &str| {
        let text = line.trim().strip_prefix("(in UTC): ")?.strip_suffix(" UTC")?.get(4..)?.to_owned();
        let shown: jiff::civil::DateTime = text.parse().ok()?;
        Some(shown.to_zoned(TimeZone::UTC).ok()?.timestamp())
    };
    Some(blocks.iter().map(|block| Some(block.lines().filter_map(time).collect())).collect())
}

fn runner() -> TestRunner {
    TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]))
}

#[test]
fn a_thousand_expressions_are_due_when_systemd_says() {
    let mut runner = runner();
    let bases =
        ["2026-03-28T11:59:59Z", "2026-10-24T22:10:00Z", "2027-11-06T05:00:00Z", "2028-02-28T23:59:59Z"];
    let (mut compared, mut failed) = (0, 0);
    for round in 0.. {
        if compared >= 1000 {
            break;
        }
        let zone = ZONES[round % ZONES.len()];
        let base: Timestamp = bases[round / ZONES.len() % bases.len()].parse().expect("a time");
        let expressions: Vec<String> =
            (0..50).map(|_| expression().new_tree(&mut runner).expect("an expression").current()).collect();
        let Some(expected) = systemd(zone, base, &expressions) else {
            println!("SKIPPED: systemd-analyze is not there");
            return;
        };
        for (expression, expected) in expressions.iter().zip(expected) {
            match expected {
                Some(expected) => compare(expression, base, zone, &expected),
                None => failed += 1,
            }
        }
        compared = (round + 1) * 50 - failed;
    }
    assert!(failed < 20, "systemd's tool fails on {failed} expressions");
}

fn compare(expression: &str, base: Timestamp, zone: &str, expected: &[Timestamp]) {
    let local = TimeZone::get(zone).expect("a zone");
    let calendar: Calendar = expression.parse().unwrap_or_else(|why| panic!("{expression}: {why}"));
    let mut found = calendar.upcoming(base, &local, TIMES);
    if found.len() > expected.len() {
        println!("{expression}: systemd gives up before {}", found[expected.len()]);
        found.truncate(expected.len());
    }
    // The tool shows whole seconds.
    let found: Vec<i64> = found.iter().map(|time| time.as_second()).collect();
    let expected: Vec<i64> = expected.iter().map(|time| time.as_second()).collect();
    assert_eq!(found, expected, "{expression} after {base} in {zone}");
}

#[test]
fn what_systemd_refuses_is_refused() {
    let wrong = [
        "",
        " ",
        "foo",
        "25:00",
        "12:60",
        "12:00:60",
        "12",
        "*-13-01",
        "*-02-32",
        "*~29",
        "*-*~1-2",
        "Mon..",
        "Fri..Mon 10:00",
        "Mon,12:00x",
        "Mon. 10:00",
        "10:00 Nowhere/Land",
        "*:*/0",
        "0..99:00",
        "*-*-* 10",
        "1-2-3-4",
        "10:00:00:00",
        "10:00:0..0.5",
        "5/60:00",
        "99999999999-01-01",
        "10:00 10:00",
        "~1",
        "*-*~7..1",
        "@x",
        "Tues 10:00",
        "*:*/5",
    ];
    for expression in wrong {
        let parsed: Result<Calendar, _> = expression.parse();
        assert!(parsed.is_err(), "{expression:?} was taken");
        let systemd = Command::new("systemd-analyze").args(["calendar", "--", expression]).output();
        if let Ok(systemd) = systemd {
            assert!(!systemd.status.success(), "systemd takes {expression:?}");
        }
    }
}

#[test]
fn errors_say_what_is_wrong() {
    let why = |expression: &str| expression.parse::<Calendar>().expect_err(expression).to_string();
    assert_eq!(why("25:00"), "an hour lies between 0 and 23, and ranges and steps fit in there");
    assert!(why("12").contains("a time is HOUR:MINUTE"), "{}", why("12"));
    assert!(why("12 13:00").contains("neither with a date"), "{}", why("12 13:00"));
    assert!(why("Fri..Mon 10:00").contains("ends before it begins"));
}

#[test]
fn a_time_that_is_skipped_or_repeated() {
    let berlin = TimeZone::get("Europe/Berlin").expect("a zone");
    let upcoming = |expression: &str, after: &str| -> Vec<String> {
        let calendar: Calendar = expression.parse().expect("an expression");
        let times = calendar.upcoming(after.parse().expect("a time"), &berlin, 3);
        times.iter().map(Timestamp::to_string).collect()
    };
    let spring = upcoming("02:30", "2026-03-28T12:00:00Z");
    assert_eq!(spring, ["2026-03-30T00:30:00Z", "2026-03-31T00:30:00Z", "2026-04-01T00:30:00Z"]);
    let autumn = upcoming("*:0/30", "2026-10-24T23:40:00Z");
    assert_eq!(autumn, ["2026-10-25T00:00:00Z", "2026-10-25T00:30:00Z", "2026-10-25T02:00:00Z"]);
}

proptest! {
    #[test]
    fn nothing_that_is_typed_panics(expression in "[0-9A-Za-z*/.,:~@ -]{0,24}", seconds in 0i64..4_000_000_000) {
        if let Ok(calendar) = expression.parse::<Calendar>() {
            let after = Timestamp::from_second(seconds).expect("a time");
            if let Some(due) = calendar.next_after(after, &TimeZone::UTC) {
                prop_assert!(due > after);
            }
        }
    }
}
