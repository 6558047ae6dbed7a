//! Bytes on the wire, as the kernel counts them, and each channel's share of them.
//!
//! A [`Probe`] sits beside each TCP socket and reads `TCP_INFO` while the socket lives: bytes sent
//! include Noise, Yamux and retransmits. A channel's share since it opened is that of its frames
//! among all frames of the connection since then. Over QUIC there is no such counter; there frame
//! bytes stand for wire bytes.
//! Not its job: what the figures are used for.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::Totals;

/// What the kernel says of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpFigures {
    /// TCP payload, retransmits included.
    pub sent: u64,
    /// TCP payload, in order.
    pub received: u64,
    /// Smoothed round trip.
    pub rtt: Duration,
}

/// Reads and tunes one TCP socket for as long as it lives.
///
/// Holds a duplicate of the descriptor; the stream's owner takes it away when it closes the socket,
/// or no FIN would ever be sent.
#[derive(Debug)]
pub struct Probe {
    socket: Mutex<Option<OwnedFd>>,
    last: Mutex<TcpFigures>,
    /// The other end.
    pub remote: SocketAddr,
    /// True where we dialled.
    pub dialled: bool,
    congestion: OnceLock<String>,
}

impl Probe {
    /// For a socket that was just connected.
    pub fn new(socket: OwnedFd, remote: SocketAddr, dialled: bool) -> Self {
        let congestion = OnceLock::new();
        if let Ok(name) = SockRef::from(&socket).tcp_congestion() {
            let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
            let _ = congestion.set(String::from_utf8_lossy(&name[..end]).into_owned());
        }
        Self { socket: Mutex::new(Some(socket)), last: Mutex::default(), remote, dialled, congestion }
    }

    /// The figures now, or the last ones of a socket that is closed.
    pub fn figures(&self) -> TcpFigures {
        let socket = lock(&self.socket);
        let mut last = lock(&self.last);
        if let Some(figures) = socket.as_ref().and_then(tcp_info) {
            *last = figures;
        }
        *last
    }

    /// `bbr`, `cubic`, …
    pub fn congestion(&self) -> Option<String> {
        self.congestion.get().cloned()
    }

    /// True while the socket is open.
    pub fn is_open(&self) -> bool {
        lock(&self.socket).is_some()
    }

    /// Bounds the rate of this socket; none lifts the bound.
    pub fn set_pacing(&self, bits_per_second: Option<u64>) {
        if let Some(socket) = lock(&self.socket).as_ref()
            && let Err(error) = set_pacing(socket, bits_per_second)
        {
            tracing::warn!(%error, "the kernel refused the rate limit of a connection");
        }
    }

    /// Cuts the connection at once: both ends of it fail, nothing waits for a black hole.
    pub fn shutdown(&self) {
        if let Some(socket) = lock(&self.socket).as_ref() {
            let _ = SockRef::from(socket).shutdown(std::net::Shutdown::Both);
        }
    }

    /// Takes the last figures and lets the descriptor go.
    pub fn close(&self) {
        self.figures();
        lock(&self.socket).take();
    }
}

/// `SO_MAX_PACING_RATE`, in bits a second; none lifts it.
pub fn set_pacing(socket: &OwnedFd, bits_per_second: Option<u64>) -> io::Result<()> {
    let rate: u64 = bits_per_second.map_or(u64::MAX, |bits| (bits / 8).max(1));
    // SAFETY: the descriptor is open for the call, and the option's value is eight bytes that the
    // kernel only reads.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MAX_PACING_RATE,
            (&raw const rate).cast(),
            size_of::<u64>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn tcp_info(socket: &OwnedFd) -> Option<TcpFigures> {
    let mut info = std::mem::MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the descriptor is open for the call; the kernel writes at most `length` bytes into
    // `info`, which is that long, and an older kernel leaves the rest zero.
    let info = unsafe {
        let result = libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        );
        if result != 0 {
            return None;
        }
        info.assume_init()
    };
    Some(TcpFigures {
        sent: info.tcpi_bytes_sent,
        received: info.tcpi_bytes_received,
        rtt: Duration::from_micros(u64::from(info.tcpi_rtt)),
    })
}

/// Everything that is counted for one connection.
#[derive(Debug)]
pub struct ConnectionCounters {
    /// None over QUIC.
    pub probe: Option<Arc<Probe>>,
    sent: AtomicU64,
    received: AtomicU64,
    rtt_micros: AtomicU64,
    started: Instant,
    heard_millis: AtomicU64,
    rate_bps: AtomicU64,
    free_at: Mutex<Option<Instant>>,
}

