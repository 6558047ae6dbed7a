//! The agenda: which job is due, from all jobs' rules and what ran. Sans-IO; time is handed in.
//!
//! A job runs once for any number of times it missed (while it ran, while its window was closed, while the
//! appliance was down). Jobs of an interval keep their beat: a late start does not shift the next one. So that
//! thirty branches do not start in the same second, each job starts a while later than said, always the same
//! for one job: up to five minutes, at most a tenth of the time to the next run, or of the window.
//!
//! What failed and may be mended by trying again is tried again, as often as its job says, in its windows. The
//! next regular run takes the place of such a try. A job that runs continuously needs none.
//!
//! Not its job: slots and priorities among jobs that are due; what becomes of a session. Bound: an entry a job.

use std::collections::BTreeMap;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::retry::RetryRule;
use super::rule::{Rule, When};

/// Starts are spread over this long at most.
const SPREAD_MAX: SignedDuration = SignedDuration::from_mins(5);
/// Of the time to the next run, or of the window.
const SPREAD_PART: i32 = 10;
/// A job that runs continuously rests for this long; after a failure for longer, doubled up to [`REST_MAX`].
const REST: SignedDuration = SignedDuration::from_secs(5);
const REST_FAILED: SignedDuration = SignedDuration::from_mins(1);
const REST_MAX: SignedDuration = SignedDuration::from_mins(15);

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    Nothing,
    /// A session; true where somebody ordered it, so that windows do not end it.
    Running(bool),
    /// A session that its window ended.
    Suspended,
}

#[derive(Clone, Debug)]
struct Entry {
    rule: Rule,
    /// Of the spread, 0 to 1.
    offset: f64,
    /// What was due until then is served.
    since: Timestamp,
    /// It never ran.
    fresh: bool,
    doing: Doing,
    /// The end of its last session.
    ended: Option<Timestamp>,
    /// The last success.
    sealed: Option<Timestamp>,
    created: Timestamp,
    /// Sessions in a row that failed.
    failures: u32,
    retry: RetryRule,
    /// The try to come.
    pending: Option<Pending>,
    /// Of its pauses.
    salt: u64,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    number: u32,
    at: Timestamp,
    /// Of what somebody ordered: windows do not hold it.
    ordered: bool,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Task {
    /// A session is due.
    Start(String),
    /// A session failed; this is its next try, of what somebody had ordered where true.
    Retry(String, u32, bool),
    /// The window of a suspended session is open.
    Resume(String),
    /// The window of a running session is closed.
    Suspend(String),
}

/// What a job did before.
#[derive(Clone, Copy, Debug)]
pub struct Past {
    /// When it was created.
    pub created: Timestamp,
    /// When its last session started.
    pub started: Option<Timestamp>,
    /// When it last succeeded.
    pub sealed: Option<Timestamp>,
    /// Its schedule was changed: what was due before is not made up for.
    pub rescheduled: Option<Timestamp>,
    /// Its last session failed, at that moment, as that try (0: the first), and trying again may help.
    pub failed: Option<(Timestamp, u32)>,
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With a restore point.
    Sealed,
    /// It failed as that try (0: the first), and trying again may help.
    Failed(u32),
    /// It failed, and another try would; or somebody ended it.
    Over,
}

/// See the module.
#[derive(Debug)]
pub struct Agenda {
    zone: TimeZone,
    /// Tells one site's jobs from another's of the same name.
    seed: u64,
    jobs: BTreeMap<String, Entry>,
}

impl Agenda {
    /// Of a site whose clocks are in this zone.
    pub fn new(zone: TimeZone, seed: u64) -> Self {
        Self { zone, seed, jobs: BTreeMap::new() }
    }

