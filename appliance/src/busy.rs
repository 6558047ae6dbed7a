//! Busy clocks: how long a stage was at work. The bottleneck report is made of them.
//!
//! Owns a counter of microseconds and nothing else. Several threads may add to one clock, so a stage
//! with two workers can show more than the elapsed time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Microseconds one stage was busy.
#[derive(Debug, Default)]
pub struct BusyClock(AtomicU64);

impl BusyClock {
    /// Runs `work` and adds the time it took.
    pub fn time<R>(&self, work: impl FnOnce() -> R) -> R {
        let start = Instant::now();
        let result = work();
        self.add(start);
        result
    }

    /// Adds the time since `start`.
    pub fn add(&self, start: Instant) {
        self.0.fetch_add(start.elapsed().as_micros() as u64, Ordering::Relaxed);
    }

    /// Microseconds so far.
    pub fn micros(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
