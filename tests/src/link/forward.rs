//! The threads that carry packets: one that reads and one that delivers, per direction.
//!
//! Queue and serialiser are a virtual clock: `free_at` is when the line has sent all that is queued,
//! so the backlog in bytes is known without timers, a packet that does not fit is dropped at once,
//! and every packet's arrival is settled when it is read. The deliverer only sleeps until then.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::counters::LaneCounters;
use super::{FRAMING_BYTES, Lane, Mode, Shared, packet};

/// Packets on their way in one direction, whatever rate and delay say.
pub const PACKETS_MAX: usize = 200_000;
/// Packets due within this are delivered together: fewer wake-ups, and far below any delay we shape.
const TOGETHER: Duration = Duration::from_micros(150);

/// Starts both directions.
pub(super) fn start(
    source: OwnedFd,
    target: OwnedFd,
    shared: &Arc<Shared>,
    seed: u64,
) -> Result<Vec<JoinHandle<()>>> {
    let (source, target) = (Arc::new(source), Arc::new(target));
    let mut threads = Vec::new();
    for up in [true, false] {
        let (from, to) = if up { (&source, &target) } else { (&target, &source) };
        let flight = Arc::new(Flight::default());
        let reader = Carrier {
            shared: shared.clone(),
            up,
            from: from.clone(),
            to: to.clone(),
            flight: flight.clone(),
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(u64::from(up)) | 1,
            free_at: Instant::now(),
        };
        let (shared, to) = (shared.clone(), to.clone());
        let name = if up { "up" } else { "down" };
        let spawn = |role: &str, body: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new()
                .name(format!("link-{name}-{role}"))
                .spawn(body)
                .context("starting the link")
        };
        threads.push(spawn("read", Box::new(move || reader.run()))?);
        threads.push(spawn("send", Box::new(move || deliver(&shared, up, &to, &flight)))?);
    }
    Ok(threads)
}

/// Packets between the serialiser and their arrival.
#[derive(Default)]
struct Flight {
    packets: Mutex<VecDeque<(Instant, Vec<u8>)>>,
    arrived: Condvar,
}

struct Carrier {
    shared: Arc<Shared>,
    up: bool,
    from: Arc<OwnedFd>,
    to: Arc<OwnedFd>,
    flight: Arc<Flight>,
    random: u64,
    free_at: Instant,
}

impl Carrier {
    fn run(mut self) {
        let mut buffer = vec![0u8; 65_536];
        while !self.shared.stop.load(Ordering::Relaxed) {
            match rustix::io::read(&*self.from, &mut buffer[..]) {
                Ok(len) => self.carry(&buffer[..len]),
                Err(Errno::AGAIN | Errno::INTR) => wait_readable(&self.from),
                // The device is gone: its namespace was removed.
                Err(_) => return,
            }
        }
    }

