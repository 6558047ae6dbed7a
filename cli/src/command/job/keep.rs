//! `--keep…` of a job: which restore points the target is asked to keep, from options and from a file.

use clap::Args;
use serde_json::{Map, Value};
use vbr_api::{JobSpec, KeepCalendar};

use super::definition::Definition;
use crate::human;

#[derive(Args, Clone, Copy, Debug, Default)]
pub struct Keep {
    /// How many restore points the target is asked to keep, the newest. Its minimum age wins [default: all,
    /// unless another --keep is given]
    #[arg(long, value_name = "N|all", value_parser = last)]
    keep: Option<Last>,
    /// And the newest restore point of each of the last so many days that have one
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    keep_daily: Option<u32>,
    /// The same for ISO weeks
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    keep_weekly: Option<u32>,
    /// The same for months
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    keep_monthly: Option<u32>,
    /// The same for years
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    keep_yearly: Option<u32>,
}

/// None: all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Last(Option<u32>);

fn last(text: &str) -> Result<Last, String> {
    match text.parse::<u32>() {
        _ if text == "all" => Ok(Last(None)),
        Ok(count) if count > 0 => Ok(Last(Some(count))),
        _ => Err("it is a number from 1 on, or `all`".into()),
    }
}

impl Keep {
    /// What changes of a definition; `--keep all` takes all bounds off that are not given beside it.
    pub fn change(&self) -> Vec<(&'static str, Value)> {
        let all = self.keep == Some(Last(None));
        let of = |option: Option<u32>| option.map(Value::from).or(all.then_some(Value::from(0)));
        let calendar: Map<String, Value> = [
            ("daily", of(self.keep_daily)),
            ("weekly", of(self.keep_weekly)),
            ("monthly", of(self.keep_monthly)),
            ("yearly", of(self.keep_yearly)),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_string(), value?)))
        .collect();
        let keep = self.keep.map(|last| ("keep", last.0.map_or(Value::Null, Value::from)));
        let calendar = (!calendar.is_empty()).then_some(("keep_calendar", Value::Object(calendar)));
        keep.into_iter().chain(calendar).collect()
    }

    /// Options first, then the file.
    pub fn with(self, file: &Definition) -> (Option<u32>, KeepCalendar) {
        let of = |option: Option<u32>, file: Option<u32>| option.or(file).unwrap_or_default();
        let calendar = KeepCalendar {
            daily: of(self.keep_daily, file.keep_daily),
            weekly: of(self.keep_weekly, file.keep_weekly),
            monthly: of(self.keep_monthly, file.keep_monthly),
            yearly: of(self.keep_yearly, file.keep_yearly),
        };
        (self.keep.map_or(file.keep, |last| last.0), calendar)
    }
}

/// `14`, `14 7d 4w`, `7d 12m 3y`, `all`; for columns.
pub fn short(spec: &JobSpec) -> String {
    short_of(spec.keep, &spec.keep_calendar)
}

/// The same of a replica.
pub fn short_of(keep: Option<u32>, calendar: &KeepCalendar) -> String {
    let units =
        [(calendar.daily, "d"), (calendar.weekly, "w"), (calendar.monthly, "m"), (calendar.yearly, "y")];
    let periods =
        units.into_iter().filter(|(count, _)| *count > 0).map(|(count, unit)| format!("{count}{unit}"));
    let words: Vec<String> = keep.map(|keep| keep.to_string()).into_iter().chain(periods).collect();
    if words.is_empty() { "all".into() } else { words.join(" ") }
}

/// `14 restore points, and the newest of 7 days, 4 weeks`
pub fn long(keep: Option<u32>, calendar: &KeepCalendar) -> String {
    let units = [
        (calendar.daily, "day"),
        (calendar.weekly, "week"),
        (calendar.monthly, "month"),
        (calendar.yearly, "year"),
    ];
    let periods: Vec<String> = units
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, unit)| human::count(count.into(), unit))
        .collect();
    let last = keep.map(|keep| human::count(keep.into(), "restore point"));
    match (last, periods.is_empty()) {
        (None, true) => "all restore points".into(),
        (Some(last), true) => last,
        (None, false) => format!("the newest restore point of each of {}", periods.join(", ")),
        (Some(last), false) => format!("{last}, and the newest of each of {}", periods.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        let calendar = KeepCalendar { daily: 7, weekly: 0, monthly: 12, yearly: 1 };
        assert_eq!(short_of(None, &KeepCalendar::default()), "all");
        assert_eq!(short_of(Some(14), &KeepCalendar::default()), "14");
        assert_eq!(short_of(Some(14), &calendar), "14 7d 12m 1y");
        assert_eq!(
            long(Some(1), &calendar),
            "1 restore point, and the newest of each of 7 days, 12 months, 1 year"
        );
        assert_eq!(long(None, &KeepCalendar::default()), "all restore points");
    }

    #[test]
    fn what_an_edit_changes() {
        let days = Keep { keep_daily: Some(9), ..Keep::default() };
        assert_eq!(days.change(), [("keep_calendar", serde_json::json!({ "daily": 9 }))]);
        let all = Keep { keep: Some(Last(None)), keep_weekly: Some(4), ..Keep::default() };
        let calendar = serde_json::json!({ "daily": 0, "weekly": 4, "monthly": 0, "yearly": 0 });
        assert_eq!(all.change(), [("keep", Value::Null), ("keep_calendar", calendar)]);
        assert!(Keep::default().change().is_empty());
    }

    #[test]
    fn options_come_before_the_file() {
        let file =
            Definition { keep: Some(3), keep_daily: Some(7), keep_weekly: Some(4), ..Definition::default() };
        let options = Keep { keep_daily: Some(9), ..Keep::default() };
        let wanted = KeepCalendar { daily: 9, weekly: 4, ..KeepCalendar::default() };
        assert_eq!(options.with(&file), (Some(3), wanted));
    }
}
