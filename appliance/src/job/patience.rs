//! How long a session waits by itself for what may pass: a lost link, a target that is busy, trouble. Sans-IO;
//! time is handed in.
//!
//! A lost link is waited for up to a bound, and so is a target that has no room for the session yet: nothing is
//! wrong with the job. Other trouble is tried again for a minute, because much of it is gone then (a target
//! that starts again finds its datastore); what stays ends the session, and its job's tries after failures follow.
//! An attempt that was cut because it stood still counts as one of those. Not its job: the waiting itself.

use std::time::{Duration, Instant};

use crate::error::Problem;
use crate::limits::TROUBLE_PATIENCE;

/// Wait before the first new attempt, doubled up to [`WAIT_MAX`].
const WAIT_MIN: Duration = Duration::from_millis(500);
/// Longest wait between attempts.
pub const WAIT_MAX: Duration = Duration::from_secs(15);
/// Roots that do not match: the second time nothing is trusted any more, the third time it is over.
const MISMATCHES_MAX: u32 = 2;

/// What follows an attempt that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Another one, after this long.
    Again(Duration),
    /// The end of the session.
    GiveUp(Problem),
}

/// See the module.
#[derive(Debug)]
pub struct Patience {
    peer: String,
    link_wait: Duration,
    /// Tries after failures, and which of them this is.
    retries: u32,
    retry: u32,
    wait: Duration,
    lost_since: Option<Instant>,
    trouble_since: Option<Instant>,
    mismatches: u32,
}

impl Patience {
    /// Of a session to this peer, which is try `retry` of so many after a failure.
    pub fn new(peer: &str, link_wait: Duration, retry: u32, retries: u32) -> Self {
        Self {
            peer: peer.to_string(),
            link_wait,
            retries,
            retry,
            wait: WAIT_MIN,
            lost_since: None,
            trouble_since: None,
            mismatches: 0,
        }
    }

    /// Bytes crossed the link.
    pub fn linked(&mut self) {
        self.lost_since = None;
        self.wait = WAIT_MIN;
    }

    /// More of the disks is settled than before.
    pub fn moved(&mut self) {
        self.linked();
        self.trouble_since = None;
    }

    /// Which try after a failure this is.
    pub fn retry(&self) -> u32 {
        self.retry
    }

    /// True where a root did not match: nothing of the base is taken for granted.
    pub fn distrusts(&self) -> bool {
        self.mismatches > 0
    }

    /// The link is gone.
    pub fn lost(&mut self, why: &str, now: Instant) -> Next {
        let since = *self.lost_since.get_or_insert(now);
        if now.saturating_duration_since(since) < self.link_wait {
            return self.again();
        }
        let peer = &self.peer;
        let problem = Problem::new(
            "link_lost",
            format!("the link to {peer} did not come back"),
            format!(
                "it was waited for for {} s, which is the bound schedule.link_wait; at last: {why}",
                self.link_wait.as_secs()
            ),
            format!(
                "look at `vbrctl peer show {peer}` and the network; the job runs again by itself as scheduled"
            ),
        );
        Next::GiveUp(problem.retry())
    }

    /// Something else failed.
    pub fn trouble(&mut self, problem: Problem, now: Instant) -> Next {
        match problem.code.as_str() {
            _ if !problem.retry => Next::GiveUp(problem),
            "stalled" if self.retry >= self.retries => Next::GiveUp(problem),
            "stalled" => {
                self.retry += 1;
                self.again()
            }
            "root_mismatch" if self.mismatches >= MISMATCHES_MAX => {
                Next::GiveUp(Problem { retry: false, ..problem })
            }
            "root_mismatch" => {
                self.mismatches += 1;
                self.again()
            }
            // The moment is gone: only another session has another one.
            "source_lost" => Next::GiveUp(problem),
            "busy" | "not_connected" => self.lost(&problem.to_string(), now),
            _ => {
                let since = *self.trouble_since.get_or_insert(now);
                match now.saturating_duration_since(since) < TROUBLE_PATIENCE {
                    true => self.again(),
                    false => Next::GiveUp(problem),
                }
            }
        }
    }

    fn again(&mut self) -> Next {
        let wait = self.wait;
        self.wait = (wait * 2).min(WAIT_MAX);
        Next::Again(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patience() -> Patience {
        Patience::new("dr", Duration::from_secs(3600), 0, 2)
    }

    fn problem(code: &str) -> Problem {
        Problem::new(code, "it", "why", "next").retry()
    }

    /// Goes on until it is given up; answers after how many seconds, and with what.
    fn until_the_end(mut next: impl FnMut(Instant) -> Next) -> (u64, Problem) {
        let zero = Instant::now();
        let mut now = zero;
        loop {
            match next(now) {
                Next::Again(wait) => now += wait,
                Next::GiveUp(problem) => return ((now - zero).as_secs(), problem),
            }
            assert!(now - zero < Duration::from_secs(100_000), "it waits for ever");
        }
    }

    #[test]
    fn a_lost_link_is_waited_for_up_to_its_bound() {
        let mut one = patience();
        let (seconds, problem) = until_the_end(|now| one.lost("reset", now));
        assert!((3600..3600 + 16).contains(&seconds), "{seconds}");
        assert!(
            problem.code == "link_lost" && problem.retry && problem.why.contains("3600 s"),
            "{problem:?}"
        );
        assert_eq!(one.retry(), 0, "it is not counted");
        // A link that comes back for a moment is lost anew.
        let mut one = patience();
        let zero = Instant::now();
        one.lost("reset", zero);
        one.linked();
        assert_eq!(one.lost("reset", zero + Duration::from_secs(3600)), Next::Again(WAIT_MIN));
    }

    #[test]
    fn trouble_that_stays_is_given_up_soon() {
        let mut one = patience();
        let (seconds, problem) = until_the_end(|now| one.trouble(problem("datastore_full"), now));
        assert!(
            seconds >= TROUBLE_PATIENCE.as_secs() && seconds < TROUBLE_PATIENCE.as_secs() + 16,
            "{seconds}"
        );
        assert!(problem.retry, "its job's tries follow");
        let never = Problem { retry: false, ..problem };
        assert_eq!(patience().trouble(never.clone(), Instant::now()), Next::GiveUp(never));
    }

    #[test]
    fn a_busy_target_is_waited_for_as_a_link_is() {
        let mut one = patience();
        let (seconds, _) = until_the_end(|now| one.trouble(problem("busy"), now));
        assert!(seconds >= 3600, "{seconds}");
    }

    #[test]
    fn stalls_count_as_tries() {
        let mut one = patience();
        let now = Instant::now();
        for number in 1..=2 {
            assert!(matches!(one.trouble(problem("stalled"), now), Next::Again(_)));
            assert_eq!(one.retry(), number);
        }
        assert_eq!(one.trouble(problem("stalled"), now), Next::GiveUp(problem("stalled")));
    }

    #[test]
    fn roots_may_differ_twice() {
        let mut one = patience();
        let now = Instant::now();
        assert!(!one.distrusts());
        for _ in 0..2 {
            assert!(matches!(one.trouble(problem("root_mismatch"), now), Next::Again(_)));
            assert!(one.distrusts());
        }
        assert!(matches!(one.trouble(problem("root_mismatch"), now), Next::GiveUp(last) if !last.retry));
    }
}