    fn carry(&mut self, bytes: &[u8]) {
        let shared = self.shared.clone();
        let (lane, counters) = lane(&shared, self.up);
        counters.packets.fetch_add(1, Ordering::Relaxed);
        counters.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let segment = packet::segment(bytes);
        if let Some(segment) = &segment {
            counters.note_sent(segment.ports, segment.payload as u64);
        }
        let cut = shared.reset_port.load(Ordering::Relaxed);
        let is_cut = |ports: (u16, u16)| cut != 0 && (ports.0 == cut || ports.1 == cut);
        let mode = match mode(&shared) {
            Mode::Up if segment.as_ref().is_some_and(|segment| is_cut(segment.ports)) => Mode::Reset,
            mode => mode,
        };
        match mode {
            Mode::Up => {}
            Mode::BlackHole => return,
            Mode::Reset => {
                if let Some(reset) = segment.and_then(|segment| packet::reset_for(bytes, &segment)) {
                    // A full device queue loses it, as any line may.
                    let _ = rustix::io::write(&*self.from, &reset);
                }
                return;
            }
        }
        if self.is_lost(lane.loss_ppm.load(Ordering::Relaxed)) {
            counters.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let Some(due) = self.due(lane, bytes.len()) else {
            counters.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        };
        if due.is_none() {
            write_out(&self.to, bytes, counters);
            return;
        }
        let mut packets = self.flight.packets.lock().unwrap_or_else(PoisonError::into_inner);
        if packets.len() < PACKETS_MAX {
            packets.push_back((due.unwrap_or_else(Instant::now), bytes.to_vec()));
            self.flight.arrived.notify_one();
        } else {
            counters.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// When a packet arrives: none where the queue is full, `Some(None)` where nothing is shaped.
    fn due(&mut self, lane: &Lane, len: usize) -> Option<Option<Instant>> {
        let rate = lane.rate_bps.load(Ordering::Relaxed);
        let delay = Duration::from_micros(lane.delay_us.load(Ordering::Relaxed));
        if rate == 0 {
            return Some(if delay.is_zero() { None } else { Some(Instant::now() + delay) });
        }
        let now = Instant::now();
        let backlog = self.free_at.saturating_duration_since(now).as_secs_f64() * rate as f64 / 8.0;
        if backlog + len as f64 > lane.queue_bytes.load(Ordering::Relaxed) as f64 {
            return None;
        }
        let takes =
            Duration::from_nanos(((len + FRAMING_BYTES) as u64 * 8).saturating_mul(1_000_000_000) / rate);
        self.free_at = self.free_at.max(now) + takes;
        Some(Some(self.free_at + delay))
    }

    fn is_lost(&mut self, loss_ppm: u64) -> bool {
        if loss_ppm == 0 {
            return false;
        }
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % 1_000_000 < loss_ppm
    }
}

fn deliver(shared: &Shared, up: bool, to: &OwnedFd, flight: &Flight) {
    // SAFETY: PR_SET_TIMERSLACK takes plain integers and touches this thread only.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1000u64, 0, 0, 0) };
    let (_, counters) = lane(shared, up);
    let mut due_now = Vec::new();
    while !shared.stop.load(Ordering::Relaxed) {
        let first = {
            let mut packets = flight.packets.lock().unwrap_or_else(PoisonError::into_inner);
            if packets.is_empty() {
                let waited = flight.arrived.wait_timeout(packets, Duration::from_millis(100));
                packets = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            packets.front().map(|(due, _)| *due)
        };
        let Some(first) = first else { continue };
        std::thread::sleep(first.saturating_duration_since(Instant::now()));
        let limit = Instant::now() + TOGETHER;
        {
            let mut packets = flight.packets.lock().unwrap_or_else(PoisonError::into_inner);
            while packets.front().is_some_and(|(due, _)| *due <= limit) {
                due_now.extend(packets.pop_front().map(|(_, bytes)| bytes));
            }
        }
        let carries = mode(shared) == Mode::Up;
        for bytes in due_now.drain(..).filter(|_| carries) {
            write_out(to, &bytes, counters);
        }
    }
}

fn write_out(to: &OwnedFd, bytes: &[u8], counters: &LaneCounters) {
    if rustix::io::write(to, bytes).is_ok()
        && let Some(segment) = packet::segment(bytes)
    {
        counters.note_delivered(segment.ports, segment.payload as u64);
    }
}

fn lane(shared: &Shared, up: bool) -> (&Lane, &LaneCounters) {
    if up { (&shared.up, &shared.counters.up) } else { (&shared.down, &shared.counters.down) }
}

fn mode(shared: &Shared) -> Mode {
    match shared.mode.load(Ordering::Relaxed) {
        0 => Mode::Up,
        1 => Mode::BlackHole,
        _ => Mode::Reset,
    }
}

fn wait_readable(fd: &OwnedFd) {
    let limit = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
    // A failed poll only means one more try to read.
    let _ = poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&limit));
}
