//! The syntax of calendar expressions, with errors that say where and what instead.

use std::str::FromStr;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::{ALL_WEEKDAYS, Calendar, Component, DAY as DAY_UNIT, SECOND, Values, YEAR_MAX, YEAR_MIN, fields};
use crate::schedule::Malformed;

/// Longest list in one place.
const COMPONENTS_MAX: usize = 240;
const WEEKDAYS: [&str; 7] = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];
/// Days before the end of a month that every month has.
const FROM_THE_END_MAX: i32 = 28;

fn malformed<T>(why: impl Into<String>) -> Result<T, Malformed> {
    Err(Malformed::new(why))
}

/// What is left to read.
struct Input<'a>(&'a str);

impl Input<'_> {
    fn peek(&self) -> Option<char> {
        self.0.chars().next()
    }

    fn take(&mut self, token: &str) -> bool {
        let rest = self.0.strip_prefix(token);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    fn skip_spaces(&mut self) {
        self.0 = self.0.trim_start_matches(' ');
    }

    fn at_end(&self) -> bool {
        self.0.is_empty()
    }

    /// "at the end" or "at `12`".
    fn place(&self) -> String {
        if self.at_end() { "at its end".into() } else { format!("at '{}'", self.0) }
    }

    fn number(&mut self, what: &str) -> Result<i32, Malformed> {
        let end = self.0.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.0.len());
        let (digits, rest) = self.0.split_at(end);
        match digits.parse() {
            Ok(value) => {
                self.0 = rest;
                Ok(value)
            }
            Err(_) if digits.is_empty() => {
                malformed(format!("{} a number is missing ({what})", self.place()))
            }
            Err(_) => malformed(format!("{digits} is too large ({what})")),
        }
    }
}

/// One place of an expression: what it is called and what it takes.
struct Place {
    what: &'static str,
    first: i32,
    last: i32,
    /// Values are microseconds, written as seconds.
    seconds: bool,
}

const YEAR: Place = Place { what: "year", first: YEAR_MIN, last: YEAR_MAX, seconds: false };
const MONTH: Place = Place { what: "month", first: 1, last: 12, seconds: false };
const DAY: Place = Place { what: "day", first: 1, last: 31, seconds: false };
const DAY_FROM_THE_END: Place =
    Place { what: "day before the month's end", first: 1, last: FROM_THE_END_MAX, seconds: false };
const HOUR: Place = Place { what: "hour", first: 0, last: 23, seconds: false };
const MINUTE: Place = Place { what: "minute", first: 0, last: 59, seconds: false };
const SECONDS: Place = Place { what: "second", first: 0, last: 60 * SECOND - 1, seconds: true };

impl Place {
    fn article(&self) -> &'static str {
        if self.what == HOUR.what { "an" } else { "a" }
    }

    fn value(&self, input: &mut Input<'_>) -> Result<i32, Malformed> {
        let whole = input.number(self.what)?;
        if !self.seconds {
            return Ok(whole);
        }
        let mut value = whole.checked_mul(SECOND);
        // One point is a decimal point, two are a range.
        if input.peek() == Some('.') && !input.0.starts_with("..") {
            input.take(".");
            let end = input.0.find(|c: char| !c.is_ascii_digit()).unwrap_or(input.0.len());
            let digits = &input.0[..end.min(6)];
            let part: i32 = format!("{digits:0<6}").parse().unwrap_or(0);
            input.0 = &input.0[end..];
            value = value.and_then(|value| value.checked_add(part));
        }
        value.map_or_else(|| malformed(format!("{whole} is too large ({})", self.what)), Ok)
    }

    /// Values, ranges and repetitions; not checked against what the place takes.
    fn values(&self, input: &mut Input<'_>) -> Result<Values, Malformed> {
        if input.take("*") {
            let every = Component { start: 0, stop: None, repeat: SECOND };
            return Ok(if self.seconds { Values(vec![every]) } else { Values::ANY });
        }
        let mut values = Vec::new();
        loop {
            let start = self.value(input)?;
            let stop = if input.take("..") { Some(self.value(input)?) } else { None };
            let unit = if self.seconds { SECOND } else { 1 };
            let mut repeat = if stop.is_some() { unit } else { 0 };
            if input.take("/") {
                repeat = self.value(input)?;
                if repeat == 0 {
                    return malformed(format!("a repetition of 0 is none ({})", self.what));
                }
            } else if self.seconds && stop.is_some_and(|stop| start.saturating_add(repeat) > stop) {
                return malformed("a range of seconds shorter than one second needs a repetition: a..b/n");
            }
            if !matches!(input.peek(), None | Some(' ' | ',' | '-' | '~' | ':')) {
                return malformed(format!("{} something else was expected ({})", input.place(), self.what));
            }
            values.push(Component { start, stop, repeat });
            if values.len() > COMPONENTS_MAX {
                return malformed(format!("more than {COMPONENTS_MAX} values ({})", self.what));
            }
            if !input.take(",") {
                return Ok(Values(values));
            }
        }
    }

    /// Checks values against what the place takes, and makes ranges whole numbers of steps.
    fn settle(&self, values: Values, from_the_end: bool) -> Result<Values, Malformed> {
        let mut settled = Vec::new();
        for mut component in values.0 {
            let wrong = || {
                let unit = if self.seconds { SECOND } else { 1 };
                let (first, last) = (self.first / unit, self.last / unit);
                malformed(format!(
                    "{} {} lies between {first} and {last}, and ranges and steps fit in there",
                    self.article(),
                    self.what
                ))
            };
            if let Some(stop) = component.stop.filter(|stop| *stop > component.start && component.repeat > 0)
            {
                let stop = stop - (stop - component.start) % component.repeat;
                component.stop = Some(stop);
                if component.start + component.repeat > stop {
                    component = Component { stop: None, repeat: 0, ..component };
                }
            }
            if component.stop == Some(component.start) {
                component = Component { stop: None, repeat: 0, ..component };
            }
            let Component { start, stop, repeat } = component;
            let inside = |value: i32| (self.first..=self.last).contains(&value);
            let fits = match stop {
                Some(stop) => inside(stop) && start.saturating_add(repeat) <= stop,
                None if from_the_end => start.saturating_sub(repeat) >= self.first,
                None => start.saturating_add(repeat) <= self.last,
            };
            if !inside(start) || repeat > self.last - self.first || !fits {
                return wrong();
            }
            settled.push(component);
        }
        settled.sort_unstable();
        settled.dedup();
        Ok(Values(settled))
    }
}

