//! When the next bytes may go: a token bucket as a schedule of slices. Sans-IO.
//!
//! Whoever wants to send books a slice and is told from when it may go. Bookings follow each other, so several
//! connections that share a bucket get equal parts, and none of them is passed over. A slice takes about 4 ms:
//! a rate is kept in windows far shorter than a second.
//!
//! Timers are late, most of all on a busy machine. What that costs is made up for in two ways: at once within
//! [`BURST`], and beyond that at [`RETURN_PERCENT`] above the rate, because bytes that went out in a burst would break
//! the rate of that second. Time in which nobody wanted to send is lost.
//!
//! Bounds, with up to six connections: 5 % above the rate in any second, 3 % in any 10 s.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Lateness that is made up for at once.
const BURST: Duration = Duration::from_millis(10);
/// Lateness that is made up for slowly, at most: more is lost.
const OWED_MAX: Duration = Duration::from_millis(200);
/// How much faster than the rate bytes go while lateness is made up for.
const RETURN_PERCENT: u32 = 2;
/// How long a slice takes at the rate.
const SLICE: Duration = Duration::from_millis(4);
/// The same at rates at which it would be less than a packet.
const SLICE_SLOW: Duration = Duration::from_millis(12);
/// Slices are whole segments of a line with packets of 1,500 bytes, unless one took too long.
const SEGMENT_BYTES: u64 = 1448;
const SLICE_BYTES_MIN: u64 = 256;
const SLICE_BYTES_MAX: u64 = 64 * 1024;

/// See the module.
#[derive(Clone, Debug)]
pub struct Bucket {
    rate_bps: u64,
    /// When the next slice may go; none before the first.
    free_at: Option<Instant>,
    /// Lateness that is not made up for yet.
    owed: Duration,
}

impl Bucket {
    /// Of so many bits a second.
    pub fn new(rate_bps: u64) -> Self {
        Self { rate_bps: rate_bps.max(1), free_at: None, owed: Duration::ZERO }
    }

    /// Bits a second.
    pub fn rate_bps(&self) -> u64 {
        self.rate_bps
    }

    /// Changes the rate. What was booked at the old one does not hold up what comes.
    pub fn set_rate(&mut self, rate_bps: u64, now: Instant) {
        self.rate_bps = rate_bps.max(1);
        self.free_at = self.free_at.map(|at| at.min(now));
        self.owed = Duration::ZERO;
    }

    /// When the next bytes may go; none before the first.
    pub fn free_at(&self) -> Option<Instant> {
        self.free_at
    }

    /// Bytes that should be booked at once, at most.
    pub fn slice_bytes(&self) -> u64 {
        let bytes_in = |time: Duration| (u128::from(self.rate_bps) * time.as_micros() / 8_000_000) as u64;
        match bytes_in(SLICE) / SEGMENT_BYTES {
            0 => bytes_in(SLICE_SLOW).clamp(SLICE_BYTES_MIN, SEGMENT_BYTES),
            segments => (segments * SEGMENT_BYTES).min(SLICE_BYTES_MAX),
        }
    }

    /// Books `bytes`; answers from when they may go. `late`: how long after its time the last slice of whoever books
    /// went, because its timer came late.
    pub fn book(&mut self, bytes: u64, late: Duration, now: Instant) -> Instant {
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let from = match self.free_at {
            None => now,
            Some(at) => {
                let lost = earliest.saturating_duration_since(at);
                self.owed = (self.owed + lost.min(late)).min(OWED_MAX);
                at.max(earliest)
            }
        };
        let time = self.time(bytes);
        let back = (time * RETURN_PERCENT / 100).min(self.owed);
        self.owed -= back;
        self.free_at = Some(from + time - back);
        from
    }

    /// Counts bytes that went without having been booked: handshakes, and what the kernel sent again.
    pub fn charge(&mut self, bytes: u64, now: Instant) {
        let from = self.free_at.map_or(now, |at| at.max(now.checked_sub(BURST).unwrap_or(now)));
        self.free_at = Some(from + self.time(bytes));
    }

    fn time(&self, bytes: u64) -> Duration {
        let nanos = u128::from(bytes) * 8_000_000_000 / u128::from(self.rate_bps);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX / 4))
    }
}

/// A rule's bucket, as the connections that it bounds share it. Locks are held for the arithmetic alone.
#[derive(Debug)]
pub struct SharedBucket {
    /// Of which rule.
    pub rule: String,
    bucket: Mutex<Bucket>,
}

impl SharedBucket {
    /// Of a rule.
    pub fn new(rule: &str, rate_bps: u64) -> Arc<Self> {
        Arc::new(Self { rule: rule.to_owned(), bucket: Mutex::new(Bucket::new(rate_bps)) })
    }

    /// The bucket.
    pub fn lock(&self) -> MutexGuard<'_, Bucket> {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STEP: Duration = Duration::from_micros(100);

