//! Effort: how much work goes into a byte, decided by where the session waits.
//!
//! Tiers go from "the link is faster than any work is worth" to "the processor idles while a slow line
//! crawls". A plain byte costs the longer of two times, for they run side by side: the work on it, and its
//! stored part's way over the line. The controller measures both (seconds of work for each plain byte by
//! tier; stored for each plain byte; bytes a second that the line takes while the batcher waits for it) and
//! takes the tier at which a byte costs least, of equals the one that sends least. So bases are looked for
//! even where that is slow, if it is quicker than sending what they save. Pure; time is handed in.
//!
//! That is what can be kept up. Where the line is what the session waits for there is more: what is packed
//! and has not crossed yet keeps the line busy for a known time, and a batch that is ready before it runs
//! dry costs nothing, however hard it was worked on. So single batches are worked on harder than the rest,
//! as often as the line allows.
//!
//! What tiers without bases would send is known from pieces of each batch that are compressed anyway; what
//! those with bases would, from the last batch that used some. No setting, because the answer differs
//! from hour to hour: a line is shared, a processor is shared.

use std::time::Duration;

/// Largest window of any tier; decoders are told.
pub const WINDOW_LOG_MAX: u32 = 25;
/// A tier that costs no more than this against the cheapest counts as equal.
const EQUAL: f64 = 1.1;
/// A line that never made the batcher wait is taken to be this much faster than last seen, now and then.
const FASTER: f64 = 1.5;
/// Below this (2 Gbit/s) the first tier is not used: bytes count where a line is a line.
const FAST_LINE: f64 = 250e6;
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
/// Stored bytes that fit between the batcher and the line: before that much was made, a line that does
/// not make the batcher wait tells nothing.
const PIPE_BYTES: usize = 5 << 20;
/// What is certainly packed and not on its way yet when the line makes the batcher wait: credit, and what waits for it.
const BACKLOG_BYTES: f64 = 4.0 * 1024.0 * 1024.0;
/// Of what is on its way, this long is already past the sender: a round trip and a commit.
const PAST_SECONDS: f64 = 0.2;
/// The share of the time until the line runs dry that a batch may take: what it takes is an estimate.
const OF_THE_TIME: f64 = 0.5;
/// Batches before the first decision: the very first ones are slow (memory is new, caches are cold).
const BATCHES_FIRST: u32 = 3;
/// Batches after which what a tier put out is forgotten, so that it is tried again.
const FORGET_AFTER: u32 = 48;
/// Smallest batch.
const PLAIN_BYTES_MIN: usize = 512 * 1024;

/// How hard to work on a batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Effort {
    /// For people.
    pub name: &'static str,
    /// zstd level.
    pub level: i32,
    /// Plain bytes in a batch, at most.
    pub batch_bytes: usize,
    /// zstd window.
    pub window_log: u32,
    /// zstd hash and chain tables; the level's own where no prefix is used.
    pub tables: Option<(u32, u32)>,
    /// Look for bases.
    pub bases: bool,
    /// Work against the first tier, and stored bytes against the first of its kind (with or without
    /// bases), before anything was measured.
    prior: (f64, f64),
}

const TIERS: [Effort; 6] = [
    Effort::without_bases("fast", 1, (1.0, 1.0)),
    Effort::without_bases("plain", 3, (1.7, 0.93)),
    Effort::with_bases("balanced", 3, 1 << 20, (23, 20, 19), (3.5, 1.0)),
    Effort::with_bases("best", 9, 4 << 20, (25, 22, 23), (8.0, 0.955)),
    Effort::with_bases("harder", 12, 4 << 20, (25, 22, 23), (13.0, 0.945)),
    Effort::with_bases("hardest", 16, 4 << 20, (25, 22, 23), (64.0, 0.92)),
];
/// Stored bytes with bases against those without, before anything was measured.
const BASES_PRIOR: f64 = 0.7;
/// Where a session begins: small sessions end here, and what is unknown about the line is learned at once.
const FIRST: usize = 3;

impl Effort {
    /// For a look at whether data shrinks at all.
    pub const PROBE: Effort = Effort { window_log: 17, ..Effort::without_bases("probe", 1, (1.0, 1.0)) };

    const fn without_bases(name: &'static str, level: i32, prior: (f64, f64)) -> Self {
        Self { name, level, batch_bytes: 4 << 20, window_log: 22, tables: None, bases: false, prior }
    }