impl ConnectionCounters {
    /// For a new connection.
    pub fn new(probe: Option<Arc<Probe>>) -> Self {
        Self {
            probe,
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            rtt_micros: AtomicU64::new(0),
            started: Instant::now(),
            heard_millis: AtomicU64::new(0),
            rate_bps: AtomicU64::new(0),
            free_at: Mutex::new(None),
        }
    }

    /// Bounds the rate: by the kernel's pacing over TCP, by [`Self::pause`] over QUIC.
    pub fn set_rate(&self, bits_per_second: Option<u64>) {
        self.rate_bps.store(bits_per_second.unwrap_or(0), Ordering::Relaxed);
        if let Some(probe) = &self.probe {
            probe.set_pacing(bits_per_second);
        }
    }

    /// How long a sender of `bytes` must wait before its next bytes, where the kernel does not pace.
    pub fn pause(&self, bytes: u64, now: Instant) -> Duration {
        let rate = self.rate_bps.load(Ordering::Relaxed);
        if self.probe.is_some() || rate == 0 {
            return Duration::ZERO;
        }
        let mut free_at = lock(&self.free_at);
        let from = free_at.map_or(now, |at| at.max(now));
        let until = from + Duration::from_secs_f64(bytes as f64 * 8.0 / rate as f64);
        *free_at = Some(until);
        until - now
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

    /// A heartbeat's round trip, for links whose kernel does not measure one.
    pub fn note_rtt(&self, rtt: Duration) {
        self.rtt_micros.store(rtt.as_micros() as u64, Ordering::Relaxed);
    }

    /// Round trip of the link.
    pub fn rtt(&self) -> Option<Duration> {
        let kernel = self.probe.as_ref().map(|probe| probe.figures().rtt).filter(|rtt| !rtt.is_zero());
        let own = self.rtt_micros.load(Ordering::Relaxed);
        kernel.or((own > 0).then(|| Duration::from_micros(own)))
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

    fn frames(&self) -> Totals {
        Totals { sent: self.sent.load(Ordering::Relaxed), received: self.received.load(Ordering::Relaxed) }
    }
}

/// What one channel has cost so far.
#[derive(Debug)]
pub struct ChannelCounters {
    connection: Arc<ConnectionCounters>,
    wire_at_open: Totals,
    frames_at_open: Totals,
    sent: AtomicU64,
    received: AtomicU64,
    at_close: OnceLock<Totals>,
}

impl ChannelCounters {
    /// For a channel that opens now.
    pub fn new(connection: Arc<ConnectionCounters>) -> Self {
        Self {
            wire_at_open: connection.wire(),
            frames_at_open: connection.frames(),
            connection,
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            at_close: OnceLock::new(),
        }
    }

    /// Bytes of its frames, headers included, handed to the stream.
    pub fn sent_frames_bytes(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Bytes of its frames, headers included, that arrived.
    pub fn received_frames_bytes(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Its share of the TCP payload sent, retransmits included. Live while the channel is.
    pub fn sent_wire(&self) -> u64 {
        self.wire().sent
    }

    /// Its share of the TCP payload received. Live while the channel is.
    pub fn received_wire(&self) -> u64 {
        self.wire().received
    }

    pub(super) fn add_sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn add_received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The channel is over: what the connection carries from now on is not its own.
    pub(super) fn freeze(&self) {
        let now = self.wire();
        let _ = self.at_close.set(now);
    }

    fn wire(&self) -> Totals {
        if let Some(last) = self.at_close.get() {
            return *last;
        }
        let (wire, frames) = (self.connection.wire(), self.connection.frames());
        let share = |wire: u64, all: u64, own: u64| -> u64 {
            if all == 0 { own } else { (u128::from(wire) * u128::from(own) / u128::from(all)) as u64 }
        };
        Totals {
            sent: share(
                wire.sent.saturating_sub(self.wire_at_open.sent),
                frames.sent.saturating_sub(self.frames_at_open.sent),
                self.sent_frames_bytes(),
            ),
            received: share(
                wire.received.saturating_sub(self.wire_at_open.received),
                frames.received.saturating_sub(self.frames_at_open.received),
                self.received_frames_bytes(),
            ),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_share_what_the_connection_carried() {
        let connection = Arc::new(ConnectionCounters::new(None));
        connection.add_sent(500);
        let one = ChannelCounters::new(connection.clone());
        let two = ChannelCounters::new(connection.clone());
        one.add_sent(300);
        two.add_sent(100);
        connection.add_sent(400);
        assert_eq!((one.sent_wire(), two.sent_wire(), one.received_wire()), (300, 100, 0));
        one.freeze();
        connection.add_sent(1000);
        assert_eq!(one.sent_wire(), 300);
    }
}
