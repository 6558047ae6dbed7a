//! Credit: how much payload may be on its way to the target and not durable there. Pure; time is handed in.
//!
//! What is on its way when a link is cut crosses again, so it is little: [`CREDIT_BYTES`]. Where that is less than what
//! becomes durable while a batch goes there and word of it comes back, it is [`TURNS`] times as much, up to
//! [`CREDIT_BYTES_MAX`]: over 80 ms a window of 3.5 MiB is a line of some 200 Mbit/s, commits at the target included. It
//! grows by what became durable, so a line that is no faster gets no more; and on a short line, where more would only lie
//! before the offers at the target, it stays small.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::limits::{CREDIT_BYTES, CREDIT_BYTES_MAX};

/// Each time that what is on its way was seen to cross, more is allowed, until the line is what bounds it.
const TURNS: f64 = 2.0;
/// What a rate is taken over, at least: a batch becomes durable all at once.
const SAMPLE: (Duration, u32) = (Duration::from_millis(400), 8);
/// A window shrinks to no less than this part of itself with each sample: lines stall, and go on.
const SHRINK: f64 = 0.75;
/// Batches on their way with which the window is the smaller one: each may be asked for again.
const BATCHES_MAX: usize = 64;

/// See the module.
#[derive(Debug)]
pub struct Credit {
    window: u64,
    /// When this much was durable.
    since: Option<(Instant, u64)>,
    /// Batches that became so since then.
    batches: u32,
    /// Payload sent up to each batch that is not durable, and when it went.
    open: VecDeque<(u64, Instant)>,
    /// The shortest time from there until it was known to be durable.
    turn: Option<Duration>,
}

impl Default for Credit {
    fn default() -> Self {
        Self { window: CREDIT_BYTES, since: None, batches: 0, open: VecDeque::new(), turn: None }
    }
}

impl Credit {
    /// Payload that may be on its way now that `durable` bytes in all are durable.
    pub fn window(&mut self, durable: u64, now: Instant) -> u64 {
        while let Some((_, sent)) = self.open.pop_front_if(|(end, _)| *end <= durable) {
            let turn = now.saturating_duration_since(sent);
            self.turn = Some(self.turn.map_or(turn, |least| least.min(turn)));
            self.batches += 1;
        }
        let (then, before) = *self.since.get_or_insert((now, durable));
        let took = now.saturating_duration_since(then);
        if took >= SAMPLE.0 && self.batches >= SAMPLE.1 {
            let rate = durable.saturating_sub(before) as f64 / took.as_secs_f64();
            let turn = self.turn.unwrap_or_default().as_secs_f64();
            let wanted = (rate * turn * TURNS).max(self.window as f64 * SHRINK);
            self.window = (wanted as u64).clamp(CREDIT_BYTES, CREDIT_BYTES_MAX);
            (self.since, self.batches) = (Some((now, durable)), 0);
        }
        if self.open.len() < BATCHES_MAX { self.window } else { CREDIT_BYTES }
    }

    /// A batch was handed on: with it, that much payload in all.
    pub fn sent(&mut self, end: u64, now: Instant) {
        self.open.push_back((end, now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends batches over a line: all that is allowed, each durable a round trip after the line took it. Answers bytes a
    /// second at the end, and the widest window.
    fn run(line: f64, turn: Duration, batch: u64) -> (f64, u64) {
        let start = Instant::now();
        let (mut credit, mut widest) = (Credit::default(), 0);
        let (mut sent, mut durable, mut free) = (0u64, 0u64, start);
        let mut coming: VecDeque<(Instant, u64)> = VecDeque::new();
        let step = Duration::from_millis(1);
        let (mut now, mut at_half) = (start, 0);
        while now < start + Duration::from_secs(20) {
            while coming.front().is_some_and(|(at, _)| *at <= now) {
                durable = coming.pop_front().unwrap().1;
            }
            loop {
                let window = credit.window(durable, now);
                widest = widest.max(window);
                if sent + batch > durable + window {
                    break;
                }
                sent += batch;
                credit.sent(sent, now);
                free = free.max(now) + Duration::from_secs_f64(batch as f64 / line);
                coming.push_back((free + turn, sent));
            }
            now += step;
            if now < start + Duration::from_secs(10) {
                at_half = durable;
            }
        }
        ((durable - at_half) as f64 / 10.0, widest)
    }

    #[test]
    fn a_line_that_is_no_faster_gets_no_more() {
        for mbit in [1.0, 5.0, 20.0, 80.0] {
            let line = mbit * 125_000.0;
            let (rate, widest) = run(line, Duration::from_millis(110), 768 << 10);
            assert!(widest <= 4 << 20, "{mbit}: {widest}");
            assert!(rate > line * 0.9, "{mbit}: {rate}");
        }
    }

    #[test]
    fn a_fast_line_is_filled_and_the_window_is_bounded() {
        let (rate, widest) = run(62.5e6, Duration::from_millis(130), 768 << 10);
        assert!(rate > 62.5e6 * 0.9 && widest < CREDIT_BYTES_MAX + 1, "{rate} {widest}");
        let (rate, widest) = run(1250e6, Duration::from_millis(130), 768 << 10);
        assert!(rate > 80e6 && widest == CREDIT_BYTES_MAX, "{rate} {widest}");
    }

    #[test]
    fn a_short_line_needs_little() {
        let (rate, widest) = run(125e6, Duration::from_millis(8), 768 << 10);
        assert!(rate > 110e6 && widest <= 2 * CREDIT_BYTES, "{rate} {widest}");
    }

    #[test]
    fn many_small_batches_are_held_to_the_small_window() {
        let (_, widest) = run(125e6, Duration::from_millis(130), 8 << 10);
        assert!(widest <= CREDIT_BYTES_MAX);
        let mut credit = Credit { window: CREDIT_BYTES_MAX, ..Credit::default() };
        let now = Instant::now();
        assert_eq!(credit.window(0, now), CREDIT_BYTES_MAX);
        (1..=BATCHES_MAX as u64).for_each(|n| credit.sent(n * 8192, now));
        assert_eq!(credit.window(0, now), CREDIT_BYTES);
        assert_eq!(credit.window(8192, now), CREDIT_BYTES_MAX);
    }

    #[test]
    fn a_line_that_slows_down_takes_its_window_back() {
        let (mut credit, start) = (Credit { window: CREDIT_BYTES_MAX, ..Credit::default() }, Instant::now());
        for nth in 1..200u64 {
            let sent = start + Duration::from_millis(nth * 500);
            credit.sent(nth * 600_000, sent);
            credit.window(nth * 600_000, sent + Duration::from_millis(120));
        }
        assert_eq!(credit.window(200 * 600_000, start + Duration::from_secs(101)), CREDIT_BYTES);
    }
}