    const fn with_bases(
        name: &'static str,
        level: i32,
        batch_bytes: usize,
        (window_log, hash_log, chain_log): (u32, u32, u32),
        prior: (f64, f64),
    ) -> Self {
        let tables = Some((hash_log, chain_log));
        Self { name, level, batch_bytes, window_log, tables, bases: true, prior }
    }

    /// Its place among [`Self::tiers`].
    pub fn tier(&self) -> usize {
        TIERS.iter().position(|tier| tier.name == self.name).unwrap_or(FIRST)
    }

    /// All of them, least work first.
    pub fn tiers() -> &'static [Effort] {
        &TIERS
    }
}

/// What making one batch came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Made {
    /// The effort's place among the tiers.
    pub tier: usize,
    /// Plain bytes.
    pub plain: usize,
    /// Bytes of the frame.
    pub stored: usize,
    /// What it would have come to at the first tier, from pieces.
    pub sampled: usize,
    /// Time it took.
    pub work: Duration,
    /// Time until the queue took it.
    pub waited: Duration,
}

/// Chooses the effort for each batch of one session.
#[derive(Debug)]
pub struct Controller {
    tier: usize,
    /// Seconds of work for each plain byte, by tier, where measured; and batches since.
    work: [Option<(f64, u32)>; TIERS.len()],
    /// Payload bytes a second that the line takes while it is the bottleneck.
    line: Option<f64>,
    /// Stored bytes for each plain byte at the first tier, of late.
    ratio: f64,
    /// Stored bytes with bases (at the first tier that has them) against that; and batches since.
    gain: Option<(f64, u32)>,
    waits: bool,
    /// The last batch did not shrink.
    raw: bool,
    /// Stored bytes made since the batcher last waited for the line.
    unwaited: usize,
    /// Stored bytes that have not crossed, at least.
    backlog: f64,
    /// A tier that could not be kept up, while its batch is being made (one at a time), and when it was chosen.
    harder: Option<(usize, u32)>,
    /// Batches made.
    batches: u32,
}

impl Default for Controller {
    fn default() -> Self {
        let work = [None; TIERS.len()];
        Self {
            tier: FIRST,
            work,
            line: None,
            ratio: 0.5,
            gain: None,
            waits: true,
            raw: false,
            unwaited: 0,
            backlog: 0.0,
            harder: None,
            batches: 0,
        }
    }
}

impl Controller {
    /// A session that begins where an earlier one on the same line left off.
    pub fn starting_from(line_bytes_per_second: Option<f64>) -> Self {
        Self { line: line_bytes_per_second, ..Self::default() }
    }

    /// The effort for the next batch.
    pub fn effort(&self) -> Effort {
        TIERS[self.tier]
    }

    /// Plain bytes for the next batch: what is expected to give a frame of some 768 KiB.
    pub fn batch_bytes(&self) -> usize {
        self.plain_bytes(self.tier)
    }

    fn plain_bytes(&self, tier: usize) -> usize {
        let ratio = if self.raw { 1.0 } else { self.stored(tier) };
        let slow = self.line.is_some_and(|line| line < SLOW_LINE);
        let target = match ratio > 0.9 {
            true => RAW_BYTES_TARGET,
            false if slow => STORED_BYTES_SLOW,
            false => STORED_BYTES_TARGET,
        };
        let plain = (target / ratio.clamp(0.02, 1.0)) as usize;
        plain.clamp(PLAIN_BYTES_MIN, TIERS[tier].batch_bytes)
    }

    /// What the line takes, bytes a second, as last measured.
    pub fn line(&self) -> Option<f64> {
        self.line
    }

