//! Bytes on the wire, as the kernel counts them, and each channel's share of them.
//!
//! A [`Probe`] sits beside each TCP socket: bytes sent include Noise, Yamux and retransmits. A
//! channel's share since it opened is that of its frames among all frames of the connection since
//! then; a bundle has one share on each of its connections. Over QUIC there is no such counter; there
//! frame bytes stand for wire bytes.
//! Not its job: what the figures are used for.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::Totals;
use super::probe::Probe;
use super::valve::Valve;
use crate::throttle::SharedBucket;

/// Bounds of what a connection of several keeps unsent in the kernel. The upper one is below half of
/// `NOTSENT_LOWAT_MAX`, at which the layers between have handed everything down.
const UNSENT_BYTES_MIN: u64 = 16 * 1024;
const UNSENT_BYTES_MAX: u64 = 60 * 1024;
/// How much faster than its bound the kernel may send, one part in so many: after a stall of the line the kernel has
/// bytes that were allowed before, and would send them as fast as it can.
const PACING_PART: u64 = 40;

/// Everything that is counted for one connection.
#[derive(Debug)]
pub struct ConnectionCounters {
    /// None over QUIC.
    pub probe: Option<Arc<Probe>>,
    sent: AtomicU64,
    received: AtomicU64,
    rtt_micros: AtomicU64,
    rtt_micros_max: AtomicU64,
    started: Instant,
    heard_millis: AtomicU64,
    /// What bounds it.
    pub valve: Arc<Valve>,
}

impl ConnectionCounters {
    /// For a new connection.
    pub fn new(probe: Option<Arc<Probe>>) -> Self {
        Self {
            valve: probe.as_ref().map(|probe| probe.valve.clone()).unwrap_or_default(),
            probe,
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            rtt_micros: AtomicU64::new(0),
            rtt_micros_max: AtomicU64::new(0),
            started: Instant::now(),
            heard_millis: AtomicU64::new(0),
        }
    }

    /// From now on these buckets bound it; also to be called when the rate of one of them changed.
    pub fn set_limits(&self, buckets: Vec<Arc<SharedBucket>>) {
        self.valve.set(buckets);
        if let Some(probe) = &self.probe {
            probe.set_pacing(self.valve.limit_bps().map(|rate| rate + rate / PACING_PART));
        }
    }

    /// How long a sender of `bytes` must wait before its next bytes, where the socket is not ours to hold them back.
    pub fn pause(&self, bytes: u64, now: Instant) -> Duration {
        if self.probe.is_some() { Duration::ZERO } else { self.valve.pause(bytes, now) }
    }

    /// Frame bytes handed to a stream of this connection.
    pub fn add_sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Frame bytes taken from a stream: also a sign of life.
    pub fn add_received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
        let now = self.started.elapsed().as_millis() as u64;
        self.heard_millis.fetch_max(now, Ordering::Relaxed);
    }

    /// When anything was last heard.
    pub fn last_heard(&self) -> Instant {
        self.started + Duration::from_millis(self.heard_millis.load(Ordering::Relaxed))
    }

    /// A heartbeat's round trip: what control takes, beside whatever else the link carries.
    pub fn note_rtt(&self, rtt: Duration) {
        let micros = rtt.as_micros() as u64;
        self.rtt_micros.store(micros, Ordering::Relaxed);
        self.rtt_micros_max.fetch_max(micros, Ordering::Relaxed);
        if let Some(probe) = &self.probe {
            probe.follow_rate();
        }
    }

    /// The last heartbeat's round trip, and the longest one; none before the first.
    pub fn control_rtt(&self) -> Option<(Duration, Duration)> {
        let (last, max) =
            (self.rtt_micros.load(Ordering::Relaxed), self.rtt_micros_max.load(Ordering::Relaxed));
        (last > 0).then(|| (Duration::from_micros(last), Duration::from_micros(max)))
    }

    /// Round trip of the link.
    pub fn rtt(&self) -> Option<Duration> {
        let kernel = self.probe.as_ref().map(|probe| probe.figures().rtt).filter(|rtt| !rtt.is_zero());
        kernel.or(self.control_rtt().map(|(last, _)| last))
    }

    /// Bytes on the wire.
    pub fn wire(&self) -> Totals {
        match &self.probe {
            Some(probe) => {
                let figures = probe.figures();
                Totals { sent: figures.sent, received: figures.received }
            }
            None => self.frames(),
        }
    }

    /// Bytes a second that were delivered of late, and no more than a rule allows; over QUIC nobody knows.
    fn delivery_rate(&self) -> Option<u64> {
        let rate = self.probe.as_ref()?.figures().delivery_rate;
        Some(self.valve.limit_bps().map_or(rate, |limit| rate.min(limit / 8)))
    }

    /// Bytes that the kernel has taken so far; over QUIC nobody knows.
    pub fn taken(&self) -> u64 {
        self.probe.as_ref().map_or(0, |probe| probe.figures().taken())
    }

    /// True where the kernel has as much to send as one more round trip takes, or has not taken yet what
    /// it would then have `handed` to it in all. More would hold up what other connections bring; less,
    /// and the window is not used when it opens.
    pub fn has_enough(&self, handed: u64) -> bool {
        let Some(probe) = &self.probe else { return false };
        let figures = probe.figures();
        let enough = figures.window.clamp(UNSENT_BYTES_MIN, UNSENT_BYTES_MAX);
        figures.taken() < handed || figures.unsent > enough
    }

    fn frames(&self) -> Totals {
        Totals { sent: self.sent.load(Ordering::Relaxed), received: self.received.load(Ordering::Relaxed) }
    }
}