    /// A job that may run by itself; one that is known keeps what it did.
    pub fn put(&mut self, job: &str, rule: Rule, retry: RetryRule, past: Past) {
        if let Some(entry) = self.jobs.get_mut(job) {
            let kept = |pending: &Pending| pending.number <= retry.count && rule.when != When::Continuous;
            entry.pending = entry.pending.filter(kept);
            (entry.rule, entry.retry) = (rule, retry);
            return;
        }
        let hash = blake3::hash(&[&self.seed.to_le_bytes(), job.as_bytes()].concat());
        let part = hash.as_bytes().first_chunk().map_or(0, |bytes| u16::from_le_bytes(*bytes));
        let mut entry = Entry {
            rule,
            offset: f64::from(part) / 65_536.0,
            since: past.started.unwrap_or(past.created),
            fresh: past.started.is_none(),
            doing: Doing::Nothing,
            ended: past.started,
            sealed: past.sealed,
            created: past.created,
            failures: 0,
            retry,
            pending: None,
            salt: hash.as_bytes().last_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes)),
        };
        if let Some(at) = past.rescheduled {
            entry.rescheduled(at);
        }
        if let Some((ended, number)) = past.failed {
            // Who ordered it is not known any more.
            entry.fail(number, false, ended);
        }
        self.jobs.insert(job.to_owned(), entry);
    }

    /// The job's schedule is another one from now on. What it would have made up for is not due, but an interval
    /// counts from the last start: a shorter one is overdue at once.
    pub fn reschedule(&mut self, job: &str, now: Timestamp) {
        if let Some(entry) = self.jobs.get_mut(job) {
            entry.rescheduled(now);
        }
    }

    /// The job is gone, or disabled.
    pub fn remove(&mut self, job: &str) {
        self.jobs.remove(job);
    }

    /// A session began or goes on. `retry`: as that try after a failure; 0 for none.
    pub fn started(&mut self, job: &str, ordered: bool, retry: u32, now: Timestamp) {
        let Some(entry) = self.jobs.get_mut(job) else { return };
        let resumed = entry.doing == Doing::Suspended;
        entry.doing = Doing::Running(ordered);
        entry.pending = None;
        if resumed || retry > 0 {
            return; // Part of the run that began earlier.
        }
        entry.since = match entry.rule.when {
            // The beat goes on from what was due.
            When::Every(every) if !entry.fresh && now > entry.since => {
                let beats = now.duration_since(entry.since).as_millis() / every.as_millis().max(1);
                let missed = SignedDuration::from_millis((beats * every.as_millis()) as i64);
                entry.since.saturating_add(missed).unwrap_or(now)
            }
            _ => now,
        };
        entry.fresh = false;
    }

    /// A session was suspended, by its window or with the appliance.
    pub fn suspended(&mut self, job: &str) {
        if let Some(entry) = self.jobs.get_mut(job) {
            entry.doing = Doing::Suspended;
        }
    }

    /// A session is over.
    pub fn ended(&mut self, job: &str, outcome: Outcome, now: Timestamp) {
        let Some(entry) = self.jobs.get_mut(job) else { return };
        let ordered = entry.doing == Doing::Running(true);
        entry.doing = Doing::Nothing;
        entry.ended = Some(now);
        entry.pending = None;
        entry.failures = entry.failures.saturating_add(1);
        match outcome {
            Outcome::Sealed => {
                entry.failures = 0;
                entry.sealed = Some(now);
            }
            Outcome::Failed(number) => entry.fail(number, ordered, now),
            Outcome::Over => {}
        }
    }

    /// The try that follows a failure: its number, of how many, when. None where a regular run comes first.
    pub fn retry(&self, job: &str, now: Timestamp) -> Option<(u32, u32, Timestamp)> {
        let entry = self.jobs.get(job).filter(|entry| entry.doing == Doing::Nothing)?;
        let (pending, at) = self.again(entry, now)?;
        let first = self.start(entry, now).is_none_or(|start| at < start);
        first.then_some((pending.number, entry.retry.count, at))
    }

    /// True where the windows of a job are open.
    pub fn is_open(&self, job: &str, now: Timestamp) -> bool {
        self.jobs.get(job).is_none_or(|entry| entry.rule.is_open(now, &self.zone))
    }

    /// True where a job that runs by itself has missed its objective: two runs were due since its last restore
    /// point, or since it was put on the agenda.
    pub fn is_overdue(&self, job: &str, now: Timestamp) -> bool {
        let of = |entry: &Entry| entry.rule.overdue_after(entry.sealed.unwrap_or(entry.created), &self.zone);
        self.jobs.get(job).and_then(of).is_some_and(|overdue| overdue <= now)
    }

    /// When a job starts or goes on next by itself; none where nothing says so.
    pub fn next(&self, job: &str, now: Timestamp) -> Option<Timestamp> {
        let entry = self.jobs.get(job)?;
        match entry.doing {
            Doing::Running(_) => None,
            Doing::Suspended => entry.rule.open_from(now, &self.zone),
            Doing::Nothing => {
                let again = self.again(entry, now).map(|(_, at)| at);
                again.into_iter().chain(self.start(entry, now)).min()
            }
        }
    }

    /// What is to be done now, in the order of names.
    pub fn tasks(&mut self, now: Timestamp) -> Vec<Task> {
        for entry in self.jobs.values_mut() {
            // The clock went back: nothing is put off by that.
            entry.since = entry.since.min(now);
            entry.ended = entry.ended.map(|ended| ended.min(now));
            let longest = now.saturating_add(entry.retry.longest()).unwrap_or(now);
            entry.pending = entry.pending.map(|pending| Pending { at: pending.at.min(longest), ..pending });
        }
        let task = |(job, entry): (&String, &Entry)| match entry.doing {
            Doing::Running(true) => None,
            Doing::Running(false) => {
                (!entry.rule.is_open(now, &self.zone)).then(|| Task::Suspend(job.clone()))
            }
            Doing::Suspended => entry.rule.is_open(now, &self.zone).then(|| Task::Resume(job.clone())),
            Doing::Nothing if self.start(entry, now).is_some_and(|start| start <= now) => {
                Some(Task::Start(job.clone()))
            }
            Doing::Nothing => {
                let again = self.again(entry, now).filter(|(_, at)| *at <= now);
                again.map(|(pending, _)| Task::Retry(job.clone(), pending.number, pending.ordered))
            }
        };
        self.jobs.iter().filter_map(task).collect()
    }

    /// When there may be something to do next.
    pub fn wake(&self, now: Timestamp) -> Option<Timestamp> {
        let of = |(job, entry): (&String, &Entry)| match entry.doing {
            Doing::Running(true) => None,
            Doing::Running(false) => entry.rule.closes_after(now, &self.zone),
            _ => self.next(job, now),
        };
        self.jobs.iter().filter_map(of).min()
    }

    /// The try to come, and when: windows hold it, unless it is one of what somebody ordered.
    fn again(&self, entry: &Entry, now: Timestamp) -> Option<(Pending, Timestamp)> {
        let pending = entry.pending?;
        let from = pending.at.max(now);
        match pending.ordered || entry.rule.is_open(from, &self.zone) {
            true => Some((pending, pending.at)),
            false => {
                let opens = entry.rule.open_from(from, &self.zone)?;
                let regular = self.due(entry).is_some_and(|(due, _)| due <= opens);
                (!regular).then_some((pending, opens))
            }
        }
    }

    fn start(&self, entry: &Entry, now: Timestamp) -> Option<Timestamp> {
        let (due, gap) = self.due(entry)?;
        let later = |at: Timestamp, gap: SignedDuration| {
            let spread = (gap / SPREAD_PART).min(SPREAD_MAX);
            at.saturating_add(SignedDuration::from_millis((spread.as_millis() as f64 * entry.offset) as i64))
                .ok()
        };
        let start = later(due, gap)?;
        let from = start.max(now);
        if entry.rule.is_open(from, &self.zone) {
            // Due while the window was closed: all that waited for it do not begin with it.
            let opened = self.opened(entry, from, start);
            return opened.map_or(Some(start), |opened| later(opened.0, opened.1).map(|at| at.max(start)));
        }
        let opens = entry.rule.open_from(from, &self.zone)?;
        let closes = entry.rule.closes_after(opens, &self.zone)?;
        later(opens, closes.duration_since(opens))
    }

    /// The opening, between when a job was due and now, that it waited for, and how long the window is.
    fn opened(&self, entry: &Entry, now: Timestamp, due: Timestamp) -> Option<(Timestamp, SignedDuration)> {
        if entry.rule.is_open(due, &self.zone) {
            return None;
        }
        let opens = entry.rule.open_from(due, &self.zone).filter(|opens| *opens <= now)?;
        let closes = entry.rule.closes_after(opens, &self.zone)?;
        // It closed again since: only the last opening counts, and whoever missed one goes first.
        (closes > now).then(|| (opens, closes.duration_since(opens)))
    }

    /// When a job is due, and the time to the run after that.
    fn due(&self, entry: &Entry) -> Option<(Timestamp, SignedDuration)> {
        match &entry.rule.when {
            When::Ordered => None,
            // A new job does not wait for its first run.
            When::Every(_) | When::Continuous if entry.fresh => Some((entry.since, SignedDuration::ZERO)),
            When::Every(every) => Some((entry.since.saturating_add(*every).ok()?, *every)),
            When::At(calendar) => {
                let due = calendar.next_after(entry.since, &self.zone)?;
                let after = calendar.next_after(due, &self.zone);
                Some((due, after.map_or(SignedDuration::ZERO, |after| after.duration_since(due))))
            }
            When::After(other) => {
                let sealed = self.jobs.get(other)?.sealed.filter(|sealed| *sealed > entry.since)?;
                Some((sealed, SignedDuration::ZERO))
            }
            When::Continuous => {
                let doublings = entry.failures.saturating_sub(1).min(8);
                let rest = match entry.failures {
                    0 => REST,
                    _ => (REST_FAILED * (1 << doublings)).min(REST_MAX),
                };
                Some((entry.ended.unwrap_or(entry.since).saturating_add(rest).ok()?, SignedDuration::ZERO))
            }
        }
    }
}

impl Entry {
    fn rescheduled(&mut self, at: Timestamp) {
        if matches!(self.rule.when, When::At(_) | When::After(_)) {
            self.since = self.since.max(at);
        }
    }

    /// A session failed as that try: is there another one?
    fn fail(&mut self, number: u32, ordered: bool, at: Timestamp) {
        let number = number.saturating_add(1);
        if number > self.retry.count || self.rule.when == When::Continuous {
            return;
        }
        let at = at.saturating_add(self.retry.pause(number, self.salt)).unwrap_or(at);
        self.pending = Some(Pending { number, at, ordered });
    }
}
