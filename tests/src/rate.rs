//! What crosses the link by the clock: samples of its counters, and the lowest and highest rate of any window in them.
//!
//! Counted from TCP headers, outside of the products. Bounds: a sample every [`EVERY`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::link::Link;

/// How often the counters are read.
pub const EVERY: Duration = Duration::from_millis(10);

/// TCP payload that was sent upwards, by seconds since the beginning.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<(f64, u64)>);

impl Samples {
    /// Samples what is sent upwards on a port while `work` runs. `work` gets the beginning.
    pub fn during<T>(link: &Link, port: u16, work: impl FnOnce(Instant) -> Result<T>) -> Result<(Self, T)> {
        let (over, start) = (AtomicBool::new(false), Instant::now());
        std::thread::scope(|scope| {
            let sampler = scope.spawn(|| {
                let mut all = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    let sent = link.counters().port(port).up_sent;
                    all.push((start.elapsed().as_secs_f64(), sent));
                    std::thread::sleep(EVERY);
                }
                all
            });
            let done = work(start);
            over.store(true, Ordering::Relaxed);
            let all = sampler.join().map_err(|_| anyhow::anyhow!("the sampler panicked"))?;
            Ok((Self(all), done?))
        })
    }

    /// Bytes that had been sent at a moment, between two samples in proportion.
    fn sent_at(&self, at: f64) -> f64 {
        let next = self.0.partition_point(|(time, _)| *time < at);
        match (next.checked_sub(1).and_then(|place| self.0.get(place)), self.0.get(next)) {
            (Some((t0, b0)), Some((t1, b1))) => {
                *b0 as f64 + (b1 - b0) as f64 * (at - t0) / (t1 - t0).max(f64::EPSILON)
            }
            (Some((_, bytes)), None) | (None, Some((_, bytes))) => *bytes as f64,
            (None, None) => 0.0,
        }
    }

    /// Lowest and highest rate, in bits a second, of any window of so many seconds between two moments.
    pub fn extremes(&self, window: f64, from: f64, to: f64) -> Result<(f64, f64)> {
        let end = self.0.last().map_or(0.0, |(time, _)| *time).min(to);
        ensure!(from + window <= end, "{window} s do not fit between {from:.1} and {end:.1} s");
        let (mut least, mut most, mut at) = (f64::INFINITY, 0.0f64, from);
        while at + window <= end {
            let rate = (self.sent_at(at + window) - self.sent_at(at)) * 8.0 / window;
            (least, most) = (least.min(rate), most.max(rate));
            at += 0.01;
        }
        Ok((least, most))
    }

    /// When the rate becomes `bps` for good: the earliest moment from which each second up to `to` is within `part` of it.
    pub fn settles_at(&self, bps: f64, part: f64, from: f64, to: f64) -> Option<f64> {
        let off = |at: f64| {
            let rate = (self.sent_at(at + 1.0) - self.sent_at(at)) * 8.0;
            (rate / bps - 1.0).abs() > part
        };
        let steps = ((to - 1.0 - from) / 0.01).max(0.0) as u64;
        let last = (0..steps).map(|step| from + step as f64 * 0.01).rfind(|at| off(*at));
        match last {
            None => Some(from),
            Some(at) if at + 0.02 < to - 1.0 => Some(at + 0.01),
            Some(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_found() {
        // 1 Mbit/s, from 5 s on 2 Mbit/s, and a burst of 125,000 bytes at 8 s.
        let bytes = |at: f64| 125_000.0 * (at + (at - 5.0).max(0.0)) + if at > 8.0 { 125_000.0 } else { 0.0 };
        let all = (0..1200).map(|n| f64::from(n) / 100.0).map(|at| (at, bytes(at) as u64)).collect();
        let samples = Samples(all);
        let near = |value: f64, wanted: f64| (value / wanted - 1.0).abs() < 0.02;
        let (least, most) = samples.extremes(1.0, 0.0, 5.0).unwrap();
        assert!(near(least, 1e6) && near(most, 1e6), "{least} {most}");
        let (least, most) = samples.extremes(1.0, 0.0, 12.0).unwrap();
        assert!(near(least, 1e6) && near(most, 3e6), "{least} {most}");
        let settled = samples.settles_at(2e6, 0.05, 3.0, 8.0).unwrap();
        assert!((4.8..5.1).contains(&settled), "{settled}");
        assert!(samples.settles_at(2e6, 0.05, 3.0, 8.9).is_none());
        assert!(samples.extremes(10.0, 3.0, 12.0).is_err());
    }
}
