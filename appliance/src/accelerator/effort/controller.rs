//! The choice of an effort for each batch of one session.

use std::collections::VecDeque;
use std::time::Duration;

use super::line::{Line, PAST_SECONDS, QUICK_LINE, Seen};
use super::{Choice, Content, Effort, FIRST, Harder, Made, Spare, TIERS, TRIED};

/// A tier that costs no more than this against the cheapest counts as equal.
const EQUAL: f64 = 1.1;
/// What work takes against what was measured: reading, hashing and the line need the processor as well.
const WORK_RESERVE: f64 = 1.2;
/// Below this (2 Gbit/s) the first tier is not used: bytes count where a line is a line.
pub(super) const FAST_LINE: f64 = 250e6;
/// Weight of the newest measurement.
const NEW: f64 = 0.3;
/// Stored bytes that a batch aims at: a few fit the credit window, so that the line never runs dry.
const STORED_BYTES_TARGET: f64 = 768.0 * 1024.0;
/// The same on a line below [`SLOW_LINE`], which a few larger ones keep busy as well: they are smaller in sum.
const STORED_BYTES_SLOW: f64 = 1200.0 * 1024.0;
/// 50 Mbit/s: at 80 ms a batch of [`STORED_BYTES_SLOW`] is more than twice what is on its way.
const SLOW_LINE: f64 = 6.25e6;
/// The same where data does not shrink: it gains nothing from company.
const RAW_BYTES_TARGET: f64 = 512.0 * 1024.0;
/// The share of the time until the line runs dry that a batch may be expected to take.
const OF_THE_TIME: f64 = 0.6;
/// The share after which it is given up for what can be kept up, less twice the time for that.
const OF_THE_TIME_MAX: f64 = 0.9;
/// Fewer seconds until the line runs dry are none.
const DRY_LEAST: f64 = 0.3;
/// Seconds for a byte at the first tier before anything was measured: 400 MB/s.
const WORK_PRIOR: f64 = 2.5e-9;
/// A batch that was given up says this much of its tier at most: what it stumbled over may be rare.
const LATE_MAX: f64 = 2.0;
/// Batches before the first decision: the very first ones are slow (memory is new, caches are cold).
const BATCHES_FIRST: u32 = 3;
/// Batches after which what a tier put out is forgotten, so that it is tried again.
const FORGET_AFTER: u32 = 48;
/// A byte of prefix against one of plain data: it is indexed, not searched for. (Level 9: 0.3, level 18: 0.75.)
const PREFIX_WORK: f64 = 0.5;
/// Batches whose worth is remembered, to tell a good one.
const WORTHS_MAX: usize = 32;
/// What harder work has to save of a batch at least.
const WORTH_LEAST: f64 = 0.003;
/// Smallest batch.
const PLAIN_BYTES_MIN: usize = 512 * 1024;
/// Stored bytes with bases against those without, before anything was measured.
const BASES_PRIOR: f64 = 0.7;
/// The same from [`QUICK_LINE`] on, where the work on them is what a session waits for.
const BASES_PRIOR_QUICK: f64 = 1.0;
/// There, one batch in so many is a try, while what is sent shrinks by less than half without them.
const TRY_EVERY: u32 = 64;
const TRY_ABOVE: f64 = 0.5;

/// Chooses the effort for each batch of one session.
#[derive(Debug)]
pub struct Controller {
    /// Tiers from here on are not used.
    end: usize,
    /// As last chosen.
    tier: usize,
    /// What can be kept up.
    kept_up: usize,
    /// Bases are looked for.
    bases: bool,
    /// Seconds of work for each byte of plain data, or two of prefix, by tier, where measured; and batches since.
    work: [Option<(f64, u32)>; TIERS.len()],
    /// Such bytes for each plain byte, of late.
    weight: f64,
    /// Bytes that a second of harder work would have saved, batch by batch.
    worths: VecDeque<f64>,
    line: Line,
    /// Stored bytes for each plain byte at the first tier, of late.
    ratio: f64,
    /// Stored bytes with bases (at the first tier that has them) against that; and batches since.
    gain: Option<(f64, u32)>,
    /// The last batch did not shrink.
    raw: bool,
    /// Batches made.
    batches: u32,
}

