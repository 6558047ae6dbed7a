//! Why a restore point is kept, for people. The first word of each is the rule and stays what it is.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;

/// One reason; a point may have several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No policy: everything is kept.
    Everything,
    /// The newest good point.
    Newest,
    /// Among the newest so many.
    Last(u32),
    /// The newest of a day (`2026-11-25`).
    Daily(String),
    /// Of an ISO week (`2026-W48`).
    Weekly(String),
    /// Of a month (`2026-11`).
    Monthly(String),
    /// Of a year.
    Yearly(String),
    /// Pinned, until then where that was said.
    Pinned(Option<Timestamp>),
    /// Younger than the target's minimum age.
    Young {
        /// What the target says.
        min_age: Duration,
        /// Beyond doubt.
        age: Duration,
    },
    /// Another point is being built upon it, or it is being removed.
    InUse,
    /// It failed its verification and is among the newest.
    Damaged,
    /// Its record cannot be read.
    Unreadable,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everything => f.write_str("everything: its job asks for no retention"),
            Self::Newest => f.write_str("newest"),
            Self::Last(count) => write!(f, "last {count}"),
            Self::Daily(day) => write!(f, "daily {day}"),
            Self::Weekly(week) => write!(f, "weekly {week}"),
            Self::Monthly(month) => write!(f, "monthly {month}"),
            Self::Yearly(year) => write!(f, "yearly {year}"),
            Self::Pinned(None) => f.write_str("pinned"),
            Self::Pinned(Some(until)) => write!(f, "pinned until {}", until.strftime("%Y-%m-%d %H:%M UTC")),
            Self::Young { min_age, age } => {
                write!(f, "younger than {}, {} to go", span(*min_age), span(min_age.saturating_sub(*age)))
            }
            Self::InUse => {
                f.write_str("used: a restore point is being built upon it, or it is being removed")
            }
            Self::Damaged => f.write_str("damaged, and among the newest"),
            Self::Unreadable => f.write_str("unreadable: nothing is removed that cannot be read"),
        }
    }
}

/// `7 d`, `6 d 23 h`, `2 h 5 min`, `40 s`; rounded down.
pub fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds % 86_400 / 3600, seconds % 3600 / 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, 0) => format!("{hours} h"),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, 0, _) => format!("{days} d"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}
