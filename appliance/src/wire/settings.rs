//! What the wire is started with. Plain data; checked where it is used.

use std::path::PathBuf;

use super::dialect::Dialect;
use crate::throttle::Rule;

/// Which transport this site listens with. It dials whatever an address says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TransportKind {
    /// TCP + Noise + Yamux with BBR.
    #[default]
    Tcp,
    /// QUIC: TCP addresses in `listen` mean the same UDP port.
    Quic,
}

/// What the wire needs to know.
#[derive(Clone, Debug)]
pub struct WireConfig {
    /// The identity; made when missing.
    pub key_file: PathBuf,
    /// The peer book.
    pub peers_file: PathBuf,
    /// The domains' keys.
    pub domains_file: PathBuf,
    /// This site's name.
    pub site_name: String,
    /// Multiaddrs to listen on.
    pub listen: Vec<String>,
    /// How to listen.
    pub transport: TransportKind,
    /// BBR where the kernel has it; false: the system's congestion control.
    pub bbr: bool,
    /// Most connections to one peer that carry sessions.
    pub connections: usize,
    /// Bits a second on the wire for all connections together.
    pub rate_bps: Option<u64>,
    /// Throttling rules, in force from the first connection on.
    pub throttle: Vec<Rule>,
    /// Multiaddrs that codes carry before those of the listeners: a public name, a forwarded port.
    pub advertise: Vec<String>,
    /// What it speaks.
    pub dialect: Dialect,
}
