//! A link between two sites: two network namespaces joined by a user-space forwarder.
//!
//! The kernel this runs on may have no netem, so delay and loss are made here: each namespace has a
//! TUN device, and plain threads carry packets between the two through a drop-tail queue, a
//! serialiser, a fixed delay and random loss, each per direction and each adjustable while traffic
//! flows. What crosses is counted outside the products, from IP and TCP headers ([`Counters`]).
//!
//! Owns the namespaces, devices and threads, and removes them when dropped. Not its job: starting
//! the products ([`crate::site`]). Bounds: queued packets are bounded by queue and delay times rate,
//! and by [`forward::PACKETS_MAX`].

mod counters;
mod forward;
pub mod namespace;
mod packet;
mod tun;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::process::run;

pub use counters::{Counters, PortBytes};
pub use namespace::Namespace;

/// Bytes a frame has around its IP packet (Ethernet): what the serialiser adds to each packet.
const FRAMING_BYTES: usize = 14;

/// One direction of the link.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Line rate in bits a second, framing included; 0 is unshaped.
    pub rate_bps: u64,
    /// One-way delay after the serialiser.
    pub delay: Duration,
    /// Fraction of packets lost at random, 0 to 1.
    pub loss: f64,
    /// Drop-tail queue; one bandwidth-delay product of the round trip unless said.
    pub queue_bytes: Option<u64>,
}

/// A link as a suite asks for it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinkConfig {
    /// From the source namespace to the target namespace.
    pub up: Shape,
    /// Back.
    pub down: Shape,
    /// Bytes of an IP packet.
    pub mtu: u16,
    /// Seed of the random loss.
    pub seed: u64,
}

impl LinkConfig {
    /// The same shape both ways. `loss` applies to the direction source to target alone, as a lossy
    /// bulk path is measured; lost acknowledgements are rare beside it.
    pub fn shaped(mbit: f64, rtt_ms: u64, loss: f64) -> Self {
        let delay = Duration::from_micros(rtt_ms * 500);
        let shape = Shape { rate_bps: (mbit * 1e6) as u64, delay, loss: 0.0, queue_bytes: None };
        Self { up: Shape { loss, ..shape }, down: shape, mtu: 1500, seed: 1 }
    }

    /// As fast as the machine goes: large packets, no delay. For cases where the link is not the point.
    pub fn fast() -> Self {
        let shape = Shape { rate_bps: 0, delay: Duration::ZERO, loss: 0.0, queue_bytes: None };
        Self { up: shape, down: shape, mtu: 16_000, seed: 1 }
    }
}

/// Which end of the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// 10.77.0.1
    Source,
    /// 10.77.0.2
    Target,
}

impl End {
    /// Its address inside its namespace.
    pub fn address(self) -> &'static str {
        match self {
            Self::Source => "10.77.0.1",
            Self::Target => "10.77.0.2",
        }
    }
}

/// What the link does with packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mode {
    /// Carries them.
    Up = 0,
    /// Loses them all without a word: a dead line.
    BlackHole = 1,
    /// Answers TCP with a reset, as a restarted firewall does: both ends learn at once.
    Reset = 2,
}

/// Settings of one direction, read by its threads for every packet.
#[derive(Default)]
struct Lane {
    rate_bps: AtomicU64,
    delay_us: AtomicU64,
    loss_ppm: AtomicU64,
    queue_bytes: AtomicU64,
}

impl Lane {
    fn set(&self, shape: &Shape, round_trip: Duration) {
        let product = shape.rate_bps as f64 / 8.0 * round_trip.as_secs_f64();
        let queue = shape.queue_bytes.unwrap_or((product as u64).max(32 * 1024));
        self.rate_bps.store(shape.rate_bps, Ordering::Relaxed);
        self.delay_us.store(shape.delay.as_micros() as u64, Ordering::Relaxed);
        self.loss_ppm.store((shape.loss * 1e6) as u64, Ordering::Relaxed);
        self.queue_bytes.store(queue, Ordering::Relaxed);
    }
}

