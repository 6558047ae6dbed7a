//! Calendar expressions in the syntax of systemd's `OnCalendar=`: `Mon..Fri 02:00`, `*-*-1,15 4:30 Europe/Berlin`.
//!
//! [`Calendar::next_after`] answers what `systemd-analyze calendar` answers (tests compare them). In short: a
//! weekday, a date and a time, of which all but one may be left out; in each place `*`, values, ranges `a..b`,
//! repetitions `a/n` and lists of them; `~` counts days from the end of the month; a time zone may follow.
//!
//! Times are those of the zone that the expression names, else of the one handed in. Where clocks go forward, a
//! time that does not exist that day is passed over; where they go back, a time that exists twice counts once,
//! the first time. An open repetition that does not end with its period (`0/7` of 60 minutes) runs on over the
//! hour's end as in systemd, where it may cost the period's first value: at midnight, `*:0/7` begins at 00:07.
//! What an administrator reads in `systemd-analyze calendar` is what happens here, that included.
//! Pure: no clock is read here. Not its job: intervals, windows, what to do about a missed time.
//!
//! `parse`: the syntax.

mod parse;
#[cfg(test)]
mod tests;

pub use parse::weekdays;

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Timestamp};

/// Years an expression may name; after the last of them nothing is due.
const YEAR_MIN: i32 = 1970;
const YEAR_MAX: i32 = 2199;
/// Microseconds in a second: seconds are counted in them.
const SECOND: i32 = 1_000_000;

/// A value, a range, or a repetition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Component {
    start: i32,
    /// Last value of a range.
    stop: Option<i32>,
    /// Step of a range or a repetition; 0 where there is one value.
    repeat: i32,
}

impl Component {
    /// The first value at or after `at`.
    fn next(self, at: i32) -> Option<i32> {
        if self.start >= at {
            return Some(self.start);
        }
        if self.repeat == 0 {
            return None;
        }
        let steps = (at - self.start + self.repeat - 1) / self.repeat;
        let value = self.start + steps * self.repeat;
        self.stop.is_none_or(|stop| value <= stop).then_some(value)
    }
}

/// What one place of an expression allows.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
struct Values(Vec<Component>);

impl Values {
    /// `*`
    const ANY: Self = Self(Vec::new());

    fn one(value: i32) -> Self {
        Self(vec![Component { start: value, stop: None, repeat: 0 }])
    }

    /// The first value at or after `at`; of open repetitions also one beyond the place's last.
    fn next(&self, at: i32) -> Option<i32> {
        match self.0.is_empty() {
            true => Some(at),
            false => self.0.iter().filter_map(|component| component.next(at)).min(),
        }
    }
}

/// Year, month, day, hour, minute, second (in microseconds), as a clock shows them; while a search runs, each
/// may be beyond its last value.
type Shown = [i32; UNITS];
const UNITS: usize = 6;
const YEAR: usize = 0;
const MONTH: usize = 1;
const DAY: usize = 2;
/// The first of each unit.
const FIRST: Shown = [YEAR_MIN, 1, 1, 0, 0, 0];
/// Looks of one search: each goes on by a day or more where there is nothing, and there are some 84,000.
const LOOKS_MAX: usize = 200_000;

/// See the module.
#[derive(Clone, Debug, PartialEq)]
pub struct Calendar {
    /// Bit 0 is Monday.
    weekdays: u8,
    /// By unit.
    values: [Values; UNITS],
    /// Days count from the end of the month.
    end_of_month: bool,
    zone: Option<TimeZone>,
}

const ALL_WEEKDAYS: u8 = 0b111_1111;

impl Calendar {
    /// The next time after `after`; none where there will not be one. `zone` is of those that name none.
    pub fn next_after(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let zone = self.zone.as_ref().unwrap_or(zone);
        // Times have microseconds here; the first after `after` is at the next one.
        let from = Timestamp::from_microsecond(after.as_microsecond().checked_add(1)?).ok()?;
        let mut shown = fields(from.to_zoned(zone.clone()).datetime());
        for _ in 0..LOOKS_MAX {
            shown = fields(clock(&shown, zone)?);
            match self.look(&shown, zone)? {
                Look::Due => return at(&shown, zone, after),
                Look::GoOn(from) => shown = from,
            }
        }
        None
    }

    /// The next so many times.
    pub fn upcoming(&self, after: Timestamp, zone: &TimeZone, count: usize) -> Vec<Timestamp> {
        let first = self.next_after(after, zone);
        std::iter::successors(first, |time| self.next_after(*time, zone)).take(count).collect()
    }

