//! How fast a worker may read: a rate that is kept by pauses, and slower while others need the disk.

use std::time::{Duration, Instant};

use super::Pass;

/// While sessions are under way, a worker takes this part of its rate.
const YIELD: u32 = 8;
/// What was not used before is not made up for beyond this.
const CREDIT: Duration = Duration::from_secs(1);

/// A rate under way.
pub struct Pace {
    bytes_per_second: u64,
    /// What was spent so far is paid for at this moment.
    paid: Instant,
}

impl Pace {
    /// From now on.
    pub fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), paid: Instant::now() }
    }

    /// These bytes were read; waits for their turn, longer where it has to `give_way`. False where the
    /// appliance stops.
    pub fn spend(&mut self, pass: &Pass, bytes: u64, give_way: bool) -> bool {
        pass.worker().beat();
        let pause = self.due(bytes, give_way, Instant::now());
        if pause.is_zero() { !pass.stopped() } else { pass.sleep(pause) }
    }

    fn due(&mut self, bytes: u64, give_way: bool, now: Instant) -> Duration {
        let price = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let price = if give_way { price.saturating_mul(YIELD) } else { price };
        let oldest = now.checked_sub(CREDIT).unwrap_or(now);
        self.paid = self.paid.max(oldest) + price;
        self.paid.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept_and_given_way_with() {
        let mut pace = Pace::new(1000);
        let start = Instant::now();
        pace.paid = start;
        assert_eq!(pace.due(500, false, start), Duration::from_millis(500));
        let later = start + Duration::from_millis(500);
        assert_eq!(pace.due(100, true, later), Duration::from_millis(800));
        let rested = start + Duration::from_secs(60);
        assert_eq!(
            pace.due(1500, false, rested),
            Duration::from_millis(500),
            "a second is made up for, no more"
        );
    }
}
