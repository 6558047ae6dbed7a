//! Effort: how much work goes into a byte, decided by where the session waits.
//!
//! Tiers go from "the link is faster than any work is worth" to "the processor idles while a slow line
//! crawls". The controller measures two rates: what a tier puts out (compressed bytes for each second of
//! work), and what the line takes (payload that became durable at the target while the batcher was waiting
//! for it). It works as hard as it can without making the line wait: the highest tier that puts out
//! more than the line takes, with a margin. Pure; time is handed in.
//!
//! No setting, because the answer differs from hour to hour: a line is shared, a processor is shared.

use std::time::Duration;

/// Largest window of any tier; decoders are told.
pub const WINDOW_LOG_MAX: u32 = 25;
/// A tier has to put out this much more than the line takes.
const MARGIN: f64 = 1.25;
/// To go up it has to put out still more, so that it does not swing.
const MARGIN_UP: f64 = 1.6;
/// Weight of the newest measurement.
const NEW: f64 = 0.3;
/// Stored bytes that a batch aims at: a few fit the credit window, so that the line never runs dry.
const STORED_BYTES_TARGET: f64 = 768.0 * 1024.0;
/// The same where data does not shrink: it gains nothing from company.
const RAW_BYTES_TARGET: f64 = 512.0 * 1024.0;
/// Stored bytes that fit between the batcher and the line: before that much was made, a line that does
/// not make the batcher wait tells nothing.
const PIPE_BYTES: usize = 5 << 20;
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
    /// What it puts out against the tier below, before anything was measured.
    relative: f64,
}

const TIERS: [Effort; 6] = [
    Effort::without_bases("fast", 1, 1.0),
    Effort::without_bases("plain", 3, 0.6),
    Effort::with_bases("balanced", 3, 1 << 20, (23, 20, 19), 0.3),
    Effort::with_bases("best", 9, 4 << 20, (25, 22, 23), 0.4),
    Effort::with_bases("harder", 12, 4 << 20, (25, 23, 24), 0.6),
    Effort::with_bases("hardest", 15, 4 << 20, (25, 23, 24), 0.3),
];
/// Where a session begins: small sessions end here, and what is unknown about the line is learned at once.
const FIRST: usize = 3;

impl Effort {
    /// For a look at whether data shrinks at all.
    pub const PROBE: Effort = Effort { window_log: 17, ..Effort::without_bases("probe", 1, 1.0) };

    const fn without_bases(name: &'static str, level: i32, relative: f64) -> Self {
        Self { name, level, batch_bytes: 4 << 20, window_log: 22, tables: None, bases: false, relative }
    }

    const fn with_bases(
        name: &'static str,
        level: i32,
        batch_bytes: usize,
        (window_log, hash_log, chain_log): (u32, u32, u32),
        relative: f64,
    ) -> Self {
        let tables = Some((hash_log, chain_log));
        Self { name, level, batch_bytes, window_log, tables, bases: true, relative }
    }

    /// All of them, least work first.
    pub fn tiers() -> &'static [Effort] {
        &TIERS
    }
}

/// Chooses the effort for each batch of one session.
#[derive(Debug)]
pub struct Controller {
    tier: usize,
    /// Stored bytes for each second of work, by tier, where measured; and batches since.
    output: [Option<(f64, u32)>; TIERS.len()],
    /// Payload bytes a second that the line takes while it is the bottleneck.
    line: Option<f64>,
    /// Stored bytes for each plain byte, of late.
    ratio: f64,
    waits: bool,
    /// Stored bytes made since the batcher last waited for the line.
    unwaited: usize,
}

impl Default for Controller {
    fn default() -> Self {
        Self { tier: FIRST, output: [None; TIERS.len()], line: None, ratio: 0.4, waits: true, unwaited: 0 }
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
        let target = if self.ratio > 0.9 { RAW_BYTES_TARGET } else { STORED_BYTES_TARGET };
        let plain = (target / self.ratio.clamp(0.02, 1.0)) as usize;
        plain.clamp(PLAIN_BYTES_MIN, self.effort().batch_bytes)
    }

    /// What the line takes, bytes a second, as last measured.
    pub fn line(&self) -> Option<f64> {
        self.line
    }

    /// A batch was made: `work` on it, then `waited` until the queue took it.
    pub fn made(&mut self, plain: usize, stored: usize, work: Duration, waited: Duration) {
        let work = work.as_secs_f64().max(1e-6);
        let output = stored as f64 / work;
        for slot in &mut self.output {
            *slot = slot.map(|(rate, age)| (rate, age + 1)).filter(|(_, age)| *age < FORGET_AFTER);
        }
        let slot = &mut self.output[self.tier];
        *slot = Some((slot.map_or(output, |(old, _)| old + NEW * (output - old)), 0));
        if plain > 0 {
            self.ratio += NEW * (stored as f64 / plain as f64 - self.ratio);
        }
        let cycle = work + waited.as_secs_f64();
        if waited.as_secs_f64() > 0.15 * cycle {
            // The queue was full all the while: this much crossed the line in this time.
            let line = stored as f64 / cycle;
            self.line = Some(self.line.map_or(line, |old| old + NEW * (line - old)));
            (self.waits, self.unwaited) = (true, 0);
        } else {
            self.unwaited += stored;
            if self.unwaited > PIPE_BYTES {
                // The line took everything as fast as it was made: it takes that much at least.
                self.line = Some(self.line.map_or(output, |line| line.max(output)));
                self.waits = false;
            }
        }
        self.choose();
    }

