//! Windows: the hours in which a job may run, or a line be used. `20:00-06:00`, `Mon..Fri 20:00-06:00`, or several with
//! commas; days are those on which a window opens, and one that ends before it begins ends on the next day.
//!
//! Sans-IO. Hours are those a clock shows: a window that opens in an hour that is skipped opens after it, one that closes
//! in an hour that comes twice closes the first time.

use std::fmt;
use std::str::FromStr;

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::Malformed;
use super::calendar::weekdays;

/// More are not taken in one expression.
const SPANS_MAX: usize = 32;
const DAY_SECONDS: i64 = 24 * 3600;
/// Days looked at for the next change: a week, and a day for zones that skip one.
const DAYS_AHEAD: i64 = 9;

/// Hours of some days.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    /// Bit 0 is Monday.
    days: u8,
    /// Seconds of the day, as its clock shows them.
    opens: i64,
    /// Seconds from the same midnight; more than a day's where it ends on the next one.
    closes: i64,
}

/// See the module. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    spans: Vec<Span>,
    text: String,
}

impl Window {
    /// True where it is open at that moment.
    pub fn is_open(&self, at: Timestamp, zone: &TimeZone) -> bool {
        self.intervals(at, zone).any(|(opens, closes)| opens <= at && at < closes)
    }

    /// When it is open next: `at` itself where it is open then.
    pub fn open_from(&self, at: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let later = self.intervals(at, zone).filter(|(_, closes)| *closes > at);
        later.map(|(opens, _)| opens.max(at)).min()
    }

    /// When it closes, if it is open at `at`: windows that touch are one.
    pub fn closes_after(&self, at: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let mut end = at;
        // Each turn takes in one window more.
        for _ in 0..self.spans.len() * DAYS_AHEAD as usize {
            let longer = self.intervals(at, zone).filter(|(opens, closes)| *opens <= end && *closes > end);
            match longer.map(|(_, closes)| closes).max() {
                Some(closes) => end = closes,
                None => break,
            }
        }
        Some(end).filter(|end| *end > at)
    }

    /// All that may be open at `at` or later, about a week ahead.
    fn intervals(&self, at: Timestamp, zone: &TimeZone) -> impl Iterator<Item = (Timestamp, Timestamp)> {
        let today = at.to_zoned(zone.clone()).date();
        let days =
            (-1..DAYS_AHEAD).filter_map(move |n| today.checked_add(SignedDuration::from_hours(24 * n)).ok());
        days.flat_map(move |day| {
            let of_day = |span: &&Span| span.days >> day.weekday().to_monday_zero_offset() & 1 == 1;
            let times = |span: &Span| Some((moment(day, span.opens, zone)?, moment(day, span.closes, zone)?));
            self.spans.iter().filter(of_day).filter_map(times).collect::<Vec<_>>()
        })
    }
}

/// That many seconds after a day's midnight, as clocks show it.
fn moment(day: Date, seconds: i64, zone: &TimeZone) -> Option<Timestamp> {
    let shown: DateTime =
        day.to_datetime(Time::midnight()).checked_add(SignedDuration::from_secs(seconds)).ok()?;
    zone.to_ambiguous_timestamp(shown).compatible().ok()
}

/// `20:00` or `20:00:30`, up to `24:00`, in seconds.
fn seconds(text: &str) -> Result<i64, Malformed> {
    let wrong =
        || Malformed::new(format!("'{text}' is not a time of day, HH:MM or HH:MM:SS from 00:00 to 24:00"));
    let digits = |part: &str| {
        (part.len() <= 2 && part.bytes().all(|b| b.is_ascii_digit())).then(|| part.parse().ok())?
    };
    let parts: Vec<i64> = text.trim().split(':').map(digits).collect::<Option<_>>().ok_or_else(wrong)?;
    let (hour, minute, second) = match parts[..] {
        [hour, minute] => (hour, minute, 0),
        [hour, minute, second] => (hour, minute, second),
        _ => return Err(wrong()),
    };
    let all = (hour * 60 + minute) * 60 + second;
    if minute < 60 && second < 60 && all <= DAY_SECONDS { Ok(all) } else { Err(wrong()) }
}

fn span(text: &str) -> Result<Span, Malformed> {
    let text = text.trim();
    let (days, hours) = text.rsplit_once(' ').unwrap_or(("", text));
    let (opens, closes) = hours.split_once('-').ok_or_else(|| {
        Malformed::new(format!("'{text}' is no window; for example '20:00-06:00' or 'Sat,Sun 00:00-24:00'"))
    })?;
    let (opens, closes) = (seconds(opens)?, seconds(closes)?);
    if opens == closes || opens == DAY_SECONDS {
        return Err(Malformed::new(format!("'{hours}' is empty; the whole day is 00:00-24:00")));
    }
    let closes = if closes > opens { closes } else { closes + DAY_SECONDS };
    Ok(Span { days: weekdays(days)?, opens, closes })
}

