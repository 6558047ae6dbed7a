//! Records that failed their check, for whoever watches: how many lately, where the last one was, and for how long
//! that is said.
//!
//! A bad record is dropped and its chunk comes again when it is needed, so nothing stays broken. What should be looked
//! at is the disk below: that is said for [`SHOWN`] after the last one, long enough for a monitor that comes now and
//! then, or until a scrub has read everything since and found nothing: whoever mended the disk proves it so. A state
//! that an operator takes away by hand was rejected: nobody does, and the next fault is not seen.
//! Owns one row. Not its job: the count since the start (a metric), dropping records.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// After the last bad record.
const SHOWN: Duration = Duration::from_secs(300);

/// What was found lately.
#[derive(Default)]
pub(super) struct Damage(Mutex<Option<Found>>);

struct Found {
    count: u64,
    pack: u64,
    last: Instant,
}

impl Damage {
    /// A record of this pack failed its check.
    pub(super) fn note(&self, pack: u64, now: Instant) {
        let mut found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = found.as_ref().filter(|found| is_shown(found, now)).map_or(0, |found| found.count);
        *found = Some(Found { count: before + 1, pack, last: now });
    }

    /// All that is there was read from this moment on, and is good.
    pub(super) fn disprove(&self, since: Instant) {
        let mut found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        found.take_if(|found| found.last < since);
    }

    /// What to say of it at this moment.
    pub(super) fn warning(&self, now: Instant) -> Option<String> {
        let found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = found.as_ref().filter(|found| is_shown(found, now))?;
        let minutes = now.saturating_duration_since(found.last).as_secs() / 60;
        let records = if found.count == 1 { "record" } else { "records" };
        Some(format!(
            "the cache found {} damaged {records}, the last in pack {}, {minutes} minutes ago; what is damaged was \
             dropped and comes again when it is needed",
            found.count, found.pack
        ))
    }
}

fn is_shown(found: &Found, now: Instant) -> bool {
    now.saturating_duration_since(found.last) < SHOWN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_said_for_a_while_and_counted_anew_after_it() {
        let (damage, zero) = (Damage::default(), Instant::now());
        assert_eq!(damage.warning(zero), None);
        damage.note(7, zero);
        damage.note(9, zero + Duration::from_secs(200));
        let said = damage.warning(zero + Duration::from_secs(450)).unwrap();
        assert!(said.contains("2 damaged records, the last in pack 9, 4 minutes ago"), "{said}");
        assert_eq!(damage.warning(zero + Duration::from_secs(500)), None);
        damage.note(9, zero + Duration::from_secs(600));
        let said = damage.warning(zero + Duration::from_secs(600)).unwrap();
        assert!(said.contains("found 1 damaged record, the last in pack 9, 0 minutes ago"), "{said}");
    }

    #[test]
    fn what_was_found_before_a_clean_scrub_began_is_said_no_more() {
        let (damage, zero) = (Damage::default(), Instant::now());
        damage.disprove(zero);
        damage.note(7, zero + Duration::from_secs(10));
        damage.disprove(zero + Duration::from_secs(10));
        assert!(damage.warning(zero + Duration::from_secs(20)).is_some(), "it was found while the scrub ran");
        damage.disprove(zero + Duration::from_secs(11));
        assert_eq!(damage.warning(zero + Duration::from_secs(20)), None);
    }
}