    /// Connections that always have something to send, and their timers: `late(n)` is how late the n-th one comes.
    fn run(
        bucket: &mut Bucket,
        start: Instant,
        time: Duration,
        sharers: usize,
        mut late: impl FnMut(u64) -> Duration,
    ) -> Vec<(Duration, usize, u64)> {
        struct Sharer {
            wakes: Instant,
            booked: Option<(Instant, u64)>,
            late: Duration,
        }
        let mut all: Vec<Sharer> =
            (0..sharers).map(|_| Sharer { wakes: start, booked: None, late: Duration::ZERO }).collect();
        let (mut sent, mut timers) = (Vec::new(), 0);
        while let Some(next) = all.iter().enumerate().min_by_key(|(_, sharer)| sharer.wakes).map(|(at, _)| at)
        {
            let sharer = &mut all[next];
            let now = sharer.wakes;
            if now >= start + time {
                break;
            }
            if let Some((due, bytes)) = sharer.booked.take() {
                sharer.late = now.saturating_duration_since(due);
                sent.push((now - start, next, bytes));
            }
            // As the socket does: what may go at once goes; then it waits.
            loop {
                let bytes = bucket.slice_bytes();
                let due = bucket.book(bytes, std::mem::take(&mut sharer.late), now);
                if due <= now {
                    sent.push((now - start, next, bytes));
                    continue;
                }
                timers += 1;
                sharer.booked = Some((due, bytes));
                sharer.wakes = due + late(timers) + STEP;
                break;
            }
        }
        sent
    }

    /// Lowest and highest rate of any window of this length, in parts of `rate`.
    fn extremes(sent: &[(Duration, usize, u64)], window: Duration, end: Duration, rate: u64) -> (f64, f64) {
        let (mut least, mut most) = (f64::INFINITY, 0.0f64);
        let (mut from, mut to, mut sum) = (0, 0, 0);
        let mut at = Duration::ZERO;
        while at + window <= end {
            while to < sent.len() && sent[to].0 < at + window {
                sum += sent[to].2;
                to += 1;
            }
            while from < to && sent[from].0 < at {
                sum -= sent[from].2;
                from += 1;
            }
            let part = sum as f64 * 8.0 / window.as_secs_f64() / rate as f64;
            (least, most) = (least.min(part), most.max(part));
            at += Duration::from_millis(7);
        }
        (least, most)
    }

    fn check(sent: &[(Duration, usize, u64)], end: Duration, rate: u64) {
        let (least, most) = extremes(sent, Duration::from_secs(1), end, rate);
        assert!(least > 0.95 && most < 1.05, "1 s at {rate}: {least:.4} to {most:.4}");
        let (least, most) = extremes(sent, Duration::from_secs(10), end, rate);
        assert!(least > 0.97 && most < 1.03, "10 s at {rate}: {least:.4} to {most:.4}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn a_rate_is_kept_whoever_shares_it_and_however_late_timers_are(
            rate in 500_000u64..2_000_000_000,
            sharers in 1usize..=6,
            jitter in prop::collection::vec(0u64..4_000, 50),
            pause in 0u64..40,
        ) {
            let (start, time) = (Instant::now(), Duration::from_secs(21));
            // Every timer some milliseconds late, and now and then the whole machine.
            let late = |n: u64| {
                let often = Duration::from_micros(jitter[n as usize % jitter.len()]);
                if n % 2_000 == 1_999 { often + Duration::from_millis(pause) } else { often }
            };
            let mut bucket = Bucket::new(rate);
            let sent = run(&mut bucket, start, time, sharers, late);
            check(&sent, time, rate);
        }

        #[test]
        fn a_change_acts_within_a_second(from in 64_000u64..100_000_000, to in 1_000_000u64..100_000_000) {
            let (start, half) = (Instant::now(), Duration::from_secs(3));
            let mut bucket = Bucket::new(from);
            run(&mut bucket, start, half, 3, |_| Duration::from_millis(1));
            bucket.set_rate(to, start + half);
            let sent = run(&mut bucket, start + half, Duration::from_secs(11), 3, |_| Duration::from_millis(1));
            check(&sent, Duration::from_secs(11), to);
        }
    }

    #[test]
    fn sharers_get_equal_parts() {
        let mut bucket = Bucket::new(8_000_000);
        let sent = run(&mut bucket, Instant::now(), Duration::from_secs(10), 5, |n| {
            Duration::from_micros(n * 37 % 2_000)
        });
        let part =
            |sharer| -> u64 { sent.iter().filter(|(_, who, _)| *who == sharer).map(|(_, _, n)| n).sum() };
        let parts: Vec<u64> = (0..5).map(part).collect();
        let (least, most) = (parts.iter().min().unwrap(), parts.iter().max().unwrap());
        assert!(*most as f64 / *least as f64 <= 1.02, "{parts:?}");
    }

    #[test]
    fn silence_is_not_saved_up() {
        let (start, mut bucket) = (Instant::now(), Bucket::new(8_000_000));
        run(&mut bucket, start, Duration::from_secs(2), 1, |_| Duration::ZERO);
        let later = start + Duration::from_secs(60);
        let sent = run(&mut bucket, later, Duration::from_secs(11), 1, |_| Duration::ZERO);
        check(&sent, Duration::from_secs(11), 8_000_000);
    }

    #[test]
    fn what_went_unbooked_is_held_back_afterwards() {
        let (now, mut bucket) = (Instant::now(), Bucket::new(8_000_000));
        bucket.charge(100_000, now);
        assert_eq!(bucket.book(1448, Duration::ZERO, now), now + Duration::from_millis(100));
    }
}