/// What the threads and the link's handle share.
#[derive(Default)]
struct Shared {
    up: Lane,
    down: Lane,
    mode: AtomicU8,
    /// The port of the one connection that is answered with resets; 0: none.
    reset_port: AtomicU16,
    stop: std::sync::atomic::AtomicBool,
    counters: Counters,
}

/// A running link. Dropping it stops the threads and removes both namespaces.
pub struct Link {
    source: Namespace,
    target: Namespace,
    shared: Arc<Shared>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Link {
    /// Makes two namespaces and joins them. Needs root.
    pub fn up(config: LinkConfig) -> Result<Self> {
        namespace::sweep();
        let (source, target) = Namespace::pair()?;
        let from_source = tun::open_in(&source, config.mtu, End::Source.address(), End::Target.address())?;
        let from_target = tun::open_in(&target, config.mtu, End::Target.address(), End::Source.address())?;
        let shared = Arc::new(Shared::default());
        let threads = forward::start(from_source, from_target, &shared, config.seed)?;
        let link = Self { source, target, shared, threads };
        link.reshape(config);
        Ok(link)
    }

    /// Changes rate, delay, loss and queue of both directions at once (not the MTU).
    pub fn reshape(&self, config: LinkConfig) {
        let round_trip = config.up.delay + config.down.delay;
        self.shared.up.set(&config.up, round_trip);
        self.shared.down.set(&config.down, round_trip);
    }

    /// The namespace of one end.
    pub fn namespace(&self, end: End) -> &Namespace {
        match end {
            End::Source => &self.source,
            End::Target => &self.target,
        }
    }

    /// What the system's congestion control is for new connections of both ends. By the route: the
    /// namespace's own setting may be read only, or bound to what the machine allows everybody.
    pub fn set_congestion(&self, name: &str) -> Result<()> {
        for (end, other) in [(End::Source, End::Target), (End::Target, End::Source)] {
            let route = ["dev", tun::DEVICE, "proto", "kernel", "scope", "link", "src", end.address()];
            let namespace = self.namespace(end).name();
            let change = ["-n", namespace, "route", "change", other.address()];
            run("ip", [&change[..], &route[..], &["congctl", name]].concat())?;
        }
        Ok(())
    }

    /// Both ends in one network of 256 addresses, as on Ethernet. Otherwise each is the peer of a point-to-point line, and
    /// whoever asks the kernel for its addresses is told the peer's.
    pub fn as_one_network(&self) -> Result<()> {
        for end in [End::Source, End::Target] {
            let namespace = ["-n", self.namespace(end).name(), "addr"];
            run("ip", [&namespace[..], &["flush", "dev", tun::DEVICE]].concat())?;
            let address = format!("{}/24", end.address());
            run("ip", [&namespace[..], &["add", &address, "dev", tun::DEVICE]].concat())?;
        }
        Ok(())
    }

    /// Up, black hole or reset, from this moment on; packets under way are lost as well.
    pub fn set_mode(&self, mode: Mode) {
        self.shared.mode.store(mode as u8, Ordering::SeqCst);
    }

    /// Resets the connection with this port at either end, and no other; 0 ends that.
    pub fn reset_connection(&self, port: u16) {
        self.shared.reset_port.store(port, Ordering::SeqCst);
    }

    /// An outage of `down`, after which the link carries again.
    pub fn cut(&self, mode: Mode, down: Duration) {
        self.set_mode(mode);
        std::thread::sleep(down);
        self.set_mode(Mode::Up);
    }

    /// What crossed so far.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Waits until `more` bytes of TCP payload were sent upwards to or from `port`, counted from `from`.
    pub fn wait_sent(&self, port: u16, from: u64, more: u64, limit: Duration) -> Result<u64> {
        let end = Instant::now() + limit;
        loop {
            let sent = self.counters().port(port).up_sent - from;
            if sent >= more {
                return Ok(sent);
            }
            if Instant::now() > end {
                bail!("only {sent} of {more} bytes were sent within {limit:?}");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            // A thread that panicked has already said so; there is nothing to add while cleaning up.
            let _ = thread.join();
        }
    }
}
