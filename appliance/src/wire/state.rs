//! What the swarm task publishes for the handles: links that are up, addresses, peers' figures.
//!
//! The swarm task writes, everybody reads; locks are held for a look-up only.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use libp2p::swarm::ConnectionId;
use libp2p::{Multiaddr, PeerId};

use super::Totals;
use super::accounting::ConnectionCounters;
use super::link::Link;

/// The links that are up, newest last.
pub type Links = HashMap<PeerId, Vec<Arc<Link>>>;

/// What is known of a peer apart from the book.
#[derive(Clone, Debug, Default)]
pub struct PeerState {
    /// Why the last attempt failed or the last link ended.
    pub last_error: Option<String>,
    /// When a link was last up.
    pub last_seen: Option<jiff::Timestamp>,
    /// Wire bytes of connections that are over.
    pub closed: Totals,
    /// Connections that live.
    pub living: Vec<(ConnectionId, Arc<ConnectionCounters>)>,
}

/// Shared with the handles; short locks only.
#[derive(Default)]
pub struct Shared {
    /// By identity.
    pub peers: Mutex<HashMap<PeerId, PeerState>>,
    /// Where we listen, wildcards expanded.
    pub listeners: Mutex<Vec<Multiaddr>>,
}

impl Shared {
    /// What is known of each peer.
    pub fn peers(&self) -> std::sync::MutexGuard<'_, HashMap<PeerId, PeerState>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where we listen.
    pub fn listeners(&self) -> std::sync::MutexGuard<'_, Vec<Multiaddr>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