impl Default for Controller {
    fn default() -> Self {
        Self::starting_from(None, true)
    }
}

impl Controller {
    /// A session that begins where an earlier one on the same line left off, with or without bases.
    pub fn starting_from(line_bytes_per_second: Option<f64>, bases: bool) -> Self {
        let end = TIERS.iter().position(|tier| tier.bases && !bases).unwrap_or(TIERS.len());
        let mut new = Self {
            end,
            tier: FIRST,
            kept_up: FIRST,
            bases: true,
            work: [None; TIERS.len()],
            weight: 1.0,
            worths: VecDeque::new(),
            line: Line::new(line_bytes_per_second),
            ratio: 0.5,
            gain: None,
            raw: false,
            batches: 0,
        };
        let known = |line| new.cheapest(line).min(TRIED - 1);
        let first = line_bytes_per_second.map_or(FIRST, known).min(end - 1);
        (new.tier, new.kept_up, new.bases) = (first, first, TIERS[first].bases);
        new
    }

    /// The effort as last chosen.
    pub fn effort(&self) -> Effort {
        TIERS[self.tier]
    }

    /// Whether bases are looked for, as last chosen.
    pub fn bases(&self) -> bool {
        self.bases
    }

    /// Plain bytes to gather for the next batch: what is expected to give a frame of some 768 KiB.
    pub fn batch_bytes(&self) -> usize {
        self.plain_bytes(self.kept_up)
    }

    /// What the line takes, bytes a second, as last measured.
    pub fn line(&self) -> Option<f64> {
        self.line.rate()
    }

    /// A batch was handed on.
    pub fn seen(&mut self, seen: Seen) {
        self.line.seen(seen);
    }

    /// A batch was made.
    pub fn made(&mut self, made: Made) {
        if made.plain == 0 {
            return;
        }
        self.batches = self.batches.saturating_add(1);
        let plain = made.plain as f64;
        let weight = weight(made.plain, made.prefix);
        let work = made.work.as_secs_f64().max(1e-6);
        let tier = made.tier.min(TIERS.len() - 1);
        let smooth = |old: f64, new: f64| old + NEW * (new - old);
        let older = |(value, age): (f64, u32)| Some((value, age + 1)).filter(|(_, age)| *age < FORGET_AFTER);
        self.work.iter_mut().for_each(|slot| *slot = slot.and_then(older));
        if let Some(late) = made.late.filter(|late| late.tier < TIERS.len()) {
            let whole = late.work.as_secs_f64() / late.part.max(0.01) / weight;
            let known = self.seconds(late.tier);
            let slower = if known > 0.0 { whole.min(known * LATE_MAX) } else { whole };
            self.work[late.tier] = Some((smooth(known, slower), 0));
        }
        self.gain = self.gain.and_then(older);
        self.weight = smooth(self.weight, weight / plain);
        self.ratio = smooth(self.ratio, made.sampled as f64 / plain);
        self.raw = made.stored >= made.plain;
        // What went raw tells nothing of bases, but that there are none for noise; nor of a tier's work, for a probe
        // saw that it is none.
        if !self.raw {
            let slot = &mut self.work[tier];
            *slot = Some((slot.map_or(work / weight, |(old, _)| smooth(old, work / weight)), 0));
        }
        if TIERS[tier].bases && !self.raw {
            let without = made.sampled.max(made.plain / 200) as f64;
            let gain = made.stored as f64 / without / TIERS[tier].prior.1;
            self.gain = Some((self.gain.map_or(gain, |(old, _)| smooth(old, gain)), 0));
        }
    }