impl FromStr for Window {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        // A comma also parts days: those before the hours belong to what follows.
        let (mut spans, mut pending) = (Vec::new(), String::new());
        for part in text.split(',') {
            pending += part;
            if part.contains(':') || part.contains('-') {
                spans.push(span(&std::mem::take(&mut pending))?);
            } else {
                pending.push(',');
            }
        }
        if !pending.is_empty() || spans.is_empty() {
            return Err(Malformed::new(format!(
                "'{text}' is no window; for example '20:00-06:00' or 'Mon..Fri 20:00-06:00'"
            )));
        }
        if spans.len() > SPANS_MAX {
            return Err(Malformed::new(format!("more than {SPANS_MAX} windows in one expression")));
        }
        Ok(Self { spans, text: text.trim().to_owned() })
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn berlin() -> TimeZone {
        TimeZone::get("Europe/Berlin").unwrap()
    }

    fn at(text: &str) -> Timestamp {
        let shown: DateTime = text.parse().unwrap();
        shown.to_zoned(berlin()).unwrap().timestamp()
    }

    #[test]
    fn over_midnight_and_by_day() {
        let night: Window = "Mon..Fri 20:00-06:00".parse().unwrap();
        let open = |text| night.is_open(at(text), &berlin());
        // 2026-11-27 is a Friday.
        assert!(!open("2026-11-27T19:59:59") && open("2026-11-27T20:00:00") && open("2026-11-28T05:59:59"));
        assert!(!open("2026-11-28T06:00:00") && !open("2026-11-28T22:00:00") && !open("2026-11-30T05:00:00"));
        let next = night.open_from(at("2026-11-28T06:00:00"), &berlin());
        assert_eq!(next, Some(at("2026-11-30T20:00:00")));
        assert_eq!(night.closes_after(at("2026-11-27T23:00:00"), &berlin()), Some(at("2026-11-28T06:00:00")));
        assert_eq!(night.closes_after(at("2026-11-28T23:00:00"), &berlin()), None);
    }

    #[test]
    fn windows_that_touch_are_one() {
        let window: Window = "Mon..Fri 20:00-06:00, Sat,Sun 00:00-24:00".parse().unwrap();
        assert_eq!(
            window.closes_after(at("2026-11-27T21:00:00"), &berlin()),
            Some(at("2026-11-30T00:00:00"))
        );
        let always: Window = "00:00-24:00".parse().unwrap();
        assert!(always.closes_after(at("2026-11-27T21:00:00"), &berlin()) > Some(at("2026-12-04T00:00:00")));
    }

    #[test]
    fn hours_that_are_skipped_or_come_twice() {
        let window: Window = "02:30-04:00".parse().unwrap();
        let from = window.open_from(at("2026-03-29T00:00:00"), &berlin());
        assert_eq!(from.unwrap().to_string(), "2026-03-29T01:30:00Z");
        let closes: Window = "00:00-02:30".parse().unwrap();
        let end = closes.closes_after(at("2026-10-25T01:00:00"), &berlin());
        assert_eq!(end.unwrap().to_string(), "2026-10-25T00:30:00Z");
    }

    #[test]
    fn what_is_no_window() {
        for wrong in [
            "",
            "20:00",
            "20:00-",
            "25:00-26:00",
            "20:00-20:00",
            "Mon",
            "Mon,",
            "8-17",
            "24:00-01:00",
            "x 8:00-9:00",
        ] {
            assert!(wrong.parse::<Window>().is_err(), "{wrong}");
        }
        assert!("Mon,Wed 8:00-9:30,Sun 10:00-11:00".parse::<Window>().is_ok());
    }

    proptest! {
        #[test]
        fn what_opens_is_open_and_what_closed_is_not(
            opens in 0i64..86_400, closes in 0i64..86_400, seconds in 1_700_000_000i64..2_000_000_000,
        ) {
            prop_assume!(opens != closes);
            let hours = |s: i64| format!("{:02}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
            let window: Window = format!("{}-{}", hours(opens), hours(closes)).parse().unwrap();
            let now = Timestamp::from_second(seconds).unwrap();
            let next = window.open_from(now, &berlin()).unwrap();
            prop_assert!(next >= now && (next == now) == window.is_open(now, &berlin()));
            prop_assert!(window.is_open(next, &berlin()));
            let end = window.closes_after(next, &berlin()).unwrap();
            prop_assert!(end > next && !window.is_open(end, &berlin()));
            let last = end.checked_sub(SignedDuration::from_secs(1)).unwrap();
            prop_assert!(window.is_open(last.max(next), &berlin()));
        }
    }
}