    /// A batch was made.
    pub fn made(&mut self, made: Made) {
        if made.plain == 0 {
            return;
        }
        let plain = made.plain as f64;
        let (work, waited) = (made.work.as_secs_f64().max(1e-6), made.waited.as_secs_f64());
        let tier = made.tier.min(TIERS.len() - 1);
        // Forgotten after some batches: what was chosen may not have come to a batch.
        let batches = self.batches;
        self.harder = self.harder.filter(|(harder, at)| *harder != tier && batches < at + 4);
        let smooth = |old: f64, new: f64| old + NEW * (new - old);
        let older = |(value, age): (f64, u32)| Some((value, age + 1)).filter(|(_, age)| *age < FORGET_AFTER);
        self.work.iter_mut().for_each(|slot| *slot = slot.and_then(older));
        self.gain = self.gain.and_then(older);
        let slot = &mut self.work[tier];
        *slot = Some((slot.map_or(work / plain, |(old, _)| smooth(old, work / plain)), 0));
        self.ratio = smooth(self.ratio, made.sampled as f64 / plain);
        self.raw = made.stored >= made.plain;
        // What went raw tells nothing of bases, but that there are none for noise.
        if TIERS[tier].bases && !self.raw {
            let without = made.sampled.max(made.plain / 200) as f64;
            let gain = made.stored as f64 / without / TIERS[tier].prior.1;
            self.gain = Some((self.gain.map_or(gain, |(old, _)| smooth(old, gain)), 0));
        }
        let cycle = work + waited;
        if waited > 0.15 * cycle {
            // The queue was full all the while: this much crossed the line in this time.
            let line = made.stored as f64 / cycle;
            self.line = Some(self.line.map_or(line, |old| smooth(old, line)));
            (self.waits, self.unwaited) = (true, 0);
            self.backlog = BACKLOG_BYTES;
        } else {
            let crossed = self.line.unwrap_or(f64::MAX) * cycle;
            self.backlog = ((self.backlog - crossed).max(0.0) + made.stored as f64).min(BACKLOG_BYTES);
            self.unwaited += made.stored;
            if self.unwaited > PIPE_BYTES {
                let least = made.stored as f64 / cycle;
                self.line = Some(self.line.map_or(least, |line| (line * FASTER).max(least)));
                (self.waits, self.unwaited) = (false, 0);
            }
        }
        self.choose();
    }

    fn choose(&mut self) {
        self.batches = self.batches.saturating_add(1);
        let Some(line) = self.line.filter(|_| self.batches > BATCHES_FIRST) else { return };
        let cost = |tier: usize| self.seconds(tier).max(self.stored(tier) / line);
        let lowest = usize::from(line < FAST_LINE);
        let least = (lowest..TIERS.len()).map(cost).fold(f64::MAX, f64::min);
        let equal = (lowest..TIERS.len()).filter(|tier| cost(*tier) <= least * EQUAL);
        let best = equal.min_by(|a, b| self.stored(*a).total_cmp(&self.stored(*b)));
        // One step at a time upwards: what is not measured is a guess.
        let known = self.work.iter().rposition(Option::is_some).unwrap_or(self.tier);
        let kept_up = best.unwrap_or(self.tier).min(known + 1);
        let time = (self.backlog / line - PAST_SECONDS) * OF_THE_TIME;
        let ready = |tier: &usize| {
            let plain = self.plain_bytes(*tier) as f64;
            self.stored(*tier) < self.stored(kept_up) && self.seconds(*tier) * plain <= time
        };
        let may = self.waits && self.harder.is_none();
        let harder = (kept_up + 1..TIERS.len().min(known + 2)).rev().find(ready).filter(|_| may);
        self.harder = self.harder.or(harder.map(|harder| (harder, self.batches)));
        self.tier = harder.unwrap_or(kept_up);
    }

    /// Stored bytes to expect for each plain byte.
    fn stored(&self, tier: usize) -> f64 {
        let effort = &TIERS[tier];
        let gain = self.gain.map_or(BASES_PRIOR, |(gain, _)| gain);
        let first = if effort.bases { self.ratio * gain } else { self.ratio };
        (first * effort.prior.1).min(1.0)
    }

    /// Seconds of work to expect for each plain byte: as measured, else from the nearest tier that was.
    fn seconds(&self, tier: usize) -> f64 {
        let measured =
            |at: usize| self.work[at].map(|(seconds, _)| seconds * TIERS[tier].prior.0 / TIERS[at].prior.0);
        let mut near: Vec<usize> = (0..TIERS.len()).collect();
        near.sort_by_key(|at| at.abs_diff(tier));
        near.into_iter().find_map(measured).unwrap_or(0.0)
    }

