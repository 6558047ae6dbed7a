//! What follows a failure: how often a job is tried again, and when. Sans-IO.
//!
//! The pause doubles from try to try, up to an hour; to each is added up to a tenth, so that what failed at
//! one moment (a target that went down under thirty branches) does not come back at one moment. The same salt
//! gives the same pauses: a restart changes nothing. Not its job: which failures are worth another try.

use jiff::SignedDuration;
use vbr_api::Retry;

use super::Malformed;

/// Most tries, and the bounds of the first pause.
const COUNT_MAX: u32 = 100;
const PAUSE_MIN: SignedDuration = SignedDuration::from_secs(1);
const PAUSE_MAX: SignedDuration = SignedDuration::from_hours(24);
/// Pauses double up to this, or to the first where that is longer.
const DOUBLED_MAX: SignedDuration = SignedDuration::from_hours(1);
/// Of a pause, what is added at most.
const SPREAD_PART: i32 = 10;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryRule {
    /// Tries after the first.
    pub count: u32,
    pause: SignedDuration,
}

impl RetryRule {
    /// Nothing is tried again.
    pub const NONE: Self = Self { count: 0, pause: PAUSE_MIN };

    /// A job's rule.
    pub fn parse(retry: &Retry) -> Result<Self, Malformed> {
        if retry.count == 0 {
            return Ok(Self::NONE);
        }
        let pause = SignedDuration::from_millis(i64::try_from(retry.pause_ms).unwrap_or(i64::MAX));
        if retry.count > COUNT_MAX {
            return Err(Malformed::new(format!("a job is tried again at most {COUNT_MAX} times")));
        }
        if !(PAUSE_MIN..=PAUSE_MAX).contains(&pause) {
            return Err(Malformed::new("the pause before another try lies between 1 second and 24 hours"));
        }
        Ok(Self { count: retry.count, pause })
    }

    /// The pause before try `number`, from 1.
    pub fn pause(&self, number: u32, salt: u64) -> SignedDuration {
        let longest = self.pause.max(DOUBLED_MAX);
        let doubled = (1..number.min(32)).fold(self.pause, |pause, _| (pause * 2).min(longest));
        let hash = blake3::hash(&[salt.to_le_bytes(), u64::from(number).to_le_bytes()].concat());
        let part = hash.as_bytes().first_chunk().map_or(0, |bytes| u16::from_le_bytes(*bytes));
        let spread = (doubled / SPREAD_PART).as_millis() * i128::from(part) / 65_536;
        doubled + SignedDuration::from_millis(spread as i64)
    }

    /// No pause is longer.
    pub fn longest(&self) -> SignedDuration {
        let longest = self.pause.max(DOUBLED_MAX);
        longest + longest / SPREAD_PART
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(count: u32, seconds: u64) -> Result<RetryRule, Malformed> {
        RetryRule::parse(&Retry { count, pause_ms: seconds * 1000 })
    }

    #[test]
    fn pauses_double_up_to_an_hour() {
        let rule = rule(8, 300).unwrap();
        for (number, minutes) in [(1, 5), (2, 10), (3, 20), (4, 40), (5, 60), (8, 60)] {
            let pause = rule.pause(number, 7).as_secs();
            assert!((minutes * 60..=minutes * 66).contains(&pause), "{number}: {pause}");
            assert_eq!(rule.pause(number, 7), rule.pause(number, 7));
            assert!(rule.pause(number, 7) <= rule.longest());
        }
        let salted: std::collections::BTreeSet<i64> =
            (0..30).map(|salt| rule.pause(1, salt).as_secs()).collect();
        assert!(salted.len() > 15, "{salted:?}");
    }

    #[test]
    fn a_long_pause_stays() {
        let rule = rule(3, 7200).unwrap();
        assert!(rule.pause(3, 1).as_secs() >= 7200 && rule.pause(3, 1).as_secs() <= 7920);
    }

    #[test]
    fn bounds() {
        assert_eq!(rule(0, 0), Ok(RetryRule::NONE));
        for (count, seconds) in [(101, 60), (3, 0), (3, 86_401)] {
            assert!(rule(count, seconds).is_err(), "{count}/{seconds}");
        }
    }
}