    /// The next batch, of `gathered` plain bytes at most.
    pub fn choose(&mut self, spare: Spare, gathered: usize) -> Choice {
        let mut bases = false;
        if let Some(line) = self.measured_line() {
            let known = self.known();
            self.kept_up = if self.tries_bases(line) { FIRST } else { self.cheapest(line).min(known + 1) };
            let plain = self.plain_bytes(self.kept_up).min(gathered) as f64;
            let time = dry(spare, line) * OF_THE_TIME;
            let fits = |tier: usize| self.seconds(tier) * self.weight * plain <= time;
            bases = self.beyond().any(|tier| TIERS[tier].bases && fits(tier));
        }
        self.tier = self.kept_up;
        self.bases = bases || TIERS[self.kept_up].bases;
        Choice {
            effort: TIERS[self.kept_up],
            plain_bytes: self.plain_bytes(self.kept_up),
            bases: self.bases,
            ratio: if self.raw { 1.0 } else { self.stored(self.kept_up) },
        }
    }

    /// Whether a batch is worth more work than can be kept up. `trial`: what pieces of it came to at the first
    /// tier that is tried, against the one before; asked where it matters.
    pub fn harder(&mut self, spare: Spare, content: Content, trial: impl FnOnce() -> f64) -> Option<Harder> {
        let line = self.measured_line()?;
        let dry = dry(spare, line);
        let weight = weight(content.plain, content.prefix);
        let seconds = |tier: usize| self.seconds(tier) * weight;
        let tiers: Vec<usize> = self.beyond().filter(|tier| seconds(*tier) <= dry * OF_THE_TIME).collect();
        let last = *tiers.last()?;
        let tried = if last >= TRIED { trial().min(1.0) } else { 1.0 };
        let stored = |tier: usize| self.expected(tier, content, tried);
        let worth = |tier: usize, than: usize| {
            let (saved, time) = (stored(than) - stored(tier), seconds(tier) - seconds(than));
            if saved < stored(than) * WORTH_LEAST { 0.0 } else { saved / time.max(1e-3) }
        };
        let price = self.price(spare.fill);
        let mut taken = self.kept_up;
        for tier in tiers {
            let worth = worth(tier, taken);
            if worth > 0.0 && worth >= price {
                taken = tier;
            }
        }
        let seen = worth(last.min(TRIED.max(self.kept_up + 1)), self.kept_up);
        let harder = (taken > self.kept_up).then(|| Harder {
            effort: TIERS[taken],
            within: Duration::try_from_secs_f64(dry * OF_THE_TIME_MAX - 2.0 * seconds(self.kept_up))
                .unwrap_or_default(),
            stored: stored(taken) as u64,
        });
        self.worths.push_back(seen);
        if self.worths.len() > WORTHS_MAX {
            self.worths.pop_front();
        }
        self.tier = taken;
        harder
    }

    /// Whether it is time to see what bases save on a line that is too quick for a guess.
    fn tries_bases(&self, line: f64) -> bool {
        let worth = line >= QUICK_LINE && self.gain.is_none() && self.ratio > TRY_ABOVE;
        worth && FIRST < self.end && self.batches.is_multiple_of(TRY_EVERY)
    }

    /// Stored bytes with bases against those without.
    fn gain(&self) -> f64 {
        let quick = self.line.rate().is_some_and(|line| line >= QUICK_LINE);
        let prior = if quick { BASES_PRIOR_QUICK } else { BASES_PRIOR };
        self.gain.map_or(prior, |(gain, _)| gain)
    }

    /// What a second of harder work has to save: nothing where there is no room for more that is packed anyway, as
    /// much as the best of late where there is little that is packed.
    fn price(&self, fill: f64) -> f64 {
        let mut worths: Vec<f64> = self.worths.iter().copied().collect();
        worths.sort_by(f64::total_cmp);
        let at = (1.0 - fill.clamp(0.0, 1.0)) * worths.len() as f64;
        if fill >= 1.0 { 0.0 } else { worths.get(at as usize).copied().unwrap_or(0.0) }
    }

    fn measured_line(&self) -> Option<f64> {
        self.line.rate().filter(|_| self.batches >= BATCHES_FIRST)
    }

    /// The hardest tier that was measured.
    fn known(&self) -> usize {
        self.work.iter().rposition(Option::is_some).unwrap_or(self.kept_up)
    }

    /// What may be tried beside, least work first: one step at a time upwards, for what is not measured is a guess.
    fn beyond(&self) -> std::ops::Range<usize> {
        let end = self.end.min(self.known() + 2);
        if self.line.waits_and_is_settled() { self.kept_up + 1..end } else { 0..0 }
    }

