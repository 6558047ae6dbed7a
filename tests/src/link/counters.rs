//! Counters of what crossed the link, taken from IP and TCP headers, readable at any time.
//!
//! `sent` is what an end put on the line, retransmits and packets that were then lost included:
//! the figure that `sent_wire` of a session must agree with. Bounds: one counter a port.

use std::sync::atomic::{AtomicU64, Ordering};

/// TCP payload bytes of one port (as either end of a connection).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortBytes {
    /// Source to target, as sent.
    pub up_sent: u64,
    /// Source to target, as delivered.
    pub up_delivered: u64,
    /// Target to source, as sent.
    pub down_sent: u64,
    /// Target to source, as delivered.
    pub down_delivered: u64,
}

/// One direction.
pub(super) struct LaneCounters {
    sent: Box<[AtomicU64]>,
    delivered: Box<[AtomicU64]>,
    pub(super) packets: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) lost: AtomicU64,
    pub(super) dropped: AtomicU64,
}

impl Default for LaneCounters {
    fn default() -> Self {
        let zeroes = || (0..=u16::MAX).map(|_| AtomicU64::new(0)).collect();
        Self {
            sent: zeroes(),
            delivered: zeroes(),
            packets: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        }
    }
}

impl LaneCounters {
    pub(super) fn note_sent(&self, ports: (u16, u16), payload: u64) {
        add(&self.sent, ports, payload);
    }

    pub(super) fn note_delivered(&self, ports: (u16, u16), payload: u64) {
        add(&self.delivered, ports, payload);
    }
}

fn add(table: &[AtomicU64], ports: (u16, u16), payload: u64) {
    table[usize::from(ports.0)].fetch_add(payload, Ordering::Relaxed);
    if ports.1 != ports.0 {
        table[usize::from(ports.1)].fetch_add(payload, Ordering::Relaxed);
    }
}

/// Both directions.
#[derive(Default)]
pub struct Counters {
    pub(super) up: LaneCounters,
    pub(super) down: LaneCounters,
}

impl Counters {
    /// TCP payload of connections that have `port` at either end.
    pub fn port(&self, port: u16) -> PortBytes {
        let read = |table: &[AtomicU64]| table[usize::from(port)].load(Ordering::Relaxed);
        PortBytes {
            up_sent: read(&self.up.sent),
            up_delivered: read(&self.up.delivered),
            down_sent: read(&self.down.sent),
            down_delivered: read(&self.down.delivered),
        }
    }

    /// The ports above `low` that sent TCP payload upwards, and how much.
    pub fn senders(&self, low: u16) -> Vec<(u16, u64)> {
        let all = (low..=u16::MAX).map(|port| (port, self.port(port).up_sent));
        all.filter(|(_, sent)| *sent > 0).collect()
    }

    /// Bytes of all IP packets, both ways, headers and acknowledgements included.
    pub fn packet_bytes(&self) -> u64 {
        self.up.bytes.load(Ordering::Relaxed) + self.down.bytes.load(Ordering::Relaxed)
    }

    /// Packets, IP bytes, random losses and queue drops of one direction, for a person to read.
    pub fn describe(&self) -> String {
        let lane = |name: &str, lane: &LaneCounters| {
            let read = |value: &AtomicU64| value.load(Ordering::Relaxed);
            format!(
                "{name}: packets {} bytes {} lost {} dropped {}",
                read(&lane.packets),
                read(&lane.bytes),
                read(&lane.lost),
                read(&lane.dropped)
            )
        };
        format!("{}\n{}", lane("up", &self.up), lane("down", &self.down))
    }
}