/// Words for common expressions.
fn spelled_out(expression: &str) -> Option<&'static str> {
    Some(match expression {
        "minutely" => "*-*-* *:*:00",
        "hourly" => "*-*-* *:00:00",
        "daily" => "*-*-* 00:00:00",
        "weekly" => "Mon *-*-* 00:00:00",
        "monthly" => "*-*-01 00:00:00",
        "quarterly" => "*-01,04,07,10-01 00:00:00",
        "biannually" | "bi-annually" | "semiannually" | "semi-annually" => "*-01,07-01 00:00:00",
        "yearly" | "annually" | "anually" => "*-01-01 00:00:00",
        _ => return None,
    })
}

/// A name after the last space that is a time zone, and what is before it.
fn zone_of(expression: &str) -> (&str, Option<TimeZone>) {
    let Some((before, name)) = expression.rsplit_once(' ') else { return (expression, None) };
    if name.eq_ignore_ascii_case("utc") {
        return (before, Some(TimeZone::UTC));
    }
    // What begins like a time or a date is no zone, whatever the database holds.
    let zone = Some(name).filter(|name| name.starts_with(|c: char| c.is_ascii_alphabetic()));
    match zone.and_then(|name| TimeZone::get(name).ok()) {
        Some(zone) => (before, Some(zone)),
        None => (expression, None),
    }
}

/// Days as in `Mon..Fri,Sun`, one bit each, Monday first; all where none are named.
pub fn weekdays(text: &str) -> Result<u8, Malformed> {
    let mut input = Input(text.trim());
    let days = take_weekdays(&mut input)?;
    match input.at_end() {
        true => Ok(days),
        false => malformed(format!("{} nothing more was expected after the weekdays", input.place())),
    }
}

/// The days named at the beginning; all where none are.
fn take_weekdays(input: &mut Input<'_>) -> Result<u8, Malformed> {
    let (mut days, mut range): (u8, Option<usize>) = (0, None);
    loop {
        let end = input.0.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(input.0.len());
        let word = input.0[..end].to_ascii_lowercase();
        let named = |name: &&str| *name == word || name[..3] == word;
        let Some(day) = WEEKDAYS.iter().position(named) else {
            if days == 0 && word.is_empty() {
                return Ok(ALL_WEEKDAYS);
            }
            return malformed(format!(
                "{} a weekday was expected (Mon, Tue, …) or a time zone",
                input.place()
            ));
        };
        input.0 = &input.0[end..];
        match range.take() {
            Some(first) if first > day => {
                return malformed(format!(
                    "a range of weekdays ends before it begins; the week begins on Monday ({word})"
                ));
            }
            first => (first.unwrap_or(day)..=day).for_each(|day| days |= 1 << day),
        }
        let ranged = input.take("..") || input.take("-");
        if ranged {
            range = Some(day);
        } else if !input.take(",") && !matches!(input.peek(), None | Some(' ')) {
            return malformed(format!("{} a space, ',' or '..' was expected after a weekday", input.place()));
        }
        if matches!(input.peek(), None | Some(' ')) {
            input.skip_spaces();
            return if range.is_some() { malformed("a range of weekdays has no end") } else { Ok(days) };
        }
    }
}

