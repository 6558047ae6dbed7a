//! How many connections a peer should have. Sans-IO: observations and time come in, a number goes out.
//!
//! One fills the line where BBR is in use (measured: 95-99 % of what iperf3 gets). Loss-based control
//! fills 1 to 8 % of 100 Mbit/s at 80 ms with 0.1 to 1 % loss, and n connections about n times that. So
//! more are opened while data waits and packets are lost that no full queue explains: where the round
//! trip stays near its minimum, the line has room. Comparing rates before and after was tried and
//! rejected: a connection's first seconds are its slow start, which says nothing of what follows.
//! Not its job: dialling, and closing what is idle.

use std::time::{Duration, Instant};

use crate::limits::LINKS_MAX;

/// What is decided is decided on this much of the past.
const WINDOW: Duration = Duration::from_secs(2);
/// Windows in a row that must look alike before the first step; one more before each further one.
const WINDOWS_FIRST: u32 = 2;

/// What the connections to one peer look like now.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Observed {
    /// Connections that are up.
    pub links: usize,
    /// None of them uses BBR.
    pub loss_based: bool,
    /// Sessions' messages wait to be sent.
    pub waits: bool,
    /// TCP payload of all of them so far, first transmissions only.
    pub sent: u64,
    /// TCP payload sent again so far.
    pub retransmitted: u64,
    /// The round trip is well above its minimum: a queue is full, and loss is its way of saying so.
    pub queueing: bool,
    /// The bound of the rate, bits a second.
    pub rate_bps: Option<u64>,
}

/// See the module.
#[derive(Debug)]
pub struct Spread {
    wanted: usize,
    window: Window,
    /// Windows in a row in which more would have helped.
    alike: u32,
}

#[derive(Debug)]
struct Window {
    since: Instant,
    sent: u64,
    retransmitted: u64,
    looks: u32,
    waited: u32,
    queued: u32,
}

impl Window {
    fn new(seen: &Observed, now: Instant) -> Self {
        let (sent, retransmitted) = (seen.sent, seen.retransmitted);
        Self { since: now, sent, retransmitted, looks: 0, waited: 0, queued: 0 }
    }
}

impl Spread {
    /// One connection, seen for the first time.
    pub fn new(seen: &Observed, now: Instant) -> Self {
        Self { wanted: 1, window: Window::new(seen, now), alike: 0 }
    }

    /// Takes a look, several times a second; answers how many connections are wanted.
    pub fn apply(&mut self, seen: &Observed, now: Instant) -> usize {
        if !seen.loss_based {
            *self = Self::new(seen, now);
            return 1;
        }
        self.window.looks += 1;
        self.window.waited += u32::from(seen.waits);
        self.window.queued += u32::from(seen.queueing);
        let span = now.saturating_duration_since(self.window.since);
        if span >= WINDOW {
            let window = std::mem::replace(&mut self.window, Window::new(seen, now));
            self.decide(&window, seen, span);
        }
        self.wanted
    }

    fn decide(&mut self, window: &Window, seen: &Observed, span: Duration) {
        // Before all that are wanted are up, nothing is learned.
        if seen.links < self.wanted {
            return;
        }
        let busy = window.waited * 4 >= window.looks * 3;
        let lossy = seen.retransmitted > window.retransmitted && window.queued * 2 < window.looks;
        let rate = 8.0 * seen.sent.saturating_sub(window.sent) as f64 / span.as_secs_f64();
        let bounded = seen.rate_bps.is_some_and(|bits| rate > 0.85 * bits as f64);
        if !busy || !lossy || bounded {
            self.alike = 0;
            return;
        }
        self.alike += 1;
        if self.alike >= WINDOWS_FIRST {
            self.wanted = (2 * self.wanted + 1).min(LINKS_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK: Duration = Duration::from_millis(250);

    /// A line on which `links` connections move `rate(links)` bytes a second.
    struct Line {
        seen: Observed,
        now: Instant,
        spread: Spread,
    }

    impl Line {
        fn new(seen: Observed) -> Self {
            let now = Instant::now();
            Self { seen, now, spread: Spread::new(&seen, now) }
        }

        /// Links are opened as wanted.
        fn run(&mut self, time: Duration, rate: impl Fn(usize) -> f64, loss: f64) -> usize {
            let end = self.now + time;
            while self.now < end {
                self.now += LOOK;
                let sent = (rate(self.seen.links) * LOOK.as_secs_f64()) as u64;
                self.seen.sent += sent;
                self.seen.retransmitted += (sent as f64 * loss) as u64;
                self.seen.links = self.spread.apply(&self.seen, self.now).max(self.seen.links);
            }
            self.spread.wanted
        }
    }

    fn waiting() -> Observed {
        Observed { links: 1, loss_based: true, waits: true, ..Observed::default() }
    }

    #[test]
    fn loss_that_more_connections_bear_opens_them_quickly() {
        let mut line = Line::new(waiting());
        assert_eq!(line.run(Duration::from_secs(3), |links| links as f64 * 1e6, 0.001), 1);
        assert_eq!(line.run(Duration::from_secs(1), |links| links as f64 * 1e6, 0.001), 3);
        assert_eq!(line.run(Duration::from_secs(3), |links| links as f64 * 1e6, 0.001), LINKS_MAX);
    }

    #[test]
    fn a_line_that_is_full_keeps_what_it_has() {
        let mut line = Line::new(Observed { queueing: true, ..waiting() });
        assert_eq!(line.run(Duration::from_secs(3600), |_| 1e6, 0.001), 1, "its own queue loses packets");
        line.seen.queueing = false;
        assert_eq!(line.run(Duration::from_secs(5), |_| 1e6, 0.001), 3);
        line.seen.queueing = true;
        assert_eq!(line.run(Duration::from_secs(3600), |_| 1e6, 0.001), 3, "now it is full");
        let mut line = Line::new(Observed { rate_bps: Some(8_000_000), ..waiting() });
        assert_eq!(line.run(Duration::from_secs(3600), |_| 1e6, 0.001), 1, "the bound is reached");
    }

    #[test]
    fn one_is_the_rule() {
        let quiet = |change: fn(&mut Observed), loss| {
            let mut seen = waiting();
            change(&mut seen);
            Line::new(seen).run(Duration::from_secs(600), |links| links as f64 * 1e6, loss)
        };
        assert_eq!(quiet(|seen| seen.loss_based = false, 0.01), 1);
        assert_eq!(quiet(|seen| seen.waits = false, 0.01), 1);
        assert_eq!(quiet(|_| (), 0.0), 1);
    }
}
