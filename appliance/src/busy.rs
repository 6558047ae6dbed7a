//! Busy clocks: how long a stage was at work, and whether it is. The bottleneck report is made of them, and
//! where a session stands still is read from them.
//!
//! Owns two counters and nothing else. Several threads may add to one clock, so a stage
//! with two workers can show more than the elapsed time.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

/// Microseconds one stage was busy.
#[derive(Debug, Default)]
pub struct BusyClock {
    micros: AtomicU64,
    /// Pieces of work that began and did not end.
    running: AtomicU32,
}

/// Counts a piece of work for as long as it lives.
struct Running<'a>(&'a AtomicU32);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl BusyClock {
    /// Runs `work` and adds the time it took.
    pub fn time<R>(&self, work: impl FnOnce() -> R) -> R {
        let start = Instant::now();
        self.running.fetch_add(1, Ordering::Relaxed);
        let running = Running(&self.running);
        let result = work();
        drop(running);
        self.add(start);
        result
    }

    /// Adds the time since `start`.
    pub fn add(&self, start: Instant) {
        self.micros.fetch_add(start.elapsed().as_micros() as u64, Ordering::Relaxed);
    }

    /// Microseconds so far.
    pub fn micros(&self) -> u64 {
        self.micros.load(Ordering::Relaxed)
    }

    /// True while work goes on that [`time`](Self::time) measures.
    pub fn is_busy(&self) -> bool {
        self.running.load(Ordering::Relaxed) > 0
    }
}
