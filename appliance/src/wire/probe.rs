//! What the kernel knows of one TCP socket: a duplicate of the descriptor beside the stream, read with
//! `TCP_INFO` and tuned while the socket lives.
//!
//! Bytes sent include Noise, Yamux and retransmits. Not its job: what the figures are used for.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::valve::Valve;

/// Bytes that may wait unsent in the kernel: more only delays control (818 ms to 262 ms at 20 Mbit/s, measured). A line
/// starts with the most, and less is enough where it turns out to be slow.
pub const NOTSENT_LOWAT_MAX: u32 = 128 * 1024;
const NOTSENT_LOWAT_MIN: u32 = 48 * 1024;
/// How much of the line that is.
const NOTSENT_TIME: Duration = Duration::from_millis(20);
/// BBR looks for the shortest round trip anew where none was shorter for 10 s; it begins anew before that.
const BBR_ANEW: Duration = Duration::from_secs(7);
/// A round trip above its minimum by more than this part, and this, is one that waited in a queue.
const QUEUED: (f64, Duration) = (0.25, Duration::from_millis(5));
/// What is kept of a rate from one look to the next: one at which there was little to send says nothing.
const RATE_KEEP: f64 = 0.9;

/// What the kernel says of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpFigures {
    /// TCP payload, retransmits included.
    pub sent: u64,
    /// Of these, sent again.
    pub retransmitted: u64,
    /// TCP payload, in order.
    pub received: u64,
    /// In the kernel and not sent yet.
    pub unsent: u64,
    /// The congestion window in bytes.
    pub window: u64,
    /// Smoothed round trip.
    pub rtt: Duration,
    /// Bytes a second that were delivered of late.
    pub delivery_rate: u64,
    /// The shortest round trip of the last minutes: what is above it waits in queues.
    pub rtt_min: Duration,
}

impl TcpFigures {
    /// All that the kernel has taken from this side.
    pub fn taken(&self) -> u64 {
        (self.sent + self.unsent).saturating_sub(self.retransmitted)
    }

    /// True where the line takes all that comes, at once.
    fn is_held_back(&self) -> bool {
        let quick = self.rtt_min.mul_f64(1.0 + QUEUED.0) + QUEUED.1;
        self.unsent == 0 && self.sent > 0 && self.rtt <= quick
    }
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
    /// What holds back the bytes that go to it.
    pub valve: Arc<Valve>,
    congestion: OnceLock<String>,
    /// Bytes a second that the line takes, of late, and what may wait unsent.
    pace: Mutex<(f64, u32)>,
    /// When BBR began anew.
    anew: Mutex<Option<Instant>>,
}

impl Probe {
    /// For a socket that was just connected.
    pub fn new(socket: OwnedFd, remote: SocketAddr, dialled: bool) -> Self {
        let congestion = OnceLock::new();
        if let Ok(name) = SockRef::from(&socket).tcp_congestion() {
            let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
            let _ = congestion.set(String::from_utf8_lossy(&name[..end]).into_owned());
        }
        let (socket, valve) = (Mutex::new(Some(socket)), Arc::default());
        let (pace, anew) = (Mutex::new((0.0, NOTSENT_LOWAT_MAX)), Mutex::default());
        Self { socket, last: Mutex::default(), remote, dialled, valve, congestion, pace, anew }
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

    /// Lets as much wait unsent in the kernel as the line takes in [`NOTSENT_TIME`]; to be called now and then.
    /// Only with BBR: without, bundles of connections look at what is unsent themselves.
    pub fn follow_rate(&self) {
        if self.congestion().as_deref() != Some("bbr") {
            return;
        }
        let (socket, mut pace) = (lock(&self.socket), lock(&self.pace));
        let Some(socket) = socket.as_ref() else { return };
        let rate = tcp_info(socket).map_or(0.0, |figures| figures.delivery_rate as f64);
        let rate = rate.max(pace.0 * RATE_KEEP);
        let lowat = match (rate * NOTSENT_TIME.as_secs_f64()) as u32 {
            0 => NOTSENT_LOWAT_MAX,
            bytes => bytes.clamp(NOTSENT_LOWAT_MIN, NOTSENT_LOWAT_MAX),
        };
        if lowat != pace.1
            && let Err(error) = SockRef::from(socket).set_tcp_notsent_lowat(lowat)
        {
            tracing::debug!(%error, "a socket option was refused");
        }
        *pace = (rate, lowat);
    }

    /// Lets BBR begin anew where the line is not what bounds the connection; to be called several times a second where
    /// a rule does, or the rates of its sessions.
    ///
    /// Every 10 s BBR sends no more than four packets a round trip for 200 ms, to see how short that is with empty
    /// queues: 10 % of a second's bytes are missing at 2 Mbit/s and 40 ms, 20 % from 8 Mbit/s on. A connection that is
    /// held back fills no queue, and the kernel keeps the shortest round trip of the last minutes for the next start.
    pub fn spare_the_look(&self, now: Instant) {
        if self.congestion().as_deref() != Some("bbr") {
            return;
        }
        let (socket, mut anew) = (lock(&self.socket), lock(&self.anew));
        if anew.is_some_and(|last| now.saturating_duration_since(last) < BBR_ANEW) {
            return;
        }
        let Some(socket) = socket.as_ref() else { return };
        if !tcp_info(socket).is_some_and(|figures| figures.is_held_back()) {
            return;
        }
        let socket = SockRef::from(socket);
        // The same name again is no start.
        if let Err(error) =
            socket.set_tcp_congestion(b"reno").and_then(|()| socket.set_tcp_congestion(b"bbr"))
        {
            tracing::warn!(%error, "congestion control bbr cannot be chosen any more");
        }
        *anew = Some(now);
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
fn set_pacing(socket: &OwnedFd, bits_per_second: Option<u64>) -> io::Result<()> {
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
        retransmitted: info.tcpi_bytes_retrans,
        received: info.tcpi_bytes_received,
        unsent: u64::from(info.tcpi_notsent_bytes),
        window: u64::from(info.tcpi_snd_cwnd) * u64::from(info.tcpi_snd_mss),
        rtt: Duration::from_micros(u64::from(info.tcpi_rtt)),
        rtt_min: Duration::from_micros(u64::from(info.tcpi_min_rtt)),
        delivery_rate: info.tcpi_delivery_rate,
    })
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
