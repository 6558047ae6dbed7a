//! What the line takes, from what the sender sees of it.
//!
//! The line was busy all the time between two batches where the second found the first ones still on
//! their way: then what the target called durable meanwhile is what the line took. Where it ran dry that
//! is only a lower bound, and a line that is never seen full is taken to be faster than last seen, now and
//! then; less and less often where that proves wrong. Until it was full once in a session, what the kernel saw
//! delivered is taken for granted. Sums over several batches, because a batch becomes durable all at once.

use std::time::Duration;

/// From here on (200 Mbit/s) time counts before bytes.
pub const QUICK_LINE: f64 = 25e6;
/// A line that is never full is taken to be this much faster than last seen, now and then.
const FASTER: f64 = 1.5;
/// The same while nobody ever saw it full: from nothing to a rack's in a few guesses, for until then each byte costs
/// work that the line is too fast for.
const FASTER_UNSEEN: f64 = 3.0;
/// Measurements of a line that ran dry before it is taken to be faster: of one that nobody saw full, of
/// one that is known, and at most. It doubles each time the guess proves wrong.
const PATIENCE: (u32, u32, u32) = (3, 12, 96);
/// Of what is on its way, this long is already past the sender: a round trip and a commit.
pub const PAST_SECONDS: f64 = 0.2;
/// What makes a measurement: this many bytes, or seconds.
const SAMPLE: (f64, f64) = (1024.0 * 1024.0, 1.0);
/// What the sums keep with each measurement: a window of about four.
const KEEP: f64 = 0.75;
/// No line is taken to be slower (bytes a second): sums are divided by it.
const RATE_MIN: f64 = 1000.0;
/// A stretch in which the sender had nothing to pack for more than this share of it says nothing.
const IDLE: f64 = 0.3;

/// A line is settled where its rate did not change by more than this part in [`SETTLE_SECONDS`] in which it was full, and
/// something waited for it: credit may be what bounds a session over a long line. At its start congestion control feels for its rate, and what was packed then seems to last longer than it does.
const SETTLED: f64 = 1.25;
const SETTLE_SECONDS: f64 = 0.5;

/// What the sender saw between a batch and the one before it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// From when the one before was handed on until this one could be, or until it was there, if later.
    pub took: Duration,
    /// Of that, time without anything to pack.
    pub idle: Duration,
    /// Bytes that became durable at the target.
    pub crossed: u64,
    /// Bytes handed on and not durable when this batch was there.
    pub outstanding: u64,
    /// The batch was there before it could be handed on.
    pub waited: bool,
    /// Something waited for the line when it was, so that not credit alone held it up.
    pub queued: bool,
    /// Bytes a second that the kernel saw delivered of late, other sessions' included.
    pub delivered: Option<f64>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Line {
    rate: Option<f64>,
    /// Bytes and seconds of late, while the line was full.
    full: (f64, f64),
    /// The stretch that is being measured: bytes, seconds, seconds idle.
    open: (f64, f64, f64),
    /// The line ran dry in it.
    dry: bool,
    waits: bool,
    /// Measurements since the line was last full, and how many are too many.
    unfilled: u32,
    patience: u32,
    seen_full: bool,
    /// In it, nothing waited for the line at some look.
    starved: bool,
    /// It was full in this session, and not for want of credit: then this session's part of it is known, which others may
    /// share.
    full_here: bool,
    /// What the line took before it was taken to be faster.
    guessed_from: Option<f64>,
    /// What it took some time ago, and for how long it was full since.
    earlier: (f64, f64),
    settled: bool,
}

impl Line {
    /// As it was the last time.
    pub fn new(rate: Option<f64>) -> Self {
        let patience = if rate.is_some() { PATIENCE.1 } else { PATIENCE.0 };
        let earlier = (rate.unwrap_or(0.0), 0.0);
        Self { rate, waits: true, patience, seen_full: rate.is_some(), earlier, ..Self::default() }
    }

    /// Bytes a second.
    pub fn rate(&self) -> Option<f64> {
        self.rate
    }

    /// True where the line is what the session waits for.
    pub fn waits(&self) -> bool {
        self.waits
    }

    /// True where it is, and takes what it took some time ago.
    pub fn waits_and_is_settled(&self) -> bool {
        self.waits && self.settled
    }

    /// Another batch came.
    pub fn seen(&mut self, seen: Seen) {
        let past = self.rate.map_or(0.0, |rate| rate * PAST_SECONDS).max(SAMPLE.0 / 4.0);
        self.dry |= !seen.waited && seen.outstanding as f64 <= past;
        self.starved |= !seen.queued;
        self.open.0 += seen.crossed as f64;
        self.open.1 += seen.took.as_secs_f64();
        self.open.2 += seen.idle.min(seen.took).as_secs_f64();
        let (bytes, seconds, idle) = self.open;
        let faster = |delivered: &f64| self.rate.is_none_or(|rate| rate * SETTLED < *delivered);
        let delivered = seen.delivered.filter(|_| !self.full_here).filter(faster);
        if let Some(quick) = delivered.filter(|delivered| *delivered >= QUICK_LINE) {
            // Nothing to wait for: until enough crossed to measure, each byte would cost work that it is too fast for.
            (self.rate, self.waits, self.unfilled) = (Some(quick), false, 0);
            return;
        }
        if seconds <= 0.0 || (bytes < SAMPLE.0 && seconds - idle < SAMPLE.1) {
            return;
        }
        self.open = (0.0, 0.0, 0.0);
        let starved = std::mem::take(&mut self.starved);
        if !std::mem::take(&mut self.dry) {
            self.full = (self.full.0 * KEEP + bytes, self.full.1 * KEEP + seconds);
            let least = seen.delivered.filter(|_| starved && !self.full_here).unwrap_or(RATE_MIN);
            let rate = (self.full.0 / self.full.1).max(least);
            self.rate = Some(rate);
            if let Some(before) = self.guessed_from.take() {
                let right = rate > before * (1.0 + FASTER) / 2.0;
                self.patience = if right { PATIENCE.0 } else { (self.patience * 2).min(PATIENCE.2) };
            }
            (self.waits, self.unfilled) = (true, 0);
            self.seen_full = true;
            self.full_here |= !starved;
            self.earlier.1 += seconds;
            if starved {
                (self.earlier, self.settled) = ((rate, 0.0), false);
            } else if self.earlier.1 >= SETTLE_SECONDS {
                let before = std::mem::replace(&mut self.earlier, (rate, 0.0)).0;
                self.settled = rate <= before * SETTLED && before <= rate * SETTLED;
            }
            return;
        }
        if let Some(delivered) = delivered {
            // A lower bound, no guess: it doubles with each round trip while congestion control feels for its rate.
            (self.rate, self.waits, self.unfilled) = (Some(delivered.max(RATE_MIN)), false, 0);
        } else if idle < seconds * IDLE {
            self.unfilled += 1;
            if self.unfilled >= self.patience {
                let least = bytes / seconds;
                self.guessed_from = self.guessed_from.or(self.rate);
                let faster = if self.seen_full { FASTER } else { FASTER_UNSEEN };
                self.rate = Some(self.rate.map_or(least, |rate| (rate * faster).max(least)).max(RATE_MIN));
                (self.waits, self.unfilled, self.full) = (false, 0, (0.0, 0.0));
            }
        }
    }
}