/// What one session costs on one connection.
#[derive(Debug)]
pub struct Share {
    connection: Arc<ConnectionCounters>,
    wire_at_open: Totals,
    frames_at_open: Totals,
    sent: AtomicU64,
    received: AtomicU64,
}

impl Share {
    /// For a channel that opens now.
    pub fn new(connection: Arc<ConnectionCounters>) -> Arc<Self> {
        Arc::new(Self {
            wire_at_open: connection.wire(),
            frames_at_open: connection.frames(),
            connection,
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
        })
    }

    pub(super) fn add_sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn add_received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    fn own(&self) -> Totals {
        Totals { sent: self.sent.load(Ordering::Relaxed), received: self.received.load(Ordering::Relaxed) }
    }

    fn wire(&self) -> Totals {
        let (wire, frames, own) = (self.connection.wire(), self.connection.frames(), self.own());
        let share = |wire: u64, all: u64, own: u64| -> u64 {
            if all == 0 { own } else { (u128::from(wire) * u128::from(own) / u128::from(all)) as u64 }
        };
        Totals {
            sent: share(
                wire.sent.saturating_sub(self.wire_at_open.sent),
                frames.sent.saturating_sub(self.frames_at_open.sent),
                own.sent,
            ),
            received: share(
                wire.received.saturating_sub(self.wire_at_open.received),
                frames.received.saturating_sub(self.frames_at_open.received),
                own.received,
            ),
        }
    }
}

/// What one session has cost so far, on all its connections.
#[derive(Debug, Default)]
pub struct ChannelCounters {
    shares: Mutex<Vec<Arc<Share>>>,
    at_close: OnceLock<Totals>,
}

impl ChannelCounters {
    /// One more connection carries the session.
    pub(super) fn add(&self, share: Arc<Share>) {
        lock(&self.shares).push(share);
    }

    /// Bytes of its frames, headers included, handed to the streams.
    pub fn sent_frames_bytes(&self) -> u64 {
        self.sum(Share::own).sent
    }

    /// Bytes of its frames, headers included, that arrived.
    pub fn received_frames_bytes(&self) -> u64 {
        self.sum(Share::own).received
    }

    /// Its share of the TCP payload sent, retransmits included. Live while the channel is.
    pub fn sent_wire(&self) -> u64 {
        self.wire().sent
    }

    /// Its share of the TCP payload received. Live while the channel is.
    pub fn received_wire(&self) -> u64 {
        self.wire().received
    }

    /// Bytes a second that the lines below delivered of late, as far as their kernels and rules say: what they take at
    /// least. None over QUIC.
    pub fn delivery_rate(&self) -> Option<u64> {
        let rates =
            lock(&self.shares).iter().filter_map(|share| share.connection.delivery_rate()).sum::<u64>();
        (rates > 0).then_some(rates)
    }

    /// The channel is over: what the connections carry from now on is not its own.
    pub(super) fn freeze(&self) {
        let now = self.wire();
        let _ = self.at_close.set(now);
    }

    fn wire(&self) -> Totals {
        self.at_close.get().copied().unwrap_or_else(|| self.sum(Share::wire))
    }

    fn sum(&self, of: fn(&Share) -> Totals) -> Totals {
        let all = lock(&self.shares);
        all.iter().map(|share| of(share)).fold(Totals::default(), |sum, one| Totals {
            sent: sum.sent + one.sent,
            received: sum.received + one.received,
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(share: &Arc<Share>) -> ChannelCounters {
        let counters = ChannelCounters::default();
        counters.add(share.clone());
        counters
    }

    #[test]
    fn channels_share_what_the_connection_carried() {
        let connection = Arc::new(ConnectionCounters::new(None));
        connection.add_sent(500);
        let (first, second) = (Share::new(connection.clone()), Share::new(connection.clone()));
        let (one, two) = (counters(&first), counters(&second));
        first.add_sent(300);
        second.add_sent(100);
        connection.add_sent(400);
        assert_eq!((one.sent_wire(), two.sent_wire(), one.received_wire()), (300, 100, 0));
        one.freeze();
        connection.add_sent(1000);
        assert_eq!(one.sent_wire(), 300);
    }

    #[test]
    fn a_bundle_costs_the_sum_of_its_connections() {
        let connections = [300u64, 50].map(|_| Arc::new(ConnectionCounters::new(None)));
        let shares = connections.clone().map(Share::new);
        let counters = counters(&shares[0]);
        counters.add(shares[1].clone());
        for ((connection, share), bytes) in connections.iter().zip(&shares).zip([300, 50]) {
            share.add_sent(bytes);
            connection.add_sent(2 * bytes);
        }
        assert_eq!((counters.sent_wire(), counters.sent_frames_bytes()), (350, 350));
    }
}