    /// Why, for people.
    pub fn reason(&self) -> String {
        let mbit = |rate: f64| rate * 8.0 / 1e6;
        let makes = match self.work[self.tier] {
            Some((seconds, _)) => format!("{:.0} MB/s of disk", 1.0 / (seconds * 1e6)),
            None => "what is not measured yet".into(),
        };
        match self.line {
            None => "nothing was measured yet".into(),
            Some(line) if self.waits => format!(
                "the line takes {:.1} Mbit/s and is what the session waits for; this effort keeps up with {makes}",
                mbit(line)
            ),
            Some(line) => format!(
                "the line takes {:.1} Mbit/s or more and waits for the processor, which does {makes}",
                mbit(line)
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line and a processor in virtual time: tiers work and store as they did on two cores of our
    /// machine. 4 MiB of stored bytes fit in between. The tier it settles at, and plain bytes a second.
    fn settle(line: f64, ratio: [f64; 6]) -> (usize, f64) {
        let mut controller = Controller::default();
        let (mut queued, mut clock, mut sent) = (0.0f64, 0.0, 0.0);
        let mut last = Vec::new();
        for n in 0..1200 {
            let (tier, plain) = (controller.tier, controller.batch_bytes() as f64);
            let (stored, work) = (plain * ratio[tier], plain / SPEED[tier]);
            queued = (queued - work * line).max(0.0) + stored;
            let waited = ((queued - 4.0 * 1024.0 * 1024.0) / line).max(0.0);
            queued -= waited * line;
            let seconds = Duration::from_secs_f64;
            let (plain_bytes, sampled) = (plain as usize, (plain * ratio[0]) as usize);
            let (work_time, waited_time) = (seconds(work), seconds(waited));
            controller.made(Made {
                tier,
                plain: plain_bytes,
                stored: stored as usize,
                sampled,
                work: work_time,
                waited: waited_time,
            });
            if n >= 300 {
                last.push(tier);
                clock += work + waited;
                sent += plain;
            }
        }
        last.sort();
        (last[last.len() / 2], sent / clock)
    }

    const SPEED: [f64; 6] = [500e6, 300e6, 150e6, 70e6, 40e6, 8e6];
    /// Files of an operating system.
    const FILES: [f64; 6] = [0.34, 0.31, 0.19, 0.18, 0.175, 0.17];
    /// A database's day, of which bases explain nearly everything.
    const DATABASE: [f64; 6] = [0.16, 0.15, 0.01, 0.009, 0.009, 0.0085];
    const MBIT: f64 = 1e6 / 8.0;

    #[test]
    fn slow_lines_get_the_most_work_and_fast_ones_the_least() {
        let rates = [1.0, 5.0, 20.0, 100.0, 1000.0, 10_000.0];
        let tiers: Vec<usize> = rates.iter().map(|rate| settle(rate * MBIT, FILES).0).collect();
        assert!(tiers.is_sorted_by(|a, b| a >= b), "{tiers:?}");
        assert_eq!((tiers[0], tiers[5]), (5, 0), "{tiers:?}");
        assert!(tiers[2] >= 3 && tiers[4] <= 1, "{tiers:?}");
    }

    #[test]
    fn bases_are_used_where_they_save_more_than_they_cost() {
        for rate in [5.0, 20.0, 100.0, 300.0] {
            assert!(settle(rate * MBIT, DATABASE).0 >= 2, "{rate} Mbit/s");
        }
    }

    #[test]
    fn never_much_slower_than_the_best_single_tier() {
        // Of a database's day so little is sent that how fast the line is shows late: slower than it
        // could be by less than half, for a fifteenth of the bytes.
        for (ratio, share, rate_max) in [(FILES, 0.9, 1e4), (DATABASE, 0.55, 300.0), ([1.0; 6], 0.9, 1e4)] {
            let rates = [1.0, 5.0, 20.0, 50.0, 100.0, 300.0, 700.0, 1000.0, 10_000.0];
            for rate in rates.into_iter().filter(|rate| *rate <= rate_max) {
                let (tier, adaptive) = settle(rate * MBIT, ratio);
                let single = |tier: usize| (rate * MBIT / ratio[tier]).min(SPEED[tier]);
                let lowest = usize::from(rate * MBIT < FAST_LINE);
                let best = (lowest..6).map(single).fold(0.0, f64::max);
                assert!(adaptive > best * share, "{rate} Mbit/s: {adaptive} against {best}, tier {tier}");
            }
        }
    }

    #[test]
    fn what_does_not_shrink_makes_small_batches() {
        let mut controller = Controller::default();
        for _ in 0..60 {
            let (work, waited) = (Duration::from_millis(10), Duration::from_millis(100));
            let bytes = 1 << 20;
            let made =
                Made { tier: controller.tier, plain: bytes, stored: bytes, sampled: bytes, work, waited };
            controller.made(made);
        }
        assert!(controller.batch_bytes() < PLAIN_BYTES_MIN * 5 / 4);
    }
}
