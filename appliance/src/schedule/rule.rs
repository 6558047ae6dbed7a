//! A job's rule: when it runs by itself, and the windows in which it may.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use vbr_api::Schedule;

use super::Malformed;
use super::calendar::Calendar;
use super::window::Window;

/// Shortest and longest interval.
const EVERY_MIN: SignedDuration = SignedDuration::from_secs(10);
const EVERY_MAX: SignedDuration = SignedDuration::from_hours(24 * 366);
/// A job that runs all the time is overdue after this long.
const CONTINUOUS_LAG_MAX: SignedDuration = SignedDuration::from_hours(1);
/// Starts are spread over this long.
const LATE_MAX: SignedDuration = SignedDuration::from_mins(5);
/// Openings tried for one that all windows have in common.
const OPENINGS_MAX: usize = 1000;

/// What makes a job run.
#[derive(Clone, Debug, PartialEq)]
pub enum When {
    /// An order only.
    Ordered,
    /// An interval, from start to start.
    Every(SignedDuration),
    /// A calendar expression.
    At(Box<Calendar>),
    /// The success of another job.
    After(String),
    /// Its own end.
    Continuous,
}

/// See the module.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// What makes it run.
    pub when: When,
    /// It runs only while all of them are open.
    windows: Vec<Window>,
}

impl Rule {
    /// A job's rule, with a window of the site's own.
    pub fn parse(job: &str, schedule: &Schedule, site: Option<&Window>) -> Result<Self, Malformed> {
        let given = [
            schedule.every_ms.is_some(),
            schedule.at.is_some(),
            schedule.after.is_some(),
            schedule.continuous,
        ];
        if given.iter().filter(|given| **given).count() > 1 {
            return Err(Malformed::new("a job has one schedule: --every, --at, --after or --continuous"));
        }
        let when = match schedule {
            Schedule { every_ms: Some(every), .. } => When::Every(interval(*every)?),
            Schedule { at: Some(at), .. } => {
                let wrong =
                    |why: Malformed| Malformed::new(format!("{at:?} is no calendar expression: {why}"));
                When::At(Box::new(at.parse().map_err(wrong)?))
            }
            Schedule { after: Some(other), .. } if other == job => {
                return Err(Malformed::new("a job cannot run after itself; --continuous is that"));
            }
            Schedule { after: Some(other), .. } => When::After(other.clone()),
            Schedule { continuous: true, .. } => When::Continuous,
            _ => When::Ordered,
        };
        let own: Option<Window> = schedule.window.as_deref().map(str::parse).transpose()?;
        Ok(Self { when, windows: own.into_iter().chain(site.cloned()).collect() })
    }

    /// The same windows, and no run by itself.
    pub fn by_order(self) -> Self {
        Self { when: When::Ordered, ..self }
    }

    /// True where all windows are open.
    pub fn is_open(&self, at: Timestamp, zone: &TimeZone) -> bool {
        self.windows.iter().all(|window| window.is_open(at, zone))
    }

    /// The first moment at or after `at` at which all windows are open.
    pub fn open_from(&self, at: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let mut from = at;
        for _ in 0..OPENINGS_MAX {
            let Some(closed) = self.windows.iter().find(|window| !window.is_open(from, zone)) else {
                return Some(from);
            };
            from = closed.open_from(from, zone)?;
        }
        None
    }

    /// When a job whose last restore point is of `sealed` has missed its objective: the second moment at which a run
    /// was due after it, and the time in which runs start that late; none where nothing says when it runs.
    pub fn overdue_after(&self, sealed: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let second = match &self.when {
            When::Every(every) => sealed.saturating_add(*every * 2).ok()?,
            When::At(calendar) => calendar.next_after(calendar.next_after(sealed, zone)?, zone)?,
            When::Continuous => sealed.saturating_add(CONTINUOUS_LAG_MAX).ok()?,
            When::Ordered | When::After(_) => return None,
        };
        // It may have been due while its windows were closed.
        let open = self.open_from(second, zone)?;
        open.saturating_add((open.duration_since(sealed) / 10).min(LATE_MAX)).ok()
    }

    /// When the first of them closes; none without windows.
    pub fn closes_after(&self, at: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        self.windows.iter().filter_map(|window| window.closes_after(at, zone)).min()
    }
}

fn interval(ms: u64) -> Result<SignedDuration, Malformed> {
    let every = SignedDuration::from_millis(i64::try_from(ms).unwrap_or(i64::MAX));
    match (EVERY_MIN..=EVERY_MAX).contains(&every) {
        true => Ok(every),
        false => Err(Malformed::new("an interval lies between 10 seconds and 366 days")),
    }
}