impl Calendar {
    fn blank(zone: Option<TimeZone>) -> Self {
        let midnight = || Values::one(0);
        let values = [Values::ANY, Values::ANY, Values::ANY, midnight(), midnight(), midnight()];
        Self { weekdays: ALL_WEEKDAYS, values, end_of_month: false, zone }
    }

    /// `@SECONDS` since 1970: one moment.
    fn moment(seconds: i64) -> Result<Self, Malformed> {
        let moment = Timestamp::from_second(seconds).ok().map(|moment| moment.to_zoned(TimeZone::UTC));
        let Some(moment) = moment.filter(|moment| i32::from(moment.year()) <= YEAR_MAX) else {
            return malformed(format!("@{seconds} lies after the year {YEAR_MAX}"));
        };
        let values = fields(moment.datetime()).map(Values::one);
        Ok(Self { values, ..Self::blank(Some(TimeZone::UTC)) })
    }

    /// `[[YEAR-]MONTH-DAY ]`; leaves the input alone where a time comes first.
    fn date(&mut self, input: &mut Input<'_>) -> Result<(), Malformed> {
        if input.at_end() {
            return Ok(());
        }
        let start = input.0;
        let mut parts = vec![YEAR.values(input)?];
        if matches!(input.peek(), None | Some(':')) {
            input.0 = start;
            return Ok(());
        }
        while !matches!(input.peek(), None | Some(' ')) {
            let from_the_end = input.take("~");
            if !from_the_end && !input.take("-") || self.end_of_month || parts.len() == 3 {
                return malformed(format!(
                    "{} a date is YEAR-MONTH-DAY, MONTH-DAY, or with ~DAY from the month's end",
                    input.place()
                ));
            }
            self.end_of_month = from_the_end;
            parts.push(DAY.values(input)?);
        }
        input.skip_spaces();
        if parts.len() == 1 {
            return malformed(format!(
                "'{start}' begins neither with a date (MONTH-DAY) nor with a time (HOUR:MINUTE)"
            ));
        }
        let first = DAY_UNIT + 1 - parts.len();
        self.values[first..=DAY_UNIT].clone_from_slice(&parts);
        Ok(())
    }

    /// `HOUR:MINUTE[:SECOND]`; midnight where nothing is left.
    fn time(&mut self, input: &mut Input<'_>) -> Result<(), Malformed> {
        if input.at_end() {
            return Ok(());
        }
        self.values[3] = HOUR.values(input)?;
        if !input.take(":") {
            return malformed(format!("{} a time is HOUR:MINUTE or HOUR:MINUTE:SECOND", input.place()));
        }
        self.values[4] = MINUTE.values(input)?;
        if input.take(":") {
            self.values[5] = SECONDS.values(input)?;
        }
        match input.at_end() {
            true => Ok(()),
            false => malformed(format!("{} nothing more was expected after the time", input.place())),
        }
    }

    fn settle(mut self) -> Result<Self, Malformed> {
        let century = |year: i32| match year {
            0..70 => year + 2000,
            70..100 => year + 1900,
            _ => year,
        };
        for component in &mut self.values[0].0 {
            component.start = century(component.start);
            component.stop = component.stop.map(century);
        }
        // `~*` is every day.
        self.end_of_month &= self.values[DAY_UNIT] != Values::ANY;
        let day = if self.end_of_month { DAY_FROM_THE_END } else { DAY };
        let places = [YEAR, MONTH, day, HOUR, MINUTE, SECONDS];
        for (unit, (values, place)) in self.values.iter_mut().zip(places).enumerate() {
            let from_the_end = unit == DAY_UNIT && self.end_of_month;
            *values = place.settle(std::mem::take(values), from_the_end)?;
        }
        Ok(self)
    }
}

impl FromStr for Calendar {
    type Err = Malformed;

    fn from_str(expression: &str) -> Result<Self, Malformed> {
        let (expression, zone) = zone_of(expression.trim());
        if expression.is_empty() {
            return malformed(
                "it is empty; for example 'Mon..Fri 02:00', 'daily' or '*-*-1 04:30 Europe/Berlin'",
            );
        }
        let word = expression.to_ascii_lowercase();
        let mut input = Input(spelled_out(&word).unwrap_or(expression));
        let mut calendar = Self::blank(zone);
        calendar.weekdays = take_weekdays(&mut input)?;
        if input.take("@") {
            let seconds = input
                .0
                .parse()
                .map_err(|_| Malformed::new(format!("@{} is no number of seconds", input.0)))?;
            let days = calendar.weekdays;
            return Ok(Self { weekdays: days, ..Self::moment(seconds)? });
        }
        calendar.date(&mut input)?;
        calendar.time(&mut input)?;
        calendar.settle()
    }
}
