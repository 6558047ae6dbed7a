//! When to send a heartbeat and when to call a link dead. Sans-IO: time comes in, actions go out.
//!
//! libp2p does not close a dead connection: a black hole outlived 60 s. Anything that arrives on any
//! stream of the link counts as a sign of life.

use std::time::{Duration, Instant};

use crate::limits::{HEARTBEAT_BUSY_INTERVAL, HEARTBEAT_INTERVAL, HEARTBEAT_TIMEOUT};

/// What the driver must do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send a PING, then ask again at the given moment.
    Ping(Instant),
    /// Ask again at the given moment.
    Wait(Instant),
    /// Nothing was heard for [`HEARTBEAT_TIMEOUT`]: close the link.
    Dead,
}

/// State of one link's heartbeat.
#[derive(Debug)]
pub struct Heartbeat {
    last_ping: Instant,
}

impl Heartbeat {
    /// A link that came up at `now`.
    pub fn new(now: Instant) -> Self {
        Self { last_ping: now }
    }

    /// Decides, given when anything was last heard. `used`: sessions run, and how long control takes
    /// beside them is worth knowing more often.
    pub fn apply(&mut self, last_heard: Instant, used: bool, now: Instant) -> Action {
        let dead_at = last_heard + HEARTBEAT_TIMEOUT;
        if now >= dead_at {
            return Action::Dead;
        }
        let interval = if used { HEARTBEAT_BUSY_INTERVAL } else { HEARTBEAT_INTERVAL };
        // Whether sessions run is looked at in the short interval.
        let wake = dead_at.min(now + HEARTBEAT_BUSY_INTERVAL);
        if now < self.last_ping + interval {
            return Action::Wait(wake.min(self.last_ping + interval));
        }
        self.last_ping = now;
        Action::Ping(wake)
    }
}

/// Back-off between attempts to connect: doubling from half a second to 30 s, with jitter, so that
/// a hundred branches do not come back in the same instant.
#[derive(Clone, Copy, Debug, Default)]
pub struct Backoff {
    attempts: u32,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(500);
    const LONGEST: Duration = Duration::from_secs(30);

    /// The pause before the next attempt; `jitter` is uniform in 0..=255.
    pub fn next_delay(&mut self, jitter: u8) -> Duration {
        let base = Self::FIRST.saturating_mul(1 << self.attempts.min(10)).min(Self::LONGEST);
        self.attempts = self.attempts.saturating_add(1);
        // 75 % .. 100 % of the base: never longer than promised.
        base.mul_f64(0.75 + f64::from(jitter) / 1020.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a link against a peer that answers until `silent_from`; answers when it was called dead.
    fn run(silent_from: Duration, used: bool, until: Duration) -> (u32, Option<Duration>) {
        let start = Instant::now();
        let mut beat = Heartbeat::new(start);
        let (mut now, mut heard, mut pings) = (start, start, 0);
        while now < start + until {
            match beat.apply(heard, used, now) {
                Action::Dead => return (pings, Some(now - start)),
                Action::Wait(at) => now = at,
                Action::Ping(at) => {
                    pings += 1;
                    if now - start < silent_from {
                        heard = now;
                    }
                    now = at;
                }
            }
        }
        (pings, None)
    }

    #[test]
    fn a_living_link_stays() {
        let long = Duration::from_secs(10_000);
        assert_eq!(run(long, false, Duration::from_secs(1000)), (199, None));
        assert_eq!(run(long, true, Duration::from_secs(1000)), (999, None));
    }

    #[test]
    fn a_black_hole_is_found_within_thirty_seconds() {
        for (silent, used) in [(0, false), (1, true), (5, false), (7, true), (100, false)] {
            let silent = Duration::from_secs(silent);
            let (_, dead) = run(silent, used, Duration::from_secs(1000));
            let dead = dead.expect("found");
            assert!(dead <= silent + Duration::from_secs(30), "{dead:?}");
        }
    }

    #[test]
    fn back_off_grows_and_is_bounded() {
        let mut backoff = Backoff::default();
        assert!(backoff.next_delay(255) <= Duration::from_millis(500));
        let mut last = Duration::ZERO;
        for _ in 0..40 {
            last = backoff.next_delay(255);
        }
        assert_eq!(last, Duration::from_secs(30));
        backoff = Backoff::default();
        assert!(backoff.next_delay(0) < Duration::from_millis(500));
    }
}