    /// Goes through the units of one moment, from the year to the second, up to the first that does not fit.
    fn look(&self, shown: &Shown, zone: &TimeZone) -> Option<Look> {
        for unit in YEAR..UNITS {
            let Some(value) = self.next(unit, shown) else {
                // No more in this period: the next one, from its beginning.
                return (unit > YEAR).then(|| Look::GoOn(begin(shown, unit - 1, shown[unit - 1] + 1)));
            };
            if value != shown[unit] {
                return Some(Look::GoOn(carried(begin(shown, unit, value), zone)?))
                    .filter(|_| shown[YEAR] <= YEAR_MAX);
            }
            if unit == DAY && !self.is_a_weekday(shown) {
                return Some(Look::GoOn(begin(shown, DAY, shown[DAY] + 1)));
            }
        }
        Some(Look::Due)
    }
    /// The first value of a unit at or after what is shown.
    fn next(&self, unit: usize, shown: &Shown) -> Option<i32> {
        let values = &self.values[unit];
        match unit == DAY && self.end_of_month {
            true => from_the_end(values, days_in_month(shown)?).next(shown[unit]),
            false => values.next(shown[unit]),
        }
    }

    fn is_a_weekday(&self, shown: &Shown) -> bool {
        let date = Date::new(shown[YEAR] as i16, shown[MONTH] as i8, shown[DAY] as i8);
        date.is_ok_and(|date| self.weekdays >> date.weekday().to_monday_zero_offset() & 1 == 1)
    }
}

/// What a look at one moment came to.
enum Look {
    /// It is one of the times.
    Due,
    /// The search goes on from here.
    GoOn(Shown),
}

/// That value of a unit, and the first of all below it.
fn begin(shown: &Shown, unit: usize, value: i32) -> Shown {
    let mut begun = FIRST;
    begun[..unit].copy_from_slice(&shown[..unit]);
    begun[unit] = value;
    begun
}

/// What a clock shows then. Where that is not what was wanted (a value beyond its last, a day that the month
/// does not have, an hour that is skipped), the unit below the greatest that changed begins anew.
fn carried(wanted: Shown, zone: &TimeZone) -> Option<Shown> {
    let mut shown = fields(clock(&wanted, zone)?);
    let changed = (YEAR..UNITS).find(|unit| shown[*unit] != wanted[*unit]);
    if let Some(below) = changed.map(|unit| unit + 1).filter(|below| *below < UNITS) {
        shown[below] = FIRST[below];
    }
    Some(shown)
}

/// The moment that is meant, on a clock of that zone: a time that is skipped is shown an hour later.
fn clock(meant: &Shown, zone: &TimeZone) -> Option<DateTime> {
    let months = meant[YEAR] * 12 + meant[MONTH] - 1;
    let month = Date::new((months / 12) as i16, (months % 12 + 1) as i8, 1).ok()?;
    let minutes = (i64::from(meant[DAY] - 1) * 24 + i64::from(meant[3])) * 60 + i64::from(meant[4]);
    let since = SignedDuration::from_micros(minutes * 60_000_000 + i64::from(meant[5]));
    let time = month.to_datetime(Time::midnight()).checked_add(since).ok()?;
    let ambiguous = zone.to_ambiguous_timestamp(time);
    match ambiguous.offset() {
        AmbiguousOffset::Gap { .. } => Some(ambiguous.later().ok()?.to_zoned(zone.clone()).datetime()),
        _ => Some(time),
    }
}

fn fields(time: DateTime) -> Shown {
    let second = i32::from(time.second()) * SECOND + time.subsec_nanosecond() / 1000;
    let [month, day, hour, minute] = [time.month(), time.day(), time.hour(), time.minute()].map(i32::from);
    [time.year().into(), month, day, hour, minute, second]
}

/// When a clock shows that: the first time, unless that is not after `after`.
fn at(shown: &Shown, zone: &TimeZone, after: Timestamp) -> Option<Timestamp> {
    let time = clock(shown, zone)?;
    let first = zone.to_ambiguous_timestamp(time).earlier().ok()?;
    if first > after {
        return Some(first);
    }
    zone.to_ambiguous_timestamp(time).later().ok().filter(|second| *second > after)
}

fn days_in_month(shown: &Shown) -> Option<i32> {
    Some(Date::new(shown[YEAR] as i16, shown[MONTH] as i8, 1).ok()?.days_in_month().into())
}

/// Days that count from the end, in a month that has `last`: `1` is the last one.
fn from_the_end(days: &Values, last: i32) -> Values {
    let turn = |component: &Component| match component.stop {
        Some(stop) => {
            Component { start: last + 1 - stop, stop: Some(last + 1 - component.start), ..*component }
        }
        None => Component { start: last + 1 - component.start, ..*component },
    };
    Values(days.0.iter().map(turn).collect())
}