    fn choose(&mut self) {
        let Some(line) = self.line else { return };
        if !self.waits && self.tier > 0 && self.expected(self.tier) < line * MARGIN {
            self.tier -= 1;
        } else if self.waits && self.tier + 1 < TIERS.len() && self.expected(self.tier + 1) > line * MARGIN_UP
        {
            self.tier += 1;
        }
    }

    /// What a tier is expected to put out: as measured, else from the nearest tier below that was.
    fn expected(&self, tier: usize) -> f64 {
        let measured = (0..=tier).rev().find_map(|below| Some((below, self.output[below]?.0)));
        let Some((from, output)) = measured else { return f64::MAX };
        TIERS[from + 1..=tier].iter().fold(output, |output, effort| output * effort.relative)
    }

    /// Why, for people.
    pub fn reason(&self) -> String {
        let mbit = |rate: f64| rate * 8.0 / 1e6;
        let output = match self.output[self.tier] {
            Some((rate, _)) => format!("{:.0} Mbit/s", mbit(rate)),
            None => "what is not measured yet".into(),
        };
        match self.line {
            None => "nothing was measured yet".into(),
            Some(line) if self.waits => format!(
                "the line takes {:.1} Mbit/s and is what the session waits for; this effort puts out {output}",
                mbit(line)
            ),
            Some(line) => format!(
                "the line takes {:.1} Mbit/s or more and waits for the processor; this effort puts out {output}",
                mbit(line)
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line and a processor in virtual time: tiers put out what they did on two cores of our machine.
    /// 4 MiB of stored bytes fit in between. The tier it settles at, and plain bytes a second.
    fn settle(line: f64, plain_per_second: [f64; 6], ratio: [f64; 6]) -> (usize, f64) {
        let mut controller = Controller::default();
        let (mut queued, mut clock, mut sent) = (0.0f64, 0.0, 0.0);
        let mut last = Vec::new();
        for n in 0..600 {
            let (tier, plain) = (controller.tier, controller.batch_bytes() as f64);
            let (stored, work) = (plain * ratio[tier], plain / plain_per_second[tier]);
            queued = (queued - work * line).max(0.0) + stored;
            let waited = ((queued - 4.0 * 1024.0 * 1024.0) / line).max(0.0);
            queued -= waited * line;
            let seconds = Duration::from_secs_f64;
            controller.made(plain as usize, stored as usize, seconds(work), seconds(waited));
            if n >= 300 {
                last.push(tier);
                clock += work + waited;
                sent += plain;
            }
        }
        last.sort();
        (last[last.len() / 2], sent / clock)
    }

    const SPEED: [f64; 6] = [500e6, 300e6, 150e6, 70e6, 40e6, 12e6];
    const RATIO: [f64; 6] = [0.34, 0.31, 0.19, 0.18, 0.175, 0.17];
    const MBIT: f64 = 1e6 / 8.0;

    #[test]
    fn slow_lines_get_the_most_work_and_fast_ones_the_least() {
        let tiers: Vec<usize> = [1.0, 5.0, 20.0, 100.0, 1000.0, 10_000.0]
            .iter()
            .map(|rate| settle(rate * MBIT, SPEED, RATIO).0)
            .collect();
        assert!(tiers.is_sorted_by(|a, b| a >= b), "{tiers:?}");
        assert_eq!((tiers[0], tiers[5]), (5, 0), "{tiers:?}");
        assert!(tiers[2] >= 3 && tiers[4] <= 1, "{tiers:?}");
    }

    #[test]
    fn never_slower_than_working_less() {
        for rate in [1.0, 5.0, 20.0, 50.0, 100.0, 300.0, 700.0, 1000.0, 10_000.0] {
            let (_, adaptive) = settle(rate * MBIT, SPEED, RATIO);
            let plain = (rate * MBIT / RATIO[1]).min(SPEED[1]);
            assert!(adaptive > plain * 0.9, "{rate} Mbit/s: {adaptive} against {plain}");
        }
    }

    #[test]
    fn what_does_not_shrink_makes_small_batches() {
        let mut controller = Controller::default();
        for _ in 0..30 {
            controller.made(1 << 20, 1 << 20, Duration::from_millis(10), Duration::from_millis(100));
        }
        assert!(controller.batch_bytes() <= 1 << 20);
    }
}