    /// Stored bytes to expect of a batch.
    fn expected(&self, tier: usize, content: Content, tried: f64) -> f64 {
        let gain = self.gain();
        let first = if TIERS[tier].bases { content.sampled as f64 * gain } else { content.sampled as f64 };
        let stored = match tier.checked_sub(TRIED) {
            None => first * TIERS[tier].prior.1,
            Some(_) => first * TIERS[TRIED - 1].prior.1 * tried * TIERS[tier].prior.1 / TIERS[TRIED].prior.1,
        };
        stored.min(content.plain as f64)
    }

    /// The tier at which a byte costs least, of equals the one that sends least.
    fn cheapest(&self, line: f64) -> usize {
        let work = |tier: usize| self.seconds(tier) * self.weight * WORK_RESERVE;
        let cost = |tier: usize| work(tier).max(self.stored(tier) / line);
        let lowest = usize::from(line < FAST_LINE);
        let least = (lowest..self.end).map(cost).fold(f64::MAX, f64::min);
        let most = if line < QUICK_LINE { least * EQUAL } else { least };
        let equal = (lowest..self.end).filter(|tier| cost(*tier) <= most);
        equal.min_by(|a, b| self.stored(*a).total_cmp(&self.stored(*b))).unwrap_or(self.kept_up)
    }

    fn plain_bytes(&self, tier: usize) -> usize {
        let ratio = if self.raw { 1.0 } else { self.stored(tier) };
        let slow = self.line.rate().is_some_and(|line| line < SLOW_LINE);
        let target = match ratio > 0.9 {
            true => RAW_BYTES_TARGET,
            false if slow => STORED_BYTES_SLOW,
            false => STORED_BYTES_TARGET,
        };
        let plain = (target / ratio.clamp(0.02, 1.0)) as usize;
        plain.clamp(PLAIN_BYTES_MIN, TIERS[tier].batch_bytes)
    }

    /// Stored bytes to expect for each plain byte.
    fn stored(&self, tier: usize) -> f64 {
        let effort = &TIERS[tier];
        let gain = self.gain();
        let first = if effort.bases { self.ratio * gain } else { self.ratio };
        (first * effort.prior.1).min(1.0)
    }

    /// Seconds of work to expect for each byte of weight: as measured, else from the nearest tier that was.
    fn seconds(&self, tier: usize) -> f64 {
        let measured =
            |at: usize| self.work[at].map(|(seconds, _)| seconds * TIERS[tier].prior.0 / TIERS[at].prior.0);
        let mut near: Vec<usize> = (0..TIERS.len()).collect();
        near.sort_by_key(|at| at.abs_diff(tier));
        near.into_iter().find_map(measured).unwrap_or(WORK_PRIOR * TIERS[tier].prior.0)
    }

    /// Why, for people.
    pub fn reason(&self) -> String {
        let mbit = |rate: f64| rate * 8.0 / 1e6;
        let makes = match self.work[self.tier] {
            Some((seconds, _)) => format!("{:.0} MB/s of disk", 1.0 / (seconds * self.weight * 1e6)),
            None => "what is not measured yet".into(),
        };
        match self.line.rate() {
            None => "nothing was measured yet".into(),
            Some(line) if self.line.waits() => format!(
                "the line takes {:.1} Mbit/s and is what the session waits for; this effort does {makes}",
                mbit(line)
            ),
            Some(line) => format!(
                "the line takes {:.1} Mbit/s or more and waits for the processor, which does {makes}",
                mbit(line)
            ),
        }
    }
}

/// Seconds until the line runs dry; none where they are so few that a hiccup takes as long.
fn dry(spare: Spare, line: f64) -> f64 {
    let seconds = spare.backlog as f64 / line - PAST_SECONDS;
    if seconds < DRY_LEAST { 0.0 } else { seconds }
}

/// What the work on a batch depends on.
fn weight(plain: usize, prefix: usize) -> f64 {
    plain as f64 + PREFIX_WORK * prefix as f64
}
