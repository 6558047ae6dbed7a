//! A latency ceiling for a source host: where reads of its disks take too long, reading slows down before the
//! users of the host notice.
//!
//! [`Ceiling`] decides, sans-IO: the median of the last reads against the ceiling, and from that the share of time in
//! which there may be a read. Halved above it, raised by a sixteenth below, as TCP shares a line among
//! strangers: nobody knows what else the host does. [`GentleDisk`] is a disk read under it. The host's disks
//! share one ceiling. Bounds: [`READS`] numbers a host; a pause of at most [`PAUSE_MAX`].

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::block::{BlockRead, Extent};

/// The median is of so many reads.
const READS: usize = 16;
/// The share is raised by this where reads are quick.
const STEP: f64 = 1.0 / 16.0;
/// Reading never stops: less than this share is none.
const SHARE_MIN: f64 = 1.0 / 64.0;
/// Longest pause after a read.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug)]
pub struct Ceiling {
    ceiling: Duration,
    reads: Vec<Duration>,
    share: f64,
}

impl Ceiling {
    /// Full speed until reads take longer than this.
    pub fn new(ceiling: Duration) -> Self {
        Self { ceiling, reads: Vec::with_capacity(READS), share: 1.0 }
    }

    /// A read took this long; the pause before the next.
    pub fn read(&mut self, took: Duration) -> Duration {
        self.reads.push(took);
        if self.reads.len() >= READS {
            self.reads.sort_unstable();
            let median = self.reads[READS / 2];
            self.reads.clear();
            self.share = match median > self.ceiling {
                true => (self.share / 2.0).max(SHARE_MIN),
                false => (self.share + STEP).min(1.0),
            };
        }
        took.mul_f64(1.0 / self.share - 1.0).min(PAUSE_MAX)
    }

    /// Of the time, how much may be spent reading: 1 for all of it.
    pub fn share(&self) -> f64 {
        self.share
    }
}

/// A disk that is read under its host's ceiling.
pub struct GentleDisk {
    inner: Arc<dyn BlockRead>,
    ceiling: Arc<Mutex<Ceiling>>,
}

impl GentleDisk {
    /// Reads `inner` no faster than the ceiling allows.
    pub fn new(inner: Arc<dyn BlockRead>, ceiling: Arc<Mutex<Ceiling>>) -> Self {
        Self { inner, ceiling }
    }
}

impl BlockRead for GentleDisk {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let start = Instant::now();
        let result = self.inner.read_at(offset, buf);
        let pause = self.ceiling.lock().unwrap_or_else(PoisonError::into_inner).read(start.elapsed());
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
        result
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Extent>> {
        self.inner.next_data(from)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CEILING: Duration = Duration::from_millis(50);

    /// So many medians' worth of reads of so many milliseconds.
    fn reads(ceiling: &mut Ceiling, medians: usize, ms: u64) -> Duration {
        (0..medians * READS).map(|_| ceiling.read(Duration::from_millis(ms))).last().unwrap()
    }

    #[test]
    fn quick_reads_are_not_slowed() {
        let mut ceiling = Ceiling::new(CEILING);
        assert_eq!(reads(&mut ceiling, 10, 49), Duration::ZERO);
        assert!((ceiling.share() - 1.0).abs() < f64::EPSILON);
    }

    #[test]
    fn slow_reads_make_room_and_quick_ones_take_it_back() {
        let mut ceiling = Ceiling::new(CEILING);
        assert_eq!(reads(&mut ceiling, 1, 60), Duration::from_millis(60), "half the time");
        assert_eq!(reads(&mut ceiling, 1, 60), Duration::from_millis(180), "a quarter");
        reads(&mut ceiling, 12, 10);
        assert_eq!(reads(&mut ceiling, 1, 10), Duration::ZERO);
    }

    #[test]
    fn a_single_slow_read_among_quick_ones_changes_nothing() {
        let mut ceiling = Ceiling::new(CEILING);
        for n in 0..10 * READS {
            let ms = if n % 5 == 0 { 500 } else { 5 };
            assert_eq!(ceiling.read(Duration::from_millis(ms)), Duration::ZERO);
        }
    }

    /// A host whose reads take longer the more is read: 5 ms, and what users and reading take of it.
    fn host(users: f64, seconds: f64) -> (f64, f64) {
        let (mut ceiling, mut now, mut reading, mut over) = (Ceiling::new(CEILING), 0.0, 0.0, 0.0);
        while now < seconds {
            let load = (users + ceiling.share() * 0.6).min(0.98);
            let took = 0.005 / (1.0 - load);
            let pause = ceiling.read(Duration::from_secs_f64(took)).as_secs_f64();
            reading += took;
            over += if took > CEILING.as_secs_f64() { took + pause } else { 0.0 };
            now += took + pause;
        }
        (reading / now, over / now)
    }

    #[test]
    fn a_loaded_host_stays_below_its_ceiling_most_of_the_time() {
        let (share, over) = host(0.7, 600.0);
        assert!(share > 0.15 && over < 0.5, "reads for {share} of the time, above the ceiling for {over}");
        let (idle, _) = host(0.1, 600.0);
        assert!(idle > 0.95, "{idle}");
    }

    proptest! {
        /// Whatever the reads take: it never stops, and no pause is longer than its bound.
        #[test]
        fn it_never_stops(took in prop::collection::vec(0u64..5_000, 1..400)) {
            let mut ceiling = Ceiling::new(CEILING);
            for ms in took {
                let pause = ceiling.read(Duration::from_millis(ms));
                prop_assert!(pause <= PAUSE_MAX && ceiling.share() >= SHARE_MIN && ceiling.share() <= 1.0);
            }
        }
    }
}
